"""`python -m bench.crowd`: so many streams open at once that most servers would not take them.

As many slots as streams: all of them generate together. Beside it the same number with 16 slots, where most wait for
their turn. One JSON line last.
"""

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

from bench import procs
from bench.models import MODELS, Prompts, model_folder
from bench.report import percentile
from bench.servers import KINDS, running
from worker.load import drive

NUM_NEW = 64


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.crowd", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="embedded")
    parser.add_argument("--server", choices=("endstop-gevent", "endstop-gthread"), default="endstop-gevent")
    parser.add_argument("--streams", type=int, default=256)
    options = parser.parse_args()
    folder = model_folder(options.model)
    prompts = Prompts(folder, seed=4)
    result: dict[str, Any] = {"bench": "crowd", "model": options.model, "server": options.server}
    for num_slots in (options.streams, 16):
        slots = {"ENDSTOP_MAX_SLOTS": str(num_slots), "ENDSTOP_MAX_QUEUE": str(options.streams)}
        kind = replace(KINDS[options.server], env=KINDS[options.server].env | slots)
        with running(kind, folder) as server:
            bodies = [kind.body(prompts.next(), NUM_NEW) for _ in range(options.streams)]
            load = drive(server.url, bodies, NUM_NEW)
            result[f"{num_slots}_slots"] = {
                "streams": options.streams,
                "tokens_per_s": round(load.num_tokens / load.elapsed_s, 1),
                "ttft_p50_s": round(percentile(load.ttft_s, 0.5), 2),
                "ttft_p95_s": round(percentile(load.ttft_s, 0.95), 2),
                "gap_p99_ms": round(percentile(load.gaps_s, 0.99) * 1e3),
                "peak_mib": round(procs.used_by(server.session).peak_mib),
            }
        print(result[f"{num_slots}_slots"], file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
