"""The command: what to measure, how long, and what to do with the result."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import floor, machine, plot
from .cases import TABLES, Conditions, Table, needed, selected
from .gather import Gathered, gather
from .process import Failed, preload
from .report import render, summary
from .work import apart

if TYPE_CHECKING:
    from collections.abc import Sequence

DESCRIPTION = """\
Measure what spiceshm costs on this machine. Every figure is a median over several rounds and is
divided by what was measured beside it in the same round: a C program that does the bare job, other
ways for the pixels, other programs."""
EXAMPLES = """\
examples:
  tools/bench                                     everything, five rounds: about half an hour
  tools/bench --quick                             the most important cases: below a minute
  tools/bench --only latency --only 'window-8*'   some tables (--list) or cases, by name
  tools/bench --only 'machine-*' --only 'decoders*' --rounds 3 --seconds 0.3
                                                  QEMU and Xspice: three minutes
  tools/bench --json now.json --plot now.png      keep the result, and a picture of it
  tools/bench --load now.json --markdown          show a kept result again

Nothing else should run meanwhile. Exit status: 0 all was measured that can be here, 1 something
failed, 2 wrong options."""

_ROUNDS, _QUICK_ROUNDS = 5, 3
_SECONDS, _QUICK_SECONDS = 0.8, 0.2
_WARMUP = 0.25


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="tools/bench",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = options.add_argument
    add("--quick", action="store_true", help="fewer cases, shorter, three rounds")
    add("--rounds", type=int, metavar="N", help="how often every case is run (default: 5)")
    add("--seconds", type=float, metavar="S", help="how long a case is measured (default: 0.8)")
    add("--only", action="append", default=[], metavar="NAME", help="a table or a case, * allowed")
    add("--list", action="store_true", help="name all tables and cases, measure nothing")
    add("--json", type=Path, metavar="FILE", help="write all that was measured")
    add("--plot", type=Path, metavar="FILE.png", help="draw the ratios (needs matplotlib)")
    add("--markdown", action="store_true", help="print the tables in Markdown")
    add("--load", type=Path, metavar="FILE", help="show a file of --json, measure nothing")
    return options


@dataclass
class Progress:
    """A line on stderr: over itself on a terminal, else one line a round."""

    start: float
    line: str = ""

    def __call__(self, what: str) -> None:
        spent = f"{time.monotonic() - self.start:4.0f} s  {what}"
        if sys.stderr.isatty():
            print(f"\r{spent.ljust(len(self.line))}", end="", file=sys.stderr, flush=True)
        elif ", 1/" in what:
            print(spent, file=sys.stderr, flush=True)
        self.line = spent

    def end(self) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)


def _list(tables: Sequence[Table]) -> None:
    for table in tables:
        print(f"{table.name}: {table.title}")
        for row in table.rows:
            print(f"    {row.case}{f' / {row.against}' if row.against else ''}  ({row.label})")


def _measure(arguments: argparse.Namespace, tables: Sequence[Table]) -> Gathered:
    cores = apart(os.sched_getaffinity(0))
    seconds = arguments.seconds or (_QUICK_SECONDS if arguments.quick else _SECONDS)
    rounds = arguments.rounds or (_QUICK_ROUNDS if arguments.quick else _ROUNDS)
    if floor.compiler() is None:
        print(f"bench: no C floor: {floor.HOW_TO}", file=sys.stderr)
    if (load := os.getloadavg()[0]) > machine.BUSY:
        print(f"bench: other programs run too (load {load:.1f}): expect noise", file=sys.stderr)
    preload("tools.benchmark.ends")
    progress = Progress(time.monotonic())
    conditions = Conditions(None, tuple(cores), seconds, _WARMUP * min(seconds, 1.0))
    try:
        return gather(needed(tables, quick=arguments.quick), conditions, rounds, progress)
    finally:
        progress.end()


def _write(arguments: argparse.Namespace, tables: Sequence[Table], found: Gathered) -> None:
    if arguments.json:
        stored = {**found.to_json(), "summary": summary(tables, found)}
        arguments.json.write_text(json.dumps(stored, indent=1) + "\n")
    if arguments.plot:
        try:
            plot.draw(tables, found, arguments.plot)
        except ImportError:
            raise Failed(f"no plot: {plot.HOW_TO}") from None


def _loaded(path: Path) -> Gathered:
    """What --json wrote. Raises Failed, OSError."""
    try:
        return Gathered.from_json(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failed(f"{path}: no file of --json: {error}") from None


def main(words: Sequence[str] | None = None) -> int:
    """The command's entry point; returns its exit status."""
    options = _options()
    arguments = options.parse_args(words)
    tables = selected(TABLES, arguments.only)
    for name in arguments.only:
        if not selected(TABLES, [name]):
            options.error(f"--only {name}: no table or case of that name (--list)")
    for value in (arguments.rounds, arguments.seconds):
        if value is not None and not 0 < value < float("inf"):
            options.error("--rounds and --seconds are above 0")
    for file in (arguments.json, arguments.plot):
        if file is not None and not file.absolute().parent.is_dir():
            options.error(f"{file}: there is no such folder")
    if arguments.plot and arguments.plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        options.error(f"--plot {arguments.plot}: not .png, .svg or .pdf")
    if arguments.list:
        _list(tables)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    try:
        found = _loaded(arguments.load) if arguments.load else _measure(arguments, tables)
        print(render(tables, found, markdown=arguments.markdown), end="")
        _write(arguments, tables, found)
    except (Failed, OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    failed = [f"{name} {why}" for name, why in found.problems.items() if why.startswith("failed")]
    for line in failed:
        print(f"bench: {line}", file=sys.stderr)
    return 1 if failed else 0
