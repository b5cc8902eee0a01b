"""Paths that a table names to the files that it means, however both are written."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import unquote

from mtil.data.layouts.files import without_suffix
from mtil.data.names import composed, plain


class Tree:
    """The files below a table's folder."""

    def __init__(self, root: str, names: Sequence[str] | None) -> None:
        """Take the folder's URI and its files; None if they cannot be listed."""
        self.root = root.rstrip("/")
        self._names = None if names is None else frozenset(names)

    def find(self, text: str) -> str | None:
        """Return the file that a path of the table means, or None if there is none.

        A path may have backslashes, `.` parts, doubled slashes, blanks around its parts, letters
        in another Unicode form, percent escapes, or begin with the table's folder.
        """
        if self._names is None:
            return None
        for path in self._spellings(text):
            for name in (path, _form(path)):
                if name in self._names:
                    return name
            found = self._by_form.get(_form(path))
            if found is not None:
                return found
        return None

    def written(self, text: str) -> str:
        """Return a path below the table's folder as it is written, with forward slashes."""
        path = self._below(text)
        is_name = self._names is not None and path in self._names
        return path if is_name else path.replace("\\", "/")

    def hint(self, text: str) -> str:
        """Return how a file is called that the path may mean, or nothing."""
        if self._names is None:
            return ""
        path = plain(text.replace("\\", "/"))
        other = self._by_case.get(_form(path).lower())
        if other is not None:
            return f"there is {other}, whose name differs by case"
        parts = PureWindowsPath(text).parts
        for at in range(1, len(parts)):
            end = self.find("/".join(parts[at:]))
            if end is not None:
                return f"there is {end}, whose path is relative to the table"
        stem = _form(without_suffix(path)).lower()
        found = next((name for name in self._by_stem.get(stem, ())), None)
        return f"there is {found}" if found is not None else ""

    def _spellings(self, text: str) -> Iterator[str]:
        path = self._below(text)
        yield path
        steps: Sequence[Callable[[str], str]] = (
            lambda said: str(PurePosixPath(said)),
            lambda said: str(PurePosixPath(said.replace("\\", "/"))),
            lambda said: self._below(unquote(said)),
        )
        for step in steps:
            path = step(path)
            yield path

    def _below(self, text: str) -> str:
        path = unquote(text[len("file://") :]) if text.startswith("file://") else text
        return path.removeprefix(f"{self.root}/")

    @cached_property
    def _by_form(self) -> dict[str, str]:
        """Names that are not written in the plain form, by it."""
        named = self._names or ()
        return {form: name for name in sorted(named) if (form := _form(name)) not in named}

    @cached_property
    def _by_case(self) -> dict[str, str]:
        return {_form(name).lower(): name for name in sorted(self._names or (), reverse=True)}

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in sorted(self._names or ()):
            found.setdefault(_form(without_suffix(name)).lower(), []).append(name)
        return found


def _form(path: str) -> str:
    """Return a path in composed letters, without blanks around its parts."""
    return "/".join(part.strip() for part in composed(path).split("/"))
