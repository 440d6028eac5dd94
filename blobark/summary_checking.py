"""The closing words of the commands that check what is stored: verify, repair."""

from __future__ import annotations

from blobark.summary_measuring import duration, size
from blobark.verify import VerifyResult

Rows = list[tuple[str, str]]
CHECKING = (VerifyResult,)


def rows_of(result: VerifyResult) -> Rows:
    """Return what is said of a result, as names and values."""
    rows = [
        ("server", result.server),
        ("snapshots", f"{result.snapshots:,} in {result.segments:,} segments"),
        ("named", f"{result.blobs:,} blobs ({size(result.blob_bytes)})"),
    ]
    if result.read:
        rate = result.read_bytes / max(result.read_seconds, 1e-9) / 1e6
        took = f"{size(result.read_bytes)} in {duration(result.read_seconds)}, {rate:,.1f} MB/s"
        rows.append(("read", f"{result.read}: {took}"))
    else:
        rows.append(("read", "nothing: --read compares content with its digests"))
    if result.archived:
        rows.append(("archived, cannot be read", f"{result.archived:,} blobs"))
    if result.failed:
        rows.append(("failed", f"{len(result.failed):,} could not be checked (named above)"))
    said = f"{result.damaged:,} blobs, which hurt {result.hurt:,} paths" if result.damaged else "none"
    return [*rows, ("DAMAGED" if result.damaged else "damaged", said)]
