"""One plain transformers `generate` call per line of input. Run by bench/__main__.py."""

import json
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

from worker.settings import EMBEDDED_MODEL


class _FirstToken(BaseStreamer):
    """Notes when the first new token comes. `generate` shows it the prompt first."""

    def __init__(self) -> None:
        self.num_puts = 0
        self.first_at = 0.0

    def put(self, value: torch.Tensor) -> None:
        self.num_puts += 1
        if self.num_puts == 2:
            self.first_at = time.perf_counter()

    def end(self) -> None:
        pass


def main() -> None:
    """Answer each line of input with one measured call."""
    num_tokens = int(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32)
    inputs = tokenizer("To be, or not to be", return_tensors="pt")
    for _ in sys.stdin:
        streamer = _FirstToken()
        began = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=num_tokens,
                do_sample=False,
                streamer=streamer,
            )
        elapsed_s = time.perf_counter() - began
        num_new = output.shape[1] - inputs["input_ids"].shape[1]
        ttft_ms = (streamer.first_at - began) * 1e3
        print(json.dumps({"tokens_per_s": num_new / elapsed_s, "ttft_ms_p50": ttft_ms}), flush=True)


if __name__ == "__main__":
    main()
