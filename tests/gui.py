"""What tests of programs with windows have in common: desktops, pipes, and what is in a picture."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import trio

import spiceshm
from tests import dialog
from tests.dialog import BAR, HEIGHT, WIDTH
from tests.programs import DEADLINE, short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from spiceshm import Frame, RemoteDisplay

OWN = ("--source", "xvfb", "--surface", f"{WIDTH}x{HEIGHT}")
"""Options of a server that has such a desktop."""

GREEN = (0, 205, 0)
"""Of a terminal."""


@contextlib.asynccontextmanager
async def opened(*command: str) -> AsyncIterator[spiceshm.Desktop]:
    """A desktop that a terminal fills."""
    async with spiceshm.desktop(*command, width=WIDTH, height=HEIGHT) as desktop:
        yield desktop


def focus(environment: dict[str, str], window: str = "xterm") -> None:
    """Give the keyboard to a window, as a window manager would."""
    words = ["xdotool", "search", "--sync", "--onlyvisible", window, "windowfocus", "--sync"]
    subprocess.run(words, env=environment, check=True, timeout=DEADLINE)


class Report:
    """A pipe into which a program writes what it got."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        self._end = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # also for writing: it has no end
        self._begun = b""

    async def read(self, count: int) -> bytes:
        """The next bytes, as soon as there are so many."""
        with trio.fail_after(DEADLINE):
            while len(self._begun) < count:
                await self._more()
        data, self._begun = self._begun[:count], self._begun[count:]
        return data

    async def read_until(self, end: bytes) -> bytes:
        """What comes before ``end``."""
        with trio.fail_after(DEADLINE):
            while end not in self._begun:
                await self._more()
        data, _, self._begun = self._begun.partition(end)
        return data

    async def line(self) -> str:
        """The next line."""
        return (await self.read_until(b"\n")).decode()

    async def _more(self) -> None:
        await trio.lowlevel.wait_readable(self._end)
        self._begun += os.read(self._end, 1 << 16)

    def close(self) -> None:
        os.close(self._end)


@contextlib.contextmanager
def reporting() -> Iterator[Report]:
    """A pipe for a program that is about to start."""
    with short_directory() as place:
        pipe = Report(place / "report")
        yield pipe
        pipe.close()


def pixel(frame: Frame, y: int, x: int) -> tuple[int, ...]:
    """Red, green, blue."""
    return tuple(frame.pixels[y, x, 2::-1].tolist())


def bar_of(frame: Frame) -> tuple[int, ...]:
    return pixel(frame, BAR[0], BAR[1])


def button_in(rgb: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
    """Where all pixels of the button's colour are, found in the picture."""
    found = (rgb == dialog.rgb(dialog.BUTTON)).all(axis=2)
    if not found.any():
        return None
    rows, columns = found.any(axis=1).nonzero()[0], found.any(axis=0).nonzero()[0]
    box = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    assert found[box[0] : box[2], box[1] : box[3]].all()
    return box


def corner(box: tuple[int, int, int, int] | None, number: int) -> tuple[int, int]:
    """One of the four outermost pixels, x and y."""
    assert box is not None
    top, left, bottom, right = box
    return (left, right - 1)[number % 2], (top, bottom - 1)[number // 2 % 2]


async def dialog_begins(display: RemoteDisplay) -> Frame:
    """Wait until the dialog is there."""
    frame = await display.latest()
    with trio.fail_after(DEADLINE):
        while bar_of(frame) != dialog.rgb(dialog.bar(0)):
            frame = await display.wait_change(since=frame)
    return frame


async def terminal_is(display: RemoteDisplay, colour: tuple[int, ...]) -> Frame:
    """Wait until all of the terminal has a colour."""
    frame = await display.latest()
    with trio.fail_after(DEADLINE):
        while {pixel(frame, y, x) for y in (5, 400) for x in (5, 630)} != {colour}:
            frame = await display.wait_change(since=frame)
    return frame
