"""gunicorn's gevent worker, leaving as `worker.web.draining` says."""

from typing import Any

from gunicorn import util
from gunicorn.workers.ggevent import GeventWorker

from worker.errors import Overloaded
from worker.web.draining import LINGER_S, DrainingWorker
from worker.web.early_answers import encode_refusal
from worker.web.patience import Places, when_read


class EndstopGeventWorker(DrainingWorker, GeventWorker):  # type: ignore[misc]
    """A greenlet per connection, and half of the connections for bodies that are still on their way.

    A crowd of slow ones would else take every connection, for as long as a body may take, and probes could not get in.
    Heads are no such danger: gunicorn gives them `keepalive` seconds.
    """

    def init_process(self) -> None:
        """In the new process. Does not return."""
        self.uploads = Places(self.worker_connections // 2)
        super().init_process()

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        """Serve one request whose head is there."""
        if not _has_body(req):
            return super().handle_request(listener_name, req, sock, addr)
        leave = self.uploads.take()
        if leave is None:
            sock.settimeout(LINGER_S)
            limit = f"{self.uploads.limit} bodies are being received, the limit; try again later"
            sock.sendall(encode_refusal(Overloaded(limit, 1)))
            util.close_graceful(sock, timeout=LINGER_S)
            raise StopIteration
        when_read(req.unreader, leave)
        try:
            return super().handle_request(listener_name, req, sock, addr)
        finally:
            leave()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what gunicorn refuses by itself, and wait until it has been read."""
        super().handle_error(req, client, addr, exc)
        util.close_graceful(client, timeout=LINGER_S)


def _has_body(req: Any) -> bool:
    return any(
        name == "TRANSFER-ENCODING" or (name == "CONTENT-LENGTH" and value.strip() != "0")
        for name, value in req.headers
    )
