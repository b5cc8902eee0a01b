"""Appending images: placement, unchanged old images, and interruptions."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mtil import phantom
from mtil.cli.main import main
from mtil.config import Config
from mtil.data.append.pipeline import AppendResult, AppendSettings, append_images
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset import shards
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import select_rows
from mtil.data.dataset.shards import HOLDOUT
from mtil.data.inspection import inspect_dataset
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.errors import DataError
from mtil.run.folder import Run, choose_manifest
from mtil.storage import LocalStore

pytestmark = pytest.mark.slow

SIZE = 96
STORED = 64
SHARD_BYTES = 8 * shards.row_bytes(STORED)
NUM_BASE = 40


@dataclass(frozen=True)
class Line:
    """A line of a table: an image made from a phantom."""

    name: str
    of: str
    """The phantom's name."""
    patient: str = ""
    fold: str = ""
    label: str = ""
    """The class; the phantom's class if empty."""
    edit: Callable[[np.ndarray], np.ndarray] = np.copy


def _brighter(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels * 1.1 + 8, 0, 255).astype(np.uint8)


BASE = [
    *(Line(f"b{n:02}", f"benign ({n})", patient=f"pb{n}") for n in range(1, 21)),
    *(Line(f"m{n:02}", f"malignant ({n})", patient=f"pm{n}") for n in range(1, 13)),
    *(Line(f"n{n:02}", f"normal ({n})", patient=f"pn{n}") for n in range(1, 9)),
]
NEW = [
    *(Line(f"x{n:02}", f"benign ({n})", patient=f"pb{n}") for n in range(21, 31)),
    *(Line(f"y{n:02}", f"malignant ({n})", patient=f"pm{n}") for n in range(13, 19)),
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unrelated phantoms: 30 benign, 18 malignant, 12 normal."""
    out = tmp_path_factory.mktemp("pool") / "busi"
    phantom.write_phantoms(out, num_images=60, seed=5, image_size=SIZE)
    return out


def _table(pool: Path, folder: Path, lines: Iterable[Line], name: str = "tumours") -> str:
    """Write images and a table; the sample ids are `b01.png`, `b02.png`, ..."""
    folder.mkdir(parents=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        lines = list(lines)
        columns = ["patient", *(["fold"] if any(line.fold for line in lines) else [])]
        writer.writerow(["image", "masks", "label", *columns])
        for line in lines:
            label = line.of.split()[0]
            pixels = np.array(Image.open(pool / label / f"{line.of}.png"))
            Image.fromarray(line.edit(pixels)).save(folder / f"{line.name}.png")
            found = sorted((pool / label).glob(f"{line.of}_mask*.png"))
            mask = np.logical_or.reduce([np.array(Image.open(path)) for path in found])
            Image.fromarray(mask).save(folder / f"{line.name}_mask.png")
            values = [getattr(line, column) for column in columns]
            writer.writerow(
                [
                    f"{line.name}.png",
                    "" if label == "normal" else f"{line.name}_mask.png",
                    line.label or label,
                    *values,
                ]
            )
    return str(folder / f"{name}.csv")


@pytest.fixture(scope="module")
def base(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of the first 40 images. Tests must not change the data set."""
    out = tmp_path_factory.mktemp("base")
    table = _table(pool, out / "images", BASE)
    settings = Settings(image_size=STORED, max_shard_bytes=SHARD_BYTES)
    prepare([CollectionSource(uri=table, layout="table")], str(out / "set"), settings)
    return out / "set"


@pytest.fixture
def to(base: Path, tmp_path: Path) -> Path:
    """Return a copy of the base data set to append to."""
    return Path(shutil.copytree(base, tmp_path / "set"))


Add = Callable[..., AppendResult]


@pytest.fixture
def add(pool: Path, to: Path, tmp_path: Path) -> Add:
    """Append lines as a table with the name of the base table."""
    count = 0

    def do(
        *lines: Line, groups: str | None = None, name: str = "tumours", **how: object
    ) -> AppendResult:
        nonlocal count
        count += 1
        table = _table(pool, tmp_path / f"more-{count}", lines, name)
        return _append(CollectionSource(uri=table, layout="table", groups=groups), to, **how)

    return do


def _append(source: CollectionSource, to: Path, **how: object) -> AppendResult:
    progress = how.pop("progress", None)
    settings = AppendSettings(**{"max_shard_bytes": SHARD_BYTES} | how)  # type: ignore[arg-type]
    return append_images([source], str(to), settings, progress=progress)  # type: ignore[arg-type]


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _rows(to: Path, made: Manifest | None = None) -> dict[str, dict[str, object]]:
    store = LocalStore(str(to))
    made = made or manifests.load_manifest(store)
    table = pa.concat_tables([shards.read_shard(store, shard) for shard in made.shards])
    return {row["sample_id"]: row for row in table.to_pylist()}


def _place(rows: dict[str, dict[str, object]], name: str) -> tuple[object, ...]:
    return tuple(rows[f"{name}.png"][column] for column in ("group", "fold", "part"))


def _elsewhere(base: Path, name: str) -> str:
    """Return a benign image of a different fold."""
    rows = _rows(base)
    fold = rows[f"{name}.png"]["fold"]
    return next(line.name for line in BASE if rows[f"{line.name}.png"]["fold"] != fold)


def test_near_copies_and_new_views_join_what_they_show(base: Path, to: Path, add: Add) -> None:
    made = add(
        Line("z1", "benign (3)", patient="new", edit=_brighter),
        Line("z2", "benign (21)", patient="pb7"),
        Line("z3", "benign (22)", patient="new"),  # patient of a near-copy
    )
    assert (made.num_added, made.num_known, made.dropped) == (3, 0, ())
    rows = _rows(to)
    assert _place(rows, "z1") == _place(rows, "z3") == _place(rows, "b03")
    assert _place(rows, "z2") == _place(rows, "b07")
    assert made.manifest.num_groups == manifests.load_manifest(LocalStore(str(base))).num_groups
    assert made.manifest.kept == {"benign": 23, "malignant": 12, "normal": 8}


def test_new_groups_spread_over_folds_and_parts(to: Path, add: Add) -> None:
    made = add(*NEW).manifest
    assert made.kept == {"benign": 30, "malignant": 18, "normal": 8}
    assert [counts["benign"] for counts in made.folds.values()] == [6] * 5
    assert sorted(counts["malignant"] for counts in made.folds.values()) == [3, 3, 4, 4, 4]
    rows = _rows(to).values()
    for label, at_most in ((0, 2), (1, 2)):
        cells = Counter((row["fold"], row["part"]) for row in rows if row["label"] == label)
        assert max(cells.values()) <= at_most


def test_what_was_there_stays_byte_for_byte(base: Path, to: Path, add: Add) -> None:
    old, before = manifests.load_manifest(LocalStore(str(base))), _files(base)
    made = add(*NEW).manifest
    after = _files(to)
    assert after["versions/000001.json"] == before["dataset.json"]
    assert after["versions/000002.json"] == after["dataset.json"] != before["dataset.json"]
    follow = {"dataset.json", "splits.json"}
    assert {name: after[name] for name in before if name not in follow} == {
        name: before[name] for name in before if name not in follow
    }
    assert not any(name.startswith("staging") for name in after)
    assert made.shards[: len(old.shards)] == old.shards
    numbers = [int(shard.path.split("-")[1][:5]) for shard in made.shards]
    assert numbers == list(range(len(numbers)))
    assert made.fingerprint != old.fingerprint
    assert (old.version, made.version) == (1, 2)
    assert (made.read, made.num_rows) == (NUM_BASE + len(NEW),) * 2
    assert made == manifests.load_manifest(LocalStore(str(to)))
    images = json.loads(after["splits.json"])["images"]
    assert {name: (at["group"], at["fold"], at["part"]) for name, at in images.items()} == {
        name: _place(rows, name[:-4]) for rows in [_rows(to)] for name in rows
    }


def test_the_old_version_is_read_by_its_fingerprint(base: Path, to: Path, add: Add) -> None:
    old = manifests.load_manifest(LocalStore(str(base)))
    made = add(*NEW).manifest
    store = LocalStore(str(to))
    assert manifests.load_manifest(store, old.fingerprint) == old
    assert (
        manifests.load_manifest(store, made.fingerprint) == manifests.load_manifest(store) == made
    )
    with pytest.raises(DataError, match=r"No version of .* has the fingerprint 0{12}…, .* newest"):
        manifests.load_manifest(store, "0" * 64)
    rows, selected = _rows(to, old), select_rows(old, 0, "test")
    assert rows == _rows(base)
    tables = [shards.read_shard(store, shard) for shard in old.shards]
    assert sum(len(selected.rows(table)) for table in tables) == sum(old.folds["0"].values())
    assert inspect_dataset(store, old.fingerprint) == inspect_dataset(LocalStore(str(base)))
    assert inspect_dataset(store).manifest == made


def test_a_run_goes_on_with_the_version_that_it_was_made_with(
    base: Path, to: Path, add: Add, tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    old = manifests.load_manifest(LocalStore(str(to)))
    uri = str(tmp_path / "run")
    run = Run.create(uri, make_config(), str(to), old.fingerprint)
    new = add(*NEW).manifest
    assert run.manifest() == Run.open(uri).manifest(str(to)) == old
    assert choose_manifest(uri, LocalStore(str(to))) == old
    assert choose_manifest(str(tmp_path / "another"), LocalStore(str(to))) == new
    assert choose_manifest(str(tmp_path / "another"), LocalStore(str(to)), 1) == old
    asked = choose_manifest(uri, LocalStore(str(to)), 2)
    with pytest.raises(DataError, match="A run must stay with its data set"):
        Run.create(uri, make_config(), str(to), asked.fingerprint)
    later = Run.create(str(tmp_path / "later"), make_config(), str(to), new.fingerprint)
    with pytest.raises(DataError, match=r"must stay with its data set, .* the data set it was"):
        later.manifest(str(base))


def test_images_that_would_bridge_folds_are_dropped(base: Path, to: Path, add: Add) -> None:
    other = _elsewhere(base, "b03")
    made = add(
        Line("z1", "benign (3)", patient="of both", edit=_brighter),
        Line("z2", f"benign ({int(other[1:])})", patient="of both", edit=_brighter),
        Line("z3", "benign (25)", patient="alone"),
    )
    assert [item.sample_id for item in made.dropped] == ["z1.png", "z2.png"]
    for item in made.dropped:
        assert "which stay where they are" in item.why
        assert "b03.png in fold" in item.why
        assert f"{other}.png in fold" in item.why
    assert made.num_added == 1
    assert made.manifest.dropped == made.dropped
    before, after = _rows(base), _rows(to)
    assert {name: after[name] for name in before} == before
    again = add(
        Line("z4", "benign (26)", patient="of both")
    )  # the patient has images in two places
    assert again.num_added == 0
    (item,) = again.dropped
    assert "its group would join" in item.why
    assert "b03.png in fold" in item.why


def test_images_of_another_class_than_their_group_are_dropped(
    base: Path, to: Path, add: Add
) -> None:
    made = add(
        Line("z1", "benign (3)", label="malignant", edit=_brighter),
        Line("z2", "benign (25)"),
    )
    assert [item.sample_id for item in made.dropped] == ["z1.png"]
    assert "two classes, benign and malignant: b03.png, z1.png" in made.dropped[0].why
    assert _rows(to)["b03.png"] == _rows(base)["b03.png"]
    assert inspect_dataset(LocalStore(str(to))).pairs == {"new images dropped: two classes": 1}


def test_a_patients_images_of_another_class_join_its_fold(base: Path, to: Path, add: Add) -> None:
    made = add(Line("z1", "malignant (15)", patient="pb3"), Line("z2", "normal (9)", patient="pb3"))
    assert (made.num_added, made.dropped) == (2, ())
    rows = _rows(to)
    assert _place(rows, "z1") == _place(rows, "z2") == _place(rows, "b03")
    assert rows["z1.png"]["label"] == 1
    assert inspect_dataset(LocalStore(str(to))).mixed_patients == 1


def test_a_patient_whose_image_was_dropped_for_its_class_may_have_others(
    base: Path, to: Path, add: Add
) -> None:
    spoilt = Line("z1", "benign (25)", label="malignant", patient="z")
    assert add(spoilt, Line("z2", "benign (25)", patient="z", edit=_brighter)).num_added == 0
    made = add(Line("z3", "benign (26)", patient="z"))
    assert (made.num_added, made.dropped) == (1, ())


def test_exact_copies_are_dropped_and_the_rest_of_their_group_is_kept(to: Path, add: Add) -> None:
    made = add(
        Line("z1", "benign (4)", patient="same"),
        Line("z2", "benign (25)", patient="same"),
        Line("z3", "benign (26)"),
        Line("z4", "benign (26)"),
    )
    assert {item.sample_id: item.why for item in made.dropped} == {
        "z1.png": "its pixels are those of b04.png",
        "z4.png": "its pixels are those of z3.png",
    }
    rows = _rows(to)
    assert _place(rows, "z2") == _place(rows, "b04")


def test_a_folder_that_has_grown_adds_what_is_new(
    pool: Path, to: Path, add: Add, base: Path, tmp_path: Path
) -> None:
    grown = add(*BASE, *NEW[:3])
    assert (grown.num_added, grown.num_known) == (3, NUM_BASE)
    assert grown.manifest.read == NUM_BASE + 3
    assert [source.read for source in grown.manifest.sources] == [NUM_BASE + 3]
    alone = Path(shutil.copytree(base, tmp_path / "alone"))
    table = _table(pool, tmp_path / "only-new", NEW[:3])
    made = _append(CollectionSource(uri=table, layout="table"), alone)
    assert made.manifest.fingerprint == grown.manifest.fingerprint


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (Line("b03", "benign (3)", edit=_brighter), "pixels"),
        (Line("b03", "benign (3)", label="malignant"), "class"),
        (Line("b03", "benign (3)", patient="other"), "patient"),
    ],
)
def test_an_image_that_has_changed_is_refused(to: Path, add: Add, line: Line, what: str) -> None:
    before = _files(to)
    with pytest.raises(DataError, match=rf"'b03\.png' of .* has another {what} than in"):
        add(line, *NEW)
    assert _files(to) == before


