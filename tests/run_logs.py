"""Run logs as a sampler would write them, of runs that never were: for what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metrics.stages import STAGES

Document = dict[str, Any]


def document(seconds: int = 20, *, stages: dict[str, float] | None = None, **summary: Any) -> Document:
    """Return a log of a restore of 100 files and 10 MB a second; `stages` are seconds of threads in each second."""
    spent = {**dict.fromkeys(STAGES, 0.0), **(stages or {"request": 1.0, "write": 0.5, "metadata": 0.25})}
    samples = [
        {
            "t_s": float(second),
            "time": f"2026-11-21T10:00:{second % 60:02}.000Z",
            "cpu_percent": None if second == 0 else 40.0,
            "cpu_percents": [30.0, 50.0],
            "iowait_percent": 2.0,
            "processes": 1,
            "process_cpu_percent": None if second == 0 else 20.0,
            "process_cpu_s": 0.2 * second,
            "process_queued_s": 0.0,
            "memory_used_bytes": 2_000_000_000,
            "process_rss_bytes": 90_000_000,
            "process_threads": 8,
            "process_open_files": 20,
            "disk_read_bytes": 0,
            "disk_write_bytes": 5_000_000 * second,
            "watched_disk_read_bytes": 0,
            "watched_disk_write_bytes": 5_000_000 * second,
            "watched_disk_read_ops": 0,
            "watched_disk_write_ops": 50 * second,
            "watched_disk_busy_s": 0.1 * second,
            "network_in_bytes": 11_000_000 * second,
            "network_out_bytes": 100_000 * second,
            "loopback_bytes": 0,
            "requests": 100 * second,
            "moved_bytes": 10_000_000 * second,
            "stages_s": {name: share * second for name, share in spent.items()},
            "counters": {
                "files": 100 * second,
                "bytes": 10_000_000 * second,
                "failed": 0,
                "in_flight": 16,
                "workers": 8,
            },
        }
        for second in range(seconds + 1)
    ]
    histograms = {
        name: {"count": 100 * seconds, "seconds": share * seconds, "buckets": [[share / 100 * 1.1, 100 * seconds]]}
        for name, share in spent.items()
        if share
    }
    facts = {"kind": "restore", "version": "1", "store": "azure", "server": "web1", "snapshot": 3, "members": 0}
    machine = {"host": "web1", "cores": 2, "memory_bytes": 8 << 30, "file_system": "ext4", "device": "vda"}
    return {
        "format": 2,
        "run": {**facts, **machine, "started": samples[0]["time"], "settings": {"max_workers": "auto"}},
        "samples": samples,
        "stages": histograms,
        "summary": {
            "elapsed_s": float(seconds),
            "files": 100 * seconds,
            "written": 100 * seconds,
            "written_bytes": 10_000_000 * seconds,
            "failed": 0,
            "failures": [],
            "sizes": [[1024, 50 * seconds, 0.5 * seconds], [1 << 20, 50 * seconds, 1.2 * seconds]],
            **summary,
        },
    }


def write(path: Path, log: Document) -> Path:
    path.write_text(json.dumps(log))
    return path
