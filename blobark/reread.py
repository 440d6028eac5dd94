"""Reading again what metadata cannot tell: whether a doubtful file still has the content of its last entry."""

from __future__ import annotations

import os
from typing import NamedTuple

from blobark import source
from blobark.errors import SourceError
from blobark.model import Entry
from blobark.source import SourceTree
from blobark.stores.base import BLOCK_SIZE_BYTES
from metrics.stages import Stages


class Reading(NamedTuple):
    """A doubtful file that was read: whether it holds the content of `previous`, or why that cannot be told."""

    sequence: int
    entry: Entry
    previous: Entry
    same: bool
    error: str = ""


class Reader:
    """Reads doubtful files and compares their digests; runs on the engine's threads."""

    def __init__(self, trees: list[SourceTree], stages: Stages) -> None:
        self._trees = trees
        self._stages = stages

    def __call__(self, batch: list[tuple[int, Entry, Entry]]) -> list[Reading]:
        """Read a batch of (sequence, entry, previous entry)."""
        readings = [self._read(job) for job in batch]
        self._stages.rest()
        return readings

    def _read(self, job: tuple[int, Entry, Entry]) -> Reading:
        sequence, entry, previous = job
        self._stages.begin(entry.raw_path, entry.size)
        try:
            descriptor = self._trees[entry.root].open(entry.raw_path)
        except SourceError as error:
            return Reading(sequence, entry, previous, same=False, error=error.message)
        try:
            if not source.same_version(entry, os.fstat(descriptor)):
                return Reading(sequence, entry, previous, same=False)
            hasher = source.content_hasher(entry)
            for block in source.read_blocks(descriptor, entry, BLOCK_SIZE_BYTES):
                hasher.update(block)
                self._stages.progress(len(block))
            unchanged = source.same_version(entry, os.fstat(descriptor))
            return Reading(sequence, entry, previous, same=unchanged and hasher.hexdigest() == previous.digest)
        except SourceError as error:
            return Reading(sequence, entry, previous, same=False, error=error.message)
        finally:
            os.close(descriptor)


def reading_cost(job: tuple[int, Entry, Entry]) -> int:
    """Return how many bytes one reading holds in memory."""
    return min(job[1].size, BLOCK_SIZE_BYTES)
