"""What a target cannot hold is told before anything is written, all at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobark import fitness
from blobark.engine import Engine
from blobark.errors import Fatal
from blobark.fetch import tag_of
from blobark.fitness import Names
from blobark.model import Entry, text_or_b64
from blobark.target import Target
from tests.forge import item
from tests.scene import Scene, judged
from tests.small_disk import SmallDisk


@dataclasses.dataclass
class Standing:
    """As much of a context as a check asks for."""

    engine: Engine

    def check_stop(self) -> None:
        assert not self.engine.stop.is_set()


def entries(*paths: bytes) -> Iterator[tuple[Entry, bytes]]:
    """Yield entries in the order of a manifest; what ends in a slash is a directory."""
    for path in sorted((b"", *paths), key=lambda path: path.rstrip(b"/").replace(b"/", b"\0")):
        bare = path.rstrip(b"/")
        text, b64 = text_or_b64(bare)
        yield Entry(path=text, path_b64=b64, kind="file" if path and bare == path else "dir"), bare


def faults(names: Names, *paths: bytes) -> list[str]:
    """Return what a check says of these paths below /mnt."""
    context = Standing(Engine(1, 1, threading.Event()))
    try:
        fitness.check(context, Path("/mnt"), names, lambda: entries(*paths), None)  # type: ignore[arg-type]
    except Fatal as error:
        lines = error.message.removesuffix("; nothing was written").splitlines()
        assert len(lines) == 1 or (lines[0], lines[-1]) == ("/mnt cannot hold all of it:", "nothing was written")
        return lines if len(lines) == 1 else lines[1:-1]
    return []


def test_names_that_a_target_takes_for_one_are_named() -> None:
    paths = (b"A", b"a/", b"a/x", b"b/", b"b/X", b"b/x", "b/É".encode(), "b/e\u0301".encode(), b"c/", b"c/x", b"d")
    assert faults(Names(), *paths) == []
    assert faults(Names(folds_case=True), *paths) == [
        "a: A is beside it, and these names are one there",
        "b/x: X is beside it, and these names are one there",
        "b/É: e\u0301 is beside it, and these names are one there",
    ]
    assert faults(Names(folds_form=True), "é".encode(), "e\u0301".encode(), b"E") == [
        "é: e\u0301 is beside it, and these names are one there"
    ]


def test_names_that_a_target_does_not_take_are_named() -> None:
    names = Names(most_bytes=20, refused=b":\n", refuses_bytes=True, refuses_ends=True)
    found = faults(names, b"a:b", b"ok", b"n" * 21, b"x\xff", b"dot.", b"new\nline", b"fine/", b"fine/space ")
    assert found == [
        "a:b: its name has :, which is not taken there",
        "dot.: its name ends in a dot or a space, which is not taken there",
        "fine/space : its name ends in a dot or a space, which is not taken there",
        "new\\nline: its name has \\n, which is not taken there",
        f"{'n' * 21}: its name has 21 bytes, and 20 are the most",
        "x\\udcff: its name is not UTF-8, which is not taken there",
    ]


def test_only_so_many_are_named_and_all_are_counted() -> None:
    found = faults(Names(most_bytes=1), *(b"%03d" % number for number in range(150)))
    assert (len(found), found[-1]) == (101, "and 50 more")


def test_this_file_system_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    target = Target.open(tmp_path, create=True)
    names = fitness.names_of(target, tmp_path, b"")
    target.close()
    assert (os.listdir(tmp_path), names.is_usual) == ([], True)
    assert (names.most_bytes, names.most_path_bytes) == (255, 4096)


def test_a_listing_does_not_go_on_from_where_a_descriptor_is(tmp_path: Path) -> None:
    """Through one that is open for longer btrfs lists what was there when it was opened, and not what came since."""
    (tmp_path / "there").touch()
    target = Target.open(tmp_path, create=True)
    with contextlib.closing(target), os.scandir(target.directory(b"")) as begun, target.trial_names(b"") as trial:
        next(begun)
        assert b"there" in target.names(b"")
        trial.takes(b"first")
        with os.scandir(trial.descriptor) as begun_there:
            next(begun_there)
            assert trial.takes(b"second")


def test_what_a_killed_run_tried_is_removed(scene: Scene) -> None:
    scene.forge.snapshot(scene.forge.file("file"))
    left = scene.restored / ".blobark-0000000000000000.part"
    left.mkdir(parents=True)
    (left / "CaSe").touch()
    scene.restore(0)
    left.symlink_to(scene.outside)
    scene.restore(0)
    assert os.listdir(scene.restored) == ["file"]


def test_paths_that_would_be_too_long_are_refused(scene: Scene) -> None:
    forge = scene.forge
    deep = ["d" * 250] * 15 + ["e" * (4090 - 15 * 251)]
    folders = [item("/".join(deep[:depth]), "dir") for depth in range(1, 17)]
    forge.snapshot(*folders, forge.file("z"))
    refused = scene.restore(4)
    assert "its path would have more than 4095 bytes" in refused.stderr
    assert os.listdir(scene.restored) == []
    scene.restore(0, "--exclude", "e*")
    assert (scene.restored / "z").exists()


def test_too_little_space_is_told_before_anything_is_written(scene: Scene) -> None:
    forge = scene.forge
    forge.snapshot(*(forge.file(f"{number}", os.urandom(3 << 20)) for number in range(3)))
    scene.restored.mkdir()
    with SmallDisk(scene.restored, "size=8m") as disk:
        command = disk.inside([*scene.workspace.command("restore"), "--json"])
        refused = judged(subprocess.run(command, capture_output=True, check=False), 4)
        assert "9,437,184 bytes and 3 inodes are needed at the least, and 8,388,608 bytes" in refused.stderr
        assert os.listdir(disk.seen_from_here()) == []
        judged(subprocess.run([*command, "--exclude", "2"], capture_output=True, check=False), 0)
        again = judged(subprocess.run(command, capture_output=True, check=False), 4)  # what is right needs nothing
        assert "3,145,728 bytes and 1 inodes are needed" in again.stderr
        dry = subprocess.run([*command, "--dry-run"], capture_output=True, check=False)
        assert (dry.returncode, "3,145,728 bytes" in dry.stderr.decode()) == (4, True)
        disk.remount("size=10m")
        judged(subprocess.run(command, capture_output=True, check=False), 0)
        scene.check_content(disk.seen_from_here())


def test_a_full_disk_is_not_taken_for_one_that_refuses_names(scene: Scene) -> None:
    scene.forge.snapshot(scene.forge.file("a:b"))
    scene.restored.mkdir()
    with SmallDisk(scene.restored, "nr_inodes=2") as disk:  # its top, and the directory that names are tried in
        command = disk.inside([*scene.workspace.command("restore"), "--json"])
        full = judged(subprocess.run(command, capture_output=True, check=False), 4)
        assert "restore_root cannot be written (No space left on device): make room" in full.stderr
        disk.remount("nr_inodes=9")
        judged(subprocess.run(command, capture_output=True, check=False), 0)
        scene.check_content(disk.seen_from_here())


def test_a_large_file_that_was_begun_has_its_room_already(scene: Scene) -> None:
    forge = scene.forge
    data = os.urandom(12 << 20)
    forge.snapshot(forge.file("large", data))
    scene.restored.mkdir()
    with SmallDisk(scene.restored, "size=16m") as disk:
        command = disk.inside([*scene.workspace.command("restore"), "--json"])
        part = disk.seen_from_here() / f".blobark-{tag_of(b'large')}.part"
        part.write_bytes(data[: 10 << 20])
        judged(subprocess.run(command, capture_output=True, check=False), 0)
        scene.check_content(disk.seen_from_here())


@pytest.mark.parametrize("options", [[], ["--to", "{}/new/place"]])
def test_a_dry_run_makes_nothing(scene: Scene, options: list[str]) -> None:
    scene.forge.snapshot(scene.forge.file("file"))
    done = scene.run("--dry-run", *(option.format(scene.folder) for option in options))
    assert (done.returncode, json.loads(done.stdout)["written"]) == (0, 1)
    assert not scene.restored.exists()
    assert not (scene.folder / "new").exists()


def test_room_is_counted_for_each_file_system(tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    with SmallDisk(tmp_path / "mounted", "size=1m") as disk:
        script = (
            "import sys; from pathlib import Path; from blobark.fitness import Room; from blobark.model import Entry;"
            "from blobark.target import Target; target = Target.open(Path(sys.argv[1]), create=False);"
            "room = Room(target, 'always'); room.add(Entry(kind='dir'), b'');"
            "room.add(Entry(kind='dir', path='mounted'), b'mounted');"
            "room.add(Entry(size=2 << 20), b'mounted/file'); print(room.lack)"
        )
        command = disk.inside([sys.executable, "-c", script, str(tmp_path)])
        done = subprocess.run(command, capture_output=True, check=True, cwd=Path(__file__).resolve().parent.parent)
    assert done.stdout.startswith(b"2,097,152 bytes and 1 inodes are needed at the least, and 1,048,576 bytes")


def test_a_long_line_is_found_wherever_it_is() -> None:
    dice = random.Random(5)
    for _ in range(2000):
        lines = [b"x" * dice.choice((0, 1, 7, 8, 9, 20)) for _ in range(dice.randrange(6))]
        text = b"".join(line + b"\n" for line in lines)
        assert fitness.has_line_above(8, text) == any(len(line) > 8 for line in lines), text
    assert fitness.has_line_above(-1, b"x\n")
