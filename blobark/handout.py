"""What every container carries for whoever finds it without Blobark: a README.txt, and a script that restores.

    blobark/README.txt          what this is, and what to do with it
    blobark/rescue_<hash>.py    container/rescue.py, by the first digits of its SHA-256

Both are written once and never again: a later version of the script has another name. A server's name has no `_`
and no capitals, so neither is in the way of one. They are left by the first save of a `state_dir`, and by the first
one of another version; a save that cannot leave them warns.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

from blobark.catalog import Catalog
from blobark.context import Context
from blobark.errors import BlobarkError, BlobExists, Interrupted
from blobark.snapshot import PREFIX
from blobark.stores.base import Store

README_KEY = f"{PREFIX}README.txt"
_KNOWN = "handout"
"""The name, in the catalog, of the version that is known to be in the store."""


@cache
def script() -> bytes:
    """Return the script."""
    return files("blobark").joinpath("container", "rescue.py").read_bytes()


@cache
def script_sha256() -> str:
    """Return the SHA-256 of the script, 64 hex digits."""
    return hashlib.sha256(script()).hexdigest()


def script_key() -> str:
    """Return the key of this version of the script."""
    return f"{PREFIX}rescue_{script_sha256()[:16]}.py"


def leave(context: Context, catalog: Catalog, store: Store) -> None:
    """Leave README.txt and script in the store, unless they are known to be there. A failure is a warning."""
    known = f"{script_sha256()} {store.name!a}"
    if catalog.get(_KNOWN) == known:
        return
    readme = files("blobark").joinpath("container", "README.txt").read_bytes()
    try:
        for key, data in ((README_KEY, readme), (script_key(), script())):
            try:
                store.put(key, data, {}, create_only=True)
            except BlobExists:
                pass
    except Interrupted:
        raise
    except BlobarkError as error:
        context.reporter.warn(f"README.txt and the rescue script could not be left in {store.name}: {error.message}")
        return
    catalog.set(handout=known)
    catalog.commit()
