"""Restores of snapshots that nobody should trust, and into folders where somebody has planted things.

Each ends with the documented exit code and says why in a line. Nothing outside restore_root is touched, and no wrong
byte ever has a final name: `Scene.restore` looks at both, each time.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.forge import MTIME_NS, Fields, Forge, compress, decompress, digest, item
from tests.forked import Forking
from tests.racer import racing
from tests.scene import Scene, judged
from tests.small_disk import SmallDisk

Make = Callable[[Forge], Fields]
Publish = Callable[[Forge], object]

TEN = b"0123456789"


@pytest.fixture(scope="module")
def forking() -> Iterator[Forking]:
    with Forking() as made:
        yield made


@pytest.fixture
def scene(tmp_path: Path, forking: Forking) -> Scene:
    return Scene(tmp_path, forking)


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


# The forge itself


def test_a_forged_snapshot_that_is_right_is_restored(scene: Scene) -> None:
    forge = scene.forge
    first = [
        item("", "dir"),
        forge.file("a", links=2, later={"x": [1]}),
        item("d", "dir", mode=0o750),
        forge.file("d/e"),
    ]
    second = [
        item("d/link", "symlink", link="../../outside/file"),
        item("fifo", "fifo"),
        forge.sparse("holes", 100_000, [[50_000, 10]], TEN),
        item("second", "file", hardlink_to="a"),
        forge.file("z", TEN, extents=[["web1_" + forge.blob(b"xx" + TEN), 2, 10, 10]]),
    ]
    forge.contents["second"] = forge.contents["a"]
    forge.publish(forge.header([forge.segment(first, later=1), forge.segment(second)], later={"unknown": True}))
    result = scene.restore(0).result
    assert (result["files"], result["links"], result["specials"], result["dirs"]) == (4, 1, 2, 2)
    assert os.path.samefile(scene.restored / "second", scene.restored / "a")
    assert os.readlink(scene.restored / "d" / "link") == "../../outside/file"
    assert (scene.restored / "d").stat().st_mode & 0o7777 == 0o750
    assert (scene.restored / "a").stat().st_mtime_ns == MTIME_NS


# Manifests that cannot be trusted: exit code 4

PATHS = {
    "parent": {"path": ".."},
    "outside": {"path": "../outside/file"},
    "through": {"path": "d/../../outside/file"},
    "absolute": {"path": "/etc/blobark-was-here"},
    "empty component": {"path": "d//x"},
    "dot": {"path": "d/./x"},
    "slash at the end": {"path": "d/x/"},
    "NUL": {"path": "d/\0x"},
    "outside, as base64": {"path": "", "path_b64": b64(b"../outside/file")},
    "no base64": {"path": "", "path_b64": "A"},
    "unknown root": {"path": "e", "root": 1},
    "negative root": {"path": "e", "root": -1},
    "below nothing": {"path": "e/x"},
}


@pytest.mark.parametrize("fields", PATHS.values(), ids=PATHS.keys())
def test_a_path_that_leads_elsewhere_is_refused(scene: Scene, fields: Fields) -> None:
    scene.forge.snapshot(item("d", "dir"), {**scene.forge.file("bad"), **fields})
    scene.restore(4)


SHAPES: dict[str, list[Make]] = {
    "below a symlink": [lambda f: item("d", "symlink", link="../outside/dir"), lambda f: f.file("d/x")],
    "below a symlink that is called a hard link": [
        lambda f: item("d", "symlink", link="../outside/dir", hardlink_to="x"),
        lambda f: f.file("d/x"),
    ],
    "below a file": [lambda f: f.file("d"), lambda f: f.file("d/x")],
    "out of order": [lambda f: f.file("b"), lambda f: f.file("a")],
    "twice": [lambda f: f.file("a", b"1"), lambda f: f.file("a", b"2")],
    "twice, once as base64": [lambda f: f.file("a"), lambda f: f.file("x", path="", path_b64=b64(b"a"))],
    "a directory and a file": [lambda f: item("a", "dir"), lambda f: f.file("a")],
    "a link to outside": [lambda f: item("a", "file", hardlink_to="../outside/file")],
    "a link to an absolute path": [lambda f: item("a", "file", hardlink_to="/etc/passwd")],
    "a link to NUL": [lambda f: item("a", "file", hardlink_to="a\0")],
    "a link to no base64": [lambda f: item("a", "file", hardlink_to_b64="A")],
    "a kind that nobody knows": [lambda f: item("a", "door")],
}


@pytest.mark.parametrize("makes", SHAPES.values(), ids=SHAPES.keys())
def test_a_tree_that_cannot_be_is_refused(scene: Scene, makes: list[Make]) -> None:
    scene.forge.snapshot(*[make(scene.forge) for make in makes])
    scene.restore(4)


@pytest.mark.parametrize(
    "top", [item("", "symlink", link="../outside"), item("", "file"), item("a", "dir")], ids=["symlink", "file", "none"]
)
def test_a_root_that_is_no_directory_is_refused(scene: Scene, top: Fields) -> None:
    forge = scene.forge
    forge.publish(forge.header([forge.segment([top, forge.file("b")])]))
    scene.restore(4)


def test_segments_in_the_wrong_order_are_refused(scene: Scene) -> None:
    forge = scene.forge
    later, earlier = forge.segment([forge.file("a")]), forge.segment([item("", "dir")])
    forge.publish(forge.header([later, earlier]))
    scene.restore(4)


def test_a_segment_twice_is_refused(scene: Scene) -> None:
    ref = scene.forge.segment([item("", "dir"), scene.forge.file("a")])
    scene.forge.publish(scene.forge.header([ref, ref]))
    scene.restore(4)


# A GUID names a blob, and nothing else may be made of it.


@pytest.mark.parametrize("kind", ["file", "symlink", "fifo"])
def test_a_guid_with_a_path_in_it_leads_nowhere(scene: Scene, kind: str) -> None:
    # Beside the item lies a directory that begins like a temporary file: `.blobark-x/../../outside/x.part` is there.
    fields = item("a", kind, guid="x/../../outside/x", digest=digest(b""), link="b")
    scene.forge.snapshot(item(".blobark-x", "dir"), fields)
    scene.restore((3, 4))


def test_a_guid_with_nul_is_refused(scene: Scene) -> None:
    scene.forge.snapshot(scene.forge.file("a", b"", guid="a\0b"))
    scene.restore((3, 4))


@pytest.mark.parametrize("size", [10, 10 << 20], ids=["small", "large"])
def test_two_files_with_one_guid_do_not_mix(scene: Scene, size: int) -> None:
    guid = scene.forge.blob(b"")
    names = [f"f{number:02}" for number in range(4)]
    data = {name: bytes([number + 1]) * size for number, name in enumerate(names)}
    extents = {name: [["web1_" + scene.forge.blob(data[name]), 0, size, size]] for name in names}
    entries = [scene.forge.file(name, data[name], guid=guid, extents=extents[name]) for name in names]
    scene.forge.snapshot(*entries)
    scene.workspace.configure(max_workers=4)
    scene.restore((0, 3, 4))


@pytest.mark.parametrize("kind", ["file", "file, as base64", "dir", "symlink"])
def test_an_item_under_the_temporary_name_of_another_does_not_become_it(scene: Scene, kind: str) -> None:
    forge = scene.forge
    large = forge.file("large", bytes(20 << 20))
    forge.snapshot(large)
    with subprocess.Popen(scene.workspace.command("restore"), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (seen := scene.leftovers()):
            pass
        process.kill()
    (scene.restored / "large").unlink(missing_ok=True)
    if not seen:
        return  # it has no such name that could be foreseen
    name = seen[0].name
    evil = item(name, kind, link="../outside/file") if kind in ("dir", "symlink") else forge.file(name, b"evil")
    if kind == "file, as base64":
        evil.update(path="", path_b64=b64(name.encode()))
    forge.snapshot(evil, large, item("second", "file", hardlink_to="large"))
    forge.contents["second"] = forge.contents["large"]
    run = judged(scene.run(), (0, 3))
    scene.check_content()
    assert not (scene.restored / "large").is_symlink()
    failed = [path for path, _ in run.result["failed"]]
    assert [path for path in (name, "large", "second") if not os.path.lexists(scene.restored / path)] == failed


def test_a_file_that_is_called_like_a_link_in_the_making_stays(scene: Scene) -> None:
    forge = scene.forge
    names = sorted([".blobark-link.part", ".blobark-.part", "file"])
    forge.snapshot(*[forge.file(name) for name in names], item("second", "file", hardlink_to="file"))
    forge.contents["second"] = forge.contents["file"]
    run = judged(scene.run(), (0, 3))
    scene.check_content()
    missing = {name for name in [*names, "second"] if not (scene.restored / name).exists()}
    assert missing == {path for path, _ in run.result["failed"]}


# Values that no writer can have written: the item fails, or the manifest is refused

VALUES: dict[str, Make] = {
    "negative size": lambda f: f.file("bad", b"", size=-5),
    "negative owner": lambda f: f.file("bad", uid=-5),
    "owner -1, which means: leave it": lambda f: f.file("bad", uid=-1),
    "owner of 33 bits": lambda f: f.file("bad", uid=1 << 32),
    "group of 65 bits": lambda f: f.file("bad", gid=1 << 64),
    "negative mode": lambda f: f.file("bad", mode=-1),
    "mode of 41 bits": lambda f: f.file("bad", mode=1 << 40),
    "text for a number": lambda f: f.file("bad", mode="420"),
    "a link with NUL": lambda f: item("bad", "symlink", link="a\0b"),
    "a link that is no base64": lambda f: item("bad", "symlink", link_b64="A"),
    "an attribute with NUL": lambda f: f.file("bad", xattrs={"user.a\0b": "AA=="}),
    "an attribute that is no base64": lambda f: f.file("bad", xattrs={"user.a": "A"}),
    "a negative device": lambda f: item("bad", "char", rdev=[-1, -1]),
    "a device of 41 bits": lambda f: item("bad", "block", rdev=[1 << 40, 0]),
    "a device that is none": lambda f: item("bad", "char", rdev=[1, 3, 5]),
    "no digest": lambda f: f.file("bad", b"never verified", digest=""),
    "ranges before the start": lambda f: f.sparse("bad", 100, [[-5, 10]], TEN),
    "ranges after the end": lambda f: f.sparse("bad", 100, [[95, 10]], TEN),
    "ranges of negative length": lambda f: f.sparse("bad", 100, [[0, -5], [0, 15]], TEN),
    "ranges that overlap": lambda f: f.sparse("bad", 100, [[0, 5], [3, 5]], TEN),
    "ranges out of order": lambda f: f.sparse("bad", 100, [[50, 5], [0, 5]], TEN),
    "a range at 2**70": lambda f: f.sparse("bad", 1 << 71, [[1 << 70, 10]], TEN),
    "a negative size with a range": lambda f: f.sparse("bad", -5, [[0, 10]], TEN),
    "an extent before the start": lambda f: f.file("bad", TEN, extents=[["web1_" + f.blob(TEN), -5, 10, 10]]),
    "an extent at 2**70": lambda f: f.file("bad", TEN, extents=[["web1_" + f.blob(TEN), 1 << 70, 10, 10]]),
    "an extent of negative length": lambda f: f.file("bad", b"", extents=[["web1_" + f.blob(TEN), 0, -10, 0]]),
    "extents longer than the file": lambda f: f.file("bad", TEN, size=5, extents=[["web1_" + f.blob(TEN), 0, 10, 10]]),
    "extents shorter than the file": lambda f: f.file(
        "bad", TEN, size=50, extents=[["web1_" + f.blob(TEN), 0, 10, 10]]
    ),
    "an extent that decodes to less": lambda f: f.file("bad", TEN, extents=[["web1_" + f.blob(TEN), 0, 10, 5]]),
    "a directory's owner": lambda f: item("bad", "dir", uid=-5),
    "a directory's group": lambda f: item("bad", "dir", gid=1 << 32),
    "a directory's mode": lambda f: item("bad", "dir", mode=-1),
    "a directory's large mode": lambda f: item("bad", "dir", mode=1 << 40),
    "a directory's time": lambda f: item("bad", "dir", mtime_ns=1 << 200),
    "a directory's attributes": lambda f: item("bad", "dir", xattrs={"user.a": "A"}),
    "a directory's attributes' names": lambda f: item("bad", "dir", xattrs={"user.a\0": "AA=="}),
    "a FIFO's owner": lambda f: item("bad", "fifo", uid=1 << 32),
    "a time of 200 bits": lambda f: f.file("bad", mtime_ns=1 << 200),
    "an extent of a path": lambda f: f.file("bad", TEN, extents=[["../../outside/file", 0, 10, 10]]),
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES.keys())
def test_a_value_that_cannot_be_harms_nothing_else(scene: Scene, make: Make) -> None:
    bad, good = make(scene.forge), scene.forge.file("good")
    scene.forge.contents.pop("bad", None)
    scene.forge.snapshot(bad, good)
    run = scene.restore((3, 4))
    assert bad["kind"] == "dir" or not os.path.lexists(scene.restored / "bad")
    if run.code == 3:
        assert [path for path, _ in run.result["failed"]] == ["bad"]
        assert (scene.restored / "good").exists()


def test_values_at_the_edge_do_no_harm(scene: Scene) -> None:
    scene.forge.snapshot(
        scene.forge.file("far", mtime_ns=(1 << 63) - 1),
        scene.forge.file("long ago", mtime_ns=-(1 << 63)),
        scene.forge.file("type in its mode", mode=0o100640),
    )
    scene.restore((0, 3, 4))
    file = scene.restored / "type in its mode"
    assert not file.exists() or file.stat().st_mode & 0o7777 == 0o640


# Items that fail: exit code 3, each by name, and all others are restored


def test_items_that_fail_are_named_and_the_others_restored(scene: Scene) -> None:
    forge = scene.forge
    gone, short = forge.file("gone"), forge.file("short", b"123")
    forge.path("web1_" + gone["guid"]).unlink()
    forge.path("web1_" + short["guid"]).write_bytes(b"12")
    damaged = forge.file("damaged", b"right")
    forge.path("web1_" + damaged["guid"]).write_bytes(b"wrong")
    key, other = "web1_" + forge.blob(TEN), "other_" + forge.blob(TEN, "other")
    bad = [
        damaged,
        gone,
        short,
        item("error", "file", error="it could not be read"),
        forge.file("extent of another server", b"what ours held", extents=[[other, 0, 10, 10]]),
        forge.file("extent of nothing", TEN, extents=[["web1_no-such-blob", 0, 10, 10]]),
        forge.file("extent of the owner's file", TEN, extents=[["blobark/web1/server.json", 0, 10, 10]]),
        forge.file("extent past the end", TEN, extents=[[key, 5, 10, 10]]),
        forge.file("extent too long", TEN * 2, extents=[[key, 0, 20, 20]]),
        forge.file("extent too short", TEN, extents=[[key, 0, 5, 5]]),
        forge.file("extents none", TEN, extents=[]),
        forge.file("huge", TEN, size=1 << 62),
        forge.file("huge range", TEN, size=1 << 62, ranges=[[1 << 61, 10]], digest="0" * 64),
        item("link to a directory", "file", hardlink_to="z dir"),
        item("link to a symlink", "file", hardlink_to="z symlink"),
        item("link to itself", "file", hardlink_to="link to itself"),
        item("link to nothing", "file", hardlink_to="nothing"),
        item("link to what failed", "file", hardlink_to="damaged"),
        forge.file("n" * 256),
        item("o" * 256, "dir"),
        forge.file("o" * 256 + "/inside"),
        item("symlink to nowhere", "symlink", link=""),
        forge.file("too large", b"123", size=4),
        forge.file("too small", b"123", size=2),
    ]
    good = [forge.file("z"), item("z dir", "dir"), forge.file("z dir/file"), item("z symlink", "symlink", link="z")]
    forge.contents = {name: data for name, data in forge.contents.items() if name in ("z", "z dir/file")}
    forge.snapshot(*sorted([*bad, *good], key=lambda entry: entry["path"].replace("/", "\0")))
    result = scene.restore(3).result
    assert sorted(path for path, _ in result["failed"]) == sorted(entry["path"] for entry in bad)
    assert {path.name for path in scene.restored.iterdir()} == {"z", "z dir", "z symlink"}


def test_an_attribute_that_cannot_be_set_costs_nothing_else(scene: Scene) -> None:
    attributes = {"no such space": "AA==", "user." + "n" * 300: "AA==", "": "AA==", "user.note": b64(b"kept")}
    names = ["dir", "file", "sym"]
    scene.forge.snapshot(
        item("dir", "dir", mode=0o751, xattrs=attributes),
        scene.forge.file("file", mode=0o640, xattrs=attributes),
        item("sym", "symlink", link="file", xattrs={"user.of a symlink": "AA=="}),
    )
    result = scene.restore(3).result
    assert sorted(path for path, _ in result["failed"]) == names
    assert sorted(os.listdir(scene.restored)) == names
    for name, mode in (("dir", 0o751), ("file", 0o640)):
        status = (scene.restored / name).stat()
        assert (status.st_mode & 0o7777, status.st_mtime_ns) == (mode, MTIME_NS), name
        assert os.getxattr(scene.restored / name, "user.note") == b"kept"


def test_what_a_manifest_says_reaches_no_terminal_raw(scene: Scene) -> None:
    evil = "\x1b[2J\nfailed: all is well\r\u202e"
    scene.forge.snapshot(
        item("error", "file", error=evil),
        scene.forge.file("xattr", xattrs={evil: "AA=="}),
        scene.forge.file("z" + evil),
    )
    scene.restore(3)


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


@pytest.mark.parametrize("name", ["../outside", "/srv/../../outside", "", "outside"])
def test_the_name_of_a_single_root_leads_nowhere(scene: Scene, name: str) -> None:
    scene.forge.snapshot(scene.forge.file("a"), roots=[{"name": name, "entries": 2}])
    scene.restore((0, 4))


@pytest.mark.parametrize("name", ["web2", "../../outside", "\x1b[2J\n", ""])
def test_an_owner_with_another_name_is_refused(scene: Scene, name: str) -> None:
    scene.forge.snapshot(scene.forge.file("a"))
    path = scene.forge.path("blobark/web1/server.json")
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "name": name}))
    scene.restore(4)


# Segments


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


# What somebody has planted in restore_root


def test_planted_symlinks_are_replaced_and_never_followed(scene: Scene) -> None:
    forge, restored, outside = scene.forge, scene.restored, scene.outside
    entries = [item("dir", "dir"), item("dir/below", "dir"), forge.file("dir/below/file"), forge.file("file")]
    forge.snapshot(*entries, item("pipe", "fifo"), forge.file("to nothing"))
    restored.mkdir()
    (restored / "dir").symlink_to(outside / "dir")
    (restored / "file").symlink_to(outside / "file")
    (restored / "pipe").symlink_to(outside / "file")
    (restored / "to nothing").symlink_to(outside / "new")
    assert scene.restore(0).result["files"] == 3
    assert not any(path.is_symlink() for path in restored.rglob("*"))


@pytest.mark.parametrize("overwrite", ["never", "always"])
def test_a_directory_that_is_a_symlink_is_not_entered(scene: Scene, overwrite: str) -> None:
    scene.forge.snapshot(item("dir", "dir"), item("dir/below", "dir"), scene.forge.file("dir/below/file"))
    scene.restored.mkdir()
    (scene.restored / "dir").symlink_to(scene.outside / "dir")
    scene.restore(3 if overwrite == "never" else 0, "--overwrite", overwrite)
    assert (scene.restored / "dir").is_symlink() == (overwrite == "never")


def test_planted_special_files_do_not_hang_a_restore(scene: Scene) -> None:
    forge, restored = scene.forge, scene.restored
    forge.snapshot(item("dir", "dir"), forge.file("dir/file"), forge.file("file"), forge.file("holes", bytes(100)))
    restored.mkdir()
    os.mkfifo(restored / "dir")
    os.mkfifo(restored / "file", 0o600)
    os.mkfifo(restored / "holes", 0o600)
    assert scene.restore(0).result["written"] == 3
    os.unlink(restored / "file")
    os.mkfifo(restored / "file")
    assert scene.restore(0, "--overwrite", "never").result["left"] == 3
    assert (restored / "file").is_fifo()


@pytest.mark.parametrize("data", [b"outside", b"others!"], ids=["same content", "other content"])
def test_a_planted_hard_link_leaves_its_file_as_it_is(scene: Scene, data: bytes) -> None:
    scene.forge.snapshot(scene.forge.file("file", data, mode=0o4777))
    scene.restored.mkdir()
    os.link(scene.outside / "file", scene.restored / "file")
    before = (scene.outside / "file").stat()
    judged(scene.run(), 0)
    after = (scene.outside / "file").stat()
    assert (scene.outside / "file").read_bytes() == b"outside"
    assert (after.st_mode, after.st_mtime_ns, after.st_uid) == (before.st_mode, before.st_mtime_ns, before.st_uid)
    restored = (scene.restored / "file").stat()
    assert (restored.st_ino != after.st_ino, restored.st_mode & 0o7777) == (True, 0o4777)
    scene.check_content()


def test_no_link_is_made_to_what_the_snapshot_does_not_have(scene: Scene) -> None:
    scene.forge.snapshot(item("link", "file", hardlink_to="planted"))
    scene.restored.mkdir()
    os.link(scene.outside / "file", scene.restored / "planted")
    scene.restore((3, 4), settled=False)
    assert not os.path.lexists(scene.restored / "link")


def test_a_link_to_itself_is_no_file_that_is_right(scene: Scene) -> None:
    scene.forge.snapshot(item("link", "file", hardlink_to="link"))
    scene.restored.mkdir()
    (scene.restored / "link").write_bytes(b"anything")
    scene.restore((3, 4), settled=False)


def test_a_directory_stays_where_a_file_should_go(scene: Scene) -> None:
    scene.forge.snapshot(item("dir", "dir"), scene.forge.file("file"))
    (scene.restored / "file" / "of").mkdir(parents=True)
    (scene.restored / "file" / "of" / "somebody").write_bytes(b"")
    (scene.restored / "dir").write_bytes(b"a file where a directory goes")
    run = scene.restore(3, settled=False)
    assert run.result["failed"] == [["file", "a directory is in its place"]]
    assert (scene.restored / "file" / "of" / "somebody").exists()
    assert (scene.restored / "dir").is_dir()


def test_a_file_stays_where_a_directory_should_go_if_nothing_may_be_overwritten(scene: Scene) -> None:
    scene.forge.snapshot(item("dir", "dir"), scene.forge.file("dir/file"))
    scene.restored.mkdir()
    (scene.restored / "dir").write_bytes(b"mine")
    assert len(scene.restore(3, "--overwrite", "never", settled=False).result["failed"]) == 2
    assert (scene.restored / "dir").read_bytes() == b"mine"


@pytest.mark.parametrize("size", [10, 9 << 20], ids=["small", "large"])
def test_leftovers_under_temporary_names_do_no_harm(scene: Scene, size: int) -> None:
    forge, restored = scene.forge, scene.restored
    entries = {
        name: forge.file(name, name[:1].encode() * size) for name in ("dir", "fifo", "file", "hardlink", "symlink")
    }
    forge.snapshot(*entries.values())
    restored.mkdir()
    place = {name: restored / f".blobark-{entry['guid']}.part" for name, entry in entries.items()}
    place["dir"].mkdir()
    os.mkfifo(place["fifo"])
    place["file"].write_bytes(b"left")
    os.link(scene.outside / "file", place["hardlink"])
    place["symlink"].symlink_to(scene.outside / "file")
    before = (scene.outside / "file").stat()
    judged(scene.run(), (0, 3))
    after = (scene.outside / "file").stat()
    assert (scene.outside / "file").read_bytes() == b"outside"
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    for name in ("fifo", "file", "hardlink", "symlink"):
        assert (restored / name).read_bytes() == forge.contents[name]
        assert not (restored / name).is_symlink()


def test_a_killed_restore_leaves_nothing_behind_once_it_has_been_run_again(scene: Scene) -> None:
    scene.forge.snapshot(scene.forge.file("file", os.urandom(1 << 20) * 40))
    with subprocess.Popen(scene.workspace.command("restore"), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not scene.leftovers():
            pass
        process.kill()
    assert (
        not (scene.restored / "file").exists() or scene.forge.contents["file"] == (scene.restored / "file").read_bytes()
    )
    scene.restore(0)


def test_a_folder_that_is_none_is_refused(scene: Scene) -> None:
    scene.forge.snapshot(scene.forge.file("a"))
    scene.restored.write_bytes(b"a file")
    run = scene.restore((2, 4), settled=False)
    assert "restore_root" in run.result["error"]


# Somebody who swaps things while a restore runs


def test_a_directory_that_is_swapped_for_a_symlink_leads_nowhere(scene: Scene) -> None:
    forge, outside = scene.forge, scene.outside / "dir"
    entries = [item("dir", "dir", mode=0o700)]
    for number in range(150):
        (outside / f"{number:03}").mkdir(mode=0o711)
        entries.append(item(f"dir/{number:03}", "dir", mode=0o4750))
        entries += [forge.file(f"dir/{number:03}/{name}") for name in "abcd"]
        entries += [item(f"dir/{number:03}/link", "file", hardlink_to=f"dir/{number:03}/a")]
        entries += [item(f"dir/{number:03}/pipe", "fifo", mode=0o666)]
    forge.snapshot(*entries)
    (scene.restored / "dir").mkdir(parents=True)
    before = scene.surroundings()
    with racing("directory", scene.restored / "dir", outside):
        done = scene.run()
    assert scene.surroundings() == before
    judged(done, (0, 3))


def test_a_special_file_that_is_swapped_for_a_symlink_leads_nowhere(scene: Scene) -> None:
    forge, victim = scene.forge, scene.outside / "file"
    guid = forge.blob(b"")
    forge.snapshot(*[item(f"pipe{number:04}", "fifo", mode=0o4777, guid=guid) for number in range(2000)])
    scene.restored.mkdir()
    before = scene.surroundings()
    with racing("name", scene.restored / f".blobark-{guid}.part", victim):
        done = scene.run()
    assert scene.surroundings() == before
    judged(done, (0, 3, 4))


# --overwrite


@pytest.fixture
def thrice(scene: Scene) -> Scene:
    """A restored tree of which one file is right, one has other metadata, and one other content."""
    names = ("content", "metadata", "right")
    scene.forge.snapshot(*[scene.forge.file(name, b"as it was") for name in names])
    scene.restore(0)
    (scene.restored / "content").write_bytes(b"as it is!")
    os.utime(scene.restored / "content", ns=(MTIME_NS, MTIME_NS))
    (scene.restored / "metadata").chmod(0o600)
    os.utime(scene.restored / "metadata", ns=(5, 5))
    return scene


def inodes(scene: Scene) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in scene.restored.iterdir()}


def test_only_what_differs_is_written(thrice: Scene) -> None:
    before = inodes(thrice)
    result = thrice.restore(0).result
    assert (result["written"], result["kept"], result["left"]) == (1, 2, 0)
    after = inodes(thrice)
    assert {name for name in before if after[name] == before[name]} == {"metadata", "right"}
    status = (thrice.restored / "metadata").stat()
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o644, MTIME_NS)


def test_everything_is_written_if_told_so(thrice: Scene) -> None:
    before = inodes(thrice)
    with contextlib.ExitStack() as stack:
        for name in before:  # while a file is open its inode is not given to another
            stack.enter_context((thrice.restored / name).open())
        assert thrice.restore(0, "--overwrite", "always").result["written"] == 3
    assert not set(before.values()) & set(inodes(thrice).values())


def test_nothing_is_overwritten_if_told_so(thrice: Scene) -> None:
    (thrice.restored / "right").unlink()
    before = inodes(thrice)
    result = thrice.restore(0, "--overwrite", "never", settled=False).result
    assert (result["written"], result["left"]) == (1, 2)
    assert (thrice.restored / "content").read_bytes() == b"as it is!"
    assert (thrice.restored / "metadata").stat().st_mode & 0o7777 == 0o600
    assert before.items() <= inodes(thrice).items()


def test_a_link_is_not_made_to_a_file_that_was_left_as_it_is(scene: Scene) -> None:
    scene.forge.snapshot(scene.forge.file("file", b"the snapshot's"), item("link", "file", hardlink_to="file"))
    scene.forge.contents["link"] = b"the snapshot's"
    scene.restored.mkdir()
    (scene.restored / "file").write_bytes(b"mine")
    scene.restore((0, 3), "--overwrite", "never", settled=False)
    link = scene.restored / "link"
    assert not link.exists() or link.read_bytes() == b"the snapshot's"


def test_links_and_special_files_that_are_right_are_kept(scene: Scene) -> None:
    forge = scene.forge
    forge.snapshot(
        forge.file("file"),
        item("link", "file", hardlink_to="file"),
        item("pipe", "fifo"),
        item("sym", "symlink", link="file", mode=0o777),
    )
    forge.contents["link"] = forge.contents["file"]
    scene.restore(0)
    before = inodes(scene)
    assert scene.restore(0).result["kept"] == 4
    assert inodes(scene) == before


# A disk that is full, or may not be written


def test_a_full_disk_stops_a_restore_that_can_be_run_again(scene: Scene) -> None:
    forge = scene.forge
    forge.snapshot(
        item("dir", "dir"),
        *[forge.file(f"dir/{number:02}", os.urandom(500_000)) for number in range(10)],
        forge.file("large", os.urandom(10 << 20)),
        forge.file("last"),
    )
    scene.restored.mkdir()
    with SmallDisk(scene.restored, "size=8m") as disk:
        command = disk.inside([*scene.workspace.command("restore"), "--json"])
        full = judged(subprocess.run(command, capture_output=True, check=False), 4)
        assert "No space left" in full.stderr
        scene.check_content(disk.seen_from_here())
        disk.remount("size=40m")
        judged(subprocess.run(command, capture_output=True, check=False), 0)
        scene.check_content(disk.seen_from_here())
        assert len(list(disk.seen_from_here().rglob("*"))) == 13


@pytest.mark.parametrize("options", ["size=8m,nr_inodes=5", "size=8m,ro"], ids=["no inodes", "read-only"])
def test_a_disk_without_room_for_names_stops_a_restore(scene: Scene, options: str) -> None:
    scene.forge.snapshot(item("dir", "dir"), *[scene.forge.file(f"dir/{number}") for number in range(9)])
    scene.restored.mkdir()
    with SmallDisk(scene.restored, options) as disk:
        command = disk.inside([*scene.workspace.command("restore"), "--json"])
        judged(subprocess.run(command, capture_output=True, check=False), 4)
        scene.check_content(disk.seen_from_here())


# Without root


@pytest.fixture
def nobodys(forking: Forking) -> Iterator[Scene]:
    """A scene where nobody can get to."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Scene(Path(folder), forking)


