"""The overlay of a draft: lines that are newer than the ones in its segments. A part of the catalog's file.

Lines come in the order of the tree or nearly so: what comes in a row for the same segment is one row of the table, as a
zstd frame of lines, each after its sequence and a space, so that the frame's checksum covers where it belongs.
A row for each line would cost three times as much to write, to read and to delete, which were a tenth of a save's
seconds (docs/measurements.md). Later rows count.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from blobark.codec import decode_all, encode
from blobark.errors import Fatal
from blobark.segments import CUT_BYTES, MAX_PLAIN_BYTES

SCHEMA = """
CREATE TABLE overlay(id INTEGER PRIMARY KEY, position INTEGER NOT NULL, lines BLOB NOT NULL);
CREATE INDEX overlay_position ON overlay(position);
"""

TEMPORARY = """
CREATE TEMP TABLE next_overlay(id INTEGER PRIMARY KEY, position INTEGER, lines BLOB);
"""

POSITION_SHIFT = 20
"""Of a sequence: `position of its segment << 20 | place within it`."""

FLUSH_ROWS = 1000
_PLACE_MASK = (1 << POSITION_SHIFT) - 1
_LEVEL = 1


class Overlay:
    """One table of the overlay. For one thread; every method may raise `Fatal` when the disk fails."""

    def __init__(self, connection: sqlite3.Connection, table: str) -> None:
        self._db = connection
        self._table = table
        self._waiting: list[tuple[int, bytes]] = []
        self._bytes = 0

    def add(self, sequence: int, line: bytes) -> None:
        """Let a line be the newest of its entry."""
        self._waiting.append((sequence, line))
        self._bytes += len(line)
        if len(self._waiting) >= FLUSH_ROWS or self._bytes >= CUT_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits; it is durable with the catalog's next commit."""
        if not self._waiting:
            return
        by_position: dict[int, list[bytes]] = {}
        for sequence, line in self._waiting:
            text = b"%d %b" % (sequence, line)
            by_position.setdefault(sequence >> POSITION_SHIFT, []).append(text)
        self._waiting, self._bytes = [], 0
        rows = ((position, encode(b"\n".join(lines), _LEVEL)) for position, lines in by_position.items())
        self._db.executemany(f"INSERT INTO {self._table}(position, lines) VALUES (?, ?)", rows)

    def lines(self, position: int) -> Iterator[tuple[int, bytes]]:
        """Yield (place, line) of the segment at `position`, the newest of each place last."""
        self.flush()
        query = f"SELECT lines FROM {self._table} WHERE position = ? ORDER BY id"
        for (stored,) in self._db.execute(query, (position,)):
            plain = decode_all(stored, MAX_PLAIN_BYTES)
            for text in plain.split(b"\n"):
                sequence, _, line = text.partition(b" ")
                if not line or int(sequence) >> POSITION_SHIFT != position:
                    raise Fatal("the catalog is damaged", "delete state_dir: it is rebuilt from the newest snapshot")
                yield int(sequence) & _PLACE_MASK, line

    def clear(self) -> None:
        """Forget all lines."""
        self._waiting, self._bytes = [], 0
        self._db.execute(f"DELETE FROM {self._table}")

    def take_over(self, other: Overlay) -> None:
        """Have the lines of another table and no others."""
        self.clear()
        other.flush()
        query = f"INSERT INTO {self._table}(position, lines) SELECT position, lines FROM {other._table} ORDER BY id"
        self._db.execute(query)
