"""A KV cache that holds tokens instead of keys and values, and so notices whoever writes or reads where he must not."""

from worker.engine.kv_cache import BLOCK_TOKENS, PADDING_BLOCK
from worker.engine.scheduler import Row


class TokenCache:
    """For runners without a model: in each place of each block the token that was computed there last."""

    def __init__(self) -> None:
        self._tokens: dict[tuple[int, int], int] = {}

    def compute(self, rows: list[Row]) -> None:
        """Write what a step writes, and look that each row finds the tokens that it follows."""
        for row in rows:
            assert PADDING_BLOCK not in row.blocks
            assert len(row.blocks) * BLOCK_TOKENS >= row.end, "no room for its tokens"
            for i, token_id in enumerate(row.token_ids, row.start):
                self._tokens[self._place(row, i)] = token_id
        for row in rows:
            found = [self._tokens.get(self._place(row, i)) for i in range(row.end)]
            assert found == row.sequence.tokens(0, row.end), "another one's tokens are in its blocks"

    @staticmethod
    def _place(row: Row, i: int) -> tuple[int, int]:
        return row.blocks[i // BLOCK_TOKENS], i % BLOCK_TOKENS
