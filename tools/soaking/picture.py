"""A picture in which every kind of damage that it can suffer shows.

- Every row begins and ends with the number of its picture: rows of two pictures are a torn frame.
- Row 0 tells a sum of all that is below it: a frame that differs anywhere from what was drawn is a
  wrong one, also where all its rows agree.
- What changes are random rectangles, each named as damage and no more: a mirror that is kept from
  damage alone differs from the frame as soon as any was lost, or drawn without being named.

The number rises by one with every picture, whatever becomes of the surface: an older picture after
a newer one shows too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import random

    from numpy.typing import NDArray

    import spiceshm

    Rect = tuple[int, int, int, int]

_KEY = 0x3C96A5
_COLOUR = 0xFFFFFF
_UNTOUCHED = 0x5A5A5A5A
_MOST_RECTS = 90
"""More than damage may have, so that some of it is merged."""


class Picture:
    """What the writer draws, in memory of its own; `pixels` is (height, width, 4) of uint8."""

    def __init__(self, width: int, height: int, choose: random.Random) -> None:
        self.width = width
        self.height = height
        self.pixels = np.zeros((height, width, 4), np.uint8)
        self._words = as_words(self.pixels)
        self._choose = choose
        self._new = True

    def draw(self, number: int) -> list[Rect]:
        """Draw picture ``number``; returns what changed."""
        rects = [(0, 0, self.height, self.width)] if self._new else self._places()
        self._new = False
        for top, left, bottom, right in rects:
            self._words[top:bottom, left:right] = self._choose.getrandbits(24)
        self._words[:, [0, -2]] = number & _COLOUR
        self._words[:, [1, -1]] = number & _COLOUR ^ _KEY
        self._words[0, 2] = _sum(self._words)
        stamps = [(0, 0, self.height, 3), (0, self.width - 2, self.height, self.width)]
        return [*rects, *stamps]

    def _places(self) -> list[Rect]:
        """Mostly a few rectangles, now and then very many, or everything."""
        kind = self._choose.random()
        if kind < 0.01:
            return [(0, 0, self.height, self.width)]
        if kind < 0.02:
            return [self._place(9) for _ in range(_MOST_RECTS)]
        return [self._place(2) for _ in range(self._choose.randrange(5))]

    def _place(self, part: int) -> Rect:
        """A rectangle of at most 1/part of each side."""
        height = self._choose.randint(1, max(1, self.height // part))
        width = self._choose.randint(1, max(1, self.width // part))
        top = self._choose.randint(0, self.height - height)
        left = self._choose.randint(0, self.width - width)
        return (top, left, top + height, left + width)


def as_words(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """One number a pixel: (height, width)."""
    return pixels.view(np.uint32)[:, :, 0]


def read_number(words: NDArray[np.uint32]) -> int | None:
    """The number in every row; None if they are not all the same, or there is none."""
    ends = words[:, [0, 1, -2, -1]] & _COLOUR
    number = int(ends[0, 0])
    wanted = np.array([number, number ^ _KEY, number, number ^ _KEY], np.uint32)
    return number if (ends == wanted).all() else None


def _sum(words: NDArray[np.uint32]) -> int:
    # Modulo 2**24 the byte that means nothing does not count.
    return int(words[1:].sum(dtype=np.uint32)) & _COLOUR


@dataclass
class Tally:
    """What one reader has seen; several can be added up."""

    frames: int = 0
    torn: int = 0
    """Rows of more than one picture."""
    wrong: int = 0
    """Not what the writer drew."""
    lost: int = 0
    """Other than the mirror that was kept from damage alone."""
    changed: int = 0
    """Not the same at the end of holding it as at its beginning."""
    backwards: int = 0
    """Older than the frame before it."""

    @property
    def bad(self) -> dict[str, int]:
        """Whatever must be 0 and is not."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "frames"}
        return {name: count for name, count in found.items() if count}

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Eye:
    """Looks at frames, keeps a mirror from their damage, and counts what is wrong with them."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._mirror = np.zeros((0, 0), np.uint32)
        self._number = 0

    def saw(self, frame: spiceshm.Frame, *, whole: bool = True) -> None:
        """Check a frame that has just come.

        Not ``whole``: it is from ordinary SPICE, which has no frames, and may show half an update.
        """
        words, tally = as_words(frame.pixels), self.tally
        tally.frames += 1
        if frame.full:
            self._mirror = np.full(words.shape, _UNTOUCHED, np.uint32)
        if self._mirror.shape == words.shape:
            for top, left, bottom, right in frame.rects.tolist():
                self._mirror[top:bottom, left:right] = words[top:bottom, left:right]
        if not np.array_equal(self._mirror, words):
            tally.lost += 1
            self._mirror = words.copy()  # what is lost once is counted once
        if whole:
            self._read(words)

    def _read(self, words: NDArray[np.uint32]) -> None:
        number = read_number(words)
        if number is None:
            self.tally.torn += 1
            return
        self.tally.wrong += _sum(words) != int(words[0, 2]) & _COLOUR
        self.tally.backwards += number < self._number
        self._number = number

    def look_again(self, frame: spiceshm.Frame) -> None:
        """Check that the frame that was seen last, and held, is still the same."""
        self.compare(as_words(frame.pixels), self._mirror)

    def compare(self, pixels: NDArray[Any], before: NDArray[Any]) -> None:
        """Check that what was held is what it was before."""
        self.tally.changed += not np.array_equal(pixels, before)
