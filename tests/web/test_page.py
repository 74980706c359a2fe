"""The web page, in a real browser in front of a real server whose model computes when the test says so."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page, Request, Route, expect

from tests.support.apps import app_in_process
from tests.support.browser import CHROMIUM, QUIET, check_script, chromium, needs_chromium
from tests.support.cut_proxy import CutProxy, cut_proxy
from tests.support.npm import installed, needs_npm
from tests.support.servers import Server, running_server
from tests.support.speakers import speaking_tokenizer
from worker.web import page as page_module

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
PHONE: Any = {"width": 375, "height": 740}
KEY = "open-sesame-open-sesame"
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
LIMITS = {
    "ENDSTOP_MAX_SLOTS": "2",
    "ENDSTOP_MAX_QUEUE": "2",
    "ENDSTOP_KEEP_ALIVE_S": "0.2",
    "ENDSTOP_MAX_CONTEXT": "256",
}

expect.set_options(timeout=30_000)  # a bound for a busy machine, not a measure
in_browser = [pytest.mark.slow, needs_chromium]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = installed(Path(__file__).parent / "axe", tmp_path_factory.mktemp("axe"))
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def gated_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), env=LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def speaking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Whose model says what it is asked to."""
    env = LIMITS | {"ENDSTOP_MAX_CONTEXT": "4096", "GATED_TEMPLATE": "QWEN3"}
    with running_server(tmp_path_factory.mktemp("speaking"), env=env) as server:
        yield server


@pytest.fixture(scope="module")
def loading_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Whose model never comes."""
    env = LIMITS | {"GATED_LOAD_S": "300"}
    with running_server(tmp_path_factory.mktemp("loading"), env=env, wait=False) as server:
        server.wait_ready("/health")
        yield server


@pytest.fixture
def server(gated_server: Server) -> Iterator[Server]:
    """With its gate shut, and idle again behind the test."""
    gated_server.post("/gate/close")
    yield gated_server
    gated_server.allow("open")
    gated_server.wait_for(lambda: gated_server.stats()["open"] == 0, "nothing left open")


@pytest.fixture
def proxy(server: Server) -> Iterator[CutProxy]:
    with cut_proxy(server.port) as proxy:
        yield proxy


class Seat:
    """Somebody in front of the page. What the browser complains of is an error, unless the test expects it."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[Request] = []
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type != "log" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda sent: self.requests.append(sent))
        self.page.goto(url)

    def ask(self, question: str) -> None:
        self.page.get_by_label("Message").fill(question)
        self.page.get_by_label("Message").press("Enter")

    @property
    def answer(self) -> Any:
        return self.page.get_by_role("article", name="Answer").last

    @property
    def text(self) -> Any:
        return self.answer.locator(".answer-text")

    @property
    def facts(self) -> Any:
        return self.answer.locator(".facts")

    def cancelling(self) -> AbstractContextManager[Any]:
        """At the end of the block the server has heard that an answer is to stop."""
        return self.page.expect_response(lambda answer: answer.request.method == "DELETE" and answer.ok)

    def bodies(self) -> list[dict[str, Any]]:
        """What was asked of the server."""
        asked = [one for one in self.requests if one.method == "POST"]
        return [json.loads(one.post_data or "") for one in asked]

    def stored(self) -> list[dict[str, Any]]:
        """The conversation as it is kept."""
        turns: list[dict[str, Any]] = self.page.evaluate("JSON.parse(localStorage['endstop.conversation'] ?? '[]')")
        return turns


@pytest.fixture
def seat(browser: Browser, server: Server) -> Iterator[Seat]:
    """Somebody with the page open, who hears of no error."""
    seat = Seat(browser, server.url)
    yield seat
    seat.context.close()
    assert seat.complaints == []
    assert all(one.url.startswith((server.url, "data:")) for one in seat.requests), "another host was asked"


@pytest.fixture
def bad_seat(browser: Browser, proxy: CutProxy) -> Iterator[Seat]:
    """Somebody whose network is bad, of which the browser complains."""
    seat = Seat(browser, proxy.url)
    yield seat
    seat.context.close()
    assert all(one.startswith("Failed to load resource: net::") for one in seat.complaints), seat.complaints


# ---- how it is served


@pytest.fixture(scope="module")
def app() -> Iterator[Flask]:
    with app_in_process() as app:
        yield app


