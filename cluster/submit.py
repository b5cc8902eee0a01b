"""`python -m cluster submit`: a command, run on a cluster by Ray's job API.

The working directory goes along, so that the code that runs is the code that is here. What the job
API keeps (the command, the environment) anybody with access to the cluster can read; so secrets
are refused there.
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
"""A checkout has a few; more is data or a virtual environment that was meant to stay."""

logger = logging.getLogger(__name__)

_RECONNECT_S = 2
_PATIENCE_S = 300
"""For so long a cluster may be out of reach before following a job ends."""
_READABLE = "everybody with access to the cluster could read among its jobs"
_WHY_NOT = f"which {_READABLE}; give the machines a role or a mounted file"
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


def environment(names: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that go along with a job.

    Args:
        names: which of them, without values.
        given: the environment that they are taken from.

    Raises:
        UsageError: if one is not set, holds a value of its own, or is a secret by its name.
    """
    for name in names:
        if "=" in name:
            raise UsageError(
                f"--env must name a variable of this environment, but got {name}; "
                f"run `export {name}` and give --env {name.partition('=')[0]}."
            )
        if credentials.is_secret_name(name):
            raise UsageError(f"--env must name no secret, but got {name}, {_WHY_NOT}.")
        if name not in given:
            raise UsageError(f"--env must name a variable that is set, but {name} is not.")
        if whose := _secret_in(given[name], given):
            raise UsageError(
                f"--env must name no secret, but {name} holds what looks like one ({whose}), "
                f"{_WHY_NOT}."
            )
    return {name: given[name] for name in names}


def entrypoint(command: Sequence[str], given: Mapping[str, str]) -> str:
    """Return a command as the job API takes it: one line for a shell.

    Raises:
        UsageError: if it is empty, or holds a secret of the environment.
    """
    if not command:
        raise UsageError("submit must be given a command after `--`, but got none.")
    line = shlex.join(command)
    if whose := _secret_in(line, given):
        raise UsageError(
            f"The command must hold no secrets, but has what looks like one ({whose}), {_WHY_NOT}."
        )
    return line


def _secret_in(text: str, given: Mapping[str, str]) -> str | None:
    """Return whose secret a text has, or what it looks like."""
    for name, value in credentials.values(given):
        if value in text:
            return f"the value of {name}"
    return next(credentials.found(text), None)


def upload_size(folder: Path) -> dict[str, int]:
    """Return the bytes that would go along, by entry of a folder, as Ray itself decides.

    Raises:
        UsageError: if it is no folder, has files with secrets, or is larger in all than
            `MAX_UPLOAD_BYTES`.
    """
    if not folder.is_dir():
        raise UsageError(f"--working-dir must be a folder, but {folder} is not.")
    from ray._private.runtime_env import packaging

    folder = folder.absolute()
    sizes: dict[str, int] = {}
    files: list[Path] = []
    silent = logging.getLogger("cluster.upload")
    silent.setLevel(logging.CRITICAL)  # Ray tells it of every file that it skips

    def count(path: Path) -> None:
        if path.is_file():
            entry = path.relative_to(folder).parts[0]
            sizes[entry] = sizes.get(entry, 0) + path.stat().st_size
            files.append(path)

    packaging._dir_travel(folder, [], count, include_gitignore=True, logger=silent)
    total = sum(sizes.values())
    if total > MAX_UPLOAD_BYTES:
        largest = sorted(sizes, key=lambda entry: sizes[entry], reverse=True)[:3]
        told = ", ".join(f"{entry} {sizes[entry] / 2**20:.0f}" for entry in largest)
        raise UsageError(
            f"The working directory must be at most {MAX_UPLOAD_BYTES >> 20} MiB, but has "
            f"{total / 2**20:.0f} (MiB: {told}); name in .rayignore what is to stay."
        )
    secret = list(islice(secret_files.found(folder, files, os.environ), 4))
    if secret:
        told = ", ".join(secret[:3]) + (" and more" if len(secret) > 3 else "")
        raise UsageError(
            f"The working directory must hold no secrets, which {_READABLE}, but has {told}; name "
            "in .rayignore what is to stay."
        )
    return sizes


