"""A small server that keeps every promise that the checker knows, and one broken server for each promise.

Its model is a list of words, another for every question; a token is a word. It speaks both wire formats, has slots
and a queue, jobs, refusals. A broken server is a subclass that does one thing wrong; `breaks` says which check has to
find it, and with which words. A check without a broken server fails a test.

It runs in threads of the test's process, on the loopback, over plain sockets. Tokens come at a pace, because how they
arrive is what some checks judge; everything else waits for nothing.
"""

import contextlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from tests.scripted_server import ERROR, METRICS, STARTED, WAIT_S, Peer, numbered, sse, token
from worker.checks.probes import DIFFERENT, LONG, NO_SUCH_MODEL, NON_ASCII

MODEL = "little"
LONG_WORDS = 600
CONTEXT_TOKENS = 2000
NATIVE_FIELDS = {"prompt", "messages", "max_tokens", "temperature", "seed", "stop"}
OPENAI_FIELDS = {"model", "messages", "max_tokens", "temperature", "seed", "stop", "stream", "stream_options"}
STOP_REASONS = {"stop": "EOS", "length": "MAX_TOKENS"}


@dataclass
class Generated:
    """What the model says to a request."""

    pieces: list[str]
    finish: str
    num_prompt_tokens: int
    matched: str | None = None

    @property
    def usage(self) -> dict[str, int]:
        num_tokens = len(self.pieces)
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": num_tokens,
            "total_tokens": self.num_prompt_tokens + num_tokens,
        }


@dataclass
class Job:
    """A job: all that it would say, and whether it was told to stop."""

    generated: Generated
    is_cancelled: threading.Event = field(default_factory=threading.Event)
    num_readers: int = 0


