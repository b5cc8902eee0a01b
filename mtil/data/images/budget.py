"""A bound on what the threads of a process hold at once: bytes of files, pixels of images."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """An amount that threads share; a thread that asks for more than is free waits.

    Requests are served in the order of their arrival, so that a large image is not overtaken by
    small ones for ever. A request for more than the whole amount waits until nobody else holds any.
    """

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self._free = amount
        self._changed = threading.Condition()
        self._turn = threading.Lock()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Take an amount while the block runs."""
        taken = min(amount, self.amount)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= taken)
            self._free -= taken
        try:
            yield
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()


PIXELS = Budget(2**25)
"""Pixels that are decoded and examined at once in a process: an image of 89 megapixels takes about
1.5 GB on the way, eight of them at once would take 12. Eight images of 4 megapixels never wait."""
FILES = Budget(2**29)
"""Bytes of local image files that are in memory at once in a process. A thread takes its share of
`FILES` first and of `PIXELS` second, so that no two threads wait for each other."""
