"""Every stream ends: stage x fault x client x worker class, over real sockets.

A case brings one request to a stage, has a fault strike it there, has its client behave as that client does, and lets
everything run out. Then: each reader that stayed got exactly one terminal event, the right one, then [DONE], then the
end of a complete body; the neighbour got its whole answer; each request has exactly one outcome; nothing is left over.
Steps run when the test says so, so that a stage is a stage and not a guess, and the server notes what struck the
request and in which stage it was then: a fault that never came about would look like one that was survived. Whatever
has to stop the work does so within one step, before the others go on. Faults of the whole process are in the last
part: each strikes all stages and all clients at once.
"""

import contextlib
import json
import os
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import requests

from tests.support.processes import workers_of
from tests.support.servers import ANSWER_S, WORKER_CLASSES, RawStream, Server, events_of, running_server
from tests.support.strikes import MARK, UNSPEAKABLE

pytestmark = pytest.mark.slow

LETTERS = "abcdefghijklmnopqrstuvwxyz"
NUM_TOKENS = 9
LONG_PROMPT = "x" * 60  # 4 chunks of 16 tokens
LIMITS = {
    "ENDSTOP_MAX_SLOTS": "2",
    "ENDSTOP_MAX_QUEUE": "4",
    "ENDSTOP_STEP_TOKENS": "16",
    "ENDSTOP_MAX_CONTEXT": "512",
    "ENDSTOP_KEEP_ALIVE_S": "0.2",
    # Longer than any case takes. What is to be overdue is made so.
    "ENDSTOP_QUEUE_TIMEOUT_S": "200",
    "ENDSTOP_FIRST_TOKEN_TIMEOUT_S": "210",
    "ENDSTOP_TOKEN_TIMEOUT_S": "220",
    "ENDSTOP_TOTAL_TIMEOUT_S": "600",
}
DEADLINE_S = 230  # a request's own

# fault -> the terminal of the struck request: a code, or a stop reason
DEADLINES = {
    "deadline": "TIMEOUT",
    "queue_deadline": "QUEUE_TIMEOUT",
    "first_token_deadline": "FIRST_TOKEN_TIMEOUT",
    "token_deadline": "STALLED",
    "slow_consumer": "SLOW_CONSUMER",
}
FAULTS = {
    "nothing": "MAX_TOKENS",
    "endless_narration": "MAX_TOKENS",
    "forward": "INFERENCE_FAILED",
    "memory": "VRAM_OOM",
    "logits": "INFERENCE_FAILED",
    "sampler": "INFERENCE_FAILED",
    "detokenizer": "INFERENCE_FAILED",
    "encoder": "INFERENCE_FAILED",
    "forgotten": "INCOMPLETE",
    "closed_twice": "STALLED",
    "cancel": "CANCELLED",
    **DEADLINES,
}
STAGES = ("queued", "prefilling", "decoding")
# Faults of one stage only.
STAGE_OF = {"queue_deadline": "queued", "first_token_deadline": "prefilling", "token_deadline": "decoding"}
# A step that raises is computed again in halves until the row at fault stands alone: for two rows three passes.
RAISED_BY_A_STEP = ("forward", "memory", "sampler")
# Where those faults strike that wait for something to happen first: a pass, a first token, the end. All others at once.
STRIKES_LATER = {
    "forward": {"queued": "prefilling"},
    "memory": {"queued": "prefilling"},
    "logits": {"queued": "prefilling"},
    "sampler": {"queued": "prefilling"},
    "detokenizer": {"queued": "decoding", "prefilling": "decoding"},
    "endless_narration": {"queued": "decoding", "prefilling": "decoding"},
}
# These end the stream behind the engine's back: whoever leaves then has been told, and does not stop the work.
TOLD_BY_OTHERS = ("forgotten", "closed_twice")


# ---- what a client sees


@dataclass
class Heard:
    """What one client has read of a native stream, over one connection or several."""

    events: list[Any]
    is_complete: bool

    @property
    def verdict(self) -> str:
        """The code or stop reason of the one terminal. Fails on anything but one, then [DONE], then the end."""
        assert self.is_complete, "the body was cut"
        assert self.events[-1:] == ["[DONE]"], self.events[-3:]
        events = self.events[:-1]
        assert events[0]["type"] == "started"
        terminals = [event for event in events if event["type"] in ("end", "error")]
        assert len(terminals) == 1, terminals
        assert terminals[0] is events[-1], "something came behind the terminal event"
        assert {"prompt_tokens", "completion_tokens", "total_tokens"} <= terminals[0]["usage"].keys()
        text = "".join(event["t"] for event in events if event["type"] == "token")
        assert text == (LETTERS * 10)[: len(text)], "a token was lost, doubled or moved"
        verdict: str = terminals[0].get("code") or terminals[0]["stop_reason"]
        if verdict == "MAX_TOKENS":
            assert len(text) == terminals[0]["usage"]["completion_tokens"] == NUM_TOKENS
        return verdict


