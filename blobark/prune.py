"""Prune and forget: snapshots that no rule keeps go, and a day later the blobs that nothing names any more.

    take stock            what is there, what is listed, what every snapshot names (stocktaking.py)
    judge                 each snapshot stays or goes, with reasons (retention.py)                       the plan
    phase 2  delete       what has been on trash lists for a day, and no snapshot names, batch by batch; before each the
                          snapshots and lists are looked at again; then the lists that have been worked through
    phase 1  remove       the headers of the snapshots that go, oldest first, and their tags
             list         what only those named, and orphans: what nothing names, of runs that stored their last blob
                          7 days ago or before

A list also names blobs that are mostly dead: a save that reads it stores anew what it needs of them, so that they can
go when the last snapshot that needs them has. Snapshots are never changed.

So at any moment every snapshot that can be seen is whole. A run killed anywhere leaves at worst orphans, which a later
run finds. What a save may rely on meanwhile is said in docs/design.md. All times are the store's own.

Forgetting is phase 1 for the snapshots that a person names, and nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from blobark import retention, snapshot, tags, trash
from blobark.clock import now_ns, utc
from blobark.context import Context
from blobark.errors import ConfigError, Fatal, SnapshotError
from blobark.filelock import state_lock
from blobark.guids import TAG_LENGTH
from blobark.holdings import Holdings
from blobark.listings import server_of
from blobark.retention import Judgement
from blobark.stocktaking import Stock
from blobark.stores.base import Store

DAY_NS = 24 * 3600 * 10**9
ORPHAN_NS = 7 * DAY_NS
BATCH = 1000
LEAST_REWRITTEN = 1 << 20
"""Blobs shorter than this are not worth being rewritten."""
MOST_REWRITTEN = 1000
LOOK_LASTS_NS = 300 * 10**9
"""For so long a look at snapshots and lists is good; what is not deleted by then waits for another."""


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """What the command line says. With `forget` these snapshots go and nothing else happens."""

    server: str = ""
    yes: bool = False
    forget: frozenset[int] = frozenset()
    last_complete: bool = False
    """The newest complete snapshot may be forgotten."""
    max_rewrite_bytes: int = 0
    """The next save may be asked to store so much anew, to leave blobs that are mostly dead."""


class PrunedSnapshot(msgspec.Struct, frozen=True):
    """A snapshot in the plan. `freed_bytes` are stored bytes of blobs that only it names."""

    number: int
    time: str
    files: int
    file_bytes: int
    complete: bool
    tags: list[str]
    keep: bool
    reasons: list[str]
    freed_bytes: int


class Amount(msgspec.Struct, frozen=True):
    """Blobs, and their stored bytes."""

    blobs: int = 0
    bytes: int = 0


class PruneResult(msgspec.Struct):
    """The plan, or with `done` what was done of it."""

    server: str
    snapshots: list[PrunedSnapshot]
    freed: Amount
    """What only snapshots that go name: deleted a day from now."""
    orphans: Amount
    """What nothing names, of runs that ended long ago: likewise."""
    left_alone: Amount
    """What nothing names yet: perhaps a run is storing it."""
    waiting: Amount
    """On trash lists that are younger than a day."""
    deleting: Amount
    """On trash lists long enough."""
    rewrite: Amount = Amount()
    """Blobs that are mostly dead, and the bytes that the next save stores anew to leave them."""
    done: bool = False


def run_prune(context: Context, options: PruneOptions) -> PruneResult:
    """Plan what goes; with `yes` do it.

    Raises:
        SnapshotError: there is no snapshot, or one cannot be read.
        StoreDenied: the store does not let a blob be deleted.
        ConfigError: a snapshot that is to be forgotten may not be.
    """
    store = context.open_store(False)
    server = server_of(context, store, options.server)
    with contextlib.ExitStack() as stack:
        if options.yes:
            stack.enter_context(state_lock(context.config.state_dir, "prune"))
        clock_ns = store.greet().clock_ns
        if not clock_ns:
            raise Fatal(f"{store.name} does not tell the time", "it has to be one that may be written to")
        holdings = stack.enter_context(Holdings.open(len(server) + 1 + TAG_LENGTH))
        stock = Stock(context, store, server, options.forget)
        stock.take(holdings)
        judged = _judged(context, stock, options, clock_ns)
        stock.name(holdings, frozenset(judgement.number for judgement in judged if not judgement.keep))
        pruning = _Pruning(context, store, stock, holdings, clock_ns, options)
        result = pruning.plan(judged)
        if options.yes:
            result.deleting = pruning.run(judged)
            result.done = True
        return result


def _judged(context: Context, stock: Stock, options: PruneOptions, clock_ns: int) -> list[Judgement]:
    candidates = stock.candidates()
    if not options.forget:
        _warn_of_future(context, stock, clock_ns)
        return retention.judge(candidates, context.config.keep, clock_ns)
    unknown = sorted(options.forget - set(stock.numbers))
    if unknown:
        raise SnapshotError(f"server {stock.server} has no snapshot {unknown[0]}", "see `blobark snapshots`")
    if stock.numbers[-1] in options.forget:
        message = f"snapshot {stock.numbers[-1]} is the newest, and is never removed"
        hint = "what is not to be backed up belongs into skip_path; then save, and forget it"
        if stock.numbers[-1] not in stock.headers:
            hint = "`blobark backup --skip-damaged` goes on without it; then forget it"
        raise ConfigError(message, hint)
    complete = retention.newest_complete(candidates)
    if complete in options.forget and not options.last_complete:
        message = f"snapshot {complete} is the newest complete one"
        raise ConfigError(message, "--last-complete forgets it all the same")
    return retention.judge_forgotten(candidates, options.forget)


def _warn_of_future(context: Context, stock: Stock, clock_ns: int) -> None:
    for number, header in stock.headers.items():
        if retention.is_future(header.started_ns, clock_ns):
            context.reporter.warn(
                f"warning: snapshot {number} is dated {header.started}, and the store's clock says {utc(clock_ns)}: "
                f"it stays, and no rule counts it; `blobark forget {number} --yes` removes it once a newer one is there"
            )


class _Pruning:
    """One prune, when stock has been taken."""

    def __init__(
        self,
        context: Context,
        store: Store,
        stock: Stock,
        holdings: Holdings,
        clock_ns: int,
        options: PruneOptions,
    ) -> None:
        self._context = context
        self._store = store
        self._stock = stock
        self._holdings = holdings
        self._listed_before_ns = clock_ns - DAY_NS
        self._orphan_before_ns = clock_ns - ORPHAN_NS
        self._only_forget = bool(options.forget)
        self._rewritten = list(itertools.islice(self._choose(options.max_rewrite_bytes), MOST_REWRITTEN))

    def plan(self, judged: list[Judgement]) -> PruneResult:
        """Return what would be done."""
        freed = self._holdings.freed()
        blobs, size = (sum(column) for column in zip((0, 0), *freed.values(), strict=True))
        result = PruneResult(
            server=self._stock.server,
            snapshots=[self._row(judgement, freed) for judgement in judged],
            freed=Amount(blobs, size),
            orphans=Amount(*self._holdings.count_orphans(self._orphan_before_ns, young=False)),
            left_alone=Amount(*self._holdings.count_orphans(self._orphan_before_ns, young=True)),
            waiting=Amount(*self._holdings.count_waiting(self._listed_before_ns)),
            deleting=Amount(*self._holdings.count_ripe(self._listed_before_ns)),
        )
        result.rewrite = Amount(len(self._rewritten), sum(needed for _, needed in self._rewritten))
        if self._only_forget:
            result.orphans = result.left_alone = result.waiting = result.deleting = Amount()
        return result

    def _row(self, judgement: Judgement, freed: dict[int, tuple[int, int]]) -> PrunedSnapshot:
        header = self._stock.headers.get(judgement.number)
        return PrunedSnapshot(
            number=judgement.number,
            time=header.started if header else "",
            files=header.totals.files if header else 0,
            file_bytes=header.totals.file_bytes if header else 0,
            complete=header is not None and header.complete,
            tags=sorted(self._stock.tags.get(judgement.number, ())),
            keep=judgement.keep,
            reasons=list(judgement.reasons),
            freed_bytes=0 if judgement.keep else freed.get(judgement.number, (0, 0))[1],
        )

    def run(self, judged: list[Judgement]) -> Amount:
        """Delete what its time has come for, then remove and list what is to go next; return what was deleted."""
        deleted = Amount()
        if not self._only_forget:
            deleted = self._delete_ripe()
        self._remove([judgement.number for judgement in judged if not judgement.keep])
        self._list()
        return deleted

    def _delete_ripe(self) -> Amount:
        """Delete what ripe lists list and no snapshot names, then these lists."""
        ripe = [key for key, published_ns in self._stock.lists.items() if published_ns <= self._listed_before_ns]
        self._context.reporter.begin("delete", self._holdings.count_ripe(self._listed_before_ns)[0], 0)
        blobs = size = 0
        after = ""
        while self._holdings.ripe(self._listed_before_ns, after, 1):
            until_ns = now_ns() + LOOK_LASTS_NS
            self._stock.check_lists(ripe)
            self._stock.look_again(self._holdings)
            rows = self._holdings.ripe(self._listed_before_ns, after, BATCH)
            gone = self._context.engine.run(rows, _deleter(self._store, until_ns))
            deleted = [row for row, is_deleted in gone if is_deleted]
            self._holdings.forget(key for key, _ in deleted)
            self._context.reporter.advance(len(deleted), 0)
            blobs, size = blobs + len(deleted), size + sum(length for _, length in deleted)
            if rows and len(deleted) == len(rows):
                after = rows[-1][0]
        trash.finish(self._store, self._stock.server, ripe, self._listed_before_ns)
        return Amount(blobs, size)

    def _remove(self, numbers: list[int]) -> None:
        """Remove snapshots, oldest first, and their tags; and the tags that a killed run has left."""
        self._stock.look_again(self._holdings)
        for number in numbers:
            self._context.check_stop()
            self._stock.check_tags(number)
            self._store.delete(snapshot.header_key(self._stock.server, number))
        stay = set(self._stock.numbers) - set(numbers)
        for number, names in self._stock.tags.items():
            if number not in stay:
                tags.remove(self._store, self._stock.server, number, names)

    def _list(self) -> None:
        """List what is to be deleted a day from now."""
        keys: Iterator[str] = self._holdings.named_away()
        if not self._only_forget:
            keys = itertools.chain(keys, self._holdings.orphans(self._orphan_before_ns))
        trash.publish(self._store, self._stock.server, keys, [key for key, _ in self._rewritten])

    def _choose(self, budget_bytes: int) -> Iterator[tuple[str, int]]:
        """Yield the blobs to be left, and what has to be stored anew for each, within the budget."""
        for key, _, needed in self._holdings.mostly_dead(LEAST_REWRITTEN) if budget_bytes else ():
            budget_bytes -= needed
            if budget_bytes < 0:
                return
            yield key, needed


def _deleter(store: Store, until_ns: int) -> Callable[[list[tuple[str, int]]], list[bool]]:
    """Return what deletes a batch of blobs, and says of each whether: none when time is up."""

    def delete(batch: list[tuple[str, int]]) -> list[bool]:
        done = []
        for key, _ in batch:
            is_time = now_ns() < until_ns
            if is_time:
                store.delete(key)
            done.append(is_time)
        return done

    return delete
