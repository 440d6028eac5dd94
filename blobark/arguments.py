"""The command line's grammar: the commands, their options, and help with examples."""

from __future__ import annotations

import argparse
import difflib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from blobark import __version__
from blobark.arguments_checking import COMMANDS as CHECKING_COMMANDS
from blobark.arguments_listing import COMMANDS as LISTING_COMMANDS
from blobark.arguments_measuring import COMMANDS as MEASURING_COMMANDS
from blobark.arguments_pruning import COMMANDS as PRUNING_COMMANDS
from blobark.arguments_restore import RESTORE, repeated_target
from blobark.command import Command
from blobark.context import Context
from blobark.errors import EXIT_USAGE, ConfigError

if TYPE_CHECKING:
    from blobark.commands import IndexOptions, SaveOptions

MONITORED = ("index", "save", "backup", "restore", "drill", "verify", "repair", "prune")
"""Commands that monitoring is told of."""

EXIT_CODES = """exit codes:
  0 done   1 a bug   2 configuration or command line is wrong   3 finished, but some items failed (they are named)
  4 stopped by a fatal error   5 another run holds the lock
  6 an objective is missed   7 what is stored is damaged, or a signature wrong   130 interrupted"""


class _Parser(argparse.ArgumentParser):
    """A parser that names the nearest option when one is not known."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()
        if message.startswith("unrecognized") and unknown:
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(unknown[0], known, 1)
            message = f"unknown option {unknown[0]}" + (f", did you mean {near[0]}?" if near else "")
        raise ConfigError(message, f"see {self.prog} --help")


def parse(argv: list[str], command: str | None) -> argparse.Namespace:
    """Return the options; raises `SystemExit` after --help and --version, `ConfigError` for a mistake."""
    if command is not None:
        return _one(command, COMMANDS[command].script).parse_intermixed_args(argv, argparse.Namespace(command=command))
    about = "GUID-indexed backup and restore for Azure Blob Storage and folders."
    width = max(map(len, COMMANDS)) + 2
    listed = "\n".join(f"  {name:<{width}}{item.about}" for name, item in COMMANDS.items())
    parser = _Parser(
        prog="blobark",
        usage="blobark COMMAND [options]",
        description=about,
        epilog=f"commands:\n{listed}\n\nblobark COMMAND --help shows a command's options.\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"blobark {__version__}")
    parser.add_argument("command", help=argparse.SUPPRESS)
    if not argv:
        parser.print_help()
        raise SystemExit(EXIT_USAGE)
    name = parser.parse_args(argv[:1]).command
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        parser.error(f"there is no command {name}" + (f", did you mean {near[0]}?" if near else ""))
    return _one(name, f"blobark {name}").parse_intermixed_args(argv[1:], argparse.Namespace(command=name))


def every_command() -> argparse.ArgumentParser:
    """Return one parser of all commands: not to parse with, but to see what there is."""
    parser = _Parser(prog="blobark", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"blobark {__version__}")
    commands = parser.add_subparsers(dest="command")
    for name, item in COMMANDS.items():
        commands.add_parser(name, help=item.about, parents=[_one(name, f"blobark {name}")], add_help=False)
    return parser


def overrides(options: argparse.Namespace) -> dict[str, object]:
    """Return the configuration keys that the command line sets, itself or by the journal that it names."""
    keys = ("restore_root", "max_workers", "part_size", "metrics_log_file")
    given = {key: value for key in keys if (value := getattr(options, key, None)) is not None}
    if getattr(options, "trial", False):
        given["journals"] = 0
    target = repeated_target(options)
    return given if target is None else {**given, "restore_root": target}


def _one(name: str, prog: str) -> _Parser:
    command = COMMANDS[name]
    examples = "\n".join(f"  {prog} {line}".rstrip() for line in command.examples.splitlines())
    parser = _Parser(
        prog=prog,
        allow_abbrev=False,
        description=f"{command.about[0].upper()}{command.about[1:]}.",
        epilog=f"examples:\n{examples}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(dry_run=False)
    if command.run is not None:
        parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (default: config.yaml)")
    if command.changes:
        text = "show what would be done, in bytes and requests; do nothing"
        parser.add_argument("--dry-run", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object with the result, and nothing else")
    loudness = parser.add_mutually_exclusive_group()
    if command.run is not None:
        loudness.add_argument("-v", "--verbose", action="store_true", help="name every item")
    loudness.add_argument("-q", "--quiet", action="store_true", help="print failures and nothing else")
    parser.add_argument("--version", action="version", version=f"blobark {__version__}")
    command.add_options(parser)
    return parser


def _index_options(parser: argparse.ArgumentParser) -> None:
    _skip_option(parser)
    text = "let this source path be empty (may be repeated)"
    parser.add_argument("--allow-empty", action="append", default=[], metavar="ROOT", help=text)
    text = "let this source path have lost more than half its entries (may be repeated)"
    parser.add_argument("--allow-shrink", action="append", default=[], metavar="ROOT", help=text)
    text = "go on as this server of the store, when there is no local state"
    parser.add_argument("--adopt", default="", metavar="SERVER", help=text)


def _skip_option(parser: argparse.ArgumentParser) -> None:
    text = "when the newest snapshot is damaged beyond repair, go on from the newest that can be read"
    parser.add_argument("--skip-damaged", action="store_true", help=text)


def _skipping(context: Context, options: argparse.Namespace) -> Context:
    return replace(context, skip_damaged=options.skip_damaged)


def _run_index(context: Context, options: argparse.Namespace) -> Any:
    from blobark.commands import run_index

    return run_index(_skipping(context, options), _indexing(options))


def _indexing(options: argparse.Namespace) -> IndexOptions:
    from blobark.commands import IndexOptions

    empty, shrink = frozenset(options.allow_empty), frozenset(options.allow_shrink)
    return IndexOptions(empty, shrink, options.adopt, options.dry_run)


def _save_options(parser: argparse.ArgumentParser) -> None:
    _skip_option(parser)
    _creating(parser)
    text = "store again what failed in the run with this journal, and nothing else; needs no index"
    parser.add_argument("--retry-failed", type=Path, metavar="RUN", help=text)


def _creating(parser: argparse.ArgumentParser) -> None:
    from blobark import tags

    parser.add_argument("--create-container", action="store_true", help="make the Azure container when it is missing")
    text = "begin anew in a store that has lost its snapshots (default: refuse, since it may not be mounted)"
    parser.add_argument("--new-store", action="store_true", help=text)

    text = "give the new snapshot this name, that `keep` can hold it by (may be repeated)"
    parser.add_argument("--tag", action="append", type=tags.check, default=[], dest="tags", metavar="TAG", help=text)


def _run_save(context: Context, options: argparse.Namespace) -> Any:
    from blobark.commands import run_save

    return run_save(_skipping(context, options), _saving(options, options.retry_failed))


def _saving(options: argparse.Namespace, retry_failed: Path | None = None) -> SaveOptions:
    from blobark.commands import SaveOptions

    labels = tuple(dict.fromkeys(options.tags))
    return SaveOptions(options.create_container, options.new_store, retry_failed, labels, options.dry_run)


def _backup_options(parser: argparse.ArgumentParser) -> None:
    _index_options(parser)
    _creating(parser)
    text = "wait until another run has finished (default: end with exit code 5)"
    parser.add_argument("--wait", action="store_true", help=text)


def _run_backup(context: Context, options: argparse.Namespace) -> Any:
    from blobark.backup import BackupOptions, run_backup

    backup = BackupOptions(_indexing(options), _saving(options), options.wait, options.dry_run)
    return run_backup(_skipping(context, options), backup)


def _doctor_options(parser: argparse.ArgumentParser) -> None:
    from blobark.doctor import NEEDS, USUAL

    text = f"what this machine is to do (may be repeated; default: {', '.join(USUAL)})"
    parser.add_argument("--for", dest="commands", action="append", choices=tuple(NEEDS), help=text)


def _run_doctor(context: Context, options: argparse.Namespace) -> Any:
    from blobark.commands import run_doctor
    from blobark.doctor import USUAL

    return run_doctor(context, options.commands or USUAL, dry_run=options.dry_run)


def _rebuild_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", default="", metavar="NAME", help="whose blobs, when the store does not say")
    text = "publish a rescued snapshot though there is one that can be read"
    parser.add_argument("--force", action="store_true", help=text)


def _run_rebuild(context: Context, options: argparse.Namespace) -> Any:
    from blobark.rebuild import RebuildOptions, run_rebuild

    return run_rebuild(context, RebuildOptions(options.server, options.force, options.dry_run))


def _completion_options(parser: argparse.ArgumentParser) -> None:
    from blobark.completion import SHELLS

    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash or zsh")


def _completion(options: argparse.Namespace) -> Any:
    from blobark.completion import list_script

    return list_script(options.shell, every_command())


def _report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logs", type=Path, nargs="+", metavar="RUN", help="a run log; several are laid side by side")
    parser.add_argument("--html", type=Path, metavar="FILE", help="where the page goes (default: RUN as .html)")
    text = "also write the plain series: time, CPU, memory, disk, network"
    parser.add_argument("--csv", type=Path, metavar="FILE", help=text)


def _report(options: argparse.Namespace) -> Any:
    from metrics.report import report

    return report(options.logs, html=options.html, csv_file=options.csv)


COMMANDS = {
    "index": Command(
        "build_index.py",
        "walk the source tree, give every file a GUID, write the map",
        "\n-v\n--config /etc/blobark.yaml --json\n--allow-shrink /srv/data",
        _index_options,
        _run_index,
    ),
    "save": Command(
        "save_blob.py",
        "store each file of the map under its GUID and publish a snapshot",
        "\n--dry-run\n--config /etc/blobark.yaml --json\n--create-container"
        "\n--retry-failed blobark-data/state/journals/20261121T023000Z-save.jsonl",
        _save_options,
        _run_save,
    ),
    "restore": RESTORE,
    "backup": Command(
        "blobark backup",
        "index and save in one run, as a schedule wants it",
        "\n--wait --json\n--config /etc/blobark/config.yaml --quiet\n--tag before-upgrade\n--dry-run",
        _backup_options,
        _run_backup,
    ),
    "doctor": Command(
        "blobark doctor",
        "show how this machine logs in to its store, and try what it may do there",
        "\n--for restore\n--json",
        _doctor_options,
        _run_doctor,
    ),
    "rebuild": Command(
        "blobark rebuild",
        "make a snapshot of what the blobs say of themselves, when every snapshot is lost",
        "--dry-run\n\n--server web1 --json",
        _rebuild_options,
        _run_rebuild,
    ),
    "report": Command(
        "blobark report",
        "show what a run log says, and what held the run up: in the terminal and as a page",
        "restore-metrics.json\nbefore.json after.json --html compared.html\nrun.json --csv run.csv --json",
        _report_options,
        None,
        False,
        _report,
    ),
    "completion": Command(
        "blobark completion",
        "print what makes a shell complete blobark's commands and options",
        "bash > ~/.local/share/bash-completion/completions/blobark\nzsh > /usr/local/share/zsh/site-functions/_blobark",
        _completion_options,
        None,
        False,
        _completion,
    ),
    **LISTING_COMMANDS,
    **MEASURING_COMMANDS,
    **PRUNING_COMMANDS,
    **CHECKING_COMMANDS,
}
