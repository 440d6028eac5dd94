#!/usr/bin/env python3
"""Rebuild a snapshot of a Blobark backup without Blobark, from nothing but this file and Python 3.8 or newer.

    python3 rescue.py SOURCE --list                 which servers and snapshots are there
    python3 rescue.py SOURCE TARGET                 rebuild the newest snapshot below TARGET
    python3 rescue.py SOURCE TARGET --compare       write nothing; say what in TARGET is not as the snapshot has it

SOURCE is a folder with the container's blobs, as any tool downloads them (names with slashes are folders); or a folder
that Blobark itself uses as its store; or `-` for the container's address with a SAS that may read and list,
https://ACCOUNT.blob.core.windows.net/CONTAINER?sv=..., which is then taken from the environment variable RESCUE_URL, or
else from the first line of standard input. As an argument it works too, and can be seen by whoever lists processes.

Nothing outside TARGET is touched, nothing in it is overwritten: what is there already, with the right size and time, is
kept, so it may be run again. Each file appears whole or not at all. What fails is named. Exit codes: 0 all is there;
2 the command line is wrong; 3 some items failed; 4 stopped; 130 interrupted.

Lengths are always checked. Digests (BLAKE3) are checked where Python's `blake3` or the command `b3sum` is installed,
and with --check or --compare, at about a megabyte a second, by this file itself. The same goes for zstd: a library or
the command `zstd` is used where there is one, otherwise the decoder below, which is slow and needs nothing.

This is the second implementation of the format, made from docs/format.md: it shares no code with Blobark.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import importlib
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections import deque
from typing import Any, Callable, Iterable, Iterator
from xml.etree import ElementTree

MIB = 1024 * 1024
FORMAT, FEATURES = 1, {"zstd", "patches"}
SERVER = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
GUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
CONTENT_KEY = re.compile(f"{SERVER.pattern}_{GUID}")
DIGEST = re.compile(r"[0-9a-f]{64}")
TRIES = 5
TIMEOUT_S = 60


DAMAGE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
"""What comes of JSON that is not what it should be."""


class Trouble(Exception):
    """Something that cannot be had or done: costs one item, or the run where nothing is left without it."""


# zstd (RFC 8878), without dictionaries.

PREDEFINED = {
    "literals": (6, [4, 3] + [2] * 11 + [1] * 3 + [2] * 9 + [3, 2] + [1] * 5 + [-1] * 4),
    "offset": (5, [1] * 6 + [2] * 3 + [1] * 15 + [-1] * 5),
    "match": (6, [1, 4, 3] + [2] * 6 + [1] * 37 + [-1] * 7),
}
MOST = {"literals": (9, 35), "offset": (8, 31), "match": (9, 52)}
"""The largest table (as a power of two) and symbol of each kind."""


def ladder(first: int, widths: Iterable[int]) -> list[tuple[int, int]]:
    """Return (base, extra bits) of each code, one above the other."""
    steps = []
    for width in widths:
        steps.append((first, width))
        first += 1 << width
    return steps


LITERAL_LENGTHS = ladder(0, [0] * 16 + [1] * 4 + [2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])
MATCH_LENGTHS = ladder(3, [0] * 32 + [1] * 4 + [2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])


class Bits:
    """A bit stream that is read from its end to its beginning; below that it is all zeros."""

    def __init__(self, data: bytes) -> None:
        if not data or not data[-1]:
            raise Trouble("the zstd frame is damaged")
        self.data = bytes(16) + data + bytes(8)
        self.left = 8 * len(data) - 9 + data[-1].bit_length()

    def read(self, count: int) -> int:
        self.left -= count
        at = 128 + self.left
        return int.from_bytes(self.data[at >> 3 : (at >> 3) + 8], "little") >> (at & 7) & ((1 << count) - 1)


def read_counts(data: bytes, most_log: int, most_symbol: int) -> tuple[int, list[int], int]:
    """Read the description of an FSE table: its size as a power of two, the count of each symbol, bytes read."""
    stream = int.from_bytes(data[:512], "little")
    log, at = (stream & 15) + 5, 4
    left, counts = 1 << log, []  # type: int, list[int]
    while left > 0 and log <= most_log and len(counts) <= most_symbol:
        width = (left + 1).bit_length()
        value, low = stream >> at & ((1 << width) - 1), (1 << (width - 1)) - 1
        spare = (1 << width) - 2 - left
        if value & low < spare:
            value, width = value & low, width - 1
        elif value > low:
            value -= spare
        at += width
        counts.append(value - 1)
        left -= abs(value - 1)
        repeat = 3 if value == 1 else 0
        while repeat == 3:
            repeat = stream >> at & 3
            at += 2
            counts += [0] * repeat
    if left or len(counts) > most_symbol + 1:
        raise Trouble("the zstd frame is damaged")
    return log, counts, (at + 7) >> 3


def fse_table(log: int, counts: list[int]) -> tuple[int, list[tuple[int, int, int]]]:
    """Return log and, for each state, (symbol, bits to read, what they are added to)."""
    size = 1 << log
    symbols, following, high = [0] * size, [abs(count) for count in counts], size
    for symbol, count in enumerate(counts):
        if count < 0:
            high -= 1
            symbols[high] = symbol
    place = 0
    for symbol, count in enumerate(counts):
        for _ in range(count):
            symbols[place] = symbol
            while True:
                place = (place + (size >> 1) + (size >> 3) + 3) & (size - 1)
                if place < high:
                    break
    table = []
    for symbol in symbols:
        number = following[symbol]
        following[symbol] += 1
        width = log + 1 - number.bit_length()
        table.append((symbol, width, (number << width) - size))
    return log, table


def huffman_table(data: bytes) -> tuple[int, bytes, bytes, int]:
    """Read a Huffman tree: its depth; symbol and length of each code, by the code's bits; bytes read."""
    head = data[0]
    if head >= 128:
        used = 1 + (head - 126) // 2
        weights = [data[1 + at // 2] >> (0 if at % 2 else 4) & 15 for at in range(head - 127)]
    else:
        used = 1 + head
        log, counts, start = read_counts(data[1:used], 6, 255)
        weights = fse_weights(fse_table(log, counts)[1], log, Bits(data[1 + start : used]))
    total = sum(1 << (weight - 1) for weight in weights if weight)
    depth = total.bit_length()
    rest = (1 << depth) - total
    if not total or depth > 11 or rest & (rest - 1):
        raise Trouble("the zstd frame is damaged")
    weights.append(rest.bit_length())
    symbols, lengths = bytearray(), bytearray()
    for weight in range(1, depth + 1):
        for symbol, its_weight in enumerate(weights):
            if its_weight == weight:
                symbols += bytes([symbol]) * (1 << (weight - 1))
                lengths += bytes([depth + 1 - weight]) * (1 << (weight - 1))
    return depth, bytes(symbols), bytes(lengths), used


def fse_weights(table: list[tuple[int, int, int]], log: int, bits: Bits) -> list[int]:
    """Read the weights of a Huffman tree, which two states produce in turns."""
    states, weights = [bits.read(log), bits.read(log)], []  # type: list[int], list[int]
    while len(weights) < 255:
        symbol, width, base = table[states[0]]
        weights.append(symbol)
        states = [states[1], base + bits.read(width)]
        if bits.left < 0:
            return [*weights, table[states[0]][0]]
    raise Trouble("the zstd frame is damaged")


def huffman_decode(stream: bytes, depth: int, symbols: bytes, lengths: bytes) -> bytes:
    """Return what one stream of Huffman codes stands for."""
    bits, out = Bits(stream), bytearray()
    data, left, mask = bits.data, bits.left, (1 << depth) - 1
    while left > 0:
        at = 128 + left - depth
        code = int.from_bytes(data[at >> 3 : (at >> 3) + 3], "little") >> (at & 7) & mask
        out.append(symbols[code])
        left -= lengths[code]
    if left:
        raise Trouble("the zstd frame is damaged")
    return bytes(out)


class Xxh64:
    """XXH64 with seed 0, of which a frame's checksum is the low half."""

    P = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
    M = (1 << 64) - 1

    def __init__(self) -> None:
        self.lanes = [(self.P[0] + self.P[1]) & self.M, self.P[1], 0, -self.P[0] & self.M]
        self.rest, self.total = b"", 0

    def round(self, lane: int, word: int) -> int:
        lane = (lane + word * self.P[1]) & self.M
        return (lane << 31 | lane >> 33) * self.P[0] & self.M

    def update(self, data: bytes) -> None:
        self.total += len(data)
        data = self.rest + data
        whole = len(data) & ~31
        p1, p2, m = self.P[0], self.P[1], self.M
        a, b, c, d = self.lanes
        for w, x, y, z in struct.iter_unpack("<4Q", data[:whole]):
            a, b, c, d = (a + w * p2) & m, (b + x * p2) & m, (c + y * p2) & m, (d + z * p2) & m
            a, b = (a << 31 | a >> 33) * p1 & m, (b << 31 | b >> 33) * p1 & m
            c, d = (c << 31 | c >> 33) * p1 & m, (d << 31 | d >> 33) * p1 & m
        self.lanes, self.rest = [a, b, c, d], data[whole:]

    def digest(self) -> int:
        p, m = self.P, self.M

        def turned(value: int, by: int) -> int:
            return (value << by | value >> (64 - by)) & m

        if self.total < 32:
            value = p[4]
        else:
            value = sum(turned(lane, by) for lane, by in zip(self.lanes, (1, 7, 12, 18))) & m
            for lane in self.lanes:
                value = ((value ^ self.round(0, lane)) * p[0] + p[3]) & m
        value, rest = (value + self.total) & m, self.rest
        while len(rest) >= 8:
            value ^= self.round(0, int.from_bytes(rest[:8], "little"))
            value, rest = (turned(value, 27) * p[0] + p[3]) & m, rest[8:]
        if len(rest) >= 4:
            value ^= int.from_bytes(rest[:4], "little") * p[0] & m
            value, rest = (turned(value, 23) * p[1] + p[2]) & m, rest[4:]
        for byte in rest:
            value = turned(value ^ byte * p[4] & m, 11) * p[0] & m
        value = (value ^ value >> 33) * p[1] & m
        value = (value ^ value >> 29) * p[2] & m
        return value ^ value >> 32


class Frame:
    """One frame on its way: what its blocks leave for the next."""

    def __init__(self, window: int, base: bytes) -> None:
        self.window = window + len(base)
        self.out = bytearray(base)
        self.recent = [1, 4, 8]
        self.tables: dict[str, Any] = {}
        self.huffman: Any = None

    def block(self, data: bytes) -> bytes:
        """Return what a compressed block holds."""
        literals, at = self.literals(data)
        begin = len(self.out)
        used = self.sequences(data[at:], literals)
        self.out += literals[used:]
        return self.emitted(begin)

    def plain(self, data: bytes) -> bytes:
        """Take in what a block holds as it is."""
        begin = len(self.out)
        self.out += data
        return self.emitted(begin)

    def emitted(self, begin: int) -> bytes:
        new = bytes(self.out[begin:])
        if len(self.out) > 2 * self.window + MIB:
            del self.out[: -self.window]
        return new

    def literals(self, data: bytes) -> tuple[bytes, int]:
        """Return a block's literals, and where its sequences begin."""
        kind, form = data[0] & 3, data[0] >> 2 & 3
        if kind < 2:
            head = (1, 2, 1, 3)[form]
            size = int.from_bytes(data[:head], "little") >> (4 if form & 1 else 3)
            return (data[head : head + size], head + size) if kind == 0 else (data[head : head + 1] * size, head + 1)
        head, width = ((3, 10), (3, 10), (4, 14), (5, 18))[form]
        sizes = int.from_bytes(data[:head], "little") >> 4
        size, stored = sizes & ((1 << width) - 1), sizes >> width
        streams, used = data[head : head + stored], 0
        if kind == 2:
            *self.huffman, used = huffman_table(streams)
        if self.huffman is None or len(streams) != stored:
            raise Trouble("the zstd frame is damaged")
        streams = streams[used:]
        if form == 0:
            parts = [streams]
        else:
            ends = [6]
            for length in struct.unpack("<3H", streams[:6]):
                ends.append(ends[-1] + length)
            parts = [streams[start:end] for start, end in zip(ends, [*ends[1:], len(streams)])]
        literals = b"".join(huffman_decode(part, *self.huffman) for part in parts)
        if len(literals) != size:
            raise Trouble("the zstd frame is damaged")
        return literals, head + stored

    def table(self, kind: str, mode: int, data: bytes, at: int) -> int:
        """Set up one of the three tables; return where the next begins."""
        if mode == 0:
            self.tables[kind] = fse_table(*PREDEFINED[kind])
        elif mode == 1:
            self.tables[kind] = 0, [(data[at], 0, 0)]
            return at + 1
        elif mode == 2:
            log, counts, used = read_counts(data[at:], *MOST[kind])
            self.tables[kind] = fse_table(log, counts)
            return at + used
        return at

    def sequences(self, data: bytes, literals: bytes) -> int:
        """Carry out a block's sequences; return how many of the literals they took."""
        count, at = data[0], 1
        if count == 255:
            count, at = data[1] + (data[2] << 8) + 0x7F00, 3
        elif count > 127:
            count, at = ((count - 128) << 8) + data[1], 2
        if not count:
            return 0
        modes, at = data[at], at + 1
        for shift, kind in ((6, "literals"), (4, "offset"), (2, "match")):
            at = self.table(kind, modes >> shift & 3, data, at)
        bits, out, taken = Bits(data[at:]), self.out, 0
        (l_log, l_table), (o_log, o_table), (m_log, m_table) = (
            self.tables[kind] for kind in ("literals", "offset", "match")
        )
        l_state, o_state, m_state = bits.read(l_log), bits.read(o_log), bits.read(m_log)
        for left in range(count - 1, -1, -1):
            (l_code, l_width, l_base), (o_code, o_width, o_base) = l_table[l_state], o_table[o_state]
            m_code, m_width, m_base = m_table[m_state]
            offset = (1 << o_code) + bits.read(o_code)
            base, width = MATCH_LENGTHS[m_code]
            length = base + bits.read(width)
            base, width = LITERAL_LENGTHS[l_code]
            run = base + bits.read(width)
            if left:
                l_state, m_state = l_base + bits.read(l_width), m_base + bits.read(m_width)
                o_state = o_base + bits.read(o_width)
            if bits.left < 0 or taken + run > len(literals):
                raise Trouble("the zstd frame is damaged")
            out += literals[taken : taken + run]
            taken += run
            self.copy(self.distance(offset, run), length)
        if bits.left:
            raise Trouble("the zstd frame is damaged")
        return taken

    def distance(self, offset: int, run: int) -> int:
        """Return how far back a match lies; small offsets name a recent one."""
        recent = self.recent
        if offset > 3:
            self.recent = [offset - 3, recent[0], recent[1]]
            return offset - 3
        which = offset - 1 + (run == 0)
        found = recent[which] if which < 3 else recent[0] - 1
        if which:
            self.recent = [found, recent[0], recent[2] if which == 1 else recent[1]]
        return found

    def copy(self, distance: int, length: int) -> None:
        out = self.out
        start = len(out) - distance
        if start < 0 or distance < 1:
            raise Trouble("the zstd frame is damaged")
        if distance >= length:
            out += out[start : start + length]
        else:
            out += (out[start:] * (length // distance + 1))[:length]


def own_zstd(stored: Iterable[bytes], base: bytes = b"") -> Iterator[bytes]:
    """Yield what a run of zstd frames holds, block by block, by nothing but this file; `base` is what a patch is of."""
    pieces, held = iter(stored), b""

    def take(count: int) -> bytes:
        nonlocal held
        parts, have = [held], len(held)
        while have < count:
            piece = next(pieces, None)
            if piece is None:
                raise Trouble("the zstd frame ends too early")
            parts.append(piece)
            have += len(piece)
        held = b"".join(parts)
        taken, held = held[:count], held[count:]
        return taken

    while True:
        if not held:
            held = next(pieces, b"")
            if not held:
                return
        magic = int.from_bytes(take(4), "little")
        if magic >> 4 == 0x184D2A5:
            take(int.from_bytes(take(4), "little"))
            continue
        if magic != 0xFD2FB528:
            raise Trouble("this is no zstd frame")
        try:
            yield from own_frame(take, base)
        except (IndexError, KeyError, struct.error):
            raise Trouble("the zstd frame is damaged") from None


def own_frame(take: Callable[[int], bytes], base: bytes) -> Iterator[bytes]:
    """Yield what the blocks of one frame hold; `take` reads from behind its magic number on."""
    flags = take(1)[0]
    window = 0
    if not flags & 32:
        shape = take(1)[0]
        window = (8 + (shape & 7)) << (7 + (shape >> 3))
    if any(take((0, 1, 2, 4)[flags & 3])):
        raise Trouble("the zstd frame needs a dictionary")
    size_bytes = take((1 if flags & 32 else 0, 2, 4, 8)[flags >> 6])
    size = int.from_bytes(size_bytes, "little") + (256 if len(size_bytes) == 2 else 0)
    frame, checksum, total, is_last = Frame(size if flags & 32 else window, base), Xxh64(), 0, 0
    while not is_last:
        head = int.from_bytes(take(3), "little")
        is_last, kind, length = head & 1, head >> 1 & 3, head >> 3
        if kind == 3 or length > 128 * 1024:
            raise Trouble("the zstd frame is damaged")
        if kind == 2:
            plain = frame.block(take(length))
        else:
            plain = frame.plain(take(length) if kind == 0 else take(1) * length)
        if flags & 4:
            checksum.update(plain)
        total += len(plain)
        yield plain
    if flags & 4 and int.from_bytes(take(4), "little") != checksum.digest() & 0xFFFFFFFF:
        raise Trouble("the zstd frame is damaged: its checksum is wrong")
    if size_bytes and total != size:
        raise Trouble("the zstd frame is damaged: it has another length than it says")


def module_zstd(module: Any) -> Callable[..., Iterator[bytes]]:
    """Return a decoder like `own_zstd` that uses a library."""

    def decode(stored: Iterable[bytes], base: bytes = b"") -> Iterator[bytes]:
        prefix = module.ZstdDict(base, is_raw=True).as_prefix if base else None
        pieces, decoder, data = iter(stored), None, b""
        while True:
            data = data or next(pieces, b"")
            if not data and (decoder is None or decoder.needs_input):
                if decoder is not None:
                    raise Trouble("the zstd frame ends too early")
                return
            decoder = decoder or module.ZstdDecompressor(prefix)
            try:
                plain = decoder.decompress(data, 4 * MIB)
            except module.ZstdError:
                raise Trouble("the zstd frame is damaged") from None
            data = b""
            if plain:
                yield plain
            if decoder.eof:
                data, decoder = decoder.unused_data, None

    return decode


def command_zstd(stored: Iterable[bytes], base: bytes = b"") -> Iterator[bytes]:
    """As `own_zstd`, by the command `zstd`."""
    with tempfile.TemporaryFile() as file, tempfile.NamedTemporaryFile() as before:
        for piece in stored:
            file.write(piece)
        file.seek(0)
        before.write(base)
        before.flush()
        command = ["zstd", "-dcq", *([f"--patch-from={before.name}"] if base else [])]
        with subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            try:
                while process.stdout:
                    plain = process.stdout.read(MIB)
                    if not plain:
                        break
                    yield plain
                if process.wait():
                    raise Trouble("the zstd frame is damaged")
            finally:
                process.kill()


def find_zstd() -> tuple[str, Callable[..., Iterator[bytes]]]:
    """Return the name of the fastest decoder that there is, and the decoder."""
    for name in ("compression.zstd", "backports.zstd", "pyzstd"):
        try:
            return f"Python's {name}", module_zstd(importlib.import_module(name))
        except ImportError:
            continue
    if shutil.which("zstd"):
        return "the command zstd", command_zstd
    return "this script's own, slow decoder", own_zstd


# BLAKE3.

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
ORDER = [list(range(16))]
for _ in range(6):
    ORDER.append([ORDER[-1][at] for at in (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)])
LANES = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
LANES += [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
M32 = 0xFFFFFFFF


def compress(chain: tuple[int, ...], block: bytes, length: int, counter: int, flags: int) -> tuple[int, ...]:
    """Return the next chaining value."""
    words = struct.unpack("<16I", block.ljust(64, b"\0"))
    v = [*chain, *IV[:4], counter & M32, counter >> 32, length, flags]
    for order in ORDER:
        places = iter(order)
        for a, b, c, d in LANES:
            x = (v[a] + v[b] + words[next(places)]) & M32
            z = v[d] ^ x
            z = (z >> 16 | z << 16) & M32
            w = (v[c] + z) & M32
            y = v[b] ^ w
            y = (y >> 12 | y << 20) & M32
            v[a] = x = (x + y + words[next(places)]) & M32
            z ^= x
            v[d] = z = (z >> 8 | z << 24) & M32
            v[c] = w = (w + z) & M32
            y ^= w
            v[b] = (y >> 7 | y << 25) & M32
    return tuple(v[at] ^ v[at + 8] for at in range(8))


class OwnBlake3:
    """BLAKE3 by nothing but this file."""

    def __init__(self) -> None:
        self.waiting, self.done, self.stack = bytearray(), 0, []  # type: bytearray, int, list[tuple[int, ...]]

    def update(self, data: bytes) -> None:
        self.waiting += data
        while len(self.waiting) > 1024:
            value = compress(*self.chunk(bytes(self.waiting[:1024])))
            del self.waiting[:1024]
            self.done += 1
            total = self.done
            while not total & 1:
                value = compress(*self.parent(self.stack.pop(), value))
                total >>= 1
            self.stack.append(value)

    def chunk(self, data: bytes) -> tuple[tuple[int, ...], bytes, int, int, int]:
        """Return the last step of a chunk, not yet taken."""
        chain: tuple[int, ...] = IV
        flags = CHUNK_START
        while len(data) > 64:
            chain, flags, data = compress(chain, data[:64], 64, self.done, flags), 0, data[64:]
        return chain, data, len(data), self.done, flags | CHUNK_END

    def parent(self, left: tuple[int, ...], right: tuple[int, ...]) -> tuple[tuple[int, ...], bytes, int, int, int]:
        return IV, struct.pack("<16I", *left, *right), 64, 0, PARENT

    def hexdigest(self) -> str:
        node = self.chunk(bytes(self.waiting))
        for left in reversed(self.stack):
            node = self.parent(left, compress(*node))
        chain, block, length, counter, flags = node
        return struct.pack("<8I", *compress(chain, block, length, counter, flags | ROOT)).hex()


class CommandBlake3:
    """BLAKE3 by the command `b3sum`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["b3sum", "--no-names"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def update(self, data: bytes) -> None:
        if self.process.stdin:
            self.process.stdin.write(data)

    def hexdigest(self) -> str:
        return self.process.communicate()[0].decode().strip()


def find_blake3(slow_too: bool) -> Any:
    """Return what makes a hasher, None where only the slow one is there and nobody asked for it."""
    try:
        return importlib.import_module("blake3").blake3
    except ImportError:
        return CommandBlake3 if shutil.which("b3sum") else OwnBlake3 if slow_too else None


# Where the blobs are.


class Folder:
    """Blobs in a folder: under their names, or as a folder store of Blobark has them."""

    def __init__(self, top: str) -> None:
        self.top = top
        self.open: Any = "", None

    def children(self, prefix: str) -> list[str]:
        """Return the names of what is directly below a prefix that ends in a slash."""
        parts = [part for part in prefix.split("/") if part]
        found = set()
        for folders in (parts, list(map(store_name, parts))):
            try:
                names = os.listdir(os.path.join(self.top, *folders))
            except OSError:
                continue
            found |= {urllib.parse.unquote(name[:-5] if name.endswith(".blob") else name) for name in names}
        return sorted(found)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a part of a blob: exactly so much, or all that is there."""
        if self.open[0] != key:
            self.close()
            parts = key.split("/")
            escaped = [store_name(part) for part in parts[:-1]] + parts[-1:]
            spread = [key[-2:], key] if len(parts) == 1 else [*escaped[:-1], escaped[-1] + ".blob"]
            for way in (parts, spread):
                path = os.path.join(self.top, *way)
                if os.path.isfile(path):
                    self.open = key, open(path, "rb")
                    break
            else:
                raise Trouble(f"{key} is missing")
        file = self.open[1]
        file.seek(offset)
        data: bytes = file.read(length)
        if length is not None and len(data) != length:
            raise Trouble(f"{key} is shorter than it should be")
        return data

    def close(self) -> None:
        if self.open[1] is not None:
            self.open[1].close()
        self.open = "", None


def store_name(part: str) -> str:
    """Return the name of a folder of a folder store, which escapes what ends like one of its files."""
    if part.endswith("."):
        return part[:-1] + "%2E"
    return part[:-1] + "%62" if part.endswith(".blob") else part


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A SAS goes to the address that it was given for, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Web:
    """Blobs in a container, by its address with a SAS."""

    def __init__(self, address: str) -> None:
        parts = urllib.parse.urlsplit(address)
        self.base = urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        self.query = parts.query
        self.opener = urllib.request.build_opener(NoRedirect)
        self.kept: tuple[str, int, bytes] = "", 0, b""

    def get(self, path: str, query: str, headers: dict[str, str], what: str) -> bytes:
        """Return an answer's body. Tries again what fails in passing."""
        address = f"{self.base}{path}?{query}{'&' if query and self.query else ''}{self.query}"
        reason = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(2**attempt / 2)
            try:
                request = urllib.request.Request(address, headers={"x-ms-version": "2021-12-02", **headers})
                with self.opener.open(request, timeout=TIMEOUT_S) as answer:
                    body: bytes = answer.read()
                    return body
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.headers.get('x-ms-error-code', '')}".strip()
                if error.code < 500 and error.code != 429:
                    break
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", "") or type(error).__name__)
        raise Trouble(f"{what} cannot be had from {self.base}: {reason}")

    def children(self, prefix: str) -> list[str]:
        """As `Folder.children`."""
        found, marker = [], ""
        while True:
            query = {"restype": "container", "comp": "list", "prefix": prefix, "delimiter": "/", "marker": marker}
            body = self.get("", urllib.parse.urlencode(query), {}, "the list of blobs")
            try:
                page = ElementTree.fromstring(body)
            except ElementTree.ParseError:
                raise Trouble(f"{self.base} answers with no list of blobs") from None
            found += [(name.text or "")[len(prefix) :].rstrip("/") for name in page.iterfind("Blobs//Name")]
            marker = page.findtext("NextMarker") or ""
            if not marker:
                return found

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """As `Folder.read`. What comes behind a short part is read with it, for whoever asks next."""
        path = "/" + urllib.parse.quote(key)
        if length is None:
            return self.get(path, "", {}, key)
        if not length:
            return b""
        kept, start, data = self.kept
        if kept != key or not start <= offset <= offset + length <= start + len(data):
            start, end = offset, offset + max(length, 4 * MIB)
            data = self.get(path, "", {"x-ms-range": f"bytes={start}-{end - 1}"}, key)
            self.kept = key, start, data
        part = data[offset - start : offset - start + length]
        if len(part) != length:
            raise Trouble(f"{key} is shorter than it should be")
        return part


def open_source(text: str) -> Folder | Web:
    """Return where the blobs are; raises `Trouble`."""
    if text == "-":
        text = os.environ.get("RESCUE_URL") or sys.stdin.readline()
    text = text.strip()
    if text.startswith(("https://", "http://")):
        return Web(text)
    if not os.path.isdir(text):
        raise Trouble(f"{printable(text.partition('?')[0])} is neither a folder nor an address with https://")
    return Folder(text)


# The snapshot.


class Snapshot:
    """A snapshot's header, and its entries and contents as they are asked for."""

    def __init__(self, source: Folder | Web, server: str, number: int, hasher: Any) -> None:
        self.source, self.server, self.number, self.hasher = source, server, number, hasher
        self.how, self.decode = find_zstd()
        self.frame: tuple[Any, bytes] = None, b""
        what = f"snapshot {number} of {server}"
        damaged = Trouble(f"{what} is damaged: choose an earlier one with --snapshot N")
        try:
            self.header = json.loads(source.read(f"blobark/{server}/snapshots/{number:010d}"))
            fits = (self.header["server"], self.header["number"]) == (server, number)
            self.roots = [raw(root, "name") for root in self.header["roots"]]
            self.segments = [(r["digest"], r.get("base", ""), r["plain_bytes"]) for r in self.header["segments"]]
            unknown = sorted({str(name) for name in self.header.get("requires", ())} - FEATURES)
            is_newer = self.header["format"] > FORMAT or bool(unknown)
        except DAMAGE:
            raise damaged from None
        if not fits:
            raise damaged
        if is_newer:
            raise Trouble(f"{what} needs a newer script than this: format {self.header['format']} {unknown}")

    def entries(self, failed: Callable[[bytes, str], None]) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield each entry with its path below the target; names a segment that cannot be read, and goes on."""
        places = [b""] if len(self.roots) == 1 else [root.strip(b"/") for root in self.roots]
        for digest, base, size in self.segments:
            try:
                lines = self.segment(digest, base, size).splitlines()
            except (Trouble, OSError, *DAMAGE) as error:
                failed(b"segment " + str(digest).encode(errors="replace"), f"a part of the manifest is lost: {error}")
                continue
            for line in lines:
                try:
                    entry = json.loads(line)
                    path, place = raw(entry, "path"), places[entry.get("root", 0)]
                    path = place + b"/" + path if place and path else place or path
                    check_path(path)
                    first = raw(entry, "hardlink_to")
                    entry["first"] = place + b"/" + first if place and first else first
                    check_path(entry["first"])
                except (Trouble, *DAMAGE) as error:
                    failed(line[:80], f"an entry is damaged: {error}")
                    continue
                yield entry, path

    def segment(self, digest: str, base: str, size: int) -> bytes:
        """Return the lines of a segment, which may be stored as a patch of another one, its base."""
        if not DIGEST.fullmatch(digest) or (base and not DIGEST.fullmatch(base)):
            raise Trouble("its name is wrong")
        try:
            before = self.plain(base, base, b"", 32 * MIB) if base else b""
        except (Trouble, OSError, *DAMAGE) as error:
            raise Trouble(f"it rests on segment {base}: {error}") from None
        plain = self.plain(f"{digest}-{base}" if base else digest, digest, before, size)
        if len(plain) != size:
            raise Trouble("it is damaged")
        return plain

    def plain(self, name: str, digest: str, base: bytes, most: int) -> bytes:
        stored = self.source.read(f"blobark/{self.server}/segments/{name}")
        plain = limited(self.decode([stored], base), most + 1)
        if self.hasher and digest_of(self.hasher(), plain) != digest:
            raise Trouble("it is damaged")
        return plain

    def content(self, entry: dict[str, Any]) -> Iterator[bytes]:
        """Yield a file's content; raises `Trouble` at its end when it is not what it should be."""
        size = sum(length for _, length in runs_of(entry))
        extents = entry.get("extents")
        if extents is None:
            extents = [[f"{self.server}_{entry.get('guid')}", 0, size, size]] if size else []
        hasher, total = self.content_hasher(entry), 0
        for extent in extents:
            for piece in self.extent(*extent):
                total += len(piece)
                if hasher is not None:
                    hasher.update(piece)
                yield piece
        if total != size:
            raise Trouble("its content in the store has another length")
        if hasher is not None and hasher.hexdigest() != entry["digest"]:
            raise Trouble("its content in the store is damaged: it has another digest")

    def content_hasher(self, entry: dict[str, Any]) -> Any:
        """Return what digests a file's content, a sparse one's behind the list of its runs; None if nothing does."""
        hasher = self.hasher() if self.hasher else None
        if hasher is not None and entry.get("ranges") is not None:
            runs = "".join(f"{offset} {length}\n" for offset, length in entry["ranges"])
            hasher.update(f"{entry.get('size', 0)}\n{runs}".encode())
        return hasher

    def extent(
        self, blob: str, offset: int, stored: int, length: int, codec: str = "", skip: int = 0
    ) -> Iterator[bytes]:
        if not CONTENT_KEY.fullmatch(blob) or min(offset, stored, length, skip) < 0 or codec not in ("", "zstd"):
            raise Trouble("its entry is damaged: its content lies nowhere")
        if not codec:
            if stored != length:
                raise Trouble("its entry is damaged: its content has two lengths")
            yield from self.stored(blob, offset, stored)
        elif stored <= MIB and skip + length <= 64 * MIB:  # perhaps a frame that several files are in
            if self.frame[0] != (blob, offset, stored):
                self.frame = None, b""
                plain = limited(self.decode(self.stored(blob, offset, stored)), 64 * MIB)
                self.frame = (blob, offset, stored), plain
            yield self.frame[1][skip : skip + length]
        else:
            for piece in self.decode(self.stored(blob, offset, stored)):
                part = piece[skip : skip + length]
                skip, length = max(skip - len(piece), 0), length - len(part)
                yield part

    def stored(self, blob: str, offset: int, length: int) -> Iterator[bytes]:
        for start in range(offset, offset + length, 8 * MIB):
            yield self.source.read(blob, start, min(8 * MIB, offset + length - start))


def limited(pieces: Iterator[bytes], most: int) -> bytes:
    """Return all that comes, or what has come when that is `most` or more."""
    plain = bytearray()
    for piece in pieces:
        plain += piece
        if len(plain) >= most:
            break
    return bytes(plain)


def digest_of(hasher: Any, data: bytes) -> str:
    hasher.update(data)
    return str(hasher.hexdigest())


def raw(thing: dict[str, Any], name: str) -> bytes:
    """Return a name as the file system has it."""
    encoded = thing.get(f"{name}_b64")
    return base64.b64decode(encoded, validate=True) if encoded else str(thing.get(name, "")).encode()


def runs_of(entry: dict[str, Any]) -> list[list[int]]:
    """Return offset and length of each run of data of a file."""
    runs: list[list[int]] | None = entry.get("ranges")
    return [[0, entry.get("size", 0)]] if runs is None else runs


def check_path(path: bytes) -> None:
    if b"\0" in path or (path and any(part in (b"", b".", b"..") for part in path.split(b"/"))):
        raise Trouble("its path leads out of the target")


def display(path: bytes) -> str:
    return printable(path.replace(b"\\", b"\\\\").decode(errors="surrogateescape"))


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


# The tree.

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
KINDS = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
}


class Tree:
    """The tree below TARGET: everything is done from a descriptor of it, one component at a time, through no link."""

    def __init__(self, top: str, snapshot: Snapshot, compare: bool) -> None:
        if not compare:
            os.makedirs(top, 0o700, exist_ok=True)
        self.top = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
        self.snapshot, self.compare = snapshot, compare
        self.is_root = os.geteuid() == 0
        self.here: tuple[bytes, int] = b"", os.dup(self.top)
        self.groups: set[bytes] = set()
        self.counts = {"files": 0, "bytes": 0, "directories": 0, "others": 0, "there already": 0, "failed": 0}

    def failed(self, path: bytes, reason: str) -> None:
        self.counts["failed"] += 1
        print(f"failed: {display(path)}: {printable(reason)}", file=sys.stderr)

    def rebuild(self) -> None:
        """Three passes: items in order; further hard links; the directories' own metadata, deepest first."""
        directories, links = deque(), []  # type: deque[tuple[dict[str, Any], bytes]], list[tuple[dict[str, Any], bytes]]
        for entry, path in self.snapshot.entries(self.failed):
            if entry.get("kind") == "dir":
                directories.appendleft((entry, path))
                self.attempt(self.directory, entry, path)
            elif entry["first"]:
                links.append((entry, path))
            else:
                self.attempt(self.item, entry, path)
        for entry, path in links:
            self.attempt(self.link, entry, path)
        for entry, path in directories:
            self.attempt(self.finish, entry, path)

    def attempt(self, work: Callable[[dict[str, Any], bytes], None], entry: dict[str, Any], path: bytes) -> None:
        """Do something for an item; name it when that fails, or when it could not be saved as it was."""
        try:
            if entry.get("error") and not entry.get("digest") and work == self.item:
                raise Trouble(f"was not saved: {entry['error']}")
            work(entry, path)
            if entry.get("error") and work != self.finish:
                raise Trouble(f"is not as it was, since it could not be saved: {entry['error']}")
        except Trouble as error:
            self.failed(path, str(error))
        except OSError as error:
            self.failed(path, error.strerror or str(error))
        except DAMAGE as error:
            self.failed(path, f"its entry is damaged: {error}")

    def folder(self, path: bytes) -> int:
        """Return a descriptor of a directory, made if it is missing; good until the next call."""
        if self.here[0] == path:
            return self.here[1]
        descriptor = os.dup(self.top)
        try:
            for name in path.split(b"/") if path else ():
                if not self.compare:
                    try:
                        os.mkdir(name, 0o700, dir_fd=descriptor)
                    except FileExistsError:
                        pass
                below = os.open(name, DIRECTORY, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
        except BaseException:
            os.close(descriptor)
            raise
        os.close(self.here[1])
        self.here = path, descriptor
        return descriptor

    def place(self, path: bytes) -> tuple[int, bytes]:
        """Return where an item goes: a descriptor of its directory, and its name."""
        above, _, name = path.rpartition(b"/")
        if not name:
            raise Trouble("the root of a tree can only be a directory")
        return self.folder(above), name

    def directory(self, _entry: dict[str, Any], path: bytes) -> None:
        self.folder(path)
        self.counts["directories"] += 1

    def item(self, entry: dict[str, Any], path: bytes) -> None:
        """Make a file, a symlink or a special file, unless it is there."""
        parent, name = self.place(path)
        there = look(parent, name)
        if there is not None:
            if not self.is_same(entry, parent, name, there):
                raise Trouble("something else is in its place")
            self.counts["there already"] += 1
        elif self.compare:
            raise Trouble("it is missing")
        elif entry.get("kind", "file") == "file":
            self.write(entry, parent, name)
        else:
            self.special(entry, parent, name)
        if entry.get("kind", "file") == "file":
            self.counts["files"] += 1
            self.counts["bytes"] += entry.get("size", 0)
            if entry.get("links", 1) > 1:
                self.groups.add(path)
        else:
            self.counts["others"] += 1

    def is_same(self, entry: dict[str, Any], parent: int, name: bytes, there: os.stat_result) -> bool:
        """Whether what is there is the item; its content is read only to compare."""
        kind = entry.get("kind", "file")
        if stat.S_IFMT(there.st_mode) != KINDS[kind]:
            return False
        if kind == "symlink" and os.readlink(name, dir_fd=parent) != raw(entry, "link"):
            return False
        if kind == "file" and (there.st_size, there.st_mtime_ns) != (entry.get("size", 0), entry.get("mtime_ns", 0)):
            return False
        if not self.compare:
            return True
        if not self.has_metadata(entry, there):
            return False
        return kind != "file" or self.has_content(entry, parent, name)

    def has_metadata(self, entry: dict[str, Any], there: os.stat_result) -> bool:
        owner = (entry.get("uid", 0), entry.get("gid", 0))
        if there.st_mtime_ns != entry.get("mtime_ns", 0) or (self.is_root and (there.st_uid, there.st_gid) != owner):
            return False
        return entry.get("kind") == "symlink" or stat.S_IMODE(there.st_mode) == self.mode(entry, there)

    def has_content(self, entry: dict[str, Any], parent: int, name: bytes) -> bool:
        hasher = self.snapshot.content_hasher(entry)
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=parent), "rb") as file:
            end = 0
            for offset, length in [*runs_of(entry), [entry.get("size", 0), 0]]:
                if any(piece.strip(b"\0") for piece in part_of(file, end, offset - end)):
                    return False  # a hole is filled
                for piece in part_of(file, offset, length):
                    hasher.update(piece)
                end = offset + length
        return bool(hasher.hexdigest() == entry["digest"])

    def write(self, entry: dict[str, Any], parent: int, name: bytes) -> None:
        """Write a file under another name, and give it its own when all of it is there."""
        temporary = b".blobark-%016x.part" % zlib.crc32(name)
        try:
            os.unlink(temporary, dir_fd=parent)  # of a run that was killed
        except FileNotFoundError:
            pass
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(temporary, flags, 0o600, dir_fd=parent)
        try:
            os.ftruncate(descriptor, entry.get("size", 0))
            runs = deque(runs_of(entry))
            for piece in self.snapshot.content(entry):
                while piece:
                    offset, length = runs.popleft()
                    part = piece[:length]
                    write_all(descriptor, part, offset)
                    if len(part) < length:
                        runs.appendleft([offset + len(part), length - len(part)])
                    piece = piece[len(part) :]
            problem = self.metadata(descriptor, entry)
            if look(parent, name) is not None:
                raise Trouble("something else has taken its place")
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            os.unlink(temporary, dir_fd=parent)
            raise
        finally:
            os.close(descriptor)
        if problem:
            raise Trouble(problem)

    def special(self, entry: dict[str, Any], parent: int, name: bytes) -> None:
        kind = entry["kind"]
        if kind == "symlink":
            os.symlink(raw(entry, "link"), name, dir_fd=parent)
        else:
            device = os.makedev(*entry["rdev"]) if kind in ("char", "block") else 0
            os.mknod(name, KINDS[kind] | 0o600, device, dir_fd=parent)
        if self.is_root:
            os.chown(name, entry.get("uid", 0), entry.get("gid", 0), dir_fd=parent, follow_symlinks=False)
        if kind != "symlink":
            os.chmod(name, self.mode(entry, os.lstat(name, dir_fd=parent)), dir_fd=parent)
        times = (entry.get("mtime_ns", 0),) * 2
        os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)

    def link(self, entry: dict[str, Any], path: bytes) -> None:
        """Make a further name of a file that is there, and that the snapshot says has several."""
        first = entry["first"]
        if first not in self.groups:
            raise Trouble(f"the file it is a hard link of, {display(first)}, is not there")
        parent, name = self.place(first)
        parent = os.dup(parent)
        try:
            wanted = look(parent, name)
            folder, new = self.place(path)
            there = look(folder, new)
            if (
                there is not None
                and wanted is not None
                and (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino)
            ):
                self.counts["there already"] += 1
            elif there is not None or self.compare:
                raise Trouble("something else is in its place" if there else "it is missing")
            else:
                os.link(name, new, src_dir_fd=parent, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(parent)
        self.counts["others"] += 1

    def finish(self, entry: dict[str, Any], path: bytes) -> None:
        """Give a directory its metadata."""
        try:
            descriptor = self.folder(path)
        except OSError:
            return  # named already
        if self.compare:
            if not self.has_metadata(entry, os.fstat(descriptor)):
                raise Trouble("its mode, owner or time is another")
        elif problem := self.metadata(descriptor, entry):
            raise Trouble(problem)

    def mode(self, entry: dict[str, Any], there: os.stat_result) -> int:
        """Return the mode; without the set-id bits where the owner is not the one they were meant for."""
        mode: int = entry.get("mode", 0) & 0o7777
        if (entry.get("uid", 0), entry.get("gid", 0)) == (there.st_uid, there.st_gid):
            return mode
        return mode & 0o1777

    def metadata(self, descriptor: int, entry: dict[str, Any]) -> str:
        """Set owner, attributes, mode and times, in this order; return which of the first two could not be set."""
        problem = ""
        if self.is_root:
            try:
                os.chown(descriptor, entry.get("uid", 0), entry.get("gid", 0))
            except OSError as error:  # as in a container that does not know the owner
                problem = f"its owner cannot be set ({error.strerror})"
        for name, value in (entry.get("xattrs") or {}).items():
            if self.is_root or not name.startswith(("security.", "trusted.")):
                try:
                    os.setxattr(descriptor, name, base64.b64decode(value))
                except (OSError, AttributeError):
                    problem = f"its attribute {name} cannot be set"
        os.chmod(descriptor, self.mode(entry, os.fstat(descriptor)))
        os.utime(descriptor, ns=(entry.get("mtime_ns", 0),) * 2)
        return problem


def look(parent: int, name: bytes) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return None


def part_of(file: Any, offset: int, length: int) -> Iterator[bytes]:
    file.seek(offset)
    for start in range(0, length, MIB):
        yield file.read(min(MIB, length - start))


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


# The command line.


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="rescue.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="a folder, or - for an address in RESCUE_URL")
    parser.add_argument("target", metavar="TARGET", nargs="?", help="where the tree is rebuilt")
    parser.add_argument("--list", action="store_true", help="list the servers and snapshots, and do nothing")
    parser.add_argument("--server", default="", metavar="NAME", help="whose snapshot (default: the only server's)")
    parser.add_argument("--snapshot", type=int, default=0, metavar="N", help="which one (default: the newest)")
    parser.add_argument("--check", action="store_true", help="compare digests although that is slow here")
    parser.add_argument("--compare", action="store_true", help="write nothing; compare TARGET with the snapshot")
    options = parser.parse_args(argv)
    if not options.list and options.target is None:
        parser.error("say TARGET, or --list")
    try:
        source = open_source(options.source)
        return list_all(source, options.server) if options.list else rebuild(source, options)
    except (Trouble, OSError) as error:
        print(f"rescue.py: {printable(str(error))}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        return 130


def servers(source: Folder | Web) -> list[str]:
    names = [name for name in source.children("blobark/") if SERVER.fullmatch(name)]
    found = [name for name in names if numbers(source, name)]
    if not found:
        raise Trouble("no server's backup is here: is it the right place?")
    return found


def numbers(source: Folder | Web, server: str) -> list[int]:
    names = source.children(f"blobark/{server}/snapshots/")
    return sorted(int(name) for name in names if re.fullmatch("[0-9]{10}", name))


def list_all(source: Folder | Web, wanted: str) -> int:
    print(f"{'server':<24} {'snapshot':>8} {'time (UTC)':<20} {'files':>12} {'bytes':>18}")
    code = 0
    for server in [wanted] if wanted else servers(source):
        for number in numbers(source, server):
            try:
                header = Snapshot(source, server, number, None).header
                totals = header["totals"]
                shown = f"{header['started']:<20} {totals['files']:>12,} {totals['file_bytes']:>18,}"
                print(f"{server:<24} {number:>8} {shown}{'' if header['complete'] else '  incomplete'}")
            except (Trouble, *DAMAGE) as error:
                print(f"{server:<24} {number:>8} cannot be read: {printable(str(error))}")
                code = 3
    return code


def rebuild(source: Folder | Web, options: argparse.Namespace) -> int:
    server, number = options.server, options.snapshot
    if not server:
        server, *others = servers(source)
        if others:
            raise Trouble(f"there are several servers: choose with --server: {', '.join([server, *others])}")
    if not SERVER.fullmatch(server):
        raise Trouble("--server: this is no name of a server")
    if not number:
        found = numbers(source, server)
        if not found:
            raise Trouble(f"{server} has no snapshot here")
        number = found[-1]
    snapshot = Snapshot(source, server, number, find_blake3(options.check or options.compare))
    tree = Tree(options.target, snapshot, options.compare)
    tree.rebuild()
    if not snapshot.header.get("complete") and not tree.counts["failed"]:
        tree.failed(b"snapshot %d" % number, "it is incomplete")
    print(f"snapshot {number} of {server}: " + ", ".join(f"{count:,} {name}" for name, count in tree.counts.items()))
    checked = (
        "lengths and digests were checked" if snapshot.hasher else "lengths were checked, digests were not (--check)"
    )
    print(f"{checked}; zstd was read by {snapshot.how}")
    return 3 if tree.counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
