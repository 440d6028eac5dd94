"""The grammar of the commands that look into snapshots."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from blobark.command import Command, server_option, share, snapshot_number
from blobark.context import Context
from blobark.errors import ConfigError
from blobark.names import meant
from blobark.output import Listing

if TYPE_CHECKING:
    from blobark.listings import MapResult

LATEST = "latest"


def _number_or_latest(text: str) -> int:
    """Return the number of a snapshot, 0 for the newest."""
    return 0 if text == LATEST else snapshot_number(text)


def _ls_options(parser: argparse.ArgumentParser) -> None:
    text = "a snapshot's number (default: latest)"
    parser.add_argument("number", nargs="?", type=_number_or_latest, default=0, metavar="N", help=text)
    parser.add_argument("path", nargs="?", default="", metavar="PATH", help="only what is there and below it")
    server_option(parser)


def _find_options(parser: argparse.ArgumentParser) -> None:
    text = "with * ? [...]; compared with the whole path where it has a slash, else with the name"
    parser.add_argument("pattern", metavar="PATTERN", help=text)
    server_option(parser)


def _diff_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=snapshot_number, metavar="A", help="a snapshot's number")
    text = "another one (default: latest)"
    parser.add_argument("after", nargs="?", type=_number_or_latest, default=0, metavar="B", help=text)
    server_option(parser)


def _history_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a file or link, as it is called now or was once")
    server_option(parser)


def _map_options(parser: argparse.ArgumentParser) -> None:
    text = "a snapshot's number (default: latest)"
    parser.add_argument("number", nargs="?", type=_number_or_latest, default=0, metavar="N", help=text)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the map is written")
    server_option(parser)


def _schedule_options(parser: argparse.ArgumentParser) -> None:
    from blobark import schedule

    when = parser.add_mutually_exclusive_group()
    text = "back up every day at this time, up to 15 minutes later"
    when.add_argument("--daily", type=_read_by(schedule.daily_time), metavar="HH:MM", help=text)
    text = "back up every week, such as 'Sun 02:30'"
    when.add_argument("--weekly", type=_read_by(schedule.weekly_time), metavar="'DAY HH:MM'", help=text)
    text = "`prune --yes` every day (04:30), week ('Sun 04:30') or month ('1 04:30')"
    parser.add_argument("--prune", type=_read_by(schedule.any_time), metavar="TIME", help=text)
    text = "`verify` likewise"
    parser.add_argument("--verify", type=_read_by(schedule.any_time), metavar="TIME", help=text)
    text = "with --verify: read this share of the blobs, such as 10%%, each time the next one"
    parser.add_argument("--sample", type=_sample, metavar="SHARE", help=text)
    text = "only this one, such as blobark-prune.timer (default: all, each after its name)"
    parser.add_argument("--unit", choices=schedule.NAMES, default="", metavar="UNIT", help=text)


def _sample(text: str) -> str:
    share(text)
    return text.replace(" ", "")


def _read_by(read: Callable[[str], str]) -> Callable[[str], str]:
    """Return a reader for argparse, which shows the text of no other error."""

    def reader(text: str) -> str:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return reader


def _schedule(context: Context, options: argparse.Namespace) -> Listing:
    from blobark import schedule

    given = (options.daily or options.weekly, options.prune, options.verify, options.sample)
    times = schedule.Times(*(text or "" for text in given))
    if times.sample and not times.verify:
        raise ConfigError("--sample is for --verify")
    if not (times.backup or times.prune or times.verify):
        raise ConfigError("nothing to schedule", "say --daily or --weekly, --prune, --verify")
    return schedule.list_units(context, times, options.unit)


def _status(context: Context, options: argparse.Namespace) -> Listing:
    from blobark import status

    return status.list_status(context, options.server)


def _status_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", default="", metavar="NAME", help="only this one (default: all in the store)")


def _snapshots(context: Context, options: argparse.Namespace) -> Listing:
    from blobark import listings

    return listings.list_snapshots(context, options.server)


def _ls(context: Context, options: argparse.Namespace) -> Listing:
    from blobark import listings

    return listings.list_entries(context, options.server, options.number, meant(options.path))


def _find(context: Context, options: argparse.Namespace) -> Listing:
    from blobark import listings

    return listings.list_matches(context, options.server, options.pattern)


def _diff(context: Context, options: argparse.Namespace) -> Listing:
    from blobark import changes

    return changes.list_differences(context, options.server, options.before, options.after)


def _history(context: Context, options: argparse.Namespace) -> Listing:
    from blobark import listings

    return listings.list_history(context, options.server, meant(options.path))


def _map(context: Context, options: argparse.Namespace) -> MapResult:
    from blobark import listings

    return listings.write_map(context, options.server, options.number, options.out)


COMMANDS = {
    "snapshots": Command(
        "blobark snapshots",
        "list the snapshots in the store",
        "\n--server web1 --json",
        server_option,
        _snapshots,
        False,
    ),
    "ls": Command(
        "blobark ls",
        "list what a snapshot holds",
        "\n12\nlatest /srv/data/reports",
        _ls_options,
        _ls,
        False,
    ),
    "find": Command(
        "blobark find",
        "find files by name in all snapshots",
        "'*.odt'\n'/srv/data/*/2026-*'",
        _find_options,
        _find,
        False,
    ),
    "diff": Command(
        "blobark diff", "show what changed between two snapshots", "11 12\n11", _diff_options, _diff, False
    ),
    "history": Command(
        "blobark history",
        "show the versions of a file, also under its former names",
        "/srv/data/report.odt",
        _history_options,
        _history,
        False,
    ),
    "map": Command(
        "blobark map",
        "write the GUID-to-path map of a snapshot",
        "12 --out /tmp/guid_file_mapping.json",
        _map_options,
        _map,
        False,
    ),
    "status": Command(
        "blobark status",
        "show how old the last complete snapshot of every server is",
        "\n--json\n--server web1",
        _status_options,
        _status,
        False,
    ),
    "schedule": Command(
        "blobark schedule",
        "print the units with which systemd runs backups, and prunes and verifies, on this machine",
        "--daily 02:30\n--weekly 'Sun 02:30'\n--daily 02:30 --unit blobark.timer > /etc/systemd/system/blobark.timer"
        "\n--prune 'Sun 04:30' --verify 'Sun 06:30' --sample 10%",
        _schedule_options,
        _schedule,
        False,
    ),
}
