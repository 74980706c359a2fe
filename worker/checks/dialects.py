"""The two wire formats: how each puts a question, and how each says what it answered.

A probe is written once, in the words of `Dialect` and `Answer`, and sent in either format. Its law: an answer is
read leniently. Whether a stream has its `[DONE]` is the business of `worker.rules`; here it is complete when it says
how it ended, so that one broken thing breaks one check.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from worker.checks.asking import Ask, Asker
from worker.client import json_object
from worker.recording import Recording, Transcript
from worker.rules import NATIVE_RULES, OPENAI_RULES, Rule, Verdict, judge_native, judge_openai, refusal

_FINISHES = {"EOS": "stop", "STOP_SEQUENCE": "stop", "MAX_TOKENS": "length", "CANCELLED": "cancelled"}


@dataclass(frozen=True)
class Answer:
    """One answer, streamed or whole, in words that both formats share.

    Attributes:
        pieces: (seconds since the request, text) of each event that brought text.
        finish: stop, length, tool_calls or cancelled; empty when it did not say.
        usage: As it came; None when none came.
        failure: Why it is no complete answer; empty when it is one.
        ids: Of its job, or of its chunks.
    """

    recording: Recording
    pieces: Sequence[tuple[float, str]] = ()
    finish: str = ""
    usage: Mapping[str, Any] | None = None
    failure: str = ""
    ids: frozenset[str] = frozenset()

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.pieces)

    def count(self, name: str) -> int | None:
        """One number of its usage."""
        value = (self.usage or {}).get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def body_of(recording: Recording) -> bytes:
    """The bytes of an answer, whatever it is."""
    return b"".join(data for _, data in recording.reads)


class Dialect(Protocol):
    """One wire format."""

    name: str
    route: str
    rules: Sequence[Rule]

    def stream(self, content: str, max_tokens: int, **fields: Any) -> Ask:
        """Ask for a stream; `fields` are those that both formats have: temperature, seed, stop."""

    def read(self, recording: Recording) -> Answer:
        """What a stream said."""

    def whole(self, asker: Asker, content: str, max_tokens: int, **fields: Any) -> Answer:
        """The same question by another way: in one piece, or through a job."""

    def judge(self, recording: Recording) -> Verdict:
        """What the rules say about a stream, with its measures."""


def _messages(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


class Native:
    """Jobs with numbered events."""

    name = "native"
    route = "POST /execute"
    rules: Sequence[Rule] = NATIVE_RULES

    def stream(self, content: str, max_tokens: int, **fields: Any) -> Ask:
        return Ask("POST", "/execute", {"messages": _messages(content), "max_tokens": max_tokens, **fields})

    def submit(self, asker: Asker, content: str, max_tokens: int, **fields: Any) -> tuple[str, Recording]:
        """Start a job; its id is empty when there is none, and the recording says why."""
        body = {"messages": _messages(content), "max_tokens": max_tokens, **fields}
        recording = asker.ask(Ask("POST", "/v1/jobs", body))
        job_id = (json_object(body_of(recording)) or {}).get("job_id") if recording.status in (200, 202) else None
        return job_id if isinstance(job_id, str) else "", recording

    def events(self, job_id: str, last_event_id: str | None = None) -> Ask:
        """A job's events."""
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        return Ask("GET", f"/v1/jobs/{job_id}/stream", headers=headers)

    def whole(self, asker: Asker, content: str, max_tokens: int, **fields: Any) -> Answer:
        job_id, submitted = self.submit(asker, content, max_tokens, **fields)
        if not job_id:
            return Answer(submitted, failure=why_refused(submitted))
        return self.read(asker.ask(self.events(job_id)))

    def read(self, recording: Recording) -> Answer:
        why = refusal(recording)
        if why:
            return Answer(recording, failure=why)
        transcript = Transcript(recording)
        pieces = [(frame.at_s, frame.text) for frame in transcript.texts]
        ids = frozenset(str(frame.payload.get("job_id")) for frame in transcript.of_type("started"))
        for frame in transcript.of_type("end", "error")[:1]:
            usage = frame.payload.get("usage")
            finish = _FINISHES.get(str(frame.payload.get("stop_reason")), "")
            failure = f"it failed with {frame.payload.get('code')}" if frame.type == "error" else ""
            return Answer(recording, pieces, finish, usage if isinstance(usage, dict) else None, failure, ids)
        return Answer(recording, pieces, failure=_unfinished(recording), ids=ids)

    def judge(self, recording: Recording) -> Verdict:
        return judge_native(recording)