def test_without_root_owners_are_not_restored_and_nothing_fails(nobodys: Scene) -> None:
    forge = nobodys.forge
    attributes = {"security.capability": "AQAAAgAgAAAAAAAAAAAAAAAAAAA=", "trusted.t": "AA==", "user.u": b64(b"kept")}
    forge.snapshot(
        item("dir", "dir", uid=0, gid=0, xattrs=attributes),
        forge.file("dir/file", uid=1234, gid=0, xattrs=attributes),
        item("link", "file", hardlink_to="dir/file"),
        item("pipe", "fifo", uid=0, gid=0),
        item("sym", "symlink", link="dir", mode=0o777, uid=0, gid=0),
    )
    forge.contents["link"] = forge.contents["dir/file"]
    nobodys.hand_over()
    nobodys.restore(0, nobody=True)
    assert os.getxattr(nobodys.restored / "dir" / "file", "user.u") == b"kept"
    assert (nobodys.restored / "dir" / "file").stat().st_uid == nobodys.folder.stat().st_uid
    again = nobodys.restore(0, nobody=True).result
    assert (again["kept"], again["written"]) == (4, 0)


def test_without_root_no_program_gets_the_wrong_owners_rights(nobodys: Scene) -> None:
    nobodys.forge.snapshot(nobodys.forge.file("program", mode=0o6755, uid=0, gid=0))
    nobodys.hand_over()
    nobodys.restore(0, nobody=True)
    assert (nobodys.restored / "program").stat().st_mode & 0o7777 == 0o755
    assert nobodys.restore(0, nobody=True).result["kept"] == 1


