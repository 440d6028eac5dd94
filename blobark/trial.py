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
from blobark.model import Entry

PREFIX = "blobark-trial-"
SPARE_BYTES = 16 << 20
"""What must stay free."""
_UNIT_BYTES = 4096


@contextlib.contextmanager
def folder(context: Context, where: Path | None, *, keep: bool) -> Iterator[Path]:
    """Make an empty folder (0700) below `where`, by default beside restore_root, else in state_dir; then remove it."""
    config = context.config
    parent = where or (config.restore_root.parent if config.restore_root else config.state_dir)
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    except OSError as error:
        hint = "name another place with --scratch DIR"
        raise ConfigError(f"no scratch folder can be made in {parent} ({error.strerror})", hint) from None
    try:
        yield made
    finally:
        if not keep and (problem := remove(made)):
            context.reporter.warn(f"warning: {made} could not be removed ({problem}): remove it by hand")


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
