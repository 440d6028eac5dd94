"""The catalog: what this machine knows between runs, in one SQLite file. Nobody else speaks SQL.

It holds a draft, which is the manifest that the next snapshot will be: sorted entries in segments (the same bytes
as a snapshot's), and an overlay of single entries that are newer than their line in a segment (overlay.py). An entry's
`sequence` is its place in the draft: `position of its segment << 20 | place within it`.

    index    writes a new draft, in one transaction: a crash leaves the draft before it
    save     overlays each entry as its content gets stored; after publishing, the snapshot's segments are the draft
    segment  is also a cache of the store's segments, by name: the draft's and those of the newest snapshot, each whole,
             and what the store has in its place where that is a patch
    newest   the names of all that the newest snapshot needs
    journal  what a save has done for this draft, and what is not known of it yet (journal.py)

It is a cache: a lost or damaged catalog is rebuilt from the newest snapshot, which costs time and never data.
One process at a time writes it (`state_lock`); `synchronous=NORMAL` keeps it whole through kill -9 and loss of power.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from blobark import journal, overlay
from blobark.errors import Fatal, SnapshotError
from blobark.journal import Journal
from blobark.model import Entry, SegmentRef, display
from blobark.overlay import POSITION_SHIFT, Overlay
from blobark.segments import SegmentWriter, decode_entry, decode_lines, encode_entry, plain_of, plain_segment

SCHEMA_VERSION = 7
FLUSH_ROWS = 1000
_REBUILD = "delete state_dir: it is rebuilt from the newest snapshot"

_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE segment(name TEXT PRIMARY KEY, stored BLOB NOT NULL);
CREATE TABLE newest(name TEXT PRIMARY KEY);
CREATE TABLE draft(position INTEGER PRIMARY KEY, ref BLOB NOT NULL, pending INTEGER NOT NULL, bytes INTEGER NOT NULL);
"""

# An inode number has up to 64 bits, an INTEGER one less.
_TEMPORARY = """
CREATE TEMP TABLE next_draft(position INTEGER PRIMARY KEY, ref BLOB, pending INTEGER, bytes INTEGER);
CREATE TEMP TABLE doubt(sequence INTEGER PRIMARY KEY, line BLOB, previous BLOB);
CREATE TEMP TABLE fresh(sequence INTEGER PRIMARY KEY, inode TEXT, line BLOB);
CREATE TEMP TABLE gone(inode TEXT, line BLOB);
CREATE TEMP TABLE job(root INTEGER, path BLOB, guid TEXT, placeholder INTEGER);
"""


@dataclass(frozen=True, slots=True)
class DraftSegment:
    """One segment of the draft, and how much of it the index left to be stored: entries, and bytes of content."""

    position: int
    ref: SegmentRef
    pending: int
    pending_bytes: int
    overlaid: bool


