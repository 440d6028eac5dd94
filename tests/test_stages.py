"""Where the time goes: stages count what they are told, in all threads and processes, and real runs tell them."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from metrics.processes import Processes
from metrics.stages import DECODE, METADATA, REQUEST, STAGES, WRITE, Stages
from tests.runs import Workspace
from tools.compare import differences


def noted(stages: Stages, stage: int, took_ns: int) -> None:
    """Note a lap of about so many nanoseconds."""
    stages.lap(stage, stages.now() - took_ns)


@pytest.mark.parametrize("took_ns", [100, 5000, 5120, 6143, 1_000_000, 77_777_777, 10**9, 3 * 10**12])
def test_a_lap_lies_in_the_bucket_of_its_length(took_ns: int) -> None:
    stages = Stages(1)
    noted(stages, DECODE, took_ns)
    found = stages.histograms()["decode"]
    ((upper_s, count),) = found["buckets"]
    assert (found["count"], count) == (1, 1)
    spent_ns = found["seconds"] * 1e9 + 1000  # it is rounded to microseconds
    assert spent_ns >= took_ns
    # The lap itself takes a moment, so it may lie in a bucket further up.
    assert max(1024, took_ns) <= upper_s * 1e9 <= max(1.26 * spent_ns, 1024)


def test_what_is_longer_than_the_last_bucket_is_in_it() -> None:
    stages = Stages(1)
    noted(stages, WRITE, 10**16)
    assert stages.histograms()["write"]["buckets"] == [[pytest.approx(8796, rel=0.01), 1]]


def test_the_buckets_give_the_percentiles_of_what_was_noted() -> None:
    stages, pick = Stages(1), random.Random(1)
    lengths = sorted(int(10 ** pick.uniform(4, 8)) for _ in range(2000))
    for took_ns in lengths:
        noted(stages, REQUEST, took_ns)
    below = 0
    for upper_s, count in stages.histograms()["request"]["buckets"]:
        below += count
        real = sum(took_ns < upper_s * 1e9 for took_ns in lengths)
        assert abs(below - real) <= 60, upper_s
    assert below == 2000
    assert stages.count(REQUEST) == 2000
    assert stages.seconds()["request"] == pytest.approx(sum(lengths) / 1e9, rel=0.05)


def test_threads_and_forks_count_together() -> None:
    stages = Stages(8)

    def work() -> None:
        for _ in range(1000):
            noted(stages, WRITE, 1_000_000)
        stages.item(5000, 2_000_000)

    noted(stages, METADATA, 1000)
    pids = []
    for number in range(2):
        pid = os.fork()
        if pid == 0:
            stages.share(number + 1, 3)
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            os._exit(0)
        pids.append(pid)
    for _ in range(3):  # one after the other: a row goes from thread to thread
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    assert stages.count(WRITE) == 11_000
    assert stages.seconds()["write"] >= 11
    assert stages.count(METADATA) == 1
    assert stages.sizes() == [[8192, 11, pytest.approx(0.022)]]
    assert {name for name, seconds in stages.seconds().items() if seconds} == {"write", "metadata"}


def test_more_threads_than_rows_still_count() -> None:
    stages, ready, go = Stages(1), threading.Barrier(61), threading.Event()

    def work() -> None:
        noted(stages, WRITE, 1000)
        ready.wait(60)
        go.wait(60)

    threads = [threading.Thread(target=work) for _ in range(60)]
    for thread in threads:
        thread.start()
    ready.wait(60)
    go.set()
    for thread in threads:
        thread.join()
    assert 18 <= stages.count(WRITE) <= 60


def test_the_processes_of_a_run_are_summed_and_the_dead_still_count() -> None:
    begin, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
        os.write(end, b".")
        time.sleep(60)
        os._exit(0)
    members = [pid]
    processes = Processes(lambda: members)
    alone = Processes(lambda: ()).read()
    assert os.read(begin, 1) == b"."
    both = processes.read()
    assert both["processes"] == 2
    assert both["process_cpu_s"] >= 0.19
    assert both["process_queued_s"] >= 0
    assert both["process_rss_bytes"] > alone["process_rss_bytes"]
    assert both["process_threads"] > alone["process_threads"]
    assert both["process_open_files"] > alone["process_open_files"] > 2
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    after = processes.read()
    assert after["processes"] == 1
    assert after["process_cpu_s"] >= both["process_cpu_s"]
    os.close(begin)
    os.close(end)


@pytest.fixture(params=["one process", "members"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Workspace:
    source = tmp_path / "source"
    for folder in range(3):
        (source / str(folder)).mkdir(parents=True)
        for number in range(20):
            (source / str(folder) / str(number)).write_bytes(os.urandom(3000))
    (source / "large").write_bytes(os.urandom(20 << 20))
    limit = {"max_requests_per_s": 100_000} if request.param == "one process" else {}
    return Workspace(tmp_path / "work", source, max_workers=4, metrics_interval="0.1s", **limit)


def log_of(path: Path) -> Any:
    return json.loads(path.read_bytes())


def counts(log: Any) -> dict[str, int]:
    return {name: stage["count"] for name, stage in log["stages"].items()}


def test_save_and_restore_tell_where_their_time_went(workspace: Workspace) -> None:
    workspace.backup()
    workspace.run("restore")
    save, restore = log_of(workspace.folder / "save-metrics.json"), log_of(workspace.metrics)
    assert list(save["stages"]) == list(restore["stages"]) == list(STAGES)
    many = 62  # requests, at least: the small files and a block or two
    assert counts(save)["read"] >= many
    assert counts(save)["request"] >= many
    assert counts(save)["decode"] >= 2
    assert counts(restore)["request"] >= many
    assert counts(restore)["decode"] >= many
    assert counts(restore)["write"] >= many
    assert counts(restore)["metadata"] == 61 + 2 * 4
    for log, kind in ((save, "save"), (restore, "restore")):
        assert log["run"]["kind"] == kind
        assert [(upper, files) for upper, files, _ in log["summary"]["sizes"]] == [(4096, 60), (1 << 25, 1)]
        assert log["summary"]["failures"] == []
        assert log["samples"][-1]["requests"] == counts(log)["request"]
        last = log["samples"][-1]["stages_s"]
        assert last == {name: stage["seconds"] for name, stage in log["stages"].items()}
        members = log["run"]["members"]
        assert members == (0 if "max_requests_per_s" in workspace.settings else min(2, os.cpu_count() or 1))
        assert log["samples"][0]["processes"] == members + 1
        assert members or log["samples"][-1]["counters"]["queued_batches"] == 0
        assert len(log["samples"][0]["cpu_percents"] or [None] * (os.cpu_count() or 1)) == os.cpu_count()
    workspace.run("restore")
    again = counts(log_of(workspace.metrics))
    assert (again["compare"], again["write"]) == (61, 0)


@pytest.mark.parametrize("settings", [{"pack_below": "64KiB"}, {"pack_below": "0"}])
def test_decoding_of_frames_is_told_too(tmp_path: Path, settings: dict[str, str]) -> None:
    dice, source, small, blocks = random.Random(1), tmp_path / "source", 30, 4
    source.mkdir()
    for number in range(small):
        (source / f"{number}").write_bytes(bytes(dice.choices(b"abcd", k=8000)))
    large = bytes(dice.choices(b"abcd", k=12 << 20))
    (source / "large").write_bytes(large)
    workspace = Workspace(tmp_path / "work", source, compression="zstd", max_workers=1, **settings)
    workspace.backup()
    workspace.run("restore")
    save, restore = log_of(workspace.folder / "save-metrics.json"), log_of(workspace.metrics)
    # Each content is digested once; each frame is decoded once, and the pack is one frame.
    frames = 1 if settings["pack_below"] != "0" else small
    assert counts(restore)["decode"] >= small + frames + 2 * blocks
    assert counts(save)["decode"] >= frames + 2 * blocks
    for log in (save, restore):  # at no speed of this machine are 12 MB of zstd done in less
        assert log["stages"]["decode"]["seconds"] > 0.005
    assert not differences(str(source), str(workspace.restored))


def test_a_run_log_names_settings_and_failures_and_no_secret(workspace: Workspace) -> None:
    workspace.backup()
    key = workspace.guids()["0/7"]
    (blob,) = workspace.store.glob(f"*/{key}")
    blob.write_bytes(b"damaged")
    workspace.run("restore", expect=3)
    log = log_of(workspace.metrics)
    assert log["run"]["settings"]["max_workers"] == 4
    assert log["summary"]["failed"] == 1
    ((path, reason),) = log["summary"]["failures"]
    assert path == "0/7"
    assert "store" in reason
