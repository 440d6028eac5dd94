"""The sampler and its run log: valid JSON at every moment, true numbers, and no harm to the run it measures."""

from __future__ import annotations

import itertools
import json
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from metrics.runlog import RunLog
from metrics.sampler import Sampler
from metrics.stages import Stages

ROOT = Path(__file__).parents[1]

SINCE_START = [
    "t_s",
    "process_cpu_s",
    "process_peak_rss_bytes",
    "disk_read_bytes",
    "disk_write_bytes",
    "network_in_bytes",
    "network_out_bytes",
    "loopback_bytes",
    "requests",
]

# Samples as fast as it can and writes a dot for each one, until it is killed or its input ends.
CHILD = """
import sys
from metrics.sampler import Sampler
from metrics.stages import Stages
taken = 0
def counters():
    global taken
    taken += 1
    sys.stdout.write(".")
    sys.stdout.flush()
    return {"files": taken}
with Sampler(sys.argv[1], run={"kind": "restore"}, counters=counters, stages=Stages(2), interval_s=0.0005) as sampler:
    sys.stdin.read()
    sampler.finish({"files": taken})
"""


def load(path: Path) -> Any:
    return json.loads(path.read_bytes())


class Ticks:
    """A `counters` that lets a test wait until so many samples were taken."""

    def __init__(self) -> None:
        self.taken = 0
        self.changed = threading.Condition()

    def __call__(self) -> dict[str, float]:
        with self.changed:
            self.taken += 1
            self.changed.notify_all()
            return {"files": self.taken}

    def wait_for(self, samples: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.taken >= samples, timeout=60)


