"""Repair: what a verification finds damaged is made again, from living files and from this machine's catalog.

    verify   the listing, and of blobs that an earlier verification found damaged the content too
    make     each damaged blob anew (living.py); a segment or header from the catalog; a list of blocks from the content
    send     in place of exactly the version that was found damaged, or create-only where there was none
    compare  what the store then has with what was sent
    renew    what cannot be mended: living files that lie in it are to be stored under new GUIDs by the next save

This is the one thing that overwrites content. It never puts anything over what it has not seen to be damaged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from blake3 import blake3
from msgspec.structs import replace

from blobark import blocks, content, snapshot
from blobark.catalog import Catalog
from blobark.context import Context, full_path
from blobark.errors import (
    BlobChanged,
    BlobExists,
    BlobNotFound,
    BlocksLost,
    ContentError,
    ItemError,
    StoreLocked,
)
from blobark.extents import of_entry
from blobark.guids import GuidSource
from blobark.inventory import Inventory
from blobark.living import MOST_IMAGE_BYTES, Living, Wounded
from blobark.model import Block, Extent, display
from blobark.originals import Originals
from blobark.stores.base import BLOCK_SIZE_BYTES, Store
from blobark.verify import Verification, VerifyResult


@dataclass(slots=True)
class RepairResult:
    """What a repair did, or (without `done`) could do. `damaged` and what follows are numbers of blobs."""

    server: str = ""
    done: bool = False
    verified: VerifyResult = field(default_factory=VerifyResult)
    damaged: int = 0
    mended: int = 0
    mended_bytes: int = 0
    left: int = 0
    """Blobs that stay damaged."""
    renewed: int = 0
    """Living files that the next save stores under new GUIDs, since what they lay in cannot be mended."""


class Mended(NamedTuple):
    """What became of one damaged blob: from where it was made again, or why it was not."""

    key: str
    what: str
    source: str
    reason: str
    size_bytes: int = 0


class Repair:
    """One repair, after a verification whose inventory it works through."""

    def __init__(
        self, context: Context, catalog: Catalog, store: Store, verification: Verification, inventory: Inventory
    ) -> None:
        self._context = context
        self._catalog = catalog
        self._store = store
        self._roots = verification.roots
        self._originals = Originals(catalog, store, verification.result.server)
        self._server = verification.result.server
        self._inventory = inventory
        self.result = RepairResult(self._server, verified=verification.result)

    def run(self, *, do: bool) -> Iterator[Mended]:
        """Make again what is damaged, or (without `do`) find out whether that would succeed; yield each blob."""
        result = self.result
        result.done, result.damaged = do, self.result.verified.damaged
        self._context.reporter.begin("repair", result.damaged, 0)
        living = Living(self._context, self._store, self._server)
        try:
            own, owner = f"{snapshot.PREFIX}{self._server}/", snapshot.server_key(self._server)
            objects = [key for key in self._inventory.damaged() if key.startswith(own)]
            for key in sorted(objects, key=lambda key: (key == owner, key)):  # it is made of a header
                yield self._took(self._mend_object(key, do=do))
            jobs = (self._wounded(key) for key in self._inventory.damaged() if not key.startswith(own))

            def work(batch: list[Wounded]) -> list[Mended]:
                return [self._mend(living, blob, do=do) for blob in batch]

            for _, mended in self._context.engine.run(jobs, work, cost=_cost):
                yield self._took(mended)
        finally:
            living.close()
        if do:
            self._store.sync()
            self._renew()

    def _took(self, mended: Mended) -> Mended:
        self._context.reporter.advance(1, mended.size_bytes)
        if mended.reason:
            self.result.left += 1
        else:
            self.result.mended += 1
            self.result.mended_bytes += mended.size_bytes
            if self.result.done:
                self._inventory.forget_damage(mended.key)
        return mended

    # Content

    def _wounded(self, key: str) -> Wounded:
        entries = [(self._roots[roots], entry) for roots, entry in self._inventory.hurt_entries(key)]
        return Wounded(key, self._inventory.length_of(key), self._inventory.damages(key), entries)

    def _mend(self, living: Living, blob: Wounded, *, do: bool) -> Mended:
        """Make a content blob again in the first way that works."""
        what = "; ".join(dict.fromkeys(damage.what for damage in blob.damages))
        reasons = []
        for recipe in living.recipes(blob):
            origin = "what is left of it, and the files in it"
            if recipe.entry is not None:
                origin = display(full_path(recipe.root_name, recipe.entry.raw_path))
            try:
                pieces = living.pieces(blob, recipe)
                if not do:
                    return Mended(blob.key, what, origin, "", sum(map(len, pieces)))
                return Mended(blob.key, what, origin, "", self._send(blob, pieces, living.meta(blob, recipe)))
            except (ItemError, BlobNotFound, BlobChanged, BlocksLost, StoreLocked) as error:
                reasons.append(f"{origin} {error.message}" if recipe.entry is not None else error.message)
        return Mended(blob.key, what, "", "; ".join(reasons[:3]) or "nothing that it holds is known to be a file")

    def _send(self, blob: Wounded, pieces: Iterator[bytes], meta: dict[str, str]) -> int:
        """Send a blob and read it back; return its length in bytes."""
        hasher, size = blake3(), 0

        def counted() -> Iterator[bytes]:
            nonlocal size
            for piece in pieces:
                hasher.update(piece)
                size += len(piece)
                yield piece

        try:
            _store(self._store, blob.key, blob.version, counted(), meta)
        except (BlobExists, BlobChanged):
            pass  # an answer was lost, perhaps: what is there tells
        self._compare(blob.key, size, hasher.hexdigest())
        return size

    def _compare(self, key: str, size: int, digest: str) -> None:
        """Raise `BlobChanged` unless the store has what was sent."""
        hasher = blake3()
        if self._store.stat(key).size_bytes == size:
            for piece in content.read_extent(self._store, Extent(key, 0, size, size)):
                hasher.update(piece)
            if hasher.hexdigest() == digest:
                return
        raise BlobChanged("is not there as it was sent: somebody else has written it; run repair again")

    # Below blobark/

    def _mend_object(self, key: str, *, do: bool) -> Mended:
        """Make a segment, header, list of blocks or description of the server again."""
        what = "; ".join(damage.what for damage in self._inventory.damages(key))
        lister = next((entry for _, entry in self._inventory.hurt_entries(key)), None)
        try:
            data, origin = self._originals.make(key, lister)
            version = self._seen(key, data)
            if do:
                self._put_object(key, version, data)
                if "/segments/" in key or "/snapshots/" in key:
                    again = "what it names has not been checked: run repair again"
                    self.result.verified.failed.append((key, again))
                    self._context.reporter.warn(f"failed: {key}: {again}")
        except (ItemError, BlobNotFound, BlobChanged, StoreLocked) as error:
            return Mended(key, what, "", error.message)
        return Mended(key, what, origin, "", len(data))

    def _seen(self, key: str, data: bytes) -> str:
        """Return the version of an object that is not what it should be, "" for none; else raise `ContentError`."""
        try:
            seen = self._store.stat(key)
        except BlobNotFound:
            return ""
        if self._store.read(key, 0, seen.size_bytes, version=seen.version) == data:
            raise ContentError("it is as it was written: what is wrong was wrong from the beginning")
        return seen.version

    def _put_object(self, key: str, version: str, data: bytes) -> None:
        try:
            _store(self._store, key, version, iter([data]), {})
        except (BlobExists, BlobChanged):
            pass
        self._compare(key, len(data), blake3(data).hexdigest())

    # What cannot be mended

    def _renew(self) -> None:
        """Let the next save store anew what lies in blobs that stay damaged."""
        catalog = self._catalog
        if catalog.get("server") != self._server or not catalog.has_draft():
            return
        catalog.journal.set_damaged(self._inventory.damaged())
        guids = GuidSource()
        for sequence, entry in catalog.entries() if catalog.journal.has_damaged() else ():
            if entry.digest and not entry.error and self._inventory.is_hurt(of_entry(self._server, entry)):
                catalog.overlay(sequence, replace(entry.without_content(), guid=guids.next()))
                catalog.set(map_outdated="1")
                self.result.renewed += 1
        catalog.commit()


def _store(store: Store, key: str, version: str, pieces: Iterator[bytes], meta: dict[str, str]) -> None:
    """Store the pieces joined as a blob, where there is none, or in place of a version of it."""
    first = next(pieces, b"")
    second = next(pieces, None)
    if second is None and len(first) <= BLOCK_SIZE_BYTES:
        if version:
            store.replace(key, first, meta, version=version)
        else:
            store.put(key, first, meta)
        return
    upload = store.begin(key, replacing=version)
    staged: list[Block] = []
    try:
        offset = 0
        for piece in itertools.chain((first, second or b""), pieces):
            if not piece:
                continue
            block = Block(len(piece), blocks.digest_of(piece))
            upload.stage(offset, block.digest, piece)
            staged.append(block)
            offset += len(piece)
        upload.commit(staged, meta)
    except BaseException:
        upload.abort()
        raise


def _cost(blob: Wounded) -> int:
    is_shared = any(entry.extents for _, entry in blob.entries)
    return 3 * BLOCK_SIZE_BYTES + (2 * min(blob.needed, MOST_IMAGE_BYTES) if is_shared else 0)
