"""The grammar of the commands that decide what stays: tag, forget, prune."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from blobark.command import Command, server_option, snapshot_number
from blobark.config_keys import bytes_of
from blobark.context import Context

if TYPE_CHECKING:
    from blobark.prune import PruneResult
    from blobark.tagging import TagResult


def _tag_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("number", type=snapshot_number, metavar="N", help="a snapshot's number")
    text = "what it is to be called: a-z, 0-9, ., _ and -; without any its tags are shown"
    parser.add_argument("names", nargs="*", metavar="TAG", help=text)
    parser.add_argument("--remove", action="store_true", help="take these tags away")
    server_option(parser)


def _tag(context: Context, options: argparse.Namespace) -> TagResult:
    from blobark.tagging import TagOptions, run_tag

    return run_tag(context, TagOptions(options.number, tuple(options.names), options.remove, options.server))


def _prune_options(parser: argparse.ArgumentParser) -> None:
    text = "let the next save store so much anew, out of blobs that are mostly dead (default: 1GiB; 0: nothing)"
    parser.add_argument("--max-rewrite", type=_size, default=1 << 30, metavar="SIZE", help=text)
    _yes_options(parser)


def _yes_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do it (default: show the plan, change nothing)")
    server_option(parser)


def _size(text: str) -> int:
    try:
        return 0 if text == "0" else bytes_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _prune(context: Context, options: argparse.Namespace) -> PruneResult:
    from blobark.prune import PruneOptions, run_prune

    return run_prune(context, PruneOptions(options.server, options.yes, max_rewrite_bytes=options.max_rewrite))


def _forget_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("numbers", nargs="+", type=snapshot_number, metavar="N", help="a snapshot's number")
    text = "forget the newest complete snapshot, too, if it is among them"
    parser.add_argument("--last-complete", action="store_true", help=text)
    _yes_options(parser)


def _forget(context: Context, options: argparse.Namespace) -> PruneResult:
    from blobark.prune import PruneOptions, run_prune

    numbers = frozenset(options.numbers)
    return run_prune(context, PruneOptions(options.server, options.yes, numbers, options.last_complete))


COMMANDS = {
    "tag": Command(
        "blobark tag",
        "give a snapshot names that `keep` can hold it by",
        "12 before-upgrade\n12 before-upgrade --remove\n12",
        _tag_options,
        _tag,
        False,
    ),
    "forget": Command(
        "blobark forget",
        "remove snapshots by their numbers, whatever `keep` says",
        "3 4\n3 4 --yes",
        _forget_options,
        _forget,
        False,
    ),
    "prune": Command(
        "blobark prune",
        "remove the snapshots that `keep` does not keep, and a day later what only they needed",
        "\n--yes\n--yes --max-rewrite 10GiB --json",
        _prune_options,
        _prune,
        False,
    ),
}
