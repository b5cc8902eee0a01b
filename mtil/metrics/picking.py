"""Which epoch of a training is kept, by its scores on the inner validation rows."""

from collections.abc import Sequence


def kept_epoch(scores: Sequence[float], tolerance: float) -> int:
    """Return the last epoch whose score is within a tolerance of the highest.

    A few dozen validation images cannot tell epochs apart whose scores differ by less than chance;
    of those the last has been trained, and its weights averaged, the longest.

    Args:
        scores: of every epoch so far, at least one.
        tolerance: how much less than the highest is as good.
    """
    enough = max(scores) - tolerance
    return max(epoch for epoch, score in enumerate(scores) if score >= enough)
