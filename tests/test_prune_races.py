"""Prune at every moment of a save, on another machine; and prune killed before every one of its requests.

After each, whatever a snapshot names is there, every snapshot restores as its tree was, and the next runs finish the
job: nothing stays that no snapshot names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.pruned import (
    Killed,
    Machine,
    age,
    check_restores,
    check_whole,
    lists,
    numbers,
    run_here,
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
STRIDE = len(SETTINGS)
"""Of so many moments one is tried, with each of the settings another one: together they try all. `long` tries each."""
PHASES = ("list", "delete")
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


@dataclass(frozen=True)
class Scene:
    """A machine to be copied, what its tree was at each snapshot, and which moments are tried."""

    machine: Machine
    trees: Trees
    first: int
    stride: int

    def every(self, count: int, at: int) -> bool:
        """Whether this moment is one of each `count` that are tried."""
        return (at - self.first) // self.stride % count == 0


@pytest.fixture(scope="module", params=SETTINGS)
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Machine, Trees]:
    return request.param, *prepared(tmp_path_factory.mktemp("races"), SETTINGS[request.param])


@pytest.fixture(params=["some moments", pytest.param("each moment", marks=pytest.mark.long)])
def scene(request: pytest.FixtureRequest, template: tuple[str, Machine, Trees]) -> Scene:
    name, machine, trees = template
    if request.param == "each moment":
        return Scene(machine, trees, 0, 1)
    return Scene(machine, trees, list(SETTINGS).index(name), STRIDE)


def prune_fully(machine: Machine) -> None:
    """Let a prune on another machine do all it ever would: list, and delete when the day is over."""
    machine.run("prune", "--yes")
    age(machine.store, 1.1)
    machine.run("prune", "--yes")


def settled(machine: Machine, trees: Trees) -> None:
    """Whatever has happened: the next runs leave what the last snapshot needs, and it is the tree."""
    for _ in range(3):  # what was deleted and then stored again has to be listed again
        age(machine.store, 8)
        assert run_here(machine, "prune", "--yes") == 0
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


def at_each_moment(scene: Scene, folder: Path, act: Callable[[Machine, Machine, int], bool]) -> None:
    """Do something at each moment that is to be tried, until `act` says that there was none any more.

    `act` gets a copy of the machine, another machine on the same store, and the number of the moment.
    """
    at, last = scene.first, -1
    while True:
        machine = scene.machine.copied(folder / str(at))
        other = machine.elsewhere(folder / f"{at}-other")
        was_reached = act(machine, other, at)
        for place in (machine.folder, other.folder):
            shutil.rmtree(place)
        if not was_reached:
            break
        at, last = at + scene.stride, at
    assert last >= 8


def test_a_prune_at_every_moment_of_a_save(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = scene.machine.copied(tmp_path / "undisturbed")
    with watching(monkeypatch, lambda _: None) as stores:
        assert run_here(undisturbed, "save") == 0
    at_header = stores[0].requests - 1

    def act(machine: Machine, other: Machine, at: int) -> bool:
        # Between its last look and its header a save must not sleep for a day: a prune may list things there.
        pruned = partial(prune_fully, other) if at != at_header else partial(other.run, "prune", "--yes")
        was_reached = raced(machine, scene.trees, monkeypatch, pruned, at)
        if scene.every(5, at):
            settled(machine, scene.trees)
        return was_reached

    at_each_moment(scene, tmp_path, act)


def test_a_save_that_begins_while_a_prune_is_between_its_phases(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blobs are deleted at every moment of a save that knows their list from its beginning."""
    listed = scene.machine.copied(tmp_path / "listed")
    listed.run("prune", "--yes")
    age(listed.store, 1.1)

    def act(machine: Machine, other: Machine, at: int) -> bool:
        return raced(machine, scene.trees, monkeypatch, partial(other.run, "prune", "--yes"), at)

    at_each_moment(replace(scene, machine=listed), tmp_path, act)


@pytest.mark.parametrize("phase", PHASES)
def test_a_save_at_every_moment_of_a_prune(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    def act(machine: Machine, other: Machine, at: int) -> bool:
        if phase == "delete":
            assert run_here(other, "prune", "--yes") == 0
            age(machine.store, 1.1)

        def before(number: int) -> None:
            if number == at:
                machine.run("save", expect=None)

        with watching(monkeypatch, before) as stores:
            assert run_here(other, "prune", "--yes") == 0
        check_whole(machine.store)
        age(machine.store, 1.1)
        assert run_here(other, "prune", "--yes") == 0
        check_restores(machine, scene.trees)
        if scene.every(4, at):
            assert run_here(machine, "save") == 0
            settled(machine, scene.trees)
        return stores[0].requests > at

    at_each_moment(scene, tmp_path, act)


@pytest.mark.parametrize("phase", PHASES)
def test_a_prune_that_is_killed_before_each_request(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    def act(machine: Machine, _other: Machine, at: int) -> bool:
        if phase == "delete":
            assert run_here(machine, "prune", "--yes") == 0
            age(machine.store, 1.1)

        def before(number: int) -> None:
            if number == at:
                raise Killed

        was_killed = False
        with watching(monkeypatch, before):
            try:
                assert run_here(machine, "prune", "--yes") == 0
            except Killed:
                was_killed = True
        check_restores(machine, scene.trees)
        assert run_here(machine, "save") == 0
        settled(machine, scene.trees)
        return was_killed

    at_each_moment(scene, tmp_path, act)
