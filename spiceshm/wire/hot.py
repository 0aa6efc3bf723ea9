"""The codec of the messages that pass once a frame, derived from their construct declarations.

Reading SHM_DAMAGE through construct costs tens of microseconds and DRAW_COPY hundreds, a
`struct.Struct` one. So at import the declaration's fields are walked and joined into one
``Struct``, those of the mini header before them. construct stays the definition, and also the
judge: whatever is not plainly well formed is left to it, and its error is the error.
"""

from __future__ import annotations

from itertools import chain
from struct import Struct
from typing import TYPE_CHECKING, TypeVar

import construct
import numpy as np

from .base import MiniHeader
from .display import (
    BITMAP_PAL_FROM_CACHE,
    BITMAP_TOP_DOWN,
    NO_MASK,
    PACKED,
    ROP_PUT,
    Bitmap,
    DrawCopy,
    Image,
    ImageData,
    holds_line,
)
from .message import Pointed, Record
from .shm import ShmDamage, ShmDamageHandled
from .types import MAX_CLIP_RECTS, MAX_RECTS, MAX_SIDE, BitmapFormat, ImageType, Rect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

R = TypeVar("R", bound=Record)


def derive(layout: construct.Struct) -> Struct:
    """The plain integers at the head of a layout as one little endian `struct.Struct`.

    Those of records inside of it are among them, and pointers; what is there only sometimes is not.
    """
    return Struct("<" + _codes(layout.subcons))


def _codes(fields: Sequence[construct.Construct]) -> str:
    codes = ""
    for field in fields:
        while isinstance(field, construct.Subconstruct):
            field = field.subcon
        if isinstance(field, construct.Struct):
            codes += _codes(field.subcons)
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
_BASE_FIELDS = 3
_BASE = Struct("<" + _codes(DrawCopy.layout.subcons[:_BASE_FIELDS]))
_COPY_REST = Struct("<" + _codes(DrawCopy.layout.subcons[_BASE_FIELDS:]))
_IMAGE = derive(Image.layout)
_COPY = Struct(derive(DrawCopy.layout).format + _IMAGE.format[1:])
_BITMAP = Struct(derive(Bitmap.layout).format + "L")  # no palette
_IMAGE_DATA = derive(ImageData.layout)
_COUNT = Struct("<L")
_MASK = (0, 0, 0, 0)
_IMAGE_AT = _COPY.size - _IMAGE.size
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
    rects = np.ndarray((n, 4), _INT32, bytes(view[start:end]))
    damage = _made(
        ShmDamage,
        surface_id=surface,
        segment_id=segment,
        shm_offset=offset,
        serial=serial,
        published=published,
        flags=flags,
        rects=rects,
    )
    return damage, end


def _made(kind: type[R], **fields: object) -> R:
    """What its own ``__init__`` makes, which sets the fields of what is frozen one by one."""
    one = object.__new__(kind)
    one.__dict__.update(fields)
    return one


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
    return _made(ShmDamageHandled, surface_id=surface, serial=serial), end


def handled_body(surface: int, serial: int) -> bytes:
    """The body of a ShmDamageHandled of these values."""
    return _HANDLED.pack(surface, 0, serial)


def read_copy(body: memoryview) -> DrawCopy | None:
    """The DrawCopy that a body is, if it is one of those that servers send all the time.

    That is without a mask, and of a picture that has no palette and is neither in the cache nor
    another surface. None for others, and if anything about it is not plain.
    """
    if len(body) < _BASE.size:
        return None
    surface, *box, clipped = _BASE.unpack_from(body)
    at, clip = _BASE.size, None
    if clipped:
        if clipped != 1 or (found := _read_clip(body, at)) is None:
            return None
        clip, at = found
    end = at + _COPY_REST.size
    if end > len(body):
        return None
    image_at, *area, rop, scale, mask, x, y, mask_at = _COPY_REST.unpack_from(body, at)
    if mask_at or mask or x or y or image_at < end:
        return None
    image = _read_image(body, image_at)
    if image is None:
        return None
    return _made(
        DrawCopy,
        surface_id=surface,
        box=_read_rect(box),
        clip=clip,
        src_area=_read_rect(area),
        rop_descriptor=rop,
        scale_mode=scale,
        mask=NO_MASK,
        image=image,
    )


def _read_clip(body: memoryview, at: int) -> tuple[NDArray[np.int32], int] | None:
    """Rectangles to clip to, and where they end."""
    start = at + _COUNT.size
    if start > len(body):
        return None
    (n,) = _COUNT.unpack_from(body, at)
    end = start + 16 * n
    if n > MAX_CLIP_RECTS or end > len(body):
        return None
    return np.ndarray((n, 4), _INT32, bytes(body[start:end])), end


def _read_rect(four: Sequence[int]) -> Rect:
    top, left, bottom, right = four
    return _made(Rect, top=top, left=left, bottom=bottom, right=right)


def _read_image(body: memoryview, at: int) -> Image | None:
    start = at + _IMAGE.size
    if start > len(body):
        return None
    id, kind, flags, width, height = _IMAGE.unpack_from(body, at)
    content: Bitmap | ImageData | None = None
    if kind == ImageType.BITMAP:
        content = _read_bitmap(body, start)
    elif kind in PACKED:
        content = _read_packed(body, start)
    if content is None:
        return None
    return _made(Image, id=id, type=kind, flags=flags, width=width, height=height, content=content)


def _read_bitmap(body: memoryview, at: int) -> Bitmap | None:
    start = at + _BITMAP.size
    if start > len(body):
        return None
    format, flags, x, y, stride, palette = _BITMAP.unpack_from(body, at)
    end = start + stride * y
    if palette or flags & BITMAP_PAL_FROM_CACHE or end > len(body):
        return None
    sides = 1 <= x <= MAX_SIDE and 1 <= y <= MAX_SIDE and 1 <= stride <= MAX_SIDE * 4
    if not sides or not holds_line(stride, format, x):
        return None
    return _made(
        Bitmap,
        format=format,
        flags=flags,
        x=x,
        y=y,
        stride=stride,
        data=bytes(body[start:end]),
        palette=None,
        palette_id=None,
    )


def _read_packed(body: memoryview, at: int) -> ImageData | None:
    start = at + _IMAGE_DATA.size
    if start > len(body):
        return None
    (size,) = _IMAGE_DATA.unpack_from(body, at)
    end = start + size
    if end > len(body):
        return None
    return _made(ImageData, data=bytes(body[start:end]))


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
