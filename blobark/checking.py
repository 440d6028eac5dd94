"""`blobark verify` and `blobark repair` as listings: a row for each item that damage hurts, then what it comes to.

A person sees the first rows and a count, or all of them with `-v`; `--json` has all of them. Which part of the blobs is
read goes round: `state_dir` remembers for each server where the last reading ended, and the next one goes on there.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec
from blake3 import blake3

from blobark import snapshot
from blobark.browse import numbers_text
from blobark.catalog import Catalog
from blobark.context import Context
from blobark.errors import EXIT_DAMAGED, EXIT_DONE, EXIT_ITEMS_FAILED, ConfigError
from blobark.filelock import state_lock
from blobark.inventory import Inventory
from blobark.listings import server_of
from blobark.model import display
from blobark.output import Listing, Row
from blobark.repair import Repair, RepairResult
from blobark.storelock import store_lock
from blobark.verify import Verification, VerifyResult

SHOWN = 20
"""So many rows of damage are shown to a person who did not ask for more."""
POSITION_FILE = "verified.json"
MOST_FOUND_BYTES = 64 << 20
"""More than what a verification prints of a hundred thousand damaged blobs."""


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """What the command line adds to the configuration of a verification."""

    server: str = ""
    snapshot: int = 0
    """0: all."""
    share: float = 0.0
    """Of the blobs, to be read."""
    all_rows: bool = False


class DamageRow(msgspec.Struct, frozen=True):
    """An item that damage hurts; without a path the snapshots as such."""

    blob: str
    what: str
    path: str
    snapshots: str

    def line(self) -> str:
        """Return the line for a person."""
        return f"DAMAGED {self.blob} {self.what}: {self.path or 'the snapshots themselves'} (in {self.snapshots})"


class _Item(msgspec.Struct, frozen=True):
    blob: str


class _Printed(msgspec.Struct, frozen=True):
    items: list[_Item]


class MendedRow(msgspec.Struct, frozen=True):
    """A damaged blob, and what it was made of again, or why it was not."""

    blob: str
    what: str
    mended: bool
    source: str
    reason: str
    bytes: int
    verb: str

    def line(self) -> str:
        """Return the line for a person."""
        if self.mended:
            return f"{self.verb} {self.blob} ({self.what}), of {self.source}"
        return f"STAYS DAMAGED {self.blob} ({self.what}): {self.reason}"


class MoreRow(msgspec.Struct, frozen=True):
    """Stands for rows that are not shown."""

    more: int

    def line(self) -> str:
        """Return the line for a person."""
        return f"... and {self.more:,} more: -v or --json names them all"


@dataclass(frozen=True, slots=True)
class RepairOptions:
    """What the command line adds to the configuration of a repair."""

    server: str = ""
    found: Path | None = None
    """What `verify --json` has printed: of the blobs that it names the content is compared, too."""
    do: bool = False
    all_rows: bool = False


@dataclass(frozen=True, slots=True)
class Verified(Listing):
    """What a verification lists."""

    result: VerifyResult = field(default_factory=VerifyResult)

    @property
    def closing(self) -> VerifyResult:
        """As `Listing.closing`."""
        return self.result

    @property
    def exit_code(self) -> int:
        """7 for damage, 3 where something could not be checked."""
        if self.result.damaged:
            return EXIT_DAMAGED
        return EXIT_ITEMS_FAILED if self.result.failed else EXIT_DONE


@dataclass(frozen=True, slots=True)
class Repaired(Listing):
    """What a repair lists."""

    result: RepairResult = field(default_factory=RepairResult)

    @property
    def closing(self) -> RepairResult:
        """As `Listing.closing`."""
        return self.result

    @property
    def exit_code(self) -> int:
        """7 while anything is damaged, 3 where something could not be checked."""
        if self.result.damaged > (self.result.mended if self.result.done else 0):
            return EXIT_DAMAGED
        return EXIT_ITEMS_FAILED if self.result.verified.failed else EXIT_DONE


def list_damage(context: Context, options: VerifyOptions) -> Verified:
    """Verify, and list what is damaged.

    Raises:
        SnapshotError: the server has no snapshot.
    """
    store = context.open_store(False)
    server = server_of(context, store, options.server)
    part = _part(context, server, options.share)
    result = VerifyResult(server=server, read=part.text)

    def rows() -> Iterator[Row]:
        with Inventory.open() as inventory:
            verification = Verification(context, store, server, inventory, part.has)
            verification.result = result
            verification.gather(options.snapshot)
            verification.compare()
            if part.share:
                verification.read()
            verification.attribute()
            yield from limited(damage_rows(inventory), None if options.all_rows else SHOWN)
        _remember(context, server, part)

    return Verified("", rows(), result.failed, is_judged=True, result=result)


def list_repairs(context: Context, options: RepairOptions) -> Repaired:
    """Verify, and mend what is damaged; without `do` only find out what could be mended.

    Raises:
        ConfigError: `found` is not what a verification has printed.
        LockHeld: another run holds the lock.
        SnapshotError: the server has no snapshot.
    """
    found = _found_in(options.found) if options.found is not None else frozenset()
    store = context.open_store(False)
    server = server_of(context, store, options.server)
    read = f"what {options.found} names" if found else ""
    result = RepairResult(server, verified=VerifyResult(server=server, read=read))

    def rows() -> Iterator[Row]:
        state_dir = context.config.state_dir
        with contextlib.ExitStack() as held:
            known_as = held.enter_context(state_lock(state_dir, "repair"))
            if options.do:
                held.enter_context(store_lock(context, store, server, "repair", known_as=known_as))
            catalog = held.enter_context(Catalog.open(state_dir, keep=options.do))
            inventory = held.enter_context(Inventory.open())
            verification = Verification(context, store, server, inventory, found.__contains__)
            verification.result = result.verified
            verification.gather(0)
            known = catalog.last_known(server, store.name)
            if known > max(snapshot.numbers(store, server), default=0):
                verification.miss(known)
            verification.compare()
            if found:
                verification.read()
            verification.attribute()
            repair = Repair(context, catalog, store, verification, inventory)
            repair.result = result
            verb = "mended" if options.do else "can be mended"
            mended = (
                MendedRow(each.key, each.what, not each.reason, each.source, each.reason, each.size_bytes, verb)
                for each in repair.run(do=options.do)
            )
            yield from limited(mended, None if options.all_rows else SHOWN)

    return Repaired("", rows(), result.verified.failed, is_judged=True, result=result)


def _found_in(file: Path) -> frozenset[str]:
    try:
        with open(file, "rb") as opened:
            data = opened.read(MOST_FOUND_BYTES + 1)
        if len(data) > MOST_FOUND_BYTES:
            limit = f"{MOST_FOUND_BYTES >> 20} MiB"
            raise ConfigError(f"{file} is longer than {limit}", "`repair --yes` without it mends what can be listed")
        found = msgspec.json.decode(data, type=_Printed)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror})") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ConfigError(f"{file} is not what `blobark verify --json` prints") from None
    return frozenset(item.blob for item in found.items)


def damage_rows(inventory: Inventory) -> Iterator[DamageRow]:
    """Yield a row for each item that damage hurts."""
    for key in inventory.damaged():
        damages = inventory.damages(key)
        whats = dict.fromkeys(damage.what for damage in damages)
        for hurt in inventory.hurts(key):
            yield DamageRow(key, "; ".join(whats), display(hurt.path), numbers_text(hurt.numbers))


def limited(rows: Iterator[Row], most: int | None) -> Iterator[Row]:
    """Yield the rows, or the first of them and how many more there are."""
    left = 0
    for number, row in enumerate(rows):
        if most is None or number < most:
            yield row
        else:
            left += 1
    if left:
        yield MoreRow(left)


# Which part of the blobs is read


class Part(NamedTuple):
    """A share of the blobs, from a position on, by a hash of each key; positions are a circle from 0 to 1."""

    start: float
    share: float

    @property
    def end(self) -> float:
        """Where the next one begins."""
        return (self.start + self.share) % 1.0

    @property
    def text(self) -> str:
        """What is read, for a person."""
        if self.share in (0.0, 1.0):
            return "all" if self.share else ""
        return f"{self.share:.3g} of 1, from {self.start:.3f} to {self.end:.3f}"

    def has(self, key: str) -> bool:
        """Whether a blob belongs to it."""
        if self.share in (0.0, 1.0):
            return self.share == 1.0
        place = int.from_bytes(blake3(key.encode()).digest(8)) / 2**64
        return (place - self.start) % 1.0 < self.share


def _part(context: Context, server: str, share: float) -> Part:
    if share in (0.0, 1.0):
        return Part(0.0, share)
    start = _positions(context.config.state_dir / POSITION_FILE).get(server, random.random())
    return Part(start % 1.0, share)


def _positions(file: Path) -> dict[str, float]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, float])
    except (OSError, msgspec.MsgspecError):
        return {}


def _remember(context: Context, server: str, part: Part) -> None:
    """Note where the next part begins, if there is a state_dir; what cannot be noted is told, and no more."""
    state_dir = context.config.state_dir
    if part.share in (0.0, 1.0) or not state_dir.is_dir():
        return
    file = state_dir / POSITION_FILE
    new = file.with_name(f"{POSITION_FILE}.new")
    try:
        new.write_bytes(msgspec.json.encode({**_positions(file), server: part.end}))
        os.replace(new, file)
    except OSError as error:
        context.reporter.warn(f"warning: {file}: {error.strerror}: the next sample may be this one again")
        with contextlib.suppress(OSError):
            new.unlink()
