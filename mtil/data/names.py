"""Names of files, images and patients: how two spellings compare, and how errors show them."""

import re
import unicodedata
from functools import lru_cache
from pathlib import PurePosixPath

_DASHES = dict.fromkeys((*range(0x2010, 0x2016), 0x2212), "-")
_INVISIBLE = dict.fromkeys((0x00AD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF))
_NUMBER = re.compile(r"0*(\d+)(?:\.0+)?")


def shown(text: str) -> str:
    """Return text that any terminal can print: control characters and broken bytes are escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    byte = ord(letter) - 0xDC00
    if 0x80 <= byte <= 0xFF:  # a byte that is not UTF-8, as Python keeps it
        return f"\\x{byte:02x}"
    return letter.encode("unicode_escape").decode()


def is_text(name: str) -> bool:
    """Say whether a name is Unicode text: bytes that are not UTF-8 reach Python as surrogates."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def plain(path: str) -> str:
    """Return a path in the form that all its spellings share, `img/a.png` for `./img//a.png`."""
    return composed(str(PurePosixPath(path)))


@lru_cache(2**16)
def canonical(identifier: str) -> str:
    """Return what all spellings of an identifier share.

    Case, blanks, Unicode's forms, invisible characters and kinds of dashes do not matter; nor do
    leading zeros and `.0` of whole numbers, since spreadsheets add and remove both. Each part
    between slashes counts by itself.
    """
    text = unicodedata.normalize("NFKC", identifier).translate(_DASHES | _INVISIBLE)
    text = unicodedata.normalize("NFC", " ".join(text.split()).casefold())
    return "/".join(_without_zeros(part.strip()) for part in text.split("/"))


def _without_zeros(part: str) -> str:
    number = _NUMBER.fullmatch(part)
    return part if number is None else number[1]
