"""SPICE's LZ image (LZ_RGB, LZ_PLT), which every client reads.

The format: a header, then control bytes. One below 32 stands before that many pixels and one more,
of three bytes each. Any other is a match: its upper three bits are how many pixels are repeated, in
bytes behind it if they are many; its lower five and the next byte are how far back, and two bytes
more if that is far. A match may overlap what it makes, so a run of one colour is a match of the
pixel before it. That is RGB24 and RGB32. RGB16 has pixels of two bytes, the upper one first; bytes
are what lines with a palette are made of, and alpha: A8, or what follows the colours in RGBA.

Strategy of the reader: see `tokens`. Of the writer: the search is done for all pixels of a block at
once. Two places are tried for each: the pixel on its left and the one above. A third one is tried
for those that are not in a long match then: the last of these where the same three pixels begin.
Wherever neighbours go on at the same distance they are one match; the longest of the three is
taken. So a picture takes longer than a loop in C would need for it, and a loop in Python very much
longer.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from ..errors import CannotDecode
from . import bitmap, jit, tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .bitmap import Data, Palette


class Type(enum.IntEnum):
    """LzImageType: up to RGB16 they are those of bitmaps."""

    BIT_LE = 1
    BIT_BE = 2
    NIBBLE_LE = 3
    NIBBLE_BE = 4
    BYTE = 5
    RGB16 = 6
    RGB24 = 7
    RGB32 = 8
    RGBA = 9
    ALPHA = 10
    A8 = 11


MAGIC, VERSION = 0x20205A4C, 0x00010001
UNIT = {Type.RGB16: 2, Type.RGB24: 3, Type.RGB32: 3, Type.RGBA: 3, Type.ALPHA: 1, Type.A8: 1}
"""Bytes of a pixel in what is packed."""

_BYTES = {**UNIT, Type.RGB32: 4, Type.RGBA: 4, Type.ALPHA: 4}
"""Bytes of a pixel in what the header has as stride."""

_TOP_DOWN = 1

read: Any = jit.lz if jit.AVAILABLE else tokens.lz
"""The faster of the two."""

_HEADER = struct.Struct(">7I")
_BLOCK = 1 << 16
"""Pixels that are searched at once. What is made of more does not stay in a processor's cache, and
is fetched from the system and given back again and again."""

_MOST_LITERALS = 32
_NEAR = 8191
_FARTHEST = _NEAR + 0xFFFF
"""Both as the format counts: one less than the distance."""

_Ints: TypeAlias = "NDArray[np.integer[Any]]"

_SHORT = 7
"""A match of so many pixels or more has bytes of its own for its length."""

_DISTANCE_BITS = 17
_DISTANCE_MASK = (1 << _DISTANCE_BITS) - 1
_MOST_RATED = (1 << 32 - _DISTANCE_BITS) - 1
"""How ratings are made: a length, no more than this, above what is left of the mask behind a
distance."""


class _Tokens(NamedTuple):
    """What a block becomes: where each token begins, its pixels, and its distance; 0: literal."""

    start: _Ints
    length: _Ints
    distance: _Ints


def encode(words: NDArray[np.uint32]) -> bytes:
    """The body of an LZ_RGB image of 32 bits a pixel, the top line first."""
    height, width = words.shape
    pixels = (words & np.uint32(0xFFFFFF)).ravel()
    parts = [_HEADER.pack(MAGIC, VERSION, Type.RGB32, width, height, width * 4, _TOP_DOWN)]
    for start in range(0, len(pixels), _BLOCK):
        end = min(start + _BLOCK, len(pixels))
        parts.append(_written(pixels[start:end], _tokens(pixels, start, end, width)).tobytes())
    return b"".join(parts)


# The search


def _tokens(pixels: NDArray[np.uint32], start: int, end: int, width: int) -> _Tokens:
    block = pixels[start:end]
    best = _rated(_same_at(pixels, start, end, width))
    np.maximum(best, _rated(_same_at(pixels, start, end, 1)), out=best)
    poor = np.flatnonzero(best[:-2] < _SHORT << _DISTANCE_BITS)
    if len(poor) > len(block) // 16:  # else it would hardly pay
        np.maximum(best, _rated(_repeated(block, poor)), out=best)
    return _in_short_literals(*_matches(best), len(block))


def _same_at(pixels: NDArray[np.uint32], start: int, end: int, back: int) -> _Ints:
    """``back`` wherever the pixel so far back is the same, else 0."""
    found = np.zeros(end - start, np.int32)
    first = max(start, back)
    if first < end and back <= _FARTHEST:
        same = pixels[first:end] == pixels[first - back : end - back]
        np.multiply(same, np.int32(back), out=found[first - start :])
    return found


def _repeated(block: NDArray[np.uint32], at: _Ints) -> _Ints:
    """How far back the last of the places ``at`` is where the same three pixels begin, for each of
    these places and what goes on behind them; 0 where there is none."""
    found = np.zeros(len(block), np.int32)
    first = block[at]
    mixed = first * np.uint32(0x9E3779B1)
    mixed ^= block[at + 1] * np.uint32(0x85EBCA77)
    mixed ^= block[at + 2] * np.uint32(0xC2B2AE3D)
    keys = (mixed >> np.uint32(16)).astype(np.uint16)
    order = np.argsort(keys, kind="stable")
    keys, first, places = keys[order], first[order], at[order].astype(np.int32)
    back = np.diff(places)
    back *= (first[1:] == first[:-1]) & (back <= _FARTHEST) & (keys[1:] == keys[:-1])
    found[places[1:]] = back
    # What goes on at the same distance is as good behind the last three pixels that are the same.
    for _ in range(2):
        left = found[:-1]
        next = np.flatnonzero((found[1:] == 0) & (left > 0)) + 1
        good = next[block[next] == block[next - found[next - 1]]]
        found[good] = found[good - 1]
    return found


def _rated(distance: _Ints) -> NDArray[np.uint32]:
    """For each pixel what its distance is worth, 0 where it has none: the more pixels in a row have
    the same the more, and then the nearer the more."""
    starts = _run_starts(distance)
    lengths = np.diff(starts, append=len(distance))
    back = distance[starts]
    rating = np.minimum(lengths, _MOST_RATED) << _DISTANCE_BITS | (_DISTANCE_MASK - back)
    return np.repeat(np.where(back > 0, rating, 0).astype(np.uint32), lengths)


def _run_starts(values: _Ints) -> _Ints:
    """Where each run of equal values begins."""
    return np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1))


def _matches(best: NDArray[np.uint32]) -> tuple[_Ints, _Ints]:
    """Where each match or run of literals begins, and its distance, 0 for literals."""
    starts = _run_starts(best)
    rating = best[starts]
    back = np.where(rating > 0, _DISTANCE_MASK - (rating & _DISTANCE_MASK).astype(np.int32), 0)
    starts, back = _joined(starts, back)
    lengths = np.diff(starts, append=len(best))
    # One that takes as much room as the pixels themselves is none.
    worth = lengths > np.where(back > _NEAR, 2, 1)
    return _joined(starts, np.where(worth, back, 0))


def _joined(starts: _Ints, back: _Ints) -> tuple[_Ints, _Ints]:
    """Neighbours of the same distance are one."""
    kept = _run_starts(back)
    return starts[kept], back[kept]


def _in_short_literals(starts: _Ints, back: _Ints, end: int) -> _Tokens:
    """As tokens: runs of literals are cut into as many as it takes."""
    lengths = np.diff(starts, append=end)
    literal = back == 0
    many = np.where(literal, -(-lengths // _MOST_LITERALS), 1)
    which = np.repeat(np.arange(len(starts)), many)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(many) - many, many)
    start = starts[which] + nth * _MOST_LITERALS
    left = lengths[which] - nth * _MOST_LITERALS
    length = np.where(literal[which], np.minimum(left, _MOST_LITERALS), left)
    return _Tokens(start, length, back[which])


# Writing it down


def _written(block: NDArray[np.uint32], tokens: _Tokens) -> NDArray[np.uint8]:
    start, length, distance = tokens
    literal = distance == 0
    back = distance - 1  # as the format has it
    far = back >= _NEAR
    long = np.where(~literal & (length >= _SHORT), (length - _SHORT) // 255 + 1, 0)
    size = np.where(literal, 1 + 3 * length, 2 + long + 2 * far)
    end = np.cumsum(size)
    at = end - size
    # What nobody writes below is 255: the bytes that say that a length or a distance goes on.
    out = np.full(end[-1], 255, np.uint8)
    high = np.where(far, 31, back >> 8)
    out[at] = np.where(literal, length - 1, np.minimum(length, _SHORT) << 5 | high)
    some = long > 0
    out[(at + long)[some]] = (length[some] - _SHORT) % 255
    near = ~literal & ~far
    out[(at + 1 + long)[near]] = back[near] & 255
    rest = back[far] - _NEAR
    out[(at + 2 + long)[far]] = rest >> 8
    out[(at + 3 + long)[far]] = rest & 255
    _write_literals(out, block, at[literal] + 1, start[literal], length[literal])
    return out


def _write_literals(
    out: NDArray[np.uint8],
    block: NDArray[np.uint32],
    at: _Ints,
    start: _Ints,
    length: _Ints,
) -> None:
    """Three bytes of each pixel of the runs ``start``, ``length`` to the places ``at``."""
    nth = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    places = np.repeat(at, length) + 3 * nth
    values = block[np.repeat(start, length) + nth]
    for byte in range(3):
        out[places + byte] = values >> np.uint32(8 * byte) & np.uint32(255)


# Reading


class _Header(NamedTuple):
    type: int
    stride: int
    top_down: bool


def decode(
    data: Data, width: int, height: int, palette: Palette | None = None
) -> NDArray[np.uint8]:
    """The picture (height, width, 4) of an LZ_RGB or LZ_PLT image: as `bitmap.decode` returns it.

    Raises CannotDecode if it is another picture than its message says, its data end too early, go
    on behind its last pixel or repeat what is before the first, or a palette has not all its
    colours.
    """
    body = bytes(data)
    kind, stride, top_down = _header(body, width, height)
    if kind <= Type.BYTE:
        lines, at = read(body, _HEADER.size, stride * height, 1)
        expect_end(body, at)
        return bitmap.decode(
            tokens.as_alpha(lines).data,
            width,
            height,
            stride=stride,
            format=kind,
            top_down=top_down,
            palette=palette,
        )
    if kind == Type.ALPHA:
        raise CannotDecode("it has nothing but alpha")
    plane, at = read(body, _HEADER.size, width * height, UNIT[Type(kind)])
    alpha = None
    if kind == Type.RGBA:
        alpha, at = read(body, at, width * height, UNIT[Type.ALPHA])
    expect_end(body, at)
    return picture(kind, width, height, top_down, plane, alpha)


def decode_alpha(data: Data, width: int, height: int) -> tuple[NDArray[np.uint8], bool]:
    """The alpha (height, width) that follows the colours of a JPEG_ALPHA image, and whether its
    first line is the top one.

    Raises CannotDecode as `decode` does, and if there is anything but alpha.
    """
    body = bytes(data)
    kind, _, top_down = _header(body, width, height)
    if kind != Type.ALPHA:
        raise CannotDecode("it has no alpha where it should")
    plane, at = read(body, _HEADER.size, width * height, UNIT[Type.ALPHA])
    expect_end(body, at)
    return tokens.as_alpha(plane).reshape(height, width), top_down


def picture(
    kind: int,
    width: int,
    height: int,
    top_down: bool,
    plane: tokens.Plane,
    alpha: tokens.Plane | None,
) -> NDArray[np.uint8]:
    """A picture without a palette, of its units as the type ``kind`` has them.

    Where they are words it may be the same memory.
    """
    words = tokens.as_words(plane, UNIT[Type(kind)])
    if kind == Type.RGB16:
        words = bitmap.of_555(words.astype(np.uint16).byteswap())
    if kind == Type.A8:
        words = words << np.uint32(24)
    lines = bitmap.as_bytes(words.reshape(height, width))
    if alpha is not None:
        lines[..., 3] = tokens.as_alpha(alpha).reshape(height, width)
    return lines if top_down else lines[::-1]


def expect_end(body: bytes, at: int) -> None:
    """Raise CannotDecode if there is more than what was read."""
    if at != len(body):
        raise CannotDecode(f"{len(body) - at} bytes behind its last pixel")


def expect_size(said: tuple[int, int], width: int, height: int) -> None:
    """Raise CannotDecode if its data are of a picture of another size, or of none."""
    bitmap.expect_pixels(width, height)
    if said != (width, height):
        raise CannotDecode(f"its data are of {said[0]}x{said[1]} pixels")


def _header(body: bytes, width: int, height: int) -> _Header:
    if len(body) < _HEADER.size:
        raise CannotDecode("its data end before its header")
    magic, version, kind, *said, stride, top_down = _HEADER.unpack_from(body)
    if (magic, version) != (MAGIC, VERSION):
        raise CannotDecode("its data are no LZ")
    if not Type.BIT_LE <= kind <= Type.A8:
        raise CannotDecode(f"unknown LZ type {kind}")
    expect_size((said[0], said[1]), width, height)
    right = bitmap.line_bytes(kind, width) if kind <= Type.BYTE else width * _BYTES[Type(kind)]
    if stride != right:
        raise CannotDecode(f"a stride of {stride} bytes for lines of {right}")
    return _Header(kind, stride, bool(top_down))
