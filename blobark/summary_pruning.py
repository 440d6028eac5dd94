"""The closing words of the commands that decide what stays."""

from __future__ import annotations

from blobark.prune import Amount, PrunedSnapshot, PruneResult
from blobark.tagging import TagResult
from blobark.wording import counted, size

Rows = list[tuple[str, str]]


def rows_of(result: PruneResult | TagResult) -> Rows:
    """Return what is said of a result, as names and values."""
    if isinstance(result, TagResult):
        return [("snapshot", f"{result.snapshot} of {result.server}"), ("tags", ", ".join(result.tags) or "none")]
    rows = [("server", result.server)]
    width = max((len(_reasons(item)) for item in result.snapshots), default=0)
    rows += [(f"snapshot {item.number}", _snapshot(item, width, done=result.done)) for item in result.snapshots]
    kept = sum(item.keep for item in result.snapshots)
    rows.append(("snapshots", f"{kept:,} stay, {len(result.snapshots) - kept:,} {_go(result)}"))
    when = "listed, to be deleted a day from now" if result.done else "to be deleted a day after --yes"
    rows.append(("only they name", f"{_amount(result.freed)}, {when}"))
    if result.orphans.blobs:
        rows.append(("nothing names", f"{_amount(result.orphans)} of runs that ended long ago, {when}"))
    if result.left_alone.blobs:
        rows.append(("nothing names yet", f"{_amount(result.left_alone)} of the last 7 days, left alone"))
    if result.waiting.blobs:
        rows.append(("listed before", f"{_amount(result.waiting)}, their day is not over"))
    if result.rewrite.blobs:
        asked = (
            f"{counted(result.rewrite.blobs, 'blob')}: the next save stores {size(result.rewrite.bytes)} of them anew"
        )
        rows.append(("mostly dead", asked))
    rows.append(("deleted" if result.done else "to be deleted with --yes", _amount(result.deleting)))
    return rows


def _go(result: PruneResult) -> str:
    return "removed" if result.done else "to be removed"


def _amount(amount: Amount) -> str:
    return f"{counted(amount.blobs, 'blob')} ({size(amount.bytes)})"


def _snapshot(item: PrunedSnapshot, width: int, *, done: bool) -> str:
    """Return the line of a snapshot; the column of the reasons is so wide."""
    fate = "stays" if item.keep else "gone" if done else "GOES"
    frees = "" if item.keep else f"  frees {size(item.freed_bytes)} by itself"
    return f"{item.time or '(cannot be read)':<20} {fate:<5}  {_reasons(item):<{width}}{frees}".rstrip()


def _reasons(item: PrunedSnapshot) -> str:
    labels = [f"[{', '.join(item.tags)}]"] if item.tags else []
    return "  ".join([*filter(None, [", ".join(item.reasons)]), *labels])
