"""`blobark drill`: restore into a scratch folder, compare with the snapshot, and keep signed evidence of how it went.

restore    the snapshot, or a sample of it, as a restore does it
compare    with the manifest as the store has it, by code of its own (comparison.py)
sign       what was done, how long it took and what was found (evidence.py)
keep       in state_dir/drills and, where this login may write, in the store under blobark/<server>/drills/
judge      against the drills before it, of this machine and the same share
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from blobark import __version__, comparison, evidence, identity, snapshot, trend, trial
from blobark.clock import now_ns, utc
from blobark.context import Context
from blobark.errors import (
    EXIT_DAMAGED,
    EXIT_DONE,
    EXIT_ITEMS_FAILED,
    EXIT_MISSED,
    BlobarkError,
    ConfigError,
    Fatal,
)
from blobark.manifest import places_of
from blobark.model import Entry, Header
from blobark.restore import RestoreResult
from blobark.restoring import RestoreOptions, run_restore
from blobark.sampling import Sample
from blobark.stores.base import Store
from blobark.trend import Earlier, Month
from metrics.files import write_whole

FILE_COST_BYTES = 64 << 10
"""In comparing drills a file counts like so many bytes more."""
LEAST_MORE_S = 1.0
"""What is slower by less is no slowdown: of a small sample's tenths of a second anything may take twice as many."""
MOST_NAMED = 100


@dataclasses.dataclass(frozen=True, slots=True)
class DrillOptions:
    """What the command line says. `share` is of 1, `slowdown` what it may take longer than the median, of 1."""

    share: float
    snapshot: int = 0
    server: str = ""
    scratch: Path | None = None
    keep: bool = False
    slowdown: float = 0.5


class DrillResult(msgspec.Struct):
    """How a drill went. `bytes_per_s` counts FILE_COST_BYTES for each file."""

    server: str
    snapshot: int
    share: float
    files: int
    bytes: int
    compared: int
    seconds: float
    compare_seconds: float
    bytes_per_s: float
    failed: list[tuple[str, str]]
    """What was not restored, and what is different."""
    evidence: str
    stored_as: str
    """Its name in the store, "" where it is not there."""
    public_key: str
    kept_in: str
    earlier: list[Earlier]
    """The newest before this one, oldest first."""
    months: list[Month]
    """All of this share before this one, by month."""
    slowdown: float | None
    """How much longer it took than the median of earlier ones would have, of 1; None: there are too few."""
    exit_code: int


def run_drill(context: Context, options: DrillOptions) -> DrillResult:
    """Drill a restore.

    Raises:
        ConfigError: there is no file to restore.
        Fatal: scratch lacks the room; evidence cannot be kept in state_dir.
    """
    with trial.folder(context, options.scratch, keep=options.keep) as scratch:
        tree = scratch / "tree"
        started_ns = now_ns()
        restored = _restore(context, options, tree)
        context.check_stop()
        store = context.open_store(False)
        header = snapshot.load(store, restored.server, restored.snapshot)
        compared, found, compare_s = _compare(context, store, header, options, tree)
    named = {path for path, _ in restored.failed}
    failed = [*restored.failed, *(pair for pair in found if pair[0] not in named)]
    speed = (restored.written_bytes + FILE_COST_BYTES * restored.written) / max(restored.seconds, 1e-9)
    document = {
        "kind": "drill",
        "server": restored.server,
        "snapshot": restored.snapshot,
        "manifest": _digest(header),
        "share": options.share,
        "started": utc(started_ns),
        "ended": utc(now_ns()),
        "seconds": round(restored.seconds, 3),
        "compare_seconds": round(compare_s, 3),
        "files": restored.written,
        "bytes": restored.written_bytes,
        "bytes_per_s": round(speed),
        "compared": compared,
        "result": "different" if failed else "same",
        "failed": len(failed),
        "failures": [list(pair) for pair in failed[:MOST_NAMED]],
        "host": identity.this_host().name,
        "store": store.name,
        "tool": f"blobark {__version__}",
    }
    signed = evidence.sign(document, context.config.state_dir)
    earlier = trend.earlier(context, store, restored.server)
    file, stored_as = _keep(context, store, restored.server, signed, started_ns)
    slowdown = trend.slowdown(earlier, options.share, speed)
    return DrillResult(
        server=restored.server,
        snapshot=restored.snapshot,
        share=options.share,
        files=restored.written,
        bytes=restored.written_bytes,
        compared=compared,
        seconds=round(restored.seconds, 3),
        compare_seconds=round(compare_s, 3),
        bytes_per_s=round(speed),
        failed=failed,
        evidence=str(file),
        stored_as=stored_as,
        public_key=str(signed["public_key"]),
        kept_in=str(tree) if options.keep else "",
        earlier=earlier[-trend.MOST_EARLIER :],
        months=trend.months(earlier, options.share),
        slowdown=slowdown,
        exit_code=_exit_code(failed, slowdown, options.slowdown, restored.seconds),
    )


