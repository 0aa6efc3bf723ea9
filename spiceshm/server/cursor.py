"""The pointer's picture and place, as every client that asks for a cursor channel is told them.

Strategy: there is no queue. A channel knows what it has told and what is so now, and tells the
difference when its client has acknowledged enough of what it was told before.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import trio

from ..events import CursorShape
from ..nursery import open_nursery
from ..wire.base import SetAck
from ..wire.cursor import (
    FLAG_NONE,
    TYPE_ALPHA,
    Cursor,
    CursorHeader,
    CursorHide,
    CursorInit,
    CursorMove,
    CursorSet,
)
from .viewer import READ_SIZE

if TYPE_CHECKING:
    from ..protocol import Channel
    from ..transport import Stream
    from ..wire import Message

MAX_CURSOR_SIDE = 256
"""Most pixels that a pointer's picture may have in either direction."""

FRESH_S = 0.2
"""How long who begins to look waits for a source that begins to follow the pointer."""

WINDOW = 1
"""Each message is acknowledged by itself, so that three at most are on their way."""

_HIDDEN = Cursor(FLAG_NONE)
_FARTHEST = 0x7FFF


class _Seen(NamedTuple):
    """What a client sees of the pointer, as messages have it."""

    cursor: Cursor = _HIDDEN
    x: int = 0
    y: int = 0

    @property
    def visible(self) -> bool:
        return self.cursor is not _HIDDEN


class Pointer:
    """The pointer, and who looks at it."""

    def __init__(self) -> None:
        self.seen = _Seen()
        self.known = False
        """Whether the program has ever said that there is one."""
        self.wanted = trio.Event()
        """Set while some channel is open."""
        self.unwanted = trio.Event()
        """Set while none is."""
        self.unwanted.set()
        self.fresh = trio.Event()
        """Set while what is known is what is there."""
        self.fresh.set()
        self._followed = False
        self._channels: list[CursorChannel] = []
        self._uniques = itertools.count(1)

    def show(self, shape: CursorShape | None) -> None:
        """Another picture, None: none. Raises ValueError for one that cannot be told."""
        self.known = True
        self.fresh.set()
        cursor = _HIDDEN if shape is None else _cursor(shape, next(self._uniques))
        self._change(self.seen._replace(cursor=cursor))

    def move(self, x: int, y: int) -> None:
        x, y = (max(~_FARTHEST, min(at, _FARTHEST)) for at in (x, y))
        self._change(self.seen._replace(x=x, y=y))

    def _change(self, seen: _Seen) -> None:
        self.seen = seen
        for channel in self._channels:
            channel.news.set()

    async def wait_wanted(self) -> None:
        """Until some channel is open; the picture is then not known before it is shown again.

        That holds for whenever the first of some channels opens from now on, unless this is
        cancelled: whoever follows the pointer may not have noticed yet that nobody looked at it.
        """
        self.known = self._followed = True
        try:
            await self.wanted.wait()
        except trio.Cancelled:
            self._followed = False
            raise

    def join(self, channel: CursorChannel) -> None:
        if not self._channels:
            self.unwanted = trio.Event()
            if self._followed:
                self.fresh = trio.Event()
        self._channels.append(channel)
        self.wanted.set()

    def leave(self, channel: CursorChannel) -> None:
        self._channels.remove(channel)
        if not self._channels:
            self.wanted = trio.Event()
            self.unwanted.set()


def fitting(shape: CursorShape) -> CursorShape | None:
    """What can be told of a shape: of one that is too large, the part around the hot spot; None of
    one without pixels."""
    height, width = shape.pixels.shape[:2]
    if not height or not width:
        return None
    hot_x, hot_y = min(shape.hot_x, width - 1), min(shape.hot_y, height - 1)
    left, top = _part(width, hot_x), _part(height, hot_y)
    pixels = shape.pixels[top : top + MAX_CURSOR_SIDE, left : left + MAX_CURSOR_SIDE]
    return CursorShape(pixels, hot_x - left, hot_y - top)


def _part(length: int, hot: int) -> int:
    """Where the part to show begins, in one direction."""
    return max(0, min(hot - MAX_CURSOR_SIDE // 2, length - MAX_CURSOR_SIDE))


def _cursor(shape: CursorShape, unique: int) -> Cursor:
    pixels = shape.pixels
    height, width, depth = pixels.shape if pixels.ndim == 3 else (0, 0, 0)
    sides = range(1, MAX_CURSOR_SIDE + 1)
    if depth != 4 or pixels.dtype != np.uint8 or width not in sides or height not in sides:
        raise ValueError(
            f"a pointer's pixels are {pixels.shape} of {pixels.dtype}, not (height, width, 4) "
            f"of uint8 with sides up to {MAX_CURSOR_SIDE}"
        )
    if shape.hot_x not in range(width) or shape.hot_y not in range(height):
        raise ValueError(f"the hot spot {shape.hot_x},{shape.hot_y} is not in {width}x{height}")
    header = CursorHeader(unique, TYPE_ALPHA, width, height, shape.hot_x, shape.hot_y)
    return Cursor(0, header, pixels.tobytes())


def _news(told: _Seen, now: _Seen) -> Message | None:
    """What a client that knows ``told`` must hear. Where a hidden one is matters to nobody."""
    if now.cursor is not told.cursor:
        if not now.visible:
            return CursorHide()
        return CursorSet(now.x, now.y, 1, now.cursor)
    if now.visible and now != told:
        return CursorMove(now.x, now.y)
    return None


class CursorChannel:
    """A client's cursor channel."""

    def __init__(self, stream: Stream, machine: Channel, pointer: Pointer) -> None:
        self.news = trio.Event()
        """To be set when there may be something to tell."""
        self._stream = stream
        self._machine = machine
        self._pointer = pointer
        self._told = _Seen()

    async def run(self, first: bytes) -> None:
        """Serve the channel to its end; ``first`` is what came behind the link phase.

        Raises RemoteProtocolError for a breach, Disconnected.
        """
        self._pointer.join(self)
        try:
            with trio.move_on_after(FRESH_S):
                await self._pointer.fresh.wait()
            self._begin()
            async with open_nursery() as nursery:
                nursery.start_soon(self._stream.flush_when_writable)
                nursery.start_soon(self._tell)
                data: bytes | memoryview = first
                while True:
                    self._machine.receive_data(data)
                    self.news.set()
                    data, _ = await self._stream.receive(READ_SIZE)
        finally:
            self._pointer.leave(self)

    def _begin(self) -> None:
        self._told = now = self._pointer.seen
        self._machine.send(SetAck(1, WINDOW))
        self._machine.send(CursorInit(now.x, now.y, 0, 0, now.visible, now.cursor))
        self._stream.send_parts(self._machine.data_to_send())

    async def _tell(self) -> None:
        while True:
            await self.news.wait()
            self.news = trio.Event()
            now = self._pointer.seen
            if self._machine.acks.open and (message := _news(self._told, now)):
                self._told = now
                self._machine.send(message)
                self._stream.send_parts(self._machine.data_to_send())
