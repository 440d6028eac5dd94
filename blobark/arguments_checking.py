"""The grammar of the commands that check what is stored: verify, repair."""

from __future__ import annotations

import argparse
from pathlib import Path

from blobark.command import Command, server_option, share, snapshot_number
from blobark.context import Context
from blobark.errors import ConfigError
from blobark.output import Listing


def _verify_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    text = "only this snapshot"
    which.add_argument("--snapshot", type=snapshot_number, default=0, metavar="N", help=text)
    which.add_argument("--all-snapshots", action="store_true", help="all snapshots (the default)")
    server_option(parser)
    parser.add_argument("--read", action="store_true", help="read every byte and compare it with its digest")
    text = "with --read: this share of the blobs, such as 10%%, each time the next one"
    parser.add_argument("--sample", type=share, default=None, dest="share", metavar="SHARE", help=text)


def _verify(context: Context, options: argparse.Namespace) -> Listing:
    from blobark.checking import VerifyOptions, list_damage

    if options.share is not None and not options.read:
        raise ConfigError("--sample is for --read")
    part = (options.share or 1.0) if options.read else 0.0
    all_rows = options.json or options.verbose
    return list_damage(context, VerifyOptions(options.server, options.snapshot, part, all_rows))


def _repair_options(parser: argparse.ArgumentParser) -> None:
    text = "what a verification has printed with --json: the blobs that it names are read again, too"
    parser.add_argument("found", nargs="?", type=Path, metavar="FILE", help=text)
    parser.add_argument("--yes", action="store_true", help="mend (default: only find out what could be mended)")
    server_option(parser)


def _repair(context: Context, options: argparse.Namespace) -> Listing:
    from blobark.checking import RepairOptions, list_repairs

    all_rows = options.json or options.verbose
    return list_repairs(context, RepairOptions(options.server, options.found, options.yes, all_rows))


COMMANDS = {
    "verify": Command(
        "blobark verify",
        "check that all that the snapshots name is in the store, and (--read) that it is what was saved",
        "\n--read\n--read --sample 10%\n--snapshot 12 --server web1 --json",
        _verify_options,
        _verify,
        False,
    ),
    "repair": Command(
        "blobark repair",
        "mend what is damaged in the store, from the living source",
        "\n--yes\ndamage.json --yes",
        _repair_options,
        _repair,
        False,
    ),
}
