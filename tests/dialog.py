"""A dialog in an xterm, to be looked at and acted on, and what tests need to deal with it.

Run by itself it is the dialog: it reads a line of text, then shows a button somewhere, and when
something was clicked it takes the button away. It says through a pipe what it got, and after each
of these steps the bar at its top has another colour.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import sys
import tty
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH, HEIGHT = 640, 480
COLUMNS, ROWS = 106, 36
"""Of a terminal of that size, in the font that every X server has."""

BAR = (3, 3, 14, 600)
"""The region within the bar, in pixels."""

BUTTON = 201
"""Its colour; those of the bar have lower numbers."""

TERMINAL = ("xterm", "-geometry", f"{COLUMNS}x{ROWS}+0+0", "-fn", "6x13", "-b", "2", "-bw", "0")


def command(report: str) -> tuple[str, ...]:
    """How to start it; ``report`` is the path of the pipe."""
    return (*TERMINAL, "-e", sys.executable, "-I", __file__, report)


def bar(step: int) -> int:
    """The colour of the bar after so many steps."""
    return 17 + step % 180


def rgb(colour: int) -> tuple[int, int, int]:
    """What a colour of a terminal's 256 looks like."""
    levels = (0, 95, 135, 175, 215, 255)
    red, rest = divmod(colour - 16, 36)
    return levels[red], levels[rest // 6], levels[rest % 6]


def clicks_and_lines() -> Iterator[tuple[int, int] | str]:
    """What comes from the terminal: clicks by column and row, and lines, which are echoed."""
    came = ""
    sequence = re.compile(r"\x1b\[<0;(\d+);(\d+)M|\x1b\[<\d+;\d+;\d+m|([^\x1b\r]*)\r")
    while some := os.read(0, 4096):
        came += some.decode()
        while match := sequence.match(came):
            came = came[match.end() :]
            if match[1]:
                yield int(match[1]), int(match[2])
            elif match[3] is not None:
                yield match[3]
        if not came.startswith("\x1b"):
            os.write(1, f"\x1b[3;1H\x1b[0m\x1b[2K{came}".encode())


class _Dialog:
    def __init__(self) -> None:
        self._steps = itertools.count()
        self._random = random.Random(1)
        self._cells: set[tuple[int, int]] = set()

    def step(self, before: str = "") -> None:
        """Draw something, and then the bar."""
        os.write(1, f"{before}\x1b[48;5;{bar(next(self._steps))}m\x1b[1;1H\x1b[2K".encode())

    def read(self, line: str) -> str:
        columns, rows = self._random.randint(1, 9), self._random.randint(1, 4)
        left = self._random.randint(1, COLUMNS - columns + 1)
        top = self._random.randint(5, ROWS - rows + 1)
        self._cells = {(left + x, top + y) for x in range(columns) for y in range(rows)}
        self.step("".join(f"\x1b[{y};{x}H\x1b[48;5;{BUTTON}m " for x, y in sorted(self._cells)))
        return f"read {line}"

    def clicked(self, cell: tuple[int, int]) -> str:
        hit, self._cells = cell in self._cells, set()
        self.step("\x1b[0m\x1b[4;1H\x1b[J")
        return "pressed" if hit else f"clicked on {cell}, where no button is"


def main(report: str) -> None:
    """Run until the terminal goes."""
    tty.setraw(0)
    dialog = _Dialog()
    dialog.step("\x1b[?25l\x1b[?1000;1006h\x1b[2J")
    with open(report, "w", buffering=1) as pipe:
        for what in clicks_and_lines():
            print(dialog.read(what) if isinstance(what, str) else dialog.clicked(what), file=pipe)


if __name__ == "__main__":
    main(sys.argv[1])
