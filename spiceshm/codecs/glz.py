"""SPICE's GLZ image (GLZ_RGB, ZLIB_GLZ): LZ that may repeat what earlier images had.

The format: a header with the image's number and how many images back the oldest is that this one or
a later one may refer to; then control bytes as in `lz`. Below 32 they are the same. Any other is a
match: its upper three bits are the length, as there; then follow a place and how many images back
it is counted from. The control byte has the place's lowest four bits, the next byte eight more, the
one behind it (x) says how it goes on. Bit 4 of the control byte clear: the lower six bits of x and
as many bytes more as its upper two bits say are the image. Set: five bits of x, and if its bit 5 is
set the byte at the end, are the place's upper bits, and only those bytes the image. Image 0 is this
one, and the place is then how far back, less one.

Bytes of one image are as the server has its lines, be the first the top one or the last.
"""

from __future__ import annotations

import functools
import struct
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CannotDecode
from . import jit, lz, tokens
from .lz import Type

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .bitmap import Data

_HEADER = struct.Struct(">IIBIIIQI")
_TYPE = 15
_TOP_DOWN = 16
_MOST = 6
"""Bytes of a pixel that is packed as badly as can be: a literal of it and one of its alpha."""

_LEAST = 128
"""Pixels that an image counts as at least: it is not free to keep one."""

read: Any = jit.glz if jit.AVAILABLE else tokens.glz
"""The faster of the two."""


class _Header(NamedTuple):
    type: Type
    top_down: bool
    number: int
    back: int


class Image(NamedTuple):
    """An image as later ones may repeat it: units of colour, and those of alpha if it has them."""

    planes: dict[int, tokens.Plane]
    """By the bytes of a unit."""
    pixels: int


class Dictionary:
    """Images that later ones may refer to, at most ``pixels`` altogether: one for each display
    channel, as a client asks for it in its INIT.

    An image goes when a later one says that no more refer to it, or when there is no room. What the
    server refers to and is not there is an error, never waited for: what came in order on one
    channel is there. It takes three or four bytes a pixel; with `jit` four, and eight with alpha.
    """

    def __init__(self, pixels: int) -> None:
        self._limit = pixels
        self._images: dict[int, Image] = {}
        self._pixels = 0

    def earlier(self, number: int, unit: int, back: int) -> tokens.Plane:
        """The units of ``unit`` bytes that the image has which is ``back`` before ``number``.

        Raises CannotDecode if it is not there or has none.
        """
        number -= back
        image = self._images.get(number)
        if image is None:
            raise CannotDecode(f"it repeats image {number}, which is not there")
        if unit not in image.planes:
            raise CannotDecode(f"it repeats image {number}, which is of another type")
        return image.planes[unit]

    def add(self, number: int, oldest: int, image: Image) -> None:
        """Take an image in; those before ``oldest`` go, and what there is no room for."""
        while self._images and next(iter(self._images)) < oldest:
            self._drop(next(iter(self._images)))
        self._drop(number)
        self._images[number] = image
        self._pixels += image.pixels
        while self._pixels > self._limit:
            self._drop(next(iter(self._images)))

    def _drop(self, number: int) -> None:
        image = self._images.pop(number, None)
        self._pixels -= image.pixels if image else 0


def decode(data: Data, width: int, height: int, dictionary: Dictionary) -> NDArray[np.uint8]:
    """The picture (height, width, 4) of a GLZ_RGB image, which is in the dictionary from now on.

    It is as `bitmap.decode` returns it. Raises CannotDecode if it is another picture than its
    message says, its data end too early, go on behind its last pixel, or repeat what is not there;
    then the dictionary stays as it was.
    """
    body = bytes(data)
    header = _header(body, width, height)
    planes: dict[int, tokens.Plane] = {}
    at = _HEADER.size
    for unit in (lz.UNIT[header.type], *((1,) if header.type == Type.RGBA else ())):
        earlier = functools.partial(dictionary.earlier, header.number, unit)
        planes[unit], at = read(body, at, width * height, unit, earlier)
    lz.expect_end(body, at)
    image = Image(planes, max(width * height, _LEAST))
    dictionary.add(header.number, header.number - header.back, image)
    # What the dictionary has is not the caller's to write to.
    first, alpha = planes[lz.UNIT[header.type]].copy(), planes.get(1)
    return lz.picture(header.type, width, height, header.top_down, first, alpha)


def decode_zlib(
    data: Data, width: int, height: int, size: int, dictionary: Dictionary
) -> NDArray[np.uint8]:
    """The picture of a ZLIB_GLZ image: ``size`` bytes of GLZ, compressed. As `decode`.

    Raises CannotDecode also if the data are no zlib, or make more or fewer bytes than ``size``, or
    that is more than such an image can take.
    """
    if size > _HEADER.size + _MOST * width * height:
        raise CannotDecode(f"{size} bytes of GLZ are too many for it")
    inflate = zlib.decompressobj()
    try:
        body = inflate.decompress(data, size + 1)
    except zlib.error as error:
        raise CannotDecode(f"its data are no zlib: {error}") from None
    if len(body) != size or not inflate.eof:
        raise CannotDecode(f"its data are not {size} bytes of GLZ")
    return decode(body, width, height, dictionary)


def _header(body: bytes, width: int, height: int) -> _Header:
    if len(body) < _HEADER.size:
        raise CannotDecode("its data end before its header")
    magic, version, kind, *said, _, number, back = _HEADER.unpack_from(body)
    if (magic, version) != (lz.MAGIC, lz.VERSION):
        raise CannotDecode("its data are no GLZ")
    if not Type.RGB16 <= kind & _TYPE <= Type.RGBA:
        raise CannotDecode(f"unknown GLZ type {kind & _TYPE}")
    lz.expect_size((said[0], said[1]), width, height)
    return _Header(Type(kind & _TYPE), bool(kind & _TOP_DOWN), number, back)
