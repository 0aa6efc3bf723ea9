"""The codec of the messages that pass once a frame, derived from their construct declarations.

Reading SHM_DAMAGE through construct costs tens of microseconds, a `struct.Struct` one. So at import
the declaration's fields are walked and joined into one ``Struct``, those of the mini header before
them. construct stays the definition, and also the judge: whatever is not plainly well formed is
left to it, and its error is the error.
"""

from __future__ import annotations

from itertools import chain
from struct import Struct
from typing import TYPE_CHECKING

import construct
import numpy as np

from .base import MiniHeader
from .display import BITMAP_TOP_DOWN, ROP_PUT, Bitmap, DrawCopy, Image, ImageData
from .message import Pointed
from .shm import ShmDamage, ShmDamageHandled
from .types import MAX_RECTS, BitmapFormat, ImageType

if TYPE_CHECKING:
    from collections.abc import Sequence


def derive(layout: construct.Struct) -> Struct:
    """The plain integers at the head of a layout as one little endian `struct.Struct`.

    Those of records inside of it are among them, and pointers; what is there only sometimes is not.
    """
    return Struct("<" + _codes(layout))


def _codes(layout: construct.Struct) -> str:
    codes = ""
    for field in layout.subcons:
        while isinstance(field, construct.Subconstruct):
            field = field.subcon
        if isinstance(field, construct.Struct):
            codes += _codes(field)
        elif isinstance(field, construct.FormatField):
            codes += field.fmtstr.lstrip("<")
        elif isinstance(field, Pointed):
            codes += "L"
        elif not isinstance(field, construct.IfThenElse):
            break
    return codes


MINI = derive(MiniHeader.layout)
_DAMAGE = derive(ShmDamage.layout)
_HANDLED = derive(ShmDamageHandled.layout)
_DAMAGE_MESSAGE = Struct(MINI.format + _DAMAGE.format[1:])
_HANDLED_MESSAGE = Struct(MINI.format + _HANDLED.format[1:])
_COPY = Struct(derive(DrawCopy.layout).format + derive(Image.layout).format[1:])
_BITMAP = Struct(derive(Bitmap.layout).format + "L")  # no palette
_IMAGE_DATA = derive(ImageData.layout)
_MASK = (0, 0, 0, 0)
_IMAGE_AT = _COPY.size - derive(Image.layout).size
_RECTS = [Struct(f"<{4 * n}i") for n in range(MAX_RECTS + 1)]
_INT32 = np.dtype("<i4")


def read_damage(view: memoryview, at: int) -> tuple[ShmDamage, int] | None:
    """The ShmDamage behind a mini header at ``at``, and where it ends.

    None if something else is there, or not all of it, or if anything about it is not plain.
    """
    start = at + _DAMAGE_MESSAGE.size
    if len(view) < start:
        return None
    number, size, surface, segment, offset, serial, published, flags, _, n, _ = (
        _DAMAGE_MESSAGE.unpack_from(view, at)
    )
    end = start + 16 * n
    if number != ShmDamage.number or size != _DAMAGE.size + 16 * n or end > len(view):
        return None
    if not 1 <= n <= MAX_RECTS:
        return None
    damage: ShmDamage = object.__new__(ShmDamage)
    damage.__dict__.update(
        surface_id=surface,
        segment_id=segment,
        shm_offset=offset,
        serial=serial,
        published=published,
        flags=flags,
        rects=np.ndarray((n, 4), _INT32, bytes(view[start:end])),
    )
    return damage, end


def damage_body(
    surface: int,
    segment: int,
    offset: int,
    serial: int,
    published: int,
    flags: int,
    rects: Sequence[Sequence[int]],
) -> bytes:
    """The body of a ShmDamage of these values; ``rects`` are 1 to 64 rows of four numbers."""
    n = len(rects)
    head = _DAMAGE.pack(surface, segment, offset, serial, published, flags, 0, n, 0)
    return head + _RECTS[n].pack(*chain.from_iterable(rects))


def read_handled(view: memoryview, at: int) -> tuple[ShmDamageHandled, int] | None:
    """The ShmDamageHandled behind a mini header at ``at``, and where it ends; or None."""
    end = at + _HANDLED_MESSAGE.size
    if len(view) < end:
        return None
    number, size, surface, _, serial = _HANDLED_MESSAGE.unpack_from(view, at)
    if number != ShmDamageHandled.number or size != _HANDLED.size:
        return None
    handled: ShmDamageHandled = object.__new__(ShmDamageHandled)
    handled.__dict__.update(surface_id=surface, serial=serial)
    return handled, end


def handled_body(surface: int, serial: int) -> bytes:
    """The body of a ShmDamageHandled of these values."""
    return _HANDLED.pack(surface, 0, serial)


def copy_head(
    surface: int, rect: tuple[int, int, int, int], image_type: int, data_size: int
) -> bytes:
    """All of a DrawCopy up to its pixels, ``data_size`` bytes, which are to follow.

    They are put into ``rect`` (top, left, bottom, right) as they are: a raw bitmap of 32 bits, the
    top line first, or a picture of a type whose content is an `ImageData`.
    """
    top, left, bottom, right = rect
    width, height = right - left, bottom - top
    box, area = (top, left, bottom, right), (0, 0, height, width)
    image = (0, image_type, 0, width, height)
    head = _COPY.pack(surface, *box, 0, _IMAGE_AT, *area, ROP_PUT, 0, *_MASK, *image)
    if image_type == ImageType.BITMAP:
        stride = width * 4
        return head + _BITMAP.pack(BitmapFormat.XRGB, BITMAP_TOP_DOWN, width, height, stride, 0)
    return head + _IMAGE_DATA.pack(data_size)
