"""Teacher outputs are stored in a run and read back."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mtil.config import Config
from mtil.errors import DataError
from mtil.run import teacher
from mtil.run.folder import Run
from mtil.run.teacher import TeacherOutputs, read_teacher_outputs, write_teacher_outputs


@pytest.fixture
def run(tmp_path: Path, make_config: Callable[..., Config]) -> Run:
    return Run.create(str(tmp_path / "run"), make_config(), "data", "f" * 64)


@pytest.fixture
def outputs() -> TeacherOutputs:
    lesion = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    return TeacherOutputs(["a", "b", "c"], lesion, np.array([0.1, 0.5, 0.9]), "1;2")


def test_outputs_come_back_as_they_were_written(run: Run, outputs: TeacherOutputs) -> None:
    write_teacher_outputs(run, 1, outputs)
    read = read_teacher_outputs(run, 1)
    assert read.sample_id == outputs.sample_id
    assert read.model_sha256 == "1;2"
    np.testing.assert_array_equal(read.lesion, outputs.lesion)
    np.testing.assert_array_equal(read.malignant, outputs.malignant)
    lesion, malignant = read.select(["c", "a"])
    np.testing.assert_array_equal(lesion, outputs.lesion[[2, 0]])
    assert malignant.tolist() == [0.9, 0.1]


def test_an_image_without_an_output_is_named(outputs: TeacherOutputs) -> None:
    with pytest.raises(DataError, match="lacks 'd'"):
        outputs.select(["a", "d"])


def test_missing_and_damaged_outputs_are_one_sentence(run: Run, outputs: TeacherOutputs) -> None:
    with pytest.raises(DataError, match=r"teacher/fold-1\.parquet is missing; make the run with"):
        read_teacher_outputs(run, 1)
    write_teacher_outputs(run, 1, outputs)
    data = run.store.read("teacher/fold-1.parquet")
    run.store.write("teacher/fold-1.parquet", data[: len(data) // 2])
    with pytest.raises(DataError, match=r"must hold a teacher's outputs, but does not"):
        read_teacher_outputs(run, 1)


def test_outputs_that_could_not_be_read_again_are_not_written(
    run: Run, outputs: TeacherOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher.parquet, "MAX_BYTES", 2 * outputs.lesion.nbytes - 2)
    with pytest.raises(DataError, match="those for 3 images take"):
        write_teacher_outputs(run, 1, outputs)
    assert not run.store.exists("teacher/fold-1.parquet")
