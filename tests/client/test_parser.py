"""The parser of Server-Sent Events: the standard's rules."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.client import (
    ProtocolError,
    ServerSentEvent,
    SSEParser,
)


def parse(*chunks: bytes) -> list[ServerSentEvent]:
    parser = SSEParser()
    return [event for chunk in chunks for event in parser.push(chunk)]


def data_of(*chunks: bytes) -> list[str]:
    return [event.data for event in parse(*chunks)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"data: a\n\n", ["a"], id="line feed"),
        pytest.param(b"data: a\r\n\r\n", ["a"], id="carriage return and line feed"),
        pytest.param(b"data: a\r\r", ["a"], id="carriage return"),
        pytest.param(b"data: a\r\n\rdata: b\n\r\n", ["a", "b"], id="mixed line ends"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", ["a"], id="byte order mark at the start"),
        pytest.param(b"\n\xef\xbb\xbfdata: a\n\n", [], id="byte order mark elsewhere makes the field unknown"),
        pytest.param(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", [], id="only one byte order mark is taken off"),
        pytest.param(b": ping\n: ping\ndata: a\n\n", ["a"], id="comments in front of an event"),
        pytest.param(b"data: a\n: ping\ndata: b\n\n", ["a\nb"], id="a comment inside an event"),
        pytest.param(b"data: YHOO\ndata: +2\ndata: 10\n\n", ["YHOO\n+2\n10"], id="data lines are joined"),
        pytest.param(b"data\n\ndata\ndata\n\ndata:", ["", "\n"], id="data without a colon (an example of the spec)"),
        pytest.param(b"data:test\n\ndata: test\n\n", ["test", "test"], id="the space after the colon is optional"),
        pytest.param(b"data:  a\n\n", [" a"], id="only one space is taken off"),
        pytest.param(b"data: a:b: c\n\n", ["a:b: c"], id="colons in the value"),
        pytest.param(b"data: a\x0bb\x0cc\xe2\x80\xa8d\n\n", ["a\x0bb\x0cc\u2028d"], id="other separators are text"),
        pytest.param(b"Data: a\n\nnews: b\n\n", [], id="unknown fields are ignored"),
        pytest.param(b"data: a\n", [], id="an event without its blank line is discarded"),
        pytest.param(b"data: a\n\ndata: b", ["a"], id="... also behind a whole one"),
        pytest.param(b"event: x\n\n\n\n", [], id="no data, no event"),
        pytest.param("data: héllo 😀\n\n".encode(), ["héllo 😀"], id="utf-8"),
        pytest.param(b"data: \xff\xf0\x9f\n\n", ["\ufffd\ufffd"], id="broken utf-8 is replaced"),
    ],
)
def test_the_standards_rules(body: bytes, expected: list[str]) -> None:
    assert data_of(body) == expected


def test_the_event_type_holds_for_one_event() -> None:
    events = parse(b"event: add\ndata: 1\n\ndata: 2\n\nevent: lost\n\ndata: 3\n\n")
    assert [event.event for event in events] == ["add", "message", "message"]


def test_an_id_is_inherited_until_the_next_one() -> None:
    events = parse(b"id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\nid: x\x00y\ndata: d\n\n")
    assert [event.id for event in events] == ["1", None, "", None]
    assert [event.last_event_id for event in events] == ["1", "1", "", ""]


def test_an_id_without_data_counts_for_later_events() -> None:
    assert [(e.id, e.last_event_id) for e in parse(b"id: 7\n\ndata: a\n\n")] == [(None, "7")]


def test_our_keep_alive_is_no_event_and_hides_none() -> None:
    assert data_of(b": ping\n", b": ping\n", b"data: a\n\n: ping\n") == ["a"]


def test_an_event_is_returned_by_the_push_that_ends_it() -> None:
    parser = SSEParser()
    assert parser.push(b"data: a\r\n") == []
    assert [e.data for e in parser.push(b"\r")] == ["a"]  # without waiting for a line feed that may never come
    assert parser.push(b"\n") == []  # and when it comes it is no second blank line
    assert [e.data for e in parser.push(b"data: b\n\n")] == ["b"]


def test_an_empty_push_does_not_forget_a_carriage_return() -> None:
    assert data_of(b"data: a\r", b"", b"\ndata: b\n\n") == ["a\nb"]


@pytest.mark.parametrize(
    "body", [b"data: 1234567890\n\n", b"data: 12345\ndata: 6789\n\n", b"data: 12345\ndata:", b"1234567890123456"]
)
def test_an_endless_event_is_refused(body: bytes) -> None:
    parser = SSEParser(max_event_bytes=15)
    with pytest.raises(ProtocolError, match="larger than 15 bytes"):
        parser.push(body)


def test_the_size_limit_is_for_one_event_and_not_for_comments() -> None:
    parser = SSEParser(max_event_bytes=15)
    for _ in range(10):
        assert len(parser.push(b": ping\n: ping\n: ping\ndata: 123456789\n\n")) == 1


def parse_by_the_book(body: bytes) -> list[ServerSentEvent]:
    """The standard's algorithm on a whole body: decode, cut into lines, interpret. Slow and plain: the oracle."""
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    lines = re.split("\r\n|\r|\n", text)[:-1]  # what follows the last line end is no line
    events = []
    data: list[str] = []
    event_type, own_id, last_event_id = "", None, ""
    for line in lines:
        if line == "":
            if data:
                events.append(ServerSentEvent("\n".join(data), event_type or "message", own_id, last_event_id))
            data, event_type, own_id = [], "", None
            continue
        if line.startswith(":"):
            continue
        field, value = line.split(":", 1) if ":" in line else (line, "")
        value = value[1:] if value.startswith(" ") else value
        if field == "data":
            data.append(value)
        elif field == "event":
            event_type = value
        elif field == "id" and "\0" not in value:
            own_id = last_event_id = value
    return events


# Pieces that matter to a parser, in any order, so that Hypothesis soon finds the odd combinations.
PIECES = [b"\n", b"\r", b"\r\n", b":", b": ping\n", b" ", b"data", b"data: ", b"id: ", b"id", b"event: ", b"retry: "]
PIECES += [b"1", b"a", b"\x00", b"\xef\xbb\xbf", "é😀\u2028".encode(), b"\xff", b"\xf0\x9f", b"data: x\n\n", b"[DONE]"]
bodies = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=30).map(b"".join)


def split_at(body: bytes, places: list[int]) -> list[bytes]:
    cuts = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[a:b] for a, b in pairwise(cuts)]


@pytest.mark.slow
@settings(deadline=None, max_examples=1000, derandomize=True)
@given(bodies, st.lists(st.integers(0, 10_000), max_size=12))
def test_any_split_gives_the_same_events(body: bytes, places: list[int]) -> None:
    expected = parse_by_the_book(body)
    assert parse(body) == expected
    assert parse(*split_at(body, places)) == expected
    assert parse(*(bytes([byte]) for byte in body)) == expected
