"""What a route says of itself for /openapi.json, kept beside its code. Changes nothing of what the route does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from worker.errors import BodyTimeout, BodyTooLarge, GenerationFailed, InvalidRequest, Overloaded, RequestError
from worker.schema import StrictModel

View = TypeVar("View", bound=Callable[..., Any])
Raised = type[RequestError] | type[GenerationFailed]

Group = Literal["OpenAI", "Anthropic", "Jobs", "Tokens", "Server"]
GROUPS: dict[Group, str] = {
    "OpenAI": "What clients of OpenAI's API speak.",
    "Anthropic": "What clients of Anthropic's API speak.",
    "Jobs": "Streams whose events have numbers, so that a client that lost its connection reads on where it was.",
    "Tokens": "What the model reads, as vLLM shows it.",
    "Server": "For those who run the server, and this document.",
}

# What `read_body` raises; the last where a larger body finds every thread that reads those taken.
_OF_A_BODY: tuple[Raised, ...] = (InvalidRequest, BodyTimeout, BodyTooLarge, Overloaded)


@dataclass(frozen=True, slots=True)
class Description:
    """One route, as far as its path, its methods and its docstring do not say it already.

    Attributes:
        group: Where the page shows it.
        body: What the request's body is parsed with.
        answers: Bodies that are no refusals, by status: a type for JSON, a media type for anything else.
        events: The JSON of one event, if the answer may be a stream.
        raises: What may be answered in place of them.
        parameters: What of the path, the query and the headers it reads, as OpenAPI has it.
        example: A body that works.
    """

    group: Group
    body: type[StrictModel] | None = None
    answers: Mapping[int, Any] = field(default_factory=dict)
    events: Any = None
    raises: tuple[Raised, ...] = ()
    parameters: tuple[Mapping[str, Any], ...] = ()
    example: Mapping[str, Any] | None = None


def describes(
    group: Group,
    *,
    body: type[StrictModel] | None = None,
    answers: Mapping[int, Any] | None = None,
    events: Any = None,
    raises: tuple[Raised, ...] = (),
    parameters: tuple[Mapping[str, Any], ...] = (),
    example: Mapping[str, Any] | None = None,
) -> Callable[[View], View]:
    """Give a view its description. Between the route and the function: routes keep what they are given."""
    if body is not None:
        raises = (*_OF_A_BODY, *raises)
    description = Description(group, body, answers or {}, events, raises, parameters, example)

    def describe(view: View) -> View:
        view.description = description  # type: ignore[attr-defined]
        return view

    return describe


def path_parameter(name: str, description: str) -> dict[str, Any]:
    """A part of the path that is the client's choice."""
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}


def description_of(view: Callable[..., Any]) -> Description | None:
    """The description of a view; None if it has none."""
    return getattr(view, "description", None)
