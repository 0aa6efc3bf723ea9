"""The pointer of an X display: its picture from XFixes, its place whenever XInput2 tells of motion.

Notices carry no place that is of use: raw motion has none, and there may be a thousand in a second.
So a notice only says that one has to ask, and one asks no more often than frames are made. Nothing
is selected while nobody wants to know, and a pointer that rests wakes nobody.

Two kinds of motion are selected. The raw one cannot be kept from the root window by any program.
That of the single devices tells of programs which move the pointer themselves, and of that there is
no raw one; programs mostly listen to the devices' master, and so do not keep it from the root.

Two things an X server does not say. A pointer that a program has hidden through XFixes is told as
it looks where it is not hidden. And what a shape looks like whose program has ended (xsetroot) is
kept secret by the extension SECURITY: that is told as an arrow.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import trio

from ..events import CursorShape
from ..nursery import open_nursery
from ..server.cursor import fitting
from .xcb import REPLY_HEAD, Lacking, Refused, XConnection

if TYPE_CHECKING:
    from ..server import Display
    from .xcb import Xcb

_CURSOR_NOTIFY = 1  # after XFixes' first event
_DISPLAY_CURSOR = 1
_GENERIC_EVENT = 35
_ALL_DEVICES, _ALL_MASTERS = 0, 1
_MOTION, _RAW_MOTION = 1 << 6, 1 << 17
_BAD_ACCESS = 10

_ARROW = """\
X
XX
X.X
X..X
X...X
X....X
X.....X
X......X
X.......X
X........X
X.....XXXXX
X..X..X
X.XX..X
XX  X..X
X   X..X
     X..X
     X..X
      XX""".splitlines()


class XCursor(XConnection):
    """The pointer of one X screen. Made by `open`; raises Lacking if it cannot be followed."""

    def __init__(self, xcb: Xcb, connection: Any, screen: Any, name: str) -> None:
        super().__init__(xcb, connection, screen, name)
        self._reshaped = True
        self._moved = True

    def _start(self) -> None:
        self._xfixes, self._first_xfixes = self._need(self._xcb.xfixes.key)
        self._xinput, _ = self._need(self._xcb.xinput.key)
        self._xfixes.QueryVersion(1, 0).reply()
        if self._xinput.XIQueryVersion(2, 2).reply().major_version < 2:
            raise Lacking(f"X display {self._name} has no XInputExtension 2")

    async def follow(
        self,
        display: Display,
        pause: float,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Tell ``display`` what the pointer looks like and where it is: once, so that it knows of
        one, and then for ever, while somebody watches, but not within ``pause`` seconds again.

        Started once that is told. Raises XError when the X server goes away.
        """
        await self._show(display)
        task_status.started()
        while True:
            await display.cursor_wanted()
            self._select(True)
            self._reshaped = self._moved = True
            async with open_nursery() as nursery:
                nursery.start_soon(self._tell, display, pause)
                await display.cursor_unwanted()
                nursery.cancel_scope.cancel()
            self._select(False)

    async def _tell(self, display: Display, pause: float) -> None:
        while True:
            await self._happened()
            due = trio.current_time() + pause
            await self._show(display)
            await trio.sleep_until(due)

    def _select(self, on: bool) -> None:
        mask = self._xcb.xinput.EventMask.synthetic
        masks = [(_ALL_MASTERS, _RAW_MOTION), (_ALL_DEVICES, _MOTION)]
        with self._sending():
            self._xfixes.SelectCursorInput(self._root, _DISPLAY_CURSOR if on else 0)
            self._xinput.XISelectEvents(
                self._root, len(masks), [mask(who, 1, [what if on else 0]) for who, what in masks]
            )

    async def _happened(self) -> None:
        """Return as soon as the pointer may look different or be elsewhere."""
        await trio.lowlevel.checkpoint()
        while True:
            self._pump()
            if self._reshaped or self._moved:
                return
            await self._readable()

    def _saw(self, kind: int, sequence: int, event: Any) -> None:
        if kind == _GENERIC_EVENT:
            self._moved = True
        elif kind == self._first_xfixes + _CURSOR_NOTIFY:
            self._reshaped = True

    async def _show(self, display: Display) -> None:
        """Tell the place, and the shape if that may have changed."""
        core, reshaped = self._connection.core, self._reshaped
        self._reshaped = self._moved = False
        with self._sending():
            pending = [core.QueryPointer(self._root).sequence]
            if reshaped:
                pending.append(self._xfixes.GetCursorImage().sequence)
        with self._discarding(pending):
            x, y = struct.unpack_from("=16xhh", await self._reply(pending[0]))
            del pending[0]
            display.move_cursor(x, y)
            if reshaped:
                display.set_cursor(await self._shape(pending[0]))
                del pending[0]

    async def _shape(self, sequence: int) -> CursorShape | None:
        try:
            return read_shape(await self._reply(sequence))
        except Refused as error:
            return arrow() if error.code == _BAD_ACCESS else None


def read_shape(reply: Any) -> CursorShape | None:
    """The shape in a reply to GetCursorImage; None if all of it is transparent.

    Of one that is larger than a display takes, the part around the hot spot.
    """
    width, height, hot_x, hot_y = struct.unpack_from("=12xHHHH", reply)
    argb = np.frombuffer(reply, np.uint32, width * height, REPLY_HEAD).reshape(height, width)
    if not (argb >> 24).any():
        return None
    # The hot spot may be just outside.
    pixels = argb.astype("<u4", order="C").view(np.uint8).reshape(height, width, 4)
    pixels.flags.writeable = False
    return fitting(CursorShape(pixels, hot_x, hot_y))


@cache
def arrow() -> CursorShape:
    """What pointers mostly look like: a black outline filled with white; its tip is hot."""
    rows = np.array([list(f"{row:11}") for row in _ARROW])
    pixels = np.zeros((*rows.shape, 4), np.uint8)
    pixels[rows == "."] = 255
    pixels[rows == "X", 3] = 255
    pixels.flags.writeable = False
    return CursorShape(pixels, 0, 0)
