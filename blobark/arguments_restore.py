"""The grammar of `restore`: its options by what they are for, and which of them exclude each other."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blobark.command import Command, moment_ns, server_option, share, snapshot_number
from blobark.context import Context
from blobark.errors import ConfigError

if TYPE_CHECKING:
    from blobark.output import Stream
    from blobark.restoring import RestoreOptions

_ONLY_OF_SNAPSHOTS = (
    "snapshot",
    "at",
    "strip",
    "in_place",
    "delete",
    "priority",
    "owner_map",
    "no_owner",
    "no_special",
)
_NOT_AGAIN = ("snapshot", "at", "server", "map_path", "share", "delete", "priority", "cat", "tar")
_NOT_WITH_SAMPLE = ("paths", "include", "exclude", "strip", "delete", "priority", "cat", "tar", "map_path")
_NOT_TO_STDOUT = (
    *("restore_root", "in_place", "delete", "priority", "rehydrate", "map_path", "json", "dry_run"),
    *("overwrite", "metrics_log_file"),
)
_NOT_WITH_CAT = ("paths", "include", "exclude", "strip", "owner_map", "no_owner", "no_special")
_EXCLUDE_EACH_OTHER = (
    ("cat", ("tar", *_NOT_TO_STDOUT, *_NOT_WITH_CAT)),
    ("tar", _NOT_TO_STDOUT),
    ("map_path", _ONLY_OF_SNAPSHOTS),
    ("retry_failed", _NOT_AGAIN),
    ("share", _NOT_WITH_SAMPLE),
    ("in_place", ("restore_root", "strip")),
    ("delete", ("strip",)),
    ("at", ("snapshot",)),
    ("no_owner", ("owner_map",)),
)
"""Each of them, and what makes no sense beside it."""
_NAMES = {"paths": "PATH", "restore_root": "--to", "map_path": "--map", "share": "--sample"}


def _options(parser: argparse.ArgumentParser) -> None:
    server_option(parser)
    text = "in place of the configuration's: a number, or auto"
    parser.add_argument("--max-workers", metavar="N", help=text)
    text = "in place of the configuration's: how much of a large file one request asks for, such as 16MiB"
    parser.add_argument("--part-size", metavar="SIZE", help=text)
    parser.add_argument("--metrics-log-file", metavar="FILE", help="in place of the configuration's")
    # Of a sweep: no journal, monitoring is not told, and it ends with the sweep.
    parser.add_argument("--trial", action="store_true", help=argparse.SUPPRESS)
    text = "bring back content of the archive tier: in up to 15 hours, or faster and dearer"
    parser.add_argument("--rehydrate", choices=("standard", "high"), help=text)
    _when(parser.add_argument_group("which state"))
    _what(parser.add_argument_group("what of it"))
    _where(parser.add_argument_group("where to"))
    _how(parser.add_argument_group("how"))


def _when(group: argparse._ArgumentGroup) -> None:
    text = "a snapshot's number (default: latest)"
    group.add_argument("--snapshot", type=snapshot_number, default=0, metavar="N", help=text)
    text = (
        "the last complete snapshot of this time or before, such as 2026-11-01T12:00; local time, unless it says +00:00"
    )
    group.add_argument("--at", type=moment_ns, default=0, metavar="TIME", help=text)
    text = "restore what a bare {guid: path} JSON names, without a snapshot"
    group.add_argument("--map", type=Path, dest="map_path", metavar="FILE", help=text)


def _what(group: argparse._ArgumentGroup) -> None:
    text = "only what is there and below it, as `blobark ls` shows it (default: everything)"
    group.add_argument("paths", nargs="*", default=[], metavar="PATH", help=text)
    text = "only what this gitignore pattern matches, and all below it (may be repeated)"
    group.add_argument("--include", action="append", default=[], metavar="PATTERN", help=text)
    text = "nothing that this gitignore pattern matches (may be repeated)"
    group.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help=text)
    group.add_argument("--no-special", action="store_true", help="no devices, FIFOs and sockets")
    text = "what failed in the run with this journal, of the same snapshot, to the same place unless --to is given"
    group.add_argument("--retry-failed", type=Path, metavar="RUN", help=text)
    text = "this share of the files, such as 5%%, always the same ones of a snapshot"
    group.add_argument("--sample", type=share, default=1.0, dest="share", metavar="SHARE", help=text)


def _where(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--to", dest="restore_root", metavar="DIR", help="restore below DIR instead of restore_root")
    text = "take N leading components off the paths below DIR, as tar does"
    group.add_argument("--strip", type=_components, default=0, metavar="N", help=text)
    text = "with --map: take this off each path (default: source_path)"
    group.add_argument("--strip-prefix", default="", metavar="PATH", help=text)
    text = "restore every item to the full path that it was backed up from"
    group.add_argument("--in-place", action="store_true", help=text)
    group.add_argument(
        "--cat", metavar="FILE", default="", help="write the content of this one file to standard output"
    )
    group.add_argument("--tar", action="store_true", help="write a tar (pax) of it to standard output")


def _components(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 4096:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of components")
    return int(text)


def _how(group: argparse._ArgumentGroup) -> None:
    text = "what becomes of files that are there already (default: if-changed, by content)"
    group.add_argument("--overwrite", choices=("always", "if-changed", "never"), default="if-changed", help=text)
    text = "remove what the snapshot does not have, below directories that are chosen; look first with --dry-run"
    group.add_argument("--delete", action="store_true", help=text)
    text = "restore what the gitignore patterns in FILE match before the rest, and say when that is usable"
    group.add_argument("--priority", type=Path, metavar="FILE", help=text)
    text = "other owners: user:OLD:NEW,group:OLD:NEW,... or a file with one such rule a line; OLD may be *"
    group.add_argument("--owner-map", default="", metavar="RULES", help=text)
    group.add_argument("--no-owner", action="store_true", help="everything belongs to who restores")


def _refuse_contradictions(options: argparse.Namespace) -> None:
    """Raise `ConfigError` for options that make no sense together: none is ever passed over."""
    defaults = {"share": 1.0, "overwrite": "if-changed"}

    def is_given(name: str) -> bool:
        value = getattr(options, name)
        return bool(value) and value != defaults.get(name)

    for one, others in _EXCLUDE_EACH_OTHER:
        for other in others if is_given(one) else ():
            if is_given(other):
                raise ConfigError(f"{_named(one)} and {_named(other)} do not go together", "leave out one of them")
    if options.strip_prefix and not options.map_path:
        raise ConfigError("--strip-prefix is for --map", "--strip N takes N components off a snapshot's paths")
    if options.owner_map and os.geteuid() and not options.tar:
        raise ConfigError("--owner-map: only root can give files to others", "run it as root, or with --tar")
    if options.tar and sys.stdout.isatty():
        raise ConfigError("--tar writes no tar to a terminal", "say > FILE, or | tar -xf -")


def _named(name: str) -> str:
    return _NAMES.get(name) or "--" + name.replace("_", "-")


def _run(context: Context, options: argparse.Namespace) -> Any:
    from blobark.excerpt import Edits
    from blobark.owners import Owners
    from blobark.restoring import RestoreOptions, run_restore
    from blobark.selection import NO_PATTERNS, Selection, read_patterns

    _refuse_contradictions(options)
    owners = Owners.of(options.owner_map, mine=options.no_owner)
    chosen = RestoreOptions(
        snapshot=options.snapshot,
        at_ns=options.at,
        server=options.server,
        selection=Selection.of([options.cat] if options.cat else options.paths, options.include, options.exclude),
        edits=Edits(owners, options.no_special, options.strip),
        priority=read_patterns("--priority", options.priority) if options.priority else NO_PATTERNS,
        in_place=options.in_place,
        delete=options.delete,
        map_path=options.map_path,
        strip_prefix=options.strip_prefix,
        overwrite=options.overwrite,
        rehydrate=options.rehydrate,
        share=options.share,
        retry_failed=options.retry_failed,
        dry_run=options.dry_run,
    )
    if options.cat or options.tar:
        return _stream(context, chosen, is_tar=options.tar)
    return run_restore(context, chosen)


def repeated_target(options: argparse.Namespace) -> str | None:
    """Return where --retry-failed restores to if nothing else is said; None where it is not, or that is said.

    Raises:
        ConfigError: the journal does not tell, or contradicts the command line.
    """
    journal = getattr(options, "retry_failed", None)
    if journal is None or options.command != "restore" or options.restore_root is not None:
        return None
    from blobark.again import restore_target

    target = restore_target(journal, in_place=options.in_place)
    return None if options.in_place else os.fsdecode(target)


def _stream(context: Context, options: RestoreOptions, *, is_tar: bool) -> Stream:
    from blobark.streaming import stream_file, stream_tar

    return stream_tar(context, options) if is_tar else stream_file(context, options)


def to_stdout(options: argparse.Namespace) -> bool:
    """Whether standard output gets content, and nothing else."""
    return bool(getattr(options, "cat", "") or getattr(options, "tar", False))


RESTORE = Command(
    "restore_blob.py",
    "rebuild the tree below restore_root, or a part of it, in parallel, sampling the machine",
    "\n--snapshot 12 --to /srv/restored\n--server web1 --dry-run"
    "\n/srv/data/reports --at 2026-11-01T12:00 --to /tmp/then\n--include '*.odt' --exclude drafts/ --to /tmp/odt"
    "\n/srv/data/site --in-place --delete --dry-run\n/srv/data/site --to /srv/www --strip 1 --owner-map user:www:nginx"
    "\n--priority first.txt\n--cat /srv/data/report.odt > report.odt\n/srv/data/reports --tar > reports.tar"
    "\n--map saved.json --strip-prefix /srv/data\n--rehydrate high",
    _options,
    _run,
)
