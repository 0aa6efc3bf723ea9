"""Rectangles on a surface: where a drawing message draws. All are (top, left, bottom, right)."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import RemoteProtocolError
from ..region import area, bounds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ..region import Rect
    from ..wire import types
    from .surfaces import Surface

_BAND = 1 << 17
"""Pixels that are drawn at once."""


class Region(NamedTuple):
    """Where a message draws: in ``parts``, there where ``bits`` are set, of which the first is for
    ``corner`` (y, x)."""

    parts: list[Rect]
    bits: NDArray[np.bool_] | None = None
    corner: tuple[int, int] = (0, 0)

    def within(self, part: Rect) -> NDArray[np.bool_] | None:
        """The bits of a part; None: all are set."""
        if self.bits is None:
            return None
        (y, x), (top, left, bottom, right) = self.corner, part
        return self.bits[top - y : bottom - y, left - x : right - x]

    def joined(self) -> Region:
        """The same as one part and bits: quicker for many parts, and no pixel is there twice."""
        box = bounds(self.parts)
        top, left = box[:2]
        bits = np.zeros((box[2] - top, box[3] - left), np.bool_)
        for part in self.parts:
            within = self.within(part)
            bits[slices(part, (top, left))] = True if within is None else within
        return Region([box], bits, (top, left))


def clipped(title: str, field: str, box: types.Rect, clip: object, surface: Surface) -> list[Rect]:
    """What a box, its clip and the surface have in common."""
    if box.top >= box.bottom or box.left >= box.right:
        raise RemoteProtocolError(title, field, "is empty")
    within = common((box.top, box.left, box.bottom, box.right), whole(surface))
    if within is None:
        return []
    if clip is None:
        return [within]
    clips = np.asarray(clip, np.int64).reshape(-1, 4)
    low, high = np.array(within[:2]), np.array(within[2:])
    cut = np.hstack([np.maximum(clips[:, :2], low), np.minimum(clips[:, 2:], high)])
    some = (cut[:, 0] < cut[:, 2]) & (cut[:, 1] < cut[:, 3])
    parts = [(top, left, bottom, right) for top, left, bottom, right in cut[some].tolist()]
    if area(parts) > area([within]):
        # A region's rectangles are disjoint; these would only keep us busy.
        raise RemoteProtocolError(title, "clip", "has rectangles that overlap")
    return parts


def whole(surface: Surface) -> Rect:
    """All of it."""
    return 0, 0, surface.height, surface.width


def common(one: Rect, other: Rect) -> Rect | None:
    """What two have in common, None if that is nothing."""
    top, left = max(one[0], other[0]), max(one[1], other[1])
    bottom, right = min(one[2], other[2]), min(one[3], other[3])
    return (top, left, bottom, right) if top < bottom and left < right else None


def overlap(parts: list[Rect]) -> bool:
    """Whether any two of them have something in common."""
    return any(common(one, other) for one, other in combinations(parts, 2))


def bands(part: Rect) -> Iterator[Rect]:
    """A rectangle in pieces of some rows each."""
    top, left, bottom, right = part
    rows = max(1, _BAND // (right - left))
    for start in range(top, bottom, rows):
        yield start, left, min(start + rows, bottom), right


def moved(part: Rect, origin: tuple[int, int]) -> Rect:
    """A rectangle as it is seen from ``origin`` (y, x)."""
    (y, x), (top, left, bottom, right) = origin, part
    return top - y, left - x, bottom - y, right - x


def slices(part: Rect, origin: tuple[int, int] = (0, 0)) -> tuple[slice, slice]:
    """What an array whose first pixel is at ``origin`` (y, x) has of a rectangle."""
    top, left, bottom, right = moved(part, origin)
    return slice(top, bottom), slice(left, right)
