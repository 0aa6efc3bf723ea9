"""The display channel's client end: maps what is offered, hands out frames, newest first.

Strategy: a program that looks gets the newest frame that arrived; damage of frames that it never
looked at is added to that of the one it gets. Nothing queues. In a loop over frames each is given
back at the next step, so that a source may go in step with it; a frame that was looked at otherwise
lasts as long as the program has it: on memory of our own from the next look but one on, for by then
the next one is mostly in its place. Who reads the channel is told in `reading`.
"""

from __future__ import annotations

import contextlib
import logging
import time
import weakref
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
import trio

from .. import region
from ..errors import (
    Disconnected,
    FramesHeld,
    MemoryRefused,
    Refusal,
    SpiceShmError,
    Timeout,
)
from ..memory import MappedSegment
from ..protocol import ClientDisplay, ClientLink
from ..wire import Message, display, shm
from ..wire.shm import ShmDamage, ShmOffer
from ..wire.types import DisplayCap
from .changes import Changes, Moment
from .frame import Copies, Frame, Lease
from .ordinary import Ordinary
from .reading import HANDSHAKE_S, PIECE, Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..fds import Descriptor
    from ..transport import Address, Stream
    from .reading import End
    from .remote import Frames
    from .wishes import Wishes

log = logging.getLogger("spiceshm.client")

TURN_S = 0.05
"""So long what comes in ordinary SPICE is drawn before others have their turn."""

STALE_S = 0.01
ANSWER_S = 0.2
TURNS = 3
KEEP_S = 0.02
HELD_WARNING_S = 1.0
HELD_LIMIT_S = 5.0


