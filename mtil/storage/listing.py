"""What a store may delete below a folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Listing:
    """What lies below a folder, reached through no link."""

    sizes: Mapping[str, int]
    """Bytes of each object, and of what interrupted writes left, by name; sorted."""
    left: tuple[str, ...]
    """Names of links, devices and the like, which are never deleted; sorted."""

    def matching(self, folder: str, pattern: re.Pattern[str]) -> list[str]:
        """Return the objects whose name, relative to a folder, is as a pattern says."""
        start = f"{folder}/" if folder else ""
        return [
            name
            for name in self.sizes
            if name.startswith(start) and pattern.fullmatch(name[len(start) :])
        ]
