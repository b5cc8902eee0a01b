"""A command ended by a signal leaves an exit code, a message and no processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from mtil.process import supervisor

pytestmark = pytest.mark.slow

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED_LINE = f"mtil: {supervisor.INTERRUPTED_MESSAGE}\n"

BEGIN = """
import os, signal, subprocess, sys, time
from mtil.process import interrupts, supervisor
{settings}
supervisor.supervise_command("mtil")
def ready():
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
"""


def start(
    code: str, settings: str = "", ignored: signal.Signals | None = None, **options: Any
) -> "subprocess.Popen[str]":
    """Start a watched process in a new session, and wait until the process prints `ready`."""

    def restore_handlers() -> None:
        """Restore signal handlers: background commands of a shell ignore Ctrl-C."""
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN.replace("{settings}", settings) + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=restore_handlers,
        **options,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def below(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("to_group", [False, True])
def test_a_signal_ends_all_with_one_sentence(number: signal.Signals, to_group: bool) -> None:
    with start(
        """
for session in (False, True):  # a group of its own hears nothing
    subprocess.Popen(["sleep", "600"], start_new_session=session)
ready()
time.sleep(600)
"""
    ) as process:
        started = below(process)
        assert len(started) == 3
        (os.killpg if to_group else os.kill)(process.pid, number)
        _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (130, INTERRUPTED_LINE)
    assert not any(one.is_running() for one in started)


def test_an_orphan_that_ignores_signals_is_ended_too() -> None:
    with start(
        """
orphan = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); "
orphan += "time.sleep(600)"
parent = f'''
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {orphan!r}], stdout=subprocess.PIPE,
                         start_new_session=True)
child.stdout.readline()
os._exit(0)
'''
subprocess.run([sys.executable, "-c", parent], check=True)
ready()
time.sleep(600)
"""
    ) as process:
        started = below(process)
        assert any("SIG_IGN" in " ".join(one.cmdline()) for one in started)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (130, INTERRUPTED_LINE)
    assert not any(one.is_running() for one in started)


@pytest.mark.parametrize(
    "end",
    [
        "os.abort()",  # like a library interrupted by a signal
        "raise RuntimeError('broken by the signal')",
        "os.write(2, b'noise'); sys.exit(3)",
        "os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_what_a_signal_brings_down_says_nothing(end: str, tmp_path: Path) -> None:
    code = f"""
try:
    ready()
    time.sleep(600)
except KeyboardInterrupt:
    {end}
"""
    with start(code, cwd=tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (130, INTERRUPTED_LINE)


def test_a_second_signal_does_not_stop_the_cleanup(tmp_path: Path) -> None:
    with start(
        f"""
try:
    ready()
    time.sleep(600)
finally:
    ready()
    sys.stdin.read(1)
    open({str(tmp_path / "cleaned")!r}, "w").close()
""",
        stdin=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "ready\n"
        for number in NUMBERS:
            os.killpg(process.pid, number)
        _, stderr = process.communicate("x", timeout=120)
    assert (process.returncode, stderr) == (130, INTERRUPTED_LINE)
    assert (tmp_path / "cleaned").exists()


def test_a_cleanup_that_does_not_end_is_ended() -> None:
    with start(
        """
try:
    ready()
    time.sleep(600)
finally:
    time.sleep(600)
""",
        "supervisor._CLEANUP_S = 0.5",
    ) as process:
        started = below(process)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=300)
    assert (process.returncode, stderr) == (130, INTERRUPTED_LINE)
    assert not any(one.is_running() for one in started)


def test_a_signal_waits_for_the_end_of_a_deferred_block(tmp_path: Path) -> None:
    with start(
        f"""
try:
    with interrupts.defer_signals():
        with interrupts.defer_signals():
            ready()
            while not interrupts.has_pending_signal():
                time.sleep(0.01)
        open({str(tmp_path / "whole")!r}, "w").close()
    open({str(tmp_path / "after")!r}, "w").close()
finally:
    supervisor.exit_interrupted()
"""
    ) as process:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (130, INTERRUPTED_LINE)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_an_answered_signal_leaves_the_exit_code_to_the_command() -> None:
    with start(
        """
try:
    ready()
    time.sleep(600)
except KeyboardInterrupt:
    supervisor.acknowledge_interrupt()
    sys.stderr.write("detached\\n")
sys.exit(0)
"""
    ) as process:
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (0, "detached\n")


def test_an_ignored_signal_stays_ignored() -> None:
    """`nohup` makes a command ignore SIGHUP."""
    code = "ready()\nsys.stdin.read(1)\nsys.exit(5)"
    with start(code, ignored=signal.SIGHUP, stdin=subprocess.PIPE) as process:
        os.killpg(process.pid, signal.SIGHUP)
        process.communicate("x", timeout=120)
    assert process.returncode == 5


@pytest.mark.parametrize(
    ("code", "expected", "message"),
    [
        ("sys.exit(0)", 0, ""),
        ("sys.exit(2)", 2, ""),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            1,
            "mtil: SIGKILL ended the command, most likely for lack of memory; run the same command "
            "again to resume.\n",
        ),
    ],
)
def test_other_ends(code: str, expected: int, message: str) -> None:
    with start(f"ready()\n{code}") as process:
        _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (expected, message)


def test_a_killed_watcher_takes_the_command_with_it() -> None:
    with start("ready()\ntime.sleep(600)") as process:
        (command,) = below(process)
        process.kill()
        process.communicate(timeout=120)
    command.wait(120)


def test_folders_are_removed_after_all_processes_have_ended(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "own" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "kept").touch()
    with start(
        f"""
from pathlib import Path
supervisor.remove_at_end(Path({str(tmp_path / "own")!r}))
ready()
time.sleep(600)
"""
    ) as process:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert (tmp_path / "other" / "kept").exists()
