"""The number of CPU threads of a run's training processes."""

import json
from typing import Annotated

from pydantic import Field, TypeAdapter

from mtil.documents import Document
from mtil.run import names
from mtil.run.folder import Run

_MAX_THREADS = 4096
_NUMBERS: TypeAdapter[dict[str, int]] = TypeAdapter(
    dict[str, Annotated[int, Field(ge=1, le=_MAX_THREADS)]]
)


def settle_num_threads(run: Run, proposed: int) -> int:
    """Return the CPU threads of each training process of a run.

    The first proposal is stored in the run and holds for every later process.

    Args:
        run: the run.
        proposed: threads that suit the present machine, at least 1.

    Raises:
        DataError: if the run's file holds anything but one number.
    """
    # Floating-point sums depend on the thread count, so every resumed process must use the same.
    run.store.create(names.THREADS, json.dumps({"threads": proposed}).encode())
    document = Document(
        f"{run.uri}/{names.THREADS}",
        'write {"threads": N} with the number that the run began with, or name another --run',
    )
    values = document.validate(_NUMBERS, document.object(document.read(run.store, names.THREADS)))
    if values.keys() != {"threads"}:
        document.refuse("must hold `threads` alone")
    return values["threads"]
