"""The command line where it is run: which configuration it takes, and where its paths start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_lines import BLOBARK, COMMANDS, backed_up, only_json, run, three_files
from tests.runs import REPOSITORY, SCRIPTS, Workspace
from tools.compare import differences


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Three files, nothing saved yet."""
    return three_files(tmp_path)


@pytest.fixture
def saved(tmp_path: Path) -> Workspace:
    """Three files that have been saved."""
    return backed_up(three_files(tmp_path))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh copy of this checkout."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, check=True).stdout.split(b"\0")
    copy = tmp_path / "checkout"
    for name in map(os.fsdecode, filter(None, names)):
        if (REPOSITORY / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, copy / name)
    return copy


def test_the_configuration_as_shipped_works(checkout: Path) -> None:
    for name in COMMANDS:
        done = run(sys.executable, SCRIPTS[name], cwd=checkout, AZURE_STORAGE_CONNECTION_STRING="")
        assert (done.returncode, done.stderr) == (0, "")
    assert differences(str(checkout / "docs"), str(checkout / "blobark-data" / "restored")) == []
    listing = run("git", "-C", REPOSITORY, "check-ignore", "blobark-data", "guid_file_mapping.json").stdout
    assert len(listing.splitlines()) == 2, "what it writes beside itself is not ignored by git"


def test_a_script_that_is_run_from_elsewhere_finds_the_configuration_beside_it(checkout: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in COMMANDS:
        done = run(sys.executable, checkout / SCRIPTS[name], cwd=elsewhere)
        assert (done.returncode, done.stderr) == (0, "")
    assert differences(str(checkout / "docs"), str(checkout / "blobark-data" / "restored")) == []
    assert list(elsewhere.iterdir()) == []


def test_the_configuration_of_the_current_folder_comes_first(checkout: Path, workspace: Workspace) -> None:
    done = run(sys.executable, checkout / SCRIPTS["index"], "--json", cwd=workspace.folder)
    assert (done.returncode, only_json(done)["mapped"]) == (0, 3)
    assert workspace.map.exists()


def test_without_a_configuration_it_says_where_it_looked(tmp_path: Path) -> None:
    done = run(BLOBARK, "index", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "config.yaml" in done.stderr
    assert "--config" in done.stderr


def test_relative_paths_of_the_command_line_start_where_one_is(saved: Workspace, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    done = run(*saved.command("restore", "--to", "restored", "--map", "../work/map.json"), cwd=here)
    assert done.returncode == 0
    assert (here / "restored" / "file 1").exists()
