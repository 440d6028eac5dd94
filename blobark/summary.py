"""The closing words of a run: tables where a person looks, plain lines elsewhere. Standard output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blobark.config import Config
from blobark.model import printable
from blobark.wording import counted, duration, size, times

if TYPE_CHECKING:  # of what the other commands are made no run has to load
    from blobark.backup import BackupResult
    from blobark.changes import DiffResult
    from blobark.doctor import DoctorResult
    from blobark.indexed import IndexResult
    from blobark.listings import MapResult
    from blobark.rebuild import RebuildResult
    from blobark.restore import RestoreResult
    from blobark.saved import SaveResult

Rows = list[tuple[str, str]]
MINUTES_FROM_S = 60.0
FORECAST_FROM_S = 5.0
"""Of a shorter restore nobody asks how well it had been forecast."""
CHANGES = {
    "new": "new",
    "gone": "gone",
    "renamed": "renamed",
    "content": "with other content",
    "kind": "of another kind",
    "metadata": "with other metadata",
}
"""The counts of a diff, in words."""


def show(command: str, result: Any, config: Config, seconds: float, *, dry_run: bool) -> None:
    """Print the summary of a run's result."""
    rows = _rows(command, result, config, seconds, dry_run=dry_run)
    title = f"{command}: nothing was changed, this is the plan" if dry_run else f"{command}: {duration(seconds)}"
    if sys.stdout.isatty():
        _print_table(title, [(name, [value]) for name, value in rows])
    else:
        print(title)
        width = max(len(name) for name, _ in rows) + 2
        for name, value in rows:
            print(f"  {name:<{width}}{printable(value)}")


def _rows(command: str, result: Any, config: Config, seconds: float, *, dry_run: bool) -> Rows:
    match command:
        case "index":
            rows = _index(result, config, dry_run=dry_run)
        case "save":
            rows = _saving(result, config, seconds, dry_run=dry_run)
        case "backup":
            rows = _backup(result, config, seconds, dry_run=dry_run)
        case "restore":
            rows = _restore_plan(result) if dry_run else _restore(result, config, seconds)
        case "doctor":
            rows = _doctor(result)
        case "rebuild":
            rows = _rebuild(result)
        case "map":
            rows = _map(result)
        case "diff":
            rows = _diff(result)
        case _:
            rows = _told_elsewhere(command, result)
    return rows


def _told_elsewhere(command: str, result: Any) -> Rows:
    if command in ("verify", "repair"):
        from blobark import summary_checking

        return summary_checking.rows_of(result)
    if command in ("tag", "forget", "prune"):
        from blobark import summary_pruning

        return summary_pruning.rows_of(result)
    from blobark import summary_measuring

    return summary_measuring.rows_of(result)


