"""`blobark drill`: what it restores, finds, signs and remembers, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path
from random import Random
from typing import Any

import pytest
from azure.storage.blob import ContainerClient

from blobark import evidence
from blobark.drill import MOST_NAMED
from blobark.model import display
from tests.forge import item
from tests.runs import Run, Workspace, wait_until
from tests.scene import Scene
from tests.small_disk import SmallDisk
from tests.trees import write
from tests.trials import is_restoring, leftovers

FILES = 40


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    for number in range(FILES):
        (source / "below" / f"{number}").write_bytes(os.urandom(500 + number))
    (source / "link").symlink_to("below/1")
    made = Workspace(tmp_path / "work", source, server="web1")
    made.backup()
    return made


def verify(file: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    """Check evidence in a folder that has no configuration."""
    return Workspace.forking.run("", "drill", "--verify", str(file), *options, cwd=file.parent)


def own_path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


def evidence_of(run: Run) -> dict[str, Any]:
    return dict(json.loads(Path(run.result["evidence"]).read_bytes()))


def test_a_full_drill_is_the_same_signed_and_leaves_nothing(workspace: Workspace) -> None:
    run = workspace.run("drill", "--full")
    assert (run.result["files"], run.result["failed"], run.result["exit_code"]) == (FILES, [], 0)
    assert run.result["compared"] == FILES + 3
    document = evidence_of(run)
    assert (document["result"], document["server"], document["share"]) == ("same", "web1", 1)
    assert leftovers(workspace) == []
    assert not workspace.restored.exists()
    assert stat.S_IMODE((workspace.state / "drill-key").stat().st_mode) == 0o600
    stored = workspace.store / f"{run.result['stored_as']}.blob"
    assert stored.read_bytes() == Path(run.result["evidence"]).read_bytes()
    assert workspace.run("restore").code == 0


def test_a_sample_is_the_same_one_each_time(workspace: Workspace) -> None:
    kept = []
    for _ in range(2):
        tree = Path(workspace.run("drill", "--sample", "30%", "--keep").result["kept_in"])
        kept.append(sorted(path.name for path in (tree / "below").iterdir()))
    assert kept[0] == kept[1]
    assert 3 < len(kept[0]) < 30
    workspace.backup()
    (workspace.source / "new").touch()
    assert workspace.backup().result["snapshot"] > 1
    tree = Path(workspace.run("drill", "--sample", "30%", "--keep").result["kept_in"])
    assert sorted(path.name for path in (tree / "below").iterdir()) != kept[0]


def test_the_smallest_sample_has_a_file(workspace: Workspace) -> None:
    for _ in range(2):
        run = workspace.run("drill", "--sample", "0.000001%")
        assert (run.result["files"], evidence_of(run)["result"]) == (1, "same")
    assert workspace.run("restore", "--sample", "0.000001%").result["written"] == 1


def test_a_drill_of_no_file_proves_nothing(tmp_path: Path) -> None:
    (tmp_path / "source" / "below").mkdir(parents=True)
    workspace = Workspace(tmp_path / "work", tmp_path / "source", server="web1")
    workspace.backup()
    for extent in (["--full"], []):
        run = workspace.run("drill", *extent, expect=2)
        assert "snapshot 1 has no file, so a drill of it would prove nothing" in run.stderr
    assert not (workspace.state / "drills").exists()
    assert not list(workspace.store.rglob("drills"))
    assert leftovers(workspace) == []


def test_a_restore_of_a_sample_is_the_same_sample_and_a_map_has_none(workspace: Workspace) -> None:
    tree = Path(workspace.run("drill", "--sample", "30%", "--keep").result["kept_in"])
    workspace.run("restore", "--sample", "30%")
    drilled = sorted(path.name for path in (tree / "below").iterdir())
    assert drilled == sorted(path.name for path in (workspace.restored / "below").iterdir())
    refused = workspace.run("restore", "--sample", "30%", "--map", str(workspace.map), expect=2)
    assert "--sample and --map do not go together" in refused.stderr


STORED_AS: dict[str, dict[str, Any]] = {
    "packs": {"pack_below": "64KiB"},
    "frames": {"compression": "zstd"},
    "equal once": {"dedupe": True},
    "all": {"pack_below": "64KiB", "compression": "zstd", "dedupe": True},
}


@pytest.fixture(params=STORED_AS)
def other_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Workspace:
    """Small, equal, large, linked and sparse files, stored in each way but the plain one."""
    dice, source = Random(7), tmp_path / "source"
    for number in range(FILES):
        write(source / f"{number % 3}" / f"small-{number:02}", dice.randbytes(600) + b"text " * 300)
    large = dice.randbytes(9 << 20)
    for name in ("large", "equal"):
        write(source / name, large)
    for number in range(4):
        write(source / "equal-ones" / f"{number}", b"the same " * 500)
    (source / "linked").hardlink_to(source / "1" / "small-01")
    with (source / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end" * 1000)
    made = Workspace(tmp_path / "work", source, server="web1", **STORED_AS[request.param])
    made.backup()
    return made


def test_it_compares_whatever_way_the_content_is_stored(other_storage: Workspace) -> None:
    run = other_storage.run("drill", "--full")
    assert (run.result["failed"], run.result["files"]) == ([], FILES + 7)
    for share in ("30%", "60%"):
        tree = other_storage.run("drill", "--sample", share, "--keep").result["kept_in"]
        kept = sum(path.is_file() for path in Path(tree).rglob("*"))
        assert 5 < kept < FILES
        shutil.rmtree(Path(tree).parent)
    damaged = [blob for blob in other_storage.store.glob("[0-9a-f][0-9a-f]/*") if blob.stat().st_size > 8000]
    for blob in damaged:
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.write_bytes(data)
    run = other_storage.run("drill", "--full", expect=3)
    named = {path for path, _ in run.result["failed"]}
    assert {"large", "equal"} <= named
    assert named < {str(path.relative_to(other_storage.source)) for path in other_storage.source.rglob("*")}
    assert evidence_of(run)["result"] == "different"
    assert leftovers(other_storage) == []


def test_what_cannot_be_restored_is_named_and_signed(workspace: Workspace) -> None:
    key = workspace.guids()["below/7"]
    (blob,) = workspace.store.rglob(key)
    blob.write_bytes(b"x" * blob.stat().st_size)
    run = workspace.run("drill", "--full", expect=3)
    assert [path for path, _ in run.result["failed"]] == ["below/7"]
    assert evidence_of(run)["result"] == "different"
    assert leftovers(workspace) == []


def test_evidence_is_checked_without_configuration(workspace: Workspace, tmp_path: Path) -> None:
    run = workspace.run("drill", "--full")
    file = Path(run.result["evidence"])
    done = verify(file, "--key", run.result["public_key"])
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"valid" in done.stdout
    assert verify(file).returncode == 0
    public = tmp_path / "key.pub"
    public.write_text(run.result["public_key"] + "\n")
    assert verify(file, "--key", str(public)).returncode == 0
    assert verify(file, "--key", "ab" * 32).returncode == 7
    assert b"is no public key" in verify(file, "--key", "nobody").stderr
    document = evidence_of(run)
    for change in ({"seconds": 0.001}, {"result": "better"}, {"more": 1}, {"signature": "zz"}, {"public_key": 5}):
        file.write_text(json.dumps({**document, **change}))
        done = verify(file)
        assert done.returncode == 7, change
        assert b"NOT VALID" in done.stdout


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no evidence of a drill"),
        (b'{"kind": "drill", "form', "cut short"),
        (b"[1]", "no evidence"),
        (b"\xff\xfe", "no evidence"),
        (b'{"kind": "drill", "format": 99}', "another version"),
    ],
)
def test_what_is_no_evidence_is_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    file = tmp_path / "evidence.json"
    file.write_bytes(data)
    done = verify(file)
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in done.stderr.decode()
    assert len(done.stderr.splitlines()) == 1
    assert verify(tmp_path / "none.json").returncode == 2


def test_evidence_that_says_two_things_or_goes_on_is_none(workspace: Workspace) -> None:
    file = Path(workspace.run("drill", "--full").result["evidence"])
    text = file.read_text()
    for changed in (f'{{"result": "different", {text[1:]}', text + " " * evidence.MOST_BYTES + "more"):
        file.write_text(changed)
        done = verify(file)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"is no evidence of a drill" in done.stderr


def test_evidence_of_many_failures_with_long_names_can_be_checked(tmp_path: Path) -> None:
    failures = [[display(b"\xff" * 4095), "because"] for _ in range(MOST_NAMED)]
    file = tmp_path / "evidence.json"
    file.write_bytes(evidence.encode(evidence.sign({"kind": "drill", "failures": failures}, tmp_path / "state")))
    assert verify(file).returncode == 0


def test_what_its_owner_may_not_read_is_compared_without_roots_rights(nobodys: Scene) -> None:
    forge = nobodys.forge
    entries = [forge.file("a", mode=0), item("b", "dir", mode=0o300), forge.file("b/c", mode=0o200)]
    forge.snapshot(*entries, forge.file("d"), item("e", "fifo"))
    nobodys.hand_over()
    config = ("--config", str(nobodys.workspace.config), "--json", "--keep")
    done = Workspace.forking.run("drill", "--full", *config, nobody=True)
    assert (done.returncode, done.stderr) == (0, b"")
    tree = Path(json.loads(done.stdout)["kept_in"])
    modes = [stat.S_IMODE((tree / name).stat().st_mode) for name in ("a", "b", "d")]
    assert modes == [0, 0o300, 0o644]


def test_a_slowdown_is_exit_code_6(workspace: Workspace) -> None:
    for _ in range(3):
        assert workspace.run("drill", "--full").result["slowdown"] is None
    workspace.configure(max_requests_per_s=15)
    run = workspace.run("drill", "--full", expect=6)
    assert run.result["slowdown"] > 0.5
    assert len(run.result["earlier"]) == 3
    assert workspace.run("drill", "--full", "--slowdown", "100000%").code == 0
    shown = workspace.execute("drill", "--full").stdout.decode()
    assert "of time, against the median" in shown


def test_earlier_drills_come_from_the_store_when_the_state_is_lost(workspace: Workspace) -> None:
    for _ in range(3):
        workspace.run("drill", "--full")
    for file in (workspace.state / "drills").iterdir():
        file.unlink()
    (workspace.store / "blobark" / "web1" / "drills" / "0.blob").write_bytes(b"no evidence")
    run = workspace.run("drill", "--full", "--slowdown", "100000%")
    assert len(run.result["earlier"]) == 3
    assert run.stderr == "warning: blobark/web1/drills/0 is no evidence of a drill, or is cut short\n"


def test_the_drills_of_another_host_are_no_trend_of_this_one(workspace: Workspace, tmp_path: Path) -> None:
    """They lie in the same store; those of state_dir count, whatever their host was called: a container's changes."""
    document = evidence_of(workspace.run("drill", "--full"))
    del document["signature"]
    fast = {**document, "host": "another", "bytes_per_s": 1e12}
    for number in range(3):
        signed = evidence.encode(evidence.sign(fast, tmp_path / "another"))
        write(workspace.store / "blobark" / "web1" / "drills" / f"2026-01-0{number + 1}-030000-000000000.blob", signed)
    run = workspace.run("drill", "--full")
    assert (len(run.result["earlier"]), run.result["slowdown"], run.stderr) == (1, None, "")
    called = evidence.encode(evidence.sign({**document, "host": "was called so"}, workspace.state))
    (workspace.state / "drills" / "2026-01-01-040000-000000000.json").write_bytes(called)
    assert len(workspace.run("drill", "--full").result["earlier"]) == 3


