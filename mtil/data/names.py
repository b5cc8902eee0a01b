"""Names of files, images and patients: comparing spellings and showing names in errors."""

import re
import unicodedata
from functools import lru_cache
from pathlib import PurePosixPath

_DASHES = dict.fromkeys((*range(0x2010, 0x2016), 0x2212), "-")
_INVISIBLE = dict.fromkeys((0x00AD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF))
_NUMBER = re.compile(r"0*(\d+)(?:\.0+)?")


def escape_unprintable(text: str) -> str:
    """Return printable text: control characters and broken bytes are escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    byte = ord(letter) - 0xDC00
    # Python decodes a byte outside UTF-8 to the surrogate 0xDC00 + byte.
    if 0x80 <= byte <= 0xFF:
        return f"\\x{byte:02x}"
    return letter.encode("unicode_escape").decode()


def is_valid_unicode(name: str) -> bool:
    """Return whether a name is valid Unicode text.

    Python decodes bytes outside UTF-8 to surrogates.
    """
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def compose_unicode(name: str) -> str:
    """Return a name in Unicode's composed form (NFC)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def normalise_path(path: str) -> str:
    """Normalise a path, so that all spellings of the path compare equal.

    For example, `./img//a.png` becomes `img/a.png`.
    """
    return compose_unicode(str(PurePosixPath(path)))


@lru_cache(2**16)
def normalise_identifier(identifier: str) -> str:
    """Normalise an identifier, so that all spellings of the identifier compare equal.

    Case, spaces, Unicode forms, invisible characters and the kind of dash are ignored, and so are
    leading zeros and a trailing `.0` of whole numbers. Parts between slashes are normalised
    separately.
    """
    text = unicodedata.normalize("NFKC", identifier).translate(_DASHES | _INVISIBLE)
    # Removing invisible characters and folding case can leave text decomposed: compose the text
    # again.
    text = unicodedata.normalize("NFC", " ".join(text.split()).casefold())
    return "/".join(_without_zeros(part.strip()) for part in text.split("/"))


def _without_zeros(part: str) -> str:
    match = _NUMBER.fullmatch(part)
    # Spreadsheets add and remove leading zeros and `.0`.
    return part if match is None else match[1]
