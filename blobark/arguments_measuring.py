"""The grammar of the commands that measure restores: forecast."""

from __future__ import annotations

import argparse
import re

from blobark.command import Command, snapshot_number
from blobark.context import Context
from blobark.foresight import ForecastResult, run_forecast

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _duration_s(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([smhd])", text.strip().lower())
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90m or 2h")
    return float(match[1]) * _UNITS_S[match[2]]


def _snapshot_options(parser: argparse.ArgumentParser) -> None:
    text = "a snapshot's number (default: latest)"
    parser.add_argument("--snapshot", type=snapshot_number, default=0, metavar="N", help=text)
    parser.add_argument("--server", default="", metavar="NAME", help="whose snapshots, when several share the store")


def _forecast_options(parser: argparse.ArgumentParser) -> None:
    _snapshot_options(parser)
    text = "the objective: exit code 6 when one restore of ten or more would take longer than, say, 2h"
    parser.add_argument("--rto", type=_duration_s, metavar="TIME", help=text)


def _forecast(context: Context, options: argparse.Namespace) -> ForecastResult:
    return run_forecast(context, server=options.server, number=options.snapshot, rto_s=options.rto)


COMMANDS = {
    "forecast": Command(
        "blobark forecast",
        "tell how long a full restore would take, by what restores took",
        "\n--rto 2h\n--snapshot 12 --json",
        _forecast_options,
        _forecast,
        False,
    ),
}