def test_the_trend_of_months_is_shown(workspace: Workspace) -> None:
    document = evidence_of(workspace.run("drill", "--full"))
    del document["signature"]
    for month, speed in (("2026-08", 8e6), ("2026-09", 4e6), ("2026-09", 6e6), ("2026-09", 6.1e6)):
        for day in ("02", "17"):
            started = f"{month}-{day}T03:00:00Z"
            old = {
                **document,
                "started": started,
                "bytes_per_s": speed,
                "result": "same" if speed > 4e6 else "different",
            }
            name = f"{month}-{day}-030000-{speed:09.0f}.json"
            (workspace.state / "drills" / name).write_bytes(evidence.encode(evidence.sign(old, workspace.state)))
    run = workspace.run("drill", "--full", "--slowdown", "100000%")
    assert run.stderr == ""
    assert [(m["month"], m["drills"], m["different"], m["bytes_per_s"]) for m in run.result["months"]][:2] == [
        ("2026-08", 2, 0, 8e6),
        ("2026-09", 6, 2, 6.05e6),
    ]
    shown = workspace.execute("drill", "--full", "--slowdown", "100000%").stdout.decode()
    assert "2026-09" in shown
    assert "6.0 MB/s, median of 6, 2 different" in shown or "6.1 MB/s, median of 6, 2 different" in shown


