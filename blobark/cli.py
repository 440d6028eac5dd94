"""The command line: what is typed becomes a run, its result becomes text or JSON, its error a line and an exit code.

Only this module prints results, catches broadly, and exits. A reader who has left is told nothing more, and changes no
exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import msgspec

from blobark import arguments, summary
from blobark.arguments_restore import to_stdout
from blobark.command import Command
from blobark.config import Config, load
from blobark.context import Context, walk_of
from blobark.crew import Crew
from blobark.engine import Engine
from blobark.errors import EXIT_BUG, BlobarkError, Fatal, Interrupted
from blobark.model import printable
from blobark.monitoring import exit_code, monitored
from blobark.orphans import end_with_parent
from blobark.output import Listing, Row, Stream
from blobark.progress import Display
from blobark.rules import Rules
from blobark.scout import Scout
from blobark.stores.load import Limits
from blobark.stores.retry import Retrying

CHECKOUT = Path(__file__).resolve().parent.parent
"""Where the scripts lie, and the configuration that they use when there is none in the current folder."""

REMOTE_WORKERS = 512
"""Up to so many threads, in all processes together, where as many as pay are looked for."""
LOCAL_WORKERS = 2


def main(argv: list[str] | None = None, *, command: str | None = None) -> int:
    """Run a command line and return the exit code; `command` is the one that a script stands for."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  (a stream that was closed by who started us)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    code = _main(sys.argv[1:] if argv is None else argv, command)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # its reader has left: what is still in it must not fail the end of the process
            _silence(stream)
    return code


def _silence(stream: TextIO) -> None:
    """Let what is still written to a stream go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _main(argv: list[str], command: str | None) -> int:
    try:
        options = arguments.parse(argv, command)
    except SystemExit as stop:
        return int(stop.code or 0)
    except BlobarkError as error:
        return _report_error(argparse.Namespace(command=command or "", json="--json" in argv), error)
    options.default_dir = CHECKOUT if command else None
    gc.freeze()  # what is loaded stays: the collector need not look at it again
    gc.enable()
    shown = Display(quiet=options.quiet, verbose=getattr(options, "verbose", False))
    try:
        return _run(options, shown)
    except BlobarkError as error:
        shown.end()
        return _report_error(options, error)
    except KeyboardInterrupt:
        shown.end()
        return _report_error(options, Interrupted())
    except OutputError as error:
        return _report_error(options, Fatal(f"the result cannot be written ({error})"))
    except Exception:
        shown.end()
        _complain(f"{traceback.format_exc()}blobark: this is a bug, please report it with the lines above")
        if options.json:
            _answer(options, {"command": options.command, "error": "a bug", "exit_code": EXIT_BUG})
        return EXIT_BUG


def _run(options: argparse.Namespace, shown: Display) -> int:
    command = arguments.COMMANDS[options.command]
    if command.by_itself is not None and (done := command.by_itself(options)) is not None:
        if isinstance(done, Listing):
            return _show_listing(options, done, None, shown, 0.0)
        return _show(options, done, None, shown, 0.0)
    started_s = time.monotonic()
    config = load(
        options.config, environ=os.environ, overrides=arguments.overrides(options), default_dir=options.default_dir
    )
    for warning in config.warnings:
        shown.warn(f"warning: {warning}")
    stop = threading.Event()
    stores: list[Retrying] = []

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # a terminal that is closed; `nohup` ignores it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    if getattr(options, "trial", False):
        end_with_parent(signal.SIGTERM)
    try:
        context = _context(config, shown, stop, stores)
        result = _monitored(command, context, options)
        if isinstance(result, Listing):
            return _show_listing(options, result, config, shown, started_s)
        if isinstance(result, Stream):
            return _pass_on(result)
    finally:
        shown.end()
        for store in stores:
            store.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    return _show(options, result, config, shown, time.monotonic() - started_s)


def _monitored(command: Command, context: Context, options: argparse.Namespace) -> Any:
    """Run a command; tell monitoring of it, if it is one that is scheduled and does anything."""
    if command.run is None:
        raise TypeError(f"{options.command} needs no context")
    is_plan = options.dry_run or not getattr(options, "yes", True)
    is_untold = is_plan or to_stdout(options) or getattr(options, "trial", False)
    if options.command not in arguments.MONITORED or is_untold:
        return command.run(context, options)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(monitored(context, options.command))
        run.result = result = command.run(context, options)
        if isinstance(result, Listing):  # its rows are the work
            return replace(result, rows=_within(stack.pop_all(), result.rows))
        return result


def _within(block: contextlib.ExitStack, rows: Iterator[Row]) -> Iterator[Row]:
    with block:
        yield from rows


class OutputError(Exception):
    """Standard output does not take the result."""


def _is_taken(write: Callable[[], object]) -> bool:
    """Write to standard output; say whether it has a reader still. Raises `OutputError`."""
    try:
        write()
        return True
    except BrokenPipeError:
        _silence(sys.stdout)
        return False
    except OSError as error:
        _silence(sys.stdout)
        raise OutputError(error.strerror) from None


def _show(options: argparse.Namespace, result: Any, config: Config | None, shown: Display, seconds: float) -> int:
    """Print a run's result and return the exit code."""
    code = exit_code(result)

    def write() -> None:
        _print_result(options, result, config, shown, seconds, code)
        sys.stdout.flush()

    _is_taken(write)
    return code


