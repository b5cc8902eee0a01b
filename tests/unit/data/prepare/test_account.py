"""The account of a preparation counts every file and image once, and the sums agree."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mtil.cli import main
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.account import Account, FilesSeen, ImagesRead, ReasonCount, generalise_reason
from mtil.data.layouts import scan_collection
from mtil.storage import LocalStore
from tests.real import REAL

pytestmark = pytest.mark.slow

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def busi(phantoms: Path, tmp_path: Path) -> Path:
    """Return sixty phantoms in the BUSI layout, to add files to."""
    return Path(shutil.copytree(phantoms, tmp_path / "busi"))


@pytest.fixture
def prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Prepare a source and return the JSON. Check sums, and the account against `inspect`."""

    def run(source: Path, layout: str, *more: object, to: str = "out") -> dict[str, Any]:
        target = str(tmp_path / to)
        command = ["prepare", str(source), "--layout", layout, "--to", target, "--json"]
        assert main([*command, *map(str, more)]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert main(["inspect", target, "--json"]) == 0
        if "--append" not in more:
            assert json.loads(capsys.readouterr().out)["account"] == found["account"]
        for files in (
            found["account"]["files"],
            *(s["files"] for s in found["account"]["sources"]),
        ):
            left_out = [part["number"] for part in (*files["ignored"], *files["skipped"])]
            whole = files["images"] + files["masks"] + files["tables"] + sum(left_out)
            assert files["seen"] == whole
        images = found["account"]["images"]
        left_out = [part["number"] for part in (*images["dropped"], *images["invalid"])]
        assert images["read"] == images["kept"] + images["known"] + sum(left_out)
        capsys.readouterr()
        return found

    return run


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def _numbers(found: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {part["why"]: part["number"] for part in found}


def test_every_file_beside_a_collection_is_in_its_account(busi: Path, prepared: Run) -> None:
    num_masks = len(list(busi.rglob("*_mask*.png")))
    before = sum(path.is_file() for path in busi.rglob("*"))
    hidden = (".DS_Store", "benign/._benign (1).png", ".git/config")
    _touch(busi, *hidden, "benign/Thumbs.db", "normal/desktop.ini", "~$notes.xlsx")
    _touch(busi, "__MACOSX/benign/x.png", "benign/benign (99).png.partial", "README.md~")
    _touch(busi, "notes.txt", "scores.csv", "benign/old/benign (7).png", "plots/roc.png")
    _touch(busi, "benign/benign (98).nii.gz", "benign/IM0001")
    files = prepared(busi, "busi")["account"]["files"]
    assert files["seen"] == before + 15
    assert (files["images"], files["masks"], files["tables"]) == (60, num_masks, 0)
    ignored = _numbers(files["ignored"])
    for why, number in {
        "hidden": 3,
        "files of the operating system": 2,
        "lock files of office programs": 1,
        "folders that archivers add": 1,
        "unfinished downloads": 1,
        "backup copies": 1,
        "a table that the layout does not read": 2,  # scores.csv and a table of the phantoms
    }.items():
        assert ignored[why] == number
    assert _numbers(files["skipped"]) == {
        "in a folder inside a class folder": 1,
        "beside the class folders": 1,
        "an image format that is not read; convert it to PNG": 1,
        "no suffix": 1,
    }


def test_a_second_run_that_finds_the_data_set_accounts_for_the_source(
    busi: Path, prepared: Run, tmp_path: Path
) -> None:
    first = prepared(busi, "busi", to="busi/set")
    again = prepared(busi, "busi", to="busi/set")
    assert again == first  # files of the data set do not count
    _touch(busi, "more.txt")
    command = ["prepare", str(busi), "--layout", "busi", "--to", str(busi / "set")]
    assert main(command) == 0
    kept = manifests.load_manifest(LocalStore(str(busi / "set"))).account
    assert kept is not None
    assert kept.files.seen == first["account"]["files"]["seen"]


def test_images_are_counted_by_why_they_are_not_kept(busi: Path, prepared: Run) -> None:
    benign = busi / "benign"
    shutil.copy(benign / "benign (1).png", benign / "benign (90).png")
    shutil.copy(benign / "benign (1)_mask.png", benign / "benign (90)_mask.png")
    shutil.copy(benign / "benign (2).png", benign / "benign (91).png")
    (benign / "benign (92).png").write_bytes(b"no image")
    shutil.copy(benign / "benign (2)_mask.png", benign / "benign (92)_mask.png")
    found = prepared(busi, "busi", "--skip-invalid")
    images = found["account"]["images"]
    assert (images["read"], images["kept"], images["known"]) == (63, 60, 0)
    assert images["dropped"] == [
        {
            "why": "its pixels are those of another image",
            "number": 1,
            "examples": ["benign (90)"],
        }
    ]
    invalid = _numbers(images["invalid"])
    assert sum(invalid.values()) == 2
    assert invalid["A benign image must have a mask"] == 1
    assert found["account"]["files"]["images"] == 63


def test_a_table_accounts_for_files_that_no_row_names(
    phantoms: Path, tmp_path: Path, prepared: Run
) -> None:
    folder = Path(shutil.copytree(phantoms, tmp_path / "images"))
    seen = sum(path.is_file() for path in folder.rglob("*"))
    lines = [
        f"{kind}/{kind} ({number}).png,{kind}/{kind} ({number})_mask.png,{kind}"
        for kind, most in (("benign", 8), ("malignant", 6))
        for number in range(1, most + 1)
    ]
    (folder / "t.csv").write_text("image,masks,label\n" + "\n".join(lines) + "\n")
    (folder / "note.txt").write_text("x")
    files = prepared(folder / "t.csv", "table", "--num-folds", 2)["account"]["files"]
    assert (files["seen"], files["images"], files["masks"]) == (seen + 2, 14, 14)
    assert files["tables"] == 1
    (skipped,) = files["skipped"]
    assert skipped["why"] == "not named by the table"
    assert skipped["number"] == len(list(folder.rglob("*.png"))) - 28
    assert skipped["examples"][0] == "benign/benign (10).png"
    assert "neither image nor table" in _numbers(files["ignored"])


def test_several_sources_and_an_append_add_up(busi: Path, tmp_path: Path, prepared: Run) -> None:
    second = Path(shutil.copytree(busi, tmp_path / "second"))
    for path in (second / "malignant").glob("malignant (1)*.png"):
        path.unlink()
    more = ("--and", second, "--layout", "busi", "--allow-drops", "1")
    found = prepared(busi, "busi", *more)["account"]
    assert [source["prefix"] for source in found["sources"]] == ["busi-1", "busi-2"]
    assert found["images"]["read"] == 119
    assert found["images"]["kept"] == 60
    assert _numbers(found["images"]["dropped"]) == {"its pixels are those of another image": 59}
    prepared(second, "busi", to="grown")
    grown = prepared(busi, "busi", "--append", to="grown")["account"]["images"]
    assert (grown["read"], grown["known"], grown["kept"]) == (60, 59, 1)
    nothing = prepared(busi, "busi", "--append", to="grown")["account"]["images"]
    assert (nothing["read"], nothing["known"], nothing["kept"]) == (60, 60, 0)


def test_a_person_reads_the_account_and_the_last_lines_add_up(
    busi: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _touch(busi, "a\nb.txt", "plots/\x1b[31m.png")
    assert main(["prepare", str(busi), "--layout", "busi", "--to", str(tmp_path / "out")]) == 0
    stdout = capsys.readouterr().out
    assert "BUSI: 60 images read = 60 kept + 0 dropped + 0 invalid." in stdout
    assert "1 skipped, beside the class folders: plots/\\x1b[31m.png" in stdout
    assert "a\\nb.txt" in stdout
    assert "\x1b" not in stdout


def test_an_account_that_does_not_add_up_cannot_be_made() -> None:
    one = ReasonCount(why="hidden", number=1)
    with pytest.raises(ValidationError, match="files seen are 3 and the parts 4"):
        FilesSeen(seen=3, images=2, masks=1, tables=0, ignored=(one,))
    with pytest.raises(ValidationError, match="images read are 3 and the parts 2"):
        ImagesRead(read=3, kept=1, dropped=(one,))
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        ImagesRead(read=-1, kept=-1)


def test_a_data_set_of_an_earlier_version_has_no_account_and_is_read(
    data_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(data_uri, tmp_path / "set"))
    values = json.loads((folder / "dataset.json").read_text())
    assert values.pop("account")["sources"]
    (folder / "dataset.json").write_text(json.dumps(values))
    assert manifests.load_manifest(LocalStore(str(folder))).account is None
    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["account"] is None
    assert Account().files.seen == 0


@pytest.mark.parametrize(
    ("why", "short"),
    [
        ("its pixels are those of benign (3)", "its pixels are those of another image"),
        (
            "its group of 3 images holds two classes, benign and malignant: a, b, c",
            "its group holds two classes",
        ),
        (
            "Line 4 of my table.csv must have a label of benign, malignant, normal, but has 'x'; "
            "correct the label or remove the row.",
            "a row must have a label of benign, malignant, normal",
        ),
        ("The mask m.png of 'a' does not exist in /x; add it.", "the mask does not exist"),
        ("A mask must lie beside its image, but a has no b.png; add it.", "A mask must lie beside"
         " its image"),
    ],
)  # fmt: skip
def test_a_reason_leaves_names_and_lines_out(why: str, short: str) -> None:
    assert generalise_reason(why, "a.png") == short


def test_the_files_of_the_real_busi_add_up() -> None:
    source = REAL / "busi"
    if not source.is_dir():
        pytest.skip("BUSI is not there")
    files = scan_collection(
        str(source), "busi", beside=[str(source / "pawlowska_groups.csv")]
    ).files
    assert files is not None
    assert (files.images, files.masks, files.tables, files.skipped) == (780, 798, 1, ())
    assert files.seen == 1579 + sum(part.number for part in files.ignored)


def test_the_files_of_the_real_bus_bra_add_up() -> None:
    source = REAL / "bus-bra-256"
    if not source.is_dir():
        pytest.skip("BUS-BRA is not there")
    files = scan_collection(str(source), "bus_bra").files
    assert files is not None
    assert (files.images, files.masks, files.skipped) == (1875, 1875, ())
    assert files.tables >= 1
