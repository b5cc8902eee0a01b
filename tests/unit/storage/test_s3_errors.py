"""Error messages for answers of an S3 server, with cause and remedy, from a server over HTTP."""

import os
from collections.abc import Iterator

import pytest

from mtil.doctor import check_storage
from mtil.errors import NotFoundError, RefusedError, StorageError, TooLargeError
from mtil.storage import S3Store
from tests.unit.s3_server import Answer, Server


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    running.reset()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": running.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    return running


@pytest.fixture
def store(server: Server) -> S3Store:
    return S3Store("bucket/some")


EXPIRED = (400, "ExpiredToken", {}, "The provided token has expired.")
REFUSALS = [
    (EXPIRED, "the AWS credentials have expired .ExpiredToken.; log in again"),
    ((403, "InvalidAccessKeyId", {}, ""), "does not know the access key"),
    ((403, "SignatureDoesNotMatch", {}, ""), "the secret key does not belong to the access key"),
    ((403, "AccessDenied", {}, "Access Denied"), "and their right s3:"),
    ((403, "AccessDenied", {}, "no identity-based policy allows the kms:Decrypt action"), "key "
     "that encrypts the bucket"),
    ((400, "KMS.DisabledException", {}, ""), "the key that encrypts the bucket"),
    ((403, "AccessDenied", {}, "This is a Requester Pays bucket"), "charges its readers"),
    ((403, "AccessDenied", {}, "object protected by object lock"), "objects of the bucket are "
     "locked"),
    ((400, "ObjectLocked", {}, "Object is WORM protected"), "choose a bucket without object lock"),
    ((403, "RequestTimeTooSkewed", {}, ""), "are too far apart .*; set the clock"),
]  # fmt: skip
FAILURES = [
    ((404, "NoSuchBucket", {}, ""), "Bucket 'bucket' does not exist; make it first"),
    ((301, "PermanentRedirect", {"x-amz-bucket-region": "eu-west-3"}, ""),
     "in region eu-west-3; set AWS_DEFAULT_REGION=eu-west-3"),
    ((400, "AuthorizationHeaderMalformed", {}, "the region 'a' is wrong; expecting 'eu-west-3'"),
     "set AWS_DEFAULT_REGION=eu-west-3"),
    ((400, "IllegalLocationConstraintException", {}, ""), "in another region; set "
     "AWS_DEFAULT_REGION to"),
    ((501, "NotImplemented", {}, ""), "does not know a request that mtil needs .write."),
    ((503, "SlowDown", {}, ""), "busy or out of order; run the same command again later"),
    ((507, "XMinioStorageFull", {}, ""), "the storage is full"),
    ((403, "QuotaExceeded", {}, ""), "its quota is used up"),
    ((400, "MissingContentMD5", {}, ""), "expects another checksum"),
    ((400, "KeyTooLongError", {}, ""), "choose a shorter location"),
    ((400, "EntityTooLarge", {}, ""), "the object is too large for the server"),
    ((418, "Teapot", {}, "I am a teapot."), r"failed with Teapot: I am a teapot; see the manual"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "says"), [*REFUSALS, *FAILURES])
def test_a_refusal_is_one_sentence_with_cause_and_way_out(
    server: Server, store: S3Store, answer: Answer, says: str
) -> None:
    server.refuse = lambda *_: answer
    kind = RefusedError if (answer, says) in REFUSALS else StorageError
    with pytest.raises(kind, match=says) as caught:
        store.write("x", b"data")
    assert answer[1] in str(caught.value) or answer[1] == "NoSuchBucket"
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("answer", "says"), [REFUSALS[0], REFUSALS[3], FAILURES[2], FAILURES[0]])
def test_the_cause_is_found_where_head_says_a_number_alone(
    server: Server, store: S3Store, answer: Answer, says: str
) -> None:
    server.refuse = lambda *_: answer
    if answer[1] == "NoSuchBucket":
        assert not store.exists("x")  # only a listing names the missing bucket
        with pytest.raises(StorageError, match=says):
            store.names()
        return
    with pytest.raises(StorageError, match=says):
        store.exists("x")


@pytest.mark.parametrize(
    ("operation", "right"),
    [
        ("read", "s3:GetObject"), ("write", "s3:PutObject"), ("create", "s3:PutObject"),
        ("delete", "s3:DeleteObject"), ("list", "s3:ListBucket"), ("parts", "s3:PutObject"),
    ],
)  # fmt: skip
def test_doctor_names_the_right_that_is_missing(server: Server, operation: str, right: str) -> None:
    server.refuse = lambda asked, *_: (
        (403, "AccessDenied", {}, "Access Denied") if asked == operation else None
    )
    check = check_storage("s3://bucket/some")
    assert not check.ok
    assert right in check.detail


