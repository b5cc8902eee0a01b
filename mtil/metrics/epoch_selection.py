"""Choose the epoch of a training to keep, by the scores on the inner validation rows."""

from collections.abc import Sequence


def select_epoch(scores: Sequence[float], tolerance: float) -> int:
    """Return the last epoch with a score within `tolerance` of the highest score.

    Args:
        scores: scores by epoch, not empty.
        tolerance: largest difference from the highest score that counts as equally good.
    """
    # A few dozen validation images cannot distinguish epochs with scores closer than chance. Among
    # equally good epochs, the last is trained, and its weights averaged, the longest.
    enough = max(scores) - tolerance
    return max(epoch for epoch, score in enumerate(scores) if score >= enough)
