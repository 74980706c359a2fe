"""A network between a client and a server that a test can cut."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.servers import ANSWER_S

PIECE_BYTES = 65536


class CutProxy:
    """Passes bytes on, both ways, over connections that a test may cut.

    Attributes:
        requests: What clients have sent, one entry for each piece.
        is_down: New connections are closed at once.
        is_silent: What the server sends is lost; connections stay.
        cuts: How many bytes of the server's the next connections pass on before they are cut, one number for each.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[bytes] = []
        self.is_down = False
        self.is_silent = False
        self.cuts: list[int] = []
        self._sockets: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Cut every connection that there is."""
        for sock in tuple(self._sockets):
            self._end(sock)

    def close(self) -> None:
        """Cut all and end the threads."""
        self.is_down = True
        self._end(self._listener)
        self.cut()
        for thread in self._threads:
            thread.join(ANSWER_S)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.is_down:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._server_port))
            self._sockets |= {client, server}
            num_bytes = self.cuts.pop(0) if self.cuts else None
            for one, other, is_up in ((client, server, True), (server, client, False)):
                thread = threading.Thread(target=self._pass_on, args=(one, other, is_up, num_bytes), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_up: bool, num_bytes: int | None) -> None:
        try:
            while data := source.recv(PIECE_BYTES):
                if is_up:
                    self.requests.append(data)
                elif self.is_silent:
                    continue
                elif num_bytes is not None:
                    target.sendall(data[:num_bytes])
                    num_bytes -= len(data)
                    if num_bytes <= 0:
                        break
                    continue
                target.sendall(data)
        except OSError:
            pass
        self._end(source)
        self._end(target)

    def _end(self, sock: socket.socket) -> None:
        self._sockets.discard(sock)
        try:
            sock.shutdown(socket.SHUT_RDWR)  # wakes whoever waits at it, which closing it does not
        except OSError:
            pass
        sock.close()


@contextmanager
def cut_proxy(port: int) -> Iterator[CutProxy]:
    """A proxy in front of a local port; everything is ended behind the test."""
    proxy = CutProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
