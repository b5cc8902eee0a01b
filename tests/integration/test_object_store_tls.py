"""Object storage over TLS: a client without the certificate cannot connect."""

import datetime as dt
import ipaddress
from collections.abc import Iterator
from pathlib import Path

import boto3
import botocore.config
import pytest
from botocore.exceptions import SSLError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cluster import object_store
from mtil.errors import StorageError
from mtil.storage import open_store


def _self_signed(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate of 127.0.0.1, and the key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mtil")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, private


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("tls")
    certificate = _self_signed(folder)
    with object_store.run_object_store(folder, "mine", certificate=certificate) as environment:
        yield environment


def test_objects_go_over_tls(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    assert server["AWS_ENDPOINT_URL"].startswith("https://127.0.0.1:")
    store = open_store("s3://mine/run")
    store.write("a", b"1")
    assert store.create("b", b"2")
    assert [store.read("a"), store.read("b")] == [b"1", b"2"]


def test_a_client_that_does_not_know_the_certificate_is_refused(
    server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_CA_BUNDLE")
    once = botocore.config.Config(retries={"total_max_attempts": 1})
    with pytest.raises(SSLError):
        boto3.client("s3", config=once).list_objects_v2(Bucket="mine")
    with pytest.raises(StorageError):
        open_store("s3://mine/other").read("a")