class OpenAI:
    """Chat completions.

    Attributes:
        model: Named in every request; None when the server lists none.
        has_stream_options: False on a server that refuses them.
    """

    name = "openai"
    route = "POST /v1/chat/completions"
    rules: Sequence[Rule] = OPENAI_RULES

    def __init__(self, model: str | None = None, has_stream_options: bool = True) -> None:
        self.model = model
        self.has_stream_options = has_stream_options

    def stream(self, content: str, max_tokens: int, **fields: Any) -> Ask:
        options = {"stream_options": {"include_usage": True}} if self.has_stream_options else {}
        return self._ask(content, max_tokens, {"stream": True, **options, **fields})

    def whole(self, asker: Asker, content: str, max_tokens: int, **fields: Any) -> Answer:
        return self._read_whole(asker.ask(self._ask(content, max_tokens, fields)))

    def _ask(self, content: str, max_tokens: int, fields: Mapping[str, Any]) -> Ask:
        model = {"model": self.model} if self.model else {}
        body = {**model, "messages": _messages(content), "max_tokens": max_tokens, **fields}
        return Ask("POST", "/v1/chat/completions", body)

    def read(self, recording: Recording) -> Answer:
        why = refusal(recording)
        if why:
            return Answer(recording, failure=why)
        transcript = Transcript(recording)
        pieces = [(frame.at_s, frame.text) for frame in transcript.texts]
        ids = frozenset(str(frame.payload["id"]) for frame in transcript.events if "id" in frame.payload)
        usages = [frame.payload["usage"] for frame in transcript.events if isinstance(frame.payload.get("usage"), dict)]
        usage = usages[-1] if usages else None
        for frame in transcript.finishes[:1]:
            failure = "" if frame.is_finish else f"it failed with {frame}"
            return Answer(recording, pieces, str(frame.choice.get("finish_reason") or ""), usage, failure, ids)
        return Answer(recording, pieces, usage=usage, failure=_unfinished(recording), ids=ids)

    def _read_whole(self, recording: Recording) -> Answer:
        answer = json_object(body_of(recording)) or {}
        try:
            choice = answer["choices"][0]
            message = choice["message"]
            text = message.get("content") or message.get("reasoning_content") or ""
        except (LookupError, TypeError, AttributeError):
            return Answer(recording, failure=why_refused(recording))
        usage = answer.get("usage")
        return Answer(
            recording,
            [(recording.ended_at_s, str(text))],
            str(choice.get("finish_reason") or ""),
            usage if isinstance(usage, dict) else None,
        )

    def judge(self, recording: Recording) -> Verdict:
        return judge_openai(recording)


def why_refused(recording: Recording) -> str:
    """What came instead of an answer, in one line."""
    if recording.status is None:
        return recording.detail
    said = body_of(recording)[:200].decode("utf-8", "replace").strip()
    return f"it answered {recording.status}: {said or '(nothing)'}"


def _unfinished(recording: Recording) -> str:
    return recording.detail or "it ended without saying how"


def with_fields(ask: Ask, **fields: Any) -> Ask:
    """The same request with other fields beside."""
    return Ask(ask.method, ask.path, {**(ask.fields or {}), **fields}, headers=ask.headers)


def malformed(ask: Ask) -> Ask:
    """The same request, cut before its end."""
    body = json.dumps(ask.fields).encode()[:-1]
    return Ask(ask.method, ask.path, body=body, headers={"Content-Type": "application/json"})
