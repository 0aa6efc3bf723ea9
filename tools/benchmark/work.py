"""The job that is measured: what is painted, to whom it is handed over, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Rect: TypeAlias = tuple[int, int, int, int]

HD = (1920, 1080)
UHD = (3840, 2160)
VGA = (640, 480)

TILE = 64
"""Side of the rectangles, in pixels."""

IDLE_PAUSE_S = 0.002


@dataclass(frozen=True)
class Work:
    """One producer and its readers.

    ``rects`` are painted in every update: "draw" copies them from an array, "fill" sets them in
    place, "stamp" sets the first line of each and calls all of it damaged, so that nearly nothing
    is measured but the handing over. With ``pause_s`` an update is made so long after the last one,
    otherwise as soon as a reader wants one. ``step`` moves the rectangles to the right with every
    update. ``cores`` is "two" (each end on one of its own), "one" (both on the same) or "any".
    ``slow`` readers more than ``readers`` hold each frame for ``hold_s``, or with ``uneven`` for
    random times up to that; ``stopped`` ones more are stopped by a signal once they have connected.
    """

    size: tuple[int, int]
    rects: tuple[Rect, ...]
    paint: Literal["draw", "fill", "stamp"] = "draw"
    pause_s: float = 0.0
    credits: int = 1
    cores: Literal["two", "one", "any"] = "two"
    step: int = 0
    readers: int = 1
    slow: int = 0
    hold_s: float = 0.1
    uneven: bool = False
    stopped: int = 0
    through: Literal["shm", "unix", "tcp"] = "shm"

    @property
    def painted_bytes(self) -> int:
        """Bytes of pixels that one update paints."""
        return 4 * sum((bottom - top) * (right - left) for top, left, bottom, right in self.rects)


def tile(size: tuple[int, int]) -> tuple[Rect, ...]:
    """One tile, off the middle."""
    return ((size[1] // 4, size[0] // 4, size[1] // 4 + TILE, size[0] // 4 + TILE),)


def adjacent(size: tuple[int, int], count: int) -> tuple[Rect, ...]:
    """Tiles without a gap, in reading order from the top left, as a renderer's dirty tiles."""
    across = size[0] // TILE
    corners = ((i // across * TILE, i % across * TILE) for i in range(count))
    return tuple((y, x, y + TILE, x + TILE) for y, x in corners)


def scattered(size: tuple[int, int], count: int) -> tuple[Rect, ...]:
    """Tiles of which no two touch or share a line, so that none can be merged with another."""
    across = 8
    dx, dy = size[0] // across, size[1] // across
    corners = ((i // across * dy + i % across, i % across * dx) for i in range(count))
    return tuple((y, x, y + TILE, x + TILE) for y, x in corners)


def everything(size: tuple[int, int]) -> tuple[Rect, ...]:
    return ((0, 0, size[1], size[0]),)


def moved(work: Work, update: int) -> list[Rect]:
    """Where the rectangles of an update are."""
    if not work.step:
        return list(work.rects)
    found = []
    for top, left, bottom, right in work.rects:
        at = (left + update * work.step) % (work.size[0] - (right - left) + 1)
        found.append((top, at, bottom, at + right - left))
    return found


def apart(cpus: Iterable[int]) -> list[int]:
    """Those of ``cpus`` that are cores of their own: of hardware threads the first one."""
    chosen: list[int] = []
    taken: set[str] = set()
    for cpu in sorted(cpus):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text().strip() if siblings.exists() else str(cpu)
        if core not in taken:
            taken.add(core)
            chosen.append(cpu)
    return chosen
