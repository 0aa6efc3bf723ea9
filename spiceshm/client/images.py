"""What the images of a display channel show; everything that decodes them is called from `decode`.

Raw bitmaps are read here. Of other types it is known what they are called and whether they have
alpha, which their data say near the beginning.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

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


def decode(image: display.Image, palette: Sequence[int] | None) -> NDArray[np.uint8]:
    """The picture (height, width, 4) of an image: bytes B, G, R and X or A, the top line first.

    It may be a view of the image's data. ``palette`` are colours 0xRRGGBB. Images that are a
    surface or in the cache have none. Raises CannotDecode.
    """
    if not isinstance(image.content, display.Bitmap):
        raise CannotDecode("nothing here can decode it")
    return _bitmap(image.content, palette)


def picture(image: display.Image, palette: Sequence[int] | None, decoder: Decode) -> Picture:
    """What ``decoder`` makes of an image. Raises CannotDecode."""
    pixels = np.ascontiguousarray(decoder(image, palette))
    words = pixels.view("<u4")[..., 0]
    alpha = has_alpha(image)
    if image.flags & display.IMAGE_HIGH_BITS_SET and not alpha:
        words = words | np.uint32(0xFF000000)
    return Picture(words, alpha)


def mask(bitmap: display.Bitmap) -> Mask:
    """A bitmap of one bit a pixel as a mask. Raises CannotDecode if it is another."""
    if bitmap.format not in (BitmapFormat.BIT_LE, BitmapFormat.BIT_BE):
        raise CannotDecode(f"a mask in bitmap format {bitmap.format}")
    return Mask(_numbers(_lines(bitmap), bitmap).view(np.bool_))


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
        return int.from_bytes(data[8:12], "big") in (_LZ_RGBA, _LZ_A8)
    return image.type == ImageType.QUIC and int.from_bytes(data[8:12], "little") == _QUIC_RGBA


_LZ_RGBA, _LZ_A8, _QUIC_RGBA = 9, 11, 5
_GLZ_TYPE = 8


def _is_glz_rgba(head: bytes) -> bool:
    return len(head) > _GLZ_TYPE and head[_GLZ_TYPE] & 15 == _LZ_RGBA


def _inflated(data: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, size)
    except zlib.error:
        return b""


# Raw bitmaps


def _bitmap(bitmap: display.Bitmap, palette: Sequence[int] | None) -> NDArray[np.uint8]:
    lines, kind = _lines(bitmap), bitmap.format
    if kind in (BitmapFormat.XRGB, BitmapFormat.ARGB):
        return lines[:, : bitmap.x * 4].reshape(bitmap.y, bitmap.x, 4)
    if kind == BitmapFormat.RGB24:
        wide = np.zeros((bitmap.y, bitmap.x, 4), np.uint8)
        wide[..., :3] = lines[:, : bitmap.x * 3].reshape(bitmap.y, bitmap.x, 3)
        return wide
    if kind == BitmapFormat.RGB16:
        cells = np.ascontiguousarray(lines[:, : bitmap.x * 2]).view("<u2")
        return _as_bytes(of_555(cells.astype(np.uint32)))
    if kind == BitmapFormat.A8:
        return _as_bytes(lines[:, : bitmap.x].astype(np.uint32) << np.uint32(24))
    if not BitmapFormat.BIT_LE <= kind <= BitmapFormat.BYTE:
        raise CannotDecode(f"unknown bitmap format {kind}")
    numbers = _numbers(lines, bitmap)
    if palette is None:
        raise CannotDecode("a palette is missing")
    if (highest := int(numbers.max())) >= len(palette):
        raise CannotDecode(f"colour {highest} of a palette of {len(palette)}")
    return _as_bytes(np.asarray(palette, np.uint32)[numbers])


def _lines(bitmap: display.Bitmap) -> NDArray[np.uint8]:
    """Lines of bytes (y, stride), the top one first."""
    lines = np.frombuffer(bitmap.data, np.uint8).reshape(bitmap.y, bitmap.stride)
    return lines if bitmap.flags & display.BITMAP_TOP_DOWN else lines[::-1]


def _numbers(lines: NDArray[np.uint8], bitmap: display.Bitmap) -> NDArray[np.uint8]:
    """The numbers (y, x) that pixels of up to 8 bits are."""
    if bitmap.format == BitmapFormat.BYTE:
        return lines[:, : bitmap.x]
    if bitmap.format == BitmapFormat.BIT_LE:
        return np.unpackbits(lines, axis=1, count=bitmap.x, bitorder="little")
    if bitmap.format == BitmapFormat.BIT_BE:
        return np.unpackbits(lines, axis=1, count=bitmap.x)
    halves = [lines & 15, lines >> 4]
    if bitmap.format == BitmapFormat.NIBBLE_BE:
        halves.reverse()
    return np.stack(halves, axis=2).reshape(bitmap.y, -1)[:, : bitmap.x]


def of_555(words: Any) -> Words:
    """Words x555 as 0xRRGGBB; the upper bits of a channel are its lower ones too."""
    return _widened(words >> 10 & 31, words >> 5 & 31, words & 31)


def of_565(words: Any) -> Words:
    """Words 565 as 0xRRGGBB."""
    green = words >> 5 & 63
    coarse = _widened(words >> 11 & 31, green >> 1, words & 31)
    exact: Words = coarse & np.uint32(0xFF00FF) | (green << 2 | green >> 4) << 8
    return exact


def _widened(red: Any, green: Any, blue: Any) -> Words:
    red, green, blue = ((part << 3 | part >> 2) for part in (red, green, blue))
    words: Words = red << 16 | green << 8 | blue
    return words


def _as_bytes(words: Words) -> NDArray[np.uint8]:
    little: NDArray[np.uint32] = np.ascontiguousarray(words, "<u4")
    return little[..., None].view(np.uint8)