def test_without_root_what_may_not_be_read_is_restored_once_more(nobodys: Scene) -> None:
    forge = nobodys.forge
    forge.snapshot(
        item("closed", "dir", mode=0),
        forge.file("closed/file", mode=0),
        item("read-only", "dir", mode=0o555),
        forge.file("read-only/file", mode=0o444),
        forge.file("write-only", mode=0o200),
    )
    nobodys.hand_over()
    for _ in range(2):
        nobodys.restore(0, nobody=True)
        modes = {path: path.stat().st_mode & 0o7777 for path in nobodys.restored.rglob("*")}
        assert sorted(modes.values()) == [0, 0, 0o200, 0o444, 0o555]


def test_without_root_what_belongs_to_others_is_named(nobodys: Scene) -> None:
    forge, restored = nobodys.forge, nobodys.restored
    forge.snapshot(
        item("device", "char", rdev=[1, 3]),
        item("dir", "dir"),
        forge.file("dir/file"),
        forge.file("other content"),
        forge.file("same content"),
        forge.file("z"),
    )
    (restored / "dir").mkdir(parents=True)
    (restored / "other content").write_bytes(b"OTHER CONTENT")
    (restored / "same content").write_bytes(b"same content")
    nobodys.hand_over()
    theirs = (restored / "dir", restored / "other content", restored / "same content")
    for path in theirs if os.geteuid() == 0 else ():
        os.chown(path, 0, 0)
    failed = [path for path, _ in nobodys.restore(3, nobody=True).result["failed"]]
    assert sorted(failed) == (["device", "dir", "dir/file"] if os.geteuid() == 0 else ["device"])
    assert (restored / "z").exists()
    assert (restored / "same content").stat().st_mtime_ns == MTIME_NS


