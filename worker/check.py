"""The conformance checker: does a server, ours or not, keep the stream contract?

It streams one prompt through `POST /execute` and one chat through `POST /v1/chat/completions`, and shows their text
as it comes, what was measured on them, and each promise with its verdict.

Its law: it asks and it shows, and does no more. `worker.recording` writes down what comes and knows nothing of rules,
`worker.rules` judges what was written down, and `worker.spawn` starts a server when there is none to check. What a
server sent reaches the terminal through `printable` alone.
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.client import Client, ServerSentEvent, json_object
from worker.recording import Frame, Recording, record
from worker.rules import Verdict, judge_native, judge_openai
from worker.spawn import SpawnFailed, announced_server

# Everything that a terminal may take for a command, escape first; a model's text is no reason to obey.
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}


def printable(text: str) -> str:
    """Text from a server, safe for a terminal."""
    return text.translate(_CONTROLS)


def run_check(
    url: str | None,
    *,
    worker_class: str | None = None,
    prompt: str = "Once upon a time",
    max_tokens: int = 64,
    limit_s: float = 30.0,
    api_key: str | None = None,
    console: Console | None = None,
) -> bool:
    """Check the server at `url`, or one that is started for it; say what was found; return whether all is well.

    `limit_s` is for both streams together. Starting the server does not count.
    """
    console = console or Console()
    with contextlib.ExitStack() as stack:
        server = None
        if url is None:
            try:
                server = stack.enter_context(announced_server(console, worker_class))
            except SpawnFailed as error:
                console.print(Text(f"FAILED: {printable(str(error))}", style="red"))
                return False
            url = server.url
        verdicts = _streams(url, prompt, max_tokens, limit_s, api_key, console)
        for verdict in verdicts:
            console.print(_table(verdict))
        problems = [f"{verdict.route}: {problem}" for verdict in verdicts for problem in verdict.problems]
        for problem in problems:
            console.print(Text(printable(problem), style="red"))
        if problems and server is not None:
            console.print(Text(f"the server's log ends with\n{printable(server.log_tail())}", style="dim"))
        console.print(Text("FAILED", style="bold red") if problems else Text("PASSED", style="bold green"))
    return not problems


def _streams(
    url: str, prompt: str, max_tokens: int, limit_s: float, api_key: str | None, console: Console
) -> list[Verdict]:
    """Ask for both streams, showing their text; judge them."""
    give_up_at = time.monotonic() + limit_s

    def show(event: ServerSentEvent) -> None:
        console.file.write(printable(Frame(0.0, event).text))
        console.file.flush()

    def ask(method: str, path: str, fields: dict[str, Any] | None = None) -> Recording:
        remaining_s = give_up_at - time.monotonic()
        if remaining_s <= 0:
            return Recording(None, {}, [], "stopped", 0.0, f"no time is left of the limit of {limit_s:g} s")
        return record(client.session, method, client.base_url + path, fields, limit_s=remaining_s, show=show)

    def stream(path: str, fields: dict[str, Any]) -> Recording:
        console.print(Text(f"POST {path}", style="bold"))
        recording = ask("POST", path, fields)
        console.print()
        return recording

    verdicts = []
    # An OpenAI client's base URL ends with /v1; ours does not.
    with Client(re.sub("/v1/?$", "", url), api_key=api_key) as client:
        native = stream("/execute", {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0})
        if native.status in (404, 405):
            console.print(Text(f"no native route ({native.status}): only the OpenAI route is checked", style="dim"))
        else:
            verdicts.append(judge_native(native))
        chat = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        model = _first_model(ask("GET", "/v1/models"))
        verdicts.append(judge_openai(stream("/v1/chat/completions", chat | ({"model": model} if model else {}))))
    return verdicts


def _first_model(listing: Recording) -> str | None:
    """The first model that a server lists; None when it lists none, and then the request names none."""
    try:
        name = (json_object(b"".join(data for _, data in listing.reads)) or {})["data"][0]["id"]
    except (LookupError, TypeError):
        return None
    return name if isinstance(name, str) else None


def _table(verdict: Verdict) -> Table:
    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value * 1000:.0f} ms"

    table = Table(title=verdict.route, title_justify="left", show_header=False, min_width=60)
    table.add_row("tokens received", str(verdict.num_tokens))
    table.add_row("time to first event", seconds(verdict.first_event_s))
    table.add_row("time to first token", seconds(verdict.ttft_s))
    table.add_row("longest gap between tokens", seconds(verdict.longest_gap_s))
    table.add_row("longest silence", seconds(verdict.longest_silence_s))
    table.add_row("duration", seconds(verdict.duration_s))
    table.add_row("terminal event", Text(printable(verdict.terminal)), end_section=True)
    for promise, problems in verdict.outcomes:
        table.add_row(Text(promise), Text("FAILED", style="red") if problems else Text("ok", style="green"))
    return table
