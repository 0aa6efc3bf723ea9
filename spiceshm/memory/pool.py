"""The leased pool: why no frame is torn, no writer waits and no damage is lost.

Buffers go FREE → WRITING → CURRENT → RETAINED (while leased) → FREE. A reader holds at most
``credits`` of them; with two buffers more than all credits together the writer always finds one
FREE. The six rules, each of which a method below holds or asserts:

1. only a WRITING buffer is written, and it has no lease;
2. a lease starts when a frame is lent and ends only by its release or when the reader leaves;
3. leased buffers never exceed what leaves the writer one, so it never waits, and publishing never
   allocates;
4. a reader's damage is cleared only by lending it a frame that carries it;
5. at most ``credits`` frames a reader are out, and nothing queues;
6. memory is what was added, bounded by the caller.

Readers in this process, who encode what they are lent, see all memory and hold a frame only for a
moment: so all of them together count as no more than `MOST_LOCAL` credits, however many come, and
no more frames than that are lent to them at once.

It knows neither messages nor sockets: the server asks what to lend and sends it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .. import region
from .segment import Segment, pages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ..region import Rect


MOST_LOOSE = 3 * region.MOST_RECTS
"""Rectangles that are noted for a reader that takes no frames, or a buffer that is not used, before
they are merged. Merging takes as long as drawing: every frame would be too often."""

MOST_LOCAL = 2
"""Frames that readers in this process hold at once, all together."""


class BufferState(enum.Enum):
    """Where a buffer is on its way round; see the module's text."""

    FREE = enum.auto()
    WRITING = enum.auto()
    CURRENT = enum.auto()
    RETAINED = enum.auto()


@dataclass(eq=False)
class Buffer:
    """One surface-sized slot of a segment.

    ``pixels`` is a writable array (height, width, 4) of uint8, B, G, R, X, over shared memory;
    ``missed`` is what was published since this buffer was current.
    """

    segment: Segment
    offset: int
    pixels: NDArray[np.uint8]
    missed: list[Rect]
    state: BufferState = BufferState.FREE
    leases: int = 0

    def __post_init__(self) -> None:
        # Whole pixels copy faster than bytes.
        self.words = self.pixels.view(np.uint32)[:, :, 0]