class LittleServer:
    """Keeps every promise."""

    num_slots = 4
    pace_s = 0.001
    slow_pace_s = 0.004  # of what is longer than a test looks: nobody has to write and read more of it
    keep_alive_s = 0.02
    native_headers: ClassVar[dict[str, str]] = {"Cache_Control": "no-cache", "X_Accel_Buffering": "no"}

    def __init__(self) -> None:
        self.is_over = threading.Event()  # the test is: nothing waits any longer
        self.slots = threading.Semaphore(self.num_slots)
        self.jobs: dict[str, Job] = {}
        self.numbers = itertools.count(1)

    # --- The model ---

    def words(self, content: str, fields: dict[str, Any]) -> list[str]:
        """All that it would say if it were let."""
        if content in NON_ASCII:
            return list("\u3053\u3093\u306b\u3061\u306f \U0001f30d")
        seed = self.seed(fields) if fields.get("temperature", 1) else 0
        source = random.Random(f"{content} {seed}")
        num_words = {LONG: LONG_WORDS, DIFFERENT[3]: 3}.get(content, 80)
        words = [f"{source.randrange(16**6):06x}" for _ in range(num_words)]
        return words[:1] + [f" {word}" for word in words[1:]]

    def seed(self, fields: dict[str, Any]) -> int:
        return int(fields.get("seed", next(self.numbers)))

    def generate(self, content: str, fields: dict[str, Any]) -> Generated:
        """The words within the limits of the request."""
        pieces, finish, matched = self.words(content, fields), "stop", None
        max_tokens = fields.get("max_tokens", CONTEXT_TOKENS)
        if len(pieces) > max_tokens:
            pieces, finish = pieces[:max_tokens], self.finish_at_max_tokens()
        for stop in fields.get("stop", []):
            place = "".join(pieces).find(stop)
            if place >= 0:
                pieces, finish, matched = list(self.before(pieces, place, stop)), "stop", stop
        return Generated(pieces, finish, max(1, len(content.split())), matched)

    def finish_at_max_tokens(self) -> str:
        return "length"

    def before(self, pieces: list[str], place: int, stop: str) -> Iterator[str]:
        for piece in pieces:
            if place > 0:
                yield piece[:place]
            place -= len(piece)

    # --- Routes ---

    def serve(self, peer: Peer) -> None:
        """One exchange."""
        method, path = peer.request.method, peer.request.path
        name = path.removeprefix("/v1/jobs/").removesuffix("/stream")
        if method == "HEAD":
            self.head(peer)
        elif (method, path) == ("POST", "/execute"):
            self.execute(peer)
        elif (method, path) == ("POST", "/v1/jobs"):
            self.submit(peer)
        elif path.startswith("/v1/jobs/") and name not in self.jobs:
            peer.json({"error": {"code": "UNKNOWN_JOB", "message": "no such job"}}, 404)
        elif method == "GET" and path.endswith("/stream"):
            self.read_job(peer, self.jobs[name])
        elif method == "DELETE" and name in self.jobs:
            self.cancel(self.jobs[name])
            peer.json({"job_id": name})
        elif (method, path) == ("POST", "/v1/chat/completions"):
            self.chat(peer)
        elif (method, path) == ("GET", "/v1/models"):
            self.list_models(peer)
        else:
            peer.json({"error": "not found"}, 404)

    def head(self, peer: Peer) -> None:
        peer.head()

    def list_models(self, peer: Peer) -> None:
        peer.json({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def execute(self, peer: Peer) -> None:
        asked = self.asked(peer, NATIVE_FIELDS)
        if asked is not None:
            payloads = self.native_payloads(f"job-{next(self.numbers)}", self.answer(*asked))
            self.native_head(peer)
            self.emit(peer, self.native_frames(numbered(payloads)))

    def answer(self, content: str, fields: dict[str, Any]) -> Generated:
        """For `POST /execute` and streamed chats."""
        return self.generate(content, fields)

    def native_head(self, peer: Peer) -> None:
        peer.head(200, **self.native_headers)

    def native_payloads(self, job_id: str, generated: Generated) -> list[Any]:
        tokens = [token(piece, index) for index, piece in enumerate(generated.pieces)]
        return [{**STARTED, "job_id": job_id}, *tokens, METRICS, self.end(generated)]

    def end(self, generated: Generated) -> dict[str, Any]:
        return {
            "type": "end",
            "tokens_out": len(generated.pieces),
            "decode_time_ms": 1,
            "stop_reason": "STOP_SEQUENCE" if generated.matched else STOP_REASONS[generated.finish],
            "stop_sequence_matched": generated.matched,
            "usage": self.usage(generated),
        }

    def usage(self, generated: Generated) -> dict[str, int] | None:
        return generated.usage

    def native_frames(self, frames: list[bytes]) -> list[bytes]:
        return frames

    def chat(self, peer: Peer) -> None:
        asked = self.asked(peer, OPENAI_FIELDS)
        if asked is None:
            return
        content, fields = asked
        if not fields.get("stream"):
            peer.json(self.completion(self.whole(content, fields)))
            return
        self.chat_head(peer)
        self.emit(peer, self.chat_frames(self.chat_chunks(f"chatcmpl-{next(self.numbers)}", self.answer(*asked))))

    def chat_head(self, peer: Peer) -> None:
        peer.head()

    def whole(self, content: str, fields: dict[str, Any]) -> Generated:
        """For chats in one piece, and for jobs."""
        return self.generate(content, fields)

    def completion(self, generated: Generated) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(generated.pieces)}
        choice = {"index": 0, "message": message, "finish_reason": generated.finish}
        return {"id": "chatcmpl-0", "object": "chat.completion", "choices": [choice], "usage": self.usage(generated)}

    def chat_chunks(self, chunk_id: str, generated: Generated) -> list[bytes]:
        def chunk(delta: dict[str, str] | None, finish: str | None = None, **more: Any) -> bytes:
            choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
            return sse({"id": chunk_id, "object": "chat.completion.chunk", "choices": choices, **more})

        texts = [chunk({"content": piece}) for piece in generated.pieces]
        last = [chunk({}, generated.finish), chunk(None, usage=generated.usage), sse("[DONE]")]
        return [chunk({"role": "assistant", "content": ""}), *texts, *last]

    def chat_frames(self, frames: list[bytes]) -> list[bytes]:
        return frames

    # --- Jobs ---

    def submit(self, peer: Peer) -> None:
        asked = self.asked(peer, NATIVE_FIELDS)
        if asked is not None:
            job_id = f"job-{next(self.numbers)}"
            self.jobs[job_id] = Job(self.whole(*asked))
            peer.json({"job_id": job_id, "sse_url": f"/v1/jobs/{job_id}/stream"}, 202)

    def cancel(self, job: Job) -> None:
        job.is_cancelled.set()

    def read_job(self, peer: Peer, job: Job) -> None:
        job.num_readers += 1
        after = int(peer.request.headers.get("last-event-id", -1))
        frames = self.job_frames(numbered(self.native_payloads("job", job.generated)), after, job.num_readers)
        self.native_head(peer)
        try:
            for number, frame in enumerate(frames, after + 1):
                if job.is_cancelled.is_set():
                    end = self.end(job.generated) | {"stop_reason": "CANCELLED"}
                    peer.chunk(sse(end, number) + sse("[DONE]"))
                    break
                self.is_over.wait(self.pace_s)
                peer.chunk(frame)
        finally:
            job.num_readers -= 1
        peer.last_chunk()

    def job_frames(self, frames: list[bytes], after: int, num_readers: int) -> list[bytes]:
        return frames[after + 1 :]

    # --- Sending ---

    def emit(self, peer: Peer, frames: list[bytes]) -> None:
        """The first event at once; the others when there is a slot, at the pace of the model."""
        peer.chunk(frames[0])
        with self.slot(peer):
            self.send(peer, frames[1:])
        self.finish(peer)

    @contextlib.contextmanager
    def slot(self, peer: Peer) -> Iterator[None]:
        while not self.slots.acquire(timeout=self.keep_alive_s):
            self.keep_alive(peer)
        try:
            yield
        finally:
            self.free()

    def free(self) -> None:
        self.slots.release()

    def keep_alive(self, peer: Peer) -> None:
        peer.chunk(b": ping\n")

    def send(self, peer: Peer, frames: list[bytes]) -> None:
        is_long = len(frames) > LONG_WORDS / 2
        pace_s = (
            self.slow_pace_s if is_long else self.pace_s if len(frames) > 60 else 0.0
        )  # of short ones nothing judges
        for frame in frames:
            self.is_over.wait(pace_s)
            peer.chunk(frame)

    def finish(self, peer: Peer) -> None:
        peer.last_chunk()

    # --- Requests and refusals ---

    def asked(self, peer: Peer, known: set[str]) -> tuple[str, dict[str, Any]] | None:
        """What is asked, and the fields; None after a refusal."""
        try:
            fields = peer.request.fields
        except ValueError:
            self.refuse_malformed(peer)
            return None
        content = fields.get("prompt") or fields["messages"][0]["content"]
        problems = [*self.problems(content, fields, known)]
        if problems:
            self.refuse(peer, *problems[0])
            return None
        return content, fields

    def problems(self, content: str, fields: dict[str, Any], known: set[str]) -> Iterator[tuple[str, str]]:
        yield from self.unknown(fields, known)
        yield from self.impossible(fields)
        yield from self.unknown_model(fields)
        yield from self.too_long(content)

    def unknown(self, fields: dict[str, Any], known: set[str]) -> Iterator[tuple[str, str]]:
        for name in fields.keys() - known:
            yield name, "is not supported"

    def impossible(self, fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
        if fields.get("temperature", 0) < 0:
            yield "temperature", "must be at least 0"

    def unknown_model(self, fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
        if fields.get("model", MODEL) != MODEL:
            yield "model", f"{fields['model']} is not served here"

    def too_long(self, content: str) -> Iterator[tuple[str, str]]:
        if len(content.split()) > CONTEXT_TOKENS:
            yield "prompt", "is too long"

    def refuse_malformed(self, peer: Peer) -> None:
        self.refuse(peer, "body", "is not JSON")

    def refuse(self, peer: Peer, name: str, message: str) -> None:
        if peer.request.path == "/v1/chat/completions":
            kind = "invalid_request_error"
            peer.json({"error": {"message": f"{name}: {message}", "type": kind, "param": name, "code": "bad"}}, 400)
        else:
            peer.json({"errors": [{"field": name, "constraint": "bad", "message": message}]}, 400)


class SplitsTokens(LittleServer):
    """Keeps every promise in its own way: the text of a token comes in two chunks, and counts as one token."""

    def chat_chunks(self, chunk_id: str, generated: Generated) -> list[bytes]:
        pieces = [half for piece in generated.pieces for half in (piece[:2], piece[2:]) if half]
        chunks = super().chat_chunks(chunk_id, replace(generated, pieces=pieces))
        usage = super().chat_chunks(chunk_id, generated)[-2]
        return [*chunks[:-2], usage, chunks[-1]]


class IsSlowToAccept(LittleServer):
    """Keeps every promise on a machine that is too busy: in a crowd, a request waits for its turn to be read."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = threading.Lock()

    def serve(self, peer: Peer) -> None:
        if LONG.encode() in peer.request.body or peer.request.path == "/v1/models":
            with self.turn:
                self.is_over.wait(0.05)
        super().serve(peer)


# --- The broken ones ---


@dataclass(frozen=True)
class Fault:
    """A broken server, the format in which it shows, the check that finds it, and what that says.

    Attributes:
        options: Fields of Limits that make it show in a short time, or SILENCE_LIMIT_S and HELD_BACK_S of the rules.
        also: Checks that cannot but fail with it.
    """

    api: str
    check: str
    reason: str
    server: type[LittleServer]
    options: dict[str, Any]
    also: frozenset[str]


FAULTS: list[Fault] = []
# Those who wait for a slot wait for much longer than it takes to tell, on a busy machine too.
WAITS: dict[str, Any] = {"HELD_BACK_S": 0.5, "watch_s": 2.0, "long_tokens": LONG_WORDS}
SHORT_SILENCE: dict[str, Any] = {"SILENCE_LIMIT_S": 0.9}


def breaks(
    apis: str, check: str, reason: str, *, also: tuple[str, ...] = (), **options: Any
) -> Callable[[type[LittleServer]], type[LittleServer]]:
    """Say which check finds this server out, in which formats."""

    def register(server: type[LittleServer]) -> type[LittleServer]:
        FAULTS.extend(Fault(api, check, reason, server, options, frozenset(also)) for api in apis.split())
        return server

    return register


@breaks("native openai", "answers", "it answered 200, application/json")
class SendsNoEventStream(LittleServer):
    def native_head(self, peer: Peer) -> None:
        peer.head(content_type="application/json")

    def chat_head(self, peer: Peer) -> None:
        peer.head(content_type="application/json")


@breaks("native openai", "prompt", "it has to leave within 100 ms", HELD_BACK_S=0.25)
class HoldsTheFirstEventBack(LittleServer):
    def emit(self, peer: Peer, frames: list[bytes]) -> None:
        self.is_over.wait(0.35 if len(frames) > 60 else 0)
        super().emit(peer, frames)


@breaks("native openai", "alive", "not a byte for 0.", SILENCE_LIMIT_S=0.4)
class FallsSilent(LittleServer):
    def send(self, peer: Peer, frames: list[bytes]) -> None:
        super().send(peer, frames[:10])
        self.is_over.wait(0.5 if 60 < len(frames) < 100 else 0)
        super().send(peer, frames[10:])


class Rewrites(LittleServer):
    """Changes the events of an answer, in one of the ways below."""

    def payloads(self, payloads: list[Any]) -> list[Any]:
        return payloads

    def execute(self, peer: Peer) -> None:
        asked = self.asked(peer, NATIVE_FIELDS)
        if asked is not None:
            payloads = self.payloads(self.native_payloads(f"job-{next(self.numbers)}", self.answer(*asked)))
            self.native_head(peer)
            self.emit(peer, self.native_frames(numbered(payloads)))


@breaks("native", "started", "there are 2 started events")
class StartsTwice(Rewrites):
    def payloads(self, payloads: list[Any]) -> list[Any]:
        return [payloads[0], *payloads]


@breaks("native", "ids", "has id '3', 2 was due")
class SkipsAnId(LittleServer):
    def native_frames(self, frames: list[bytes]) -> list[bytes]:
        return [frames[0], frames[1], *(b"id: 3\n" + frame.partition(b"\n")[2] for frame in frames[2:-1]), frames[-1]]


@breaks("native", "json", "'hello' is not a JSON object")
class SaysHello(Rewrites):
    def payloads(self, payloads: list[Any]) -> list[Any]:
        return [payloads[0], "hello", *payloads[1:]]


@breaks("native", "fields", "field 'usage' of a 'end' event is missing")
class EndsWithoutUsage(LittleServer):
    def end(self, generated: Generated) -> dict[str, Any]:
        return {name: value for name, value in super().end(generated).items() if name != "usage"}


@breaks("native", "tokens", "tokens were lost, repeated or reordered")
class LosesAToken(Rewrites):
    def payloads(self, payloads: list[Any]) -> list[Any]:
        return [{**p, "i": p["i"] + 1} if p["type"] == "token" and p["i"] > 1 else p for p in payloads]


@breaks("native", "metrics", "there are 0 metrics events")
class MeasuresNothing(Rewrites):
    def payloads(self, payloads: list[Any]) -> list[Any]:
        return [payload for payload in payloads if payload["type"] != "metrics"]


@breaks("native", "one-terminal", "there is neither an end nor an error")
class NeverEnds(Rewrites):
    def payloads(self, payloads: list[Any]) -> list[Any]:
        return payloads[:-1]


@breaks("native", "terminal-last", "came after the terminal event")
class GoesOnAfterTheEnd(Rewrites):
    def payloads(self, payloads: list[Any]) -> list[Any]:
        return [*payloads[:-2], payloads[-1], payloads[-2]]


@breaks("native", "succeeds", "it failed with STALLED")
class Fails(Rewrites):
    def payloads(self, payloads: list[Any]) -> list[Any]:
        return [*payloads[:-1], ERROR]


@breaks("native", "headers", "the header x-accel-buffering is None")
class LetsProxiesBuffer(LittleServer):
    native_headers: ClassVar[dict[str, str]] = {"Cache_Control": "no-cache"}


@breaks("native openai", "one-newline", "a blank line without an event before it")
class PingsWithABlankLine(LittleServer):
    def native_frames(self, frames: list[bytes]) -> list[bytes]:
        return [frames[0], b": ping\n\n", *frames[1:]]

    chat_frames = native_frames


@breaks("native openai", "done", "there is no [DONE]")
class IsNotDone(LittleServer):
    def native_frames(self, frames: list[bytes]) -> list[bytes]:
        return frames[:-1]

    chat_frames = native_frames


@breaks("native openai", "eof", "the connection was cut")
class CutsTheBody(LittleServer):
    def finish(self, peer: Peer) -> None:
        pass


@breaks("openai", "role", "the first chunk is")
class HasNoRole(LittleServer):
    def chat_frames(self, frames: list[bytes]) -> list[bytes]:
        return [frames[0].replace(b'"assistant"', b'"robot"'), *frames[1:]]


@breaks("openai", "plain-lines", "has an id: or an event: line")
class NamesItsEvents(LittleServer):
    def chat_frames(self, frames: list[bytes]) -> list[bytes]:
        return [frames[0], b"event: chunk\n" + frames[1], *frames[2:]]


@breaks("openai", "json", "'hello' is not a JSON object")
class ChatsHello(LittleServer):
    def chat_frames(self, frames: list[bytes]) -> list[bytes]:
        return [frames[0], sse("hello"), *frames[1:]]


@breaks("openai", "chunks", "is not a chat.completion.chunk with choices")
class ChatsInTextCompletions(LittleServer):
    def chat_frames(self, frames: list[bytes]) -> list[bytes]:
        return [frame.replace(b"chat.completion.chunk", b"text_completion") for frame in frames]


@breaks("openai", "error-fields", "is not an error with message, type, param and code", also=("succeeds",))
class FailsFlatly(LittleServer):
    def chat_frames(self, frames: list[bytes]) -> list[bytes]:
        return [*frames[:-3], sse({"error": "out of memory"}), frames[-1]]


@breaks("openai", "succeeds", "it failed with out of memory")
class FailsInShape(LittleServer):
    def chat_frames(self, frames: list[bytes]) -> list[bytes]:
        error = {"message": "out of memory", "type": "server_error", "param": None, "code": "VRAM_OOM"}
        return [*frames[:-3], sse({"error": error}), frames[-1]]


@breaks("openai", "one-ending", "there are 2")
class FinishesTwice(LittleServer):
    def chat_frames(self, frames: list[bytes]) -> list[bytes]:
        return [*frames[:-2], *frames[-3:]]


@breaks("openai", "ending-last", "came after the ending")
class TalksAfterTheEnding(LittleServer):
    def chat_frames(self, frames: list[bytes]) -> list[bytes]:
        empty = frames[0].replace(b'"role": "assistant", ', b"")
        return [*frames[:-2], empty, *frames[-2:]]


@breaks("openai", "usage-chunk", "there are 0 usage chunks")
class CountsNothing(LittleServer):
    def chat_frames(self, frames: list[bytes]) -> list[bytes]:
        return [*frames[:-2], frames[-1]]


@breaks("native openai", "incremental", "in one burst, not one by one")
class HoldsTheTextBack(LittleServer):
    def send(self, peer: Peer, frames: list[bytes]) -> None:
        self.is_over.wait(1.0)  # so long that a busy client takes a small share of it to read the burst
        peer.chunk(b"".join(frames))


@breaks("native openai", "same-whole", "from character")
class SaysMoreInOnePiece(LittleServer):
    def whole(self, content: str, fields: dict[str, Any]) -> Generated:
        generated = super().whole(content, fields)
        generated.pieces[-1] += "!"
        return generated


@breaks("native openai", "usage", "does not add up")
class CountsWrong(LittleServer):
    def usage(self, generated: Generated) -> dict[str, int]:
        return generated.usage | {"total_tokens": 1}


@breaks("openai", "usage", "the whole answer has no usage")
class CountsOnlyStreams(LittleServer):
    def usage(self, generated: Generated) -> None:
        return None


@breaks("native openai", "max-tokens", "max_tokens 5 was reached, and the stream says 'stop' instead of length")
class HidesTheLimit(LittleServer):
    def finish_at_max_tokens(self) -> str:
        return "stop"


@breaks("native openai", "max-tokens", "max_tokens is 5, and the usage counts 6 tokens")
class SaysOneMore(LittleServer):
    def answer(self, content: str, fields: dict[str, Any]) -> Generated:
        return self.generate(content, fields | ({"max_tokens": 6} if fields["max_tokens"] == 5 else {}))


@breaks("native openai", "utf8", "2 replacement characters came, 0 in the other answer")
class BreaksCharacters(LittleServer):
    def answer(self, content: str, fields: dict[str, Any]) -> Generated:
        generated = self.generate(content, fields)
        generated.pieces = [piece.replace("\U0001f30d", "\ufffd\ufffd") for piece in generated.pieces]
        return generated


@breaks("native openai", "utf8", "as a lone surrogate")
class HalvesCharacters(LittleServer):
    def answer(self, content: str, fields: dict[str, Any]) -> Generated:
        generated = self.generate(content, fields)
        generated.pieces = [piece.replace("\U0001f30d", "\ud83c") for piece in generated.pieces]
        return generated


@breaks("native openai", "utf8", "the other answer")
class DropsCharacters(LittleServer):
    def answer(self, content: str, fields: dict[str, Any]) -> Generated:
        generated = self.generate(content, fields)
        generated.pieces = [piece.replace("\u3093", "") for piece in generated.pieces]
        return generated


@breaks("native openai", "stop", "came after the text before it")
class LeaksTheStopString(LittleServer):
    def before(self, pieces: list[str], place: int, stop: str) -> Iterator[str]:
        yield from super().before(pieces, place + 2, stop)


@breaks("native openai", "stop", "is missing, the text before the stop string")
class SwallowsTheTextBefore(LittleServer):
    def before(self, pieces: list[str], place: int, stop: str) -> Iterator[str]:
        yield from super().before(pieces, place - 1, stop)


@breaks("native openai", "seed", "the same seed gave")
class IgnoresTheSeed(LittleServer):
    def seed(self, fields: dict[str, Any]) -> int:
        return next(self.numbers)


@breaks("native openai", "malformed", "malformed JSON is answered with 500")
class FallsOverMalformedJson(LittleServer):
    def refuse_malformed(self, peer: Peer) -> None:
        peer.json({"error": "JSONDecodeError"}, 500)


@breaks("native", "error-shape", "temperature -1 is refused without a list of errors")
@breaks("openai", "error-shape", "temperature -1 is refused without an error object")
class RefusesInAnotherShape(LittleServer):
    def refuse(self, peer: Peer, name: str, message: str) -> None:
        if name == "temperature":
            peer.json({"detail": f"{name} {message}"}, 400)
        else:
            super().refuse(peer, name, message)


@breaks("native openai", "bad-value", "temperature -1 is not refused")
class TakesAnyTemperature(LittleServer):
    def impossible(self, fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
        yield from ()


@breaks("native openai", "unknown-field", "no_such_parameter is not refused: it was answered with 200")
class IgnoresUnknownFields(LittleServer):
    def unknown(self, fields: dict[str, Any], known: set[str]) -> Iterator[tuple[str, str]]:
        yield from ()


@breaks("native openai", "unknown-field", "is refused without naming no_such_parameter")
class RefusesWithoutAName(LittleServer):
    def unknown(self, fields: dict[str, Any], known: set[str]) -> Iterator[tuple[str, str]]:
        if fields.keys() - known:
            yield "something", "is wrong"


@breaks("openai", "unknown-model", f"the unknown model {NO_SUCH_MODEL} is not refused")
class TakesAnyModel(LittleServer):
    def unknown_model(self, fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
        yield from ()


@breaks("native openai", "too-long", "a prompt of 12000 words was cut in silence, to 2000 tokens")
class CutsLongPrompts(LittleServer):
    def too_long(self, content: str) -> Iterator[tuple[str, str]]:
        yield from ()

    def generate(self, content: str, fields: dict[str, Any]) -> Generated:
        return super().generate(" ".join(content.split()[:CONTEXT_TOKENS]) if len(content) > 9999 else content, fields)


@breaks("native openai", "isolated", "among others and with")
class MixesStreams(LittleServer):
    """Keeps the question where the next request overwrites it."""

    latest = ""

    def answer(self, content: str, fields: dict[str, Any]) -> Generated:
        if content in DIFFERENT and fields["max_tokens"] < 100:
            self.latest = content
            self.is_over.wait(0.05)
            content = self.latest
        return super().answer(content, fields)


@breaks("native openai", "head", "HEAD")
class FallsOverHead(LittleServer):
    def head(self, peer: Peer) -> None:
        peer.json({}, 500)


@breaks("native openai", "queued-prompt", "of them got no event within", **WAITS)
class AnswersWithTheFirstToken(LittleServer):
    """No event before there is a slot; the headers alone are no answer."""

    def emit(self, peer: Peer, frames: list[bytes]) -> None:
        with self.slot(peer):
            peer.chunk(frames[0])
            self.send(peer, frames[1:])
        self.finish(peer)


@breaks("native openai", "queued-prompt", "of them got no event within", **WAITS)
class SendsItsHeadWithTheFirstToken(LittleServer):
    """Not even the headers."""

    def native_head(self, peer: Peer) -> None:
        pass

    chat_head = native_head

    def keep_alive(self, peer: Peer) -> None:
        pass

    def emit(self, peer: Peer, frames: list[bytes]) -> None:
        with self.slot(peer):
            super().native_head(peer)
            peer.chunk(frames[0])
            self.send(peer, frames[1:])
        self.finish(peer)

    def read_job(self, peer: Peer, job: Job) -> None:
        super().native_head(peer)
        super().read_job(peer, job)


@breaks(
    "native openai",
    "queued-prompt",
    "requests of GET /v1/models, which waits for no slot, had no answer either",
    crowd=12,
    **WAITS,
)
class HasAThreadForEachSlot(LittleServer):
    """Whoever waits for a slot waits for a thread, and so does everybody else."""

    num_slots = 2

    def __init__(self) -> None:
        super().__init__()
        self.threads = threading.Semaphore(self.num_slots)

    def serve(self, peer: Peer) -> None:
        if peer.request.path == "/v1/models":
            self.is_over.wait(0.3)  # until streams have the threads, on a busy machine too
        with self.threads:
            super().serve(peer)


@breaks("native openai", "queued-alive", "while it waited for its first token", **WAITS, **SHORT_SILENCE)
class LetsTheQueueWaitInSilence(LittleServer):
    def keep_alive(self, peer: Peer) -> None:
        pass


@breaks("native openai", "freed", "long streams were left, and a short request", freed_s=0.4, watch_s=1.0)
class GeneratesForNobody(LittleServer):
    def send(self, peer: Peer, frames: list[bytes]) -> None:
        try:
            super().send(peer, frames)
        except (BrokenPipeError, ConnectionResetError):
            self.is_over.wait(WAIT_S / 2)
            raise


@breaks("openai", "models", "it is no list of models with ids")
class ListsNoIds(LittleServer):
    def list_models(self, peer: Peer) -> None:
        peer.json({"object": "list", "data": [{"name": MODEL}]})


@breaks("openai", "models", "it lists no model")
class ListsNothing(LittleServer):
    def list_models(self, peer: Peer) -> None:
        peer.json({"object": "list", "data": []})


@breaks("native", "resume", "1 events did not come")
class LosesAnEventOnResume(LittleServer):
    def job_frames(self, frames: list[bytes], after: int, num_readers: int) -> list[bytes]:
        return frames[after + 1 + (after >= 0) :]


@breaks("native", "resume", "events came again")
class RepeatsOnResume(LittleServer):
    def job_frames(self, frames: list[bytes], after: int, num_readers: int) -> list[bytes]:
        return frames[max(0, after) :]


@breaks("native", "resume", "the id of the terminal event: it had not ended within 0.4 s", stopped_s=0.4)
class SaysNothingToWhoHasItAll(LittleServer):
    def read_job(self, peer: Peer, job: Job) -> None:
        if int(peer.request.headers.get("last-event-id", -1)) >= len(job.generated.pieces) + 2:
            self.native_head(peer)
            while not self.is_over.wait(self.keep_alive_s):
                self.keep_alive(peer)
        else:
            super().read_job(peer, job)


@breaks("native", "resume", "is refused: it answered 400")
class RefusesWhoHasItAll(LittleServer):
    def read_job(self, peer: Peer, job: Job) -> None:
        if int(peer.request.headers.get("last-event-id", -1)) >= len(job.generated.pieces) + 2:
            self.refuse(peer, "last_event_id", "is out of range")
        else:
            super().read_job(peer, job)


@breaks("native", "resume", "behind the terminal event, 1 events came")
class RepeatsTheEnd(LittleServer):
    def job_frames(self, frames: list[bytes], after: int, num_readers: int) -> list[bytes]:
        return frames[after + 1 :] if after < len(frames) - 2 else frames[-2:]


@breaks("native", "two-readers", "they differ from event 3 on")
class SharesAJobBetweenReaders(LittleServer):
    def job_frames(self, frames: list[bytes], after: int, num_readers: int) -> list[bytes]:
        is_alone = num_readers == 1 or after >= 0
        return frames[after + 1 :] if is_alone else [*frames[:3], *frames[4:]]


@breaks("native", "cancel", "the cancelled stream says 'length' instead of CANCELLED")
class IgnoresDelete(LittleServer):
    def cancel(self, job: Job) -> None:
        pass
