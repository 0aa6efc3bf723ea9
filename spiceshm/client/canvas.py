"""The primary surface in ordinary SPICE: our own memory, drawn on by messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import RemoteProtocolError
from ..region import area
from ..wire.display import BITMAP_TOP_DOWN, ROP_PUT, Bitmap, DrawCopy, DrawFill
from ..wire.types import BitmapFormat
from .frame import page_aligned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..region import Rect

_DRAW, _FILL = "display.draw_copy", "display.draw_fill"


class Canvas:
    """``pixels`` is (height, width, 4) of uint8, B, G, R, X, and changes with every draw."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self.pixels = page_aligned(height, width)
        self._words = self.pixels.view("<u4")[:, :, 0]

    def draw(self, message: DrawCopy | DrawFill) -> list[Rect]:
        """Carry out a DRAW_COPY of a raw bitmap or a DRAW_FILL; returns what it changed.

        Raises RemoteProtocolError for what does not fit, and for what we cannot read.
        """
        return self._copy(message) if isinstance(message, DrawCopy) else self._fill(message)

    def _fill(self, fill: DrawFill) -> list[Rect]:
        if fill.rop_descriptor != ROP_PUT:
            raise RemoteProtocolError(_FILL, "rop_descriptor", f"{fill.rop_descriptor}: not PUT")
        if fill.mask.bitmap:
            raise RemoteProtocolError(_FILL, "mask", "is not understood")
        self._check_box(fill)
        drawn = self._clipped(fill)
        for top, left, bottom, right in drawn:
            self._words[top:bottom, left:right] = fill.brush.color
        return drawn

    def _copy(self, copy: DrawCopy) -> list[Rect]:
        bitmap = copy.image.content
        if not isinstance(bitmap, Bitmap) or bitmap.format not in (
            BitmapFormat.XRGB,
            BitmapFormat.ARGB,
        ):
            raise RemoteProtocolError(_DRAW, "image", "is no raw bitmap of 32 bits")
        picture = _picture(bitmap)
        box, part = copy.box, copy.src_area
        height, width = box.bottom - box.top, box.right - box.left
        self._check_box(copy)
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

    def _check_box(self, message: DrawCopy | DrawFill) -> None:
        box = message.box
        if not (
            0 <= box.top < box.bottom <= self.height and 0 <= box.left < box.right <= self.width
        ):
            raise RemoteProtocolError(
                message.title, "box", f"is outside {self.width}x{self.height}"
            )

    def _clipped(self, message: DrawCopy | DrawFill) -> list[Rect]:
        box = message.box
        if message.clip is None:
            return [(box.top, box.left, box.bottom, box.right)]
        low = np.array([box.top, box.left])
        high = np.array([box.bottom, box.right])
        clips = np.asarray(message.clip).reshape(-1, 4)
        cut = np.hstack([np.maximum(clips[:, :2], low), np.minimum(clips[:, 2:], high)])
        some = (cut[:, 0] < cut[:, 2]) & (cut[:, 1] < cut[:, 3])
        parts = [(t, left, b, r) for t, left, b, r in cut[some].tolist()]
        if area(parts) > (box.bottom - box.top) * (box.right - box.left):
            # A region's rectangles are disjoint; these would only keep us busy.
            raise RemoteProtocolError(message.title, "clip", "has rectangles that overlap")
        return parts


def _picture(bitmap: Bitmap) -> NDArray[np.uint8]:
    """A raw bitmap as (height, width, 4), its first line on top."""
    if bitmap.stride < bitmap.x * 4:
        raise RemoteProtocolError(_DRAW, "image.stride", f"{bitmap.stride} for {bitmap.x} pixels")
    lines = np.frombuffer(bitmap.data, np.uint8).reshape(bitmap.y, bitmap.stride)
    picture = lines[:, : bitmap.x * 4].reshape(bitmap.y, bitmap.x, 4)
    return picture if bitmap.flags & BITMAP_TOP_DOWN else picture[::-1]
