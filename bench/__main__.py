"""`make bench`: the embedded model over HTTP at 1, 4 and 16 streams, and one plain `generate` call, in one run.

The two are measured in turn, A B A B, and medians are reported, so that a machine that slows down in between slows
both. Each answer has the same number of tokens: greedy, from the same prompts, the end-of-sequence rule taken out of
both sides by asking for verse, which does not end.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worker.client import Client, Token
from worker.spawn import spawned_server

ROOT = Path(__file__).resolve().parent.parent
STREAMS = (1, 4, 16)
PROMPTS = ("To be, or not to be", "My lord, the king", "Good morrow, sir", "What news from the north")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens per answer (default 128)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of A B (default 5)")
    parser.add_argument("--worker-class", default="gevent", choices=("gevent", "gthread"))
    options = parser.parse_args()

    with spawned_server(options.worker_class) as server, _generate_process(options.tokens) as generate:
        client = Client(server.url)
        _measure_streams(client, 1, options.tokens)  # warm both sides
        generate()
        served: dict[int, list[dict[str, float]]] = {n: [] for n in STREAMS}
        plain: list[dict[str, float]] = []
        for round_number in range(options.rounds):
            for n in STREAMS:
                served[n].append(_measure_streams(client, n, options.tokens))
            plain.append(generate())
            print(f"round {round_number + 1} of {options.rounds}", file=sys.stderr)
    result: dict[str, Any] = {
        "bench": "embedded model over HTTP",
        "worker_class": options.worker_class,
        "new_tokens": options.tokens,
        "rounds": options.rounds,
        "streams": {str(n): _medians(rows) for n, rows in served.items()},
        "generate": _medians(plain),
    }
    rates = [row["tokens_per_s"] for row in plain]
    result["generate"]["spread"] = round(max(rates) / min(rates), 2)  # above about 1.3: too noisy to trust
    print(json.dumps(result))


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}


def _measure_streams(client: Client, num_streams: int, num_tokens: int) -> dict[str, float]:
    """That many streams at once; tokens per second of all together, times to first token."""
    ttft_ms = [0.0] * num_streams
    counts = [0] * num_streams
    errors: list[BaseException] = []

    def read(i: int) -> None:
        try:
            began = time.perf_counter()
            prompt = PROMPTS[i % len(PROMPTS)]
            for event in client.stream(prompt=prompt, max_tokens=num_tokens, temperature=0):
                if isinstance(event, Token):
                    if not counts[i]:
                        ttft_ms[i] = (time.perf_counter() - began) * 1e3
                    counts[i] += event.num_tokens
        except BaseException as error:  # shown by the main thread
            errors.append(error)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(num_streams)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed_s = time.perf_counter() - began
    if errors:
        raise errors[0]
    return {
        "tokens_per_s": sum(counts) / elapsed_s,
        "ttft_ms_p50": statistics.median(ttft_ms),
        "ttft_ms_max": max(ttft_ms),
    }


@contextmanager
def _generate_process(num_tokens: int) -> Iterator[Any]:
    """A process of its own that runs `generate` when told: it must not share the client's interpreter."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.generate", str(num_tokens)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def generate() -> dict[str, float]:
        stdin.write("go\n")
        stdin.flush()
        answer: dict[str, float] = json.loads(stdout.readline())
        return answer

    try:
        yield generate
    finally:
        stdin.close()
        process.wait(30)
        stdout.close()


if __name__ == "__main__":
    main()
