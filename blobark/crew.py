"""A crew: processes of our own that share a run's work, where its Python part would keep one processor busy.

One interpreter runs one thread at a time, and threads that make many short calls mostly fight for their turn. Two
processes restore 50,000 small files in 0.6 of the time that two threads need (docs/measurements.md).

    hire     before this process has a second thread: fork; the members wait, and cost nothing until there is work
    run      each member gets the task, then jobs as it takes them, and sends an outcome for each
    dismiss  the members end; whatever happens to this process, they end with it

Members run the jobs on an `Engine` of their own, with their share of the workers and of the memory (member.py). Errors
that stop a run come back as what they are.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import msgspec

from blobark.engine import Engine, grouped
from blobark.errors import Interrupted
from blobark.forks import death, has_one_thread, take_frame
from blobark.member import (
    RECEIVE_BYTES,
    SAME,
    HasEntry,
    Makers,
    Report,
    Server,
    frame,
    serve_and_exit,
)
from blobark.model import Outcome
from blobark.segments import decode_entry

Job = TypeVar("Job", bound=HasEntry)

MOST_MEMBERS = 8
CHUNK_JOBS = 64
LEAST_WAITING_JOBS = 1024
WAITING_JOBS_A_WORKER = 16
"""How many jobs a member may have that it has not answered, so that none runs out of work while it is fed."""
BUNDLE_WEIGHT = 512
"""A bundle counts as so many jobs, however many it has: members hold few, and none waits for a whole one."""
LEAST_MEMBER_BYTES = 64 * 1024 * 1024
"""What a member needs for the content that it has in flight."""
FAREWELL_S = 3.0
"""Longer than a member's engine waits for threads that hang."""


class Crew:
    """Members that wait for tasks; none until `hire`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._members: list[_Member[Any]] = []

    def hire(self, makers: Makers, counters: Callable[[], dict[str, int]]) -> None:
        """Fork a member a processor, as far as the engine has workers and memory for; none where that is one.

        `makers` has for each kind of task the type of its jobs, and what makes its work in a member; `counters` tells
        a member's own numbers. A process that has threads is not forked: they would be missing in its members.
        """
        engine = self._engine
        wanted = min(os.cpu_count() or 1, engine.workers, engine.max_bytes // LEAST_MEMBER_BYTES, MOST_MEMBERS)
        if wanted < 2 or not has_one_thread():
            return
        gc.freeze()  # what is loaded stays: no member's collector writes to it, which would copy it
        workers, max_bytes = engine.workers // wanted, engine.max_bytes // wanted
        for number in range(wanted):
            try:
                ours, theirs, pid = _fork()
            except OSError:  # there may be no more processes: this one does it by itself
                self.dismiss()
                return
            if pid == 0:
                for end in (ours, *(member.socket for member in self._members)):
                    end.close()
                engine.stages.share(number + 1, wanted + 1)
                share = Engine(workers, max_bytes, engine.stop, auto=engine.auto, first=1, stages=engine.stages)
                serve_and_exit(Server(theirs, share, makers, counters))
            theirs.close()
            self._members.append(
                _Member(pid, ours, max(LEAST_WAITING_JOBS, WAITING_JOBS_A_WORKER * workers), max_bytes)
            )
        engine.stages.share(0, wanted + 1)

    def __len__(self) -> int:
        """How many there are to share the work with."""
        return len(self._members)

    @property
    def pids(self) -> list[int]:
        """The members' process numbers."""
        return [member.pid for member in self._members]

    @property
    def in_flight(self) -> int:
        """Jobs that members have and whose outcomes have not come back."""
        return sum(len(member.jobs) for member in self._members)

    def counters(self) -> dict[str, int]:
        """Return the sums of the members' counters."""
        total: dict[str, int] = {}
        for member in self._members:
            for name, value in member.counters.items():
                total[name] = total.get(name, 0) + value
        return total

    def run(
        self,
        task: msgspec.Struct,
        jobs: Iterable[Job],
        *,
        cost: Callable[[Job], int],
        descriptors: tuple[int, ...] = (),
    ) -> Iterator[tuple[Job, Outcome]]:
        """Yield each job with its outcome, in no order: `Engine.run`, in the members.

        Raises:
            BlobarkError: what stopped a member; a `Fatal` one when it was killed. The crew is of no use afterwards.
        """
        chunks = grouped(jobs, cost, lambda: CHUNK_JOBS, bundle_of)
        chunk = next(chunks, None)
        if chunk is None:
            return
        for member in self._members:
            member.begin(task, descriptors)
        with selectors.DefaultSelector() as selector:
            for member in self._members:
                selector.register(member.socket, selectors.EVENT_READ, member)
            while chunk is not None or any(member.jobs or member.unsent for member in self._members):
                while chunk is not None and (free := self._freest()) is not None:
                    free.send_jobs(*chunk)
                    chunk = next(chunks, None)
                    if chunk is None:
                        self._end_task()
                if self._engine.stop.is_set():
                    raise Interrupted()
                yield from self._exchange(selector)

    def dismiss(self) -> None:
        """Let the members go: at once those that have nothing to do, the others within three seconds."""
        members, self._members = self._members, []
        for member in members:
            member.socket.close()
            if member.jobs:
                member.signal(signal.SIGTERM)
        until_s = time.monotonic() + FAREWELL_S
        for member in members:
            member.wait(until_s)

    def _end_task(self) -> None:
        for member in self._members:
            member.end()

    def _exchange(self, selector: selectors.BaseSelector) -> Iterator[tuple[Any, Outcome]]:
        """Wait until a member takes or gives something; yield what it gives."""
        for member in self._members:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if member.unsent else 0)
            selector.modify(member.socket, wanted, member)
        for key, events in selector.select(0.5):
            if events & selectors.EVENT_WRITE:
                key.data.flush()
            if events & selectors.EVENT_READ:
                yield from key.data.receive()

    def _freest(self) -> _Member[Any] | None:
        """Return the member with the least to do, None when all have enough."""
        hungry = [member for member in self._members if member.is_hungry]
        return min(hungry, key=lambda member: (member.bytes, len(member.jobs)), default=None)


