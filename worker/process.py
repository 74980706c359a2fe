"""The life of the serving process: what gunicorn's hooks do. gunicorn.conf.py calls these and nothing else does.

The engine lives in the worker process, made after the fork: threads do not survive one, and OpenMP hangs after one.
"""

import gc
import ipaddress
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

from worker.config import read_settings
from worker.errors import SHUTTING_DOWN, SettingsError
from worker.keys import ApiKeys
from worker.observe.heartbeat import Heartbeat, worker_name
from worker.observe.loading import show_loading
from worker.observe.telemetry import check_telemetry
from worker.settings import Settings
from worker.streams.native import is_gevent_patched, native_sleep

logger = logging.getLogger("endstop")

# gunicorn stops for good, with this exit code, when a worker reports it (`Arbiter.WORKER_BOOT_ERROR`): a model that
# cannot be loaded now cannot be loaded again in a moment.
EXIT_CANNOT_LOAD = 3
EXIT_DIED = 1
# After a fault every stream has its terminal event already; this is for the bytes to leave.
DIED_LINGER_S = 1.0

# Left alone, the kernel takes 4 MB from us before a client that does not read is noticed, for each of them.
SEND_BUFFER_BYTES = 128 * 1024

STREAM_END_S = 1.5
JOIN_S = 2.0
LAST_WORDS_S = 0.5
# For a collector to take what it has not been told yet, of the time that those before have left.
FLUSH_S = 1.0
# From the end of a drain to the end of the process. gunicorn kills what is later.
LEAVE_S = 7


# What the process has open beside its connections: the model's files while it loads, epolls, pipes, libraries. 45 were
# counted when it was idle.
NUM_OTHER_FILES = 100
# A limit that is raised further helps nobody here, and some programs go through all descriptors that there could be.
MAX_FILES = 65536


# What the arbiter has read. Workers take these, also one that replaces another: a file that is being edited, or was
# edited for the next reload, is nothing to them.
settings: Settings | None = None


def read(environ: Mapping[str, str]) -> Settings:
    """The settings that a server can be run with.

    Raises:
        SettingsError: It cannot; names all that is wrong, or what is not installed.
    """
    found = read_settings(environ)
    check_telemetry(found, environ)
    return found


def _can_reload() -> bool:
    """Read the settings for a reload. If they are wrong, everything stays as it is: streams are open."""
    global settings
    try:
        settings = read(os.environ)
    except SettingsError as error:
        logger.error("SIGHUP is not obeyed, all settings stay as they were: %s", error)
        return False
    return True


