"""The display channel as every SPICE server speaks it, as far as we do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from construct import (
    Array,
    Bytes,
    GreedyBytes,
    If,
    Int8ul,
    Int16ul,
    Int32sl,
    Int32ul,
    Int64sl,
    Int64ul,
    Pass,
    Rebuild,
    Struct,
    Switch,
    len_,
    this,
)

from .message import As, Message, Pointed, Record, Sender, empty, message, record
from .types import (
    MAX_SIDE,
    Alike,
    BitmapFormat,
    Clip,
    Held,
    ImageType,
    Point,
    Rect,
    SurfaceFormat,
    Tuple,
    between,
    counted,
    one_of,
)

if TYPE_CHECKING:
    from construct import Construct

SURFACE_FLAG_PRIMARY = 1
ROP_INVERS_SRC = 1
ROP_INVERS_BRUSH = 2
ROP_INVERS_DEST = 4
ROP_PUT = 8
ROP_OR = 16
ROP_AND = 32
ROP_XOR = 64
ROP_BLACKNESS = 128
ROP_WHITENESS = 256
ROP_INVERS = 512
ROP_INVERS_RES = 1024
SCALE_INTERPOLATE = 0
SCALE_NEAREST = 1
BRUSH_NONE = 0
BRUSH_SOLID = 1
BRUSH_PATTERN = 2
MASK_INVERS = 1
IMAGE_CACHE_ME = 1
IMAGE_HIGH_BITS_SET = 2
IMAGE_CACHE_REPLACE_ME = 4
BITMAP_PAL_CACHE_ME = 1
BITMAP_PAL_FROM_CACHE = 2
BITMAP_TOP_DOWN = 4
JPEG_ALPHA_TOP_DOWN = 1
ALPHA_DEST_HAS_ALPHA = 1
ALPHA_SRC_SURFACE_HAS_ALPHA = 2
STREAM_TOP_DOWN = 1
CODEC_MJPEG = 1
MAX_COLOURS = 256

_BITS: dict[int, int] = {
    BitmapFormat.BIT_LE: 1,
    BitmapFormat.BIT_BE: 1,
    BitmapFormat.NIBBLE_LE: 4,
    BitmapFormat.NIBBLE_BE: 4,
    BitmapFormat.BYTE: 8,
    BitmapFormat.RGB16: 16,
    BitmapFormat.RGB24: 24,
    BitmapFormat.XRGB: 32,
    BitmapFormat.ARGB: 32,
    BitmapFormat.A8: 8,
}


@message("display", Sender.SERVER, 102)
class Mark(Message):
    """The primary surface may be shown."""

    layout = empty()


@message("display", Sender.SERVER, 103)
class Reset(Message):
    layout = empty()


def _base() -> tuple[Construct, ...]:
    """``SpiceMsgDisplayBase``, with which every message begins that draws."""
    return "surface_id" / Int32ul, "box" / As(Rect), "clip" / Clip()


@message("display", Sender.SERVER, 104)
class CopyBits(Message):
    """Copy what begins at ``src_pos`` of the same surface into ``box``; the two may overlap."""

    layout = Struct(*_base(), "src_pos" / As(Point))
    surface_id: int
    box: Rect
    clip: object
    src_pos: Point


@record
class Resource(Record):
    """``SpiceResourceID``; the only type that there is, 1, is a pixmap."""

    layout = Struct("type" / Int8ul, "id" / Int64ul)
    type: int
    id: int


@message("display", Sender.SERVER, 105)
class InvalList(Message):
    """These images are no longer in the cache."""

    layout = Struct(
        "count" / Rebuild(Int16ul, len_(this.resources)), "resources" / Alike(Resource, this.count)
    )
    resources: tuple[Resource, ...]


@record
class WaitForChannel(Record):
    """``SpiceWaitForChannel``: up to which message of another channel to wait."""

    layout = Struct("channel_type" / Int8ul, "channel_id" / Int8ul, "message_serial" / Int64ul)
    channel_type: int
    channel_id: int
    message_serial: int


@message("display", Sender.SERVER, 106)
class InvalAllPixmaps(Message):
    """No image is in the cache any more, once other display channels are as far as that."""

    layout = Struct(*counted(As(WaitForChannel), Int8ul, 255, name="wait_list", count="wait_count"))
    wait_list: tuple[WaitForChannel, ...]


@message("display", Sender.SERVER, 107)
class InvalPalette(Message):
    layout = Struct("id" / Int64ul)
    id: int


@message("display", Sender.SERVER, 108)
class InvalAllPalettes(Message):
    layout = empty()


@message("display", Sender.SERVER, 122)
class StreamCreate(Message):
    """A part of a surface is shown as a video; ``codec_type`` is 1 for MJPEG.

    A picture has ``stream_width`` x ``stream_height`` pixels and goes into all of ``dest``.
    """

    layout = Struct(
        "surface_id" / Int32ul,
        "id" / Int32ul,
        "flags" / Int8ul,
        "codec_type" / Int8ul,
        "stamp" / Int64ul,
        "stream_width" / Int32ul,
        "stream_height" / Int32ul,
        "src_width" / Int32ul,
        "src_height" / Int32ul,
        "dest" / As(Rect),
        "clip" / Clip(),
    )
    surface_id: int
    id: int
    flags: int
    codec_type: int
    stamp: int
    stream_width: int
    stream_height: int
    src_width: int
    src_height: int
    dest: Rect
    clip: object


@message("display", Sender.SERVER, 123)
class StreamData(Message):
    """One picture of a stream, to be shown at ``multi_media_time`` in ms."""

    layout = Struct(
        "id" / Int32ul,
        "multi_media_time" / Int32ul,
        "data_size" / Rebuild(Int32ul, len_(this.data)),
        "data" / Bytes(this.data_size),
    )
    id: int
    multi_media_time: int
    data: bytes


@message("display", Sender.SERVER, 124)
class StreamClip(Message):
    layout = Struct("id" / Int32ul, "clip" / Clip())
    id: int
    clip: object


@message("display", Sender.SERVER, 125)
class StreamDestroy(Message):
    layout = Struct("id" / Int32ul)
    id: int


@message("display", Sender.SERVER, 126)
class StreamDestroyAll(Message):
    layout = empty()


@record
class Palette(Record):
    """``SpicePalette``: colours 0x00RRGGBB, or what the pixels of a surface of 16 bits are."""

    layout = Struct(
        "unique" / Int64ul,
        *counted(Int32ul, Int16ul, MAX_COLOURS, name="ents", count="num_ents"),
    )
    unique: int
    ents: tuple[int, ...]


_CACHED_PALETTE = this.flags & BITMAP_PAL_FROM_CACHE


def _own_palette(ctx: Any) -> bool:
    return not ctx.flags & BITMAP_PAL_FROM_CACHE


def holds_line(stride: int, format: int, width: int) -> bool:
    """Whether so many bytes are enough for a line of a bitmap.

    A format that we do not know is left to who decodes it.
    """
    return stride * 8 >= width * _BITS.get(format, 0)


def _fits(stride: int, ctx: Any) -> bool:
    return holds_line(stride, ctx.format, ctx.x)


@record
class Bitmap(Record):
    """``SpiceBitmap``: raw lines of ``stride`` bytes, ``y`` of them; ``format`` is a
    `BitmapFormat`.

    The palette is ``palette``, or that with ``palette_id`` in the cache, or there is none.
    """

    layout = Struct(
        "format" / Int8ul,
        "flags" / Int8ul,
        "x" / between(Int32ul, 1, MAX_SIDE),
        "y" / between(Int32ul, 1, MAX_SIDE),
        "stride" / Held(between(Int32ul, 1, MAX_SIDE * 4), _fits, "a whole line"),
        "palette_id" / If(_CACHED_PALETTE, Int64ul),
        "palette" / If(_own_palette, Pointed(Palette, optional=True)),
        "data" / Bytes(this.stride * this.y),
    )
    format: int
    flags: int
    x: int
    y: int
    stride: int
    data: bytes
    palette: Palette | None = None
    palette_id: int | None = None


@record
class ImageData(Record):
    """``SpiceBinaryData``: a compressed picture, in the format that its image's type names."""

    layout = Struct(
        "data_size" / Rebuild(Int32ul, len_(this.data)),
        "data" / Bytes(this.data_size),
    )
    data: bytes