@pytest.mark.parametrize("path", page_module.PATHS)
def test_each_file_says_what_it_is_and_what_it_may_do(app: Flask, path: str) -> None:
    client = app.test_client()
    answer, head = client.get(path), client.head(path)
    kinds = {"": "text/html", ".css": "text/css", ".js": "text/javascript"}
    assert (answer.status_code, answer.content_type) == (200, f"{kinds[Path(path).suffix]}; charset=utf-8")
    assert (head.status_code, head.data) == (200, b"")
    assert all(head.headers[name] == value for name, value in answer.headers if name not in ("X-Request-Id", "Date"))
    policy = dict(rule.strip().split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert {policy[kind] for kind in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    again = client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert answer.headers["Cache-Control"] == "no-cache"


def test_what_is_no_file_of_the_page_is_not_served(app: Flask) -> None:
    for path in ("/page/nope.js", "/page/", "/page/../page.py", "/page/%2e%2e/docs.html", "/page/index.html"):
        assert app.test_client().get(path).status_code == 404, path


def test_nothing_moves_so_nobody_has_to_ask_for_it_not_to() -> None:
    css = (page_module.FOLDER / "page.css").read_text(encoding="utf-8")
    assert not re.search(r"animation|transition|scroll-behavior|@keyframes", css)


@pytest.mark.parametrize("path", sorted(page_module.FOLDER.glob("*.js")), ids=lambda path: path.name)
def test_each_script_is_one(path: Path, tmp_path: Path) -> None:
    check_script(path.read_text(encoding="utf-8"), tmp_path)


def test_it_asks_no_other_host_and_reads_no_markup() -> None:
    for path in page_module.FOLDER.iterdir():
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", source)
        assert not re.search(r"""(?:src|href)=["'](?:https?:)?//|url\(|@import|from ["']https?:""", source), path.name


# ---- the chat


class TestChat:
    pytestmark = in_browser

    def test_an_answer_streams(self, seat: Seat, server: Server) -> None:
        seat.ask("hello")
        expect(seat.answer).to_have_attribute("aria-busy", "true")
        expect(seat.page.get_by_role("button", name="Stop")).to_be_visible()
        server.allow(3)
        expect(seat.text).to_have_text("abc")
        server.allow("open")
        expect(seat.facts).to_have_text(
            re.compile(r"cut off at the limit of tokens · \d+ tokens · [\d.]+ tokens/s · first after ")
        )
        expect(seat.answer).to_have_attribute("aria-busy", "false")
        expect(seat.page.get_by_role("button", name="Send")).to_be_visible()
        expect(seat.page.get_by_label("Message")).to_be_focused()

    def test_what_is_going_on_is_told_in_words(self, seat: Seat, server: Server) -> None:
        for _ in range(2):
            assert server.post("/v1/jobs", {"prompt": "x", "max_tokens": 9}).ok
        server.wait_for(lambda: server.stats()["at_gate"], "a step is under way")
        num_accepted = server.stats()["num_accepted"]
        seat.ask("hello")
        server.wait_for(lambda: server.stats()["num_accepted"] > num_accepted, "it is accepted")
        server.allow(1)  # before the next step the places in the queue are told
        expect(seat.answer.get_by_role("status")).to_contain_text("queue")
        assert seat.bodies()[-1]["narrate"] is True
        server.allow("open")
        expect(seat.facts).to_contain_text("tokens/s")
        expect(seat.answer.get_by_role("status")).to_have_text("")

    def test_stop_cancels_on_the_server(self, seat: Seat, server: Server) -> None:
        before = server.stats()["outcomes"].get("cancelled{delete}", 0)
        seat.ask("hello")
        server.allow(2)
        expect(seat.text).to_have_text("ab")
        with seat.cancelling():
            seat.page.get_by_role("button", name="Stop").click()
        expect(seat.answer.get_by_role("status")).to_have_text("Stopping…")
        server.allow(1)  # the step that was under way
        expect(seat.facts).to_contain_text("stopped")
        server.wait_for(lambda: server.stats()["outcomes"].get("cancelled{delete}", 0) == before + 1, "cancelled")
        assert server.stats()["running"] == 0
        expect(seat.page.get_by_label("Message")).to_be_focused()

    def test_what_is_asked_is_what_was_set(self, seat: Seat, server: Server) -> None:
        server.allow("open")
        seat.page.get_by_label("System prompt").fill("Be brief.")
        for name, value in (("Temperature", "0.5"), ("Top p", "0.9"), ("Max tokens", "2"), ("Seed", "7")):
            seat.page.get_by_label(name).fill(value)
        seat.ask("one")
        expect(seat.facts).to_contain_text("2 tokens")
        seat.page.reload()
        seat.ask("two")
        expect(seat.facts).to_contain_text("2 tokens")
        [first, second] = seat.bodies()
        assert first == {
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}],
            "narrate": True,
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 2,
            "seed": 7,
        }
        assert second["messages"] == [
            *first["messages"],
            {"role": "assistant", "content": "ab"},
            {"role": "user", "content": "two"},
        ]

    def test_a_bad_setting_is_not_sent(self, seat: Seat) -> None:
        seat.page.get_by_label("Temperature").fill("3")
        seat.ask("hello")
        expect(seat.page.get_by_label("Temperature")).to_be_focused()
        assert seat.bodies() == []
        expect(seat.page.get_by_label("Message")).to_have_value("hello")

    @pytest.mark.parametrize("how", ["a button", "Enter"])
    def test_an_earlier_question_is_edited(self, seat: Seat, server: Server, how: str) -> None:
        server.allow("open")
        seat.page.get_by_label("Max tokens").fill("2")
        for question in ("one", "two", "three"):
            seat.ask(question)
            expect(seat.facts).to_have_count(1)
        seat.page.get_by_role("button", name="Edit the question").nth(1).click()
        field = seat.page.get_by_label("Question", exact=True).and_(seat.page.get_by_role("textbox"))
        expect(field).to_be_focused()
        field.fill("oth")
        field.press("End")
        if how == "a button":
            field.press_sequentially("er")
            seat.page.get_by_role("button", name="Ask again").click()
        else:
            field.press_sequentially("er\n")  # as in the field for the next one
        expect(seat.page.get_by_role("article", name="Question")).to_have_text(["one", "other"])
        expect(seat.facts).to_contain_text("2 tokens")
        assert [one["content"] for one in seat.bodies()[-1]["messages"]] == ["one", "ab", "other"]

    def test_retry_asks_the_last_question_again(self, seat: Seat, server: Server) -> None:
        server.allow("open")
        seat.page.get_by_label("Max tokens").fill("3")
        seat.ask("hello")
        seat.page.get_by_role("button", name="Retry").click()
        expect(seat.facts).to_contain_text("3 tokens")
        expect(seat.page.get_by_role("article", name="Question")).to_have_text(["hello"])
        [first, second] = seat.bodies()
        assert first == second

    def test_the_conversation_outlives_a_reload_and_not_being_cleared(self, seat: Seat, server: Server) -> None:
        seat.ask("hello")
        server.allow(3)
        expect(seat.text).to_have_text("abc")
        seat.page.reload()
        expect(seat.page.get_by_role("article", name="Question")).to_have_text("hello")
        expect(seat.text).to_have_text("abc")
        server.allow(2)
        expect(seat.text).to_have_text("abcde")  # the answer goes on where it was
        server.allow("open")
        expect(seat.facts).to_contain_text("tokens/s")
        seat.page.on("dialog", lambda dialog: dialog.accept())
        seat.page.get_by_role("button", name="Clear the conversation").click()
        expect(seat.page.get_by_role("article")).to_have_count(0)
        assert seat.stored() == []
        assert len(seat.bodies()) == 1

    def test_clearing_ends_the_work(self, seat: Seat, server: Server) -> None:
        seat.page.on("dialog", lambda dialog: dialog.accept())
        seat.ask("hello")
        server.allow(1)
        expect(seat.text).to_have_text("a")
        with seat.cancelling():
            seat.page.get_by_role("button", name="Clear the conversation").click()
        server.allow(1)
        server.wait_for(lambda: server.stats()["open"] == 0, "ended")
        assert seat.stored() == []

    def test_an_error_is_told_with_what_to_do_about_it(self, seat: Seat, server: Server) -> None:
        seat.page.get_by_label("Max tokens").fill("4")
        seat.ask("hello")
        server.allow(2)
        expect(seat.text).to_have_text("ab")
        server.post("/fault/error")
        server.allow(1)
        error = seat.answer.get_by_role("alert")
        expect(error).to_contain_text("The model failed (RuntimeError)")
        expect(error).to_contain_text("Try again")
        expect(seat.text).to_have_text("ab")
        server.allow("open")
        seat.page.get_by_role("button", name="Retry").click()
        expect(seat.facts).to_contain_text("4 tokens")

    def test_a_question_without_an_answer_is_not_told_to_the_model(self, seat: Seat, server: Server) -> None:
        """Templates of chats want turns in turn."""
        seat.ask("one")
        server.post("/fault/error")
        server.allow(1)
        expect(seat.answer.get_by_role("alert")).to_be_visible()
        server.allow("open")
        seat.ask("two")
        expect(seat.facts).to_contain_text("tokens/s")
        assert [one["content"] for one in seat.bodies()[-1]["messages"]] == ["two"]

    def test_one_answer_runs_at_a_time(self, seat: Seat, server: Server) -> None:
        before = server.stats()["outcomes"].get("cancelled{delete}", 0)
        seat.ask("one")
        server.allow(1)
        expect(seat.text).to_have_text("a")
        seat.ask("two")
        expect(seat.page.get_by_label("Message")).to_have_value("two")
        expect(seat.page.get_by_role("article", name="Question")).to_have_count(1)
        seat.page.get_by_role("button", name="Edit the question").click()
        with seat.cancelling():
            seat.page.get_by_role("button", name="Ask again").click()
        server.allow(1)  # the step of the first, which is cancelled
        server.wait_for(
            lambda: server.stats()["outcomes"].get("cancelled{delete}", 0) > before, "the first is cancelled"
        )
        server.allow(2)
        expect(seat.text).to_have_text("ab")
        assert server.stats()["running"] == 1

    def test_stop_before_there_is_a_job_ends_it_when_there_is_one(self, seat: Seat, server: Server) -> None:
        held: list[Route] = []
        seat.page.route("**/v1/jobs", lambda route: held.append(route))
        seat.ask("hello")
        expect(seat.answer.get_by_role("status")).to_have_text("Sending…")
        seat.page.get_by_role("button", name="Stop").click()
        seat.page.wait_for_function("1")  # what the browser has to say has been heard
        [route] = held
        with seat.cancelling():
            route.continue_()
        server.allow(1)  # the step that was under way
        expect(seat.facts).to_have_text(re.compile("^stopped"))

    BROKEN = (
        *("nonsense", '[{"question": 1}]', '[{"question": "x", "answer": {}}]', "{}"),
        '[{"question": "x", "answer": {"text": "", "calls": "none"}}]',
        '[{"question": "x", "answer": {"text": ""}, "results": [null]}]',
    )

    @pytest.mark.parametrize("kept", BROKEN)
    def test_a_kept_conversation_that_is_broken_is_left_out(self, seat: Seat, server: Server, kept: str) -> None:
        server.allow("open")
        keep(seat.page, kept)
        seat.ask("hello")
        expect(seat.facts).to_contain_text("tokens/s")
        expect(seat.page.get_by_role("article", name="Question")).to_have_count(1)

    def test_a_browser_that_keeps_nothing_has_a_chat(self, seat: Seat, server: Server) -> None:
        """As Chrome does where cookies are forbidden."""
        seat.context.add_init_script(
            """for (const name of ["localStorage", "sessionStorage"]) {
              Object.defineProperty(window, name, { get() { throw new DOMException("", "SecurityError"); } });
            }"""
        )
        seat.page.reload()
        server.allow("open")
        seat.page.get_by_label("Max tokens").fill("5")
        seat.page.get_by_role("button", name="API key…").click()
        seat.page.get_by_label("Key", exact=True).fill(KEY)
        seat.page.keyboard.press("Enter")
        seat.page.evaluate(
            """() => {
              window.timesTold = 0;
              const lost = document.getElementById("lost");
              new MutationObserver(() => { timesTold++; }).observe(lost, { childList: true });
            }"""
        )
        seat.ask("hello")
        expect(seat.facts).to_contain_text("tokens/s")
        assert [one.headers["authorization"] for one in seat.requests if one.method == "POST"] == [f"Bearer {KEY}"]
        expect(seat.page.get_by_text("it ends with this page")).to_be_visible()
        seat.ask("again")
        expect(seat.page.get_by_role("article", name="Question")).to_have_count(2)
        expect(seat.facts).to_contain_text("tokens/s")
        assert seat.page.evaluate("timesTold") == 1  # each time would be read aloud again

    def test_a_conversation_that_there_is_no_room_for_is_not_said_to_be_kept(self, seat: Seat, server: Server) -> None:
        server.allow("open")
        seat.page.get_by_label("Max tokens").fill("5")
        seat.ask("one")
        expect(seat.facts).to_contain_text("tokens/s")
        lost = seat.page.get_by_text("it ends with this page")
        expect(lost).to_be_hidden()
        seat.page.evaluate(
            """() => {
              let piece = "x".repeat(1 << 20);
              for (let i = 0; piece; i++) {
                try { localStorage[`others ${i}`] = piece; } catch { piece = piece.slice(piece.length / 2 + 1); }
              }
            }"""
        )
        seat.ask("two")
        expect(seat.facts).to_contain_text("tokens/s")
        expect(lost).to_be_visible()
        assert [one["question"] for one in seat.stored()] == ["one"]
        seat.page.evaluate(
            "Object.keys(localStorage).forEach((name) => { if (name.startsWith('others')) delete localStorage[name]; })"
        )
        seat.ask("three")
        expect(lost).to_be_hidden()
        assert [one["question"] for one in seat.stored()] == ["one", "two", "three"]

    def test_a_tab_that_is_closed_leaves_the_conversation_to_the_other(self, seat: Seat, server: Server) -> None:
        """It has nothing to keep, whatever it shows."""
        server.allow("open")
        idle = seat.context.new_page()
        idle.add_init_script("addEventListener('storage', (event) => event.stopImmediatePropagation())")
        idle.goto(server.url)
        seat.ask("hello")
        expect(seat.facts).to_contain_text("tokens/s")
        # Not by wait_for_function: what it asks for the second time is evaluated in the page, which forbids that.
        server.wait_for(lambda: [one["answer"]["state"] for one in seat.stored()] == ["done"], "the answer is kept")
        kept = seat.stored()
        leave(idle)
        assert seat.stored() == kept

    def test_what_is_not_kept_yet_is_kept_when_the_page_goes_away(self, seat: Seat, server: Server) -> None:
        seat.page.evaluate(  # what waits to be written waits
            "() => { const wait = setTimeout; setTimeout = (call, ms) => (ms === 500 ? 1 : wait(call, ms)); }"
        )
        seat.page.get_by_label("Max tokens").fill("2")
        seat.ask("hello")
        server.allow("open")
        expect(seat.facts).to_contain_text("2 tokens")
        assert [one["answer"]["text"] for one in seat.stored()] == [""]
        other = seat.context.new_page()
        other.goto(server.url + "/docs")
        leave(seat.page)
        turns = json.loads(other.evaluate("localStorage['endstop.conversation']"))
        assert [one["answer"]["text"] for one in turns] == ["ab"]

    def test_a_tab_shows_what_another_has_written(self, seat: Seat, server: Server) -> None:
        seat.page.on("dialog", lambda dialog: dialog.accept())
        seat.page.get_by_label("Max tokens").fill("20")
        other = seat.context.new_page()
        other.goto(server.url)
        seat.ask("one")
        server.allow(2)
        expect(other.locator(".answer-text")).to_have_text("ab")
        # It is another tab's answer, and one runs at a time: whoever wants to ask here reads it here.
        other.get_by_label("Message").fill("two")
        other.get_by_label("Message").press("Enter")
        expect(other.get_by_role("button", name="Stop")).to_be_visible()
        expect(other.get_by_label("Message")).to_have_value("two")
        server.allow("open")
        expect(other.get_by_role("button", name="Send")).to_be_visible()
        expect(seat.facts).to_contain_text("tokens/s")
        other.get_by_label("Message").press("Enter")
        expect(seat.page.get_by_role("article", name="Question")).to_have_text(["one", "two"])
        expect(seat.facts).to_contain_text("tokens/s")
        expect(other.locator(".facts").last).to_contain_text("tokens/s")
        seat.page.get_by_role("button", name="Clear the conversation").click()
        expect(other.get_by_role("article")).to_have_count(0)
        leave(other)
        assert seat.stored() == []

    def test_an_answer_that_is_cleared_in_another_tab_ends(self, seat: Seat, server: Server) -> None:
        other = seat.context.new_page()
        other.on("dialog", lambda dialog: dialog.accept())
        other.goto(server.url)
        seat.ask("hello")
        server.allow(2)
        expect(other.locator(".answer-text")).to_have_text("ab")
        with seat.cancelling():
            other.get_by_role("button", name="Clear the conversation").click()
        expect(seat.page.get_by_role("article")).to_have_count(0)
        expect(seat.page.get_by_role("button", name="Send")).to_be_visible()
        server.allow(1)  # the step that was under way
        server.wait_for(lambda: server.stats()["open"] == 0, "ended")
        assert seat.stored() == []

    def test_an_answer_that_another_tab_has_an_older_part_of_goes_on(self, seat: Seat, server: Server) -> None:
        other = seat.context.new_page()
        other.goto(server.url)
        seat.ask("hello")
        server.allow(2)
        expect(other.locator(".answer-text")).to_have_text("ab")
        write_answer(other, text="older")
        server.allow(2)
        expect(seat.text).to_have_text("abcd")
        expect(other.locator(".answer-text")).to_have_text("abcd")
        server.allow("open")
        expect(seat.facts).to_contain_text("tokens/s")

    def test_an_answer_that_has_ended_in_another_tab_is_taken_from_there(self, seat: Seat, server: Server) -> None:
        """This one may have been still for so long that the server has forgotten the end."""
        other = seat.context.new_page()
        other.goto(server.url)
        seat.ask("hello")
        server.allow(2)
        expect(other.locator(".answer-text")).to_have_text("ab")
        write_answer(other, text="abc", state="done")
        expect(seat.text).to_have_text("abc")
        expect(seat.page.get_by_role("button", name="Send")).to_be_visible()

    def test_who_has_scrolled_up_is_left_there(self, seat: Seat, server: Server) -> None:
        seat.page.set_viewport_size({"width": 320, "height": 420})
        log = seat.page.get_by_role("log")
        seat.ask("\n".join("abcdefghijklmnopqrstuvwxyz"))
        server.allow(20)
        expect(seat.text).to_have_text(ALPHABET[:20])
        assert log.evaluate("one => one.scrollHeight - one.scrollTop - one.clientHeight") < 2
        log.evaluate("one => new Promise(done => { one.onscroll = done; one.scrollTop = 0; })")
        server.allow(6)
        expect(seat.text).to_have_text(ALPHABET)
        assert log.evaluate("one => one.scrollTop") == 0

    def test_keys_send_and_begin_a_line(self, seat: Seat, server: Server) -> None:
        server.allow("open")
        seat.page.get_by_label("Message").press_sequentially("one")
        seat.page.keyboard.press("Shift+Enter")
        seat.page.get_by_label("Message").press_sequentially("two")
        seat.page.keyboard.press("Enter")
        expect(seat.facts).to_contain_text("tokens/s")
        assert seat.bodies()[0]["messages"][-1]["content"] == "one\ntwo"

    @pytest.mark.parametrize("name", ["nothing", "constructor"])
    def test_an_address_that_names_no_view_shows_the_chat(self, seat: Seat, name: str) -> None:
        seat.page.goto(f"{seat.page.url}#{name}")
        seat.page.reload()
        expect(seat.page.get_by_label("Message")).to_be_visible()
        expect(seat.page).to_have_title("Endstop")

    def test_everything_can_be_reached_and_has_a_name(self, seat: Seat, server: Server) -> None:
        server.allow("open")
        seat.ask("hello")
        expect(seat.facts).to_contain_text("tokens/s")
        seat.page.reload()
        expect(seat.facts).to_contain_text("tokens/s")
        visited = []
        for _ in range(40):
            seat.page.keyboard.press("Tab")
            name = seat.page.evaluate(
                "(e => e === document.body ? '' : e.ariaLabel || e.labels?.[0]?.textContent || e.textContent.trim())"
                "(document.activeElement)"
            )
            if not name:
                break
            visited.append(name)
        assert visited == [
            *("Skip to the content", "Chat", "Operations", "API", "Theme: auto", "Conversation"),
            *("Edit the question", "Copy", "Retry", "Message", "Send"),
            *("Settings", "System prompt", "Temperature", "Top p", "Max tokens", "Seed", "Tools"),
            *("API key…", "Clear the conversation"),
        ]


