"""`python -m bench.speculation`: what guessing tokens from the text itself gains, and what it costs where it fails.

An engine with and one without, in turns, greedy. How repetitive a text is shows in how many tokens a step gives. One
JSON line last.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from typing import Any

from transformers import AutoTokenizer

from bench.inside import answers, running_engine
from bench.models import MODELS, Prompts, model_folder
from worker.engine.engine import Engine
from worker.engine.scheduler import Row
from worker.request import SamplingParams
from worker.settings import Settings


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.speculation", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=256, help="new tokens of an answer (default 256)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder = str(model_folder(options.model))
    prompts = Prompts(model_folder(options.model), seed=6)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    result: dict[str, Any] = {"bench": "speculation", "model": options.model, "tokens": options.tokens}
    with (
        running_engine(Settings(model=folder, max_slots=16)) as plain,
        running_engine(Settings(model=folder, max_slots=16, speculation="ngram")) as guessing,
    ):
        engines = {"off": plain, "ngram": guessing}
        num_steps = Counter[str]()
        for name, engine in engines.items():
            _count_steps(engine, name, num_steps)
        for num_streams in (1, 4):
            rates: dict[str, list[float]] = {"off": [], "ngram": []}
            steps: list[float] = []
            params = [SamplingParams(max_tokens=options.tokens, temperature=0.0)] * num_streams
            for number in range(options.rounds + 1):
                chats = [prompts.next() for _ in range(num_streams)]
                ids = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
                given = []
                for name, engine in engines.items():
                    steps_before, began = num_steps[name], time.perf_counter()
                    given.append(answers(engine, ids, params))
                    if number:  # in the first one both warm up
                        rates[name].append(num_streams * options.tokens / (time.perf_counter() - began))
                        if name == "ngram":
                            steps.append(options.tokens / (num_steps["ngram"] - steps_before))
                print(f"{num_streams} streams: {'alike' if given[0] == given[1] else 'NOT ALIKE'}", file=sys.stderr)
            medians = {name: statistics.median(values) for name, values in rates.items()}
            result[f"{num_streams}_streams"] = {
                **{name: round(value, 1) for name, value in medians.items()},
                "gain": round(medians["ngram"] / medians["off"], 2),
                "tokens_per_step": round(statistics.median(steps), 2),
            }
    print(json.dumps(result))


def _count_steps(engine: Engine, name: str, num_steps: Counter[str]) -> None:
    runner: Any = engine.model.runner
    forward = runner.forward

    def counted(rows: list[Row]) -> Any:
        num_steps[name] += 1
        return forward(rows)

    runner.forward = counted


if __name__ == "__main__":
    main()
