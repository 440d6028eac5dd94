"""A report as one page that needs nothing but a browser: charts, tables, and the library that draws them.

Whatever a run log says is escaped: in HTML as text, in the data as JSON without `<`. Beyond that the page forbids
itself every request, and every script but its own two (Content-Security-Policy).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from metrics.log import Run
from metrics.series import CHARTS, Chart, core_chart, thinned, values
from metrics.summaries import Named, Rows, facts, overview, seconds, stages

ASSETS = Path(__file__).with_name("page_assets")
POINTS = 3000
"""Points of each line, of all runs together: the page must stay small."""
MOST_CORES = 64
COLORS = 8
CHART_BUTTONS = '<button data-save="png">PNG</button><button data-save="svg">SVG</button>'
"""What saves the chart of a card."""


def page(runs: Sequence[Named]) -> str:
    """Return the page that lays these runs side by side."""
    points = max(50, POINTS // len(runs))
    shown = [_shown(item, points) for item in runs]
    _agree(shown)
    data = {"end_s": max(item.run.samples[-1].t_s for item in runs) or 1, "runs": shown}
    title = " / ".join(item.label for item in runs)
    body = f"""<section class="runs">{"".join(map(_verdict, runs))}</section>
<h2>Overview</h2>{_table(runs, overview(runs))}
<h2>Over time</h2><div><div class="tools"><button id="whole">Whole run</button>
<span class="soft">Drag, or use two fingers or Ctrl and the wheel, to zoom; all charts follow.</span></div>
{_over_time(runs, shown)}</div>
<h2>Where the threads' time went</h2><section class="runs">{"".join(map(_stages, runs))}</section>
<h2>Requests and files</h2><section class="runs{" pair" * (len(runs) == 1)}">{_by_class(runs, shown)}</section>
<h2>Failures</h2><section class="runs">{"".join(map(_failures, runs))}</section>
<h2>Machine and settings</h2>{_table(runs, facts(runs))}"""
    return shell(title, body, data, runs=len(runs))


def shell(title: str, body: str, data: dict[str, Any], *, runs: int) -> str:
    """Return a page with this title (text), body (HTML), and data for the charts in it, `runs` side by side."""
    # `</script>` and `<!--` would end, or change, the element that the data stand in.
    embedded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    library = (ASSETS / "echarts.common.min.js").read_text()
    scripts = (library, (ASSETS / "page.js").read_text())
    allowed = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(title)} - Blobark</title>
<style>{(ASSETS / "page.css").read_text()}</style></head>
<body style="--runs:{runs}">
<h1>{escaped(title)}</h1>
{body}
<script type="application/json" id="data">{embedded}</script>
<script>{scripts[0]}</script>
<script>{scripts[1]}</script>
</body></html>
"""


def _shown(item: Named, points: int) -> dict[str, Any]:
    """Return what the page draws of a run."""
    samples = thinned(item.run.samples, points)
    cores = min(MOST_CORES, max((len(sample.cpu_percents or []) for sample in samples), default=0))
    charts = {chart.key: _chart(chart, samples) for chart in (*CHARTS, core_chart(cores))}
    charts |= {"requests": _request_times(item.run), "sizes": _sizes(item.run)}
    return {"label": _plain(item.label), "t_s": [sample.t_s for sample in samples[1:]], "charts": charts}


def _chart(chart: Chart, samples: Sequence[Any]) -> dict[str, Any]:
    lines = []
    for place, line in enumerate(chart.lines):
        drawn = [None if value is None else float(f"{value:.4g}") for value in values(line, samples)]
        if any(drawn):
            lines.append([line.name, place % COLORS, drawn])
    return {"title": chart.title, "unit": chart.unit, "stacked": chart.stacked, "lines": lines}


def _agree(shown: list[dict[str, Any]]) -> None:
    """Give the charts of one kind the same height, so that runs can be compared by eye."""
    for chart in CHARTS:
        tops: list[float] = []
        for run in shown:
            lines = [[value or 0.0 for value in line[2]] for line in run["charts"][chart.key]["lines"]]
            tops += [max(map(sum, zip(*lines, strict=True)), default=0.0)] if chart.stacked else [max(x) for x in lines]
        for run in shown if len(shown) > 1 and any(tops) else ():
            run["charts"][chart.key]["top"] = float(f"{1.05 * max(tops):.2g}")


def _request_times(run: Run) -> dict[str, Any]:
    merged: dict[int, list[float]] = {}
    for upper_s, count in run.requests.buckets:  # of the four buckets to a doubling one bar
        bar = merged.setdefault(round(upper_s * 1e9 - 1).bit_length(), [upper_s, 0])
        bar[0], bar[1] = max(bar[0], upper_s), bar[1] + count
    classes = [f"≤ {seconds(upper_s)}" for upper_s, _ in merged.values()]
    lines = [["requests", 0, [count for _, count in merged.values()]]] if merged else []
    return {"title": "Time of a request", "unit": "", "classes": classes, "lines": lines}


