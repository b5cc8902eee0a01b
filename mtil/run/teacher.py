"""The soft outputs of a teacher, an ensemble, for the training images of a distilled run."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mtil import parquet
from mtil.data.dataset.batches import to_squares
from mtil.data.dataset.shards import pixels
from mtil.documents import shorten_text
from mtil.errors import DataError, NotFoundError, TooLargeError
from mtil.run import names
from mtil.run.folder import Run

_MAX_BYTES = 2**34
_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("malignant", pa.float64(), nullable=False),
    ]
)
_MODELS_KEY = b"model_sha256"


class TeacherOutputs:
    """Outputs of a teacher for n images."""

    def __init__(
        self,
        sample_id: Sequence[str],
        lesion: npt.NDArray[np.uint8],
        malignant: npt.NDArray[np.float64],
        model_sha256: str,
    ) -> None:
        """Hold the outputs.

        Args:
            sample_id: ids of the images.
            lesion: (n, m, m) lesion probability of each pixel in 255ths.
            malignant: (n,) calibrated probability of malignant.
            model_sha256: digests of the models, separated by `;`.
        """
        self.sample_id, self.lesion, self.malignant = sample_id, lesion, malignant
        self.model_sha256 = model_sha256
        self._index = {name: position for position, name in enumerate(sample_id)}

    def select(
        self, sample_ids: Sequence[str]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
        """Return maps (b, m, m) and probabilities (b,) of images.

        Raises:
            DataError: if the teacher has no output for an image.
        """
        missing = [name for name in sample_ids if name not in self._index]
        if missing:
            raise DataError(
                "A teacher must have an output for every training image, but lacks "
                f"{missing[0]!r}; run `mtil distil` again, to another run."
            )
        rows = [self._index[name] for name in sample_ids]
        return self.lesion[rows], self.malignant[rows]


def write_teacher_outputs(run: Run, fold: int, outputs: TeacherOutputs) -> None:
    """Write the outputs for a fold's training images to a run.

    Raises:
        DataError: if the outputs are too large to be read again.
    """
    if outputs.lesion.nbytes > parquet.MAX_BYTES // 2:
        raise DataError(
            f"A teacher's outputs must fit into {parquet.MAX_BYTES // 2**21} MiB, but those for "
            f"{len(outputs.sample_id)} images take {outputs.lesion.nbytes // 2**20} MiB; distil on "
            "fewer images, or at a smaller `data.image_size`."
        )
    lesion = outputs.lesion.reshape(len(outputs.sample_id), -1)
    table = pa.table(
        {
            "sample_id": pa.array(outputs.sample_id, pa.string()),
            "lesion": pa.array([row.tobytes() for row in lesion], pa.binary(lesion.shape[1])),
            "malignant": pa.array(outputs.malignant, pa.float64()),
        }
    ).replace_schema_metadata({_MODELS_KEY: outputs.model_sha256.encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    run.store.write(names.teacher_name(fold), sink.getvalue().to_pybytes())


def read_teacher_outputs(run: Run, fold: int) -> TeacherOutputs:
    """Read the outputs for a fold's training images.

    Raises:
        DataError: if the run has none, or the file is damaged.
    """
    name = names.teacher_name(fold)
    try:
        table = parquet.read_parquet(run.store.read(name, max_bytes=_MAX_BYTES), schema=_SCHEMA)
        lesion = to_squares(pixels(table.column("lesion")))
    except NotFoundError:
        raise DataError(
            "A run with `loss.teacher` must have a teacher's outputs, but "
            f"{run.uri}/{name} is missing; make the run with `mtil distil`."
        ) from None
    except (pa.ArrowException, TooLargeError, KeyError, ValueError) as error:
        raise DataError(
            f"{run.uri}/{name} must hold a teacher's outputs, but does not "
            f"({shorten_text(str(error))}); run `mtil distil` again, to another run."
        ) from None
    return TeacherOutputs(
        table.column("sample_id").to_pylist(),
        lesion,
        table.column("malignant").to_numpy(),
        (table.schema.metadata or {}).get(_MODELS_KEY, b"").decode(),
    )
