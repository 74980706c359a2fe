"""What gunicorn imports where only its settings are looked at."""

from typing import Any


def app(environ: Any, start_response: Any) -> Any:
    raise NotImplementedError
