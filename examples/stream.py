"""Show an answer as it is written: `python examples/stream.py [URL]`."""

import sys

sys.path.append(".")  # for worker/client.py; or copy that file beside your own, and import from `client`

from worker.client import Client, End, GenerationError, Metrics, Token

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
story = {"role": "user", "content": "Tell me a story about the sea."}

with Client(url) as client:
    try:
        for event in client.stream(messages=[story], max_tokens=80, seed=7):
            match event:
                case Token():
                    print(event.text, end="", flush=True)
                case Metrics():
                    print(f"\n[{event.tokens_per_sec:.0f} tokens/s, the first after {event.ttft_ms:.0f} ms]")
                case End():  # the only success; whatever else ends a stream is raised
                    print(f"[{event.stop_reason}: {event.usage.completion_tokens} tokens]")
    except GenerationError as error:  # the server ended it, and says why
        sys.exit(f"\n{error.code}: {error.message}")
