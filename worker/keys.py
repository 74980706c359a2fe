"""API keys and the limits of single ones, as the settings name them. Pure: no I/O, any thread.

Law: a key is hashed when it is read and kept nowhere; no `repr` and no message of this file repeats a piece of one. A
key has a name, and the name is what logs, jobs and limits go by.
"""

import hashlib
import hmac
import re
from collections.abc import Iterator
from dataclasses import dataclass

DEFAULT_NAME = "default"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
# SHA-256 without salt or stretching is enough for what nobody can guess, and a request is not held up by it. 16
# characters by chance are 80 bits and more; a shorter key can be found from its hash.
MIN_KEY_CHARACTERS, MAX_KEY_CHARACTERS = 16, 512
_KEY = re.compile(rf"[!-~]{{{MIN_KEY_CHARACTERS},{MAX_KEY_CHARACTERS}}}")  # printable ASCII: what a header can carry
_HASHED = "sha256:"
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The hash of a key, and the name that it stands for."""

    name: str
    digest: bytes

    def __repr__(self) -> str:
        return f"ApiKey({self.name})"


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """All keys. Several may have one name: then they are one client, who can change from one to the next."""

    keys: tuple[ApiKey, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "ApiKeys":
        """Read `name:key` or `name:sha256:<64 hex digits>`, separated by commas or on lines of their own.

        A key without a name has the name `default`: that is what platforms generate.
        Empty entries and lines that begin with `#` are left out.

        Raises:
            ValueError: Says which entry is wrong by its number, and repeats nothing of it.
        """
        entries = list(_entries(text))
        if not entries:  # a variable that came out empty must not open the server
            raise ValueError("holds no key; write name:key, or leave it out to serve without keys")
        keys: list[ApiKey] = []
        for number, entry in enumerate(entries, 1):
            name, colon, key = entry.partition(":")
            if not colon:
                name, key = DEFAULT_NAME, entry
            # Named like the mark of hashes, what was meant as one would be the key itself.
            if not _NAME.fullmatch(name) or not key or name == _HASHED.rstrip(":"):
                raise ValueError(f"entry {number} is not name:key (a name has up to 64 of A-Z a-z 0-9 . _ -)")
            keys.append(ApiKey(name, _digest_of(number, key)))
        return cls(tuple(keys))

    def __post_init__(self) -> None:
        names: dict[bytes, str] = {}
        for key in self.keys:
            if (other := names.setdefault(key.digest, key.name)) != key.name:
                raise ValueError(f"{other} and {key.name} have the same key; give each name a key of its own")

    def __bool__(self) -> bool:
        return bool(self.keys)

    def __str__(self) -> str:
        return ", ".join(self.names)

    __repr__ = __str__

    def __add__(self, others: "ApiKeys") -> "ApiKeys":
        return ApiKeys(self.keys + others.keys)

    @property
    def names(self) -> list[str]:
        """Each once, in order."""
        return list(dict.fromkeys(key.name for key in self.keys))

    @property
    def hashed(self) -> str:
        """The same keys as `parse` reads them, without any key in it."""
        return ",".join(f"{key.name}:{_HASHED}{key.digest.hex()}" for key in self.keys)

    def name_of(self, key: str) -> str | None:
        """The name that a key stands for; None if it is not known.

        Takes as long for any key: each is compared, to its end, whether one before has matched or not.
        """
        digest = hashlib.sha256(key.encode("utf-8", "replace")).digest()
        found = None
        for known in self.keys:
            if hmac.compare_digest(known.digest, digest):
                found = known.name
        return found


def _entries(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.lstrip().startswith("#"):
            yield from (entry.strip() for entry in line.split(",") if entry.strip())


def _digest_of(number: int, key: str) -> bytes:
    if key.startswith(_HASHED):
        if not _DIGEST.fullmatch(key.removeprefix(_HASHED)):
            raise ValueError(f"entry {number} is not name:sha256:<64 hex digits>")
        return bytes.fromhex(key.removeprefix(_HASHED))
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"the key of entry {number} must have {MIN_KEY_CHARACTERS} to {MAX_KEY_CHARACTERS} printable ASCII "
            "characters without a space or a comma; `python -c 'import secrets; print(secrets.token_urlsafe())'` "
            "makes one"
        )
    return hashlib.sha256(key.encode()).digest()


@dataclass(frozen=True, slots=True)
class KeyLimit:
    """How much one client may ask for. 0: as much as there is room for."""

    concurrency: int = 0  # requests that are open at once
    tokens_per_minute: int = 0  # of prompts and answers together


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """Limits of single names, in place of those for all."""

    limits: tuple[tuple[str, KeyLimit], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "KeyLimits":
        """Read `name:concurrency:tokens_per_minute`, separated by commas.

        Raises:
            ValueError: Says which entry is wrong by its number, and repeats nothing of it: it may be a key.
        """
        limits: dict[str, KeyLimit] = {}
        for number, entry in enumerate(_entries(text), 1):
            name, *counts = entry.split(":")
            if len(counts) != 2 or not all(re.fullmatch(r"[0-9]{1,12}", count) for count in counts):
                raise ValueError(f"entry {number} is not name:concurrency:tokens_per_minute; 0 is no limit")
            if name in limits:
                raise ValueError(f"entry {number} has the name of one before")
            limits[name] = KeyLimit(int(counts[0]), int(counts[1]))
        return cls(tuple(limits.items()))

    def __str__(self) -> str:
        return ",".join(f"{name}:{limit.concurrency}:{limit.tokens_per_minute}" for name, limit in self.limits)
