"""Limits on the file bytes and image pixels held in memory by all threads of a process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryBudget:
    """An amount shared by threads; a thread waits while too little is free.

    Requests are served in order of arrival. A request above the total waits until the whole amount
    is free.
    """

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self._free = amount
        self._changed = threading.Condition()
        self._turn = threading.Lock()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Reserve an amount while the block runs."""
        # A file above the budget must still be read: clamping lets a large request run alone.
        taken = min(amount, self.amount)
        # `_turn` queues the requests; otherwise small images could overtake a large one for ever.
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= taken)
            self._free -= taken
        try:
            yield
        finally:
            # Without `_turn`: a waiting thread holds the lock until memory is released here.
            with self._changed:
                self._free += taken
                self._changed.notify_all()


# An image of 89 megapixels takes about 1.5 GB while decoded and examined; eight threads would need
# 12 GB. Eight images of 4 megapixels fit in 2**25 pixels and never wait.
PIXEL_BUDGET = MemoryBudget(2**25)
"""Pixels decoded and examined at once in a process."""
# Each thread reserves `FILE_BYTE_BUDGET` before `PIXEL_BUDGET`; a fixed order prevents deadlock.
FILE_BYTE_BUDGET = MemoryBudget(2**29)
"""Bytes of local image files in memory at once in a process."""
