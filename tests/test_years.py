"""Simulated years of daily backups and prunes: every snapshot that is kept restores as the tree was on its day.

Files change, are renamed, copied and deleted; on some days one cannot be read, a save or a prune is killed on the way,
the local state is lost; how content is stored changes eight times; and a second machine prunes as well. The clock of
the machine begins as long ago, so that no snapshot is dated later than the store's clock, and is moved a day at a time;
everything in the store is made a day older. Two months see all of that; two years, which are for `python3 dev.py long`,
see it again and again, and what yearly and monthly rules keep.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from blobark.retention import Candidate, Keep
from tests.manifests import read_header
from tests.pruned import (
    DAY_S,
    Killed,
    Machine,
    age,
    check_same,
    check_whole,
    lists,
    numbers,
    run_here,
    unnamed,
    watching,
)
from tests.test_retention import model
from tests.trees import write
from tools.compare import Facts, facts_of

KEEP: dict[str, Any] = {"last": 2, "daily": 6, "weekly": 4, "monthly": 5, "yearly": 2}
QUARTERS: list[dict[str, Any]] = [
    {},
    {"pack_below": "64KiB"},
    {"pack_below": "64KiB", "dedupe": True},
    {"pack_below": "64KiB", "dedupe": True, "compression": "zstd"},
    {"dedupe": True, "compression": "zstd"},
    {"delta": "extents"},
    {"pack_below": "2KiB", "delta": "extents", "dedupe": True},
    {},
]
FORMER: dict[str, Any] = {"pack_below": "0", "dedupe": False, "compression": "none", "delta": "whole"}


class Years:
    """The machine, its tree, and what that was at each snapshot."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dice = Random(6)
        self.machine = Machine(folder / "work", folder / "source", keep=KEEP)
        self.second = self.machine.elsewhere(folder / "second")
        self.trees: dict[int, tuple[dict[bytes, Facts], bytes]] = {}
        self.unread = self.killed = 0
        self._monkeypatch = monkeypatch
        for number in range(30):
            write(self.machine.source / f"{number % 5}" / f"file-{number:02}", self._text())

    def _text(self) -> bytes:
        return self.dice.choice([b"common ", b"other "]) * self.dice.randrange(1, 500) + self.dice.randbytes(20)

    def _files(self) -> list[Path]:
        return sorted(path for path in self.machine.source.rglob("*") if path.is_file())

    def change(self, day: int) -> None:
        """Do a few things to the tree; on some days nothing."""
        for turn in range(self.dice.randrange(4)):
            files = self._files()
            file = self.dice.choice(files)
            place = self.machine.source / f"{self.dice.randrange(6)}" / f"new-{day:03}-{turn}"
            place.parent.mkdir(exist_ok=True)
            match self.dice.randrange(5):
                case 0:
                    file.write_bytes(self._text())
                case 1:
                    file.rename(place)
                case 2:
                    shutil.copy(file, place)
                case 3 if len(files) > 20:
                    file.unlink()
                case _:
                    write(place, self._text())

    def maybe_killed(self, machine: Machine, *command: str) -> None:
        """Run a command; kill it before some request, if the dice say so."""
        last = self.dice.randrange(40) if self.dice.randrange(8) == 0 else 1 << 30

        def before(number: int) -> None:
            if number == last:
                raise Killed

        try:
            with watching(self._monkeypatch, before):
                assert run_here(machine, *command) in (0, 3)
        except Killed:
            self.killed += 1

    def backup(self) -> None:
        """Index and save; on some days a file is away when it is to be read."""
        before = numbers(self.machine.store) if self.machine.store.exists() else []
        facts, missing = facts_of(str(self.machine.source)), b""
        if self.dice.randrange(12):
            self.maybe_killed(self.machine, "backup")
        else:
            run_here(self.machine, "index")
            away = self.dice.choice(self._files())
            elsewhere = self.machine.folder / "away"
            folder = os.stat(away.parent)
            away.rename(elsewhere)
            assert run_here(self.machine, "save") in (0, 3)
            elsewhere.rename(away)
            os.utime(away.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))
            missing = os.fsencode(away.relative_to(self.machine.source))
            self.unread += 1
        for number in set(numbers(self.machine.store)) - set(before):
            self.trees[number] = facts, missing

    def prune(self, day: int) -> None:
        """Prune on this machine or on the second one, or on both."""
        if day % 3 != 1:
            self.maybe_killed(self.machine if day % 3 else self.second, "prune", "--yes")

    def check(self) -> None:
        """Restore everything that is there, and compare it with what was."""
        machine = self.machine
        check_whole(machine.store)
        for number in numbers(machine.store):
            shutil.rmtree(machine.restored, ignore_errors=True)
            facts, missing = self.trees[number]
            complete = read_header(machine.store, number)["complete"]
            assert complete or missing
            assert run_here(machine, "restore", "--snapshot", str(number)) == (0 if complete else 3)
            restored = facts_of(str(machine.restored))
            if not complete:
                facts = {path: fact for path, fact in facts.items() if path != missing}
                restored.pop(missing, None)
                folder = os.path.dirname(missing)
                assert facts.pop(folder).keys() == restored.pop(folder).keys()
            check_same(facts, restored, number)

    def stays(self) -> set[int]:
        """Return the snapshots that retention keeps of all that there ever were, by the model."""
        headers = [read_header(self.machine.store, number) for number in numbers(self.machine.store)]
        candidates = [Candidate(h["number"], h["started_ns"], h["complete"]) for h in headers]
        return model(candidates, Keep(**KEEP))


@pytest.mark.parametrize("days", [64, pytest.param(730, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_daily_backups_and_prunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    real_ns = time.time_ns
    offset_ns = -days * DAY_S * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + offset_ns)
    years = Years(tmp_path, monkeypatch)
    machine = years.machine
    quarter = days // len(QUARTERS)
    for day in range(days):
        if day % quarter == 0 and day // quarter < len(QUARTERS):
            for one in (machine, years.second):
                one.configure(**{**FORMER, **QUARTERS[day // quarter]})
        years.change(day)
        if day % (days // 7) == days // 7 - 1:
            shutil.rmtree(machine.state)
        years.backup()
        years.prune(day)
        if day % quarter == quarter - 1:
            years.check()
        offset_ns += DAY_S * 10**9
        age(machine.store, 1)
    assert years.unread > days // 36
    assert years.killed > days // 36
    for _ in range(3):
        assert run_here(machine, "prune", "--yes") == 0
        age(machine.store, 8)
    assert set(numbers(machine.store)) == years.stays()
    assert len(numbers(machine.store)) >= 10
    years.check()
    assert run_here(machine, "prune", "--yes") == 0
    assert (unnamed(machine.store), lists(machine.store)) == (set(), [])
