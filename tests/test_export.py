"""What monitoring is told: a textfile that Prometheus can read, and pings that never fail a run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from metrics.export import FAMILIES, ping, write_textfile
from tests.powerless import Powerless
from tests.pruned import age
from tests.runs import Workspace

SECRET = "/0f1e-a-secret"


class Checks(ThreadingHTTPServer):
    """A health check service that notes what it is asked, and answers with `status`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{SECRET}"

    def taken(self) -> list[str]:
        """Return what was asked since the last time, without the secret."""
        asked, self.asked = self.asked, []
        assert all(path.startswith(SECRET) for path in asked)
        return [path.removeprefix(SECRET) for path in asked]


class _Handler(BaseHTTPRequestHandler):
    server: Checks

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def checks() -> Iterator[Checks]:
    with Checks() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"x" * 1000)
    (source / "b").write_bytes(b"y" * 500)
    return Workspace(tmp_path / 'w"o\\rk', source, metrics_textfile=str(tmp_path / "node" / "blobark.prom"))


def parsed(text: str) -> dict[tuple[str, str], float]:
    """Read a textfile as its specification has it; return values by name and command."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) [a-z_]+ .+", line)
            continue
        match = re.fullmatch(r'([a-z_]+)\{command="([a-z]+)",config="((?:[^"\\\n]|\\["\\n])*)"\} (\S+)', line)
        assert match, line
        assert match[3].endswith('w\\"o\\\\rk/config.yaml')
        found[match[1], match[2]] = float(match[4])
    return found


def test_a_backup_is_one_run(workspace: Workspace, checks: Checks) -> None:
    workspace.configure(ping_url=checks.url)
    file = Path(workspace.settings["metrics_textfile"])
    file.parent.mkdir()
    workspace.run("backup", "--dry-run")
    assert (checks.taken(), file.exists()) == ([], False)
    workspace.run("backup")
    assert checks.taken() == ["/start", ""]
    values = parsed(file.read_text())
    assert {command for _, command in values} == {"backup", "index", "save"}
    for command in ("backup", "index", "save"):
        assert values["blobark_last_run_files", command] == 2
        assert values["blobark_last_run_bytes", command] == 1500
        assert values["blobark_last_success_timestamp_seconds", command] > 0
    whole = values["blobark_last_run_duration_seconds", "backup"]
    assert 0 < values["blobark_last_run_duration_seconds", "index"] < whole
    assert 0 < values["blobark_last_run_duration_seconds", "save"] < whole
    workspace.configure(hook_before="false")
    workspace.run("backup", expect=4)
    assert checks.taken() == ["/start", "/fail"]
    after = parsed(file.read_text())
    assert after["blobark_last_run_exit_code", "backup"] == 4
    assert {key: value for key, value in after.items() if key[1] != "backup"} == {
        key: value for key, value in values.items() if key[1] != "backup"
    }


def test_a_configuration_is_told_by_its_whole_path(workspace: Workspace) -> None:
    file = Path(workspace.settings["metrics_textfile"])
    file.parent.mkdir()
    assert workspace.forking.run("index", "--config", "config.yaml", cwd=workspace.folder).returncode == 0
    assert parsed(file.read_text())


def test_the_half_of_a_backup_that_failed_is_told(workspace: Workspace) -> None:
    file = Path(workspace.settings["metrics_textfile"])
    file.parent.mkdir()
    workspace.run("backup")
    before = parsed(file.read_text())
    workspace.source.rename(workspace.folder / "elsewhere")
    workspace.run("backup", expect=4)
    values = parsed(file.read_text())
    codes = {name: values["blobark_last_run_exit_code", name] for name in ("backup", "index", "save")}
    assert codes == {"backup": 4, "index": 4, "save": 0}
    ended = "blobark_last_run_timestamp_seconds"
    assert values[ended, "index"] > before[ended, "index"]
    assert values[ended, "save"] == before[ended, "save"]


def test_verifying_and_repairing_are_told_with_what_is_damaged(workspace: Workspace, checks: Checks) -> None:
    workspace.configure(ping_url=checks.url)
    file = Path(workspace.settings["metrics_textfile"])
    file.parent.mkdir()
    workspace.backup()
    workspace.run("verify")
    values = parsed(file.read_text())
    assert values["blobark_last_run_files", "verify"] == 2
    assert values["blobark_last_run_bytes", "verify"] == 1500
    assert values["blobark_last_run_failures", "verify"] == 0
    succeeded = values["blobark_last_success_timestamp_seconds", "verify"]

    (blob,) = workspace.store.glob(f"*/{workspace.guids()['a']}")
    blob.unlink()
    (workspace.source / "a").write_bytes(b"other")
    checks.taken()
    run = workspace.run("verify", expect=7)
    assert checks.taken() == ["/start", "/fail"]
    assert [item["path"] for item in run.result["items"]] == [f"{workspace.source}/a"]
    values = parsed(file.read_text())
    assert values["blobark_last_run_failures", "verify"] == 1
    assert values["blobark_last_run_exit_code", "verify"] == 7
    assert values["blobark_last_success_timestamp_seconds", "verify"] == succeeded

    workspace.run("repair", expect=7)
    assert checks.taken() == []
    assert "repair" not in {command for _, command in parsed(file.read_text())}
    workspace.run("repair", "--yes", expect=7)
    values = parsed(file.read_text())
    assert (values["blobark_last_run_files", "repair"], values["blobark_last_run_failures", "repair"]) == (0, 1)
    (workspace.source / "a").write_bytes(b"x" * 1000)
    workspace.run("repair", "--yes")
    values = parsed(file.read_text())
    for name, value in (("files", 1), ("bytes", 1000), ("failures", 0), ("exit_code", 0)):
        assert values[f"blobark_last_run_{name}", "repair"] == value


def test_a_verification_whose_result_cannot_be_written_failed(workspace: Workspace, checks: Checks) -> None:
    workspace.configure(metrics_textfile=str(workspace.folder / "x.prom"))
    for number in range(200):  # so many that they are not written all at once, at the end
        (workspace.source / f"more-{number}").write_bytes(b"%d" % number)
    workspace.backup()
    for key in workspace.guids().values():
        (workspace.store / key[-2:] / key).unlink()
    workspace.configure(ping_url=checks.url)
    with open("/dev/full", "w") as full:
        command = [*workspace.command("verify"), "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (4, 1)
    assert checks.taken() == ["/start", "/fail"]
    values = parsed((workspace.folder / "x.prom").read_text())
    assert values["blobark_last_run_exit_code", "verify"] == 4


def test_pruning_is_told_with_what_it_deletes(workspace: Workspace) -> None:
    file = Path(workspace.settings["metrics_textfile"])
    file.parent.mkdir()
    workspace.configure(keep={"last": 1})
    workspace.backup()
    (workspace.source / "a").write_bytes(b"other")
    workspace.backup()
    workspace.run("prune")
    assert "prune" not in {command for _, command in parsed(file.read_text())}
    workspace.run("prune", "--yes")
    assert parsed(file.read_text())["blobark_last_run_files", "prune"] == 0
    age(workspace.store, 1.1)
    deleted = workspace.run("prune", "--yes").result["deleting"]
    values = parsed(file.read_text())
    assert values["blobark_last_run_files", "prune"] == deleted["blobs"] > 0
    assert values["blobark_last_run_bytes", "prune"] == deleted["bytes"] > 1000
    assert values["blobark_last_run_exit_code", "prune"] == 0


def test_the_textfile_tells_of_the_last_run_of_each_command(workspace: Workspace) -> None:
    file = Path(workspace.settings["metrics_textfile"])
    file.parent.mkdir()
    before_s = time.time() - 1
    workspace.backup()
    workspace.run("restore")
    values = parsed(file.read_text())
    for command, files, size in (("index", 2, 1500), ("save", 2, 1500), ("restore", 2, 1500)):
        assert values["blobark_last_run_files", command] == files
        assert values["blobark_last_run_bytes", command] == size
        assert values["blobark_last_run_failures", command] == 0
        assert values["blobark_last_run_exit_code", command] == 0
        assert 0 < values["blobark_last_run_duration_seconds", command] < 60
        assert before_s < values["blobark_last_success_timestamp_seconds", command] <= time.time()
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert os.listdir(file.parent) == [file.name]
    succeeded = values["blobark_last_success_timestamp_seconds", "restore"]

    (blob,) = workspace.store.glob(f"*/{workspace.guids()['a']}")
    blob.write_bytes(b"damaged")
    (workspace.restored / "a").unlink()
    workspace.run("restore", expect=3)
    values = parsed(file.read_text())
    assert values["blobark_last_run_failures", "restore"] == 1
    assert values["blobark_last_run_exit_code", "restore"] == 3
    assert values["blobark_last_success_timestamp_seconds", "restore"] == succeeded
    assert values["blobark_last_run_timestamp_seconds", "restore"] > succeeded
    assert values["blobark_last_run_files", "save"] == 2

    workspace.store.rename(workspace.folder / "elsewhere")
    workspace.run("restore", expect=4)
    assert parsed(file.read_text())["blobark_last_run_exit_code", "restore"] == 4


def test_what_an_index_could_not_read_is_told_of_the_backup_too(workspace: Workspace) -> None:
    weak = Powerless(workspace.folder, workspace.source, metrics_textfile=workspace.settings["metrics_textfile"])
    file = Path(workspace.settings["metrics_textfile"])
    file.parent.mkdir()
    (weak.source / "sub").mkdir()
    (weak.source / "sub").chmod(0)
    weak.run("backup", expect=3)
    (weak.source / "sub").chmod(0o700)
    values = parsed(file.read_text())
    assert [values["blobark_last_run_failures", name] for name in ("index", "save", "backup")] == [1, 1, 1]


def test_a_dry_run_tells_nobody(workspace: Workspace, checks: Checks) -> None:
    Path(workspace.settings["metrics_textfile"]).parent.mkdir()
    workspace.configure(ping_url=checks.url)
    workspace.run("index", "--dry-run")
    assert checks.taken() == []
    assert not Path(workspace.settings["metrics_textfile"]).exists()


@pytest.mark.parametrize("there", ["no folder", "a folder", "another's file"])
def test_a_textfile_that_cannot_be_written_is_one_warning(workspace: Workspace, there: str) -> None:
    file = Path(workspace.settings["metrics_textfile"])
    if there == "a folder":
        file.mkdir(parents=True)
    if there == "another's file":
        file.parent.mkdir()
        file.write_text("node_load1 0.5\n")
    (warning,) = workspace.run("index").result["warnings"]
    assert warning.startswith("warning: metrics_textfile: ")
    if there == "another's file":
        assert file.read_text() == "node_load1 0.5\n"


def test_labels_are_escaped_and_others_lines_stay(tmp_path: Path) -> None:
    file = tmp_path / "x.prom"
    name = "blobark_last_run_files"
    write_textfile(file, {"command": "save", "config": 'a"b\\c\nd\udcff'}, {name: 1})
    write_textfile(file, {"command": "save", "config": "e"}, {name: 12345678901})
    write_textfile(file, {"command": "save", "config": 'a"b\\c\nd\udcff'}, {name: 3})
    odd = "a\rb\x0cc\u2028d"
    for value in (1, 2):
        write_textfile(file, {"command": "save", "config": odd}, {name: value})
    lines = [line for line in file.read_bytes().decode().split("\n") if not line.startswith("#")]
    assert lines == [
        name + '{command="save",config="' + odd + '"} 2',
        name + r'{command="save",config="a\"b\\c\nd\\udcff"} 3',
        name + '{command="save",config="e"} 12345678901',
        "",
    ]


def test_a_link_to_the_textfile_stays(tmp_path: Path) -> None:
    file, link = tmp_path / "x.prom", tmp_path / "link.prom"
    link.symlink_to(file)
    for value in (1, 2):
        write_textfile(link, {"command": "save"}, {"blobark_last_run_files": value})
        assert link.is_symlink()
    assert file.read_text().endswith('blobark_last_run_files{command="save"} 2\n')
    assert sorted(os.listdir(tmp_path)) == ["link.prom", "x.prom"]


def test_runs_that_end_at_the_same_moment_lose_no_line(tmp_path: Path) -> None:
    file = tmp_path / "x.prom"

    def write(number: int) -> None:
        for value in range(20):
            write_textfile(file, {"config": str(number)}, dict.fromkeys(FAMILIES, value))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 8 * len(FAMILIES)
    assert all(line.endswith(" 19") for line in lines)


def test_whoever_has_locked_the_folder_holds_up_no_run(workspace: Workspace) -> None:
    file = Path(workspace.settings["metrics_textfile"])
    file.parent.mkdir()
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        (warning,) = workspace.run("index").result["warnings"]
    finally:
        os.close(folder)
    assert warning.endswith("another process has locked its folder")
    workspace.run("index")
    assert parsed(file.read_text())["blobark_last_run_files", "index"] == 2


def test_a_health_check_hears_of_start_success_and_failure(workspace: Workspace, checks: Checks) -> None:
    workspace.configure(ping_url="${CHECK}/", metrics_textfile=str(workspace.folder / "x.prom"))
    workspace.environment["CHECK"] = checks.url
    workspace.run("index")
    assert checks.taken() == ["/start", ""]
    workspace.run("save")
    assert checks.taken() == ["/start", ""]
    workspace.configure(source_path=str(workspace.folder / "gone"))
    workspace.run("index", expect=4)
    assert checks.taken() == ["/start", "/fail"]


def test_a_ping_that_fails_is_a_warning_without_the_address(workspace: Workspace, checks: Checks) -> None:
    workspace.configure(ping_url=checks.url, metrics_textfile=str(workspace.folder / "x.prom"))
    checks.status = 404
    run = workspace.run("index")
    assert run.result["warnings"] == [
        "warning: ping_url: start could not be told (the answer was 404)",
        "warning: ping_url: success could not be told (the answer was 404)",
    ]
    assert SECRET not in run.stderr
    files = [path for path in workspace.folder.rglob("*") if path.is_file() and path != workspace.config]
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_the_address_keeps_its_query(checks: Checks) -> None:
    assert ping(f"{checks.url}/?create=1", "start") == ""
    assert checks.taken() == ["/start?create=1"]


def test_who_does_not_answer_is_not_waited_for() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        started_s = time.monotonic()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}{SECRET}"
        said = ping(address)
        assert time.monotonic() - started_s < 20
    assert said
    assert SECRET not in said
    assert ping(address) == "Connection refused"
