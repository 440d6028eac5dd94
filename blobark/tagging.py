"""`blobark tag`: gives a snapshot names, or takes them away, and shows those that it has."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from blobark import snapshot, tags
from blobark.context import Context
from blobark.errors import ConfigError
from blobark.listings import server_of


@dataclass(frozen=True, slots=True)
class TagOptions:
    """What the command line says. Without names the tags are only shown."""

    number: int
    names: tuple[str, ...] = ()
    remove: bool = False
    server: str = ""


class TagResult(msgspec.Struct, frozen=True):
    """A snapshot and its tags, as they are now."""

    server: str
    snapshot: int
    tags: list[str]


def run_tag(context: Context, options: TagOptions) -> TagResult:
    """Give or take a snapshot's tags.

    Raises:
        ConfigError: a name cannot be a tag; one that is to be taken away is not there, or none is named.
        SnapshotError: there is no such snapshot.
    """
    names = [tags.check(name) for name in options.names]
    if options.remove and not names:
        raise ConfigError("--remove takes away the tags that are named", f"blobark tag {options.number} TAG --remove")
    store = context.open_store(False)
    server = server_of(context, store, options.server)
    snapshot.load(store, server, options.number)
    if names:
        has = tags.read(store, server).get(options.number, frozenset())
        missing = [name for name in names if name not in has]
        if options.remove and missing:
            hint = f"it has {', '.join(sorted(has))}" if has else "it has none"
            raise ConfigError(f"snapshot {options.number} of {server} has no tag {missing[0]}", hint)
        if options.remove:
            tags.remove(store, server, options.number, names)
        else:  # who may create and not overwrite is refused what is there
            tags.add(store, server, options.number, missing)
        snapshot.load(store, server, options.number)  # a prune may have removed it just now
    return TagResult(server, options.number, sorted(tags.read(store, server).get(options.number, ())))
