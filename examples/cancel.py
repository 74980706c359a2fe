"""Stop what is not needed any more: `python examples/cancel.py [URL]`."""

import sys
from contextlib import closing

sys.path.append(".")  # for worker/client.py; or copy that file beside your own, and import from `client`

from worker.client import Client, End, Started, Token

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
story = {"role": "user", "content": "Tell me a story about the sea."}

with Client(url) as client:
    # By leaving: the end of the block closes the generator, which cancels the job.
    with closing(client.run(messages=[story], max_tokens=900, ignore_eos=True)) as events:
        text = ""
        for event in events:
            if isinstance(event, Started):
                job_id = event.job_id
            if isinstance(event, Token):
                text += event.text
            if len(text) > 40:
                break
    *_, last = client.events(job_id)  # what has been written can still be read, and how it ended
    print(f"{text!r}: {last.stop_reason if isinstance(last, End) else last}")

    # By name, from wherever the job is known. Who reads it is told.
    job_id = client.submit(messages=[story], max_tokens=900, ignore_eos=True)
    for event in client.events(job_id):
        if isinstance(event, Token) and event.index >= 10:
            client.cancel(job_id)  # twice does no harm
        if isinstance(event, End):
            print(f"{event.tokens_out} tokens: {event.stop_reason}")
