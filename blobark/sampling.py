"""A share of a snapshot that anybody can choose again: by a hash of each path and the snapshot's number.

All directories belong to it, and of everything else the share. A hard link goes with the first path of its group.
"""

from __future__ import annotations

from typing import NamedTuple

from blake3 import blake3

from blobark.model import Entry, SegmentRef
from blobark.snapshot import Manifest


class Sample(NamedTuple):
    """So large a share (above 0, up to 1) of the snapshot with this number."""

    share: float
    number: int

    def takes(self, entry: Entry) -> bool:
        """Whether an entry belongs to the sample."""
        if entry.kind == "dir" or self.share >= 1:
            return True
        path = entry.raw_hardlink_to or entry.raw_path
        digest = blake3(b"%d\0%d\0" % (self.number, entry.root) + path).digest(8)
        return int.from_bytes(digest) < self.share * 2**64


class SampledManifest(Manifest):
    """A manifest that has only the sample's entries."""

    def __init__(self, whole: Manifest, sample: Sample) -> None:
        self._whole = whole
        self._sample = sample

    def stored(self, ref: SegmentRef) -> bytes:
        """As `Manifest.stored`: the whole segment's."""
        return self._whole.stored(ref)

    def read(self, ref: SegmentRef) -> list[Entry]:
        """Return the entries of a segment that belong to the sample."""
        return [entry for entry in self._whole.read(ref) if self._sample.takes(entry)]
