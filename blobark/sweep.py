"""`blobark sweep`: restore the same selection under each setting, in shuffled order, and say which number pays.

Each restore is a process of its own, the real command, into the same scratch folder, which is emptied after each: so
the settings share nothing but what the machine keeps. What the kernel has cached is dropped before each restore where
that is allowed (root), and the result says whether it was.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from blobark import snapshot, trial
from blobark.browse import Tree
from blobark.context import Context
from blobark.errors import ConfigError, Fatal, Interrupted
from blobark.listings import server_of
from blobark.sampling import Sample
from metrics.files import write_whole
from metrics.sweep_page import TOO_SHORT, Setting, csv_text, named, page, parts_of, recommended, settings_of

_PATIENCE_S = 0.1
_GRACE_S = 30.0


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """What the command line says. `workers`: 0 is auto."""

    workers: tuple[int, ...]
    part_sizes: tuple[str, ...] = ("",)
    """As in config.yaml; "": that of the configuration."""
    repeat: int = 3
    share: float = 1.0
    snapshot: int = 0
    server: str = ""
    scratch: Path | None = None
    seed: int = 1
    out: Path = Path("sweep.html")


class SweepResult(msgspec.Struct):
    """How long each setting took; `runs` in the order they were made."""

    server: str
    snapshot: int
    share: float
    files: int
    caches_dropped: bool
    settings: list[Setting]
    runs: list[tuple[str, float]]
    knee: str
    line: str
    """What belongs into config.yaml, a line or two; "", as the knee, where the restores were too short to tell."""
    html: str
    csv: str
    json: str


def run_sweep(context: Context, options: SweepOptions) -> SweepResult:
    """Sweep. Raises `Fatal` where scratch lacks room or a restore fails, `ConfigError` where no file can be made."""
    if not options.out.absolute().parent.is_dir():
        raise ConfigError(f"--out {options.out}: there is no folder {options.out.absolute().parent}")
    store = context.open_store(False)
    tree = Tree.open(store, server_of(context, store, options.server), options.snapshot)
    header = tree.header
    whole = snapshot.Manifest(store, header.server)
    manifest = snapshot.PartialManifest(whole, Sample.of(options.share, header, whole).takes)
    tried = [named(_name(workers), part) for workers in options.workers for part in options.part_sizes]
    order = [name for name in tried for _ in range(options.repeat)]
    random.Random(options.seed).shuffle(order)
    with trial.folder(context, options.scratch, keep=False) as scratch:
        trial.check_room((e for ref in header.segments for e in manifest.read(ref)), scratch, "this sweep")
        context.reporter.begin("sweep", len(order), 0)
        done: list[tuple[str, float]] = []
        dropped, files = True, 0
        for name in order:
            context.check_stop()
            dropped = _drop_caches() and dropped
            said = _restore(context, options, header.server, header.number, name, scratch)
            files = int(said["written"])
            done.append((name, float(said["seconds"])))
            context.reporter.detail(f"max_workers {name}: {done[-1][1]:.3f} s")
            context.reporter.advance(1, 0)
            if problem := trial.remove(scratch / "tree"):
                raise Fatal(f"{scratch / 'tree'} cannot be emptied ({problem})")
    settings = settings_of(tried, done)
    knee = recommended(settings, files)
    result = SweepResult(
        server=header.server,
        snapshot=header.number,
        share=options.share,
        files=files,
        caches_dropped=dropped,
        settings=settings,
        runs=done,
        knee=knee,
        line=_line(knee) if knee else "",
        html=str(options.out),
        csv=str(options.out.with_suffix(".csv")),
        json=str(options.out.with_suffix(".json")),
    )
    _write(result)
    return result


def _line(name: str) -> str:
    workers, part_size = parts_of(name)
    return f"max_workers: {workers}" + (f"\npart_size: {part_size}" if part_size else "")


def _name(workers: int) -> str:
    return str(workers) if workers else "auto"


def _drop_caches() -> bool:
    """Have the kernel forget what it has read, where that is allowed; say whether it was."""
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("3\n")
    except OSError:
        return False
    return True


def _restore(
    context: Context, options: SweepOptions, server: str, number: int, name: str, scratch: Path
) -> dict[str, Any]:
    """Restore in a process of its own; return what it says. Raises `Fatal`, `Interrupted`."""
    line = [sys.executable, "-m", "blobark", "restore", "--config", str(context.config.file), "--json", "--trial"]
    line += ["--server", server, "--snapshot", str(number), "--to", str(scratch / "tree")]
    workers, part_size = parts_of(name)
    line += ["--part-size", part_size] if part_size else []
    line += ["--max-workers", workers, "--sample", f"{100 * options.share:.6f}%"]
    line += ["--metrics-log-file", str(scratch / "metrics.json")]
    paths = os.pathsep.join(filter(None, (str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH"))))
    with (
        open(scratch / "out", "w+b") as out,
        subprocess.Popen(
            line,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        ) as process,
    ):
        while process.poll() is None and not context.engine.stop.wait(_PATIENCE_S):
            pass
        if context.engine.stop.is_set():  # perhaps Ctrl-C at a terminal has ended both
            _end(process)
            raise Interrupted("interrupted", "nothing of the sweep is left")
        out.seek(0)
        said = out.read().decode(errors="replace").splitlines()
    answer: dict[str, Any] = json.loads(said[-1]) if said and said[-1].startswith("{") else {}
    if process.returncode != 0:
        failed = [f"{path}: {reason}" for path, reason in answer.get("failed", ())]
        error = answer.get("error") or next(iter(failed), f"it ended with {process.returncode}")
        raise Fatal(f"a restore of the sweep failed: {error}")
    return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a restore, gently at first: it has processes of its own."""
    process.terminate()
    until_s = time.monotonic() + _GRACE_S
    while process.poll() is None and time.monotonic() < until_s:
        time.sleep(_PATIENCE_S)
    process.kill()


def _write(result: SweepResult) -> None:
    about = {
        "snapshot": f"{result.snapshot} of {result.server}",
        "share": f"{100 * result.share:g} % of the files: {result.files:,}",
        "caches": "dropped before each restore" if result.caches_dropped else "not dropped (root alone may)",
        "for config.yaml": result.line or f"nothing: {TOO_SHORT}",
    }
    try:
        write_whole(Path(result.html), page(about, result.settings, result.knee))
        write_whole(Path(result.csv), csv_text(result.runs))
        write_whole(Path(result.json), msgspec.json.format(msgspec.json.encode(result), indent=1).decode())
    except OSError as error:
        raise ConfigError(f"{result.html} cannot be written ({error.strerror})", "name another with --out") from None
