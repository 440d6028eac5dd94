"""What machine and process say of themselves: the numbers of one sample, and the facts of a run.

Counts of bytes and seconds are since the first reading, percentages since the reading before. Whatever cannot be read
is None, under the same name: platforms, containers and old kernels differ, and none of that is a run's business.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import psutil

from metrics.processes import PROCESS_FIELDS, Processes, percent

Fields = dict[str, Any]
Value = TypeVar("Value")

_SECTOR_BYTES = 512
_WATCHED = {
    "watched_disk_read_bytes": (5, _SECTOR_BYTES),
    "watched_disk_write_bytes": (9, _SECTOR_BYTES),
    "watched_disk_read_ops": (3, 1),
    "watched_disk_write_ops": (7, 1),
    "watched_disk_busy_s": (12, 0.001),
}
"""Where /proc/diskstats has them, and in what units."""
_LOOPBACK = ("lo", "lo0")


class Readings:
    """Reads everything at once, as often as asked.

    `watch_path` need not exist yet; None watches no disk. `members` tells which other processes are part of the run.
    """

    def __init__(
        self, watch_path: str | os.PathLike[str] | None, members: Callable[[], Iterable[int]] = lambda: ()
    ) -> None:
        self._mount = _Mount(watch_path)
        self._processes = Processes(members)
        self._sources: list[tuple[tuple[str, ...], Callable[[], Fields]]] = [
            (("cpu_percent", "cpu_percents", "iowait_percent"), _Cpu().read),
            (("memory_total_bytes", "memory_used_bytes", "memory_available_bytes"), _memory),
            (PROCESS_FIELDS, self._processes.read),
            (("disk_read_bytes", "disk_write_bytes"), _SinceStart(_disk).read),
            (tuple(_WATCHED), _SinceStart(self._mount.counts).read),
            (("network_in_bytes", "network_out_bytes", "loopback_bytes"), _SinceStart(_network).read),
        ]

    def read(self) -> Fields:
        """Return the numbers of this moment: the same names each time, None where one could not be read."""
        fields: Fields = {}
        for names, source in self._sources:
            gap: Fields = dict.fromkeys(names)
            fields.update(gap | _attempt(source, gap))
        return fields

    def peak_rss_bytes(self) -> int:
        """Return the most memory that the run's processes were seen to have in RAM, together."""
        return self._processes.peak_bytes()

    def facts(self) -> dict[str, object]:
        """Return what does not change during a run: host, cores, memory, file system, kernel, Python."""
        return {
            "host": socket.gethostname(),
            "cores": os.cpu_count(),
            "usable_cores": _attempt(lambda: len(os.sched_getaffinity(0)), os.cpu_count()),
            "memory_bytes": _attempt(lambda: psutil.virtual_memory().total, None),
            "file_system": self._mount.file_system,
            "device": self._mount.device,
            "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
            "python": platform.python_version(),
        }


class _SinceStart:
    """Turns counts since the machine's start into counts since the first reading."""

    def __init__(self, source: Callable[[], Mapping[str, float]]) -> None:
        self._source = source
        self._first: Mapping[str, float] = {}

    def read(self) -> Fields:
        now = self._source()
        self._first = self._first or now
        return {name: round(max(0, count - self._first[name]), 3) for name, count in now.items()}


class _Cpu:
    """CPU time of the machine, and of each core."""

    def __init__(self) -> None:
        self._before: list[tuple[float, float, float]] = []

    def read(self) -> Fields:
        cores = [_core_times(times) for times in psutil.cpu_times(percpu=True)]
        before, self._before = self._before, cores
        if len(before) != len(cores):
            return {}
        passed = [tuple(map(float.__sub__, new, old)) for new, old in zip(cores, before, strict=True)]
        all_s, busy_s, iowait_s = (sum(column) for column in zip(*passed, strict=True))
        return {
            "cpu_percent": percent(busy_s, all_s),
            "cpu_percents": [percent(busy, total) for total, busy, _ in passed],
            "iowait_percent": percent(iowait_s, all_s),
        }


def _core_times(times: Any) -> tuple[float, float, float]:
    """Return the seconds of a core since it started: all, busy, waiting for a disk."""
    named = times._asdict()
    # A guest's time is part of `user` already; waiting for a disk is idle time.
    all_s = sum(named.values()) - named.get("guest", 0) - named.get("guest_nice", 0)
    iowait_s = named.get("iowait", 0.0)
    return all_s, all_s - named["idle"] - iowait_s, iowait_s


def _memory() -> Fields:
    memory = psutil.virtual_memory()
    return {
        "memory_total_bytes": memory.total,
        "memory_used_bytes": memory.used,
        "memory_available_bytes": memory.available,
    }


def _disk() -> Mapping[str, float]:
    counts = psutil.disk_io_counters()
    if counts is None:
        raise OSError("no disk has counters")
    return {"disk_read_bytes": counts.read_bytes, "disk_write_bytes": counts.write_bytes}


def _network() -> Mapping[str, float]:
    cards = psutil.net_io_counters(pernic=True)
    others = [counts for name, counts in cards.items() if name not in _LOOPBACK]
    return {
        "network_in_bytes": sum(counts.bytes_recv for counts in others),
        "network_out_bytes": sum(counts.bytes_sent for counts in others),
        "loopback_bytes": sum(counts.bytes_recv for name, counts in cards.items() if name in _LOOPBACK),
    }


class _Mount:
    """The mount that a path, or its nearest parent that exists, lies on; "" where nothing tells."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.file_system = ""
        self.device = ""
        self._number = b""
        if path is not None:
            _attempt(lambda: self._find(os.path.realpath(path)), None)

    def counts(self) -> Mapping[str, float]:
        """What anybody has done with the device."""
        fields = _disk_line(self._number)
        return {name: int(fields[place]) * unit for name, (place, unit) in _WATCHED.items()}

    def _find(self, path: str) -> None:
        while not os.path.lexists(path):
            path = os.path.dirname(path)
        mounts = [mount for mount in psutil.disk_partitions(all=True) if _is_below(path, mount.mountpoint)]
        # Of equally long ones the last, which was mounted over the others.
        mount = max(reversed(mounts), key=lambda mount: len(mount.mountpoint))
        self.file_system = mount.fstype
        # Behind btrfs and its like a file's own device number is no disk's: then it is the mount's device.
        self._number = _number(os.stat(path).st_dev)
        if not _disk_line(self._number) and mount.device.startswith("/"):
            self._number = _number(os.stat(mount.device).st_rdev)
        self.device = _disk_line(self._number)[2].decode()


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def _number(device: int) -> bytes:
    return f"{os.major(device)} {os.minor(device)}".encode()


def _disk_line(number: bytes) -> list[bytes]:
    """Return the line of /proc/diskstats for "major minor", split; [] where there is none."""
    with open("/proc/diskstats", "rb") as lines:
        for line in lines:
            fields = line.split()
            if b" ".join(fields[:2]) == number:
                return fields
    return []


def _attempt(read: Callable[[], Value], otherwise: Value) -> Value:
    """Return `read()`, or `otherwise` where it fails: /proc and psutil raise what they please, and it all is a gap."""
    try:
        return read()
    except Exception:  # noqa: BLE001 - see above
        return otherwise