class Catalog:
    """The catalog of one state folder. For one thread; every method may raise `Fatal` when the disk fails."""

    def __init__(self, connection: sqlite3.Connection, *, keep: bool) -> None:
        self._db = connection
        self._keep = keep
        self._overlay = Overlay(connection, "overlay")
        self.journal = Journal(connection)

    @classmethod
    @contextlib.contextmanager
    def open(cls, state_dir: Path, *, to_read: bool = False, keep: bool = True) -> Iterator[Catalog]:
        """Open the catalog, making it when it is missing and starting afresh when it is damaged or of another version.

        The caller holds `state_lock`, unless it means only `to_read`: then a catalog that cannot be used is `Fatal`.
        Without `keep` (a dry run) everything works as always, and nothing of it lasts.
        """
        path = state_dir / "catalog.sqlite"
        connection = None
        try:
            try:
                connection = _connect(path, tries=1 if to_read else 2)
            except OSError as error:
                raise Fatal(f"the catalog {path} cannot be used ({error.strerror})") from None
            yield cls(connection, keep=keep)
        except sqlite3.Error as error:
            hint = "free some space, or delete it: it is rebuilt from the newest snapshot"
            raise Fatal(f"the catalog {path} cannot be used ({error})", hint) from None
        finally:
            if connection is not None:
                connection.close()

    # What it remembers by name

    def get(self, key: str) -> str:
        """Return what was remembered under `key`, "" for nothing."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else ""

    def set(self, **values: str) -> None:
        """Remember values by name; they are durable with the next `commit`."""
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def commit(self) -> None:
        """Make everything written so far durable."""
        self._flush()
        if self._keep:
            self._db.commit()

    def last_known(self, server: str, place: str) -> int:
        """Return the number of the snapshot that this machine saw published last in a store, 0 for none."""
        is_there = self.get("stored_in") == stored_in(server, place)
        return int(self.get("snapshot") or 0) if is_there else 0

    # Segments

    def put_segment(self, name: str, stored: bytes) -> None:
        """Keep a segment's stored bytes."""
        self._db.execute("INSERT OR IGNORE INTO segment VALUES (?, ?)", (name, stored))

    def segment(self, name: str) -> bytes | None:
        """Return a segment's stored bytes, None when the catalog does not have it. Its digest is a whole one's name."""
        row = self._db.execute("SELECT stored FROM segment WHERE name = ?", (name,)).fetchone()
        return bytes(row[0]) if row else None

    def sound_segment(self, name: str) -> bytes | None:
        """Return a segment's stored bytes if they are what the name says, None when the catalog does not have that."""
        stored, base = self.segment(name), b""
        if "-" in name:
            base = self.plain_segment(name.partition("-")[2])
            stored = stored if base else None
        return stored if stored is not None and plain_of(name, stored, base) else None

    def plain_segment(self, digest: str) -> bytes:
        """Return the plain text of a segment, b"" when the catalog does not have it whole and sound."""
        stored = self.segment(digest)
        return plain_of(digest, stored) if stored is not None else b""

    def segment_bytes(self, name: str) -> int:
        """Return how long a segment is as it is stored, -1 when the catalog does not have it."""
        row = self._db.execute("SELECT length(stored) FROM segment WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else -1

    # The draft

    def has_draft(self) -> bool:
        """Whether there is a draft: an index has been made, or a snapshot adopted."""
        return self.get("draft") != ""

    def draft(self) -> list[DraftSegment]:
        """Return the segments of the draft, in order."""
        self._flush()
        rows = self._db.execute(
            "SELECT position, ref, pending, bytes, "
            "EXISTS (SELECT 1 FROM overlay WHERE overlay.position = draft.position) FROM draft ORDER BY position"
        )
        return [DraftSegment(p, msgspec.json.decode(r, type=SegmentRef), n, b, bool(o)) for p, r, n, b, o in rows]

    def entries(self, segments: Iterable[DraftSegment] | None = None) -> Iterator[tuple[int, Entry]]:
        """Yield (sequence, entry) of the draft, or of some of its segments, in order, each as new as it is known."""
        for segment in self.draft() if segments is None else segments:
            entries = self._decoded(segment.ref, b"\n".join(self._lines(segment)))
            yield from enumerate(entries, segment.position << POSITION_SHIFT)

    def entries_with_lines(self, segment: DraftSegment) -> Iterator[tuple[Entry, bytes]]:
        """Yield the entries of a segment of the draft, each as new as it is known, with their lines."""
        lines = self._lines(segment)
        return zip(self._decoded(segment.ref, b"\n".join(lines)), lines, strict=True)

    def _lines(self, segment: DraftSegment) -> list[bytes]:
        lines = self._plain(segment.ref).rstrip().split(b"\n")  # the end may be respelled
        if segment.overlaid:
            for place, line in self._overlay.lines(segment.position):
                lines[place] = line
        return lines

    def read(self, ref: SegmentRef) -> list[Entry]:
        """Return the entries of a segment that the draft names. Raises `Fatal` when it is not there, or damaged."""
        return self._decoded(ref, self._plain(ref))

    def _plain(self, ref: SegmentRef) -> bytes:
        stored = self.segment(ref.digest)
        if stored is None:
            raise Fatal("the catalog has lost a segment", _REBUILD)
        try:
            return plain_segment(ref, stored)
        except SnapshotError as error:
            raise _damaged(error) from None

    def _decoded(self, ref: SegmentRef, plain: bytes) -> list[Entry]:
        try:
            return decode_lines(plain, ref.digest)
        except SnapshotError as error:
            raise _damaged(error) from None

    def overlay(self, sequence: int, entry: Entry, line: bytes = b"") -> None:
        """Say what is now known of the entry at `sequence`; durable with the next `commit`. `line` is the entry's."""
        self._overlay.add(sequence, line or encode_entry(entry))

    def adopt(self, refs: Iterable[SegmentRef], **values: str) -> None:
        """Make the segments of a published snapshot the draft, and commit. All it needs is in the catalog already."""
        self._overlay.clear()
        self.journal.clear()
        for table in ("draft", "newest"):
            self._db.execute(f"DELETE FROM {table}")
        for i, ref in enumerate(refs):
            self._db.execute("INSERT INTO draft VALUES (?, ?, 0, 0)", (i, msgspec.json.encode(ref)))
            names = ((name,) for name in (ref.digest, *ref.objects))
            self._db.executemany("INSERT OR IGNORE INTO newest VALUES (?)", names)
        self.set(draft="snapshot", **values)
        self.forget_segments()
        self.commit()

    def new_draft(self) -> DraftWriter:
        """Start a draft; the one before stays until the new one's `commit`."""
        return DraftWriter(self, self._db, self._overlay)

    def forget_segments(self) -> None:
        """Drop the segments that neither the draft nor the newest snapshot needs."""
        self._db.execute("CREATE TEMP TABLE used AS SELECT name FROM newest")
        refs = self._db.execute("SELECT ref FROM draft").fetchall()
        digests = {msgspec.json.decode(row[0], type=SegmentRef).digest for row in refs}
        self._db.executemany("INSERT INTO used VALUES (?)", ((digest,) for digest in digests))
        self._db.execute("DELETE FROM segment WHERE name NOT IN (SELECT name FROM used)")
        self._db.execute("DROP TABLE used")

    def _flush(self) -> None:
        self._overlay.flush()
        self.journal.flush()

    # Maps made elsewhere

    def set_jobs(self, rows: Iterable[tuple[int, bytes, str, bool]]) -> None:
        """Note the (root, path with NUL for each slash, GUID, is a placeholder) of a map, to have them sorted."""
        self._db.execute("DELETE FROM job")
        self._db.executemany("INSERT INTO job VALUES (?, ?, ?, ?)", rows)

    def jobs(self) -> Iterator[tuple[int, bytes, str, bool]]:
        """Yield what `set_jobs` noted, in the order of a manifest."""
        for root, path, guid, placeholder in self._db.execute("SELECT * FROM job ORDER BY root, path"):
            yield root, bytes(path), guid, bool(placeholder)


def _damaged(error: SnapshotError) -> Fatal:
    return Fatal(f"the catalog is damaged: {error.message}", _REBUILD)


def stored_in(server: str, place: str) -> str:
    """Return what is remembered of where a server's snapshots are; `place` is a store's name."""
    return f"{server} {display(os.fsencode(place))}"


class DraftWriter:
    """A draft in the making. `add` takes the entries in ascending order; nothing is seen of it until `commit`."""

    def __init__(self, catalog: Catalog, connection: sqlite3.Connection, overlay: Overlay) -> None:
        self._catalog = catalog
        self._db = connection
        self._overlay_before = overlay
        self._overlay = Overlay(connection, "next_overlay")
        self._overlay.clear()
        for table in ("next_draft", "doubt", "fresh", "gone"):
            self._db.execute(f"DELETE FROM {table}")
        self._writer = SegmentWriter(self._keep)
        self._pending = 0
        self._pending_bytes = 0
        self.entries = 0
        """How many entries have been added."""
        self._position = 0
        self._rows: dict[str, list[tuple[object, ...]]] = {"doubt": [], "fresh": [], "gone": []}

    def add(self, entry: Entry, raw_path: bytes) -> int:
        """Append an entry and return its sequence."""
        sequence = self._position << POSITION_SHIFT | self._writer.next_index
        if entry.is_pending:
            self._pending += 1
            self._pending_bytes += entry.content_size
        self.entries += 1
        self._writer.add(entry, raw_path)
        return sequence

    def doubt(self, sequence: int, entry: Entry, previous: Entry) -> None:
        """Note that the entry has the content of `previous` if its digest is the same."""
        self._note("doubt", sequence, encode_entry(entry), encode_entry(previous))

    def fresh(self, sequence: int, entry: Entry) -> None:
        """Note a file whose path is new: it may have been renamed."""
        self._note("fresh", sequence, str(entry.inode), encode_entry(entry))

    def gone(self, entry: Entry) -> None:
        """Note a file whose path is gone: it may have been renamed."""
        self._note("gone", str(entry.inode), encode_entry(entry))

    def overlay(self, sequence: int, entry: Entry) -> None:
        """Say what has become known of an entry since `add`."""
        self._overlay.add(sequence, encode_entry(entry))

    def finish(self) -> None:
        """Close the last segment; `add` is not called any more, the other methods may be."""
        self._writer.finish()
        for table in self._rows:
            self._flush(table)

    def renames(self) -> Iterator[tuple[int, Entry, Entry]]:
        """Yield (sequence, new entry, gone entry) of files with the same inode number, in order of the sequence."""
        self._flush("fresh")
        self._flush("gone")
        self._db.execute("CREATE INDEX temp.gone_inode ON gone(inode)")
        query = "SELECT sequence, fresh.line, gone.line FROM fresh JOIN gone USING (inode) ORDER BY sequence"
        for sequence, line, previous in self._db.execute(query):
            yield sequence, decode_entry(line), decode_entry(previous)
        self._db.execute("DROP INDEX temp.gone_inode")

    def doubts(self) -> Iterator[tuple[int, Entry, Entry]]:
        """Yield (sequence, entry, previous entry) of the files whose content must be read to know."""
        self._flush("doubt")
        for sequence, line, previous in self._db.execute("SELECT * FROM doubt ORDER BY sequence"):
            yield sequence, decode_entry(line), decode_entry(previous)

    def commit(self, **values: str) -> None:
        """Make this the draft, remember `values`, all at once."""
        self.finish()
        self._db.execute("DELETE FROM draft")
        self._db.execute("INSERT INTO draft SELECT * FROM next_draft")
        self._overlay_before.take_over(self._overlay)
        self._catalog.set(draft="index", **values)
        self._catalog.forget_segments()
        self._catalog.commit()

    def _keep(self, ref: SegmentRef, stored: bytes) -> None:
        self._catalog.put_segment(ref.digest, stored)
        row = (self._position, msgspec.json.encode(ref), self._pending, self._pending_bytes)
        self._db.execute("INSERT INTO next_draft VALUES (?, ?, ?, ?)", row)
        self._position += 1
        self._pending = self._pending_bytes = 0

    def _note(self, table: str, *row: object) -> None:
        rows = self._rows[table]
        rows.append(row)
        if len(rows) >= FLUSH_ROWS:
            self._flush(table)

    def _flush(self, table: str) -> None:
        rows, self._rows[table] = self._rows[table], []
        if rows:
            marks = ", ".join("?" * len(rows[0]))
            self._db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)


def _connect(path: Path, *, tries: int) -> sqlite3.Connection:
    """Open the file; before another try, one that is damaged or of another version is set aside."""
    for left in reversed(range(tries)):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, check_same_thread=True)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA temp_store = FILE")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                connection.executescript(
                    f"BEGIN; {_SCHEMA}{overlay.SCHEMA}{journal.SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                )
            elif version != SCHEMA_VERSION:
                raise sqlite3.DatabaseError(f"schema version {version}")
            else:
                connection.execute("SELECT count(*) FROM meta")
            connection.executescript(_TEMPORARY + overlay.TEMPORARY + journal.TEMPORARY)
        except sqlite3.OperationalError:
            connection.close()
            raise
        except sqlite3.DatabaseError:
            connection.close()
            if not left:
                raise
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{path}{suffix}", f"{path}.damaged{suffix}")
        else:
            return connection
    raise sqlite3.DatabaseError("it cannot be made anew")
