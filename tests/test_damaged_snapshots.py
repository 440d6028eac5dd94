"""Backups over snapshots that are damaged: what a new one names is there, and none is in the way for good."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.damage import Machine, flipped, machine_at
from tests.manifests import missing_content
from tests.powerless import Powerless
from tests.trees import contents_of, write

HEADERS = "blobark/web1/snapshots/"
SEGMENTS = "blobark/web1/segments/"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("a", "b", "sub/c", "skipped/d"):
        write(tmp_path / "source" / name, f"content of {name}")
    return tmp_path / "source"


def machine(where: str, tmp_path: Path, source: Path, request: pytest.FixtureRequest, **settings: Any) -> Machine:
    made = machine_at(where, tmp_path / "work", source, request, **settings)
    made.run("backup")
    return made


@pytest.fixture
def two(tmp_path: Path, source: Path, request: pytest.FixtureRequest) -> Machine:
    """A folder with two snapshots."""
    made = machine("folder", tmp_path, source, request, skip_path=[], skip_files=["d"])
    write(source / "a", "second content of a")
    made.run("backup")
    return made


HARM: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda data: None,
    "overwritten": lambda data: b"damaged",
    "cut": lambda data: data[:-3],
}


# Segments


@pytest.mark.parametrize("where", ["folder", "azure"])
@pytest.mark.parametrize("rules", [["d"], []], ids=["read", "not read"])
@pytest.mark.parametrize("harm", HARM)
def test_a_segment_that_the_next_snapshot_shares_is_mended(
    where: str, rules: list[str], harm: str, tmp_path: Path, source: Path, request: pytest.FixtureRequest
) -> None:
    web = machine(where, tmp_path, source, request, skip_path=[], skip_files=rules)
    before = {key: web.blob(key) for key in web.keys(SEGMENTS)}
    for key, data in before.items():
        web.damage(key, HARM[harm](data))
    run = web.run("backup")
    assert (run.result["save"]["snapshot"], run.result["save"]["sent"]) == (2, 0)
    assert {key: web.blob(key) for key in web.keys(SEGMENTS)} == before
    (told,) = (text for text in run.result["warnings"] if f"were mended: {len(before)}" in text)
    assert told in run.stderr
    assert web.run("verify").result["damaged"] == 0
    shutil.rmtree(web.state)
    web.run("restore")
    assert contents_of(web.restored)["sub/c"] == b"content of sub/c"
    assert "mended" not in web.run("backup").stderr


def test_damage_that_leaves_a_segment_its_length_is_seen_by_its_md5(
    tmp_path: Path, source: Path, request: pytest.FixtureRequest
) -> None:
    web = machine("azure", tmp_path, source, request)
    key = web.keys(SEGMENTS)[0]
    before = web.blob(key)
    web.damage(key, flipped(before, len(before) // 2))
    assert "were mended: 1" in web.run("backup").stderr
    assert web.blob(key) == before


def test_what_cannot_be_mended_is_not_published(tmp_path: Path, source: Path) -> None:
    workspace = Powerless(tmp_path / "work", source, server="web1")
    workspace.run("backup")
    segments = workspace.store / SEGMENTS
    next(segments.iterdir()).unlink()
    segments.chmod(0o500)
    assert "ermission" in workspace.run("backup", expect=4).result["error"]
    segments.chmod(0o700)
    assert workspace.header()["number"] == 1
    assert workspace.run("backup").result["save"]["snapshot"] == 2
    assert missing_content(workspace.store) == []


def test_a_damaged_segment_and_a_lost_state_do_not_end_the_backups(two: Machine, source: Path) -> None:
    segments = two.keys(SEGMENTS)
    for key in segments:
        two.damage(key, b"damaged")
    shutil.rmtree(two.state)
    for name in ("a", "b", "sub"):
        (source / name).rename(source.with_name(name))
    assert "its last complete snapshot had" in two.run("backup", expect=4).stderr
    for name in ("a", "b", "sub"):
        source.with_name(name).rename(source / name)
    run = two.run("backup")
    assert "starting without it" in run.stderr
    assert (run.result["save"]["snapshot"], run.result["save"]["sent"]) == (3, 3)
    assert two.run("verify", "--snapshot", "3").result["damaged"] == 0
    refused = two.run("prune", "--yes", expect=4).stderr
    assert re.search(r"is damaged \(of snapshot (1|2|1, 2)\)", refused)
    assert "blobark repair --yes" in refused
    two.run("forget", "1", "2", "--yes")
    assert two.run("verify").result["damaged"] == 0
    two.run("prune", "--yes")


def test_a_tree_of_directories_and_a_lost_state(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Its segments have the same names whoever makes them: the damaged bytes must not become the catalog's."""
    (tmp_path / "source" / "only" / "folders").mkdir(parents=True)
    web = machine("folder", tmp_path, tmp_path / "source", request)
    segments = web.keys(SEGMENTS)
    for key in segments:
        web.damage(key, b"damaged")
    shutil.rmtree(web.state)
    run = web.run("backup")
    assert (run.result["save"]["snapshot"], web.keys(SEGMENTS)) == (2, segments)
    assert web.run("verify").result["damaged"] == 0


