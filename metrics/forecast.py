"""How long a restore will take, from how long others took. Pure: it reads no file and no clock.

    seconds = fixed + per_file * files + per_small * bytes of files below 8 MiB + per_large * bytes of larger ones

The four costs are found in logarithms, so none can be negative. What is known before any run is a wide prior (PRIOR,
each within a factor of PRIOR_FACTOR, two times of three); each run then counts by how far its logarithm is off, in
Gauss-Newton steps. The interval is that of the Bayesian answer: what the runs scatter, and what they leave open about
the four costs, both with the fat tails that few runs have. A run that was made otherwise (another store, other
workers) counts as one that is less exact, and one that is far off all others counts for little (TAIL).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

LARGE_BYTES = 8 << 20
"""From here on a file is restored in blocks."""

PRIOR = (0.5, 0.001, 1 / 100e6, 1 / 200e6)
"""Seconds: of any run, of a file, of a byte in files below LARGE_BYTES, of one in larger ones."""
PRIOR_FACTOR = 4.0
NOISE = 0.15
"""How far runs of one kind scatter, as a logarithm, before any was seen; that counts like NOISE_RUNS runs."""
NOISE_RUNS = 2
TAIL = 4.0
"""Runs scatter like Student's t with so many degrees of freedom."""
ROUNDS = 10
"""Costs for a scatter, then the scatter about these costs: by then both have settled."""
STEPS = 60
_ENOUGH = 1e-6
_T90 = 1.533
"""What one in ten exceeds of a Student's t with TAIL degrees of freedom."""

Vector = list[float]
_PRIOR_LOGS = [math.log(value) for value in PRIOR]
_STIFFNESS = 1 / math.log(PRIOR_FACTOR) ** 2


class Work(NamedTuple):
    """What a restore has to write."""

    files: int
    small_bytes: float
    large_bytes: float


class Measured(NamedTuple):
    """A run: its work, its seconds, and how much unlike the one to come it was made (0: alike; 1: a factor of e)."""

    work: Work
    seconds: float
    unlike: float = 0.0


class Forecast(NamedTuple):
    """Seconds; the restore takes from `low_s` to `high_s` eight times of ten."""

    low_s: float
    expected_s: float
    high_s: float


def work_of(sizes: Sequence[tuple[float, float]], total_bytes: int) -> Work:
    """Return the work of a histogram of [smaller than so many bytes, files] and the bytes of all files together.

    A file has three quarters of its class's limit, in the mean; then all are made to fit the bytes there are.
    """
    files = sum(int(count) for _, count in sizes)
    small = sum(0.75 * upper * count for upper, count in sizes if upper <= LARGE_BYTES)
    large = sum(0.75 * upper * count for upper, count in sizes if upper > LARGE_BYTES)
    share = total_bytes / (small + large) if small + large else 0.0
    return Work(files, small * share, large * share)


def forecast(work: Work, runs: Sequence[Measured]) -> Forecast:
    """Return how long this work will take. Without any run that is the prior's guess, a wide one."""
    logs = _PRIOR_LOGS
    noise2 = NOISE * NOISE
    covariance: list[Vector] = []
    for _ in range(ROUNDS):
        logs, covariance = _fit(logs, runs, noise2)
        noise2 = _noise2(logs, covariance, runs, noise2)
    parts = _parts(_costs(logs), work)
    expected_s = sum(parts)
    spread = _T90 * math.sqrt(noise2 + _open2([part / expected_s for part in parts], covariance))
    return Forecast(expected_s / math.exp(spread), expected_s, expected_s * math.exp(spread))


def _costs(logs: Vector) -> Vector:
    return [math.exp(log) for log in logs]


def _parts(costs: Vector, work: Work) -> Vector:
    """Return the seconds that each of the costs comes to."""
    fixed, per_file, per_small, per_large = costs
    files, small_bytes, large_bytes = work
    return [fixed, per_file * files, per_small * small_bytes, per_large * large_bytes]


def _slopes_and_off(costs: Vector, run: Measured) -> tuple[Vector, float]:
    """Return by how much the logarithm of a run's seconds grows with that of each cost, and how far off it is."""
    parts = _parts(costs, run.work)
    total = sum(parts)
    return [part / total for part in parts], math.log(run.seconds / total)