def test_a_mask_that_has_changed_is_refused(pool: Path, to: Path, tmp_path: Path) -> None:
    table = _table(pool, tmp_path / "more", [BASE[2], *NEW])
    path = tmp_path / "more" / "b03_mask.png"
    Image.fromarray(~np.array(Image.open(path))).save(path)
    before = _files(to)
    with pytest.raises(DataError, match=r"'b03\.png' of .* has another mask"):
        _append(CollectionSource(uri=table, layout="table"), to)
    assert _files(to) == before


def test_where_nothing_is_new_nothing_is_written(to: Path, add: Add) -> None:
    before, old = _files(to), manifests.load_manifest(LocalStore(str(to)))
    assert add(*BASE) == AppendResult(old, num_added=0, num_known=NUM_BASE)
    copy = add(Line("z1", "benign (4)"))
    assert (copy.manifest, copy.num_added) == (old, 0)
    assert copy.dropped[0].why == "its pixels are those of b04.png"
    assert _files(to) == before


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"image_size": 32}, "--image-size 64, but got 32"),
        ({"num_folds": 4}, "--num-folds 5, but got 4"),
        ({"seed": 1}, "--seed 0, but got 1"),
        ({"protocol": "paper"}, "--protocol grouped, but got paper"),
        ({"stratify": "class"}, "--stratify class-and-size, but got class"),
    ],
)
def test_other_settings_are_refused(
    to: Path, add: Add, asked: dict[str, object], message: str
) -> None:
    before = _files(to)
    with pytest.raises(DataError, match=message):
        add(*NEW, **asked)
    assert _files(to) == before


