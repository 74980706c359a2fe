"""gunicorn's threaded worker with two traps mended.

Source: gunicorn 27.0.1, `ThreadWorker.finish_request` and `util.close_graceful`: when a connection ends, the loop that
accepts connections and sends the heartbeat waits up to 2 s for the client to close its side. A dozen clients that keep
their sockets open hold it up for longer than `timeout`, and the arbiter kills the worker with every stream in it.
Here the pool thread that served the connection does the waiting. And a worker that leaves stops accepting but keeps its
listener open, so that new clients hang in the backlog until it exits; here they are refused at once.
tests/test_process.py shows both.
"""

from typing import Any

from gunicorn import util
from gunicorn.workers.gthread import TConn, ThreadWorker

from worker.web.draining import DrainingWorker

# Enough for a client to read the last bytes before the reset that a close with unread input would send.
LINGER_S = 1.0


class EndstopThreadWorker(DrainingWorker, ThreadWorker):  # type: ignore[misc]
    """A thread per connection. Lingers on a closing one in the pool, never on the accept loop."""

    def handle(self, conn: TConn) -> Any:
        """Serve one request. Falsy when the connection is to be closed."""
        keep = super().handle(conn)
        if not keep:
            util.close_graceful(conn.sock, timeout=LINGER_S)
            conn.close = lambda graceful=False: util.close(conn.sock)
        return keep

    def set_accept_enabled(self, enabled: bool) -> None:
        """Start or stop accepting connections."""
        super().set_accept_enabled(enabled)
        if not (enabled or self.alive):
            for listener in self.sockets:
                listener.close()
