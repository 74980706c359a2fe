"""gunicorn's threaded worker with its traps mended.

Source: gunicorn 27.0.1, `gunicorn.workers.gthread`.

- `finish_request` and `util.close_graceful`: when a connection ends, the loop that accepts connections and sends the
  heartbeat waits up to 2 s for the client to close its side. A dozen clients that keep their sockets open hold it up
  for longer than `timeout`, and the arbiter kills the worker with every stream in it. Here the pool thread that served
  the connection does the waiting.
- A connection gets a thread before it has sent a byte, and keeps it while its head and its body trickle in. A crowd of
  slow clients holds the whole pool. Here the loop waits for the head and for bodies of ordinary size, with a deadline
  for each, and a thread is given to a request that is there. Larger bodies, those in chunks and those that wait for a
  `100 Continue` are read by a thread, a few at a time; nor do more than a few watch the model load.
- A full pool leaves nobody to say that it is full. Here what is short and must not wait has threads of its own: probes,
  HEAD, and DELETE, which frees what the others wait for.
- A process without a free descriptor cannot accept, and gunicorn's worker dies of it with every stream in it. Here it
  accepts nothing for a moment.
- A worker that leaves stops accepting but keeps its listener open: new clients hang in the backlog until it exits. Here
  it closes its own; they are refused, or wait for the next worker where the arbiter keeps the door open for one.
- The handler of SIGQUIT shuts the pool down, which takes the pool's lock. The thread that it interrupts may be the one
  that holds it, in `submit`, and then waits for itself until the arbiter kills it.

tests/test_process.py, tests/web/test_patience.py and tests/web/test_gthread_worker.py show each.
"""

import errno
import logging
import selectors
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn import util
from gunicorn.http2 import negotiation
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import TConn, ThreadWorker

from worker.errors import SHUTTING_DOWN, BodyTimeout, NotReady, Overloaded, RequestError
from worker.web.draining import LINGER_S, DrainingWorker
from worker.web.early_answers import encode_refusal
from worker.web.head import Head, parse_head
from worker.web.patience import Places, limit_reads, unlimit_reads, when_read

logger = logging.getLogger("endstop")

# A browser may open a connection some time before it has a request.
FIRST_BYTE_S = 5.0
HEAD_S = 5.0
# Longer than gunicorn's limit for the request line and than nearly all headers. A thread has to refuse the rest.
MAX_HEAD_BYTES = 64 * 1024
# Nearly every prompt. With the default number of connections the loop holds 64 MB at most.
MAX_LOOP_BODY_BYTES = 64 * 1024
RECEIVE_BYTES = 64 * 1024
# How often the loop looks for connections that are overdue: there may be a thousand of them.
LOOK_S = 0.25

NUM_PROBE_THREADS = 4
PROBES = (b"/health", b"/ready", b"/v1/ready", b"/metrics")
# Of the 16 threads that the pool has beyond those for streams (gunicorn.conf.py).
MAX_UPLOADS = 8
MAX_LOADING_WATCHERS = 4

# How long nothing is accepted after there was no descriptor left for it, and how often the log is told.
PAUSE_S = 0.5
SHORTAGE_LOG_S = 60.0
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def no_place() -> None:
    """How a request leaves the place that it has not taken."""


