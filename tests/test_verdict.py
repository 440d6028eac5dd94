"""The verdict: each bottleneck by its signs, and real runs whose bottleneck was planted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.verdict import Line
from metrics.log import Run, read
from metrics.verdict import Verdict, judge
from tests.azurite_server import AzuriteServer
from tests.run_logs import Document, document
from tests.runs import Workspace


def verdict(log: Document) -> Verdict:
    return judge(msgspec.convert(log, Run))


def changed(log: Document, *, settings: dict[str, Any] | None = None, run: Any = None, each: Any = None) -> Document:
    """Change settings and facts of a log, and in each sample the fields that `each` gives, by its seconds."""
    log["run"].update(run or {})
    log["run"]["settings"].update(settings or {})
    for sample in log["samples"]:
        for name, per_second in (each or {}).items():
            if name in ("retries", "throttled"):
                sample["counters"][name] = per_second * sample["t_s"]
            else:
                sample[name] = per_second if name.endswith("percent") else per_second * sample["t_s"]
    return log


def waiting(**settings: Any) -> Document:
    """A run that waits for requests of 0.1 s, most of which are quick ones where they are large."""
    return changed(document(stages={"request": 10.0, "write": 0.5}), settings=settings)


def test_the_brake_of_the_store_is_throttling() -> None:
    held = document(stages={"held": 4.0, "request": 1.0})
    found = verdict(changed(held, each={"throttled": 3.0}))
    assert found.name == "throttling"
    assert found.evidence == (
        "60 answers told to slow down (3 %)",
        "threads were held back for 80 % of their time",
    )
    assert verdict(changed(document(), each={"throttled": 10.0})).name == "throttling"


def test_without_the_brake_it_is_never_throttling() -> None:
    held = {"held": 4.0, "request": 1.0}
    limited = verdict(changed(document(stages=held), settings={"max_bandwidth": 10_000_000}))
    assert limited.name == "network bandwidth"
    assert limited.evidence[0] == "max_bandwidth is 10.0 MB/s, and 10.0 MB/s were moved"
    assert verdict(changed(document(stages=held), settings={"max_requests_per_s": 100})).name == "configured limit"
    assert verdict(changed(document(stages=held), each={"retries": 3.0})).name == "store latency"
    assert verdict(changed(document(), each={"throttled": 1.0})).name == "store latency"  # one in a hundred


@pytest.mark.parametrize(("own", "queued", "members", "named"), [
    (95.0, 0.1, 0, "CPU"),
    (95.0, 0.1, 2, "disk writing"),
    (190.0, 0.1, 2, "CPU"),
    (30.0, 0.8, 0, "CPU"),
    (30.0, 0.6, 0, "disk writing"),
])  # fmt: skip
def test_the_processors_are_what_the_runs_processes_can_use(
    own: float, queued: float, members: int, named: str
) -> None:
    log = document(stages={"write": 1.0, "metadata": 0.3})
    busy = {"process_cpu_percent": own, "process_queued_s": queued}
    assert verdict(changed(log, run={"members": members}, each=busy)).name == named


@pytest.mark.parametrize(("stages", "named"), [
    ({"decode": 1.0, "request": 0.5}, "CPU"),
    ({"write": 1.0, "request": 0.5}, "disk writing"),
    ({"read": 1.0, "request": 0.5}, "disk reading"),
    ({"metadata": 0.6, "compare": 0.4, "request": 0.5}, "metadata calls"),
    ({"request": 1.0, "write": 0.5}, "store latency"),
    ({"request": 0.4, "write": 0.4, "metadata": 0.4}, "unclear"),
    ({"request": 0.4, "write": 0.4, "metadata": 0.4, "turn": 9.0}, "unclear"),
])  # fmt: skip
def test_the_stage_that_took_half_of_the_time(stages: dict[str, float], named: str) -> None:
    assert verdict(document(stages=stages)).name == named


def test_a_busy_disk_makes_less_writing_count() -> None:
    stages = {"request": 0.6, "write": 0.4}
    assert verdict(changed(document(stages=stages), each={"watched_disk_busy_s": 0.9})).name == "disk writing"
    assert verdict(changed(document(stages=stages), each={"watched_disk_busy_s": 0.5})).name == "store latency"


def test_requests_of_a_folder_are_its_disk() -> None:
    assert verdict(changed(waiting(), run={"store": "folder"})).name == "disk reading"
    assert verdict(changed(waiting(), run={"store": "folder", "kind": "save"})).name == "disk writing"


def test_large_requests_that_take_much_longer_than_the_quickest_fill_the_line() -> None:
    log = waiting()
    log["stages"]["request"]["buckets"] = [[0.01, 20], [0.12, 1980]]
    assert verdict(log).name == "network bandwidth"
    small = changed(log, each={"moved_bytes": 300_000.0})
    assert verdict(small).name == "store latency"
    log = waiting()
    log["stages"]["request"]["buckets"] = [[0.09, 20], [0.12, 1980]]
    assert verdict(log).name == "store latency"


def test_too_few_workers_are_few_by_configuration() -> None:
    found = verdict(waiting(max_workers=8))
    assert found.name == "too few workers"
    assert found.evidence[0] == "8 transfers at a time by max_workers; about 100 would keep the processors busy"
    assert verdict(waiting(max_workers=60)).name == "store latency"
    assert verdict(waiting(max_workers="auto")).name == "store latency"


@pytest.mark.parametrize("log", [document(0), document(1, stages={"request": 0.01})])
def test_what_is_too_short_is_unclear(log: Document) -> None:
    log["summary"] = None
    assert verdict(log).name == "unclear"


def test_a_log_full_of_gaps_is_unclear() -> None:
    log = document()
    for sample in log["samples"]:
        sample.update({name: None for name in sample if name not in ("t_s", "time")})
    log["stages"] = None
    assert verdict(log).name == "unclear"


# Real runs


@pytest.fixture(scope="module")
def saved(azurite: AzuriteServer, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A tree of small files in Azurite."""
    folder = tmp_path_factory.mktemp("verdict")
    for number in range(300):
        file = folder / "source" / str(number % 10) / str(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(3000))
    workspace = Workspace(
        folder / "work", folder / "source", store="azure", container_name="verdict", metrics_interval="0.1s"
    )
    workspace.environment["AZURE_STORAGE_CONNECTION_STRING"] = azurite.connection_string
    workspace.run("index")
    workspace.run("save", "--create-container")
    return workspace


@pytest.mark.parametrize(("line", "settings", "named"), [
    ({"latency_s": 0.3}, {"max_workers": "auto"}, "store latency"),
    ({"latency_s": 0.04}, {"max_workers": 2}, "too few workers"),
    ({"requests_per_s": 60.0}, {"max_workers": "auto"}, "throttling"),
])  # fmt: skip
def test_a_planted_bottleneck_is_named(
    saved: Workspace, azurite: AzuriteServer, tmp_path: Path, line: Any, settings: Any, named: str
) -> None:
    saved.configure(**settings)
    with Line(azurite.port, **line) as proxy:
        saved.environment["AZURE_STORAGE_CONNECTION_STRING"] = proxy.rewire(azurite.connection_string)
        saved.run("restore", "--to", str(tmp_path / "restored"))
    found = judge(read(saved.metrics))
    assert found.name == named, found