def _sizes(run: Run) -> dict[str, Any]:
    sizes = run.summary.sizes if run.summary else []
    classes = [f"< {_short(upper)}" for upper, _, _ in sizes]
    lines = [["files", 0, [count for _, count, _ in sizes]], ["thread seconds", 1, [spent for _, _, spent in sizes]]]
    return {"title": "Files by size, and their time", "unit": "", "classes": classes, "lines": lines if sizes else []}


def _short(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}"
        size /= 1024
    return f"{size:,.0f} TiB"


def _over_time(runs: Sequence[Named], shown: list[dict[str, Any]]) -> str:
    keys = [*(chart.key for chart in CHARTS), "cores"]
    rows = [_cards(key, runs, shown) for key in keys if any(run["charts"][key]["lines"] for run in shown)]
    if len(runs) == 1:
        return f'<section class="runs pair">{"".join(rows)}</section>'
    return "".join(f'<section class="runs">{row}</section>' for row in rows)


def _by_class(runs: Sequence[Named], shown: list[dict[str, Any]]) -> str:
    return _cards("requests", runs, shown) + _cards("sizes", runs, shown)


def _cards(key: str, runs: Sequence[Named], shown: list[dict[str, Any]]) -> str:
    cards = []
    for place, (item, run) in enumerate(zip(runs, shown, strict=True)):
        chart = run["charts"][key]
        label = f"{chart['unit']} · {item.label}" if len(runs) > 1 else chart["unit"]
        drawn = f'<div class="chart" data-run="{place}" data-chart="{key}"></div>'
        empty = '<p class="soft">nothing was measured</p>'
        cards.append(
            f'<article class="card"><div class="head"><h3>{escaped(chart["title"])}</h3>'
            f'<span class="soft">{escaped(label)}</span>{CHART_BUTTONS if chart["lines"] else ""}</div>'
            f"{drawn if chart['lines'] else empty}</article>"
        )
    return "".join(cards)


def _verdict(item: Named) -> str:
    evidence = "".join(f"<li>{escaped(line)}</li>" for line in item.verdict.evidence)
    return (
        f'<article class="card"><p class="name">{escaped(item.label)}</p>'
        f'<p class="soft">what held it up</p><p class="verdict">{escaped(item.verdict.name)}</p>'
        f"<ul>{evidence}</ul></article>"
    )


def _stages(item: Named) -> str:
    rows = "".join(
        f'<tr><td class="word">{escaped(name)}</td>'
        f'<td class="share"><span class="bar" style="width:{100 * share:.1f}%"></span></td>'
        f'<td class="n">{100 * share:.1f} %</td><td class="n">{count:,}</td>'
        + "".join(f'<td class="n">{seconds(value)}</td>' for value in percentiles)
        + "</tr>"
        for name, share, count, percentiles in stages(item.run)
    )
    heads = "<th>stage</th><th></th>" + "".join(f'<th class="n">{t}</th>' for t in ("", "count", "p50", "p95", "p99"))
    return (
        f'<article class="card"><p class="name">{escaped(item.label)}</p>'
        f'<div class="scroll"><table><tr>{heads}</tr>{rows}</table></div></article>'
    )


def _failures(item: Named) -> str:
    summary = item.run.summary
    failures = summary.failures if summary else []
    rows = "".join(
        f'<tr><td class="bad">{escaped(path)}</td><td>{escaped(reason)}</td></tr>' for path, reason in failures
    )
    more = (summary.failed if summary else 0) - len(failures)
    note = f'<p class="soft">and {more:,} more</p>' if more > 0 else ""
    body = f'<div class="scroll"><table>{rows}</table></div>{note}' if rows else '<p class="soft">none</p>'
    return f'<article class="card"><p class="name">{escaped(item.label)}</p>{body}</article>'


def _table(runs: Sequence[Named], rows: Rows) -> str:
    head = "".join(f"<th>{escaped(item.label)}</th>" for item in runs)
    body = "".join(
        f"<tr><th>{escaped(name)}</th>{''.join(f'<td>{escaped(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows
    )
    return f'<div class="card scroll"><table><tr><th></th>{head}</tr>{body}</table></div>'


def escaped(text: str) -> str:
    """Return a text as HTML."""
    return escape(_plain(text))


def _plain(text: str) -> str:
    """Return a text that can be encoded: a name that is not UTF-8 keeps its odd bytes as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