def numbered(body: bytes) -> list[tuple[int, dict[str, Any]]]:
    """The whole events of a body that may have been cut, with their numbers."""
    found = []
    for block in body.split(b"\n\n")[:-1]:
        lines = [line for line in block.split(b"\n") if line and line != b": ping"]
        if len(lines) == 2:
            found.append((int(lines[0].removeprefix(b"id: ")), json.loads(lines[1].removeprefix(b"data: "))))
    return found


class Client:
    """One request and whoever reads its stream."""

    is_native = True
    stays = True
    new_stream = RawStream

    def __init__(self, server: Server, fields: dict[str, Any]) -> None:
        self.server = server
        self.fields = fields
        self.job_id = ""
        self.connections: list[RawStream] = []
        self.num_others = server.stats()["streams"]
        self.open()

    def open(self) -> None:
        """Send the request and read until it has been accepted."""
        self.connect("POST", "/execute", self.fields)

    def connect(self, method: str, path: str, body: Any = None, **headers: str) -> RawStream:
        stream = self.new_stream(self.server, method, path, body, **headers)
        self.connections.append(stream)
        first = stream.read_until(b"\n\n")
        if self.is_native and not self.job_id:
            self.job_id = events_of(first.split(b"\n\n")[0])[0]["job_id"]
        return stream

    def before_strike(self) -> None:
        """The request is where it was to be brought, and nothing moves."""

    def on_stage(self) -> None:
        """The fault has struck, or will when something moves."""

    def let_run(self) -> None:
        """Let the model compute until nothing is left."""
        self.server.allow("open")

    def verdicts(self) -> list[str]:
        """What each reader that stayed was told. Reads to the end."""
        heard = []
        for stream in self.connections:
            body = stream.read_all()
            heard.append(Heard(events_of(body), stream.is_complete).verdict)
        return heard

    def close(self) -> None:
        for stream in self.connections:
            stream.close()


class ReadsEverything(Client):
    """The well-behaved one."""


class ReadsLate(Client):
    """Reads nothing more until everything is over."""

    def verdicts(self) -> list[str]:
        self.server.wait_for(lambda: self.server.stats()["open"] == 0, "the end")
        return super().verdicts()


class Trickle(RawStream):
    """Reads a byte at a time."""

    read_bytes = 1


class ReadsBytes(Client):
    """Reads a byte for each step, if one is there, and the rest byte by byte."""

    new_stream = Trickle

    def let_run(self) -> None:
        (stream,) = self.connections
        while place(self.server) is not None:
            self.server.allow(1)
            if select.select([stream.socket], [], [], 0)[0]:
                stream._receive()
        super().let_run()


class Deaf(RawStream):
    """Has little room for what is not read."""

    room_bytes = 4096


class StopsReading(ReadsLate):
    """Reads nothing more, of more than a connection takes, and comes back when everything is over."""

    new_stream = Deaf

    def before_strike(self) -> None:
        assert self.server.post("/strike/clog").ok
        self.server.wait_for(lambda: self.num_unread() == 0, "somebody took it, and is stuck in writing it")
        assert self.server.post("/strike/narration").ok
        assert self.num_unread() == 1

    def num_unread(self) -> int:
        at = place(self.server)
        assert at is not None
        num_unread: int = at["unread"]
        return num_unread


class LeavesAfterTheEnd(Client):
    """Does not wait for the connection to end."""

    def verdicts(self) -> list[str]:
        (stream,) = self.connections
        body = stream.read_until(b"data: [DONE]\n\n")
        stream.close()
        return [Heard(events_of(body), is_complete=True).verdict]


class Leaves(Client):
    """Is gone."""

    stays = False

    def on_stage(self) -> None:
        self.connections[0].close()
        self.server.wait_for(lambda: bool(self.server.stats()["streams"] <= self.num_others), "the leave was noticed")

    def verdicts(self) -> list[str]:
        return []


class StopsReadingAndLeaves(StopsReading):
    """Is gone while the server is stuck in writing to it."""

    stays = False
    on_stage = Leaves.on_stage
    verdicts = Leaves.verdicts


class OfAJob(Client):
    """Creates a job first and reads it after."""

    def open(self) -> None:
        self.create()
        self.connect("GET", self.url)

    def create(self, more: Mapping[str, Any] = MappingProxyType({})) -> None:
        answer = self.server.post("/v1/jobs", {**self.fields, **more})
        assert answer.status_code == 202, answer.text
        self.url = answer.json()["sse_url"]
        self.job_id = answer.json()["job_id"]


