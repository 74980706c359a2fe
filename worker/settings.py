"""Every setting, its default and the reason for it. Frozen; pure Python, any thread.

The environment variable of a setting is `ENDSTOP_` and its name in capitals. Two more are read because every
Heroku-style platform sets them: `PORT`, and `WEB_CONCURRENCY`, which must be 1. docs/settings.md lists all, and
`config.py` says where else a setting can stand.
"""

import math
import re
from dataclasses import MISSING, Field, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from worker.keys import ApiKeys, KeyLimits

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED_MODEL = ROOT / "models" / "endstop-tiny"
PREFIX = "ENDSTOP_"


def _setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    pattern: str = "",
    env: str = "",
    is_secret: bool = False,
    is_list: bool = False,
    is_url: bool = False,
) -> Any:
    """A field.

    Args:
        pattern: A regular expression for the whole value, if it is one of `choices` only in form.
        is_secret: No error repeats its value.
        is_list: Its text has commas; a file may write it as an array.
        is_url: Somebody will connect to it.
    """
    limits = {"minimum": minimum, "maximum": maximum, "choices": choices, "pattern": pattern}
    kind = {"is_secret": is_secret, "is_list": is_list, "is_url": is_url}
    return field(default=default, metadata={"help": help, "env": env, **kind, **limits})


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings. Units are in the names: `_s` seconds, `_bytes` bytes."""

    config: str = _setting("", "a TOML file with settings, for those that nothing else sets")

    # What is served
    model: str = _setting(str(EMBEDDED_MODEL), "model folder or hub id")
    served_model_name: str = _setting("", "name of the model on the wire; empty: the last part of `model`")
    device: str = _setting(
        "auto",
        "where the model runs",
        choices=("auto", "cuda", "cuda:0, cuda:1 ...", "cpu"),
        pattern=r"auto|cpu|cuda(:\d{1,3})?",
    )
    # auto: the checkpoint's own type, but float32 for a model below 256 MiB on a CPU, where 16 bits save nothing.
    dtype: str = _setting("auto", "type of weights and cache", choices=("auto", "float32", "bfloat16", "float16"))
    # One thread for a small model: its operators are too short to share.
    cpu_threads: int = _setting(
        0,
        "threads that one step uses on a CPU; 0: one for a small model, else all cores",
        minimum=0,
        maximum=1024,  # a hundred thousand, which a system does not give, ended the process
    )
    quantization: str = _setting(
        "none", "int8: the weights of linear layers in 8 bits, a scale for each output", choices=("none", "int8")
    )
    speculation: str = _setting(
        "none", "ngram: guess what followed when the last tokens stood there before", choices=("none", "ngram")
    )
    speculation_tokens: int = _setting(7, "tokens that are guessed at once", minimum=1, maximum=15)
    deterministic: int = _setting(
        0, "1: a seeded answer is the same to the bit whoever else is served, in 16 bits too", minimum=0, maximum=1
    )
    trace: str = _setting(
        "on", "steps that only decode run without Python, where the model's code allows it", choices=("on", "off")
    )

    # How much at once
    max_slots: int = _setting(16, "sequences that generate at the same time", minimum=1, maximum=512)
    # 4096 positions times 16 slots of a 0.5B model are 0.8 GB of cache: fits where the model itself fits.
    max_context: int = _setting(4096, "tokens of prompt and answer together, per request", minimum=16)
    # auto: a share of the memory that is free behind the model, and no more than all slots could fill.
    cache_mb: int = _setting(0, "memory for keys and values, in MiB; 0: half of what is free on a CPU", minimum=0)
    prefix_cache: str = _setting("on", "prompts that begin alike share what was computed", choices=("on", "off"))
    # Tokens per step. A step of 512 costs what about 5 decode steps cost on two cores: running streams hardly
    # notice, and a 4,000-token prompt needs 8 of them.
    step_tokens: int = _setting(512, "tokens one step computes, prefill and decode together", minimum=16)
    max_queue: int = _setting(128, "requests that may wait for a slot; one more is answered 429", minimum=0)
    # At 1,000 prompt tokens a second, which two cores reach with a small model, what the queue's time limit allows.
    max_queue_tokens: int = _setting(
        65536, "prompt tokens that may wait for a slot; a prompt that comes on top is answered 429", minimum=1
    )
    max_body_bytes: int = _setting(
        2 * 1024 * 1024, "size of a request body; a larger one is answered 413", minimum=1024
    )

    # The largest body in a minute is a third of a megabit per second.
    body_timeout_s: float = _setting(60.0, "until a request body is there; then 408", minimum=0.01)

    # Deadlines, all in seconds. A request lowers the total with `deadline_s`, never raises it.
    queue_timeout_s: float = _setting(60.0, "from acceptance to a slot, then QUEUE_TIMEOUT", minimum=0.01)
    first_token_timeout_s: float = _setting(
        120.0, "from a slot to the first token, then FIRST_TOKEN_TIMEOUT", minimum=0.01
    )
    token_timeout_s: float = _setting(60.0, "between two tokens, then STALLED", minimum=0.01)
    total_timeout_s: float = _setting(600.0, "from acceptance to the end, then TIMEOUT", minimum=0.01)
    # A stream that nobody has looked at: the response was lost between the route and the socket.
    claim_timeout_s: float = _setting(10.0, "from acceptance until somebody reads the stream", minimum=0.01)
    slow_consumer_s: float = _setting(
        60.0, "how long tokens may wait for their reader, then SLOW_CONSUMER; after twice that it is cut", minimum=0.01
    )
    orphan_ttl_s: float = _setting(60.0, "how long a job without any reader goes on", minimum=0.01)
    job_ttl_s: float = _setting(300.0, "how long an ended job can be read again", minimum=0.0)
    max_ended_jobs: int = _setting(1000, "ended jobs that are kept; the oldest goes first", minimum=0)
    max_journal_bytes: int = _setting(
        64 * 1024 * 1024, "memory for the events of ended jobs; the oldest job goes first", minimum=0
    )
    # Heroku's router cuts a stream after 55 s without a byte, most proxies after 60.
    keep_alive_s: float = _setting(10.0, "between two bytes of an open stream", minimum=0.01, maximum=50.0)
    # A decode step takes milliseconds to a second. Prompts make it longer, and the limit with it.
    step_limit_s: float = _setting(
        20.0, "longest step, per 64 tokens in it; then STALLED for everyone and a new process", minimum=1.0
    )
    load_timeout_s: float = _setting(1800.0, "loading the model, then DEAD", minimum=0.01)
    # Long enough for a probe and a person to read the reason, short enough for a supervisor's restart.
    dead_linger_s: float = _setting(5.0, "how long a process that could not load says why before it exits", minimum=0.0)
    # Heroku sends SIGKILL 30 s after SIGTERM. gunicorn's graceful timeout is this plus 7.
    drain_s: float = _setting(20.0, "how long streams may run on after SIGTERM", minimum=0.0)

    # Who may ask. worker/keys.py reads the first three, and keeps hashes only.
    api_keys: ApiKeys = _setting(  # noqa: RUF009 - it is frozen
        ApiKeys(),
        "keys of clients, `name:key`, `name:sha256:<hex>` or a key alone, with commas between; empty: anybody",
        is_secret=True,
        is_list=True,
    )
    api_keys_file: str = _setting("", "a file with more of them, one a line")
    key_limits: KeyLimits = _setting(  # noqa: RUF009
        KeyLimits(), "limits of single keys, `name:concurrency:tokens_per_minute`, separated by commas", is_list=True
    )
    key_concurrency: int = _setting(
        0, "requests of one key that may be open; one more is answered 429; 0: no limit of its own", minimum=0
    )
    key_tokens_per_minute: int = _setting(
        0, "tokens of prompts and answers per key and minute, then 429; 0: no limit", minimum=0
    )
    # Off: a web page elsewhere must not use the server of whoever reads it.
    cors_origins: str = _setting(
        "",
        "web pages that may use the server from a browser",
        choices=("", "https://one.example,http://localhost:3000 ...", "*"),
        pattern=r"\*|(https?://[^\s,/*]+(\s*,\s*https?://[^\s,/*]+)*)?",
        is_list=True,
    )

    # The server
    # A platform that sets PORT wants to reach it, a person at a terminal need not be reachable. Without keys whoever
    # reaches it may use it, and that has to be said by name.
    host: str = _setting("", "address to bind; empty: 0.0.0.0 if there are API keys and PORT is set, else 127.0.0.1")
    port: int = _setting(8000, "port to bind", minimum=1, maximum=65535, env="PORT")
    worker_class: str = _setting("gevent", "gunicorn worker class", choices=("gevent", "gthread"))
    log_level: str = _setting("info", "log level", choices=("debug", "info", "warning", "error"))
    log_format: str = _setting("text", "json: each line of the log is an object", choices=("text", "json"))
    # By a name of its own and not where OTEL_EXPORTER_OTLP_ENDPOINT is set: platforms set that for everybody.
    opentelemetry: str = _setting(
        "off", "on: traces and metrics go to a collector, which the OTEL_ variables name", choices=("off", "on")
    )
    # The URL may have a password in it. ASCII without blanks: what else it held, http.client would repeat in its error.
    heartbeat_url: str = _setting(
        "",
        "where an orchestrator is told how the server is, by POST",
        choices=("", "https://one.example/heartbeat"),
        pattern=r"(https?://[A-Za-z0-9._:%\[\]-]+([/?][!-~]*)?)?",
        is_secret=True,
        is_url=True,
    )
    heartbeat_s: float = _setting(
        30.0, "between two heartbeats; a change of state is told at once", minimum=0.1, maximum=3600.0
    )
    worker_id: str = _setting("", "what heartbeats call this server; empty: host name and port")
    web_concurrency: int = _setting(1, "worker processes; only 1 is possible", env="WEB_CONCURRENCY")

    @property
    def model_name(self) -> str:
        """The model's name on the wire. Never a path of this machine."""
        return self.served_model_name or Path(self.model).name

    @property
    def max_streams(self) -> int:
        """Requests that can be open at once: every slot and every place in the queue."""
        return self.max_slots + self.max_queue