class TestPrefix:
    pytestmark = in_browser

    def test_it_works_under_a_path(self, browser: Browser, server: Server) -> None:
        """Behind a proxy that gives the server a path of its own, and takes it off again."""
        seat = Seat(browser, "about:blank")

        def take_off(route: Route) -> None:
            path = route.request.url.removeprefix(server.url)
            assert path.startswith("/llm/"), path
            route.continue_(url=server.url + path.removeprefix("/llm"))

        seat.page.route(f"{server.url}/**", take_off)
        seat.page.goto(f"{server.url}/llm/")
        seat.ask("hello")
        server.allow("open")
        expect(seat.facts).to_contain_text("tokens/s")
        seat.page.get_by_role("link", name="Operations").click()
        expect(seat.page.get_by_text("READY · endstop-tiny")).to_be_visible()
        seat.page.get_by_role("link", name="API", exact=True).click()
        expect(seat.page.get_by_text("/v1/chat/completions").first).to_be_visible()
        assert seat.complaints == []
        seat.context.close()


class TestRefused:
    pytestmark = in_browser

    def test_a_refusal_is_told_in_words(self, browser: Browser, server: Server) -> None:
        seat = Seat(browser, server.url)
        seat.page.get_by_label("Max tokens").fill("100000")
        seat.ask("hello")
        expect(seat.answer.get_by_role("alert")).to_contain_text("Max_tokens: ")
        assert server.stats()["open"] == 0
        seat.context.close()

    def test_a_server_that_is_full_says_when_to_come_back(self, browser: Browser, server: Server) -> None:
        for _ in range(4):
            assert server.post("/v1/jobs", {"prompt": "x", "max_tokens": 1}).ok
        seat = Seat(browser, server.url)
        expect(seat.page.locator("#server")).to_have_text("busy")
        seat.ask("hello")
        expect(seat.answer.get_by_role("alert")).to_have_text(re.compile(r"Try again in \d+ s\."))
        server.allow("open")
        server.wait_for(lambda: server.stats()["open"] == 0, "room")
        seat.page.get_by_role("button", name="Retry").click()
        expect(seat.facts).to_contain_text("tokens/s")
        seat.context.close()

    def test_a_key_is_asked_for_and_kept_in_the_tab_only(self, browser: Browser, tmp_path: Path) -> None:
        with running_server(tmp_path, env={**LIMITS, "ENDSTOP_API_KEYS": f"ann:{KEY}"}, key=KEY) as server:
            server.allow("open")
            seat = Seat(browser, server.url)
            seat.page.get_by_label("Max tokens").fill("4")
            seat.ask("hello")
            dialog = seat.page.get_by_role("dialog", name="API key")
            field = dialog.get_by_label("Key", exact=True)
            expect(field).to_be_focused()
            expect(dialog.get_by_role("alert")).to_have_text("This server asks for an API key.")
            field.fill("a-wrong-key-a-wrong-key")
            field.press("Enter")
            expect(dialog.get_by_role("alert")).to_contain_text("not known here")
            field.fill(KEY)
            field.press("Enter")
            expect(dialog).to_be_hidden()
            expect(seat.facts).to_contain_text("tokens/s")
            seat.page.reload()
            seat.ask("once more")
            expect(seat.facts).to_contain_text("tokens/s")
            server.wait_for(lambda: [one["answer"]["state"] for one in seat.stored()] == ["done"] * 2, "it is kept")
            assert KEY not in json.dumps(seat.page.evaluate("({ ...localStorage })"))
            assert KEY not in seat.page.content()
            other = seat.context.new_page()
            other.goto(server.url)
            other.get_by_label("Message").fill("hello")
            other.get_by_label("Message").press("Enter")
            expect(other.get_by_role("dialog")).to_be_visible()
            other.keyboard.press("Escape")
            expect(other.get_by_role("alert").last).to_contain_text("wants an API key")
            seat.context.close()


class TestKey:
    pytestmark = in_browser

    def test_what_can_be_no_key_is_not_taken(self, seat: Seat) -> None:
        """No header can have it: nothing could be sent at all."""
        seat.page.get_by_role("button", name="API key…").click()
        dialog = seat.page.get_by_role("dialog", name="API key")
        field = dialog.get_by_label("Key", exact=True)
        field.fill("schl\u00fcssel-\u20ac")
        field.press("Enter")
        expect(dialog).to_be_visible()
        dialog.get_by_role("button", name="Cancel").click()
        expect(dialog).to_be_hidden()
        seat.page.get_by_role("button", name="API key…").click()
        expect(field).to_have_value("")
        field.fill(f" {KEY} ")  # as it may be copied
        field.press("Enter")
        expect(dialog).to_be_hidden()
        seat.page.get_by_role("button", name="API key…").click()
        expect(field).to_have_value(KEY)


