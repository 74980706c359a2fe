"""Ask again without asking for two answers: `python examples/retry.py [URL]`."""

import sys
import uuid

sys.path.append(".")  # for worker/client.py; or copy that file beside your own, and import from `client`

from worker.client import Client, ConnectionFailed, NotReady, Overloaded, Token

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
question = {"role": "user", "content": "What is the capital of Spain?"}

# The client asks again by itself when the server is full or still loads, or a connection was lost: here up to five
# times, with growing pauses. 0 turns that off.
with Client(url, max_retries=5) as client:
    try:
        print(client.generate(messages=[question], temperature=0).text)
    except (Overloaded, NotReady) as refusal:
        sys.exit(f"not now; come back in {refusal.retry_after_s} s: {refusal}")
    except ConnectionFailed as failure:
        sys.exit(str(failure))

    # A key of your own lasts longer than your process. Whoever sends it again, with the same fields, gets the same job.
    key = f"question-{uuid.uuid4()}"
    jobs = [client.submit(idempotency_key=key, messages=[question], temperature=0) for _ in range(2)]
    print("one job" if jobs[0] == jobs[1] else "two jobs")
    print("".join(event.text for event in client.events(jobs[0]) if isinstance(event, Token)))