def test_evidence_that_was_changed_is_left_out_of_the_trend(workspace: Workspace) -> None:
    file = Path(workspace.run("drill", "--full").result["evidence"])
    file.write_text(file.read_text().replace('"result": "same"', '"result": "Same"'))
    run = workspace.run("drill", "--full")
    assert "is not what was signed" in run.stderr
    assert run.result["earlier"] == []


def test_ctrl_c_removes_the_scratch_folder(workspace: Workspace) -> None:
    workspace.configure(max_requests_per_s=5)
    with workspace.started("drill", "--full") as process:
        wait_until(lambda: is_restoring(workspace), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert leftovers(workspace) == []
    assert not (workspace.state / "drills").exists()


def test_what_a_killed_drill_has_left_the_next_one_removes(workspace: Workspace, tmp_path: Path) -> None:
    kept = Path(workspace.run("drill", "--keep").result["kept_in"])
    workspace.configure(max_requests_per_s=5)
    with workspace.started("drill", "--full") as process:
        wait_until(lambda: is_restoring(workspace), process)
        (running,) = leftovers(workspace)
        workspace.configure(max_requests_per_s="none", state_dir=str(tmp_path / "other-state"))
        quick = workspace.run("drill")  # beside one that still runs
        assert "killed" not in quick.stderr
        assert leftovers(workspace) == [running]
        process.kill()
        process.wait()
    link = running.with_name(running.name + "-link")
    link.symlink_to(workspace.source)
    again = workspace.run("drill")
    assert f"removing {running}, which a trial that was killed has left" in again.stderr
    assert leftovers(workspace) == [link]
    assert (workspace.source / "below" / "1").exists()
    assert kept.is_dir()


def test_directories_that_nobody_may_enter_are_removed_too(workspace: Workspace) -> None:
    (workspace.source / "closed" / "below").mkdir(parents=True)
    (workspace.source / "closed" / "below" / "file").touch()
    (workspace.source / "closed").chmod(0o500)
    workspace.backup()
    workspace.run("drill", "--full")
    assert leftovers(workspace) == []


def test_a_damaged_key_and_no_scratch_are_one_line(workspace: Workspace) -> None:
    (workspace.folder / "file").touch()
    assert "--scratch" in workspace.run("drill", "--scratch", str(workspace.folder / "file"), expect=2).stderr
    (workspace.state / "drill-key").write_text("short")
    assert "is damaged" in workspace.run("drill", expect=4).stderr
    assert leftovers(workspace) == []


def test_it_refuses_where_there_is_no_room(workspace: Workspace, tmp_path: Path) -> None:
    with (workspace.source / "large").open("wb") as file:
        file.write(b"x" * (9 << 20))
    workspace.backup()
    place = tmp_path / "small"
    place.mkdir()
    with SmallDisk(place, "size=24m") as disk:
        for command in ("drill", "sweep"):
            everything = ("--full",) if command == "drill" else ("--workers", "1")
            line = disk.inside(workspace.command(command, *everything, "--scratch", str(place)))
            done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, env=own_path())
            assert done.returncode == 4
            assert "has no room for this " + command in done.stderr
            listed = subprocess.run(disk.inside(["ls", "-A", str(place)]), capture_output=True, text=True, check=True)
            assert listed.stdout == ""


@pytest.mark.parametrize("share", ["0%", "101%", "5", "half"])
def test_a_share_that_is_none_is_refused(workspace: Workspace, share: str) -> None:
    assert "is not a share such as 5%" in workspace.run("drill", f"--sample={share}", expect=2).stderr


def test_a_drill_from_azure_keeps_its_evidence_there(
    tmp_path: Path, azure_container: tuple[str, str], container: ContainerClient
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"content")
    workspace = Workspace.on_azure(tmp_path / "work", source, *azure_container)
    workspace.backup()
    run = workspace.run("drill", "--full")
    assert run.result["files"] == 1
    stored = container.download_blob(run.result["stored_as"]).readall()
    assert stored == Path(run.result["evidence"]).read_bytes()
