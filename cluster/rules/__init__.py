"""Rules for cluster files. Each rule is a function that yields an error sentence per violation.

Rules read the file and this checkout only, never the network.
"""

from collections.abc import Callable, Iterator

from cluster.files import ClusterFile
from cluster.rules import access, arguments, clouds, jobs, machines, ports, starting, versions

Rule = Callable[[ClusterFile], Iterator[str]]

RULES: tuple[Rule, ...] = (
    *versions.RULES, *ports.RULES, *access.RULES, *machines.RULES, *clouds.RULES, *jobs.RULES,
    *starting.RULES, *arguments.RULES,
)  # fmt: skip

NEEDED_TO_END: tuple[Rule, ...] = (
    starting.check_hosts, starting.check_ssh_key, *arguments.NEEDED_TO_END,
)  # fmt: skip
"""Rules that must hold even for taking a cluster down."""
