"""The index: what is there now, and which GUID each file has.

    walk every root in order, beside the draft of the run before (both are sorted, so one pass meets each path once)
      unchanged          its entry stands, GUID and all
      doubtful           same size, other times: a new GUID for now, noted to be read
      other or new       a new GUID; a new path is noted, it may be a rename
      gone               noted, a new path may be it
    match new paths with gone ones by inode number; read the doubtful: an equal digest keeps the GUID
    commit the draft, write the map

It stores nothing, and opens no file but doubtful and sparse ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import msgspec

from blobark import identity, mapfile, patches, snapshot
from blobark.builder import FRESH_NS, PROGRESS_EVERY, DraftBuilder, renumbered
from blobark.catalog import Catalog, stored_in
from blobark.clock import now_ns
from blobark.context import Context, full_path
from blobark.errors import ConfigError, RootRefused, SnapshotError, StoreMissing
from blobark.guids import blob_name
from blobark.indexed import IndexResult
from blobark.model import Header, Root, display


def build(
    context: Context,
    catalog: Catalog,
    *,
    allow_empty: frozenset[str] = frozenset(),
    allow_shrink: frozenset[str] = frozenset(),
    adopt: str = "",
    dry_run: bool = False,
    is_saved_next: bool = False,
) -> IndexResult:
    """Index the source tree into the catalog and write the map; with `dry_run`, which takes a catalog that does not
    keep anything, write no map. Where a save comes next in the same run, writing the map is left to that; only one that
    is not this catalog's gives way at once: if that save fails, a later one would take it for a map made elsewhere.

    Raises:
        RootRefused: a root is missing, empty (and not in `allow_empty`) or halved (and not in `allow_shrink`).
    """
    context.config.need("source_path")
    _check_allowed(context, allow_empty | allow_shrink)
    result = IndexResult(server=resolve_server(context, catalog, adopt))
    started_ns = now_ns()
    context.items.begin(server=result.server, host=identity.this_host().name)
    result.journal = context.items.file
    context.reporter.begin("index", 0, 0)
    if not catalog.has_draft():
        adopt_latest(context, catalog, result.server)
    before = _refs(catalog)
    draft = catalog.new_draft()
    trusted_before_ns = int(catalog.get("walk_started_ns") or "0") - FRESH_NS
    previous = _previous_numbers(context, catalog)
    entries = None if previous is None else renumbered(catalog.entries(), previous)
    DraftBuilder(context, draft, result, entries, trusted_before_ns).run()
    _check_roots(catalog, result.roots, allow_empty, allow_shrink)
    roots = msgspec.json.encode(result.roots).decode()
    is_outdated = catalog.get("map_outdated") != ""
    rules = context.rules.digest()
    values = {"server": result.server, "roots": roots, "rules": rules, "walk_started_ns": str(started_ns)}
    draft.commit(**values, map_outdated="1", map_made_elsewhere="")
    if dry_run:
        return result
    is_counted = catalog.get("unmapped") != ""  # state of earlier versions has no such number
    is_own = owns_map(context, catalog)
    if is_outdated or not is_counted or before != _refs(catalog) or not is_own:
        if is_saved_next and (is_own or not context.config.guid_mapping_file.exists()):
            return result
        write_map(context, catalog)
    catalog.set(map_outdated="")
    catalog.commit()
    count_mapped(catalog, result)
    return result


def count_mapped(catalog: Catalog, result: IndexResult) -> None:
    """Say in the result what is in the map, as it was written last."""
    result.mapped, result.unmapped = int(catalog.get("mapped")), int(catalog.get("unmapped"))


def _previous_numbers(context: Context, catalog: Catalog) -> dict[int, int] | None:
    """Return today's number of each root of the run before that is still configured; None for no run before."""
    if not catalog.has_draft():
        return None
    today = {root.raw_name: number for number, root in enumerate(context.roots())}
    before = msgspec.json.decode(catalog.get("roots"), type=list[Root])
    return {number: today[root.raw_name] for number, root in enumerate(before) if root.raw_name in today}


def resolve_server(context: Context, catalog: Catalog, adopt: str = "") -> str:
    """Return this server's name: configured, remembered, or found out from the store."""
    known = context.config.server or catalog.get("server")
    if known and not adopt:
        return known
    names = [root.raw_name for root in context.roots()]
    try:
        store = context.open_store(False)
        return identity.server_to_save(store, identity.this_host(), names, adopt)
    except StoreMissing:
        return identity.name_for_host(identity.this_host().name)


def owns_map(context: Context, catalog: Catalog) -> bool:
    """Whether the map file is as this catalog wrote it last."""
    path = context.config.guid_mapping_file
    return path.exists() and mapfile.digest_of(path) == catalog.get("map_digest")


