"""Objects below a folder that a store may delete."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StoreListing:
    """Contents of a folder, without following links."""

    sizes: Mapping[str, int]
    """Size in bytes of each object and partial file, by name; sorted."""
    left: tuple[str, ...]
    """Names of links, devices, pipes and sockets, which are never deleted; sorted."""

    def matching(self, folder: str, pattern: re.Pattern[str]) -> list[str]:
        """Return the names below `folder` whose remainder matches `pattern` in full."""
        start = f"{folder}/" if folder else ""
        return [
            name
            for name in self.sizes
            if name.startswith(start) and pattern.fullmatch(name[len(start) :])
        ]
