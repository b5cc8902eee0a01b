"""Send signals to commands at seeded random moments, and check that nothing is left behind.

    python -m tests.e2e.signals --moments 20 --seed 0 --folder signals

The first run of a command is undisturbed. Every later run gets a signal after a random part of the
undisturbed duration, and sometimes a second signal. The signal goes to the command or to the
command's process group. The command must end with exit code 130 and one sentence on stderr, and
leave no process and no temporary folder. A second start of the command must end with the bytes of
the undisturbed run. Prints JSON, also written to `signals.json` in the folder. A second call
continues from the file.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

SENTENCE = "Interrupted; run the same command again to resume.\n"
COMMANDS = ("train", "circle", "evaluate", "predict", "prepare", "prepare --on-ray")
_SMALL = (
    "--config", "demo", "--data.image-size", "64", "--model.encoder.name", "resnet10_tiny",
    "--model.encoder.pretrained", "false", "--train.num-epochs", "2",
    "--train.cpus-per-worker", "0.75",
)  # fmt: skip
_MARK = "MTIL_TEST_MARK"
_SECOND_S = 2.0
"""Longest time between two signals."""
_END_S = 600.0
_TIMES = re.compile(
    rb'"(seconds|time|written|images_per_second|data_wait_share|[a-z]+_unix|boot|host|pid)": '
    rb'("[^"]*"|[-+.e0-9]+|null)'
)
"""Durations, times, hosts and process ids in JSON files: they differ between equal results."""


@dataclass
class Shot:
    """A running command, to be sent signals."""

    arguments: list[str]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.scratch = Path(tempfile.mkdtemp(prefix="s-"))  # a short path, for sockets
        self._sink = self.log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", *self.arguments],
            env=os.environ | self.environment | {_MARK: self.mark, "TMPDIR": str(self.scratch)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._sink,
            start_new_session=True,
            preexec_fn=_restore_signals,
        )

    def wait(self) -> int:
        """Wait until the command has ended, and return its exit code."""
        try:
            return self.process.wait(_END_S)
        finally:
            self._sink.close()

    def send(self, number: signal.Signals, *, to_group: bool = False) -> None:
        """Send a signal to the command, or to all processes of its group."""
        if to_group:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def left(self) -> list[str]:
        """Return processes with the command's mark, and the files in the command's TMPDIR."""
        return [*marked(self.mark), *(path.name for path in self.scratch.iterdir())]

    def clean(self) -> None:
        """Kill all processes left, and delete the command's TMPDIR."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self.mark:
                    process.kill()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _restore_signals() -> None:
    """Restore default signal handlers: background commands of a shell ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def marked(mark: str) -> list[str]:
    """Return the command lines of the processes with a mark in the environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark:
                found.append(" ".join(process.cmdline())[:80])
    return found


def written(folder: Path) -> dict[str, str]:
    """Return digests of the files below a folder, without times and the folder's name in JSON."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix in (".json", ".jsonl"):
                data = _TIMES.sub(b"", data).replace(str(folder).encode(), b"")
            elif path.name == "predictions.csv":
                with path.open(newline="") as file:
                    rows = [{**row, "seconds": ""} for row in csv.DictReader(file)]
                data = json.dumps(rows).encode()
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


class Ground:
    """A data set and a trained run: the inputs of the commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._images, self._data, self._run = (folder / name for name in ("images", "data", "run"))
        if not self._run.exists():
            for arguments in (
                ["mtil", "phantom", str(self._images), "--num-images", "24"],
                self._prepare(self._data),
                self._train("train", self._run),
            ):
                subprocess.run([sys.executable, "-m", *arguments], check=True)

    def _prepare(self, to: Path) -> list[str]:
        return [
            "mtil", "prepare", str(self._images), "--layout", "busi", "--to", str(to),
            "--image-size", "64", "--num-folds", "3",
        ]  # fmt: skip

    def _train(self, command: str, run: Path) -> list[str]:
        extra = ["--circle.num-rounds", "2"] if command == "circle" else []
        return ["mtil", command, "--data", str(self._data), "--run", str(run), *_SMALL, *extra]

    def arguments(self, command: str, target: Path) -> list[str]:
        """Return a command with the output `target`. Copy the run to the target for `evaluate`."""
        if command in ("train", "circle"):
            return self._train(command, target)
        if command == "evaluate":
            shutil.copytree(self._run, target)
            return ["mtil", "evaluate", "--run", str(target)]
        if command == "predict":
            return ["mtil", "predict", str(self._run), str(self._images / "benign"), str(target)]
        return [*self._prepare(target), *(["--on-ray"] if command.endswith("--on-ray") else [])]

    def content(self, command: str, target: Path) -> dict[str, str]:
        """Return digests of the files written by a command, without the ledger of a circle."""
        found = written(target)
        if command == "circle":
            return {name: one for name, one in found.items() if not name.startswith("ledger/")}
        return found


