"""`blobark report` without its page: what it says, its CSV and JSON, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.run_logs import document, write
from tests.runs import Workspace


def run(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blobark", "report", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def refused(*options: object) -> str:
    """Return the one line of a report that is refused."""
    done = run(*options)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line


def test_a_real_run_is_shown_and_its_page_and_series_are_written(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(50):
        (source / str(number)).write_bytes(os.urandom(2000))
    workspace = Workspace(tmp_path / "work", source)
    workspace.backup()
    workspace.run("restore")
    done = run(workspace.metrics, workspace.folder / "save-metrics.json", "--csv", tmp_path / "x.csv")
    assert (done.returncode, done.stderr) == (0, "")
    assert "50 (100.0 kB)" in done.stdout
    assert "held up by" in done.stdout
    assert "\x1b" not in done.stdout
    page = workspace.metrics.with_suffix(".html")
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert page.stat().st_size < 3_000_000
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {"metrics.json", "save-metrics.json"}
    assert all(float(row["process_rss_mb"]) > 10 for row in rows)


def test_json_has_the_figures(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one.json", document()), write(tmp_path / "other.json", document(10))
    done = run(one, other, "--json", "--html", tmp_path / "both.html")
    result = json.loads(done.stdout)
    assert (result["command"], result["exit_code"], result["html"]) == ("report", 0, str(tmp_path / "both.html"))
    assert [each["elapsed_s"] for each in result["runs"]] == [20, 10]
    assert result["runs"][0]["stages"]["request"]["share"] == pytest.approx(1 / 1.75)
    assert result["runs"][0]["stages"]["request"]["p50_s"] == pytest.approx(0.01, rel=0.2)
    assert result["runs"][0]["verdict"] == "store latency"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.html", "one.json", "other.json"]


def test_the_series_are_rates_between_samples(tmp_path: Path) -> None:
    run(write(tmp_path / "run.json", document(5)), "--csv", tmp_path / "run.csv", "-q")
    with (tmp_path / "run.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["t_s"]) for row in rows] == [1, 2, 3, 4, 5]
    assert {row["disk_write_mb_per_s"] for row in rows} == {"5.000"}
    assert {row["files_per_s"] for row in rows} == {"100.000"}
    assert {row["cpu_percent"] for row in rows} == {"40.000"}
    assert {row["disk_busy_percent"] for row in rows} == {"10.000"}


def test_a_killed_run_is_shown_as_far_as_it_came(tmp_path: Path) -> None:
    log = document(8)
    log["summary"] = log["stages"] = None
    done = run(write(tmp_path / "run.json", log))
    assert done.returncode == 0, done.stderr
    assert "no: killed, or still going on" in done.stdout
    assert "800 so far" in done.stdout


def test_gaps_are_gaps(tmp_path: Path) -> None:
    log = document(8)
    for sample in log["samples"]:
        for name in [name for name in sample if name not in ("t_s", "time")]:
            sample[name] = None
    log["run"] = {"kind": "save"}
    done = run(write(tmp_path / "run.json", log), "--csv", tmp_path / "run.csv")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run.csv").read_text().splitlines()[1].endswith(",,,,,,,")


@pytest.mark.parametrize("names", ["\udcff.json", "a\nb.json", "<script>.json"])
def test_names_of_any_kind_are_shown_printable(tmp_path: Path, names: str) -> None:
    log = document(failed=1, failures=[["\udc80\x1b[31m", "because"]])
    done = run(write(tmp_path / names, log), "--csv", tmp_path / "x.csv")
    assert done.returncode == 0, done.stderr
    assert all(line.isprintable() for line in done.stdout.splitlines())


def changed(**changes: Any) -> str:
    return json.dumps({**document(3), **changes})


BAD = {
    "newer": (changed(format=3), "written by a newer version of Blobark (format 3; this one reads 2)"),
    "older": (changed(format=1), "written by an older version of Blobark (format 1; this one reads 2)"),
    "cut": (changed()[:700], "a run log that was cut short, or damaged"),
    "empty": ("", "not a run log"),
    "binary": ("\x00\x01", "not a run log"),
    "a list": ("[1, 2]", "not a run log"),
    "another's": ('{"a": 1}', "not a run log"),
    "no samples": (changed(samples=[]), "a run log without samples"),
    "deep": ('{"format": ' + "[" * 100_000, "a run log that was cut short, or damaged"),
    "not finite": (changed(samples=[{"t_s": 1}]).replace('"t_s": 1', '"t_s": 1e999'), "cut short, or damaged"),
    "too large": (changed(samples=[{"t_s": 1, "requests": 1e308}]), "cut short, or damaged"),
    "much too large": (changed(samples=[{"t_s": 10**400}]), "cut short, or damaged"),
    "a wrong type": (changed(samples=[{"t_s": "x"}]), "a run log that is damaged (Expected `float`, got `str`"),
    "wrong stages": (changed(stages={"request": {"buckets": [[1]]}}), "a run log that is damaged"),
    "a negative count": (changed(stages={"request": {"buckets": [[0.5, -3]]}}), "a run log that is damaged"),
    "wrong failures": (changed(summary={"failures": [["x"]]}), "a run log that is damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_run_log_gets_one_line(tmp_path: Path, name: str) -> None:
    text, said = BAD[name]
    path = tmp_path / "run.json"
    path.write_text(text)
    line = refused(path)
    assert line.startswith(f"blobark: {path}: ")
    assert said in line
    assert sorted(tmp_path.iterdir()) == [path]


def test_other_mistakes_get_one_line(tmp_path: Path) -> None:
    good = write(tmp_path / "run.html", document(2))
    assert "there is no such file" in refused(tmp_path / "none.json")
    assert "cannot be read (Is a directory)" in refused(tmp_path)
    assert "is a run log, and would be written over" in refused(good)
    assert "is a run log, and would be written over" in refused(good, "--html", "x", "--csv", good)
    log = write(tmp_path / "log.json", document(2))
    assert "cannot be the page and the CSV" in refused(log, "--html", tmp_path / "x", "--csv", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert "RUN" in refused()
    done = run(good, "--html", tmp_path / "none" / "x.html")
    assert done.returncode == 4
    assert "cannot be written (No such file or directory)" in done.stderr


def test_what_is_no_file_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    log, kept = write(tmp_path / "run.json", document(5)), tmp_path / "kept.csv"
    nowhere, link = tmp_path / "nowhere", tmp_path / "link.csv"
    nowhere.symlink_to("/dev/null")
    link.symlink_to(kept)
    done = run(log, "-q", "--html", nowhere, "--csv", link)
    assert (done.returncode, done.stderr) == (0, "")
    assert (os.readlink(nowhere), os.readlink(link)) == ("/dev/null", str(kept))
    done = run(log, "-q", "--html", nowhere, "--csv", "/proc/self/fd/1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == kept.read_text()
    assert len(done.stdout.splitlines()) == 6


@pytest.mark.parametrize("wrong", ["many", [1], {}, None])
def test_settings_of_any_kind_do_no_harm(tmp_path: Path, wrong: object) -> None:
    log = document(5, stages={"held": 2.0, "request": 0.2})
    log["run"]["settings"] = dict.fromkeys(("max_bandwidth", "max_requests_per_s", "max_workers"), wrong)
    done = run(write(tmp_path / "run.json", log))
    assert (done.returncode, done.stderr) == (0, "")


def test_odd_numbers_do_no_harm(tmp_path: Path) -> None:
    log = document(4)
    log["samples"][2]["t_s"] = log["samples"][1]["t_s"]
    log["samples"][1]["t_s"] = 5e-324
    log["samples"][3]["requests"] = -(10**30)
    log["samples"][4]["cpu_percents"] = [1.0] * 300
    log["summary"]["sizes"] = [[0, 0, 0]]
    done = run(write(tmp_path / "run.json", log))
    assert done.returncode == 0, done.stderr
