"""GUIDs: the names of content.

The GUIDs of one run share a random beginning, so that listing one prefix audits exactly that run's uploads, and
they ascend in the order they are given out, so that a run's blobs lie in the order of the tree. The layout is
UUID version 8 (RFC 9562): 32 bits run tag, 28 bits more of the run's randomness, 32 bits counter, 22 bits random, and
8 bits that are the same for 64 GUIDs in a row: a folder store spreads by them, so that the neighbours of a tree stay
neighbours on its disk.
"""

from __future__ import annotations

import re
import secrets
from array import array

GUID_PATTERN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TAG_LENGTH = 8
_RANDOM_BYTES = 4096
_NEIGHBOURS_BITS = 6
"""64 GUIDs in a row end alike: ext4 takes a tenth less to make their files, and a member of a crew gets as many."""

TEMPORARY_PREFIX = ".blobark-"
TEMPORARY_NAME = re.compile(rb"\.blobark-[0-9a-f]{16}\.part")
"""The name of a file that a restore has not finished: no backup takes it, no restore takes it for another's."""


class GuidSource:
    """Gives out the GUIDs of one run; not shared between threads or processes."""

    def __init__(self) -> None:
        run = secrets.randbits(60)
        self._run_number = run
        self._run = f"{run >> 28:08x}-{run >> 12 & 0xFFFF:04x}-8{run & 0xFFF:03x}-"
        self._counter = 0
        self._random: list[int] = []

    def next(self) -> str:
        """Return a GUID that nothing has had before, lower-case with hyphens."""
        if not self._random:  # a call of the system for each would take longer than all the rest
            self._random = array("I", secrets.token_bytes(_RANDOM_BYTES)).tolist()
        last = self._run_number + (self._counter >> _NEIGHBOURS_BITS) & 0xFF
        number = 0b10 << 62 | self._counter << 30 | self._random.pop() & 0x3FFF_FF00 | last
        self._counter += 1
        text = f"{number:016x}"
        return f"{self._run}{text[:4]}-{text[4:]}"


def raw_guid(text: str) -> bytes:
    """Return the 16 bytes of a GUID; b"" for what is none, as another's key in the same container may be."""
    return bytes.fromhex(text.replace("-", "")) if GUID_PATTERN.fullmatch(text) else b""


def blob_name(server: str, guid: str) -> str:
    """Return the key under which the content `guid` of `server` is stored."""
    return f"{server}_{guid}"
