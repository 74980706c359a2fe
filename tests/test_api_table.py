"""docs/api.md says of each field of each API what the schemas say of it."""

import json
from typing import Any

import pytest

from tests.api_table import APIS, PAGE, REQUIRED, Api, rows, written
from worker.body import parse_body
from worker.errors import InvalidRequest
from worker.schema import StrictModel


def test_the_page_is_as_the_schemas_are() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page), "run python -m tests.api_table"


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.path)
def test_every_field_of_the_api_is_in_its_table(api: Api) -> None:
    """What its clients can send is either taken or refused with a reason."""
    assert set(api.refused) == (api.known or set()) - set(api.body.model_fields)


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.path)
def test_what_the_table_calls_required_is_what_an_empty_body_lacks(api: Api) -> None:
    required = {name: default for name, _, _, default, _ in rows(api) if default.startswith(REQUIRED)}
    if _wrong_fields(api.body, {}) == ["body"]:  # one of two has to be there
        assert required == {
            "prompt": f"{REQUIRED}, this or `messages`",
            "messages": f"{REQUIRED}, this or `prompt`",
        }
    else:
        assert required == dict.fromkeys(_wrong_fields(api.body, {}), REQUIRED)


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.path)
def test_what_the_table_calls_refused_is_refused_by_name(api: Api) -> None:
    for name in api.refused:
        with pytest.raises(InvalidRequest) as refusal:
            parse_body(api.body, json.dumps({name: "x"}).encode())
        (error,) = [error for error in refusal.value.errors if error.field == name]
        assert error.constraint == "unknown_field"
        assert api.refused[name] in error.message


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.path)
def test_null_for_a_refused_field_asks_for_nothing(api: Api) -> None:
    """Typed clients send null for every field that was not set."""
    assert _wrong_fields(api.body, dict.fromkeys(api.refused)) == _wrong_fields(api.body, {})


def _wrong_fields(body: type[StrictModel], fields: dict[str, Any]) -> list[str]:
    try:
        parse_body(body, json.dumps(fields).encode())
    except InvalidRequest as refusal:
        return [error.field for error in refusal.errors]
    return []
