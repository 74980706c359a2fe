"""`python -m bench.company`: how often an answer depends on who else is served at the time.

The embedded model, held-out questions of its examination, drawn with a seed at temperature 1: each alone, and then all
with 16 at once. Counts the answers of which some token differs, for each type, with and without
ENDSTOP_DETERMINISTIC=1. One JSON line last.
"""

import argparse
import json
import sys
from random import Random
from typing import Any

import torch
from transformers import AutoTokenizer

from models.training.evaluate import examinations
from worker.engine import kernels
from worker.engine.endings import INCOMPLETE
from worker.engine.engine import Engine
from worker.engine.loader import load
from worker.engine.sequence import Deadlines, Sequence
from worker.events import Event, Terminal
from worker.request import SamplingParams
from worker.settings import EMBEDDED_MODEL, Settings
from worker.streams.channel import EndOfChannel, ReceiveChannel, SendChannel, open_channel
from worker.streams.wakeup import ThreadWakeup

NUM_NEW = 64
NUM_TOGETHER = 16
WAIT_S = 60.0
PATIENT = Deadlines(600, 600, 600, 600, 600, 600)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.company", description=__doc__)
    parser.add_argument("--questions", type=int, default=400)
    options = parser.parse_args()
    tokenizer: Any = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    asked = [one for one in examinations() if len(one.questions) == 1]
    prompts: list[Any] = [
        tokenizer.apply_chat_template([{"role": "user", "content": one.questions[0]}], add_generation_prompt=True)[
            "input_ids"
        ]
        for one in Random(0).sample(asked, options.questions)
    ]
    num_threads = torch.get_num_threads()
    result: dict[str, Any] = {"bench": "company", "answers": len(prompts)}
    for dtype in ("float32", "bfloat16"):
        for deterministic in (0, 1):
            torch.set_num_threads(num_threads)
            differing = _count_differing(prompts, Settings(dtype=dtype, deterministic=deterministic))
            result[f"{dtype}{', deterministic' if deterministic else ''}"] = differing
            print(f"{dtype} deterministic={deterministic}: {differing} of {len(prompts)} differ", file=sys.stderr)
    kernels.set_threads(0)
    print(json.dumps(result))


def _count_differing(prompts: list[list[int]], settings: Settings) -> int:
    engine = Engine(settings, ThreadWakeup(), load)
    engine.start()
    while engine.state == "LOADING":
        engine.wait_ended(0.01)
    try:
        alone = [_answers(engine, [prompt], seed)[0] for seed, prompt in enumerate(prompts)]
        together = []
        for start in range(0, len(prompts), NUM_TOGETHER):
            together += _answers(engine, prompts[start : start + NUM_TOGETHER], start)
    finally:
        engine.stop(WAIT_S)
    return sum(a != b for a, b in zip(alone, together, strict=True))


def _answers(engine: Engine, prompts: list[list[int]], first_seed: int) -> list[list[int]]:
    submitted = []
    for seed, prompt in enumerate(prompts, first_seed):
        sender: SendChannel[Event, Terminal]
        receiver: ReceiveChannel[Event, Terminal]
        sender, receiver = open_channel(ThreadWakeup(), INCOMPLETE, None)
        params = SamplingParams(max_tokens=NUM_NEW, temperature=1.0, seed=seed)
        detokenizer = engine.model.tokenizer.new_detokenizer()
        sequence = Sequence(f"{seed}", prompt, params, sender, detokenizer, PATIENT)
        engine.submit(sequence)
        submitted.append((sequence, receiver))
    for _, receiver in submitted:
        try:
            while receiver.receive(WAIT_S):
                pass
        except EndOfChannel:
            continue
    return [sequence.output_ids for sequence, _ in submitted]


if __name__ == "__main__":
    main()