class TwoReaders(OfAJob):
    """Both read the same."""

    def open(self) -> None:
        super().open()
        self.connect("GET", self.url)

    def verdicts(self) -> list[str]:
        heard = super().verdicts()
        if "INFERENCE_FAILED" not in heard:  # an event that cannot be encoded is each reader's own failure
            first, second = (events_of(stream.read_all()) for stream in self.connections)
            assert first == second
        return heard


class AsksForTheHead(OfAJob):
    """Sends HEAD before it reads. The job ends with its last reader, and HEAD is none."""

    def open(self) -> None:
        self.create({"on_disconnect": "cancel"})

    def before_strike(self) -> None:
        num_streams = self.server.stats()["streams"]
        with RawStream(self.server, "HEAD", self.url, None, Connection="close") as asked:
            status, head = asked.head()
            while not asked.is_eof:
                asked._receive()
            assert asked._received == b"", "HEAD has no body"
        assert status == 200
        assert "text/event-stream" in head
        assert self.server.stats()["streams"] == num_streams, "it has left a reader behind"
        assert self.server.stats()["struck"] == {}, "it was taken for one that left"
        self.connect("GET", self.url)


class Resumes(OfAJob):
    """Loses its connection at the stage and comes back with the number of the last event it has."""

    def on_stage(self) -> None:
        lost = self.connections.pop()
        lost.read_until(b"\n\n")
        lost.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError, AssertionError):
            while True:
                lost._receive()
        lost._decode()
        self.seen = numbered(lost._body)
        lost.close()
        self.connections.append(
            RawStream(self.server, "GET", self.url, None, Last_Event_ID=str(self.seen[-1][0])),
        )

    def verdicts(self) -> list[str]:
        (stream,) = self.connections
        body = stream.read_all()
        both = [*self.seen, *numbered(body)]
        assert [number for number, _ in both] == list(range(len(both))), "an event came twice or never"
        return [Heard([*(event for _, event in both), "[DONE]"], stream.is_complete).verdict]


class Chats(Client):
    """Over OpenAI's wire format."""

    is_native = False

    def open(self) -> None:
        rest = {name: value for name, value in self.fields.items() if name in ("max_tokens", "temperature", "seed")}
        self.messages = {"messages": [{"role": "user", "content": self.fields["prompt"]}], **rest}
        self.send()

    def send(self) -> None:
        self.connect("POST", "/v1/chat/completions", self.messages | {"stream": True})

    def verdicts(self) -> list[str]:
        (stream,) = self.connections
        chunks = events_of(stream.read_all())
        assert stream.is_complete
        assert chunks[-1] == "[DONE]"
        errors = [chunk["error"]["code"] for chunk in chunks[:-1] if "error" in chunk]
        choices = [chunk["choices"][0] for chunk in chunks[:-1] if "error" not in chunk]
        finishes = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        assert len(errors) + len(finishes) == 1
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        assert text == (LETTERS * 10)[: len(text)]
        if finishes:
            assert finishes == ["length"]
            assert chunks[-2]["choices"][0]["finish_reason"] == "length", "something came behind the finish"
            assert len(text) == NUM_TOKENS
        else:
            assert "error" in chunks[-2], "something came behind the error"
        return errors or ["MAX_TOKENS"]


class ChatsAndLeaves(Chats):
    """Over OpenAI's wire format, and is gone."""

    stays = False
    on_stage = Leaves.on_stage
    verdicts = Leaves.verdicts


class ChatsWhole(Chats):
    """Does not ask for a stream."""

    def send(self) -> None:
        self.connections.append(RawStream(self.server, "POST", "/v1/chat/completions", self.messages))
        self.server.wait_for(lambda: bool(self.server.stats()["streams"] > self.num_others), "it was accepted")

    def verdicts(self) -> list[str]:
        (stream,) = self.connections
        status, _ = stream.head()
        answer = json.loads(stream.read_until(b"}\n"))
        if status == 200:
            choice = answer["choices"][0]
            assert choice["finish_reason"] == "length"
            assert choice["message"]["content"] == LETTERS[:NUM_TOKENS]
            return ["MAX_TOKENS"]
        assert status >= 500
        return [answer["error"]["code"]]


class LeavesWhole(ChatsWhole):
    """Does not ask for a stream, and does not wait for the answer."""

    stays = False
    on_stage = Leaves.on_stage
    verdicts = Leaves.verdicts


