"""`python -m bench.quantization`: what int8 weights cost the embedded model.

Held-out questions of its examination: perplexity of the right answers, how many the greedy answer gets right, and how
many greedy answers are those of the float weights, to the letter. One JSON line last. Minutes.
"""

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.questions import some_questions
from models.training.evaluate import Examination
from worker.engine.linear import quantize, use_kernels
from worker.settings import EMBEDDED_MODEL

MAX_NEW_TOKENS = 112
BATCH_SIZE = 32


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.quantization", description=__doc__)
    parser.add_argument("--questions", type=int, default=500)
    options = parser.parse_args()
    asked = some_questions(options.questions)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL, padding_side="left")
    auto: Any = AutoModelForCausalLM
    answers: dict[str, list[str]] = {}
    result: dict[str, Any] = {"bench": "quantization", "questions": len(asked)}
    for weights in ("float32", "int8"):
        model = auto.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32).eval()
        if weights == "int8":
            quantize(model, is_exact=False)
        use_kernels(model, is_exact=False)
        answers[weights] = _answers(model, tokenizer, asked)
        num_right = sum(got == one.expected for got, one in zip(answers[weights], asked, strict=True))
        result[weights] = {
            "perplexity": round(_perplexity(model, tokenizer, asked), 4),
            "right": round(num_right / len(asked), 4),
        }
    num_alike = sum(a == b for a, b in zip(*answers.values(), strict=True))
    print(json.dumps(result | {"answers_alike": round(num_alike / len(asked), 4)}))


def _prompt(tokenizer: Any, one: Examination) -> str:
    system = [{"role": "system", "content": one.system}] if one.system else []
    chat = [*system, {"role": "user", "content": one.questions[0]}]
    prompt: str = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return prompt


@torch.inference_mode()
def _perplexity(model: Any, tokenizer: Any, asked: Sequence[Examination]) -> float:
    total, count = 0.0, 0
    for one in asked:
        prompt = tokenizer.encode(_prompt(tokenizer, one), add_special_tokens=False)
        answer = tokenizer.encode(one.expected, add_special_tokens=False)
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
        count += len(answer)
    return math.exp(total / count)


@torch.inference_mode()
def _answers(model: Any, tokenizer: Any, asked: Sequence[Examination]) -> list[str]:
    found: list[str] = []
    for start in range(0, len(asked), BATCH_SIZE):
        prompts = [_prompt(tokenizer, one) for one in asked[start : start + BATCH_SIZE]]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        found += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


if __name__ == "__main__":
    main()
