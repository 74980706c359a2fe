"""What the operating system says of a server's worker process."""

import os
from collections.abc import Iterator
from pathlib import Path

from tests.support.servers import Server


def workers_of(server: Server) -> list[int]:
    """The worker processes."""
    pid = server.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants_of(pid: int) -> list[int]:
    """All that came of a process, whichever of its threads started them."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants_of(child)]
    return found


def is_running(pid: int) -> bool:
    """Whether there is such a process. One that only waits to be reaped is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def num_threads(server: Server) -> int:
    """Threads of its one worker."""
    (worker,) = workers_of(server)
    return len(list(Path(f"/proc/{worker}/task").iterdir()))


def cpu_s(pid: int) -> float:
    """Processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def has_open_door(pid: int, port: int) -> bool:
    """Whether a process holds a socket that listens on this port. False when it is gone."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    doors = {f"socket:[{one[9]}]" for one in sockets if one[3] == "0A" and int(one[1].partition(":")[2], 16) == port}
    return bool(doors & set(_open_files(pid)))


def _open_files(pid: int) -> Iterator[str]:
    try:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                yield os.readlink(fd)
            except FileNotFoundError:
                pass  # closed meanwhile
    except FileNotFoundError:
        pass  # the process is gone
