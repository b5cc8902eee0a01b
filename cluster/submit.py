"""`python -m cluster submit`: run a command on a cluster through Ray's job API.

Uploads the working directory, so the cluster runs the local code. Everybody with access to the
cluster can read the command and the environment of a job, so secrets are refused.
"""

import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cluster import credentials, secret_files
from cluster.errors import ClusterError, UsageError

MAX_UPLOAD_BYTES = 64 << 20
"""Largest upload. A checkout has a few MiB; more is data or a virtual environment by mistake."""

logger = logging.getLogger(__name__)

_RECONNECT_S = 2
_PATIENCE_S = 300
"""Longest time out of reach, in seconds, before `follow` gives up."""
_VISIBILITY = "everybody with access to the cluster could read among its jobs"
_SECRET_ADVICE = f"which {_VISIBILITY}; give the machines a role or a mounted file"
# Ray would prefer these variables to the given address.
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


def select_environment(names: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables for a job.

    Args:
        names: names of the variables, without values.
        given: the environment with the values.

    Raises:
        UsageError: if a name is not set or contains `=`, or a variable looks like a secret.
    """
    for name in names:
        if "=" in name:
            raise UsageError(
                f"--env must name a variable of this environment, but got {name}; "
                f"run `export {name}` and give --env {name.partition('=')[0]}."
            )
        if credentials.is_secret_name(name):
            raise UsageError(f"--env must name no secret, but got {name}, {_SECRET_ADVICE}.")
        if name not in given:
            raise UsageError(f"--env must name a variable that is set, but {name} is not.")
        if secret := _find_secret(given[name], given):
            raise UsageError(
                f"--env must name no secret, but {name} holds an apparent secret ({secret}), "
                f"{_SECRET_ADVICE}."
            )
    return {name: given[name] for name in names}


def build_entrypoint(command: Sequence[str], given: Mapping[str, str]) -> str:
    """Return a command as a shell line for the job API.

    Raises:
        UsageError: if the command is empty or contains a secret.
    """
    if not command:
        raise UsageError("submit must be given a command after `--`, but got none.")
    line = shlex.join(command)
    if secret := _find_secret(line, given):
        raise UsageError(
            f"The command must hold no secrets, but has an apparent secret ({secret}), "
            f"{_SECRET_ADVICE}."
        )
    return line


def _find_secret(text: str, given: Mapping[str, str]) -> str | None:
    """Return a description of a secret in a text, or None."""
    for name, value in credentials.list_secret_values(given):
        if value in text:
            return f"the value of {name}"
    return next(credentials.find_secrets(text), None)


def measure_upload(folder: Path) -> dict[str, int]:
    """Return the upload size in bytes by entry of a folder, by Ray's own selection of files.

    Raises:
        UsageError: if the folder does not exist, has files with secrets, or is larger than
            `MAX_UPLOAD_BYTES`.
    """
    if not folder.is_dir():
        raise UsageError(f"--working-dir must be a folder, but {folder} is not.")
    from ray._private.runtime_env import packaging

    folder = folder.absolute()
    sizes: dict[str, int] = {}
    files: list[Path] = []
    # Ray logs every skipped file.
    silent_logger = logging.getLogger("cluster.upload")
    silent_logger.setLevel(logging.CRITICAL)

    def add_file(path: Path) -> None:
        if path.is_file():
            entry = path.relative_to(folder).parts[0]
            sizes[entry] = sizes.get(entry, 0) + path.stat().st_size
            files.append(path)

    packaging._dir_travel(folder, [], add_file, include_gitignore=True, logger=silent_logger)
    total = sum(sizes.values())
    if total > MAX_UPLOAD_BYTES:
        largest = sorted(sizes, key=lambda entry: sizes[entry], reverse=True)[:3]
        listing = ", ".join(f"{entry} {sizes[entry] / 2**20:.0f}" for entry in largest)
        raise UsageError(
            f"The working directory must be at most {MAX_UPLOAD_BYTES >> 20} MiB, but has "
            f"{total / 2**20:.0f} (MiB: {listing}); name in .rayignore what to leave out."
        )
    secrets = list(islice(secret_files.find_secret_files(folder, files, os.environ), 4))
    if secrets:
        listing = ", ".join(secrets[:3]) + (" and more" if len(secrets) > 3 else "")
        raise UsageError(
            f"The working directory must hold no secrets, which {_VISIBILITY}, but has {listing}; "
            "name in .rayignore what to leave out."
        )
    return sizes


def submit_job(
    command: Sequence[str],
    *,
    address: str,
    working_dir: Path,
    names: Sequence[str] = (),
    machines: str | None = None,
) -> int:
    """Run a command on a cluster, print the output and return the exit code.

    On Ctrl-C the job goes on, and `KeyboardInterrupt` is raised.

    Args:
        command: the command and its arguments.
        address: URL of the dashboard, `http://HOST:PORT`.
        working_dir: folder to upload; the working directory of the command.
        names: names of environment variables to pass to the job.
        machines: the cluster's possible workers (`files.machines`), unknown to jobs through Ray.

    Raises:
        UsageError: if an argument is wrong. Nothing was started.
        ClusterError: if the cluster does not answer.
    """
    line = build_entrypoint(command, os.environ)
    variables = select_environment(names, os.environ)
    if machines:
        variables.setdefault("MTIL_MACHINES", machines)
    measure_upload(working_dir)
    client = _connect(address)
    runtime: dict[str, Any] = {"working_dir": str(working_dir.absolute()), "env_vars": variables}
    try:
        job = client.submit_job(entrypoint=line, runtime_env=runtime)
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(f"The cluster refuses the job: {_first_line(error)}") from error
    return follow_job(job, address=address)


def follow_job(job: str, *, address: str) -> int:
    """Print a job's output from start to end, and return the exit code.

    Raises:
        UsageError: if the job does not exist.
        ClusterError: if the cluster does not answer for `_PATIENCE_S`.
    """
    client = _connect(address)
    print(f"job {job}", file=sys.stderr, flush=True)  # noqa: T201
    try:
        details = asyncio.run(_print_logs(client, job))
    except KeyboardInterrupt:
        print(  # noqa: T201
            f"\nThe job goes on; `--attach {job}` follows it, and `--stop {job}` ends it.",
            file=sys.stderr,
        )
        raise
    print(f"job {job}: {details.status.value}", file=sys.stderr)  # noqa: T201
    code = details.driver_exit_code
    if code is None:
        if details.status.value == "SUCCEEDED":
            return 0
        raise ClusterError(f"The job ended without an exit code: {details.message or 'no reason'}")
    return to_shell_exit_code(int(code))


def to_shell_exit_code(code: int) -> int:
    """Return a shell's exit code for a process: 128 plus the signal number if a signal ended it."""
    return 128 - code if code < 0 else code & 0xFF


def stop_job(job: str, *, address: str) -> None:
    """Stop a job and its processes.

    Raises:
        UsageError: if the job does not exist.
    """
    try:
        _connect(address).stop_job(job)
    except RuntimeError as error:
        raise UsageError(f"--stop must name a job of the cluster, but got {job}.") from error


async def _print_logs(client: Any, job: str) -> Any:
    """Print a job's logs, reconnecting after lost connections. Return the ended job's details."""
    import aiohttp

    num_printed, lost_at = 0, None
    while True:
        # Each connection sends the logs from the beginning, so skip the characters printed before.
        num_seen = 0
        try:
            async for text in client.tail_job_logs(job):
                new_text = text[max(0, num_printed - num_seen) :]
                num_seen += len(text)
                if new_text:
                    num_printed = num_seen
                    print(new_text, end="", flush=True)  # noqa: T201
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            logger.debug("the log of %s broke off: %s", job, error)
        details = await _fetch_details(client, job)
        if details is not None and details.status.is_terminal():
            return details
        if details is not None:
            lost_at = None
        elif lost_at is None:
            lost_at = time.monotonic()
            print("the cluster does not answer; trying again", file=sys.stderr)  # noqa: T201
        elif time.monotonic() - lost_at > _PATIENCE_S:
            raise ClusterError(
                f"The cluster has not answered for {_PATIENCE_S} s, and the job may go on; run "
                f"`--attach {job}` when the cluster answers again."
            )
        await asyncio.sleep(_RECONNECT_S)


async def _fetch_details(client: Any, job: str) -> Any:
    """Return a job's details, or None if the cluster does not answer."""
    try:
        return await asyncio.to_thread(client.get_job_info, job)
    except (OSError, RuntimeError) as error:
        if "404" in str(error):
            raise UsageError(f"--attach must name a job of the cluster, but got {job}.") from error
        return None


def _connect(address: str) -> Any:
    for name in _OVERRIDES:
        os.environ.pop(name, None)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UsageError(
            f"The cluster at {address} requires a token, but got no valid token; set "
            "RAY_AUTH_MODE=token and put the token into ~/.ray/auth_token, or name the cluster "
            "with --cluster."
        ) from error
    except (OSError, RuntimeError) as error:
        raise ClusterError(
            f"A cluster must answer at {address}, but does not ({_first_line(error)}); name a "
            "cluster with --address or --cluster."
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") + "."