# Local state is a cache


def damage_segments(state: Path) -> None:
    with contextlib.closing(sqlite3.connect(state / "catalog.sqlite")) as catalog:
        catalog.execute("UPDATE segment SET stored = x'00'")
        catalog.commit()


def take_state_away(state: Path) -> None:
    for path in (*state.iterdir(), state):
        path.chmod(0)
        if os.geteuid() == 0:
            os.chown(path, 0, 0)


STATES: dict[str, Callable[[Path], object]] = {
    "not a database": lambda state: (state / "catalog.sqlite").write_bytes(os.urandom(10_000)),
    "cut short": lambda state: os.truncate(state / "catalog.sqlite", 6000),
    "a directory": lambda state: (state / "catalog.sqlite").rename(state / "aside").with_name("catalog.sqlite").mkdir(),
    "damaged segments": damage_segments,
    "read-only": lambda state: subprocess.run(["chmod", "-R", "a-w", state], check=True),
    "somebody else's": take_state_away,
}


@pytest.mark.parametrize("damage", STATES.values(), ids=STATES.keys())
def test_state_that_cannot_be_used_costs_nothing(nobodys: Scene, damage: Callable[[Path], object]) -> None:
    workspace = nobodys.workspace
    shutil.rmtree(workspace.store)
    workspace.source.mkdir()
    (workspace.source / "file").write_bytes(b"content")
    workspace.backup()
    nobodys.hand_over()
    damage(workspace.state)
    run = judged(nobodys.run(nobody=True), 0)
    assert run.result["files"] == 1
    assert (nobodys.restored / "file").read_bytes() == b"content"