def _show_listing(
    options: argparse.Namespace, listing: Listing, config: Config | None, shown: Display, started_s: float
) -> int:
    """Print a listing as its rows come, and return the exit code. An error ends it; who tells that ends the JSON.

    Without a reader it ends too, unless its rows do work, or are what the exit code tells of.
    """

    def write(text: str) -> bool:
        return _is_taken(lambda: sys.stdout.write(text))

    between = f'{{"command": {json.dumps(options.command)}, "items": ['
    if listing.heading and not options.json and not options.quiet:
        write(f"{listing.heading}\n")
    for row in listing.rows:
        if options.json:
            text, between = f"{between}\n{msgspec.json.encode(row).decode()}", ","
            options.is_listing = True
        else:
            shown.end()  # where the rows take long to come there is a bar
            text = f"{printable(row.line())}\n"
        if not write(text) and not listing.is_judged:
            return listing.exit_code
    if options.json:
        head = "" if between == "," else between
        closing = msgspec.to_builtins(listing.closing) or {}
        end = {**closing, "failed": listing.failed, "warnings": shown.warnings}
        write(f"{head}], {json.dumps({**end, 'exit_code': listing.exit_code})[1:]}\n")
    elif listing.closing is not None and config is not None and not options.quiet:
        shown.end()
        seconds = time.monotonic() - started_s
        _is_taken(lambda: summary.show(options.command, listing.closing, config, seconds, dry_run=False))
    _is_taken(sys.stdout.flush)
    return listing.exit_code


def _pass_on(stream: Stream) -> int:
    """Write a stream to standard output and return the exit code."""
    write = sys.stdout.buffer.write
    with contextlib.closing(stream.pieces) as pieces:
        if all(_is_taken(partial(write, piece)) for piece in pieces):
            _is_taken(sys.stdout.flush)
    return stream.exit_code


def _print_result(
    options: argparse.Namespace, result: Any, config: Config | None, shown: Display, seconds: float, code: int
) -> None:
    if options.json:
        document = {"command": options.command, "seconds": round(seconds, 3), **msgspec.to_builtins(result)}
        document.pop("rows", None)
        print(json.dumps({**document, "warnings": shown.warnings, "exit_code": code}))
    elif options.quiet:
        return
    elif config is None:
        summary.show_rows(result.rows)
    else:
        summary.show(options.command, result, config, seconds, dry_run=options.dry_run)


def _context(config: Config, shown: Display, stop: threading.Event, stores: list[Retrying]) -> Context:
    is_remote = config.store == "azure"
    workers = config.max_workers or (REMOTE_WORKERS if is_remote else LOCAL_WORKERS)
    engine = Engine(workers, config.max_memory_bytes, stop, auto=is_remote and not config.max_workers)

    def open_store(create: bool) -> Retrying:
        from blobark.stores.open import open_store

        if not stores or (create and is_remote):  # one that was only looked at is not made by that
            stores.insert(
                0,
                open_store(
                    "azure" if config.store == "azure" else str(config.store),
                    login=config.login,
                    container=config.container_name or "",
                    create=create,
                    access_tier=config.access_tier or "",
                    workers=workers,
                    limits=Limits(config.max_bandwidth, config.max_requests_per_s, config.timeout_s),
                    stop=stop,
                    caller=engine.apart,
                    stages=engine.stages,
                ),
            )
        return stores[0]

    rules = Rules(skip_files=config.skip_files, skip_path=config.skip_path, exclude=config.exclude)

    crew = Crew(engine)
    scout = Scout(partial(walk_of, config, rules), stop)
    shown.under_way = engine.stages.under_way

    def store_counters() -> dict[str, int]:
        return stores[0].counters() if stores else {}

    def counters() -> dict[str, float]:
        run = {"files": shown.items, "bytes": shown.bytes, "failed": shown.failed}
        threads = {"workers": 0 if crew else engine.pace.workers, "queued_batches": engine.queue.qsize()}
        own, crews = {**store_counters(), **threads}, crew.counters()
        sums = {name: own.get(name, 0) + crews.get(name, 0) for name in own.keys() | crews.keys()}
        return {**run, "in_flight": engine.in_flight + crew.in_flight, **sums}

    return Context(config, rules, engine, crew, scout, shown, open_store, store_counters, counters)


def _report_error(options: argparse.Namespace, error: BlobarkError) -> int:
    for line in str(error).splitlines():
        _complain(f"blobark: {printable(line)}")
    if options.json:
        document = {"command": options.command, "error": error.message, "hint": error.hint}
        _answer(options, {**document, "exit_code": error.exit_code})
    return error.exit_code


def _complain(text: str) -> None:
    """Print to standard error, if anybody still reads that."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _answer(options: argparse.Namespace, document: dict[str, Any]) -> None:
    """Print a JSON object, or the end of one whose rows have come in part, if anybody still reads that."""
    if getattr(options, "is_listing", False):
        del document["command"]
        text = f"], {json.dumps(document)[1:]}"
    else:
        text = json.dumps(document)
    with contextlib.suppress(OSError):
        print(text, flush=True)
