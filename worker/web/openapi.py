"""`/openapi.json`: the routes of the app and the schemas that validate, as OpenAPI 3.1, and `/docs`, which shows it.

Law: nothing is written twice. Paths and methods are the app's, summaries the views' docstrings, schemas those that
bodies are parsed with, refusals the errors that a route says it raises (description.py). tests/web/test_openapi.py
holds the answers of a real server against the document.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from inspect import getdoc
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, Response, current_app
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema
from typing_extensions import TypedDict
from werkzeug.routing import Rule

from worker.errors import NotReady, Unauthorized
from worker.schema import StrictModel
from worker.web import request_id
from worker.web.auth import OPEN_PATHS
from worker.web.context import context
from worker.web.description import GROUPS, Description, describes, description_of
from worker.web.refusals import refusal_body

blueprint = Blueprint("openapi", __name__)

EXTENSION = "endstop.openapi"
# Flask answers these by itself, on every route.
_UNTOLD_METHODS = {"HEAD", "OPTIONS"}

# A page that has been tampered with, or a document with markup in it, could load and send nothing but the document.
_POLICY = "default-src 'none'; connect-src 'self'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
_PAGE = (Path(__file__).parent / "static" / "docs.html").read_text(encoding="utf-8")

_ABOUT = """\
A worker for one language model whose streams always end.

What a route does not know it refuses by name: unknown fields are answered 400, never ignored. On the first level of a \
body null asks for the default. A body has at most 10,000 values and 32 levels.

A stream is Server-Sent Events. Each `data:` is JSON, the last one is `[DONE]`, and the one before it says how it \
ended. A line that begins with a colon says that the server is still there."""

_ABOUT_KEY = "Where the server has keys (ENDSTOP_API_KEYS)"
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer", "description": f"{_ABOUT_KEY}: as OpenAI's clients send one."},
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": f"{_ABOUT_KEY}: as Anthropic's clients send one.",
    },
}
# What the server says before it knows the route, and to other methods of it.
_ON_EVERY_ROUTE = {
    400: "The request is no valid HTTP.",
    405: "The path has no such method.",
    414: "The path and its query are too long.",
    431: "The headers are too large.",
}
_HEADERS = {
    "Retry-After": (
        (429, 503),
        {"description": "Seconds to wait.", "schema": {"type": "string", "pattern": "^[0-9]+$"}},
    ),
    "Allow": ((405,), {"description": "The methods that the path has.", "schema": {"type": "string"}}),
    "WWW-Authenticate": ((401,), {"description": "How to send a key.", "schema": {"const": "Bearer"}}),
}


class Document(TypedDict):
    """An OpenAPI document."""

    openapi: str
    info: dict[str, str]
    tags: list[dict[str, str]]
    paths: dict[str, Any]
    components: dict[str, Any]


class _Schemas(GenerateJsonSchema):
    """pydantic's schemas without what is said already, and with what it leaves open."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        return {"additionalProperties": False} | super().typed_dict_schema(schema)

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        found = super().dict_schema(schema)
        return found | {"additionalProperties": False} if "patternProperties" in found else found


@blueprint.get("/openapi.json")
@describes("Server", answers={200: Document})
def openapi() -> Response:
    """This document."""
    data = current_app.extensions.get(EXTENSION)
    if data is None:  # two requests may both make it, and make the same
        made = document(current_app, needs_key=bool(context().settings.api_keys))
        data = current_app.extensions[EXTENSION] = json.dumps(made, indent=1).encode("ascii")
    return Response(data, mimetype="application/json")


@blueprint.get("/docs")
@describes("Server", answers={200: "text/html"})
def docs() -> Response:
    """A page that shows this document. It asks no other host for anything."""
    return Response(_PAGE, mimetype="text/html", headers={"Content-Security-Policy": _POLICY})


def document(app: Flask, *, needs_key: bool = False) -> Document:
    """The OpenAPI document of every route that describes itself.

    Args:
        needs_key: Whether clients have API keys.
    """
    routes = _routes(app, needs_key)
    schema_of, components = _schemas(dict.fromkeys(kind for route in routes for kind in _types(route)))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Endstop", "version": "1", "description": _ABOUT},
        "tags": [{"name": name, "description": about} for name, about in GROUPS.items()],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _KEYS},
    }


@dataclass(frozen=True, slots=True)
class _Route:
    """A path, one of its methods, and what is said of it."""

    path: str
    method: str
    doc: str
    description: Description
    alias_of: str | None
    needs_key: bool

    @property
    def refusals(self) -> dict[int, list[str]]:
        """What may be answered in place of an answer, in words, by status."""
        found = {status: [about] for status, about in _ON_EVERY_ROUTE.items()}
        for error in (*self.description.raises, NotReady, *((Unauthorized,) if self.needs_key else ())):
            about = (getdoc(error) or "").partition("\n")[0]
            if about not in found.setdefault(error.status, []):
                found[error.status].append(about)
        return found


def _routes(app: Flask, needs_key: bool) -> list[_Route]:
    """Every route that describes itself, those of a group beside each other."""
    # The decorator of a view's first path is the last to run.
    first_paths = {rule.endpoint: _template(rule) for rule in app.url_map.iter_rules()}
    found = []
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        description = description_of(view)
        if description is not None:
            path, first = _template(rule), first_paths[rule.endpoint]
            alias_of, is_closed = None if path == first else first, needs_key and path not in OPEN_PATHS
            for method in sorted((rule.methods or set()) - _UNTOLD_METHODS):
                found.append(_Route(path, method, getdoc(view) or "", description, alias_of, is_closed))
    groups = list(GROUPS)
    return sorted(found, key=lambda route: (groups.index(route.description.group), route.alias_of is not None))


