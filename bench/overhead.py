"""`python -m bench.overhead`: what HTTP, SSE and bookkeeping cost, in tokens per second.

Prompts of one length to an engine in this process, of which nobody reads before the end, and over HTTP to a server, in
turns: A B A B, medians. One JSON line last.
"""

import argparse
import json
import statistics
import sys
import time
from typing import Any

from transformers import AutoTokenizer

from bench import procs
from bench.inside import answers, running_engine
from bench.models import MODELS, Prompts, model_folder
from bench.servers import KINDS, MAX_CONTEXT, MAX_STREAMS, running
from worker.load import drive
from worker.request import SamplingParams
from worker.settings import Settings

NUM_NEW = 64


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m")
    parser.add_argument("--server", choices=("endstop-gevent", "endstop-gthread"), default="endstop-gevent")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder = model_folder(options.model)
    prompts = Prompts(folder, seed=3)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    kind = KINDS[options.server]
    params = [SamplingParams(max_tokens=NUM_NEW, temperature=0.0)] * options.streams
    rates: dict[str, list[float]] = {"engine": [], "http": []}
    settings = Settings(model=str(folder), max_slots=MAX_STREAMS, max_context=MAX_CONTEXT)
    with running(kind, folder) as server, running_engine(settings) as engine:
        for number in range(options.rounds + 1):
            chats = [[prompts.next() for _ in range(options.streams)] for _ in range(2)]
            procs.pause(server.session)
            ids = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats[0]]
            began = time.perf_counter()
            num_tokens = sum(map(len, answers(engine, ids, params)))
            inside = num_tokens / (time.perf_counter() - began)
            procs.resume(server.session)
            time.sleep(0.5)
            load = drive(server.url, [kind.body(chat, NUM_NEW) for chat in chats[1]], NUM_NEW)
            outside = load.num_tokens / load.elapsed_s
            print(f"engine {inside:.1f} tokens/s, over HTTP {outside:.1f}", file=sys.stderr)
            if number:  # in the first one both warm up
                rates["engine"].append(inside)
                rates["http"].append(outside)
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    spread = {name: round(max(values) / min(values), 2) for name, values in rates.items()}
    result = {"bench": "overhead", "model": options.model, "server": options.server, "streams": options.streams}
    print(json.dumps(result | medians | {"spread": spread, "share": round(medians["http"] / medians["engine"], 3)}))


if __name__ == "__main__":
    main()
