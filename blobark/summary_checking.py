"""The closing words of the commands that check what is stored: verify, repair."""

from __future__ import annotations

from blobark.repair import RepairResult
from blobark.verify import VerifyResult
from blobark.wording import counted, duration, size

Rows = list[tuple[str, str]]


def rows_of(result: VerifyResult | RepairResult) -> Rows:
    """Return what is said of a result, as names and values."""
    return _verified(result) if isinstance(result, VerifyResult) else _repaired(result)


def _repaired(result: RepairResult) -> Rows:
    rows = [*_verified(result.verified)[:3], ("damaged", counted(result.damaged, "blob"))]
    rows.append(("mended" if result.done else "can be mended", f"{result.mended:,} ({size(result.mended_bytes)})"))
    if result.left:
        rows.append(("STAY DAMAGED", f"{result.left:,} (their reasons stand above)"))
    if result.renewed:
        rows.append(("for the next save", f"{counted(result.renewed, 'living file')} to be stored under new GUIDs"))
    if not result.done and result.damaged:
        rows.append(("nothing was changed", "--yes mends"))
    return rows


def _verified(result: VerifyResult) -> Rows:
    rows = [
        ("server", result.server),
        ("snapshots", f"{result.snapshots:,} in {counted(result.segments, 'segment')}"),
        ("named", f"{counted(result.blobs, 'blob')} ({size(result.blob_bytes)})"),
    ]
    if result.read:
        rate = result.read_bytes / max(result.read_seconds, 1e-9) / 1e6
        took = f"{size(result.read_bytes)} in {duration(result.read_seconds)}, {rate:,.1f} MB/s"
        rows.append(("read", f"{result.read}: {took}"))
    else:
        rows.append(("read", "nothing: --read compares content with its digests"))
    if result.archived:
        rows.append(("archived, cannot be read", counted(result.archived, "blob")))
    if result.failed:
        rows.append(("failed", f"{len(result.failed):,} could not be checked (named above)"))
    said = f"{counted(result.damaged, 'blob')}, hurting {_hurt(result)}" if result.damaged else "none"
    return [*rows, ("DAMAGED" if result.damaged else "damaged", said)]


def _hurt(result: VerifyResult) -> str:
    """Return what is hurt: without paths it is snapshots as such."""
    return counted(result.hurt, "path") if result.hurt else "snapshots as a whole (named above)"