def test_the_same_settings_may_be_said_again(add: Add) -> None:
    same = {"image_size": STORED, "num_folds": 5, "seed": 0, "stratify": "class-and-size"}
    assert add(NEW[0], protocol="grouped", **same).num_added == 1


def test_a_kill_before_the_manifest_is_replaced_rolls_forward(
    pool: Path, base: Path, to: Path, tmp_path: Path
) -> None:
    source = CollectionSource(uri=_table(pool, tmp_path / "more", NEW), layout="table")
    made = _append(source, to).manifest
    whole = _files(to)
    for name in ("dataset.json", "splits.json"):
        shutil.copy(base / name, to / name)
    folder = to / "staging" / made.audit.removeprefix("audit/") / "new"
    leftover = folder / "facts-00000-0123abcd.parquet"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"of the attempt that was killed")
    again = _append(source, to)
    assert (again.manifest, again.num_added, again.num_known) == (made, 0, len(NEW))
    assert _files(to) == whole


def test_versions_follow_one_another(base: Path, to: Path, add: Add) -> None:
    first = manifests.load_manifest(LocalStore(str(base)))
    second, third = add(*NEW[:2]).manifest, add(*NEW[2:]).manifest
    near = add(Line("z1", "benign (21)", edit=_brighter)).manifest  # copy of an image of version 2
    store = LocalStore(str(to))
    for made, version in ((first, 1), (second, 2), (third, 3), (near, 4)):
        assert made.version == version
        assert manifests.load_manifest(store, made.fingerprint) == made
        assert len(_rows(to, made)) == made.num_rows
    assert manifests.load_manifest(store) == near
    assert [manifests.load_version(store, n) for n in (1, 2, 4)] == [first, second, near]
    for missing in (0, 5):
        with pytest.raises(DataError, match=rf"one of 1 to 4 of .*, but got {missing}"):
            manifests.load_version(store, missing)
    rows = _rows(to)
    assert _place(rows, "z1") == _place(rows, "x21")
    assert len({made.fingerprint for made in (first, second, third, near)}) == 4


