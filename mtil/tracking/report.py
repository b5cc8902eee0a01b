"""The page of `mtil report` as a file of the tracked run."""

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import replace

from mtil.tracking.nodes import Artefact, Node

_FILE = "report.html"


def add_report(nodes: Sequence[Node], uri: str) -> list[Node]:
    """Return the nodes of a run with its page in the first node.

    Without the libraries of `mtil[report]`, return the nodes as they are.
    """
    if not all(map(importlib.util.find_spec, ("jinja2", "vl_convert", "sklearn"))):
        return list(nodes)

    def read() -> bytes:
        from mtil.report.build import build_report
        from mtil.report.page import render_page
        from mtil.report.scored import read_run

        return render_page(build_report(read_run(uri))).encode()

    digest = hashlib.sha256()
    for node in nodes:
        digest.update(repr((node.path, len(node.epochs), sorted(node.figures.items()))).encode())
    root = nodes[0]
    artefacts = {**root.artefacts, _FILE: Artefact(version=digest.hexdigest(), read=read)}
    return [replace(root, artefacts=artefacts), *nodes[1:]]
