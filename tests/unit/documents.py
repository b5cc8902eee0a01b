"""The cluster files that come along, as plain values that a test may change."""

from typing import Any

import yaml

from cluster.files import ROOT

TEMPLATES = sorted((ROOT / "cluster" / "templates").glob("*.yaml"))
FILES = [ROOT / "cluster.yaml", *TEMPLATES]

Document = dict[str, Any]


class Plain(yaml.SafeDumper):
    """Writes what is in two places twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def read(name: str) -> Document:
    """Return a file by its name without suffix."""
    path = next(path for path in FILES if path.name == f"{name}.yaml")
    # YAML anchors give two places one object; a mistake is to be made in one of them.
    plain: Document = yaml.safe_load(
        yaml.dump(yaml.safe_load(path.read_text()), Dumper=Plain, sort_keys=False)
    )
    return plain


def node_type(document: Document, name: str) -> Document:
    """Return one of a file's types of nodes."""
    node: Document = document["available_node_types"][name]
    return node
