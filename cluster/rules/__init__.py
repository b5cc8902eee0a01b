"""What a cluster file must keep to; each rule is a function that yields a sentence a violation.

Rules look at the file alone, and at this checkout; none asks a network.
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
    starting.hosts, starting.ssh_key_is_there, *arguments.NEEDED_TO_END,
)  # fmt: skip
"""Without which a cluster cannot even be taken down."""
