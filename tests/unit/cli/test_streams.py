"""Output on terminals without Unicode, on full disks and into closed pipes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtil.cli.console import CommandOutput
from mtil.cli.streams import escape_controls, format_json

pytestmark = pytest.mark.slow

ASCII = {"PYTHONIOENCODING": "ascii"}
Result = subprocess.CompletedProcess[bytes]


def python(*arguments: object, **options: Any) -> Result:
    """Run a module in a new process with environment variables, and return the output."""
    environment = os.environ | options.pop("variables", {})
    return subprocess.run(
        [sys.executable, "-m", *map(os.fsencode, map(str, arguments))],
        env=environment,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
    )


@pytest.fixture(scope="module")
def named(data_uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set with letters beyond ASCII and Rich markup in the URI."""
    uri = tmp_path_factory.mktemp("named") / "набор [red]ä[/foo] :cat:"
    shutil.copytree(data_uri, uri)
    return str(uri)


@pytest.mark.parametrize("variables", [ASCII, {"LC_ALL": "C"}])
def test_letters_that_cannot_be_shown_are_escaped(named: str, variables: dict[str, str]) -> None:
    done = python("mtil", "inspect", named, variables=variables)
    assert (done.returncode, done.stderr) == (0, b"")
    done = python("mtil", "inspect", f"{named}/nothing", variables=variables)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"[red]" in done.stderr


def test_json_on_ascii_is_json(named: str) -> None:
    done = python("mtil", "inspect", named, "--json", variables=ASCII)
    assert done.returncode == 0
    assert json.loads(done.stdout)["uri"] == named
    done.stdout.decode("ascii")
    plain = python("mtil", "inspect", named, "--json", variables={"PYTHONIOENCODING": "utf-8"})
    assert named.encode() in plain.stdout
    assert json.loads(plain.stdout) == json.loads(done.stdout)


@pytest.mark.parametrize("command", [["inspect"], ["inspect", "--json"]])
def test_a_full_disk_is_one_sentence(named: str, command: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = python("mtil", *command, named, stdout=full)
    assert done.returncode == 1
    sentence = b"mtil: The output cannot be written: No space left on device.\n"
    assert done.stderr.endswith(sentence)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["mtil", "--version"],
        ["mtil", "train", "--keys"],
        ["tune", "--help"],
        ["cluster", "check", "cluster/templates/gcp.yaml"],
    ],
)
def test_help_on_a_full_disk_or_to_nobody(words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = python(*words, stdout=full)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"The output cannot be written: No space left on device." in done.stderr
    assert closed(*words) == (1, b"")


def closed(*words: object) -> tuple[int, bytes]:
    """Run a module with stdout in a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = python(*words, stdout=writer)
    finally:
        os.close(writer)
    return done.returncode, done.stderr


def test_a_reader_that_has_left_is_told_nothing(named: str) -> None:
    assert closed("mtil", "inspect", named) == (1, b"")
    code, stderr = closed("mtil", "inspect", named, "--json")
    assert code == 1
    assert b"cannot be written" not in stderr
    assert b"Traceback" not in stderr


def test_a_closed_stdout_is_no_traceback(named: str) -> None:
    command = f'exec "{sys.executable}" -m mtil inspect "$0" >&-'
    done = subprocess.run(["sh", "-c", command, named], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_name_that_is_not_utf_8_is_refused_in_one_sentence() -> None:
    done = python("mtil", "status", "--run", "runs/l\udce4ufe")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1
    assert b"must be text in UTF-8, but got 'runs/l\\udce4ufe'; rename" in done.stderr


def test_a_locale_that_cannot_name_a_file_is_refused() -> None:
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = python("mtil", "status", "--run", "läufe", variables=variables)
    assert done.returncode == 2
    assert b"this locale cannot name it, so set PYTHONUTF8=1.\n" in done.stderr


NAMES = ["[/foo]", "[red]x[/red]", ":cat:", "[link=file]", "a\x1b[31mb", "\udcff", "ä", "l" * 200]


@pytest.mark.parametrize("as_json", [False, True])
def test_names_are_printed_as_they_are(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    output = CommandOutput(as_json=as_json)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with output.progress() as bar:
        for name in NAMES:
            output.line(name)
            bar.show(name, 1, 2)
    output.table(["name", *NAMES[:2]], [[name, "1", "2"] for name in NAMES])
    captured = capsys.readouterr()
    text = captured.err if as_json else captured.out
    lines = text.splitlines()
    expected = [*NAMES[:4], "a\\x1b[31mb", "\\udcff", "ä", "l" * 200]
    assert lines[: len(NAMES)] == expected
    column = "".join(line.split()[0] for line in lines[len(NAMES) :])
    assert column == "name" + "".join(expected)


def test_control_characters_are_escaped() -> None:
    assert escape_controls("a\nb\tc\x00\x1b[0m\x9b\u2028") == "a\\nb\tc\\x00\\x1b[0m\\x9b\\u2028"
    assert escape_controls("a\nb", in_line=False) == "a\nb"


def test_numbers_that_json_has_not_are_null() -> None:
    line = format_json({"auc": float("nan"), "name": "ä", "all": [float("inf"), 1]}, "utf-8")
    assert line == '{"auc": null, "name": "ä", "all": [null, 1]}'


def test_an_error_of_a_command_stays_an_error(refused_open: Callable[[], int]) -> None:
    """An error of a file is not reported as an output error."""
    with pytest.raises(PermissionError):
        refused_open()


@pytest.fixture
def refused_open(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    from mtil.cli import main
    from mtil.data import inspection

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(inspection, "inspect_dataset", refuse)
    return lambda: main(["inspect", "nowhere"])
