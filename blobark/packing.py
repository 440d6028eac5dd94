"""Packing: which files of a save go together into packs, and what a run that was killed has left of its packs.

cut      in the order of the tree, the small files become bundles: of about 32 MiB, or of 4,000 files
         a pack's GUID is durable in the catalog before its first file is handed out
took     when all files of a pack have their outcomes, the catalog forgets its GUID together with noting them
adopt    a GUID that is still there was on its way when a run was killed: where its blob is in the store, and right,
         the files in it need not be sent again; where it is not there, the run has left nothing but blocks
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from blobark.catalog import Catalog
from blobark.context import Context
from blobark.errors import BlobNotFound
from blobark.guids import GuidSource, blob_name
from blobark.model import Entry
from blobark.packs import PACK_BYTES, PACK_FILES, PackContent, read_pack, room_for
from blobark.send import Job
from blobark.stores.base import Store


class Packing:
    """The packs of one save, as its planning thread sees them. Files above `below_bytes` are not packed."""

    def __init__(self, context: Context, catalog: Catalog, guids: GuidSource, below_bytes: int) -> None:
        self._context = context
        self._catalog = catalog
        self._guids = guids
        self._below_bytes = below_bytes
        self._left: dict[str, int] = {}
        """How many outcomes each pack's files have still to get."""

    def fits(self, entry: Entry) -> bool:
        """Whether a file whose content is to be stored goes to a pack."""
        return 0 <= entry.size <= self._below_bytes and entry.kind == "file" and entry.ranges is None

    def cut(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Yield the jobs, those that are packed in bundles."""
        if not self._below_bytes:
            yield from jobs
            return
        waiting: list[Job] = []
        size = 0
        for job in jobs:
            if not self.fits(job.entry):
                yield job
                continue
            room = room_for(job.entry.size)
            if waiting and (size + room > PACK_BYTES or len(waiting) >= PACK_FILES):
                yield from self._begin(waiting)
                waiting, size = [], 0
            waiting.append(job)
            size += room
        if waiting:
            yield from self._begin(waiting)

    def _begin(self, jobs: list[Job]) -> Iterator[Job]:
        guid = self._guids.next()
        self._left[guid] = len(jobs)
        self._catalog.journal.begin_pack(guid)
        self._catalog.commit()
        for job in jobs:
            yield replace(job, bundle=guid)

    def took(self, job: Job) -> None:
        """Note that a job's outcome is in the catalog."""
        if job.bundle:
            self._left[job.bundle] -= 1
            if not self._left[job.bundle]:
                del self._left[job.bundle]
                self._catalog.journal.end_pack(job.bundle)

    def adopt(self, store: Store, server: str) -> Iterator[PackContent]:
        """Yield what is right of the packs that a run which was killed had begun."""

        def read(guids: list[str]) -> list[PackContent | None]:
            return [_content(store, blob_name(server, guid)) for guid in guids]

        for guid, found in self._context.engine.run(
            self._catalog.journal.begun_packs(), read, cost=lambda _: 2 * PACK_BYTES
        ):
            if found is not None:
                self._catalog.journal.note_adopted(found.entries)
                yield found
            self._catalog.journal.end_pack(guid)


def _content(store: Store, key: str) -> PackContent | None:
    try:
        return read_pack(store, key, store.stat(key).size_bytes)
    except BlobNotFound:
        return None
