"""A picture of the ratios: how far from the C floor, and what sharing memory gains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .report import lines

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from .cases import Table
    from .gather import Gathered
    from .report import Line

HOW_TO = "pip install matplotlib (or: pip install -e '.[bench]')"
_INCH_A_ROW = 0.26
_SKIPPED = ("memory", "encoders-rate")


def draw(tables: Iterable[Table], found: Gathered, path: Path) -> None:
    """One panel a table with ratios. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = []
    for table in tables:
        shown = [line for line in lines(table, found) if line.ratio]
        if shown and table.name not in _SKIPPED:
            panels.append((table, shown))
    heights = [len(shown) + 3 for _, shown in panels] or [1]
    figure, axes = pyplot.subplots(
        len(heights),
        1,
        figsize=(10, _INCH_A_ROW * sum(heights)),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for axis, (table, shown) in zip(axes[:, 0], panels, strict=False):
        _panel(axis, table, shown)
    machine = found.machine
    figure.suptitle(f"spiceshm {machine.get('spiceshm', '')} on {machine['cpu']}", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(axis: Any, table: Table, shown: list[Line]) -> None:
    places = range(len(shown))
    figures = [line.ratio for line in shown if line.ratio]
    middle = [figure.median for figure in figures]
    below = [figure.median - figure.low for figure in figures]
    above = [figure.high - figure.median for figure in figures]
    axis.barh(places, middle, xerr=(below, above), color="#4a7fb5", ecolor="#555555", capsize=2)
    axis.axvline(1, color="#c03030", linewidth=1)
    axis.set_yticks(places, [line.row.label for line in shown], fontsize=7)
    axis.invert_yaxis()
    axis.tick_params(axis="x", labelsize=7)
    if max(middle) > 20 * min(middle):
        axis.set_xscale("log")
    better = f", {table.better} is better" if table.better else ""
    what = f"{table.columns[0]} / {table.columns[1]}{better}"
    axis.set_title(f"{table.title}: {what}", fontsize=8, loc="left")
