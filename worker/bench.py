"""The `bench` command: how fast is a server, ours or another's, for so many streams at once?

It asks in OpenAI's wire format. Each prompt begins with words of its own, so that no cache of prefixes answers in
place of the model, and all answers have one length unless the model may end them.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import requests
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.check import printable
from worker.client import why_unanswered
from worker.load import Stream, run
from worker.spawn import announced_server

_WORDS = ("river", "stone", "lamp", "garden", "window", "paper", "music", "winter", "orange", "silver", "bridge")
CONNECT_S = 10.0
PERCENTILES = (50, 90, 99)


class CannotBench(Exception):
    """There is nothing to measure; says why."""


@dataclass(frozen=True)
class Options:
    """What to ask, and how.

    Attributes:
        streams: Requests that are open at any time.
        requests: In all.
        prompt_words: Of each prompt; a word is one or two tokens.
        max_tokens: Of each answer.
        is_fixed: Whether an answer goes on when the model would end it.
        limit_s: For all requests together.
        model: Named in the requests; None for the first one that the server lists.
    """

    streams: int = 4
    requests: int = 16
    prompt_words: int = 64
    max_tokens: int = 128
    is_fixed: bool = True
    limit_s: float = 600.0
    model: str | None = None
    api_key: str | None = None


@dataclass(frozen=True)
class Result:
    """What came of it. Times are in milliseconds; of those that failed only the reasons are counted."""

    url: str
    model: str
    streams: int
    requests: int
    failures: dict[str, int]
    elapsed_s: float
    prompt_tokens: int
    tokens: int
    tokens_per_s: float
    requests_per_s: float
    ttft_ms: dict[str, float]
    time_per_token_ms: dict[str, float]
    request_ms: dict[str, float]


def run_bench(url: str | None, options: Options, *, as_json: bool, console: Console | None = None) -> bool:
    """Measure the server at `url`, or one that is started for it; print what came. Returns whether all were answered.

    Raises:
        CannotBench: There is no server, or it lists no model.
        SpawnFailed: None could be started.
    """
    console = console or Console()
    with _server(url, Console(stderr=True)) as base_url:
        model = options.model or _first_model(base_url, options.api_key)
        with Console(stderr=True).status(f"{options.requests} requests, {options.streams} at a time"):
            try:
                streams = run(
                    base_url,
                    [_body(options, model, number) for number in range(options.requests)],
                    concurrency=options.streams,
                    limit_s=options.limit_s,
                    api_key=options.api_key,
                )
            except OSError as error:
                raise CannotBench(f"{base_url}: {error.strerror or error}") from error
    result = summarize(base_url, model, options.streams, streams)
    if as_json:
        console.print(json.dumps(vars(result), indent=2), highlight=False, soft_wrap=True)
    else:
        show(result, console)
    return not result.failures


@contextlib.contextmanager
def _server(url: str | None, console: Console) -> Iterator[str]:
    if url is None:
        with announced_server(console) as server:
            yield server.url
    else:
        yield (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")


def _first_model(base_url: str, api_key: str | None) -> str:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        response = requests.get(f"{base_url}/v1/models", headers=headers, timeout=CONNECT_S)
    except requests.RequestException as error:
        raise CannotBench(f"{base_url}: {why_unanswered(error, CONNECT_S, CONNECT_S)}") from error
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        said = f"GET /v1/models is answered with {response.status_code} and names no model"
        raise CannotBench(f"{base_url}: {said}; give --api-key if it needs one, or name the model: --model") from None


def _body(options: Options, model: str, number: int) -> dict[str, Any]:
    words = random.Random(number).choices(_WORDS, k=max(1, options.prompt_words - 1))
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": " ".join([str(number), *words])}],
        "max_tokens": options.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return body | {"ignore_eos": True} if options.is_fixed else body


def summarize(url: str, model: str, concurrency: int, streams: list[Stream]) -> Result:
    """Numbers of the answers that ended well; the reasons of the others."""
    whole = [stream for stream in streams if not stream.failure and stream.text_at]
    failures = Counter(_reason(stream) for stream in streams if stream not in whole)
    tokens = sum(stream.num_tokens or 0 for stream in whole)
    elapsed_s = max((s.ended_at for s in whole), default=0.0) - min((s.sent_at for s in streams), default=0.0)
    elapsed_s = max(elapsed_s, 0.0)
    per_token = [(s.ended_at - s.text_at[0]) / (s.num_tokens - 1) for s in whole if s.num_tokens and s.num_tokens > 1]
    return Result(
        url=url,
        model=model,
        streams=concurrency,
        requests=len(streams),
        failures=dict(failures),
        elapsed_s=round(elapsed_s, 3),
        prompt_tokens=sum(stream.num_prompt_tokens or 0 for stream in whole),
        tokens=tokens,
        tokens_per_s=round(tokens / elapsed_s, 1) if elapsed_s else 0.0,
        requests_per_s=round(len(whole) / elapsed_s, 2) if elapsed_s else 0.0,
        ttft_ms=_percentiles([stream.text_at[0] - stream.sent_at for stream in whole]),
        time_per_token_ms=_percentiles(per_token),
        request_ms=_percentiles([stream.ended_at - stream.sent_at for stream in whole]),
    )


def _reason(stream: Stream) -> str:
    if not stream.failure:
        return "an answer without text"
    first, *_, last = stream.failure.splitlines()[0], *stream.failure.splitlines()
    return first if first == last else f"{first}: {last}"


def _percentiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    if len(seconds) == 1:
        return {f"p{p}": round(seconds[0] * 1e3, 1) for p in PERCENTILES}
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"p{p}": round(cuts[p - 1] * 1e3, 1) for p in PERCENTILES}


def show(result: Result, console: Console) -> None:
    """A table for people."""
    failed = sum(result.failures.values())
    title = printable(f"{result.model} at {result.url}: {result.streams} streams at a time")
    console.print(Text(title, style="bold"))
    console.print(
        f"{result.requests - failed} of {result.requests} requests answered in {result.elapsed_s:.1f} s, "
        f"{result.prompt_tokens} tokens in, {result.tokens} out",
        highlight=False,
    )
    for reason, number in result.failures.items():
        console.print(Text(f"{number} failed: {printable(reason)[:300]}", style="red"))
    if not result.tokens:
        return
    rate = f"{result.tokens_per_s:.1f} tokens/s, {result.requests_per_s:.2f} requests/s"
    console.print(Text(rate, style="bold green"))
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("milliseconds")
    for p in PERCENTILES:
        table.add_column(f"p{p}", justify="right")
    rows = {
        "to the first token": result.ttft_ms,
        "per token after it": result.time_per_token_ms,
        "of a request": result.request_ms,
    }
    for name, values in rows.items():
        table.add_row(name, *(f"{values[f'p{p}']:.1f}" if values else "-" for p in PERCENTILES))
    console.print(table)
