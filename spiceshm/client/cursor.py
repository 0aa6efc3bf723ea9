"""The pointer that the server tells of: where it is, and its picture, which no frame holds."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import trio

from ..errors import Disconnected, LinkRefused, RemoteProtocolError
from ..events import CursorShape
from ..protocol import Channel
from ..wire import Sender
from ..wire import cursor as wire
from ..wire.types import ChannelType
from .channels import LaterChannel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..region import Rect
    from ..wire import Message
    from .session import Session

log = logging.getLogger("spiceshm.client")

MOST_CACHED = 256
MOST_CACHED_BYTES = 1 << 24
"""What a server may have a client keep: as many shapes as stock servers ask for."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The pointer: its hot spot is at ``x``, ``y``, in pixels from the left and the top.

    ``shape`` is None where the server told none, or one of a kind that we cannot read.
    """

    x: int
    y: int
    visible: bool
    shape: CursorShape | None


class CursorChannel(LaterChannel):
    """The cursor channel; `RemoteDisplay.cursor` is what a program sees of it."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, ChannelType.CURSOR)
        self._now = Cursor(0, 0, False, None)
        self._shapes = _Shapes()
        self._reported: set[int] = set()

    def _new_machine(self, *, mini: bool) -> Channel:
        return Channel("cursor", Sender.CLIENT, mini=mini)

    @property
    def seen(self) -> Cursor:
        """The pointer as it was told last; not to be seen before the channel is open."""
        return self._now

    async def now(self) -> Cursor:
        """The pointer as the server told last. Raises as `open`, but where the server has no such
        channel the answer is that nothing is to be seen."""
        await trio.lowlevel.checkpoint()
        try:
            await self.open()
        except (Disconnected, LinkRefused):  # also a server that does not list it may have it
            if await self._session.offers(self._kind):
                raise
        return self._now

    def moved(self, x: int, y: int) -> None:
        """We put it there ourselves, which a server that takes positions need not tell."""
        self._now = replace(self._now, x=x, y=y)

    def _take(self, message: Message) -> None:
        match message:
            case wire.CursorInit():
                self._set(message)
            case wire.CursorSet():
                self._set(message)
            case wire.CursorMove():
                self._now = replace(
                    self._now, x=message.position_x, y=message.position_y, visible=True
                )
            case wire.CursorHide():
                self._now = replace(self._now, visible=False)
            case wire.CursorReset():
                self._now = replace(self._now, visible=False, shape=None)
                self._shapes.clear()
            case wire.CursorInvalOne():
                self._shapes.forget(message.id)
            case wire.CursorInvalAll():
                self._shapes.clear()

    def _set(self, message: wire.CursorInit | wire.CursorSet) -> None:
        x, y = message.position_x, message.position_y
        if isinstance(message, wire.CursorInit) and (x, y) == (0, 0):  # it may just not know
            x, y = self._now.x, self._now.y
        something = not message.cursor.flags & wire.FLAG_NONE
        shape = self._shape(message.cursor, message.title) if something else None
        self._now = Cursor(x, y, bool(message.visible) and something, shape)

    def _shape(self, cursor: wire.Cursor, title: str) -> CursorShape | None:
        header = cursor.header
        assert header is not None  # as the flags say
        if cursor.flags & wire.FLAG_FROM_CACHE:
            return self._shapes.get(header.unique, title)
        read = _READERS.get(header.type)
        if read is None and header.type not in self._reported:
            self._reported.add(header.type)
            log.warning("%s: pointers of type %d are not shown", self._session.address, header.type)
        shape = None
        if read is not None:
            pixels = read(cursor.data, header.width, header.height)
            pixels.flags.writeable = False
            shape = CursorShape(pixels, header.hot_spot_x, header.hot_spot_y)
        if cursor.flags & wire.FLAG_CACHE_ME:
            self._shapes.keep(header.unique, shape)
        return shape


class _Shapes:
    """What the server said to keep; beyond the limits the oldest go."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, CursorShape | None] = OrderedDict()
        self._bytes = 0

    def keep(self, unique: int, shape: CursorShape | None) -> None:
        self.forget(unique)
        self._kept[unique] = shape
        self._bytes += _bytes_of(shape)
        while len(self._kept) > MOST_CACHED or self._bytes > MOST_CACHED_BYTES:
            self.forget(next(iter(self._kept)))

    def get(self, unique: int, title: str) -> CursorShape | None:
        """Raises RemoteProtocolError if it is not there."""
        if unique not in self._kept:
            raise RemoteProtocolError(title, "unique", f"{unique} is not in the cache")
        return self._kept[unique]

    def forget(self, unique: int) -> None:
        if unique in self._kept:
            self._bytes -= _bytes_of(self._kept.pop(unique))

    def clear(self) -> None:
        self._kept.clear()
        self._bytes = 0


def _bytes_of(shape: CursorShape | None) -> int:
    return shape.pixels.nbytes if shape is not None else 0


# Shapes: the wire has seen to it that there is enough data


def _alpha(data: bytes, width: int, height: int) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8, width * height * 4).reshape(height, width, 4).copy()


def _mono(data: bytes, width: int, height: int) -> NDArray[np.uint8]:
    """An AND and an XOR mask: black, white, transparent, and what would invert, which is black."""
    size = (width + 7) // 8 * height
    keep = _bits(data[:size], width, height)
    flip = _bits(data[size : 2 * size], width, height)
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[~keep & flip] = 255
    pixels[~(keep & ~flip), 3] = 255
    return pixels


def _color32(data: bytes, width: int, height: int) -> NDArray[np.uint8]:
    """B, G, R and a byte that means nothing, then a mask of what is transparent."""
    size = width * height * 4
    pixels = _alpha(data, width, height)
    pixels[:, :, 3] = 255
    pixels[_bits(data[size : size + (width + 7) // 8 * height], width, height)] = 0
    return pixels


def _bits(mask: bytes, width: int, height: int) -> NDArray[np.bool_]:
    rows = np.frombuffer(mask, np.uint8).reshape(height, (width + 7) // 8)
    return np.unpackbits(rows, axis=1)[:, :width].astype(np.bool_)


_READERS = {wire.TYPE_ALPHA: _alpha, wire.TYPE_MONO: _mono, wire.TYPE_COLOR32: _color32}


def draw(cursor: Cursor, rgb: NDArray[np.uint8], region: Rect) -> None:
    """Draw the pointer into a picture of a part of the display.

    ``rgb`` is (height, width, 3) uint8 of R, G, B; ``region`` is the part that it shows: top, left,
    bottom, right. What of the pointer lies outside is left out.
    """
    if not cursor.visible or cursor.shape is None:
        return
    shape, (top, left, _, _) = cursor.shape, region
    at_y, at_x = cursor.y - shape.hot_y - top, cursor.x - shape.hot_x - left
    (from_y, to_y), (from_x, to_x) = (
        (max(0, -at), min(size, room - at))
        for at, size, room in zip((at_y, at_x), shape.pixels.shape, rgb.shape, strict=False)
    )
    if from_y >= to_y or from_x >= to_x:
        return
    part = shape.pixels[from_y:to_y, from_x:to_x].astype(np.uint16)
    under = rgb[at_y + from_y : at_y + to_y, at_x + from_x : at_x + to_x]
    through = (under * (255 - part[:, :, 3:]) + 127) // 255
    under[:] = np.minimum(part[:, :, 2::-1] + through, 255)
