"""The process model. `gunicorn -c gunicorn.conf.py wsgi:app`; docs/design.md says why it is like this."""

import math
import os
import signal
import sys
from typing import Any

# In front of the folder that the server was started in, which may have an app.py of its own.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from worker import process
from worker.errors import SettingsError
from worker.observe.log import is_news, speak_json

# Asked before gunicorn has its own handler. On a reload, which executes this file again, nobody looks at it.
is_immune_to_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
if process.settings is None:  # else it is a reload, and the arbiter has read them before it began (soften_stop)
    try:
        process.settings = process.read(os.environ)
    except SettingsError as error:
        sys.exit(f"endstop: {error.as_lines()}")
settings = process.settings
process.hide_keys(os.environ)
if settings.log_format == "json":
    speak_json()

host_in_url = f"[{settings.host}]" if ":" in settings.host else settings.host
bind = f"{host_in_url}:{settings.port}"
workers = NUM_WORKERS = 1  # the model is loaded once per process
preload_app = False  # threads do not survive a fork
worker_class = our_worker_class = {
    "gevent": "worker.web.gevent_worker.EndstopGeventWorker",
    "gthread": "worker.web.gthread_worker.EndstopThreadWorker",
}[settings.worker_class]
threads = num_threads = settings.max_streams + 16  # gthread: a thread per open stream, and some for /health
wanted_connections = max(1000, 2 * settings.max_streams)
worker_connections = process.connections_within_limit(wanted_connections)
if worker_connections < 1:
    sys.exit("endstop: so few files may be open (ulimit -n) that there is no room for a connection: raise the limit")
if worker_connections < wanted_connections:
    print(
        f"endstop: worker_connections={worker_connections} instead of {wanted_connections}: no more files may be open; "
        "raise the limit (ulimit -n)",
        file=sys.stderr,
        flush=True,
    )
timeout = 60  # of the worker's heartbeat; not of a request
# Behind the drain: a second until the worker notices, two for idle connections, some for a busy machine. With the
# default drain it stays below the 30 s that platforms give between SIGTERM and SIGKILL.
graceful_timeout = math.ceil(settings.drain_s) + process.LEAVE_S
keepalive = 2  # an idle connection holds up the end of a drain for this long under gevent
loglevel = settings.log_level
accesslog = None  # one line per request comes from the engine, with its outcome
control_socket_disable = True  # it would start a thread in the arbiter, before the forks
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "text": {"format": "%(asctime)s %(levelname)-7s %(name)s %(message)s"},
        "json": {"()": "worker.observe.log.JsonFormatter"},
    },
    "filters": {"news": {"()": lambda: is_news}},
    "handlers": {"stderr": {"class": "worker.observe.log.StderrHandler", "formatter": settings.log_format}},
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {
        "gunicorn.error": {
            "level": "WARNING",
            "handlers": ["stderr"],
            "filters": ["news"],
            "propagate": False,
        },
        "endstop": {"level": settings.log_level.upper(), "handlers": ["stderr"], "propagate": False},
    },
}


def nworkers_changed(server: Any, number: int, before: int | None) -> None:
    """gunicorn's first hook, and the only one ahead of a preload. Options of the command line win over this file."""
    if before is not None:
        return
    cfg, least_s = server.cfg, settings.drain_s + process.LEAVE_S
    wrong = ""
    if number != NUM_WORKERS:
        wrong = f"workers={number}: every worker process would load the model again, and none knows another's jobs"
    elif cfg.preload_app:
        wrong = "preload_app: the engine's threads would not survive the fork"
    elif cfg.worker_class_str != our_worker_class:
        wrong = f"worker_class={cfg.worker_class_str}: streams would not end; set ENDSTOP_WORKER_CLASS"
    elif cfg.threads < num_threads:
        wrong = f"threads={cfg.threads}: {settings.max_streams} streams may be open, and others need some too"
    elif cfg.graceful_timeout < least_s:
        wrong = (
            f"graceful_timeout={cfg.graceful_timeout} leaves no time behind ENDSTOP_DRAIN_S={settings.drain_s:g}; "
            f"streams would be cut: make it at least {least_s:g}"
        )
    if wrong:
        sys.exit(f"endstop: {wrong}; leave the option out (also of GUNICORN_CMD_ARGS)")


def when_ready(server: Any) -> None:
    process.soften_stop(server, is_immune_to_hangup)
    process.say_who_may_ask(settings, [address[0] for address in server.cfg.address if isinstance(address, tuple)])
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host_in_url, host_in_url)
    prefix = os.environ.get("SCRIPT_NAME", "").rstrip("/")  # gunicorn's own variable
    url = f"http://{host}:{settings.port}{prefix}"
    key = "-H 'Authorization: Bearer YOUR_KEY' " if settings.api_keys else ""
    text = (
        f"Endstop serves {settings.model_name} at {url}  try: curl -N {url}/execute {key}-d "
        """'{"messages":[{"role":"user","content":"What is the capital of France?"}]}'"""
    )
    if settings.log_format == "json":  # many platforms read stdout and stderr as one log
        process.logger.info("%s", text)
    else:
        print(text, flush=True)


def post_fork(server: Any, worker: Any) -> None:
    process.prepare(settings, worker.sockets)


def post_worker_init(worker: Any) -> None:
    process.started(worker.wsgi, worker)


def worker_int(worker: Any) -> None:
    if worker.wsgi is not None:
        process.interrupted(worker.wsgi)


def worker_exit(server: Any, worker: Any) -> None:
    if getattr(worker, "wsgi", None) is not None:
        process.leaving(worker.wsgi)
