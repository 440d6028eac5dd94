"""Measure Blobark side by side with other tools, and print one table.

    python3 dev.py bench azure --server-command "fastblob --port {port}"
    python3 dev.py bench azure --endpoint http://127.0.0.1:10000/devstoreaccount1
    python3 dev.py bench large --server-command "fastblob --port {port}"
    python3 dev.py bench workers --server-command "fastblob --port {port} --latency-ms {latency}"
    python3 dev.py bench folder
    python3 dev.py bench memory
    python3 dev.py bench sampler
    python3 dev.py bench view
    python3 dev.py bench verdict
    python3 dev.py bench forecast

Whole processes are measured, from exec to exit. In a round all tools do a step one after the other, in an order that
is reversed from round to round. Ratios are taken within a round; the table shows their median. Every restored tree
is compared with the original. Tools that are not there are left out by name. See bench/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import benches, forecasts, instrument, pace, small, verdict, view
from bench.measure import Failed, say
from bench.trees import Different


def main() -> int:
    """Run one bench; returns the exit code."""
    args = parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with work_folder(args.work) as work:
            args.bench(args, work)
    except (Failed, Different) as error:
        say(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


@contextlib.contextmanager
def work_folder(parent: Path | None) -> Iterator[Path]:
    """Make a folder to work in, and remove it in the end, whatever happens."""
    work = Path(tempfile.mkdtemp(prefix="blobark-bench-", dir=parent))
    try:
        yield work
    finally:
        say("removing what was written")
        shutil.rmtree(work)


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="bench/run.py", description=__doc__, formatter_class=raw)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--runs", type=int, default=3, help="rounds (default: %(default)s)")
    shared.add_argument("--seed", type=int, default=1, help="of the trees")
    shared.add_argument("--work", type=Path, help="folder to work in (default: the system's for temporary files)")
    shared.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there")
    shared.add_argument("--tools", metavar="A,B", help="only these")
    for name in ("rclone", "azcopy", "restic"):
        shared.add_argument(f"--{name}", metavar="PATH", default="", help=f"where {name} is")
    names = "azure | large | small | workers | folder | memory | sampler | view | verdict | forecast"
    commands = top.add_subparsers(required=True, metavar=names)

    azure = commands.add_parser("azure", parents=[shared], help="save and restore, at an Azure endpoint")
    _add_files(azure, 50_000, 4096)
    _add_endpoint(azure)
    azure.add_argument("--defaults", action="store_true", help="rclone without --transfers 20: defaults on all sides")
    azure.set_defaults(bench=benches.azure, put_md5=False, own=benches.OWN_MAKERS, with_restic=False)

    large = commands.add_parser("large", parents=[shared], help="save and restore a few large files, at an endpoint")
    _add_files(large, 4, 256 * 1024 * 1024)
    _add_endpoint(large)
    large.set_defaults(bench=benches.azure, put_md5=True, defaults=False, own=benches.OWN_MAKERS, with_restic=False)

    many = commands.add_parser("small", parents=[shared], help="packs of small files, at an endpoint or in folders")
    _add_files(many, 100_000, 4096)
    _add_endpoint(many)
    many.set_defaults(bench=small.small, put_md5=False, defaults=False, with_restic=True)

    _add_more(commands, shared)
    return top


def _add_more(commands: Any, shared: argparse.ArgumentParser) -> None:
    workers = commands.add_parser("workers", parents=[shared], help="max_workers: auto beside fixed numbers")
    _add_files(workers, 20_000, 4096)
    workers.add_argument("--latencies", type=int, nargs="+", default=[1, 20, 100], metavar="MS")
    workers.add_argument("--settings", nargs="+", default=["auto", "2", "16", "64", "256", "512"], metavar="N")
    command = "a server to start, with {port} and {latency} (in ms) in it"
    workers.add_argument("--server-command", metavar="COMMAND", required=True, help=command)
    workers.set_defaults(bench=pace.workers)

    folder = commands.add_parser("folder", parents=[shared], help="save, save again and restore, stores in folders")
    folder.add_argument("--files", type=int, default=100_000)
    folder.add_argument("--size", type=int, default=2048, help="bytes of a file on average; they have 0 to twice that")
    folder.set_defaults(bench=benches.folder, own={**benches.OWN_MAKERS, **small.packed()})

    memory = commands.add_parser("memory", parents=[shared], help="peak memory with few and with many files")
    memory.add_argument("--files", type=int, nargs=2, default=[100_000, 1_000_000])
    memory.add_argument("--size", type=int, default=16, help="bytes of each file (default: %(default)s)")
    memory.set_defaults(bench=benches.memory, runs=1)
    _add_instruments(commands)


def _add_instruments(commands: Any) -> None:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--work", type=Path, help="folder to work in (default: the system's for temporary files)")
    sampler = commands.add_parser("sampler", parents=[shared], help="what measuring costs")
    sampler.add_argument("--runs", type=int, default=3, help="(default: %(default)s)")
    sampler.add_argument("--seconds", type=int, default=10, help="of each run (default: %(default)s)")
    sampler.set_defaults(bench=instrument.sampler)
    seen = commands.add_parser("view", parents=[shared], help="what the live view costs")
    seen.add_argument("--runs", type=int, default=3, help="(default: %(default)s)")
    seen.add_argument("--seconds", type=int, default=20, help="of each restore (default: %(default)s)")
    seen.set_defaults(bench=view.view)
    named = commands.add_parser("verdict", parents=[shared], help="is the bottleneck named that was planted?")
    named.add_argument("--runs", type=int, default=10, help="of each bottleneck (default: %(default)s)")
    named.add_argument("--seed", type=int, default=1, help="of the trees and the order")
    named.add_argument("--plants", nargs="+", metavar="NAME", help="only these")
    named.set_defaults(bench=verdict.verdict)
    forecast = commands.add_parser("forecast", parents=[shared], help="forecasts beside what restores then took")
    forecast.add_argument("--trees", type=int, default=20, help="that are forecast (default: %(default)s)")
    forecast.add_argument("--teach", type=int, default=16, help="that come before those (default: %(default)s)")
    forecast.add_argument("--scale", type=float, default=1.0, help="of the numbers of files (default: %(default)s)")
    forecast.add_argument("--seed", type=int, default=1, help="of the trees")
    forecast.set_defaults(bench=forecasts.forecast)


def _add_files(parser: argparse.ArgumentParser, files: int, size_bytes: int) -> None:
    parser.add_argument("--files", type=int, default=files)
    parser.add_argument("--size", type=int, default=size_bytes, help="bytes of each file (default: %(default)s)")


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--endpoint", default="", help="an address with the account in it, as emulators have")
    parser.add_argument("--connection-string", default=os.environ.get("AZURE_STORAGE_CONNECTION_STRING", ""))
    parser.add_argument("--server-command", metavar="COMMAND", help="a server to start, with {port} in it")


if __name__ == "__main__":
    sys.exit(main())
