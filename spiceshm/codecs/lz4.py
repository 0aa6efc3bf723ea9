"""SPICE's LZ4 image: two bytes that say what it is, then blocks of whole lines.

A block may refer back into the ones before it; ours are a single one, or several that stand alone.
The package ``lz4`` does the work and need not be there: see `AVAILABLE`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from ..errors import CannotDecode
from . import bitmap

try:
    from lz4.block import LZ4BlockError
    from lz4.block import compress as _compress
    from lz4.block import decompress as _decompress
except ImportError:
    _compress = _decompress = None

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .bitmap import Data

AVAILABLE = _compress is not None
"""Whether pictures can be written and read."""

_HEADER = 2
_SIZE = struct.Struct(">I")
_MOST = 255
"""Bytes that one byte of a block can become."""

_WINDOW = 1 << 16
"""Bytes that a block may refer back."""

_TOP_DOWN, _XRGB = 1, 8
_BLOCK = 1 << 26
"""Most bytes of pixels in a block, which an int of 32 bits has to count after compression too."""


def encode(words: NDArray[np.uint32]) -> bytes:
    """The body of an LZ4 image. Raises RuntimeError where the package ``lz4`` is missing."""
    if _compress is None:
        raise RuntimeError("the package lz4 is not installed")
    lines = np.ascontiguousarray(words)
    many = max(1, _BLOCK // lines.strides[0])
    parts = [bytes((_TOP_DOWN, _XRGB))]
    for top in range(0, len(lines), many):
        block = _compress(lines[top : top + many], store_size=False)
        parts += [_SIZE.pack(len(block)), block]
    return b"".join(parts)


def decode(data: Data, width: int, height: int) -> NDArray[np.uint8]:
    """The picture (height, width, 4) of an LZ4 image, as `bitmap.decode` returns it.

    Raises CannotDecode if a block is damaged or no whole lines, there are fewer or more of them
    than the picture has, its format is one of those with a palette, or the package ``lz4`` is
    missing.
    """
    if _decompress is None:
        raise CannotDecode("the package lz4 is not installed")
    body = memoryview(data).cast("B")
    if len(body) < _HEADER:
        raise CannotDecode("its data end before its header")
    top_down, format = body[0] != 0, body[1]
    if not bitmap.Format.RGB16 <= format <= bitmap.Format.RGBA:
        raise CannotDecode(f"bitmap format {format} in LZ4")
    stride = bitmap.line_bytes(format, width)
    lines = b"".join(_blocks(body[_HEADER:], stride, height))
    return bitmap.decode(lines, width, height, stride=stride, format=format, top_down=top_down)


def _blocks(body: memoryview, stride: int, height: int) -> Iterator[bytes]:
    """What each block has, until all lines are there."""
    left, before = stride * height, b""
    while left:
        if len(body) < _SIZE.size:
            raise CannotDecode("its data end before its last line")
        (size,) = _SIZE.unpack_from(body)
        block, body = body[_SIZE.size : _SIZE.size + size], body[_SIZE.size + size :]
        if len(block) < size:
            raise CannotDecode("its data end before its last line")
        try:
            lines = _decompress(block, uncompressed_size=min(left, _MOST * size), dict=before)
        except (LZ4BlockError, OverflowError) as error:
            raise CannotDecode(f"a damaged block of LZ4: {error}") from None
        if not lines or len(lines) % stride:
            raise CannotDecode(f"a block of {len(lines)} bytes where lines have {stride}")
        yield lines
        left -= len(lines)
        before = lines[-_WINDOW:] if len(lines) >= _WINDOW else (before + lines)[-_WINDOW:]
    if body:
        raise CannotDecode(f"{len(body)} bytes behind its last line")
