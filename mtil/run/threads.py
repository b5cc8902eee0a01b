"""The number of CPU threads of a run, equal in all training processes."""

import json
from collections.abc import Callable
from typing import Annotated

from pydantic import Field, TypeAdapter

from mtil.config import Config
from mtil.documents import Document
from mtil.run import names
from mtil.run.folder import Run

_MAX_THREADS = 4096
_THREAD_COUNTS: TypeAdapter[dict[str, int]] = TypeAdapter(
    dict[str, Annotated[int, Field(ge=1, le=_MAX_THREADS)]]
)


def choose_num_threads(config: Config, available: Callable[[], float]) -> int:
    """Return the number of CPU threads for a training process on the current machines.

    Args:
        config: the run's configuration; `train.cpus_per_worker` decides if given.
        available: called otherwise; returns the CPUs of each process.
    """
    configured = config.train.cpus_per_worker
    return max(1, int(available()) if configured is None else round(configured))


def settle_num_threads(run: Run, proposed: int) -> int:
    """Return the number of CPU threads of each training process of a run.

    The first call stores the proposed number in the run. Later calls return the stored number.

    Args:
        run: the run.
        proposed: number of threads for the current machine, at least 1.

    Raises:
        DataError: if the file of the run is damaged.
    """
    # Floating-point sums depend on the thread count, so every resumed process must use
    # the stored number. `create` leaves an existing file unchanged.
    run.store.create(names.THREADS, json.dumps({"threads": proposed}).encode())
    document = Document(
        f"{run.uri}/{names.THREADS}",
        'write {"threads": N} with the original number of the run, or name another --run',
    )
    values = document.validate(
        _THREAD_COUNTS, document.object(document.read(run.store, names.THREADS))
    )
    if values.keys() != {"threads"}:
        document.refuse("must hold only `threads`")
    return values["threads"]
