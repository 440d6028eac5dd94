"""The draft that a save takes up: the map's, as the rules of today have it, whoever made map and state."""

from __future__ import annotations

from blobark import index, mapfile, mapjobs
from blobark.catalog import Catalog
from blobark.context import Context
from blobark.errors import ConfigError
from blobark.model import Root, display
from blobark.reapply import reapply
from blobark.wording import counted


def make_draft_current(context: Context, catalog: Catalog) -> list[tuple[str, str]]:
    """See to it that the draft is the map's, filtered by today's rules; return what a foreign map names in vain."""
    is_rebuilt = not catalog.has_draft() and _rebuild(context, catalog)
    if not _is_own_map(context, catalog):
        if is_rebuilt:
            message = "there is no local state, and the map is not that of the newest snapshot"
            raise ConfigError(message, "run build_index.py first; a map made elsewhere needs another `server` name")
        context.reporter.warn("the map was made elsewhere: saving what it names, and nothing else")
        server = context.config.server or catalog.get("server") or _server_of_map(context, catalog)
        return mapjobs.draft_from_map(context, catalog, server)
    if catalog.get("rules") != context.rules.digest():
        outdated = reapply(context, catalog)
        if outdated:
            context.reporter.warn(
                f"left out by rules that have been removed: {counted(outdated, 'item')}; run build_index.py again"
            )
    return []


def _rebuild(context: Context, catalog: Catalog) -> bool:
    """Rebuild a catalog that knows nothing from the newest snapshot; say whether there is one."""
    server = context.config.server or _server_of_map(context, catalog)
    index.adopt_latest(context, catalog, server)
    return catalog.has_draft()


def _is_own_map(context: Context, catalog: Catalog) -> bool:
    """Whether the map is the draft's: the catalog wrote it, or would write the same."""
    if not catalog.has_draft():
        return False
    if index.owns_map(context, catalog):
        return True
    path = context.config.guid_mapping_file
    derived = path.with_name(path.name + ".derived")
    try:
        written = mapfile.write(derived, index.map_pairs(catalog))
        return written.digest == mapfile.digest_of(path)
    finally:
        derived.unlink(missing_ok=True)


def _server_of_map(context: Context, catalog: Catalog) -> str:
    """Return the server that a map's keys name, this machine's own name where they name none."""
    first = next(iter(mapfile.MapReader(context.config.guid_mapping_file)), None)
    return first.server if first is not None and first.server else index.resolve_server(context, catalog)


def check_roots(context: Context, roots: list[Root]) -> None:
    """Raise `ConfigError` when the index has a root that the configuration has no longer."""
    names = {source.name for source in context.config.source_path}
    for root in roots:
        if root.raw_name not in names:
            message = f"{display(root.raw_name)} is in the index and not in source_path any more"
            raise ConfigError(message, "run build_index.py again")
