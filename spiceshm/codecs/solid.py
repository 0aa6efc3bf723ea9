"""Where a picture is of one colour, so that it can be filled instead of sent.

Strategy: whole tiles of 32 x 32 pixels are looked for, first by a few pixels of each, so that a
picture without any costs next to nothing. Tiles of one colour that make a large rectangle together
are worth a message; no more than a few of those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .. import region

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..region import Rect

TILE = 32
LEAST = 1 << 16
"""Pixels that a part has at least: fewer compress well enough."""

MOST = 8
"""Parts of one picture, the largest."""

_FEW = 64
_COLOUR = np.uint32(0xFFFFFF)


class Solid(NamedTuple):
    """A rectangle (top, left, bottom, right) of one colour, 0xRRGGBB."""

    rect: Rect
    colour: int


def colour_of(words: NDArray[np.uint32]) -> int | None:
    """The colour of a picture that has only one, else None."""
    first = words[0, 0]
    # Mostly a few pixels tell that it has several, in less time than a turn of threads takes.
    if ((words[0, :_FEW] ^ first) & _COLOUR).any():
        return None
    for top in range(0, len(words), TILE):
        if ((words[top : top + TILE] ^ first) & _COLOUR).any():
            return None
    return int(first & _COLOUR)


def parts_of(words: NDArray[np.uint32]) -> tuple[list[Solid], list[Rect]]:
    """Large parts of one colour, and the rectangles of all that is left; none overlap."""
    height, width = words.shape
    everything = region.full(width, height)
    found = [part for part in _rectangles(words) if region.area([part.rect]) >= LEAST]
    found = sorted(found, key=lambda part: -region.area([part.rect]))[:MOST]
    rest = region.subtract(everything, [part.rect for part in found]) if found else everything
    if rest == everything:  # it would have been cut in too many pieces
        return [], everything
    return found, rest


def _rectangles(words: NDArray[np.uint32]) -> list[Solid]:
    """Tiles of one colour, joined across and then down."""
    done: list[Solid] = []
    growing: dict[tuple[int, int, int], int] = {}
    for top, runs in _bands(words):
        grown = {run: growing.pop(run, top) for run in runs}
        done += [Solid((first, run[0], top, run[1]), run[2]) for run, first in growing.items()]
        growing = grown
    return done


def _bands(words: NDArray[np.uint32]) -> list[tuple[int, list[tuple[int, int, int]]]]:
    """For each row of tiles its top, and runs (left, right, colour) of tiles of one colour; behind
    the last an empty one."""
    rows, columns = words.shape[0] // TILE, words.shape[1] // TILE
    if not rows or not columns:
        return []
    tiled = words[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE)
    likely = _likely(tiled)
    bands = [(row * TILE, _runs(tiled[row], likely[row])) for row in range(rows)]
    return [*bands, (rows * TILE, [])]


def _likely(tiled: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Tiles that may be of one colour, by a few of their pixels."""
    corner = tiled[:, 0, :, 0]
    likely = np.ones(corner.shape, bool)
    for y, x in ((TILE - 1, TILE - 1), (TILE // 2, TILE // 2), (TILE - 1, 0), (TILE // 3, 5)):
        likely &= ((tiled[:, y, :, x] ^ corner) & _COLOUR) == 0
    return likely


def _runs(band: NDArray[np.uint32], likely: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Of a row of tiles (TILE, columns, TILE): runs (left, right, colour)."""
    if not likely.any():
        return []
    corner = band[0, :, 0]
    solid = likely & ~((band ^ corner[None, :, None]) & _COLOUR).any(axis=(0, 2))
    colours = np.where(solid, corner & _COLOUR, np.uint32(1 << 24)).astype(np.int64)
    starts = np.concatenate(([0], np.flatnonzero(colours[1:] != colours[:-1]) + 1)).tolist()
    ends = [*starts[1:], len(colours)]
    return [
        (start * TILE, end * TILE, int(colours[start]))
        for start, end in zip(starts, ends, strict=True)
        if solid[start]
    ]
