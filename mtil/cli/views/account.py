"""Print the account of a preparation: the fate of every file and image."""

from collections.abc import Iterable

from mtil.cli.console import CommandOutput
from mtil.data.dataset.account import Account, FilesSeen, ImagesRead, ReasonCount


def print_account(account: Account, output: CommandOutput) -> None:
    """Print counts and reasons by source, then the totals of several sources."""
    for source in account.sources:
        for note in source.notes:
            output.line(f"Note on {source.name}: {note}")
        for warning in source.warnings:
            output.line(f"Warning: {warning}")
    for source in account.sources:
        _show(source.name, source.files, source.images, output)
    if len(account.sources) > 1:
        _show("All sources", account.files, account.images, output)


def _show(name: str, files: FilesSeen | None, images: ImagesRead, output: CommandOutput) -> None:
    """Print the sums of a source's files and images, with the parts of each sum."""
    if files is None:
        output.line(f"{name}: the files cannot be listed.")
    else:
        ignored, skipped = _total(files.ignored), _total(files.skipped)
        output.line(
            f"{name}: {files.seen} files seen = {files.images} images + {files.masks} masks + "
            f"{files.tables} tables + {ignored} ignored + {skipped} skipped."
        )
        _list("ignored", files.ignored, output)
        _list("skipped", files.skipped, output)
    known = f" + {images.known} already in the data set" if images.known else ""
    output.line(
        f"{name}: {images.read} images read = {images.kept} kept + {_total(images.dropped)} "
        f"dropped + {_total(images.invalid)} invalid{known}."
    )
    _list("dropped", images.dropped, output)
    _list("invalid", images.invalid, output)


def _list(fate: str, parts: Iterable[ReasonCount], output: CommandOutput) -> None:
    """Print a line per reason: the count, the fate such as `ignored`, the reason, examples."""
    for part in parts:
        more = ", …" if part.number > len(part.examples) else ""
        output.line(f"  {part.number} {fate}, {part.why}: {', '.join(part.examples)}{more}")


def _total(parts: Iterable[ReasonCount]) -> int:
    return sum(part.number for part in parts)
