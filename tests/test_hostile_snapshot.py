"""Restores of headers and segments that are damaged, lie, or would fill the memory: see test_hostile_manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forge import Fields, Forge, compress, decompress, item
from tests.scene import Scene

Publish = Callable[[Forge], object]


# Headers


HEADERS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda header: b"",
    "cut short": lambda header: header[:100],
    "no JSON": lambda header: b"\0\xff\1",
    "an array": lambda header: b"[]",
    "null": lambda header: b"null",
    "twice": lambda header: header + header,
    "UTF-16": lambda header: header.decode().encode("utf-16"),
    "not UTF-8": lambda header: header.replace(b"web1.example", b"web1\xff"),
    "very deep": lambda header: header[:-1] + b', "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a key twice": lambda header: header[:-1] + b', "server": "other"}',
}


@pytest.mark.parametrize("damage", HEADERS.values(), ids=HEADERS.keys())
def test_a_damaged_header_is_refused(scene: Scene, damage: Callable[[bytes], bytes]) -> None:
    path = scene.forge.snapshot(scene.forge.file("a"))
    path.write_bytes(damage(path.read_bytes()))
    scene.restore(4)


TOTALS = {"entries": 2, "files": 1, "file_bytes": 1, "errors": 0, "new_blobs": 1, "new_bytes": 1}

HEADER_FIELDS: dict[str, tuple[Fields, str]] = {
    "newer format": ({"format": 2}, "newer"),
    "unknown requirement": ({"requires": ["erasure-codes"]}, "erasure-codes"),
    "a requirement of escapes": ({"requires": ["\x1b[2J\n"]}, "newer"),
    "format of text": ({"format": "1"}, ""),
    "other number": ({"number": 7}, "damaged"),
    "other server": ({"server": "web2"}, "damaged"),
    "no host": ({"host": {}}, ""),
    "no segments": ({"segments": None}, ""),
    "fewer segments than it counts": ({"segments": []}, ""),
    "more entries than it has": ({"totals": {**TOTALS, "entries": 3}}, ""),
}


@pytest.mark.parametrize(("fields", "says"), HEADER_FIELDS.values(), ids=HEADER_FIELDS.keys())
def test_a_header_that_says_otherwise_is_refused(scene: Scene, fields: Fields, says: str) -> None:
    ref = scene.forge.segment([item("", "dir"), scene.forge.file("a")])
    scene.forge.publish(scene.forge.header([ref], 1, **fields))
    assert says in scene.restore(4).result["error"]
    assert not (scene.restored / "a").exists()


ROOTS: dict[str, list[Fields]] = {
    "one is /": [{"name": "/"}, {"name": "/b"}],
    "one goes up": [{"name": "/a"}, {"name": "/a/../b"}],
    "one is relative and goes up": [{"name": "/a"}, {"name": "../b"}],
    "one is empty": [{"name": "/a"}, {}],
    "one has NUL": [{"name": "/a"}, {"name": "/b\0"}],
    "one is no base64": [{"name": "/a"}, {"name_b64": "A"}],
    "one is there twice": [{"name": "/a"}, {"name": "/a"}],
    "one lies inside the other": [{"name": "/a"}, {"name": "/a/b"}],
}


@pytest.mark.parametrize("roots", ROOTS.values(), ids=ROOTS.keys())
def test_roots_that_cannot_be_are_refused(scene: Scene, roots: list[Fields]) -> None:
    forge = scene.forge
    entries: list[Fields] = []
    for number in range(len(roots)):
        entries += [item("", "dir", root=number), {**forge.file("b", bytes([number])), "root": number}]
    forge.publish(forge.header([forge.segment(entries)], roots=roots))
    scene.restore(4, settled=False)


FAR = 10**30

TIMES: dict[str, Fields] = {
    "no time": {"started": "x"},
    "another time": {"started": "2026-01-02T03:04:06Z"},
    "no zone": {"started": "2026-01-02T03:04:05"},
    "after all time": {"started_ns": FAR},
    "before all time": {"started_ns": -FAR},
    "before 1970": {"started": "1969-12-31T23:59:59Z", "started_ns": -(10**9)},
    "no end": {"ended": "y"},
    "an end without a zone": {"ended": "2026-01-02T03:04:06"},
}


@pytest.mark.parametrize("fields", [{"roots": []}, *TIMES.values()], ids=["no roots", *TIMES.keys()])
def test_every_command_says_that_a_header_contradicts_itself(scene: Scene, fields: Fields) -> None:
    scene.workspace.configure(keep={"daily": 3, "within": "3d"}, server="web1")
    scene.forge.snapshot(scene.forge.file("a"), **fields)
    check_contradiction(scene)


@pytest.mark.parametrize("roots", ROOTS.values(), ids=ROOTS.keys())
def test_every_command_says_that_roots_contradict_each_other(scene: Scene, roots: list[Fields]) -> None:
    scene.workspace.configure(keep={"daily": 3, "within": "3d"}, server="web1")
    scene.forge.publish(scene.forge.header([scene.forge.segment([item("", "dir")])], roots=roots))
    check_contradiction(scene)


def check_contradiction(scene: Scene) -> None:
    for command, options, code in (
        ("restore", [], 4),
        ("restore", ["--in-place"], 4),
        ("verify", [], 7),
        ("prune", ["--yes"], 4),
        ("snapshots", [], 3),
        ("ls", [], 4),
    ):
        run = scene.workspace.run(command, *options, expect=code)
        assert "Traceback" not in run.stderr
        said = run.stderr + json.dumps(run.result)
        assert "contradicts itself: it is damaged" in said, (command, said)


@pytest.mark.parametrize("name", ["../outside", "/srv/../../outside", "", "outside"])
def test_the_name_of_a_single_root_leads_nowhere(scene: Scene, name: str) -> None:
    scene.forge.snapshot(scene.forge.file("a"), roots=[{"name": name, "entries": 2}])
    scene.restore(4)


@pytest.mark.parametrize("name", ["web2", "../../outside", "\x1b[2J\n", ""])
def test_an_owner_with_another_name_is_refused(scene: Scene, name: str) -> None:
    scene.forge.snapshot(scene.forge.file("a"))
    path = scene.forge.path("blobark/web1/server.json")
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "name": name}))
    scene.restore(4)


# Segments


@pytest.mark.parametrize(("kind", "field"), [("symlink", "link_b64"), ("file", "hardlink_to_b64")])
def test_listings_say_that_a_name_is_no_base64(scene: Scene, kind: str, field: str) -> None:
    scene.workspace.configure(server="web1")
    scene.forge.snapshot(scene.forge.file("a"))
    scene.forge.snapshot(item("a", kind, **{field: "A"}), number=2)
    for command in (["ls", "2"], ["find", "a"], ["history", "/srv/data/a"], ["diff", "1", "2"]):
        assert "is damaged: a path is no base64" in scene.workspace.run(*command, expect=4).stderr


SEGMENTS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "no zstd": lambda path: path.write_bytes(b"hello"),
    "another segment": lambda path: path.write_bytes(compress(b'{"kind":"dir"}\n')),
    "a symlink": lambda path: path.symlink_to(path.rename(path.with_name("aside"))),
    "a FIFO": lambda path: os.mkfifo(path.rename(path.with_name("aside")).with_name(path.name)),
    "a directory": lambda path: path.rename(path.with_name("aside")).with_name(path.name).mkdir(),
}


@pytest.mark.parametrize("damage", SEGMENTS.values(), ids=SEGMENTS.keys())
def test_a_damaged_segment_is_refused(scene: Scene, damage: Callable[[Path], object]) -> None:
    ref = scene.forge.segment([item("", "dir"), scene.forge.file("a")])
    scene.forge.publish(scene.forge.header([ref]))
    damage(scene.forge.path(f"blobark/web1/segments/{ref['digest']}"))
    scene.restore(4)


REFS: dict[str, Fields] = {
    "fewer entries": {"entries": 3},
    "more entries": {"entries": 5},
    "negative entries": {"entries": -1},
    "fewer bytes": {"plain_bytes": 5},
    "more bytes": {"plain_bytes": 100_000},
    "10 GB": {"plain_bytes": 10_000_000_000},
    "negative bytes": {"plain_bytes": -1},
    "no directories": {"dirs": 0},
    "no links": {"links": 0},
    "more files": {"files": 9},
    "a digest of dots": {"digest": "../../../../outside/file"},
    "a digest of nothing": {"digest": ""},
    "a digest of letters": {"digest": "é"},
}


@pytest.mark.parametrize("lie", REFS.values(), ids=REFS.keys())
def test_a_header_that_lies_about_a_segment_is_refused(scene: Scene, lie: Fields) -> None:
    forge = scene.forge
    entries = [item("", "dir"), item("d", "dir"), forge.file("d/a"), item("link", "file", hardlink_to="d/a")]
    forge.contents["link"] = forge.contents["d/a"]
    forge.publish(forge.header([forge.segment(entries, **lie)]))
    scene.restore(4)


LINES: dict[str, bytes] = {
    "no JSON": b"hello\n",
    "an array": b"[]\n",
    "no end": b'{"kind":"dir"}',
    "an empty line": b'{"kind":"dir"}\n\n',
    "not UTF-8": b'{"kind":"dir"}\n{"path":"\xff"}\n',
    "half a surrogate": b'{"kind":"dir"}\n{"path":"\\ud800"}\n',
    "a number of 6,000 digits": b'{"kind":"dir"}\n{"path":"a","uid":' + b"9" * 6000 + b"}\n",
    "very deep": b'{"kind":"dir","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
}


@pytest.mark.parametrize("plain", LINES.values(), ids=LINES.keys())
def test_lines_that_are_no_entries_are_refused(scene: Scene, plain: bytes) -> None:
    scene.forge.publish(scene.forge.header([scene.forge.segment(plain)]))
    scene.restore(4)


# Bombs: what is small in the store stays small in memory


def zeros(forge: Forge) -> None:
    """Publish a frame of 10 GB of zeros, said to be 1,000 bytes: RFC 8878's blocks that repeat one byte 2**17 times."""
    block = (1 << 17 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    frame = b"\x28\xb5\x2f\xfd\x00\x38" + block * 80_000
    assert decompress(frame, 1 << 20) == bytes(1 << 20)
    forge.write(f"blobark/web1/segments/{'0' * 64}", frame)
    forge.publish(forge.header([{"digest": "0" * 64, "entries": 1, "plain_bytes": 1000}]))


def entries_without_end(forge: Forge) -> None:
    forge.publish(forge.header([forge.segment(b"{}\n" * 5_000_000)]))


def long_segment(forge: Forge) -> None:
    ref = forge.segment([item("", "dir")])
    forge.publish(forge.header([ref]))
    os.truncate(forge.path(f"blobark/web1/segments/{ref['digest']}"), 1 << 36)


def long_header(forge: Forge) -> None:
    os.truncate(forge.snapshot(forge.file("a")), 1 << 36)


BOMBS: list[Publish] = [zeros, entries_without_end, long_segment, long_header]


@pytest.mark.parametrize("publish", BOMBS)
def test_a_bomb_does_not_go_off(scene: Scene, publish: Publish) -> None:
    publish(scene.forge)
    scene.restore(4, memory_bytes=700 << 20)
