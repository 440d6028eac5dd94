"""The Azure account to measure against, and the server behind it where this program starts one."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from bench.measure import Failed, ask

EMULATOR_ACCOUNT = "devstoreaccount1"
EMULATOR_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CONTAINERS = Path(__file__).with_name("containers.py")
SERVER_READY_S = 30.0


@dataclass(frozen=True)
class Account:
    """An account with its key, and the address of its blobs."""

    name: str
    key: str
    endpoint: str

    @property
    def connection_string(self) -> str:
        protocol = urlsplit(self.endpoint).scheme
        return (
            f"DefaultEndpointsProtocol={protocol};AccountName={self.name};AccountKey={self.key};"
            f"BlobEndpoint={self.endpoint};"
        )

    def requests(self) -> int:
        """Return how many requests the server has answered, 0 where it does not say (`GET /__stats`, as JSON)."""
        root = self.endpoint.removesuffix(f"/{self.name}")
        try:
            with urlopen(f"{root}/__stats", timeout=10) as answer:
                counted: dict[str, dict[str, int]] = json.load(answer)
        except (OSError, ValueError):
            return 0
        return sum(row["n"] for operation, row in counted.items() if operation != "stats")

    def container(self, action: str, name: str) -> str:
        """Create, delete or share a container; returns the shared address."""
        environment = {"BLOBARK_BENCH_CONNECTION": self.connection_string}
        return ask([sys.executable, CONTAINERS, action, name], environment)


def account(connection_string: str, endpoint: str) -> Account:
    """Read a connection string; without one the endpoint is an emulator's, with the key that all emulators share."""
    parts = dict(part.split("=", 1) for part in connection_string.split(";") if part)
    name = parts.get("AccountName") or urlsplit(endpoint).path.strip("/") or EMULATOR_ACCOUNT
    address = endpoint or parts.get("BlobEndpoint") or f"https://{name}.blob.core.windows.net"
    if connection_string and "AccountKey" not in parts:
        raise Failed("the connection string has no account key, which is needed to give each tool access of its kind")
    return Account(name, parts.get("AccountKey", EMULATOR_KEY), address.rstrip("/"))


@contextlib.contextmanager
def server(command: str) -> Iterator[str]:
    """Run a server from a command with `{port}` in it, on a free port; yields its endpoint."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = shlex.split(command.replace("{port}", str(port)))
    # In a session of its own, so that Ctrl-C does not end it before the containers are removed.
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            _wait_until_it_answers(process, port)
            yield f"http://127.0.0.1:{port}/{EMULATOR_ACCOUNT}"
        finally:
            process.kill()


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + SERVER_READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"the server does not answer on port {port}") from None
            time.sleep(0.05)
