"""The primary surface in ordinary SPICE: our own memory, drawn on by messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import RemoteProtocolError
from ..region import area
from ..wire.display import BITMAP_TOP_DOWN, Bitmap, DrawCopy
from ..wire.types import BitmapFormat
from .frame import page_aligned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..region import Rect

_DRAW = "display.draw_copy"


class Canvas:
    """``pixels`` is (height, width, 4) of uint8, B, G, R, X, and changes with every draw."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self.pixels = page_aligned(height, width)

    def draw(self, copy: DrawCopy) -> list[Rect]:
        """Carry out a DRAW_COPY of a raw bitmap; returns what it changed.

        Raises RemoteProtocolError for what does not fit, and for images that we cannot read.
        """
        bitmap = copy.image.content
        if not isinstance(bitmap, Bitmap) or bitmap.format not in (
            BitmapFormat.XRGB,
            BitmapFormat.ARGB,
        ):
            raise RemoteProtocolError(_DRAW, "image", "is no raw bitmap of 32 bits")
        picture = _picture(bitmap)
        box, part = copy.box, copy.src_area
        height, width = box.bottom - box.top, box.right - box.left
        if not (
            0 <= box.top < box.bottom <= self.height and 0 <= box.left < box.right <= self.width
        ):
            raise RemoteProtocolError(_DRAW, "box", f"is outside {self.width}x{self.height}")
        if (part.bottom - part.top, part.right - part.left) != (height, width):
            raise RemoteProtocolError(_DRAW, "src_area", "asks for scaling")
        if not (
            part.top >= 0 and part.bottom <= bitmap.y and part.left >= 0 and part.right <= bitmap.x
        ):
            raise RemoteProtocolError(_DRAW, "src_area", "is outside the image")
        source = picture[part.top : part.bottom, part.left : part.right]
        drawn = self._clipped(copy)
        for top, left, bottom, right in drawn:
            self.pixels[top:bottom, left:right] = source[
                top - box.top : bottom - box.top, left - box.left : right - box.left
            ]
        return drawn

    def _clipped(self, copy: DrawCopy) -> list[Rect]:
        box = copy.box
        if copy.clip is None:
            return [(box.top, box.left, box.bottom, box.right)]
        low = np.array([box.top, box.left])
        high = np.array([box.bottom, box.right])
        clips = np.asarray(copy.clip).reshape(-1, 4)
        cut = np.hstack([np.maximum(clips[:, :2], low), np.minimum(clips[:, 2:], high)])
        some = (cut[:, 0] < cut[:, 2]) & (cut[:, 1] < cut[:, 3])
        parts = [(t, left, b, r) for t, left, b, r in cut[some].tolist()]
        if area(parts) > (box.bottom - box.top) * (box.right - box.left):
            # A region's rectangles are disjoint; these would only keep us busy.
            raise RemoteProtocolError(_DRAW, "clip", "has rectangles that overlap")
        return parts


def _picture(bitmap: Bitmap) -> NDArray[np.uint8]:
    """A raw bitmap as (height, width, 4), its first line on top."""
    if bitmap.stride < bitmap.x * 4:
        raise RemoteProtocolError(_DRAW, "image.stride", f"{bitmap.stride} for {bitmap.x} pixels")
    lines = np.frombuffer(bitmap.data, np.uint8).reshape(bitmap.y, bitmap.stride)
    picture = lines[:, : bitmap.x * 4].reshape(bitmap.y, bitmap.x, 4)
    return picture if bitmap.flags & BITMAP_TOP_DOWN else picture[::-1]
