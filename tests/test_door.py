"""The doors: the scripts, the command and the package start alike, and Ctrl-C ends them while they still open."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import PATIENCE_S, REPOSITORY, wait_until

DOORS = {
    "script": [str(REPOSITORY / "build_index.py")],
    "package": ["-m", "blobark", "index"],
    "command": ["-c", "from blobark.door import console; console()", "index"],
}
WAITS = """
import os, time
with open(os.environ["REACHED"], "w"):
    pass
{wait}
"""
WAYS = {
    # In short pieces: a signal that comes between two steps of Python just before a long one is heard of after it.
    "waits": "for _ in range(600): time.sleep(0.1)",
    # What Ctrl-C makes of an import is the library's affair.
    "hides it": """
try:
    for _ in range(600): time.sleep(0.1)
except BaseException:
    raise ImportError("hidden") from None
""",
}


def opened_up_to(door: str, library: str, way: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return a command line, and an environment in which it stops when it imports a library."""
    shadow = folder / f"{library}.py"
    shadow.write_text(WAITS.format(wait=WAYS[way]))
    places = os.pathsep.join([str(folder), str(REPOSITORY)])
    command = [sys.executable, *DOORS[door], "--config", str(folder / "none.yaml")]
    return command, {**os.environ, "PYTHONPATH": places, "REACHED": str(folder / "reached")}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("library", ["argparse", "msgspec", "blake3"])
@pytest.mark.parametrize("door", DOORS)
def test_ctrl_c_while_it_opens(tmp_path: Path, door: str, library: str, way: str) -> None:
    command, environment = opened_up_to(door, library, way, tmp_path)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until((tmp_path / "reached").exists, process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, output, errors) == (130, b"", b"")


@pytest.mark.parametrize("door", DOORS)
def test_ctrl_c_before_the_run_has_begun(tmp_path: Path, door: str) -> None:
    config = tmp_path / "config.yaml"
    os.mkfifo(config)  # whoever reads it waits
    command = [sys.executable, *DOORS[door], "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        writer = os.open(config, os.O_WRONLY)  # returns when it is opened for reading
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_S)
        os.close(writer)
    assert (process.returncode, output) == (130, b"")
    assert errors.startswith(b"blobark: interrupted")
    assert b"Traceback" not in errors


@pytest.mark.parametrize("door", DOORS)
def test_where_the_libraries_are_missing(tmp_path: Path, door: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-S", *DOORS[door], "--config", str(tmp_path / "none.yaml")]  # without site-packages
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    name = "build_index.py" if door == "script" else "blobark"
    assert line.startswith(f"{name}: Blobark's libraries are not installed here (awscrt, azure, blake3, ")
    assert "python3 dev.py setup" in line
