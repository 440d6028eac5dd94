"""Scratch: what one run has to sort or to look up and must not hold in memory. Nothing of it outlasts the run.

Each class is one SQLite database in a temporary file that has no name (below TMPDIR), which is gone when it is closed.
The disk needed is about 900 bytes an item. For one thread. Every method may raise `Fatal` when the disk fails.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator

from blobark.errors import Fatal

FLUSH_ROWS = 1000


@contextlib.contextmanager
def opened(schema: str) -> Iterator[sqlite3.Connection]:
    """Open a database with these tables, in a file that is gone when it is closed."""
    connection = None
    try:
        connection = sqlite3.connect("", isolation_level=None)
        connection.execute("PRAGMA temp_store = FILE")
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -16384")
        connection.executescript(schema)
        connection.execute("BEGIN")  # one that never ends: there is nothing to come back to
        yield connection
    except sqlite3.Error as error:
        raise Fatal(f"a temporary file cannot be used ({error})", "make room in TMPDIR, or set it elsewhere") from None
    finally:
        if connection is not None:
            connection.close()


class Waiting:
    """Blobs of the archive tier, and the jobs of a restore that wait for them."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator[Waiting]:
        """Open an empty one."""
        schema = """
        CREATE TABLE blob(
            key TEXT PRIMARY KEY, size INTEGER, coming INTEGER, listed INTEGER DEFAULT 1, wanted INTEGER
        ) WITHOUT ROWID;
        CREATE INDEX blob_wanted ON blob(coming, wanted) WHERE wanted IS NOT NULL;
        CREATE TABLE job(number INTEGER PRIMARY KEY, path BLOB UNIQUE, job BLOB, size INTEGER);
        CREATE TABLE need(blob TEXT, job INTEGER, PRIMARY KEY (blob, job)) WITHOUT ROWID;
        CREATE INDEX need_job ON need(job);
        """
        with opened(schema) as connection:
            yield cls(connection)

    def add_blobs(self, rows: Iterable[tuple[str, int, bool]]) -> int:
        """Note (key, size, is on its way back) of archived blobs; return how many there are."""
        self._db.executemany("INSERT OR IGNORE INTO blob(key, size, coming) VALUES (?, ?, ?)", rows)
        return int(self._db.execute("SELECT count(*) FROM blob").fetchone()[0])

    def archived(self, keys: Iterable[str]) -> list[str]:
        """Return those of some keys that are archived blobs'."""
        found = self._db.execute
        return [key for key in keys if found("SELECT 1 FROM blob WHERE key = ?", (key,)).fetchone()]

    def add_job(self, path: bytes, job: bytes, size_bytes: int, keys: list[str]) -> None:
        """Let a job, as bytes, wait for archived blobs."""
        inserted = self._db.execute("INSERT INTO job(path, job, size) VALUES (?, ?, ?)", (path, job, size_bytes))
        number = inserted.lastrowid
        self._db.executemany("INSERT OR IGNORE INTO need VALUES (?, ?)", ((key, number) for key in keys))
        rows = ((number, key) for key in keys)
        self._db.executemany("UPDATE blob SET wanted = ? WHERE key = ? AND wanted IS NULL", rows)

    def has_job(self, path: bytes) -> bool:
        """Whether the job of this path waits."""
        return self._db.execute("SELECT 1 FROM job WHERE path = ?", (path,)).fetchone() is not None

    def jobs(self) -> tuple[int, int]:
        """Return how many jobs wait, and their bytes."""
        count, size = self._db.execute("SELECT count(*), total(size) FROM job").fetchone()
        return int(count), int(size)

    def coming(self) -> int:
        """Return how many of the blobs that jobs wait for are on their way."""
        query = "SELECT count(*) FROM blob WHERE coming = 1 AND wanted IS NOT NULL"
        return int(self._db.execute(query).fetchone()[0])

    def not_coming(self) -> int:
        """Return how many of the blobs that jobs wait for are not on their way."""
        query = "SELECT count(*) FROM blob WHERE coming = 0 AND wanted IS NOT NULL"
        return int(self._db.execute(query).fetchone()[0])

    def next_to_ask(self, count: int) -> list[str]:
        """Return the keys of up to `count` blobs that jobs wait for and that are not on their way; now they are."""
        query = "SELECT key FROM blob WHERE coming = 0 AND wanted IS NOT NULL ORDER BY wanted LIMIT ?"
        keys = [str(row[0]) for row in self._db.execute(query, (count,))]
        self._db.executemany("UPDATE blob SET coming = 1 WHERE key = ?", ((key,) for key in keys))
        return keys

    def refresh(self, rows: Iterable[tuple[str, bool]]) -> None:
        """Take (key, is on its way) of all blobs that are archived still: jobs wait no longer for the others."""
        self._db.execute("UPDATE blob SET listed = 0")
        swapped = ((coming, key) for key, coming in rows)
        self._db.executemany("UPDATE blob SET listed = 1, coming = ? WHERE key = ?", swapped)
        self._db.execute("DELETE FROM need WHERE blob IN (SELECT key FROM blob WHERE listed = 0)")
        self._db.execute("DELETE FROM blob WHERE listed = 0")

    def take_ready(self) -> Iterator[bytes]:
        """Yield, and forget, the jobs that wait for nothing any more, in the order they were added."""
        query = (
            "SELECT number, job FROM job WHERE number > ? AND NOT EXISTS "
            f"(SELECT 1 FROM need WHERE need.job = job.number) ORDER BY number LIMIT {FLUSH_ROWS}"
        )
        last = 0
        while rows := self._db.execute(query, (last,)).fetchall():
            last = rows[-1][0]
            self._db.executemany("DELETE FROM job WHERE number = ?", ((number,) for number, _ in rows))
            yield from (bytes(job) for _, job in rows)


