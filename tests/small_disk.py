"""A small file system of its own, mounted where only its user sees it: a tmpfs in a mount namespace."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType

import pytest

NEEDED = "this system lets an ordinary user make no namespace of their own, or mount nothing in it"


def as_root_of_a_namespace(command: list[str]) -> list[str]:
    """Return a command line that runs this one as root of a user namespace that knows nobody else."""
    line = ["unshare", "--user", "--map-root-user"]
    if os.geteuid() != 0 and subprocess.run([*line, "true"], stderr=subprocess.DEVNULL, check=False).returncode != 0:
        pytest.skip(NEEDED)
    return [*line, *command]


class SmallDisk:
    """A tmpfs on `place` (an existing folder), with these mount options; gone when the block ends."""

    def __init__(self, place: Path, options: str) -> None:
        self.place = place
        self._options = options

    def __enter__(self) -> SmallDisk:
        alone = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
        script = 'mount -t tmpfs -o "$1" small "$2" && echo mounted && read -r end'
        self._holder = subprocess.Popen(
            [*alone, "sh", "-c", script, "sh", self._options, str(self.place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout
        if self._holder.stdout.readline() != b"mounted\n":
            self._holder.wait()
            assert os.geteuid() != 0, "root may mount"
            pytest.skip(NEEDED)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.communicate()

    def inside(self, command: list[str]) -> list[str]:
        """Return a command line that runs this one where the disk is mounted, as who runs the tests."""
        who = [] if os.geteuid() == 0 else ["unshare", f"--map-user={os.geteuid()}", f"--map-group={os.getegid()}"]
        return self.as_owner([*who, *command])

    def as_owner(self, command: list[str]) -> list[str]:
        """Return a command line that runs this one as who may mount: an ordinary user is root there."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", "--target", str(self._holder.pid), "--mount", *user, *command]

    def bind(self, folder: Path, place: Path) -> None:
        """Mount a folder of this machine at a place, too, where the disk is mounted."""
        subprocess.run(self.as_owner(["mount", "--bind", str(folder), str(place)]), check=True)

    def remount(self, options: str) -> None:
        """Change the disk's size, or whether it may be written."""
        # With its source, `mount` adds no options of its own: the owner it would add is the one outside the namespace.
        command = ["mount", "-o", f"remount,{options}", "small", str(self.place)]
        subprocess.run(self.as_owner(command), check=True)

    def make_unreadable(self, file: Path) -> None:
        """Let the beginning of an existing file, wherever it is, not be read: an I/O error for who is inside."""
        memory = f"/proc/{self._holder.pid}/mem"  # nothing is at address 0
        subprocess.run(self.inside(["mount", "--bind", memory, str(file)]), check=True)

    def seen_from_here(self) -> Path:
        """Return the disk as a path that is good outside, too."""
        return Path(f"/proc/{self._holder.pid}/root{self.place}")
