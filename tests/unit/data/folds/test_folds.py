"""Groups and folds: no leaks, every class in every fold, reproducible by seed."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtil.data.dataset.manifest import DroppedImage
from mtil.data.folds import assign, groups
from mtil.data.layouts import Record
from mtil.errors import DataError


def _record(
    sample_id: str, label: int = 0, patient: str | None = None, fold: int | None = None
) -> Record:
    return Record(
        sample_id=sample_id, label=label, image=sample_id, masks=(), patient=patient, fold=fold
    )


def _assign(
    records: list[Record], group: dict[str, str], **options: object
) -> assign.FoldAssignment:
    """Assign folds without lesion sizes."""
    area = {record.sample_id: 0.1 for record in records}
    return assign.assign_folds(records, group, area, **options)  # type: ignore[arg-type]


def _collection(seed: int, num_groups: int = 120) -> tuple[list[Record], dict[str, str]]:
    """Return records in groups of one to six images of a class, and group by sample id."""
    rng = np.random.default_rng(seed)
    records, group = [], {}
    for index in range(num_groups):
        label = int(rng.choice(3, p=(0.5, 0.3, 0.2)))
        for copy in range(int(rng.choice(6, p=(0.7, 0.14, 0.07, 0.05, 0.02, 0.02))) + 1):
            records.append(_record(f"{index}-{copy}", label))
            group[f"{index}-{copy}"] = f"{index}-0"
    return records, group


def test_images_join_through_patients_and_published_groups() -> None:
    records = [_record("a", patient="1"), _record("b", patient="1"), _record("c"), _record("d")]
    published = {"a": "x", "b": "y", "c": "y", "d": "1"}
    found = groups.group_images(
        [replace(record, published=published[record.sample_id]) for record in records]
    )
    assert found.group == {"a": "a", "b": "a", "c": "a", "d": "d"}  # patient 1 is not group 1
    assert found.dropped == ()


def test_images_join_through_pairs() -> None:
    records = [_record(name) for name in "dcbae"]
    found = groups.group_images(records, [("d", "b"), ("e", "d")])
    assert found.group == {"a": "a", "b": "b", "c": "c", "d": "b", "e": "b"}
    assert found.family == found.group


def test_without_patients_and_file_every_image_is_its_own_group() -> None:
    found = groups.group_images([_record("b"), _record("a")])
    assert found.group == {"a": "a", "b": "b"}


def test_images_that_show_the_same_are_dropped_if_they_have_two_classes() -> None:
    records = [_record(name, int(name in "bd")) for name in "abcd"]
    published = {"a": "x", "b": "x"}
    records = [replace(r, published=published.get(r.sample_id, r.sample_id)) for r in records]
    found = groups.group_images(records, [("c", "a")])
    assert found.group == {"d": "d"}
    assert [dropped.sample_id for dropped in found.dropped] == ["a", "b", "c"]
    assert found.family == {"a": "a", "b": "a", "c": "a", "d": "d"}
    assert "group of 3 images holds two classes, benign and malignant: a, b, c" in (
        found.dropped[0].why
    )


def test_a_patient_with_images_of_two_classes_keeps_them_in_one_group() -> None:
    records = [_record("a", 0, "1"), _record("b", 1, "1"), _record("c", 2, "1"), _record("d", 1)]
    found = groups.group_images(records)
    assert (found.group, found.dropped) == ({"a": "a", "b": "a", "c": "a", "d": "d"}, ())


def test_a_near_copy_of_another_class_costs_a_patient_those_images_alone() -> None:
    records = [_record("a", 0, "1"), _record("b", 1, "1"), _record("c", 0, "1")]
    found = groups.group_images(records, [("a", "b")])
    assert found.group == {"c": "a"}
    assert [dropped.sample_id for dropped in found.dropped] == ["a", "b"]
    assert "group of 2 images holds two classes" in found.dropped[0].why


def _group_file(folder: Path, text: str) -> str:
    (folder / "g.csv").write_text(text)
    return str(folder / "g.csv")


def test_a_group_file_may_say_more_than_is_needed(tmp_path: Path) -> None:
    path = _group_file(tmp_path, "image_id,class,group\na,benign,x\nz,benign,x\nb,benign,y\n")
    assert groups.read_group_file(path, [_record("a"), _record("b")]) == {
        "a": groups.PublishedRow("x"),
        "b": groups.PublishedRow("y"),
    }


def test_a_group_file_may_object_to_images(tmp_path: Path) -> None:
    path = _group_file(tmp_path, "image_id,group,objection\na,x,axilla\nb,y,\n")
    assert groups.read_group_file(path, [_record("a"), _record("b")]) == {
        "a": groups.PublishedRow("x", "axilla"),
        "b": groups.PublishedRow("y"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,group\na,x\n", "lacks 1 of 2, such as 'b'"),
        ("image_id,group\na,x\nb,y\na,y\n", "one group, but g.csv gives 'a' the groups 'x' and"),
        ("image_id,group\na,\nb,y\n", "Line 2 of g.csv must give"),
        ("image_id,group,objection\na,x,axilla\nb,y,\na,x,\n", "gives 'a' 'axilla' and ''"),
        ("image,group\na,x\n", "lacks image_id"),
    ],
)
def test_wrong_group_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        groups.read_group_file(_group_file(tmp_path, text), [_record("a"), _record("b")])


@pytest.mark.parametrize("seed", range(5))
def test_folds_and_parts_keep_groups_whole_and_classes_even(seed: int) -> None:
    records, group = _collection(seed)
    made = _assign(records, group, num_folds=5, seed=seed)
    places = {(group[record.sample_id], made.place[record.sample_id]) for record in records}
    assert len(places) == len(set(group.values()))
    counts = Counter((made.place[record.sample_id][0], record.label) for record in records)
    totals = Counter(record.label for record in records)
    for fold in range(5):
        for label in range(3):
            assert abs(counts[fold, label] - totals[label] / 5) <= 3
        training = [record for record in records if made.place[record.sample_id][0] != fold]
        validation = [record for record in training if made.place[record.sample_id][1] == fold % 8]
        assert made.num_parts == 8
        assert 0.08 < len(validation) / len(training) < 0.18
        assert {record.label for record in validation} == {0, 1, 2}


def test_patients_of_several_classes_are_spread_by_the_images_of_each() -> None:
    """Like BUS-UCLM: 38 patients with about 18 images, most patients with normal images."""
    rng = np.random.default_rng(3)
    records, group = [], {}
    for patient in range(38):
        tumour, others = patient % 3 % 2, int(rng.integers(4, 18))
        for index in range(int(rng.integers(8, 24))):
            name = f"{patient:02}-{index:02}"
            records.append(_record(name, 2 if index < others else tumour))
            group[name] = f"{patient:02}"
    made = _assign(records, group, num_folds=5, seed=0)
    assert len({(group[name], place) for name, place in made.place.items()}) == 38
    totals = Counter(record.label for record in records)
    counts = Counter((made.place[record.sample_id][0], record.label) for record in records)
    of_patient = Counter((record.sample_id[:2], record.label) for record in records)
    for label in range(3):
        largest = max(size for (_, kind), size in of_patient.items() if kind == label)
        for fold in range(5):
            assert abs(counts[fold, label] - totals[label] / 5) <= largest / 2 + 2


def test_groups_of_one_class_are_dealt_as_ever() -> None:
    """The assignment of data sets prepared earlier must not change."""
    records, group = _collection(7)
    area = {r.sample_id: (index * 37 % 101) / 101 for index, r in enumerate(records)}
    made = assign.assign_folds(records, group, area, num_folds=5, seed=3)
    text = json.dumps(sorted(made.place.items())).encode()
    assert hashlib.sha256(text).hexdigest()[:16] == "4f0d9ef3e9e462ad"
    held = assign.choose_holdout(records, group, area, share=0.2, seed=3)
    assert hashlib.sha256(" ".join(sorted(held)).encode()).hexdigest()[:16] == "506ba3eb13bca673"


def test_the_seed_alone_decides() -> None:
    records, group = _collection(0)
    once = _assign(records, group, num_folds=5, seed=1)
    assert once == _assign(records[::-1], group, num_folds=5, seed=1)
    assert once.place != _assign(records, group, num_folds=5, seed=2).place


def test_given_folds_are_taken(tmp_path: Path) -> None:
    records = [_record(f"{i:02d}", label=i % 2, fold=(i // 2) % 3) for i in range(48)]
    group = {record.sample_id: record.sample_id for record in records}
    made = _assign(records, group, num_folds=5, seed=0)
    assert (made.rule, made.num_folds) == ("given", 3)
    assert all(made.place[record.sample_id][0] == record.fold for record in records)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0, 1, 0, 1, 1, 1], r"the group of .* in the folds 0 and 1"),
        ([0, 0, 2, 2, 2, 2], "without a gap.* gives 0, 2"),
        ([0, 0, 0, 0, 0, 0], "2 to 100 folds.* gives 0"),
        ([0, 0, 0, 0, 1, 1], "must hold benign images, but fold 1 has none"),
    ],
)
def test_wrong_given_folds_are_refused(given: list[int], message: str) -> None:
    labels = [0, 0, 1, 1, 1, 1]
    records = [
        _record(f"{i}", label, fold=fold)
        for i, (label, fold) in enumerate(zip(labels, given, strict=True))
    ]
    group = {"0": "0", "1": "0"} | {f"{i}": f"{i}" for i in range(2, 6)}
    with pytest.raises(DataError, match=message):
        _assign(records, group, num_folds=5, seed=0)


def test_too_few_groups_are_refused() -> None:
    records = [_record(f"{i}", label=int(i < 4)) for i in range(40)]
    group = {record.sample_id: record.sample_id for record in records}
    with pytest.raises(DataError, match=r"malignant images, but 4 groups .* 5 folds"):
        _assign(records, group, num_folds=5, seed=0)
    dropped = [DroppedImage(sample_id="b7", why="its group holds two classes")]
    with pytest.raises(DataError, match="1 images were dropped, such as 'b7': its group holds two"):
        _assign(records, group, num_folds=5, seed=0, dropped=dropped)
    alone = records[2:6]
    with pytest.raises(DataError, match="4 groups in 2 folds do not"):
        _assign(alone, group, num_folds=2, seed=0)


@pytest.mark.parametrize("num_groups", [12, 16, 24, 30])
def test_small_collections_get_fewer_parts_that_serve(num_groups: int) -> None:
    records = [_record(f"{i:02d}", label=(0, 1, 0)[i % 3]) for i in range(num_groups)]
    group = {record.sample_id: record.sample_id for record in records}
    made = _assign(records, group, num_folds=2, seed=0)
    assert 2 <= made.num_parts <= 8
    for fold in range(2):
        training = [record for record in records if made.place[record.sample_id][0] != fold]
        validated = [
            made.place[record.sample_id][1] == fold % made.num_parts for record in training
        ]
        for kept in (True, False):
            labels = {r.label for r, v in zip(training, validated, strict=True) if v == kept}
            assert labels == {0, 1}


def _sized(num_images: int) -> tuple[list[Record], dict[str, str], dict[str, float]]:
    """Return images of two classes. The lesion area grows with the image number."""
    records = [_record(f"{i:03d}", label=i % 2) for i in range(num_images)]
    group = {record.sample_id: record.sample_id for record in records}
    area = {record.sample_id: 0.001 * (i + 1) for i, record in enumerate(records)}
    return records, group, area


def _terciles(names: Iterable[str]) -> Counter[int]:
    return Counter(int(name) // 60 for name in names)


def test_lesion_sizes_are_spread_evenly_over_folds() -> None:
    records, group, area = _sized(180)
    made = assign.assign_folds(records, group, area, num_folds=5, seed=3)
    for fold in range(5):
        sizes = _terciles(name for name, place in made.place.items() if place[0] == fold)
        assert sizes == {0: 12, 1: 12, 2: 12}


def test_terciles_are_those_of_both_classes_together() -> None:
    """Malignant lesions are larger: of 90 lesions, 5 in the small third, 25 in the large third."""
    records, group, area = _sized(90)
    malignant = {*range(0, 30, 6), *range(30, 60, 2), *(i for i in range(60, 90) if i % 6)}
    records = [replace(r, label=int(i in malignant)) for i, r in enumerate(records)]
    made = assign.assign_folds(records, group, area, num_folds=5, seed=1)
    for fold in range(5):
        inside = [int(name) for name, place in made.place.items() if place[0] == fold]
        cells = Counter((i in malignant, i // 30) for i in inside)
        assert cells == {
            (True, 0): 1, (True, 1): 3, (True, 2): 5, (False, 0): 5, (False, 1): 3, (False, 2): 1,
        }  # fmt: skip


def test_a_holdout_is_a_share_of_every_kind_and_no_fold_has_it() -> None:
    records, group, area = _sized(180)
    held = assign.choose_holdout(records, group, area, share=0.2, seed=0)
    assert _terciles(held) == {0: 12, 1: 12, 2: 12}
    assert Counter(int(name) % 2 for name in held) == {0: 18, 1: 18}
    made = assign.assign_folds(records, group, area, num_folds=5, seed=0, holdout=held)
    assert {name for name, place in made.place.items() if place == (assign.HOLDOUT, 0)} == held
    assert {fold for fold, _ in made.place.values()} == {-1, 0, 1, 2, 3, 4}


def test_a_share_that_holds_no_group_is_refused() -> None:
    with pytest.raises(DataError, match=r"share of 0.01 of 20 images in 20 groups holds none"):
        assign.choose_holdout(*_sized(20), share=0.01, seed=0)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 20.0])
def test_a_holdout_is_a_share(share: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        assign.choose_holdout(*_sized(20), share=share, seed=0)


def test_a_holdout_takes_whole_groups() -> None:
    records, group = _collection(1)
    area = {record.sample_id: 0.1 for record in records}
    held = assign.choose_holdout(records, group, area, share=0.3, seed=0)
    images = sum(group[record.sample_id] in held for record in records)
    assert abs(images / len(records) - 0.3) < 0.05
    assert held <= set(group.values())


def test_folds_that_were_made_pass_the_check_and_those_nobody_can_train_do_not() -> None:
    records = [_record(f"{number:02}", number % 2) for number in range(16)]
    group = {record.sample_id: record.sample_id for record in records}
    made = _assign(records, group, num_folds=2, seed=0)
    assign.check_assignment(records, group, made)
    wrong: list[tuple[dict[str, tuple[int, int]], int, str]] = [
        (dict(made.place), 3, "must hold benign images, but fold 2 has none"),
        (dict.fromkeys(group, (assign.HOLDOUT, 0)), 2, "benign images, but fold 0 has none"),
        ({name: (int(name) % 2, 0) for name in group}, 2, "malignant images, but fold 0 has none"),
        ({name: (int(name) // 2 % 2, 0) for name in group}, 2, "given parts do not; spread both"),
    ]
    for place, num_folds, message in wrong:
        with pytest.raises(DataError, match=message):
            assign.check_assignment(records, group, replace(made, place=place, num_folds=num_folds))