def map_pairs(catalog: Catalog, unmapped: Callable[[], None] = lambda: None) -> Iterator[tuple[str, bytes]]:
    """Yield the (blob key, absolute path) lines of the draft's map; the path of a placeholder ends in a slash.

    `unmapped` is called for each regular file that is not in it and has no error.
    """
    server = catalog.get("server")
    roots = [root.raw_name for root in msgspec.json.decode(catalog.get("roots"), type=list[Root])]
    for _, entry in catalog.entries():
        if entry.is_mapped:
            path = full_path(roots[entry.root], entry.raw_path)
            yield blob_name(server, entry.guid), path + b"/" if entry.kind == "dir" else path
        elif entry.kind == "file" and not entry.error:
            unmapped()


def write_map(context: Context, catalog: Catalog) -> None:
    """Write the map of the draft, atomically."""
    left_out = 0

    def leave_out() -> None:
        nonlocal left_out
        left_out += 1

    def told() -> Iterator[tuple[str, bytes]]:
        for number, (key, path) in enumerate(map_pairs(catalog, leave_out)):
            if not number % PROGRESS_EVERY:
                context.check_stop()
            if context.reporter.verbose:
                context.reporter.detail(f"{key} -> {display(path)}")
            yield key, path

    digest, count = mapfile.write(context.config.guid_mapping_file, told())
    catalog.set(map_digest=digest, mapped=str(count), unmapped=str(left_out))
    catalog.commit()


def remember_snapshot(catalog: Catalog, header: Header, place: str) -> None:
    """Make a snapshot, whose segments the catalog has, the draft, and remember what it was complete with.

    `place` is the store's name: there it, or a later one, is expected from now on.
    """
    roots = msgspec.json.encode(header.roots).decode()
    values = {
        "server": header.server,
        "roots": roots,
        "snapshot": str(header.number),
        "stored_in": stored_in(header.server, place),
    }
    values["header"] = snapshot.encode(header).decode()  # for a repair
    if header.complete:
        values["complete_roots"] = roots
    catalog.adopt(header.segments, **values)


def adopt_latest(context: Context, catalog: Catalog, server: str) -> None:
    """Rebuild a catalog that knows nothing from the newest snapshot, if there is one."""
    try:
        store = context.open_store(False)
        header = snapshot.to_go_on_from(store, server, skip_damaged=context.skip_damaged)
    except StoreMissing:
        return
    if header is None:
        return
    context.reporter.warn(f"no local state: rebuilding it from snapshot {header.number} of {server}")
    manifest = snapshot.Manifest(store, server)
    try:
        for ref in header.segments:
            patches.adopt(catalog, manifest, ref)
    except SnapshotError as error:
        context.reporter.warn(f"{error.message}: starting without it, unchanged files will be sent once more")
        if header.complete:  # what a root had is known all the same
            catalog.set(complete_roots=msgspec.json.encode(header.roots).decode())
        return
    remember_snapshot(catalog, header, store.name)
    # What was rescued was seen by runs that nobody knows any more: no time of theirs is trusted, all files are read.
    catalog.set(walk_started_ns="0" if header.rescued else str(header.started_ns))
    catalog.commit()


def _refs(catalog: Catalog) -> list[tuple[str, bool]]:
    return [(segment.ref.digest, segment.overlaid) for segment in catalog.draft()]


def _check_allowed(context: Context, roots: frozenset[str]) -> None:
    """Raise `ConfigError` when a root that is allowed to be empty or smaller is none."""
    known = {os.fsdecode(source.name) for source in context.sources()}
    for root in sorted(roots - known):
        message = f"--allow-empty or --allow-shrink: {root} is no source_path"
        raise ConfigError(message, f"there are {', '.join(sorted(known))}")


def _check_roots(
    catalog: Catalog, roots: list[Root], allow_empty: frozenset[str], allow_shrink: frozenset[str]
) -> None:
    known = catalog.get("complete_roots")
    before = {root.raw_name: root.entries for root in msgspec.json.decode(known, type=list[Root])} if known else {}
    for root in roots:
        name = os.fsdecode(root.raw_name)
        had = before.get(root.raw_name, 0)
        if root.entries <= 1 and name not in allow_empty:
            raise RootRefused(f"source_path {name} is empty", f"is it mounted? If it is meant so: --allow-empty {name}")
        if root.entries * 2 < had and name not in allow_shrink | allow_empty:
            message = f"source_path {name} has {root.entries} entries, its last complete snapshot had {had}"
            raise RootRefused(message, f"is all of it mounted? If it is meant so: --allow-shrink {name}")
