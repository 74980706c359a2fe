"""What a first attempt would write: Flask, and a thread with `generate` and a `TextIteratorStreamer` per request.

Run by gunicorn as `bench.naive:make_app('MODEL FOLDER')`. It ends no stream that fails; it is here to be measured.
"""

import json
import threading
from collections.abc import Iterator
from typing import Any

import torch
from flask import Flask, Response, request
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer


def make_app(folder: str) -> Flask:
    """The app, with its model loaded."""
    app = Flask(__name__)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/v1/chat/completions")
    def chat() -> Response:
        body = request.get_json()
        inputs = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        num_tokens = body["max_tokens"]
        arguments = {**inputs, "streamer": streamer, "max_new_tokens": num_tokens, "do_sample": False}
        threading.Thread(target=_generate, args=(model, arguments), daemon=True).start()

        def events() -> Iterator[str]:
            for text in streamer:
                yield _event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
            usage = {"completion_tokens": num_tokens}
            yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}], "usage": usage})
            yield "data: [DONE]\n\n"

        return Response(events(), mimetype="text/event-stream")

    return app


def _generate(model: Any, arguments: dict[str, Any]) -> None:
    with torch.inference_mode():
        model.generate(**arguments)


def _event(fields: dict[str, Any]) -> str:
    return f"data: {json.dumps(fields)}\n\n"