class DisplayChannel:
    """The display channel's end; `RemoteDisplay` is what a program sees of it.

    ``width`` and ``height`` are in pixels and change when the server changes its mode. ``reason``
    says why memory is not shared, None while it is. ``segment_bytes`` of the server's memory are
    mapped; the frames so far said that ``pixel_bytes`` of pixels had changed.
    """

    def __init__(self, address: Address, wishes: Wishes) -> None:
        self.address = address
        self.width = 0
        self.height = 0
        self._stride = 0
        self.reason: str | None = None
        self.segment_bytes = 0
        self.pixel_bytes = 0
        self.wishes = wishes
        self._looked = -1  # the serial of the last frame that was given
        self._delivered = 0  # when the last keys or moves were
        self.heads: list[region.Rect] = []
        """The parts of the display that are a monitor each, as the server told last, if it did."""
        self.told: Callable[[], None] = lambda: None
        """Called when the size or ``heads`` have changed."""
        self.changes = Changes()
        self.heard = time.monotonic()
        self._stream: Stream | None = None
        self._reading: Reading | None = None
        self._machine = ClientDisplay()
        self._segments: dict[int, MappedSegment] = {}
        self._ordinary = Ordinary(address, wishes)
        self._to_do: Iterator[Message] = iter(())
        self._pending: Frame | None = None
        self._given: Frame | None = None
        self._seen = -1
        self._anew = False
        self._before: Callable[[], Frame | None] = lambda: None  # what was given before that
        self._copies = Copies()
        self._leases: dict[int, Lease] = {}
        self._ended: deque[Lease] = deque()
        self._in_step = False
        self._freed: float | None = None
        self._warned = False
        self._token = trio.lowlevel.current_trio_token()

    @property
    def shared(self) -> bool:
        """Whether frames are read in place from the server's memory."""
        return self._machine.shared

    @property
    def stale(self) -> list[region.Rect]:
        """Where the newest picture is not what the server shows."""
        return self._ordinary.stale

    @property
    def wire_bytes(self) -> int:
        """Bytes through the display channel's socket so far, both ways."""
        return self._stream.bytes_received + self._stream.bytes_sent if self._stream else 0

    @property
    def images(self) -> dict[str, int]:
        """What ordinary SPICE has drawn by so far: see `RemoteDisplay.images`."""
        return self._ordinary.counts

    @property
    def silent_s(self) -> float:
        """Seconds since something came from the server."""
        return time.monotonic() - self.heard

    @property
    def last_look(self) -> Moment:
        """What the program has not seen, and can see of what it did, is later than this."""
        return Moment(self._looked, self._delivered)

    # Opening

    def open(self, stream: Stream, link: ClientLink) -> None:
        """Begin the display channel on a stream whose link phase is done."""
        self._stream = stream
        offered = DisplayCap.SHARED_MEMORY in link.caps
        self._machine = ClientDisplay(mini=link.mini, shareable=offered)
        self._reading = Reading(self.address, stream, self._machine, self._received)
        if not offered:
            self.reason = (
                "the server does not share memory"
                if stream.is_unix
                else "memory cannot be shared over TCP"
            )
        if DisplayCap.PREF_COMPRESSION in link.caps:
            # Before INIT: so the first image obeys it.
            preferred = self.wishes.preferred(is_unix=stream.is_unix)
            self._machine.send(display.PreferredCompression(preferred))
        self._machine.send(self.wishes.init)
        self._flush()

    async def first_frame(self) -> None:
        """Wait for the first complete picture. Raises what ended the connection before it."""
        while not self._something_new:
            await self.reading.wait()
        self._looked = self.changes.newest

    async def picture(self) -> Frame:
        """The first picture, on memory of our own: it outlasts this channel."""
        await self.first_frame()
        frame = self._give()
        self._make_own(frame)
        return frame

    def show(self, frame: Frame) -> None:
        """That was seen on another channel. It is the last that the program was given, unless
        another task was given a newer one here meanwhile."""
        self._seen = max(self._seen, frame.serial)
        if frame.serial < self.last_look.serial:
            self._anew = True
            return
        if self._pending is not None and self._pending.serial <= frame.serial:
            self._drop_pending()
        self._part_with_given()
        self._flush()
        self._given = frame
        self._looked = frame.serial

    # The display channel

    @property
    def reading(self) -> Reading:
        """Who reads; once the channel is open."""
        assert self._reading is not None
        return self._reading

    def fail(self, error: End) -> None:
        """The connection is over: whoever waits is told why."""
        if self._reading is not None:
            self._reading.fail(error)

    def _received(self, data: bytes | memoryview, descriptors: Sequence[Descriptor]) -> bool:
        """Do what a read brought; whether some of it is left, as after `TURN_S` of drawing.

        Then it is called again with nothing, and ``data`` stay as they are until that is done.
        """
        self.heard = time.monotonic()
        if data:
            self._to_do = self._messages(data, descriptors)
        left = self._carry_out()
        if self._ordinary.is_shown and (drawn := self._ordinary.take_note()):
            self.changes.note(self._ordinary.serial, 0, np.array(drawn, "<i4"))
            self.reading.arrived()
        if self.reading.waiting and self._something_new:  # who waits is woken, and reads himself
            self.reading.program_left = trio.current_time()
        self._flush()
        return left

    def _messages(
        self, data: bytes | memoryview, descriptors: Sequence[Descriptor]
    ) -> Iterator[Message]:
        if self._machine.shared or descriptors:  # nothing there takes long
            return iter(self._machine.receive_data(data, descriptors))
        return chain.from_iterable(map(self._machine.receive_data, self._pieces(data)))

    def _pieces(self, data: bytes | memoryview) -> Iterator[bytes | memoryview]:
        at, end = 0, max(PIECE, self._machine.missing)  # a large image's are not many messages
        while at < len(data):
            yield data[at:end]
            at, end = end, end + PIECE

    def _carry_out(self) -> bool:
        until = time.perf_counter() + TURN_S
        for message in self._to_do:
            if type(message) is ShmDamage:
                self._damage(message)
            elif not isinstance(message, display.DrawCopy | display.DrawFill):
                self._cold(message)
            else:
                self.pixel_bytes += self._ordinary.draw(message)
            if time.perf_counter() > until and not self._machine.shared:
                return True
        return False

    def _cold(self, message: Message) -> None:
        if isinstance(message, ShmOffer):
            self._answer(message)
        elif isinstance(message, shm.SurfaceCreateShm):
            self._resize(message.width, message.height)
            self._stride = message.stride
            self.reason = None
            self._ordinary.leave()
        elif isinstance(message, display.SurfaceCreate) and message.surface_id == 0:
            self._resize(message.width, message.height)
            if self.reason is None:
                shared = "the server shared none of its memory; its log says why"
                self.reason = shared if self._segments else "the server made no offer"
            self._segments.clear()
            self.segment_bytes = 0
            self._ordinary.begin(message, self._machine.last_serial)
        elif isinstance(message, display.MonitorsConfig):
            self.heads = _inside(message.heads, self.width, self.height)
            self.told()
        elif isinstance(message, shm.ShmWithdraw):
            segment = self._segments.pop(message.segment_id, None)
            if segment is not None:
                self.segment_bytes -= segment.size
        else:
            self.pixel_bytes += self._ordinary.draw(message)

    def _resize(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.heads = []
        self.told()
        self._ordinary.forget()
        self.changes.anew()
        self._drop_pending()

    def _answer(self, offer: ShmOffer) -> None:
        """Check an offer in the order that the protocol fixes, map it, and reply."""
        descriptors = self._machine.take_descriptors(offer.segment_id)
        try:
            fault = self._machine.fault(offer)
            if fault:
                raise MemoryRefused(f"the offer's {fault} is malformed", Refusal.MALFORMED)
            if self.wishes.shm == "off":
                raise MemoryRefused("shared memory was not wanted", Refusal.NOT_WANTED)
            if offer.handle != shm.HANDLE_DESCRIPTOR:
                raise MemoryRefused(f"memory of kind {offer.handle} is not known", Refusal.HANDLE)
            segment = MappedSegment(descriptors, offer.size, offer.token_offset, offer.token_size)
        except MemoryRefused as error:
            self.reason = str(error)
            log.info("%s: memory not shared: %s", self.address, self.reason)
            self._machine.refuse(offer, error.reason)
            return
        finally:
            for descriptor in descriptors:
                descriptor.close()
        self._segments[offer.segment_id] = segment
        self.segment_bytes += segment.size
        self._machine.accept(offer, segment.token, min(self.wishes.credits, offer.credits))

    def _damage(self, damage: ShmDamage) -> None:
        # The machine has checked all of the message, and may be further on than this one is.
        pixels = self._segments[damage.segment_id].pixels(
            damage.shm_offset, self.width, self.height, self._stride
        )
        self._leases[damage.serial] = Lease(pixels, self._lease_ended, damage.serial)
        self._freed = None
        self.changes.note(damage.serial, damage.published, damage.rects)
        self._offer_frame(
            Frame(
                pixels,
                damage.rects,
                serial=damage.serial,
                published=damage.published,
                full=bool(damage.flags & shm.FLAG_FULL),
                lent=True,
            )
        )

    # Frames

    def _offer_frame(self, frame: Frame) -> None:
        """Make it the one that is given next; what nobody looked at only adds its damage."""
        self.pixel_bytes += region.area(frame.rects.tolist()) * 4
        if self._pending is not None:
            frame.add_missed(self._pending)
            self._drop_pending()
        if frame.serial > self._seen:
            self._pending = frame
        else:
            self._release(frame)
        self.reading.arrived()

    def _drop_pending(self) -> None:
        if self._pending is not None:
            self._release(self._pending)
            self._pending = None

    @property
    def _something_new(self) -> bool:
        return self._pending is not None or self._ordinary.something_new

    @property
    def _full(self) -> bool:
        """Whether the server has lent all that it may."""
        return len(self._leases) >= self._machine.credits and self.shared

    @property
    def _held_by_views(self) -> bool:
        """Whether nothing that we could give back would make room for a frame."""
        return self._full and not (_is_lent(self._pending) or _is_lent(self._given))

    async def next_frame(self, loop: Frames) -> Frame:
        """The next step of a loop, which gives back its frame before."""
        await trio.lowlevel.checkpoint_if_cancelled()
        looped, loop.frame = loop.frame, None
        if looped is not None and not looped.kept:
            self._release(looped)
            if self._given is looped:
                self._given = None
        self._part_with_given()
        self._flush()
        away = trio.current_time() - self.reading.program_left > STALE_S
        if (away or self._pending is not None) and await self._shows_old(away):
            await self._catch_up()
        held_since: float | None = None
        while not self._something_new:
            held_since = await self._more(held_since)
        loop.frame = self._give(copy=not loop.passing)
        return loop.frame

    def about_to_act(self) -> None:
        """The program is about to send keys or moves: frames that came before do not tell of it."""
        self.reading.read_now()
        self._looked = max(self._looked, self.changes.newest)
        self._delivered = 0

    def acted(self, delivered_ns: int) -> None:
        """The server got them at that time (CLOCK_MONOTONIC in ns)."""
        self._delivered = delivered_ns

    async def newest(self) -> Frame | None:
        """The newest frame, which may be the one that was given last; None where that is gone.

        Waits at most for one answer of the server, where that may have a newer one, or for what it
        shows first in a mode that it has just begun. Raises what ended the connection, FramesHeld,
        and Timeout.
        """
        await trio.lowlevel.checkpoint()
        await self.reading.have_read()
        self._make_own_before()
        if self._pending is None or self._pending.age > STALE_S:
            await self._catch_up()
        if self._held_by_views and self._ended:  # another task let go of some meanwhile
            await self._catch_up()
        if self.reading.failure is not None:
            raise self.reading.failure
        if self._held_by_views:
            raise FramesHeld(self._held())
        if self._something_new:
            return self._give()
        if self._given is not None and not self._given.released:
            return self._given
        if not self._ordinary.is_shown:
            return None
        if self._ordinary.begun:
            await self._first_of_mode()
        return self._give()

    async def _first_of_mode(self) -> None:
        """A surface of ordinary SPICE has been created, and not shown yet."""
        with trio.move_on_after(HANDSHAKE_S):
            while not self._something_new:
                await self.reading.wait()
            return
        raise Timeout(f"{self.address}: no picture came within {HANDSHAKE_S:g} s")

    async def changed(self, since: Moment, box: region.Rect) -> None:
        """Wait until a frame later than ``since`` has changed ``box``. No frame is given by it.

        Looks before it waits, so that a deadline of now is in time for what is there. Raises what
        ended the connection, and FramesHeld.
        """
        await self.reading.have_read()
        self._make_own_before()
        if self._full and not self._something_new:  # then nothing comes before it is given back
            self._make_own(self._given)
            self._flush()
        held_since: float | None = None
        while not self.changes.later(since, box):
            if since.serial < self.changes.newest:
                since = since._replace(serial=self.changes.newest)
            held_since = await self._more(held_since)

    def _give(self, *, copy: bool = True) -> Frame:
        if self._pending is None and self._ordinary.is_shown:
            self._pending = self._ordinary.frame(self._copies if copy else None)
        frame, self._pending = self._pending, None
        assert frame is not None
        if self._anew:
            frame.full, self._anew = True, False
        if self._given is not None:
            self._before = self._drop_given()
            self._flush()
            if self._full:
                self._make_own_before()
        self._given = frame
        self._looked = frame.serial
        return frame

    def _part_with_given(self) -> None:
        """A newer frame is given, or will be. The program may go on with the one before."""
        if self._given is not None:
            self._make_own(self._drop_given()())

    def _drop_given(self) -> Callable[[], Frame | None]:
        """What is returned tells whether the program has it still."""
        assert self._given is not None
        still_there = weakref.ref(self._given)
        self._in_step = True
        self._given = None
        self._in_step = False
        return still_there

    def _make_own_before(self) -> None:
        """A program that looks again has mostly put that frame in the place of the one before; if
        it has not, it goes on with a copy."""
        if (frame := self._before()) is not None and frame.lent:
            self._make_own(frame)
            self._flush()

    def _make_own(self, frame: Frame | None) -> None:
        """Go on with a copy of what the server has lent."""
        if not _is_lent(frame):
            return
        self._in_step = True
        try:
            with contextlib.suppress(ValueError):  # another thread has released it just now
                frame.move_to(self._copies.of(frame.pixels))
        finally:
            self._in_step = False

    async def _more(self, held_since: float | None) -> float | None:
        """Wait for whatever comes next; what is returned is for the next call of a row of them.

        Whatever another task was given, or will be, is not kept from the server for long: that may
        wait for it before it shows the next.
        """
        nothing_here = self._pending is None and self._given is None  # as in a loop
        if not nothing_here and (_is_lent(self._pending) or _is_lent(self._given)):
            with trio.move_on_after(KEEP_S):
                await self.reading.wait()
                return held_since
            self._make_own(self._pending)
            self._make_own(self._given)
            self._flush()
        if self._full:
            return await self._wait_held(held_since)
        await self.reading.wait()
        return None

    async def _shows_old(self, away: bool) -> bool:
        """Whether a frame lies here, or in the socket, that came while the program was ``away``.

        Who was away finds frames without waiting for any, so others get their turn here.
        """
        if away:
            await trio.lowlevel.checkpoint()
            await self.reading.have_read()
            return self._pending is not None and self._pending.age > STALE_S
        return self._pending is not None and self._pending.waited > STALE_S

    async def _catch_up(self) -> None:
        """If the server could not send all this time, let it send what it may have that is newer.

        It answers at once if it has any. Where the connection ends meanwhile, what lies here is
        the last that there is.
        """
        if self._full:
            self._make_own(self._pending or self._given)
            self._flush()
        freed = self._freed
        if freed is None:
            return
        with contextlib.suppress(SpiceShmError):
            with trio.move_on_at(freed + ANSWER_S):
                while self._freed == freed:
                    await self.reading.wait()
            # What came while this program was kept from running; also from a server within it.
            for _ in range(TURNS):
                await trio.lowlevel.checkpoint()
                await self.reading.have_read()
            if self._freed == freed:  # there is nothing newer, so nobody need ask again
                self._freed = None

    async def _wait_held(self, since: float | None) -> float | None:
        """Wait, but not for ever, where the program's own views are what prevents a frame.

        ``since`` is when that began, None for now; it is returned, or None if it is over. A frame
        is not all that may come meanwhile, and where views are dropped nothing need come.
        """
        began = since
        if began is None:
            began, self._warned = trio.current_time(), False
        if not self._warned:
            with trio.move_on_at(began + HELD_WARNING_S):
                await self.reading.wait()
                return began
            if not self._full_still():
                return None
            self._warned = True
            log.warning("%s", self._held())
        with trio.move_on_at(began + HELD_LIMIT_S):
            await self.reading.wait()
            return began
        if not self._full_still():
            return None
        raise FramesHeld(self._held())

    def _full_still(self) -> bool:
        self._flush()  # what was let go of just now
        return self._full

    def _held(self) -> str:
        oldest = max(time.monotonic() - lease.since for lease in self._leases.values())
        return (
            f"{self.address}: views of {len(self._leases)} frames are still held, the oldest for "
            f"{oldest:.1f} s, so no new frame can come; a variable that names a view counts: "
            "del it, keep frame.copy()"
            + (", or connect with more credits" if self._machine.credits < shm.MAX_CREDITS else "")
        )

    # Leases

    def _release(self, frame: Frame) -> None:
        """Give it back, if no view is left of it; the caller flushes."""
        self._in_step = True
        try:
            frame.release()
        finally:
            self._in_step = False

    def _lease_ended(self, lease: Lease) -> None:
        """On any thread, in the middle of anything: take note and wake the loop.

        Not where the connection is closed: in a forked child the loop is the parent's.
        """
        self._ended.append(lease)
        if not self._in_step and self._stream is not None and not self._stream.closed:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._flush_quietly)

    def _flush_quietly(self) -> None:
        with contextlib.suppress(SpiceShmError):
            self._flush()

    def _flush(self) -> None:
        """Give back what is no longer looked at, and send all that is to be sent.

        Where that fails the connection is over, which whoever waits is told.
        """
        if self._stream is None or self.reading.failure is not None:
            return
        if self._ended:
            if self._full:
                self._freed = trio.current_time()
            self._give_back()
        if parts := self._machine.data_to_send():
            try:
                self._stream.send_parts(parts)
            except Disconnected as error:
                self.fail(error)

    def _give_back(self) -> None:
        while self._ended:
            lease = self._ended.popleft()
            del self._leases[lease.serial]
            self._machine.release(lease.serial)

    def close(self) -> None:
        """Nothing more is received; pixels that somebody holds stay readable."""
        self.fail(Disconnected("the connection was closed here"))
        self._machine.close()
        self._drop_pending()
        self._given = None  # which the program may have still, but this need not keep
        self._segments.clear()


def _inside(heads: Sequence[display.Head], width: int, height: int) -> list[region.Rect]:
    """Those on the primary surface that are within it and not empty."""
    rects = [
        (head.y, head.x, head.y + head.height, head.x + head.width)
        for head in heads
        if head.surface_id == 0
    ]
    return [(t, x, b, r) for t, x, b, r in rects if t < b <= height and x < r <= width]


def _is_lent(frame: Frame | None) -> TypeGuard[Frame]:
    """Whether there is one, and it lies in the server's memory."""
    return frame is not None and frame.lent
