"""The cursor channel: shape and position of the pointer, which is never part of the pixels."""

from __future__ import annotations

from typing import Any

from construct import GreedyBytes, If, Int8ul, Int16sl, Int16ul, Int64ul, Struct

from .message import As, Message, Record, Sender, empty, message, record
from .types import Held

FLAG_NONE = 1
FLAG_CACHE_ME = 2
FLAG_FROM_CACHE = 4
TYPE_ALPHA = 0
TYPE_MONO = 1
TYPE_COLOR32 = 6


@record
class CursorHeader(Record):
    """``SpiceCursorHeader``: type 0 is premultiplied B, G, R, A, ``width * height * 4`` bytes."""

    layout = Struct(
        "unique" / Int64ul,
        "type" / Int8ul,
        "width" / Int16ul,
        "height" / Int16ul,
        "hot_spot_x" / Int16ul,
        "hot_spot_y" / Int16ul,
    )
    unique: int
    type: int
    width: int
    height: int
    hot_spot_x: int
    hot_spot_y: int


def _needed(ctx: Any) -> int:
    """Least bytes of a shape's data; 0 for the types that nobody sends any more."""
    header: CursorHeader | None = ctx.header
    if header is None or ctx.flags & FLAG_FROM_CACHE:
        return 0
    pixels = header.width * header.height * 4
    mask = (header.width + 7) // 8 * header.height
    return {TYPE_ALPHA: pixels, TYPE_MONO: 2 * mask, TYPE_COLOR32: pixels + mask}.get(
        header.type, 0
    )


@record
class Cursor(Record):
    """``SpiceCursor``: no header and no data with FLAG_NONE; no data with FLAG_FROM_CACHE."""

    layout = Struct(
        "flags" / Int16ul,
        "header" / If(lambda ctx: not ctx.flags & FLAG_NONE, As(CursorHeader)),
        "data" / Held(GreedyBytes, lambda data, ctx: len(data) >= _needed(ctx), "all of the shape"),
    )
    flags: int
    header: CursorHeader | None = None
    data: bytes = b""


@message("cursor", Sender.SERVER, 101)
class CursorInit(Message):
    layout = Struct(
        "position_x" / Int16sl,
        "position_y" / Int16sl,
        "trail_length" / Int16ul,
        "trail_frequency" / Int16ul,
        "visible" / Int8ul,
        "cursor" / As(Cursor),
    )
    position_x: int
    position_y: int
    trail_length: int
    trail_frequency: int
    visible: int
    cursor: Cursor


@message("cursor", Sender.SERVER, 102)
class CursorReset(Message):
    layout = empty()


@message("cursor", Sender.SERVER, 103)
class CursorSet(Message):
    layout = Struct(
        "position_x" / Int16sl, "position_y" / Int16sl, "visible" / Int8ul, "cursor" / As(Cursor)
    )
    position_x: int
    position_y: int
    visible: int
    cursor: Cursor


@message("cursor", Sender.SERVER, 104)
class CursorMove(Message):
    layout = Struct("position_x" / Int16sl, "position_y" / Int16sl)
    position_x: int
    position_y: int


@message("cursor", Sender.SERVER, 105)
class CursorHide(Message):
    layout = empty()


@message("cursor", Sender.SERVER, 106)
class CursorTrail(Message):
    layout = Struct("length" / Int16ul, "frequency" / Int16ul)
    length: int
    frequency: int


@message("cursor", Sender.SERVER, 107)
class CursorInvalOne(Message):
    layout = Struct("id" / Int64ul)
    id: int


@message("cursor", Sender.SERVER, 108)
class CursorInvalAll(Message):
    layout = empty()
