"""What changed when: the damage of the last frames, so that nobody who asks later misses any."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..region import Rect

_KEPT_FRAMES = 1024
_EVERYTHING = np.array([(0, 0, (1 << 31) - 1, (1 << 31) - 1)], "<i4")


class Moment(NamedTuple):
    """A point in the life of a display: later is a frame with a higher ``serial`` that was not
    published before ``published`` (CLOCK_MONOTONIC in ns), where it tells when it was; 0: any."""

    serial: int
    published: int = 0


class Changes:
    """The damage of each frame that arrived. What is older than the last 1024 is not known any
    more, and counts as a change of everything."""

    def __init__(self) -> None:
        self.newest = -1
        """The serial of the newest frame."""
        # Plain tuples of the arguments of `note`, which is called for every frame.
        self._kept: deque[tuple[int, int, NDArray[np.int32]]] = deque(maxlen=_KEPT_FRAMES)
        self._forgotten = -1
        self._anew = False

    def anew(self) -> None:
        """There is no picture now: the next frame, whatever it says of itself, changes everything,
        and what was changed before it is of no interest any more."""
        self._kept.clear()
        self._forgotten = -1
        self._anew = True

    def note(self, serial: int, published: int, rects: NDArray[np.int32]) -> None:
        """A frame came; ``rects`` are rows of top, left, bottom, right. Serials rise."""
        if self._anew:
            rects, self._anew = _EVERYTHING, False
        if len(self._kept) == _KEPT_FRAMES:
            self._forgotten = self._kept[0][0]
        self._kept.append((serial, published, rects))
        self.newest = serial

    def later(self, than: Moment, box: Rect) -> bool:
        """Whether ``box`` was changed by a frame later ``than`` that, or may have been."""
        for serial, published, rects in reversed(self._kept):
            if serial <= than.serial:
                return False
            early = 0 < published < than.published
            if not early and _touches(rects, box):
                return True
        return than.serial < self._forgotten


def _touches(rects: NDArray[np.int32], box: Rect) -> bool:
    top, left, bottom, right = box
    return any(t < bottom and b > top and x < right and r > left for t, x, b, r in rects.tolist())
