"""Completion in a real bash: commands, options, configuration keys and values."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtil.cli import main
from mtil.cli.completion import PROGRAMS, make_script

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both programs, as in an installation."""
    folder = tmp_path_factory.mktemp("bin")
    for name, module in zip(PROGRAMS, ("mtil.cli", "tune.cli"), strict=True):
        file = folder / name
        file.write_text(
            f"#!{sys.executable}\nfrom {module} import main\nraise SystemExit(main())\n"
        )
        file.chmod(0o755)
    return folder


def _complete(programs: Path, line: str) -> set[str]:
    """Return bash's completions for the last word of a line."""
    words = line.split(" ")
    shell = f"""
export PATH={programs}:$PATH PYTHONPATH={Path(__file__).parents[3]}
{make_script("bash")}
COMP_LINE={line!r} COMP_POINT={len(line)} COMP_TYPE=9
COMP_WORDS=({" ".join(repr(word) for word in words)}) COMP_CWORD={len(words) - 1}
_python_argcomplete {words[0]} {words[-1]!r} {words[-2]!r}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        [str(BASH), "--norc", "-c", shell], capture_output=True, text=True, check=False
    )
    return {word.strip() for word in done.stdout.splitlines()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mtil re", {"report"}),
        ("mtil evaluate --sp", {"--split"}),
        ("mtil evaluate --split ", {"test", "validation"}),
        ("mtil train --zoom.num", {"--zoom.num-windows"}),
        ("mtil train --circle.maps ", {"in_sample", "cross_fit", "recycle", "corrupted"}),
        ("mtil-tune co", {"confirm"}),
    ],
)
def test_bash_completes(programs: Path, line: str, expected: set[str]) -> None:
    assert _complete(programs, line) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_command_prints_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert script.strip() == make_script(shell).strip()
    assert all(name in script for name in PROGRAMS)
