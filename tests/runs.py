"""Runs of the real scripts, as a person would start them: one workspace is one machine with one configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = {"index": "build_index.py", "save": "save_blob.py", "restore": "restore_blob.py"}


@dataclass(frozen=True)
class Run:
    """How a run ended; `result` is what --json printed."""

    code: int
    result: dict[str, Any]
    stderr: str


class Workspace:
    """A configuration and the places it names, below one folder."""

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
        """Run a script, and only return how that ended."""
        return subprocess.run(
            self.command(name, *options),
            capture_output=True,
            env={**os.environ, **self.environment},
            timeout=110,
            check=False,
        )

    def run(self, name: str, *options: str, expect: int | None = 0) -> Run:
        """Run a script with --json; fails unless it ends with the expected code, or says what a person can't use."""
        done = self.execute(name, *options, "--json")
        stderr = done.stderr.decode(errors="surrogateescape")
        assert "Traceback" not in stderr, stderr
        assert expect is None or done.returncode == expect, (done.returncode, done.stdout, stderr)
        result = json.loads(done.stdout) if done.stdout.strip() else {}
        return Run(done.returncode, result, stderr)

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
