"""Live tables on a terminal, and the speed and time left of trainings."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from mtil.cli import main
from mtil.cli.console import CommandOutput, format_time_left
from mtil.config import Config
from mtil.data.dataset.manifest import Manifest
from mtil.run.folder import Run
from mtil.run.plan import Train


def _frames(output: CommandOutput) -> None:
    with output.live():
        for number in range(2):
            with output.frame():
                output.line(f"[bold]frame {number}")
                output.table(["fold"], [[str(number)]])


def test_on_a_terminal_a_frame_replaces_the_frame_before() -> None:
    output, terminal = CommandOutput(as_json=False), io.StringIO()
    output.console = Console(file=terminal, force_terminal=True, width=60, color_system=None)
    _frames(output)
    first, *_ = terminal.getvalue().split("frame 1")
    assert first.count("[bold]frame 0") == 1
    assert "\x1b[1A" in first  # the cursor goes up, over the first frame


def test_elsewhere_all_frames_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    _frames(CommandOutput(as_json=False))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["[bold]frame 0", "fold", "0", "[bold]frame 1", "fold", "1"]


def test_status_says_speed_and_time_left(
    tmp_path: Path,
    make_config: Callable[..., Config],
    data_uri: str,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Run.create(str(tmp_path / "run"), make_config(), data_uri, manifest.fingerprint)
    records = [
        {"epoch": epoch, "fold": 0, "seconds": 90.0 - epoch, "images_per_second": 7.25}
        for epoch in range(2)
    ]
    run.write_history(Train(0, 0), records)
    monkeypatch.setattr("mtil.run.status.ProgressWatcher.wait_for_progress", lambda *_: False)
    assert main(["status", "--run", run.uri, "--json"]) == 0
    captured = capsys.readouterr()
    (training,) = json.loads(captured.out)["trainings"]
    assert training["images_per_second"] == 7.25
    assert training["seconds_left"] == 2 * 89.0  # two of four epochs remain
    assert "3 min" in captured.err
    assert "7.2" in captured.err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.5, "1 s"), (119.0, "119 s"), (121.0, "3 min"), (7200.0, "2 h")],
)
def test_times_are_rounded_up(seconds: float | None, text: str) -> None:
    assert format_time_left(seconds) == text
