"""What is printed: the machine, the tools, and one table."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from bench.measure import Cost
from bench.tools import Tool
from metrics.readings import Readings

Costs = Mapping[tuple[str, str], Sequence[Cost]]
"""By step and tool: one cost a round."""

MB = 1_000_000
LOAD_AT_START = os.getloadavg()[0]


def heading(work: Path, what: str, tools: Sequence[Tool]) -> str:
    """Return what was measured, with which versions, where and when."""
    facts = Readings(work).facts()
    memory_gib = int(str(facts["memory_bytes"] or 0)) / 2**30
    versions = ", ".join(f"{tool.name} {tool.version}" for tool in tools)
    return (
        f"{what}.\n{versions}; Python {platform.python_version()}.\n"
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {facts['cores']} cores ({_processor()}), {memory_gib:.0f} GiB, "
        f"{facts['file_system']}, {facts['kernel']}, load average at the start {LOAD_AT_START:.1f}."
    )


def comparison(costs: Costs, files: int, own: str) -> str:
    """Return the table that sets `own` against the others, step by step."""
    rows = [
        ["step", "tool", "wall s", "(from, to)", "files/s", "CPU s", "CPU ms/file", "peak MB"],
    ]
    is_counted = any(cost.requests for measured in costs.values() for cost in measured)
    rows[0] += [*(["requests"] if is_counted else []), f"{own}: speed", f"{own}: CPU/file"]
    for (step, tool), measured in costs.items():
        walls = [cost.wall_s for cost in measured]
        cpu_s = median(cost.cpu_s for cost in measured)
        row = [step, tool, f"{median(walls):.2f}", f"{min(walls):.2f}, {max(walls):.2f}"]
        row += [f"{files / median(walls):,.0f}", f"{cpu_s:.2f}", f"{cpu_s / files * 1000:.3f}"]
        row += [f"{median(cost.peak_bytes for cost in measured) / MB:.0f}"]
        row += [f"{median(cost.requests for cost in measured):,.0f}"] if is_counted else []
        ours = costs.get((step, own))
        if ours and tool != own:
            pairs = list(zip(ours, measured, strict=True))
            row += [f"{median(peer.wall_s / our.wall_s for our, peer in pairs):.2f}x"]
            row += [f"{median(our.cpu_s / peer.cpu_s for our, peer in pairs):.2f}x"]
        rows.append(row)
    return markdown(rows, left=2)


def markdown(rows: Sequence[Sequence[str]], left: int) -> str:
    """Return a table in Markdown that is as readable as it is; the first row is its head, `left` columns are text."""
    columns = range(len(rows[0]))
    full = [[row[column] if column < len(row) else "" for column in columns] for row in rows]
    widths = [max(len(row[column]) for row in full) for column in columns]
    lines = []
    for row in full:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rule = ["-" * width if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
