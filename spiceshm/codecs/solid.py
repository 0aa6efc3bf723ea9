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
_MANY = np.uint32(1 << 24)
"""No colour."""


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
    bands = words[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns * TILE)
    colours = _colours(bands, _likely(bands.reshape(rows, TILE, columns, TILE)))
    runs: list[list[tuple[int, int, int]]] = [[] for _ in range(rows + 1)]
    for row, start, end, colour in _runs(colours):
        runs[row].append((start * TILE, end * TILE, colour))
    return [(row * TILE, found) for row, found in enumerate(runs)]


def _likely(tiled: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Tiles that may be of one colour, by a few of their pixels."""
    corner = tiled[:, 0, :, 0]
    likely = np.ones(corner.shape, bool)
    for y, x in ((TILE - 1, TILE - 1), (TILE // 2, TILE // 2), (TILE - 1, 0), (TILE // 3, 5)):
        likely &= ((tiled[:, y, :, x] ^ corner) & _COLOUR) == 0
    return likely


def _colours(bands: NDArray[np.uint32], likely: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """The colour of each tile, `_MANY` where there are more than one."""
    colours = bands[:, 0, ::TILE] & _COLOUR
    for row in np.flatnonzero(likely.any(axis=1)):
        # All lines into one: whatever else numpy can do here takes several times as long.
        differ = bands[row] ^ np.repeat(bands[row, 0, ::TILE], TILE)
        several = np.bitwise_or.reduce(differ, axis=0) & _COLOUR
        likely[row] &= ~several.reshape(-1, TILE).any(axis=1)
    colours[~likely] = _MANY
    return colours


def _runs(colours: NDArray[np.uint32]) -> list[tuple[int, int, int, int]]:
    """Row, start, end and colour of each run of tiles that have the same one, `_MANY` left out."""
    begins = np.ones(colours.shape, bool)
    np.not_equal(colours[:, 1:], colours[:, :-1], out=begins[:, 1:])
    row, start = np.nonzero(begins)
    colour = colours[row, start]
    lengths = np.diff(np.flatnonzero(begins), append=colours.size)
    solid = colour != _MANY
    parts = (row, start, start + lengths, colour)
    return list(zip(*(part[solid].tolist() for part in parts), strict=True))
