"""Impossible resource plans are refused with the numbers; possible plans get their CPUs."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtil.distributed.runtime.preflight import (
    DATA_TASK_CPUS,
    NodeResources,
    count_parallel_trainings,
    list_startable_nodes,
    plan_cpus_per_worker,
    plan_elastic_cpus_per_worker,
    plan_threads_per_worker,
)
from mtil.errors import ResourceError

Nodes = list[NodeResources]


def _nodes(*cpus: float, gpus: float = 0) -> Nodes:
    return [NodeResources(cpus=number, gpus=gpus) for number in cpus]


def _plan(nodes: Nodes, num_workers: int, cpus: float | None = None, gpus: float = 0) -> float:
    return plan_cpus_per_worker(nodes, num_workers=num_workers, cpus=cpus, gpus=gpus)


def test_it_needs_no_ray() -> None:
    code = "import mtil.distributed.runtime.preflight, sys; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("nodes", "num_workers", "expected"),
    [
        (_nodes(2), 1, 1.0),
        (_nodes(2), 2, 0.5),
        (_nodes(2), 3, 0.33),  # a third of the 1 CPU for workers
        (_nodes(1), 1, 0.5),  # half of the CPUs, if a whole CPU cannot stay free
        (_nodes(1), 2, 0.25),
        (_nodes(4), 2, 1.0),  # at most 1
        (_nodes(64), 2, 1.0),
        (_nodes(4), 4, 0.75),
        (_nodes(8, 8), 15, 1.0),
        (_nodes(8, 8), 16, 0.93),
        (_nodes(*[1] * 10), 10, 0.75),  # 0.9 would leave no node with room for Ray Data
        (_nodes(*[2] * 8), 16, 0.75),
    ],
)
def test_by_default_workers_share_what_leaves_a_cpu_to_spare(
    nodes: Nodes, num_workers: int, expected: float
) -> None:
    assert _plan(nodes, num_workers) == expected


@pytest.mark.parametrize(
    ("nodes", "num_workers", "cpus", "gpus"),
    [
        (_nodes(2), 1, 1.5, 0),
        (_nodes(2), 2, 0.75, 0),
        (_nodes(8, gpus=2), 2, 3, 1),
        (_nodes(8, 8, gpus=4), 8, 1, 1),
        (_nodes(4, gpus=1), 1, 1, 0.5),  # a single worker may share its GPU
        (_nodes(16, gpus=8), 2, 1, 4),
        (_nodes(2, 2, 2), 3, 1.5, 0),
        (_nodes(3, 3), 4, 1.25, 0),
        (_nodes(2, 2, 2), 2, 1.85, 0),  # the third node is left to Ray Data
    ],
)
def test_a_plan_that_fits_is_taken_as_it_is(
    nodes: Nodes, num_workers: int, cpus: float, gpus: float
) -> None:
    assert _plan(nodes, num_workers, cpus, gpus) == cpus


def test_workers_may_fill_all_but_what_ray_data_needs() -> None:
    most = 4 - DATA_TASK_CPUS
    assert _plan(_nodes(4), 1, most) == most
    with pytest.raises(ResourceError, match=rf"must leave {DATA_TASK_CPUS} CPUs to Ray Data"):
        _plan(_nodes(4), 1, most + 0.01)


@pytest.mark.parametrize(
    ("nodes", "num_workers", "cpus", "gpus", "message"),
    [
        (
            _nodes(8, gpus=2), 3, None, 1,
            "3 workers with 1 GPUs each need 3 GPUs, but the cluster has 2. Lower "
            "`train.num_workers` or `train.gpus_per_worker`.",
        ),
        (_nodes(8), 1, None, 1, "1 workers with 1 GPUs each need 1 GPUs, but the cluster has 0."),
        (
            _nodes(8, gpus=4), 2, None, 0.5,
            "Several workers need whole GPUs, but got 2 workers with 0.5 GPUs per worker.",
        ),
        (_nodes(2), 2, 1, 0, "2 workers with 1 CPUs each leave 0 of 2."),
        (_nodes(2), 4, 1, 0, "4 workers with 1 CPUs each leave -2 of 2."),
        (_nodes(2), 300, None, 0, "300 workers are too many for the 2 CPUs of the cluster."),
        ([], 1, None, 0, "1 workers are too many for the 0 CPUs of the cluster."),
        (
            _nodes(3, 3), 3, 1.75, 0,
            "3 workers with 1.75 CPUs and 0 GPUs each do not fit: the nodes have room for 2. "
            "Lower `train.num_workers` or `train.cpus_per_worker`.",
        ),
        (
            _nodes(2, 2), 2, 1.85, 0,
            f"must leave {DATA_TASK_CPUS} CPUs of one node to Ray Data, but 2 workers with 1.85 "
            "CPUs each leave less on every node. Lower `train.num_workers` or "
            "`train.cpus_per_worker`.",
        ),
        (
            [NodeResources(cpus=1, gpus=4), NodeResources(cpus=20, gpus=0)], 4, 1, 1,
            "4 workers with 1 CPUs and 1 GPUs each do not fit: the nodes have room for 1.",
        ),
        (
            _nodes(8, 8, gpus=3), 3, 1, 2,
            "3 workers with 1 CPUs and 2 GPUs each do not fit: the nodes have room for 2.",
        ),
    ],
)  # fmt: skip
def test_a_plan_that_would_hang_is_refused_with_its_numbers(
    nodes: Nodes, num_workers: int, cpus: float | None, gpus: float, message: str
) -> None:
    with pytest.raises(ResourceError) as caught:
        _plan(nodes, num_workers, cpus, gpus)
    assert message in str(caught.value)


NODES = st.lists(
    st.builds(NodeResources, cpus=st.integers(1, 16).map(float), gpus=st.integers(0, 4).map(float)),
    min_size=1,
    max_size=4,
)


@given(NODES, st.integers(1, 12), st.none() | st.sampled_from([0.25, 0.45, 0.9, 1.0, 1.8]),
       st.sampled_from([0.0, 1.0, 2.0]))  # fmt: skip
def test_what_is_accepted_can_be_placed(
    nodes: Nodes, num_workers: int, cpus: float | None, gpus: float
) -> None:
    """Workers are placed greedily and leave room for Ray Data."""
    try:
        each = _plan(nodes, num_workers, cpus, gpus)
    except ResourceError:
        return
    assert each == cpus or (cpus is None and 0 < each <= 1)
    left = [[node.cpus, node.gpus] for node in nodes]
    for _ in range(num_workers):
        node = next(node for node in left if node[0] >= each - 1e-6 and node[1] >= gpus)
        node[0] -= each
        node[1] -= gpus
    assert max(cpus for cpus, _ in left) >= DATA_TASK_CPUS - 1e-6


@given(st.integers(1, 64), st.integers(1, 64))
def test_the_default_fits_whenever_there_are_as_many_cpus_as_workers(
    cpus: int, num_workers: int
) -> None:
    if num_workers <= cpus:
        assert _plan(_nodes(cpus), num_workers) > 0.4


def _elastic(
    nodes: Nodes, fewest: int, most: int, cpus: float | None = None, gpus: float = 0
) -> float:
    return plan_elastic_cpus_per_worker(
        nodes, min_workers=fewest, num_workers=most, cpus=cpus, gpus=gpus
    )


@pytest.mark.parametrize(
    ("nodes", "fewest", "most", "gpus", "expected"),
    [
        (_nodes(2), 2, 2, 0, 0.5),  # nothing changes
        (_nodes(2), 1, 2, 0, 0.5),
        (_nodes(1, 1), 1, 2, 0, 0.37),  # both may run on a single node
        (_nodes(1), 1, 2, 0, 0.25),  # both run on the node, beside Ray Data
        (_nodes(4, 4), 1, 4, 0, 0.93),  # four may run on a node with 4 CPUs
        (_nodes(8, 8, gpus=4), 2, 8, 1, 1.0),
        (_nodes(8, gpus=4), 2, 8, 1, 1.0),  # half of the nodes are not running yet
    ],
)
def test_a_changing_number_of_workers_always_leaves_room(
    nodes: Nodes, fewest: int, most: int, gpus: float, expected: float
) -> None:
    assert _elastic(nodes, fewest, most, gpus=gpus) == expected


@given(NODES, st.integers(1, 4), st.integers(0, 8), st.sampled_from([0.0, 1.0]))
def test_however_many_workers_run_no_node_is_full(
    nodes: Nodes, fewest: int, more: int, gpus: float
) -> None:
    try:
        cpus = _elastic(nodes, fewest, fewest + more + 1, gpus=gpus)
    except ResourceError:
        return
    for node in nodes:
        room = int(min(node.cpus // cpus, node.gpus // gpus if gpus else 99, fewest + more + 1))
        assert node.cpus - room * cpus >= DATA_TASK_CPUS - 1e-6


def test_cpus_that_could_fill_a_node_are_refused() -> None:
    assert _elastic(_nodes(2, 2), 1, 2, 0.75) == 0.75
    with pytest.raises(
        ResourceError, match=r"must leave 0\.25 CPUs of each node to Ray Data, but "
    ):
        _elastic(_nodes(2, 2), 1, 2, 1.0)
    with pytest.raises(ResourceError, match="4 workers with 1 GPUs each need 4 GPUs, but the "):
        _elastic(_nodes(8, gpus=2), 4, 8, gpus=1)


MACHINES = """{"most": 3, "kinds": [{"cpus": 4, "gpus": 1, "most": 2},
                                     {"cpus": 8, "gpus": 0, "most": 4}]}"""
GPU, CPU, HEAD = (
    NodeResources(cpus=4, gpus=1),
    NodeResources(cpus=8, gpus=0),
    NodeResources(cpus=0, gpus=0),
)


@pytest.mark.parametrize(
    ("live", "expected"),
    [
        ([HEAD], [GPU, GPU, CPU]),
        ([HEAD, GPU], [GPU, CPU]),
        ([HEAD, CPU, CPU], [GPU]),
        ([HEAD, GPU, GPU, CPU], []),
        ([HEAD, CPU, CPU, CPU, CPU], []),  # more nodes than the limit
    ],
)
def test_machines_that_a_cluster_can_still_start(live: Nodes, expected: Nodes) -> None:
    assert list_startable_nodes(live, MACHINES) == expected


def test_a_cluster_of_nothing_but_its_head_can_train() -> None:
    nodes = [HEAD, *list_startable_nodes([HEAD], MACHINES)]
    assert _plan(nodes, 2, gpus=1) == 1
    with pytest.raises(ResourceError, match="4 workers with 1 GPUs each need 4 GPUs, but the "):
        _plan(nodes, 4, gpus=1)


@pytest.mark.parametrize(
    "text",
    [
        "4",
        "{",
        "{}",
        '{"most": 1, "kinds": [{"cpus": 1}]}',
        '["most"]',
        "[" * 100_000,
        '{"most": 1000000000, "kinds": [{"cpus": 1, "gpus": 0, "most": 1000000000}]}',
        '{"most": "2", "kinds": []}',
        '{"most": 2, "most": 2, "kinds": []}',
    ],
)
def test_machines_must_be_described(text: str) -> None:
    with pytest.raises(ResourceError, match=r"^MTIL_MACHINES .*; write it like \{"):
        list_startable_nodes([HEAD], text)


@pytest.mark.parametrize(
    ("nodes", "num_workers", "expected"),
    [
        (_nodes(2), 1, 2),
        (_nodes(2), 2, 1),
        (_nodes(1), 2, 1),  # at least 1
        (_nodes(8, 8), 2, 4),  # both may run on a single node
        (_nodes(1, 1), 2, 1),
        (_nodes(0, 8), 1, 8),  # a head without room for workers does not count
        (_nodes(4, 16), 4, 1),  # four may run on the smaller node
        (_nodes(64), 3, 21),
    ],
)
def test_workers_compute_with_as_many_threads_wherever_they_come_to_be(
    nodes: Nodes, num_workers: int, expected: int
) -> None:
    cpus = _plan(nodes, num_workers)
    assert plan_threads_per_worker(nodes, num_workers=num_workers, cpus=cpus, gpus=0) == expected


@pytest.mark.parametrize(
    ("nodes", "num_workers", "num_trainings", "expected"),
    [
        (_nodes(16), 1, 5, 3),  # a single training has 16 threads
        (_nodes(16), 2, 5, 1),
        (_nodes(8, 8, 8, 8, 8), 1, 5, 8),  # one on each node
        (_nodes(8, 8), 1, 3, 5),
        (_nodes(8, 8), 2, 2, 4),
        (_nodes(0, 8), 1, 2, 4),  # a head without room for workers does not count
        (_nodes(2), 1, 5, 1),  # at least 1
        ([], 1, 2, 1),
    ],
)
def test_trainings_side_by_side_share_the_cpus(
    nodes: Nodes, num_workers: int, num_trainings: int, expected: int
) -> None:
    assert expected == plan_threads_per_worker(
        nodes, num_workers=num_workers, cpus=1.0, gpus=0, num_trainings=num_trainings
    )


@pytest.mark.parametrize(
    ("nodes", "num_workers", "cpus", "gpus", "expected"),
    [
        (_nodes(2), 1, 1.0, 0, 1),
        (_nodes(4), 1, 1.0, 0, 3),  # a fourth would leave nothing to Ray Data
        (_nodes(1, 1, 1), 1, 0.75, 0, 3),
        (_nodes(1.9, 1.9, 1.9, 1.9), 2, 1.0, 0, 2),  # 7.6 CPUs in total would allow 3
        (_nodes(3, 3), 2, 1.35, 0, 2),
        (_nodes(3, 3), 2, 1.4, 0, 1),  # 0.2 free CPUs per node are too few for Ray Data
        (_nodes(8), 4, 1.0, 0, 1),
        (_nodes(16, gpus=4), 1, 1.0, 1, 4),
        (_nodes(16, gpus=4), 1, 1.0, 0.5, 8),
        (_nodes(16, 16, gpus=1), 2, 1.0, 1, 1),
        (_nodes(0.5), 4, 1.0, 0, 1),  # elastic workers: fewer fit at present
        ([], 1, 1.0, 0, 1),
    ],
)
def test_as_many_trainings_run_side_by_side_as_find_places_on_nodes(
    nodes: Nodes, num_workers: int, cpus: float, gpus: float, expected: int
) -> None:
    assert (
        count_parallel_trainings(nodes, num_workers=num_workers, cpus=cpus, gpus=gpus) == expected
    )
