"""Which block of the KV cache belongs to whom. Plain Python, no torch: the tensors are the model runner's.

The cache is cut into blocks of `BLOCK_TOKENS` tokens. A sequence owns as many as its tokens need. A block that is full
may be shared: whoever begins with the same tokens takes it instead of computing it again. Equal means equal token by
token, from the first one on; nothing is a matter of hashes alone. What nobody owns any more stays until its room is
needed, the least recently used goes first. Generation thread only.

Source: PagedAttention, arXiv:2309.06180; automatic prefix caching as in vLLM.
"""

from collections import OrderedDict
from collections.abc import Sequence

BLOCK_TOKENS = 16
# Holds zeros for ever. What is padded looks here: nothing of another request, and no NaN that 0 * NaN would spread.
PADDING_BLOCK = 0
# The content in front of every first block.
ROOT = 0


def num_blocks_for(num_tokens: int) -> int:
    """Blocks that so many tokens need."""
    return -(-num_tokens // BLOCK_TOKENS)


class BlockPool:
    """Free, owned and remembered blocks. Numbers run from 1: block 0 is for padding."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks, 0, -1))
        self._num_owners = [0] * (num_blocks + 1)
        # Blocks that nobody owns and whose content is known, the least recently used first.
        self._idle: OrderedDict[int, None] = OrderedDict()
        # What comes before a block, and its own tokens: together its content, to which a number is given.
        self._block_of: dict[tuple[int, tuple[int, ...]], int] = {}
        self._key_of: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._content_of: dict[int, int] = {}
        self._num_contents = ROOT

    @property
    def num_free(self) -> int:
        """Blocks that can be taken now."""
        return len(self._free) + len(self._idle)

    @property
    def num_remembered(self) -> int:
        """Free ones whose content is known."""
        return len(self._idle)

    def take(self, num_blocks: int) -> list[int]:
        """Blocks whose content is to be written by their new owner.

        Raises:
            IndexError: There are not so many; look at `num_free` first. None is taken.
        """
        if num_blocks > self.num_free:
            raise IndexError(f"{num_blocks} blocks are wanted and {self.num_free} are free")
        taken = []
        for _ in range(num_blocks):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._idle.popitem(last=False)
                self._forget(block)
            self._num_owners[block] = 1
            taken.append(block)
        return taken

    def match(self, token_ids: Sequence[int]) -> list[int]:
        """Own, with others, the blocks that hold the beginning of these tokens. As many whole blocks as are known."""
        matched: list[int] = []
        content = ROOT
        for start in range(0, len(token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            block = self._block_of.get((content, tuple(token_ids[start : start + BLOCK_TOKENS])))
            if block is None:
                break
            self._idle.pop(block, None)
            self._num_owners[block] += 1
            matched.append(block)
            content = self._content_of[block]
        return matched

    def publish(self, block: int, before: int, token_ids: Sequence[int]) -> int:
        """Let others have a block that is full and has been computed.

        Args:
            block: One that the caller owns.
            before: The content in front of it: `ROOT`, or what this returned for the block before.
            token_ids: Its tokens.

        Returns:
            The number of its content. The same for a block that somebody else has published with the same content;
            then this one is not given to others.
        """
        key = before, tuple(token_ids)
        known = self._block_of.get(key)
        if known is not None:
            return self._content_of[known]
        self._num_contents += 1
        self._block_of[key], self._key_of[block] = block, key
        self._content_of[block] = self._num_contents
        return self._num_contents

    def release(self, blocks: Sequence[int]) -> None:
        """Give blocks back, those of one sequence in its order.

        Raises:
            ValueError: Nobody owns one of them: two owners would overwrite each other.
        """
        for block in reversed(blocks):  # the end of a text is forgotten first: without its beginning it is nothing
            if not 1 <= block <= self.num_blocks or self._num_owners[block] == 0:
                raise ValueError(f"block {block} is not taken")
            self._num_owners[block] -= 1
            if self._num_owners[block] == 0:
                if block in self._content_of:
                    self._idle[block] = None
                else:
                    self._free.append(block)

    def _forget(self, block: int) -> None:
        del self._block_of[self._key_of.pop(block)]
        del self._content_of[block]
