"""Bounds on what is read into memory."""

from collections.abc import Iterable

from mtil.errors import TooLargeError


def join(chunks: Iterable[bytes], where: str, max_bytes: int | None) -> bytes:
    """Join an object's chunks and stop at the first byte beyond a bound.

    Args:
        chunks: the object's bytes, piece by piece.
        where: names the object in the error.
        max_bytes: the most bytes to take; no bound if None.

    Raises:
        TooLargeError: if there are more bytes.
    """
    if max_bytes is None:
        return b"".join(chunks)
    taken, size = [], 0
    for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise too_large(where, max_bytes)
        taken.append(chunk)
    return b"".join(taken)


def too_large(where: str, max_bytes: int) -> TooLargeError:
    """Return the error for an object of more bytes than its reader takes."""
    return TooLargeError(
        f"{where} must have at most {max_bytes} bytes, but has more; it is not a file that mtil "
        "has written, or it is damaged."
    )