class TestLoading:
    """A server that says that its model is not there yet."""

    pytestmark = in_browser

    @pytest.fixture
    def waiting(self, browser: Browser, loading_server: Server) -> Iterator[Seat]:
        """Somebody who has asked it and waits."""
        seat = Seat(browser, loading_server.url)
        seat.page.clock.install()
        expect(seat.page.locator("#server")).to_have_text("loading the model…")
        seat.ask("hello")
        expect(seat.answer.get_by_role("status")).to_have_text(re.compile("^The model is still loading"))
        seat.page.clock.pause_at(seat.page.evaluate("Date.now()") / 1000 + 1)  # before it asks again
        yield seat
        seat.context.close()

    def test_what_is_asked_is_sent_when_it_is_there(self, waiting: Seat, server: Server) -> None:
        with waiting.page.expect_response("**/v1/jobs"):  # asked again, and it is loading still
            waiting.page.clock.run_for(2000)
        expect(waiting.answer.get_by_role("status")).to_have_text(re.compile("^The model is still loading"))
        waiting.page.route("**/v1/jobs{,/**}", to_server(server))
        server.allow("open")
        waiting.page.clock.run_for(2000)
        waiting.page.clock.resume()
        expect(waiting.facts).to_contain_text("tokens/s")
        assert len(waiting.bodies()) >= 3
        assert len(keys_of(waiting)) == 1

    def test_stop_ends_the_waiting(self, waiting: Seat) -> None:
        waiting.page.get_by_role("button", name="Stop").click()
        waiting.page.clock.run_for(100)  # to the next frame
        expect(waiting.facts).to_have_text("stopped")
        expect(waiting.page.get_by_label("Message")).to_be_focused()
        num_sent = len(waiting.bodies())
        waiting.page.clock.run_for(60_000)
        assert len(waiting.bodies()) == num_sent
        assert waiting.answer.get_by_role("status").text_content() == ""

    def stop_while_it_is_asked(self, waiting: Seat) -> Route:
        """The request on whose answer it waits, which nobody has let go on."""
        held: list[Route] = []
        waiting.page.route("**/v1/jobs", lambda route: held.append(route), times=1)
        with waiting.page.expect_request("**/v1/jobs"):
            waiting.page.clock.run_for(2000)
        waiting.page.clock.resume()
        waiting.page.get_by_role("button", name="Stop").click()
        expect(waiting.answer.get_by_role("status")).to_have_text("Stopping…")
        [route] = held
        return route

    def test_stop_while_it_is_asked_ends_it_too(self, waiting: Seat) -> None:
        self.stop_while_it_is_asked(waiting).continue_()
        expect(waiting.facts).to_have_text("stopped")

    def test_after_a_reload_it_waits_on(self, waiting: Seat, server: Server) -> None:
        waiting.page.clock.resume()
        waiting.page.reload()
        expect(waiting.answer.get_by_role("status")).to_have_text(re.compile("^The model is still loading"))
        waiting.page.route("**/v1/jobs{,/**}", to_server(server))
        server.allow("open")
        expect(waiting.facts).to_contain_text("tokens/s")
        assert len(keys_of(waiting)) == 1

    def test_a_second_tab_waits_for_the_same_answer(self, waiting: Seat, server: Server) -> None:
        waiting.page.clock.resume()
        other = waiting.context.new_page()
        other.on("request", lambda sent: waiting.requests.append(sent))
        other.goto(waiting.page.url)
        status = other.get_by_role("article", name="Answer").get_by_role("status")
        expect(status).to_have_text(re.compile("^The model is still loading"))
        num_accepted = server.stats()["num_accepted"]
        for page in (waiting.page, other):
            page.route("**/v1/jobs{,/**}", to_server(server))
        server.allow("open")
        for page in (waiting.page, other):
            expect(page.locator(".facts")).to_contain_text("tokens/s")
        assert len(keys_of(waiting)) == 1
        assert server.stats()["num_accepted"] == num_accepted + 1

    def test_stop_is_not_forgotten_over_a_reload(self, waiting: Seat) -> None:
        self.stop_while_it_is_asked(waiting)
        waiting.page.reload()
        expect(waiting.facts).to_have_text("stopped")

    def test_with_settings_that_nobody_takes_it_is_not_sent_after_a_reload(self, waiting: Seat) -> None:
        waiting.page.get_by_label("Tools").fill("[{")
        num_sent = len(waiting.bodies())
        waiting.page.reload()
        waiting.page.clock.resume()
        expect(waiting.answer.get_by_role("alert")).to_have_text(
            "The settings have to be corrected first. Then try again."
        )
        expect(waiting.page.get_by_role("button", name="Send")).to_be_visible()
        assert len(waiting.bodies()) == num_sent

    def refused_tab(self, waiting: Seat) -> Page:
        """Another tab, of which the server takes nothing."""
        other = waiting.context.new_page()
        refusal: Any = {"status": 400, "json": {"errors": [{"field": "seed", "message": "is bad"}]}}
        other.route("**/v1/jobs", lambda route: route.fulfill(**refusal), times=1)
        other.goto(waiting.page.url)
        expect(other.get_by_role("button", name="Send")).to_be_visible()
        return other

    def test_what_is_refused_in_another_tab_waits_on_here(self, waiting: Seat, server: Server) -> None:
        """That one may have no key."""
        other = self.refused_tab(waiting)
        waiting.page.route("**/v1/jobs{,/**}", to_server(server))
        server.allow("open")
        waiting.page.clock.resume()
        for page in (waiting.page, other):
            expect(page.locator(".facts")).to_contain_text("tokens/s")

    def test_who_asks_something_else_in_another_tab_is_not_lost(self, waiting: Seat) -> None:
        other = self.refused_tab(waiting)
        question = other.get_by_label("Message")
        question.fill("two")
        question.press("Enter")
        expect(waiting.page.get_by_role("article", name="Question")).to_have_text(["hello", "two"])
        waiting.page.clock.run_for(5000)
        expect(other.get_by_role("article", name="Question")).to_have_text(["hello", "two"])
        assert [one["question"] for one in waiting.stored()] == ["hello", "two"]

    def test_who_asks_the_same_again_in_another_tab_gets_another_answer(self, waiting: Seat) -> None:
        other = waiting.context.new_page()
        other.goto(waiting.page.url)
        other.get_by_role("button", name="Edit the question").click()
        other.get_by_role("button", name="Ask again").click()
        expect(waiting.page.get_by_role("button", name="Send")).to_be_visible()  # that one waits for it, and not this


def keys_of(seat: Seat) -> set[str]:
    """The names under which something was asked."""
    return {one.headers["idempotency-key"] for one in seat.requests if one.method == "POST"}


def to_server(server: Server) -> Callable[[Route], None]:
    """Has another server answer."""
    return lambda route: route.continue_(url=server.url + urlsplit(route.request.url).path)


class TestComingBack:
    """To a page that the browser has kept as it was, while somebody looked at another one."""

    pytestmark = in_browser

    @pytest.fixture
    def seat(self, browser: Browser, server: Server) -> Iterator[Seat]:
        """In a browser that keeps pages, as Playwright's do not by themselves."""
        keeping = browser.browser_type.launch(
            executable_path=CHROMIUM, args=QUIET, ignore_default_args=["--disable-back-forward-cache"]
        )
        seat = Seat(keeping, server.url)
        # Chromium tells it afterwards what was written meanwhile. Not every browser does.
        seat.context.add_init_script("addEventListener('storage', (event) => event.stopImmediatePropagation())")
        seat.page.reload()
        yield seat
        keeping.close()
        assert seat.complaints == []

    @contextmanager
    def away(self, seat: Seat) -> Iterator[Page]:
        """Another tab with the page, while the first shows something else."""
        seat.page.get_by_label("Message").fill("unsent")
        home = seat.page.url
        seat.page.get_by_role("link", name="API", exact=True).click()
        expect(seat.page.get_by_text("/v1/chat/completions").first).to_be_visible()
        other = seat.context.new_page()
        other.goto(home)
        yield other
        leave(other)
        seat.page.evaluate("history.back()")
        expect(seat.page.get_by_label("Message")).to_have_value("unsent")  # it was not loaded again

    def test_it_shows_what_is_kept_now(self, seat: Seat, server: Server) -> None:
        server.allow("open")
        seat.page.get_by_label("Max tokens").fill("2")
        seat.ask("one")
        expect(seat.facts).to_contain_text("tokens/s")
        with self.away(seat) as other:
            other.get_by_label("Message").fill("two")
            other.get_by_label("Message").press("Enter")
            expect(other.locator(".facts").last).to_contain_text("tokens/s")
        expect(seat.page.get_by_role("article", name="Question")).to_have_text(["one", "two"])
        expect(seat.facts).to_contain_text("tokens/s")

    def test_an_answer_that_runs_is_read(self, seat: Seat, server: Server) -> None:
        with self.away(seat) as other:
            other.get_by_label("Message").fill("hello")
            other.get_by_label("Message").press("Enter")
            server.allow(2)
            expect(other.locator(".answer-text")).to_have_text("ab")
        server.allow(2)
        expect(seat.text).to_have_text("abcd")

    def test_an_answer_that_was_read_goes_on(self, seat: Seat, server: Server) -> None:
        seat.ask("hello")
        server.allow(2)
        expect(seat.text).to_have_text("ab")
        with self.away(seat):
            server.allow(2)
        server.allow(2)
        expect(seat.text).to_have_text("abcdef")
        server.allow("open")
        expect(seat.facts).to_contain_text("tokens/s")

    def test_what_could_not_be_kept_is_not_lost(self, seat: Seat, server: Server) -> None:
        server.allow("open")
        seat.page.evaluate("localStorage.x = 'x'.repeat(5 * 2 ** 20 - 100)")  # of 5 MiB
        seat.ask("hello")
        expect(seat.facts).to_contain_text("tokens/s")
        with self.away(seat):
            pass
        expect(seat.page.get_by_role("article", name="Question")).to_have_text(["hello"])


