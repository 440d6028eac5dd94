"""The values that pass between the parts: entries, extents, snapshot headers, and what happened to an item.

Everything here is a value with no behaviour beyond reading itself. The JSON form of `Entry` and `Header` is the
stored format (docs/format.md): a field at its default is left out, and a reader ignores fields it does not know.
"""

from __future__ import annotations

import base64
import builtins
import enum
from operator import attrgetter
from typing import Literal

import msgspec

FORMAT = 1
"""Version of the stored format that this code writes, and the newest that it reads."""

FEATURES: frozenset[str] = frozenset({"zstd", "patches"})
"""What a snapshot may list under `requires` and still be read by this code."""

Kind = Literal["file", "dir", "symlink", "fifo", "socket", "char", "block"]

SortKey = tuple[int, bytes]

_CODEC = attrgetter("codec")


class Extent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A run of content: `plain_length` bytes of what `stored_length` bytes at `stored_offset` of `blob` hold.

    Without a codec those are the content itself; with one they decode to a run that has it from byte `skip` on.
    """

    blob: str
    stored_offset: int
    stored_length: int
    plain_length: int
    codec: str = ""
    skip: int = 0


Data = bytes | memoryview
"""Content on its way."""


class Block(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A piece of a large file's content: its length in bytes and its BLAKE3 digest, 64 hex digits.

    `stored` is the length of its frame where the content is stored encoded, else 0.
    """

    size: int
    digest: str
    stored: int = 0


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One item of a tree, as it was when its content was read (or, without content, when it was walked).

    `path` is relative to its root, components joined by `/`, "" for the root itself; bytes that are not UTF-8
    stand base64-encoded in `path_b64` instead (`link_b64` likewise). `size`, `*_ns` and `mode` are those of lstat:
    bytes, nanoseconds since 1970 UTC, the twelve permission bits. `guid` without `digest` means: not yet stored.
    """

    path: str = ""
    path_b64: str = ""
    root: int = 0
    kind: Kind = "file"
    guid: str = ""
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    user: str = ""
    group: str = ""
    digest: str = ""
    link: str = ""
    link_b64: str = ""
    links: int = 1
    """How many names the file had, in the tree or elsewhere."""
    hardlink_to: str = ""
    """Path (same root) of the first entry of this hard-link group; "" for that entry itself."""
    hardlink_to_b64: str = ""
    rdev: tuple[int, int] | None = None
    """Major and minor number of a device."""
    ranges: tuple[tuple[int, int], ...] | None = None
    """(offset, length) of each run of data of a sparse file, ascending; its content is these runs joined."""
    extents: tuple[Extent, ...] | None = None
    """Where the content lies; left out when it is the whole blob `<server>_<guid>`."""
    blocks: tuple[Block, ...] | None = None
    """How the content of a file of more than one block was cut, in order."""
    blocks_at: str = ""
    """In place of a list that is long: the digest of the object that holds it (docs/format.md)."""
    block_bits: int = 0
    """What the content was cut with (`blocks.cut`)."""
    xattrs: dict[str, str] | None = None
    """Extended attributes, ACLs among them: name -> base64 of the value."""
    rule: str = ""
    """The rule that skipped this item: its directory is a placeholder, its file is in no snapshot."""
    changed_while_read: bool = False
    stale: bool = False
    """The item could not be read: everything but `error` is from the snapshot before."""
    error: str = ""

    def without_content(self) -> Entry:
        """Return the entry as one whose content is still to be stored."""
        return msgspec.structs.replace(self, digest="", extents=None, blocks=None, blocks_at="", block_bits=0)

    @property
    def raw_path(self) -> bytes:
        """The path as the file system has it."""
        return base64.b64decode(self.path_b64, validate=True) if self.path_b64 else self.path.encode()

    @property
    def raw_link(self) -> bytes:
        """The target of a symlink as the file system has it."""
        return base64.b64decode(self.link_b64, validate=True) if self.link_b64 else self.link.encode()

    @property
    def raw_hardlink_to(self) -> bytes:
        """The path of the group's first entry as the file system has it, b"" if this is not a further link."""
        if self.hardlink_to_b64:
            return base64.b64decode(self.hardlink_to_b64, validate=True)
        return self.hardlink_to.encode()

    @property
    def sort_key(self) -> SortKey:
        """Orders entries by root, then by path components as bytes: parents before children."""
        return sort_key(self.root, self.raw_path)

    @property
    def content_size(self) -> int:
        """Length in bytes of the content: the file's size, or the sum of its ranges where it is sparse."""
        return self.size if self.ranges is None else sum(length for _, length in self.ranges)

    @property
    def has_content(self) -> bool:
        """Whether this is a file whose content is named by the entry."""
        return self.kind == "file" and self.digest != ""

    @property
    def is_pending(self) -> bool:
        """Whether this is something whose content is still to be stored: a file, or a directory's placeholder."""
        return self.guid != "" and self.digest == "" and not self.error

    @property
    def is_mapped(self) -> bool:
        """Whether the entry is, or will be, a whole plain blob under its GUID: a line of the map."""
        return self.guid != "" and self.ranges is None and self.extents is None and not self.hardlink_to_any

    @property
    def hardlink_to_any(self) -> bool:
        """Whether this is a further path of a hard-link group."""
        return bool(self.hardlink_to or self.hardlink_to_b64)

    @property
    def is_encoded(self) -> bool:
        """Whether any of the content is stored with a codec."""
        return self.extents is not None and any(map(_CODEC, self.extents))