@pytest.mark.parametrize(
    "refusal",
    [
        (501, "NotImplemented", {}, "A header implies functionality that is not implemented"),
        (400, "InvalidArgument", {}, "If-None-Match is not supported"),
        (400, "InvalidRequest", {}, "conditional writes are not supported"),
    ],
)
def test_a_server_without_conditional_writes_is_named(server: Server, refusal: Answer) -> None:
    server.refuse = lambda asked, *_: refusal if asked == "create" else None
    check = check_storage("s3://bucket/some")
    assert not check.ok
    assert "cannot create an object only if the name is free (`If-None-Match` on writes)" in (
        check.detail
    )
    assert server.objects == {}


def test_a_server_that_ignores_conditions_is_noticed(server: Server) -> None:
    server.ignores_conditions = True
    check = check_storage("s3://bucket/some")
    assert not check.ok
    assert "refuse to create an object that exists (If-None-Match)" in check.detail
    assert server.objects == {}


@pytest.mark.parametrize(
    "refusal",
    [
        (400, "MissingContentMD5", {}, "Missing required header for this request: Content-MD5."),
        (501, "NotImplemented", {}, ""),
        (405, "MethodNotAllowed", {}, ""),
        (400, "InvalidRequest", {}, "Missing required header for this request: Content-MD5."),
    ],
)
def test_objects_are_deleted_one_by_one_where_several_cannot_be(
    server: Server, refusal: Answer
) -> None:
    server.refuse = lambda asked, *_: refusal if asked == "delete several" else None
    check = check_storage("s3://bucket/some")
    assert check.ok
    assert f"not deleted at once ({refusal[1]}), so mtil deletes them one by one" in check.hint
    assert server.objects == {}


def test_a_server_that_does_everything_is_well(server: Server) -> None:
    check = check_storage("s3://bucket/some")
    assert (check.ok, check.hint) == (True, "")
    assert set(server.seen) == {
        "write", "read", "create", "list", "head", "parts", "delete", "delete several",
    }  # fmt: skip
    assert server.objects == {}


def test_a_clock_that_is_wrong_is_named_even_where_the_server_says_no_more_than_a_refusal(
    server: Server, store: S3Store
) -> None:
    server.skew_s = 3600
    server.refuse = lambda *_: (403, "AccessDenied", {}, "Access Denied")
    with pytest.raises(RefusedError, match=r"but they are 60 minutes apart .*; set the clock"):
        store.exists("x")


@pytest.mark.slow
def test_what_keeps_a_request_from_a_server_is_named(
    server: Server, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(RefusedError, match=r"are incomplete .*; set both AWS_ACCESS_KEY_ID"):
            store.read("x")
        patch.delenv("AWS_ACCESS_KEY_ID")
        with pytest.raises(RefusedError, match=r"There are no AWS credentials .*; set AWS_ACCESS"):
            store.read("x")
        patch.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(RefusedError, match=r"configuration .* cannot be used .*AWS_PROFILE"):
            store.read("x")
    for url, says in {
        "http://127.0.0.1:1": "is out of reach at http://127.0.0.1:1: .*; check AWS_ENDPOINT_URL",
        "nonsense": "is out of reach at nonsense: .*; correct AWS_ENDPOINT_URL",
        os.environ["AWS_ENDPOINT_URL"].replace("http:", "https:"): "speaks https",
    }.items():
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(StorageError, match=says):
            store.read("x")
    with pytest.raises(StorageError, match=r"No bucket can be called 'B:A' .*; correct the s3://"):
        S3Store("B:A/x").read("x")


def test_a_page_that_is_no_answer_of_s3_is_named(server: Server, store: S3Store) -> None:
    server.page = b"<html><body><p>Log in to the network</body></html>"
    with pytest.raises(StorageError, match=r"is not from an S3 server; check AWS_ENDPOINT"):
        store.names()


def test_a_read_is_bounded_before_the_body_is_taken(server: Server, store: S3Store) -> None:
    server.objects["some/x"] = bytes(5)
    assert store.read("x", max_bytes=5) == bytes(5)
    with pytest.raises(TooLargeError, match="x must have at most 4 bytes"):
        store.read("x", max_bytes=4)
    with pytest.raises(NotFoundError):
        store.read("y", max_bytes=4)


@pytest.mark.parametrize("name", ["a\udcff.png", "x" * 1100, "a\0b", "../x", "/x", ""])
def test_names_that_a_bucket_cannot_have_are_one_sentence(store: S3Store, name: str) -> None:
    for call in (store.read, store.exists, store.delete, lambda name: store.write(name, b"")):
        with pytest.raises(StorageError, match="A name ") as caught:
            call(name)
        str(caught.value).encode()
