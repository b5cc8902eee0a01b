"""Limits on the bytes read into memory."""

from collections.abc import Iterable

from mtil.errors import TooLargeError


def join_chunks(chunks: Iterable[bytes], where: str, max_bytes: int | None) -> bytes:
    """Join an object's chunks, up to a maximum size.

    Args:
        chunks: the object's bytes, in order.
        where: the object's location, for the error.
        max_bytes: maximum size in bytes; None for no limit.

    Raises:
        TooLargeError: if the object has more than `max_bytes` bytes.
    """
    if max_bytes is None:
        return b"".join(chunks)
    # Stop at the first byte beyond the limit, so an oversized object never fills the memory.
    pieces, size = [], 0
    for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise too_large_error(where, max_bytes)
        pieces.append(chunk)
    return b"".join(pieces)


def too_large_error(where: str, max_bytes: int) -> TooLargeError:
    """Return the error for an object larger than the reader's limit."""
    return TooLargeError(
        f"{where} must have at most {max_bytes} bytes, but has more; the file is damaged or "
        "was not written by mtil."
    )
