"""Refusals of `up`, `down` and `status` before the call of Ray's launcher."""

import io
import os
import sys
from pathlib import Path

import pytest
import yaml

from cluster import launch
from cluster.__main__ import main
from cluster.check import open_file_for_down
from cluster.files import ROOT
from tests.waiting import until


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The on-prem template, filled in; calls of Ray's launcher fail."""
    for name in (".ray/auth_token", ".ssh/mtil"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    document = yaml.safe_load((ROOT / "cluster" / "templates" / "on-prem.yaml").read_text())
    document["provider"] |= {"head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]}
    path = tmp_path / "desks.yaml"
    path.write_text(yaml.dump(document))

    def refuse(*_: object) -> None:
        raise AssertionError("nothing was to be run")

    monkeypatch.setattr(launch, "_run_ray", refuse)
    monkeypatch.setattr(launch, "_stop_hosts", refuse)
    return path


@pytest.mark.parametrize("answer", ["", "n\n", "no\n", "what\n"])
def test_hosts_are_left_alone_unless_that_is_confirmed(
    answer: str, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert main(["down", str(file)]) == 2
    captured = capsys.readouterr()
    assert "End Ray on 10.0.0.1, 10.0.0.2?" in captured.out
    assert "must be confirmed, but was not" in captured.err


@pytest.mark.parametrize("command", ["up", "status"])
def test_a_file_with_a_mistake_is_acted_on_by_no_command(
    command: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(file.read_text().replace("RAY_AUTH_MODE=token", ""))
    assert main([command, str(file)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # the head's and the workers' start
    assert all(line.startswith("cluster: `ray start` must have RAY_AUTH_MODE") for line in lines)


def test_a_file_for_another_program_is_told_its_program(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = ROOT / "cluster" / "templates" / "kuberay-job.yaml"
    assert main(["up", str(path)]) == 2
    assert f"use `kubectl apply -f {path}`" in capsys.readouterr().err


def test_down_needs_no_more_than_the_hosts(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`down` ignores a missing mount and a mistake in a start command."""
    ended: list[str] = []
    monkeypatch.setattr(
        launch, "_stop_hosts", lambda opened: ended.extend(launch._list_hosts(opened))
    )
    monkeypatch.setattr(launch, "_run_ray", lambda name, words: ended.append(name))
    document = yaml.safe_load(file.read_text())
    document["file_mounts"]["/home/mtil/x"] = "gone"
    document["head_start_ray_commands"] = ["ray start --head"]
    file.write_text(yaml.dump(document))
    assert main(["down", str(file), "--yes"]) == 0
    assert ended == ["10.0.0.1", "10.0.0.2", "down"]


def test_down_of_a_file_without_a_head_is_one_sentence(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = yaml.safe_load(file.read_text())
    del document["provider"]["head_ip"]
    file.write_text(yaml.dump(document))
    assert main(["down", str(file), "--yes"]) == 2
    assert capsys.readouterr().err == (
        "cluster: `provider.head_ip` must name the head, but is missing.\n"
    )


def test_a_user_that_is_an_option_reaches_no_ssh(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = yaml.safe_load(file.read_text())
    document["auth"]["ssh_user"] = "-oProxyCommand=touch x"
    file.write_text(yaml.dump(document))
    for command in (["up"], ["down", "--yes"], ["status"]):
        assert main([command[0], str(file), *command[1:]]) == 2
        assert capsys.readouterr().err == (
            "cluster: `auth.ssh_user` must be the name of a user, but is "
            "'-oProxyCommand=touch x'.\n"
        )


def test_ssh_is_told_where_its_options_end(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake `ssh` records the arguments for two hosts."""
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path))
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >> {tmp_path}/words\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    launch._stop_hosts(open_file_for_down(file))
    words = (tmp_path / "words").read_text().splitlines()
    ends = [index for index, word in enumerate(words) if word == "--"]
    assert [words[at + 1] for at in ends] == ["mtil@10.0.0.1", "mtil@10.0.0.2"]


def test_a_forwarder_that_ends_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_RESTART_S", 0.05)
    starts = tmp_path / "starts"
    program = f"open({str(starts)!r}, 'a').write('x'); import signal; signal.pause()"
    forwarder = launch._Forwarder([sys.executable, "-c", program])
    forwarder.keep()
    try:
        until(lambda: starts.exists() and starts.read_text() == "x")
        os.kill(forwarder._process.pid, 9)
        until(lambda: starts.read_text() == "xx")
    finally:
        forwarder.end()
    assert forwarder.has_ended()
