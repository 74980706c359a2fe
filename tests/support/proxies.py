"""The proxies of deploy/ in front of a local port, with the files that are shipped, but for their addresses."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.engines import wait_until
from tests.support.servers import Server, free_port
from worker.settings import ROOT

PROXIES = ("nginx", "caddy")
UPSTREAM = "127.0.0.1:8000"


def replaced(text: str, **places: str) -> str:
    """A shipped file with other addresses in it, each of which it has once."""
    for old, new in places.items():
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    return text


def nginx_conf(folder: Path, server: str) -> str:
    """What an /etc/nginx/nginx.conf does for a file of conf.d, with everything that it writes in a folder."""
    places = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    return (
        f"{user}daemon off;\nworker_processes 1;\npid {folder}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
        # What others do with streams: compress them, and not believe the server that says how they are to be sent.
        "http {\naccess_log off;\ngzip on;\ngzip_types text/event-stream;\nproxy_ignore_headers X-Accel-Buffering;\n"
        f"{places}{server}}}\n"
    )


def _nginx(folder: Path, port: int, upstream: str) -> list[str]:
    lines = (ROOT / "deploy" / "nginx.conf").read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if not line.strip().startswith("ssl_certificate"))
    text = replaced(text, **{"listen 443 ssl;": f"listen 127.0.0.1:{port};", UPSTREAM: "two_of_them"})
    # Two, as somebody who has two servers would write it: with one there is nobody to ask again.
    text = f"upstream two_of_them {{ server {upstream}; server {upstream}; }}\n{text}"
    (folder / "nginx.conf").write_text(nginx_conf(folder, text))
    return ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def _caddy(folder: Path, port: int, upstream: str) -> list[str]:
    text = (ROOT / "deploy" / "Caddyfile").read_text()
    text = replaced(text, **{"endstop.example {": f"http://:{port} {{", UPSTREAM: upstream})
    (folder / "Caddyfile").write_text("{\n\tadmin off\n\tdefault_bind 127.0.0.1\n}\n" + text)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


_STARTS: dict[str, Callable[[Path, int, str], list[str]]] = {"nginx": _nginx, "caddy": _caddy}


@contextmanager
def running_proxy(folder: Path, name: str, upstream_port: int) -> Iterator[Server]:
    """A proxy that asks a local port, as the server that it stands for; gone behind the block."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    port = free_port()
    folder = folder / f"{name}-{port}"
    folder.mkdir()
    log = folder / "log"
    command = _STARTS[name](folder, port, f"127.0.0.1:{upstream_port}")
    with log.open("wb") as output:
        homes = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        process = subprocess.Popen(command, env=os.environ | homes, stdout=output, stderr=subprocess.STDOUT)
    proxy = Server(process, port, log)
    try:
        wait_until(lambda: _is_open(port) or process.poll() is not None)
        assert process.poll() is None, proxy.log()
        yield proxy
    finally:
        process.terminate()
        process.wait(10)


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
