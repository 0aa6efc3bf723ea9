"""The server's process: draws for ever, honestly, and says what it holds when it is asked.

It is told ``("phase", Phase)`` and ``("end",)``, and asked ``("report",)`` and ``("holds",)``.
Nothing in it waits for a reader: between two frames it waits for the clock, or only lets the others
run.
"""

from __future__ import annotations

import collections
import gc
import logging
import random
import resource
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import trio

import spiceshm

from .breaks import BREAKS
from .picture import Picture
from .process import descriptors, mappings, private_bytes, threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

HOME = (320, 240)
"""The first mode, and the last one."""

_SAMPLES = 4096
_STALLED_S = 1.0


@dataclass(frozen=True)
class Phase:
    """How the writer draws for a while."""

    name: str
    fps: float
    """Frames a second; 0: as fast as it can."""
    mode_s: float = 0.0
    """Seconds from one mode to the next; 0: none changes."""
    sizes: tuple[tuple[int, int], ...] = (HOME,)
    forget: bool = False
    """Whether all memory is replaced again and again."""


class Times:
    """How long drawing takes, from the beginning of a frame to its being published."""

    def __init__(self) -> None:
        self._samples = np.zeros(_SAMPLES, np.int64)
        self._count = 0
        self.longest_ns = 0
        self.stalls = 0
        """Draws that took long *and* waited. A process that is merely not let run, on a machine
        with much to do, is no writer that waits: the kernel counts the two apart."""

    def measure(self, draw: Callable[[], None]) -> None:
        waits = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        start = time.monotonic_ns()
        draw()
        took = time.monotonic_ns() - start
        waits = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - waits
        self._samples[self._count % _SAMPLES] = took
        self._count += 1
        self.longest_ns = max(self.longest_ns, took)
        self.stalls += bool(waits) and took > _STALLED_S * 1e9

    @property
    def median_ns(self) -> int:
        return int(np.median(self._samples[: min(self._count, _SAMPLES)])) if self._count else 0


class Log(logging.Handler):
    """What the library warns of; some of it is meant to happen: too little memory for all, and a
    client that was killed between its two channels."""

    TOO_FEW = "share too few buffers: "
    EXPECTED = (TOO_FEW, "it would pass the limit of", "is no session")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.counts: collections.Counter[str] = collections.Counter()
        self.others: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        found = [part for part in self.EXPECTED if part in text]
        self.counts.update(found)
        if not found:
            self.others.append(text)


class Writer:
    """The surface of a display and what is drawn on it."""

    def __init__(self, display: spiceshm.Display, seed: str, broken: str | None) -> None:
        self.display = display
        self.phase = Phase("", 200)
        self.times = Times()
        self.log = Log()
        logging.getLogger("spiceshm").addHandler(self.log)
        self.published = self.modes = self.modes_refused = self.forgotten = 0
        self._choose = random.Random(seed)
        self._break = BREAKS[broken] if broken else None
        self.surface: spiceshm.Surface
        self._picture: Picture
        self._pace: Any = None
        self._next_mode = 0.0
        self._show(*HOME)

    def enter(self, phase: Phase) -> None:
        self.phase = phase
        self._pace = self.surface.pace(phase.fps) if phase.fps else None
        self._next_mode = trio.current_time()
        if not phase.mode_s:
            self._change()

    async def draw(self) -> None:
        """Draw for ever."""
        while True:
            if self._pace is not None:
                await anext(self._pace)
            else:
                await trio.lowlevel.checkpoint()
            if self.phase.mode_s and trio.current_time() >= self._next_mode:
                self._next_mode = trio.current_time() + self.phase.mode_s
                self._change()
            self._frame()

    async def forget(self) -> None:
        """Replace the memory again and again while the phase wants it."""
        while True:
            await trio.sleep(0.15)
            if self.phase.forget:
                try:
                    await self.surface.forget()
                except spiceshm.MemoryRefused:
                    self.modes_refused += 1
                else:
                    self.forgotten += 1

    def _change(self) -> None:
        try:
            self._show(*self._choose.choice(self.phase.sizes))
        except spiceshm.MemoryRefused:
            self.modes_refused += 1
        else:
            self.modes += 1

    def _show(self, width: int, height: int) -> None:
        self.surface = self.display.create_surface(width, height)
        self._picture = Picture(width, height, self._choose)

    def _frame(self) -> None:
        damage = self._picture.draw(self.published + 1)
        surface, pixels = self.surface, self._picture.pixels

        def draw() -> None:
            if self._break is not None:
                self._break(surface, self._picture, damage)
            elif self.published % 2:
                surface.draw(pixels, damage)
            else:
                with surface.frame(damage) as frame:
                    for top, left, bottom, right in frame.damage:
                        frame.pixels[top:bottom, left:right] = pixels[top:bottom, left:right]

        self.times.measure(draw)
        self.published += 1

    def report(self) -> dict[str, Any]:
        return {
            "published": self.published,
            "modes": self.modes,
            "forgotten": self.forgotten,
            "refused": self.modes_refused,
            "median_us": self.times.median_ns // 1000,
            "longest_us": self.times.longest_ns // 1000,
            "stalls": self.times.stalls,
            "too_few_buffers": self.log.counts[self.log.TOO_FEW],
            "warnings": self.log.others,
            "shm_bytes": self.display.shm_bytes,
            "private_bytes": private_bytes("self"),
        }

    def holds(self) -> dict[str, Any]:
        """What must be the same before the first reader comes and after the last one has left."""
        gc.collect()  # views that await it hold memory, and before Python 3.13 a descriptor each
        return {
            "viewers": len(self.display.viewers),
            "shm_bytes": self.display.shm_bytes,
            "segments": len(self.surface.pool.segments),
            "buffers": len(self.surface.pool.buffers),
            "readers": len(self.surface.pool.readers),
            "descriptors": descriptors("self"),
            "mappings": mappings("self"),
            "threads": threads("self") - resting_threads(),
            "work in threads": trio.to_thread.current_default_thread_limiter().borrowed_tokens,
        }


def resting_threads() -> int:
    """Those that trio and encoders keep in case there is more for them to do."""
    names = ("Trio thread", "spiceshm-encode")
    return sum(thread.name.startswith(names) for thread in threading.enumerate())


def write(link: Connection, address: str, seed: str, limit: int, broken: str | None) -> str:
    """The process; ends when it is told to, or when nobody is left to tell it."""
    return trio.run(_serve, link, address, seed, limit, broken)


async def _serve(link: Connection, address: str, seed: str, limit: int, broken: str | None) -> str:
    async with spiceshm.serve(address, shm_limit=limit) as display:
        writer = Writer(display, seed, broken)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.draw)
            nursery.start_soon(writer.forget)
            link.send(("ready",))
            await _obey(link, writer)
            nursery.cancel_scope.cancel()
    return "told"


async def _obey(link: Connection, writer: Writer) -> None:
    while True:
        await trio.lowlevel.wait_readable(link.fileno())
        try:
            words = link.recv()
        except EOFError:
            return
        if words[0] == "phase":
            writer.enter(words[1])
        elif words[0] == "end":
            return
        else:
            link.send((words[0], getattr(writer, words[0])()))
