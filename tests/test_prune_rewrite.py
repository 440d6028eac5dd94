"""Blobs that are mostly dead: a prune names them, the next save stores anew what lives, and then they go."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.manifests import content_keys
from tests.pruned import Machine, age, check_restores, named, numbers, path_of, unnamed
from tests.trees import write
from tools.compare import Facts, facts_of

FILES = 400
FILE_BYTES = 8000
ALIVE = FILES // 4

Trees = dict[int, dict[bytes, Facts]]


def backup(machine: Machine, trees: Trees) -> dict[str, Any]:
    saved: dict[str, Any] = machine.run("backup").result["save"]
    trees[saved["snapshot"]] = facts_of(str(machine.source))
    return saved


def with_a_dying_pack(folder: Path, **settings: Any) -> tuple[Machine, Trees, str]:
    """A machine with two snapshots; the first one's pack is three quarters dead in the second."""
    machine = Machine(folder / "work", folder / "source", keep={"last": 1}, pack_below="64KiB", **settings)
    dice = Random(5)
    for number in range(FILES):
        write(machine.source / f"file-{number:03}", dice.randbytes(FILE_BYTES // 2) + b"text" * (FILE_BYTES // 8))
    trees: Trees = {}
    backup(machine, trees)
    (pack,) = content_keys(machine.store)
    for number in range(ALIVE, FILES):
        write(machine.source / f"file-{number:03}", f"another content of {number}")
    shutil.copy(machine.source / "file-000", machine.source / "twin")
    backup(machine, trees)
    return machine, trees, pack


@pytest.mark.parametrize("settings", [{}, {"dedupe": True}, {"compression": "zstd"}, {"pack_below": "0"}])
def test_the_next_save_leaves_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    later = settings.pop("pack_below", "64KiB")  # as it is set when what lives is stored anew
    machine, trees, pack = with_a_dying_pack(tmp_path, **settings)
    machine.configure(pack_below=later)
    age(machine.store, 8)
    asked = machine.run("prune", "--yes").result["rewrite"]
    assert asked["blobs"] == 1
    assert ALIVE * FILE_BYTES // 2 < asked["bytes"] < ALIVE * FILE_BYTES * 1.5
    # Nothing is dead to the two snapshots that name it yet: the first one has just been removed.
    saved = backup(machine, trees)
    assert ALIVE <= saved["rewritten"] <= ALIVE + 1
    assert (saved["failed"], saved["complete"]) == ([], True)
    assert pack not in named(machine.store, 3)
    assert pack in named(machine.store, 2)
    check_restores(machine, trees)
    for days in (1.1, 1.1, 8):
        age(machine.store, days)
        assert machine.run("prune", "--yes").result["rewrite"]["blobs"] == 0
    assert not path_of(machine.store, pack).exists()
    assert (numbers(machine.store), unnamed(machine.store)) == ([3], set())
    check_restores(machine, trees)
    assert backup(machine, trees)["rewritten"] == 0


def test_there_is_a_budget(tmp_path: Path) -> None:
    machine, trees, pack = with_a_dying_pack(tmp_path)
    for budget in ("0", "64KiB"):
        asked = machine.run("prune", "--yes", "--max-rewrite", budget).result["rewrite"]
        assert asked == {"blobs": 0, "bytes": 0}
    assert backup(machine, trees)["rewritten"] == 0
    assert machine.run("prune", "--max-rewrite", "64MiB").result["rewrite"]["blobs"] == 1
    assert pack in named(machine.store, 3)


def test_what_older_snapshots_need_is_not_dead(tmp_path: Path) -> None:
    machine, _, pack = with_a_dying_pack(tmp_path)
    machine.configure(keep={"last": 2})
    assert machine.run("prune", "--yes").result["rewrite"]["blobs"] == 0
    assert path_of(machine.store, pack).exists()


@pytest.mark.parametrize("name", ["file", "f" * 120], ids=["short names", "long names"])
def test_a_pack_of_tiny_files_is_not_taken_for_dead(tmp_path: Path, name: str) -> None:
    machine = Machine(tmp_path / "work", tmp_path / "source", keep={"last": 1}, pack_below="64KiB")
    for number in range(1500):
        write(machine.source / f"{name}-{number:04}", b"%d" % number)
    backup(machine, {})
    assert max(path_of(machine.store, key).stat().st_size for key in content_keys(machine.store)) > 1 << 20
    assert machine.run("prune").result["rewrite"]["blobs"] == 0


def test_what_cannot_be_read_any_more_stays_where_it_is(tmp_path: Path) -> None:
    machine, _, pack = with_a_dying_pack(tmp_path)
    machine.run("prune", "--yes")
    machine.run("index")
    for number in range(10):
        (machine.source / f"file-{number:03}").rename(tmp_path / f"away-{number}")
    saved = machine.run("save").result
    assert (saved["rewritten"], saved["failed"], saved["complete"]) == (ALIVE - 10, [], True)
    assert pack in named(machine.store, 3)
    machine.run("restore")
    assert len(list(machine.restored.iterdir())) == FILES + 1
