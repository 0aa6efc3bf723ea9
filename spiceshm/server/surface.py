"""The producer's side: a surface to draw on, whoever looks at it and however slowly."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import trio

from .. import region
from ..errors import MemoryRefused, SpiceShmError
from ..memory import Budget, Buffer, Pool, Reader, Segment, pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from ..region import Damage, Rect

log = logging.getLogger("spiceshm.server")

FIRST_BUFFERS = 5
"""Buffers of a new surface: one shown, one being drawn, three for a reader to hold."""

TURN_S = 0.001
_ALL = 1 << 64
"""A serial that no frame has."""

MANY_SEGMENTS = 16
"""Above so many, new ones are made larger than need be, so that they do not become too many."""
MOST_SEGMENTS = 60

MOST_HEADS = 256
"""Monitors that a MONITORS_CONFIG may have."""


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
        budget: Budget,
        attach: Callable[[Segment], None] | None = None,
    ) -> None:
        """Raises MemoryRefused if the memory for its buffers cannot be had."""
        self.pool = Pool(width, height, serials)
        self._watchers = watchers
        self._nursery = nursery
        self._budget = budget
        self._attach = attach
        self._drawing: Drawing | None = None
        self._changed = trio.Event()
        self._next_turn = 0.0
        self._drawn = 0
        self._growing = 0
        self._forgotten: set[Segment] = set()
        self._closed = False
        self.heads: list[Rect] = region.full(width, height)
        """The monitors that the surface is made of, as viewers are told; see `set_heads`."""
        self._budget.take(self.first_bytes(width, height))
        self.pool.add(self._new_segment(FIRST_BUFFERS))

    @staticmethod
    def first_bytes(width: int, height: int) -> int:
        """How much shared memory a new surface of this size takes."""
        return Segment.size_for(FIRST_BUFFERS * pages(width * 4 * height))

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

    @property
    def copied_bytes(self) -> int:
        """Bytes of pixels copied so far: what `draw` was given, and what was carried forward from
        one buffer to the next. Nothing else copies; what is drawn in place counts as nothing."""
        return (self._drawn + self.pool.carried) * 4

    # Drawing

    def draw(self, pixels: NDArray[np.uint8], rects: Damage = "all", *, published: int = 0) -> int:
        """Copy ``rects`` of an array (height, width, 4) of uint8 and show them; returns the serial.

        ``rects`` is "all" or rectangles (top, left, bottom, right). The array stays yours.
        ``published`` is when somebody else made that public, if it is passed on: CLOCK_MONOTONIC in
        ns; 0 is now. Raises ValueError if its shape or a rectangle does not fit the surface,
        SpiceShmError once the surface was replaced or closed.
        """
        wanted = (self.pool.height, self.pool.width, 4)
        if not isinstance(pixels, np.ndarray):
            raise ValueError(f"pixels are no array but {type(pixels).__name__}")
        if pixels.shape != wanted or pixels.dtype != np.uint8:
            raise ValueError(f"pixels are {pixels.shape} of {pixels.dtype}, not {wanted} of uint8")
        with self.frame(rects) as frame:
            shown = frame.pixels
            for top, left, bottom, right in frame.damage:
                shown[top:bottom, left:right] = pixels[top:bottom, left:right]
                self._drawn += (bottom - top) * (right - left)
            frame.published = published
        return self.pool.serial

    def frame(self, damage: Damage = "all") -> Drawing:
        """A frame to draw yourself, as a context manager; see `Drawing`.

        ``damage`` names what you are about to draw: all of it must be drawn, nothing else. Raises
        ValueError if it does not fit the surface, SpiceShmError while another frame is drawn and
        once the surface was replaced or closed.
        """
        self._check_open()
        if self._drawing is not None:
            raise SpiceShmError("a frame of this surface is being drawn already")
        rects = region.from_damage(damage, self.pool.width, self.pool.height)
        self._drawing = Drawing(self, self.pool.begin(rects), rects)
        return self._drawing

    def set_heads(self, heads: Sequence[Rect]) -> None:
        """Say which parts of the surface (top, left, bottom, right) are a monitor each; without
        it, all of it is one. Raises ValueError for none or more than 256 of them, and for one that
        is empty or outside."""
        checked = [region.from_damage([head], self.width, self.height)[0] for head in heads]
        if not 1 <= len(checked) <= MOST_HEADS:
            raise ValueError(f"a surface has 1 to {MOST_HEADS} heads, not {len(checked)}")
        if checked != self.heads:
            self.heads = checked
            self._notify()

    def _check_open(self) -> None:
        if self._closed:
            raise SpiceShmError("this surface was replaced or closed; draw on the new one")

    def _finish(self, drawing: Drawing, damage: list[Rect] | None) -> None:
        self._drawing = None
        if damage and not self._closed:
            self.pool.publish(drawing.buffer, damage, drawing.published or time.monotonic_ns())
            self._notify()
        else:
            self.pool.abandon(drawing.buffer)
        if self.pool.retiring:
            self._give_back()

    # Pacing

    async def wanted(self) -> None:
        """Wait until somebody would be sent a new frame at once. For pacing; never necessary.

        Where it need not wait it lets other tasks run at most once a millisecond. Raises
        SpiceShmError once the surface was replaced or closed.
        """
        self._check_open()
        ready = self._somebody_ready()
        if ready and trio.current_time() < self._next_turn:
            await trio.lowlevel.checkpoint_if_cancelled()
            return
        if ready:
            await trio.lowlevel.checkpoint()
            ready = self._somebody_ready()
        while not ready:
            await self._change()
            self._check_open()
            ready = self._somebody_ready()
        self._next_turn = trio.current_time() + TURN_S

    def _somebody_ready(self) -> bool:
        wants = self.pool.wants
        for reader in self.pool.readers:  # noqa: SIM110
            if wants(reader):
                return True
        return False

    async def consumed(self, serial: int) -> None:
        """Wait until every reader of now has given back this frame or a newer one.

        Lock step for a producer that wants it. Without readers it returns at once; a reader that
        leaves is not waited for.
        """
        await trio.lowlevel.checkpoint()
        while any(_owes(reader, serial) for reader in self.pool.readers):
            await self._change()

    def pace(self, fps: float) -> Pace:
        """``async for _ in surface.pace(60)``: that many steps a second, the first at once.

        Steps that could not be made in time are left out, not made up for. It goes on when the
        surface is replaced, for who draws on the next one then. Raises ValueError for
        a number that is not above 0.
        """
        return Pace(fps)

    async def _change(self) -> None:
        if self._changed.is_set():
            self._changed = trio.Event()
        await self._changed.wait()

    # Readers: called by viewers

    def join(self, credits: int, *, local: bool = False) -> Reader:
        """A reader more; the pool grows for it in the background, in a thread.

        ``local``: it reads in this process and tells with `delivered` what has arrived. Until the
        pool has grown, and that is offered and accepted, the readers share the buffers that there
        are.
        """
        reader = self.pool.join(credits, local=local)
        self._changed.set()
        if self._missing() and not self._growing:
            self._growing = self._missing()
            self._nursery.start_soon(self._grow)
        return reader

    def why_not(self, credits: int) -> str | None:
        """Why a reader with so many credits cannot be taken; None if it can."""
        missing = self.pool.missing_with(credits) - self._growing
        if missing > 0 and not self._budget.allows(self._size_of(missing)):
            return f"it would pass the limit of {self._budget.limit / 1e6:.0f} MB of shared memory"
        return None

    def leave(self, reader: Reader) -> None:
        """The reader is gone, and what only it needed is given back. Harmless twice."""
        self.pool.leave(reader)
        self._changed.set()
        self._shrink()
        self._feed()

    def dismiss(self, reader: Reader) -> None:
        """Lend it nothing more and wait for it no more; it leaves with the last frame it holds."""
        reader.busy = True
        reader.done = _ALL
        self._changed.set()
        if not reader.leases:
            self.leave(reader)

    def release(self, reader: Reader, serial: int) -> None:
        """A lease is over."""
        self.pool.release(reader, serial)
        self._changed.set()
        if self.pool.retiring:
            self._give_back()
        self._feed()

    def _feed(self) -> None:
        """A lease has ended: who had to wait for that is sent the newest frame."""
        if self.pool.starved:
            self.pool.starved = False
            self._notify()

    def delivered(self, reader: Reader, serial: int) -> None:
        """What was made of a local reader's frame, and all before it, has arrived."""
        reader.busy = False
        reader.done = serial
        self._changed.set()

    def accepted(self, reader: Reader, segment: Segment) -> None:
        """The reader sees one segment more."""
        reader.segments.add(segment)
        self._changed.set()

    def resumed(self, reader: Reader) -> None:
        """The reader can be lent frames again; see `Reader.busy`."""
        reader.busy = False
        self._changed.set()

    # Memory

    async def forget(self) -> None:
        """Take the memory away in which earlier pictures lie: for when a reader must not come back.

        All buffers are replaced by new ones; the old are zeroed as soon as nobody holds a frame in
        them. Returns when the new ones are in use. Raises MemoryRefused if there is no room for
        both at once.
        """
        buffers = self.pool.missing_with(0, all_new=True)
        self._budget.take(self._size_of(buffers))
        segment = await self._segment_from_thread(buffers)
        if self._closed:
            self._drop(segment)
            return
        old = list(self.pool.segments)
        self._forgotten.update(old)
        self.pool.add(segment)
        self.pool.retire(old)
        self._changed.set()
        self._notify()
        self._give_back()

    async def _grow(self) -> None:
        try:
            while missing := self._missing():
                missing = self._step(missing)
                self._growing = missing
                self._budget.take(self._size_of(missing))
                segment = await self._segment_from_thread(missing)
                if not self._missing():  # those who wanted it are gone
                    self._drop(segment)
                    break
                self.pool.add(segment)
                self._changed.set()
                self._notify()
        except MemoryRefused as error:
            log.warning("%d readers share too few buffers: %s", len(self.pool.readers), error)
        finally:
            self._growing = 0
        self._shrink()

    def _step(self, missing: int) -> int:
        """How many buffers to make where some are missing.

        A connection knows 64 segments at most, so where many readers came one by one each step is
        an eighth of all buffers at least, if there is room for that. Raises MemoryRefused.
        """
        if len(self.pool.segments) < MANY_SEGMENTS:
            return missing
        if len(self.pool.segments) >= MOST_SEGMENTS:
            raise MemoryRefused(f"it lies in {MOST_SEGMENTS} pieces already")
        more = max(missing, len(self.pool.buffers) // 8)
        return more if self._budget.allows(self._size_of(more)) else missing

    def _shrink(self) -> None:
        if not self._growing:
            self.pool.retire(self.pool.surplus)
        self._give_back()

    def _missing(self) -> int:
        return 0 if self._closed else self.pool.missing_with(0)

    def _size_of(self, buffers: int) -> int:
        return Segment.size_for(buffers * self.pool.buffer_size)

    async def _segment_from_thread(self, buffers: int) -> Segment:
        """`_new_segment` in a thread. Where none can be started that is memory refused too."""
        begun = False

        def make() -> Segment:
            nonlocal begun
            begun = True
            return self._new_segment(buffers)

        try:
            return await trio.to_thread.run_sync(make)
        except (RuntimeError, MemoryError) as error:
            if begun and isinstance(error, RuntimeError):
                raise
            raise MemoryRefused(f"cannot make shared memory: {str(error) or 'no memory'}") from None
        finally:
            if not begun:  # also where who asks gave up before
                self._budget.give(self._size_of(buffers))

    def _new_segment(self, buffers: int) -> Segment:
        """Make memory that the budget has been asked for; on failure the budget has it back."""
        size = buffers * self.pool.buffer_size
        try:
            segment = Segment(size)
        except BaseException:
            self._budget.give(Segment.size_for(size))
            raise
        try:
            if self._attach is not None:
                self._attach(segment)
            segment.seal()
        except BaseException:
            self._drop(segment)
            raise
        return segment

    def _drop(self, segment: Segment) -> None:
        segment.close()
        self._budget.give(segment.size)

    def _give_back(self) -> None:
        """Close retired segments that nobody looks into; the picture moves out of them first."""
        current = self.pool.current
        stuck = current is not None and current.segment in self.pool.retiring
        moved = stuck and self._drawing is None and not self._closed
        if moved:
            self.pool.publish(self.pool.begin([]), [], self.pool.published)
        gone = self.pool.collect()
        for segment in gone:
            if segment in self._forgotten:
                self._forgotten.discard(segment)
                segment.wipe()
            self._drop(segment)
        if gone or moved:
            self._notify()

    def _notify(self) -> None:
        for watcher in list(self._watchers):
            watcher.published()

    def close(self) -> None:
        """The surface is replaced or gone: nobody new is shown it. Frames out stay valid."""
        self._closed = True
        self._changed.set()
        self.pool.retire(list(self.pool.segments))
        self.pool.end()
        self._give_back()


def _owes(reader: Reader, serial: int) -> bool:
    """Whether a frame up to this one is on its way to the reader or with it.

    A serial may also be that of a picture that only moved to other memory, which nobody is sent.
    """
    return reader.done < serial and bool(reader.damage or reader.leases or reader.busy)


class Pace:
    """The iterator that `Surface.pace` gives."""

    def __init__(self, fps: float) -> None:
        if not 0 < fps < float("inf"):
            raise ValueError(f"{fps} is no number of steps a second above 0")
        self._interval = 1 / fps
        self._next = trio.current_time()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> None:
        await trio.sleep_until(self._next)
        self._next = max(self._next, trio.current_time() - self._interval) + self._interval


class Drawing:
    """A frame while it is drawn: ``pixels`` holds the last picture, and what you make of it.

    Leaving the ``with`` block publishes it; an exception in the block throws it away. ``pixels`` is
    an array (height, width, 4) of uint8 over shared memory, yours until the block ends.
    """

    def __init__(self, surface: Surface, buffer: Buffer, damage: list[Rect]) -> None:
        self.buffer = buffer
        self.damage = damage
        """What will be drawn, merged: rectangles (top, left, bottom, right)."""
        self.published = 0
        """See `Surface.draw`."""
        self.pixels = buffer.pixels.view()
        self._surface = surface
        self._open = True

    def publish(self, damage: list[Rect] | None = None) -> None:
        """Show it. ``damage`` replaces what was named at the start and must cover it."""
        if damage is None:
            damage = self.damage
        else:
            damage = region.from_damage(damage, self._surface.width, self._surface.height)
        self._end(damage)

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
