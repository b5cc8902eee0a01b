"""Resource plans that would hang are refused before anything starts, with the numbers. No Ray."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass as validated

from mtil.config import STRICT, NonNegative
from mtil.documents import Document
from mtil.errors import ResourceError

DATA_TASK_CPUS = 0.25
"""CPUs that a task of Ray Data reserves; a cluster must have this much to spare."""

_PREFERRED_SPARE_CPUS = 1.0


@dataclass(frozen=True)
class Node:
    """What a node of the cluster offers in all."""

    cpus: float
    gpus: float


_Machines = Annotated[int, Field(ge=0, le=100_000)]


@validated(frozen=True, config=STRICT)
class _Kind:
    cpus: NonNegative
    gpus: NonNegative
    most: _Machines


@validated(frozen=True, config=STRICT)
class _Told:
    most: _Machines
    kinds: list[_Kind]


_MACHINES: TypeAdapter[_Told] = TypeAdapter(_Told)


def to_come(live: Sequence[Node], machines: str) -> list[Node]:
    """Return the nodes that a cluster can still start.

    Args:
        live: the nodes that there are.
        machines: JSON, `{"most": 4, "kinds": [{"cpus": 4, "gpus": 1, "most": 2}, …]}`: how many
            nodes that work there may be in all, and of each kind.

    Raises:
        ResourceError: if it is something else.
    """
    document = Document(
        "MTIL_MACHINES",
        'write it like {"most": 2, "kinds": [{"cpus": 4, "gpus": 1, "most": 2}]}',
        ResourceError,
    )
    told = document.validate(_MACHINES, document.object(machines.encode(errors="replace")))
    room = told.most - sum(node.cpus > 0 for node in live)
    nodes: list[Node] = []
    for kind in told.kinds:
        node = Node(cpus=kind.cpus, gpus=kind.gpus)
        missing = min(kind.most - list(live).count(node), room - len(nodes))
        nodes += [node] * max(missing, 0)
    return nodes


def cpus_per_worker(
    nodes: Sequence[Node], *, num_workers: int, cpus: float | None, gpus: float
) -> float:
    """Return the CPUs that each worker reserves.

    Args:
        nodes: the cluster's nodes.
        num_workers: workers that run side by side.
        cpus: CPUs asked for; None takes an even share of what Ray Data leaves.
        gpus: GPUs per worker.

    Raises:
        ResourceError: if the workers would not fit, or would leave Ray Data nothing to run on.
    """
    total_cpus, total_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    if gpus % 1 and num_workers > 1:
        raise ResourceError(
            f"Several workers must have whole GPUs, but got {num_workers} workers with {gpus:g} "
            "each; set `train.gpus_per_worker` to 1, or to 0 for the CPU."
        )
    if gpus * num_workers > total_gpus:
        raise ResourceError(
            f"{num_workers} workers with {gpus:g} GPUs each need {gpus * num_workers:g} GPUs, but "
            f"the cluster has {total_gpus:g}; lower `train.num_workers` or `train.gpus_per_worker`."
        )
    if cpus is None:
        spare = max(total_cpus - _PREFERRED_SPARE_CPUS, total_cpus / 2)
        share = min(1.0, math.floor(100 * spare / num_workers) / 100)
        if not share:
            raise ResourceError(
                f"{num_workers} workers are too many for the cluster's {total_cpus:g} CPUs; "
                "lower `train.num_workers`."
            )
        with suppress(ResourceError):
            return cpus_per_worker(nodes, num_workers=num_workers, cpus=share, gpus=gpus)
        cpus = min(share, 1 - DATA_TASK_CPUS)  # what is spared may lie in pieces on small nodes
    if cpus * num_workers + DATA_TASK_CPUS > total_cpus:
        raise ResourceError(
            f"The workers must leave {DATA_TASK_CPUS} CPUs to Ray Data, but {num_workers} workers "
            f"with {cpus:g} CPUs each leave {total_cpus - cpus * num_workers:g} of {total_cpus:g}; "
            "lower `train.num_workers` or `train.cpus_per_worker`."
        )
    room = sum(_fit(node, cpus, gpus) for node in nodes)
    if room < num_workers:
        raise ResourceError(
            f"{num_workers} workers with {cpus:g} CPUs and {gpus:g} GPUs each must fit on the "
            f"nodes, but there is room for {room}; lower `train.num_workers` or "
            "`train.cpus_per_worker`."
        )
    if not any(_leaves_room(node, room - num_workers, cpus, gpus) for node in nodes):
        raise ResourceError(
            f"The workers must leave {DATA_TASK_CPUS} CPUs of one node to Ray Data, but "
            f"{num_workers} workers with {cpus:g} CPUs each leave less on every node; "
            "lower `train.num_workers` or `train.cpus_per_worker`."
        )
    return cpus


def elastic_cpus_per_worker(
    nodes: Sequence[Node], *, min_workers: int, num_workers: int, cpus: float | None, gpus: float
) -> float:
    """Return the CPUs that each of a changing number of workers reserves.

    Where Ray Train counts the workers for which there is room, it does not leave any to Ray Data:
    if their number may change, each node must have some to spare however many it takes.

    Args:
        nodes: the cluster's nodes.
        min_workers: the fewest workers that train.
        num_workers: the most; if it is the same number, this is `cpus_per_worker`.
        cpus: CPUs asked for; None takes an even share of what Ray Data leaves.
        gpus: GPUs per worker.

    Raises:
        ResourceError: if the fewest workers would not fit, or some number of them would leave
            Ray Data nothing to run on.
    """
    if min_workers == num_workers:
        return cpus_per_worker(nodes, num_workers=num_workers, cpus=cpus, gpus=gpus)
    for count in range(num_workers, min_workers, -1):
        with suppress(ResourceError):
            found = cpus_per_worker(nodes, num_workers=count, cpus=cpus, gpus=gpus)
            break
    else:
        found = cpus_per_worker(nodes, num_workers=min_workers, cpus=cpus, gpus=gpus)
    if cpus is None:
        steps = range(round(100 * found), 0, -1)
        fitting = (step / 100 for step in steps if _spare(nodes, num_workers, step / 100, gpus))
        return next(fitting, found)
    if not _spare(nodes, num_workers, cpus, gpus):
        raise ResourceError(
            f"With `train.min_workers` workers must leave {DATA_TASK_CPUS} CPUs of each node to "
            f"Ray Data, but workers with {cpus:g} CPUs each may fill one; change "
            "`train.cpus_per_worker`, or leave it out."
        )
    return found


def room(nodes: Sequence[Node], *, num_workers: int, cpus: float, gpus: float) -> int:
    """Return how many trainings fit side by side, each with a task of Ray Data; one at least.

    Args:
        nodes: the cluster's nodes.
        num_workers: workers of each training.
        cpus: CPUs that each of them reserves.
        gpus: GPUs that each of them reserves.
    """
    places = sum(_fit(node, cpus, gpus) for node in nodes)
    total_cpus = sum(node.cpus for node in nodes)
    most = min(places // num_workers, int(total_cpus / (num_workers * cpus + DATA_TASK_CPUS)))
    while most > 1:
        to_spare = places - most * num_workers
        if any(_leaves_room(node, to_spare, cpus, gpus) for node in nodes):
            break
        most -= 1
    return max(1, most)


def threads_per_worker(nodes: Sequence[Node], *, num_workers: int, cpus: float, gpus: float) -> int:
    """Return the CPU threads that each worker may compute with, on whichever nodes they come to be.

    Args:
        nodes: the cluster's nodes.
        num_workers: workers that run side by side.
        cpus: CPUs that each reserves.
        gpus: GPUs that each reserves.
    """
    held = [(node.cpus, min(_fit(node, cpus, gpus), num_workers)) for node in nodes]
    return max(1, min((int(cpus_ / count) for cpus_, count in held if count), default=1))


def _spare(nodes: Sequence[Node], most: int, cpus: float, gpus: float) -> bool:
    """Say whether each node has room for a task of Ray Data beside the workers it may take."""
    taken = ((node, min(_fit(node, cpus, gpus), most) * cpus) for node in nodes if node.cpus)
    return all(node.cpus - cpus_taken >= DATA_TASK_CPUS - 1e-9 for node, cpus_taken in taken)


def _leaves_room(node: Node, places_to_spare: int, cpus: float, gpus: float) -> bool:
    """Say whether a task of Ray Data on this node takes no place that a worker needs."""
    beside = Node(cpus=max(node.cpus - DATA_TASK_CPUS, 0), gpus=node.gpus)
    fits = node.cpus >= DATA_TASK_CPUS
    return fits and _fit(node, cpus, gpus) - _fit(beside, cpus, gpus) <= places_to_spare


def _fit(node: Node, cpus: float, gpus: float) -> int:
    by_cpu = math.floor(node.cpus / cpus + 1e-9)
    return min(by_cpu, math.floor(node.gpus / gpus + 1e-9)) if gpus else by_cpu
