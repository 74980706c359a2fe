"""`python -m bench.company`: how often an answer depends on who else is served at the time.

The embedded model, held-out questions of its examination, drawn with a seed at temperature 1: each alone, and then all
with 16 at once. Counts the answers of which some token differs, for each type, with and without
ENDSTOP_DETERMINISTIC=1. One JSON line last.
"""

import argparse
import json
import sys
from typing import Any

from transformers import AutoTokenizer

from bench.inside import answers, running_engine
from bench.questions import some_questions
from worker.request import SamplingParams
from worker.settings import EMBEDDED_MODEL, Settings

NUM_NEW = 64
NUM_TOGETHER = 16


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.company", description=__doc__)
    parser.add_argument("--questions", type=int, default=400)
    options = parser.parse_args()
    tokenizer: Any = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    prompts: list[Any] = [
        tokenizer.apply_chat_template([{"role": "user", "content": one.questions[0]}], add_generation_prompt=True)[
            "input_ids"
        ]
        for one in some_questions(options.questions)
    ]
    result: dict[str, Any] = {"bench": "company", "answers": len(prompts)}
    for dtype in ("float32", "bfloat16"):
        for deterministic in (0, 1):
            differing = _count_differing(prompts, Settings(dtype=dtype, deterministic=deterministic))
            result[f"{dtype}{', deterministic' if deterministic else ''}"] = differing
            print(f"{dtype} deterministic={deterministic}: {differing} of {len(prompts)} differ", file=sys.stderr)
    print(json.dumps(result))


def _count_differing(prompts: list[list[int]], settings: Settings) -> int:
    params = [SamplingParams(max_tokens=NUM_NEW, temperature=1.0, seed=seed) for seed in range(len(prompts))]
    with running_engine(settings) as engine:
        alone = [answers(engine, [prompt], [chosen])[0] for prompt, chosen in zip(prompts, params, strict=True)]
        together = []
        for start in range(0, len(prompts), NUM_TOGETHER):
            some = slice(start, start + NUM_TOGETHER)
            together += answers(engine, prompts[some], params[some])
    return sum(a != b for a, b in zip(alone, together, strict=True))


if __name__ == "__main__":
    main()
