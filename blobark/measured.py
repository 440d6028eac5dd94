"""A run that is measured: the sampler with what it has to know of a save or a restore, and what the log ends with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blobark import __version__
from blobark.context import Context

if TYPE_CHECKING:
    from metrics.sampler import Sampler

MOST_FAILURES = 100
"""So many failed items are named in a run log."""

SETTINGS = (
    "max_memory_bytes",
    "max_bandwidth",
    "max_requests_per_s",
    "part_bytes",
    "timeout_s",
    "access_tier",
    "delta",
    "pack_below_bytes",
    "dedupe",
    "compression",
    "change_detection",
    "upload_check",
)


def sampler(context: Context, kind: str, log: Path, watch_path: str | os.PathLike[str], **facts: object) -> Sampler:
    """Return a sampler that writes `log` and looks at the disk of `watch_path`. The crew is hired already."""
    from metrics.sampler import Sampler  # late: psutil takes 30 ms, and an index samples nothing

    config = context.config
    settings: dict[str, object] = {"max_workers": config.max_workers or "auto"}
    settings |= {name: getattr(config, name) for name in SETTINGS}
    run = {
        "kind": kind,
        "version": __version__,
        "store": "azure" if config.store == "azure" else "folder",
        **facts,
        "members": len(context.crew),
        "settings": settings,
    }
    sampler = Sampler(
        log,
        run=run,
        counters=context.counters,
        stages=context.engine.stages,
        interval_s=config.metrics_interval_s,
        watch_path=watch_path,
        members=lambda: context.crew.pids,
    )
    context.reporter.watch(sampler.recent)
    return sampler


def finish(context: Context, sampler: Sampler, summary: Mapping[str, Any], failed: list[tuple[str, str]]) -> None:
    """End the log with the summary and what failed; warn where it could not be written."""
    context.reporter.watch(None)
    failures = [list(pair) for pair in failed[:MOST_FAILURES]]
    for warning in sampler.finish({**summary, "failed": len(failed), "failures": failures}):
        context.reporter.warn(f"metrics: {warning}")
