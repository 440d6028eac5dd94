"""A share of a snapshot that anybody can choose again: by a hash of each path and the snapshot's number.

All directories belong to it, and of everything else the share. A hard link goes with the first path of its group.
Where that would be no file at all, the file with the smallest hash belongs to it too.
"""

from __future__ import annotations

from typing import NamedTuple

from blake3 import blake3

from blobark.model import Entry, Header
from blobark.snapshot import Manifest

_END = 2**64
_CERTAIN_FILES = 100
"""Of so many expected files one is in the sample: that none is has a chance of e**-100."""


class Sample(NamedTuple):
    """What has a hash below `limit` in the snapshot with this number."""

    limit: int
    number: int

    @classmethod
    def of(cls, share: float, header: Header, manifest: Manifest) -> Sample:
        """Return so large a share (above 0, up to 1) of a snapshot, one file at least where it has any."""
        sample = cls(round(share * _END), header.number)
        if share >= 1 or share * header.totals.files > _CERTAIN_FILES:
            return sample
        files = (entry for ref in header.segments for entry in manifest.read(ref) if entry.has_content)
        least = min(map(sample.hash_of, files), default=0)
        return sample._replace(limit=max(sample.limit, least + 1))

    def takes(self, entry: Entry) -> bool:
        """Whether an entry belongs to the sample."""
        return entry.kind == "dir" or self.limit >= _END or self.hash_of(entry) < self.limit

    def hash_of(self, entry: Entry) -> int:
        """Return the hash of an entry, of 64 bits."""
        path = entry.raw_hardlink_to or entry.raw_path
        return int.from_bytes(blake3(b"%d\0%d\0" % (self.number, entry.root) + path).digest(8))
