"""What monitoring is told of a command: what came of it, and how long it took; a backup has two in it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from blobark.clock import now_ns


@dataclass(slots=True)
class Step:
    """A command that has ended with a result or an error, or is still under way (`ended_ns` 0)."""

    command: str
    result: object = None
    error: BaseException | None = None
    seconds: float = 0.0
    ended_ns: int = 0


@contextlib.contextmanager
def step(steps: list[Step], command: str) -> Iterator[Step]:
    """Add the block to the steps; its `result` is to be set where there is one."""
    this = Step(command)
    steps.append(this)
    started_s = time.monotonic()
    try:
        yield this
    except BaseException as error:
        this.error = error
        raise
    finally:
        this.seconds, this.ended_ns = time.monotonic() - started_s, now_ns()
