"""Rules that changed after the index was made: the draft is filtered by the rules of now.

What the old rules kept out was never walked, so it cannot come back here: the caller says that an index is due.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from blobark.catalog import Catalog
from blobark.context import Context
from blobark.guids import GuidSource
from blobark.model import Entry, Root


def reapply(context: Context, catalog: Catalog) -> int:
    """Filter the draft; return how many items stay out by rules that are no longer there.

    A hard-link group whose first path falls out goes on under its next path, which gets a GUID of its own.
    """
    rules = context.rules
    roots = [root.raw_name for root in msgspec.json.decode(catalog.get("roots"), type=list[Root])]
    guids = GuidSource()
    draft = catalog.new_draft()
    heirs: dict[tuple[int, bytes], Entry | None] = {}
    below: tuple[int, bytes] | None = None
    outdated = 0
    for _, entry in catalog.entries():
        path = entry.raw_path
        if below is not None and entry.root == below[0] and path.startswith(below[1]):
            heirs[entry.root, path] = None
            continue
        is_dir = entry.kind == "dir"
        excluded = rules.excludes(path, is_dir)
        rule = "" if excluded else rules.skips(roots[entry.root], path, is_dir)
        if entry.rule and not rule:
            outdated += 1
        if not path or (not excluded and (not rule or entry.rule)):
            heir = _heir(entry, heirs, guids)
            draft.add(heir, path)
            continue
        if is_dir:
            below = (entry.root, path + b"/")
            if rule:
                draft.add(replace(entry, rule=rule, guid=guids.next()), path)
        else:
            heirs[entry.root, path] = None
            if rule:
                draft.add(Entry(entry.path, entry.path_b64, entry.root, size=entry.size, rule=rule), path)
    draft.commit(rules=rules.digest(), map_outdated="1")
    return outdated


def _heir(entry: Entry, heirs: dict[tuple[int, bytes], Entry | None], guids: GuidSource) -> Entry:
    """Return the entry, or what becomes of it when the first path of its hard-link group fell out."""
    first = (entry.root, entry.raw_hardlink_to)
    if not entry.hardlink_to_any or first not in heirs:
        return entry
    heir = heirs[first]
    if heir is not None:
        return replace(entry, hardlink_to=heir.path, hardlink_to_b64=heir.path_b64)
    alone = replace(entry, hardlink_to="", hardlink_to_b64="", guid=guids.next())
    heirs[first] = alone
    return alone
