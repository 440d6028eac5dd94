"""The inventory of a verification: what the snapshots name, what of it is damaged, and whom that hurts.

    part     which snapshots have which segment, below which roots
    blob     each blob that is named, once, and how long it must be
    lists    each object with a long list of blocks, and an entry that names it
    piece    what is to be read (`--read`): each run of stored bytes that has a digest, once
    damage   runs of bytes that are missing or wrong, by key
    hurt     the entries that lie in such a run

It is a scratch database (scratch.py): for one thread, and nothing of it outlasts the run.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from blobark.model import Entry, Extent, SegmentRef
from blobark.scratch import FLUSH_ROWS, opened
from blobark.segments import decode_entry, encode_entry

TO_THE_END = (1 << 63) - 1
SOUND, ARCHIVED, DAMAGED = range(3)

_SCHEMA = """
CREATE TABLE part(
    id INTEGER PRIMARY KEY, segment TEXT, roots INTEGER, ref BLOB, base TEXT DEFAULT '', UNIQUE (segment, roots)
);
CREATE TABLE has(part INTEGER, number INTEGER, PRIMARY KEY (part, number)) WITHOUT ROWID;
CREATE TABLE blob(key TEXT PRIMARY KEY, length INTEGER, exact INTEGER, state INTEGER DEFAULT 0) WITHOUT ROWID;
CREATE TABLE lists(digest TEXT PRIMARY KEY, line BLOB) WITHOUT ROWID;
CREATE TABLE piece(
    blob TEXT, start INTEGER, stored INTEGER, plain INTEGER, codec TEXT, skip INTEGER, digest BLOB, shape BLOB,
    PRIMARY KEY (blob, start, stored, skip, plain, digest)
) WITHOUT ROWID;
CREATE TABLE whole(digest TEXT, blob TEXT, line BLOB, PRIMARY KEY (digest, blob)) WITHOUT ROWID;
CREATE TABLE damage(
    key TEXT, start INTEGER, end INTEGER, what TEXT, version TEXT, PRIMARY KEY (key, start, end)
) WITHOUT ROWID;
CREATE TABLE hurt(key TEXT, path BLOB, part INTEGER, line BLOB);
"""


class Part(NamedTuple):
    """A segment below certain roots: the number of this pair, and of the roots."""

    id: int
    roots: int
    ref: SegmentRef


class Named(NamedTuple):
    """A blob that is named, and how long it must be: at least, or exactly."""

    key: str
    length: int
    exact: bool


class Piece(NamedTuple):
    """Stored bytes whose plain form has a digest, which is computed over `shape` first."""

    extent: Extent
    digest: str
    shape: bytes = b""


class Damage(NamedTuple):
    """Bytes from `start` to `end` of a blob that are not there, or are wrong; `version` is of the blob, "" for none."""

    key: str
    start: int
    end: int
    what: str
    version: str


class Hurt(NamedTuple):
    """An item that a damaged blob hurts, and the snapshots that have it so. Without a path: the snapshots as such."""

    key: str
    path: bytes
    numbers: list[int]


class Inventory:
    """The inventory of one run. Every method may raise `Fatal` when the disk fails."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._blobs: list[tuple[str, int, bool]] = []
        self._pieces: list[tuple[object, ...]] = []

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator[Inventory]:
        """Open an empty one."""
        with opened(_SCHEMA) as connection:
            yield cls(connection)

    # Segments

    def add_snapshot(self, number: int, roots: int, refs: Iterable[SegmentRef]) -> None:
        """Note a snapshot's segments; equal `roots` mean that the same roots have the same numbers."""
        for ref in refs:
            row = (ref.name, roots, msgspec.json.encode(ref), ref.base)
            self._db.execute("INSERT OR IGNORE INTO part(segment, roots, ref, base) VALUES (?, ?, ?, ?)", row)
            query = "INSERT OR IGNORE INTO has SELECT id, ? FROM part WHERE segment = ? AND roots = ?"
            self._db.execute(query, (number, ref.name, roots))

    def add_object(self, key: str, numbers: Iterable[int]) -> int:
        """Note an object other than a segment that snapshots rest on; return the number of its part."""
        row = self._db.execute("INSERT INTO part(segment, roots, ref) VALUES (?, -1, x'')", (key,)).lastrowid or 0
        self._db.executemany("INSERT INTO has VALUES (?, ?)", ((row, number) for number in numbers))
        return row

    def forget_snapshot(self, number: int) -> None:
        """Forget a snapshot, which is gone: what only it names is named no more."""
        self._db.execute("DELETE FROM has WHERE number = ?", (number,))
        self._db.execute("DELETE FROM part WHERE id NOT IN (SELECT part FROM has)")

    def parts(self) -> Iterator[Part]:
        """Yield all parts."""
        last = 0
        query = "SELECT id, roots, ref FROM part WHERE id > ? AND roots >= 0 ORDER BY id LIMIT 1"
        while row := self._db.execute(query, (last,)).fetchone():
            last = row[0]
            yield Part(row[0], row[1], msgspec.json.decode(row[2], type=SegmentRef))

    def part_counts(self) -> tuple[int, int]:
        """Return how many segments there are, and how many parts."""
        query = "SELECT count(DISTINCT segment), count(*) FROM part WHERE roots >= 0"
        segments, parts = self._db.execute(query).fetchone()
        return int(segments), int(parts)

    def bases(self) -> list[str]:
        """Return the segments that others are patches against."""
        return [row[0] for row in self._db.execute("SELECT DISTINCT base FROM part WHERE base != '' ORDER BY base")]

    def parts_of(self, segment: str) -> list[Part]:
        """Return the parts that have a segment, or rest on it."""
        query = "SELECT id, roots, ref FROM part WHERE (segment = ?1 OR base = ?1) AND roots >= 0"
        rows = self._db.execute(query, (segment,)).fetchall()
        return [Part(row[0], row[1], msgspec.json.decode(row[2], type=SegmentRef)) for row in rows]

    def segments(self) -> Iterator[Part]:
        """Yield each segment once, whatever roots it is below."""
        seen = ""
        query = "SELECT id, roots, ref, segment FROM part WHERE segment > ? AND roots >= 0 ORDER BY segment LIMIT 1"
        while row := self._db.execute(query, (seen,)).fetchone():
            seen = row[3]
            yield Part(row[0], row[1], msgspec.json.decode(row[2], type=SegmentRef))

    # What is named

    def name_blobs(self, rows: Iterable[Named]) -> None:
        """Note blobs; of several lengths the greatest counts."""
        self._blobs += rows
        if len(self._blobs) >= FLUSH_ROWS:
            self._flush_blobs()

    def _flush_blobs(self) -> None:
        rows, self._blobs = self._blobs, []
        query = (
            "INSERT INTO blob(key, length, exact) VALUES (?, ?, ?) ON CONFLICT(key) DO UPDATE "
            "SET length = max(length, excluded.length), exact = max(exact, excluded.exact)"
        )
        self._db.executemany(query, rows)

    def name_list(self, digest: str, entry: Entry) -> None:
        """Note an object with a list of blocks."""
        self._db.execute("INSERT OR IGNORE INTO lists VALUES (?, ?)", (digest, encode_entry(entry)))

    def named(self, prefix: str) -> Iterator[Named]:
        """Yield the named blobs whose keys begin with `prefix`, in ascending order."""
        self._flush_blobs()
        query = "SELECT key, length, exact FROM blob WHERE key >= ? AND key < ? ORDER BY key"
        for key, length, exact in self._db.cursor().execute(query, (prefix, prefix + "\x7f")):
            yield Named(key, length, bool(exact))

    def named_elsewhere(self, prefix: str) -> Iterator[Named]:
        """Yield the named blobs whose keys begin otherwise."""
        self._flush_blobs()
        query = "SELECT key, length, exact FROM blob WHERE key < ? OR key >= ? ORDER BY key"
        for key, length, exact in self._db.cursor().execute(query, (prefix, prefix + "\x7f")):
            yield Named(key, length, bool(exact))

    def lists(self) -> Iterator[tuple[str, Entry]]:
        """Yield each object with a list of blocks, and an entry that names it."""
        for digest, line in self._db.execute("SELECT digest, line FROM lists ORDER BY digest").fetchall():
            yield digest, decode_entry(line)

    # What is to be read

    def add_pieces(self, pieces: Iterable[Piece]) -> None:
        """Note pieces, each once."""
        for extent, digest, shape in pieces:
            self._pieces.append((*msgspec.structs.astuple(extent), bytes.fromhex(digest), shape))
        if len(self._pieces) >= FLUSH_ROWS:
            self._flush_pieces()

    def _flush_pieces(self) -> None:
        rows, self._pieces = self._pieces, []
        self._db.executemany("INSERT OR IGNORE INTO piece VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def add_whole(self, blob: str, entry: Entry) -> None:
        """Note a content that has to be read as one, since no part of it has a digest; `blob` is its first one."""
        self._db.execute("INSERT OR IGNORE INTO whole VALUES (?, ?, ?)", (entry.digest, blob, encode_entry(entry)))

    def to_read(self) -> tuple[int, int]:
        """Return how many pieces and wholes are to be read, and about how many stored bytes."""
        self._flush_pieces()
        query = (
            "SELECT total(pieces), total(stored) FROM (SELECT count(*) AS pieces, stored FROM piece JOIN blob "
            "ON key = blob WHERE state = ? GROUP BY blob, start, stored)"
        )
        count, size = self._db.execute(query, (SOUND,)).fetchone()
        return int(count) + int(self._db.execute("SELECT count(*) FROM whole").fetchone()[0]), int(size)

    def pieces(self) -> Iterator[Piece]:
        """Yield what can be read, in the order of the blobs: neither archived nor known to be damaged."""
        self._flush_pieces()
        query = (
            "SELECT blob, piece.start, stored, plain, codec, skip, digest, shape FROM piece JOIN blob ON key = blob "
            "WHERE state = ? OR (state = ? AND NOT EXISTS (SELECT 1 FROM damage WHERE damage.key = blob "
            "AND piece.start + stored > damage.start AND damage.end > piece.start)) ORDER BY blob, piece.start"
        )
        for *extent, digest, shape in self._db.cursor().execute(query, (SOUND, DAMAGED)):
            yield Piece(Extent(*extent), bytes(digest).hex(), bytes(shape))

    def wholes(self) -> Iterator[Entry]:
        """Yield the contents that have to be read as one, none of whose blobs is archived or damaged."""
        for (line,) in self._db.cursor().execute("SELECT line FROM whole ORDER BY blob"):
            yield decode_entry(line)

    def named_bytes(self) -> tuple[int, int]:
        """Return how many blobs are named, and how long they must be at least, all together."""
        self._flush_blobs()
        count, size = self._db.execute("SELECT count(*), total(length) FROM blob").fetchone()
        return int(count), int(size)

    def length_of(self, key: str) -> int:
        """Return how long a blob must be."""
        row = self._db.execute("SELECT length FROM blob WHERE key = ?", (key,)).fetchone()
        return int(row[0]) if row else 0

    def state_of(self, key: str) -> int:
        """Return what is known of a blob."""
        row = self._db.execute("SELECT state FROM blob WHERE key = ?", (key,)).fetchone()
        return int(row[0]) if row else SOUND

    # What is wrong

    def set_archived(self, key: str) -> None:
        """Note that a blob cannot be read."""
        self._db.execute("UPDATE blob SET state = ? WHERE key = ?", (ARCHIVED, key))

    def add_damage(self, damage: Damage) -> None:
        """Note damage."""
        self._db.execute("INSERT OR IGNORE INTO damage VALUES (?, ?, ?, ?, ?)", damage)
        self._db.execute("UPDATE blob SET state = ? WHERE key = ?", (DAMAGED, damage.key))

    def damages(self, key: str) -> list[Damage]:
        """Return the damage of a blob, in order."""
        query = "SELECT key, start, end, what, version FROM damage WHERE key = ? ORDER BY start, end"
        return [Damage(*row) for row in self._db.execute(query, (key,))]

    def damaged(self) -> Iterator[str]:
        """Yield the keys of what is damaged, in order."""
        last = ""
        while row := self._db.execute("SELECT key FROM damage WHERE key > ? ORDER BY key LIMIT 1", (last,)).fetchone():
            last = row[0]
            yield last

    def is_hurt(self, extents: Sequence[Extent]) -> list[str]:
        """Return the keys of the blobs whose damage some extents lie in; an empty extent needs only its blob."""
        query = "SELECT 1 FROM damage WHERE key = ? AND start < ? AND end > ?"
        found = []
        for extent in extents:
            end = extent.stored_offset + extent.stored_length
            span = (extent.blob, max(end, extent.stored_offset + 1), extent.stored_offset)
            if extent.blob not in found and self._db.execute(query, span).fetchone():
                found.append(extent.blob)
        return found

    def forget_damage(self, key: str) -> None:
        """Forget the damage of a blob, which has been mended."""
        self._db.execute("DELETE FROM damage WHERE key = ?", (key,))
        self._db.execute("DELETE FROM hurt WHERE key = ?", (key,))

    def add_hurt(self, key: str, path: bytes, part: int, entry: Entry | None) -> None:
        """Note whom damage hurts: an item, or (with no path) what has the part as such."""
        line = encode_entry(entry) if entry is not None else b""
        self._db.execute("INSERT INTO hurt VALUES (?, ?, ?, ?)", (key, path, part, line))

    def settle(self) -> None:
        """Forget damage that hurts nobody: what named it is gone. No more is added after this."""
        self._db.execute("CREATE INDEX hurt_key ON hurt(key, path)")
        self._db.execute("DELETE FROM damage WHERE key NOT IN (SELECT key FROM hurt)")

    def hurts(self, key: str) -> Iterator[Hurt]:
        """Yield whom a damaged blob hurts, by path."""
        query = "SELECT DISTINCT path, number FROM hurt JOIN has USING (part) WHERE key = ? ORDER BY path, number"
        path, numbers = b"", list[int]()
        for found, number in self._db.cursor().execute(query, (key,)):
            if numbers and found != path:
                yield Hurt(key, path, numbers)
                numbers = []
            path = bytes(found)
            numbers.append(number)
        if numbers:
            yield Hurt(key, path, numbers)

    def hurt_entries(self, key: str) -> Iterator[tuple[int, Entry]]:
        """Yield (number of the roots, entry) of each item that a damaged blob hurts, as often as it differs."""
        query = "SELECT DISTINCT roots, line FROM hurt JOIN part ON part = id WHERE key = ? AND line != x''"
        for roots, line in self._db.execute(query, (key,)).fetchall():
            yield roots, decode_entry(line)

    def counts(self) -> tuple[int, int]:
        """Return how many blobs are damaged, and how many items that hurts, each path once."""
        blobs = self._db.execute("SELECT count(DISTINCT key) FROM damage").fetchone()[0]
        items = self._db.execute("SELECT count(DISTINCT path) FROM hurt WHERE path != x''").fetchone()[0]
        return int(blobs), int(items)
