"""What heartbeats are sent to."""

import http.server
import json
import ssl
import threading
from typing import Any


class Orchestrator:
    """A server that notes what it is told.

    Attributes:
        status: What it answers.
        beats: What it was told, parsed.
        heads: Method, path and content type of each.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        """Begin to listen; with TLS if there is a context."""
        self.status, self.location = 204, ""
        self.beats: list[Any] = []
        self.heads: list[tuple[str, str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.heads.append((self.command, self.path, self.headers["Content-Type"]))
                outer.beats.append(json.loads(body))
                self.send_response(outer.status)
                if outer.location:
                    self.send_header("Location", outer.location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                outer.heads.append((self.command, self.path, None))
                self.send_error(404)

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' * (context is not None)}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.01))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
