"""The tools that are compared: how each is found, and what it runs in each step.

The steps are `save` (for Blobark `blobark backup`, which is an index and a save), `unchanged` (the same again) and
`restore`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.endpoint import Account
from bench.measure import Failed, Job, ask

ROOT = Path(__file__).resolve().parent.parent
AZCOPY = Path("node_modules/@azure-tools/azcopy-linux/dist/bin/azcopy_linux_amd64")
SCRIPTS = {"index": "build_index.py", "save": "save_blob.py", "restore": "restore_blob.py"}
RESTIC_PASSWORD = "random bytes are in it"


@dataclass(frozen=True)
class Place:
    """Where one tool works in one round: an empty folder of its own, and on Azure a container of its own."""

    tree: Path
    folder: Path
    account: Account | None = None
    container: str = ""

    @property
    def restored(self) -> Path:
        return self.folder / "restored"


class Tool(Protocol):
    """A tool that is there and runs."""

    name: str
    version: str

    def jobs(self, place: Place) -> Mapping[str, Job]:
        """Return its job for each step it knows."""


class Blobark:
    """The checkout that this program lies in, with the Python that runs this program."""

    def __init__(
        self, workers: str = "auto", name: str = "blobark", choices: Mapping[str, object] | None = None
    ) -> None:
        """`choices` are keys of the configuration; `name` tells it from others of its kind."""
        self.name = name
        self._workers = workers
        self._choices = choices or {}
        self.version = re.findall(r'__version__ = "(.+)"', (ROOT / "blobark/__init__.py").read_text())[0]
        # so that no measured run is the first that compiles
        ask([sys.executable, "-m", "compileall", "-q", ROOT / "blobark", ROOT / "metrics"])

    def jobs(self, place: Place) -> Mapping[str, Job]:
        config = place.folder / "config.yaml"

        def script(step: str) -> list[str | Path]:
            return [sys.executable, ROOT / SCRIPTS[step], "--config", config]

        self._configure(place, config)
        backup = Job([[sys.executable, "-m", "blobark", "backup", "--config", config]], folder=ROOT)
        return {
            "index": Job([script("index")], folder=place.folder),
            "save only": Job([script("save")], folder=place.folder),
            "save": backup,
            "unchanged": backup,
            "restore": Job([script("restore")], folder=place.folder),
        }

    def _configure(self, place: Place, config: Path) -> None:
        """Write the configuration. JSON is YAML, too."""
        here = place.folder
        settings = {
            "source_path": str(place.tree),
            "store": "azure" if place.account else str(here / "store"),
            "state_dir": str(here / "state"),
            "guid_mapping_file": str(here / "map.json"),
            "restore_root": str(place.restored),
            "metrics_log_file": str(here / "metrics.json"),
            "save_metrics_log_file": str(here / "save-metrics.json"),
            "max_workers": self._workers,
            **self._choices,
        }
        if place.account:
            settings["connection_string"] = place.account.connection_string
            settings["container_name"] = place.container
        config.touch(mode=0o600)
        config.write_text(json.dumps(settings, indent=1))


class Rclone:
    """rclone: with `--transfers 20` on Azure unless its defaults are wanted, and as it is on a folder."""

    name = "rclone"

    def __init__(self, path: str, *, defaults: bool = False) -> None:
        self._defaults = defaults
        self._program = _found(path or _beside_python("rclone") or "rclone")
        self.version = ask([self._program, "version"]).split()[1].removeprefix("v")

    def jobs(self, place: Place) -> Mapping[str, Job]:
        environment = {"RCLONE_CONFIG": str(place.folder / "rclone.conf")}
        options: list[str | Path] = []
        there = str(place.folder / "store")
        if place.account:
            environment |= _remote(place.account)
            there = f"bench:{place.container}"
            options = [] if self._defaults else ["--transfers", "20"]
        (place.folder / "rclone.conf").touch()
        save = Job([[self._program, "copy", place.tree, there, *options]], environment)
        restore = Job([[self._program, "copy", there, place.restored, *options]], environment)
        return {"save": save, "unchanged": save, "restore": restore}


class AzCopy:
    """AzCopy, with its defaults, but for files of its own kept here. npm's package leaves it not executable.

    With `put_md5` it stores each file's MD5, and compares it on the way back.
    """

    name = "azcopy"

    def __init__(self, path: str, work: Path, put_md5: bool) -> None:
        self._put_md5 = put_md5
        unpacked = next((str(top / AZCOPY) for top in (Path.cwd(), ROOT) if (top / AZCOPY).exists()), "")
        self._program = path or shutil.which("azcopy") or unpacked
        if not os.path.exists(self._program):
            raise Failed("not found")
        if not os.access(self._program, os.X_OK):
            copy = work / "azcopy"
            shutil.copyfile(self._program, copy)
            copy.chmod(0o700)
            self._program = str(copy)
        self.version = ask([self._program, "--version"]).split()[-1]

    def jobs(self, place: Place) -> Mapping[str, Job]:
        if not place.account:
            return {}
        address, signature = place.account.container("share", place.container).split("?", 1)
        own = {name: str(place.folder) for name in ("HOME", "AZCOPY_LOG_LOCATION", "AZCOPY_JOB_PLAN_LOCATION")}
        environment = {**own, "AZCOPY_DISABLE_SYSLOG": "true"}

        def copy(source: str, target: str, way: str, *more: str) -> Job:
            # An address that is not Azure's tells AzCopy nothing, so it is told what lies at either end.
            options = ["--recursive", "--from-to", way, "--skip-version-check"]
            return Job([[self._program, "copy", source, target, *options, *more]], environment)

        checks = ["--put-md5"] if self._put_md5 else []
        return {
            "save": copy(f"{place.tree}/*", f"{address}?{signature}", "LocalBlob", *checks),
            "restore": copy(f"{address}/*?{signature}", str(place.restored), "BlobLocal"),
        }


class Restic:
    """restic with a repository in a folder; on Azure through rclone, as its own way there takes no endpoint."""

    name = "restic"

    def __init__(self, path: str, rclone: str = "") -> None:
        self._program = _found(path or "restic")
        self._rclone = rclone
        self.version = ask([self._program, "version"]).split()[1]

    def jobs(self, place: Place) -> Mapping[str, Job]:
        settings: dict[str, str] = {}
        options: list[str | Path] = []
        there = str(place.folder / "store")
        if place.account:
            program = _found(self._rclone or _beside_python("rclone") or "rclone")
            settings = _remote(place.account) | {"RCLONE_CONFIG": str(place.folder / "rclone.conf")}
            options = ["-o", f"rclone.program={program}"]
            there = f"rclone:bench:{place.container}/repository"
            (place.folder / "rclone.conf").touch()
        environment = settings | {
            "RESTIC_REPOSITORY": there,
            "RESTIC_CACHE_DIR": str(place.folder / "cache"),
            "RESTIC_PASSWORD": RESTIC_PASSWORD,
        }
        # Backed up as `.`, so that the tree is restored without the names of the folders above it.
        backup: list[str | Path] = [self._program, *options, "backup", "--quiet", "."]
        restore: list[str | Path] = [self._program, *options, "restore", "latest", "--target", place.restored]

        if place.account or not Path(there, "config").exists():
            ask([self._program, *options, "init"], environment)
        return {
            "save": Job([backup], environment, folder=place.tree),
            "unchanged": Job([backup], environment, folder=place.tree),
            "restore": Job([restore], environment),
        }


class Bare:
    """Loops that only copy: what a program that makes a file for each file cannot be faster than (bare.py)."""

    name = "bare loops"
    version = "-"

    def jobs(self, place: Place) -> Mapping[str, Job]:
        store = place.folder / "store"
        program: list[str | Path] = [sys.executable, ROOT / "bench" / "bare.py"]
        return {
            "save": Job([[*program, "--blobs", place.tree, store]]),
            "restore": Job([[*program, place.tree, place.restored]]),
        }


def _remote(account: Account) -> dict[str, str]:
    """Return the environment in which `bench:` is an account for rclone."""
    settings = {"TYPE": "azureblob", "ACCOUNT": account.name, "KEY": account.key, "ENDPOINT": account.endpoint}
    return {f"RCLONE_CONFIG_BENCH_{name}": value for name, value in settings.items()}


def _beside_python(name: str) -> str:
    """Return a program that a Python package has put beside this Python."""
    path = Path(sys.executable).with_name(name)
    return str(path) if path.exists() else ""


def _found(name: str) -> str:
    path = shutil.which(name)
    if not path:
        raise Failed("not found")
    return path
