"""What a save did: counts, and what failed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class SaveResult:
    """What a save did: counts of files and blobs, and bytes."""

    server: str = ""
    snapshot: int = 0
    """0: none was made, since nothing was left of what a journal said had failed."""
    complete: bool = False
    files: int = 0
    file_bytes: int = 0
    entries: int = 0
    sent: int = 0
    """Files and placeholders whose content was stored, in so many `blobs`."""
    blobs: int = 0
    sent_bytes: int = 0
    """What went over the line for them."""
    audited: int = 0
    """Blobs that the store itself listed as they were read, before the snapshot was published."""
    sent_again: int = 0
    """Blobs that it did not, and that were sent again under another GUID. `sent` counts both."""
    rewritten: int = 0
    """Files that were stored anew, since a prune had found their blobs mostly dead."""
    equal: int = 0
    """Files whose content was stored for another one, and the bytes of it."""
    equal_bytes: int = 0
    packed: int = 0
    """Files that were stored in packs, and in how many."""
    packs: int = 0
    plain_bytes: int = 0
    """What the blobs hold that were made: of content before compression, and how long they are, with packs' headers."""
    stored_bytes: int = 0
    kept: int = 0
    skipped: int = 0
    changed_while_read: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    """Those that the snapshot was given."""
    journal: str = ""
    """Where it is written down what became of each item; "" where it is not."""
    segments_sent: int = 0
    """Parts of the manifest that the store did not have; 0 where nothing has changed."""
    segment_bytes: int = 0
    """How long these are, as they are stored."""
    workers: int = 0
    """Transfers at a time, as they were in the end."""
    requests: dict[str, int] = field(default_factory=dict)
    """With a dry run: how many requests of each kind a real one would make."""
