"""What the operating system says of a server's worker process."""

from pathlib import Path

from tests.support.servers import Server


def workers_of(server: Server) -> list[int]:
    """The worker processes."""
    pid = server.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def num_threads(server: Server) -> int:
    """Threads of its one worker."""
    (worker,) = workers_of(server)
    return len(list(Path(f"/proc/{worker}/task").iterdir()))