@record
class LzPalette(Record):
    """``SpiceLZPLTData``: a picture in LZ whose pixels are numbers of a palette's colours."""

    layout = Struct(
        "flags" / Int8ul,
        "data_size" / Rebuild(Int32ul, len_(this.data)),
        "palette_id" / If(_CACHED_PALETTE, Int64ul),
        "palette" / If(_own_palette, Pointed(Palette)),
        "data" / Bytes(this.data_size),
    )
    flags: int
    data: bytes
    palette: Palette | None = None
    palette_id: int | None = None


@record
class ZlibGlz(Record):
    """``SpiceZlibGlzRGBData``: ``glz_data_size`` bytes of GLZ, as zlib packs them."""

    layout = Struct(
        "glz_data_size" / Int32ul,
        "data_size" / Rebuild(Int32ul, len_(this.data)),
        "data" / Bytes(this.data_size),
    )
    glz_data_size: int
    data: bytes


@record
class JpegAlpha(Record):
    """``SpiceJPEGAlphaData``: ``jpeg_size`` bytes of JPEG, and behind them its alpha in LZ."""

    layout = Struct(
        "flags" / Int8ul,
        "jpeg_size" / Int32ul,
        "data_size"
        / Rebuild(
            Held(Int32ul, lambda size, ctx: size >= ctx.jpeg_size, "as much as jpeg_size"),
            len_(this.data),
        ),
        "data" / Bytes(this.data_size),
    )
    flags: int
    jpeg_size: int
    data: bytes


