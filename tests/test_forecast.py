"""`blobark forecast`: what real restores leave behind for it, and what it says."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from blobark.wording import times
from tests.runs import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    for number in range(20):
        (source / "below" / str(number)).write_bytes(bytes([number]) * 100 * number)
    (source / "large").write_bytes(b"x" * (9 << 20))
    made = Workspace(tmp_path / "work", source)
    made.backup()
    return made


def notes(workspace: Workspace) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workspace.state / "restores.jsonl").read_bytes().splitlines()]


def restore_anew(workspace: Workspace, name: str) -> dict[str, Any]:
    return workspace.run("restore", "--to", str(workspace.folder / name)).result


def test_a_restore_is_noted_with_its_work_and_a_dry_run_is_not(workspace: Workspace) -> None:
    workspace.run("restore", "--dry-run")
    assert not (workspace.state / "restores.jsonl").exists()
    assert restore_anew(workspace, "one")["forecast_s"] is None
    (noted,) = notes(workspace)
    assert (noted["files"], noted["bytes"]) == (21, 19_000 + (9 << 20))
    assert noted["sizes"] == [[1, 1], [128, 1], [256, 1], [512, 3], [1024, 5], [2048, 9], [1 << 24, 1]]
    assert noted["settings"]["store_kind"] == "folder"
    assert noted["seconds"] > 0
    assert stat.S_IMODE((workspace.state / "restores.jsonl").stat().st_mode) == 0o600


def test_the_next_restore_shows_how_far_the_forecast_was_off(workspace: Workspace) -> None:
    restore_anew(workspace, "one")
    result = restore_anew(workspace, "two")
    low_s, expected_s, high_s = result["forecast_s"]
    assert low_s < expected_s < high_s
    assert notes(workspace)[1]["forecast_s"] == result["forecast_s"]
    shown = workspace.execute("restore", "--to", str(workspace.folder / "three")).stdout.decode()
    assert "forecast" not in shown  # of a second nobody wants to know
    assert times((8.0, 10.0, 13.0), 14.0) == "10.0 s (8.0 s to 13.0 s), took 14.0 s"
    assert workspace.run("forecast").result["forecasts"] == 2


def test_a_forecast_says_how_long_and_what_it_rests_on(workspace: Workspace) -> None:
    for name in ("one", "two", "three"):
        restore_anew(workspace, name)
    result = workspace.run("forecast", "--rto", "2h").result
    took = sorted(noted["seconds"] for noted in notes(workspace))
    assert result["low_s"] < took[1] < result["high_s"]
    assert (result["runs"], result["alike"], result["files"], result["snapshot"]) == (3, 3, 21, 1)
    shown = workspace.execute("forecast", "--snapshot", "1").stdout.decode()
    assert "3 measured restores, 3 with this store and these settings" in shown


def test_an_objective_that_would_be_missed_is_exit_code_6(workspace: Workspace) -> None:
    restore_anew(workspace, "one")
    missed = workspace.run("forecast", "--rto", "0.001s", expect=6)
    assert missed.result["exit_code"] == 6
    assert "MISSED" in workspace.execute("forecast", "--rto", "0.001s").stdout.decode()


def test_without_a_measured_restore_it_is_one_line_and_exit_code_2(workspace: Workspace) -> None:
    line = workspace.run("forecast", expect=2).stderr.strip()
    assert "no restore has been measured yet" in line
    assert len(line.splitlines()) == 1


def test_a_restore_that_had_nothing_to_do_is_no_measure(workspace: Workspace) -> None:
    restore_anew(workspace, "one")
    restore_anew(workspace, "one")
    assert notes(workspace)[1]["kept"] > 0
    assert workspace.run("forecast").result["runs"] == 1


def test_another_number_of_workers_is_not_alike(workspace: Workspace) -> None:
    restore_anew(workspace, "one")
    workspace.configure(max_workers=2)
    restore_anew(workspace, "two")
    result = workspace.run("forecast").result
    assert (result["runs"], result["alike"]) == (2, 1)


def test_lines_that_are_cut_short_or_newer_are_counted_and_passed_over(workspace: Workspace) -> None:
    restore_anew(workspace, "one")
    path = workspace.state / "restores.jsonl"
    good = json.loads(path.read_bytes())
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, "format": 99}) + "\n" + json.dumps(good)[:40] + "\n")
    result = workspace.run("forecast").result
    assert (result["runs"], result["unreadable"]) == (1, 2)


def test_lines_with_numbers_that_no_restore_has_do_no_harm(workspace: Workspace) -> None:
    restore_anew(workspace, "one")
    path = workspace.state / "restores.jsonl"
    good = json.loads(path.read_bytes())
    odd = ({"bytes": -(2**62)}, {"seconds": 5e-324}, {"forecast_s": [0, 0, 0]})
    path.write_text("".join(json.dumps({**good, **changes}) + "\n" for changes in ({}, *odd)))
    result = workspace.run("forecast").result
    assert (result["runs"], result["unreadable"], result["median_error"]) == (2, 1, None)


def test_only_the_newest_lines_stay(workspace: Workspace) -> None:
    restore_anew(workspace, "one")
    path = workspace.state / "restores.jsonl"
    path.write_bytes(path.read_bytes() * 1000)
    restore_anew(workspace, "two")
    assert len(notes(workspace)) == 501
    assert notes(workspace)[-1]["forecast_s"] is not None


def test_a_state_folder_that_takes_nothing_costs_a_warning(workspace: Workspace) -> None:
    (workspace.state / "restores.jsonl").mkdir()
    done = workspace.run("restore")
    assert "restores.jsonl cannot be written" in done.stderr
    assert workspace.run("forecast", expect=4).stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["", "2", "two hours", "0h", "-1h", "1y"])
def test_an_objective_that_is_no_time_is_refused(workspace: Workspace, text: str) -> None:
    assert "is not a time such as 90m or 2h" in workspace.run("forecast", f"--rto={text}", expect=2).stderr
