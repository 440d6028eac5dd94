"""The grammar of the commands that measure restores: forecast, drill, sweep."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from blobark.command import Command, server_option, share, snapshot_number
from blobark.config_keys import part_size
from blobark.context import Context
from blobark.errors import ConfigError

if TYPE_CHECKING:
    from blobark.drill import DrillResult, VerifyResult
    from blobark.foresight import ForecastResult
    from blobark.sweep import SweepResult

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _duration_s(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([smhd])", text.strip().lower())
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90m or 2h")
    return float(match[1]) * _UNITS_S[match[2]]


def _snapshot_options(parser: argparse.ArgumentParser) -> None:
    text = "a snapshot's number (default: latest)"
    parser.add_argument("--snapshot", type=snapshot_number, default=0, metavar="N", help=text)
    server_option(parser)


def _forecast_options(parser: argparse.ArgumentParser) -> None:
    _snapshot_options(parser)
    text = "the objective: exit code 6 when one restore of ten or more would take longer than, say, 2h"
    parser.add_argument("--rto", type=_duration_s, metavar="TIME", help=text)


def _forecast(context: Context, options: argparse.Namespace) -> ForecastResult:
    from blobark.foresight import run_forecast

    return run_forecast(context, server=options.server, number=options.snapshot, rto_s=options.rto)


def _more(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?%", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage such as 50%")
    return float(match[1]) / 100


def _scratch_option(parser: argparse.ArgumentParser) -> None:
    text = "where the scratch folder is made (default: beside restore_root, else in state_dir)"
    parser.add_argument("--scratch", type=Path, metavar="DIR", help=text)


def _drill_options(parser: argparse.ArgumentParser) -> None:
    _snapshot_options(parser)
    _scratch_option(parser)
    extent = parser.add_mutually_exclusive_group()
    text = "restore this share of the files, the same ones each time of a snapshot (default: 5%%)"
    extent.add_argument("--sample", type=share, default=0.05, dest="share", metavar="SHARE", help=text)
    text = "restore the whole snapshot"
    extent.add_argument("--full", action="store_const", const=1.0, dest="share", help=text)
    parser.add_argument("--keep", action="store_true", help="leave what was restored where it is")
    text = (
        "how much longer than the earlier drills' median it may take, beyond which the exit code is 6 (default: 50%%)"
    )
    parser.add_argument("--slowdown", type=_more, default=0.5, metavar="MORE", help=text)
    text = "only check this evidence of a drill; needs no configuration and no store"
    parser.add_argument("--verify", type=Path, metavar="FILE", help=text)
    text = (
        "with --verify: whose signature it must be: the public key that a drill prints, or a file that you wrote it to"
    )
    parser.add_argument("--key", default="", metavar="PUBLIC", help=text)


def _drill(context: Context, options: argparse.Namespace) -> DrillResult:
    from blobark.drill import DrillOptions, run_drill

    chosen = DrillOptions(
        share=options.share,
        snapshot=options.snapshot,
        server=options.server,
        scratch=options.scratch,
        keep=options.keep,
        slowdown=options.slowdown,
    )
    return run_drill(context, chosen)


def _verify(options: argparse.Namespace) -> VerifyResult | None:
    if options.verify is None:
        if options.key:
            raise ConfigError("--key is for --verify FILE")
        return None
    from blobark.drill import verify

    return verify(options.verify, options.key)


def _sweep_options(parser: argparse.ArgumentParser) -> None:
    _snapshot_options(parser)
    _scratch_option(parser)
    text = "the numbers to try, such as 4,8,16,auto (default: 2,4,8,16,auto)"
    parser.add_argument("--workers", type=_workers, default=(2, 4, 8, 16, 0), metavar="N,N", help=text)
    text = "the part sizes to try with each, such as 4MiB,16MiB (default: the configuration's part_size alone)"
    parser.add_argument(
        "--part-size", type=_part_sizes, default=("",), dest="part_sizes", metavar="SIZE,SIZE", help=text
    )
    text = "restores of each (default: 3)"
    parser.add_argument("--repeat", type=_repeat, default=3, metavar="N", help=text)
    text = "restore this share of the files, such as 10%% (default: all)"
    parser.add_argument("--sample", type=share, default=1.0, dest="share", metavar="SHARE", help=text)
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the order they are tried in (default: 1)")
    text = "the page; CSV and JSON get its name with their endings (default: sweep.html)"
    parser.add_argument("--out", type=Path, default=Path("sweep.html"), metavar="FILE", help=text)


def _workers(text: str) -> tuple[int, ...]:
    names = [name.strip() for name in text.split(",")]
    if not all(name == "auto" or (re.fullmatch("[0-9]{1,3}", name) and 1 <= int(name) <= 512) for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers from 1 to 512 or auto, such as 4,8,auto")
    return tuple(dict.fromkeys(0 if name == "auto" else int(name) for name in names))


def _part_sizes(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        try:
            part_size(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{name!r}: {error}") from None
    return tuple(dict.fromkeys(names))


def _repeat(text: str) -> int:
    if not re.fullmatch("[0-9]{1,3}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 999")
    return int(text)


def _sweep(context: Context, options: argparse.Namespace) -> SweepResult:
    from blobark.sweep import SweepOptions, run_sweep

    chosen = SweepOptions(
        workers=options.workers,
        part_sizes=options.part_sizes,
        repeat=options.repeat,
        share=options.share,
        snapshot=options.snapshot,
        server=options.server,
        scratch=options.scratch,
        seed=options.seed,
        out=options.out,
    )
    return run_sweep(context, chosen)


COMMANDS = {
    "forecast": Command(
        "blobark forecast",
        "tell how long a full restore would take, by what restores took",
        "\n--rto 2h\n--snapshot 12 --json",
        _forecast_options,
        _forecast,
        False,
    ),
    "drill": Command(
        "blobark drill",
        "restore to a scratch folder, compare with the snapshot, and sign what was found",
        "\n--full --scratch /mnt/big\n--sample 20% --slowdown 30%\n--verify evidence.json --key public-key.txt",
        _drill_options,
        _drill,
        False,
        _verify,
    ),
    "sweep": Command(
        "blobark sweep",
        "restore the same files with several numbers of workers, and tell which number pays",
        "\n--workers 4,8,16,32 --repeat 5 --sample 10%\n--workers 8,auto --part-size 4MiB,16MiB"
        "\n--scratch /mnt/big --out sweeps/may.html",
        _sweep_options,
        _sweep,
        False,
    ),
}
