"""The account of a preparation for a person."""

from collections.abc import Iterable

from mtil.cli.console import Output
from mtil.data.dataset.account import Account, FilesSeen, ImagesRead, Part


def show(account: Account, output: Output) -> None:
    """Print what became of every file and image, by source and, of several sources, in sum."""
    for source in account.sources:
        for note in source.notes:
            output.line(f"Note on {source.name}: {note}")
        for warning in source.warnings:
            output.line(f"Warning: {warning}")
    for source in account.sources:
        _show(source.name, source.files, source.images, output)
    if len(account.sources) > 1:
        _show("All sources", account.files, account.images, output)


def _show(name: str, files: FilesSeen | None, images: ImagesRead, output: Output) -> None:
    if files is None:
        output.line(f"{name}: its files cannot be listed.")
    else:
        ignored, skipped = _total(files.ignored), _total(files.skipped)
        output.line(
            f"{name}: {files.seen} files seen = {files.images} images + {files.masks} masks + "
            f"{files.tables} tables + {ignored} ignored + {skipped} skipped."
        )
        _list("ignored", files.ignored, output)
        _list("skipped", files.skipped, output)
    known = f" + {images.known} known before" if images.known else ""
    output.line(
        f"{name}: {images.read} images read = {images.kept} kept + {_total(images.dropped)} "
        f"dropped + {_total(images.invalid)} invalid{known}."
    )
    _list("dropped", images.dropped, output)
    _list("invalid", images.invalid, output)


def _list(what: str, found: Iterable[Part], output: Output) -> None:
    for part in found:
        more = ", …" if part.number > len(part.examples) else ""
        output.line(f"  {part.number} {what}, {part.why}: {', '.join(part.examples)}{more}")


def _total(found: Iterable[Part]) -> int:
    return sum(part.number for part in found)