class TestBadNetwork:
    """What a proxy in front of the server cuts."""

    pytestmark = in_browser

    def test_a_stream_goes_on_where_it_was_cut(self, bad_seat: Seat, proxy: CutProxy, server: Server) -> None:
        bad_seat.page.get_by_label("Max tokens").fill("26")
        bad_seat.ask("hello")
        for num_shown in (4, 10):
            server.allow(4)
            expect(bad_seat.text).to_have_text(ALPHABET[:num_shown])
            proxy.is_down = True
            proxy.cut()
            expect(bad_seat.answer.get_by_role("status")).to_have_text("Connection lost; resuming…")
            server.allow(2)  # nobody reads them now
            proxy.is_down = False
            expect(bad_seat.text).to_have_text(ALPHABET[: num_shown + 2])
        server.allow("open")
        expect(bad_seat.facts).to_contain_text("26 tokens")
        expect(bad_seat.text).to_have_text(ALPHABET)
        came_back = [int(found[1]) for one in proxy.requests if (found := re.search(rb"(?i)last-event-id: (\d+)", one))]
        assert len(came_back) >= 2
        assert came_back == sorted(came_back)
        assert len(bad_seat.bodies()) == 1

    def test_an_answer_that_nobody_knows_any_more_is_said_to_be_lost(self, browser: Browser, server: Server) -> None:
        """The server has another process; what it says no to for good is not asked again."""
        seat = Seat(browser, server.url)
        seat.ask("hello")
        server.allow(2)
        expect(seat.text).to_have_text("ab")
        seat.page.route("**/stream", lambda route: route.continue_(url=f"{server.url}/v1/jobs/none/stream"))
        seat.page.reload()
        expect(seat.answer.get_by_role("alert")).to_contain_text("The server was restarted or the answer has expired")
        expect(seat.text).to_have_text("ab")
        seat.context.close()

    def test_a_server_that_is_busy_for_a_moment_is_asked_again(self, browser: Browser, server: Server) -> None:
        seat = Seat(browser, server.url)
        refusal: Any = {"status": 503, "headers": {"Retry-After": "1"}, "json": {"error": {"message": "busy"}}}
        seat.page.route("**/stream", lambda route: route.fulfill(**refusal), times=1)
        seat.ask("hello")
        server.allow("open")
        expect(seat.facts).to_contain_text("tokens/s")
        assert len(seat.bodies()) == 1
        seat.context.close()

    def test_nothing_comes_twice_where_a_header_is_lost(self, seat: Seat, server: Server) -> None:
        """A proxy that does not know `Last-Event-ID` has the server begin at the beginning."""

        def forget(route: Route) -> None:
            headers = {name: value for name, value in route.request.headers.items() if name != "last-event-id"}
            route.continue_(headers=headers)

        seat.page.route("**/stream", forget)
        seat.ask("hello")
        server.allow(4)
        expect(seat.text).to_have_text("abcd")
        seat.page.reload()
        expect(seat.text).to_have_text("abcd")
        server.allow(2)
        expect(seat.text).to_have_text("abcdef")

    def test_a_connection_that_is_silent_is_replaced(self, bad_seat: Seat, proxy: CutProxy, server: Server) -> None:
        """One that has lost its network without a word: pings would come if it had not."""
        bad_seat.page.clock.install()
        bad_seat.ask("hello")
        server.allow(2)
        expect(bad_seat.text).to_have_text("ab")
        proxy.is_silent = True
        server.allow(2)
        server.wait_for(lambda: server.stats()["at_gate"], "two more are made")
        bad_seat.page.clock.run_for(60_000)
        proxy.is_silent = False
        bad_seat.page.clock.run_for(5000)
        expect(bad_seat.text).to_have_text("abcd")

    def test_an_answer_to_the_first_request_that_is_lost_makes_no_second_job(
        self, bad_seat: Seat, server: Server
    ) -> None:
        def lose(route: Route) -> None:
            assert route.fetch().ok
            route.abort()

        num_accepted = server.stats()["num_accepted"]
        bad_seat.page.route("**/v1/jobs", lose, times=1)
        server.allow("open")
        bad_seat.ask("hello")
        expect(bad_seat.facts).to_contain_text("tokens/s")
        assert len(bad_seat.bodies()) == 2
        assert server.stats()["num_accepted"] == num_accepted + 1

    @pytest.mark.parametrize("max_tokens", ["26", "20"], ids=["same settings", "others"])
    def test_a_page_that_is_reloaded_before_it_has_the_answer_to_the_first_request(
        self, browser: Browser, server: Server, max_tokens: str
    ) -> None:
        """It asks again, and the server knows the request by its name; with other settings it is another one."""
        seat = Seat(browser, server.url)
        num_accepted = server.stats()["num_accepted"]
        seat.page.get_by_label("Max tokens").fill("26")
        seat.page.route("**/v1/jobs", lambda route: None if route.fetch().ok else route.abort(), times=1)
        seat.ask("hello")
        # What is routed goes on while the browser is asked something.
        server.wait_for(
            lambda: bool(seat.stored()) and server.stats()["num_accepted"] == num_accepted + 1, "the server has it"
        )
        seat.page.get_by_label("Max tokens").fill(max_tokens)
        seat.page.reload()
        server.allow("open")
        expect(seat.facts).to_contain_text(f"{max_tokens} tokens")
        assert server.stats()["num_accepted"] == num_accepted + (1 if max_tokens == "26" else 2)
        seat.context.close()

    def test_a_stop_that_is_lost_on_its_way_is_sent_again(self, bad_seat: Seat, server: Server) -> None:
        bad_seat.ask("hello")
        server.allow(2)
        expect(bad_seat.text).to_have_text("ab")
        bad_seat.page.route("**/v1/jobs/*", lambda route: route.abort(), times=1)
        with bad_seat.cancelling():
            bad_seat.page.get_by_role("button", name="Stop").click()
        server.allow(1)
        expect(bad_seat.facts).to_contain_text("stopped")

    def test_stop_reaches_the_server_once_it_can_be_reached(
        self, bad_seat: Seat, proxy: CutProxy, server: Server
    ) -> None:
        bad_seat.ask("hello")
        server.allow(2)
        expect(bad_seat.text).to_have_text("ab")
        proxy.is_down = True
        proxy.cut()
        expect(bad_seat.answer.get_by_role("status")).to_have_text("Connection lost; resuming…")
        with bad_seat.cancelling():
            bad_seat.page.get_by_role("button", name="Stop").click()
            proxy.is_down = False
        server.allow(1)
        expect(bad_seat.facts).to_contain_text("stopped")

    def test_a_server_that_cannot_be_reached_is_said_to_be(self, bad_seat: Seat, proxy: CutProxy) -> None:
        proxy.is_down = True
        proxy.cut()
        bad_seat.ask("hello")
        expect(bad_seat.answer.get_by_role("status")).to_contain_text("trying again")
        bad_seat.page.get_by_role("button", name="Stop").click()
        expect(bad_seat.answer.get_by_role("alert")).to_contain_text("cannot be reached")

    def test_a_request_that_gets_no_answer_is_sent_four_times(self, bad_seat: Seat, proxy: CutProxy) -> None:
        bad_seat.page.clock.install()
        proxy.is_down = True
        proxy.cut()
        bad_seat.ask("hello")
        for num_sent, wait_ms in ((1, 1000), (2, 2000), (3, 4000)):
            expect(bad_seat.answer.get_by_role("status")).to_contain_text("trying again")
            assert len(bad_seat.bodies()) == num_sent
            with bad_seat.page.expect_event("requestfailed", lambda sent: sent.method == "POST"):
                bad_seat.page.clock.run_for(wait_ms)
        expect(bad_seat.answer.get_by_role("alert")).to_contain_text("cannot be reached")
        assert len(bad_seat.bodies()) == 4

    def test_events_are_read_from_any_pieces(self, seat: Seat) -> None:
        """As the network cuts them, in the middle of a character too."""
        told = seat.page.evaluate(
            """async (text) => {
              const { EventParser } = await import("/page/sse.js");
              return Array.from({ length: text.length }, (_, cut) => {
                const parser = new EventParser();
                return JSON.stringify([...parser.push(text.slice(0, cut)), ...parser.push(text.slice(cut))]);
              });
            }""",
            'id: 0\ndata: {"a":1}\n\n: ping\nid: 1\ndata: [DONE]\n\n',
        )
        assert set(told) == {'[{"id":0,"data":"{\\"a\\":1}"},{"id":1,"data":"[DONE]"}]'}


class TestOperations:
    pytestmark = in_browser

    def test_it_shows_what_runs_and_how_requests_ended(self, seat: Seat, server: Server) -> None:
        assert server.post("/v1/jobs", {"prompt": "x", "max_tokens": 2}).ok
        server.allow("open")
        server.wait_for(lambda: server.stats()["open"] == 0, "it has ended, and not only those of other tests")
        server.wait_for(lambda: bool(server.get("/v1/operations").json()["ended"]), "which is told")
        server.post("/gate/close")
        job = server.post("/v1/jobs", {"prompt": "x", "max_tokens": 9}).json()["job_id"]
        server.wait_for(lambda: server.stats()["running"] == 1, "one runs")
        seat.page.get_by_role("link", name="Operations").click()
        page = seat.page.get_by_role("region", name="Operations", exact=True)
        expect(page.get_by_role("status")).to_contain_text("READY · endstop-tiny on cpu")
        expect(page.get_by_text("1 of 2", exact=True)).to_be_visible()
        live = page.get_by_role("region", name="Live streams").get_by_role("row")
        expect(live.last).to_contain_text("prefilling")
        expect(live.last).to_contain_text(job[:8])
        expect(page.get_by_role("region", name="Outcomes since the start")).to_contain_text("MAX_TOKENS")
        expect(page.get_by_role("region", name="Recent requests").get_by_role("row").nth(1)).to_contain_text("ms")
        expect(page.get_by_role("img", name="Tokens per second, the last 5 minutes. tokens/s: last ")).to_be_visible()
        expect(
            page.get_by_role("img", name="Time to first token, the last 5 minutes. first token: last")
        ).to_be_visible()
        expect(page.locator("circle").first).to_be_visible()
        expect(seat.page).to_have_title("Operations · Endstop")
        server.allow("open")
        expect(page.get_by_text("Nothing runs.")).to_be_visible()

    def test_it_asks_while_somebody_looks(self, seat: Seat) -> None:
        seat.page.clock.install()
        with seat.page.expect_response("**/v1/operations"):
            seat.page.get_by_role("link", name="Operations").click()
        with seat.page.expect_response("**/v1/operations"):
            seat.page.clock.run_for(2000)
        seat.page.get_by_role("link", name="Chat").click()
        expect(seat.page.get_by_label("Message")).to_be_visible()
        before = len(seat.requests)
        seat.page.clock.run_for(10_000)
        assert [one.url for one in seat.requests[before:] if one.url.endswith("/v1/operations")] == []

    def test_a_server_that_is_gone_is_said_to_be(self, bad_seat: Seat, proxy: CutProxy) -> None:
        bad_seat.page.get_by_role("link", name="Operations").click()
        status = bad_seat.page.get_by_role("region", name="Operations", exact=True).get_by_role("status")
        expect(status).to_contain_text("READY")
        proxy.is_down = True
        proxy.cut()
        expect(status).to_contain_text("cannot be reached")
        proxy.is_down = False
        expect(status).to_contain_text("READY")

    def test_it_needs_the_key_too(self, browser: Browser, tmp_path: Path) -> None:
        with running_server(tmp_path, env={**LIMITS, "ENDSTOP_API_KEYS": f"ann:{KEY}"}, key=KEY) as server:
            seat = Seat(browser, server.url)
            seat.page.clock.install()
            seat.page.get_by_role("link", name="Operations").click()
            dialog = seat.page.get_by_role("dialog", name="API key")
            expect(dialog).to_be_visible()
            seat.page.keyboard.press("Escape")
            status = seat.page.get_by_role("region", name="Operations", exact=True).get_by_role("status")
            expect(status).to_have_text("This server asks for an API key.")
            seat.page.clock.run_for(10_000)
            expect(dialog).to_be_hidden()  # who has said no is not asked again
            seat.page.reload()
            dialog.get_by_label("Key", exact=True).fill(KEY)
            seat.page.keyboard.press("Enter")
            expect(status).to_contain_text("READY")
            seat.context.close()


