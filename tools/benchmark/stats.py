"""Medians, spreads and ratios of what several rounds measured."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

Measures = dict[str, float]
"""What one run of one case measured: names with their unit, as ``seen_p50_us``."""


class Spread(NamedTuple):
    """The median over the rounds, and the least and the most of them."""

    median: float
    low: float
    high: float
    rounds: int


def spread(values: Sequence[float]) -> Spread | None:
    """The median of some rounds with its spread; None of none."""
    if not values:
        return None
    return Spread(median(values), min(values), max(values), len(values))


def ratios(
    over: Sequence[Mapping[str, float] | None],
    under: Sequence[Mapping[str, float] | None],
    measure: str,
    under_measure: str | None = None,
) -> list[float]:
    """One measure of two cases divided round by round; rounds that lack either are left out.

    Both sequences have one entry a round, None where that run failed.
    """
    found = []
    for above, below in zip(over, under, strict=True):
        top = None if above is None else above.get(measure)
        bottom = None if below is None else below.get(under_measure or measure)
        if top is not None and bottom:
            found.append(top / bottom)
    return found


def values(rounds: Sequence[Mapping[str, float] | None], measure: str) -> list[float]:
    """A measure in every round that has it."""
    return [run[measure] for run in rounds if run is not None and measure in run]


def latencies(name: str, nanoseconds: NDArray[np.int64]) -> Measures:
    """Percentiles of one run in microseconds: ``name_p50_us`` and so on; nothing of nothing."""
    if not len(nanoseconds):
        return {}
    points = (50, 90, 99)
    found = np.percentile(nanoseconds, points) / 1000
    return {f"{name}_p{point}_us": float(us) for point, us in zip(points, found, strict=True)}
