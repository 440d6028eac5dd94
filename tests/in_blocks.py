"""An upload block after block, for tests that have the whole content at hand."""

from __future__ import annotations

from collections.abc import Mapping

from blobark.blocks import digest_of
from blobark.model import Block
from blobark.stores.base import Upload


class InBlocks:
    """Stages blocks one behind the other, and commits them in this order."""

    def __init__(self, upload: Upload) -> None:
        self.upload = upload
        self.blocks: list[Block] = []
        self.end = 0

    def add(self, block: bytes) -> bool:
        """Stage a block, unless it is empty; returns whether it had to be sent."""
        if not block:
            return False
        staged = self.upload.stage(self.end, digest_of(block), block)
        self.blocks.append(Block(len(block), digest_of(block)))
        self.end += len(block)
        return staged

    def commit(self, meta: Mapping[str, str]) -> None:
        """Make a blob of the blocks."""
        self.upload.commit(self.blocks, meta)

    def abort(self) -> None:
        """As `Upload.abort`."""
        self.upload.abort()
