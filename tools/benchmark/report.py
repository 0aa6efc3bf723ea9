"""Tables of what was gathered, for a terminal or in Markdown, and the same as plain data."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .stats import Spread, ratios, spread, values

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .cases import Row, Table
    from .gather import Gathered

_WIDTH = 100
_GONE = "-"


@dataclass(frozen=True)
class Line:
    """A row of a table with its figures; ``problem`` says why some are missing."""

    row: Row
    value: Spread | None
    against: Spread | None
    ratio: Spread | None
    problem: str | None


def lines(table: Table, found: Gathered) -> list[Line]:
    """The rows of a table whose cases were to be measured, be it that there is no figure."""
    return [
        _line(row, found)
        for row in table.rows
        if row.case in found.rounds and (row.against is None or row.against in found.rounds)
    ]


def _line(row: Row, found: Gathered) -> Line:
    mine = found.rounds.get(row.case, [])
    value = spread(values(mine, row.measure))
    against = ratio = None
    names = [row.case]
    if row.against is not None:
        names.append(row.against)
        theirs = found.rounds.get(row.against, [])
        measure = row.against_measure or row.measure
        against = spread(values(theirs, measure))
        if len(mine) == len(theirs):
            ratio = spread(ratios(mine, theirs, row.measure, measure))
    problems = [f"{name} {found.problems[name]}" for name in names if name in found.problems]
    return Line(row, value, against, ratio, "; ".join(problems) or None)


def summary(tables: Iterable[Table], found: Gathered) -> list[dict[str, Any]]:
    """Every line as plain data, for programs."""

    def data(figure: Spread | None) -> dict[str, float] | None:
        return None if figure is None else figure._asdict()

    return [
        {
            "table": table.name,
            "label": line.row.label,
            "case": line.row.case,
            "measure": line.row.measure,
            "unit": line.row.unit,
            "value": data(line.value),
            "against": line.row.against,
            "against_value": data(line.against),
            "ratio": data(line.ratio),
            "better": table.better,
            "problem": line.problem,
        }
        for table in tables
        for line in lines(table, found)
    ]


def render(tables: Iterable[Table], found: Gathered, *, markdown: bool = False) -> str:
    """Everything as text."""
    parts = [_heading(found, markdown)]
    for table in tables:
        shown = lines(table, found)
        if shown:
            parts.append((_markdown if markdown else _plain)(table, shown))
    return "\n\n".join(parts) + "\n"


def _heading(found: Gathered, markdown: bool) -> str:
    settings = found.settings
    text = (
        f"Medians of {settings['rounds']} rounds of {settings['seconds']:g} s a case, with the "
        "least and the most of the rounds; ratios are made round by round."
    )
    machine = [f"{name}: {value}" for name, value in found.machine.items()]
    if markdown:
        return "\n".join([text, "", *(f"- {line}" for line in machine)])
    return "\n".join([*textwrap.wrap(text, _WIDTH), *(f"  {line}" for line in machine)])


def _cells(line: Line) -> list[str]:
    unit = line.row.unit
    return [
        line.row.label,
        _with_spread(line.value, unit),
        _with_spread(line.against, unit),
        _with_spread(line.ratio, "x"),
    ]


def _grid(table: Table, shown: list[Line]) -> list[list[str]]:
    """The heads of the columns and the cells below them, without columns that are empty."""
    better = {"less": "ratio, less is better", "more": "ratio, more is better"}
    heads = ["", *table.columns, better.get(table.better, "ratio")]
    rows = [_cells(line) for line in shown]
    kept = [i for i in range(len(heads)) if any(row[i] != _GONE for row in rows)]
    return [[row[i] for i in kept] for row in (heads, *rows)]


def _with_spread(figure: Spread | None, unit: str) -> str:
    if figure is None:
        return _GONE
    low, high = _number(figure.low, unit), _number(figure.high, unit)
    return f"{_number(figure.median, unit)} {_UNITS.get(unit, unit)} ({low}..{high})"


_UNITS = {"B": "kB"}


def _number(value: float, unit: str) -> str:
    """Three digits that mean something."""
    if unit == "B":
        value /= 1000
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 or not value else f"{value:.2g}"


def _problems(shown: list[Line]) -> list[str]:
    return list(dict.fromkeys(line.problem for line in shown if line.problem))


def _plain(table: Table, shown: list[Line]) -> str:
    rows = _grid(table, shown)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    text = [f"{table.title}  [{table.name}]"]
    text += textwrap.wrap(table.note, _WIDTH, initial_indent="  ", subsequent_indent="  ")
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        text.append(f"  {first.ljust(widths[0])}  {'  '.join(cells)}".rstrip())
    return "\n".join([*text, *(f"  ! {problem}" for problem in _problems(shown))])


def _markdown(table: Table, shown: list[Line]) -> str:
    heads, *rows = _grid(table, shown)
    rules = ["---", *["---:"] * (len(heads) - 1)]
    text = [f"## {table.title}", "", table.note, ""]
    text += ["| " + " | ".join(row) + " |" for row in (heads, rules, *rows)]
    return "\n".join([*text, *(f"\n{problem}" for problem in _problems(shown))])
