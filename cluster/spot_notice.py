"""Announce the end of an AWS spot machine to Ray, two minutes ahead.

Runs on the machine beside Ray: `~/venv/bin/python ~/src/cluster/spot_notice.py`. Needs only the
standard library. Ray warns the machine's tasks, so trainings write a checkpoint in time. Exits at
once on machines that are not spot machines.
"""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

_POLL_S = 5.0
_TIMEOUT_S = 2.0
_TOKEN_TTL_S = 300
_ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
"""Variable of AWS's own libraries: address of another metadata server."""


def read_spot_notice(endpoint: str) -> float | None:
    """Return when AWS takes the machine, in seconds since 1970, or None without a notice.

    Raises:
        OSError: if the metadata service does not answer.
    """
    answer = _get(endpoint, "spot/instance-action")
    if answer is None:
        return None
    end: str = json.loads(answer)["time"]
    return datetime.fromisoformat(end.replace("Z", "+00:00")).astimezone(UTC).timestamp()


def is_spot_machine(endpoint: str) -> bool:
    """Return whether this machine is a spot machine.

    Raises:
        OSError: if the metadata service does not answer.
    """
    return _get(endpoint, "instance-life-cycle") == "spot"


def _get(endpoint: str, name: str) -> str | None:
    """Return a value of the metadata service, or None for an unknown name."""
    # Version 2 of the service needs a token; cluster.yaml turns version 1 off.
    request = urllib.request.Request(
        f"{endpoint}/latest/api/token",
        method="PUT",
        headers={"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL_S)},
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        token = answer.read().decode()
    request = urllib.request.Request(
        f"{endpoint}/latest/meta-data/{name}", headers={"X-aws-ec2-metadata-token": token}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            value: str = answer.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    return value


def drain_machine(left_s: float) -> bool:
    """Make Ray drain this machine, which ends in `left_s` seconds. Return whether Ray accepted."""
    command = ["ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "AWS takes this spot machine away"]
    command += ["--deadline-remaining-seconds", str(max(0, int(left_s)))]
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode == 0


def watch_spot_notice(endpoint: str, *, poll_s: float = _POLL_S) -> None:
    """Wait for a notice and pass the notice to Ray. Return at once on other machines."""
    while True:
        try:
            if not is_spot_machine(endpoint):
                print("this is not a spot machine: nothing to watch", flush=True)  # noqa: T201
                return
            end = read_spot_notice(endpoint)
        except (OSError, ValueError, KeyError) as error:
            print(f"the metadata service does not answer: {error}", flush=True)  # noqa: T201
            end = None
        if end is not None:
            left_s = end - time.time()
            print(f"the machine ends in {left_s:.0f} s", flush=True)  # noqa: T201
            # Ray may not answer at first; the loop tries again with the time left.
            if drain_machine(left_s):
                return
        time.sleep(poll_s)


def main() -> int:
    """Watch for a notice, unless another process on this machine already watches."""
    # Every `ray up` starts this program again.
    lock = Path(tempfile.gettempdir()) / f"mtil-spot-notice-{os.getuid()}.lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return 0
        watch_spot_notice(os.environ.get(_ENDPOINT, "http://169.254.169.254").rstrip("/"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
