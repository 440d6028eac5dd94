"""`blobark schedule`: units for systemd. Read as systemd reads them; what they start is started."""

from __future__ import annotations

import configparser
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from blobark import schedule
from tests.runs import REPOSITORY, Workspace
from tests.trees import small_tree

USUAL = {
    "python": "/opt/blobark/.venv/bin/python",
    "config": Path("/etc/blobark/config.yaml"),
    "state_dir": Path("/var/lib/blobark"),
    "writable": [Path("/var/lib/blobark")],
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / 'wörk "50%" of $HOME', small_tree(tmp_path / "source", "a"))


def parsed(text: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, comment_prefixes="#", delimiters="=", strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    return unit


def printed(workspace: Workspace, *options: str, job: str = "blobark") -> dict[str, configparser.ConfigParser]:
    """Return the service and the timer that are printed for something, each by itself."""
    found = {}
    for name in (f"{job}.service", f"{job}.timer"):
        done = workspace.execute("schedule", *options, "--unit", name)
        assert done.returncode == 0, done.stderr
        found[name] = parsed(done.stdout.decode())
    return found


def words(value: str) -> list[str]:
    """Return the words of a value: in systemd's quotes, with `%%` and `$$` for a `%` and a `$`."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(value)]


def test_the_units_in_deploy_are_those_of_the_usual_places() -> None:
    times = schedule.Times("02:30", "Sun 04:30", "Sun 06:30", "10%")
    made = schedule.units(**USUAL, times=times)  # type: ignore[arg-type]
    assert {file.name: file.read_text() for file in (REPOSITORY / "deploy").iterdir()} == made


def test_what_the_service_starts_is_a_backup(workspace: Workspace) -> None:
    service = printed(workspace, "--daily", "02:30")["blobark.service"]["Service"]
    command = words(service["ExecStart"])
    assert command[0] == sys.executable
    done = subprocess.run(command, cwd="/", capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert workspace.header()["complete"] is True
    assert service["Type"] == "oneshot"
    assert words(service["Environment"]) == [f"TMPDIR={workspace.state}"]
    assert service["EnvironmentFile"] == f"-{workspace.folder}/blobark.env".replace("%", "%%")


@pytest.mark.parametrize(
    ("job", "options", "command"),
    [
        ("prune", ("--prune", "Sun 04:30"), ["prune", "--yes"]),
        ("verify", ("--verify", "Sun 06:30"), ["verify"]),
        ("verify", ("--verify", "Sun 06:30", "--sample", "10 %"), ["verify", "--read", "--sample", "10%"]),
    ],
)
def test_what_the_other_services_start(
    workspace: Workspace, job: str, options: tuple[str, ...], command: list[str]
) -> None:
    workspace.run("backup")
    found = printed(workspace, *options, job=f"blobark-{job}")
    line = words(found[f"blobark-{job}.service"]["Service"]["ExecStart"])
    assert line == [sys.executable, "-m", "blobark", *command, "--config", str(workspace.config)]
    done = subprocess.run(line, cwd="/", capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "blobark.service" in found[f"blobark-{job}.service"]["Unit"]["After"].split()
    assert found[f"blobark-{job}.timer"]["Timer"]["OnCalendar"].startswith("Sun *-*-* 0")


def test_another_service_has_secrets_of_its_own(workspace: Workspace) -> None:
    done = workspace.execute("schedule", "--prune", "04:30", "--unit", "blobark-prune.service")
    files = [line for line in done.stdout.decode().splitlines() if line.startswith("EnvironmentFile=")]
    folder = str(workspace.folder).replace("%", "%%")
    assert files == [f"EnvironmentFile=-{folder}/{name}.env" for name in ("blobark", "blobark-prune")]


def test_the_service_may_write_what_a_backup_writes_and_nothing_else(workspace: Workspace, tmp_path: Path) -> None:
    store, state, logs = (tmp_path / name for name in ("store", "state", "logs"))
    for folder in (store, state, logs):
        folder.mkdir()
    paths = {"guid_mapping_file": state / "map", "metrics_log_file": state / "metrics", "log_file": logs / "log"}
    paths["save_metrics_log_file"] = state / "save-metrics"
    workspace.configure(store=str(store), state_dir=str(state), **{key: str(path) for key, path in paths.items()})
    service = printed(workspace, "--daily", "02:30")["blobark.service"]["Service"]
    assert sorted(words(service["ReadWritePaths"])) == sorted(map(str, (store, state, logs)))
    assert (service["ProtectSystem"], service["NoNewPrivileges"]) == ("strict", "yes")
    assert service["CapabilityBoundingSet"] == "CAP_DAC_READ_SEARCH"


def test_a_folder_that_is_missing_is_told(workspace: Workspace, tmp_path: Path) -> None:
    workspace.configure(state_dir=str(tmp_path / "elsewhere" / "state"))
    done = workspace.execute("schedule", "--daily", "02:30")
    assert f"make {tmp_path}/elsewhere/state before the first run" in done.stderr.decode()


@pytest.mark.parametrize(
    ("options", "calendar"),
    [
        (("--daily", "02:30"), "*-*-* 02:30:00"),
        (("--daily", "23:59"), "*-*-* 23:59:00"),
        (("--weekly", "sun 00:00"), "Sun *-*-* 00:00:00"),
    ],
)
def test_the_timer(workspace: Workspace, options: tuple[str, ...], calendar: str) -> None:
    timer = printed(workspace, *options)["blobark.timer"]
    assert timer["Timer"]["OnCalendar"] == calendar
    assert timer["Timer"]["Persistent"] == "true"
    assert timer["Timer"]["RandomizedDelaySec"] == "15min"
    assert timer["Install"]["WantedBy"] == "timers.target"


@pytest.mark.parametrize(
    ("time", "calendar"),
    [
        ("04:30", "*-*-* 04:30:00"),
        ("sun 04:30", "Sun *-*-* 04:30:00"),
        ("1 04:30", "*-*-01 04:30:00"),
        ("28 04:30", "*-*-28 04:30:00"),
    ],
)
def test_the_timer_of_a_prune(workspace: Workspace, time: str, calendar: str) -> None:
    timer = printed(workspace, "--prune", time, job="blobark-prune")["blobark-prune.timer"]
    assert timer["Timer"]["OnCalendar"] == calendar


def test_all_are_printed_each_after_its_name(workspace: Workspace) -> None:
    options = ("--daily", "02:30", "--prune", "04:30", "--verify", "06:30")
    text = workspace.execute("schedule", *options).stdout.decode()
    parts = text.split("\n# /etc/systemd/system/")
    assert parts[0].startswith("# /etc/systemd/system/blobark.service\n")
    assert [part.partition("\n")[0] for part in parts[1:]] == list(schedule.NAMES[1:])
    items = workspace.run("schedule", *options).result["items"]
    assert "\n".join(item["text"] for item in items) + "\n" == text
    for name, part in zip(schedule.NAMES, parts, strict=True):
        alone = workspace.execute("schedule", *options, "--unit", name).stdout.decode()
        assert part.partition("\n")[2].strip() == alone.strip()
        assert {"[Unit]", "[Service]"} <= set(alone.splitlines()) or {"[Timer]", "[Install]"} <= set(alone.splitlines())


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--daily", "2:30"),
        ("--daily", "24:00"),
        ("--daily", "02:30\n[Service]"),
        ("--weekly", "02:30"),
        ("--weekly", "Someday 02:30"),
        ("--daily", "02:30", "--weekly", "Sun 02:30"),
        ("--daily", "02:30", "--unit", "cron"),
        ("--daily", "02:30", "--unit", "blobark-prune.timer"),
        ("--prune", "0 02:30"),
        ("--prune", "29 02:30"),
        ("--prune", "weekly"),
        ("--verify", ""),
        ("--daily", "02:30", "--sample", "10%"),
        ("--verify", "02:30", "--sample", "0%"),
    ],
)
def test_mistakes(workspace: Workspace, options: tuple[str, ...]) -> None:
    run = workspace.run("schedule", *options, expect=2)
    assert len(run.stderr.splitlines()) == 1


def test_a_path_that_cannot_stand_in_a_unit_is_refused(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "new\nline", small_tree(tmp_path / "source", "a"))
    run = workspace.run("schedule", "--daily", "02:30", expect=2)
    assert "cannot stand in a unit" in run.stderr
