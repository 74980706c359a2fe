"""The primitives of the operating system, whatever gevent has put in their place.

gunicorn's gevent worker patches `threading`, `queue`, `time` and `select`: a patched Thread is a greenlet, and a
patched lock shared between a real thread and yielding greenlets hangs for good (gevent#2013). Code that runs on
the generation thread, or that shares a lock with it, takes its primitives from here.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class NativeLock(Protocol):
    """What `_thread.allocate_lock()` and `_thread.RLock()` return."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> bool: ...
    def __exit__(self, *args: object) -> None: ...


def _original(module: str, name: str) -> Any:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    return getattr(importlib.import_module(module), name)


def is_gevent_patched() -> bool:
    """Whether the threads of this process are greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def new_lock() -> NativeLock:
    """A real lock. Hold it for a few lines that neither block nor yield: greenlets share its owner thread."""
    lock: NativeLock = _original("_thread", "allocate_lock")()
    return lock


def new_reentrant_lock() -> NativeLock:
    """A real lock that its thread may take again.

    For code that a finalizer may enter: the garbage collector runs at any allocation, also inside the lock, and
    a `__del__` that takes the same plain lock would wait for its own thread.
    """
    lock: NativeLock = _original("_thread", "RLock")()
    return lock


def start_thread(target: Callable[[], None]) -> None:
    """Start a real OS thread, also under gevent. It is not joined by the interpreter: give it its own ending."""
    _original("_thread", "start_new_thread")(target, ())


def native_epoll() -> Any:
    """`select.epoll()`, which gevent removes from the `select` module."""
    return _original("select", "epoll")()


def native_poll() -> Any:
    """`select.poll()`, which gevent replaces with one that switches to the hub."""
    return _original("select", "poll")()


def native_sleep(seconds: float) -> None:
    """Sleep in a real thread. gevent's `time.sleep` would look for a hub."""
    _original("time", "sleep")(seconds)


def native_spawn(arguments: list[str], environment: Mapping[str, str], stdout: int, stdin: int | None = None) -> int:
    """Start a program with its output in a descriptor. gevent's `os.posix_spawn` and `subprocess` need a hub.

    Args:
        stdin: What it reads; None: what this process reads.

    Returns:
        The process id, for `native_waitpid`.
    """
    actions = [(os.POSIX_SPAWN_DUP2, stdout, 1)]
    if stdin is not None:
        actions.append((os.POSIX_SPAWN_DUP2, stdin, 0))
    pid: int = _original("os", "posix_spawn")(arguments[0], arguments, environment, file_actions=actions)
    return pid


def native_waitpid(pid: int, options: int) -> tuple[int, int]:
    """`os.waitpid`, which gevent replaces with one that watches through the hub."""
    done: tuple[int, int] = _original("os", "waitpid")(pid, options)
    return done
