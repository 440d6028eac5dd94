"""A member of a crew: a fork that takes tasks and jobs through a socket, and answers with how the jobs ended.

    task     what is the same for all jobs, with the descriptors it needs
    jobs     in chunks, until there are no more; each chunk is worked on without waiting for the next
    answers  a batch of them as soon as its work has ended, from the thread that did it

Frames are a length and JSON, which holds whatever a manifest may say. Nothing of the parent's runs in a member
but this, and a member ends with its parent, however that ends.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn, Protocol

import msgspec

from blobark.engine import Batch, Engine, Work
from blobark.forks import LENGTH_BYTES, Failure, framed, length_of
from blobark.model import Entry, Outcome, Sent, Status
from blobark.orphans import end_with_parent
from blobark.segments import encode_entry

RECEIVE_BYTES = 256 * 1024

SAME = msgspec.Raw(b"null")
"""In place of an entry that is the job's own."""


class ParentGone(Exception):
    """The other end of the socket is closed."""


class HasEntry(Protocol):
    """What a job is: something to do with an entry."""

    @property
    def entry(self) -> Entry:
        """The entry as the plan has it."""

    @property
    def bundle(self) -> str:
        """What jobs that are done together have in common; "" for one that is done for itself."""


Maker = Callable[[Any, list[int], Engine], Work[Any, Outcome]]
"""Makes the work of a task in a member, from the task, the descriptors that came with it, and the member's engine."""
Makers = dict[type[msgspec.Struct], tuple[Any, Maker]]
"""For each kind of task the type of its jobs, and what makes its work."""


_Numbered = tuple[int, int, Any]
"""A job with its number and its cost."""


class Answer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a job ended: an `Outcome`, by the number of its job; `line`, its entry's, is null where that is the job's."""

    number: int
    sequence: int
    line: msgspec.Raw
    status: Status
    bytes: int
    reason: str
    sent: Sent | None
    is_equal: bool
    took_ns: int
    retries: int


class Report(msgspec.Struct, frozen=True):
    """What a member sends: answers, its counters so far, and perhaps what stopped it."""

    answers: list[Answer]
    counters: dict[str, int]
    failure: Failure | None = None


def serve_and_exit(server: Server) -> NoReturn:
    """Be a member: nothing of the parent's comes after this, whatever happens."""
    end_with_parent(signal.SIGKILL)
    try:
        server.serve()
    except ParentGone:
        pass  # and nobody is left to tell
    finally:
        os._exit(0)


class Server:
    """A member's end: takes tasks and jobs, answers with outcomes."""

    def __init__(
        self, end: socket.socket, engine: Engine, makers: Makers, counters: Callable[[], dict[str, int]]
    ) -> None:
        self._end = end
        self._engine = engine
        self._makers = {task.__name__: (task, job, maker) for task, (job, maker) in makers.items()}
        self._stores_counters = counters
        self._sending = threading.Lock()
        self._made: tuple[msgspec.Struct, Work[Any, Outcome]] | None = None
        """The last task and its work: the rounds of a save have the same."""

    def serve(self) -> None:
        """Work on one task after the other. Raises `ParentGone`; returns when an error has ended the run."""
        failure = None
        while failure is None:
            try:
                self._task()
            except ParentGone:
                raise
            except Exception as error:  # noqa: BLE001 - the parent raises it again
                failure = Failure.of(error)
        self._send(Report([], self._counters(), failure))

    def _task(self) -> None:
        name, descriptors, raw = msgspec.json.decode(self._frame(), type=tuple[str, int, msgspec.Raw])
        task_type, job_type, maker = self._makers[name]
        task = msgspec.json.decode(raw, type=task_type)
        fds = list(socket.recv_fds(self._end, 1, descriptors)[1]) if descriptors else []
        if self._made is None or self._made[0] != task:
            self._made = task, maker(task, fds, self._engine)
        for _ in self._engine.run_batches(self._batches(job_type), partial(self._answered, self._made[1])):
            pass

    def _batches(self, job_type: Any) -> Iterator[Batch[_Numbered]]:
        """Yield the jobs as they come. No batch waits for a chunk that the parent may send only after an answer."""
        decoder = msgspec.json.Decoder(list[tuple[int, int, job_type]] | None)
        while (chunk := decoder.decode(self._frame())) is not None:
            yield from self._engine.batched(chunk, lambda numbered: numbered[1], lambda numbered: numbered[2].bundle)

    def _answered(self, work: Work[Any, Outcome], batch: list[_Numbered]) -> list[None]:
        try:
            outcomes = work([job for _, _, job in batch])
        except Exception as error:  # told at once: `serve` may wait for jobs, and the parent for these
            self._send(Report([], self._counters(), Failure.of(error)))
            raise
        answers = [_answer(number, job, outcome) for (number, _, job), outcome in zip(batch, outcomes, strict=True)]
        self._send(Report(answers, self._counters()))
        return [None] * len(batch)

    def _send(self, report: Report) -> None:
        try:
            with self._sending:
                self._end.sendall(frame(report))
        except OSError:
            raise ParentGone from None

    def _counters(self) -> dict[str, int]:
        engine = self._engine
        return {**self._stores_counters(), "workers": engine.pace.workers, "queued_batches": engine.queue.qsize()}

    def _frame(self) -> bytes:
        return self._exactly(length_of(self._exactly(LENGTH_BYTES)))

    def _exactly(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            try:
                data = self._end.recv(min(size - len(received), RECEIVE_BYTES))
            except OSError:
                data = b""
            if not data:
                raise ParentGone
            received += data
        return bytes(received)


def _answer(number: int, job: HasEntry, outcome: Outcome) -> Answer:
    line = SAME if outcome.entry is job.entry else msgspec.Raw(outcome.line or encode_entry(outcome.entry))
    how = outcome.status, outcome.bytes, outcome.reason, outcome.sent, outcome.is_equal
    return Answer(number, outcome.sequence, line, *how, outcome.took_ns, outcome.retries)


def frame(value: Any) -> bytes:
    """Return a value as a frame."""
    return framed(msgspec.json.encode(value))
