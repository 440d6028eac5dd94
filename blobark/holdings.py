"""`Holdings`: all that a server has in the store, in a temporary SQLite database: what a prune judges by."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator

from blobark.scratch import opened

KEPT = -1
SEVERAL = 0


class Holdings:
    """All that a server has in the store, and what snapshots and trash lists say of it: what a prune judges by.

    A name is `KEPT` where a snapshot that stays has it; else it has the number of the one snapshot that does, or
    `SEVERAL`. Times are ns by the store's clock. Segments and lists of blocks are judged one by one, content by its
    run: the blobs whose keys have the first `group_length` characters in common.
    """

    def __init__(self, connection: sqlite3.Connection, group_length: int) -> None:
        self._db = connection
        self._group = f"CASE WHEN key LIKE 'blobark/%' THEN key ELSE substr(key, 1, {group_length}) END"

    @classmethod
    @contextlib.contextmanager
    def open(cls, group_length: int) -> Iterator[Holdings]:
        """Open an empty one."""
        schema = """
        CREATE TABLE there(key TEXT PRIMARY KEY, size INTEGER, modified_ns INTEGER) WITHOUT ROWID;
        CREATE TABLE named(key TEXT PRIMARY KEY, who INTEGER) WITHOUT ROWID;
        CREATE TABLE listed(key TEXT PRIMARY KEY, newest_ns INTEGER) WITHOUT ROWID;
        CREATE TABLE run(name TEXT PRIMARY KEY, newest_ns INTEGER) WITHOUT ROWID;
        CREATE TABLE cited(
            blob TEXT, place INTEGER, length INTEGER, room INTEGER, newest INTEGER, PRIMARY KEY (blob, place, length)
        ) WITHOUT ROWID;
        CREATE VIEW state AS SELECT there.key, size, modified_ns, who, newest_ns AS listed_ns
            FROM there LEFT JOIN named USING (key) LEFT JOIN listed USING (key);
        """
        with opened(schema) as connection:
            yield cls(connection, group_length)

    def add_blobs(self, rows: Iterable[tuple[str, int, int]]) -> None:
        """Note (key, size, modified_ns) of blobs in the store."""
        self._db.executemany("INSERT OR REPLACE INTO there VALUES (?, ?, ?)", rows)

    def add_names(self, rows: Iterable[tuple[str, int]]) -> None:
        """Note (key, who) of what snapshots name."""
        query = f"""
        INSERT INTO named VALUES (?, ?) ON CONFLICT DO UPDATE SET who = CASE
            WHEN who = excluded.who THEN who
            WHEN who = {KEPT} OR excluded.who = {KEPT} THEN {KEPT} ELSE {SEVERAL} END
        """
        self._db.executemany(query, rows)

    def add_listed(self, keys: Iterable[str], published_ns: int) -> None:
        """Note the keys of a trash list."""
        query = """
        INSERT INTO listed VALUES (?1, ?2) ON CONFLICT DO UPDATE SET newest_ns = max(newest_ns, excluded.newest_ns)
        """
        self._db.executemany(query, ((key, published_ns) for key in keys))

    def add_cited(self, rows: Iterable[tuple[str, int, int, int, bool]]) -> None:
        """Note (blob, offset, length, room, by the newest snapshot) of parts that snapshots that stay name."""
        query = """
        INSERT INTO cited VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET newest = max(newest, excluded.newest)
        """
        self._db.executemany(query, rows)

    def mostly_dead(self, least_bytes: int) -> Iterator[tuple[str, int, int]]:
        """Yield (key, size, bytes that the newest snapshot needs) of blobs less than half of which any snapshot needs.

        Only those that the newest one needs a part of; first those that free most for what has to be moved.
        """
        query = """
        SELECT blob, size, total(room * newest) AS needed FROM cited JOIN there ON key = blob
        WHERE size >= ? GROUP BY blob HAVING needed > 0 AND total(room) * 2 < size ORDER BY needed / size, blob
        """
        yield from ((key, int(size), int(needed)) for key, size, needed in self._db.execute(query, (least_bytes,)))

    def settle_runs(self) -> None:
        """Find out when each run stored last; to be called when all blobs have been added."""
        self._db.execute(f"INSERT INTO run SELECT {self._group}, max(modified_ns) FROM there GROUP BY 1")

    def freed(self) -> dict[int, tuple[int, int]]:
        """Return how many blobs, and bytes, go with each snapshot that goes; under `SEVERAL` those of more than one."""
        query = f"SELECT who, count(*), total(size) FROM state WHERE who != {KEPT} GROUP BY who"
        return {int(who): (int(count), int(size)) for who, count, size in self._db.execute(query)}

    def named_away(self) -> Iterator[str]:
        """Yield the keys of what only snapshots that go name."""
        yield from (key for (key,) in self._db.execute(f"SELECT key FROM state WHERE who != {KEPT} ORDER BY key"))

    def orphans(self, before_ns: int) -> Iterator[str]:
        """Yield the keys of what nothing names, on no list, of runs that have stored nothing since `before_ns`."""
        yield from (key for (key,) in self._db.execute(f"SELECT key {self._orphans('<=')} ORDER BY key", (before_ns,)))

    def count_orphans(self, before_ns: int, *, young: bool) -> tuple[int, int]:
        """Return how many orphans there are, and their bytes; with `young` those of runs that went on later."""
        query = f"SELECT count(*), total(size) {self._orphans('>' if young else '<=')}"
        count, size = self._db.execute(query, (before_ns,)).fetchone()
        return int(count), int(size)

    def _orphans(self, compared: str) -> str:
        unnamed = "who IS NULL AND listed_ns IS NULL"
        return f"FROM state JOIN run ON name = {self._group} WHERE {unnamed} AND newest_ns {compared} ?"

    def count_ripe(self, before_ns: int) -> tuple[int, int]:
        """Return how many blobs `ripe` would give in all, and their bytes."""
        count, size = self._db.execute(f"SELECT count(*), total(size) {_RIPE}", (before_ns,)).fetchone()
        return int(count), int(size)

    def count_waiting(self, before_ns: int) -> tuple[int, int]:
        """Return how many blobs are on younger lists and nothing names them, and their bytes."""
        query = "SELECT count(*), total(size) FROM state WHERE who IS NULL AND listed_ns > ?"
        count, size = self._db.execute(query, (before_ns,)).fetchone()
        return int(count), int(size)

    def ripe(self, before_ns: int, after: str, count: int) -> list[tuple[str, int]]:
        """Return (key, size) of blobs that nothing names, whose lists are all from `before_ns` or before; in order.

        What was written after it was listed is another blob, and not meant.
        """
        query = f"SELECT key, size {_RIPE} AND key > ? ORDER BY key LIMIT {count}"
        return list(self._db.execute(query, (before_ns, after)))

    def forget(self, keys: Iterable[str]) -> None:
        """Forget blobs, which have been deleted."""
        self._db.executemany("DELETE FROM there WHERE key = ?", ((key,) for key in keys))


_RIPE = "FROM state WHERE who IS NULL AND listed_ns <= ? AND modified_ns <= listed_ns"
