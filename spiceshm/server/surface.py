"""The producer's side: a surface to draw on, whoever looks at it and however slowly."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

import numpy as np
import trio

from .. import region
from ..errors import MemoryRefused, SpiceShmError
from ..memory import Buffer, Pool, Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from numpy.typing import NDArray

    from ..region import Damage, Rect

log = logging.getLogger("spiceshm.server")

FIRST_BUFFERS = 3
"""Buffers of a new surface: one shown, one being drawn, one lent."""


class Watcher(Protocol):
    """Somebody who wants to know of every new frame; must neither wait nor raise."""

    def published(self) -> None: ...


class Surface:
    """A picture of ``width`` x ``height`` pixels that any number of viewers see.

    Made by `Display.create_surface`. Pixels are B, G, R, X bytes; X means nothing. Drawing never
    waits for a viewer: each gets the newest frame when it can take one.
    """

    def __init__(
        self,
        width: int,
        height: int,
        serials: Iterator[int],
        watchers: Iterable[Watcher],
        nursery: trio.Nursery,
        attach: Callable[[Segment], None] | None = None,
    ) -> None:
        """Raises MemoryRefused if the memory for its buffers cannot be had."""
        self.pool = Pool(width, height, serials)
        self._watchers = watchers
        self._nursery = nursery
        self._attach = attach
        self._drawing: Drawing | None = None
        self._wanted = trio.Event()
        self._growing = False
        self._closed = False
        self.pool.add(self._new_segment(FIRST_BUFFERS))

    @property
    def width(self) -> int:
        return self.pool.width

    @property
    def height(self) -> int:
        return self.pool.height

    @property
    def serial(self) -> int:
        """The serial of the newest frame, 0 before the first."""
        return self.pool.serial

    def draw(self, pixels: NDArray[np.uint8], rects: Damage = "all") -> int:
        """Copy ``rects`` of an array (height, width, 4) of uint8 and show them; returns the serial.

        ``rects`` is "all" or rectangles (top, left, bottom, right). The array stays yours. Raises
        ValueError if its shape or a rectangle does not fit the surface.
        """
        if pixels.shape != (self.height, self.width, 4) or pixels.dtype != np.uint8:
            raise ValueError(
                f"pixels are {pixels.shape} of {pixels.dtype}, "
                f"not ({self.height}, {self.width}, 4) of uint8"
            )
        with self.frame(rects) as frame:
            for top, left, bottom, right in frame.damage:
                frame.pixels[top:bottom, left:right] = pixels[top:bottom, left:right]
        return self.serial

    def frame(self, damage: Damage = "all") -> Drawing:
        """A frame to draw yourself, as a context manager; see `Drawing`.

        ``damage`` names what you are about to draw: all of it must be drawn, nothing else.
        """
        if self._drawing is not None:
            raise SpiceShmError("a frame of this surface is being drawn already")
        rects = region.from_damage(damage, self.width, self.height)
        self._drawing = Drawing(self, self.pool.begin(rects), rects)
        return self._drawing

    async def wanted(self) -> None:
        """Wait until somebody would be sent a new frame at once. For pacing; never necessary."""
        while not any(reader.ready for reader in self.pool.readers):
            self._wanted = trio.Event()
            await self._wanted.wait()
        await trio.lowlevel.checkpoint()

    def credit_returned(self) -> None:
        """Called by whoever ends a lease."""
        self._wanted.set()

    def reader_joined(self) -> None:
        """Called by whoever joins the pool: it grows in the background, in a thread.

        Until that is done, and offered, and accepted, the readers share the buffers that there are.
        """
        self.credit_returned()
        if self._missing() and not self._growing:
            self._growing = True
            self._nursery.start_soon(self._grow)

    async def _grow(self) -> None:
        while missing := self._missing():
            try:
                segment = await trio.to_thread.run_sync(self._new_segment, missing)
            except MemoryRefused as error:
                log.warning(
                    "%d readers share too few buffers: %s", len(self.pool.readers), str(error)
                )
                break
            if not self._missing():  # those who wanted it are gone
                segment.close()
                break
            self.pool.add(segment)
            self._notify()
        self._growing = False

    def _missing(self) -> int:
        return 0 if self._closed else self.pool.missing

    def _new_segment(self, buffers: int) -> Segment:
        segment = Segment(buffers * self.pool.buffer_size)
        try:
            if self._attach is not None:
                self._attach(segment)
            segment.seal()
        except BaseException:
            segment.close()
            raise
        return segment

    def _notify(self) -> None:
        for watcher in list(self._watchers):
            watcher.published()

    def close(self) -> None:
        """The surface is replaced or gone: nobody new is shown it. Frames out stay valid."""
        self._closed = True
        for segment in self.pool.segments:
            segment.close()

    def _finish(self, drawing: Drawing, damage: list[Rect] | None) -> None:
        self._drawing = None
        if damage is None:
            self.pool.abandon(drawing.buffer)
        elif damage:
            self.pool.publish(drawing.buffer, damage, time.monotonic_ns())
            self._notify()
        else:
            self.pool.abandon(drawing.buffer)


class Drawing:
    """A frame while it is drawn: ``pixels`` holds the last picture, and what you make of it.

    Leaving the ``with`` block publishes it; an exception in the block throws it away. ``pixels`` is
    an array (height, width, 4) of uint8 over shared memory, yours until the block ends.
    """

    def __init__(self, surface: Surface, buffer: Buffer, damage: list[Rect]) -> None:
        self.buffer = buffer
        self.damage = damage
        """What will be drawn, merged: rectangles (top, left, bottom, right)."""
        self.pixels = buffer.pixels.view()
        self._surface = surface
        self._open = True

    def publish(self, damage: list[Rect] | None = None) -> None:
        """Show it. ``damage`` replaces what was named at the start and must cover it."""
        self._end(self.damage if damage is None else damage)

    def abandon(self) -> None:
        """Throw it away."""
        self._end(None)

    def _end(self, damage: list[Rect] | None) -> None:
        if self._open:
            self._open = False
            self.pixels.flags.writeable = False  # whoever kept it must not draw in a shown frame
            self._surface._finish(self, damage)

    def __enter__(self) -> Drawing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.publish()
        else:
            self.abandon()
