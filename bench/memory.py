"""`python -m bench.memory`: what a server holds after so many requests, and whether it is more than before.

Prompts and answers of all lengths, greedy and drawn, 32 at once. Memory is what is resident in the server's processes,
read between two batches. One JSON line last.
"""

import argparse
import json
import random
import sys

from bench import procs
from bench.models import MODELS, Prompts, model_folder
from bench.servers import KINDS, MAX_STREAMS, running
from worker.load import drive

LOOKS = 20


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="embedded")
    parser.add_argument("--server", choices=("endstop-gevent", "endstop-gthread"), default="endstop-gevent")
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    folder = model_folder(options.model)
    prompts, rng = Prompts(folder, seed=5), random.Random(5)
    kind = KINDS[options.server]
    resident_mib = {}
    with running(kind, folder) as server:
        num_done = 0
        while num_done < options.requests:
            batch = min(MAX_STREAMS, options.requests - num_done)
            num_tokens = rng.randint(1, 24)
            bodies = [kind.body(prompts.next(rng.randint(16, 160)), num_tokens) for _ in range(batch)]
            for body in bodies[::2]:
                body |= {"temperature": 1.0, "top_p": 0.9, "seed": rng.randrange(1 << 30)}
            drive(server.url, bodies, num_tokens)
            before, num_done = num_done, num_done + batch
            if before * LOOKS // options.requests < num_done * LOOKS // options.requests:
                resident_mib[num_done] = round(procs.used_by(server.session).resident_mib, 1)
                print(f"{num_done} requests, {resident_mib[num_done]} MiB", file=sys.stderr)
    looks = list(resident_mib.values())
    grown = looks[-1] - looks[len(looks) // 4]
    result = {"bench": "memory", "model": options.model, "server": options.server, "resident_mib": resident_mib}
    print(json.dumps(result | {"grown_mib_after_the_first_quarter": round(grown, 1)}))


if __name__ == "__main__":
    main()
