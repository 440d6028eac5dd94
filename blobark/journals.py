"""A run with its journal: what becomes of each item is written down while it lasts, and how it ended at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from blobark.clock import now_ns, utc
from blobark.context import Context
from blobark.errors import EXIT_BUG, EXIT_DONE, EXIT_ITEMS_FAILED, BlobarkError, exit_code_of
from blobark.itemlog import End, ItemLog
from blobark.model import printable


@dataclass(slots=True)
class Ending:
    """What the last line is to say, of a run that no error ended."""

    snapshot: int = 0
    failed: Sequence[tuple[str, str]] = field(default_factory=list)


@contextlib.contextmanager
def journaled(context: Context, command: str, *, dry_run: bool) -> Iterator[tuple[Context, Ending]]:
    """Yield the run's context with a journal, which begins with `ItemLog.begin`, and what its end is to say."""
    keep = 0 if dry_run else context.config.journals
    items = ItemLog(context.config.journals_in, command, keep, context.reporter.warn)
    ending = Ending()
    try:
        yield replace(context, items=items), ending
    except BaseException as error:
        code = exit_code_of(error)
        text = error.message if isinstance(error, BlobarkError) else "a bug" if code == EXIT_BUG else "interrupted"
        items.end(End(utc(now_ns()), code, printable(text)))
        raise
    code = EXIT_ITEMS_FAILED if ending.failed else EXIT_DONE
    items.end(End(utc(now_ns()), code, "", ending.snapshot, len(ending.failed)))
