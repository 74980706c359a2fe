"""gunicorn's threaded worker with its traps mended.

Source: gunicorn 27.0.1, `gunicorn.workers.gthread`.

- `finish_request` and `util.close_graceful`: when a connection ends, the loop that accepts connections and sends the
  heartbeat waits up to 2 s for the client to close its side. A dozen clients that keep their sockets open hold it up
  for longer than `timeout`, and the arbiter kills the worker with every stream in it. Here the pool thread that served
  the connection does the waiting.
- A connection gets a thread before it has sent a byte, and keeps it while its head trickles in. A crowd of slow clients
  holds the whole pool. Here a thread is given to those who have begun to speak, and a head has to be there in time.
- A full pool leaves nobody to say that it is full. Here probes have threads of their own.
- A worker that leaves stops accepting but keeps its listener open: new clients hang in the backlog until it exits. Here
  it closes its own; they are refused, or wait for the next worker where the arbiter keeps the door open for one.
- The handler of SIGQUIT shuts the pool down, which takes the pool's lock. The thread that it interrupts may be the one
  that holds it, in `submit`, and then waits for itself until the arbiter kills it.

tests/test_process.py, tests/web/test_patience.py and tests/web/test_gthread_worker.py show each.
"""

import errno
import selectors
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn import util
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import TConn, ThreadWorker

from worker.web.draining import DrainingWorker
from worker.web.patience import limit_reads, unlimit_reads

# Enough for a client to read the last bytes before the reset that a close with unread input would send.
LINGER_S = 1.0
# A browser may open a connection some time before it has a request.
FIRST_BYTE_S = 5.0
HEAD_S = 5.0
NUM_PROBE_THREADS = 4
PROBES = (b"GET /health", b"GET /ready", b"GET /v1/ready", b"GET /metrics")


class Connection(TConn):  # type: ignore[misc]
    """A connection whose request line and headers have to come in time."""

    def init(self) -> None:
        """On a pool thread, before each head is read."""
        super().init()
        if not self.is_http2:
            limit_reads(self.parser.unreader, self.sock, HEAD_S)


class EndstopThreadWorker(DrainingWorker, ThreadWorker):  # type: ignore[misc]
    """A thread per request in progress."""

    def init_process(self) -> None:
        """In the new process. Does not return."""
        self.probe_pool = ThreadPoolExecutor(NUM_PROBE_THREADS)
        super().init_process()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGQUIT: end the streams and leave. The pool is left as it is: the process goes without a teardown."""
        Worker.handle_quit(self, sig, frame)

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection and wait for its first byte on the loop, not in a thread."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                return
            raise
        self.nr_conns += 1
        conn = Connection(self.cfg, client, address, listener.getsockname())
        conn.timeout = time.monotonic() + FIRST_BYTE_S
        self.pending_conns.append(conn)
        self.poller.register(client, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def enqueue_req(self, conn: TConn) -> None:
        """Give a thread to a connection that has something to say."""
        pool = self.probe_pool if _is_probe(conn.sock) else self.tpool
        done: Future[Any] = pool.submit(self.handle, conn)
        done.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))

    def handle(self, conn: TConn) -> Any:
        """Serve one request. Falsy when the connection is to be closed."""
        keep = super().handle(conn)
        if not keep:
            util.close_graceful(conn.sock, timeout=LINGER_S)
            conn.close = lambda graceful=False: util.close(conn.sock)
        return keep

    def handle_request(self, req: Any, conn: TConn) -> Any:
        """Serve one request whose head is there."""
        unlimit_reads(conn.parser.unreader)
        conn.sock.settimeout(None)
        return super().handle_request(req, conn)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Start or stop accepting connections."""
        super().set_accept_enabled(enabled)
        if not (enabled or self.alive):
            for listener in self.sockets:
                listener.close()

    def _cap_keepalive(self, deadline: float) -> None:
        """The worker leaves: connections that wait for a first byte are idle ones too."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)


def _is_probe(sock: socket.socket) -> bool:
    # Python waits for a socket that has a timeout, whatever the flags say, and this is the loop that accepts. A
    # connection that comes back with its next request buffered still has the timeout of its last answer.
    sock.setblocking(False)
    try:
        return sock.recv(16, socket.MSG_PEEK | socket.MSG_DONTWAIT).startswith(PROBES)
    except OSError:
        return False  # nothing there yet, or gone
