"""`blobark sweep`: what it tries, writes and leaves behind; and its page in a real browser."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import stat
from pathlib import Path

import psutil
import pytest
import yaml
from playwright.sync_api import expect

from metrics.sweep_page import TOO_SHORT, knee, page, recommended, settings_of
from tests.chromium_browser import chromium
from tests.runs import Workspace, wait_until
from tests.trials import is_restoring, leftovers


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    for number in range(30):
        (source / "below" / str(number)).write_bytes(bytes([number]) * 900)
    made = Workspace(tmp_path / "work", source)
    made.backup()
    return made


def test_every_setting_is_tried_as_often_and_the_knee_is_one(workspace: Workspace) -> None:
    out = workspace.folder / "out.html"
    result = workspace.run("sweep", "--workers", "1,2,auto", "--repeat", "2", "--out", str(out)).result
    assert [(setting["name"], len(setting["seconds"])) for setting in result["settings"]] == [
        ("1", 2),
        ("2", 2),
        ("auto", 2),
    ]
    assert result["files"] == 30
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["max_workers"] for row in rows) == ["1", "1", "2", "2", "auto", "auto"]
    assert json.loads(out.with_suffix(".json").read_bytes())["runs"] == result["runs"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert leftovers(workspace) == []
    assert not workspace.restored.exists()
    assert not workspace.metrics.exists()


def test_what_took_long_enough_gets_a_line(workspace: Workspace) -> None:
    workspace.configure(max_requests_per_s=10)
    options = ("--workers", "2", "--repeat", "1", "--out", str(workspace.folder / "out.html"))
    result = workspace.run("sweep", *options).result
    assert (result["knee"], result["line"]) == ("2", "max_workers: 2")


def test_what_is_too_little_to_tell_gets_no_line(workspace: Workspace) -> None:
    shutil.rmtree(workspace.source / "below")
    (workspace.source / "below").mkdir()
    workspace.backup("--allow-shrink", str(workspace.source))
    out = workspace.folder / "out.html"
    options = ("--workers", "2", "--repeat", "1", "--out", str(out))
    result = workspace.run("sweep", *options).result
    assert (result["knee"], result["line"]) == ("", "")
    assert TOO_SHORT in out.read_text()
    assert f"nothing: {TOO_SHORT}" in workspace.execute("sweep", *options).stdout.decode()


def test_packs_frames_and_equal_files_are_swept_too(workspace: Workspace) -> None:
    for name in ("equal", "again"):
        (workspace.source / name).write_bytes(b"the same " * 1000)
    (workspace.source / "large").write_bytes(b"large" * (2 << 20))
    settings = {"pack_below": "64KiB", "compression": "zstd", "dedupe": True}
    workspace.configure(
        store=str(workspace.folder / "other"), state_dir=str(workspace.folder / "other-state"), **settings
    )
    workspace.backup()
    options = ("--workers", "1,auto", "--repeat", "1", "--out", str(workspace.folder / "out.html"))
    assert workspace.run("sweep", *options).result["files"] == 33
    sampled = workspace.run("sweep", *options, "--sample", "50%").result
    assert 5 < sampled["files"] < 30
    assert leftovers(workspace) == []


def test_the_order_is_that_of_the_seed_and_the_sample_is_a_sample(workspace: Workspace) -> None:
    orders = []
    for seed in ("1", "1", "5"):
        options = ("--workers", "1,2,3,4", "--repeat", "1", "--sample", "40%", "--seed", seed)
        result = workspace.run("sweep", *options, "--out", str(workspace.folder / "out.html")).result
        orders.append([name for name, _ in result["runs"]])
        assert 3 < result["files"] < 25
    assert orders[0] == orders[1] != orders[2]


def test_the_lines_for_the_configuration_can_be_copied(workspace: Workspace) -> None:
    workspace.configure(max_requests_per_s=10)
    out = workspace.folder / "out.html"
    options = ("--workers", "2", "--part-size", "4M", "--repeat", "1", "--out", str(out))
    said = workspace.execute("sweep", *options).stdout.decode().splitlines()
    (at,) = [number for number, line in enumerate(said) if "for config.yaml" in line]
    assert [line.removeprefix("  for config.yaml").strip() for line in said[at : at + 2]] == [
        "max_workers: 2",
        "part_size: 4M",
    ]
    assert "max_workers: 2<br>part_size: 4M" in out.read_text()
    workspace.configure(**yaml.safe_load(json.loads(out.with_suffix(".json").read_bytes())["line"]))
    workspace.run("restore")
    assert json.loads(workspace.metrics.read_bytes())["run"]["settings"]["part_bytes"] == 4 << 20


def test_its_restores_leave_no_journal_and_monitoring_is_not_told(workspace: Workspace) -> None:
    textfile = workspace.folder / "x.prom"
    workspace.configure(journals=2, metrics_textfile=str(textfile))
    workspace.backup()
    journals, told = sorted((workspace.state / "journals").iterdir()), textfile.read_bytes()
    workspace.run("sweep", "--workers", "1", "--repeat", "2", "--out", str(workspace.folder / "out.html"))
    assert sorted((workspace.state / "journals").iterdir()) == journals
    assert textfile.read_bytes() == told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whoever_stops_it_finds_no_scratch_folder(workspace: Workspace, number: signal.Signals) -> None:
    workspace.configure(max_requests_per_s=5)
    with workspace.started("sweep", "--workers", "1,2") as process:
        wait_until(lambda: is_restoring(workspace), process)
        process.send_signal(number)
        assert process.wait(60) == 130
    assert leftovers(workspace) == []


def test_one_that_is_killed_leaves_no_restore_running(workspace: Workspace) -> None:
    for number in range(300):
        (workspace.source / f"{number}").write_bytes(b"%d" % number)
    workspace.backup()
    workspace.configure(max_requests_per_s=2)
    with workspace.started("sweep", "--workers", "1") as process:
        wait_until(lambda: is_restoring(workspace), process)
        restores = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
    assert restores
    _, alive = psutil.wait_procs(restores, timeout=60)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []


def test_a_restore_that_fails_ends_it_with_its_reason(workspace: Workspace) -> None:
    for blob in workspace.store.glob("??/*"):
        blob.write_bytes(b"x")
    done = workspace.run("sweep", "--workers", "1", "--repeat", "1", expect=4)
    assert "a restore of the sweep failed: below/" in done.stderr
    assert leftovers(workspace) == []


@pytest.mark.parametrize("workers", ["", "0", "513", "4,", "four", "-1"])
def test_workers_that_are_none_are_refused(workspace: Workspace, workers: str) -> None:
    assert "is no list of numbers" in workspace.run("sweep", f"--workers={workers}", expect=2).stderr


def test_a_place_that_takes_no_page_is_one_line_before_anything_is_restored(workspace: Workspace) -> None:
    out = workspace.folder / "none" / "out.html"
    done = workspace.run("sweep", "--workers", "1", "--out", str(out), expect=2)
    assert "there is no folder" in done.stderr
    assert not (workspace.state / "restores.jsonl").exists()


@pytest.mark.parametrize(
    ("medians", "wanted"),
    [
        ({"1": 8.0, "4": 2.1, "16": 2.0, "auto": 1.95}, "4"),
        ({"16": 2.0, "4": 2.0}, "4"),
        ({"1": 8.0, "4": 4.0, "16": 2.0}, "16"),
        ({"4": 4.0, "auto": 2.0}, "auto"),
        ({"4": 4.0}, "4"),
    ],
)
def test_the_knee_is_the_fewest_workers_that_are_nearly_as_quick(medians: dict[str, float], wanted: str) -> None:
    assert knee(settings_of(list(medians), list(medians.items()))) == wanted


@pytest.mark.parametrize(("least_s", "files", "wanted"), [(1.0, 1, "2"), (1.0, 0, ""), (0.9, 9, "")])
def test_no_files_and_short_runs_tell_nothing(least_s: float, files: int, wanted: str) -> None:
    assert recommended(settings_of(["2", "8"], [("2", 1.05), ("8", least_s)]), files) == wanted


def test_the_page_draws_and_marks_the_knee(tmp_path: Path) -> None:
    settings = settings_of(["2", "8"], [("2", 4.0), ("8", 2.0), ("2", 5.0), ("8", 2.1)])
    html = tmp_path / "sweep.html"
    html.write_text(page({"snapshot": "1 of <script>alert(1)</script>"}, settings, "8"))
    assert html.stat().st_size < 3_000_000
    wrong: list[str] = []
    with chromium() as browser:
        opened = browser.new_page()
        opened.on("console", lambda message: wrong.append(message.text))
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.goto(html.as_uri())
        expect(opened.locator(".chart canvas")).to_be_visible()
        expect(opened.get_by_text("8 (the knee)")).to_be_visible()
        expect(opened.get_by_text("1 of <script>alert(1)</script>")).to_be_visible()
        names = opened.evaluate("echarts.getInstanceByDom(document.querySelector('.chart')).getOption().xAxis[0].data")
    assert names == ["2", "8 (knee)"]
    assert wrong == []
