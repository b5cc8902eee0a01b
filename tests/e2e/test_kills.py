"""Kills of a small circle, the short form; the long one is `python -m tests.e2e.kills`."""

from collections.abc import Iterator

import pytest

from tests.e2e.kills import Ground, disturbed, ground, same, undisturbed
from tests.e2e.places import Nodes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with ground(tmp_path_factory.mktemp("kills"), folds="0", num_rounds=1) as found:
        yield found


def test_killed_workers_coordinators_and_storage_change_nothing(place: Ground) -> None:
    plan = [("keepers", 0.0, 6.0), ("worker", 2.0, 3.0), ("storage", 2.0, 0.0)]
    with Nodes() as nodes:
        expected = undisturbed(place, nodes)
        ended = disturbed(place, nodes, "killed", plan)
    assert [one["kind"] for one in ended["kills"]] == [kind for kind, _, _ in plan]
    assert same(ended, expected)
    assert expected["failures"] == {}
