"""What a client saw: counted while it looks, printed as a live table or as one JSON object."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from ..sources.pattern import TORN, read_stamp

if TYPE_CHECKING:
    from ..client import Frame, RemoteDisplay
    from ..region import Rect

_KEPT_LATENCIES = 1 << 20
_TABLE_S = 0.5
_COLUMNS = "   time   frames/s   p50 us   p99 us   wire B/frame   pixel MB/s   torn"


class Watch:
    """Counts frames of one display from now on."""

    def __init__(self, display: RemoteDisplay) -> None:
        self._display = display
        self._start = time.monotonic()
        self._first = self._last = self._start
        self._latencies: deque[int] = deque(maxlen=_KEPT_LATENCIES)
        self._recent: list[int] = []
        self.frames = 0
        self.rects = 0
        self.torn: int | None = None
        """Frames with rows of two pictures; None where the picture does not tell (only the test
        pattern does)."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def fps(self) -> float:
        """Frames a second from the first to the last; the first was there before we looked."""
        span = self._last - self._first
        return (self.frames - 1) / span if span else 0.0

    def saw(self, frame: Frame) -> None:
        """Count a frame that the program was given now."""
        if frame.published and not frame.full:  # the first frame may be as old as the connection
            latency = time.monotonic_ns() - frame.published
            self._latencies.append(latency)
            self._recent.append(latency)
        self._last = time.monotonic()
        if not self.frames:
            self._first = self._last
        self.frames += 1
        self.rects += len(frame.rects)
        stamp = read_stamp(frame.pixels) if self._display.shared else None
        if stamp is not None:
            self.torn = (self.torn or 0) + (stamp == TORN)

    def take_recent(self) -> list[int]:
        """Latencies in ns since the last call."""
        recent, self._recent = self._recent, []
        return recent

    def result(self) -> dict[str, Any]:
        """The figures: frames a second, microseconds from publishing to seeing, and the bytes of
        the whole connection, its hand-shake and first picture included."""
        seconds = self.seconds  # before the figures, which take a while to make
        looked = {
            "frames": self.frames,
            "fps": round(self.fps, 2),
            "latency_us": _percentiles(self._latencies),
            "torn": self.torn,
            "rects": self.rects,
        }
        return figures(self._display, seconds, looked)


def figures(display: RemoteDisplay, seconds: float, looked: dict[str, Any]) -> dict[str, Any]:
    """What holds of any connection, around what holds of what was done over it."""
    return {
        "address": str(display.address),
        "width": display.width,
        "height": display.height,
        "seconds": round(seconds, 3),
        **looked,
        "wire_bytes": display.wire_bytes,
        "pixel_bytes": display.pixel_bytes,
        "shm": display.shared,
        "reason": display.reason,
        "images": display.images,
        "stale": [spelled(rect) for rect in display.stale],
    }


def spelled(region: Rect) -> str:
    """As options have it: X,Y,W,H."""
    top, left, bottom, right = region
    return f"{left},{top},{right - left},{bottom - top}"


class Table:
    """Prints a line of a `Watch` twice a second: over itself on a terminal, else one by one."""

    def __init__(self, watch: Watch, display: RemoteDisplay, out: TextIO = sys.stderr) -> None:
        self._watch = watch
        self._display = display
        self._out = out
        self._terminal = out.isatty()
        self._printed = 0.0
        self._before = (0.0, 0, display.wire_bytes, display.pixel_bytes)
        print(_COLUMNS, file=out, flush=True)

    def update(self, *, last: bool = False) -> None:
        """Print if it is time; ``last`` prints whatever the time and ends the line."""
        now = self._watch.seconds
        if not last and now - self._printed < _TABLE_S:
            return
        self._printed = now
        line = self._line(now)
        if self._terminal:
            print(f"\r{line}", end="\n" if last else "", file=self._out, flush=True)
        else:
            print(line, file=self._out, flush=True)

    def _line(self, now: float) -> str:
        watch, display = self._watch, self._display
        then, frames, wire, pixels = self._before
        self._before = (now, watch.frames, display.wire_bytes, display.pixel_bytes)
        span, new = max(now - then, 1e-9), watch.frames - frames
        latency = _percentiles(watch.take_recent())
        return (
            f"{now:6.1f}s {new / span:10.1f} {_cell(latency['p50']):>8} {_cell(latency['p99']):>8} "
            f"{(display.wire_bytes - wire) / max(new, 1):14.0f} "
            f"{(display.pixel_bytes - pixels) / span / 1e6:12.1f} "
            f"{'-' if watch.torn is None else watch.torn:>6}"
        )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _percentiles(nanoseconds: deque[int] | list[int]) -> dict[str, float | None]:
    if not nanoseconds:
        return {"p50": None, "p99": None}
    p50, p99 = np.percentile(np.array(nanoseconds), [50, 99]) / 1000
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}
