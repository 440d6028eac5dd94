"""What machine and process say of themselves: the numbers of one sample, and the facts of a run.

Counts of bytes and seconds are since the first reading, percentages since the reading before. Whatever cannot be read
is None, under the same name: platforms, containers and old kernels differ, and none of that is a run's business.
"""

from __future__ import annotations

import os
import platform
import resource
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import psutil

Fields = dict[str, float | None]
Value = TypeVar("Value")

_SECTOR_BYTES = 512
_LOOPBACK = ("lo", "lo0")


class Readings:
    """Reads everything at once, as often as asked. `watch_path` need not exist yet; None watches no disk."""

    def __init__(self, watch_path: str | os.PathLike[str] | None) -> None:
        self._mount = _Mount(watch_path)
        self._memory = _ProcessMemory()
        self._sources: list[tuple[tuple[str, ...], Callable[[], Fields]]] = [
            (("cpu_percent", "process_cpu_percent", "process_cpu_s"), _Cpu().read),
            (("memory_total_bytes", "memory_used_bytes", "memory_available_bytes"), _memory),
            (("process_rss_bytes", "process_peak_rss_bytes"), self._memory.read),
            (("disk_read_bytes", "disk_write_bytes"), _SinceStart(_disk).read),
            (("watched_disk_read_bytes", "watched_disk_write_bytes"), _SinceStart(self._mount.counts).read),
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
        """Return the most memory that this process has had in RAM since it started."""
        return self._memory.peak_bytes()

    def facts(self) -> dict[str, object]:
        """Return what does not change during a run: host, cores, memory, file system, kernel, Python."""
        return {
            "host": socket.gethostname(),
            "cores": os.cpu_count(),
            "memory_bytes": _attempt(lambda: psutil.virtual_memory().total, None),
            "file_system": self._mount.file_system,
            "device": self._mount.device,
            "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
            "python": platform.python_version(),
        }


class _ProcessMemory:
    """Memory of this process that is in RAM. The kernel's own peak is a little off now and then, and may even fall."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._peak_bytes = 0

    def read(self) -> Fields:
        rss_bytes = self._process.memory_info().rss
        self._peak_bytes = max(self._peak_bytes, rss_bytes)
        return {"process_rss_bytes": rss_bytes, "process_peak_rss_bytes": self.peak_bytes()}

    def peak_bytes(self) -> int:
        self._peak_bytes = max(self._peak_bytes, _kernels_peak_bytes())
        return self._peak_bytes


def _kernels_peak_bytes() -> int:
    try:
        # Not ru_maxrss, which begins with the size of the process that started this one.
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _SinceStart:
    """Turns counts since the machine's start into counts since the first reading."""

    def __init__(self, source: Callable[[], Mapping[str, float]]) -> None:
        self._source = source
        self._first: Mapping[str, float] = {}

    def read(self) -> Fields:
        now = self._source()
        self._first = self._first or now
        return {name: max(0, count - self._first[name]) for name, count in now.items()}


class _Cpu:
    """CPU time of machine and process."""

    def __init__(self) -> None:
        self._first_s = time.process_time()
        self._before: tuple[float, float, float, float] | None = None

    def read(self) -> Fields:
        times = psutil.cpu_times()._asdict()
        # A guest's time is part of `user` already; waiting for a disk is idle time.
        all_s = sum(times.values()) - times.get("guest", 0) - times.get("guest_nice", 0)
        idle_s = times["idle"] + times.get("iowait", 0)
        own_s = time.process_time()
        now = (time.monotonic(), all_s, all_s - idle_s, own_s)
        before, self._before = self._before, now
        fields: Fields = {"process_cpu_s": round(own_s - self._first_s, 3)}
        if before:
            wall, total, busy, own = (new - old for new, old in zip(now, before, strict=True))
            fields["cpu_percent"] = min(100.0, _percent(busy, total)) if total > 0 else None
            fields["process_cpu_percent"] = _percent(own, wall) if wall > 0 else None
        return fields


def _percent(part: float, whole: float) -> float:
    return round(max(0.0, 100 * part / whole), 1)


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
        """What anybody has read from and written to the device."""
        fields = _disk_line(self._number)
        return {
            "watched_disk_read_bytes": int(fields[5]) * _SECTOR_BYTES,
            "watched_disk_write_bytes": int(fields[9]) * _SECTOR_BYTES,
        }

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
