"""The display channel as every SPICE server speaks it, as far as we do."""

from __future__ import annotations

from typing import Any

from construct import (
    Array,
    Bytes,
    Default,
    GreedyBytes,
    Int8ul,
    Int16ul,
    Int32sl,
    Int32ul,
    Int64sl,
    Int64ul,
    Rebuild,
    Seek,
    Struct,
    Switch,
    len_,
    this,
)

from .message import As, Message, Record, Sender, empty, message, record
from .types import (
    MAX_SIDE,
    BitmapFormat,
    Clip,
    Held,
    ImageType,
    Point,
    Rect,
    Tuple,
    between,
    counted,
    one_of,
)

SURFACE_FLAG_PRIMARY = 1
ROP_PUT = 8
BRUSH_SOLID = 1
BITMAP_TOP_DOWN = 4


@message("display", Sender.SERVER, 102)
class Mark(Message):
    """The primary surface may be shown."""

    layout = empty()


@message("display", Sender.SERVER, 103)
class Reset(Message):
    layout = empty()


def _holds_line(stride: int, ctx: Any) -> bool:
    return ctx.format not in (BitmapFormat.XRGB, BitmapFormat.ARGB) or stride >= ctx.x * 4


@record
class Bitmap(Record):
    """``SpiceBitmap`` without a palette: raw lines of ``stride`` bytes, ``y`` of them."""

    layout = Struct(
        "format" / Int8ul,
        "flags" / Int8ul,
        "x" / between(Int32ul, 1, MAX_SIDE),
        "y" / between(Int32ul, 1, MAX_SIDE),
        "stride" / Held(between(Int32ul, 1, MAX_SIDE * 4), _holds_line, "a whole line"),
        "palette" / Default(Int32ul, 0),
        "data" / Bytes(this.stride * this.y),
    )
    format: int
    flags: int
    x: int
    y: int
    stride: int
    data: bytes


@record
class ImageData(Record):
    """``SpiceBinaryData``: a compressed picture, in the format that its image's type names."""

    layout = Struct(
        "data_size" / Rebuild(Int32ul, len_(this.data)),
        "data" / Bytes(this.data_size),
    )
    data: bytes


@record
class Image(Record):
    """``SpiceImage``: a descriptor and, by its type, a picture or bytes that we do not read."""

    layout = Struct(
        "id" / Int64ul,
        "type" / Int8ul,
        "flags" / Int8ul,
        "width" / Int32ul,
        "height" / Int32ul,
        "content"
        / Switch(
            this.type,
            {
                int(ImageType.BITMAP): As(Bitmap),
                int(ImageType.LZ_RGB): As(ImageData),
                int(ImageType.LZ4): As(ImageData),
            },
            default=GreedyBytes,
        ),
    )
    id: int
    type: int
    flags: int
    width: int
    height: int
    content: Bitmap | ImageData | bytes


@record
class QMask(Record):
    """``SpiceQMask``: ``bitmap`` 0 is no mask."""

    layout = Struct("flags" / Int8ul, "pos" / As(Point), "bitmap" / Int32ul)
    flags: int
    pos: Point
    bitmap: int


NO_MASK = QMask(0, Point(0, 0), 0)


@record
class Brush(Record):
    """``SpiceBrush`` of one colour, 0x00RRGGBB."""

    layout = Struct("type" / one_of(Int8ul, BRUSH_SOLID), "color" / Int32ul)
    type: int
    color: int


@message("display", Sender.SERVER, 302)
class DrawFill(Message):
    """Fill ``box`` with one colour."""

    layout = Struct(
        "surface_id" / Int32ul,
        "box" / As(Rect),
        "clip" / Clip(),
        "brush" / As(Brush),
        "rop_descriptor" / Int16ul,
        "mask" / As(QMask),
    )
    surface_id: int
    box: Rect
    clip: object
    brush: Brush
    rop_descriptor: int
    mask: QMask


def _image_offset(ctx: Any) -> int:
    """Where the image of a DRAW_COPY lies that we build: right behind the mask."""
    return 57 if ctx.clip is None else 57 + 4 + 16 * len(ctx.clip)


_IMAGE_POINTER = Held(
    Int32ul, lambda at, ctx: at >= _image_offset(ctx), "a place behind the fixed part"
)


@message("display", Sender.SERVER, 304)
class DrawCopy(Message):
    """Copy ``src_area`` of an image into ``box``. Pointers count from the start of the body."""

    layout = Struct(
        "surface_id" / Int32ul,
        "box" / As(Rect),
        "clip" / Clip(),
        "src_bitmap" / Rebuild(_IMAGE_POINTER, _image_offset),
        "src_area" / As(Rect),
        "rop_descriptor" / Int16ul,
        "scale_mode" / Int8ul,
        "mask" / As(QMask),
        "start" / Seek(this.src_bitmap),
        "image" / As(Image),
    )
    exact = False
    surface_id: int
    box: Rect
    clip: object
    src_area: Rect
    rop_descriptor: int
    scale_mode: int
    mask: QMask
    image: Image


@message("display", Sender.SERVER, 314)
class SurfaceCreate(Message):
    """A surface in ordinary SPICE; the client keeps its pixels.

    ``format`` is any of SPICE's, off-screen surfaces have them all; `SurfaceFormat` has ours.
    """

    layout = Struct(
        "surface_id" / Int32ul,
        "width" / between(Int32ul, 1, MAX_SIDE),
        "height" / between(Int32ul, 1, MAX_SIDE),
        "format" / one_of(Int32ul, 1, 8, 16, 32, 80, 96),
        "flags" / Int32ul,
    )
    surface_id: int
    width: int
    height: int
    format: int
    flags: int


@message("display", Sender.SERVER, 315)
class SurfaceDestroy(Message):
    layout = Struct("surface_id" / Int32ul)
    surface_id: int


@record
class Head(Record):
    """``SpiceHead``: one monitor, in pixels of its surface."""

    layout = Struct(
        "monitor_id" / Int32ul,
        "surface_id" / Int32ul,
        "width" / Int32ul,
        "height" / Int32ul,
        "x" / Int32ul,
        "y" / Int32ul,
        "flags" / Int32ul,
    )
    monitor_id: int
    surface_id: int
    width: int
    height: int
    x: int
    y: int
    flags: int


@message("display", Sender.SERVER, 317)
class MonitorsConfig(Message):
    layout = Struct(
        "count" / Rebuild(between(Int16ul, 0, 256), lambda ctx: len(ctx.heads)),
        "max_allowed" / Int16ul,
        "heads" / Tuple(Array(this.count, As(Head))),
    )
    max_allowed: int
    heads: tuple[Head, ...]


@message("display", Sender.CLIENT, 101)
class DisplayInit(Message):
    """The client is ready; cache and window are in pixels, 0 asks for none."""

    layout = Struct(
        "pixmap_cache_id" / Int8ul,
        "pixmap_cache_size" / Int64sl,
        "glz_dictionary_id" / Int8ul,
        "glz_dictionary_window_size" / Int32sl,
    )
    pixmap_cache_id: int
    pixmap_cache_size: int
    glz_dictionary_id: int
    glz_dictionary_window_size: int


@message("display", Sender.CLIENT, 103)
class PreferredCompression(Message):
    """A `Compression`; others mean nothing."""

    layout = Struct("image_compression" / Int8ul)
    image_compression: int


@message("display", Sender.CLIENT, 105)
class PreferredVideoCodecType(Message):
    layout = Struct(*counted(Int8ul, Int8ul, 255, name="codecs", count="num_of_codecs"))
    codecs: tuple[int, ...]
