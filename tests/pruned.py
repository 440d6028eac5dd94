"""What the tests of prune have in common: time that passes for a store, and what must hold for it at any moment."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blobark.cli import main
from tests.manifests import content_keys, read_header, read_manifest
from tests.runs import Workspace
from tools.compare import Facts, facts_of

DAY_S = 86_400
REQUESTS = frozenset({"stat", "list", "archived", "read", "put", "begin", "delete", "greet"})


class Machine(Workspace):
    """A workspace whose runs do all their work in one process."""

    def __init__(self, folder: Path, source: Path, **settings: Any) -> None:
        super().__init__(folder, source, **{"server": "web1", "max_memory": "16MiB", **settings})

    def copied(self, folder: Path) -> Machine:
        """Return a copy of this machine and its store, over the same source."""
        shutil.copytree(self.folder, folder)
        own = {key: value for key, value in self.settings.items() if not str(value).startswith(str(self.folder))}
        return Machine(folder, self.source, **own)

    def elsewhere(self, folder: Path) -> Machine:
        """Return another machine that works on the same store, and knows nothing."""
        own = {key: value for key, value in self.settings.items() if not str(value).startswith(str(self.folder))}
        other = Machine(folder, self.source, **{**own, "store": str(self.store)})
        other.store = self.store
        return other


def age(store: Path, days: float) -> None:
    """Let so many days pass for everything that is in a folder store."""
    for file in store.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if file.is_file():
                time_ns = file.stat().st_mtime_ns - int(days * DAY_S * 1e9)
                os.utime(file, ns=(time_ns, time_ns))


def numbers(store: Path) -> list[int]:
    """Return the numbers of the snapshots in a folder store."""
    return sorted(int(file.name[:10]) for file in store.glob("blobark/web1/snapshots/*"))


def lists(store: Path) -> list[str]:
    """Return the names of the trash lists in a folder store."""
    return sorted(file.name for file in store.glob("blobark/web1/trash/*"))


def named(store: Path, number: int) -> dict[str, int]:
    """Return the keys of what a snapshot needs, and how long each must be at least; read by other means."""
    found: dict[str, int] = {}
    for entry in read_manifest(store, number).values():
        extents = entry.get("extents")
        if extents is None and entry.get("guid"):
            runs = entry.get("ranges")
            size = sum(length for _, length in runs) if runs is not None else entry.get("size", 0)
            size = size if entry.get("kind", "file") == "file" else 0
            extents = [[f"web1_{entry['guid']}", 0, size]]
        for blob, offset, length, *_ in extents or ():
            found[blob] = max(found.get(blob, 0), offset + length)
        if "blocks_at" in entry:
            found[f"blobark/web1/blocks/{entry['blocks_at']}"] = 1
    for segment in read_header(store, number)["segments"]:
        digest, base = segment["digest"], segment.get("base", "")
        found[f"blobark/web1/segments/{digest}-{base}" if base else f"blobark/web1/segments/{digest}"] = 1
        if base:
            found[f"blobark/web1/segments/{base}"] = 1
    return found


def path_of(store: Path, key: str) -> Path:
    """Return the file of a blob in a folder store."""
    return store / (f"{key}.blob" if "/" in key else f"{key[-2:]}/{key}")


def check_whole(store: Path) -> None:
    """Whatever any snapshot names is there, and long enough."""
    for number in numbers(store):
        for key, size in named(store, number).items():
            file = path_of(store, key)
            assert file.exists(), f"snapshot {number} has lost {key}"
            assert file.stat().st_size >= size, f"snapshot {number}: {key} is short"


def unnamed(store: Path) -> set[str]:
    """Return the keys of content, segments and lists of blocks that no snapshot names."""
    below = (file for name in ("segments", "blocks") for file in store.glob(f"blobark/web1/{name}/*"))
    shared = {str(file.relative_to(store)).removesuffix(".blob") for file in below}
    there = {key for key in content_keys(store) if key.startswith("web1_")} | shared
    return there - {key for number in numbers(store) for key in named(store, number)}


def check_same(expected: dict[bytes, Facts], found: dict[bytes, Facts], number: int) -> None:
    """What a snapshot was restored to is what its tree was."""
    paths = sorted(expected.keys() | found.keys())
    wrong = {path: (expected.get(path), found.get(path)) for path in paths if expected.get(path) != found.get(path)}
    assert wrong == {}, f"snapshot {number}"


def run_here(machine: Workspace, command: str, *options: str) -> int:
    """Run a command in this process, which costs half of a fork; return its exit code."""
    return main(["--config", str(machine.config), "--quiet", *options], command=command)


def check_restores(machine: Workspace, trees: dict[int, dict[bytes, Facts]]) -> None:
    """Every snapshot that is there restores as the tree was, told by other means."""
    check_whole(machine.store)
    for number in numbers(machine.store):
        shutil.rmtree(machine.restored, ignore_errors=True)
        assert run_here(machine, "restore", "--snapshot", str(number)) == 0
        check_same(trees[number], facts_of(str(machine.restored)), number)
    shutil.rmtree(machine.restored, ignore_errors=True)


class Watched:
    """A store whose requests are counted; before one of them something else happens."""

    def __init__(self, store: Any, before: Callable[[int], None]) -> None:
        self._store = store
        self._before = before
        self._lock = threading.Lock()
        self.requests = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in REQUESTS:
            return found

        def asked(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                number = self.requests
                self.requests += 1
            self._before(number)
            return found(*arguments, **named)

        return asked


class Killed(BaseException):
    """Ends a run between two requests, as a kill does: nothing catches it."""


@contextlib.contextmanager
def watching(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> Iterator[list[Watched]]:
    """Have `before` called, with a number from 0 on, before each request of the runs in this process."""
    from blobark.stores.open import open_store

    made: list[Watched] = []

    def opened(*arguments: Any, **named: Any) -> Any:
        made.append(Watched(open_store(*arguments, **named), before))
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr("blobark.stores.open.open_store", opened)
        yield made
