"""Notices that a client has left without waiting for the next write.

One native thread and one epoll per process, for both worker classes. EPOLLRDHUP fires on FIN and on RST, also behind
bytes that a live client has sent early, and nothing is read from the socket. Writing alone notices a leave two
writes late, and never while no token is due. A client that closes its sending half counts as gone: HTTP clients
that still want the answer keep it open.
"""

import select
import sys
from collections.abc import Callable
from typing import Any

from worker.streams.native import native_epoll, native_poll, new_lock, start_thread

_EVENTS = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class DisconnectWatcher:
    """Watches the sockets of open requests."""

    def __init__(self) -> None:
        self._epoll = native_epoll()
        # Guards the map against a descriptor that is closed and used again between an event and its callback.
        self._lock = new_lock()
        self._callbacks: dict[int, Callable[[], None]] = {}
        start_thread(self._run)

    def watch(self, sock: Any, on_gone: Callable[[], None]) -> int:
        """Call `on_gone` once, from the watcher's thread, when the peer leaves. It must not block.

        Returns:
            The descriptor, for `unwatch`.
        """
        fd: int = sock.fileno()
        if fd < 0:
            on_gone()
            return fd
        with self._lock:
            self._callbacks[fd] = on_gone
            try:
                self._epoll.register(fd, _EVENTS | select.EPOLLONESHOT)
            except FileExistsError:
                self._epoll.modify(fd, _EVENTS | select.EPOLLONESHOT)
        return fd

    def unwatch(self, fd: int) -> None:
        """Stop watching. Call it before the server closes the socket: afterwards the number may be another's."""
        with self._lock:
            if self._callbacks.pop(fd, None) is not None:
                try:
                    self._epoll.unregister(fd)
                except OSError:
                    pass  # closed already, which has removed it

    def _run(self) -> None:
        while True:
            try:
                events = self._epoll.poll()
            except InterruptedError:
                continue
            for fd, _ in events:
                self._tell(fd)  # a frame of its own: a local of this one would keep the last reader alive

    def _tell(self, fd: int) -> None:
        callback = self._claim(fd)
        if callback is not None:
            try:
                callback()
            except Exception:  # one callback's bug must not blind the watcher; the log is not ours to take
                sys.excepthook(*sys.exc_info())

    def _claim(self, fd: int) -> Callable[[], None] | None:
        with self._lock:
            if fd not in self._callbacks:
                return None
            poll = native_poll()
            poll.register(fd, _EVENTS)
            if not poll.poll(0):  # an event of the descriptor's former life
                self._epoll.modify(fd, _EVENTS | select.EPOLLONESHOT)
                return None
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass
            return self._callbacks.pop(fd)
