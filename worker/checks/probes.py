"""The scenarios: which requests a check sends. A probe asks and returns what came; it judges nothing.

Its law: a probe may leave a server as it found it and no other way. Long streams are left or cancelled, so that what
is asked next does not wait for them, unless the server makes it wait, which is a finding.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from worker.checks.asking import Ask, Asker
from worker.checks.dialects import Answer, Dialect, Native, OpenAI, malformed, why_refused, with_fields
from worker.client import ServerSentEvent, json_object
from worker.recording import Frame, Recording, Transcript

# Questions that small models and large ones answer. The first makes a long answer, also without sampling.
LONG = "Write some verse."
STORY = "Tell me a story."
# Each has an answer of its own, so that words from a neighbour's are found.
DIFFERENT = (
    "What is the capital of France?",
    "What is the capital of Japan?",
    "How do you say hello in Russian?",
    "Hello",
    LONG,
)
NON_ASCII = ("How do you say hello in Japanese?", "Repeat after me: Gr\u00fc\u00dfe, \u4e16\u754c, \U0001f30d!")
FEW_TOKENS = 5
SOME_TOKENS = 24
# Longer than the context of most models whose server does not say how long it is.
MANY_WORDS = 12_000
NO_SUCH_FIELD = "no_such_parameter"
NO_SUCH_MODEL = "no-such-model"
BUSY = (429, 503)
# What every server answers without a slot, be it with 404. Not /health: some servers generate a token for that.
CONTROL = Ask("GET", "/v1/models")
MAX_CONTROLS = 8


class CannotTell(Exception):
    """The check cannot be judged here, and why: a feature that the server lacks, or too little to go by."""


@dataclass
class Scene:
    """What every probe has: somebody to ask, the format, and the stream that the others are compared with.

    Attributes:
        plain: The first stream, temperature 0.
        context_tokens: What the model has room for, if anybody has said so.
    """

    asker: Asker
    dialect: Dialect
    prompt: str
    max_tokens: int
    plain: Answer
    context_tokens: int | None = None

    def stream(self, content: str, max_tokens: int, **fields: Any) -> Answer:
        """Ask for one stream and read it; greedy unless the fields say otherwise."""
        return self.dialect.read(self.asker.ask(self.dialect.stream(content, max_tokens, **{**GREEDY, **fields})))

    def whole(self, content: str, max_tokens: int) -> Answer:
        return self.dialect.whole(self.asker, content, max_tokens, **GREEDY)

    @property
    def native(self) -> Native:
        assert isinstance(self.dialect, Native), "the table gives the probes of jobs to the native format alone"
        return self.dialect

    def submit(self, content: str, max_tokens: int) -> str:
        """Start a job.

        Raises:
            CannotTell: There are no jobs here, or this one was not taken.
        """
        job_id, recording = self.native.submit(self.asker, content, max_tokens, **GREEDY)
        if not job_id:
            raise CannotTell(f"POST /v1/jobs gives no job: {why_refused(recording)}")
        return job_id


GREEDY = {"temperature": 0}


def plain(scene: Scene) -> Answer:
    """The stream that is there already."""
    return scene.plain


def plain_with_usage(scene: Scene) -> Answer:
    """The same, if its usage was asked for."""
    if isinstance(scene.dialect, OpenAI) and not scene.dialect.has_stream_options:
        raise CannotTell("stream_options is refused, so the usage cannot be asked for")
    return scene.plain


@dataclass(frozen=True)
class Pair:
    """A stream, and the same question asked again, mostly in another way."""

    stream: Answer
    other: Answer


def again(scene: Scene) -> Pair:
    """The plain question again, in the same way."""
    return Pair(scene.plain, scene.stream(scene.prompt, scene.max_tokens))


def whole(scene: Scene) -> Pair:
    """The plain question again: in one piece, or as a job."""
    return Pair(scene.plain, scene.whole(scene.prompt, scene.max_tokens))


def few_tokens(scene: Scene) -> Pair:
    """The plain question with room for a few tokens only."""
    return Pair(scene.plain, scene.stream(scene.prompt, FEW_TOKENS))


def non_ascii(scene: Scene) -> list[Pair]:
    """Questions whose answers are not ASCII, as streams and whole."""
    return [Pair(scene.stream(content, SOME_TOKENS), scene.whole(content, SOME_TOKENS)) for content in NON_ASCII]


@dataclass(frozen=True)
class Stopped:
    """The plain question again with a stop string, and the text that is due."""

    stop: str
    due: str
    answer: Answer


def stop_string(scene: Scene) -> Stopped:
    """Stop the plain answer in its middle."""
    stop, due = choose_stop(scene.plain)
    return Stopped(stop, due, scene.stream(scene.prompt, scene.max_tokens, stop=[stop]))


def choose_stop(answer: Answer) -> tuple[str, str]:
    """A stop string from the middle of an answer's own text, and the text before it.

    It reaches over the border between two pieces where there is one, because a server that looks at one token at a
    time has sent its first half when the second comes.

    Raises:
        CannotTell: The text has no such place.
    """
    text = answer.text
    borders, position = [], 0
    for _, piece in answer.pieces:
        position += len(piece)
        borders.append(position)
    borders = borders[:-1] or [len(text) // 2]
    for border in sorted(borders, key=lambda place: abs(place - len(text) // 2)):
        start, end = max(1, border - 3), border + 3
        stop = text[start:end]
        # A string that a server may trim would be judged by its trimming.
        is_fit = len(stop) >= 2 and stop == stop.strip() and text[:start] == text[:start].strip()
        if is_fit and text.find(stop) == start and text[:start].strip():
            return stop, text[:start]
    raise CannotTell(f"the answer has no place for a stop string: {text[:60]!r}")


@dataclass(frozen=True)
class Refusal:
    """An impossible request, what came of it, and the words one of which has to be in the answer."""

    what: str
    recording: Recording
    names: Sequence[str] = ()


def refusals(scene: Scene) -> dict[str, Refusal]:
    """Requests that cannot be served, by the check that looks at what comes of them."""
    dialect = scene.dialect
    plain = dialect.stream(scene.prompt, FEW_TOKENS, **GREEDY)
    asks: dict[str, tuple[str, Ask, Sequence[str]]] = {
        "malformed": ("malformed JSON", malformed(plain), ()),
        "bad-value": ("temperature -1", with_fields(plain, temperature=-1), ["temperature"]),
        # A parameter that no server has: it may matter to the client, so it must not be ignored.
        "unknown-field": (
            f"the unknown field {NO_SUCH_FIELD}",
            with_fields(plain, **{NO_SUCH_FIELD: 1}),
            [NO_SUCH_FIELD],
        ),
    }
    if isinstance(dialect, OpenAI):
        what = f"the unknown model {NO_SUCH_MODEL}"
        asks["unknown-model"] = (what, with_fields(plain, model=NO_SUCH_MODEL), [NO_SUCH_MODEL])
    return {name: Refusal(what, scene.asker.ask(ask), names) for name, (what, ask, names) in asks.items()}


@dataclass(frozen=True)
class TooLong(Refusal):
    """A prompt of so many words, and what the server read of it, if it took it."""

    num_words: int = 0
    is_surely_too_long: bool = False
    answer: Answer = field(default_factory=lambda: Answer(Recording(None, {}, [], "stopped", 0.0)))


def too_long(scene: Scene) -> TooLong:
    """A prompt that cannot fit."""
    num_words = scene.context_tokens + 64 if scene.context_tokens else MANY_WORDS
    ask = scene.dialect.stream("word " * num_words, 1, **GREEDY)
    recording = scene.asker.ask(ask)
    return TooLong(
        f"a prompt of {num_words} words",
        recording,
        (),
        num_words,
        scene.context_tokens is not None,
        scene.dialect.read(recording),
    )


@dataclass(frozen=True)
class Crowd:
    """Many long streams that were left all at once, and a short request before and after.

    Attributes:
        baseline_s: What the short request takes on an idle server.
        streams: As far as they were read.
        after_s: From the leaving to the answer; None when none came in time.
        why_not: Why none came.
        controls: What came of `CONTROL`, asked among the streams: as late as a busy machine makes an answer.
    """

    baseline_s: float
    streams: Sequence[Recording]
    answers: Sequence[Answer]
    after_s: float | None
    why_not: str = ""
    controls: Sequence[Recording] = ()

    @property
    def patience_s(self) -> float:
        """How long the short request may take on a busy machine."""
        return 3 * self.baseline_s

    @property
    def open_streams(self) -> list[Recording]:
        """Those that were still going on when they were left."""
        return [stream for stream in self.streams if stream.status == 200 and stream.ending == "stopped"]

    def waits_s(self) -> list[float]:
        """For each stream that was taken: how long it had been waiting for its first text when it came, or we left."""
        taken = [answer for answer in self.answers if answer.recording.status == 200]
        return [answer.pieces[0][0] if answer.pieces else answer.recording.ended_at_s for answer in taken]


def crowd(scene: Scene) -> Crowd:
    """Open more long streams than the server has room for, watch them, leave them, and ask for something short."""
    limits = scene.asker.limits
    scene.asker.begin(limits.watch_s)

    def short() -> Answer:
        return scene.stream(scene.prompt, 2)

    baselines = [short().recording.ended_at_s for _ in range(2)]
    long = scene.dialect.stream(LONG, limits.long_tokens, **GREEDY)
    streams, controls = _with_controls(scene, long)
    left_at = time.monotonic()
    patience_s = limits.freed_s + 3 * min(baselines)
    after_s, why_not = None, "no answer"
    while (elapsed_s := time.monotonic() - left_at) < patience_s:
        recording = scene.asker.ask(scene.dialect.stream(scene.prompt, 2, **GREEDY), limit_s=patience_s - elapsed_s)
        answer = scene.dialect.read(recording)
        if not answer.failure:
            after_s = time.monotonic() - left_at
            break
        why_not = answer.failure
        if recording.status not in BUSY:
            break  # by asking again it would not get better
        time.sleep(0.05)  # it says that it is full: that may take a step to change
    answers = [scene.dialect.read(stream) for stream in streams]
    return Crowd(min(baselines), streams, answers, after_s, why_not, controls)


def _with_controls(scene: Scene, ask: Ask) -> tuple[list[Recording], list[Recording]]:
    """What came of a crowd of one request, and of the controls between them.

    Beside the first and the last alike, because who is asked last is answered last.
    """
    limits = scene.asker.limits
    apart = -(-limits.crowd // MAX_CONTROLS)
    asks = [each for n in range(limits.crowd) for each in ([ask, CONTROL] if n % apart == apart - 1 else [ask])]
    came = list(zip(asks, scene.asker.ask_together(asks, limit_s=limits.watch_s), strict=True))
    return [recording for each, recording in came if each is ask], [
        recording for each, recording in came if each is CONTROL
    ]


@dataclass(frozen=True)
class Company:
    """One question, answered alone and among others."""

    content: str
    alone: Answer
    together: Answer


def company(scene: Scene) -> list[Company]:
    """Different questions, each alone, then all at once."""
    alone = [scene.stream(content, SOME_TOKENS) for content in DIFFERENT]
    asks = [scene.dialect.stream(content, SOME_TOKENS, **GREEDY) for content in DIFFERENT]
    together = [scene.dialect.read(recording) for recording in scene.asker.ask_together(asks)]
    return [Company(*row) for row in zip(DIFFERENT, alone, together, strict=True)]


@dataclass(frozen=True)
class Seeds:
    """Two answers with one seed, and one with another."""

    first: Answer
    again: Answer
    other: Answer


def seeds(scene: Scene) -> Seeds:
    """Sample with a seed, with it again, and with another."""
    first, other, again = (scene.stream(STORY, SOME_TOKENS, temperature=1, seed=seed) for seed in (11, 12, 11))
    return Seeds(first, again, other)


@dataclass(frozen=True)
class Heads:
    """HEAD on some paths, and an ordinary stream behind them."""

    answers: Sequence[tuple[str, Recording]]
    after: Answer


def heads(scene: Scene) -> Heads:
    """Send HEAD to the route, and to a job's stream or to the list of models; then stream as usual."""
    paths, job_id = [scene.dialect.stream("", 1).path], ""
    if isinstance(scene.dialect, OpenAI):
        paths.append("/v1/models")
    elif job_id := scene.native.submit(scene.asker, scene.prompt, FEW_TOKENS, **GREEDY)[0]:
        paths.append(scene.native.events(job_id).path)
    answers = [(path, scene.asker.ask(Ask("HEAD", path))) for path in paths]
    if job_id:
        return Heads(answers, scene.dialect.read(scene.asker.ask(scene.native.events(job_id))))
    return Heads(answers, scene.stream(scene.prompt, FEW_TOKENS))