def sampling(path: Path, *, run: Any = None, **options: Any) -> Sampler:
    return Sampler(path, run=run or {}, stages=Stages(2), **options)


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD, str(tmp_path / "log.json")]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_the_shortest_run_has_two_samples_and_a_summary(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    with sampling(path, run={"kind": "restore", "store": "folder"}, counters=lambda: {"files": 7}) as sampler:
        assert sampler.finish({"files": 7, "failed": 0}) == ()
    log = load(path)
    assert list(log) == ["format", "run", "samples", "stages", "summary"]
    assert log["format"] == 2
    assert log["run"]["kind"] == "restore"
    assert log["run"]["cores"] == os.cpu_count()
    assert log["run"]["started"].endswith("Z")
    first, last = log["samples"]
    assert first["t_s"] <= last["t_s"] <= log["summary"]["elapsed_s"]
    assert first["counters"] == last["counters"] == {"files": 7}
    assert first.keys() == last.keys()
    assert log["summary"]["files"] == 7
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["run.json"]


def test_samples_come_at_the_interval_and_count_from_the_start(tmp_path: Path) -> None:
    path, ticks = tmp_path / "run.json", Ticks()
    with sampling(path, counters=ticks, interval_s=0.02, watch_path=tmp_path) as sampler:
        started = time.process_time()
        ticks.wait_for(3)
        while time.process_time() < started + 0.1:
            pass
        ballast = b"x" * 50_000_000
        ticks.wait_for(ticks.taken + 2)
        rss, cpu_s = psutil.Process().memory_info().rss, time.process_time() - started
        sampler.finish({})
    assert len(ballast) == 50_000_000
    samples = load(path)["samples"]
    assert len(samples) == ticks.taken >= 6
    assert [sample["counters"]["files"] for sample in samples] == list(range(1, ticks.taken + 1))
    for before, after in itertools.pairwise(samples):
        assert [name for name in SINCE_START if before[name] > after[name]] == []
    assert samples[0]["process_cpu_percent"] is None
    assert max(sample["process_cpu_percent"] for sample in samples[1:]) > 10
    assert all(0 <= (sample["cpu_percent"] or 0) <= 100 for sample in samples)
    assert samples[-1]["process_cpu_s"] == pytest.approx(cpu_s, abs=0.1)
    assert samples[-1]["process_rss_bytes"] == pytest.approx(rss, rel=0.1)
    assert samples[-1]["process_peak_rss_bytes"] > 50_000_000
    assert sampler.peak_rss_bytes >= samples[-1]["process_peak_rss_bytes"]


@pytest.mark.parametrize("block_bytes", [4096, 8192])
def test_a_reader_slower_than_the_samples_gets_valid_json(tmp_path: Path, block_bytes: int) -> None:
    path, pick = tmp_path / "run.json", random.Random(1)
    log = RunLog(path, {}, {"n": 0})
    added = 0
    for _ in range(100):
        text, most = b"", added + 10
        with open(path, "rb", buffering=0) as reader:
            while block := reader.read(block_bytes):
                text += block
                for _ in range(min(pick.randrange(3), most - added)):
                    added += 1
                    log.add({"n": added, "filler": "x" * pick.randrange(900)})
        numbers = [sample["n"] for sample in json.loads(text)["samples"]]
        assert numbers == sorted(set(numbers))
    log.finish({}, {"n": added})
    assert [sample["n"] for sample in load(path)["samples"]] == list(range(added + 1))
    assert added > 500


@pytest.mark.parametrize("filler", [10, 1700, 4070, 4096, 9000, 100_000])
def test_the_log_is_valid_after_every_sample_of_any_size(tmp_path: Path, filler: int) -> None:
    path = tmp_path / "run.json"
    log = RunLog(path, {"note": "  "}, {"n": 0})
    for n in range(1, 40):
        log.add({"n": n, "filler": "x " * (filler // 2)})
        whole = load(path)
        assert [sample["n"] for sample in whole["samples"]] == list(range(n + 1))
        assert whole["summary"] is None
    log.finish({}, {"n": 39, "note": "y" * 5000})
    assert load(path)["summary"]["n"] == 39


def test_one_sample_is_one_write_that_leaves_the_size_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    log = RunLog(path, {}, {"n": 0})
    before = path.stat()
    for n in range(50):
        log.add({"n": n, "filler": "x" * 700})
    after = path.stat()
    assert (before.st_ino, before.st_size) == (after.st_ino, after.st_size)
    log.finish({}, {})
    assert path.stat().st_size < before.st_size


@pytest.mark.parametrize("seed", range(8))
def test_kill_9_at_any_moment_leaves_valid_json(tmp_path: Path, child: subprocess.Popen[bytes], seed: int) -> None:
    assert child.stdout
    dots = random.Random(seed).randrange(1, 400)
    assert len(child.stdout.read(dots)) == dots
    child.kill()
    rest = child.stdout.read()
    path = tmp_path / "log.json"
    if dots > 1:  # with the first dot there may be no log yet
        log = load(path)
        assert dots - 1 <= len(log["samples"]) <= dots + len(rest)
        assert log["summary"] is None


def test_a_polling_reader_sees_valid_json_only(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    assert child.stdout
    assert child.stdin
    path = tmp_path / "log.json"
    child.stdout.read(2)
    reads = torn = samples = 0
    while samples < 1500:
        reads += 1
        try:
            log = load(path)
        except ValueError:
            # The read came while the kernel copied the sample's bytes: gone at the second look.
            torn += 1
            log = load(path)
        assert samples <= len(log["samples"])
        samples = len(log["samples"])
        os.set_blocking(child.stdout.fileno(), False)
        child.stdout.read()
    assert torn <= reads // 100
    os.set_blocking(child.stdout.fileno(), True)
    child.stdin.close()
    child.stdout.read()
    assert child.wait() == 0
    assert load(path)["summary"]["files"] >= 1500


def test_a_run_that_raises_keeps_its_samples_and_has_no_summary(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with pytest.raises(KeyError), sampling(path, counters=dict):
        raise KeyError
    assert len(load(path)["samples"]) == 2
    assert load(path)["summary"] is None


def test_an_older_log_is_replaced_and_a_link_to_it_stays(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("not ours" * 10_000)
    (tmp_path / "run.json").symlink_to("old.json")
    (tmp_path / "old.json.part").write_text("left by a killed run")
    with sampling(tmp_path / "run.json", counters=dict) as sampler:
        sampler.finish({})
    assert (tmp_path / "run.json").is_symlink()
    assert len(load(tmp_path / "old.json")["samples"]) == 2
    assert sorted(os.listdir(tmp_path)) == ["old.json", "run.json"]


def test_a_log_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ["file/run.json", "folder", "fifo", "x" * 300, "file/sub/run.json"]:
        ticks = Ticks()
        with sampling(tmp_path / name, counters=ticks, interval_s=0.001) as sampler:
            warnings = sampler.finish({"files": 1})
        assert len(warnings) == 1
        assert name in warnings[0]
        assert sampler.peak_rss_bytes > 1_000_000
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["fifo", "file", "folder"]


def test_a_full_disk_is_one_warning_and_the_summary_still_arrives(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    code = """
import resource, sys, threading
from metrics.sampler import Sampler
from metrics.stages import Stages
# Room for the first log but not for one twice as large: a write past it fails as on a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))
taken, enough = [], threading.Event()
def counters():
    taken.append(1)
    if len(taken) > 40:
        enough.set()
    return {"x" * 3000: 1}
with Sampler(sys.argv[1], run={}, counters=counters, stages=Stages(2), interval_s=0.001) as sampler:
    enough.wait()
    print(*sampler.finish({"files": 5}), sep="\\n")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"{path} is incomplete: File too large\n"
    log = load(path)
    assert 14 <= len(log["samples"]) <= 20
    assert log["summary"]["files"] == 5
    assert os.listdir(tmp_path) == ["run.json"]


def test_what_cannot_be_read_is_null_and_the_rest_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_io_counters", fail)
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: None)
    path = tmp_path / "run.json"
    with sampling(path, counters=lambda: {"rate": float("nan"), "files": 3}) as sampler:
        assert sampler.finish({"rate": float("inf")}) == ()
    log = load(path)
    for sample in log["samples"]:
        assert sample["network_in_bytes"] is sample["network_out_bytes"] is sample["disk_read_bytes"] is None
        assert sample["memory_total_bytes"] == psutil.virtual_memory().total
        assert sample["counters"] == {"rate": None, "files": 3}
    assert log["summary"]["rate"] is None


def test_without_a_thread_there_are_two_samples_and_a_warning(tmp_path: Path) -> None:
    code = """
import resource, sys
from metrics.sampler import Sampler
from metrics.stages import Stages
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
import threading
threading.stack_size(1 << 31)  # more than there is room for
with Sampler(sys.argv[1], run={}, counters=dict, stages=Stages(2)) as sampler:
    print(*sampler.finish({"files": 5}))
"""
    path = tmp_path / "run.json"
    command = [sys.executable, "-c", code, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"{path} is incomplete: no thread can be started\n"
    assert (len(load(path)["samples"]), load(path)["summary"]["files"]) == (2, 5)


def test_counters_that_raise_are_a_gap(tmp_path: Path) -> None:
    with sampling(tmp_path / "run.json", counters=lambda: {"rate": 1 / 0}) as sampler:
        assert sampler.finish({}) == ()
    assert [sample["counters"] for sample in load(tmp_path / "run.json")["samples"]] == [None, None]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_a_watched_path_with_no_disk_behind_it_is_a_gap(tmp_path: Path) -> None:
    with sampling(tmp_path / "run.json", counters=dict, watch_path="/proc/self/not/there") as sampler:
        assert sampler.finish({}) == ()
    log = load(tmp_path / "run.json")
    assert (log["run"]["file_system"], log["run"]["device"]) == ("proc", "")
    assert log["samples"][0]["watched_disk_read_bytes"] is None
    assert log["samples"][1]["disk_read_bytes"] is not None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_the_watched_disk_is_the_one_below_a_path_that_does_not_exist_yet(tmp_path: Path) -> None:
    with sampling(tmp_path / "run.json", counters=dict, watch_path=tmp_path / "a" / "b") as sampler:
        sampler.finish({})
    log = load(tmp_path / "run.json")
    shown = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True).stdout
    assert log["run"]["file_system"][:3] == shown[:3]
    device = tmp_path.stat().st_dev
    lines = [line.split() for line in Path("/proc/diskstats").read_text().splitlines()]
    names = [line[2] for line in lines if line[:2] == [str(os.major(device)), str(os.minor(device))]]
    if names:
        assert log["run"]["device"] == names[0]
        assert log["samples"][-1]["watched_disk_write_bytes"] >= 0


def test_names_that_are_not_utf_8_are_valid_json(tmp_path: Path) -> None:
    with sampling(tmp_path / "run.json", run={"settings": {"root": "/a/\udcff\n"}}, counters=dict) as sampler:
        sampler.finish({"failures": [{"path": "\udc80<script>"}]})
    log = load(tmp_path / "run.json")
    assert log["run"]["settings"]["root"] == "/a/\udcff\n"
    assert log["summary"]["failures"] == [{"path": "\udc80<script>"}]


def test_one_sample_a_second_costs_less_than_a_hundredth_of_a_core(tmp_path: Path) -> None:
    ticks = Ticks()
    with sampling(tmp_path / "run.json", counters=ticks, interval_s=0.001, watch_path=tmp_path) as sampler:
        ticks.wait_for(20)
        started, before = time.process_time(), ticks.taken
        ticks.wait_for(before + 200)
        cost_s = (time.process_time() - started) / (ticks.taken - before)
        sampler.finish({})
    assert cost_s < 0.01
