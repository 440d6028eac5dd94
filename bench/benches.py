"""The benches: which tools do which steps, in which order, and what is reported."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench import endpoint, table, trees
from bench.measure import Cost, Failed, Filler, do, say
from bench.tools import AzCopy, Bare, Blobark, Place, Rclone, Restic, Tool

Costs = dict[tuple[str, str], list[Cost]]

OWN = "blobark"
OWN_MAKERS: dict[str, Callable[[], Tool]] = {OWN: Blobark}
SLOW_CREATE_MS = 0.15
SETTLE_MOST_S = 400


def azure(args: argparse.Namespace, work: Path) -> None:
    """Save and restore at an Azure endpoint, which is a server of this program's own where one is to be started."""
    if args.server_command:
        with endpoint.server(args.server_command) as address:
            _azure(args, work, endpoint.account("", address))
    elif args.endpoint or args.connection_string:
        _azure(args, work, endpoint.account(args.connection_string, args.endpoint))
    else:
        raise Failed("azure needs --endpoint, --connection-string or --server-command")


def _azure(args: argparse.Namespace, work: Path, account: endpoint.Account) -> None:
    makers: dict[str, Callable[[], Tool]] = {
        **args.own,
        "rclone": partial(Rclone, args.rclone, defaults=args.defaults),
        "azcopy": partial(AzCopy, args.azcopy, work, args.put_md5),
        **({"restic": partial(Restic, args.restic, args.rclone)} if args.with_restic else {}),
    }
    tools = find(args, makers)
    tree = make_tree(work, args, (args.size, args.size))
    made: list[str] = []

    def place(folder: Path) -> Place:
        name = f"bench-{os.getpid()}-{folder.name}"
        account.container("create", name)
        made.append(name)
        return Place(tree, folder, account, name)

    try:
        costs = compare(tools, ["save", "restore"], place, work, args.runs, account.requests)
    finally:
        for name in made:
            account.container("delete", name)
    where = "a server on this machine" if "//127.0.0.1:" in account.endpoint else account.endpoint
    report(args, work, f"{args.files:,} files of {args.size:,} bytes, Azure Blob protocol, {where}", tools, costs)


def folder(args: argparse.Namespace, work: Path) -> None:
    """Save, save again unchanged, and restore, with stores in folders."""
    makers: dict[str, Callable[[], Tool]] = {
        **args.own,
        "rclone": partial(Rclone, args.rclone),
        "restic": partial(Restic, args.restic),
        "bare": Bare,
    }
    tools = find(args, makers)
    tree = make_tree(work, args, (0, 2 * args.size))
    costs = compare(tools, ["save", "unchanged", "restore"], partial(Place, tree), work, args.runs)
    report(args, work, f"{args.files:,} files of {args.size:,} bytes on average, stores in folders", tools, costs)


def memory(args: argparse.Namespace, work: Path) -> None:
    """The peak memory of each of Blobark's steps with few and with many files."""
    tool = Blobark()
    few, many = args.files
    costs: dict[int, Costs] = {}
    for files in args.files:
        tree = make_tree(work / str(files), argparse.Namespace(files=files, seed=args.seed), (args.size, args.size))
        costs[files] = compare([tool], ["index", "save only", "restore"], partial(Place, tree), tree.parent, args.runs)
    rows = [
        ["step", f"peak MB, {few:,}", f"peak MB, {many:,}", "difference MB", f"wall s, {few:,}", f"wall s, {many:,}"]
    ]
    for key in costs[few]:
        peaks = [max(cost.peak_bytes for cost in costs[files][key]) / table.MB for files in args.files]
        walls = [min(cost.wall_s for cost in costs[files][key]) for files in args.files]
        rows.append([key[0], *(f"{peak:.1f}" for peak in (*peaks, peaks[1] - peaks[0])), *(f"{s:.1f}" for s in walls)])
    print(table.heading(work, f"{few:,} and {many:,} files of {args.size} bytes, store in a folder", [tool]))
    print(f"\n{table.markdown(rows, left=1)}")
    write_json(
        args, [tool], {f"{key[0]}, {files:,}": value for files in args.files for key, value in costs[files].items()}
    )


