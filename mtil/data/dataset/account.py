"""The account of a preparation: how every file seen and every image read was used.

Two sums are checked:

    files seen  = images + masks + tables + ignored + skipped
    images read = kept + dropped + invalid + known from before
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, field
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from mtil.data.names import escape_unprintable

MAX_EXAMPLES = 3
"""Example names listed for a reason."""
_MAX_REASONS = 20
"""Reasons listed in an account; rarer reasons are merged."""
_OTHER_REASONS = "other reasons"

Count = Annotated[int, Field(ge=0)]
"""A number of files or images, at least 0."""


@dataclass(frozen=True, kw_only=True)
class ReasonCount:
    """Files or images left out for the same reason."""

    why: str
    number: Count
    examples: tuple[str, ...] = ()
    """The first `MAX_EXAMPLES` names, escaped for a terminal."""


@dataclass(frozen=True, kw_only=True)
class FilesSeen:
    """The files below a source, counted by kind."""

    seen: Count
    images: Count
    masks: Count
    tables: Count
    ignored: tuple[ReasonCount, ...] = ()
    """Files left out by a rule, such as hidden files."""
    skipped: tuple[ReasonCount, ...] = ()
    """Unused files with the look of data."""

    def __post_init__(self) -> None:
        left_out = _sum_numbers(self.ignored) + _sum_numbers(self.skipped)
        _check_sum("files seen", self.seen, self.images + self.masks + self.tables + left_out)


@dataclass(frozen=True, kw_only=True)
class ImagesRead:
    """The images of a source, counted by outcome."""

    read: Count
    kept: Count
    dropped: tuple[ReasonCount, ...] = ()
    invalid: tuple[ReasonCount, ...] = ()
    """Unusable images."""
    known: Count = 0
    """Images already in the data set; above 0 only after an append."""

    def __post_init__(self) -> None:
        left_out = _sum_numbers(self.dropped) + _sum_numbers(self.invalid)
        _check_sum("images read", self.read, self.kept + self.known + left_out)


@dataclass(frozen=True, kw_only=True)
class SourceAccount:
    """The account of a source."""

    name: str
    prefix: str
    """See `mtil.data.dataset.manifest.SourceInfo`."""
    files: FilesSeen | None
    """None if the store cannot list its objects."""
    images: ImagesRead
    notes: tuple[str, ...] = ()
    """Sentences about values read otherwise than written in the collection."""
    warnings: tuple[str, ...] = ()
    """Sentences about possible mistakes in the collection."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """The account of a preparation, by source."""

    sources: tuple[SourceAccount, ...] = field(default=())

    @property
    def files(self) -> FilesSeen:
        """The summed files of all sources in stores with listings."""
        listed = [source.files for source in self.sources if source.files is not None]
        return FilesSeen(
            seen=sum(files.seen for files in listed),
            images=sum(files.images for files in listed),
            masks=sum(files.masks for files in listed),
            tables=sum(files.tables for files in listed),
            ignored=_merge_reasons(files.ignored for files in listed),
            skipped=_merge_reasons(files.skipped for files in listed),
        )

    @property
    def images(self) -> ImagesRead:
        """The summed images of all sources."""
        return ImagesRead(
            read=sum(source.images.read for source in self.sources),
            kept=sum(source.images.kept for source in self.sources),
            dropped=_merge_reasons(source.images.dropped for source in self.sources),
            invalid=_merge_reasons(source.images.invalid for source in self.sources),
            known=sum(source.images.known for source in self.sources),
        )


def account_to_dict(account: Account) -> dict[str, Any]:
    """Return the account as JSON values: the sums, then the sources."""
    return {
        "files": asdict(account.files),
        "images": asdict(account.images),
        "sources": [asdict(source) for source in account.sources],
    }


def count_reasons(why_of: Mapping[str, str], start: str = "") -> tuple[ReasonCount, ...]:
    """Count names by reason, the most frequent reason first.

    Args:
        why_of: the reason by name.
        start: prefix removed from the examples, such as the collection's folder.
    """
    names: dict[str, list[str]] = {}
    for name, why in why_of.items():
        names.setdefault(why, []).append(name)
    order = sorted(names, key=lambda why: (-len(names[why]), why))
    rest = [name for why in order[_MAX_REASONS:] for name in names[why]]
    reasons = [(why, names[why]) for why in order[:_MAX_REASONS]]
    reasons += [(_OTHER_REASONS, rest)] if rest else []
    return tuple(
        ReasonCount(
            why=why,
            number=len(members),
            examples=tuple(
                escape_unprintable(name.removeprefix(start)) for name in members[:MAX_EXAMPLES]
            ),
        )
        for why, members in reasons
    )


def count_images(
    ids: Iterable[str],
    dropped: Mapping[str, str],
    invalid: Mapping[str, str],
    kept: Collection[str],
    known: Collection[str] = (),
) -> ImagesRead:
    """Count the images of a source by outcome.

    `dropped`, `invalid`, `kept` and `known` may hold ids of all sources; only `ids` are counted.

    Args:
        ids: the sample ids of the source.
        dropped: the reason by sample id of images not kept.
        invalid: the reason by sample id of unusable images.
        kept: the sample ids of kept images.
        known: the sample ids already in the data set.
    """
    left_out: tuple[dict[str, str], dict[str, str]] = ({}, {})  # dropped, invalid
    read = num_kept = num_known = 0
    for name in ids:
        read += 1
        # Only the first matching outcome counts: `ImagesRead` checks that the counts add up.
        if name in invalid:
            left_out[1][name] = generalise_reason(invalid[name], name)
        elif name in known:
            num_known += 1
        elif name in dropped:
            left_out[0][name] = generalise_reason(dropped[name], name)
        else:
            num_kept += name in kept
    return ImagesRead(
        read=read,
        kept=num_kept,
        dropped=count_reasons(left_out[0]),
        invalid=count_reasons(left_out[1]),
        known=num_known,
    )


# Sentences about an image name the image and the values found. Without names and values, images
# with the same problem share a reason. The patterns match error texts of audit, folds and layouts.
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


def generalise_reason(why: str, sample_id: str) -> str:
    """Return the general reason behind a sentence about an image.

    Args:
        why: the sentence.
        sample_id: the image; replaced by an ellipsis.
    """
    line = " ".join(why.split())
    for pattern, short in _REASONS:
        match = pattern.fullmatch(line)
        if match is not None:
            line = match.expand(short)
            break
    return escape_unprintable(line.replace(sample_id, "…"))[:120]


def _sum_numbers(parts: Sequence[ReasonCount]) -> int:
    return sum(part.number for part in parts)


def _merge_reasons(groups: Iterable[Sequence[ReasonCount]]) -> tuple[ReasonCount, ...]:
    numbers: dict[str, int] = {}
    examples: dict[str, list[str]] = {}
    for part in (part for group in groups for part in group):
        numbers[part.why] = numbers.get(part.why, 0) + part.number
        examples.setdefault(part.why, []).extend(part.examples)
    order = sorted(numbers, key=lambda why: (-numbers[why], why))
    return tuple(
        ReasonCount(why=why, number=numbers[why], examples=tuple(examples[why][:MAX_EXAMPLES]))
        for why in order
    )


def _check_sum(name: str, whole: int, total: int) -> None:
    if whole != total:
        raise AssertionError(
            f"The account must add up, but {name} are {whole} and the parts {total}."
        )
