"""Maps made elsewhere, `{guid: path}`, as jobs: a draft to save from, and a tree to restore.

for save      the map's paths, sorted, with the directories they lie in, become a draft beside the one before
for restore   each path, less a prefix, with its blob; the blob's own metadata tell the rest where they can
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from msgspec.structs import replace

from blobark import mapfile, plan, source
from blobark.builder import FRESH_NS, carry, renumbered
from blobark.catalog import Catalog
from blobark.clock import now_ns
from blobark.context import Context, full_path
from blobark.errors import ConfigError, RootRefused
from blobark.fetch import RestoreJob
from blobark.guids import GuidSource, blob_name
from blobark.mapfile import MapItem
from blobark.model import Entry, Extent, Root, display, text_or_b64
from blobark.plan import Change
from blobark.selection import Chosen, Selection
from blobark.source import SourceTree


def restore_jobs(map_path: Path, server: str, prefixes: list[bytes], selection: Selection) -> Iterator[RestoreJob]:
    """Yield the jobs that restore a map; `prefixes` are absolute, and a path loses the one it lies below.

    Of a selection the paths are those of the map, and the patterns are compared with what is left of them.

    The whole map is read and checked before the first job comes. With one prefix what lies below it lands in
    restore_root itself, with several each path keeps its full name.

    Raises:
        ConfigError: the map is damaged, or a path lies below none of the prefixes.
    """
    for item in mapfile.check_unique(mapfile.MapReader(map_path)):
        _place(map_path, item, prefixes)
    return _jobs(map_path, server, prefixes, selection)


def missing_paths(map_path: Path, selection: Selection) -> list[bytes]:
    """Return which paths of a selection a map has nothing at or below of."""
    missing = dict.fromkeys(selection.paths)
    for item in mapfile.MapReader(map_path) if missing else ():
        for path in [path for path in missing if _is_at(item.path, path)]:
            del missing[path]
        if not missing:
            break
    return list(missing)


def _is_at(path: bytes, top: bytes) -> bool:
    return path.rstrip(b"/") == top or path.startswith(top.rstrip(b"/") + b"/")


def _takes(selection: Selection, item: MapItem, place: bytes) -> bool:
    if selection.paths and not any(_is_at(item.path, path) for path in selection.paths):
        return False
    includes = (selection.include,) if selection.include else ()
    return Chosen(None, includes, selection.exclude).takes(0, place.rstrip(b"/"), item.placeholder)


def _jobs(map_path: Path, server: str, prefixes: list[bytes], selection: Selection) -> Iterator[RestoreJob]:
    umask = os.umask(0)
    os.umask(umask)
    made: list[bytes] = []
    for item in mapfile.MapReader(map_path):
        place = _place(map_path, item, prefixes)
        if selection and not _takes(selection, item, place):
            continue
        parts = place.split(b"/")
        above = [b"/".join(parts[:depth]) for depth in range(1, len(parts) + (1 if item.placeholder else 0))]
        for directory in above:
            if directory not in made:
                yield RestoreJob(directory, Entry(kind="dir", mode=0o777 & ~umask, path=display(directory)))
        made = above
        if not item.placeholder:
            key = item.key if item.server or not server else blob_name(server, item.guid)
            text, b64 = text_or_b64(place)
            extents = (Extent(key, 0, 0, 0),)
            entry = Entry(path=text, path_b64=b64, guid=item.guid, extents=extents, mode=0o666 & ~umask)
            yield RestoreJob(place, entry, is_mapped=True)


def _place(map_path: Path, item: MapItem, prefixes: list[bytes]) -> bytes:
    for prefix in prefixes:
        below = item.path.removeprefix(prefix.rstrip(b"/") + b"/")
        if below != item.path and below:
            return below if len(prefixes) == 1 else item.path.strip(b"/")
    listed = ", ".join(display(prefix) for prefix in prefixes)
    raise ConfigError(f"{map_path}: {display(item.path)} is not below {listed}", "say --strip-prefix PATH, / for all")


def draft_from_map(context: Context, catalog: Catalog, server: str) -> list[tuple[str, str]]:
    """Make a draft of a map that the catalog did not write: its files, and the directories they lie in.

    A GUID that the catalog knows for the same unchanged file stays as stored. Returns (path, reason) of what is not
    there.

    Raises:
        ConfigError: the map is damaged, names another server, or a path outside source_path.
    """
    map_path = context.config.guid_mapping_file
    started_ns = now_ns()
    roots = context.roots()
    catalog.set_jobs(_rows(map_path, mapfile.check_unique(mapfile.MapReader(map_path)), server, roots))
    draft = catalog.new_draft()
    trees = [SourceTree(root.path) for root in context.sources()]
    try:
        failed = _Drafter(context, catalog, trees, roots).run(draft.add)
    finally:
        for tree in trees:
            tree.close()
    if not draft.entries:
        raise RootRefused(f"the map {map_path} names nothing", "run build_index.py for a map of all")
    draft.commit(
        server=server,
        roots=msgspec.json.encode(roots).decode(),
        rules=context.rules.digest(),
        walk_started_ns=str(started_ns),
        map_digest=mapfile.digest_of(map_path),
        map_outdated="",
        map_made_elsewhere="1",
    )
    return failed


def _rows(
    map_path: Path, items: Iterator[MapItem], server: str, roots: list[Root]
) -> Iterator[tuple[int, bytes, str, bool]]:
    names = [root.raw_name.rstrip(b"/") + b"/" for root in roots]
    for item in items:
        if item.server not in ("", server):
            hint = f"set `server: {item.server}` to save under that name"
            raise ConfigError(f"{map_path}: {item.key} belongs to server {item.server}, this is {server}", hint)
        for number, name in enumerate(names):
            if item.path.startswith(name):
                yield number, item.path[len(name) :].replace(b"/", b"\0"), item.guid, item.placeholder
                break
        else:
            raise ConfigError(f"{map_path}: {display(item.path)} is outside source_path")


class _Drafter:
    """Turns the sorted jobs of a map into the entries of a draft."""

    def __init__(self, context: Context, catalog: Catalog, trees: list[SourceTree], roots: list[Root]) -> None:
        self._context = context
        self._catalog = catalog
        self._trees = trees
        self._roots = roots
        self._failed: list[tuple[str, str]] = []
        self._known = self._before()
        self._previous = next(self._known, None)

    def run(self, add: Callable[[Entry, bytes], int]) -> list[tuple[str, str]]:
        """Add every entry; return what could not be read."""
        guids = GuidSource()
        above: list[bytes] = []
        blocked = b""
        root = -1
        for number, key, guid, placeholder in self._catalog.jobs():
            path = key.replace(b"\0", b"/")
            if number != root:
                root, above, blocked = number, [], b""
                add(self._describe(root, b""), b"")
            parts = path.split(b"/")
            for depth in range(1, len(parts)):
                directory = b"/".join(parts[:depth])
                if directory not in above:
                    entry = self._describe(root, directory)
                    add(replace(entry, kind="dir") if entry.error else entry, directory)
                    above = [*above[: depth - 1], directory]
                    blocked = directory if entry.kind != "dir" and not entry.error else blocked
            if blocked and path.startswith(blocked + b"/"):
                self._fail(root, path, "lies below what is no directory")
                continue
            entry = self._entry(root, path, guid, placeholder=placeholder)
            if entry.kind == "dir" and not entry.guid:
                entry = replace(entry, guid=guids.next())
            add(entry, path)
            above = [*above[: len(parts) - 1], path]
            blocked = path if entry.kind != "dir" else blocked
        return self._failed

    def _entry(self, root: int, path: bytes, guid: str, *, placeholder: bool) -> Entry:
        entry = self._describe(root, path)
        if entry.error:
            return entry
        if entry.kind == "dir":
            rule = "the map has it as a placeholder" if placeholder else "the map names the directory alone"
            return replace(entry, rule=rule, guid=guid)
        rule = self._context.rules.skips_below(self._roots[root].raw_name, path, False)
        if rule:
            return replace(entry, rule=rule)
        if entry.kind != "file":
            return entry
        known = self._advance(entry)
        if known is not None and known.guid == guid and known.digest and known.extents is None:
            parent, name = self._trees[root].parent(path)
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            trusted_before_ns = int(self._catalog.get("walk_started_ns") or "0") - FRESH_NS
            change, _ = plan.compare(known, status, self._context.config.change_detection, trusted_before_ns)
            if change is Change.KEEP:
                return carry(entry, known)
        return replace(entry, guid=guid)

    def _describe(self, root: int, path: bytes) -> Entry:
        """Return the entry of what is at `path` now, with an `error` where nothing can be told."""
        try:
            parent, name = self._trees[root].parent(path)
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            return source.describe(path, root, status, source.particulars(parent, name, status))
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            self._fail(root, path, reason)
            text, b64 = text_or_b64(path)
            return Entry(path=text, path_b64=b64, root=root, error=reason)

    def _fail(self, root: int, path: bytes, reason: str) -> None:
        shown = display(full_path(self._roots[root].raw_name, path))
        self._failed.append((shown, reason))
        self._context.reporter.warn(f"{shown}: {reason}")

    def _before(self) -> Iterator[Entry]:
        if self._catalog.has_draft():
            roots = msgspec.json.decode(self._catalog.get("roots"), type=list[Root])
            today = {root.raw_name: number for number, root in enumerate(self._roots)}
            numbers = {n: today[root.raw_name] for n, root in enumerate(roots) if root.raw_name in today}
            yield from renumbered(self._catalog.entries(), numbers)

    def _advance(self, entry: Entry) -> Entry | None:
        """Return the entry that the draft before has under the same path."""
        key = entry.sort_key
        while self._previous is not None and self._previous.sort_key < key:
            self._previous = next(self._known, None)
        return self._previous if self._previous is not None and self._previous.sort_key == key else None
