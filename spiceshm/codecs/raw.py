"""No compression: lines of pixels, the top one first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def encode(words: NDArray[np.uint32]) -> memoryview:
    """The lines without a gap between them: a copy, four bytes a pixel."""
    # ndarray.tobytes would keep other threads from running while it copies.
    packed = np.empty(words.shape, np.uint32)
    np.copyto(packed, words)
    return packed.data.cast("B")
