"""Uploads, variables and commands of a job, checked before a cluster is contacted."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import submit
from cluster.__main__ import main
from cluster.errors import ClusterError, UsageError
from cluster.files import ROOT

GIVEN = {
    "RUN": "s3://bucket/run",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
    "SHORT_TOKEN": "run",
    "COPY": "wJalrXUtnFEMI",
    "LOGIN": "ghp_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
}


def test_variables_go_along_by_name() -> None:
    assert submit.select_environment(["RUN"], GIVEN) == {"RUN": "s3://bucket/run"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OTHER", "--env must name a variable that is set, but OTHER is not."),
        ("RUN=x", "--env must name a variable of this environment, but got RUN=x"),
        ("AWS_SECRET_ACCESS_KEY", "--env must name no secret, but got AWS_SECRET_ACCESS_KEY"),
        ("WANDB_API_KEY", "--env must name no secret, but got WANDB_API_KEY"),
        ("WANDB_KEY", "--env must name no secret, but got WANDB_KEY"),
        ("GITHUB_PAT", "--env must name no secret, but got GITHUB_PAT"),
        ("DB_PASS", "--env must name no secret, but got DB_PASS"),
        ("COPY", "--env must name no secret, but COPY holds an apparent secret (the value of AWS"),
        ("LOGIN", "--env must name no secret, but LOGIN holds an apparent secret (ghp_Ab"),
    ],
)
def test_other_variables_do_not(name: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        submit.select_environment([name], GIVEN)
    assert str(raised.value).startswith(message)


def test_a_command_reaches_the_shell_word_by_word() -> None:
    line = submit.build_entrypoint(["mtil", "predict", "my images", "$HOME"], GIVEN)
    assert line == "mtil predict 'my images' '$HOME'"
    assert submit.build_entrypoint(["run"], GIVEN) == "run"  # too short to distinguish from a word


def test_a_command_holds_no_secret() -> None:
    with pytest.raises(UsageError, match="the value of AWS_SECRET_ACCESS_KEY"):
        submit.build_entrypoint(["env", "KEY=wJalrXUtnFEMI", "mtil"], GIVEN)
    with pytest.raises(UsageError, match=r"an apparent secret \(AWS_SECRET_ACCESS_KEY\)"):
        submit.build_entrypoint(["env", "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMIK7MDENG", "mtil"], {})


def test_a_job_that_a_signal_ended_has_the_code_that_a_shell_gives() -> None:
    assert [submit.to_shell_exit_code(code) for code in (0, 3, 255, -9, -15)] == [
        0,
        3,
        255,
        137,
        143,
    ]


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--address", "http://127.0.0.1:9"]) == 2
    assert "must be given a command after `--`" in capsys.readouterr().err


def test_ignored_files_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".rayignore").write_text("data/\n")
    (tmp_path / ".gitignore").write_text("*.log\n")
    (tmp_path / "mtil").mkdir()
    (tmp_path / "mtil" / "a.py").write_bytes(b"x" * 100)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.png").write_bytes(b"x" * 5000)
    (tmp_path / "out.log").write_bytes(b"x" * 70)
    monkeypatch.chdir(tmp_path)
    sizes = submit.measure_upload(Path())
    assert sizes == {".gitignore": 6, ".rayignore": 6, "mtil": 100}


def test_a_folder_that_is_too_large_is_told_what_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "MAX_UPLOAD_BYTES", 1 << 20)
    for name, size in (("small.py", 10), ("data.bin", 3 << 20)):
        (tmp_path / name).write_bytes(b"x" * size)
    with pytest.raises(UsageError, match=r"at most 1 MiB, but has 3 \(MiB: data\.bin 3, small"):
        submit.measure_upload(tmp_path)
    with pytest.raises(UsageError, match="must be a folder"):
        submit.measure_upload(tmp_path / "small.py")


def test_this_checkout_fits_by_far() -> None:
    sizes = submit.measure_upload(ROOT)
    assert sum(sizes.values()) < submit.MAX_UPLOAD_BYTES / 10
    assert not {".git", ".venv", "tests", "docs"} & set(sizes)
    assert {"mtil", "tune", "pyproject.toml"} <= set(sizes)


SECRET_FILES = (
    ".env", ".env.local", "prod.env", "id_rsa", "keys/id_ed25519", "server.key", "cert.p12",
    ".aws/credentials", ".ssh/config", ".kube/config", ".docker/config.json", ".netrc", ".pgpass",
    "my-service-account.json", "client_secret_123.json", "application_default_credentials.json",
    ".git-credentials", ".pypirc", "secrets.yaml", "terraform.tfstate", "auth_token", ".RAY/x",
)  # fmt: skip


@pytest.mark.parametrize("name", SECRET_FILES)
def test_files_with_secrets_by_their_names_stay_here(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    with pytest.raises(UsageError) as raised:
        submit.measure_upload(tmp_path)
    assert f"but has {name} (by its name); name in .rayignore" in str(raised.value)
    (tmp_path / ".rayignore").write_text(f"/{name}\n")
    assert submit.measure_upload(tmp_path).keys() == {".rayignore"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deploy.pem", "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n"),
        ("notes.txt", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n"),
        ("robot.json", '{"type": "x", "private_key": "-----BEGIN PRIVATE KEY-----\\nMII"}'),
        ("config", "[default]\naws_secret_access_key = wJalrXUtnFEMI/K7MDENGbPxRfi\n"),
        ("login.txt", "machine host login me password letmein\n"),
        ("run.sh", "export A=wJalrXUtnFEMI\n"),
    ],
)
def test_files_with_secrets_in_them_stay_here(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", GIVEN["AWS_SECRET_ACCESS_KEY"])
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=rf"{name} \(.* in it\); name in \.rayignore"):
        submit.measure_upload(tmp_path)


def test_a_link_to_a_key_stays_here(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "mtil").write_text("x")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "plain.txt").symlink_to(tmp_path / ".ssh" / "mtil")
    with pytest.raises(UsageError, match=r"plain\.txt \(by its name\)"):
        submit.measure_upload(tmp_path / "code")


def test_what_is_only_about_secrets_goes_along(tmp_path: Path) -> None:
    names = (".env.example", "id_rsa.pub", "credentials.py", "keys.py", "cert.pem", "tokens.json")
    for name in names:
        (tmp_path / name).write_text("-----BEGIN CERTIFICATE-----\n")
    assert submit.measure_upload(tmp_path).keys() == set(names)


def test_many_files_with_secrets_are_named_in_one_sentence(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.key").write_text("x")
    with pytest.raises(UsageError) as raised:
        submit.measure_upload(tmp_path)
    assert str(raised.value).count("(by its name)") == 3
    assert " and more; name in .rayignore" in str(raised.value)


class Cluster:
    """A job's log from Ray's client: always from the start, with an outage in the middle."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.connections = 0

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        self.connections += 1
        yield "one\n"
        if self.connections == 1:
            raise ConnectionResetError
        if self.refusals:
            raise ConnectionRefusedError
        yield "two\nthree\n"

    def get_job_info(self, job: str) -> SimpleNamespace:
        if self.refusals:
            self.refusals -= 1
            raise ConnectionRefusedError
        ended = self.connections > 1
        return SimpleNamespace(status=SimpleNamespace(is_terminal=lambda: ended))


def test_a_log_goes_on_after_an_outage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "_RECONNECT_S", 0)
    asyncio.run(submit._print_logs(Cluster(refusals=3), "job"))
    captured = capsys.readouterr()
    assert captured.out == "one\ntwo\nthree\n"
    assert captured.err == "the cluster does not answer; trying again\n"


def test_an_outage_that_does_not_end_tells_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_RECONNECT_S", 0)
    monkeypatch.setattr(submit, "_PATIENCE_S", 0)
    with pytest.raises(ClusterError, match="run `--attach job` when the cluster answers again"):
        asyncio.run(submit._print_logs(Cluster(refusals=10**6), "job"))