def test_the_first_command_again_finds_its_version(base: Path, to: Path, add: Add) -> None:
    first = manifests.load_manifest(LocalStore(str(base)))
    add(*NEW)
    before = _files(to)
    source = CollectionSource(uri=str(base.parent / "images" / "tumours.csv"), layout="table")
    settings = Settings(image_size=STORED, max_shard_bytes=SHARD_BYTES)
    assert prepare([source], str(to), settings) == first
    assert _files(to) == before


def test_an_append_that_is_overtaken_says_so_and_goes_on_when_asked_again(
    pool: Path, to: Path, add: Add, tmp_path: Path
) -> None:
    overtaken: list[Manifest] = []

    def overtake(what: str, done: int, of: int) -> None:
        if (what, done) == ("writing", of) and not overtaken:
            overtaken.append(add(*NEW[:3]).manifest)

    source = CollectionSource(uri=_table(pool, tmp_path / "mine", NEW[3:]), layout="table")
    with pytest.raises(DataError, match=r"appended to .* meanwhile; run the same command again"):
        _append(source, to, progress=overtake)
    store = LocalStore(str(to))
    assert manifests.load_manifest(store) == overtaken[0]
    assert len(_rows(to)) == NUM_BASE + 3
    made = _append(source, to).manifest
    assert (made.version, made.num_rows) == (3, NUM_BASE + len(NEW))
    named = {shard.path for shard in made.shards}
    assert {name for name in store.names() if name.startswith("shards/")} == named
    folders = {path.name for path in (to / "audit").iterdir() if path.is_dir()}
    first = manifests.load_version(store, 1)
    assert {f"audit/{name}" for name in folders} == {first.audit, overtaken[0].audit, made.audit}
    assert not (to / "staging").exists()


