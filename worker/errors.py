"""Every error that Endstop raises on purpose.

    EndstopError                     status  code
    ├── SettingsError                  -     -                    the process refuses to start
    ├── ModelLoadError                 -     -                    the process turns DEAD
    ├── RequestError                               before the first byte: an HTTP status
    │   ├── InvalidRequest            400    INVALID_REQUEST
    │   ├── Unauthorized              401    INVALID_API_KEY      + WWW-Authenticate
    │   ├── UnknownJob                404    UNKNOWN_JOB
    │   ├── UnknownModel              404    UNKNOWN_MODEL
    │   ├── BodyTimeout               408    BODY_TIMEOUT
    │   ├── BodyTooLarge              413    BODY_TOO_LARGE
    │   ├── KeyReused                 422    KEY_REUSED
    │   ├── Overloaded                429    OVERLOADED           + Retry-After
    │   ├── RateLimited               429    RATE_LIMITED         + Retry-After
    │   └── NotReady                  503    LOADING, DRAINING, DEAD   + Retry-After
    └── GenerationFailed                           after it: a terminal error event with this code
        ├── InferenceFailed           500    INFERENCE_FAILED
        ├── OutOfMemory               503    VRAM_OOM
        ├── DeadlineExceeded          504    QUEUE_TIMEOUT, FIRST_TOKEN_TIMEOUT, STALLED, TIMEOUT
        ├── SlowConsumer              503    SLOW_CONSUMER
        ├── EngineDead                503    ENGINE_DEAD
        ├── ShuttingDown              503    SHUTTING_DOWN
        └── Incomplete                500    INCOMPLETE

The status of a GenerationFailed is what a client that did not ask for a stream receives. A channel's own
three endings are in streams/channel.py. Knows nothing of HTTP beyond the numbers.
"""

import re
from dataclasses import dataclass

SHUTTING_DOWN = "the server is shutting down"


class EndstopError(Exception):
    """Base of all errors raised on purpose."""


class SettingsError(EndstopError):
    """Settings are unknown or out of range. `problems` has a sentence for each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems

    def as_lines(self) -> str:
        """For a terminal: several stand below each other."""
        return self.problems[0] if len(self.problems) == 1 else "\n  ".join(["the settings are wrong:", *self.problems])


class ModelLoadError(EndstopError):
    """The model named by the settings cannot be loaded."""


def without_paths(text: str) -> str:
    """A message as anybody may have it: what could be a path is left out, in quotes or as a word."""
    return re.sub(r"'[^']*[/\\][^']*'|\"[^\"]*[/\\][^\"]*\"|[^\s'\"()\[\]]*[/\\][^\s'\"()\[\]]*", "...", text)


# A terminal that shows a log takes these for commands; what is repeated may be a stranger's: a collector's, a hub's.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def one_line(cause: BaseException | str, limit: int = 300) -> str:
    """What a message of ours repeats of another's: an error with its name, or a text, in one line and no longer."""
    text = cause if isinstance(cause, str) else f"{type(cause).__name__}: {cause}"
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split())[:limit])


@dataclass(frozen=True, slots=True)
class FieldError:
    """One bad field of a request: where, which rule it broke, and what to do."""

    field: str
    constraint: str
    message: str


class RequestError(EndstopError):
    """A request refused before its first byte."""

    status = 400
    code = "INVALID_REQUEST"

    def __init__(self, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class InvalidRequest(RequestError):
    """One or more fields are wrong. Carries all of them."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{e.field}: {e.message}" for e in errors))
        self.errors = errors


class Unauthorized(RequestError):
    """The request has no API key that is known here."""

    status = 401
    code = "INVALID_API_KEY"


class UnknownJob(RequestError):
    """No job of this client has this id, or it has expired."""

    status = 404
    code = "UNKNOWN_JOB"


class UnknownModel(RequestError):
    """The request names another model than the one that is served."""

    status = 404
    code = "UNKNOWN_MODEL"


class BodyTimeout(RequestError):
    """The body did not come in time."""

    status = 408
    code = "BODY_TIMEOUT"


class BodyTooLarge(RequestError):
    """The request body exceeds the limit."""

    status = 413
    code = "BODY_TOO_LARGE"


class KeyReused(RequestError):
    """An Idempotency-Key came with another request than before."""

    status = 422
    code = "KEY_REUSED"


class Overloaded(RequestError):
    """Every slot and every place in the queue is taken."""

    status = 429
    code = "OVERLOADED"


class RateLimited(RequestError):
    """The client has as many requests open, or has used as many tokens, as its API key may."""

    status = 429
    code = "RATE_LIMITED"


class NotReady(RequestError):
    """The engine is loading, draining or dead; `code` says which."""

    status = 503

    def __init__(self, state: str, message: str, retry_after_s: int) -> None:
        super().__init__(message, retry_after_s)
        self.code = state


class GenerationFailed(EndstopError):
    """A request that was accepted and could not be finished."""

    status = 500
    code = "INFERENCE_FAILED"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class InferenceFailed(GenerationFailed):
    """The model, the sampler or the detokenizer raised, or a row had no finite logit."""


class OutOfMemory(GenerationFailed):
    """The device could not allocate what the step needed."""

    status = 503
    code = "VRAM_OOM"


class DeadlineExceeded(GenerationFailed):
    """One of the four deadlines passed; `code` says which."""

    status = 504
    code = "TIMEOUT"


class SlowConsumer(GenerationFailed):
    """Nobody read the stream for longer than the limit."""

    status = 503
    code = "SLOW_CONSUMER"


class EngineDead(GenerationFailed):
    """The generation thread is gone or does not answer."""

    status = 503
    code = "ENGINE_DEAD"


class ShuttingDown(GenerationFailed):
    """The process is going away."""

    status = 503
    code = "SHUTTING_DOWN"


class Incomplete(GenerationFailed):
    """A producer went away without saying why: a bug, and still an ending."""

    code = "INCOMPLETE"