# What belongs together, by the first setting of each part.
SECTIONS = {
    "config": "Where settings stand",
    "model": "What is served",
    "max_slots": "How much at once",
    "body_timeout_s": "How long, in seconds",
    "api_keys": "Who may ask",
    "host": "The server",
}


def variable_name(setting: "Field[Any]") -> str:
    """The environment variable that sets this field."""
    return setting.metadata["env"] or PREFIX + setting.name.upper()


def parse(setting: "Field[Any]", text: str) -> Any:
    """The value that a text stands for.

    Raises:
        ValueError: It is none, or beyond a limit; says which.
    """
    assert setting.default is not MISSING
    kind = type(setting.default)
    metadata = setting.metadata
    if issubclass(kind, ApiKeys | KeyLimits):
        return kind.parse(text)
    try:
        value = kind(text)
        if value == math.inf:
            raise ValueError
    except ValueError:
        raise ValueError(f"not a {'whole number' if kind is int else 'number'}") from None
    pattern = metadata["pattern"]
    is_one = re.fullmatch(pattern, value) if pattern else value in metadata["choices"]
    if metadata["choices"] and not is_one:
        raise ValueError(f"must be one of {', '.join(choice or '(empty)' for choice in metadata['choices'])}")
    if kind is str and setting.default and not value.strip():
        raise ValueError("must not be empty; leave it out for the default")
    if metadata["is_url"] and value and not is_web_address(value):
        raise ValueError(f"must be {WEB_ADDRESS}")
    if metadata["minimum"] is not None and not value >= metadata["minimum"]:  # also refuses nan
        raise ValueError(f"must be at least {metadata['minimum']}")
    if metadata["maximum"] is not None and value > metadata["maximum"]:
        raise ValueError(f"must be at most {metadata['maximum']}")
    return value


# What `is_web_address` asks for, in words.
WEB_ADDRESS = "a URL with http or https, a host, and a port from 1 to 65535 if it has one"


def is_web_address(url: str) -> bool:
    """Whether somebody can try to connect there: sees now what would end, or silence, who does."""
    try:
        parts = urlsplit(url)
        has_host = parts.hostname is not None and parts.port != 0
    except ValueError:  # repeats a piece of the URL
        return False
    return has_host and parts.scheme in ("http", "https") and not re.search(r"\s", url)
