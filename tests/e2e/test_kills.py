"""Kills and faults of a small circle; the long form of kills is `python -m tests.e2e.kills`."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.gate import Moment
from tests.e2e.kills import CHECKPOINT, Ground, Kill, disturbed, ground, same, undisturbed
from tests.e2e.places import Nodes
from tests.faults import KINDS, FaultyProxy


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.long)])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    """A circle of fold 0: 1 round with 1 worker, or 2 rounds with 2 workers on 2 nodes."""
    many = request.param
    with ground(tmp_path_factory.mktemp("kills"), "0", many, many) as found:
        yield found


@pytest.fixture(scope="module")
def nodes(place: Ground) -> Iterator[Nodes]:
    with Nodes() as found:
        yield found


@pytest.fixture(scope="module")
def expected(place: Ground, nodes: Nodes) -> dict[str, Any]:
    """Committed results of an undisturbed run."""
    run = undisturbed(place, nodes)
    assert run["failures"] == {}
    return run


def test_killed_workers_coordinators_and_storage_change_nothing(
    place: Ground, nodes: Nodes, expected: dict[str, Any]
) -> None:
    """Every kill waits for a write of the training, on slow and fast machines alike."""
    checkpoint = Moment(CHECKPOINT.format(round=0))
    plan = [
        Kill("keepers", checkpoint, delivered=False),  # the first epoch begins again
        Kill("worker", checkpoint, delivered=True),  # the first epoch is kept
        Kill("storage", Moment(r"rounds/0/.*/model-.*\.pt"), delivered=False),
    ]
    ended = disturbed(place, nodes, "killed", plan)
    assert [one["kind"] for one in ended["kills"]] == ["keepers", "worker", "storage"]
    assert same(ended, expected)


@pytest.mark.long
def test_a_storage_that_fails_one_request_in_ten_changes_nothing(
    place: Ground, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are throttled, fail, are reset or slow, or lose the answer. Results stay equal."""
    server = place.storage.environment["AWS_ENDPOINT_URL"]
    proxy = FaultyProxy(server, share=0.1, seed=0)
    with proxy as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with Nodes() as nodes:
            ended = disturbed(place, nodes, "faulty", [])
    assert same(ended, expected)
    assert proxy.requests > 100
    assert len(proxy.faults) >= len(KINDS) - 2, proxy.faults