@record
class SurfaceImage(Record):
    """``SpiceSurface``: the picture is what another surface shows."""

    layout = Struct("surface_id" / Int32ul)
    surface_id: int


Content: TypeAlias = Bitmap | ImageData | LzPalette | ZlibGlz | JpegAlpha | SurfaceImage
"""What an image consists of."""

_CONTENTS: dict[ImageType, type[Content]] = {
    ImageType.BITMAP: Bitmap,
    ImageType.QUIC: ImageData,
    ImageType.LZ_PLT: LzPalette,
    ImageType.LZ_RGB: ImageData,
    ImageType.GLZ_RGB: ImageData,
    ImageType.SURFACE: SurfaceImage,
    ImageType.JPEG: ImageData,
    ImageType.ZLIB_GLZ_RGB: ZlibGlz,
    ImageType.JPEG_ALPHA: JpegAlpha,
    ImageType.LZ4: ImageData,
}
PACKED = frozenset(int(kind) for kind, content in _CONTENTS.items() if content is ImageData)
"""The types of images whose content is an `ImageData`."""


@record
class Image(Record):
    """``SpiceImage``: a descriptor and, by its type, what the picture is made of.

    Nothing, where that is in the cache, or of a type that we do not know.
    """

    layout = Struct(
        "id" / Int64ul,
        "type" / Int8ul,
        "flags" / Int8ul,
        "width" / Int32ul,
        "height" / Int32ul,
        "content"
        / Switch(
            this.type,
            {int(kind): As(content) for kind, content in _CONTENTS.items()},
            default=Pass,
        ),
    )
    id: int
    type: int
    flags: int
    width: int
    height: int
    content: Content | None


@record
class QMask(Record):
    """``SpiceQMask``: which pixels of a box are drawn, by an image of one bit a pixel, or all.

    The pixel of the image at ``pos`` is for the first one of the box.
    """

    layout = Struct("flags" / Int8ul, "pos" / As(Point), "bitmap" / Pointed(Image, optional=True))
    flags: int
    pos: Point
    bitmap: Image | None


NO_MASK = QMask(0, Point(0, 0), None)


@record
class Pattern(Record):
    """``SpicePattern``: an image that repeats; one of them begins at ``pos`` of the surface."""

    layout = Struct("pat" / Pointed(Image), "pos" / As(Point))
    pat: Image
    pos: Point


@record
class Brush(Record):
    """``SpiceBrush``: none, of one colour (0x00RRGGBB), or a pattern."""

    layout = Struct(
        "type" / one_of(Int8ul, BRUSH_NONE, BRUSH_SOLID, BRUSH_PATTERN),
        "color" / If(this.type == BRUSH_SOLID, Int32ul),
        "pattern" / If(this.type == BRUSH_PATTERN, As(Pattern)),
    )
    type: int
    color: int | None = None
    pattern: Pattern | None = None


