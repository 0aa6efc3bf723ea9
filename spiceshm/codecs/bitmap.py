"""SPICE's bitmaps: lines of pixels in one of ten formats, to what everything else here is made of.

The formats are numbered as in SpiceBitmapFmt, and LZ numbers what it packs alike as far as the
palettes go. Wherever a line ends within a byte, the rest of that byte means nothing.
"""

from __future__ import annotations

import enum
import functools
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..errors import CannotDecode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Data: TypeAlias = "bytes | bytearray | memoryview"
"""What is decoded, as it came."""

Palette: TypeAlias = "Sequence[int] | NDArray[np.uint32]"
"""Colours 0xRRGGBB by their numbers."""


class Format(enum.IntEnum):
    """SpiceBitmapFmt."""

    BIT_LE = 1
    BIT_BE = 2
    NIBBLE_LE = 3
    NIBBLE_BE = 4
    BYTE = 5
    RGB16 = 6
    RGB24 = 7
    RGB32 = 8
    RGBA = 9
    A8 = 10


_BITS = {
    Format.BIT_LE: 1,
    Format.BIT_BE: 1,
    Format.NIBBLE_LE: 4,
    Format.NIBBLE_BE: 4,
    Format.BYTE: 8,
    Format.RGB16: 16,
    Format.RGB24: 24,
    Format.RGB32: 32,
    Format.RGBA: 32,
    Format.A8: 8,
}
_RGB = np.uint32(0xFFFFFF)


def decode(
    data: Data,
    width: int,
    height: int,
    *,
    stride: int,
    format: int,
    top_down: bool,
    palette: Palette | None = None,
) -> NDArray[np.uint8]:
    """The picture (height, width, 4) as B, G, R and X or A, the top line first.

    ``stride`` is bytes from one line to the next, and ``palette`` has colours 0xRRGGBB for the
    formats below RGB16. A is what RGBA and A8 have (of A8 the colours are 0); elsewhere the fourth
    byte means nothing. Of RGB32 and RGBA the array is a view of ``data``.

    Raises CannotDecode if it has no pixels, the format is none, ``data`` is shorter than its lines,
    or a palette is missing or has not all the colours.
    """
    lines = _lines(data, width, height, stride, format)
    if not top_down:
        lines = lines[::-1]
    if format <= Format.BYTE:
        return _coloured(_indices(lines, width, format), palette)
    if format >= Format.RGB32 and format != Format.A8:
        return _cells(lines, width, 4)
    if format == Format.RGB16:
        return as_bytes(of_555(_cells(lines, width, 2).view("<u2")[..., 0]))
    if format == Format.RGB24:
        return widened(_cells(lines, width, 3))
    return as_bytes(lines.astype(np.uint32) << np.uint32(24))


def decode_mask(
    data: Data, width: int, height: int, *, stride: int, format: int, top_down: bool
) -> NDArray[np.bool_]:
    """Where the bits (height, width) of a mask are 1, which is a bitmap of one bit and no palette.

    Raises CannotDecode if it has another format or is shorter than its lines.
    """
    if format not in (Format.BIT_LE, Format.BIT_BE):
        raise CannotDecode(f"a mask in bitmap format {format}")
    bits = _indices(_lines(data, width, height, stride, format), width, format).view(np.bool_)
    return bits if top_down else bits[::-1]


def line_bytes(format: int, width: int) -> int:
    """How many bytes a line has at least. Raises CannotDecode if there is no such format."""
    if format not in _BITS:
        raise CannotDecode(f"unknown bitmap format {format}")
    return (width * _BITS[Format(format)] + 7) // 8


def expect_pixels(width: int, height: int) -> None:
    """Raise CannotDecode if a picture has none, or more than 32 bits can count."""
    if not 1 <= width * height < 1 << 31:
        raise CannotDecode(f"a picture of {width}x{height} pixels")


def as_bytes(words: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Words 0xAARRGGBB as their bytes B, G, R, A; the same memory."""
    little: NDArray[np.uint32] = np.ascontiguousarray(words, "<u4")
    return little[..., None].view(np.uint8)


def _lines(data: Data, width: int, height: int, stride: int, format: int) -> NDArray[np.uint8]:
    """What the lines have of pixels: (height, bytes)."""
    expect_pixels(width, height)
    least = line_bytes(format, width)
    if stride < least:
        raise CannotDecode(f"a stride of {stride} bytes for lines of {least}")
    size, needed = memoryview(data).nbytes, stride * (height - 1) + least
    if size < needed:
        raise CannotDecode(f"{size} bytes of pixels where there must be {needed}")
    return np.ndarray((height, least), np.uint8, data, strides=(stride, 1))


def _cells(lines: NDArray[np.uint8], width: int, size: int) -> NDArray[np.uint8]:
    """Lines cut into pixels of ``size`` bytes; the same memory."""
    return lines.reshape(len(lines), width, size)


def _indices(lines: NDArray[np.uint8], width: int, format: int) -> NDArray[np.uint8]:
    if format == Format.BYTE:
        return lines
    if format <= Format.BIT_BE:
        if format == Format.BIT_LE:
            return np.unpackbits(lines, axis=1, count=width, bitorder="little")
        return np.unpackbits(lines, axis=1, count=width)
    halves = (lines & 15, lines >> 4)
    first, second = halves if format == Format.NIBBLE_LE else halves[::-1]
    return np.stack((first, second), axis=2).reshape(len(lines), -1)[:, :width]


def _coloured(indices: NDArray[np.uint8], palette: Palette | None) -> NDArray[np.uint8]:
    if palette is None:
        raise CannotDecode("a palette is missing")
    colours = np.asarray(palette, np.uint32) & _RGB
    if (highest := int(indices.max())) >= len(colours):
        raise CannotDecode(f"colour {highest} of a palette of {len(colours)}")
    return as_bytes(colours[indices])


def widened(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels (..., 3) as (..., 4), the fourth byte 0."""
    wide = np.zeros((*pixels.shape[:-1], 4), np.uint8)
    for channel in range(3):  # much faster than all at once
        wide[..., channel] = pixels[..., channel]
    return wide


def of_555(words: Any) -> Any:
    """Words x555, an array of integers or one, as 0xRRGGBB of uint32."""
    return _all_555()[words & 0x7FFF]


def of_565(words: Any) -> Any:
    """Words 565, an array of integers or one, as 0xRRGGBB of uint32."""
    red_and_blue = of_555(words >> 1 & 0x7FE0 | words & 0x1F) & np.uint32(0xFF00FF)
    green = (words >> 5 & 0x3F).astype(np.uint32)
    return red_and_blue | (green << np.uint32(2) | green >> np.uint32(4)) << np.uint32(8)


@functools.cache
def _all_555() -> NDArray[np.uint32]:
    """What each x555 is; the upper bits of a channel are its lower ones too, so that 31 is 255."""
    values = np.arange(1 << 15, dtype=np.uint32)
    words = np.zeros_like(values)
    for channel in range(3):
        five = values >> np.uint32(5 * channel) & np.uint32(31)
        words |= (five << np.uint32(3) | five >> np.uint32(2)) << np.uint32(8 * channel)
    return words
