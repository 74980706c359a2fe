"""`python -m bench.chunks`: what running streams notice of a long prompt that comes meanwhile.

Over HTTP, with random weights of a real shape: four streams decode, and a prompt of 4,000 tokens arrives. The gaps
between their tokens, with it and without, beside the time of one step that computes nothing but ENDSTOP_STEP_TOKENS of
a prompt. One JSON line last.
"""

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from bench.models import MODELS, Prompts, model_folder
from bench.report import percentile
from bench.servers import KINDS, Running, running
from worker.load import Load, drive
from worker.settings import Settings

LONG_PROMPT = 4000
NUM_STREAMS, NUM_NEW = 4, 200
NUM_NEW_LONG = 8
BEFORE_IT_COMES_S = 0.5


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.chunks", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder = model_folder(options.model)
    prompts = Prompts(folder, seed=2)
    kind = KINDS["endstop-gevent"]
    kind = replace(kind, env=kind.env | {"ENDSTOP_MAX_CONTEXT": str(LONG_PROMPT + 512)})
    steps: list[float] = []
    gaps: dict[str, list[float]] = {"quiet": [], "long_prompt": []}
    first_tokens = []
    with running(kind, folder) as server, ThreadPoolExecutor() as pool:
        _drive(server, prompts, 1)
        for _ in range(options.rounds):
            # Of a prompt that is one step long, without the token that comes of it.
            prompt = kind.body(prompts.next(Settings().step_tokens - 12), 2)
            load = drive(server.url, [prompt], 2)
            steps.append(load.ttft_s[0] * 1e3)
            gaps["quiet"] += _drive(server, prompts, NUM_STREAMS).gaps_s
            streams = pool.submit(_drive, server, prompts, NUM_STREAMS)
            time.sleep(BEFORE_IT_COMES_S)
            long = drive(server.url, [kind.body(prompts.next(LONG_PROMPT), NUM_NEW_LONG)], NUM_NEW_LONG)
            first_tokens.append(long.ttft_s[0])
            gaps["long_prompt"] += streams.result().gaps_s
            print(f"step {steps[-1]:.0f} ms, first token of the long prompt {long.ttft_s[0]:.2f} s", file=sys.stderr)
    result: dict[str, Any] = {"bench": "chunks", "model": options.model, "step_ms": round(statistics.median(steps), 1)}
    for name, values in gaps.items():
        ms = [value * 1e3 for value in values]
        result[name] = {
            "p50_ms": round(percentile(ms, 0.5), 1),
            "p99_ms": round(percentile(ms, 0.99), 1),
            "max_ms": round(max(ms), 1),
        }
    result["long_first_token_s"] = round(statistics.median(first_tokens), 2)
    result["p99_to_step"] = round(result["long_prompt"]["p99_ms"] / result["step_ms"], 2)
    print(json.dumps(result))


def _drive(server: Running, prompts: Prompts, num_streams: int) -> Load:
    return drive(server.url, [server.kind.body(prompts.next(), NUM_NEW) for _ in range(num_streams)], NUM_NEW)


if __name__ == "__main__":
    main()
