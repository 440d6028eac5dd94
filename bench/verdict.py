"""Does a report name what holds a restore up? Each bottleneck is planted on purpose, again and again.

    network bandwidth   large files behind a proxy that passes 10 MB/s on, all connections together
    store latency       small files behind a proxy that answers after 150 ms; max_workers: auto
    throttling          a proxy that answers 503 to what is more than 100 requests a second
    CPU                 many small files, on one core
    disk writing        each pwrite takes 3 ms longer (bench/slow_calls.c)
    metadata calls      each change of owner, mode, times or name takes 2 ms longer
    too few workers     small files behind a proxy that answers after 40 ms; max_workers: 2

The store is Azurite, or a folder where the network plays no part.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from bench import table
from bench.measure import Failed, environ, say
from metrics.log import read
from metrics.verdict import judge
from tests.azurite_server import AzuriteServer
from tests.fault_proxy import Fault, FaultProxy, Message, error_answer

CONTAINER = "verdict"
SLOW_CALLS = Path(__file__).with_name("slow_calls.c")


@dataclass
class Line(FaultProxy):
    """A proxy that answers late, passes few bytes a second on, or turns requests away."""

    latency_s: float = 0.0
    bytes_per_s: float = 0.0
    requests_per_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._turn = threading.Lock()
        self._free_s = self._next_s = time.monotonic()

    def answered(self, request: Message) -> bytes:
        """Turn away what is too much."""
        if not self.requests_per_s:
            return b""
        with self._turn:
            now_s = time.monotonic()
            self._next_s = max(self._next_s, now_s - 0.1)
            if self._next_s > now_s:
                return error_answer(Fault("answer", status=503, code="ServerBusy", retry_after_s=1), request.method)
            self._next_s += 1 / self.requests_per_s
        return b""

    def altered(self, request: Message, reply: Message) -> Message:  # noqa: ARG002
        """Take the time that the line would."""
        until_s = time.monotonic() + self.latency_s
        if self.bytes_per_s:
            with self._turn:
                self._free_s = max(self._free_s, time.monotonic()) + len(reply.body) / self.bytes_per_s
                until_s = max(until_s, self._free_s)
        time.sleep(max(0.0, until_s - time.monotonic()))
        return reply


@dataclass(frozen=True)
class Plant:
    """A bottleneck: which tree is restored from where, and what is in the way."""

    name: str
    tree: str
    line: Mapping[str, float] | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    one_core: bool = False


PLANTS = (
    Plant("network bandwidth", "large", {"bytes_per_s": 10e6}),
    Plant("store latency", "small", {"latency_s": 0.15}),
    Plant("throttling", "small", {"requests_per_s": 100}),
    Plant("CPU", "many", one_core=True),
    Plant("disk writing", "small", environment={"SLOW_WRITES_US": "3000"}),
    Plant("metadata calls", "small", environment={"SLOW_METADATA_US": "2000"}),
    Plant("too few workers", "small", {"latency_s": 0.04}, {"max_workers": 2}),
)
TREES: Mapping[str, tuple[int, int]] = {"small": (800, 3000), "many": (8000, 2000), "large": (4, 10_000_000)}
"""Files of so many bytes."""


def verdict(args: argparse.Namespace, work: Path) -> None:
    """Plant each bottleneck `--runs` times, in shuffled order; print how often it was named."""
    order = random.Random(args.seed)
    chosen = [plant for plant in PLANTS if not args.plants or plant.name in args.plants]
    named: dict[str, list[str]] = {plant.name: [] for plant in chosen}
    library = _slow_calls(work)
    with AzuriteServer() as server:
        for tree in sorted({plant.tree for plant in chosen}):
            _save(work / tree, tree, server, order)
        for round_number in range(args.runs):
            for plant in order.sample(chosen, len(chosen)):
                found, why = _restore(work / plant.tree, plant, server, library)
                named[plant.name].append(found)
                say(f"round {round_number + 1}: planted {plant.name}, named {found} ({'; '.join(why)})")
    print(_table(named))
    loud = sum("throttling" in found for planted, found in named.items() if planted != "throttling")
    print(f"\nrestores that nobody throttled and that were said to be: {loud}")
    if any(found.count(planted) < 0.9 * len(found) for planted, found in named.items()) or loud:
        raise Failed("a bottleneck was named in fewer than 9 of 10 runs")


def _table(named: Mapping[str, list[str]]) -> str:
    rows = [["planted", "named", "what else was named"]]
    for planted, found in named.items():
        others = {other: found.count(other) for other in sorted(set(found) - {planted})}
        texts = ", ".join(f"{other}: {count}" for other, count in others.items())
        rows.append([planted, f"{found.count(planted)} of {len(found)}", texts])
    return table.markdown(rows, left=3)


def _save(folder: Path, tree: str, server: AzuriteServer, pick: random.Random) -> None:
    files, size = TREES[tree]
    for number in range(files):
        file = folder / "source" / str(number % 20) / str(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pick.randbytes(size))
    stores = {"azure": {"store": "azure", "container_name": f"{CONTAINER}-{tree}"}, "folder": {"store": "store"}}
    for name, settings in stores.items():
        _configure(folder / f"{name}.yaml", {**settings, "state_dir": f"state-{name}", "upload_check": "none"})
        _blobark(folder, name, "index", server.connection_string)
        _blobark(folder, name, "save", server.connection_string, "--create-container")


def _restore(folder: Path, plant: Plant, server: AzuriteServer, library: Path) -> tuple[str, tuple[str, ...]]:
    """Restore with the bottleneck planted; return what was named, and why."""
    name = "folder" if plant.line is None else "azure"
    settings = yaml.safe_load((folder / f"{name}.yaml").read_text())
    _configure(folder / "planted.yaml", {**settings, **plant.settings})
    target = folder / "target"
    extra = {"LD_PRELOAD": str(library), **plant.environment} if plant.environment else {}
    with _line(server, plant) as connection:
        _blobark(folder, "planted", "restore", connection, "--to", str(target), more=extra, one_core=plant.one_core)
    shutil.rmtree(target)
    return judge(read(folder / "run.json"))


@contextmanager
def _line(server: AzuriteServer, plant: Plant) -> Iterator[str]:
    if plant.line is None:
        yield server.connection_string
        return
    with Line(server.port, **plant.line) as proxy:  # type: ignore[arg-type]
        yield proxy.rewire(server.connection_string)


def _configure(file: Path, settings: Mapping[str, object]) -> None:
    given = {"source_path": "source", "metrics_log_file": "run.json", "metrics_interval": "0.2s", **settings}
    file.write_text(yaml.safe_dump(given))


def _blobark(
    folder: Path,
    config: str,
    command: str,
    connection: str,
    *options: str,
    more: Mapping[str, str] | None = None,
    one_core: bool = False,
) -> None:
    line = [sys.executable, "-m", "blobark", command, "--config", str(folder / f"{config}.yaml"), "-q"]
    hold: Callable[[], None] | None = (lambda: os.sched_setaffinity(0, {0})) if one_core else None
    done = subprocess.run(
        [*line, *(option for option in options if command == "restore" or config == "azure")],
        env=environ({"AZURE_STORAGE_CONNECTION_STRING": connection, **(more or {})}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=hold,
    )
    if done.returncode:
        raise Failed(f"{command} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def _slow_calls(work: Path) -> Path:
    """Compile what makes calls slow."""
    library = work / "slow_calls.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Failed("a C compiler (cc) is needed, to make calls slow")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SLOW_CALLS, "-ldl"], check=True)
    return library
