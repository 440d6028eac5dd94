"""Restores by manifests that nobody should trust: paths, trees, GUIDs and values that cannot be.

Each ends with the documented exit code and says why in a line. Nothing outside restore_root is touched, and no wrong
byte ever has a final name: `Scene.restore` looks at both, each time.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

from blobark.fetch import tag_of
from blobark.partfile import temporary_name
from tests.forge import MTIME_NS, Fields, Forge, b64, compress, item
from tests.scene import Scene, judged

Make = Callable[[Forge], Fields]

TEN = b"0123456789"


def zst(forge: Forge, data: bytes, skip: int, length: int) -> list[object]:
    """Store a zstd frame and return the extent that has this part of it."""
    frame = compress(data)
    return ["web1_" + forge.blob(frame), 0, len(frame), length, "zstd", skip]


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
        forge.file("y", TEN * 2, extents=[zst(forge, b"xx" + TEN + b"y", 2, 10), zst(forge, TEN, 0, 10)[:5]]),
        forge.file("z", TEN, extents=[["web1_" + forge.blob(b"xx" + TEN), 2, 10, 10]]),
    ]
    forge.contents["second"] = forge.contents["a"]
    forge.publish(forge.header([forge.segment(first, later=1), forge.segment(second)], later={"unknown": True}))
    result = scene.restore(0).result
    assert (result["files"], result["links"], result["specials"], result["dirs"]) == (5, 1, 2, 2)
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
    "absolute, right below its root": [lambda f: f.file("/x")],
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


@pytest.mark.parametrize("guid", ["x/y", "x/../../outside/x"])
def test_a_guid_with_a_path_in_it_leads_nowhere(scene: Scene, guid: str) -> None:
    """Not even where there is something: at `web1_x/y` in the store, at `web1_x/../../outside/x` beside it."""
    data = b"no content of this server"
    scene.forge.write("web1_x/y", data)
    (scene.outside / "x.blob").write_bytes(data)
    named = [item("fifo", "fifo", guid=guid), item("link", "symlink", guid=guid, link="to")]
    scene.forge.snapshot(scene.forge.file("a", data, guid=guid), *named)
    reason = "its entry is damaged: its GUID is none"
    assert sorted(scene.restore(3).result["failed"]) == [["a", reason], ["fifo", reason], ["link", reason]]


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


def test_a_file_that_is_called_like_a_link_in_the_making_is_refused_and_no_other(scene: Scene) -> None:
    forge = scene.forge
    in_the_making = os.fsdecode(temporary_name(tag_of(b"second")))
    names = sorted([in_the_making, in_the_making.replace(".part", ".parts"), ".blobark-.part", "file"])
    forge.snapshot(*[forge.file(name) for name in names], item("second", "file", hardlink_to="file"))
    forge.contents["second"] = forge.contents["file"]
    run = scene.restore(3, settled=False)
    scene.check_content()
    assert run.result["failed"] == [
        [in_the_making, "its entry is damaged: its name is one that an unfinished restore gives"]
    ]
    assert {name for name in [*names, "second"] if not (scene.restored / name).exists()} == {in_the_making}


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
    "an extent of an unknown codec": lambda f: f.file("bad", TEN, extents=[["web1_" + f.blob(TEN), 0, 10, 10, "xz"]]),
    "an extent that skips without a codec": lambda f: f.file(
        "bad", TEN, extents=[["web1_" + f.blob(b"xx" + TEN), 0, 10, 10, "", 2]]
    ),
    "an extent that skips backwards": lambda f: f.file("bad", TEN, extents=[zst(f, TEN, -1, 10)]),
    "an extent that skips terabytes": lambda f: f.file("bad", TEN, extents=[zst(f, TEN, 1 << 42, 10)]),
    "an extent that is no zstd": lambda f: f.file("bad", TEN, extents=[["web1_" + f.blob(TEN), 0, 10, 10, "zstd"]]),
    "an extent that holds less": lambda f: f.file("bad", TEN, extents=[zst(f, TEN, 5, 10)]),
    "an extent of half a frame": lambda f: f.file(
        "bad", TEN * 9, extents=[[*zst(f, TEN * 9, 0, 90)[:2], 12, 90, "zstd"]]
    ),
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


def test_a_frame_that_would_fill_the_memory_gives_what_is_asked_for(scene: Scene) -> None:
    bomb = compress(bytes(1 << 20)) * 4096
    key = "web1_" + scene.forge.blob(bomb)
    one = [key, 0, len(bomb), 10, "zstd"]
    scene.forge.snapshot(
        scene.forge.file("a", bytes(10), extents=[one]), scene.forge.file("b", bytes(10), extents=[[*one, 7]])
    )
    scene.restore(0, memory_bytes=700 << 20)


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