@dataclass(eq=False)
class Reader:
    """Somebody who is lent frames, at most ``credits`` at once.

    ``local``: it is in this process, and sees all memory. ``damage`` is what changed since the last
    frame it was given, and ``loose`` whether that is still to be merged; ``segments`` are those it
    can see, if it is not local; ``busy`` is set by whoever reads for it while it can be given
    nothing, because what was read is still on its way, say; ``done`` is the newest serial that it
    is done with; ``coalesced`` counts frames that it got only as damage of a later one.
    """

    credits: int
    damage: list[Rect]
    local: bool = False
    full: bool = True
    loose: bool = False
    busy: bool = False
    done: int = 0
    coalesced: int = 0
    segments: set[Segment] = field(default_factory=set)
    leases: dict[int, Buffer] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether it could be lent another frame."""
        return not self.busy and len(self.leases) < self.credits

    def sees(self, segment: Segment) -> bool:
        """Whether it can look into this memory."""
        return self.local or segment in self.segments


@dataclass(eq=False, slots=True)
class Frame:
    """What a reader is given: a buffer that will not change, and what is new in it for this reader.

    ``published`` is the clock of whoever published it, in ns; ``full`` means that the reader must
    forget what it knew.
    """

    buffer: Buffer
    serial: int
    published: int
    rects: list[Rect]
    full: bool


class Pool:
    """The buffers of one surface of one size. ``serials`` outlives it: serials are never reused."""

    def __init__(self, width: int, height: int, serials: Iterator[int]) -> None:
        self.width = width
        self.height = height
        self.stride = width * 4
        self.segments: list[Segment] = []
        """In use, the oldest first."""
        self.retiring: set[Segment] = set()
        """Not written any more; gone as soon as no lease is left in them."""
        self.buffers: list[Buffer] = []
        self.readers: set[Reader] = set()
        self.current: Buffer | None = None
        self.serial = 0
        self.published = 0
        self.version = 0
        """Rises whenever a segment comes or goes."""
        self.carried = 0
        """Pixels copied from the current buffer to the one that is drawn next, so far."""
        self.starved = False
        """A reader was refused a frame so that the writer keeps its buffers: try again when some
        lease has ended."""
        self._serials = serials
        self._news: Sequence[Rect] = ()
        self._complete = False
        """There is memory for all credits, so that no lease can take the writer's last buffer."""

    @property
    def buffer_size(self) -> int:
        """Bytes that one buffer takes, whole pages."""
        return pages(self.stride * self.height)

    def add(self, segment: Segment) -> None:
        """Cut a segment into as many buffers as fit; it belongs to the pool from here on."""
        self.version += 1
        self.segments.append(segment)
        for offset in range(segment.first, segment.size - self.buffer_size + 1, self.buffer_size):
            pixels = segment.pixels(offset, self.width, self.height, self.stride)
            self.buffers.append(Buffer(segment, offset, pixels, self._everything()))
        self._count()

    def retire(self, segments: Sequence[Segment]) -> None:
        """Never write these again. What is left must do for all readers."""
        if not segments:
            return
        self.version += 1
        self.retiring.update(segments)
        self.segments = [segment for segment in self.segments if segment not in self.retiring]
        self._count()

    def collect(self) -> list[Segment]:
        """Retired segments that nobody looks into any more: they are the caller's again."""
        kept = {b.segment for b in self.buffers if b.leases or b.state is not BufferState.FREE}
        gone = self.retiring - kept
        self.version += bool(gone)
        self.retiring &= kept
        self.buffers = [buffer for buffer in self.buffers if buffer.segment not in gone]
        self._count()
        return list(gone)

    @property
    def surplus(self) -> list[Segment]:
        """The newest segments that the readers of now can do without."""
        needed = self._credits + 2
        left, surplus = len(self._writable), []
        for segment in reversed(self.segments[1:]):
            size = sum(buffer.segment is segment for buffer in self._writable)
            if left - size < needed:
                break
            left -= size
            surplus.append(segment)
        return surplus

    # The writer

    def begin(self, damage: Sequence[Rect]) -> Buffer:
        """A buffer to draw in that holds the current picture, except inside ``damage``.

        The caller draws all of ``damage`` and then calls `publish`, or `abandon`. Never waits:
        rule 3 leaves one FREE.
        """
        self._note_missed()
        buffer = self._next()
        if buffer is None:
            raise AssertionError("no free buffer: a lease was given that should not have been")
        if buffer.leases:
            raise AssertionError("a free buffer is leased")
        buffer.state = BufferState.WRITING
        stale = region.subtract(region.merge(buffer.missed), damage)
        for top, left, bottom, right in stale:
            self.carried += (bottom - top) * (right - left)
            buffer.words[top:bottom, left:right] = (
                # Before the first frame the picture is black, whatever was drawn and abandoned.
                0 if self.current is None else self.current.words[top:bottom, left:right]
            )
        return buffer

    def publish(self, buffer: Buffer, damage: Sequence[Rect], now: int) -> int:
        """Make a drawn buffer current and ``damage`` known to every reader; returns its serial.

        ``damage`` must cover what `begin` was told and all that was drawn besides.
        """
        if buffer.state is not BufferState.WRITING:
            raise AssertionError(f"a {buffer.state.name} buffer cannot be published")
        old = self.current
        if old is not None:
            old.state = BufferState.RETAINED if old.leases else BufferState.FREE
        buffer.state = BufferState.CURRENT
        buffer.missed = []
        self.current = buffer
        self._news = list(damage)  # the caller may use its list again
        for reader in self.readers:
            reader.coalesced += bool(reader.damage and damage and not reader.full)
            reader.loose = bool(reader.damage)
            reader.damage = region.gather(reader.damage, damage)
            if len(reader.damage) > MOST_LOOSE:
                reader.damage = region.merge(reader.damage)
        self.serial = next(self._serials)
        self.published = now
        return self.serial

    def _note_missed(self) -> None:
        """What the last frame brought is missing everywhere else: noted before the next is begun,
        when it has long been sent."""
        if self._news:
            for other in self.buffers:
                if other is not self.current:
                    other.missed = region.gather(other.missed, self._news)
                    if len(other.missed) > MOST_LOOSE:  # it may never be used again
                        other.missed = [region.bounds(other.missed)]
            self._news = ()

    def end(self) -> None:
        """There will be no frame any more; those that are lent stay."""
        if self.current is not None:
            self.current.state = BufferState.RETAINED if self.current.leases else BufferState.FREE
            self.current = None

    def abandon(self, buffer: Buffer) -> None:
        """Give up a buffer that was begun; what was drawn in it is nobody's picture."""
        buffer.state = BufferState.FREE
        buffer.missed = self._everything()

    # Readers

    def missing_with(self, credits: int, *, all_new: bool = False) -> int:
        """How many buffers more it takes for every reader to use all its credits at once.

        ``credits`` counts a reader that might join; ``all_new`` as if there were no buffers yet.
        """
        return max(0, self._credits + credits + 2 - (0 if all_new else len(self._writable)))

    @property
    def _credits(self) -> int:
        """What all readers may hold together."""
        local = sum(reader.credits for reader in self.readers if reader.local)
        others = sum(reader.credits for reader in self.readers if not reader.local)
        return others + min(local, MOST_LOCAL)

    @property
    def _local_is_full(self) -> bool:
        return sum(len(r.leases) for r in self.readers if r.local) >= MOST_LOCAL

    @property
    def _writable(self) -> list[Buffer]:
        """The buffers that may be written again; all but those of segments that retire."""
        if not self.retiring:
            return self.buffers
        return [buffer for buffer in self.buffers if buffer.segment not in self.retiring]

    def join(self, credits: int, *, local: bool = False) -> Reader:
        """A new reader; its first frame will be the whole surface."""
        reader = Reader(credits, self._everything(), local)
        self.readers.add(reader)
        self._count()
        return reader

    def leave(self, reader: Reader) -> None:
        """The reader is gone, and with it its leases. Leaving twice is harmless."""
        self.readers.discard(reader)
        self._count()
        for serial in list(reader.leases):
            self.release(reader, serial)

    def lend(self, reader: Reader) -> Frame | None:
        """The newest frame on lease, or None if the reader must wait (or nothing is new)."""
        buffer = self.current
        if buffer is None or not reader.damage or not reader.ready:
            return None
        if not (reader.local or buffer.segment in reader.segments):
            return None
        full = reader.local and self._local_is_full
        if full or not (self._complete or self._spare(buffer)):
            self.starved = True
            return None
        buffer.leases += 1
        reader.leases[self.serial] = buffer
        rects = region.merge(reader.damage) if reader.loose else reader.damage
        frame = Frame(buffer, self.serial, self.published, rects, reader.full)
        reader.damage, reader.full = [], False
        return frame

    def wants(self, reader: Reader) -> bool:
        """Whether it would be given a frame that is published now."""
        if not reader.ready or (reader.local and self._local_is_full):
            return False
        if self._complete and (reader.local or reader.segments.issuperset(self.segments)):
            return True
        buffer = self._next()
        return buffer is None or (reader.sees(buffer.segment) and self._spare(buffer))

    def owe(self, reader: Reader, rects: Sequence[Rect]) -> None:
        """That much of a frame that it was lent did not reach it: it is damage again."""
        reader.damage = region.add(reader.damage, rects)

    def release(self, reader: Reader, serial: int) -> None:
        """End one lease. Raises KeyError if the reader does not hold that frame."""
        buffer = reader.leases.pop(serial)
        if not reader.local:  # which still has to send what it made of it
            reader.done = max(reader.done, serial)
        buffer.leases -= 1
        if not buffer.leases and buffer.state is BufferState.RETAINED:
            buffer.state = BufferState.FREE

    def _spare(self, buffer: Buffer) -> bool:
        """Whether the writer keeps a free buffer if this one is leased too (rule 3).

        While the pool is smaller than all credits together allow, readers can share a buffer that
        is leased already, but not lease ever different ones.
        """
        if self._complete or buffer.leases or buffer.segment in self.retiring:
            return True
        writable = self._writable
        leased = sum(1 for other in writable if other.leases)
        return leased + 1 <= len(writable) - 2

    def _next(self) -> Buffer | None:
        """The buffer that will be drawn in next."""
        first = None
        for buffer in self._writable:
            if buffer.state is BufferState.FREE:
                # Memory that some reader has not accepted yet would leave it without this frame.
                if self._seen_by_all(buffer):
                    return buffer
                first = first or buffer
        return first

    def _count(self) -> None:
        """Buffers or readers have come or gone."""
        self._complete = not self.retiring and len(self.buffers) >= self._credits + 2

    def _seen_by_all(self, buffer: Buffer) -> bool:
        segment = buffer.segment
        for reader in self.readers:
            if not reader.local and segment not in reader.segments:
                return False
        return True

    def _everything(self) -> list[Rect]:
        return region.full(self.width, self.height)
