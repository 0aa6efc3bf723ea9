"""Rectangles: what changed.

A rectangle is a tuple ``(top, left, bottom, right)`` of ints, bottom and right exclusive, in the
order of SPICE's Rect, so that ``pixels[top:bottom, left:right]`` is its picture. A region is a list
of rectangles; they may overlap. Every function here may answer with *more* area than it was given,
never with less, except `subtract`, which is exact or gives its first argument back.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

Rect: TypeAlias = tuple[int, int, int, int]
Damage: TypeAlias = "Literal['all'] | Sequence[Sequence[int]] | NDArray[np.integer]"

MOST_RECTS = 64
"""A region is kept at or below this many rectangles (the limit of SHM_DAMAGE)."""

_SLICE_ROWS = 64
_VERY_MANY = 2048
_MOST_PASSES = 32
"""Each joins neighbours; what is laid like a spiral takes one for every turn of it."""


def full(width: int, height: int) -> list[Rect]:
    """The region that covers a surface of ``width`` x ``height`` pixels."""
    return [(0, 0, height, width)]


def from_damage(damage: Damage, width: int, height: int) -> list[Rect]:
    """Turn what a producer names into a checked region of at most 64 rectangles.

    ``damage`` is ``"all"``, a sequence of ``(top, left, bottom, right)`` or an integer array of
    shape (n, 4). Raises ValueError for a rectangle that is empty or reaches outside the surface.
    """
    if isinstance(damage, str):
        if damage != "all":
            raise ValueError(f'damage is {damage!r}, not "all" or a list of rectangles')
        return full(width, height)
    rects: list[Rect] = []
    for row in damage.tolist() if isinstance(damage, np.ndarray) else damage:
        try:
            top, left, bottom, right = map(int, row)
        except TypeError:
            raise ValueError(
                f"damage is {damage!r}, not a list of rectangles (top, left, bottom, right)"
            ) from None
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise ValueError(
                f"rectangle top={top} left={left} bottom={bottom} right={right} is empty or "
                f"outside a surface of {width}x{height}"
            )
        rects.append((top, left, bottom, right))
    return merge(rects)


def area(rects: Iterable[Rect]) -> int:
    """Pixels covered, overlaps counted twice."""
    covered = 0
    for top, left, bottom, right in rects:
        covered += (bottom - top) * (right - left)
    return covered


def bounds(rects: Sequence[Rect]) -> Rect:
    """The smallest rectangle around a region that is not empty."""
    return (
        min(r[0] for r in rects),
        min(r[1] for r in rects),
        max(r[2] for r in rects),
        max(r[3] for r in rects),
    )


def merge(rects: Sequence[Rect], most: int = MOST_RECTS) -> list[Rect]:
    """The same area in fewer rectangles: neighbours that share an edge become one.

    Above ``most`` rectangles, those whose common bounding box wastes least are joined too.
    """
    if len(rects) < 2:
        return list(rects)
    # What the largest one covers is gone at once: often that is all, after a full redraw.
    top, left, bottom, right = largest = max(rects, key=_size)
    joined = [largest]
    joined += (
        r
        for r in dict.fromkeys(rects)
        if r[0] < top or r[1] < left or r[2] > bottom or r[3] > right
    )
    if len(joined) > _VERY_MANY:
        joined = _slices(joined)
    for _ in range(_MOST_PASSES):
        before = len(joined)
        joined = _join(_join(joined, across=True), across=False)
        if len(joined) in (1, before):
            break
    if len(joined) > 4 * most:
        joined = _slices(joined)
    return _squeeze(joined, most) if len(joined) > most else joined


def add(some: Sequence[Rect], more: Sequence[Rect]) -> list[Rect]:
    """Both, merged. This is asked several times a frame, so what needs no merging is not merged."""
    if not some or some == more or (len(more) == 1 and _covers(more[0], some)):
        return list(more)
    if len(some) == 1 and _covers(some[0], more):
        return list(some)
    return merge([*some, *more])


def gather(some: Sequence[Rect], more: Sequence[Rect]) -> list[Rect]:
    """Both, hardly merged, in any number: for what is asked every frame and seldom used."""
    if not some or (len(more) == 1 and _covers(more[0], some)):
        return list(more)
    if (len(some) == 1 and _covers(some[0], more)) or some[-len(more) :] == more:
        return list(some)
    return [*some, *more]


def _covers(rect: Rect, rects: Sequence[Rect]) -> bool:
    top, left, bottom, right = rect
    # Asked several times a frame, and a generator takes longer.
    for r in rects:  # noqa: SIM110
        if r[0] < top or r[1] < left or r[2] > bottom or r[3] > right:
            return False
    return True


def subtract(rects: Sequence[Rect], holes: Sequence[Rect]) -> list[Rect]:
    """``rects`` without the area of ``holes``.

    Where the exact answer would take more than 64 pieces, ``rects`` come back as they were.
    """
    if not rects or rects == holes:
        return []
    pieces = list(rects)
    for hole in holes:
        pieces = [part for piece in pieces for part in _cut(piece, hole)]
        if len(pieces) > MOST_RECTS:
            return list(rects)
    return pieces


def _join(rects: list[Rect], *, across: bool) -> list[Rect]:
    """Join rectangles of one row span side by side (``across``), or of one column span."""
    a, b, c, d = (0, 2, 1, 3) if across else (1, 3, 0, 2)
    rects.sort(key=lambda r: (r[a], r[b], r[c]))
    out: list[list[int]] = []
    for rect in rects:
        last = out[-1] if out else None
        if last and last[a] == rect[a] and last[b] == rect[b] and rect[c] <= last[d]:
            last[d] = max(last[d], rect[d])
        else:
            out.append(list(rect))
    return [(t, left, bottom, right) for t, left, bottom, right in out]


def _slices(rects: list[Rect]) -> list[Rect]:
    """One bounding box for each slice of rows: bounds the work of `_squeeze` for huge regions."""
    rows: dict[int, list[Rect]] = {}
    for rect in rects:
        rows.setdefault(rect[0] // _SLICE_ROWS, []).append(rect)
    return [bounds(group) for group in rows.values()]


def _squeeze(rects: list[Rect], most: int) -> list[Rect]:
    """Join neighbours in reading order, least wasteful first, until ``most`` are left."""
    rects = sorted(rects)
    waste = [_waste(*pair) for pair in pairwise(rects)]
    while len(rects) > most:
        at = waste.index(min(waste))
        rects[at : at + 2] = [bounds(rects[at : at + 2])]
        del waste[at]
        for pair in range(max(0, at - 1), min(at + 1, len(waste))):
            waste[pair] = _waste(rects[pair], rects[pair + 1])
    return rects


def _size(rect: Rect) -> int:
    top, left, bottom, right = rect
    return (bottom - top) * (right - left)


def _waste(one: Rect, other: Rect) -> int:
    """Pixels that the bounding box of two has beyond theirs."""
    return _size(bounds((one, other))) - _size(one) - _size(other)


def _cut(piece: Rect, hole: Rect) -> list[Rect]:
    top, left, bottom, right = piece
    h_top, h_left, h_bottom, h_right = hole
    if h_top >= bottom or h_bottom <= top or h_left >= right or h_right <= left:
        return [piece]
    y0, y1 = max(top, h_top), min(bottom, h_bottom)
    parts = [
        (top, left, y0, right),
        (y0, left, y1, max(left, h_left)),
        (y0, min(right, h_right), y1, right),
        (y1, left, bottom, right),
    ]
    return [part for part in parts if part[0] < part[2] and part[1] < part[3]]