def _template(rule: Rule) -> str:
    return re.sub(r"<(?:[^:>]+:)?([^>]+)>", r"{\1}", rule.rule)


def _types(route: _Route) -> Iterator[Any]:
    """Every type that is JSON on a route."""
    description = route.description
    yield from (kind for kind in (description.body, description.events) if kind is not None)
    yield from (kind for kind in description.answers.values() if not isinstance(kind, str))
    yield from (refusal_body(route.path, status) for status in route.refusals)


def _schemas(types: Iterable[Any]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """The schema of each type, and those that they refer to, by name."""
    bodies = [kind for kind in types if isinstance(kind, type) and issubclass(kind, StrictModel)]
    found, rest = TypeAdapter.json_schemas(
        [(kind, "validation", TypeAdapter(kind)) for kind in types],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Schemas,
    )
    components = _with_short_names(rest.get("$defs", {}))
    for body in bodies:
        _let_null_ask_for_defaults(components[body.__name__])
        for name, reason in body.refused.items():
            components[body.__name__]["properties"][name] = {"type": "null", "description": f"Refused: {reason}."}
    schema_of = {kind: _with_short_names(schema) for (kind, _), schema in found.items()}
    return schema_of, dict(sorted(components.items()))


def _with_short_names(schema: Any) -> Any:
    """Of types with one name in several modules pydantic writes where each is: worker__web__messages__FunctionTool."""

    def short(match: re.Match[str]) -> str:
        return match[1].title().replace("_", "") + match[2]

    return json.loads(re.sub(r"\bworker__(?:web__)?(\w+?)__(\w+)", short, json.dumps(schema)))


def _let_null_ask_for_defaults(schema: dict[str, Any]) -> None:
    """What worker/body.py does before it validates, as a schema."""
    required = schema.get("required", [])
    for name, field in schema["properties"].items():
        kind = field.get("type")
        if name in required or {"type": "null"} in field.get("anyOf", []):
            continue
        if isinstance(kind, str) and "enum" not in field and "const" not in field:
            field["type"] = [kind, "null"]
        else:
            outer = {key: field.pop(key) for key in ("description", "default") if key in field}
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **outer}


def _operation(route: _Route, schema_of: dict[Any, Any]) -> dict[str, Any]:
    description = route.description
    summary, _, more = route.doc.partition("\n")
    answers: dict[int, dict[str, Any]] = {}
    for status, kind in description.answers.items():
        answers[status] = {"description": _about(kind), "content": _content(kind, schema_of)}
    if description.events is not None:
        answer = answers.setdefault(200, {"description": "A stream.", "content": {}})
        answer["content"]["text/event-stream"] = {"schema": _event(schema_of[description.events])}
    for status, reasons in route.refusals.items():
        _add_refusal(answers, status, " ".join(reasons), schema_of[refusal_body(route.path, status)])
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "tags": [description.group],
        "summary": summary,
        "parameters": [*description.parameters, request_id.PARAMETER],
        "responses": {str(status): answers[status] for status in sorted(answers)},
    }
    for status, answer in answers.items():
        answer.setdefault("headers", {})[request_id.HEADER] = _request_id_header(status)
    if route.needs_key:
        operation["security"] = [{name: []} for name in _KEYS]
    same = f"Another name of `{route.alias_of}`.\n\n" if route.alias_of else ""
    if about := (same + more).strip():
        operation["description"] = about
    if description.body is not None:
        content = {"schema": schema_of[description.body], "example": description.example}
        operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    return operation


def _request_id_header(status: int) -> dict[str, Any]:
    # What is refused ahead of the app has no name: there is no line of the log with it.
    schema = request_id.PARAMETER["schema"]
    about = "The name of the request, of its client or made."
    return {"description": about, "required": status < 400, "schema": schema}


def _event(data: dict[str, Any]) -> dict[str, Any]:
    """One event of a stream, as OpenAPI 3.2 will have it: 3.1 has no words for streams, and its tools take these."""
    last = {"const": "[DONE]"}
    other = {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
    return {"type": "object", "required": ["data"], "properties": {"data": {"anyOf": [other, last]}}}


def _about(kind: Any) -> str:
    """What an answer is, in words."""
    return "A page." if isinstance(kind, str) else (getdoc(kind) or "").partition("\n")[0]


def _content(kind: Any, schema_of: dict[Any, Any]) -> dict[str, Any]:
    if isinstance(kind, str):
        return {kind: {"schema": {"type": "string"}}}
    return {"application/json": {"schema": schema_of[kind]}}


def _add_refusal(answers: dict[int, dict[str, Any]], status: int, about: str, schema: dict[str, Any]) -> None:
    own = answers.get(status)
    headers = {name: {**header, "required": own is None} for name, (at, header) in _HEADERS.items() if status in at}
    if own is not None:  # a probe says in its own words what it may be refused for too
        about = f"{own['description']} {about}"
        schema = {"anyOf": [own["content"]["application/json"]["schema"], schema]}
    answers[status] = {"description": about, "content": {"application/json": {"schema": schema}}}
    if headers:
        answers[status]["headers"] = headers
