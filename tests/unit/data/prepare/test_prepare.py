"""Preparation of collections: written files, refused sources, and no leftovers."""

import csv
import io
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mtil import phantom
from mtil.data.dataset import manifest, shards
from mtil.data.dataset.manifest import Manifest
from mtil.data.images import read
from mtil.data.inspection import inspect_dataset
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.errors import DataError, UserError
from mtil.storage import LocalStore
from tests.masks import unpack_mask
from tests.real import REAL

pytestmark = pytest.mark.slow

SIZE = 64
NUM_IMAGES = 40
_OF_SOURCE = ("layout", "groups", "official_folds", "columns", "classes")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a BUSI collection. Tests must not change the files."""
    out = tmp_path_factory.mktemp("phantoms") / "busi"
    phantom.write_phantoms(out, num_images=NUM_IMAGES, seed=0, image_size=SIZE)
    return out


@pytest.fixture
def mine(collection: Path, tmp_path: Path) -> Path:
    """Return a copy of the BUSI collection. Tests may change the files."""
    return Path(shutil.copytree(collection, tmp_path / "mine"))


def _prepare(source: Path, to: Path, **options: object) -> Manifest:
    about_source = {name: options.pop(name) for name in _OF_SOURCE if name in options}
    progress = options.pop("progress", None)
    collection = CollectionSource(**{"uri": str(source), "layout": "busi"} | about_source)  # type: ignore[arg-type]
    settings = Settings(**{"image_size": SIZE} | options)  # type: ignore[arg-type]
    return prepare([collection], str(to), settings, progress=progress)  # type: ignore[arg-type]


def _rows(to: Path) -> pa.Table:
    store = LocalStore(str(to))
    made = manifest.load_manifest(store)
    return pa.concat_tables([shards.read_shard(store, shard) for shard in made.shards])


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _refused(source: Path, to: Path, message: str, **options: object) -> None:
    with pytest.raises(DataError, match=message):
        _prepare(source, to, **options)
    assert not to.exists()


def _png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="PNG")
    return sink.getvalue()


def test_the_manifest_counts_what_the_shards_hold(collection: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    made = _prepare(
        collection,
        tmp_path / "out",
        max_shard_bytes=8 * shards.row_bytes(SIZE),
        progress=lambda *event: seen.append(event),
    )
    assert made == manifest.load_manifest(LocalStore(str(tmp_path / "out")))
    assert (made.read, made.num_rows, made.num_groups) == (NUM_IMAGES,) * 3
    assert made.kept == {"benign": 20, "malignant": 12, "normal": 8}
    assert made.name == "BUSI"
    (source,) = made.sources
    assert (source.name, source.prefix, source.read) == ("BUSI", "", NUM_IMAGES)
    assert "10.1016/j.dib.2019.104863" in source.citation
    reading = [("reading", done, NUM_IMAGES) for done in range(1, NUM_IMAGES + 1)]
    assert seen == [*reading, *(("writing", done, NUM_IMAGES) for done in (8, 16, 24, 32, 40))]
    assert len(made.shards) == 5
    tag = made.audit.removeprefix("audit/")
    assert re.fullmatch("000001-[0-9a-f]{16}", tag)
    assert sorted(_files(tmp_path / "out")) == [
        f"audit/{tag}/duplicates.parquet",
        *(f"audit/{tag}/facts-{number:05d}.parquet" for number in range(5)),
        f"audit/{tag}/images.parquet",
        "dataset.json",
        *(f"shards/part-{number:05d}-{tag}.parquet" for number in range(5)),
        "splits.json",
    ]
    store = LocalStore(str(tmp_path / "out"))
    counted = {str(fold): dict.fromkeys(shards.LABELS, 0) for fold in range(5)}
    for shard in made.shards:
        rows = shards.read_shard(store, shard).to_pylist()
        assert (shard.rows, shard.bytes) == (len(rows), len(store.read(shard.path)))
        for cell in shard.cells:
            counted[str(cell.fold)][shards.LABELS[cell.label]] += cell.rows
            assert cell.rows == sum(
                (row["fold"], row["part"], row["label"]) == (cell.fold, cell.part, cell.label)
                for row in rows
            )
        assert sum(cell.rows for cell in shard.cells) == shard.rows
    assert counted == made.folds


def test_rows_are_sorted_and_hold_the_source(collection: Path, tmp_path: Path) -> None:
    _prepare(collection, tmp_path / "out")
    rows = _rows(tmp_path / "out").to_pylist()
    ids = [row["sample_id"] for row in rows]
    assert ids == sorted(ids)
    for row in rows[:3] + rows[-3:]:
        name = row["sample_id"].split(" ")[0]
        gray = np.array(Image.open(collection / name / f"{row['sample_id']}.png"))
        masks = [
            np.array(Image.open(path))
            for path in (collection / name).glob("*_mask*.png")
            if path.name.startswith(f"{row['sample_id']}_mask")
        ]
        mask = np.logical_or.reduce(masks)
        assert (row["height"], row["width"]) == gray.shape
        assert row["image"] == read.resize_image(gray, SIZE).tobytes()
        np.testing.assert_array_equal(read.decode_mask_png(row["mask_png"]), mask)
        np.testing.assert_array_equal(unpack_mask(row["mask"], SIZE), read.resize_mask(mask, SIZE))


def test_several_masks_are_joined(mine: Path, tmp_path: Path) -> None:
    path = mine / "malignant" / "malignant (3)_mask.png"
    whole = np.array(Image.open(path))
    left, right = whole.copy(), whole.copy()
    middle = int(np.median(np.nonzero(whole)[1]))
    left[:, middle:], right[:, :middle] = False, False
    assert left.any()
    assert right.any()
    expected = _prepare(mine, tmp_path / "one").fingerprint
    path.write_bytes(_png(left))
    path.with_name("malignant (3)_mask_1.png").write_bytes(_png(right))
    assert _prepare(mine, tmp_path / "two").fingerprint == expected


def test_shard_size_changes_neither_rows_nor_fingerprint(collection: Path, tmp_path: Path) -> None:
    many = _prepare(collection, tmp_path / "many", max_shard_bytes=1)
    one = _prepare(collection, tmp_path / "one")
    assert (len(many.shards), len(one.shards)) == (NUM_IMAGES, 1)
    assert many.fingerprint == one.fingerprint
    assert _rows(tmp_path / "many").equals(_rows(tmp_path / "one"))


def test_the_same_source_gives_the_same_bytes(collection: Path, tmp_path: Path) -> None:
    _prepare(collection, tmp_path / "a")
    _prepare(collection.parent, tmp_path / "b")  # the parent folder as source
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


def _change_pixel(folder: Path) -> None:
    path = folder / "benign" / "benign (1).png"
    pixels = np.array(Image.open(path))
    pixels[0, 0] ^= 1
    path.write_bytes(_png(pixels))


def _change_mask(folder: Path) -> None:
    path = folder / "benign" / "benign (1)_mask.png"
    mask = np.array(Image.open(path))
    mask[0, 0] = True
    path.write_bytes(_png(mask))


def _remove_image(folder: Path) -> None:
    (folder / "normal" / "normal (1).png").unlink()
    (folder / "normal" / "normal (1)_mask.png").unlink()


@pytest.mark.parametrize("change", [_change_pixel, _change_mask, _remove_image])
def test_other_data_in_the_target_is_refused(
    mine: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    _prepare(mine, tmp_path / "out")
    before = _files(tmp_path / "out")
    change(mine)
    with pytest.raises(DataError, match="must be empty or hold the same data"):
        _prepare(mine, tmp_path / "out")
    assert _files(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_size": 96}, "whose image_size is 64, not the requested 96"),
        ({"num_folds": 4}, "whose num_folds is 5, not the requested 4"),
        ({"seed": 1}, "whose seed is 0, not the requested 1"),
    ],
)
def test_other_settings_in_the_target_are_refused(
    collection: Path, tmp_path: Path, changed: dict[str, int], message: str
) -> None:
    _prepare(collection, tmp_path / "out")
    before = _files(tmp_path / "out")
    with pytest.raises(DataError, match=message):
        _prepare(collection, tmp_path / "out", **changed)
    assert _files(tmp_path / "out") == before


def test_the_same_data_in_the_target_is_success_and_writes_nothing(
    collection: Path, tmp_path: Path
) -> None:
    made = _prepare(collection, tmp_path / "out")
    before = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    again = _prepare(collection, tmp_path / "out", max_shard_bytes=1)
    assert again == made
    assert before == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    (tmp_path / "out" / made.shards[0].path).unlink()
    with pytest.raises(DataError, match=f"has lost {made.shards[0].path}"):
        _prepare(collection, tmp_path / "out")


def test_a_target_with_other_files_is_refused(collection: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"must be empty, but .* such as thesis\.txt"):
        _prepare(collection, tmp_path)
    assert _files(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_size": 100}, "multiple of 32 .* got 100"),
        ({"image_size": 0}, "multiple of 32 .* got 0"),
        ({"num_folds": 1}, "num_folds is 1"),
        ({"seed": -1}, "must not be negative"),
        ({"holdout": "1"}, "share between 0 and 1, or a file, but got '1'"),
        ({"holdout": ""}, "share between 0 and 1, or a file, but got ''"),
        (
            {"num_folds": 13},
            "malignant images, but 12 groups with such images are too few for 13 folds",
        ),
        ({"layout": "coco"}, "must be one of busi, .*table"),
    ],
)
def test_senseless_settings_are_refused(
    collection: Path, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    _refused(collection, tmp_path / "out", message, **changed)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _no_malignant(folder: Path) -> None:
    _empty(folder / "malignant")


def _no_mask(folder: Path) -> None:
    (folder / "malignant" / "malignant (2)_mask.png").unlink()


def _small_mask(folder: Path) -> None:
    path = folder / "benign" / "benign (5)_mask.png"
    path.write_bytes(_png(np.ones((10, 12), np.bool_)))


def _black_mask(folder: Path) -> None:
    path = folder / "benign" / "benign (5)_mask.png"
    path.write_bytes(_png(np.zeros_like(np.array(Image.open(path)))))


def _white_normal(folder: Path) -> None:
    path = folder / "normal" / "normal (2)_mask.png"
    path.write_bytes(_png(np.ones_like(np.array(Image.open(path)))))


def _truncated(folder: Path) -> None:
    path = folder / "normal" / "normal (3).png"
    path.write_bytes(path.read_bytes()[:-500])


def _no_image(folder: Path) -> None:
    (folder / "benign" / "benign (4).png").write_text("<html>404</html>")


def _other_class(folder: Path) -> None:
    (folder / "normal").rename(folder / "healthy")
    path = folder / "healthy" / "normal (1).png"
    path.rename(path.with_name("healthy (1).png"))


def _other_layout(folder: Path) -> None:
    for name in ("benign", "malignant", "normal"):
        (folder / name).rename(folder / f"images_{name}")


def _twice(folder: Path) -> None:
    for suffix in (".png", "_mask.png"):
        shutil.copy(folder / "benign" / f"benign (1){suffix}", folder / "malignant")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_empty, "is empty or missing"),
        (shutil.rmtree, "is empty or missing"),
        (_no_malignant, "malignant images, but 0 groups"),
        (_no_mask, r"A malignant image must have a mask, .* no malignant \(2\)_mask\.png"),
        (_small_mask, r"benign \(5\)_mask\.png has 12 x 10 and benign/benign \(5\)\.png has \d+ x"),
        (_black_mask, r"must have a lesion, but benign/benign \(5\)_mask\.png is black"),
        (_white_normal, r"must have no lesion, but normal/normal \(2\)_mask\.png is not black"),
        (_truncated, r"normal/normal \(3\)\.png cannot be read"),
        (_no_image, r"benign/benign \(4\)\.png cannot be read: it is none of PNG"),
        (_other_class, "A class must be one of benign, malignant, normal, .* healthy"),
        (_other_layout, "must have the folders benign, malignant and normal .* images_benign"),
        (_twice, r"'benign \(1\)' is given twice"),
    ],
)
def test_bad_collections_are_refused_and_leave_nothing(
    mine: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(mine)
    # With staged files of a single row, files of earlier rows must be deleted, too.
    _refused(mine, tmp_path / "out", message, max_shard_bytes=1)


def test_all_wrong_images_are_named(mine: Path, tmp_path: Path) -> None:
    _truncated(mine)
    _black_mask(mine)
    _refused(
        mine,
        tmp_path / "out",
        r"(?s)2 of 40 images cannot be used; .* --skip-invalid:\n"
        r"- A benign image .*benign \(5\)_mask\.png is black.*\n- normal/normal \(3\)\.png cannot",
    )


def test_wrong_images_can_be_skipped_and_are_listed(mine: Path, tmp_path: Path) -> None:
    _truncated(mine)
    _black_mask(mine)
    made = _prepare(mine, tmp_path / "out", skip_invalid=True, max_shard_bytes=1)
    assert [item.sample_id for item in made.invalid] == ["benign (5)", "normal (3)"]
    assert "is black" in made.invalid[0].why
    assert (made.read, made.num_rows) == (NUM_IMAGES, NUM_IMAGES - 2)
    assert not {"benign (5)", "normal (3)"} & set(_rows(tmp_path / "out")["sample_id"].to_pylist())


def test_a_collection_of_nothing_but_wrong_images_is_refused(mine: Path, tmp_path: Path) -> None:
    for path in mine.rglob("*.png"):
        path.write_bytes(b"no image")
    _refused(mine, tmp_path / "out", "No image can be used; the first says", skip_invalid=True)


def test_an_interrupted_preparation_goes_on_where_it_was(collection: Path, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, of: int) -> None:
        if (what, done) == ("reading", 30):
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        _prepare(collection, out, max_shard_bytes=1, progress=interrupt)
    staged = sorted(out.rglob("facts-*.parquet"))
    assert len(staged) == 29
    before = {path: path.stat().st_mtime_ns for path in staged}
    with pytest.raises(DataError, match="must have a dataset"):
        manifest.load_manifest(LocalStore(str(out)))  # an unfinished data set
    at_the_end: dict[Path, int] = {}

    def look(what: str, done: int, of: int) -> None:
        if (what, done) == ("reading", of):
            at_the_end.update({path: path.stat().st_mtime_ns for path in staged})

    made = _prepare(collection, out, max_shard_bytes=1, progress=look)
    assert at_the_end == before  # staged files are not rewritten
    assert made == _prepare(collection, tmp_path / "undisturbed", max_shard_bytes=1)
    assert _files(out) == _files(tmp_path / "undisturbed")


def test_an_image_that_changes_after_an_interruption_is_read_again(
    mine: Path, tmp_path: Path
) -> None:
    def interrupt(what: str, done: int, of: int) -> None:
        if what == "writing":
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        _prepare(mine, out, max_shard_bytes=1, progress=interrupt)
    before = {path.name for path in out.rglob("staging/*/facts-*.parquet")}
    assert len(before) == NUM_IMAGES
    _change_pixel(mine)
    again: set[str] = set()

    def look(what: str, done: int, of: int) -> None:
        if what == "reading":
            again.update(path.name for path in out.rglob("staging/*/facts-*.parquet"))

    made = _prepare(mine, out, max_shard_bytes=1, progress=look)
    assert len(again - before) == 1
    assert made == _prepare(mine, tmp_path / "undisturbed", max_shard_bytes=1)
    assert _files(out) == _files(tmp_path / "undisturbed")


def test_official_folds_of_a_table_are_recorded_and_asked_for_again(
    mine: Path, tmp_path: Path
) -> None:
    table = _table(tmp_path, mine, fold=lambda index, _: str(index % 2))
    made = _prepare(table, tmp_path / "out", layout="table", official_folds=5)
    assert (made.protocol, made.fold_rule, made.num_folds) == ("official", "given", 2)
    # Earlier versions recorded a different protocol for equal data.
    path = tmp_path / "out" / "dataset.json"
    path.write_text(path.read_text().replace('"official"', '"grouped"'))
    again = _prepare(table, tmp_path / "out", layout="table", official_folds=5)
    assert again.protocol == "grouped"


def test_a_data_set_takes_its_own_splits(collection: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = _prepare(collection, out)
    assert _prepare(collection, out, splits=str(out / "splits.json"), seed=7) == made
    text = (out / "splits.json").read_text().replace('"part": 1,', '"part": 2,', 1)
    (tmp_path / "edited.json").write_text(text)
    with pytest.raises(DataError, match="whose fingerprint is"):
        _prepare(collection, out, splits=str(tmp_path / "edited.json"))


def test_an_unfinished_preparation_is_not_taken_for_another(
    collection: Path, mine: Path, tmp_path: Path
) -> None:
    def interrupt(what: str, done: int, of: int) -> None:
        if what == "writing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _prepare(collection, tmp_path / "out", progress=interrupt)
    _remove_image(mine)
    with pytest.raises(DataError, match="unfinished preparation of other data"):
        _prepare(mine, tmp_path / "out")
    other_folds = _prepare(collection, tmp_path / "out", num_folds=3)  # equal pixels
    assert other_folds.num_folds == 3
    assert len(other_folds.shards) == len(list((tmp_path / "out" / "shards").iterdir()))


def test_a_data_set_that_appears_meanwhile_is_kept(collection: Path, tmp_path: Path) -> None:
    def intrude(what: str, done: int, of: int) -> None:
        if done == of and what == "reading":
            (tmp_path / "out" / "dataset.json").write_text("theirs")

    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="A different data set was written"):
        _prepare(collection, tmp_path / "out", progress=intrude)
    assert _files(tmp_path / "out") == {"dataset.json": b"theirs"}


def _table(folder: Path, collection: Path, **columns: Callable[[int, str], str]) -> Path:
    """Write a table of a BUSI collection. Functions of row number and label fill more columns."""
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "masks", "label", *columns])
        found = sorted(image for image in collection.rglob("*.png") if "_mask" not in image.name)
        for index, image in enumerate(found):
            masks = sorted(image.parent.glob(f"{image.stem}_mask*.png"))
            label = image.parent.name
            writer.writerow(
                [
                    image.relative_to(folder).as_posix(),
                    ""
                    if label == "normal"
                    else "|".join(mask.relative_to(folder).as_posix() for mask in masks),
                    label.upper(),
                    *(column(index, label) for column in columns.values()),
                ]
            )
    return path


def test_a_table_of_the_same_images_gives_the_same_pixels(mine: Path, tmp_path: Path) -> None:
    made = _prepare(_table(tmp_path, mine), tmp_path / "a", layout="table")
    _prepare(mine, tmp_path / "b")
    assert (made.name, made.fold_rule) == ("table", "grouped stratified by class and size")
    a, b = _rows(tmp_path / "a"), _rows(tmp_path / "b")
    assert a["sample_id"][0].as_py() == "mine/benign/benign (1).png"
    assert sorted(a["sha256"].to_pylist()) == sorted(b["sha256"].to_pylist())
    assert sorted(a["mask_png"].to_pylist()) == sorted(b["mask_png"].to_pylist())


def test_patients_and_given_folds_of_a_table_are_kept(mine: Path, tmp_path: Path) -> None:
    table = _table(
        tmp_path,
        mine,
        patient=lambda index, label: f"{label}{index // 2}",
        fold=lambda index, _: str((index // 2) % 2),
    )
    made = _prepare(table, tmp_path / "out", layout="table", num_folds=5)
    assert (made.fold_rule, made.num_folds, made.num_groups) == ("given", 2, 20)
    for row in _rows(tmp_path / "out").to_pylist():
        assert row["group"] <= row["sample_id"]
    folds = _rows(tmp_path / "out")["fold"].to_pylist()
    assert folds == [(index // 2) % 2 for index in range(NUM_IMAGES)]


def test_a_patient_with_two_classes_is_kept_in_one_fold(mine: Path, tmp_path: Path) -> None:
    table = _table(
        tmp_path, mine, patient=lambda index, _: "x" if index in (0, 1, 25) else f"{index}"
    )
    made = _prepare(table, tmp_path / "out", layout="table")
    assert (made.read, made.num_rows, made.dropped) == (NUM_IMAGES, NUM_IMAGES, ())
    assert made.num_groups == NUM_IMAGES - 2
    rows = _rows(tmp_path / "out").to_pylist()
    assert len({(rows[at]["group"], rows[at]["fold"], rows[at]["part"]) for at in (0, 1, 25)}) == 1
    assert {rows[at]["label"] for at in (0, 1, 25)} == {0, 1}
    assert inspect_dataset(LocalStore(str(tmp_path / "out"))).mixed_patients == 1


def test_a_table_with_wrong_files_is_refused(mine: Path, tmp_path: Path) -> None:
    table = _table(tmp_path, mine)
    text = table.read_text()
    for old, new, message in (
        ("benign (1).png", "benign (99).png", r"image mine/benign/benign \(99\)\.png .* exist"),
        ("benign (1)_mask.png", "gone.png", r"The mask mine/benign/gone\.png of .* not exist"),
        ("mine/normal/normal (1).png", "../../etc/passwd", "below the table's folder"),
        ("NORMAL", "cyst", "must have a label of benign, malignant, normal, but has 'cyst'"),
    ):
        assert old in text
        table.write_text(text.replace(old, new, 1))
        _refused(table, tmp_path / "out", message, layout="table")


def test_a_group_file_that_lacks_an_image_is_refused(collection: Path, tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("image_id,group\nbenign (1),b1\n")
    _refused(collection, tmp_path / "out", "lacks 39 of 40", groups=str(tmp_path / "groups.csv"))
    _refused(collection, tmp_path / "out", "does not exist", groups=str(tmp_path / "none.csv"))


def test_a_target_that_cannot_be_written_is_refused(collection: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be written"):
        _prepare(collection, tmp_path / "file" / "out")
    assert _files(tmp_path) == {"file": b"mine"}


@pytest.mark.skipif(not (REAL / "busi").is_dir(), reason=f"no BUSI at {REAL}; set MTIL_DATA")
def test_busi_with_its_published_groups(tmp_path: Path) -> None:
    made = _prepare(
        REAL / "busi", tmp_path / "out", groups=str(REAL / "busi" / "pawlowska_groups.csv")
    )
    assert made.read == 780
    assert made.kept == {"benign": 427, "malignant": 203, "normal": 131}
    assert made.num_groups == 579
    assert len(made.dropped) == 19
    columns = ["group", "fold", "part", "label", "meta"]
    rows = _rows(tmp_path / "out").select(columns).to_pylist()
    assert len({(row["group"], row["fold"], row["part"]) for row in rows}) == 579
    tumours = Counter(dict(row["meta"]).get("objection") for row in rows if row["label"] < 2)
    assert tumours == {None: 582, "axilla": 43, "needle": 5}
    for fold in range(5):
        training = [row for row in rows if row["fold"] != fold]
        validation = [row for row in training if row["part"] == fold % made.num_parts]
        assert 0.10 <= len(validation) / len(training) <= 0.15
        assert {row["label"] for row in validation} == {0, 1, 2}


@pytest.mark.parametrize("what", ["splits", "holdout"])
def test_a_file_that_is_missing_is_refused_before_images_are_read(
    collection: Path, tmp_path: Path, what: str
) -> None:
    seen: list[tuple[object, ...]] = []
    _refused(
        collection,
        tmp_path / "out",
        f"The {what} file must exist, but .*nowhere.x does not",
        **{what: str(tmp_path / "nowhere.x")},
        progress=lambda *event: seen.append(event),
    )
    assert seen == []


@pytest.mark.parametrize("other", [{"protocol": "paper"}, {"splits": "splits.json"}])
def test_folds_from_two_places_are_refused(
    collection: Path, tmp_path: Path, other: dict[str, str]
) -> None:
    message = f"must come from one place, but --{next(iter(other))}.* and official folds"
    _refused(collection, tmp_path / "out", message, official_folds=5, **other)