class TestLooks:
    pytestmark = in_browser

    def test_it_fits_a_phone(self, browser: Browser, server: Server) -> None:
        seat = Seat(browser, server.url, viewport=PHONE, has_touch=True, is_mobile=True)
        server.allow("open")
        seat.ask("w" * 200)
        expect(seat.page.get_by_role("button", name="Send")).to_be_visible()
        turn = "x" * 300 + "\n\n```\n" + "y" * 300 + "\n```\n\n|" + "z" * 300 + "|b|\n|-|-|\n|1|2|"
        show_answer(seat.page, turn)
        expect(seat.page.get_by_text("API key…")).to_be_hidden()
        for view in ("chat", "operations"):
            seat.page.goto(f"{server.url}/#{view}")
            assert seat.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        seat.page.goto(f"{server.url}/#chat")
        assert seat.page.evaluate("document.querySelector('#log').scrollWidth <= innerWidth")
        for wide in ("pre", ".table"):  # what cannot be broken is scrolled by itself
            element = seat.text.locator(wide)
            assert element.evaluate("one => { one.scrollLeft = 40; return one.scrollLeft; }") == 40, wide
        expect(seat.page.get_by_label("Message")).to_be_in_viewport()
        seat.page.get_by_text("Settings", exact=True).click()
        seat.page.get_by_role("button", name="Clear the conversation").scroll_into_view_if_needed()
        expect(seat.page.get_by_role("button", name="Clear the conversation")).to_be_in_viewport()
        assert seat.complaints == []
        seat.context.close()

    def test_what_is_read_from_the_right_stands_there(self, seat: Seat) -> None:
        right, left = "\u05e9\u05dc\u05d5\u05dd", "peace"
        show_answer(seat.page, f"{right}!\n\n{left}!\n\n- {right}\n\n> {right}\n\n```\ncode\n```")
        where = """one => {
          const range = document.createRange();
          range.selectNodeContents(one);
          const [text, place] = [range.getBoundingClientRect(), one.getBoundingClientRect()];
          return text.left - place.left > place.right - text.right ? "right" : "left";
        }"""
        places = [one.evaluate(where) for one in seat.text.locator("p, li, code").all()]
        assert places == ["right", "left", "right", "right", "left"]
        # The mark of an item stands before it, and so does the line of a quote.
        styles = "one => [getComputedStyle(one).paddingRight, getComputedStyle(one).borderRightWidth]"
        assert seat.text.locator("ul").evaluate(styles)[0] != "0px"
        assert seat.text.locator("blockquote").evaluate(styles)[1] == "3px"
        assert seat.text.locator("pre").evaluate("one => getComputedStyle(one).direction") == "ltr"
        for name in ("Message", "System prompt"):
            field = seat.page.get_by_label(name)
            field.fill(right)
            assert field.evaluate("one => getComputedStyle(one).direction") == "rtl"

    @pytest.mark.parametrize("width", [375, 700, 1000, 1400])
    def test_the_tiles_of_operations_fill_their_rows(self, seat: Seat, width: int) -> None:
        seat.page.set_viewport_size({"width": width, "height": 740})
        seat.page.get_by_role("link", name="Operations").click()
        tiles = seat.page.locator(".tiles > div")
        expect(tiles).to_have_count(6)
        tops = [one.evaluate("one => one.offsetTop") for one in tiles.all()]
        assert len({tops.count(top) for top in tops}) == 1, tops

    def test_it_is_dark_or_light_as_the_system_or_the_reader_wants(self, seat: Seat) -> None:
        def back() -> Any:
            return seat.page.evaluate("getComputedStyle(document.body).backgroundColor")

        light, dark = "rgb(255, 255, 255)", "rgb(20, 23, 26)"
        seat.page.emulate_media(color_scheme="dark")
        assert back() == dark
        seat.page.emulate_media(color_scheme="light")
        assert back() == light
        seat.page.get_by_role("button", name="Theme: auto").click()
        seat.page.get_by_role("button", name="Theme: light").click()
        assert back() == dark
        seat.page.reload()
        assert back() == dark
        seat.page.get_by_role("button", name="Theme: dark").click()
        assert back() == light

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_can_be_read(self, seat: Seat, scheme: Any) -> None:
        """4.5 to 1 between every colour of letters and what they stand on, as WCAG 2.2 has it."""
        seat.page.emulate_media(color_scheme=scheme)
        colours = seat.page.evaluate(
            """() => Object.fromEntries(NAMES.map((name) => {
              document.body.style.color = `var(--${name})`;
              return [name, getComputedStyle(document.body).color.match(/\\d+/g).map(Number)];
            }))""".replace("NAMES", '["back", "panel", "text", "faint", "link", "on-link", "bad", "good", "mark"]')
        )
        for letters in ("text", "faint", "link", "bad", "good", "mark"):
            for back in ("back", "panel"):
                assert contrast(colours[letters], colours[back]) >= 4.5, (letters, back)
        assert contrast(colours["on-link"], colours["link"]) >= 4.5


SHOWN = """# One

Some **bold**, `code`, a [link](https://example.org/) and ~~gone~~.

1. first
   - inner

> said

```py
x = 1
```

|a|b|
|-|-:|
|1|2|

---
"""


class TestAxe:
    """What axe-core, which knows WCAG, has to say of it."""

    pytestmark = in_browser

    @needs_npm
    @pytest.mark.timeout(360)  # npm may take its time
    @pytest.mark.parametrize("width", [360, 1200])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_it_finds_nothing(self, browser: Browser, server: Server, axe: str, scheme: Any, width: int) -> None:
        # The page's own policy would not let it in.
        seat = Seat(browser, server.url, bypass_csp=True, color_scheme=scheme, viewport={"width": width, "height": 800})
        found = {}

        def look(what: str) -> None:
            seat.page.evaluate(axe)
            violations = seat.page.evaluate("axe.run().then(({ violations }) => violations)")
            found[what] = [(one["id"], [node["target"] for node in one["nodes"]]) for one in violations]

        look("an empty chat")
        calls = [{"id": "1", "name": "weather", "arguments": "{}", "isWhole": True}]
        answer = ANSWER | {"text": SHOWN, "reasoning": "hm", "calls": calls, "tokens": 9}
        failed = answer | {"state": "failed", "error": {"code": "X", "message": "It failed."}}
        keep(seat.page, [{"question": "one", "answer": answer}, {"question": "two", "answer": failed}])
        seat.answer.locator(".reasoning summary").click()
        look("a conversation")
        seat.page.get_by_role("button", name="Edit the question").last.click()
        look("a question that is edited")
        if width < 900:
            seat.page.get_by_text("Settings", exact=True).click()
        look("the settings")
        seat.page.get_by_role("button", name="API key…").click()
        look("the key")
        seat.page.keyboard.press("Escape")
        assert server.post("/v1/jobs", {"prompt": "x", "max_tokens": 9}).ok
        seat.page.goto(f"{server.url}/#operations")
        expect(seat.page.get_by_role("region", name="Live streams")).to_be_visible()
        look("operations")
        assert not any(found.values()), found
        seat.context.close()


def contrast(one: list[int], other: list[int]) -> float:
    """WCAG's ratio of two colours."""

    def luminance(colour: list[int]) -> float:
        parts = [part / 255 for part in colour]
        red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


# ---- what models write beside text


def num_tokens(text: str) -> int:
    return len(speaking_tokenizer(None).encode(text))


