"""Tells an orchestrator, now and then and when its state changes, that this server is there and how it is doing.

Law: never fatal and in nobody's way. A thread or a greenlet of its own, which ends with the process; each POST has a
time limit; what fails is said once in the log, until it changes, and tried again at the next beat.

`urllib` and not `requests`: gevent patches `ssl` after urllib3 has taken its classes from there, and these then call
themselves without an end. `http.client` looks its own up when it connects.
"""

import json
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from worker.errors import one_line
from worker.settings import Settings

logger = logging.getLogger("endstop")

TICK_S = 0.5  # how late a change of state may be told
POST_LIMIT_S = 10.0


def worker_name(settings: Settings) -> str:
    """What this server is called by whoever watches several."""
    return settings.worker_id or f"{socket.gethostname()}:{settings.port}"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A POST that is sent elsewhere would arrive as a GET without a body, and look as if it had been heard."""

    def redirect_request(self, *args: Any) -> None:
        return None


class Heartbeat:
    """Posts what `status` says."""

    def __init__(self, url: str, interval_s: float, status: Callable[[], Mapping[str, Any]]) -> None:
        """Post nothing yet.

        Args:
            url: Where to. Its host alone is logged: the rest may hold a secret.
            interval_s: Between two beats.
            status: The body of the next one; `state` in it is watched.
        """
        self._url = url
        self._host = urlsplit(url).hostname or "?"
        self._interval_s = interval_s
        self._status = status
        self._opener = urllib.request.build_opener(_NoRedirects())
        self._stopped = threading.Event()
        self._trouble = ""

    def start(self) -> None:
        """Begin. The thread does not hold up the end of the process."""
        threading.Thread(target=self.run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Post nothing more."""
        self._stopped.set()

    def run(self) -> None:
        """Post until `stop`."""
        told, beat_at = "", 0.0
        while not self._stopped.is_set():
            try:
                status = self._status()
                now = time.monotonic()
                if status["state"] != told or now - beat_at >= self._interval_s:
                    told, beat_at = status["state"], now
                    self._note(self._post(status))
            except Exception:  # a bug of ours must not end the beats
                logger.exception("heartbeat failed; going on")
            self._stopped.wait(min(TICK_S, self._interval_s))

    def _post(self, status: Mapping[str, Any]) -> str:
        """Post once. Returns what went wrong, or an empty string."""
        body = json.dumps(status).encode("ascii")
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"}, method="POST")
        try:
            with self._opener.open(request, timeout=min(POST_LIMIT_S, self._interval_s)) as answer:
                answer.read(1)
        except urllib.error.HTTPError as error:
            error.close()
            return f"it answered {error.code}"
        except Exception as error:  # what sockets, TLS and somebody else's HTTP may raise
            reason = getattr(error, "reason", None) or error
            return one_line(reason if isinstance(reason, str | BaseException) else str(reason))
        return ""

    def _note(self, trouble: str) -> None:
        """Say what is new."""
        if trouble and trouble != self._trouble:
            logger.warning("no heartbeat to %s: %s; trying again every %g s", self._host, trouble, self._interval_s)
        elif self._trouble and not trouble:
            logger.info("heartbeats to %s arrive again", self._host)
        self._trouble = trouble
