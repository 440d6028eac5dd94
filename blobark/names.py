"""Paths that are typed: what `ls` and all others show (`model.display`) is what `restore PATH` takes."""

from __future__ import annotations

import os
import re

from blobark.errors import ConfigError
from blobark.model import printable

_ESCAPE = re.compile(r"\\(?:([\\tnr])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|)")
_LETTERS = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}


def meant(text: str) -> bytes:
    """Return the path that a text of the command line stands for. Raises `ConfigError` for what is no escape."""
    try:
        whole = os.fsencode(text).decode(errors="surrogateescape")
        return _ESCAPE.sub(_character, whole).encode(errors="surrogateescape")
    except (ValueError, OverflowError):
        fault = f"{printable(text)}: a backslash here begins an escape such as \\n, \\x1b or \\udcff"
        raise ConfigError(fault, "write a backslash as two, as `blobark ls` shows it") from None


def _character(match: re.Match[str]) -> str:
    letter, *codes = match.groups()
    if letter:
        return _LETTERS[letter]
    return chr(int(next(filter(None, codes), ""), 16))
