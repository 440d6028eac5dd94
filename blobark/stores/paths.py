"""Which file of a folder holds which blob: `path_of` and, exactly the other way round, `key_of`.

    key                       path below the store's folder
    web1_0f..3a               3a/web1_0f..3a              no slash: 256 folders, by the last two hex digits of the key
    readme                    d4/readme                   ... or by its CRC-32, where it does not end in two
    blobark/web1/lock         blobark/web1/lock.blob      slashes: folders, and `.blob` for the file, so that
    blobark/web1/lock/old     blobark/web1/lock/old.blob  a name may be a blob and lead to others
    a/                        a/%.blob                    the empty last part
    <a part of over 200>      %long/<200>/<200>/...blob   the whole key escaped and cut into pieces

`%XX` stands for what some file system cannot hold (`%<>:"|?*`, a space, a dot at either end), for the first
character of a folder that would be taken for one of the 256, and for the last of one that ends in `.blob`.
So no name of a blob begins with a dot, and files that do are nobody's.
"""

from __future__ import annotations

import re
import zlib
from urllib.parse import quote, unquote

from blobark.errors import ConfigError
from blobark.stores.base import check_key

FANOUT = tuple(f"{number:02x}" for number in range(256))
LONG = "%long"
SUFFIX = ".blob"

_FANS = frozenset(FANOUT)
_PIECE_LENGTH = 200
_PLAIN = re.compile(r"[A-Za-z0-9_-](?:[A-Za-z0-9_.-]{0,198}[A-Za-z0-9_-])?")
_UNSAFE = re.compile(r'[%<>:"|?* ]|^\.|\.$')


def path_of(key: str) -> str:
    """Return the path of the file that holds a blob, relative to the store's folder.

    Raises:
        ConfigError: no blob can have this key.
    """
    if _PLAIN.fullmatch(key):
        return f"{_fan_of(key)}/{key}"
    *folders, last = (_escape(part) for part in check_key(key).split("/"))
    if max(map(len, (*folders, last))) > _PIECE_LENGTH:
        return _long_path(key)
    if not folders:
        return f"{_fan_of(key)}/{last}"
    folders = [f"{name[:-1]}%62" if name.endswith(SUFFIX) else name for name in folders]
    if folders[0] in _FANS:
        folders[0] = f"%{ord(folders[0][0]):02X}{folders[0][1]}"
    return "/".join((*folders, (last or "%") + SUFFIX))


def key_of(path: str) -> str | None:
    """Return the key of the blob that a file holds, or None for a file that `path_of` never names."""
    first, _, rest = path.partition("/")
    if first in _FANS:
        if _PLAIN.fullmatch(rest):
            return rest if _fan_of(rest) == first else None
        key = unquote(rest)
    elif not path.endswith(SUFFIX):
        return None
    elif first == LONG:
        key = unquote(rest.removesuffix(SUFFIX).replace("/", ""))
    else:
        *folders, last = path.removesuffix(SUFFIX).split("/")
        key = "/".join(unquote(part) for part in (*folders, "" if last == "%" else last))
    try:
        return key if path_of(key) == path else None
    except ConfigError:
        return None


def _fan_of(key: str) -> str:
    tail = key[-2:]
    return tail if tail in _FANS else FANOUT[zlib.crc32(key.encode()) & 0xFF]


def _escape(part: str) -> str:
    return _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", part)


def _long_path(key: str) -> str:
    text = quote(key, safe="").replace(".", "%2E")
    pieces = [text[start : start + _PIECE_LENGTH] for start in range(0, len(text), _PIECE_LENGTH)]
    return "/".join((LONG, *pieces)) + SUFFIX
