"""A folder for trial restores: made where there is room for them, and removed however they end."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from blobark.context import Context
from blobark.errors import ConfigError, Fatal
from blobark.filelock import lock
from blobark.model import Entry

PREFIX = "blobark-trial-"
KEPT_PREFIX = "blobark-kept-"
SPARE_BYTES = 16 << 20
"""What must stay free."""
_UNIT_BYTES = 4096


@contextlib.contextmanager
def folder(context: Context, where: Path | None, *, keep: bool) -> Iterator[Path]:
    """Make an empty folder (0700) below `where`, by default beside restore_root, else in state_dir; then remove it.

    What trials that were killed have left there is removed before.
    """
    config = context.config
    parent = where or (config.restore_root.parent if config.restore_root else config.state_dir)
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in _left_behind(parent):
            context.reporter.warn(f"removing {left}, which a trial that was killed has left")
            _remove_or_warn(context, left)
        made, descriptor = _locked_folder(parent, KEPT_PREFIX if keep else PREFIX)
    except OSError as error:
        hint = "name another place with --scratch DIR"
        raise ConfigError(f"no scratch folder can be made in {parent} ({error.strerror})", hint) from None
    try:
        yield made
    finally:
        if not keep:
            _remove_or_warn(context, made)
        os.close(descriptor)


def _locked_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    """Make a folder that is locked for as long as the descriptor is open in this process or its forks."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        descriptor = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if lock(descriptor) and made.exists():
            return made, descriptor
        os.close(descriptor)  # another run took it, in the moment before it was locked, for one that was left


def _left_behind(parent: Path) -> Iterator[Path]:
    """Yield, locked, the trial folders of this user that no process has locked."""
    for found in sorted(parent.glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            descriptor = os.open(found, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            if os.fstat(descriptor).st_uid == os.geteuid() and lock(descriptor):
                yield found


def _remove_or_warn(context: Context, tree: Path) -> None:
    if problem := remove(tree):
        context.reporter.warn(f"warning: {tree} could not be removed ({problem}): remove it by hand")


def check_room(entries: Iterable[Entry], place: Path, what: str) -> None:
    """Raise `Fatal` unless a file system has room for these entries."""
    size, count = SPARE_BYTES, 0
    for entry in entries:
        count += not entry.hardlink_to_any
        size += _UNIT_BYTES
        if entry.kind == "file" and not entry.hardlink_to_any:
            size += -(-entry.content_size // _UNIT_BYTES) * _UNIT_BYTES
    there = os.statvfs(place)
    free = there.f_bavail * there.f_frsize
    if size > free or (there.f_files and count > there.f_favail):
        lacks = f"{size:,} bytes and {count:,} inodes are needed, {free:,} and {there.f_favail:,} are free"
        raise Fatal(f"{place} has no room for {what}: {lacks}", "say --sample 1%, or --scratch DIR on another disk")


def remove(tree: Path) -> str:
    """Remove a tree, whatever modes its directories have; return why that did not work, "" when it did."""
    try:
        for directory, names, _ in os.walk(os.fsencode(tree)):
            for name in names:
                path = os.path.join(directory, name)
                if not os.path.islink(path):
                    os.chmod(path, 0o700)
        shutil.rmtree(os.fsencode(tree))
    except OSError as error:
        return error.strerror or str(error)
    return ""
