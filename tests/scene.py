"""A scene for restores of forged snapshots: a store, a restore_root, and all around it what must stay as it is."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

from tests.forge import Forge
from tests.forked import NOBODY, Forking
from tests.runs import Run, Workspace

Facts = dict[str, tuple[object, ...]]


class Scene:
    """One machine that restores what a forge has made, with a folder `outside` beside restore_root."""

    def __init__(self, folder: Path, forking: Forking) -> None:
        self._forking = forking
        self.folder = folder
        self.workspace = Workspace(folder / "work", folder / "source")
        self.forge = Forge(self.workspace.store)
        self.restored = self.workspace.restored
        self.outside = self.workspace.folder / "outside"
        (self.outside / "dir" / "below").mkdir(parents=True)
        (self.outside / "file").write_bytes(b"outside")
        (self.outside / "file").chmod(0o600)
        for path in (self.outside / "file", self.outside / "dir", self.outside):
            os.utime(path, ns=(1_000_000_000, 1_000_000_001))

    def restore(
        self,
        code: int | tuple[int, ...],
        *options: str,
        settled: bool = True,
        nobody: bool = False,
        memory_bytes: int = 0,
    ) -> Run:
        """Restore; fails unless it ends with this code (or one of these), says so in clear lines, and keeps inside.

        `settled` says that restore_root holds nothing but what the forge made, so that all of it can be judged.
        """
        before = self.surroundings()
        done = self.run(*options, nobody=nobody, memory_bytes=memory_bytes)
        assert self.surroundings() == before, "something outside restore_root was touched"
        run = judged(done, code)
        if settled:
            self.check_content()
            assert self.leftovers() == []
        return run

    def run(self, *options: str, nobody: bool = False, memory_bytes: int = 0) -> subprocess.CompletedProcess[bytes]:
        """Restore, and only return how that ended."""
        options = ("--config", str(self.workspace.config), "--json", *options)
        return self._forking.run("restore", *options, nobody=nobody, memory_bytes=memory_bytes)

    def surroundings(self) -> Facts:
        """Return everything around restore_root but what a restore is asked to write."""
        folder, state = self.workspace.folder, self.workspace.state
        asked = {self.restored, state, *folder.glob(f"*{self.workspace.metrics.name}*")}
        in_state = {path.name for path in state.glob("*")} - {"restores.jsonl", "journals"}
        assert in_state == set(), "there is no other state in a scene"
        return facts(folder, leave_out=asked)

    def check_content(self, folder: Path | None = None) -> None:
        """Assert that every file below restore_root has exactly the content that belongs under its name."""
        top = folder or self.restored
        for path, _, names in os.walk(top):
            for name in names:
                file = Path(path, name)
                if file.is_file() and not file.is_symlink():
                    below = str(file.relative_to(top))
                    assert content_of(file) == self.forge.contents.get(below), below

    def leftovers(self) -> list[Path]:
        """Return what lies below restore_root under a temporary name."""
        # `os.walk` and not `rglob`, which fails on a folder that a restore takes away meanwhile
        below = (Path(at, name) for at, folders, files in os.walk(self.restored) for name in folders + files)
        return [path for path in below if path.name.startswith(".blobark-") and path.suffix == ".part"]

    def hand_over(self) -> None:
        """Give all of the scene to nobody, if root runs the tests: it is nobody who restores next."""
        if os.geteuid() == 0:
            for folder, _, names in os.walk(self.folder):
                for path in (folder, *(os.path.join(folder, name) for name in names)):
                    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def content_of(file: Path) -> bytes:
    """Return the content of a file that its owner, who runs the tests, perhaps may not read."""
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & stat.S_IRUSR or os.geteuid() == 0:
        return file.read_bytes()
    file.chmod(mode | stat.S_IRUSR)
    try:
        return file.read_bytes()
    finally:
        file.chmod(mode)


def judged(done: subprocess.CompletedProcess[bytes], code: int | tuple[int, ...]) -> Run:
    """Return how a restore with --json ended; fails where a person or a program could not use what it said."""
    stderr = done.stderr.decode(errors="surrogateescape")
    codes = code if isinstance(code, tuple) else (code,)
    assert "Traceback" not in stderr, stderr
    assert done.returncode in codes, (done.returncode, done.stdout, stderr)
    said = stderr.splitlines()
    assert all(line.isprintable() for line in said), said
    result = json.loads(done.stdout)
    assert result["exit_code"] == done.returncode
    if done.returncode == 3:
        assert result["failed"]
        assert sorted(said) == sorted(f"failed: {path}: {reason}" for path, reason in result["failed"])
    elif done.returncode:
        assert len(said) == 1, said
        assert said[0].startswith("blobark: "), said
    return Run(done.returncode, result, stderr)


def facts(top: Path, leave_out: set[Path]) -> Facts:
    """Return what lstat and reading tell of everything below a folder, access times aside."""
    found: Facts = {}
    for folder, folders, names in os.walk(top):
        folders[:] = [name for name in folders if Path(folder, name) not in leave_out]
        for path in (Path(folder, name) for name in (*folders, *names)):
            if path not in leave_out:
                found[str(path.relative_to(top))] = _facts(path)
    return found


def _facts(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    content: object = None
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(status.st_mode) and status.st_size < 1 << 20:
        content = path.read_bytes()
    owner = (status.st_uid, status.st_gid)
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return status.st_mode, owner, status.st_ino, status.st_nlink, status.st_size, times, content