@pytest.mark.parametrize("what", ["comparing", "reading", "writing"])
def test_an_append_that_is_interrupted_goes_on(
    pool: Path, base: Path, to: Path, tmp_path: Path, what: str
) -> None:
    source = CollectionSource(
        uri=_table(pool, tmp_path / "more", [*BASE[:4], *NEW]), layout="table"
    )
    one_a_shard = {"max_shard_bytes": 1}

    def interrupt(now: str, done: int, of: int) -> None:
        if now == what and done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _append(source, to, progress=interrupt, **one_a_shard)
    old = manifests.load_manifest(LocalStore(str(base)))
    assert manifests.load_manifest(LocalStore(str(to))) == old
    assert _rows(to) == _rows(base)
    staged = {path: path.stat().st_mtime_ns for path in to.rglob("staging/*/new/facts-*")}
    assert bool(staged) == (what != "comparing")
    unchanged: list[bool] = []

    def look(now: str, done: int, of: int) -> None:
        if (now, done) == ("reading", of):
            unchanged.append(all(path.stat().st_mtime_ns == at for path, at in staged.items()))

    _append(source, to, progress=look, **one_a_shard)
    assert unchanged == [True]
    undisturbed = Path(shutil.copytree(base, tmp_path / "undisturbed"))
    _append(source, undisturbed, **one_a_shard)
    assert _files(to) == _files(undisturbed)


