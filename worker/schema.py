"""What every part of a request is made of. Pure: no I/O, any thread."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """What every part of a request is: unknown fields are refused, and types are not converted.

    The text under a field is its description in /openapi.json.
    """

    # strict: "7" is not 7 and true is not 1; a client that sends them has a bug worth hearing about.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    # Fields that the API has elsewhere, and why they are refused here. Typed clients send null for all that was not
    # set, and null asks for nothing: those alone are let through.
    refused: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def conflicts(cls, data: dict[str, Any]) -> list[str]:
        """Fields that do not go together, in words. Looks at raw data: what else is wrong must not hide it."""
        return []


# Tags of a union name its members for pydantic; body.py leaves them out of the names of fields.
TAG_PREFIX = "="


def text_or_list(value: object) -> str:
    """The member of a union of a string and a list that a value is meant for."""
    return TAG_PREFIX + ("list" if isinstance(value, list) else "text")
