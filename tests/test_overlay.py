"""The overlay of a draft: of each entry the newest line counts, whenever and in whatever company it came."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator

import pytest

from blobark import overlay
from blobark.errors import Fatal
from blobark.overlay import FLUSH_ROWS, POSITION_SHIFT, Overlay


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    connection.executescript(overlay.SCHEMA + overlay.TEMPORARY)
    yield connection
    connection.close()


def held(table: Overlay, positions: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for position in range(positions):
        found |= {position << POSITION_SHIFT | place: line for place, line in table.lines(position)}
    return found


def test_the_newest_line_of_each_entry_counts(connection: sqlite3.Connection) -> None:
    dice, table = random.Random(3), Overlay(connection, "overlay")
    expected: dict[int, bytes] = {}
    for number in range(5 * FLUSH_ROWS):
        sequence = dice.randrange(4) << POSITION_SHIFT | dice.randrange(2000)
        expected[sequence] = b'{"path":"a b","size":%d}' % number
        table.add(sequence, expected[sequence])
    assert held(table, 4) == expected
    assert list(table.lines(4)) == []


def test_what_comes_in_a_row_is_few_rows(connection: sqlite3.Connection) -> None:
    table = Overlay(connection, "overlay")
    for place in range(3 * FLUSH_ROWS):
        table.add(place, b"{}")
    table.flush()
    assert connection.execute("SELECT count(*) FROM overlay").fetchone() == (3,)


def test_one_table_takes_over_what_another_has(connection: sqlite3.Connection) -> None:
    before, after = Overlay(connection, "overlay"), Overlay(connection, "next_overlay")
    before.add(1, b"old")
    before.flush()
    before.add(2, b"not written yet")
    for line in (b"first", b"second"):
        after.add(1 << POSITION_SHIFT, line)
        after.flush()
    before.take_over(after)
    assert held(before, 2) == {1 << POSITION_SHIFT: b"second"}
    before.clear()
    assert held(before, 2) == {}


@pytest.mark.parametrize("damage", ["lines = x'28b52ffd0000'", "lines = x''", "position = 1"])
def test_a_damaged_row_is_not_passed_over(connection: sqlite3.Connection, damage: str) -> None:
    table = Overlay(connection, "overlay")
    table.add(7, b"{}")
    table.flush()
    connection.execute(f"UPDATE overlay SET {damage}")
    with pytest.raises(Fatal, match="the catalog is damaged"):
        [list(table.lines(position)) for position in (0, 1)]
