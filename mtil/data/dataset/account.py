"""The account of a preparation: every file and every image that was seen, by what became of it.

Both sums are checked: files seen = images + masks + tables + ignored + skipped, and images read =
kept + dropped + invalid + known from before.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, field
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from mtil.data.names import shown

MAX_EXAMPLES = 3
"""Names that are given for each reason."""
_MAX_REASONS = 20
_OTHER_REASONS = "other reasons"

Count = Annotated[int, Field(ge=0)]
"""A number of files or images."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Files or images that share a reason."""

    why: str
    number: Count
    examples: tuple[str, ...] = ()
    """The first names, escaped for any terminal."""


@dataclass(frozen=True, kw_only=True)
class FilesSeen:
    """The files below a source, by what they are."""

    seen: Count
    images: Count
    masks: Count
    tables: Count
    ignored: tuple[Part, ...] = ()
    """Files that a rule leaves out, such as hidden ones."""
    skipped: tuple[Part, ...] = ()
    """Files that look like data and are not used."""

    def __post_init__(self) -> None:
        left_out = _total(self.ignored) + _total(self.skipped)
        _check_sum("files seen", self.seen, self.images + self.masks + self.tables + left_out)


@dataclass(frozen=True, kw_only=True)
class ImagesRead:
    """The images of a source, by what became of them."""

    read: Count
    kept: Count
    dropped: tuple[Part, ...] = ()
    invalid: tuple[Part, ...] = ()
    """Images that cannot be used."""
    known: Count = 0
    """Images that the data set held before; only an append has them."""

    def __post_init__(self) -> None:
        left_out = _total(self.dropped) + _total(self.invalid)
        _check_sum("images read", self.read, self.kept + self.known + left_out)


@dataclass(frozen=True, kw_only=True)
class SourceAccount:
    """The account of one source."""

    name: str
    prefix: str
    """See `mtil.data.dataset.manifest.SourceInfo`."""
    files: FilesSeen | None
    """None if the store cannot be listed."""
    images: ImagesRead
    notes: tuple[str, ...] = ()
    """Sentences about what was read otherwise than it is written."""
    warnings: tuple[str, ...] = ()
    """Sentences about what may be wrong in the collection."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """The account of one preparation, source by source."""

    sources: tuple[SourceAccount, ...] = field(default=())

    @property
    def files(self) -> FilesSeen:
        """The files of all sources that can be listed."""
        found = [source.files for source in self.sources if source.files is not None]
        return FilesSeen(
            seen=sum(files.seen for files in found),
            images=sum(files.images for files in found),
            masks=sum(files.masks for files in found),
            tables=sum(files.tables for files in found),
            ignored=_joined(files.ignored for files in found),
            skipped=_joined(files.skipped for files in found),
        )

    @property
    def images(self) -> ImagesRead:
        """The images of all sources."""
        return ImagesRead(
            read=sum(source.images.read for source in self.sources),
            kept=sum(source.images.kept for source in self.sources),
            dropped=_joined(source.images.dropped for source in self.sources),
            invalid=_joined(source.images.invalid for source in self.sources),
            known=sum(source.images.known for source in self.sources),
        )


def to_dict(account: Account) -> dict[str, Any]:
    """Return the account as what JSON can hold: the sums, then each source."""
    return {
        "files": asdict(account.files),
        "images": asdict(account.images),
        "sources": [asdict(source) for source in account.sources],
    }


def parts(why_of: Mapping[str, str], start: str = "") -> tuple[Part, ...]:
    """Count names by their reason, the most frequent reason first.

    Args:
        why_of: the reason by name.
        start: how names begin that are shown without that, the collection's folder.
    """
    names: dict[str, list[str]] = {}
    for name, why in why_of.items():
        names.setdefault(why, []).append(name)
    order = sorted(names, key=lambda why: (-len(names[why]), why))
    rest = [name for why in order[_MAX_REASONS:] for name in names[why]]
    found = [(why, names[why]) for why in order[:_MAX_REASONS]]
    found += [(_OTHER_REASONS, rest)] if rest else []
    return tuple(
        Part(
            why=why,
            number=len(of),
            examples=tuple(shown(n.removeprefix(start)) for n in of[:MAX_EXAMPLES]),
        )
        for why, of in found
    )


def images_read(
    ids: Iterable[str],
    dropped: Mapping[str, str],
    invalid: Mapping[str, str],
    kept: Collection[str],
    known: Collection[str] = (),
) -> ImagesRead:
    """Count one source's images by what became of them.

    Args:
        ids: their sample ids.
        dropped: why images were not kept, by sample id; those of other sources do not count.
        invalid: why images cannot be used, by sample id; likewise.
        kept: the sample ids of images that are kept; likewise.
        known: the sample ids of images that the data set held before; likewise.
    """
    left_out: tuple[dict[str, str], dict[str, str]] = ({}, {})
    read = num_kept = num_known = 0
    for name in ids:
        read += 1
        if name in invalid:
            left_out[1][name] = reason(invalid[name], name)
        elif name in known:
            num_known += 1
        elif name in dropped:
            left_out[0][name] = reason(dropped[name], name)
        else:
            num_kept += name in kept
    return ImagesRead(
        read=read,
        kept=num_kept,
        dropped=parts(left_out[0]),
        invalid=parts(left_out[1]),
        known=num_known,
    )


_REASONS = (
    (re.compile(r"its pixels are those of .*"), "its pixels are those of another image"),
    (re.compile(r"its group of \d+ images holds two classes.*"), "its group holds two classes"),
    (re.compile(r"its group holds .*, which was dropped.*"), "its group was dropped before"),
    (re.compile(r"its group would join .*"), "its group lies in two folds"),
    (re.compile(r"(?:Line|Row) \d+ of .+? (must .*?)(?:, (?:but|since) .*)?"), r"a row \1"),
    (re.compile(r"The (image|mask) .* does not exist.*"), r"the \1 does not exist"),
    (re.compile(r".+? (cannot be (?:read|decoded|opened)[^:;]*?)[:;.].*"), r"a file \1"),
    (re.compile(r".+? must give a fold for every image.*"), "it has no fold where others have"),
    (re.compile(r"(.*?), (?:but|since) .*"), r"\1"),
)


def reason(why: str, sample_id: str) -> str:
    """Return what a sentence about one image shares with those about others."""
    line = " ".join(why.split())
    for pattern, short in _REASONS:
        match = pattern.fullmatch(line)
        if match is not None:
            line = match.expand(short)
            break
    return shown(line.replace(sample_id, "…"))[:120]


def _total(found: Sequence[Part]) -> int:
    return sum(part.number for part in found)


def _joined(found: Iterable[Sequence[Part]]) -> tuple[Part, ...]:
    numbers: dict[str, int] = {}
    examples: dict[str, list[str]] = {}
    for part in (part for some in found for part in some):
        numbers[part.why] = numbers.get(part.why, 0) + part.number
        examples.setdefault(part.why, []).extend(part.examples)
    order = sorted(numbers, key=lambda why: (-numbers[why], why))
    return tuple(
        Part(why=why, number=numbers[why], examples=tuple(examples[why][:MAX_EXAMPLES]))
        for why in order
    )


def _check_sum(what: str, whole: int, total: int) -> None:
    if whole != total:
        raise AssertionError(f"The account must add up, but {what} are {whole}, its parts {total}.")
