"""The Azurite of the tests is a real one, keeps to itself, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient

from tests import azurite_server
from tests.azurite_server import AzuriteServer


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_blob_put_is_a_blob_got(azure_container: tuple[str, str]) -> None:
    with ContainerClient.from_connection_string(*azure_container) as container:
        container.upload_blob("a/b", b"content")
        assert container.download_blob("a/b").readall() == b"content"
        assert list(container.list_blob_names()) == ["a/b"]


def test_restart_keeps_port_and_data_and_the_end_removes_both() -> None:
    with AzuriteServer() as server, AzuriteServer() as other:
        assert server.port != other.port
        port = server.port
        with ContainerClient.from_connection_string(server.connection_string, "kept") as container:
            container.create_container()
            container.upload_blob("a", b"content")
            server.stop()
            assert not answers(port)
            server.start()
            assert server.port == port
            assert container.download_blob("a").readall() == b"content"
    assert not answers(port)


def test_the_server_dies_with_a_test_run_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import time; from tests.azurite_server import AzuriteServer\n"
        "with AzuriteServer() as server: print(server.port, flush=True); time.sleep(60)"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with runner:
        assert runner.stdout is not None
        port = int(runner.stdout.readline())
        assert answers(port)
        runner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while answers(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not answers(port)


def test_a_missing_azurite_is_an_error_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "azurite").mkdir()
    (tmp_path / "azurite" / "package.json").write_text('{"dependencies": {"azurite": "1.2.3"}}')
    monkeypatch.setattr(azurite_server, "TESTS", tmp_path)
    with pytest.raises(RuntimeError, match=r"`python3 dev\.py check` installs it"), AzuriteServer():
        pass
