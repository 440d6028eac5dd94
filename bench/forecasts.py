"""Restore different trees under different settings, and count how many took as long as was forecast before.

Each restore is forecast from those before it alone: the first of them only teach.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from bench import table, trees
from bench.benches import settle
from bench.measure import Failed, Filler, say

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
SHAPES = ((500, 4000, 100, 4000), (200, 3000, 1000, 60_000), (20, 200, 100_000, 4 * MIB), (2, 12, 9 * MIB, 40 * MIB))
"""Files, and bytes of a file: each from, to."""
WORKERS = ("auto", 1, 4)
"""In a folder `auto` is 2."""
LEAST_INSIDE = 0.8
MOST_HALF_WIDTH = 0.3
"""What the interval is worth: so many of the restores fall inside, and half of it is so much of the forecast."""


def forecast(args: argparse.Namespace, work: Path) -> None:
    """Restore `--teach` trees, then `--trees` more; print how many of those fell inside their interval."""
    pick = random.Random(args.seed)
    settle(work)
    filler = Filler(work / "holes")
    rows = [["tree", "workers", "files", "MB", "forecast, s", "took, s", "off", "inside"]]
    inside, widths, errors = 0, [], []
    for number in range(args.teach + args.trees):
        workers = pick.choice(WORKERS)
        files, size = _new_tree(work, pick, number, args.scale)
        said = _blobark(work, workers, "forecast") if number >= args.teach else None
        filler.fill()
        _blobark(work, workers, "restore", "--to", str(work / f"restored-{number}"))
        _remove_large(work / f"restored-{number}")
        took_s = json.loads((work / "state" / "restores.jsonl").read_text().splitlines()[-1])["seconds"]
        say(f"{number + 1} of {args.teach + args.trees}: {files} files, {size / 1e6:.1f} MB, {took_s:.2f} s")
        if said is None:
            continue
        low_s, expected_s, high_s = said["low_s"], said["expected_s"], said["high_s"]
        is_inside = low_s <= took_s <= high_s
        inside += is_inside
        widths.append(max(high_s / expected_s - 1, 1 - low_s / expected_s))
        errors.append(abs(took_s / expected_s - 1))
        interval = f"{expected_s:.2f} ({low_s:.2f} to {high_s:.2f})"
        figures = [f"{files:,}", f"{size / 1e6:,.1f}", interval, f"{took_s:.2f}", f"{took_s / expected_s - 1:+.0%}"]
        rows.append([str(number + 1), str(workers), *figures, "yes" if is_inside else "NO"])
    filler.close()
    print(table.markdown(rows, left=2))
    width = median(widths)
    print(f"\n{inside} of {args.trees} inside; half the width, median: {width:.0%}; off by {median(errors):.0%}")
    if inside < LEAST_INSIDE * args.trees or width > MOST_HALF_WIDTH:
        raise Failed(f"wanted: {LEAST_INSIDE:.0%} inside, half the width at most {MOST_HALF_WIDTH:.0%}")


def _new_tree(work: Path, pick: random.Random, number: int, scale: float) -> tuple[int, int]:
    """Put another tree in the place of the source, and back it up; return its files and bytes."""
    source = work / "source"
    made: list[tuple[int, int]] = []
    if source.exists():
        source.rename(work / f"source-{number}")
        _remove_large(work / f"source-{number}")
    source.mkdir()
    for place, (least, most, smallest, largest) in enumerate(SHAPES):
        if pick.random() < 0.6 or (place == len(SHAPES) - 1 and not made):
            count = max(1, round(scale * pick.randint(least, most)))
            made.append(
                (count, trees.make(source / f"kind-{place}", count, (smallest, largest), pick.randrange(1 << 30)))
            )
    _blobark(work, "auto", "index", "--allow-shrink", str(source))
    _blobark(work, "auto", "save")
    return sum(files for files, _ in made), sum(size for _, size in made)


def _remove_large(tree: Path) -> None:
    """Remove the large files of a tree that is of no more use; the many small ones in the end: see bench/README.md."""
    for place, (_, _, _, largest) in enumerate(SHAPES):
        if largest >= MIB:
            shutil.rmtree(tree / f"kind-{place}", ignore_errors=True)


def _blobark(work: Path, workers: object, command: str, *options: str) -> dict[str, Any]:
    names = {"guid_mapping_file": "map.json", "metrics_log_file": "restore.json", "save_metrics_log_file": "save.json"}
    paths = {"source_path": "source", "store": "store", "state_dir": "state", **names}
    config = work / "config.yaml"
    config.write_text(yaml.safe_dump({**paths, "server": "bench", "max_workers": workers}))
    os.sync()  # what the step before has written is not this step's work
    line = [sys.executable, "-m", "blobark", command, "--config", str(config), "--json", *options]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"blobark {command} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