def submit(
    command: Sequence[str],
    *,
    address: str,
    working_dir: Path,
    names: Sequence[str] = (),
    machines: str | None = None,
) -> int:
    """Run a command on a cluster, print what it prints, and return its exit code.

    Ctrl-C leaves the job alone and raises `KeyboardInterrupt`.

    Args:
        command: the command and its arguments.
        address: where the dashboard answers, `http://HOST:PORT`.
        working_dir: the folder that goes along and that the command runs in.
        names: variables of this environment that the job gets.
        machines: what the cluster can start (`files.machines`), which Ray does not tell a job.

    Raises:
        UsageError: if something that was given is wrong; nothing runs then.
        ClusterError: if the cluster does not answer.
    """
    line = entrypoint(command, os.environ)
    variables = environment(names, os.environ)
    if machines:
        variables.setdefault("MTIL_MACHINES", machines)
    upload_size(working_dir)
    client = _client(address)
    runtime: dict[str, Any] = {"working_dir": str(working_dir.absolute()), "env_vars": variables}
    try:
        job = client.submit_job(entrypoint=line, runtime_env=runtime)
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(f"The cluster refuses the job: {_first_line(error)}") from error
    return follow(job, address=address)


def follow(job: str, *, address: str) -> int:
    """Print what a job prints from its start until it ends, and return its exit code.

    Raises:
        UsageError: if there is no such job.
        ClusterError: if the cluster does not answer for `_PATIENCE_S`.
    """
    client = _client(address)
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
    return exit_code(int(code))


def exit_code(code: int) -> int:
    """Return what a shell makes of the exit code of a process: 128 and the signal that ended it."""
    return 128 - code if code < 0 else code & 0xFF


def stop(job: str, *, address: str) -> None:
    """End a job and what it started.

    Raises:
        UsageError: if there is no such job.
    """
    try:
        _client(address).stop_job(job)
    except RuntimeError as error:
        raise UsageError(f"--stop must name a job of the cluster, but got {job}.") from error


async def _print_logs(client: Any, job: str) -> Any:
    """Follow the logs over lost connections, and return what became of the job.

    Each connection starts again at the beginning of the logs.
    """
    import aiohttp

    printed, lost_at = 0, None
    while True:
        seen = 0
        try:
            async for text in client.tail_job_logs(job):
                fresh = text[max(0, printed - seen) :]
                seen += len(text)
                if fresh:
                    printed = seen
                    print(fresh, end="", flush=True)  # noqa: T201
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            logger.debug("the log of %s broke off: %s", job, error)
        details = await _details(client, job)
        if details is not None and details.status.is_terminal():
            return details
        if details is not None:
            lost_at = None
        elif lost_at is None:
            lost_at = time.monotonic()
            print("the cluster does not answer; trying again", file=sys.stderr)  # noqa: T201
        elif time.monotonic() - lost_at > _PATIENCE_S:
            raise ClusterError(
                f"The cluster has not answered for {_PATIENCE_S} s, and the job may go on; "
                f"`--attach {job}` follows it when it answers."
            )
        await asyncio.sleep(_RECONNECT_S)


async def _details(client: Any, job: str) -> Any:
    """Return what is known of a job, None if the cluster does not answer."""
    try:
        return await asyncio.to_thread(client.get_job_info, job)
    except (OSError, RuntimeError) as error:
        if "404" in str(error):
            raise UsageError(f"--attach must name a job of the cluster, but got {job}.") from error
        return None


def _client(address: str) -> Any:
    for name in _OVERRIDES:  # Ray would prefer these to the address that it is given
        os.environ.pop(name, None)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UsageError(
            f"The cluster at {address} must be given its token, but was not; set "
            "RAY_AUTH_MODE=token and put the token into ~/.ray/auth_token, or name the cluster "
            "with --cluster."
        ) from error
    except (OSError, RuntimeError) as error:
        raise ClusterError(
            f"A cluster must answer at {address}, but does not ({_first_line(error)}); name one "
            "with --address or --cluster."
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") + "."