@message("display", Sender.SERVER, 302)
class DrawFill(Message):
    """Fill ``box`` with a brush."""

    layout = Struct(
        *_base(),
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


@message("display", Sender.SERVER, 303)
class DrawOpaque(Message):
    """Copy ``src_area`` of an image into ``box``, then a brush onto it."""

    layout = Struct(
        *_base(),
        "image" / Pointed(Image),
        "src_area" / As(Rect),
        "brush" / As(Brush),
        "rop_descriptor" / Int16ul,
        "scale_mode" / Int8ul,
        "mask" / As(QMask),
    )
    surface_id: int
    box: Rect
    clip: object
    src_area: Rect
    brush: Brush
    rop_descriptor: int
    scale_mode: int
    mask: QMask
    image: Image


@message("display", Sender.SERVER, 304)
class DrawCopy(Message):
    """Copy ``src_area`` of an image into ``box``. Pointers count from the start of the body."""

    layout = Struct(
        *_base(),
        "image" / Pointed(Image),
        "src_area" / As(Rect),
        "rop_descriptor" / Int16ul,
        "scale_mode" / Int8ul,
        "mask" / As(QMask),
    )
    surface_id: int
    box: Rect
    clip: object
    src_area: Rect
    rop_descriptor: int
    scale_mode: int
    mask: QMask
    image: Image


@message("display", Sender.SERVER, 305)
class DrawBlend(Message):
    """A DRAW_COPY under another name."""

    layout = DrawCopy.layout
    surface_id: int
    box: Rect
    clip: object
    src_area: Rect
    rop_descriptor: int
    scale_mode: int
    mask: QMask
    image: Image


@message("display", Sender.SERVER, 306)
class DrawBlackness(Message):
    """Fill ``box`` with black."""

    layout = Struct(*_base(), "mask" / As(QMask))
    surface_id: int
    box: Rect
    clip: object
    mask: QMask


@message("display", Sender.SERVER, 307)
class DrawWhiteness(Message):
    """Fill ``box`` with white."""

    layout = DrawBlackness.layout
    surface_id: int
    box: Rect
    clip: object
    mask: QMask


@message("display", Sender.SERVER, 308)
class DrawInvers(Message):
    """Turn every bit of ``box`` round."""

    layout = DrawBlackness.layout
    surface_id: int
    box: Rect
    clip: object
    mask: QMask


@message("display", Sender.SERVER, 309)
class DrawRop3(Message):
    """Put together brush, image and what is there: bit 4 b + 2 s + d of ``rop3`` says what bits
    b, s, d of them give."""

    layout = Struct(
        *_base(),
        "image" / Pointed(Image),
        "src_area" / As(Rect),
        "brush" / As(Brush),
        "rop3" / Int8ul,
        "scale_mode" / Int8ul,
        "mask" / As(QMask),
    )
    surface_id: int
    box: Rect
    clip: object
    src_area: Rect
    brush: Brush
    rop3: int
    scale_mode: int
    mask: QMask
    image: Image


@message("display", Sender.SERVER, 310)
class DrawStroke(Message):
    """Lines along a path. Of this, TEXT and COMPOSITE is read where they draw, not what."""

    layout = Struct(*_base(), "rest" / GreedyBytes)
    surface_id: int
    box: Rect
    clip: object
    rest: bytes


@message("display", Sender.SERVER, 311)
class DrawText(Message):
    layout = DrawStroke.layout
    surface_id: int
    box: Rect
    clip: object
    rest: bytes


@message("display", Sender.SERVER, 312)
class DrawTransparent(Message):
    """Copy those pixels of an image that are not of the colour ``true_color`` (0x00RRGGBB).

    ``src_color`` is the same in the image's own format, and nobody reads it.
    """

    layout = Struct(
        *_base(),
        "image" / Pointed(Image),
        "src_area" / As(Rect),
        "src_color" / Int32ul,
        "true_color" / Int32ul,
    )
    surface_id: int
    box: Rect
    clip: object
    src_area: Rect
    src_color: int
    true_color: int
    image: Image


@message("display", Sender.SERVER, 313)
class DrawAlphaBlend(Message):
    """Lay an image over ``box``; its colours are multiplied with its alpha already.

    All of it counts ``alpha`` / 255. Whether surfaces have alpha, ``alpha_flags`` say too.
    """

    layout = Struct(
        *_base(),
        "alpha_flags" / Int8ul,
        "alpha" / Int8ul,
        "image" / Pointed(Image),
        "src_area" / As(Rect),
    )
    surface_id: int
    box: Rect
    clip: object
    alpha_flags: int
    alpha: int
    src_area: Rect
    image: Image


@message("display", Sender.SERVER, 314)
class SurfaceCreate(Message):
    """A surface in ordinary SPICE; the client keeps its pixels.

    ``format`` is a `SurfaceFormat`; off-screen surfaces have them all.
    """

    layout = Struct(
        "surface_id" / Int32ul,
        "width" / between(Int32ul, 1, MAX_SIDE),
        "height" / between(Int32ul, 1, MAX_SIDE),
        "format" / one_of(Int32ul, *SurfaceFormat),
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


@message("display", Sender.SERVER, 316)
class StreamDataSized(Message):
    """One picture of a stream that has another size and goes to another place than the others."""

    layout = Struct(
        "id" / Int32ul,
        "multi_media_time" / Int32ul,
        "width" / Int32ul,
        "height" / Int32ul,
        "dest" / As(Rect),
        "data_size" / Rebuild(Int32ul, len_(this.data)),
        "data" / Bytes(this.data_size),
    )
    id: int
    multi_media_time: int
    width: int
    height: int
    dest: Rect
    data: bytes


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


@message("display", Sender.SERVER, 318)
class DrawComposite(Message):
    """What X's RENDER does, for clients that have the capability COMPOSITE."""

    layout = DrawStroke.layout
    surface_id: int
    box: Rect
    clip: object
    rest: bytes


Drawing: TypeAlias = (
    CopyBits
    | DrawFill
    | DrawOpaque
    | DrawCopy
    | DrawBlend
    | DrawBlackness
    | DrawWhiteness
    | DrawInvers
    | DrawRop3
    | DrawStroke
    | DrawText
    | DrawTransparent
    | DrawAlphaBlend
    | DrawComposite
)
"""Every message that draws on the surface ``surface_id``."""


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
