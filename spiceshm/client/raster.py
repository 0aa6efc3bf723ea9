"""What SPICE's drawing does to pixels: arrays of words 0xAARRGGBB in, words out.

Nothing here knows of messages, surfaces or clips. Where rounding decides, it is that of pixman,
which draws for the stock client: its results are what servers take for granted when they send only
what has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..wire.display import (
    ROP_AND,
    ROP_BLACKNESS,
    ROP_INVERS,
    ROP_INVERS_DEST,
    ROP_INVERS_RES,
    ROP_OR,
    ROP_PUT,
    ROP_WHITENESS,
    ROP_XOR,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ..region import Rect
    from .images import Words

C = TypeVar("C", bound="NDArray[np.unsignedinteger[Any]]")

SOURCE, DEST = 0b1100, 0b1010
"""The codes of rasters operations that give the source, and what is there already."""

_ALL = 15
_ONES = np.uint32(0xFFFFFFFF)
_ZERO = np.uint32(0)
_ONE = 1 << 16  # in pixman's fixed numbers
_HALF = 1 << 15

_TWO: dict[int, Callable[[Any, Any], Any]] = {
    0b0000: lambda s, d: _ZERO,
    0b0001: lambda s, d: ~(s | d),
    0b0010: lambda s, d: ~s & d,
    0b0011: lambda s, d: ~s,
    0b0100: lambda s, d: s & ~d,
    0b0101: lambda s, d: ~d,
    0b0110: lambda s, d: s ^ d,
    0b0111: lambda s, d: ~(s & d),
    0b1000: lambda s, d: s & d,
    0b1001: lambda s, d: ~(s ^ d),
    0b1010: lambda s, d: d,
    0b1011: lambda s, d: ~s | d,
    0b1100: lambda s, d: s,
    0b1101: lambda s, d: s | ~d,
    0b1110: lambda s, d: s | d,
    0b1111: lambda s, d: _ONES,
}
"""By code: its bit 2 s + d is what bits s and d give."""


def code_of(descriptor: int, invert_source: int, invert_dest: int = ROP_INVERS_DEST) -> int:
    """The code of a ROP descriptor, a number of 4 bits for `combined`.

    ``invert_source`` and ``invert_dest`` are the descriptor's bits for the two operands. The first
    operation in the order of the bits counts; without any it is that which puts the source there.
    """
    source = SOURCE ^ (_ALL if descriptor & invert_source else 0)
    dest = DEST ^ (_ALL if descriptor & invert_dest else 0)
    result = _ALL if descriptor & ROP_INVERS_RES else 0
    if descriptor & ROP_PUT:
        return source ^ result
    if descriptor & ROP_OR:
        return (source | dest) ^ result
    if descriptor & ROP_AND:
        return (source & dest) ^ result
    if descriptor & ROP_XOR:
        return (source ^ dest) ^ result
    if descriptor & ROP_BLACKNESS:
        return 0
    if descriptor & ROP_WHITENESS:
        return _ALL
    if descriptor & ROP_INVERS:
        return DEST ^ _ALL
    return SOURCE


def needs_dest(code: int) -> bool:
    """Whether what a code of 4 or 8 bits gives depends on what is there."""
    return code & 0x55 != code >> 1 & 0x55


def combined(code: int, source: Words | np.uint32, dest: Words | np.uint32) -> Words | np.uint32:
    """What an operation of two operands gives; a single word stands for all pixels."""
    result: Words | np.uint32 = _TWO[code](source, dest)
    return result


def combined3(
    code: int, brush: Words | np.uint32, source: Words | np.uint32, dest: Words | np.uint32
) -> Words | np.uint32:
    """What ROP3 gives: bit 4 b + 2 s + d of ``code`` is what bits b, s and d give."""
    without, with_brush = code & _ALL, code >> 4
    low = combined(without, source, dest)
    if without == with_brush:
        return low
    high = combined(with_brush, source, dest)
    return low ^ (brush & (low ^ high))


def over(source: Words, dest: Words, *, alpha: int, source_alpha: bool, dest_alpha: bool) -> Words:
    """``source``, whose colours are multiplied with its alpha, laid over ``dest``.

    Without ``source_alpha`` or ``dest_alpha`` that one is opaque; without the latter the result's
    highest byte is 0.
    """
    above, below = _channels(source), _channels(dest)
    if not source_alpha:
        above[..., 3] = 255
    if not dest_alpha:
        below[..., 3] = 255
    if alpha != 255:
        above = _times(above, np.uint16(alpha))
    laid = above + _times(below, 255 - above[..., 3:])
    result = np.minimum(laid, 255).astype(np.uint8)
    if not dest_alpha:
        result[..., 3] = 0
    words: Words = result.view("<u4")[..., 0]
    return words


def _channels(words: Words) -> NDArray[np.uint16]:
    channels: NDArray[np.uint8] = np.ascontiguousarray(words, "<u4")[..., None].view(np.uint8)
    return channels.astype(np.uint16)


def _times(a: NDArray[np.uint16], b: Any) -> NDArray[np.uint16]:
    """a * b / 255 for numbers up to 255, rounded to the nearest."""
    product = a * b + 128
    result: NDArray[np.uint16] = (product + (product >> 8)) >> 8
    return result


def tiled(tile: Words, origin: tuple[int, int], part: Rect) -> Words:
    """What copies of ``tile`` side by side show in ``part``, one of them at ``origin`` (y, x)."""
    top, left, bottom, right = part
    rows = np.arange(top - origin[0], bottom - origin[0]) % tile.shape[0]
    columns = np.arange(left - origin[1], right - origin[1]) % tile.shape[1]
    words: Words = tile[rows[:, None], columns]
    return words


def nearest(picture: Words, size: tuple[int, int], part: Rect) -> Words:
    """``part`` of a picture that is scaled to ``size`` (height, width): the nearest pixel each."""
    rows = (_centres(picture.shape[0], size[0], part[0], part[2]) - 1) >> 16
    columns = (_centres(picture.shape[1], size[1], part[1], part[3]) - 1) >> 16
    rows, columns = rows.clip(0, picture.shape[0] - 1), columns.clip(0, picture.shape[1] - 1)
    words: Words = picture[rows[:, None], columns]
    return words


def framed(picture: Words, part: tuple[slice, slice]) -> Words:
    """A copy of a part of a picture with one more pixel on each side, as `interpolated` wants it.

    They are those that are next to the part, or black where the picture ends with it.
    """
    (top, bottom), (left, right) = ((side.start - 1, side.stop + 1) for side in part)
    beyond = [
        (max(0, -start), max(0, end - many))
        for start, end, many in zip((top, left), (bottom, right), picture.shape, strict=True)
    ]
    words: Words = np.pad(picture[max(0, top) : bottom, max(0, left) : right], beyond)
    return words


def interpolated(picture: Words, size: tuple[int, int], part: Rect) -> Words:
    """The same, but of the four nearest pixels each; ``picture`` has a frame as `framed` gives."""
    above, down = _before(picture.shape[0] - 2, size[0], part[0], part[2])
    before, across = _before(picture.shape[1] - 2, size[1], part[1], part[3])
    # A line that is mixed with the one above and the one below is put together once.
    rows, places = np.unique(np.concatenate([above, above + 1]), return_inverse=True)
    lines = _mixed_across(picture[rows], before, across[:, None].astype(np.uint16))
    upper, lower = np.split(places, 2)
    mixed = _weighed(
        lines[upper].astype(np.uint32), lines[lower].astype(np.uint32), down[:, None, None]
    )
    mixed >>= 16
    words: Words = mixed.astype(np.uint8).view("<u4")[..., 0]
    return words


def _mixed_across(
    lines: Words, before: NDArray[np.int64], across: NDArray[np.uint16]
) -> NDArray[np.uint16]:
    """Of the pixels at ``before`` and those behind them the channels' mean, times 256."""
    left, right = _channels(lines[:, before]), _channels(lines[:, before + 1])
    return _weighed(left, right, across)


def _weighed(one: C, other: C, weight: Any) -> C:
    """How much the ``other`` counts in 256; in the place of both."""
    np.multiply(one, 256 - weight, out=one)
    np.multiply(other, weight, out=other)
    np.add(one, other, out=one)
    return one


def _centres(many: int, scaled: int, start: int, end: int) -> NDArray[np.int64]:
    """Where the centres of pixels ``start`` to ``end`` of ``scaled`` lie among ``many``, in 16.16
    as pixman counts."""
    step = many * _ONE // scaled
    return np.arange(start, end, dtype=np.int64) * step + ((step * _HALF + _HALF) >> 16)


def _before(
    many: int, scaled: int, start: int, end: int
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """The pixel before each centre, counted with the frame, and how much the one behind it counts
    in 256: of its place between the two pixman keeps 7 bits."""
    places = _centres(many, scaled, start, end) - _HALF
    return (places >> 16) + 1, (places >> 8 & 254).astype(np.uint32)
