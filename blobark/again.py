"""Once more what a run's journal says failed: of a save the draft's entries, of a restore the manifest's.

An item is known by the path that the journal has: of a save the absolute one, of a restore that below its target,
which is the journal's too unless the command line names another.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from msgspec.structs import replace

from blobark import index
from blobark.catalog import Catalog
from blobark.context import Context, full_path
from blobark.errors import ConfigError
from blobark.guids import GuidSource
from blobark.itemlog import Failures, read_failures
from blobark.model import Entry, Header, Root, display
from blobark.snapshot import Manifest, PartialManifest


def renew_failed(context: Context, catalog: Catalog, failures: Failures) -> bool:
    """Let the draft's entries that failed in a run be stored by the next save, if their files can be read by then.

    Returns whether there is anything for that save to do: such entries, or a run that was ended before it published.

    Without local state the draft is the newest snapshot of the run's server. What is no error any more stays as it is.
    Directories are left to the next index: what is in them is not known.

    Raises:
        ConfigError: the run is another server's, or there is neither a draft nor a snapshot.
    """
    server = failures.run.server
    known = context.config.server or catalog.get("server") or server
    if known != server:
        raise ConfigError(f"that run saved the server {display(server.encode())}, and this is {known}")
    if not catalog.has_draft():
        index.adopt_latest(context, catalog, server)
    if not catalog.has_draft():
        raise ConfigError(f"there is neither local state nor a snapshot of {server}", "run blobark backup")
    roots = [root.raw_name for root in msgspec.json.decode(catalog.get("roots"), type=list[Root])]
    guids = GuidSource()
    found = 0
    for sequence, entry in _errors(catalog):
        path = full_path(roots[entry.root], entry.raw_path)
        if path in failures.paths:
            if entry.kind == "dir":
                context.reporter.warn(f"{display(path)}: only an index can read a directory again")
                continue
            entry = replace(entry.without_content(), guid=guids.next(), stale=False, error="")
            catalog.overlay(sequence, replace(entry, hardlink_to="", hardlink_to_b64=""))
            found += 1
    if found:
        catalog.set(map_outdated="1")
        catalog.commit()
    elif _is_published(catalog):
        message = "nothing is done: nothing that failed in that run is an error in the newest index or snapshot"
        context.reporter.warn(message)
        return False
    return True


def _is_published(catalog: Catalog) -> bool:
    """Whether the draft is a snapshot as it was published: no index, and nothing of a save that was ended midway."""
    return catalog.get("draft") == "snapshot" and not any(segment.overlaid for segment in catalog.draft())


def _errors(catalog: Catalog) -> list[tuple[int, Entry]]:
    """Return the draft's entries that have an error."""
    segments = [segment for segment in catalog.draft() if segment.ref.errors or segment.overlaid]
    return [(sequence, entry) for sequence, entry in catalog.entries(segments) if entry.error]


def restore_failures(file: Path) -> Failures:
    """Return what failed in a restore. Raises `ConfigError`."""
    failures = read_failures(file, "restore")
    if not failures.run.snapshot:
        raise ConfigError(
            "that run restored a bare map, and only the restore of a snapshot can be repeated by its journal"
        )
    return failures


def restore_target(file: Path, *, in_place: bool) -> bytes:
    """Return to where a restore was, absolute; `in_place` is whether the repetition is told to be.

    Raises:
        ConfigError: the journal is none of a restore, or that was in place, and this is not to be, or the reverse.
    """
    run = restore_failures(file).run
    try:
        target = base64.b64decode(run.target_b64, validate=True) if run.target_b64 else run.target.encode()
    except ValueError:
        target = b""
    if not target.startswith(b"/") or b"\0" in target:
        raise ConfigError(f"the journal {display(os.fsencode(file))} does not say to where", "say --to DIR")
    if in_place and target != b"/":
        raise ConfigError(f"that run restored to {display(target)}, not in place", "leave out --in-place")
    if target == b"/" and not in_place:
        raise ConfigError("that run restored in place", "say --in-place again, or --to DIR")
    return target


class FailedManifest(PartialManifest):
    """A manifest that has only what failed in a run, with the directories above and the files that it links to."""

    def __init__(self, whole: Manifest, header: Header, places: list[bytes], paths: Mapping[bytes, str]) -> None:
        super().__init__(whole, self._has)
        self._places = places
        self._paths = set(paths)
        for ref in header.segments:
            for entry in whole.read(ref) if ref.links else ():
                if entry.hardlink_to_any and self._path(entry, entry.raw_path) in self._paths:
                    self._paths.add(self._path(entry, entry.raw_hardlink_to))
        self._above = set(_parents(self._paths))

    def _has(self, entry: Entry) -> bool:
        try:
            path = self._path(entry, entry.raw_path)
        except (ValueError, IndexError):
            return True  # no manifest has this, and whoever checks it says so
        is_above = entry.kind == "dir" and (path in self._above or path == self._places[entry.root])
        return is_above or path in self._paths

    def _path(self, entry: Entry, path: bytes) -> bytes:
        place = self._places[entry.root]
        return place + b"/" + path if place and path else place or path


def _parents(paths: Iterable[bytes]) -> Iterable[bytes]:
    for path in paths:
        while path:
            path = path.rpartition(b"/")[0]
            yield path
