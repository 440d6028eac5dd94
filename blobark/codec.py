"""Encodings of stored bytes: zstd frames, so that whatever is stored encoded is a file that `zstd -d` reads.

    encode     bytes become one frame (RFC 8878) with a checksum
    patch      the same, with other bytes as what came before: small where both have much in common
    decoded    a run of frames, one behind the other, becomes what it holds, from some byte on and of some length
    pays       whether a sample gets enough smaller

A frame never gives more than was asked for, whatever it says of itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from blobark.errors import ContentError
from blobark.model import Data
from metrics.stages import DECODE, Stages

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD = "zstd"
"""The name of the one encoding, in extents and among the features that a snapshot requires."""

DEFAULT_LEVEL = 3
LEVELS = range(1, 20)
SAMPLE_BYTES = 64 * 1024
PIECE_BYTES = 8 * 1024 * 1024
"""What `decoded` yields at once, at most."""

_TOO_SHORT = "its content in the store is damaged: it ends too early"
_NO_ZSTD = "its content in the store is damaged: it is not zstd"

_SAMPLE_LEVEL = 1
_LEAST_WINDOW_LOG = 10
_LEVEL_TO_PASS = -100
"""For what does not get smaller, and has to be a frame all the same: takes next to no time."""


def encode(data: bytes | memoryview, level: int) -> bytes:
    """Return one frame."""
    parameters = zstd.CompressionParameter
    return zstd.compress(data, options={parameters.compression_level: level, parameters.checksum_flag: 1})


def patch(data: bytes, base: bytes, level: int) -> bytes:
    """Return one frame that only who has `base` can decode; `zstd -d --patch-from` reads it too."""
    parameters = zstd.CompressionParameter
    options: dict[int, int] = {
        parameters.compression_level: level,
        parameters.checksum_flag: 1,
        parameters.enable_long_distance_matching: 1,
        parameters.window_log: max((len(data) + len(base)).bit_length(), _LEAST_WINDOW_LOG),
    }
    return zstd.compress(data, options=options, zstd_dict=zstd.ZstdDict(base, is_raw=True).as_prefix)


def encode_where_it_pays(data: bytes | memoryview, level: int) -> bytes:
    """Return one frame, made without effort where that would be in vain."""
    return encode(data, level if pays([data]) else _LEVEL_TO_PASS)


def pays(samples: Iterable[bytes | memoryview]) -> bool:
    """Whether these beginnings of 64 KiB get at least a twentieth smaller, all in all."""
    plain = stored = 0
    for sample in samples:
        part = sample[:SAMPLE_BYTES]
        plain += len(part)
        stored += len(zstd.compress(part, _SAMPLE_LEVEL))
    return stored <= plain - plain // 20 and stored < plain


def decoded(stored: Iterable[Data], skip: int, length: int, stages: Stages | None = None) -> Iterator[bytes]:
    """Yield `length` bytes from byte `skip` on of what a run of frames holds, which comes in pieces of any length.

    `stages` is where the time is noted that decoding takes, without that of getting the pieces.

    Raises `ContentError` when it is damaged, or holds less.
    """
    left = skip + length
    for plain in decode_stream(b"", stored, stages) if length else ():
        piece = plain[skip:left] if skip < len(plain) else b""
        skip, left = max(skip - len(plain), 0), left - len(plain)
        if piece:
            yield piece
        if left <= 0:
            return
    if length:
        raise ContentError(_TOO_SHORT)


def decode_stream(first: Data, stored: Iterable[Data], stages: Stages | None = None) -> Iterator[bytes]:
    """Yield all that a run of frames holds, which comes in pieces, `first` and then `stored`; `stages` as above.

    Raises `ContentError` when it is damaged, or ends within a frame.
    """
    pieces = iter(stored)
    frame = zstd.ZstdDecompressor()
    data: Data = first
    while True:
        if frame.eof:
            data, frame = frame.unused_data or next(pieces, b""), zstd.ZstdDecompressor()
            if not data:
                return
        elif not data and frame.needs_input:
            data = next(pieces, b"")
            if not data:
                raise ContentError(_TOO_SHORT)
        since_ns = stages.now() if stages else 0
        try:
            plain = frame.decompress(data, max_length=PIECE_BYTES)
        except zstd.ZstdError:
            raise ContentError(_NO_ZSTD) from None
        if stages:
            stages.lap(DECODE, since_ns)
        data = b""
        if plain:
            yield plain


def decode_all(frame: bytes, most_bytes: int, base: bytes = b"") -> bytes:
    """Return what one frame holds, if that is no more than `most_bytes`; nothing if it is, or if it is no frame.

    A `patch` needs the bytes that it was made against.
    """
    try:
        decoder = zstd.ZstdDecompressor(zstd.ZstdDict(base, is_raw=True).as_prefix if base else None)
        plain = decoder.decompress(frame, max_length=most_bytes + 1)
    except zstd.ZstdError:
        return b""
    return plain if len(plain) <= most_bytes and decoder.eof else b""
