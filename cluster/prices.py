"""What a cluster costs an hour, from the prices that `prices.yaml` has a source for."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cluster.files import ClusterFile

_FILE = Path(__file__).with_name("prices.yaml")


@dataclass(frozen=True)
class Price:
    """The price of a type of machine of a cloud."""

    by_region: dict[str, float]
    """US dollars an hour, on demand."""
    source: str
    """Where it was read, and when."""


@dataclass(frozen=True)
class Estimate:
    """Bounds of an hour's cost in US dollars; None if a price is not known."""

    idle: float | None
    """With the head and the fewest workers."""
    most: float | None
    """With as many workers as the file allows, the dearest first, spot ones at the full price."""
    unknown: tuple[str, ...] = ()
    """Types whose price is not known."""
    sources: tuple[str, ...] = ()


@cache
def known() -> dict[tuple[str, str], Price]:
    """Return the prices that are known, by cloud and type."""
    table: dict[str, Any] = yaml.safe_load(_FILE.read_text())
    found = {}
    for row in table["machines"]:
        source = table["sources"][row["source"]]
        told = f"{source['page']}, read {source['date']}"
        found[row["cloud"], row["type"]] = Price(row["prices"], told)
    return found


def estimate(file: ClusterFile) -> Estimate:
    """Say what a cluster costs an hour, disks, addresses and traffic aside."""
    prices: dict[str, float] = {}
    unknown, sources = [], []
    for group in file.groups:
        found = known().get((file.kind, group.machine or ""))
        price = found.by_region.get(file.region or "") if found else None
        if found is None or price is None:
            unknown.append(group.machine or group.name)
        else:
            prices[group.name] = price
            sources.append(found.source)
    if unknown:
        return Estimate(None, None, tuple(dict.fromkeys(unknown)), tuple(dict.fromkeys(sources)))
    idle = sum(prices[group.name] * group.smallest for group in file.groups)
    room = sum(group.largest for group in file.workers)
    room = room if file.max_workers is None else min(room, file.max_workers)
    most = prices[file.head.name]
    for group in sorted(file.workers, key=lambda group: prices[group.name], reverse=True):
        count = min(group.largest, room)
        most, room = most + prices[group.name] * count, room - count
    return Estimate(idle, most, (), tuple(dict.fromkeys(sources)))
