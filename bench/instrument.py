"""What measuring itself costs: the sampler's share of a core, and the microseconds that a file's stages take."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from statistics import median

from bench import table
from metrics.sampler import Sampler
from metrics.stages import DECODE, METADATA, REQUEST, TURN, WRITE, Stages

MEMBERS = 2
THREADS = 512
LAPS = (REQUEST, DECODE, WRITE, METADATA)


def sampler(args: argparse.Namespace, work: Path) -> None:
    """Sample an idle run with two members for a while, `--runs` times; note the stages of many files."""
    shares, files = [], []
    for number in range(args.runs):
        shares.append(100 * _sampling_s(work / f"{number}.json", args.seconds) / args.seconds)
        files.append(_file_us())
    rows = [
        ["what", "median", "(from, to)"],
        ["sampler, % of a core at one sample a second", *_figures(shares)],
        ["stages of a small restored file, us", *_figures(files)],
    ]
    print(f"{args.runs} runs of {args.seconds} s, {MEMBERS} members, room for {THREADS} threads\n")
    print(table.markdown(rows, left=1))


def _sampling_s(path: Path, seconds: int) -> float:
    """Return the CPU seconds that a process uses which does nothing but sample itself and its members."""
    stages = Stages(THREADS)
    for _ in range(THREADS):
        stages.lap(REQUEST, stages.now())
    fork = multiprocessing.get_context("fork")
    members = [fork.Process(target=time.sleep, args=(2 * seconds,), daemon=True) for _ in range(MEMBERS)]
    for member in members:
        member.start()
    pids = [member.pid for member in members if member.pid]
    try:
        with Sampler(path, run={}, counters=dict, stages=stages, watch_path=path, members=lambda: pids) as sampling:
            started_s = time.process_time()
            time.sleep(seconds)
            used_s = time.process_time() - started_s
            sampling.finish({})
    finally:
        for member in members:
            member.kill()
    return used_s


def _file_us(files: int = 100_000) -> float:
    stages = Stages(1)
    started_s = time.process_time()
    for _ in range(files):
        began_ns = since_ns = stages.now()
        for stage in LAPS:
            since_ns = stages.lap(stage, since_ns)
        stages.item(4096, since_ns - began_ns)
    for _ in range(files // 16):  # once a batch
        stages.lap(TURN, stages.now())
    return (time.process_time() - started_s) / files * 1e6


def _figures(values: list[float]) -> list[str]:
    return [f"{median(values):.2f}", f"{min(values):.2f}, {max(values):.2f}"]
