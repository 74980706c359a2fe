"""A model hub on this machine: one repository, made of a folder's files, as far as the hub's client asks."""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.http_server import HTTPServer, QuietHandler

CHUNK_BYTES = 65536
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def fake_hub(
    repository: str, folder: Path, *, bytes_per_s: float = math.inf, is_gated: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """Serve `folder` as `repository`. Yields the endpoint and the paths that were asked for.

    Args:
        bytes_per_s: How fast files come.
        is_gated: Files are only for those with a token.
    """
    asked: list[str] = []

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            names = sorted(file.name for file in folder.iterdir())
            if is_gated and "/resolve/" in path and not self.headers.get("Authorization"):
                self._answer(401, b"", {"X-Error-Code": "GatedRepo"})
                return
            if path.startswith(f"/api/models/{repository}/tree/"):
                self._answer_json([self._entry(name) for name in names])
            elif path in (f"/api/models/{repository}", f"/api/models/{repository}/revision/main"):
                siblings = [{"rfilename": name} for name in names]
                self._answer_json({"id": repository, "sha": COMMIT, "private": False, "siblings": siblings})
            elif path.startswith(f"/{repository}/resolve/") and path.rsplit("/", 1)[1] in names:
                data = (folder / path.rsplit("/", 1)[1]).read_bytes()
                self._answer(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})
            else:
                self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def _entry(self, name: str) -> dict[str, Any]:
            data = (folder / name).read_bytes()
            return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

        def _answer_json(self, value: Any) -> None:
            self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            with contextlib.suppress(ConnectionError):  # a client may be killed
                for begin in range(0, len(data), CHUNK_BYTES):
                    self.wfile.write(data[begin : begin + CHUNK_BYTES])
                    time.sleep(CHUNK_BYTES / bytes_per_s)

    with HTTPServer(Handler) as server:
        yield server.url, asked