class TestParts:
    """Reasoning and calls, of a model that says what it is asked to."""

    pytestmark = in_browser

    @pytest.fixture
    def speaker(self, speaking_server: Server) -> Iterator[Server]:
        speaking_server.post("/gate/close")
        yield speaking_server
        speaking_server.allow("open")
        speaking_server.wait_for(lambda: speaking_server.stats()["open"] == 0, "nothing left open")

    @pytest.fixture
    def seat(self, browser: Browser, speaker: Server) -> Iterator[Seat]:
        seat = Seat(browser, speaker.url)
        yield seat
        seat.context.close()
        assert seat.complaints == []

    def test_reasoning_is_a_quiet_block(self, seat: Seat, speaker: Server) -> None:
        seat.ask("<say><think>\nhm, well\n</think>\n\nYes.</say>")
        speaker.allow(num_tokens("<think>\nhm, "))
        summary, thought = seat.answer.locator("summary"), seat.answer.locator(".reasoning p")
        expect(summary).to_have_text("Reasoning…")
        expect(thought).to_be_hidden()
        summary.click()
        expect(thought).to_have_text("hm,")
        expect(seat.text).to_have_text("")
        seat.page.reload()  # who comes back is told where it went on
        expect(thought).to_have_text("hm,")
        seat.answer.locator("summary").click()
        speaker.allow("open")
        expect(seat.facts).to_contain_text("tokens/s")
        expect(summary).to_have_text("Reasoning")
        expect(thought).to_be_visible()
        expect(thought).to_have_text("hm, well")
        expect(seat.text).to_have_text("Yes.")
        seat.ask("<say>No.</say>")
        expect(seat.text).to_have_text("No.")
        assert seat.bodies()[-1]["messages"][1] == {"role": "assistant", "content": "Yes."}

    def test_a_call_is_shown_with_its_name_and_arguments(self, seat: Seat, speaker: Server) -> None:
        seat.page.get_by_label("Tools").fill(json.dumps(TOOLS))
        begin = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ro'
        seat.ask(f'<say>Well. {begin}me"}}}}\n</tool_call></say>')
        speaker.allow(num_tokens("Well. " + begin))
        call = seat.answer.locator(".calls")
        expect(call).to_contain_text("Calls weather")
        expect(call.locator("pre")).to_have_text('{"city": "Ro')
        seat.page.reload()
        speaker.allow("open")
        expect(seat.facts).to_contain_text("tokens/s")
        expect(call.locator("pre")).to_have_text('{\n  "city": "Rome"\n}')
        expect(call).to_have_text(re.compile("^Calls weatherCopy"))
        expect(seat.text).to_have_text("Well.")
        assert seat.bodies()[0]["tools"] == TOOLS

    def test_what_a_tool_has_said_goes_to_the_model(self, seat: Seat, speaker: Server) -> None:
        speaker.allow("open")
        seat.page.get_by_label("Tools").fill(json.dumps(TOOLS))
        question = '<say><tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call></say>'
        seat.ask(question)
        seat.answer.get_by_label("Result of weather").fill("<say>Sun.</say>")
        seat.page.get_by_role("button", name="Send results").click()
        expect(seat.text).to_have_text("Sun.")
        expect(seat.facts).to_contain_text("tokens/s")
        expect(seat.page.get_by_role("article", name="Results of tools")).to_have_text("weather <say>Sun.</say>")
        expect(seat.page.get_by_role("button", name="Send results")).to_be_hidden()
        seat.page.reload()
        seat.page.get_by_role("button", name="Retry").click()
        expect(seat.facts).to_contain_text("tokens/s")
        user, calling, told = seat.bodies()[-1]["messages"]
        [call] = calling["tool_calls"]
        assert user == {"role": "user", "content": question}
        assert call["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
        assert told == {"role": "tool", "tool_call_id": call["id"], "content": "<say>Sun.</say>"}
        seat.ask("<say>Bye.</say>")
        expect(seat.text).to_have_text("Bye.")
        roles = [one["role"] for one in seat.bodies()[-1]["messages"]]
        assert roles == ["user", "assistant", "tool", "assistant", "user"]

    def test_a_call_without_a_result_is_not_told_to_the_model(self, seat: Seat, speaker: Server) -> None:
        speaker.allow("open")
        seat.page.get_by_label("Tools").fill(json.dumps(TOOLS))
        seat.ask('<say><tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call></say>')
        expect(seat.answer.get_by_label("Result of weather")).to_be_visible()
        seat.ask("<say>Bye.</say>")
        expect(seat.text).to_have_text("Bye.")
        assert seat.bodies()[-1]["messages"] == [{"role": "user", "content": "<say>Bye.</say>"}]

    def test_a_call_that_was_cut_is_said_to_be(self, seat: Seat, speaker: Server) -> None:
        speaker.allow("open")
        seat.page.get_by_label("Tools").fill(json.dumps(TOOLS))
        begin = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ro'
        seat.page.get_by_label("Max tokens").fill(str(num_tokens(begin)))
        seat.ask(f'<say>{begin}me"}}}}\n</tool_call></say>')
        expect(seat.answer.locator(".calls")).to_contain_text("Calls weather (not complete)")
        expect(seat.answer.locator(".calls pre")).to_have_text('{"city": "Ro')

    def test_an_answer_without_a_word_is_said_to_be_empty(self, seat: Seat, speaker: Server) -> None:
        speaker.allow("open")
        seat.ask("<say></say>")
        expect(seat.facts).to_have_text(re.compile("^an empty answer · 1 token"))
        seat.ask("<say>Well.</say>")
        expect(seat.facts).to_have_text(re.compile(r"^\d+ tokens"))

    def test_tools_that_are_no_list_are_not_sent(self, seat: Seat) -> None:
        for bad in ("[", "{}", "weather"):
            seat.page.get_by_label("Tools").fill(bad)
            seat.ask("hello")
            expect(seat.page.get_by_label("Tools")).to_be_focused()
        assert seat.bodies() == []


# ---- what models write


ANSWER = {
    "state": "done",
    "jobId": None,
    "lastId": -1,
    "error": None,
    "stopReason": "EOS",
    "metrics": None,
    "tokens": 0,
}


def show_answer(page: Page, text: str) -> None:
    """Have the page show an answer that no model has to be taught."""
    keep(page, [{"question": "q", "answer": ANSWER | {"text": text}}])


def write_answer(tab: Page, **fields: str) -> None:
    """Have a tab write the only turn of the conversation with these fields of its answer."""
    tab.evaluate(
        """(fields) => {
          const [turn] = JSON.parse(localStorage['endstop.conversation']);
          Object.assign(turn.answer, fields);
          localStorage['endstop.conversation'] = JSON.stringify([turn]);
        }""",
        fields,
    )


def keep(page: Page, turns: Any) -> None:
    """Have the page find this conversation."""
    # The page writes what it knows when it goes away, and is followed by what it did not.
    page.evaluate(
        "turns => addEventListener('pagehide', () => { localStorage['endstop.conversation'] = turns })",
        turns if isinstance(turns, str) else json.dumps(turns),
    )
    page.reload()


def leave(page: Page) -> None:
    """Have the page go away, and hear that it has."""
    page.goto("about:blank")
    page.close()


# Of the lists that those who look for such holes try first, in the forms that Markdown adds.
HOSTILE = [
    "<script>hit()</script>",
    "<img src=x onerror=hit()>",
    "<svg onload=hit()><svg/onload=hit()>",
    "<iframe srcdoc='<script>parent.hit()</script>'></iframe>",
    "<details open ontoggle=hit()>x</details>",
    "<a href='javascript:hit()'>x</a> <math><mi//xlink:href='data:x,<script>hit()</script>'>",
    "<style>@import 'https://evil.example/x.css'</style><base href='https://evil.example/'>",
    "</article></div><script>hit()</script>",
    "[x](javascript:hit()) [x](JaVaScRiPt:hit()) [x]( javascript:hit() ) [x](<javascript:hit()>)",
    "[x](java\tscript:hit()) [x](java\nscript:hit()) [x](\x01javascript:hit()) [x](\u00a0javascript:hit())",
    "[x](javascript&colon;hit()) [x](&#106;avascript:hit()) [x](jav&#x09;ascript:hit()) [x](%6aavascript:hit())",
    "[x](vbscript:hit()) [x](data:text/html;base64,PHNjcmlwdD5oaXQoKTwvc2NyaXB0Pg==) [x](file:///etc/passwd)",
    '[x](https://a.example/"onmouseover="hit()) [x](https://a.example/ "title" onclick=hit() x="")',
    "[x](//evil.example) [x](/v1/jobs) [x](blob:https://evil.example/x) [x](x:javascript:hit())",
    "![x](https://evil.example/pixel.png) ![x](javascript:hit()) [![x](javascript:hit())](javascript:hit())",
    "[<img src=x onerror=hit()>](https://a.example) [`<script>hit()</script>`](javascript:hit())",
    "<javascript:hit()> <https://a.example/<script>hit()</script>> https://a.example/<img/src=x/onerror=hit()>",
    "```<img src=x onerror=hit()>\n</code></pre><script>hit()</script>\n```",
    '```js" onclick="hit()\nx\n```',
    "# <img src=x onerror=hit()>\n> <img src=x onerror=hit()>\n\n- <img src=x onerror=hit()>",
    "|<img src=x onerror=hit()>|b|\n|:-:|-:|\n|<script>hit()</script>|[x](javascript:hit())|",
    "**<img src=x onerror=hit()>** *<svg onload=hit()>* ~~<b onclick=hit()>~~ `<script>hit()</script>`",
    "\\<script>hit()\\</script> \\[x](javascript:hit()) &lt;script&gt;hit()&lt;/script&gt;",
    "__proto__ constructor [__proto__](javascript:hit()) {{hit()}} ${hit()}",
    "x\u2028<script>hit()</script>\u2029\u202e<img src=x onerror=hit()>\x00<script>hit()</script>",
]


class TestHostile:
    """Nobody knows what a model writes, and whom it has read."""

    pytestmark = in_browser

    def test_no_text_becomes_anything_but_text(self, browser: Browser, server: Server) -> None:
        """With the page's policy switched off: this is about the page alone."""
        seat = Seat(browser, server.url, bypass_csp=True)
        seat.page.add_init_script("window.hits = 0; window.hit = () => { window.hits++; }")
        everything = "\n\n".join(HOSTILE)
        kept = ANSWER | {"text": everything, "reasoning": everything, "error": {"code": "X", "message": everything}}
        calls = [{"id": "1", "name": text, "arguments": text, "isWhole": True} for text in HOSTILE]
        keep(seat.page, [{"question": everything, "answer": kept | {"state": "failed", "calls": calls}}])
        expect(seat.answer.get_by_role("alert")).to_be_visible()
        found = seat.page.evaluate(
            """() => [...document.querySelectorAll(".turn *")].flatMap((one) => [
              one.localName,
              ...[...one.attributes].filter(({ name }) => /^on|^src|^style/.test(name)).map(({ name }) => `@${name}`),
              ...(one.localName === "a" ? [new URL(one.href).protocol] : []),
            ])"""
        )
        parts = {"div", "article", "h2", "p", "span", "button", "details", "summary", "form"}
        text = {"a", "blockquote", "code", "del", "em", "h3", "li", "ol", "pre", "strong", "ul"}
        table = {"table", "tbody", "td", "th", "thead", "tr"}
        assert set(found) - {"br", "hr"} <= parts | text | table | {"https:"}
        assert {"a", "table", "pre", "https:"} <= set(found)  # it was read at all
        for link in seat.answer.locator("a").all():
            assert not re.match(r"(?i)\s*(javascript|data|vbscript)", link.get_attribute("href") or "")
        assert seat.page.evaluate("hits") == 0
        assert all(one.url.startswith((server.url, "data:image/svg")) for one in seat.requests)
        seat.context.close()

    def test_what_got_in_all_the_same_could_do_nothing(self, browser: Browser, server: Server) -> None:
        """By the page's policy, of which the browser complains here."""
        seat = Seat(browser, server.url)
        refused = seat.page.evaluate(
            """async () => {
              const refused = new Set();
              addEventListener("securitypolicyviolation", ({ effectiveDirective }) => refused.add(effectiveDirective));
              window.hit = () => refused.add("IT RAN");
              const hole = document.createElement("div");
              document.body.append(hole);
              hole.innerHTML = "<img src='/nope.png' onerror='hit()'><iframe src='/docs'></iframe><p style='color:red'>"
                + "<form action='/v1/jobs'><button id='send'></button></form><a id='go' href='javascript:hit()'>x</a>";
              const script = document.createElement("script");
              script.textContent = "hit()";
              hole.append(script);
              hole.querySelector("#go").click();
              hole.querySelector("form").submit();
              await fetch("https://evil.example/").catch(() => {});
              await new Promise((done) => setTimeout(done, 200));
              return [...refused].sort();
            }"""
        )
        assert refused == [
            *("connect-src", "form-action", "frame-src", "img-src", "script-src-attr", "script-src-elem"),
            "style-src-attr",
        ]
        seat.context.close()


class TestBrokenAnswers:
    """Of a server, or of what stands before it, that does not say what was agreed."""

    pytestmark = in_browser

    def answered(self, seat: Seat, *events: str) -> None:
        """Ask, and have these be the events of the answer."""
        body = "".join(f"id: {i}\ndata: {event}\n\n" for i, event in enumerate(events))
        seat.page.route("**/stream", lambda route: route.fulfill(content_type="text/event-stream", body=body))
        seat.ask("hello")

    def test_an_event_that_is_no_json_ends_the_answer(self, seat: Seat, server: Server) -> None:
        before = server.stats()["outcomes"].get("cancelled{delete}", 0)
        with seat.cancelling():
            self.answered(seat, '{"type": "token", "t": "ab", "i": 0}', "{broken")
        expect(seat.answer.get_by_role("alert")).to_contain_text("This page cannot read what the server sent")
        expect(seat.text).to_have_text("ab")
        expect(seat.page.get_by_role("button", name="Retry")).to_be_visible()
        assert len([one for one in seat.requests if one.url.endswith("/stream")]) == 1
        server.allow(1)  # the step that was under way
        server.wait_for(lambda: server.stats()["outcomes"].get("cancelled{delete}", 0) == before + 1, "cancelled")

    def test_a_text_that_cannot_be_read_as_markdown_is_shown_as_it_is(self, seat: Seat, server: Server) -> None:
        """While it is written, and to whoever comes back to it."""
        server.allow("open")
        marks = "_" * 10_000
        texts = ["**one**\n", f"{marks}a{marks}", "\n  two"]
        tokens = [json.dumps({"type": "token", "t": text, "i": i}) for i, text in enumerate(texts)]
        self.answered(seat, *tokens, '{"type": "end", "stop_reason": "EOS", "tokens_out": 3}', "[DONE]")
        expect(seat.facts).to_have_text("3 tokens")
        assert seat.text.text_content() == "".join(texts)
        seat.page.reload()
        expect(seat.facts).to_have_text("3 tokens")
        assert seat.text.text_content() == "".join(texts)

    @pytest.mark.parametrize("bad", ['"fast"', '"5"', "{}", "null"])
    def test_a_measure_that_is_no_number_is_left_out(self, seat: Seat, server: Server, bad: str) -> None:
        server.allow("open")
        self.answered(
            seat,
            '{"type": "token", "t": "ab", "i": 0}',
            f'{{"type": "metrics", "tokens_per_sec": {bad}, "ttft_ms": {bad}}}',
            '{"type": "end", "stop_reason": "EOS", "tokens_out": 1}',
            "[DONE]",
        )
        expect(seat.facts).to_have_text("1 token")


class TestMarkdown:
    pytestmark = in_browser

    CASES = (
        ("plain & <b>bold</b>", "<p>plain &amp; &lt;b&gt;bold&lt;/b&gt;</p>"),
        (
            "a **b *c* d** `e*f*` __g__ _h_",
            "<p>a <strong>b <em>c</em> d</strong> <code>e*f*</code> <strong>g</strong> <em>h</em></p>",
        ),
        ("snake_case_name and 2 * 3 * 4", "<p>snake_case_name and 2 * 3 * 4</p>"),
        ("# One\ntext\nmore", "<h3>One</h3><p>text<br>more</p>"),
        ("- a\n- b\n  - c\n\nd", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><p>d</p>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("> a\n> b", "<blockquote><p>a<br>b</p></blockquote>"),
        ("a\n\n---\nb", "<p>a</p><hr><p>b</p>"),
        (
            "[x](https://a.example/b_(c)) https://d.example.",
            '<p><a href="https://a.example/b_(c)" target="_blank" rel="noopener noreferrer">x</a> '
            '<a href="https://d.example" target="_blank" rel="noopener noreferrer">https://d.example</a>.</p>',
        ),
        ("[x](javascript:alert(1)) [y](data:text/html,z) ![i](z.png)", "<p>x y i</p>"),
        ("\\*a\\* `` b`c ``", "<p>*a* <code>b`c</code></p>"),
    )

    @pytest.mark.parametrize(("text", "markup"), CASES)
    def test_it_is_shown_as_it_was_meant(self, seat: Seat, text: str, markup: str) -> None:
        show_answer(seat.page, text)
        assert seat.text.inner_html() == markup

    NESTED = ("> ", ">", "- ", "1. ", "- > ")

    @pytest.mark.parametrize("mark", NESTED)
    def test_what_is_nested_deeper_than_anybody_reads_is_text(self, seat: Seat, mark: str) -> None:
        show_answer(seat.page, mark * 5000 + "end\n\n**after**")
        expect(seat.text).to_contain_text("end")
        expect(seat.text.locator("strong")).to_have_text("after")
        assert seat.text.locator("blockquote, ul, ol").count() == 50

    def test_code_is_copied_as_it_is(self, seat: Seat) -> None:
        seat.context.grant_permissions(["clipboard-read", "clipboard-write"])
        show_answer(seat.page, "```html\n<script>alert(1)</script>\n  x\n```\ntext")
        expect(seat.text.locator("pre")).to_have_text("<script>alert(1)</script>\n  x")
        seat.text.get_by_role("button", name="Copy").click()
        expect(seat.text.get_by_role("button")).to_have_text("Copied")
        assert seat.page.evaluate("navigator.clipboard.readText()") == "<script>alert(1)</script>\n  x"

    def test_a_text_that_grows_is_shown_as_the_whole_would_be(self, seat: Seat) -> None:
        """Whatever has come of it; and what stands before its last block is left in place."""
        texts = [
            "\n\n".join(text for text, _ in self.CASES),
            "a\n\n```py\nx = '`'\n\n# no\n```\n\n|a|b|\n|-|-|\n|1|`2`|\n\n* x\n\n  y\n* z\n",
            "|x|\n- a\n- b\n\n|y|\n|-|\n|z|\n",  # no table when its line is a single dash, nor later
        ]
        differences = seat.page.evaluate(
            """async (texts) => {
              const { MarkdownView } = await import("/page/markdown.js");
              const shown = (element) => element.innerHTML;
              const wrong = [];
              for (const text of texts) {
                const growing = new MarkdownView(document.createElement("div"));
                let first = null;
                for (let length = 1; length <= text.length; length++) {
                  growing.text = text.slice(0, length);
                  const whole = new MarkdownView(document.createElement("div"));
                  whole.text = text.slice(0, length);
                  if (shown(growing.element) !== shown(whole.element)) wrong.push(text.slice(0, length));
                  if (text.slice(0, length).includes("\\n\\n")) first ??= growing.element.firstChild;
                }
                if (first !== growing.element.firstChild) wrong.push("the first block was made anew");
              }
              return wrong;
            }""",
            texts,
        )
        assert differences == []

    def test_a_list_that_grows_keeps_its_items(self, seat: Seat) -> None:
        """Or an answer in steps, which is one list, would be made anew with each token."""
        num_made, is_kept = seat.page.evaluate(
            """async (item) => {
              const { MarkdownView } = await import("/page/markdown.js");
              const make = document.createElement;
              let numMade = 0;
              document.createElement = (tag) => { numMade++; return make.call(document, tag); };
              const growing = new MarkdownView(make.call(document, "div"));
              growing.text = item;
              const first = growing.element.querySelector("li");
              for (let num = 2; num <= 100; num++) growing.text = item.repeat(num);
              document.createElement = make;
              return [numMade, first.isConnected || growing.element.contains(first)];
            }""",
            "1. **Step**\n\n   ```py\n   x\n   ```\n",
        )
        assert is_kept
        assert num_made < 100 * 20  # and 50,000 if each were made each time

    def test_a_paragraph_is_searched_once(self, seat: Seat) -> None:
        """Not once for each word that is set apart in it."""
        num_searches = seat.page.evaluate(
            """async (text) => {
              const { inline } = await import("/page/markdown.js");
              const exec = RegExp.prototype.exec;
              let num = 0;
              RegExp.prototype.exec = function (text) { num++; return exec.call(this, text); };
              inline(text);
              RegExp.prototype.exec = exec;
              return num;
            }""",
            "a **b** `c` " * 100,
        )
        assert num_searches < 500  # of 300 words, each rule's own; 3,200 if all rules began again behind each

    def test_no_text_takes_long(self, seat: Seat) -> None:
        """Of what is not Markdown after all, however much of it there is."""
        slow = seat.page.evaluate(
            """async (pieces) => {
              const { MarkdownView } = await import("/page/markdown.js");
              const slow = [];
              for (const piece of pieces) {
                const begun = performance.now();
                new MarkdownView(document.createElement("div")).text = piece.repeat(4000 / piece.length);
                if (performance.now() - begun > 1000) slow.push(piece);
              }
              return slow;
            }""",
            ["*", "_", "`", "[", "](", "**a", "- ", "> ", "|a", "a ", "~~", "http://", "\\", "#"],
        )
        assert slow == []
