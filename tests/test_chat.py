"""The terminal chat: what it sends, shows and remembers; Ctrl-C; and the command line that starts it."""

import io
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.scripted_server import (
    END,
    ERROR,
    HELLO,
    METRICS,
    STARTED,
    WAIT_S,
    Peer,
    Script,
    ScriptedServer,
    numbered,
    says,
    token,
)
from worker import chat as chat_module
from worker.__main__ import cli
from worker.chat import Chat
from worker.client import Client
from worker.spawn import ROOT, SpawnFailed


class Terminal:
    """Lines that the user types, then Ctrl-D; an exception in their place is raised. Keeps what is shown."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines = iter(lines)
        self.output = io.StringIO()
        self.console = Console(file=self.output, width=100)

    def read_line(self) -> str:
        line = next(self.lines, EOFError)
        if isinstance(line, str):
            return line
        raise line

    @property
    def shown(self) -> list[str]:
        return self.output.getvalue().split("\n")[:-1]


def ticking() -> Callable[[], float]:
    """A clock that advances by half a second each time it is read."""
    return itertools.count(0, 0.5).__next__


def converse(server: ScriptedServer, terminal: Terminal, **options: Any) -> Chat:
    with Client(server.url, idle_timeout_s=WAIT_S, max_retries=0) as client:
        session = Chat(client, terminal.console, clock=ticking(), **options)
        session.run(terminal.read_line)
    return session


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer({"POST /execute": says(HELLO)}) as scripted:
        yield scripted


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def sent(server: ScriptedServer) -> list[Any]:
    return [request.fields for request in server.requests]


# --- Conversations ---


def test_an_answer_and_the_line_under_it(server: ScriptedServer) -> None:
    terminal = Terminal("Hi")
    converse(server, terminal)
    # Asked at 0, tokens at 0.5 and 1: one token in the half second behind the first.
    assert terminal.shown == ["Hello", "2 tokens, 2.0 tokens/s, first after 500 ms", ""]


def test_the_history_is_sent_with_every_question(server: ScriptedServer) -> None:
    session = converse(server, Terminal("Hi", "  And?  "), system="Be brief.")
    system = {"role": "system", "content": "Be brief."}
    assert sent(server) == [
        {"messages": [system, user("Hi")]},
        {"messages": [system, user("Hi"), assistant("Hello"), user("And?")]},
    ]
    assert session.history[-2:] == [user("And?"), assistant("Hello")]


def test_options_are_sent(server: ScriptedServer) -> None:
    converse(server, Terminal("Hi"), options={"max_tokens": 5, "temperature": 0})
    assert sent(server) == [{"max_tokens": 5, "temperature": 0, "messages": [user("Hi")]}]


def test_reset_forgets_all_but_the_system_message(server: ScriptedServer) -> None:
    terminal = Terminal("Hi", "/reset", "Who?")
    converse(server, terminal, system="Be brief.")
    assert sent(server)[1] == {"messages": [{"role": "system", "content": "Be brief."}, user("Who?")]}
    assert "forgotten" in terminal.shown


def test_exit_ends_the_session_and_asks_nothing_more(server: ScriptedServer) -> None:
    converse(server, Terminal("/exit", "Hi"))
    assert server.requests == []


def test_an_empty_line_asks_nothing(server: ScriptedServer) -> None:
    converse(server, Terminal("", "   "))
    assert server.requests == []


def test_an_unknown_command_is_not_sent_to_the_model(server: ScriptedServer) -> None:
    terminal = Terminal("/help")
    converse(server, terminal)
    assert server.requests == []
    assert terminal.shown[0].startswith("/help is no command; Ctrl-C stops an answer, /reset forgets")


def test_an_answer_that_ran_into_its_limit_says_so(server: ScriptedServer) -> None:
    end = {**END, "stop_reason": "MAX_TOKENS"}
    server.scripts["POST /execute"] = says(numbered([STARTED, token("Hel", 0, n=2), METRICS, end]))
    terminal = Terminal("Hi")
    converse(server, terminal)
    assert terminal.shown[:2] == ["Hel", "2 tokens, first after 500 ms, cut off at max_tokens"]


def test_one_token_is_no_plural(server: ScriptedServer) -> None:
    server.scripts["POST /execute"] = says(numbered([STARTED, token("Hi", 0), METRICS, END]))
    terminal = Terminal("Hi")
    converse(server, terminal)
    assert terminal.shown[1] == "1 token, first after 500 ms"


def test_tokens_that_came_at_once_have_no_speed(server: ScriptedServer) -> None:
    terminal = Terminal("Hi")
    with Client(server.url) as client:
        Chat(client, terminal.console, clock=lambda: 7.0).run(terminal.read_line)
    assert terminal.shown[:2] == ["Hello", "2 tokens, first after 0 ms"]


def test_a_models_text_is_shown_as_text(server: ScriptedServer) -> None:
    server.scripts["POST /execute"] = says(numbered([STARTED, token("[bold]a\x1b[2J:smile:\n  b", 0), METRICS, END]))
    terminal = Terminal("Hi")
    session = converse(server, terminal)
    assert terminal.shown[:2] == ["[bold]a\ufffd[2J:smile:", "  b"]
    assert session.history[-1] == assistant("[bold]a\x1b[2J:smile:\n  b")  # the model gets back what it said


def test_tokens_are_shown_as_they_come(server: ScriptedServer) -> None:
    seen = threading.Event()

    class Output(io.StringIO):
        def flush(self) -> None:
            if "Hel" in self.getvalue():
                seen.set()

    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(HELLO[0] + HELLO[1])
        assert seen.wait(WAIT_S)
        for frame in HELLO[2:]:
            peer.chunk(frame)
        peer.last_chunk()

    server.scripts["POST /execute"] = script
    terminal = Terminal("Hi")
    terminal.console.file = terminal.output = Output()
    converse(server, terminal)
    assert terminal.shown[0] == "Hello"


def test_half_a_surrogate_pair_ends_nothing(server: ScriptedServer) -> None:
    server.scripts["POST /execute"] = says(numbered([STARTED, token("a\ud83d", 0), METRICS, END]))
    run = subprocess.run(
        [sys.executable, "-m", "worker", "chat", server.url],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        input="Hi\nAnd?\n",
        encoding="utf-8",
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.count("a\ufffd\n1 token") == 2


# --- Errors ---


def test_an_error_is_one_line_and_the_session_goes_on(server: ScriptedServer) -> None:
    scripts = iter([says(numbered([STARTED, ERROR])), says(HELLO)])
    server.scripts["POST /execute"] = lambda peer: next(scripts)(peer)
    terminal = Terminal("Hi", "Again")
    session = converse(server, terminal)
    assert terminal.shown[:2] == ["error: STALLED: no token for 60 s", "Hello"]
    assert session.history == [user("Again"), assistant("Hello")]  # the question without an answer is forgotten


def test_an_error_in_the_middle_keeps_what_was_seen(server: ScriptedServer) -> None:
    server.scripts["POST /execute"] = says(numbered([STARTED, token("Hel", 0), ERROR]))
    terminal = Terminal("Hi")
    session = converse(server, terminal)
    assert terminal.shown[:3] == ["Hel", "error: STALLED: no token for 60 s", "1 token, first after 500 ms"]
    assert session.history == [user("Hi"), assistant("Hel")]


@pytest.mark.parametrize(
    ("script", "line"),
    [
        (
            lambda peer: peer.json({"errors": [{"field": "messages", "message": "too\nlong"}]}, 400),
            "error: 400: messages: too long",
        ),
        (lambda peer: peer.json({"message": "full"}, 429), "error: 429: full"),
        (says(HELLO[:3]), "error: the stream was closed without an end or an error"),
    ],
)
def test_whatever_goes_wrong_is_one_line(server: ScriptedServer, script: Script, line: str) -> None:
    server.scripts["POST /execute"] = script
    terminal = Terminal("Hi")
    converse(server, terminal)
    assert [shown for shown in terminal.shown if shown.startswith("error")] == [line]


def test_nobody_listens() -> None:
    with ScriptedServer({}) as gone:
        pass
    terminal = Terminal("Hi")
    converse(gone, terminal)
    assert terminal.shown == [f"error: {gone.url}: Connection refused", ""]


# --- Ctrl-C ---


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Press Ctrl-C: the real signal. Works in a background job too, which is started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def wait_until_left_waking(peer: Peer) -> bool:
    """Like wait_until_left, with a keep-alive first.

    A signal that comes between CPython's last look for one and the system call is seen when the call returns; the
    server's keep-alive is what bounds that.
    """
    try:
        peer.chunk(b": ping\n")
    except OSError:
        return True
    return peer.wait_until_left()


def test_ctrl_c_stops_the_answer_and_keeps_the_session(server: ScriptedServer, ctrl_c: Callable[[], None]) -> None:
    left, shown = threading.Event(), threading.Event()

    class Output(io.StringIO):
        def write(self, text: str) -> int:
            written = super().write(text)
            if "Hel" in text:
                shown.set()
            return written

    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(HELLO[0] + HELLO[1])
        assert shown.wait(WAIT_S)
        ctrl_c()
        assert wait_until_left_waking(peer)
        left.set()

    scripts = iter([script, says(HELLO)])
    server.scripts["POST /execute"] = lambda peer: next(scripts)(peer)
    terminal = Terminal("Hi", "Go on")
    terminal.console.file = terminal.output = Output()
    session = converse(server, terminal)
    assert left.wait(WAIT_S)
    assert terminal.shown[:3] == ["Hel", "1 token, first after 500 ms, stopped", "Hello"]
    assert session.history == [user("Hi"), assistant("Hel"), user("Go on"), assistant("Hello")]


def test_ctrl_c_before_the_first_token(server: ScriptedServer, ctrl_c: Callable[[], None]) -> None:
    left = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        ctrl_c()
        assert wait_until_left_waking(peer)
        left.set()

    server.scripts["POST /execute"] = script
    terminal = Terminal("Hi")
    session = converse(server, terminal)
    assert left.wait(WAIT_S)
    assert terminal.shown == ["0 tokens, stopped", ""]
    assert session.history == []


def test_ctrl_c_at_the_prompt_keeps_the_session(server: ScriptedServer) -> None:
    terminal = Terminal(KeyboardInterrupt, "Hi")
    converse(server, terminal)
    assert terminal.shown[:2] == ["", "Hello"]


# --- The command line ---


def test_the_chat_command(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--system", "S", "--max-tokens", "3", "--temperature", "0.5", "--api-key", "k"]
    result = CliRunner().invoke(cli, ["chat", server.url, *arguments], input="Hi\n")
    assert result.exit_code == 0
    assert result.output.startswith(f"{server.url}: Ctrl-C stops an answer")
    assert "Hello\n2 tokens" in result.output
    (request,) = server.requests
    assert request.headers["authorization"] == "Bearer k"
    assert request.fields == {
        "messages": [{"role": "system", "content": "S"}, user("Hi")],
        "max_tokens": 3,
        "temperature": 0.5,
    }


def test_the_chat_command_asks_once(server: ScriptedServer) -> None:
    """It shows what the server says, and how soon."""
    server.scripts["POST /execute"] = lambda peer: peer.json({"message": "full"}, 429)
    result = CliRunner().invoke(cli, ["chat", server.url], input="Hi\n")
    assert "error: 429: full" in result.output
    assert len(server.requests) == 1


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_script_learns_that_an_answer_failed(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    """Whoever sits at a terminal has seen it."""
    scripts = iter([lambda peer: peer.json({"message": "full"}, 429), says(HELLO)])
    server.scripts["POST /execute"] = lambda peer: next(scripts)(peer)
    monkeypatch.setattr("worker.chat.is_terminal", lambda: is_terminal)
    result = CliRunner().invoke(cli, ["chat", server.url], input="Hi\nAgain\n")
    assert "Hello\n2 tokens" in result.output
    assert result.exit_code == (0 if is_terminal else 1)


def test_the_chat_command_says_no_more_than_it_was_told(server: ScriptedServer) -> None:
    CliRunner().invoke(cli, ["chat", server.url], input="Hi\n")
    assert sent(server) == [{"messages": [user("Hi")]}]


def test_a_chat_without_a_server_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(console: Console) -> None:
        raise SpawnFailed("the server exited with status 1")

    monkeypatch.setattr(chat_module, "announced_server", fail)
    result = CliRunner().invoke(cli, ["chat"])
    assert (result.exit_code, result.output.strip()) == (1, "the server exited with status 1")


def test_help_does_not_wait_for_anything_heavy() -> None:
    code = "import sys, worker.__main__; print({'torch', 'flask', 'gevent', 'requests', 'rich'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_the_package_runs() -> None:
    run = subprocess.run([sys.executable, "-m", "worker", "-h"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "python -m worker" in run.stdout
    places = [run.stdout.index(f"\n  {name} ") for name in ("serve", "chat", "check", "bench", "models")]
    assert places == sorted(places)