def test_another_collection_gets_a_prefix_of_its_own(
    pool: Path, to: Path, add: Add, tmp_path: Path
) -> None:
    made = add(*NEW[:3], name="Second set").manifest
    assert [(s.name, s.prefix, s.read) for s in made.sources] == [
        ("tumours", "", NUM_BASE),
        ("Second set", "second-set", 3),
    ]
    assert made.name == "tumours + Second set"
    assert {"second-set/x21.png", "b03.png"} <= _rows(to).keys()
    again = add(*NEW[:4], name="Second set")
    assert (again.num_added, again.num_known) == (1, 3)
    assert again.manifest.sources[1].read == 4
    # Equal patient ids of two collections are different patients.
    apart = add(Line("z1", "benign (29)", patient="pb1"), name="third").manifest
    assert apart.num_groups == again.manifest.num_groups + 1


def test_collections_that_names_do_not_tell_apart_are_refused(
    pool: Path, to: Path, tmp_path: Path
) -> None:
    tables = [_table(pool, tmp_path / name, [line]) for name, line in zip("ab", NEW, strict=False)]
    sources = [CollectionSource(uri=table, layout="table") for table in tables]
    with pytest.raises(
        DataError, match="several are called tumours; append the collections in separate commands"
    ):
        append_images(sources, str(to))


def test_images_that_cannot_be_used_are_refused_or_skipped(
    pool: Path, to: Path, tmp_path: Path
) -> None:
    table = _table(pool, tmp_path / "more", NEW)
    spoilt, whole = tmp_path / "more" / "x22.png", (tmp_path / "more" / "x22.png").read_bytes()
    spoilt.write_bytes(b"no image")
    source, before = CollectionSource(uri=table, layout="table"), _files(to)
    with pytest.raises(DataError, match=r"x22\.png cannot be read"):
        _append(source, to)
    assert _files(to) == before
    made = _append(source, to, skip_invalid=True)
    assert [item.sample_id for item in made.invalid] == ["x22.png"]
    assert made.manifest.invalid == made.invalid
    assert (made.manifest.read, made.manifest.num_rows) == (56, 55)
    spoilt.write_bytes(whole)
    repaired = _append(source, to)
    assert (repaired.num_added, repaired.manifest.invalid) == (1, ())
    assert (repaired.manifest.read, repaired.manifest.num_rows) == (56, 56)