def undisturbed(ground: Ground, command: str) -> dict[str, Any]:
    """Run a command without signals. Return the content, the leftovers and the duration."""
    target = ground.folder / f"{command.replace(' ', '')}-undisturbed"
    shot = Shot(ground.arguments(command, target), ground.folder / "undisturbed.log")
    start = time.monotonic()
    assert shot.wait() == 0, shot.log.read_text()
    seconds = time.monotonic() - start
    left = shot.left()
    shot.clean()
    return {"seconds": seconds, "left": left, "content": ground.content(command, target)}


def disturbed(
    ground: Ground, command: str, name: str, send: Callable[[Shot], list[str]]
) -> dict[str, Any]:
    """Start a command, send signals, and start the command again after the end."""
    target = ground.folder / name
    arguments = ground.arguments(command, target)
    shot = Shot(arguments, ground.folder / f"{name}.log")
    try:
        sent = send(shot)
        start = time.monotonic()
        code = shot.wait()
        seconds = time.monotonic() - start
        left = shot.left()
    finally:
        shot.clean()
    stderr = shot.log.read_text()
    again = Shot(arguments, ground.folder / f"{name}.log")
    try:
        assert again.wait() == 0, again.log.read_text()
        left += again.left()
    finally:
        again.clean()
    content = ground.content(command, target)
    shutil.rmtree(target)
    return {
        "command": command, "sent": sent, "code": code, "seconds": round(seconds, 2),
        "left": left, "told": stderr, "content": content,
    }  # fmt: skip


def at_random(draw: random.Random, seconds: float) -> Callable[[Shot], list[str]]:
    """Return a function to send signals at a random moment of a command's duration."""
    delay = draw.uniform(0.1, 0.97) * seconds
    number = draw.choice((signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    to_group, twice, gap = draw.random() < 0.4, draw.random() < 0.4, draw.uniform(0, _SECOND_S)

    def send(shot: Shot) -> list[str]:
        time.sleep(delay)
        sent = [f"{number.name} {'group ' if to_group else ''}{delay:.1f} s"]
        shot.send(number, to_group=to_group)
        if twice:
            time.sleep(gap)
            shot.send(number, to_group=to_group)
            sent.append(f"+{gap:.1f} s")
        return sent

    return send


def verdict(one: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Return the faults of a command after signals, compared with the undisturbed command."""
    wrong = []
    if one["code"] != 130:
        wrong.append(f"exit code {one['code']}")
    name = "mtil"
    if one["told"] != f"{name}: {SENTENCE}":
        wrong.append(f"stderr {one['told']!r}")
    if one["left"]:
        wrong.append(f"left {one['left']}")
    if one["content"] != before["content"]:
        keys = one["content"].keys() | before["content"].keys()
        differs = [key for key in keys if one["content"].get(key) != before["content"].get(key)]
        wrong.append(f"differs {sorted(differs)}")
    return wrong


def main() -> int:
    """Run the long form. Return 1 if a command had a fault, else 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.signals")
    parser.add_argument("--moments", type=int, default=20, help="for each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, required=True, help="folder of data, logs and results"
    )
    parser.add_argument("--commands", default=",".join(COMMANDS))
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "signals.json"
    results: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    ground = Ground(folder)
    for command in options.commands.split(","):
        of = results.setdefault(command, {"shots": []})
        if "undisturbed" not in of:
            of["undisturbed"] = undisturbed(ground, command)
        while len(of["shots"]) < options.moments:
            index = len(of["shots"])
            send = at_random(
                random.Random(f"{options.seed} {command} {index}"), of["undisturbed"]["seconds"]
            )
            name = f"{command.replace(' ', '')}-{index}"
            shot = disturbed(ground, command, name, send)
            shot["wrong"] = verdict(shot, of["undisturbed"])
            of["shots"].append({key: shot[key] for key in shot.keys() - {"content"}})
            record.write_text(json.dumps(results, indent=1) + "\n")
            sys.stderr.write(f"{name}: {shot['sent']} {shot['seconds']} s {shot['wrong']}\n")
    brief = {
        command: {
            "moments": len(of["shots"]),
            "wrong": [shot["wrong"] for shot in of["shots"] if shot["wrong"]],
            "seconds_to_the_end": sorted(shot["seconds"] for shot in of["shots"]),
        }
        for command, of in results.items()
    }
    sys.stdout.write(json.dumps(brief, indent=1) + "\n")
    return int(any(of["wrong"] for of in brief.values()))


if __name__ == "__main__":
    sys.exit(main())
