"""What a request says of its answer's form becomes one language, and what it must not say is refused by name."""

import json
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_request import body, errors_of, parse, refused_fields
from worker.answer import PLAIN
from worker.errors import InvalidRequest
from worker.structure import MAX_GRAMMAR_CHARACTERS, Structure, structure_of
from worker.web.chat_completions import ChatCompletionRequest

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=200)

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def structure(**fields: Any) -> Structure | None:
    return structure_of(parse(**fields), PLAIN)


def schema_format(schema: Any, **others: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **others}}


def test_a_request_that_asks_for_nothing_has_none() -> None:
    assert structure() is None
    assert structure(response_format={"type": "text"}) is None
    assert structure(response_format={"type": "text"}, regex="a") == Structure("regex", "start: /a/")


def test_a_schema_is_kept_as_it_is_with_little_space_between() -> None:
    found = structure(response_format=schema_format(SCHEMA, strict=False, description="d"))
    assert found is not None
    assert found.field == "response_format.json_schema.schema"
    schema = json.loads(found.grammar.removeprefix("start: %json "))
    assert schema.pop("x-guidance") == {"whitespace_pattern": r"\x20|\x0A[\x20\x09]{0,128}"}
    assert schema == SCHEMA
    any_object = structure(response_format={"type": "json_object"})
    assert any_object is not None
    assert any_object.grammar.startswith('start: %json {"type": "object"')


def test_a_schema_cannot_change_how_it_is_read() -> None:
    with pytest.raises(InvalidRequest, match="x-guidance"):
        structure(response_format=schema_format(SCHEMA | {"x-guidance": {"lenient": True}}))


def test_a_grammar_is_taken_as_it_is() -> None:
    assert structure(grammar='start: "a"') == Structure("grammar", 'start: "a"')


@pytest.mark.parametrize(
    ("pattern", "written"),
    [
        ("a/b", r"/a\/b/"),
        (r"a\/b", r"/a\/b/"),
        (r"a\\/b", r"/a\\\/b/"),
        ("a\nb\r", r"/a\nb\r/"),
        ("a\\\nb", r"/a\nb/"),
        (r"\d+", r"/\d+/"),
        ("a\\", "/a\\/"),
    ],
)
def test_a_regular_expression_stands_between_slashes_in_one_line(pattern: str, written: str) -> None:
    assert structure(regex=pattern) == Structure("regex", f"start: {written}")


@repeatable
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), min_size=1, max_size=5))
def test_choices_match_themselves_and_nothing_else(choices: list[str]) -> None:
    found = structure(choice=choices)
    assert found is not None
    assert found.field == "choice"
    pattern = found.grammar.removeprefix("start: /").removesuffix("/")
    assert "/" not in pattern
    assert pattern.isprintable()
    pattern = regex.sub(r"\\x\{([0-9a-f]+)\}", lambda match: f"\\U{int(match[1], 16):08x}", pattern)
    for choice in choices:
        assert regex.fullmatch(pattern, choice)
        assert bool(regex.fullmatch(pattern, choice + "x")) == (choice + "x" in choices)


def test_a_grammar_has_a_limit_that_is_named() -> None:
    longest = "a" * (MAX_GRAMMAR_CHARACTERS - len("start: //"))
    assert structure(regex=longest)
    with pytest.raises(InvalidRequest, match=str(MAX_GRAMMAR_CHARACTERS)) as refusal:
        structure(regex=longest + "a")
    assert refusal.value.errors[0].field == "regex"


# ---- what is refused by the schema


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({}, "response_format.type"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format"),
        ({"type": "json_object", "json_schema": {"name": "x", "schema": {}}}, "response_format"),
        ({"type": "text", "colour": 1}, "response_format.colour"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name"),
        (schema_format({}, name="a b"), "response_format.json_schema.name"),
        (schema_format([]), "response_format.json_schema.schema"),
        (schema_format({}, strict=1), "response_format.json_schema.strict"),
        (schema_format({}, extra=1), "response_format.json_schema.extra"),
        ("json", "response_format"),
    ],
)
def test_formats_that_are_refused(value: Any, field: str) -> None:
    assert refused_fields(response_format=value) == [field]


ONES: list[dict[str, Any]] = [
    {"response_format": {"type": "json_object"}},
    {"regex": "a"},
    {"choice": ["a"]},
    {"grammar": "start: A"},
]


@pytest.mark.parametrize("one", ONES)
@pytest.mark.parametrize("other", ONES)
def test_only_one_may_be_given(one: dict[str, Any], other: dict[str, Any]) -> None:
    if one != other:
        [error] = errors_of(body(**one, **other))
        assert "at most one" in error.message
        assert all(name in error.message for name in (*one, *other))


@pytest.mark.parametrize("one", ONES)
@pytest.mark.parametrize(
    "cut", [{"stop": "x"}, {"stop": ["x"]}, {"stop_token_ids": [1]}, {"ignore_eos": True}, {"min_tokens": 1}]
)
def test_what_could_cut_the_answer_is_refused(one: dict[str, Any], cut: dict[str, Any]) -> None:
    for raw, schema in (
        (body(**one, **cut), None),
        (json.dumps({"messages": [{"role": "user", "content": "x"}], **one, **cut}).encode(), ChatCompletionRequest),
    ):
        [error] = errors_of(raw, schema) if schema else errors_of(raw)
        assert next(iter(cut)) in error.message
        assert next(iter(one)) in error.message


def test_the_defaults_of_what_could_cut_it_are_no_conflict() -> None:
    assert parse(regex="a", stop=[], stop_token_ids=[], ignore_eos=False, min_tokens=0)
    assert parse(stop="a", response_format={"type": "text"})
