r"""Paths as text that can be typed again: what `ls` shows is what `restore PATH` takes.

What cannot be printed, and a byte that is not UTF-8, is an escape, and so is a backslash: \n, \x1b, \udcff, \\. No
other backslash is ever shown, so two paths never look alike, and the text leads back to the very bytes.
"""

from __future__ import annotations

import os
import re

from blobark.errors import ConfigError
from blobark.model import display

_ESCAPE = re.compile(r"\\(?:([\\tnr])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|)")
_LETTERS = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}


def shown(raw: bytes) -> str:
    """Return a path on one line and printable; `meant` leads back."""
    return display(raw.replace(b"\\", b"\\\\"))


def meant(text: str) -> bytes:
    """Return the path that a text of the command line stands for. Raises `ConfigError` for what is no escape."""
    try:
        whole = os.fsencode(text).decode(errors="surrogateescape")
        return _ESCAPE.sub(_character, whole).encode(errors="surrogateescape")
    except (ValueError, OverflowError):
        fault = f"{display(os.fsencode(text))}: a backslash here begins an escape such as \\n, \\x1b or \\udcff"
        raise ConfigError(fault, "write a backslash as two, as `blobark ls` shows it") from None


def _character(match: re.Match[str]) -> str:
    letter, *codes = match.groups()
    if letter:
        return _LETTERS[letter]
    return chr(int(next(filter(None, codes), ""), 16))
