"""The surfaces of ordinary SPICE: our own memory, and which of it is not what it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..codecs.bitmap import of_555, of_565
from ..region import merge, subtract
from ..wire.types import SurfaceFormat
from .frame import page_aligned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..region import Rect
    from .images import Words


class Surface:
    """``pixels`` is (height, width, 4) of uint8, B, G, R and X or A, and changes with every draw;
    ``words`` is the same memory as (height, width) of 0xAARRGGBB.

    So it is whatever the surface's format: where that has 16 bits, every channel has only the
    values that it can have there, so that operations on bits do to them what they do to it.

    ``stale`` is the region that we could not draw, and ``why`` what the last image there is called.
    """

    def __init__(self, width: int, height: int, format: int = SurfaceFormat.XRGB) -> None:
        self.width = width
        self.height = height
        self.format = format
        self.pixels = page_aligned(height, width)
        self.words: Words = self.pixels.view("<u4")[:, :, 0]
        self.stale: list[Rect] = []
        self.why = ""

    @property
    def has_alpha(self) -> bool:
        return self.format == SurfaceFormat.ARGB

    @property
    def has_colours(self) -> bool:
        """Whether it is of a format that can be drawn on here."""
        return self.format not in (SurfaceFormat.A1, SurfaceFormat.A8)

    def colour(self, number: int) -> np.uint32:
        """A brush's or a palette's colour as a word: servers name them in the surface's format."""
        word = np.uint32(number)
        if self.format == SurfaceFormat.RGB555:
            return np.uint32(of_555(word))
        if self.format == SurfaceFormat.RGB565:
            return np.uint32(of_565(word))
        return word

    def rounded(self, words: Words) -> Words:
        """What words are once they are here, where a channel may have less than 8 bits."""
        if self.format == SurfaceFormat.RGB555:
            words = of_555((words >> 9 & 0x7C00) | (words >> 6 & 0x3E0) | (words >> 3 & 0x1F))
        elif self.format == SurfaceFormat.RGB565:
            words = of_565((words >> 8 & 0xF800) | (words >> 5 & 0x7E0) | (words >> 3 & 0x1F))
        return words

    def put(self, part: Rect, words: Words | np.uint32, where: NDArray[np.bool_] | None) -> None:
        """Write words into a part of it, all or only ``where`` it says so."""
        words = self.rounded(np.asarray(words))
        top, left, bottom, right = part
        dest = self.words[top:bottom, left:right]
        if where is None:
            dest[:] = words
        else:
            np.copyto(dest, words, where=where)

    def spoil(self, parts: Sequence[Rect], why: str) -> None:
        """These could not be drawn."""
        self.stale = merge([*self.stale, *parts])
        if parts:
            self.why = why

    def heal(self, parts: Sequence[Rect]) -> None:
        """These were drawn on and show nothing any more of what was there before."""
        if self.stale:
            self.stale = subtract(self.stale, merge(parts))

    def why_stale_in(self, part: Rect) -> str:
        """What is missing in a part of it, or an empty string."""
        stale = any(
            r[0] < part[2] and r[2] > part[0] and r[1] < part[3] and r[3] > part[1]
            for r in self.stale
        )
        return self.why if stale else ""
