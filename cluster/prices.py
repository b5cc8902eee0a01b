"""Estimate the hourly cost of a cluster from `prices.yaml`."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cluster.files import ClusterFile

_FILE = Path(__file__).with_name("prices.yaml")


@dataclass(frozen=True)
class MachinePrice:
    """Prices of a cloud's machine type."""

    by_region: dict[str, float]
    """US dollars an hour by region, on demand."""
    source: str
    """Page and date of the price."""


@dataclass(frozen=True)
class CostEstimate:
    """Bounds of the hourly cost in US dollars. None if a price is unknown."""

    idle: float | None
    """Cost of the head and the minimum number of workers."""
    most: float | None
    """Cost of the maximum number of workers, the most expensive first, spot at the full price."""
    unknown: tuple[str, ...] = ()
    """Machine types with unknown prices."""
    sources: tuple[str, ...] = ()


@cache
def load_prices() -> dict[tuple[str, str], MachinePrice]:
    """Return all known prices by cloud and machine type."""
    table: dict[str, Any] = yaml.safe_load(_FILE.read_text())
    prices = {}
    for row in table["machines"]:
        source = table["sources"][row["source"]]
        citation = f"{source['page']}, read {source['date']}"
        prices[row["cloud"], row["type"]] = MachinePrice(row["prices"], citation)
    return prices


def estimate_cost(file: ClusterFile) -> CostEstimate:
    """Estimate a cluster's hourly cost, without disks, addresses and traffic."""
    prices: dict[str, float] = {}
    unknown, sources = [], []
    for group in file.groups:
        entry = load_prices().get((file.kind, group.machine or ""))
        price = entry.by_region.get(file.region or "") if entry else None
        if entry is None or price is None:
            unknown.append(group.machine or group.name)
        else:
            prices[group.name] = price
            sources.append(entry.source)
    if unknown:
        return CostEstimate(
            None, None, tuple(dict.fromkeys(unknown)), tuple(dict.fromkeys(sources))
        )
    idle = sum(prices[group.name] * group.smallest for group in file.groups)
    num_left = sum(group.largest for group in file.workers)
    num_left = num_left if file.max_workers is None else min(num_left, file.max_workers)
    most = prices[file.head.name]
    for group in sorted(file.workers, key=lambda group: prices[group.name], reverse=True):
        count = min(group.largest, num_left)
        most, num_left = most + prices[group.name] * count, num_left - count
    return CostEstimate(idle, most, (), tuple(dict.fromkeys(sources)))
