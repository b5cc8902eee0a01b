"""What fails on a cluster: our own error within Ray's, and what the same again may mend."""

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
    ResourceError,
    RunError,
    StorageError,
    UserError,
)

_QUOTED = re.compile(r"^mtil\.errors\.(?P<kind>\w+): (?P<message>.+)$", re.MULTILINE)
_LOSSES = (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RaySystemError,
    RpcError,
    WorkerCrashedError,
)
# Ray Train's by name: only who trains has them, and to import them takes half a second.
_FAILED_TRAININGS = {"TrainingFailedError"}
_TRAIN_LOSSES = {
    "PreemptionError",
    "WorkerGroupStartupFailedError",
    "WorkerGroupStartupTimeoutError",
    "WorkerHealthCheckTimeoutError",
}
_WRAPPED = ("cause", "controller_failure", "health_check_failure")
"""Where errors of Ray and of Ray Train keep the one that they are about."""


@contextmanager
def unwrapped(what: str = "Training") -> Iterator[None]:
    """Raise our own error where Ray wraps one, else a `RunError` that says what failed."""
    try:
        yield
    except Exception as error:
        if not (isinstance(error, RayError) or _is_of_ray_train(error, _FAILED_TRAININGS)):
            raise
        ours = cause(error)
        if ours is not None:
            raise ours from error
        lines = [line for line in str(error).splitlines() if line.strip()]
        kind = LostError if is_loss(error) else RunError
        raise kind(f"{what} failed: {lines[-1] if lines else type(error).__name__}") from error


def cause(error: BaseException) -> MtilError | None:
    """Find the error of ours that Ray has wrapped, if there is one.

    Ray Data passes on only the text of what its tasks raise, so that is looked at too.
    """
    for current in _chain(error):
        if isinstance(current, MtilError) and type(current).__module__ == MtilError.__module__:
            return current
        quoted = _QUOTED.search(str(current))
        if quoted:
            return cast(MtilError, getattr(errors, quoted["kind"])(quoted["message"]))
    return None


def mistake(error: BaseException) -> UserError | None:
    """Return the user's mistake that an error is about, if it is one.

    The same again then fails in the same way, unlike with a storage that does not answer or a
    cluster that has lost machines.
    """
    ours = cause(error)
    return ours if isinstance(ours, UserError) and not is_loss(ours) else None


def is_loss(error: BaseException) -> bool:
    """Say whether something failed for want of a process, a machine or the storage.

    The same again may then succeed, once others have taken their place.
    """
    ours = cause(error)
    if ours is not None:
        lost = isinstance(ours, LostError | ResourceError | StorageError)
        return lost and not isinstance(ours, NotFoundError)
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
    """Yield an error and all that it was raised from or holds."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += [current.__cause__, current.__context__]
        waiting += [getattr(current, name, None) for name in _WRAPPED]
        waiting += list(getattr(current, "worker_failures", {}).values())
