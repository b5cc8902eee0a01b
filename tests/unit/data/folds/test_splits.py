"""`splits.json`: fold and part of every image, written, edited and read back."""

import json
from pathlib import Path

import pytest

from mtil.data.dataset.shards import HOLDOUT
from mtil.data.folds import splits
from mtil.data.folds.assign import FoldAssignment
from mtil.data.layouts.record import Record
from mtil.errors import DataError

PLACE = {"a": (0, 1), "b": (1, 0), "c": (1, 0), "é": (HOLDOUT, 0)}
GROUP = {"a": "a", "b": "b", "c": "b", "é": "é"}
MADE = FoldAssignment("grouped stratified", 2, 3, PLACE)


def _records(*names: str) -> list[Record]:
    return [Record(sample_id=name, label=0, image=name, masks=()) for name in names]


def _written(folder: Path, values: object) -> str:
    path = folder / "splits.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return str(path)


def test_a_line_an_image_says_where_it_is() -> None:
    text = splits.serialize_splits(MADE, GROUP).decode()
    assert json.loads(text) == {
        "rule": "grouped stratified",
        "num_folds": 2,
        "num_parts": 3,
        "images": {
            "a": {"fold": 0, "part": 1, "group": "a"},
            "b": {"fold": 1, "part": 0, "group": "b"},
            "c": {"fold": 1, "part": 0, "group": "b"},
            "é": {"fold": -1, "part": 0, "group": "é"},
        },
    }
    assert sum('"fold"' in line for line in text.splitlines()) == 4


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_bytes(splits.serialize_splits(MADE, GROUP))
    found = splits.read_splits_file(str(path))
    assert (found.num_folds, found.num_parts, found.place) == (2, 3, PLACE)
    assert found.rule == "splits file"
    fewer = splits.select_kept(found, _records("a", "b"), GROUP, whole_groups=True)
    assert fewer.place == {"a": (0, 1), "b": (1, 0)}


def test_a_group_may_be_parted_only_where_images_count_alone(tmp_path: Path) -> None:
    values = json.loads(splits.serialize_splits(MADE, GROUP))
    values["images"]["c"]["fold"] = 0
    path = _written(tmp_path, values)
    with pytest.raises(DataError, match="has 'b' in fold 1 and 'c' in fold 0"):
        splits.select_kept(
            splits.read_splits_file(path), _records(*PLACE), GROUP, whole_groups=True
        )
    found = splits.select_kept(
        splits.read_splits_file(path), _records(*PLACE), GROUP, whole_groups=False
    )
    assert found.place["c"] == (0, 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("num_folds",), 1, "`num_folds` of .* from 2 to 100, but is 1"),
        (("num_folds",), None, "`num_folds` of .* but is None"),
        (("num_parts",), 9, "`num_parts` of .* from 2 to 8, but is 9"),
        (("images", "a", "fold"), 2, "The fold of 'a' in .* from -1 to 1, but is 2"),
        (("images", "a", "fold"), True, "The fold of 'a' .* but is True"),
        (("images", "a", "part"), "1", "The part of 'a' .* but is '1'"),
        (("images", "a"), 3, "The fold of 'a' .* but is None"),
        (("images",), [], "must have `images`"),
    ],
)
def test_wrong_files_are_refused(
    tmp_path: Path, path: tuple[str, ...], value: object, message: str
) -> None:
    values = json.loads(splits.serialize_splits(MADE, GROUP))
    at = values
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    with pytest.raises(DataError, match=message):
        splits.read_splits_file(_written(tmp_path, values))


def test_every_image_that_is_kept_must_have_a_place() -> None:
    with pytest.raises(DataError, match="must place every image, but lacks 'd'"):
        splits.select_kept(MADE, _records("a", "d"), GROUP | {"d": "d"}, whole_groups=True)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        splits.read_splits_file(str(tmp_path / "none.json"))
    with pytest.raises(DataError, match="must be JSON, but is not"):
        splits.read_splits_file(_written(tmp_path, "{"))
    with pytest.raises(DataError, match="must be a JSON object, but is an array"):
        splits.read_splits_file(_written(tmp_path, "[]"))
    with pytest.raises(DataError, match="must have `images`"):
        splits.read_splits_file(_written(tmp_path, "{}"))


def test_a_holdout_file_takes_the_groups_of_its_images(tmp_path: Path) -> None:
    path = tmp_path / "final.csv"
    path.write_text("image_id\nc\nnot kept\n")
    read, kept = _records("a", "b", "c", "not kept"), _records("a", "b", "c")
    assert splits.read_holdout_file(str(path), read, kept, GROUP) == {"b"}
    path.write_text("image_id\nnot kept\n")
    with pytest.raises(DataError, match="names none"):
        splits.read_holdout_file(str(path), read, kept, GROUP)
    path.write_text("image_id\na\nbenign (999)\n")
    with pytest.raises(DataError, match=r"names 1 unknown images, such as 'benign \(999\)'"):
        splits.read_holdout_file(str(path), read, kept, GROUP)


def test_a_group_lies_in_one_inner_part(tmp_path: Path) -> None:
    values = json.loads(splits.serialize_splits(MADE, GROUP))
    values["images"]["c"]["part"] = 2
    path = _written(tmp_path, values)
    with pytest.raises(DataError, match=r"one part, .* has 'b' in part 0 and 'c' in part 2"):
        splits.select_kept(
            splits.read_splits_file(path), _records(*PLACE), GROUP, whole_groups=True
        )
