"""Which contents the store has, so that equal content is stored once. One SQLite file in state_dir, for `dedupe`.

    known      what the newest snapshot names, segment by segment; made anew from its segments where it is missing
    this run   what this run has sent, and what of a killed run's it has seen in the store; forgotten by the next run
    under way  what somebody is about to send

A content is known by its digest and length. All threads and processes of a run ask the same file, each process
through a connection of its own; a claim is one transaction, so of all who have the same content one sends it. It is a
cache: lost or damaged it costs reading the newest snapshot's segments, and never a blob.
"""

from __future__ import annotations

import contextlib
import enum
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from blobark.errors import Fatal
from blobark.extents import of_entry
from blobark.guids import raw_guid
from blobark.model import Block, Entry, Extent, SegmentRef
from blobark.stores.base import BLOCK_SIZE_BYTES

VERSION = 1
FILE_NAME = "contents.sqlite"
BUSY_S = 60.0
_THIS_RUN = 0

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS segment(id INTEGER PRIMARY KEY, digest TEXT UNIQUE);
CREATE TABLE IF NOT EXISTS content(
    digest BLOB, size INTEGER, segment INTEGER, place BLOB, PRIMARY KEY (digest, size, segment)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS large ON content(size) WHERE size > {BLOCK_SIZE_BYTES};
CREATE TABLE IF NOT EXISTS under_way(digest BLOB, size INTEGER, PRIMARY KEY (digest, size)) WITHOUT ROWID;
"""


class Claim(enum.Enum):
    """What is known of a content that is not stored yet."""

    OURS = "ours"
    """Nobody else has it: who asked sends it, and says how that ended."""
    UNDER_WAY = "under way"
    """Somebody else is sending it."""


class _Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a content lies, as an entry says it."""

    extents: tuple[Extent, ...]
    blocks: tuple[Block, ...] | None
    blocks_at: str
    block_bits: int


class Contents:
    """The contents of one server. For many threads; every method may raise `Fatal` when the disk fails."""

    def __init__(self, state_dir: Path, server: str) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._path = state_dir / FILE_NAME
        with self._named_errors():
            self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        for suffixes in (("", "-wal", "-shm"), ()):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(self._path, BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                if connection.execute("PRAGMA user_version").fetchone()[0] not in (0, VERSION):
                    raise sqlite3.DatabaseError("it is of another version")
                connection.executescript(f"{_SCHEMA} PRAGMA user_version = {VERSION};")
                return connection
            except sqlite3.OperationalError:
                connection.close()
                raise
            except sqlite3.DatabaseError:
                connection.close()
                if not suffixes:
                    raise
                for suffix in suffixes:
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        raise sqlite3.DatabaseError("it cannot be made anew")

    def close(self) -> None:
        """Close the file; nobody uses this any more."""
        self._db.close()

    # For the one that plans a run

    def begin(self, refs: Iterable[SegmentRef], read: Callable[[SegmentRef], list[Entry]]) -> None:
        """Know what a snapshot of these segments names, and nothing else. Only segments that are new are read."""
        wanted = {ref.digest: ref for ref in refs}
        with self._transaction():
            had = {digest: number for number, digest in self._db.execute("SELECT id, digest FROM segment")}
            gone = [(number,) for digest, number in had.items() if digest not in wanted]
            self._db.execute("DELETE FROM under_way")
            self._db.execute("CREATE TEMP TABLE gone(id INTEGER PRIMARY KEY)")
            self._db.executemany("INSERT INTO gone VALUES (?)", [*gone, (_THIS_RUN,)])
            self._db.execute("DELETE FROM content WHERE segment IN (SELECT id FROM gone)")
            self._db.execute("DELETE FROM segment WHERE id IN (SELECT id FROM gone)")
            self._db.execute("DROP TABLE gone")
        for digest, ref in wanted.items():
            if digest not in had:
                entries = read(ref)
                with self._transaction():
                    number = self._db.execute("INSERT INTO segment(digest) VALUES (?)", (digest,)).lastrowid
                    self._insert(entries, number or 0)

    def forget(self, entries: Sequence[Entry]) -> None:
        """Forget contents, which are not in the store, whatever names them."""
        with self._transaction():
            keys = (_key(entry) for entry in entries if entry.has_content)
            self._db.executemany("DELETE FROM content WHERE (digest, size) = (?, ?)", keys)

    def forget_run(self) -> None:
        """Forget what this run has sent: some of it has not arrived as it was."""
        with self._transaction():
            self._db.execute("DELETE FROM content WHERE segment = ?", (_THIS_RUN,))

    # For those who send

    def claim(self, entries: Sequence[Entry]) -> list[Entry | Claim]:
        """Say of entries that have their digest where their content lies already, as entries that name it; or a claim.

        What is `Claim.OURS` is to be given to `sent` in the end.
        """
        answers: list[Entry | Claim] = []
        with self._transaction():
            for entry in entries:
                key = _key(entry)
                row = self._db.execute("SELECT place FROM content WHERE (digest, size) = (?, ?)", key).fetchone()
                answers.append(self._placed(entry, row[0]) if row else self._take(key))
        return answers

    def claim_size(self, size_bytes: int) -> Claim | None:
        """Claim a length of more than a block that no content has; None where one has it, so that digests must tell.

        What is `Claim.OURS` is to be given to `release_size` in the end.
        """
        with self._transaction():
            query = f"SELECT 1 FROM content WHERE size = ? AND size > {BLOCK_SIZE_BYTES} LIMIT 1"
            return None if self._db.execute(query, (size_bytes,)).fetchone() else self._take((b"", size_bytes))

    def sent(self, entries: Sequence[Entry], claimed: Sequence[Entry] = ()) -> None:
        """Know contents that have been stored in this run, or seen in the store; give up claims, stored or not."""
        with self._transaction():
            self._insert(entries, _THIS_RUN)
            keys = map(_key, [*entries, *claimed])
            self._db.executemany("DELETE FROM under_way WHERE (digest, size) = (?, ?)", keys)

    def release_size(self, size_bytes: int) -> None:
        """Give up the claim of a length."""
        with self._transaction():
            self._db.execute("DELETE FROM under_way WHERE (digest, size) = (?, ?)", (b"", size_bytes))

    def _take(self, key: tuple[bytes, int]) -> Claim:
        taken = self._db.execute("INSERT OR IGNORE INTO under_way VALUES (?, ?)", key).rowcount
        return Claim.OURS if taken else Claim.UNDER_WAY

    def _insert(self, entries: Iterable[Entry], segment: int) -> None:
        rows = (
            (*_key(entry), segment, self._place(entry)) for entry in entries if entry.has_content and entry.content_size
        )
        self._db.executemany("INSERT OR IGNORE INTO content VALUES (?, ?, ?, ?)", rows)

    def _place(self, entry: Entry) -> bytes:
        """Return where a content lies: the GUID alone says it of most."""
        if entry.extents is None and entry.blocks is None and not entry.blocks_at:
            return raw_guid(entry.guid)
        extents = of_entry(self._server, entry)
        return msgspec.json.encode(_Place(extents, entry.blocks, entry.blocks_at, entry.block_bits))

    def _placed(self, entry: Entry, place: bytes) -> Entry:
        if len(place) == 16:
            guid = place.hex()
            guid = f"{guid[:8]}-{guid[8:12]}-{guid[12:16]}-{guid[16:20]}-{guid[20:]}"
            return replace(entry, extents=of_entry(self._server, replace(entry, guid=guid, extents=None)))
        found = msgspec.json.decode(place, type=_Place)
        return replace(
            entry,
            extents=found.extents,
            blocks=found.blocks,
            blocks_at=found.blocks_at,
            block_bits=found.block_bits,
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._named_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            hint = "free some space, or delete it: it is made anew from the newest snapshot"
            raise Fatal(f"the table of contents {self._path} cannot be used ({error})", hint) from None


def _key(entry: Entry) -> tuple[bytes, int]:
    return bytes.fromhex(entry.digest), entry.content_size
