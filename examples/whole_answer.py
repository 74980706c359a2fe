"""Ask, and have the answer when it is whole: `python examples/whole_answer.py [URL]`."""

import sys

sys.path.append(".")  # for worker/client.py; or copy that file beside your own, and import from `client`

from worker.client import Client

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"

with Client(url) as client:
    question = {"role": "user", "content": "What is the capital of France?"}
    answer = client.generate(messages=[question], temperature=0)  # raises, rather than return half of one
    print(answer.text)
    print(f"[{answer.stop_reason}: {answer.usage.prompt_tokens} + {answer.usage.completion_tokens} tokens]")
