"""Segments: the parts that a manifest is stored in.

A manifest is the sorted stream of a tree's entries, one JSON object a line. It is cut after each entry whose path
has a CRC-32 with twelve low zero bits, so after 4,096 lines on average, after 32,768 lines or 16 MiB at the latest.
Where the cuts fall depends on nothing but the entries near them, so a small change makes a few new segments and leaves
the others as they are, byte for byte. A segment is named by the BLAKE3 digest
of its plain lines and stored as one zstd frame; or as a patch against another segment, then the name says so too.

This module turns entries into segments and back; it does not know where segments are kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import msgspec
from blake3 import blake3
from msgspec.structs import replace

from blobark.codec import decode_all, encode
from blobark.errors import SnapshotError
from blobark.model import Block, Entry, SegmentRef, display

CUT_MASK = 0xFFF
MAX_ENTRIES = 32_768
CUT_BYTES = 16 * 1024 * 1024
"""A segment this long is cut, wherever it is."""

MAX_PLAIN_BYTES = 2 * CUT_BYTES
"""More than any segment that is written; a header that promises more is not believed."""

ZSTD_LEVEL = 3

_DIRECTORY = b'"dir"'
"""What the line of a directory holds."""

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Entry)
decode_entry = _decoder.decode

Sink = Callable[[SegmentRef, bytes], None]


def encode_entry(entry: Entry) -> bytes:
    """Return an entry as JSON."""
    line = _encode(entry)
    return line if entry.extents is None and entry.blocks is None else _trimmed(line)


def encode_blocks(blocks: tuple[Block, ...]) -> bytes:
    """Return a list of blocks as JSON."""
    return _trimmed(_encode(blocks))


def _trimmed(text: bytes) -> bytes:
    """Leave out the defaults at the end of extents and blocks. No string holds these bytes: its quotes are escaped."""
    start = max(text.find(b',"extents":['), 0)
    return text[:start] + text[start:].replace(b',"",0]', b"]").replace(b'",0]', b'"]')


class Counts:
    """What the entries of a segment amount to."""

    __slots__ = ("dirs", "encoded", "entries", "errors", "file_bytes", "files", "links")

    def __init__(self) -> None:
        self.entries = self.files = self.file_bytes = self.dirs = self.links = self.errors = self.encoded = 0

    def add(self, entry: Entry) -> None:
        """Count an entry."""
        self.entries += 1
        if entry.kind == "file":
            if entry.hardlink_to_any:
                self.links += 1
            else:
                self.files += 1
                self.file_bytes += entry.size
        elif entry.kind == "dir":
            self.dirs += 1
        if entry.error:
            self.errors += 1
        if entry.extents is not None and entry.is_encoded:
            self.encoded += 1

    def ref(self, digest: str, plain_bytes: int) -> SegmentRef:
        """Return the reference of a segment with these entries."""
        return SegmentRef(
            digest=digest,
            entries=self.entries,
            plain_bytes=plain_bytes,
            files=self.files,
            file_bytes=self.file_bytes,
            dirs=self.dirs,
            links=self.links,
            errors=self.errors,
            encoded=self.encoded,
        )


class SegmentWriter:
    """Collects entries, which come in ascending order, and hands each finished segment to `sink`.

    `sink` gets the reference and the stored bytes (one zstd frame).
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._lines: list[bytes] = []
        self._counts = Counts()
        self._bytes = 0
        self.position = 0
        """How many segments have been finished."""

    @property
    def at_cut(self) -> bool:
        """Whether the next entry starts a segment."""
        return not self._lines

    @property
    def next_index(self) -> int:
        """The place that the next entry takes within its segment."""
        return len(self._lines)

    def add(self, entry: Entry, raw_path: bytes, line: bytes = b"") -> None:
        """Append an entry; `raw_path` is its `raw_path`, which the caller has at hand, and perhaps its line."""
        lines = self._lines
        line = line or encode_entry(entry)
        lines.append(line)
        self._bytes += len(line)
        self._counts.add(entry)
        if not zlib.crc32(raw_path) & CUT_MASK or len(lines) >= MAX_ENTRIES or self._bytes >= CUT_BYTES:
            self.finish()

    def finish(self) -> None:
        """Close the segment that is open, if one is; to be called after the last entry."""
        if not self._lines:
            return
        plain = b"\n".join(self._lines) + b"\n"
        ref = self._counts.ref(blake3(plain).hexdigest(), len(plain))
        self._lines, self._counts, self._bytes = [], Counts(), 0
        self._sink(ref, compress(plain))
        self.position += 1


