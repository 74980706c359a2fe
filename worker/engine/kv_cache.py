"""Which slot of the KV cache belongs to whom. Plain Python, no torch: the tensors are the model runner's.

A slot is room for the keys and values of one sequence of up to `max_context` tokens, taken when the sequence starts
and given back when it ends. Generation thread only.
"""

import heapq


class SlotPool:
    """Free slots, the lowest first, so that those in use stay close together and decode as one batch."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = list(range(num_slots))

    @property
    def num_free(self) -> int:
        """Slots that can be taken now."""
        return len(self._free)

    def take(self) -> int:
        """The lowest free slot.

        Raises:
            IndexError: There is none; look at `num_free` first.
        """
        return heapq.heappop(self._free)

    def give_back(self, slot: int) -> None:
        """Make a slot free again.

        Raises:
            ValueError: It is free already: two owners would overwrite each other.
        """
        if slot in self._free or not 0 <= slot < self.num_slots:
            raise ValueError(f"slot {slot} is not taken")
        heapq.heappush(self._free, slot)
