"""Paths as text: what is shown leads back to the very bytes, in a function and on the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobark.errors import ConfigError
from blobark.model import display
from blobark.names import meant
from tests.runs import Workspace
from tests.trees import write

STRANGE = [
    b"back\\slash",
    b"back\\nslash",
    b"line\nbreak",
    b"\xff\xfe",
    b"tab\there",
    "\u2028\x80 ü".encode(),
    b"end\\",
]


@given(st.binary())
def test_what_is_shown_leads_back(raw: bytes) -> None:
    assert meant(display(raw)) == raw
    assert display(raw).isprintable()


def test_what_is_shown() -> None:
    assert display("plain ü".encode()) == "plain ü"
    assert display(b"a\\n\n\xff\x1b") == r"a\\n\n\udcff\x1b"
    assert meant("a\nb") == b"a\nb"
    assert meant(os.fsdecode(b"\xff")) == b"\xff"


@pytest.mark.parametrize("text", ["a\\", "\\q", "\\f", "\\x1", "\\xZZ", "\\ud800", "\\U99999999", "\\u12"])
def test_what_is_no_escape_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a backslash here begins an escape"):
        meant(text)


def test_each_command_takes_what_ls_shows(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number, name in enumerate(STRANGE):
        write(source / os.fsdecode(name), f"content {number}")
    workspace = Workspace(tmp_path / "work", source, server="web1")
    workspace.run("backup")
    paths = {row["path"]: row for row in workspace.run("ls").result["items"] if row["kind"] == "file"}
    assert len(paths) == len(STRANGE)
    found = {row["path"] for row in workspace.run("find", "*").result["items"]}
    assert paths.keys() <= found
    contents = set()
    for path, row in paths.items():
        assert [item["path"] for item in workspace.run("ls", "1", path).result["items"]] == [path]
        assert [item["digest"] for item in workspace.run("history", path).result["items"]] == [row["digest"]]
        contents.add(workspace.execute("restore", "--cat", path).stdout.decode())
    assert contents == {f"content {number}" for number in range(len(STRANGE))}
    workspace.run("restore", *paths)
    assert sorted(os.listdir(os.fsencode(workspace.restored))) == sorted(STRANGE)
    for key in workspace.guids().values():
        (workspace.store / key[-2:] / key).unlink()
    failed = workspace.run("restore", "--to", str(tmp_path / "elsewhere"), expect=3).result["failed"]
    assert {f"{source}/{path}" for path, _ in failed} == paths.keys()
    assert "a backslash here begins" in workspace.run("ls", "1", "back\\slash", expect=2).stderr