def models(scene: Scene) -> Recording:
    """The list of models."""
    return scene.asker.ask(Ask("GET", "/v1/models"))


@dataclass(frozen=True)
class Cancelled:
    """A job that was cancelled in its middle.

    Attributes:
        statuses: Of DELETE, of DELETE again, and of DELETE for a job that never was.
        ended_after_s: From the first DELETE to the end of the stream.
    """

    answer: Answer
    statuses: tuple[int | None, int | None, int | None]
    ended_after_s: float


def cancelled(scene: Scene) -> Cancelled:
    """Cancel a long job at its first token."""
    job_id = scene.submit(LONG, scene.asker.limits.long_tokens)
    has_text = threading.Event()

    def show(event: ServerSentEvent) -> None:
        if Frame(0.0, event).text:
            has_text.set()

    def delete(name: str) -> int | None:
        return scene.asker.ask(Ask("DELETE", f"/v1/jobs/{name}")).status

    with ThreadPoolExecutor(1, "endstop-check-reader") as pool:
        reading = pool.submit(scene.asker.ask, scene.native.events(job_id), show=show)
        reading.add_done_callback(lambda _: has_text.set())
        has_text.wait(max(0.0, scene.asker.remaining_s))
        asked_at = time.monotonic()
        first = delete(job_id)
        recording = reading.result()
        ended_after_s = time.monotonic() - asked_at
        statuses = (first, delete(job_id), delete("no-such-job"))
    return Cancelled(scene.dialect.read(recording), statuses, ended_after_s)


