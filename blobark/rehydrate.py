"""Content in the archive tier: found before a restore writes anything, asked for in waves, restored as it comes back.

    find     list the archived blobs; where there are none, that is all
             else look which items of the restore need one: what is right already needs nothing
    ask      for so many blobs that a bounded number is on its way: before anything is restored, since it takes hours
    waves    ask for more, where there are more
             wait; list again: what is archived no more can be read, and what waited for it is yielded
             until nothing waits

What is on its way already is not asked for again: the listing tells, so it does not matter who asked, or when.
The listing is the one certain way to know: rules of the account move blobs to the archive behind everybody's back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import msgspec

from blobark.context import Context
from blobark.errors import BlobNotFound, Fatal, Interrupted, StoreDenied
from blobark.extents import blobs_of
from blobark.fetch import RestoreJob
from blobark.model import Outcome, Status
from blobark.scratch import Waiting
from blobark.stores.base import Priority, Store
from blobark.wording import counted

MOST_COMING = 100_000
"""How many blobs are on their way at most."""

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 300.0

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(RestoreJob)


class Archive:
    """The archived content that one restore needs."""

    def __init__(self, context: Context, store: Store, server: str, waiting: Waiting) -> None:
        self._context = context
        self._store = store
        self._server = server
        self._waiting = waiting
        self._prefix = ""
        self.needed = 0, 0
        """How many items that are to be restored are archived, and their bytes."""

    @classmethod
    @contextlib.contextmanager
    def open(cls, context: Context, store: Store, server: str) -> Iterator[Archive]:
        """Open one that knows of nothing yet."""
        with Waiting.open() as waiting:
            yield cls(context, store, server, waiting)

    def find(self, prefix: str) -> bool:
        """Whether any blob whose key starts with `prefix` is archived. Credentials that may not list are told so."""
        self._prefix = prefix
        try:
            rows = ((info.key, info.size_bytes, info.rehydrating) for info in self._store.archived(prefix))
            return self._waiting.add_blobs(rows) > 0
        except StoreDenied as error:
            self._context.reporter.warn(f"whether content is archived cannot be seen ({error.message})")
            return False

    def hold(self, jobs: Iterable[RestoreJob], look: Callable[[list[RestoreJob]], list[Outcome]]) -> None:
        """Find the jobs that need an archived blob, and hold them back.

        `look` says what would become of a job (a dry run): one that is right already, or is left alone, needs nothing.
        """
        affected = (job for job in jobs if self._archived(job))
        for job, outcome in self._context.engine.run(affected, look):
            if outcome.status is Status.DONE and outcome.entry.content_size:
                self._waiting.add_job(job.path, _encode(job), outcome.entry.size, self._archived(job))
        self.needed = self._waiting.jobs()

    @property
    def is_needed(self) -> bool:
        """Whether anything that is to be restored is archived."""
        return self.needed[0] > 0

    def holds(self, path: bytes) -> bool:
        """Whether the job of this path waits for a blob."""
        return self.is_needed and self._waiting.has_job(path)

    @property
    def blobs(self) -> int:
        """How many blobs would have to be asked for: those on their way are none of them."""
        return self._waiting.not_coming()

    def refusal(self) -> Fatal:
        """Return what stops a restore that needs archived content and was not told to bring it back."""
        count, size_bytes = self._waiting.jobs()
        coming = self._waiting.coming()
        also = f", {coming:,} of them on their way back" if coming else ""
        return Fatal(
            f"in the archive tier: {counted(count, 'item')} to be restored ({size_bytes:,} bytes){also}; "
            "nothing was written",
            "say --rehydrate standard (it takes up to 15 hours) or --rehydrate high (faster, and dearer)",
        )

    def ask(self, priority: Priority, most: int = MOST_COMING) -> None:
        """Ask for blobs that jobs wait for, until `most` are on their way. Raises `StoreDenied`: it takes a right."""

        def bring(keys: list[str]) -> list[None]:
            for key in keys:
                with contextlib.suppress(BlobNotFound):  # the restore of its item will say so
                    self._store.rehydrate(key, priority)
            return [None] * len(keys)

        keys = self._waiting.next_to_ask(max(0, most - self._waiting.coming()))
        for _ in self._context.engine.run(keys, bring):
            pass

    def waves(
        self, priority: Priority, *, most: int = MOST_COMING, first_wait_s: float = FIRST_WAIT_S
    ) -> Iterator[Iterator[RestoreJob]]:
        """Bring the blobs back, at most `most` at a time; yield again and again the jobs that can be done now."""
        reporter = self._context.reporter
        reporter.begin("rehydrate", *self.needed)
        wait_s = first_wait_s
        while self._waiting.jobs()[0]:
            self.ask(priority, most)
            if self._context.engine.stop.wait(wait_s):
                raise Interrupted("interrupted; what was asked for goes on coming back")
            wait_s = min(LONGEST_WAIT_S, 2 * wait_s)
            self._waiting.refresh((info.key, info.rehydrating) for info in self._store.archived(self._prefix))
            yield map(_decoder.decode, self._waiting.take_ready())
            reporter.advance(0, 0)

    def _archived(self, job: RestoreJob) -> list[str]:
        entry = job.entry
        if entry.kind != "file" or entry.hardlink_to_any or not (job.is_mapped or entry.content_size):
            return []
        return self._waiting.archived(blobs_of(self._server, entry))


def common_prefix(server: str, jobs: Iterable[RestoreJob]) -> str:
    """Return what the keys of all content that a map names begin with."""
    prefix: str | None = None
    for job in jobs:
        for key in blobs_of(server, job.entry) if job.entry.kind == "file" else ():
            prefix = key if prefix is None else prefix
            while not key.startswith(prefix):
                prefix = prefix[:-1]
    return prefix or ""