class Responds(Client):
    """Over OpenAI's other wire format."""

    is_native = False

    def open(self) -> None:
        rest = {name: value for name, value in self.fields.items() if name in ("temperature", "seed")}
        asked = {"input": self.fields["prompt"], "max_output_tokens": self.fields["max_tokens"], "stream": True, **rest}
        self.send(asked)

    def send(self, asked: dict[str, Any]) -> None:
        self.connect("POST", "/v1/responses", asked)

    def verdicts(self) -> list[str]:
        (stream,) = self.connections
        body = stream.read_all()
        assert stream.is_complete
        return [self.verdict(told_in(body))]

    def verdict(self, told: list[dict[str, Any]]) -> str:
        """The code of the one terminal event. Fails on anything else behind it, and on a text that is not whole."""
        assert [event["sequence_number"] for event in told] == list(range(len(told))), "an event came twice or never"
        terminals = ("response.completed", "response.incomplete", "response.failed")
        assert [event["type"] in terminals for event in told] == [False] * (len(told) - 1) + [True]
        text = "".join(event["delta"] for event in told if event["type"] == "response.output_text.delta")
        assert text == (LETTERS * 10)[: len(text)]
        response = told[-1]["response"]
        if response["error"] is not None:
            code: str = response["error"]["type"]
            return code
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["output"][0]["content"][0]["text"] == text
        assert len(text) == response["usage"]["output_tokens"] == NUM_TOKENS
        return "MAX_TOKENS"


def told_in(body: bytes) -> list[dict[str, Any]]:
    """The whole events of a body that may have been cut, each with its `event:` line."""
    found = []
    for block in body.split(b"\n\n")[:-1]:
        lines = [line for line in block.split(b"\n") if line and line != b": ping"]
        if lines:
            name, data = lines
            found.append(json.loads(data.removeprefix(b"data: ")))
            assert name == b"event: " + found[-1]["type"].encode()
    return found


class RespondsAndLeaves(Responds):
    """Over OpenAI's other wire format, and is gone."""

    stays = False
    on_stage = Leaves.on_stage

    def verdicts(self) -> list[str]:
        return []


class ResumesAResponse(Responds):
    """One in the background: loses its connection at the stage and comes back with the number of the last event."""

    def send(self, asked: dict[str, Any]) -> None:
        super().send(asked | {"background": True})

    def on_stage(self) -> None:
        lost = self.connections.pop()
        lost.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError, AssertionError):
            while True:
                lost._receive()
        lost._decode()
        self.seen = told_in(lost._body)
        lost.close()
        query = f"?stream=true&starting_after={self.seen[-1]['sequence_number']}"
        url = f"/v1/responses/{self.seen[0]['response']['id']}{query}"
        self.connections.append(RawStream(self.server, "GET", url))

    def verdict(self, told: list[dict[str, Any]]) -> str:
        return super().verdict([*self.seen, *told])


CLIENTS: list[type[Client]] = [
    ReadsEverything,
    ReadsBytes,
    ReadsLate,
    StopsReading,
    StopsReadingAndLeaves,
    Leaves,
    LeavesAfterTheEnd,
    TwoReaders,
    AsksForTheHead,
    Resumes,
    Chats,
    ChatsAndLeaves,
    ChatsWhole,
    LeavesWhole,
    Responds,
    RespondsAndLeaves,
    ResumesAResponse,
]


# ---- stages


def fields(stage: str, fault: str) -> dict[str, Any]:
    """A request that can be brought to this stage and struck by this fault."""
    prompt = LONG_PROMPT if stage == "prefilling" else "hello"
    asked = {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 1.0, "seed": MARK}
    if fault == "endless_narration":
        asked["narrate"] = True
    if fault == "deadline":
        asked["deadline_s"] = DEADLINE_S
    return asked


def neighbour(server: Server, max_tokens: int) -> RawStream:
    stream = RawStream(server, "POST", "/execute", {"prompt": "hello", "max_tokens": max_tokens, "temperature": 0})
    stream.read_until(b"started")
    return stream


def assert_whole(stream: RawStream, num_tokens: int) -> None:
    """A neighbour has paid for nothing."""
    body = stream.read_all()
    assert stream.is_complete
    whole = events_of(body)
    assert whole[-2]["stop_reason"] == "MAX_TOKENS", "the neighbour has paid for it"
    text = "".join(event["t"] for event in whole[:-1] if event["type"] == "token")
    assert text == (LETTERS + LETTERS)[:num_tokens]


def place(server: Server) -> dict[str, Any] | None:
    """Where the struck request is now."""
    marked = server.stats()["marked"]
    assert len(marked) <= 1
    return marked[0] if marked else None