@dataclass(frozen=True)
class Resumed:
    """A job's stream that was left in its middle, what came behind that place, and all of it from the start.

    Attributes:
        over: What came behind its terminal event; None when there was none with an id.
    """

    before: Transcript
    behind: Transcript
    all: Transcript
    over: Transcript | None = None


def resumed(scene: Scene) -> Resumed:
    """Leave a job's stream at its fifth event and come back; come back behind its end, too.

    The last is the client whose connection broke between the terminal event and [DONE].
    """
    job_id = scene.submit(scene.prompt, scene.max_tokens)
    seen: list[ServerSentEvent] = []

    def is_fifth(event: ServerSentEvent) -> bool:
        seen.append(event)
        return len(seen) == 5

    before = Transcript(scene.asker.ask(scene.native.events(job_id), leave_at=is_fifth))
    last_id = before.events[-1].sse.id if before.events else None
    if last_id is None:
        raise CannotTell("the job's events have no id to come back with")
    behind = Transcript(scene.asker.ask(scene.native.events(job_id, last_id)))
    whole = Transcript(scene.asker.ask(scene.native.events(job_id)))
    terminal_id = next((frame.sse.id for frame in whole.of_type("end", "error")), None)
    if terminal_id is None:
        return Resumed(before, behind, whole)
    asked = scene.native.events(job_id, terminal_id)
    over = Transcript(scene.asker.ask(asked, limit_s=scene.asker.limits.stopped_s))
    return Resumed(before, behind, whole, over)


def two_readers(scene: Scene) -> list[Transcript]:
    """Read one job twice at the same time."""
    job_id = scene.submit(scene.prompt, scene.max_tokens)
    return [Transcript(recording) for recording in scene.asker.ask_together([scene.native.events(job_id)] * 2)]


def first_model(listing: Recording) -> str | None:
    """The first model of a list; None when it lists none, and then a request names none."""
    try:
        name = (json_object(b"".join(data for _, data in listing.reads)) or {})["data"][0]["id"]
    except (LookupError, TypeError):
        return None
    return name if isinstance(name, str) else None
