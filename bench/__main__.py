"""`make bench`: Endstop and what a user would pick instead, over HTTP, on the same models, in one run.

Every server of a model is started and then stopped where it is (SIGSTOP); for each load they are let go one after the
other, A B C A B C, and the medians over the rounds are reported. Prompts are new each time and have 128 tokens; no
answer ends before it has as many tokens as were asked for. One JSON line last; table and plot in `bench/out`.
"""

import argparse
import json
import platform
import sys
import time
from contextlib import ExitStack
from typing import Any

from bench import procs, report
from bench.models import MODELS, OUT, Prompts, model_folder
from bench.servers import BY_DEFAULT, KINDS, DidNotStart, Running, running
from worker.load import drive


def main() -> None:
    """Run and print."""
    options = _options()
    measurements: list[report.Measurement] = []
    for model in options.models:
        measurements += _measure_model(model, options)
    table = report.medians(measurements)
    markdown, doubts = report.markdown(table), report.doubts(table)
    (OUT / "table.md").write_text(markdown)
    report.plot(table, OUT / "plot.png")
    _say(markdown)
    for doubt in doubts:
        _say(f"not to be trusted: {doubt}")
    result = {"bench": "servers", "machine": platform.machine(), "new_tokens": options.tokens, "rounds": options.rounds}
    print(json.dumps(result | {"doubts": doubts, "rows": report.as_json(table)}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--models", type=_names(MODELS), default=["smollm2-135m"], help=", ".join(MODELS))
    parser.add_argument("--servers", type=_names(KINDS), default=BY_DEFAULT, help=", ".join(KINDS))
    parser.add_argument("--streams", type=lambda text: list(map(int, text.split(","))), default=[1, 4, 16, 32])
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of an answer (default 64)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of A B (default 3)")
    return parser.parse_args()


def _names(known: Any) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(known)}")
        return names

    return parse


def _measure_model(model: str, options: argparse.Namespace) -> list[report.Measurement]:
    folder = model_folder(model)
    prompts = Prompts(folder, seed=0)
    found = []
    with ExitStack() as stack:
        servers: dict[str, Running] = {}
        for name in options.servers:
            why_not = KINDS[name].why_not(model)
            if why_not:
                _say(f"{name} is left out on {model}: {why_not}")
                continue
            try:
                server = stack.enter_context(running(KINDS[name], folder))
            except DidNotStart as error:
                _say(f"{name} is left out on {model}: it did not start\n{error}")
                continue
            drive(server.url, _bodies(server, prompts, 1, 8), 8)  # what is made at the first request is made now
            procs.pause(server.session)
            servers[name] = server
        for round_number in range(options.rounds):
            for num_streams in options.streams:
                for name, server in servers.items():
                    one = _measure(model, name, server, prompts, num_streams, round_number, options.tokens)
                    found.append(one)
                    _say(f"round {round_number} {model} {num_streams:3} {name:20} {one.tokens_per_s:7.1f} tokens/s")
    return found


def _measure(
    model: str, name: str, server: Running, prompts: Prompts, num_streams: int, round_number: int, num_tokens: int
) -> report.Measurement:
    bodies = _bodies(server, prompts, num_streams, num_tokens)
    procs.resume(server.session)
    time.sleep(0.5)  # timers that came due meanwhile have their turn
    used, busy_s, own_s, began = procs.used_by(server.session), procs.machine_busy_s(), time.process_time(), time.time()
    load = drive(server.url, bodies, num_tokens)
    elapsed_s, own_s = time.time() - began, time.process_time() - own_s
    after = procs.used_by(server.session)
    busy_s = procs.machine_busy_s() - busy_s
    procs.pause(server.session)
    cpu_s = after.cpu_s - used.cpu_s
    to_ms = [seconds * 1e3 for seconds in load.ttft_s], [seconds * 1e3 for seconds in load.gaps_s]
    return report.Measurement(
        model,
        name,
        num_streams,
        round_number,
        tokens_per_s=load.num_tokens / load.elapsed_s,
        ttft_p50_ms=report.percentile(to_ms[0], 0.5),
        ttft_p95_ms=report.percentile(to_ms[0], 0.95),
        gap_p50_ms=report.percentile(to_ms[1], 0.5),
        gap_p99_ms=report.percentile(to_ms[1], 0.99),
        cpu_s=cpu_s,
        peak_mib=after.peak_mib,
        foreign=max(0.0, busy_s - cpu_s - own_s) / elapsed_s,
    )


def _bodies(server: Running, prompts: Prompts, num_streams: int, num_tokens: int) -> list[dict[str, Any]]:
    return [server.kind.body(prompts.next(), num_tokens) for _ in range(num_streams)]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