def step(server: Server) -> None:
    """Let one step run, and see that the next one has come to the gate or nothing is left to do."""
    before = server.stats()["steps"]
    server.allow(1)

    def has_run() -> bool:
        stats = server.stats()
        return bool(stats["steps"] > before and (stats["at_gate"] or not stats["open"]))

    server.wait_for(has_run, "a step")


def bring_to(server: Server, stage: str) -> None:
    """Let steps run until the marked request is well within the stage."""

    def is_there(at: dict[str, Any] | None) -> bool:
        assert at is not None, "it is gone already"
        well_within = {
            "queued": at["in_queue"],
            "prefilling": 0 < at["computed"] < at["prompt"],
            "decoding": at["output"] >= 2,
        }
        return bool(at["stage"] == stage and well_within[stage])

    for _ in range(20):
        if is_there(place(server)):
            return
        step(server)
    raise AssertionError(f"it never came to {stage}: {place(server)}")


@dataclass
class Case:
    """One request, one stage, one fault, one client."""

    server: Server
    stage: str
    fault: str
    client: type[Client]

    def run(self) -> None:
        server = self.server
        before = outcomes(server)
        neighbours = [neighbour(server, 30) for _ in range(2 if self.stage == "queued" else 1)]
        server.wait_for(lambda: server.stats()["running"] >= 1, "the neighbours run")
        if self.stage == "queued":
            step(server)  # both have their slots
        client = self.client(server, fields(self.stage, self.fault))
        try:
            server.wait_for(lambda: place(server) is not None, "it was accepted")
            bring_to(server, self.stage)
            client.before_strike()
            self.strike(client)
            client.on_stage()
            if self.is_over_in_a_step():
                self.see_it_over_in_a_step(before, len(neighbours))
            client.let_run()
            assert set(client.verdicts()) == ({FAULTS[self.fault]} if client.stays else set())
            for stream in neighbours:
                assert_whole(stream, 30)
        finally:
            client.close()
            for stream in neighbours:
                stream.close()
            struck = quiet(server)
        assert struck in self.possible_strikes()
        ended = outcomes(server) - before
        assert ended.total() == 1 + len(neighbours), ended
        own = ended - Counter({"end{MAX_TOKENS}": len(neighbours)})
        assert next(iter(own)) in self.possible_outcomes(), own

    def strike(self, client: Client) -> None:
        if self.fault == "cancel":
            assert requests.delete(f"{self.server.url}/v1/jobs/{client.job_id}", timeout=ANSWER_S).ok
        else:
            assert self.server.post(f"/strike/{self.fault}").ok
        if self.fault == "encoder":
            self.server.wait_for(lambda: "cancel by engine" in self.server.stats()["struck"], "it came to be encoded")

    def is_over_in_a_step(self) -> bool:
        """Whether the step under way is the last that anything is computed for the request."""
        is_left = not self.client.stays and self.fault not in TOLD_BY_OTHERS
        return is_left or self.fault in ("cancel", "encoder", *DEADLINES)

    def see_it_over_in_a_step(self, before: Counter[str], num_neighbours: int) -> None:
        """The slot is free and the outcome is known, behind one step and with the gate shut."""
        self.server.allow(3 if self.fault in RAISED_BY_A_STEP and self.strikes_in() is not None else 1)
        self.server.wait_for(lambda: place(self.server) is None, "it was over within one step")
        assert self.server.stats()["open"] == num_neighbours
        self.server.wait_for(lambda: outcomes(self.server) != before, "its outcome")
        (own,) = outcomes(self.server) - before
        assert own in self.possible_outcomes(), own

    def strikes_in(self) -> str | None:
        """The stage in which the fault strikes; None: never, because the client has left before."""
        later = STRIKES_LATER.get(self.fault, {})
        if self.client.stays or self.fault not in STRIKES_LATER:
            return later.get(self.stage, self.stage)
        if self.fault == "endless_narration":  # strikes when the request ends
            return self.stage
        # The step under way is the last. In the middle of a prompt no token is drawn in it.
        is_struck = self.stage == "decoding" or (self.stage == "prefilling" and self.fault in ("forward", "memory"))
        return self.stage if is_struck else None

    def possible_strikes(self) -> list[dict[str, str]]:
        """What may have struck the request, each with the stage that it was in."""
        leave = {} if self.client.stays else {"cancel by client": self.stage}
        if self.fault == "nothing":
            return [leave]
        if self.fault == "cancel":  # who leaves then does not cancel once more
            return [{"cancel by delete": self.stage}]
        if self.fault == "encoder":
            return [{"encoder": self.stage, "cancel by engine": self.stage}]
        if self.fault in TOLD_BY_OTHERS:
            return [{self.fault: self.stage}]
        if self.fault in DEADLINES:  # may be seen before the leave, behind the leave, or no more
            struck = {DEADLINES[self.fault]: self.stage}
            return [struck, leave, struck | leave] if leave else [struck]
        strikes_in = self.strikes_in()
        return [leave | ({self.fault: strikes_in} if strikes_in is not None else {})]

    def possible_outcomes(self) -> set[str]:
        if self.fault == "cancel":
            return {"cancelled{delete}"}
        if self.fault == "encoder":
            return {"cancelled{engine}"}
        if self.fault == "forgotten":  # whoever dropped the sender, the engine did not
            return {"end{MAX_TOKENS}"}
        if self.fault == "closed_twice":  # nor can it know what the client was told; a job that is forgotten has left
            return {"error{ENGINE_DEAD}"} if self.client.is_native else {"error{ENGINE_DEAD}", "cancelled{client}"}
        wanted = FAULTS[self.fault]
        own = f"end{{{wanted}}}" if wanted == "MAX_TOKENS" else f"error{{{wanted}}}"
        if self.client.stays:
            return {own}
        if self.fault in DEADLINES or self.fault in RAISED_BY_A_STEP:
            return {own, "cancelled{client}"}  # between the parts of a step that failed, too, it is seen who has left
        if wanted != "MAX_TOKENS" and self.strikes_in() is not None:
            return {own}
        return {"cancelled{client}"}