def show_rows(rows: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Print rows with a name and any number of cells: a table where a person looks, plain lines elsewhere."""
    if not sys.stdout.isatty():
        columns = max(len(cells) for _, cells in rows)
        widths = [max(len(cells[at]) for _, cells in rows if len(cells) > at) for at in range(columns)]
        name_width = max(len(name) for name, _ in rows)
        for name, cells in rows:
            shown = (f"{printable(cell):<{width}}" for cell, width in zip(cells, widths, strict=False))
            print(f"{name:<{name_width}}  {'  '.join(shown)}".rstrip())
        return
    _print_table("", rows)


def _index(result: IndexResult, config: Config, *, dry_run: bool) -> Rows:
    rows = [("server", result.server)]
    rows += [(name, f"{tally.items:,} ({size(tally.bytes)})") for name, tally in result.tallies.items()]
    rows.append(("directories", f"{result.dirs:,}"))
    if not dry_run:
        rows.append(("in the map", f"{result.mapped:,} ({config.guid_mapping_file})"))
    if result.unmapped:
        why = "no plain blob of their own: further hard links, sparse, packed, compressed, or equal to another"
        rows.append(("files not in the map", f"{result.unmapped:,} ({why})"))
    return rows + _failures(result.errors, result.journal)


def _backup(result: BackupResult, config: Config, seconds: float, *, dry_run: bool) -> Rows:
    rows = _index(result.index, config, dry_run=dry_run) + _saving(result.save, config, seconds, dry_run=dry_run)
    rows = [row for row in rows if row[0] not in ("failed", "journal")]
    return rows + _failures(result.failed, result.save.journal)


def _map(result: MapResult) -> Rows:
    return [
        ("map", f"of snapshot {result.snapshot} of {result.server}"),
        ("lines", f"{result.mapped:,}"),
        ("file", result.file),
    ]


def _saving(result: SaveResult, config: Config, seconds: float, *, dry_run: bool) -> Rows:
    return _save_plan(result, config) if dry_run else _save(result, config, seconds)


def _save(result: SaveResult, config: Config, seconds: float) -> Rows:
    if not result.snapshot:
        return [("snapshot", "none was made, there is nothing to retry")]
    rows = [
        (
            "snapshot",
            f"{result.snapshot} of {result.server}" + ("" if result.complete else " (incomplete)") + _tags(result),
        ),
        ("holds", f"{counted(result.files, 'file')} ({size(result.file_bytes)}), {counted(result.entries, 'entry')}"),
        ("sent", f"{counted(result.sent, 'file')} ({size(result.sent_bytes)}) in {counted(result.blobs, 'blob')}"),
        ("there already", f"{result.kept:,}"),
        ("skipped by rule", f"{result.skipped:,}"),
        ("rate", _rate(result.sent, result.sent_bytes, seconds)),
        ("transfers at a time", f"{result.workers:,}{' (auto)' if config.max_workers is None else ''}"),
    ]
    rows += _packed(result)
    if result.equal:
        rows.append(
            ("stored once", f"{counted(result.equal, 'file')} ({size(result.equal_bytes)}) equal to others: not sent")
        )
    if config.compression and result.stored_bytes < result.plain_bytes:
        saved = result.plain_bytes - result.stored_bytes
        shown = f"{size(result.plain_bytes)} to {size(result.stored_bytes)}"
        rows.append(("compressed", f"{shown} ({100 * saved // result.plain_bytes} % saved)"))
    if result.audited:
        rows.append(("audited in the store", counted(result.audited, "blob")))
    if result.sent_again:
        rows.append(("arrived wrong, sent again", f"{result.sent_again:,}"))
    if result.rewritten:
        rows.append(("stored anew, to leave dead blobs", f"{result.rewritten:,}"))
    if result.changed_while_read:
        rows.append(("changed while read", f"{len(result.changed_while_read):,}"))
    return rows + _failures(result.failed, result.journal)


def _tags(result: SaveResult) -> str:
    return f", tagged {', '.join(result.tags)}" if result.tags else ""


def _packed(result: SaveResult) -> Rows:
    if not result.packed:
        return []
    saved = result.packed - result.packs
    return [
        (
            "packed",
            f"{counted(result.packed, 'file')} in {counted(result.packs, 'pack')} ({counted(saved, 'blob')} fewer)",
        )
    ]


def _save_plan(result: SaveResult, config: Config) -> Rows:
    unknown = [name for name, is_on in (("dedupe", config.dedupe), ("compression", config.compression)) if is_on]
    rows = [
        ("to send", f"{'at most ' if unknown else ''}{counted(result.sent, 'file')} ({size(result.sent_bytes)})"),
        ("skipped by rule", f"{result.skipped:,}"),
        *_packed(result),
    ]
    if unknown:
        rows.append(("not known before reading", f"what {' and '.join(unknown)} will save"))
    return rows + _requests(result.requests)


def _restore(result: RestoreResult, config: Config, seconds: float) -> Rows:
    rows = [
        ("restored", f"{counted(result.files, 'file')} ({size(result.file_bytes)}) {_place(result)}"),
        ("written", f"{counted(result.written, 'file')} ({size(result.written_bytes)})"),
        ("right already", f"{result.kept:,}"),
        ("directories", f"{result.dirs:,}"),
        ("hard links", f"{result.links:,}"),
        ("links and special files", f"{result.specials:,}"),
        ("seconds", f"{seconds:.1f}" + (f" ({seconds / 60:.2f} minutes)" if seconds >= MINUTES_FROM_S else "")),
        ("rate", _rate(result.files, result.file_bytes, seconds)),
        ("transfers at a time", f"{result.workers:,}{' (auto)' if config.max_workers is None else ''}"),
        ("peak memory", size(result.peak_rss_bytes)),
        ("metrics", str(config.metrics_log_file)),
    ]
    if result.forecast_s and result.seconds >= FORECAST_FROM_S:
        rows.insert(7, ("forecast", times(result.forecast_s, result.seconds)))
    if result.usable_s is not None:
        rows.insert(1, ("usable after", f"{result.usable_s:,.1f} s (all that has priority)"))
    if result.deleted:
        rows.append(("deleted", _deleted(result)))
    if result.archived:
        rows.append(("was archived", _archived(result)))
    if result.needs_root:
        rows.append(("owners", "all is yours: only root can give files to others, and set some of their attributes"))
    if result.left:
        rows.insert(3, ("left as they are", f"{result.left:,}"))
    return rows + _failures(result.failed, result.journal)


def _restore_plan(result: RestoreResult) -> Rows:
    rows = [
        ("to write", f"{counted(result.written, 'file')} ({size(result.written_bytes)})"),
        ("right already", f"{result.kept:,}"),
        ("left as they are", f"{result.left:,}"),
        ("directories", f"{result.dirs:,}"),
    ]
    if result.deleted:
        rows.append(("to delete", f"{_deleted(result)} (named above)"))
    if result.archived:
        rows.append(("archived, needs --rehydrate", _archived(result)))
    return rows + _requests(result.requests) + _failures(result.failed)


def _diff(result: DiffResult) -> Rows:
    said = [f"{count:,} {words}" for name, words in CHANGES.items() if (count := getattr(result, name))]
    snapshots = f"{result.before} and {result.after} of {result.server}"
    return [("snapshots", snapshots), ("changes", ", ".join(said) or "none")]


def _doctor(result: DoctorResult) -> Rows:
    rows = [("server", result.server)]
    rows += [(what, f"{value}  [{origin}]" if origin else value) for what, value, origin in result.used]
    for check in result.checks:
        said = {True: "yes", False: "NO", None: "not tried"}[check.ok]
        took = "" if check.ok is None else f" ({check.milliseconds:,.0f} ms)"
        rows.append((f"may {check.what}", f"{said}{took}" + (f": {check.said}" if check.said else "")))
    if result.clock_ahead_s is not None:
        rows.append(("clock", f"{result.clock_ahead_s:+} s ahead of the service's"))
    well = "can work" if all(check.ok is not None for check in result.checks) else "can work, as far as was tried"
    rows += [(name, f"lacks: {', '.join(lacks)}" if lacks else well) for name, lacks in result.missing.items()]
    rows.append(("rescue script", f"SHA-256 {result.rescue_script_sha256}"))
    return rows + [("advice", text) for text in result.advice]


def _rebuild(result: RebuildResult) -> Rows:
    rows = [
        ("snapshot", f"{result.snapshot} of {result.server} (rescued)" if result.snapshot else "none yet"),
        ("files", f"{result.files:,} ({size(result.file_bytes)})"),
        ("with .~<guid> at the end", f"{result.older:,} (older versions, or a directory has their path)"),
        ("below lost+found", f"{result.lost:,} (blobs that do not say what they are, or lack other parts)"),
        ("placeholders left out", f"{result.nameless:,} (they do not say of what)"),
        ("cannot come back so", result.missing),
    ]
    return rows + _requests(result.requests) + _failures(result.failed)


def _place(result: RestoreResult) -> str:
    return "in their own places" if result.target == "/" else f"to {result.target}"


def _deleted(result: RestoreResult) -> str:
    return f"{counted(result.deleted, 'item')} ({size(result.deleted_bytes)})"


def _archived(result: RestoreResult) -> str:
    return f"{counted(result.archived, 'file')} ({size(result.archived_bytes)})"


def _requests(requests: dict[str, int]) -> Rows:
    return [(f"requests: {kind}", f"{count:,}") for kind, count in requests.items()]


def _failures(failed: list[tuple[str, str]], journal: str = "") -> Rows:
    rows = [("failed", f"{len(failed):,} (named above)")] if failed else []
    return [*rows, ("journal", journal)] if failed and journal else rows


def _rate(items: int, count: int, seconds: float) -> str:
    seconds = max(seconds, 1e-9)
    return f"{items / seconds:,.0f} files/s, {count / seconds / 1e6:,.1f} MB/s"


def _print_table(title: str, rows: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Print a table. What is too long for its column goes on below: a key or a path that is cut short is of no use."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, show_header=False, title_justify="left")
    for _ in range(1 + max(len(cells) for _, cells in rows)):
        table.add_column(overflow="fold")
    for name, cells in rows:
        style = "red" if name == "failed" else ""
        table.add_row(name, *(Text(printable(cell)) for cell in cells), style=style)
    Console().print(table)
