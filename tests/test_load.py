"""Whole runs under load: a busy store, requests that hang, limits; on a real Azurite behind a proxy that does harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import fault_proxy as faults
from tests.fault_proxy import FaultProxy
from tests.runs import Workspace

CONTENT = "/web1_"
END_S = 10.0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("load") / "source"
    top.mkdir()
    for number in range(12):
        (top / f"small-{number:02}").write_text(f"content of {number} " * 50)
    (top / "large").write_bytes(os.urandom(9 << 20))  # two blocks
    return top


@pytest.fixture
def workspace(tmp_path: Path, source: Path, proxy: FaultProxy, azure_container: tuple[str, str]) -> Workspace:
    text, name = azure_container
    workspace = Workspace.on_azure(tmp_path / "work", source, proxy.rewire(text), name)
    workspace.run("index")
    return workspace


def test_a_request_that_hangs_is_repeated_alone(workspace: Workspace, proxy: FaultProxy) -> None:
    workspace.configure(timeout="3s", skip_files=["large"])
    proxy.add(faults.hang(method="PUT", where=CONTENT), faults.hang(method="GET", where=CONTENT))
    saved = workspace.run("save").result
    assert (saved["complete"], saved["sent"]) == (True, 12)
    assert len(proxy.logged("PUT", CONTENT)) == 12 + 1
    assert workspace.run("restore").result["written"] == 12
    assert len(proxy.logged("GET", CONTENT)) == 12 + 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_store_that_is_busy_again_and_again(workspace: Workspace, proxy: FaultProxy, status: int) -> None:
    for skip in (0, 3, 6):
        busy = faults.answer(status, "ServerBusy", retry_after_s=1, times=2, skip=skip, method="PUT", where=CONTENT)
        proxy.add(busy)
    assert workspace.run("save").result["complete"]
    assert workspace.run("restore").result["failed"] == []


def test_limits_hold_for_a_whole_run_and_are_of_one_process(workspace: Workspace, proxy: FaultProxy) -> None:
    workspace.configure(max_bandwidth="4MiB", max_requests_per_s=20)
    for command, way in (("save", proxy.bytes_in), ("restore", proxy.bytes_out)):
        proxy.reset_counts()
        begun = time.monotonic()
        workspace.run(command)
        seconds = time.monotonic() - begun
        assert sum(way.values()) >= 9 << 20
        assert seconds >= (sum(way.values()) - (1 << 20)) / (4 << 20)
        assert seconds >= sum(proxy.requests.values()) / 20 - 0.5


def test_a_limited_run_ends_soon_when_asked_to(workspace: Workspace, proxy: FaultProxy) -> None:
    workspace.configure(max_bandwidth="64KiB")  # the first block waits for two minutes
    command = [*workspace.command("save"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while len(proxy.logged("PUT", "/web1_")) < 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=END_S)
    assert errors.startswith(b"blobark: interrupted: ")
    assert process.returncode == 130, errors
    assert time.monotonic() - begun < END_S


def test_a_run_says_how_many_transfers_it_settled_on(workspace: Workspace) -> None:
    assert 2 <= workspace.run("save").result["workers"] <= 512
    command = [word for word in workspace.command("restore") if word != "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "transfers at a time" in done.stdout
    assert "(auto)" in done.stdout
    log = json.loads(workspace.metrics.read_bytes())
    assert log["samples"][-1]["counters"]["workers"] >= 2
    workspace.configure(max_workers=6)
    assert workspace.run("restore").result["workers"] == 6
