"""Tells Ray of a spot machine on AWS that it will be taken away, two minutes before.

Runs on that machine beside Ray: `~/venv/bin/python ~/src/cluster/spot_notice.py`, with nothing but
the standard library. Ray warns what runs there, so that trainings write a checkpoint in time. On a
machine that is no spot one it ends at once.
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
"""The variable by which AWS's own libraries are pointed at another server."""


def notice(endpoint: str) -> float | None:
    """Return when the machine goes, in seconds since 1970; None if that is not said.

    Raises:
        OSError: if the metadata service does not answer.
    """
    told = _get(endpoint, "spot/instance-action")
    if told is None:
        return None
    when: str = json.loads(told)["time"]
    return datetime.fromisoformat(when.replace("Z", "+00:00")).astimezone(UTC).timestamp()


def is_spot(endpoint: str) -> bool:
    """Say whether the machine is one that may be taken away.

    Raises:
        OSError: if the metadata service does not answer.
    """
    return _get(endpoint, "instance-life-cycle") == "spot"


def _get(endpoint: str, name: str) -> str | None:
    """Return a value of the metadata service, by its second version; None if it has none."""
    asked = urllib.request.Request(
        f"{endpoint}/latest/api/token",
        method="PUT",
        headers={"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL_S)},
    )
    with urllib.request.urlopen(asked, timeout=_TIMEOUT_S) as answer:
        token = answer.read().decode()
    asked = urllib.request.Request(
        f"{endpoint}/latest/meta-data/{name}", headers={"X-aws-ec2-metadata-token": token}
    )
    try:
        with urllib.request.urlopen(asked, timeout=_TIMEOUT_S) as answer:
            value: str = answer.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    return value


def drain(left_s: float) -> bool:
    """Have Ray warn what runs on this machine; say whether it did."""
    command = ["ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "AWS takes this spot machine away"]
    command += ["--deadline-remaining-seconds", str(max(0, int(left_s)))]
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode == 0


def watch(endpoint: str, *, poll_s: float = _POLL_S) -> None:
    """Wait for a notice and hand it on; return when that is done, or no spot machine is watched."""
    while True:
        try:
            if not is_spot(endpoint):
                print("this is no spot machine: nothing to watch", flush=True)  # noqa: T201
                return
            goes_at = notice(endpoint)
        except (OSError, ValueError, KeyError) as error:
            print(f"the metadata service does not answer: {error}", flush=True)  # noqa: T201
            goes_at = None
        if goes_at is not None:
            left_s = goes_at - time.time()
            print(f"the machine goes in {left_s:.0f} s", flush=True)  # noqa: T201
            if drain(left_s):
                return
        time.sleep(poll_s)


def main() -> int:
    """Watch, unless another one does so already."""
    lock = Path(tempfile.gettempdir()) / f"mtil-spot-notice-{os.getuid()}.lock"
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return 0
        watch(os.environ.get(_ENDPOINT, "http://169.254.169.254").rstrip("/"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