class Rescued:
    """Entries by their absolute paths, in which a byte 0 stands for each slash: so their order is a manifest's.

    What was `found` may have several versions of a path, and files where directories must be; each path is `placed`
    once.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._rows: list[tuple[bytes, int, int, str, bytes]] = []

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator[Rescued]:
        """Open an empty one."""
        schema = """
        CREATE TABLE found(path BLOB, ctime_ns INTEGER, created_ns INTEGER, guid TEXT, line BLOB);
        CREATE TABLE placed(path BLOB PRIMARY KEY, line BLOB) WITHOUT ROWID;
        CREATE TABLE older(path BLOB, guid TEXT, line BLOB);
        CREATE TABLE blob(key TEXT PRIMARY KEY, size INTEGER) WITHOUT ROWID;
        CREATE TABLE citing(path BLOB, ctime_ns INTEGER, created_ns INTEGER, guid TEXT, line BLOB);
        CREATE TABLE lost(key TEXT PRIMARY KEY, size INTEGER, created_ns INTEGER) WITHOUT ROWID;
        """
        with opened(schema) as connection:
            yield cls(connection)

    def add(self, path: bytes, ctime_ns: int, created_ns: int, guid: str, line: bytes) -> None:
        """Note a version that was found, with what tells which is the newest."""
        self._rows.append((path, ctime_ns, created_ns, guid, line))
        if len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Let everything added be found."""
        rows, self._rows = self._rows, []
        self._db.executemany("INSERT INTO found VALUES (?, ?, ?, ?, ?)", rows)

    def add_blob(self, key: str, size_bytes: int) -> None:
        """Note that there is a blob."""
        self._db.execute("INSERT OR IGNORE INTO blob VALUES (?, ?)", (key, size_bytes))

    def size_of(self, key: str) -> int | None:
        """Return the size in bytes of a blob that was noted, None where none was."""
        row = self._db.execute("SELECT size FROM blob WHERE key = ?", (key,)).fetchone()
        return None if row is None else int(row[0])

    def add_citing(self, path: bytes, ctime_ns: int, created_ns: int, guid: str, line: bytes) -> None:
        """Note a version that needs other blobs: `citing` tells it when all blobs are noted."""
        self._db.execute("INSERT INTO citing VALUES (?, ?, ?, ?, ?)", (path, ctime_ns, created_ns, guid, line))

    def citing(self) -> Iterator[tuple[bytes, int, int, str, bytes]]:
        """Yield (path, ctime_ns, created_ns, GUID, line) of the versions that need other blobs."""
        yield from self._db.execute("SELECT path, ctime_ns, created_ns, guid, line FROM citing ORDER BY path, guid")

    def add_lost(self, key: str, size_bytes: int, created_ns: int) -> None:
        """Note a blob that is no file by itself."""
        self._db.execute("INSERT INTO lost VALUES (?, ?, ?)", (key, size_bytes, created_ns))

    def lost(self) -> Iterator[tuple[str, int, int]]:
        """Yield (key, size, created_ns) of the blobs that are no file by themselves."""
        yield from self._db.execute("SELECT key, size, created_ns FROM lost ORDER BY key")

    def versions(self) -> Iterator[tuple[bytes, str, bytes]]:
        """Yield (path, GUID, line) of what was found, in order, of each path the newest first."""
        self.flush()
        self._db.execute("CREATE INDEX found_path ON found(path, ctime_ns DESC, created_ns DESC, guid DESC)")
        query = "SELECT path, guid, line FROM found ORDER BY path, ctime_ns DESC, created_ns DESC, guid DESC"
        yield from self._db.execute(query)

    def has_found_below(self, path: bytes) -> bool:
        """Whether anything was found below a path; once `versions` has begun."""
        return self._has_below("found", path)

    def place(self, path: bytes, line: bytes) -> bool:
        """Give a path to an entry, unless it is taken, or something placed lies below it; say whether."""
        if self._has_below("placed", path):
            return False
        return self._db.execute("INSERT OR IGNORE INTO placed VALUES (?, ?)", (path, line)).rowcount == 1

    def place_directory(self, path: bytes, line: bytes) -> None:
        """Give a path to the entry of a directory, whatever lies below it."""
        self._db.execute("INSERT INTO placed VALUES (?, ?)", (path, line))

    def put_off(self, path: bytes, guid: str, line: bytes) -> None:
        """Note a version that cannot have its path."""
        self._db.execute("INSERT INTO older VALUES (?, ?, ?)", (path, guid, line))

    def older(self) -> Iterator[tuple[bytes, str, bytes]]:
        """Yield (path, GUID, line) of what was put off."""
        yield from self._db.execute("SELECT path, guid, line FROM older ORDER BY path, guid")

    def placed(self, root: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (path, line) of what was placed below a root, in order."""
        query = "SELECT path, line FROM placed WHERE path > ? AND path < ? ORDER BY path"
        yield from self._db.execute(query, (root + b"\0", root + b"\1"))

    def _has_below(self, table: str, path: bytes) -> bool:
        query = f"SELECT 1 FROM {table} WHERE path > ? AND path < ? LIMIT 1"
        return self._db.execute(query, (path + b"\0", path + b"\1")).fetchone() is not None


class Landing:
    """Entries by the paths they land at, in which a byte 0 stands for each slash; each path once."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator[Landing]:
        """Open an empty one."""
        schema = "CREATE TABLE placed(path BLOB PRIMARY KEY, is_dir INTEGER, origin BLOB, line BLOB) WITHOUT ROWID"
        with opened(schema) as connection:
            yield cls(connection)

    def place(self, path: bytes, origin: bytes, line: bytes, *, is_dir: bool) -> bytes:
        """Give a path to an entry that was at `origin`; return the origin of what is in its way, b"" for nothing.

        Two directories may land at one path: the first gives it its metadata.
        """
        row = (path, is_dir, origin, line)
        if self._db.execute("INSERT OR IGNORE INTO placed VALUES (?, ?, ?, ?)", row).rowcount == 1:
            return b""
        found = self._db.execute("SELECT is_dir, origin FROM placed WHERE path = ?", (path,)).fetchone()
        return b"" if is_dir and found[0] else bytes(found[1])

    def placed(self) -> Iterator[bytes]:
        """Yield the lines of all entries, in the order of a manifest."""
        for (line,) in self._db.execute("SELECT line FROM placed ORDER BY path"):
            yield bytes(line)


class Listed:
    """Keys on trash lists, each with the round in which its list was read."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator[Listed]:
        """Open an empty one."""
        with opened("CREATE TABLE listed(key TEXT PRIMARY KEY, round INTEGER NOT NULL) WITHOUT ROWID;") as connection:
            yield cls(connection)

    def add(self, keys: Iterable[str], number: int) -> None:
        """Note the keys of a list that was read in round `number`."""
        query = "INSERT INTO listed VALUES (?, ?) ON CONFLICT DO UPDATE SET round = excluded.round"
        self._db.executemany(query, ((key, number) for key in keys))

    def has(self, key: str, since: int) -> bool:
        """Whether a key is on a list that was read in round `since` or later."""
        query = "SELECT 1 FROM listed WHERE key = ? AND round >= ?"
        return self._db.execute(query, (key, since)).fetchone() is not None


class Differences:
    """How two snapshots differ, in the order of the paths: lines with a mark, in which - is gone and + is new."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator[Differences]:
        """Open an empty one."""
        with opened(
            "CREATE TABLE difference(number INTEGER PRIMARY KEY, mark TEXT, guid TEXT, links TEXT, line BLOB);"
            "CREATE TABLE renamed(gone INTEGER PRIMARY KEY, new INTEGER UNIQUE);"
        ) as connection:
            yield cls(connection)

    def add(self, mark: str, guid: str, links: str, line: bytes) -> None:
        """Add the next line, with the GUID of what is gone or new, and what tells its hard-link group; "" for none."""
        row = (mark, guid, links, line)
        self._db.execute("INSERT INTO difference(mark, guid, links, line) VALUES (?, ?, ?, ?)", row)

    def paired(self) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield each line, and with a new one what is gone and was renamed to it; that does not come by itself.

        It has the same GUID or, where one of the two has none, the same group.
        """
        self._pair("guid")
        self._pair("links")
        yield from self._db.execute(
            "SELECT each.line, before.line FROM difference each "
            "LEFT JOIN renamed ON renamed.new = each.number "
            "LEFT JOIN difference before ON before.number = renamed.gone "
            "WHERE each.number NOT IN (SELECT gone FROM renamed) ORDER BY each.number"
        )

    def _pair(self, column: str) -> None:
        """Pair what is gone with what is new that has the same in a column, in order, each line once."""
        ranked = (
            f"SELECT number, guid, {column} AS key, row_number() OVER (PARTITION BY {column} ORDER BY number) AS rank "
            f"FROM difference WHERE mark = '{{}}' AND {column} != '' AND number NOT IN (SELECT {{}} FROM renamed)"
        )
        gone, new = ranked.format("-", "gone"), ranked.format("+", "new")
        self._db.execute(
            f"INSERT INTO renamed SELECT gone.number, new.number FROM ({gone}) gone JOIN ({new}) new USING (key, rank) "
            "WHERE gone.guid = new.guid OR '' IN (gone.guid, new.guid)"
        )
