"""Machines whose store a test can look into and damage, by other ways than the code under test."""

from __future__ import annotations

import functools
from pathlib import Path
from random import Random
from typing import Any

import pytest
from azure.storage.blob import ContainerClient

from tests.runs import OneProcess, Run, Workspace
from tests.trees import write

MIB = 1024 * 1024
HUGE_MIB = 350


class Machine(OneProcess):
    """A workspace, and the blobs of its store: files of a folder, or in a container."""

    container: ContainerClient | None = None

    def _file(self, key: str) -> Path:
        return self.store / (f"{key}.blob" if "/" in key else f"{key[-2:]}/{key}")

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin so."""
        if self.container is not None:
            return [blob.name for blob in self.container.list_blobs(prefix)]
        files = (file for file in self.store.rglob("*") if file.is_file() and ".tmp" not in file.parts)
        found = (str(file.relative_to(self.store)) for file in files)
        keys = (name.removesuffix(".blob") if name.endswith(".blob") else name[3:] for name in found)
        return sorted(key for key in keys if key.startswith(prefix))

    def blob(self, key: str) -> bytes:
        """Return what a blob holds."""
        if self.container is not None:
            return bytes(self.container.download_blob(key).readall())
        return self._file(key).read_bytes()

    def meta(self, key: str) -> dict[str, str]:
        """Return a blob's metadata."""
        return dict(self.container.get_blob_client(key).get_blob_properties().metadata) if self.container else {}

    def damage(self, key: str, data: bytes | None) -> None:
        """Put other bytes into a blob, as something other than Blobark would, or (None) delete it."""
        if self.container is not None:
            if data is None:
                self.container.delete_blob(key)
            else:
                self.container.upload_blob(key, data, overwrite=True, metadata=self.meta(key))
        elif data is None:
            self._file(key).unlink()
        else:
            self._file(key).write_bytes(data)


def write_huge(file: Path) -> int:
    """Write a file of more than 64 blocks, so that their list is an object of its own; return its length."""
    file.parent.mkdir(parents=True)
    with open(file, "wb") as out:
        out.writelines(Random(number).randbytes(1024 * 1024) for number in range(HUGE_MIB))
    return file.stat().st_size


@functools.cache
def _text() -> bytes:
    return b"".join(b"line %d\n" % number for number in range(800_000))


def mixed_tree(top: Path) -> Path:
    """Make small files, one of two blocks, one that gets much smaller, a sparse and an empty one, a skipped folder."""
    dice = Random(8)
    for number in range(12):
        write(top / "some" / f"{number:02}", dice.randbytes(3000) + b"text " * 500)
    write(top / "large", dice.randbytes(12 * MIB))
    write(top / "text", _text())
    write(top / "empty", b"")
    with open(top / "sparse", "wb") as file:
        file.write(b"start")
        file.seek(20 * MIB)
        file.write(b"middle" * 1000)
        file.truncate(40 * MIB)
    write(top / "skipped" / "inside", b"not saved")
    return top


def flipped(data: bytes, place: int = 0) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 0x20
    return bytes(changed)


def machine_at(where: str, folder: Path, source: Path, request: pytest.FixtureRequest, **settings: Any) -> Machine:
    settings = {"skip_path": ["skipped"], **settings}
    if where == "folder":
        return Machine(folder, source, server="web1", **settings)
    machine = Machine.on_azure(folder, source, *request.getfixturevalue("azure_container"), **settings)
    machine.container = request.getfixturevalue("container")
    return machine


def hurt(run: Run, machine: Workspace) -> dict[str, set[str]]:
    """Return the paths that each damaged blob hurts, below the source."""
    found: dict[str, set[str]] = {}
    for row in run.result["items"]:
        found.setdefault(row["blob"], set()).add(row["path"].removeprefix(f"{machine.source}/"))
    return found
