"""Payloads held against the pydantic types of a client library, strictly: no field too much, none too few."""

import json
from typing import Any, get_args

from pydantic import BaseModel


def by_type(*kinds: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The types of a union by their `type`."""
    return {name: kind for kind in kinds for name in get_args(kind.model_fields["type"].annotation)}


def assert_exact(kind: type[BaseModel], payload: dict[str, Any], *, allowed: tuple[str, ...] = ()) -> None:
    """See that `payload` is what its type declares, but for extra fields of the names in `allowed`."""
    parsed = kind.model_validate(payload, strict=True)
    assert json.loads(parsed.model_dump_json(exclude_unset=True, by_alias=True)) == payload
    extra = [name for name in extras(parsed) if name not in allowed]
    assert not extra, f"{kind.__name__} has no {extra}: {payload}"


def extras(value: Any) -> list[str]:
    """Fields that the types do not declare, at any depth."""
    if isinstance(value, list):
        return [name for item in value for name in extras(item)]
    if not isinstance(value, BaseModel):
        return []
    found = list(value.model_extra or ())
    for name in type(value).model_fields:
        found += extras(getattr(value, name))
    return found
