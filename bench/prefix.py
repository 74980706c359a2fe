"""`python -m bench.prefix`: how soon a second turn answers whose first 1,000 tokens the server has seen.

Over HTTP, with random weights of a real shape: a first turn of 1,000 tokens, then a second one that begins with it;
again and again with other words. Medians of the time to the first token, and their ratio; one JSON line last.
"""

import argparse
import json
import statistics
import sys
from typing import Any

from bench.models import MODELS, Prompts, model_folder
from bench.servers import KINDS, Running, running
from worker.load import drive

FIRST_TURN_TOKENS = 1000
NUM_NEW = 8


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.prefix", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    folder = model_folder(options.model)
    prompts = Prompts(folder, seed=1)
    first, second = [], []
    with running(KINDS["endstop-gevent"], folder) as server:
        _ttft_ms(server, prompts.next())
        for _ in range(options.rounds):
            turn = prompts.next(FIRST_TURN_TOKENS)
            first.append(_ttft_ms(server, turn))
            answer = {"role": "assistant", "content": "yes"}
            second.append(_ttft_ms(server, [*turn, answer, {"role": "user", "content": "And what else is there?"}]))
            print(f"first turn {first[-1]:.0f} ms, second {second[-1]:.0f} ms", file=sys.stderr)
    medians = {"first_ms": round(statistics.median(first), 1), "second_ms": round(statistics.median(second), 1)}
    ratio = round(medians["second_ms"] / medians["first_ms"], 3)
    print(json.dumps({"bench": "prefix", "model": options.model, "rounds": options.rounds, **medians, "ratio": ratio}))


def _ttft_ms(server: Running, messages: list[dict[str, Any]]) -> float:
    return drive(server.url, [server.kind.body(messages, NUM_NEW)], NUM_NEW).ttft_s[0] * 1e3


if __name__ == "__main__":
    main()
