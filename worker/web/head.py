"""What the loop has to know of a request before it can say who serves it.

No parser: gunicorn's own decides what is valid, and reads the same bytes again.
"""

from dataclasses import dataclass

_BLANK_LINE = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Head:
    """The request line and the headers that say how much follows.

    Attributes:
        num_bytes: With the blank line.
        body_bytes: None when only reading it tells, or the client waits for a word before it sends it.
    """

    method: bytes
    path: bytes
    num_bytes: int
    body_bytes: int | None


def parse_head(received: bytes | bytearray) -> Head | None:
    """The head at the beginning of what has been received; None while it is not whole."""
    end = received.find(_BLANK_LINE)
    if end < 0:
        return None
    request_line, *lines = bytes(received[:end]).split(b"\r\n")
    method, _, rest = request_line.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    body_bytes: int | None = 0
    for line in lines:
        name, _, value = line.partition(b":")
        match name.strip().lower():
            case b"content-length" if body_bytes is not None and value.strip().isdigit():
                body_bytes = int(value)
            case b"transfer-encoding" | b"expect":
                body_bytes = None
    return Head(method, path, end + len(_BLANK_LINE), body_bytes)
