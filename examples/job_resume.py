"""Lose the connection in the middle, and go on where it broke: `python examples/job_resume.py [URL]`."""

import os
import socket
import sys

sys.path.append(".")  # for worker/client.py; or copy that file beside your own, and import from `client`

from worker.client import Client, Event, Token

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
story = {"role": "user", "content": "Tell me a story about the sea."}


def cut_all_connections() -> None:
    """What a network does to this process now and then; Linux only."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            connection = socket.socket(fileno=os.dup(int(fd)))
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        except OSError:
            pass  # no socket


def show(event: Event) -> bool:
    """Show a token; return whether it was the twentieth."""
    if not isinstance(event, Token):
        return False
    print(event.text, end="", flush=True)
    return event.index < 20 <= event.index + event.num_tokens  # a slow reader gets several in one event


# One process, whose connection breaks: `run` takes the stream up again by itself.
with Client(url) as client:
    for event in client.run(messages=[story], max_tokens=60, seed=7):
        if show(event):
            print("[cut]", end="")
            cut_all_connections()
print()

# One process that goes away, and another that goes on: the job and a place in it are all that they need.
with Client(url) as client:
    job_id = client.submit(messages=[story], max_tokens=60, seed=7)
    for event in client.events(job_id):
        last_event_id = event.id
        if show(event):
            print("[left]", end="")
            break
with Client(url) as client:
    for event in client.events(job_id, last_event_id):
        show(event)
print()
