"""Runs of commands: one workspace is one machine with one configuration.

What runs to its end is a fork (forked.py); what is watched, told to stop or killed is started as a person would.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml

from tests.forked import Forking

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = {"index": "build_index.py", "save": "save_blob.py", "restore": "restore_blob.py"}


PATIENCE_S = 60.0


@dataclass(frozen=True)
class Run:
    """How a run ended; `result` is what --json printed."""

    code: int
    result: dict[str, Any]
    stderr: str

    @property
    def tallied(self) -> dict[str, int]:
        """What an index counted, but for what it counted none of."""
        return {name: tally["items"] for name, tally in self.result["tallies"].items() if tally["items"]}

    def failed(self, workspace: Workspace) -> dict[str, str]:
        """Return the reasons of what failed, by path below the source."""
        return {path.removeprefix(f"{workspace.source}/"): reason for path, reason in self.result["failed"]}


class Workspace:
    """A configuration and the places it names, below one folder."""

    forking: ClassVar[Forking]
    """Set once for all tests."""

    def __init__(self, folder: Path, source: Path, **settings: Any) -> None:
        self.folder = folder
        self.source = source
        self.store = folder / "store"
        self.state = folder / "state"
        self.map = folder / "map.json"
        self.restored = folder / "restored"
        self.metrics = folder / "metrics.json"
        self.config = folder / "config.yaml"
        self.environment: dict[str, str] = {}
        self.settings: dict[str, Any] = {
            "source_path": str(source),
            "store": str(self.store),
            "state_dir": str(self.state),
            "guid_mapping_file": str(self.map),
            "restore_root": str(self.restored),
            "metrics_log_file": str(self.metrics),
            "save_metrics_log_file": str(folder / "save-metrics.json"),
            **settings,
        }
        self.configure()

    @classmethod
    def on_azure(cls, folder: Path, source: Path, connection_string: str, container: str, **settings: Any) -> Self:
        """Return a workspace of the server web1 whose store is a container of Azure."""
        azure = {"store": "azure", "connection_string": connection_string, "container_name": container}
        return cls(folder, source, **{"server": "web1", **azure, **settings})

    def configure(self, **settings: Any) -> None:
        """Change settings and write the configuration."""
        self.settings.update(settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(yaml.safe_dump(self.settings))
        self.config.chmod(0o600)

    def command(self, name: str, *options: str) -> list[str]:
        """Return the command line of a script, or of a command that has none."""
        program = [str(REPOSITORY / SCRIPTS[name])] if name in SCRIPTS else ["-m", "blobark", name]
        return [sys.executable, *program, "--config", str(self.config), *options]

    def execute(self, name: str, *options: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command in a fork, and only return how that ended."""
        return self.forking.run(name, "--config", str(self.config), *options, environment=self.environment)

    def run(self, name: str, *options: str, expect: int | None = 0) -> Run:
        """Run a script with --json; fails unless it ends with the expected code, or says what a person can't use."""
        done = self.execute(name, *options, "--json")
        stderr = done.stderr.decode(errors="surrogateescape")
        assert "Traceback" not in stderr, stderr
        assert expect is None or done.returncode == expect, (done.returncode, done.stdout, stderr)
        result = json.loads(done.stdout) if done.stdout.strip() else {}
        return Run(done.returncode, result, stderr)

    @contextlib.contextmanager
    def started(self, name: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a script with --json, in a session of its own; what still runs when the block ends is killed."""
        process = subprocess.Popen(
            [*self.command(name, *options), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **self.environment},
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def backup(self, *options: str, expect: int = 0) -> Run:
        """Index and save; returns the save."""
        self.run("index", *options, expect=None)
        return self.run("save", expect=expect)

    def guids(self) -> dict[str, str]:
        """Return the map, turned round: path below the source -> key."""
        prefix = f"{self.source}/"
        return {path.removeprefix(prefix): key for key, path in json.loads(self.map.read_bytes()).items()}

    def header(self, number: int | None = None) -> dict[str, Any]:
        """Return the header of a snapshot of the folder store, the newest by default."""
        headers = sorted(self.store.glob("blobark/*/snapshots/*"))
        chosen = headers[-1] if number is None else headers[number - 1]
        return dict(json.loads(chosen.read_bytes()))


class OneProcess(Workspace):
    """A workspace whose runs have no memory for members (crew.py), which cost each small run as much as its work."""

    def __init__(self, folder: Path, source: Path, **settings: Any) -> None:
        super().__init__(folder, source, **{"max_memory": "100MiB", **settings})


class Started(Workspace):
    """A workspace whose runs are all started as a person would start them."""

    def execute(self, name: str, *options: str) -> subprocess.CompletedProcess[bytes]:
        """Run a script, and only return how that ended."""
        return subprocess.run(
            self.command(name, *options),
            capture_output=True,
            env={**os.environ, **self.environment},
            timeout=110,
            check=False,
        )


def wait_until(condition: Callable[[], object], process: subprocess.Popen[Any]) -> None:
    """Return when the condition holds; fails when the process ends before that, or after a minute."""
    limit_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit_s
        time.sleep(0.002)
