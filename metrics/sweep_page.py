"""What a sweep found, as numbers and as a page: a bar and a row for each setting."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from statistics import median

import msgspec

from metrics.page import CHART_BUTTONS, escaped, shell

KNEE = 0.10
"""A median within this share of the best one is nearly as quick."""
LEAST_S = 1.0
"""What takes less says more of the machine's mood than of a setting."""
TOO_SHORT = "too short to tell: sweep what takes each setting a second at least"


class Setting(msgspec.Struct, frozen=True):
    """A setting and the seconds of its restores."""

    name: str
    median_s: float
    least_s: float
    most_s: float
    seconds: list[float]

    @property
    def spread(self) -> float:
        """How far its restores lie apart, as a share of the median."""
        return (self.most_s - self.least_s) / self.median_s if self.median_s else 0.0


def settings_of(names: Sequence[str], runs: Sequence[tuple[str, float]]) -> list[Setting]:
    """Sum up runs of (setting, seconds), in the order of `names`; each has one run at least."""
    found = []
    for name in dict.fromkeys(names):
        seconds = [took_s for of, took_s in runs if of == name]
        found.append(Setting(name, round(median(seconds), 3), min(seconds), max(seconds), seconds))
    return found


def knee(settings: Sequence[Setting]) -> str:
    """Return the setting of the fewest workers that is nearly as quick as the quickest; `auto` counts as the most."""
    best_s = min(setting.median_s for setting in settings)
    good = [setting for setting in settings if setting.median_s <= best_s * (1 + KNEE)]
    return min(good, key=lambda setting: (_workers(setting.name), setting.median_s)).name


def recommended(settings: Sequence[Setting], files: int) -> str:
    """Return the knee, "" where so few files, or restores as short as these, cannot tell one."""
    is_telling = files > 0 and all(setting.median_s >= LEAST_S for setting in settings)
    return knee(settings) if is_telling else ""


def named(workers: str, part_size: str) -> str:
    """Return what a setting is called; part_size is "" where it is not swept."""
    return f"{workers}, {part_size}" if part_size else workers


def parts_of(name: str) -> tuple[str, str]:
    """Return max_workers and part_size of a setting by its name."""
    workers, _, part_size = name.partition(", ")
    return workers, part_size


def _workers(name: str) -> float:
    workers, _ = parts_of(name)
    return float("inf") if workers == "auto" else int(workers)


def csv_text(runs: Sequence[tuple[str, float]]) -> str:
    """Return the runs in the order they were made, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "max_workers", "part_size", "seconds"])
    writer.writerows([number, *parts_of(name), f"{took_s:.3f}"] for number, (name, took_s) in enumerate(runs, 1))
    return text.getvalue()


def page(about: Mapping[str, str], settings: Sequence[Setting], marked: str) -> str:
    """Return the page; `about` are facts, `marked` is the setting to choose, "" for none."""
    names = [f"{setting.name} (knee)" if setting.name == marked else setting.name for setting in settings]
    medians = [setting.median_s for setting in settings]
    chart = {"title": "Seconds by setting", "unit": "s", "classes": names, "lines": [["median, s", 0, medians]]}
    data = {"end_s": 1, "runs": [{"label": "sweep", "t_s": [], "charts": {"sweep": chart}}]}
    facts = "".join(f"<tr><th>{escaped(name)}</th><td>{_lines(value)}</td></tr>" for name, value in about.items())
    heads = "".join(f'<th class="n">{text}</th>' for text in ("median, s", "least, s", "most, s", "spread", "runs"))
    rows = "".join(_row(setting, setting.name == marked) for setting in settings)
    note = "the knee is the fewest workers that are nearly as quick as any" if marked else TOO_SHORT
    body = f"""<div class="card scroll"><table>{facts}</table></div>
<h2>Seconds by setting</h2>
<article class="card"><div class="head"><h3>{chart["title"]}</h3><span class="soft">{note}</span>{CHART_BUTTONS}</div>
<div class="chart" data-run="0" data-chart="sweep"></div></article>
<h2>Settings</h2><div class="card scroll"><table><tr><th>max_workers, part_size</th>{heads}</tr>{rows}</table></div>"""
    return shell("Sweep", body, data, runs=1)


def _lines(text: str) -> str:
    return "<br>".join(map(escaped, text.splitlines()))


def _row(setting: Setting, is_knee: bool) -> str:
    cells = (setting.median_s, setting.least_s, setting.most_s)
    figures = "".join(f'<td class="n">{value:,.3f}</td>' for value in cells)
    name = f"<b>{escaped(setting.name)}</b> (the knee)" if is_knee else escaped(setting.name)
    more = f'<td class="n">{setting.spread:.0%}</td><td class="n">{len(setting.seconds)}</td>'
    return f"<tr><td>{name}</td>{figures}{more}</tr>"