def respelled(ref: SegmentRef, stored: bytes) -> tuple[SegmentRef, bytes]:
    """Return the same entries under another digest: with one more space at the end of the last line."""
    plain = decode_all(stored, ref.plain_bytes)[:-1] + b" \n"
    return replace(ref, digest=blake3(plain).hexdigest(), plain_bytes=len(plain)), compress(plain)


def compress(plain: bytes) -> bytes:
    """Return one zstd frame."""
    return encode(plain, ZSTD_LEVEL)


def plain_of(name: str, stored: bytes, base: bytes = b"") -> bytes:
    """Return the plain text of a segment, b"" where the bytes are not what is named; `base` is a patch's."""
    plain = decode_all(stored, MAX_PLAIN_BYTES, base)
    return plain if blake3(plain).hexdigest() == name.partition("-")[0] else b""


def plain_segment(ref: SegmentRef, stored: bytes, base: bytes = b"") -> bytes:
    """Return the plain text of a segment; of one that is stored as a patch with the plain text of its base.

    Raises:
        SnapshotError: the bytes are not what `ref` names: damaged, cut short, or another segment.
    """
    shown = display(ref.digest.encode())
    if not 0 <= ref.plain_bytes <= MAX_PLAIN_BYTES:
        raise SnapshotError(f"segment {shown} claims {ref.plain_bytes} bytes: its header is damaged")
    plain = decode_all(stored, ref.plain_bytes, base)
    if len(plain) != ref.plain_bytes or blake3(plain).hexdigest() != ref.digest:
        raise SnapshotError(f"segment {shown} is damaged", "restore an earlier snapshot with --snapshot N")
    if plain.count(b"\n") != ref.entries or ref.entries > MAX_ENTRIES:
        raise SnapshotError(f"segment {shown} holds other entries than its header says")
    return plain


def decode_lines(plain: bytes, name: str) -> list[Entry]:
    """Return the entries of some lines, those of the segment `name`. Raises `SnapshotError`."""
    try:
        return _decoder.decode_lines(plain)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        shown = display(name.encode())
        raise SnapshotError(f"segment {shown} holds an entry that cannot be read") from None


def read_directories(ref: SegmentRef, stored: bytes, base: bytes = b"") -> list[Entry]:
    """As `read_segment`, but only the directories: of all other lines none is decoded."""
    lines = _lines_with(_DIRECTORY, plain_segment(ref, stored, base))
    entries = [entry for entry in decode_lines(b"\n".join(lines), ref.digest) if entry.kind == "dir"]
    if len(entries) == ref.dirs:
        return entries
    return [entry for entry in read_segment(ref, stored, base) if entry.kind == "dir"]  # spelled in another way


def _lines_with(word: bytes, text: bytes) -> list[bytes]:
    """Return the lines that hold `word`."""
    lines = []
    at = text.find(word)
    while at >= 0:
        end = text.find(b"\n", at)
        lines.append(text[text.rfind(b"\n", 0, at) + 1 : end])
        at = text.find(word, end)
    return lines


def read_segment(ref: SegmentRef, stored: bytes, base: bytes = b"") -> list[Entry]:
    """Return the entries of a segment, as `plain_segment` its text. Raises `SnapshotError`."""
    shown = display(ref.digest.encode())
    entries = decode_lines(plain_segment(ref, stored, base), ref.digest)
    counts = Counts()
    for entry in entries:
        counts.add(entry)
    if counts.ref(ref.digest, ref.plain_bytes) != replace(ref, base=""):
        raise SnapshotError(f"segment {shown} holds other entries than its header says")
    return entries