def _weight(off: float, run: Measured, noise2: float) -> float:
    """Return what a run counts that is off by so much, as the inverse of a variance."""
    variance = noise2 + run.unlike * run.unlike
    return (TAIL + 1) / (TAIL * variance + off * off)


def _open2(slopes: Vector, covariance: list[Vector]) -> float:
    """Return the variance of a forecast's logarithm that comes of what the costs leave open."""
    return sum(a * b * covariance[i][j] for i, a in enumerate(slopes) for j, b in enumerate(slopes))


def _noise2(logs: Vector, covariance: list[Vector], runs: Sequence[Measured], before: float) -> float:
    """Return the variance of runs of one kind; others, and those that are far off, have little to say about it.

    Each run has drawn the costs towards itself: what it has thereby spent is not counted.
    """
    total, count = NOISE_RUNS * NOISE * NOISE, float(NOISE_RUNS)
    costs = _costs(logs)
    for run in runs:
        slopes, off = _slopes_and_off(costs, run)
        share = before / (before + run.unlike * run.unlike)
        weight = _weight(off, run, before)
        total += share * before * weight * off * off
        count += share * (1 - min(0.9, weight * _open2(slopes, covariance)))
    return total / count


def _fit(start: Vector, runs: Sequence[Measured], noise2: float) -> tuple[Vector, list[Vector]]:
    """Return the most likely logarithms of the costs, and their covariance."""
    logs = start
    for _ in range(STEPS):
        gradient, covariance = _slope(logs, runs, noise2)
        step = [sum(a * b for a, b in zip(row, gradient, strict=True)) for row in covariance]
        following = _downhill(logs, step, runs, noise2)
        moved = max(abs(new - old) for new, old in zip(following, logs, strict=True))
        logs = following
        if moved < _ENOUGH:
            break
    return logs, _slope(logs, runs, noise2)[1]


def _slope(logs: Vector, runs: Sequence[Measured], noise2: float) -> tuple[Vector, list[Vector]]:
    """Return where the likelihood rises, and the inverse of how it curves."""
    places = range(len(logs))
    matrix = [[_STIFFNESS * (row == column) for column in places] for row in places]
    gradient = [_STIFFNESS * (mean - log) for mean, log in zip(_PRIOR_LOGS, logs, strict=True)]
    costs = _costs(logs)
    for run in runs:
        slopes, off = _slopes_and_off(costs, run)
        weight = _weight(off, run, noise2)
        for row, slope in enumerate(slopes):
            weighted = weight * slope
            gradient[row] += weighted * off
            for column in range(row + 1):
                matrix[row][column] += weighted * slopes[column]
    for row in places:
        for column in range(row):
            matrix[column][row] = matrix[row][column]
    return gradient, _inverse(matrix)


def _downhill(logs: Vector, step: Vector, runs: Sequence[Measured], noise2: float) -> Vector:
    """Take a step; one that leads uphill is taken back by halves."""
    before, length = _unlikeliness(logs, runs, noise2), 1.0
    while length > _ENOUGH:
        tried = [log + length * change for log, change in zip(logs, step, strict=True)]
        if _unlikeliness(tried, runs, noise2) <= before:
            return tried
        length /= 2
    return logs


def _unlikeliness(logs: Vector, runs: Sequence[Measured], noise2: float) -> float:
    total = _STIFFNESS * sum((log - mean) ** 2 for log, mean in zip(logs, _PRIOR_LOGS, strict=True))
    costs = _costs(logs)
    for run in runs:
        off = math.log(run.seconds / sum(_parts(costs, run.work)))
        total += (TAIL + 1) * math.log1p(off * off / (TAIL * (noise2 + run.unlike * run.unlike)))
    return total


def _inverse(matrix: list[Vector]) -> list[Vector]:
    """Invert a small symmetric matrix whose own values are all positive (the prior sees to that)."""
    size = len(matrix)
    rows = [[*row, *(float(place == column) for column in range(size))] for place, row in enumerate(matrix)]
    for pivot in range(size):
        head = rows[pivot][pivot]
        rows[pivot] = [value / head for value in rows[pivot]]
        for other in range(size):
            if other != pivot:
                factor = rows[other][pivot]
                rows[other] = [a - factor * b for a, b in zip(rows[other], rows[pivot], strict=True)]
    return [row[size:] for row in rows]
