"""`blobark status`: for every server in the store its last complete snapshot, how old that is, and how it grew.

It reads headers and nothing else. What an incomplete snapshot has does not count as a backup here: a server whose last
complete snapshot is older than `max_age` is late, and so is one, whatever `max_age` says, that has none, or one that
is dated later than this machine's clock: how old that is nobody knows. Then the exit code is 6.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from blobark import snapshot, trend
from blobark.clock import now_ns
from blobark.context import Context
from blobark.errors import SnapshotError
from blobark.model import Header
from blobark.output import Listing
from blobark.stores.base import Store

HEADING = (
    f"{'server':<20} {'snapshot':>8} {'time (UTC)':<20} {'age':>8} {'files':>12} {'bytes':>18} {'growth':>16}  state"
)

GRACE_S = 900
"""Clocks may differ by so much."""


class StatusRow(msgspec.Struct, frozen=True):
    """A server: its last complete snapshot (0: none), which shows the tree of `time`; bytes are those of the files."""

    server: str
    snapshot: int
    time: str
    age_s: int | None
    """None where there is no such snapshot, and where its time has not come yet."""
    files: int
    file_bytes: int
    growth_bytes: int | None
    """Against the complete snapshot before; None where there is none."""
    incomplete_since: int
    """Snapshots after it, none of which is complete."""
    late: bool
    """Older than `max_age`, or of no known age."""
    drilled: str = ""
    """When the last drill in the store began, "" for none, and what came of it: same or different."""
    drill: str = ""

    def line(self) -> str:
        """Return the line for a person."""
        state = self._state()
        if self.incomplete_since:
            state += f", {self.incomplete_since} incomplete since"
        if self.drilled:
            state += f", drill of {self.drilled[:10]}: {self.drill}"
        if not self.snapshot:
            return f"{self.server:<20} {'none':>8} {'':<20} {'':>8} {'':>12} {'':>18} {'':>16}  {state}"
        growth = "" if self.growth_bytes is None else f"{self.growth_bytes:+,}"
        shown = "?" if self.age_s is None else age(self.age_s)
        what = f"{self.time:<20} {shown:>8} {self.files:>12,} {self.file_bytes:>18,} {growth:>16}"
        return f"{self.server:<20} {self.snapshot:>8} {what}  {state}"

    def _state(self) -> str:
        if not self.snapshot:
            return "NONE: no complete snapshot"
        if self.age_s is None:
            return "AGE UNKNOWN: it is dated in the future, so a clock is wrong"
        return "LATE" if self.late else "ok"


def list_status(context: Context, server: str) -> Listing:
    """List every server in the store, or the one that is named.

    Raises:
        SnapshotError: there is none.
    """
    store = context.open_store(False)
    names = [name for name in snapshot.server_names(store) if server in ("", name)]
    if not names:
        raise SnapshotError(
            f"{store.name} has no server {server}" if server else f"nothing has been saved in {store.name}"
        )
    failed: list[tuple[str, str]] = []
    missed: list[str] = []
    return Listing(HEADING, _rows(context, store, names, failed, missed), failed, missed, is_judged=True)


def age(seconds: int) -> str:
    """Return an age for a person: minutes, hours, or days."""
    if seconds < 2 * 3600:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h" if seconds < 3 * 86400 else f"{seconds // 86400} days"


def known_age_s(started_ns: int) -> int | None:
    """Return how many seconds ago it was, None where that is yet to come; clocks may differ by a quarter of an hour."""
    age_s = (now_ns() - started_ns) // 1_000_000_000
    return max(age_s, 0) if age_s >= -GRACE_S else None


def _rows(
    context: Context, store: Store, names: list[str], failed: list[tuple[str, str]], missed: list[str]
) -> Iterator[StatusRow]:
    limit_s = context.config.max_age_s
    for name in names:
        context.check_stop()
        row = _row(context, store, name, limit_s, failed)
        if row.late:
            missed.append(name)
        yield row


def _row(context: Context, store: Store, name: str, limit_s: int | None, failed: list[tuple[str, str]]) -> StatusRow:
    """Look at a server's snapshots, newest first, until two of them are complete."""
    complete: list[Header] = []
    since = 0
    for number in reversed(snapshot.numbers(store, name)):
        context.check_stop()
        try:
            header = snapshot.find(store, name, number)
        except SnapshotError as error:
            failed.append((f"snapshot {number} of {name}", error.message))
            context.reporter.warn(f"failed: {error.message}")
            continue
        if header is not None and header.complete:
            complete.append(header)
        elif header is not None and not complete:
            since += 1
        if len(complete) == 2:
            break
    if not complete:
        return StatusRow(name, 0, "", None, 0, 0, None, since, late=True)
    drilled, drill = trend.last(store, name)
    last, totals = complete[0], complete[0].totals
    age_s = known_age_s(last.started_ns)
    growth = totals.file_bytes - complete[1].totals.file_bytes if len(complete) == 2 else None
    late = age_s is None or (limit_s is not None and age_s > limit_s)
    return StatusRow(
        server=name,
        snapshot=last.number,
        time=last.started,
        age_s=age_s,
        files=totals.files,
        file_bytes=totals.file_bytes,
        growth_bytes=growth,
        incomplete_since=since,
        late=late,
        drilled=drilled,
        drill=drill,
    )
