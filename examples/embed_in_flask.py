"""Tokens in the routes of a Flask app that you have: `python examples/embed_in_flask.py [URL]`.

    curl -N http://127.0.0.1:5000/ask -d question='What is the capital of France?'

Endstop stays a process of its own: it may load, drain and be replaced without your app, and your app may have as many
workers as it likes. Any server that sends what a generator yields will do: `gunicorn --threads 16 embed_in_flask:app`.
"""

import json
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import chain

from flask import Flask, Response, request

sys.path.append(".")  # for worker/client.py; or copy that file beside your own, and import from `client`

from worker.client import Client, End, EndstopError, Event, RequestRefused, Token

MODEL_URL = os.environ.get("MODEL_URL", "http://127.0.0.1:8000")
app = Flask(__name__)


@app.get("/")
def home() -> str:
    return "what this app did before"


@app.post("/ask")
def ask() -> Response:
    client = Client(MODEL_URL)  # one for each request: a requests.Session is not to be shared by threads
    question = {"role": "user", "content": request.form["question"]}
    events = client.stream(messages=[question], max_tokens=500, temperature=0)
    try:
        first = next(events)  # nothing has been sent yet, so what goes wrong can still be a status
    except EndstopError as error:
        return Response(f"{error}\n", error.status if isinstance(error, RequestRefused) else 502)
    return Response(browser_events(first, events), mimetype="text/event-stream", headers={"X-Accel-Buffering": "no"})


def browser_events(first: Event, events: Generator[Event, None, None]) -> Iterator[str]:
    """Server-Sent Events for your page: texts, then exactly one `end` or `failed`.

    When the browser leaves, your server closes this generator, which closes the stream, by which Endstop stops.
    """
    with closing(events):
        try:
            for event in chain([first], events):
                if isinstance(event, Token):
                    yield f"data: {json.dumps(event.text)}\n\n"
                elif isinstance(event, End):
                    yield f"event: end\ndata: {json.dumps(event.stop_reason)}\n\n"
        except EndstopError as error:
            yield f"event: failed\ndata: {json.dumps(str(error))}\n\n"


if __name__ == "__main__":
    MODEL_URL = sys.argv[1] if len(sys.argv) > 1 else MODEL_URL
    app.run(port=int(os.environ.get("PORT", "5000")), threaded=True)
