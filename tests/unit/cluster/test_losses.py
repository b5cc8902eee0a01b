"""Recognition of lost processes and machines in errors wrapped by Ray."""

import pickle

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    RayTaskError,
    RpcError,
    WorkerCrashedError,
)
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from mtil.distributed.runtime.failures import (
    find_mtil_error,
    is_loss,
    unwrap_errors,
    would_fail_again,
)
from mtil.errors import (
    DataError,
    LostError,
    NotFoundError,
    OutOfMemoryError,
    RunError,
    StorageError,
)


def _killed_worker() -> WorkerGroupError:
    """Return the error of Ray Train for a killed worker."""
    health = WorkerHealthCheckFailedError("Worker health check failed", ActorDiedError())
    return WorkerGroupError("[Rank 1] died", {1: health})


LOSSES = [
    LocalRayletDiedError(),
    NodeDiedError("the node is dead"),
    RpcError("connection reset"),
    WorkerCrashedError(),
    ActorUnavailableError("not reachable", b"\0" * 16),
    _killed_worker(),
    ControllerError(ActorDiedError()),
    ControllerError(_killed_worker()),
    WorkerGroupStartupFailedError("a worker died while it started"),
    WorkerGroupStartupTimeoutError(2),
    ControllerError(WorkerGroupStartupFailedError("a worker died while it started")),
    LostError("a process died"),
    StorageError("no answer"),
]
OTHERS = [
    ValueError("a mistake"),
    ControllerError(ValueError("a mistake")),
    WorkerGroupError("[Rank 0] failed", {0: ValueError("a mistake")}),
    WorkerGroupError(
        "[Rank 0] failed", {0: UserExceptionWithTraceback(ValueError("x"), "ValueError: x")}
    ),
    RayTaskError("perform", "Traceback: ValueError: x", ValueError("x")),
    DataError("a mistake"),
    NotFoundError("no such object"),
]


@pytest.mark.parametrize("error", LOSSES, ids=lambda error: type(error).__name__)
def test_a_lost_process_is_a_loss_however_it_is_wrapped(error: Exception) -> None:
    assert is_loss(error)
    assert is_loss(pickle.loads(pickle.dumps(error)))


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: type(error).__name__)
def test_a_mistake_is_no_loss(error: Exception) -> None:
    assert not is_loss(error)


def test_an_error_of_ours_decides_even_where_a_process_died_with_it() -> None:
    error = WorkerGroupError("two failed", {0: DataError("no rows"), 1: ActorDiedError()})
    found = find_mtil_error(error)
    assert isinstance(found, DataError)
    assert not is_loss(error)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (DataError("no rows"), True),
        (OutOfMemoryError("too little memory"), True),
        (StorageError("no answer"), False),
        (ValueError("a mistake"), False),
    ],
)
def test_a_training_is_repeated_unless_it_would_fail_again(
    failure: Exception, expected: bool
) -> None:
    assert would_fail_again(WorkerGroupError("[Rank 0] failed", {0: failure})) == expected
    assert not would_fail_again(_killed_worker())


def test_a_training_whose_worker_was_killed_too_often_is_lost_and_not_failed() -> None:
    with pytest.raises(LostError):
        _raise(_killed_worker())
    with pytest.raises(RunError, match="a mistake") as raised:
        _raise(WorkerGroupError("a mistake", {0: ValueError("a mistake")}))
    assert not isinstance(raised.value, LostError)


def _raise(error: Exception) -> None:
    with unwrap_errors():
        raise error
