"""What the images of a display channel show: `decode` calls the codec that each type has."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from ..codecs import bitmap, glz, jpeg, lz, lz4, quic
from ..errors import CannotDecode
from ..wire import display
from ..wire.types import BitmapFormat, ImageType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Decode: TypeAlias = Callable[[display.Image, Sequence[int] | None], NDArray[np.uint8]]

Words: TypeAlias = "NDArray[np.uint32]"
"""Pixels 0xAARRGGBB."""


class Picture(NamedTuple):
    """What an image shows, (height, width); the highest byte means nothing without ``alpha``."""

    words: Words
    alpha: bool


class Mask(NamedTuple):
    """An image of one bit a pixel, (height, width), where it decides what is drawn."""

    bits: NDArray[np.bool_]


class Unread(NamedTuple):
    """An image that cannot be decoded: what it is called, and why."""

    name: str
    why: str


def decode(
    image: display.Image, palette: Sequence[int] | None, earlier: glz.Dictionary | None = None
) -> NDArray[np.uint8]:
    """The picture (height, width, 4) of an image: bytes B, G, R and X or A, the top line first.

    It may be a view of the image's data. ``palette`` are colours 0xRRGGBB; ``earlier`` has what GLZ
    may repeat of the images before. Images that are a surface or in the cache have none of their
    own. Raises CannotDecode.
    """
    width, height = image.width, image.height
    match image.content:
        case display.Bitmap() as raw:
            return bitmap.decode(
                raw.data,
                raw.x,
                raw.y,
                stride=raw.stride,
                format=raw.format,
                top_down=bool(raw.flags & display.BITMAP_TOP_DOWN),
                palette=palette,
            )
        case display.LzPalette() as packed:
            return lz.decode(packed.data, width, height, palette)
        case display.ZlibGlz() as packed:
            size = packed.glz_data_size
            return glz.decode_zlib(packed.data, width, height, size, _dictionary(earlier))
        case display.JpegAlpha() as both:
            return jpeg.decode_alpha(
                both.data,
                width,
                height,
                colour_size=both.jpeg_size,
                top_down=bool(both.flags & display.JPEG_ALPHA_TOP_DOWN),
            )
        case display.ImageData() as packed:
            return _packed(image.type, packed.data, width, height, earlier)
    raise CannotDecode("nothing here can decode it")


def _packed(
    kind: int, data: bytes, width: int, height: int, earlier: glz.Dictionary | None
) -> NDArray[np.uint8]:
    match kind:
        case ImageType.LZ_RGB:
            return lz.decode(data, width, height)
        case ImageType.GLZ_RGB:
            return glz.decode(data, width, height, _dictionary(earlier))
        case ImageType.LZ4:
            return lz4.decode(data, width, height)
        case ImageType.JPEG:
            return jpeg.decode(data, width, height)
        case ImageType.QUIC:
            return quic.decode(data, width, height)
    raise CannotDecode("nothing here can decode it")


def _dictionary(earlier: glz.Dictionary | None) -> glz.Dictionary:
    return earlier if earlier is not None else glz.Dictionary(0)


def picture(image: display.Image, palette: Sequence[int] | None, decoder: Decode) -> Picture:
    """What ``decoder`` makes of an image. Raises CannotDecode."""
    pixels = np.ascontiguousarray(decoder(image, palette))
    words = pixels.view("<u4")[..., 0]
    alpha = has_alpha(image)
    if image.flags & display.IMAGE_HIGH_BITS_SET and not alpha:
        words = words | np.uint32(0xFF000000)
    return Picture(words, alpha)


def mask(raw: display.Bitmap) -> Mask:
    """A bitmap of one bit a pixel as a mask. Raises CannotDecode if it is another."""
    top_down = bool(raw.flags & display.BITMAP_TOP_DOWN)
    return Mask(
        bitmap.decode_mask(
            raw.data, raw.x, raw.y, stride=raw.stride, format=raw.format, top_down=top_down
        )
    )


def name_of(image: display.Image) -> str:
    """How an image's type is called in messages: ``quic``, ``lz_rgb``, ``image type 77``."""
    try:
        return ImageType(image.type).name.lower()
    except ValueError:
        return f"image type {image.type}"


def has_alpha(image: display.Image) -> bool:
    """Whether the fourth byte of its pixels means something."""
    content = image.content
    if isinstance(content, display.Bitmap):
        return content.format in (BitmapFormat.ARGB, BitmapFormat.A8)
    if isinstance(content, display.ZlibGlz):
        return _is_glz_rgba(_inflated(content.data, _GLZ_TYPE + 1))
    if not isinstance(content, display.ImageData):
        return isinstance(content, display.JpegAlpha)
    data = content.data
    if image.type == ImageType.LZ4:
        return data[1:2] == bytes([BitmapFormat.ARGB])
    if image.type == ImageType.GLZ_RGB:
        return _is_glz_rgba(data)
    if image.type == ImageType.LZ_RGB:
        return int.from_bytes(data[8:12], "big") in (lz.Type.RGBA, lz.Type.A8)
    return image.type == ImageType.QUIC and int.from_bytes(data[8:12], "little") == quic.RGBA


_GLZ_TYPE = 8
"""Where the type is, and whether the first line is the top one."""


def _is_glz_rgba(head: bytes) -> bool:
    return len(head) > _GLZ_TYPE and head[_GLZ_TYPE] & 15 == lz.Type.RGBA


def _inflated(data: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, size)
    except zlib.error:
        return b""
