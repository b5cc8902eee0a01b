"""Classify failures on a cluster: unwrap mtil errors inside Ray errors, and decide on retries."""

import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import cast

from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RaySystemError,
    RpcError,
    WorkerCrashedError,
)

from mtil import errors
from mtil.errors import (
    LostError,
    MtilError,
    NotFoundError,
    OutOfMemoryError,
    ResourceError,
    RunError,
    StorageError,
    UserError,
)

_ERROR_TEXT = re.compile(r"^mtil\.errors\.(?P<kind>\w+): (?P<message>.+)$", re.MULTILINE)
_LOSSES = (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RaySystemError,
    RpcError,
    WorkerCrashedError,
)
# Ray Train's errors are matched by name: the import takes half a second, and only processes that
# train need Ray Train.
_FAILED_TRAININGS = {"TrainingFailedError"}
_TRAIN_LOSSES = {
    "PreemptionError",
    "WorkerGroupStartupFailedError",
    "WorkerGroupStartupTimeoutError",
    "WorkerHealthCheckTimeoutError",
}
_CAUSE_ATTRIBUTES = ("cause", "controller_failure", "health_check_failure")
"""Attributes in which errors of Ray and Ray Train keep the original error."""


@contextmanager
def unwrap_errors(what: str = "Training") -> Iterator[None]:
    """Convert Ray errors in the block into mtil errors.

    Args:
        what: subject of the message, as in "Training failed: …".

    Raises:
        MtilError: the wrapped mtil error, if any; else `LostError` for a loss, else `RunError`.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(error, RayError) or _is_of_ray_train(error, _FAILED_TRAININGS)):
            raise
        mtil_error = find_mtil_error(error)
        if mtil_error is not None:
            raise mtil_error from error
        lines = [line for line in str(error).splitlines() if line.strip()]
        kind = LostError if is_loss(error) else RunError
        raise kind(f"{what} failed: {lines[-1] if lines else type(error).__name__}") from error


def find_mtil_error(error: BaseException) -> MtilError | None:
    """Return the mtil error wrapped in an error. None if no mtil error is found.

    Also parses error texts, because Ray Data passes on only the text of errors raised in tasks.
    """
    for current in _chain(error):
        # Ray raises dynamic subclasses of the original class, defined in other modules. Only an
        # exact mtil class has the plain message.
        if isinstance(current, MtilError) and type(current).__module__ == MtilError.__module__:
            return current
        match = _ERROR_TEXT.search(str(current))
        if match:
            return cast(MtilError, getattr(errors, match["kind"])(match["message"]))
    return None


def find_user_error(error: BaseException) -> UserError | None:
    """Return the user error behind an error. None for other failures.

    A retry would fail again, unlike after a storage outage or a lost machine.
    """
    mtil_error = find_mtil_error(error)
    return mtil_error if isinstance(mtil_error, UserError) and not is_loss(mtil_error) else None


def would_fail_again(error: BaseException) -> bool:
    """Return True for a user error and for a lack of memory: a repeated training fails again."""
    lacks_memory = isinstance(find_mtil_error(error), OutOfMemoryError)
    return lacks_memory or find_user_error(error) is not None


def is_loss(error: BaseException) -> bool:
    """Return True if a process, a machine or the storage was lost. A retry may succeed."""
    mtil_error = find_mtil_error(error)
    if mtil_error is not None:
        lost = isinstance(mtil_error, LostError | ResourceError | StorageError)
        # A missing object stays missing, so NotFoundError is no outage.
        return lost and not isinstance(mtil_error, NotFoundError)
    return any(
        isinstance(current, _LOSSES) or _is_of_ray_train(current, _TRAIN_LOSSES)
        for current in _chain(error)
    )


def _is_of_ray_train(error: BaseException, names: Set[str]) -> bool:
    return any(
        kind.__name__ in names and kind.__module__.startswith("ray.train")
        for kind in type(error).__mro__
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all errors linked from it."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        pending += [current.__cause__, current.__context__]
        pending += [getattr(current, name, None) for name in _CAUSE_ATTRIBUTES]
        pending += list(getattr(current, "worker_failures", {}).values())