def connections_within_limit(wanted: int) -> int:
    """How many connections may be open at once, with as many files as the system lets this process open.

    Without a free descriptor no connection can be accepted, and nothing else opened either.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < highest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        soft = highest
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - NUM_OTHER_FILES)


def hide_keys(environ: MutableMapping[str, str]) -> None:
    """Put hashes in the place of API keys, for this process and all that it starts.

    What the process was started with stays readable in /proc for its own user; a file or hashes keep keys out of there.
    """
    if text := environ.get("ENDSTOP_API_KEYS"):
        environ["ENDSTOP_API_KEYS"] = ApiKeys.parse(text).hashed


def say_who_may_ask(settings: Settings, hosts: list[str]) -> None:
    """A line in the log: who has keys, or what it means that nobody has.

    Args:
        settings: Who has keys.
        hosts: What is bound, also by options of the command line.
    """
    if settings.api_keys:
        logger.info("API keys are needed; known: %s", settings.api_keys)
    elif all(_is_loopback(host) for host in hosts):
        logger.warning(
            "no API keys (ENDSTOP_API_KEYS): bound to %s only, for everyone on this machine and nobody else",
            ", ".join(hosts),
        )
    else:
        logger.warning("no API keys (ENDSTOP_API_KEYS): everyone who reaches %s may use this server", ", ".join(hosts))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def soften_stop(arbiter: Any, is_immune_to_hangup: bool = False) -> None:
    """In the arbiter: what stops the server, how, and that workers know what it is.

    SIGINT drains as SIGTERM does, and a second one of either ends the drain. By default SIGINT cuts off whoever is
    being served and a second SIGTERM does nothing. SIGHUP reloads as ever, but not when it says that the terminal is
    gone. SIGTTIN and SIGTTOU would start a second worker, which knows nothing of the first one's jobs.

    Args:
        arbiter: gunicorn's.
        is_immune_to_hangup: Started by nohup or the like: the server is to outlive its terminal.
    """
    stop, kill_worker, has_terminal = arbiter.stop, arbiter.kill_worker, _has_terminal()
    is_told_to_stop = is_stopping = False

    def note_and_stop(graceful: bool = True) -> None:
        nonlocal is_stopping
        is_stopping = True
        stop(graceful)

    def announce_and_kill(pid: int, number: int) -> None:
        # gunicorn says it to an excess worker on every loop, so a second one means nothing to a worker.
        if number == signal.SIGTERM and not is_stopping:
            kill_worker(pid, signal.SIGUSR2)  # see worker.web.draining
        kill_worker(pid, number)

    def on_stop(number: int, frame: Any) -> None:
        nonlocal is_told_to_stop
        # `Arbiter.stop` looks for SIGQUIT while it waits: streams are then ended at once.
        arbiter.SIG_QUEUE.put_nowait(signal.SIGQUIT if is_told_to_stop else number)
        is_told_to_stop = True

    def on_hangup(number: int, frame: Any) -> None:
        # A closed terminal hangs up on the whole group, and so may the shell and `make`: not a second signal to stop.
        if not has_terminal or _has_terminal():
            if _can_reload():
                arbiter.SIG_QUEUE.put_nowait(number)
        elif not (is_told_to_stop or is_immune_to_hangup):
            on_stop(signal.SIGTERM, frame)

    def ignore() -> None:
        logger.warning("SIGTTIN and SIGTTOU are ignored: there is one worker; start another server for more")

    arbiter.stop, arbiter.kill_worker = note_and_stop, announce_and_kill
    arbiter.handle_int = arbiter.handle_term
    arbiter.handle_ttin = arbiter.handle_ttou = ignore
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_stop)
    signal.signal(signal.SIGHUP, on_hangup)


def _has_terminal() -> bool:
    """Whether this process has a terminal that can hang up on it."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def prepare(settings: Settings, listeners: list[Any]) -> None:
    """In the new worker process, before gevent patches anything."""
    # gunicorn installs its own handlers later. Until then this process has the arbiter's, which would take a signal
    # to leave for one to the arbiter and do nothing.
    for number in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, lambda *_: os._exit(0))  # nothing is served yet
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    # gevent warns that ssl was imported before it patches, and its search for locks touches deprecated names of torch.
    # Both are so by design: no TLS is spoken under gevent here (engine/download.py), and locks are to stay real.
    warnings.filterwarnings("ignore", message="Monkey-patching ssl after ssl", category=RuntimeWarning)
    warnings.filterwarnings("ignore", message=".*reduce_op.* is deprecated", category=FutureWarning)
    logger.info("importing torch and transformers")
    # Locks that these libraries make while they are imported are real ones now, which the generation thread may
    # share with greenlets. tests/test_traps.py shows what happens to it otherwise.
    with _kept_for_good():
        import worker.engine.loader  # noqa: F401
    for listener in listeners:  # accepted sockets inherit these on Linux
        # A peer that acknowledges no byte for this long is gone. SO_SNDTIMEO has no effect under gevent. Later than the
        # engine's own limit, so that a reader that is merely stuck is named SLOW_CONSUMER and not a leave.
        timeout_ms = min(int(settings.slow_consumer_s * 2000) + 10_000, 2**31 - 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


@contextmanager
def _kept_for_good() -> Iterator[None]:
    """Have the garbage collector never look at what is made in this block: some 360,000 objects of imported modules.

    A look takes 0.2 s with every thread of the process standing still, probes and streams alike, and finds nothing. Not
    to look while importing either makes the start a quarter shorter, at the price of the megabyte that it would find.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def started(app: Any, worker: Any) -> None:
    """The worker has made its app: connect the engine with the process."""
    engine = app.extensions["endstop"].engine
    settings = app.extensions["endstop"].settings

    def exit_when_dead() -> None:
        """On the watchdog's thread, when every stream has its ending."""
        has_loaded = engine.has_loaded
        # Never less than the housekeeper needs to write why to the log.
        native_sleep(DIED_LINGER_S if has_loaded else max(settings.dead_linger_s, LAST_WORDS_S))
        os._exit(EXIT_DIED if has_loaded else EXIT_CANNOT_LOAD)

    engine.on_dead = exit_when_dead
    if engine.state == "DEAD":  # it died before it could be told what to do then
        threading.Thread(target=exit_when_dead, daemon=True).start()
    engine.should_drain = lambda: worker.is_leaving
    worker.has_drained = lambda elapsed_s: _has_drained(app, elapsed_s)
    worker.is_out_of_time = lambda elapsed_s: _is_out_of_time(settings, elapsed_s)
    worker.body_timeout_s, worker.max_body_bytes = settings.body_timeout_s, settings.max_body_bytes
    if settings.heartbeat_url:
        Heartbeat(settings.heartbeat_url, settings.heartbeat_s, lambda: heartbeat_of(app)).start()
    threading.Thread(target=show_loading, args=(engine,), name="loading", daemon=True).start()
    if is_gevent_patched():
        # Handlers of pure Python hold the GIL against the generation thread; the default of 5 ms is a whole step.
        sys.setswitchinterval(0.0005)


def heartbeat_of(app: Any) -> dict[str, Any]:
    """What an orchestrator is told of this server."""
    shared = app.extensions["endstop"]
    settings, engine = shared.settings, shared.engine
    numbers = engine.numbers()
    # As the probes say it: what the engine has not noticed yet in a long step counts already.
    fault, is_leaving = engine.liveness(), engine.should_drain()
    state = "DEAD" if fault else "DRAINING" if is_leaving else numbers.state
    reason = fault or (SHUTTING_DOWN if is_leaving else engine.reason)
    return {
        "worker_id": worker_name(settings),
        "state": state,
        "reason": reason,
        "model": settings.model_name,
        "device": numbers.device,
        "load": {
            "running": numbers.num_running,
            "waiting": numbers.num_waiting,
            "streams": shared.streams.num_open,
            "max_slots": settings.max_slots,
            "max_streams": settings.max_streams,
            "cache_usage": round(numbers.cache_usage, 4),
            "generated_tokens": engine.tallies.num_generated,
        },
        "uptime_s": round(numbers.uptime_s, 3),
        "pid": os.getpid(),
    }


def _has_drained(app: Any, elapsed_s: float) -> bool:
    """Whether a worker that has been leaving for so long has nothing left to wait for."""
    shared = app.extensions["endstop"]
    if _is_out_of_time(shared.settings, elapsed_s):
        shared.engine.end_now()  # nothing, but for those who wait for a step that does not come back in time
        return True  # and what is open still has a client that does not read
    return bool(shared.engine.num_open == 0 and shared.streams.num_open == 0)


def _is_out_of_time(settings: Settings, elapsed_s: float) -> bool:
    return elapsed_s > settings.drain_s + STREAM_END_S


def interrupted(app: Any) -> None:
    """SIGQUIT: gunicorn exits in 0.1 s, so the streams are ended now."""
    _end_streams(app, STREAM_END_S)


def leaving(app: Any) -> None:
    """The worker's last hook. Does not return.

    The interpreter is not torn down: under a thread inside torch it aborts, a pool thread that waits for a client holds
    it up, and gevent's own shutdown switches to greenlets that are ending too.
    """
    deadline = time.monotonic() + STREAM_END_S + JOIN_S + LAST_WORDS_S
    _end_streams(app, STREAM_END_S)
    shared = app.extensions["endstop"]
    shared.engine.stop(JOIN_S)
    shared.housekeeper.join(LAST_WORDS_S)  # it writes the outcomes of those who have just ended
    shared.telemetry.close(min(FLUSH_S, deadline - time.monotonic()))
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a terminal or a pipe that is gone
            stream.flush()
    os._exit(0)


def _end_streams(app: Any, limit_s: float) -> None:
    shared = app.extensions["endstop"]
    shared.engine.drain(0)
    _wait_for_streams(shared, limit_s / 2)
    shared.engine.end_now()  # those that the generation thread has not come to: it is in a long step
    _wait_for_streams(shared, limit_s / 2)


def _wait_for_streams(shared: Any, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while shared.streams.num_open and time.monotonic() < deadline:
        time.sleep(0.02)  # gevent's under gevent: the greenlets that write the endings run meanwhile
