"""The main job, end to end, through the scripts: a tree with every kind of item comes back as it was."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.runs import Started, Workspace
from tests.trees import make_tree
from tools.compare import differences


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "source")


@pytest.fixture(params=["folder", "azure"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path, source: Path) -> Workspace:
    made = Started(tmp_path / "work", source)
    if request.param == "azure":
        connection_string, container = request.getfixturevalue("azure_container")
        made.configure(store="azure", connection_string=connection_string, container_name=container)
    return made


def test_a_tree_comes_back_as_it_was(workspace: Workspace) -> None:
    index = workspace.run("index").result
    assert index["tallies"]["new"]["items"] > 30
    saved = workspace.run("save").result
    assert (saved["complete"], saved["snapshot"]) == (True, 1)
    workspace.run("restore")
    assert differences(str(workspace.source), str(workspace.restored)) == []


def test_the_store_alone_is_enough(workspace: Workspace) -> None:
    workspace.backup()
    shutil.rmtree(workspace.state)
    workspace.map.unlink()
    workspace.run("restore")
    assert differences(str(workspace.source), str(workspace.restored)) == []


def test_an_unchanged_tree_sends_one_header(workspace: Workspace) -> None:
    workspace.backup()
    before = workspace.map.read_bytes()
    again = workspace.backup().result
    assert (again["sent"], again["segments_sent"], again["snapshot"]) == (0, 0, 2)
    assert workspace.map.read_bytes() == before


def test_lost_state_costs_no_content(workspace: Workspace) -> None:
    workspace.backup()
    before = workspace.guids()
    shutil.rmtree(workspace.state)
    again = workspace.backup().result
    assert (again["sent"], again["segments_sent"]) == (0, 0)
    assert workspace.guids() == before


def test_a_save_without_its_state_knows_its_own_map(workspace: Workspace) -> None:
    entries = workspace.backup().result["entries"]
    shutil.rmtree(workspace.state)
    again = workspace.run("save").result
    assert (again["sent"], again["segments_sent"], again["entries"]) == (0, 0, entries)
    Path(workspace.source, "new").write_bytes(b"new")
    workspace.run("index")
    shutil.rmtree(workspace.state)
    assert "build_index.py" in workspace.run("save", expect=2).stderr


def test_a_save_without_its_state_holds_to_rules_that_are_new(workspace: Workspace) -> None:
    entries = workspace.backup().result["entries"]
    shutil.rmtree(workspace.state)
    workspace.configure(skip_files=["small"])
    again = workspace.run("save").result
    assert (again["skipped"], again["entries"]) == (1, entries - 1)
    assert "small" not in workspace.guids()


def test_a_second_restore_keeps_what_is_right(workspace: Workspace) -> None:
    workspace.backup()
    workspace.run("restore")
    Path(workspace.restored, "small").write_bytes(b"SMALL\n")
    os.unlink(workspace.restored / "large")
    again = workspace.run("restore").result
    assert again["written"] == 2
    assert differences(str(workspace.source), str(workspace.restored)) == []


def test_the_map_alone_brings_files_back(workspace: Workspace) -> None:
    workspace.backup()
    shutil.rmtree(workspace.state)
    done = workspace.run("restore", "--map", str(workspace.map)).result
    guids = workspace.guids()
    assert done["files"] == len(guids)
    for name in guids:
        raw = os.fsencode(name)
        restored, source = (os.path.join(os.fsencode(top), raw) for top in (workspace.restored, workspace.source))
        with open(restored, "rb") as a, open(source, "rb") as b:
            assert a.read() == b.read(), name


def test_the_metrics_are_one_json_document(workspace: Workspace) -> None:
    workspace.backup()
    done = workspace.run("restore").result
    document = json.loads(workspace.metrics.read_bytes())
    assert len(document["samples"]) >= 2
    assert document["summary"]["files"] == done["files"]
    assert done["peak_rss_bytes"] > 0