class SegmentRef(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One segment of a manifest: its BLAKE3 digest (of the plain lines), what it holds, and where it starts."""

    digest: str
    entries: int
    plain_bytes: int
    files: int = 0
    file_bytes: int = 0
    dirs: int = 0
    links: int = 0
    """Entries with `hardlink_to`."""
    errors: int = 0
    encoded: int = 0
    """Entries with an extent that has a codec."""
    base: str = ""
    """The digest of the segment that this one is stored as a patch against; that one is never a patch itself."""

    @property
    def name(self) -> str:
        """What it is stored as: other bytes than the whole segment have another name."""
        return f"{self.digest}-{self.base}" if self.base else self.digest

    @property
    def objects(self) -> tuple[str, ...]:
        """The names of all that is needed to read it."""
        return (self.name, self.base) if self.base else (self.name,)


class Root(msgspec.Struct, frozen=True, omit_defaults=True):
    """A source root under its real name (absolute; `name_b64` where that is not UTF-8), with what it held."""

    name: str = ""
    name_b64: str = ""
    entries: int = 0

    @property
    def raw_name(self) -> bytes:
        """The name as the file system has it."""
        return base64.b64decode(self.name_b64, validate=True) if self.name_b64 else self.name.encode()


class Host(msgspec.Struct, frozen=True):
    """The machine that wrote a snapshot."""

    name: str
    machine_id: str


class Totals(msgspec.Struct, frozen=True):
    """What a snapshot holds, and what its run sent."""

    entries: int
    files: int
    file_bytes: int
    errors: int
    new_blobs: int
    new_bytes: int


class Header(msgspec.Struct, frozen=True):
    """A snapshot: everything about it but its entries, which lie in the segments it lists, in order."""

    format: int
    server: str
    number: int
    complete: bool
    host: Host
    roots: tuple[Root, ...]
    started: str
    """UTC, RFC 3339: when the walk began."""
    started_ns: int
    ended: str
    totals: Totals
    segments: tuple[SegmentRef, ...]
    tool: str
    parent: int = 0
    """Number of the snapshot before it, 0 for the first."""
    requires: tuple[str, ...] = ()
    rescued: bool = False
    """Made by `blobark rebuild` of what the blobs say of themselves."""


class Server(msgspec.Struct, frozen=True):
    """Who owns the blobs `<name>_*`: stored as blobark/<name>/server.json, create-only, at the first save."""

    format: int
    name: str
    host: Host
    roots: tuple[Root, ...]
    created: str


class Status(enum.Enum):
    """How an item of a run ended."""

    DONE = "done"
    KEPT = "kept"
    SKIPPED = "skipped"
    FAILED = "failed"
    CHANGED = "changed"
    """The item is not what the plan was made for; it goes round once more."""
    EQUAL_UNDER_WAY = "equal content is under way"
    """Another item with the same content is being stored; this one goes round once more when that is known."""


class Sent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A blob of content that is in the store now: its GUID, its stored length and the 16 bytes of its MD5.

    The MD5 is b"" where it says nothing (the blob is made of blocks) or nobody asks. `plain_bytes` is how much content
    it holds, before compression.
    """

    guid: str
    size_bytes: int
    md5: builtins.bytes
    plain_bytes: int


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What happened to one item: the one stream that progress, metrics, journal and exit code are folds over.

    `sequence` is the entry's place in the index; `entry` is what the snapshot is to say of it now. `bytes` are those
    that went over the line for it (of a restore: that were written).
    """

    sequence: int
    entry: Entry
    status: Status
    bytes: int = 0
    reason: str = ""
    sent: Sent | None = None
    """The blob that was stored for it, and perhaps for others whose outcomes come with this one."""
    is_equal: bool = False
    """Whether its content was stored for another item."""
    took_ns: int = 0
    """How long a thread worked on it, or waited for the store; of a bundle each item has the same share."""
    retries: int = 0
    """Calls of the store that this thread has repeated for it; of a bundle the first item has them all."""
    line: builtins.bytes = b""
    """The entry as it is stored, where somebody has made that already."""

    def tell(self, took_ns: int, retries: int) -> None:
        """Say what it cost, which is known to who called whoever made it."""
        msgspec.structs.force_setattr(self, "took_ns", took_ns)
        if retries:
            msgspec.structs.force_setattr(self, "retries", retries)


def sort_key(root: int, raw_path: bytes) -> SortKey:
    """Return the key that orders entries; NUL sorts before every byte a name can hold."""
    return root, raw_path.replace(b"/", b"\0")


def text_or_b64(raw: bytes) -> tuple[str, str]:
    """Return (text, "") when `raw` is UTF-8, else ("", base64)."""
    try:
        return raw.decode(), ""
    except UnicodeDecodeError:
        return "", base64.b64encode(raw).decode()


def display(raw: bytes) -> str:
    r"""Return a path or name as text for a person: printable, on one line; `names.meant` leads back to the very bytes.

    What cannot be printed, and a byte that is not UTF-8, is an escape, and so is a backslash: \n, \x1b, \udcff, \\. No
    other backslash is ever shown, so two paths never look alike.
    """
    return printable(raw.replace(b"\\", b"\\\\").decode(errors="surrogateescape"))


def printable(text: str) -> str:
    """Return a text on one line without what a terminal would obey, whatever names and messages it quotes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
