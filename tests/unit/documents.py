"""The repository's cluster files, as plain values for tests to change."""

from typing import Any

import yaml

from cluster.files import ROOT

TEMPLATES = sorted((ROOT / "cluster" / "templates").glob("*.yaml"))
FILES = [ROOT / "cluster.yaml", *TEMPLATES]

Document = dict[str, Any]


class Plain(yaml.SafeDumper):
    """Writes an object in two places twice, without an alias."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def read(name: str) -> Document:
    """Return a cluster file by name, without the suffix."""
    path = next(path for path in FILES if path.name == f"{name}.yaml")
    # Two places with a YAML anchor share an object; a test changes a single place.
    plain: Document = yaml.safe_load(
        yaml.dump(yaml.safe_load(path.read_text()), Dumper=Plain, sort_keys=False)
    )
    return plain


def node_type(document: Document, name: str) -> Document:
    """Return a node type of a cluster file."""
    node: Document = document["available_node_types"][name]
    return node