class _Member(Generic[Job]):
    """This process's end of one member."""

    def __init__(self, pid: int, end: socket.socket, most_jobs: int, most_bytes: int) -> None:
        self.pid = pid
        self._most_weight = most_jobs
        self._most_bytes = most_bytes
        self.socket = end
        self.jobs: dict[int, tuple[Job, int, int]] = {}
        """What has not been answered, by its number: job, cost and weight."""
        self.bytes = 0
        self._weight = 0
        self.unsent = b""
        self.counters: dict[str, int] = {}
        self._received = bytearray()
        self._number = 0
        self._decoder = msgspec.json.Decoder(Report)

    @property
    def is_hungry(self) -> bool:
        """Whether it would take more jobs. What it may hold in memory its own engine sees to."""
        return self._weight < self._most_weight and self.bytes < 2 * self._most_bytes and not self.unsent

    def begin(self, task: msgspec.Struct, descriptors: tuple[int, ...]) -> None:
        """Send the task and the descriptors that it needs; the member is idle, so there is room for it."""
        self.socket.setblocking(True)
        try:
            self.socket.sendall(frame([type(task).__name__, len(descriptors), task]))
            if descriptors:
                socket.send_fds(self.socket, [b"\0"], descriptors)
        except OSError:
            raise death() from None
        self.socket.setblocking(False)

    def send_jobs(self, jobs: list[Job], costs: list[int]) -> None:
        """Give it a chunk of jobs: a bundle, or some without."""
        numbered = []
        bundled = jobs[0].bundle != ""
        for place, (job, cost) in enumerate(zip(jobs, costs, strict=True)):
            self._number += 1
            weight = 1 if not bundled else 0 if place else BUNDLE_WEIGHT
            self.jobs[self._number] = job, cost, weight
            self._weight += weight
            numbered.append((self._number, cost, job))
        self.bytes += sum(costs)
        self.unsent = frame(numbered)
        self.flush()

    def end(self) -> None:
        """Tell it that there are no more jobs for this task, so that it waits for none."""
        self.unsent += frame(None)
        self.flush()

    def flush(self) -> None:
        """Send what it takes just now. Where it has ended, what it said last is still to be received, and tells why."""
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.unsent = b""

    def receive(self) -> Iterator[tuple[Job, Outcome]]:
        """Yield what it has answered so far."""
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise death()
        self._received += data
        while (body := take_frame(self._received)) is not None:
            report = self._decoder.decode(body)
            self.counters = report.counters
            for answer in report.answers:
                job, cost, weight = self.jobs.pop(answer.number)
                self.bytes -= cost
                self._weight -= weight
                line = b"" if answer.line == SAME else bytes(answer.line)
                entry = decode_entry(line) if line else job.entry
                how = answer.status, answer.bytes, answer.reason, answer.sent, answer.is_equal
                yield job, Outcome(answer.sequence, entry, *how, answer.took_ns, answer.retries, line)
            if not self.jobs:  # what still waits in its queue are words to its threads
                self.counters["queued_batches"] = 0
            if report.failure is not None:
                raise report.failure.raised()

    def signal(self, number: int) -> None:
        """Send it a signal, if it still lives."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, until_s: float) -> None:
        """Return when it has ended; kill it when its time is over."""
        while not self._reaped(os.WNOHANG):
            if time.monotonic() >= until_s:
                self.signal(signal.SIGKILL)
                self._reaped(0)
                return
            time.sleep(0.002)

    def _reaped(self, options: int) -> bool:
        try:
            return os.waitpid(self.pid, options)[0] == self.pid
        except ChildProcessError:
            return True


def bundle_of(job: HasEntry) -> str:
    """Return what `Engine.run` needs to keep the jobs of a bundle together, too."""
    return job.bundle


def _fork() -> tuple[socket.socket, socket.socket, int]:
    """Return both ends of a new pair, and what `fork` says."""
    ours, theirs = socket.socketpair()
    try:
        return ours, theirs, os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