# Headers


@pytest.mark.parametrize("state", ["lost", "whole"])
@pytest.mark.parametrize("command", ["save", "backup"])
def test_a_damaged_header_is_passed_over_when_a_person_says_so(two: Machine, state: str, command: str) -> None:
    newest = two.keys(HEADERS)[-1]
    two.damage(newest, b"{")
    if state == "lost":
        shutil.rmtree(two.state)
    for name in ("index", "save", "backup") if state == "lost" else ("save", "backup"):
        stderr = two.run(name, expect=4).stderr
        assert "blobark repair --yes" in stderr
        assert "--skip-damaged" in stderr
        assert "--snapshot" not in stderr
    assert "--skip-damaged" in two.run("forget", "2", "--yes", expect=2).stderr
    if state == "lost":
        assert "--skip-damaged" in two.run("repair", "--yes", expect=7).result["items"][0]["reason"]
        two.run("index", "--skip-damaged")
    run = two.run(command, "--skip-damaged")
    saved = run.result["save"] if command == "backup" else run.result
    assert (saved["snapshot"], saved["sent"]) == (3, 1 if state == "lost" else 0)
    assert any("snapshot 2 is damaged, and passed over" in text for text in run.result["warnings"])
    assert json.loads(two.blob(two.keys(HEADERS)[-1]))["parent"] == 1
    two.run("forget", "2", "--yes")
    assert [key[-10:] for key in two.keys(HEADERS)] == ["0000000001", "0000000003"]
    assert two.run("verify").result["damaged"] == 0
    assert two.run("backup").result["save"]["snapshot"] == 4
    two.run("restore")
    assert contents_of(two.restored)["a"] == b"second content of a"


def test_when_no_header_can_be_read_all_is_sent_again(two: Machine) -> None:
    for key in two.keys(HEADERS):
        two.damage(key, b"")
    shutil.rmtree(two.state)
    assert "--skip-damaged" in two.run("forget", "1", "2", expect=4).stderr
    assert "--skip-damaged" in two.run("rebuild", expect=2).stderr
    saved = two.run("backup", "--skip-damaged").result["save"]
    assert (saved["snapshot"], saved["sent"]) == (3, 3)
    two.run("forget", "1", "2", "--yes")
    assert two.run("verify").result["damaged"] == 0


def test_a_newer_snapshot_is_never_passed_over(two: Machine) -> None:
    newest = two.keys(HEADERS)[-1]
    two.damage(newest, json.dumps({**json.loads(two.blob(newest)), "format": 99}).encode())
    assert "newer Blobark" in two.run("backup", "--skip-damaged", expect=4).stderr
    assert two.keys(HEADERS)[-1] == newest


def test_a_newest_snapshot_that_is_gone_is_missed(two: Machine) -> None:
    """Its number, and its tags, must not become another one's."""
    lost = f"{HEADERS}0000000002"
    sound = two.blob(lost)
    two.damage(lost, None)
    refused = two.run("backup", expect=4)
    assert "snapshot 2 of web1, which this machine has seen, is gone: `blobark repair --yes`" in refused.stderr
    assert two.run("repair", expect=7).result["damaged"] == 1
    two.run("repair", "--yes", expect=3)
    assert two.blob(lost) == sound
    assert two.run("backup").result["save"]["snapshot"] == 3
    two.damage(f"{HEADERS}0000000003", None)
    assert two.run("backup", "--skip-damaged").result["save"]["snapshot"] == 4
    assert two.run("verify").result["damaged"] == 0


def test_what_only_the_snapshot_before_needs_is_mended_before_it_is_forgotten(two: Machine, source: Path) -> None:
    """The catalog has it for the last time."""
    before = {ref["digest"] for ref in two.header(2)["segments"]}
    for file in sorted(source.rglob("*")):
        if file.is_file():
            write(file, b"other")
    two.run("index")
    own = next(ref["digest"] for ref in two.header(2)["segments"] if ref.get("files"))
    sound = two.blob(SEGMENTS + own)
    two.damage(SEGMENTS + own, sound[:-3])
    assert "were mended: 1" in two.run("backup").stderr
    assert own in before - {ref["digest"] for ref in two.header(3)["segments"]}
    assert two.blob(SEGMENTS + own) == sound
    two.run("verify")
