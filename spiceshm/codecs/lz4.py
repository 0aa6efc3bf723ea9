"""SPICE's LZ4 image: two bytes that say what it is, then blocks of whole lines.

SPICE lets a block refer back into the ones before it; ours is a single one, or several that stand
alone. The package ``lz4`` does the work and need not be there: see `AVAILABLE`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

try:
    from lz4.block import compress as _compress
except ImportError:
    _compress = None

if TYPE_CHECKING:
    from numpy.typing import NDArray

AVAILABLE = _compress is not None
"""Whether pictures can be written."""

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
        parts += [struct.pack(">I", len(block)), block]
    return b"".join(parts)
