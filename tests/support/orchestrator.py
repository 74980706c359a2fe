"""What heartbeats are sent to."""

import json
import ssl
from typing import Any

from tests.support.http_server import HTTPServer, QuietHandler


class Orchestrator(HTTPServer):
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

        class Handler(QuietHandler):
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

        super().__init__(Handler, context)
