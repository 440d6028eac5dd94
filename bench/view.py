"""What the live view costs: the CPU time of a restore on a terminal with it, and of the same restore with --quiet.

The restore is held to so many requests a second, so that it lasts, uses little itself, and does the same each time.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import random
import shutil
import struct
import sys
import termios
import threading
from pathlib import Path
from statistics import median

import yaml

from bench import table, trees
from bench.measure import Cost, run, say

REQUESTS_PER_S = 200
FILE_BYTES = 4096


def view(args: argparse.Namespace, work: Path) -> None:
    """Restore with and without the view, in an order that is reversed from round to round."""
    trees.make(work / "source", REQUESTS_PER_S * args.seconds, (FILE_BYTES, FILE_BYTES), 1)
    blobark = [sys.executable, "-m", "blobark"]
    config = work / "config.yaml"
    paths = {"source_path": "source", "store": "store", "state_dir": "state", "guid_mapping_file": "map.json"}
    logs = {"metrics_log_file": "run.json", "save_metrics_log_file": "save.json"}
    config.write_text(yaml.safe_dump({**paths, **logs, "server": "bench"}))
    for step in ("index", "save"):
        run([*blobark, step, "--config", config, "-q"], {}, work / "log")
    config.write_text(yaml.safe_dump({**paths, **logs, "server": "bench", "max_requests_per_s": REQUESTS_PER_S}))
    kinds = {"with the view": [], "with --quiet": ["--quiet"]}
    costs: dict[str, list[Cost]] = {name: [] for name in kinds}
    for number in range(args.runs):
        for name in random.Random(number).sample(list(kinds), len(kinds)):
            target = work / "target"
            command: list[str | Path] = [*blobark, "restore", "--config", config, "--to", target, *kinds[name]]
            costs[name].append(_on_terminal(command, drawn=not kinds[name]))
            shutil.rmtree(target)
            say(f"round {number + 1}, {name}: {costs[name][-1].cpu_s:.2f} s of CPU in {costs[name][-1].wall_s:.1f} s")
    shares = {name: [100 * cost.cpu_s / cost.wall_s for cost in found] for name, found in costs.items()}
    shown, quiet = shares.values()
    rows = [["restore", "% of a core, median", "(from, to)"]]
    rows += [[name, f"{median(found):.1f}", f"{min(found):.1f}, {max(found):.1f}"] for name, found in shares.items()]
    extra = [one - other for one, other in zip(shown, quiet, strict=True)]
    rows.append(["the view: the difference", f"{median(extra):.1f}", f"{min(extra):.1f}, {max(extra):.1f}"])
    print(f"{args.runs} rounds, {REQUESTS_PER_S * args.seconds:,} files, {REQUESTS_PER_S} requests a second\n")
    print(table.markdown(rows, left=1))


def _on_terminal(command: list[str | Path], *, drawn: bool) -> Cost:
    """Run a command on a terminal of 100 columns; `drawn` tells whether anything is to be seen on it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    got = bytearray()

    def drain() -> None:
        while data := os.read(ours, 65536):
            got.extend(data)
            if got.endswith(b"\0"):
                return

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        return run(command, {"TERM": "xterm-256color"}, Path(os.ttyname(theirs)))
    finally:
        os.write(theirs, b"\0")
        reader.join()
        os.close(theirs)
        os.close(ours)
        if (b" passed" in got) is not drawn:
            raise AssertionError("the view was not what was measured")
