"""Match the paths in a table to files, whatever the spelling of the paths."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import unquote

from mtil.data.layouts.files import strip_image_suffix
from mtil.data.names import compose_unicode, normalise_path


class FileTree:
    """The files below a table's folder, searchable by path."""

    def __init__(self, root: str, names: Sequence[str] | None) -> None:
        """Create the tree.

        Args:
            root: URI of the folder.
            names: all file names below the folder; None if the store cannot be listed.
        """
        self.root = root.rstrip("/")
        self._names = None if names is None else frozenset(names)

    def find(self, text: str) -> str | None:
        """Return the file for a path of the table, or None without a matching file.

        A path may have backslashes, `.` parts, doubled slashes, blanks around parts, letters in
        a different Unicode form, percent escapes, or begin with the table's folder.
        """
        if self._names is None:
            return None
        # Try the path as written first: backslash and percent sign are legal in file names.
        for path in self._spellings(text):
            for name in (path, _normal_form(path)):
                if name in self._names:
                    return name
            match = self._by_normal_form.get(_normal_form(path))
            if match is not None:
                return match
        return None

    def written(self, text: str) -> str:
        """Return a path relative to the table's folder, as written, with forward slashes."""
        path = self._relative(text)
        # A backslash is a legal character of a file name on Linux.
        is_name = self._names is not None and path in self._names
        return path if is_name else path.replace("\\", "/")

    def hint(self, text: str) -> str:
        """Return a clause about a file the path may mean, or an empty text. Used in errors."""
        if self._names is None:
            return ""
        path = normalise_path(text.replace("\\", "/"))
        name = self._by_lower_case.get(_normal_form(path).lower())
        if name is not None:
            return f"there is {name}, whose name differs by case"
        # Tables often hold absolute paths of the author's machine; try to drop leading folders.
        parts = PureWindowsPath(text).parts
        for start in range(1, len(parts)):
            tail = self.find("/".join(parts[start:]))
            if tail is not None:
                return f"there is {tail}, whose path is relative to the table"
        stem = _normal_form(strip_image_suffix(path)).lower()
        match = next((name for name in self._by_stem.get(stem, ())), None)
        return f"there is {match}" if match is not None else ""

    def _spellings(self, text: str) -> Iterator[str]:
        path = self._relative(text)
        yield path
        steps: Sequence[Callable[[str], str]] = (
            lambda path: str(PurePosixPath(path)),
            lambda path: str(PurePosixPath(path.replace("\\", "/"))),
            lambda path: self._relative(unquote(path)),
        )
        for step in steps:
            path = step(path)
            yield path

    def _relative(self, text: str) -> str:
        path = unquote(text[len("file://") :]) if text.startswith("file://") else text
        return path.removeprefix(f"{self.root}/")

    @cached_property
    def _by_normal_form(self) -> dict[str, str]:
        """File name by normal form, for the names not written in normal form."""
        names = self._names or ()
        return {form: name for name in sorted(names) if (form := _normal_form(name)) not in names}

    @cached_property
    def _by_lower_case(self) -> dict[str, str]:
        # Reverse order makes the first of several names the last to be stored.
        return {
            _normal_form(name).lower(): name for name in sorted(self._names or (), reverse=True)
        }

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        by_stem: dict[str, list[str]] = {}
        for name in sorted(self._names or ()):
            by_stem.setdefault(_normal_form(strip_image_suffix(name)).lower(), []).append(name)
        return by_stem


def _normal_form(path: str) -> str:
    """Return a path in Unicode's composed form, without blanks around the parts."""
    return "/".join(part.strip() for part in compose_unicode(path).split("/"))