class VerifyResult(msgspec.Struct):
    """What a piece of evidence says, and whether it is signed so."""

    file: str
    valid: bool
    evidence: dict[str, Any]
    rows: list[tuple[str, list[str]]]
    exit_code: int


def verify(file: Path, key: str) -> VerifyResult:
    """Check a file of evidence with a public key ("": the one in it). Raises `ConfigError`."""
    document = evidence.read(file)
    trusted = evidence.public_key(key) if key else ""
    valid = evidence.is_signed(document, trusted)
    whose = trusted or f"{document.get('public_key')} (its own: say --key to check whose it is)"
    shown = ("server", "snapshot", "share", "started", "seconds", "files", "bytes", "result", "failed", "host")
    rows = [("signature", ["valid" if valid else "NOT VALID: it was changed, or signed by another key"])]
    rows += [("public key", [whose]), *((name, [str(document.get(name))]) for name in shown)]
    return VerifyResult(str(file), valid, document, rows, EXIT_DONE if valid else EXIT_DAMAGED)


def _restore(context: Context, options: DrillOptions, tree: Path) -> RestoreResult:
    log = context.config.state_dir / "drill-metrics.json"
    config = msgspec.structs.replace(context.config, restore_root=tree, metrics_log_file=log, journals=0)

    def check(header: Header, manifest: snapshot.Manifest) -> None:
        if not any(entry.kind == "file" for ref in header.segments for entry in manifest.read(ref)):
            raise ConfigError(f"snapshot {header.number} has no file, so a drill of it would prove nothing")
        entries = (entry for ref in header.segments for entry in manifest.read(ref))
        trial.check_room(entries, tree.parent, "this drill")

    chosen = RestoreOptions(snapshot=options.snapshot, server=options.server, share=options.share)
    return run_restore(dataclasses.replace(context, config=config), chosen, check=check)


def _compare(
    context: Context, store: Store, header: Header, options: DrillOptions, tree: Path
) -> tuple[int, list[tuple[str, str]], float]:
    """Return how many entries were compared, what is different, and the seconds it took."""
    began_s, compared = time.monotonic(), 0
    whole = snapshot.Manifest(store, header.server)
    manifest = snapshot.PartialManifest(whole, Sample.of(options.share, header, whole).takes)

    def entries() -> Iterator[Entry]:
        nonlocal compared
        for ref in header.segments:
            for entry in manifest.read(ref):
                context.check_stop()
                compared += 1
                context.reporter.advance(1, entry.size)
                yield entry

    context.reporter.begin("compare", round(header.totals.files * options.share), 0)
    found = []
    for path, what in comparison.differences(os.fsencode(tree), places_of(header), entries()):
        context.reporter.warn(f"different: {path}: {what}")
        found.append((path, what))
    return compared, found, time.monotonic() - began_s


def _digest(header: Header) -> str:
    """Return what stands for a whole manifest: the digest of the lines that its segments' digests make."""
    return blake3("".join(f"{ref.digest}\n" for ref in header.segments).encode()).hexdigest()


def _exit_code(failed: list[tuple[str, str]], slowdown: float | None, most: float, seconds: float) -> int:
    if failed:
        return EXIT_ITEMS_FAILED
    if slowdown is None or slowdown <= most:
        return EXIT_DONE
    more_s = seconds - seconds / (1 + slowdown)
    return EXIT_MISSED if more_s >= LEAST_MORE_S else EXIT_DONE


def _keep(context: Context, store: Store, server: str, signed: dict[str, Any], started_ns: int) -> tuple[Path, str]:
    """Write the evidence, first here; return the file, and the name in the store ("" where it takes none)."""
    stamp = utc(started_ns).replace("T", "-").replace(":", "").removesuffix("Z")
    name = f"{stamp}-{started_ns % 10**9:09}"
    file = context.config.state_dir / "drills" / f"{name}.json"
    data = evidence.encode(signed)
    try:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        write_whole(file, data.decode())
    except OSError as error:
        raise Fatal(f"the evidence {file} cannot be written ({error.strerror})") from None
    try:
        store.put(trend.prefix(server) + name, data, {}, create_only=True)
        store.sync()
    except BlobarkError as error:
        context.reporter.warn(f"warning: the evidence is only in {file}: {error.message}")
        return file, ""
    return file, trend.prefix(server) + name