def test_given_folds_are_taken_where_they_fit(base: Path, to: Path, add: Add) -> None:
    made = add(replace(NEW[0], fold="3"), replace(NEW[1], fold="0"))
    rows = _rows(to)
    assert [rows[f"{name}.png"]["fold"] for name in ("x21", "x22")] == [3, 0]
    before = _files(to)
    with pytest.raises(DataError, match=r"0 to 4, but 'x23\.png' is given 5"):
        add(replace(NEW[2], fold="5"))
    wrong = str((int(str(rows["b03.png"]["fold"])) + 1) % 5)
    with pytest.raises(DataError, match=rf"lies in fold . and the image is given fold {wrong}"):
        add(Line("z1", "benign (24)", patient="pb3", fold=wrong))
    assert _files(to) == before
    assert made.num_added == 2


def test_published_groups_join_what_they_name(to: Path, add: Add, tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("image_id,group\nb05.png,g\nx21.png,g\nx22.png,h\n")
    made = add(BASE[4], *NEW[:2], groups=str(tmp_path / "groups.csv"))
    assert made.num_added == 2
    rows = _rows(to)
    assert _place(rows, "x21") == _place(rows, "b05")
    assert rows["x22.png"]["group"] == "x22.png"
    (tmp_path / "less.csv").write_text("image_id,group\nx23.png,k\n")
    later = add(
        BASE[5], NEW[2], groups=str(tmp_path / "less.csv")
    )  # a later group file may omit b06
    assert later.num_added == 1
    with pytest.raises(DataError, match=r"lacks 1 of 2, such as 'x25\.png'"):
        add(BASE[5], NEW[4], groups=str(tmp_path / "less.csv"))


@pytest.fixture(scope="module")
def table(base: Path) -> CollectionSource:
    return CollectionSource(uri=str(base.parent / "images" / "tumours.csv"), layout="table")


def test_a_near_copy_of_the_holdout_is_held_out(
    pool: Path, table: CollectionSource, tmp_path: Path
) -> None:
    settings = Settings(image_size=STORED, num_folds=3, holdout="0.3", stratify="class-and-size")
    prepare([table], str(tmp_path / "set"), settings)
    held = next(n for n, row in _rows(tmp_path / "set").items() if row["fold"] == HOLDOUT)
    of = next(line.of for line in BASE if f"{line.name}.png" == held)
    lines = [Line("z1", of, edit=_brighter), *NEW]
    made = _append(
        CollectionSource(uri=_table(pool, tmp_path / "more", lines), layout="table"),
        tmp_path / "set",
    ).manifest
    rows = _rows(tmp_path / "set")
    assert _place(rows, "z1") == _place(rows, held[:-4])
    assert rows["z1.png"]["fold"] == HOLDOUT
    assert all(rows[f"{line.name}.png"]["fold"] != HOLDOUT for line in NEW)
    for label in ("benign", "malignant"):
        counts = [fold[label] for fold in made.folds.values()]
        assert max(counts) - min(counts) <= 1


def test_the_paper_protocol_deals_image_by_image(
    pool: Path, table: CollectionSource, tmp_path: Path
) -> None:
    settings = Settings(image_size=STORED, protocol="paper")
    prepare([table], str(tmp_path / "set"), settings)
    lines = [
        *(Line(f"z{n}", "benign (3)", edit=_brighter) for n in range(5)),
        Line("normal", "normal (10)"),
    ]
    source = CollectionSource(uri=_table(pool, tmp_path / "more", lines), layout="table")
    made = _append(source, tmp_path / "set")
    assert [item.why for item in made.dropped] == ["the paper protocol is about tumour images"]
    rows = _rows(tmp_path / "set")
    assert len({rows[f"z{n}.png"]["fold"] for n in range(5)}) > 1
    assert {rows[f"z{n}.png"]["group"] for n in range(5)} == {"b03.png"}
    assert made.manifest.num_rows == 32 + 5


def test_what_was_prepared_without_facts_is_to_be_prepared_again(to: Path, add: Add) -> None:
    values = json.loads((to / "dataset.json").read_text())
    for name in ("facts", "audit", "version"):
        del values[name]
    (to / "dataset.json").write_text(json.dumps(values))
    assert manifests.load_manifest(LocalStore(str(to))).version == 1
    with pytest.raises(DataError, match=r"without facts\. Prepare all images again"):
        add(*NEW)


def test_an_audit_that_is_not_of_these_images_is_noticed(to: Path, add: Add) -> None:
    path, facts = to / _audit(to) / "images.parquet", to / _audit(to) / "facts-00000.parquet"
    _forget_files(to)
    images = pq.read_table(path)
    folds = pa.array([(fold + 1) % 5 for fold in images["fold"].to_pylist()], pa.int8())
    pq.write_table(images.set_column(images.schema.get_field_index("fold"), "fold", folds), path)
    with pytest.raises(DataError, match=r"not match the images\. Prepare all images"):
        add(*NEW)
    facts.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"facts-00000\.parquet is damaged"):
        add(*NEW)
    facts.unlink()
    with pytest.raises(DataError, match=r"has lost audit/.*/facts-00000\.parquet"):
        add(*NEW)


