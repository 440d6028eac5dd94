"""A small file system of its own, mounted where only its user sees it: a tmpfs in a mount namespace."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType


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
        assert self._holder.stdout.readline() == b"mounted\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.communicate()

    def inside(self, command: list[str]) -> list[str]:
        """Return a command line that runs this one where the disk is mounted."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", "--target", str(self._holder.pid), "--mount", *user, *command]

    def remount(self, options: str) -> None:
        """Change the disk's size, or whether it may be written."""
        subprocess.run(self.inside(["mount", "-o", f"remount,{options}", str(self.place)]), check=True)

    def make_unreadable(self, file: Path) -> None:
        """Let the beginning of an existing file, wherever it is, not be read: an I/O error for who is inside."""
        memory = f"/proc/{self._holder.pid}/mem"  # nothing is at address 0
        subprocess.run(self.inside(["mount", "--bind", memory, str(file)]), check=True)

    def seen_from_here(self) -> Path:
        """Return the disk as a path that is good outside, too."""
        return Path(f"/proc/{self._holder.pid}/root{self.place}")