def find(args: argparse.Namespace, makers: dict[str, Callable[[], Tool]]) -> list[Tool]:
    """Return the tools that are wanted and there."""
    wanted = args.tools.split(",") if args.tools else list(makers)
    tools = []
    for name in wanted:
        if name not in makers:
            raise Failed(f"--tools: {name} is none of {', '.join(makers)}")
        try:
            tools.append(makers[name]())
        except Failed as error:
            if name.startswith(OWN):
                raise
            say(f"{name} is left out: {error}")
    return tools


def make_tree(work: Path, args: argparse.Namespace, sizes: tuple[int, int]) -> Path:
    """Make the tree to save, once the file system is as fast as it is."""
    work.mkdir(exist_ok=True)
    settle(work)
    say(f"making a tree of {args.files:,} files")
    trees.make(work / "tree", args.files, sizes, args.seed)
    return work / "tree"


def settle(work: Path) -> None:
    """Wait until creating a file is cheap.

    For five minutes after many files were deleted, ext4 looks at each of the free inodes before it takes one: a new
    file then costs up to ten times what it does otherwise. (That is also why nothing is removed between the steps.)
    """
    started = time.monotonic()
    for attempt in range(1000):
        milliseconds = create_ms(work / f"settle{attempt}")
        if milliseconds < SLOW_CREATE_MS:
            return
        if time.monotonic() - started > SETTLE_MOST_S:
            say("going on all the same; the figures tell more about the file system than about the tools")
            return
        if attempt == 0:
            say(
                f"creating a file takes {milliseconds:.2f} ms: waiting for at most {SETTLE_MOST_S} s "
                "(files may have been deleted here a short while ago)"
            )
        time.sleep(10)


def create_ms(folder: Path) -> float:
    """How long it takes to create a file, in ms."""
    folder.mkdir()
    started = time.perf_counter()
    for number in range(500):
        (folder / str(number)).touch()
    return (time.perf_counter() - started) * 1000 / 500


def compare(
    tools: Sequence[Tool],
    steps: Sequence[str],
    place: Callable[[Path], Place],
    work: Path,
    runs: int,
    requests: Callable[[], int] = int,
) -> Costs:
    """Let every tool do every step, `runs` times; `requests` tells how many a server has answered."""
    costs: Costs = {}
    log = work / "output"
    filler = Filler(work / "holes")
    for number in range(1, runs + 1):
        places = {}
        for tool in tools:
            there = work / f"{tool.name}-{number}"
            there.mkdir()
            places[tool.name] = place(there)
        jobs = {tool.name: tool.jobs(places[tool.name]) for tool in tools}
        order = list(jobs) if number % 2 else list(jobs)[::-1]
        for step in steps:
            for name in order:
                if step not in jobs[name]:
                    continue
                filler.fill()
                before = requests()
                cost = do(jobs[name][step], log)
                cost = dataclasses.replace(cost, requests=requests() - before)
                if step == "restore":
                    trees.compare(places[name].tree, places[name].restored)
                costs.setdefault((step, name), []).append(cost)
                say(f"{number}/{runs} {step:<9} {name:<8} {cost.wall_s:8.2f} s, {cost.cpu_s:8.2f} s of CPU")
    filler.close()
    names = [tool.name for tool in tools]
    return dict(sorted(costs.items(), key=lambda item: (steps.index(item[0][0]), names.index(item[0][1]))))


def report(args: argparse.Namespace, work: Path, what: str, tools: Sequence[Tool], costs: Costs) -> None:
    """Print what was found out."""
    print(table.heading(work, f"{what}; median of {args.runs}", tools))
    own = next((tool.name for tool in tools if tool.name.startswith(OWN)), OWN)
    print(f"\n{table.comparison(costs, args.files, own)}")
    write_json(args, tools, {f"{step}, {name}": value for (step, name), value in costs.items()})


def write_json(args: argparse.Namespace, tools: Sequence[Tool], costs: dict[str, list[Cost]]) -> None:
    """Write every measurement to the file that was asked for."""
    if args.json:
        document = {
            "files": args.files,
            "versions": {tool.name: tool.version for tool in tools},
            "costs": {key: [dataclasses.asdict(cost) for cost in value] for key, value in costs.items()},
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")