@pytest.mark.parametrize("name", ["images.parquet", "duplicates.parquet", "facts-00000.parquet"])
def test_a_byte_of_the_audit_that_has_changed_is_noticed(to: Path, add: Add, name: str) -> None:
    path = to / _audit(to) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    before = _files(to)
    with pytest.raises(DataError, match=rf"{name} must have {len(data)} bytes with sha256"):
        add(*NEW)
    assert _files(to) == before


def _audit(folder: Path) -> str:
    return manifests.load_manifest(LocalStore(str(folder))).audit


def _forget_files(folder: Path) -> None:
    """Remove the digests, as in manifests of earlier versions of mtil."""
    path = folder / "dataset.json"
    values = json.loads(path.read_text())
    del values["files"]
    path.write_text(json.dumps(values))


def test_the_command_appends_and_says_what_came_of_it(
    pool: Path, to: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = _table(pool, tmp_path / "more", [*NEW[:2], Line("z1", "benign (4)")])
    command = ["prepare", table, "--layout", "table", "--to", str(to), "--append", "--json"]
    assert main(command) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["version"], result["appended"], result["read"]) == (2, 2, 43)
    assert [item["sample_id"] for item in result["dropped"]] == ["z1.png"]
    assert "dropped z1.png: its pixels are those of b04.png" in captured.err
    assert "2 images appended." in captured.err
    assert main(command) == 0
    captured = capsys.readouterr()
    again = json.loads(captured.out)
    assert (again["version"], again["appended"]) == (2, 0)
    assert again["fingerprint"] == result["fingerprint"]
    assert "Nothing to append; 3 images exist already." in captured.err
    for version, read in ((None, 43), (1, 40)):
        which = [] if version is None else ["--data-version", str(version)]
        assert main(["inspect", str(to), "--json", *which]) == 0
        assert json.loads(capsys.readouterr().out)["read"] == read
    for option in (["--holdout", "0.1"], ["--splits", "splits.json"], ["--num-folds", "3"]):
        assert main([*command, *option]) == 2
        captured = capsys.readouterr()
        assert option[0] in captured.err
        assert len(captured.err.splitlines()) == 1
    nowhere = [*command[:5], str(tmp_path / "nowhere"), *command[6:]]
    assert main(nowhere) == 2
    assert "make one with `mtil prepare`" in capsys.readouterr().err
