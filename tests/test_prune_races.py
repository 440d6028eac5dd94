"""Prune at every moment of a save, on another machine; and prune killed before every one of its requests.

After each, whatever a snapshot names is there, every snapshot restores as its tree was, and the next runs finish the
job: nothing stays that no snapshot names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from blobark.cli import main
from tests.pruned import (
    Killed,
    Machine,
    age,
    check_restores,
    check_whole,
    lists,
    numbers,
    unnamed,
    watching,
)
from tests.trees import write
from tools.compare import Facts, facts_of

MIB = 1 << 20
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "packs": {"pack_below": "64KiB", "dedupe": True},
    "zstd packs": {"pack_below": "64KiB", "dedupe": True, "compression": "zstd"},
    "extents": {"delta": "extents", "dedupe": True},
}
STRIDES = {"plain": 1, "packs": 1, "zstd packs": 2, "extents": 2}
"""Which moments are tried."""
LARGE_BYTES = 10 * MIB

Trees = dict[int, dict[bytes, Facts]]


def first_tree(source: Path, large: bool) -> None:
    for number in range(12):
        write(source / str(number % 3) / f"file-{number:02}", f"the first content of {number} " * 20)
    write(source / "twin", "the first content of 3 " * 20)
    os.link(source / "twin", source / "linked")
    (source / "skipped").mkdir()
    with open(source / "sparse", "wb") as file:
        file.seek(MIB)
        file.write(b"after a hole")
    if large:
        write(source / "large", Random(1).randbytes(LARGE_BYTES))


def change(source: Path, number: int, large: bool) -> None:
    """Change, rename, delete, copy and add a little, and other things each time."""
    write(source / "0" / "file-00", f"version {number} " * (20 + number))
    write(source / f"new-{number}", f"new with {number}")
    moved = min(source.glob("1/*"))
    moved.rename(source / "2" / f"moved-{number}-{moved.name}")
    max(source.glob("2/*")).unlink()
    shutil.copy(source / "0" / "file-03", source / f"copy-{number}")
    if large:
        with open(source / "large", "r+b") as file:
            file.seek(number * MIB)
            file.write(b"%d" % number * 1000)


def prepared(folder: Path, settings: dict[str, Any]) -> tuple[Machine, Trees]:
    """A machine with three snapshots, two of which go; and what was left by a save that was killed ten days ago."""
    large = settings.get("delta") == "extents"
    machine = Machine(folder / "work", folder / "source", keep={"last": 1}, skip_path=["skipped"], **settings)
    first_tree(machine.source, large)
    trees: Trees = {}
    for number in (1, 2, 3):
        change(machine.source, number, large)
        machine.run("backup")
        trees[number] = facts_of(str(machine.source))
    change(machine.source, 4, large)
    machine.run("index")
    state = folder / "state"
    shutil.copytree(machine.state, state)
    of_index = machine.map.read_bytes()
    machine.run("save")
    (machine.store / "blobark/web1/snapshots/0000000004.blob").unlink()
    shutil.rmtree(machine.state)
    state.rename(machine.state)
    machine.map.write_bytes(of_index)
    trees[4] = trees[5] = facts_of(str(machine.source))
    age(machine.store, 10)
    return machine, trees


@pytest.fixture(scope="module", params=SETTINGS)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return prepared(tmp_path_factory.mktemp("races"), SETTINGS[request.param])


def settings_of(machine: Machine) -> str:
    """Return which of the settings a machine has."""
    return next(name for name, some in reversed(SETTINGS.items()) if some.items() <= machine.settings.items())


def run_here(machine: Machine, command: str, *options: str) -> int:
    return main(["--config", str(machine.config), "--quiet", *options], command=command)


def prune_fully(machine: Machine) -> None:
    """Let a prune on another machine do all it ever would: list, and delete when the day is over."""
    machine.run("prune", "--yes")
    age(machine.store, 1.1)
    machine.run("prune", "--yes")


def settled(machine: Machine, trees: Trees) -> None:
    """Whatever has happened: the next runs leave what the last snapshot needs, and it is the tree."""
    for _ in range(3):  # what was deleted and then stored again has to be listed again
        age(machine.store, 8)
        machine.run("prune", "--yes")
    assert (numbers(machine.store)[-1:], unnamed(machine.store), lists(machine.store)) == (
        numbers(machine.store),
        set(),
        [],
    )
    check_restores(machine, trees)


def raced(machine: Machine, trees: Trees, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], at: int) -> bool:
    """Save, and do something before request `at` of that; False when it makes fewer requests."""

    def before(number: int) -> None:
        if number == at:
            act()

    with watching(monkeypatch, before) as stores:
        code = run_here(machine, "save")
    reached = sum(store.requests for store in stores) > at
    check_whole(machine.store)
    assert code in (0, 4), code
    if code:
        assert run_here(machine, "save") == 0
    newest = numbers(machine.store)[-1]
    assert newest == 4
    check_restores(machine, trees)
    return reached


def test_a_prune_at_every_moment_of_a_save(
    scene: tuple[Machine, Trees], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, trees = scene
    undisturbed = template.copied(tmp_path / "undisturbed")
    with watching(monkeypatch, lambda _: None) as stores:
        assert run_here(undisturbed, "save") == 0
    at_header = stores[0].requests - 1
    at = 0
    while True:
        machine = template.copied(tmp_path / str(at))
        other = machine.elsewhere(tmp_path / f"{at}-other")
        # Between its last look and its header a save must not sleep for a day: a prune may list things there.
        act = partial(prune_fully, other) if at != at_header else partial(other.run, "prune", "--yes")
        is_reached = raced(machine, trees, monkeypatch, act, at)
        if at % 5 == 0:
            settled(machine, trees)
        for folder in (machine.folder, other.folder):
            shutil.rmtree(folder)
        if not is_reached:
            break
        at += STRIDES[settings_of(machine)]
    assert at > 8


def test_a_save_that_begins_while_a_prune_is_between_its_phases(
    scene: tuple[Machine, Trees], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blobs are deleted at every moment of a save that knows their list from its beginning."""
    template, trees = scene
    listed = template.copied(tmp_path / "listed")
    listed.run("prune", "--yes")
    age(listed.store, 1.1)
    at = 0
    while True:
        machine = listed.copied(tmp_path / str(at))
        other = machine.elsewhere(tmp_path / f"{at}-other")
        is_reached = raced(machine, trees, monkeypatch, partial(other.run, "prune", "--yes"), at)
        for folder in (machine.folder, other.folder):
            shutil.rmtree(folder)
        if not is_reached:
            break
        at += 2 * STRIDES[settings_of(machine)]
    assert at > 8


