"""Many small files: packs beside plain blobs and other tools, the file system's own limits, and what is stored."""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from bench import benches, table
from bench.measure import Job, do, say
from bench.tools import Blobark, Place, Rclone, Restic, Tool

PACKS: dict[str, object] = {"pack_below": "64KiB"}
CHANGES = 10
CHANGED = 1000
"""Of so many files one has other content in each change."""


def small(args: argparse.Namespace, work: Path) -> None:
    """Many small files, with and without packs, beside the others and the file system's own limits."""
    args.own = own()
    if args.server_command or args.endpoint or args.connection_string:
        benches.azure(args, work)
    else:
        _in_folders(args, work)
    for what, seconds in limits(work / "tree", work / "limit").items():
        print(f"a loop that only {what} these files: {args.files / seconds:,.0f} files/s")


def packed() -> dict[str, Callable[[], Tool]]:
    """Return Blobark with packs."""
    return {"blobark-packs": partial(Blobark, name="blobark-packs", choices=PACKS)}


def own() -> dict[str, Callable[[], Tool]]:
    """Return Blobark with packs, with compressed packs, and as it is."""
    name, choices = "blobark-packs-zstd", {**PACKS, "compression": "zstd"}
    return {**packed(), name: partial(Blobark, name=name, choices=choices), **benches.OWN_MAKERS}


def _in_folders(args: argparse.Namespace, work: Path) -> None:
    makers = {**args.own, "rclone": partial(Rclone, args.rclone), "restic": partial(Restic, args.restic)}
    tools = benches.find(args, makers)
    tree = benches.make_tree(work, args, (args.size, args.size))
    places: dict[str, Place] = {}

    def place(folder: Path) -> Place:
        places[folder.name] = Place(tree, folder)
        return places[folder.name]

    costs = benches.compare(tools, ["save", "unchanged", "restore"], place, work, args.runs)
    benches.report(args, work, f"{args.files:,} files of {args.size:,} bytes, stores in folders", tools, costs)
    jobs = {tool.name: tool.jobs(places[f"{tool.name}-1"]) for tool in tools if tool.name != "rclone"}
    print(f"\n{table.markdown(_stored(work, tree, jobs), left=1)}\n")


def _stored(work: Path, tree: Path, jobs: Mapping[str, Mapping[str, Job]]) -> Sequence[Sequence[str]]:
    """Return the rows that tell how much each tool has stored, before and after some small changes."""
    first = {name: bytes_below(work / f"{name}-1" / "store") for name in jobs}
    dice, files = random.Random(2), sorted(path for path in tree.rglob("*") if path.is_file())
    changed = 0
    for number in range(1, CHANGES + 1):
        for path in dice.sample(files, max(len(files) // CHANGED, 1)):
            content = dice.randbytes(path.stat().st_size)
            path.write_bytes(content)
            changed += len(content)
        for name, steps in jobs.items():
            cost = do(steps["unchanged"], work / "output")
            say(f"change {number}/{CHANGES} {name:<8} {cost.wall_s:8.2f} s")
    rows = [["tool", "stored, bytes", f"after {CHANGES} changes", f"more, of {changed:,} changed"]]
    for name, before in first.items():
        after = bytes_below(work / f"{name}-1" / "store")
        rows.append([name, f"{before:,}", f"{after:,}", f"{after - before:,}"])
    return rows


def limits(tree: Path, copy: Path) -> dict[str, float]:
    """Return how many seconds it takes to do nothing but read, or create, the files of a tree."""
    contents: list[tuple[str, bytes]] = []
    started = time.perf_counter()
    for folder, _, names in os.walk(tree):
        for name in names:
            with open(os.path.join(folder, name), "rb", buffering=0) as file:
                contents.append((os.path.relpath(folder, tree), file.read()))
    found = {"reads": time.perf_counter() - started}
    for below in {below for below, _ in contents}:
        (copy / below).mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    for number, (below, data) in enumerate(contents):
        with open(f"{copy}/{below}/{number}", "wb", buffering=0) as file:
            file.write(data)
    found["creates"] = time.perf_counter() - started
    return found


def bytes_below(folder: Path) -> int:
    """Return how long all files below a folder are together."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
