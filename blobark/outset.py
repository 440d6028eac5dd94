"""What a run has before it asks the store for anything: a crew, a scout, and the catalog where one helps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from blobark.catalog import Catalog
from blobark.context import Context
from blobark.errors import BlobarkError
from blobark.member import Makers


@contextlib.contextmanager
def hired(context: Context, makers: Makers, *, dry_run: bool) -> Iterator[None]:
    """Have a crew while this lasts, which must begin before the store is asked anything: that starts threads.

    `makers` are those of the tasks that it is to have.
    """
    limited = context.config.max_bandwidth or context.config.max_requests_per_s
    if not dry_run and not limited:  # a limit is one process's: it needs no second one
        if context.config.store == "azure":
            import_module("blobark.stores.azure")  # so that not each member has to load it
        context.crew.hire(makers, context.store_counters)
    try:
        yield
    finally:
        context.crew.dismiss()


@contextlib.contextmanager
def scouted(context: Context) -> Iterator[None]:
    """Have a scout while this lasts, or until the walks are done; it must begin before there are threads, too."""
    context.scout.send_out()
    try:
        yield
    finally:
        context.scout.call_back()


def catalog_to_read(stack: contextlib.ExitStack, state_dir: Path) -> Catalog | None:
    """Return the catalog if there is one that can be used: a restore needs none, it saves requests."""
    try:
        if not (state_dir / "catalog.sqlite").exists():
            return None
        return stack.enter_context(Catalog.open(state_dir, to_read=True))
    except (BlobarkError, OSError):
        return None
