"""A failure before the first byte."""

import pytest

from tests.support.servers import Server


@pytest.mark.slow
def test_a_503_without_a_stream_says_when_to_come_back(gated: Server) -> None:
    """Stream contract, section 3: before the first byte a failure is 503 + Retry-After."""
    gated.post("/fault/oom")
    gated.allow(1)
    answer = gated.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "VRAM_OOM"
    assert "Retry-After" in answer.headers
