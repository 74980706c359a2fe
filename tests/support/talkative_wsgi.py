"""The gated app with routes that have Python and its libraries say something on stderr, each in its own way."""

import logging
import sys
import threading
import warnings

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

from tests.support.gated_wsgi import app
from worker.streams.native import start_thread

talk = Blueprint("talk", __name__)


def _fail() -> None:
    raise RuntimeError("canary: nobody catches this")


def _warn() -> None:
    warnings.warn("canary: a warning", UserWarning, stacklevel=1)


def _write() -> None:
    sys.stderr.write("canary: one write\nof two lines\n")
    sys.stderr.write("canary: the beginning ")
    sys.stderr.write("of a line\n")


def _log() -> None:
    """As a library that brings a handler of its own."""
    library = logging.getLogger("some.library")
    library.propagate = False
    library.addHandler(logging.StreamHandler())
    library.warning("canary: a library")


def _fail_in_thread() -> None:
    thread = threading.Thread(target=_fail)
    thread.start()
    thread.join()


@talk.post("/talk")
def say_everything() -> ResponseReturnValue:
    _write()
    _log()
    _warn()
    _fail_in_thread()
    start_thread(_warn)
    return jsonify(ok=True)


@talk.post("/talk/bug")
def bug() -> ResponseReturnValue:
    _fail()
    return jsonify(ok=False)


app.register_blueprint(talk)
