"""Whether a snapshot's header agrees with itself: the one place that looks, and everybody reads headers through it.

The format and its version are looked at before. What is refused here was damaged, or changed by hand.
"""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime

from blobark.clock import utc
from blobark.errors import SnapshotError
from blobark.model import Header, display

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_NS = 253_402_300_800 * 10**9
"""The end of the year 9999."""


def check_header(header: Header) -> None:
    """Raise `SnapshotError` unless a header agrees with itself."""
    fault = _fault_of_counts(header) or _fault_of_times(header) or _fault_of_roots(header)
    if fault:
        message = f"snapshot {header.number} of {header.server} contradicts itself: it is damaged ({fault})"
        raise SnapshotError(message, "restore an earlier one with --snapshot N")


def _fault_of_counts(header: Header) -> str:
    totals, refs = header.totals, header.segments
    if (sum(ref.entries for ref in refs), sum(ref.files for ref in refs)) != (totals.entries, totals.files):
        return "its segments do not have what it counts"
    digests = {ref.digest for ref in refs}
    bases = {ref.base for ref in refs if ref.base}
    if len(digests) != len(refs) or not all(_DIGEST.fullmatch(digest) for digest in digests | bases):
        return "what it says of its segments cannot be"
    return "" if header.roots or not totals.entries else "it has entries and no root"


def _fault_of_times(header: Header) -> str:
    if not 0 <= header.started_ns < _MOST_NS or header.started != utc(header.started_ns):
        return "the times when it began are not one"
    try:
        datetime.strptime(header.ended, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return "the time when it ended is none"
    return ""


def _fault_of_roots(header: Header) -> str:
    """Roots are absolute, real names, none of them twice or inside another one."""
    found: list[tuple[bytes, ...]] = []
    for root in header.roots:
        try:
            name = root.raw_name
        except ValueError:
            return "the name of a root is no base64"
        parts = tuple(part for part in name.split(b"/") if part)
        if not name.startswith(b"/") or b"\0" in name or b".." in parts or b"." in parts:
            return f"{display(name)!r} is no name of a root"
        found.append(parts)
    found.sort()  # whatever lies inside of one comes right after it
    for outer, inner in itertools.pairwise(found):
        if inner[: len(outer)] == outer:
            return f"the root {display(b'/' + b'/'.join(inner))} lies inside another one"
    return ""
