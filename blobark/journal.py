"""The journal of a save: what it has done, and what is not known of it yet. A part of the catalog's file.

    claimed  content that is thought to be in the store, and has not been seen there
    sent     blobs that have been sent and not been audited (audit.py)
    pack     packs that were begun and whose end is not known (packing.py)
    damaged  blobs that are damaged in the store and could not be mended (repair.py): nothing is taken over from them

What is durable of it lasts from the draft's first save to the snapshot, and `damaged` until the next repair. All is
durable with `Catalog.commit`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from blobark.model import Entry
from blobark.segments import decode_entry, encode_entry

FLUSH_ROWS = 1000

SCHEMA = """
CREATE TABLE sent(guid BLOB PRIMARY KEY, size INTEGER NOT NULL, md5 BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE pack(guid TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE damaged(blob TEXT PRIMARY KEY) WITHOUT ROWID;
"""

TEMPORARY = """
CREATE TEMP TABLE claimed(
    blob TEXT, sequence INTEGER, size INTEGER, whole INTEGER, PRIMARY KEY (blob, sequence)
) WITHOUT ROWID;
CREATE TEMP TABLE faulty(guid BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TEMP TABLE adopted(guid TEXT PRIMARY KEY, line BLOB) WITHOUT ROWID;
"""


class Journal:
    """The journal in one catalog. For one thread; every method may raise `Fatal` when the disk fails."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._sent_rows: list[tuple[bytes, int, bytes]] = []

    def flush(self) -> None:
        """Let everything noted be part of the next `commit`."""
        rows, self._sent_rows = self._sent_rows, []
        if rows:
            self._db.executemany("INSERT OR REPLACE INTO sent VALUES (?, ?, ?)", rows)

    def clear(self) -> None:
        """Forget it all: the snapshot is published."""
        self._sent_rows.clear()
        self._db.execute("DELETE FROM sent")
        self._db.execute("DELETE FROM pack")

    # Content that a save means to carry over and has not yet seen in the store

    def claim(self, rows: Iterable[tuple[str, int, int, bool]]) -> None:
        """Note (blob, sequence, stored size, is that all of the blob) of content that is thought to be in the store."""
        self._db.executemany("INSERT OR IGNORE INTO claimed VALUES (?, ?, ?, ?)", rows)

    def claimed_prefixes(self, length: int) -> list[str]:
        """Return the distinct beginnings, of `length` characters, of the claimed blobs' keys."""
        return [row[0] for row in self._db.execute("SELECT DISTINCT substr(blob, 1, ?) FROM claimed", (length,))]

    def found(self, rows: Iterable[tuple[str, int]]) -> None:
        """Strike (blob, stored size) pairs, which were seen in the store, from the claims."""
        query = "DELETE FROM claimed WHERE blob = ?1 AND (size = ?2 OR (whole = 0 AND size < ?2))"
        self._db.executemany(query, rows)

    def unfound(self) -> frozenset[int]:
        """Return the sequences of the claims that were not all struck, and forget them."""
        missing = frozenset(row[0] for row in self._db.execute("SELECT DISTINCT sequence FROM claimed"))
        self._db.execute("DELETE FROM claimed")
        return missing

    # Content that was sent and has not been audited. A GUID is its 16 bytes, an MD5 too, or b"" where there is none

    def note_sent(self, guid: bytes, size_bytes: int, md5: bytes) -> None:
        """Note what was read of content that has been sent; durable with the next `commit`, gone with `adopt`."""
        self._sent_rows.append((guid, size_bytes, md5))

    def sent_tags(self) -> dict[str, int]:
        """Return the beginnings (eight digits) of the GUIDs that were noted, and how many have each."""
        self.flush()
        return dict(self._db.execute("SELECT lower(hex(substr(guid, 1, 4))), count(*) FROM sent GROUP BY 1 ORDER BY 1"))

    def strike_sent(self, rows: Iterable[tuple[bytes, int, bytes]]) -> int:
        """Forget (GUID, stored size, MD5) that were seen in the store as they were noted; return how many were."""
        self.flush()
        seen = set(rows)
        if not seen:
            return 0
        ends = min(seen)[0], max(seen)[0]
        if seen.issuperset(self._db.execute("SELECT guid, size, md5 FROM sent WHERE guid BETWEEN ? AND ?", ends)):
            return self._db.execute("DELETE FROM sent WHERE guid BETWEEN ? AND ?", ends).rowcount
        query = "DELETE FROM sent WHERE guid = ? AND size = ? AND md5 IN (?, x'')"
        return self._db.executemany(query, seen).rowcount

    def set_faulty_sent(self) -> None:
        """Take what has been noted and not struck by now for faulty."""
        self.flush()
        self._db.execute("DELETE FROM faulty")
        self._db.execute("INSERT INTO faulty SELECT guid FROM sent")

    def is_faulty_sent(self, guid: bytes) -> bool:
        """Whether a GUID is one of the faulty."""
        return self._db.execute("SELECT 1 FROM faulty WHERE guid = ?", (guid,)).fetchone() is not None

    def forget_faulty_sent(self) -> None:
        """Forget the faulty; durable with the next `commit`."""
        self.flush()
        self._db.execute("DELETE FROM sent WHERE guid IN (SELECT guid FROM faulty)")

    # Blobs that are damaged in the store and could not be mended

    def set_damaged(self, blobs: Iterable[str]) -> None:
        """Note these blobs as damaged, and no others; durable with the next `commit`."""
        self._db.execute("DELETE FROM damaged")
        self._db.executemany("INSERT INTO damaged VALUES (?)", ((blob,) for blob in blobs))

    def has_damaged(self) -> bool:
        """Whether any blob is noted as damaged."""
        return self._db.execute("SELECT 1 FROM damaged LIMIT 1").fetchone() is not None

    def are_damaged(self, blobs: Iterable[str]) -> bool:
        """Whether any of some blobs is noted as damaged."""
        query = "SELECT 1 FROM damaged WHERE blob = ?"
        return any(self._db.execute(query, (blob,)).fetchone() is not None for blob in blobs)

    # Packs that were begun, and what has been found in those of a run that was killed, by the GUIDs of its entries

    def begin_pack(self, guid: str) -> None:
        """Note that a pack is about to be sent, which must be durable before it is."""
        self._db.execute("INSERT INTO pack VALUES (?)", (guid,))

    def end_pack(self, guid: str) -> None:
        """Forget a pack, what became of whose files is known; durable with the next `commit`."""
        self._db.execute("DELETE FROM pack WHERE guid = ?", (guid,))

    def begun_packs(self) -> list[str]:
        """Return the GUIDs of the packs that were begun and not ended."""
        return [row[0] for row in self._db.execute("SELECT guid FROM pack ORDER BY guid")]

    def note_adopted(self, entries: Iterable[Entry]) -> None:
        """Note entries whose content has been found in a pack."""
        rows = ((entry.guid, encode_entry(entry)) for entry in entries)
        self._db.executemany("INSERT OR IGNORE INTO adopted VALUES (?, ?)", rows)

    def adopted(self, guid: str) -> Entry | None:
        """Return the entry with this GUID whose content has been found in a pack, None where there is none."""
        row = self._db.execute("SELECT line FROM adopted WHERE guid = ?", (guid,)).fetchone()
        return decode_entry(row[0]) if row else None
