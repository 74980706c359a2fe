"""Keys are read, hashed and never shown."""

import hashlib
import hmac
from dataclasses import replace
from pathlib import Path

import pytest

from worker.config import read_settings
from worker.errors import SettingsError
from worker.keys import ApiKeys, KeyLimit, KeyLimits
from worker.settings import Settings

ALICE, BOB = "alice-has-this-key", "bob-has-another-one"
HASHED = hashlib.sha256(BOB.encode()).hexdigest()
BOTH = f"alice:{ALICE},bob:sha256:{HASHED}"


def test_a_key_stands_for_its_name() -> None:
    keys = ApiKeys.parse(BOTH)
    assert [keys.name_of(key) for key in (ALICE, BOB)] == ["alice", "bob"]
    assert [
        keys.name_of(key) for key in ("", ALICE[:-1], ALICE + "x", HASHED, "alice", f"sha256:{HASHED}", "\u20ac")
    ] == [None] * 7
    assert keys.names == ["alice", "bob"]


@pytest.mark.parametrize(
    "text",
    [f"alice:{ALICE}\nbob:{BOB}", f" alice:{ALICE} ,, bob:{BOB},\n", f"# keys, of all\n\nalice:{ALICE}\r\nbob:{BOB}"],
)
def test_entries_stand_on_lines_or_between_commas(text: str) -> None:
    assert ApiKeys.parse(text) == ApiKeys.parse(BOTH)


def test_one_name_may_have_several_keys() -> None:
    """To change from one to the next without a moment in which neither works."""
    keys = ApiKeys.parse(f"alice:{ALICE},alice:{BOB}")
    assert keys.name_of(ALICE) == keys.name_of(BOB) == "alice"
    assert keys.names == ["alice"]


def test_a_key_may_have_a_colon() -> None:
    assert ApiKeys.parse("alice:sk:0123456789abcdef").name_of("sk:0123456789abcdef") == "alice"


def test_every_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def compare_and_note(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return compare(one, other)

    keys = ApiKeys.parse(BOTH + ",carol:0123456789abcdef")
    monkeypatch.setattr("worker.keys.hmac.compare_digest", compare_and_note)
    for key in (ALICE, BOB, "nobody"):
        compared.clear()
        keys.name_of(key)
        assert compared == [one.digest for one in keys.keys]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        (" ,\n# nothing\n", "holds no key"),
        ("canary", "16 to 512"),
        ("canary canary canary canary", "16 to 512"),
        ("sha256:" + "c" * 64, "entry 1 is not name:key"),
        (f"alice:{ALICE},:canary-canary-canary", "entry 2 is not name:key"),
        (f"alice:{ALICE},canary canary canary:x", "entry 2 is not name:key"),
        ("alice:", "entry 1 is not name:key"),
        ("alice:canary", "16 to 512"),
        ("alice:canary canary canary", "16 to 512"),
        ("alice:canary" + "x" * 512, "16 to 512"),
        ("alice:canary-canary-\u00e4\u00e4\u00e4", "16 to 512"),
        ("alice:sha256:canary", "64 hex digits"),
        ("alice:canary-canary-canary,bob:canary-canary-canary", "alice and bob have the same key"),
    ],
)
def test_what_is_no_key_is_refused_and_not_repeated(text: str, says: str) -> None:
    for read in (lambda: ApiKeys.parse(text), lambda: read_settings({"ENDSTOP_API_KEYS": text})):
        with pytest.raises((ValueError, SettingsError), match=says) as refusal:
            read()
        assert "canary" not in str(refusal.value)


def test_a_key_alone_has_the_name_default() -> None:
    """What platforms generate, and what somebody who serves himself writes, has no name."""
    keys = ApiKeys.parse(f"{ALICE},bob:sha256:{HASHED}")
    assert keys.names == ["default", "bob"]
    assert keys.name_of(ALICE) == "default"
    assert ApiKeys.parse(keys.hashed).name_of(ALICE) == "default"


def test_nothing_shows_a_key_or_its_hash() -> None:
    settings = read_settings({"ENDSTOP_API_KEYS": BOTH})
    assert settings.api_keys.name_of(ALICE) == "alice"
    shown = " ".join([repr(settings), str(settings), repr(settings.api_keys.keys), f"{settings.api_keys}"])
    assert "alice" in shown
    for digest in (HASHED, hashlib.sha256(ALICE.encode()).hexdigest()):
        assert digest not in shown
        assert repr(bytes.fromhex(digest)) not in shown
    assert ALICE not in shown
    assert ALICE not in settings.api_keys.hashed


def test_hashed_keys_are_the_same_keys() -> None:
    keys = ApiKeys.parse(BOTH)
    assert ApiKeys.parse(keys.hashed) == keys


def test_a_file_holds_more_of_them(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# bob's\nbob:{BOB}\n")
    settings = read_settings({"ENDSTOP_API_KEYS": f"alice:{ALICE}", "ENDSTOP_API_KEYS_FILE": str(path)})
    assert settings.api_keys == ApiKeys.parse(BOTH)
    assert read_settings({"ENDSTOP_API_KEYS_FILE": str(path)}).api_keys.names == ["bob"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        (b"", "holds no key"),
        (b"canary", "entry 1"),
        (b"\xff\xfe", "UTF-8"),
        (f"bob:{ALICE}".encode(), "alice and bob have the same key"),
    ],
)
def test_a_file_without_keys_stops_the_start(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=says) as refusal:
        read_settings({"ENDSTOP_API_KEYS": f"alice:{ALICE}", "ENDSTOP_API_KEYS_FILE": str(path)})
    assert "canary" not in str(refusal.value)
    assert ALICE not in str(refusal.value)


def test_a_single_key_may_have_limits_of_its_own() -> None:
    text = "alice:2:0,bob:0:100"
    assert dict(KeyLimits.parse(text).limits) == {"alice": KeyLimit(2, 0), "bob": KeyLimit(0, 100)}
    assert str(KeyLimits.parse(text)) == text
    assert read_settings({"ENDSTOP_API_KEYS": BOTH, "ENDSTOP_KEY_LIMITS": text}).key_limits == KeyLimits.parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("canary", "entry 1 is not name:concurrency"),
        ("alice:1:1,,canary:1", "entry 2 is not name:concurrency"),
        ("canary:1:x", "is not name"),
        ("canary:-1:1", "is not name"),
        ("bob:1:1,canary:1:1,canary:2:2", "entry 3 has the name of one before"),
        ("alice:1:1,canary:1:1", "entry 2 names no API key; there are alice, bob"),
    ],
)
def test_limits_of_nobody_are_refused(text: str, says: str) -> None:
    """By number: who confuses the two lists has put a key there."""
    with pytest.raises(SettingsError, match=says) as refusal:
        read_settings({"ENDSTOP_API_KEYS": BOTH, "ENDSTOP_KEY_LIMITS": text})
    assert "canary" not in str(refusal.value)


def test_limits_without_keys_are_refused() -> None:
    with pytest.raises(SettingsError, match="entry 1 names no API key; there are none"):
        read_settings({"ENDSTOP_KEY_LIMITS": "alice:1:1"})


def test_settings_with_keys_can_be_changed_as_others() -> None:
    assert replace(Settings(), api_keys=ApiKeys.parse(BOTH)).api_keys
    assert not Settings().api_keys