class Connection(TConn):  # type: ignore[misc]
    """A connection that the loop reads from until a request is there.

    Attributes:
        received: What a thread has not been given yet.
        head: Of the request that is being received, once it is whole.
        leave: Leaves the place that its request has taken.
        is_refused: It has been answered, and what still comes is thrown away.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.received = bytearray()
        self.head: Head | None = None
        self.leave: Callable[[], None] = no_place
        self.is_refused = False

    def init(self) -> None:
        """On a pool thread, before each head is read."""
        super().init()
        if not self.is_http2:
            self.parser.unreader.unread(bytes(self.received))
            self.received.clear()
            limit_reads(self.parser.unreader, self.sock, HEAD_S)


class EndstopThreadWorker(DrainingWorker, ThreadWorker):  # type: ignore[misc]
    """A thread per request in progress."""

    def init_process(self) -> None:
        """In the new process. Does not return."""
        self.probe_pool = ThreadPoolExecutor(NUM_PROBE_THREADS)
        # Probes have to get in, whatever comes: half of the connections are not for bodies that are on their way.
        self.bodies = Places(self.worker_connections // 2)
        self.uploads = Places(MAX_UPLOADS)
        self.loading_watchers = Places(MAX_LOADING_WATCHERS)
        self.arriving: set[Connection] = set()
        self.look_at = self.accept_at = self.log_shortage_at = 0.0
        super().init_process()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGQUIT: end the streams and leave. The pool is left as it is: the process goes without a teardown."""
        Worker.handle_quit(self, sig, frame)

    # ---- on the loop

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection and wait for its first byte."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in SHORTAGES:
                self._pause_accepting(error)
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        self._await(Connection(self.cfg, client, address, listener.getsockname()), FIRST_BYTE_S)

    def _pause_accepting(self, error: OSError) -> None:
        """Leave the listener alone for a moment: it stays readable, and the loop would do nothing else."""
        now = time.monotonic()
        self.accept_at = now + PAUSE_S
        self.set_accept_enabled(False)
        if now >= self.log_shortage_at:
            self.log_shortage_at = now + SHORTAGE_LOG_S
            logger.error("a connection has to wait: %s; raise the limit (ulimit -n)", error)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Start or stop accepting connections."""
        if enabled and time.monotonic() < self.accept_at:
            return
        super().set_accept_enabled(enabled)
        if not (enabled or self.alive):
            for listener in self.sockets:
                listener.close()

    def enqueue_req(self, conn: Connection) -> None:
        """A connection has something to say, or has said it behind its last request."""
        if conn.parser is not None and not conn.is_http2:
            conn.received += conn.parser.unreader.take_buffered()
        self._await(conn, HEAD_S)
        self._look_at(conn)

    def _await(self, conn: Connection, limit_s: float) -> None:
        # A timeout that is left from its last answer would have Python wait in `recv`, whatever the flags say.
        conn.sock.setblocking(False)
        conn.leave = no_place  # that of its last request has been left
        conn.timeout = time.monotonic() + limit_s
        self.arriving.add(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._receive, conn))

    def _receive(self, conn: Connection, sock: socket.socket) -> None:
        if not self._reads(conn):
            self._give_thread(conn, self.tpool)
            return
        try:
            data = sock.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if conn.is_refused:
            if not data:
                self._drop(conn)
            return
        if not data:  # with half a body a thread can still say so to a client that only sends no more
            if conn.head is None:
                self._drop(conn)
            else:
                self._give_thread(conn, self.tpool)
            return
        if not conn.received:
            conn.timeout = time.monotonic() + HEAD_S
        conn.received += data
        self._look_at(conn)

    def _reads(self, conn: Connection) -> bool:
        """Whether what the connection sends can be read here: not behind TLS, nor what may be HTTP/2."""
        return not (self.cfg.is_ssl or conn.is_http2 or negotiation.prior_knowledge_allowed(self.cfg, conn.client))

    def _look_at(self, conn: Connection) -> None:
        """Give the connection a thread if its request is there, or if only a thread can wait for it."""
        if conn.head is None:
            conn.head = parse_head(conn.received)
            if conn.head is None:
                if len(conn.received) > MAX_HEAD_BYTES:
                    self._give_thread(conn, self.tpool)
                return
            conn.timeout = time.monotonic() + self.body_timeout_s
        head = conn.head
        if head.body_bytes is None or head.body_bytes > min(MAX_LOOP_BODY_BYTES, self.max_body_bytes):
            self._give_place(conn, self.uploads, "bodies are being received")
        elif len(conn.received) < head.num_bytes + head.body_bytes:
            self._await_body(conn)
        elif head.path == b"/v1/loading/progress":
            self._give_place(conn, self.loading_watchers, "clients watch the model load")
        elif head.method in (b"DELETE", b"HEAD") or (head.method == b"GET" and head.path in PROBES):
            self._give_thread(conn, self.probe_pool)
        else:
            self._give_thread(conn, self.tpool)

    def _await_body(self, conn: Connection) -> None:
        if conn.leave is no_place:
            leave = self.bodies.take()
            if leave is None:
                self._refuse(conn, _too_many(self.bodies, "bodies are being received"))
            else:
                conn.leave = leave

    def _give_place(self, conn: Connection, places: Places, what: str) -> None:
        leave = places.take()
        if leave is None:
            self._refuse(conn, _too_many(places, what))
        else:
            self._give_thread(conn, self.tpool, leave)

    def _give_thread(self, conn: Connection, pool: ThreadPoolExecutor, leave: Callable[[], None] = no_place) -> None:
        self._forget(conn)
        self.given_at = time.monotonic()
        conn.leave = leave
        conn.head = None
        conn.data_ready = True
        done: Future[Any] = pool.submit(self.handle, conn)
        done.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))

    def _refuse(self, conn: Connection, error: RequestError) -> None:
        """Answer from here, and give the client a moment to read it."""
        conn.is_refused = True
        conn.received.clear()
        conn.timeout = time.monotonic() + LINGER_S
        try:
            conn.sock.send(encode_refusal(error))
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it does not read, or is gone

    def _drop(self, conn: Connection) -> None:
        self._forget(conn)
        self.nr_conns -= 1
        conn.close()

    def _forget(self, conn: Connection) -> None:
        conn.leave()
        self.arriving.discard(conn)
        self.poller.unregister(conn.sock)

    def murder_pending(self) -> None:
        """End those who have been waited for long enough."""
        now = time.monotonic()
        if now < self.look_at:
            return
        self.look_at = now + LOOK_S
        for conn in [conn for conn in self.arriving if conn.timeout <= now]:
            if conn.head is None or conn.is_refused:
                self._drop(conn)
            elif not self.alive:
                self._refuse(conn, NotReady("DRAINING", SHUTTING_DOWN, 2))
            else:
                message = f"the body did not come within {self.body_timeout_s:g} s; send it faster"
                self._refuse(conn, BodyTimeout(message))

    def _cap_keepalive(self, deadline: float) -> None:
        """The worker leaves: connections without a whole request are idle ones too."""
        super()._cap_keepalive(deadline)
        for conn in self.arriving:
            conn.timeout = min(conn.timeout, deadline)

    # ---- on a pool thread

    def handle(self, conn: Connection) -> Any:
        """Serve one request. Falsy when the connection is to be closed."""
        try:
            keep = super().handle(conn)
            if not keep:
                util.close_graceful(conn.sock, timeout=LINGER_S)
                conn.close = lambda graceful=False: util.close(conn.sock)
            return keep
        finally:
            conn.leave()

    def handle_request(self, req: Any, conn: Connection) -> Any:
        """Serve one request whose head is there."""
        unlimit_reads(conn.parser.unreader)
        conn.sock.settimeout(None)
        when_read(conn.parser.unreader, conn.leave)  # who watches the model load sends none
        return super().handle_request(req, conn)


def _too_many(places: Places, what: str) -> Overloaded:
    return Overloaded(f"{places.limit} {what}, the limit; try again later", 1)
