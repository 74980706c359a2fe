"""Progress in words, on a channel of its own that is merged with the tokens.

The narrator travels with its sequence and is closed with it. Nothing depends on that: `merge` ends with the tokens
even if a narrator is never closed. Any thread.
"""

from worker.events import Event, Narration
from worker.streams.channel import ChannelBroken, ChannelClosed, SendChannel


class Narrator:
    """Says what happens to one request. Silent once its listener is gone."""

    def __init__(self, job_id: str, sender: SendChannel[Event, None]) -> None:
        self._job_id = job_id
        self._sender = sender

    def say(self, actor: str, action: str, target: str, human: str) -> None:
        """Send one sentence. Never blocks and never raises: narration must not be able to end a request."""
        try:
            self._sender.send(Narration(actor, action, target, human, self._job_id))
        except (ChannelClosed, ChannelBroken):
            pass  # nobody listens, and nothing is lost but words

    def close(self) -> None:
        """No more words. Idempotent."""
        self._sender.close(None)