def outcomes(server: Server) -> Counter[str]:
    return Counter(server.stats()["outcomes"])


def quiet(server: Server) -> dict[str, str]:
    """Everything runs out, and the gate is shut for the next case. Returns what has struck, and in which stage."""
    server.allow("open")
    names = ("open", "running", "waiting", "streams")
    server.wait_for(lambda: not any(server.stats()[name] for name in names), "nothing left open")
    # The outcome is written by the housekeeper, a moment after the end.
    records = server.stats()["num_accepted"]
    server.wait_for(lambda: outcomes(server).total() == records, "an outcome for each request, and one")
    struck: dict[str, str] = server.stats()["struck"]
    assert server.post("/strike/nothing").ok
    server.post("/gate/close")
    return struck


@pytest.fixture(scope="module", params=WORKER_CLASSES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all cases of a class; after the last one it holds what it held before the first."""
    with running_server(tmp_path_factory.mktemp("server"), request.param, env=LIMITS) as server:
        Case(server, "decoding", "nothing", ReadsEverything).run()  # what is made once is made
        before = server.stats() | server.get("/gate/objects").json()
        yield server
        idle_since = time.monotonic()
        server.wait_for(lambda: time.monotonic() - idle_since > 3, "idle connections are closed")
        after = server.stats() | server.get("/gate/objects").json()
        server.post("/gate/close")
        for name in ("open", "running", "waiting", "streams", "sequences", "readers"):
            assert after[name] == 0, f"{after[name]} {name} are left"
        assert after["channels"] <= before["channels"] + 1, "channels have leaked"  # the last job's is kept
        assert after["fds"] <= before["fds"] + 2, "descriptors have leaked"
        assert after["greenlets"] <= before["greenlets"] + 2, "greenlets have leaked"
        assert after["threads"] <= before["threads"] + 24, "threads have leaked"  # a pool grows to its size and stays


def is_possible(stage: str, fault: str, client: type[Client]) -> bool:
    if STAGE_OF.get(fault, stage) != stage:
        return False
    if fault == "cancel":
        return client.is_native  # OpenAI's chat has no cancel, and that of responses has tests of its own
    if fault == "endless_narration":
        return client.is_native  # nor a field for this
    if fault == "encoder":
        # A whole answer has no place for that event, who resumes has seen the failure already, and behind a write that
        # is stuck nothing is encoded.
        without = (Resumes, ResumesAResponse, ChatsWhole, LeavesWhole, StopsReading, StopsReadingAndLeaves)
        return client not in without
    if fault == "slow_consumer":
        return issubclass(client, StopsReading)
    return True


CASES = [
    pytest.param(stage, fault, client, id=f"{stage}-{fault}-{client.__name__}")
    for stage in STAGES
    for fault in FAULTS
    for client in CLIENTS
    if is_possible(stage, fault, client)
]


@pytest.mark.parametrize(("stage", "fault", "client"), CASES)
def test_every_stream_ends(server: Server, stage: str, fault: str, client: type[Client]) -> None:
    Case(server, stage, fault, client).run()


# ---- before there is a stage

ASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "execute": ("/execute", {}),
    "chat": ("/v1/chat/completions", {"stream": True}),
    "whole": ("/v1/chat/completions", {}),
    "text": ("/v1/completions", {"stream": True}),
    "job": ("/v1/jobs", {}),
}


def ask_for(kind: str, prompt: str) -> tuple[str, dict[str, Any]]:
    path, more = ASKS[kind]
    asked = {"max_tokens": NUM_TOKENS, "temperature": 1.0, "seed": MARK, **more}
    is_chat = path == "/v1/chat/completions"
    return path, asked | ({"messages": [{"role": "user", "content": prompt}]} if is_chat else {"prompt": prompt})


@pytest.mark.parametrize("kind", ["execute", "chat", "whole", "text"])
def test_a_client_that_leaves_before_the_first_byte(server: Server, kind: str) -> None:
    """It has sent its request and closed, before the server has accepted the connection perhaps."""
    before = outcomes(server)
    try:
        with neighbour(server, 30) as beside:
            server.wait_for(lambda: bool(server.stats()["at_gate"]), "a step is under way")
            num_accepted = server.stats()["num_accepted"]
            with RawStream(server, "POST", *ask_for(kind, "hello")):
                pass
            server.wait_for(lambda: bool(server.stats()["struck"]), "the leave was noticed")
            assert server.stats()["struck"] == {"cancel by client": "queued"}
            assert server.stats()["num_accepted"] == num_accepted + 1
            server.allow(1)
            server.wait_for(lambda: place(server) is None, "it was over within one step")
            server.wait_for(lambda: outcomes(server) - before == Counter({"cancelled{client}": 1}), "its outcome")
            server.allow("open")
            assert_whole(beside, 30)
    finally:
        quiet(server)


@pytest.mark.parametrize("kind", ASKS)
def test_a_prompt_that_cannot_be_tokenized_is_refused(server: Server, kind: str) -> None:
    """With a status and words, before anything of a stream; and whoever asks at the same time does not notice."""
    before = outcomes(server)
    path, asked = ask_for(kind, f"an {UNSPEAKABLE} word")
    key = {} if path.startswith("/v1/chat") or kind == "text" else {"Idempotency-Key": f"{kind} {server.port}"}
    try:
        with neighbour(server, 30) as beside:
            step(server)
            assert server.post("/strike/tokenizer").ok
            stats = server.stats()
            answer = requests.post(server.url + path, json=asked, headers=key, timeout=ANSWER_S)
            assert answer.status_code == 500
            assert answer.headers["Content-Type"] == "application/json"
            error = answer.json()["error"]
            assert error["code"] == "INTERNAL"
            assert "its log has the details" in error["message"]
            with neighbour(server, NUM_TOKENS) as behind:
                after = server.stats()
                assert after["num_accepted"] == stats["num_accepted"] + 1
                assert after["open"] == stats["open"] + 1
                assert after["streams"] == stats["streams"] + 1
                server.allow("open")
                assert_whole(beside, 30)
                assert_whole(behind, NUM_TOKENS)
            assert server.post("/strike/nothing").ok
            again = requests.post(server.url + path, json=asked, headers=key, timeout=ANSWER_S)
            assert again.ok, again.text
            assert "Idempotent-Replayed" not in again.headers, "a request that was refused has used up its key"
    finally:
        quiet(server)
    assert outcomes(server) - before == Counter({"end{MAX_TOKENS}": 3})


@pytest.mark.parametrize("kind", ASKS)
def test_head_of_what_is_only_posted_asks_for_nothing(server: Server, kind: str) -> None:
    num_accepted = server.stats()["num_accepted"]
    with RawStream(server, "HEAD", ASKS[kind][0], Connection="close") as asked:
        status, head = asked.head()
        while not asked.is_eof:
            asked._receive()
        assert status == 405
        assert "Allow:" in head
        assert asked._received == b"", "HEAD has no body"
    assert server.stats()["num_accepted"] == num_accepted


# ---- the whole process

ANSWER_LENGTH = 200


@dataclass(frozen=True)
class Fate:
    """A fault that nobody in the process escapes.

    Attributes:
        code: What every stream is told; empty: nothing, its body is cut.
        strike: Has it happen, with every stream at its stage.
        exit_code: Of the server; None: it goes on with another worker.
    """

    code: str
    strike: Callable[[Server], None]
    exit_code: int | None = None
    env: tuple[tuple[str, str], ...] = ()


def _signal(number: signal.Signals) -> Callable[[Server], None]:
    def strike(server: Server) -> None:
        server.allow("pace/100")  # a model that answers, and not soon
        server.signal(number)

    return strike


def _signal_the_worker(number: signal.Signals) -> Callable[[Server], None]:
    def strike(server: Server) -> None:
        server.allow("pace/100")
        (worker,) = workers_of(server)
        os.kill(worker, number)

    return strike


def _signal_in_a_long_step(number: signal.Signals) -> Callable[[Server], None]:
    """The gate stays shut: no drain begins while the step that is under way has not come back."""
    return lambda server: server.signal(number)


def _kill_the_loop(server: Server) -> None:
    server.post("/fault/fatal")
    server.allow(1)


def _break_the_scheduler(server: Server) -> None:
    server.post("/strike/scheduler")
    server.allow(1)


def _hang(server: Server) -> None:
    """The gate stays shut: the step that is under way never returns, and no ping comes to the rescue."""


FATES = {
    "the loop is killed": Fate("ENGINE_DEAD", _kill_the_loop),
    "the scheduler raises": Fate("ENGINE_DEAD", _break_the_scheduler),
    "a step never returns": Fate("STALLED", _hang, env=(("ENDSTOP_STEP_LIMIT_S", "3"), ("ENDSTOP_KEEP_ALIVE_S", "50"))),
    "SIGTERM": Fate("SHUTTING_DOWN", _signal(signal.SIGTERM), exit_code=0),
    "SIGINT": Fate("SHUTTING_DOWN", _signal(signal.SIGINT), exit_code=0),
    "SIGQUIT": Fate("SHUTTING_DOWN", _signal(signal.SIGQUIT), exit_code=0),
    "SIGTERM in a long step": Fate("SHUTTING_DOWN", _signal_in_a_long_step(signal.SIGTERM), exit_code=0),
    "SIGQUIT in a long step": Fate("SHUTTING_DOWN", _signal_in_a_long_step(signal.SIGQUIT), exit_code=0),
    "SIGHUP in a long step": Fate("SHUTTING_DOWN", _signal_in_a_long_step(signal.SIGHUP)),
    "SIGHUP": Fate("SHUTTING_DOWN", _signal(signal.SIGHUP)),
    "the worker is recycled": Fate("SHUTTING_DOWN", _signal_the_worker(signal.SIGTERM)),
    "the worker is killed": Fate("", _signal_the_worker(signal.SIGKILL)),
}
FATED: list[type[Client]] = [ReadsEverything, Leaves, TwoReaders, Chats, ChatsWhole, LeavesWhole]


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
@pytest.mark.parametrize("name", FATES)
def test_every_stream_ends_with_its_process(tmp_path: Path, name: str, worker_class: str) -> None:
    fate = FATES[name]
    env = LIMITS | {"ENDSTOP_MAX_QUEUE": "16", "ENDSTOP_DRAIN_S": "1"} | dict(fate.env)
    with running_server(tmp_path, worker_class, env=env) as server, contextlib.ExitStack() as stack:

        def ask(client: type[Client], prompt: str, seed: int = 0) -> Client:
            asked = {"prompt": prompt, "max_tokens": ANSWER_LENGTH, "temperature": 1.0, "seed": seed}
            made = client(server, asked)
            stack.callback(made.close)
            made.on_stage()
            return made

        decoding = ask(ReadsEverything, "hello", MARK)
        bring_to(server, "decoding")
        prefilling = ask(ReadsEverything, LONG_PROMPT)
        step(server)
        clients = [decoding, prefilling, *(ask(client, "hello") for client in FATED)]
        stats = server.stats()
        num_accepted = stats["num_accepted"]
        assert num_accepted == len(clients)
        num_queued = len(FATED)  # who has left among them: no step has passed since
        assert Counter(stats["stages"]) == {"decoding": 1, "prefilling": 1, "queued": num_queued}
        fate.strike(server)
        for client in clients:
            if fate.code:
                assert set(client.verdicts()) <= {fate.code}
            elif client.stays:
                for stream in client.connections:
                    assert_cut(stream)
        if fate.exit_code is not None:
            assert server.wait_exit() == fate.exit_code
        else:
            server.wait_for(lambda: is_new(server), "another worker is ready")
            assert server.process.poll() is None
        if fate.code:
            server.wait_for(lambda: server.log().count(" outcome=") >= num_accepted, "an outcome for each request")
            assert server.log().count(" outcome=") == num_accepted, "and one"
        if fate.code == "STALLED":
            assert "in forward" in server.log(), "the stacks name the place"


def assert_cut(stream: RawStream) -> None:
    """The connection ends, and nothing that was read looks like a whole answer."""
    while not stream.is_eof:
        stream._receive()
    if stream._received.startswith(b"HTTP") or stream._head is not None:
        body = stream.read_all()
        assert b"[DONE]" not in body
        assert not stream.is_complete, "a body that was cut must not look whole"


def is_new(server: Server) -> bool:
    """Whether a worker answers that has not computed anything yet, and is ready."""
    try:
        return server.get("/ready").status_code == 200 and server.stats()["steps"] == 0
    except requests.RequestException:
        return False
