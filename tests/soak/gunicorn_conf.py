"""The product's own configuration, with smaller send buffers: no answer of the soak is long enough to fill the others,
and a client that does not read would never be noticed."""

import runpy
import socket
from typing import Any

from worker.settings import ROOT

SEND_BUFFER_BYTES = 8192

_product = runpy.run_path(str(ROOT / "gunicorn.conf.py"))
globals().update({name: value for name, value in _product.items() if not name.startswith("_")})


def post_fork(server: Any, worker: Any) -> None:
    _product["post_fork"](server, worker)
    for listener in worker.sockets:  # accepted sockets inherit it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
