"""`max_workers: auto` beside fixed numbers, at several latencies of the server."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench import endpoint, table
from bench.benches import make_tree, write_json
from bench.measure import Cost, Failed, do, say
from bench.tools import Blobark, Place
from metrics.log import Sample, read

AUTO = "auto"
LOGS = {"save only": "save-metrics.json", "restore": "metrics.json"}


class Half(NamedTuple):
    """The second half of a run, by its log: where it begins, files a second between samples (the median), threads."""

    from_s: float
    rate: float
    workers: int


Found = dict[tuple[str, str], list[tuple[Cost, Half]]]
"""By step and setting: a pair a round."""


def workers(args: argparse.Namespace, work: Path) -> None:
    """What `max_workers: auto` reaches of the best fixed number's rate: in whole runs, and in their second halves."""
    if AUTO not in args.settings or len(args.settings) < 2:
        raise Failed(f"--settings needs {AUTO} and a number beside it")
    tree = make_tree(work, args, (args.size, args.size))
    wholes = [["latency ms", "step", *(f"{name}: files/s" for name in args.settings), "auto / best fixed"]]
    halves = [[*wholes[0], "auto: from s", "threads"]]
    costs: dict[str, list[Cost]] = {}
    for latency in args.latencies:
        with endpoint.server(args.server_command.replace("{latency}", str(latency))) as address:
            found = _each_setting(args, work / f"latency-{latency}", tree, endpoint.account("", address))
        for step in LOGS:
            rounds = {name: found[step, name] for name in args.settings}
            where = [str(latency), step]
            whole = {name: args.files / median(cost.wall_s for cost, _ in pairs) for name, pairs in rounds.items()}
            half = {name: median(half.rate for _, half in pairs) for name, pairs in rounds.items()}
            autos = [half for _, half in rounds[AUTO]]
            settled = [f"{max(each.from_s for each in autos):.0f}", ", ".join(str(each.workers) for each in autos)]
            wholes.append(where + _rates(whole))
            halves.append(where + _rates(half) + settled)
            costs |= {f"{latency} ms, {step}, {name}": [cost for cost, _ in pairs] for name, pairs in rounds.items()}
    tool = Blobark()
    what = f"{args.files:,} files of {args.size:,} bytes, Azure Blob protocol, a server on this machine; median of"
    print(table.heading(work, f"{what} {args.runs}", [tool]))
    print(f"\nWhole runs, with start and end:\n\n{table.markdown(wholes, left=2)}")
    print(f"\nTheir second halves, by the run's log:\n\n{table.markdown(halves, left=2)}")
    write_json(args, [tool], costs)


def _rates(rates: Mapping[str, float]) -> list[str]:
    """Return the cells of these settings, and what `auto` reaches of the best of the others."""
    best = max(rate for name, rate in rates.items() if name != AUTO)
    return [*(f"{rate:,.0f}" for rate in rates.values()), f"{rates[AUTO] / best:.2f}" if best else ""]


def _each_setting(args: argparse.Namespace, work: Path, tree: Path, account: endpoint.Account) -> Found:
    """Save and restore with each setting of max_workers; its index is not measured."""
    found: Found = {}
    for number in range(1, args.runs + 1):
        for name in args.settings if number % 2 else args.settings[::-1]:
            there = work / f"{name}-{number}"
            there.mkdir(parents=True)
            container = f"bench-{os.getpid()}-{name}-{number}"
            account.container("create", container)
            jobs = Blobark(name).jobs(Place(tree, there, account, container))
            do(jobs["index"], work / "output")
            for step, log in LOGS.items():
                cost = do(jobs[step], work / "output")
                half = _second_half(there / log)
                found.setdefault((step, name), []).append((cost, half))
                say(f"{number}/{args.runs} {work.name} {step:<9} {name:<5} {cost.wall_s:8.2f} s, {half.rate:,.0f}/s")
            account.container("delete", container)
    return found


def _second_half(log: Path) -> Half:
    """Return what a run did from the middle of its samples on; without a sample in there, nothing."""
    samples = read(log).samples
    late = samples[len(samples) // 2 :]
    rates = [(_files(b) - _files(a)) / (b.t_s - a.t_s) for a, b in pairwise(late) if b.t_s > a.t_s]
    if not rates:
        return Half(0.0, 0.0, 0)
    return Half(late[0].t_s, median(rates), int(late[-2].counter("workers") or 0))


def _files(sample: Sample) -> float:
    return float(sample.counter("files") or 0)
