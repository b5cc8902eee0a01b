"""Small files that would need excessive memory or time are refused with a message."""

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import reading
from cluster.__main__ import main
from cluster.errors import UsageError
from cluster.files import ROOT

BILLION = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{l: *{before}, r: *{before}, <<: *{before}}}\n"
    for before, name in zip("abcdefghijklmnopqrst", "bcdefghijklmnopqrstu", strict=True)
)
TEXTS = {
    "bomb": (BILLION, "more than 50000 values, with aliases expanded"),
    "merged": (MERGED, "more than 50000 values, with aliases expanded"),
    "itself": ("a: &a [1, *a]", "*a refers to a collection around itself"),
    "brackets": ("[" * 200_000, "more than 64 nested levels"),
    "closed": ("[" * 200_000 + "]" * 200_000, "more than 64 nested levels"),
    "braces": ("{a: " * 100_000, "more than 64 nested levels"),
    "dashes": ("- " * 100_000, "more than 64 nested levels"),
    "documents": ("--- x\n" * 60_000, "more than 50000 values"),
    "digits": (f"max_workers: {'9' * 5000}", "Exceeds the limit"),
    "large": (f"max_workers: {'9' * 400}", "`max_workers` must be a number below 2^63"),
    "float": (f"max_workers: {'9' * 400}.0", "`max_workers` must be a finite number"),
    "base 60": (f"max_workers: 1{':59' * 400}", "`max_workers` must be a number below 2^63"),
    "infinite": ("max_workers: .inf", "`max_workers` must be a finite number"),
    "nan": ("a: [{b: .nan}]", "`a[0].b` must be a finite number"),
    "date": ("a: 2026-99-99", "month must be in 1..12"),
    "no date": ("a: !!timestamp x", "a value does not fit its tag"),
    "no number": ("a: !!int x", "invalid literal"),
    "no truth": ("a: !!bool x", "a value does not fit its tag"),
    "python": ("a: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
    "binary": ("a: !!binary aGk=", "`a` must be plain YAML, but is a bytes"),
    "set": ("a: !!set {x}", "`a` must be plain YAML, but is a set"),
    "number key": ("provider: {1: x}", "the key 1 must be text"),
    "NUL": ('a: "x\\0y"', "`a` has the character U+0000"),
    "escape": ('"x\\e[31m": 1', "has the character U+001B"),
    "surrogate": ('a: "\\ud800"', ""),
    "tab": ("a:\n\t- x", "found character"),
    "open": ("a: [", ""),
    "no anchor": ("a: *b", "undefined alias"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_beyond_reason_is_one_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = TEXTS[name]
    path = tmp_path / "file.yaml"
    path.write_text(text)
    for command in ("check", "up", "down", "status"):
        assert main([command, str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"cluster: A cluster file must be YAML, but {path} is not: ")
        assert message in captured.err
        assert captured.err.count("\n") == 1
        assert len(captured.err) < 600


def test_a_job_s_environment_is_read_with_the_same_bounds() -> None:
    for name in ("bomb", "brackets", "digits"):
        with pytest.raises(UsageError, match="`x` must be YAML, but is not: "):
            reading.parse_yaml_documents(TEXTS[name][0], "`x` must be YAML, but is not")


def test_a_bomb_takes_little_memory(tmp_path: Path) -> None:
    """A new process with 512 MiB refuses a file with 8 GB of expanded aliases."""
    path = tmp_path / "file.yaml"
    path.write_text(BILLION)
    assert path.stat().st_size < 1024
    code = (
        "import pathlib, sys\nfrom cluster.reading import read_yaml_file\n"
        "read_yaml_file(pathlib.Path(sys.argv[1]))"
    )

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))

    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        preexec_fn=bounded,
        capture_output=True,
        text=True,
    )
    assert "UsageError: A cluster file must be YAML" in done.stderr, done.stderr


def test_what_is_no_regular_file_is_not_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.yaml"
    os.mkfifo(path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    for other in (path, Path("/dev/zero"), tmp_path):
        assert main(["check", str(other)]) == 2
        assert capsys.readouterr().err == (
            f"cluster: A cluster file must be a regular file, but {other} is not.\n"
        )


def test_a_file_of_more_than_a_mebibyte_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 34)
    assert main(["check", str(path)]) == 2
    assert "must have at most 1 MiB, but" in capsys.readouterr().err


def test_documents_that_are_in_order_are_read() -> None:
    text = "\ufeff--- {a: &x [1, 2.5, true, null, 2026-01-02], b: *x}\n---\n--- y\n"
    one, two = reading.parse_yaml_documents(text.removeprefix("\ufeff"), "")
    assert one["a"] == one["b"]
    assert (one["a"][:4], two) == ([1, 2.5, True, None], "y")