def test_a_save_at_every_moment_of_a_prune(
    scene: tuple[Machine, Trees], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First of the prune that lists, then of the one that deletes."""
    template, trees = scene
    for phase in (1, 2):
        at = 0
        while True:
            machine = template.copied(tmp_path / f"{phase}-{at}")
            other = machine.elsewhere(tmp_path / f"{phase}-{at}-other")
            if phase == 2:
                other.run("prune", "--yes")
                age(machine.store, 1.1)

            def before(number: int, machine: Machine = machine, at: int = at) -> None:
                if number == at:
                    machine.run("save", expect=None)

            with watching(monkeypatch, before) as stores:
                assert run_here(other, "prune", "--yes") == 0
            check_whole(machine.store)
            age(machine.store, 1.1)
            other.run("prune", "--yes")
            check_restores(machine, trees)
            if at % 4 == 0:
                machine.run("save")
                settled(machine, trees)
            reached = stores[0].requests > at
            for folder in (machine.folder, other.folder):
                shutil.rmtree(folder)
            if not reached:
                break
            at += 2 * STRIDES[settings_of(machine)]
        assert at > 8


def test_a_prune_that_is_killed_before_each_request(
    scene: tuple[Machine, Trees], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, trees = scene
    for phase in (1, 2):
        at = 0
        while True:
            machine = template.copied(tmp_path / f"{phase}-{at}")
            if phase == 2:
                machine.run("prune", "--yes")
                age(machine.store, 1.1)

            def before(number: int, at: int = at) -> None:
                if number == at:
                    raise Killed

            was_killed = False
            with watching(monkeypatch, before):
                try:
                    assert run_here(machine, "prune", "--yes") == 0
                except Killed:
                    was_killed = True
            check_restores(machine, trees)
            machine.run("save")
            settled(machine, trees)
            shutil.rmtree(machine.folder)
            if not was_killed:
                break
            at += 2 * STRIDES[settings_of(machine)]
        assert at > 8
