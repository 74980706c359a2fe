"""Nothing of a stop string leaks, however the text is cut."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.stop_strings import StopStrings

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=200)

# few letters, so that stops overlap, repeat themselves and come one inside the other
some_text = st.text("ab\n", max_size=24)
some_stops = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4).map(tuple)


def reference(stops: tuple[str, ...], text: str) -> tuple[str, str | None]:
    """One character at a time on the whole text: what is released in the end, and which stop matched."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def run(stops: tuple[str, ...], chunks: list[str]) -> tuple[list[str], str | None]:
    """What each push released, and at the end the flush."""
    watcher = StopStrings(stops)
    released = []
    for chunk in chunks:
        released.append(watcher.push(chunk))
        if watcher.matched is not None:
            return released, watcher.matched
    return [*released, watcher.flush()], None


def cut(text: str, at: list[int]) -> list[str]:
    bounds = [0, *sorted(min(a, len(text)) for a in at), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


@repeatable
@given(some_stops, some_text, st.lists(st.integers(0, 24), max_size=8))
def test_the_result_does_not_depend_on_how_the_text_is_cut(stops: tuple[str, ...], text: str, at: list[int]) -> None:
    expected = reference(stops, text)
    for chunks in (cut(text, at), list(text), [text]):
        released, matched = run(stops, chunks)
        assert ("".join(released), matched) == expected


@repeatable
@given(some_stops, some_text, st.lists(st.integers(0, 24), max_size=8))
def test_nothing_of_a_stop_string_leaks_and_nothing_is_held_too_long(
    stops: tuple[str, ...], text: str, at: list[int]
) -> None:
    expected, matched = reference(stops, text)
    watcher = StopStrings(stops)
    seen = released = ""
    for chunk in cut(text, at):
        seen += chunk
        released += watcher.push(chunk)
        assert expected.startswith(released), "released what belongs to a stop string"
        assert not any(stop in released for stop in stops)
        if watcher.matched is not None:
            break
        held = seen[len(released) :]
        assert not held or any(stop.startswith(held) for stop in stops), "held what cannot become a stop string"
    assert watcher.matched == matched


@pytest.mark.parametrize(
    ("stops", "text", "released", "matched"),
    [
        (("END",), "the END of", "the ", "END"),
        (("aab",), "aaab", "a", "aab"),  # the first try fails in the middle of the second
        (("abcd", "bc"), "xabcd", "xa", "bc"),  # complete first
        (("b", "ab"), "xab", "x", "ab"),  # complete together: the longest
        (("ab", "ab"), "ab", "", "ab"),
        (("a",), "", "", None),
        ((), "END", "END", None),
        (("abc",), "ab", "ab", None),  # held until the flush
        (("🙂",), "a🙂", "a", "🙂"),
    ],
)
def test_cases(stops: tuple[str, ...], text: str, released: str, matched: str | None) -> None:
    for chunks in ([text], list(text)):
        got, found = run(stops, chunks)
        assert ("".join(got), found) == (released, matched)


def test_a_stop_string_over_three_pieces() -> None:
    assert run(("stop here",), ["a st", "op he", "re b"]) == (["a ", "", ""], "stop here")


def test_a_false_start_is_released_as_soon_as_it_is_one() -> None:
    assert run(("stop",), ["sto", "re"]) == (["", "store", ""], None)


def test_without_stops_nothing_is_held() -> None:
    assert run((), ["a", "b"]) == (["a", "b", ""], None)


def test_flush_gives_each_character_once() -> None:
    watcher = StopStrings(("abc",))
    assert watcher.push("ab") == ""
    assert [watcher.flush(), watcher.flush()] == ["ab", ""]
