"""The error tree and the exit codes: what went wrong, and what is to be done about it.

Every error that Blobark raises on purpose is a `BlobarkError`: one line that says what and where, and a `hint`
that says what to do. Three bins decide what happens next: a `Retryable` error is tried again by
`stores.retry` (and nowhere else), an `ItemError` fails one item and the run goes on, anything else stops the run.

All of them survive pickling: the arguments of each constructor are the arguments of `Exception`.

    BlobarkError
      ConfigError                the configuration, the command line or the map is wrong
      LockHeld                   another run holds the lock
      Interrupted                a person or the system asked the run to stop
      Fatal                      the run cannot go on
        LockLost                 another run has taken the lock of the server over
        RootRefused              a root is missing, empty or has shrunk
        SnapshotError            a snapshot cannot be used: damaged, not there
          SnapshotNewer          it needs a newer Blobark
        StoreDenied              the store refuses these credentials
          StoreLocked            the store lets nobody change this blob: a retention policy, or a lease
        StoreMissing             the container or folder is not there
        StoreFull                no space, or no quota, in the store
        StoreUnusable            the store cannot be reached, or keeps failing after all retries
        TargetFull               no space left where a restore writes
      ItemError                  this item failed: named, counted, exit code 3
        SourceError              a source file could not be read, vanished, or is not what it was
        TargetError              a file could not be written below restore_root
        ContentError             content is missing from the store, short, or has another digest
      StoreError                 an answer of the store about one key
        BlobNotFound
        BlobExists               a create-only write found something under that key
        BlobChanged              a conditional overwrite found another version of the blob, or none
        BlocksLost               blocks that were sent are not there when they are to become a blob
        Retryable                a timeout, 5xx, a broken connection, a short body
          Throttled              the store asks everybody to slow down: 429, 503
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_ITEMS_FAILED = 3
EXIT_FATAL = 4
EXIT_LOCKED = 5
EXIT_MISSED = 6
EXIT_DAMAGED = 7
EXIT_INTERRUPTED = 130


class BlobarkError(Exception):
    """An error with one line for a person and, where there is one, a hint of what to do.

    `message` and `hint` hold no secret: whoever raises it has removed them.
    """

    exit_code = EXIT_FATAL

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a run that `error` has ended."""
    if isinstance(error, BlobarkError):
        return error.exit_code
    if isinstance(error, GeneratorExit):  # what it lists cannot be written
        return EXIT_FATAL
    return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_BUG


class ConfigError(BlobarkError):
    """The configuration, the command line or the map is wrong; `message` may hold several lines, one a mistake."""

    exit_code = EXIT_USAGE


class LockHeld(BlobarkError):
    """Another run holds the lock of this state folder, or of this server in the store."""

    exit_code = EXIT_LOCKED


class Interrupted(BlobarkError):
    """The run was asked to stop (SIGINT, SIGTERM)."""

    exit_code = EXIT_INTERRUPTED

    def __init__(self, message: str = "interrupted", hint: str = "run it again to go on where it stopped") -> None:
        super().__init__(message, hint)


class Fatal(BlobarkError):
    """The run cannot go on."""


class LockLost(Fatal):
    """This run had the lock of the server in the store, and has it no longer: it may not publish."""


class RootRefused(Fatal):
    """A root is missing, empty, or has lost more than half its entries."""


class SnapshotError(Fatal):
    """A snapshot is not there, is damaged, or needs a newer Blobark."""


class SnapshotNewer(SnapshotError):
    """A snapshot needs a newer Blobark."""


class StoreDenied(Fatal):
    """The store refuses these credentials, or they lack a right."""


class StoreLocked(StoreDenied):
    """The store lets nobody change this blob."""


class StoreMissing(Fatal):
    """The container (or the store's folder) does not exist."""


class StoreFull(Fatal):
    """The store has no space left."""


class StoreUnusable(Fatal):
    """The store cannot be reached, or goes on failing after all retries."""


class TargetFull(Fatal):
    """No space is left where a restore writes."""


class ItemError(BlobarkError):
    """This item failed; the run goes on and ends with exit code 3."""

    exit_code = EXIT_ITEMS_FAILED


class SourceError(ItemError):
    """A source file could not be read, vanished, or changed its kind."""


class TargetError(ItemError):
    """An item could not be written below restore_root."""


class ContentError(ItemError):
    """Content is missing from the store, is short, has another digest than the snapshot says, or its disk lost it."""


class StoreError(BlobarkError):
    """An answer of the store about one key."""


class BlobNotFound(StoreError):
    """There is no blob under that key."""


class BlobExists(StoreError):
    """A create-only write found a blob under that key (perhaps one's own, after a lost answer)."""


class BlobChanged(StoreError):
    """A conditional overwrite found another version of the blob (perhaps one's own, after a lost answer), or none."""


class BlocksLost(StoreError):
    """The store has dropped blocks that an upload had sent."""


class Retryable(StoreError):
    """A passing failure. `retry_after_s` is what the store asked for, 0 where it did not say."""

    def __init__(self, message: str, hint: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message, hint)
        self.args = (message, hint, retry_after_s)
        self.retry_after_s = retry_after_s


class Throttled(Retryable):
    """The store asks for fewer requests: this call waits, and so do all others on the same store."""
