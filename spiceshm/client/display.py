"""A display seen from the client: maps what is offered, hands out frames, newest first.

Strategy: whoever waits for a frame reads the display channel himself, for a frame that another
task hands over comes a turn of the scheduler later. A task in the background reads while nobody
does, and always in ordinary SPICE; one more reads main and answers PINGs. A program that looks gets
the newest frame that arrived; damage of frames that it never looked at is added to that of the one
it gets. Nothing queues.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Literal

import numpy as np
import trio

from .. import region
from ..errors import (
    Disconnected,
    FramesHeld,
    MemoryRefused,
    ProtocolError,
    Refusal,
    RemoteProtocolError,
    SpiceShmError,
)
from ..memory import MappedSegment
from ..protocol import ClientDisplay, ClientLink
from ..wire import Message, display, shm
from ..wire.shm import ShmDamage, ShmOffer
from ..wire.types import DisplayCap
from .canvas import Canvas
from .frame import Copies, Frame, Lease

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..fds import Descriptor
    from ..transport import Address, Stream

log = logging.getLogger("spiceshm.client")

HANDSHAKE_S = 10.0
MOST_DRAWN = 256
STALE_S = 0.01
ANSWER_S = 0.05
AWAY_S = 0.1
"""After so long without somebody who waits for frames the channel is read in the background."""
HELD_WARNING_S = 1.0
HELD_LIMIT_S = 5.0

_COMPRESSION_OFF = 1
Sharing = Literal["auto", "off", "require"]


class DisplayChannel:
    """The display channel's end; `RemoteDisplay` is what a program sees of it.

    ``width`` and ``height`` are in pixels and change when the server changes its mode. ``reason``
    says why memory is not shared, None while it is. ``segment_bytes`` of the server's memory are
    mapped; the frames so far said that ``pixel_bytes`` of pixels had changed.
    """

    def __init__(self, address: Address, shm_wish: Sharing, credits: int) -> None:
        self.address = address
        self.width = 0
        self.height = 0
        self._stride = 0
        self.reason: str | None = None
        self.segment_bytes = 0
        self.pixel_bytes = 0
        self._wish = shm_wish
        self._credits = credits
        self._stream: Stream | None = None
        self._machine = ClientDisplay()
        self._segments: dict[int, MappedSegment] = {}
        self._canvas: Canvas | None = None
        self._pending: Frame | None = None
        self._old: Frame | None = None
        self._drawn: list[region.Rect] = []
        self._arrived = trio.Event()
        self._background_reads = True
        self._needed = trio.Event()
        self._unwatched = False
        self._program_reads = False
        self._program_left = float("-inf")
        self._waiting = 0
        self._failure: SpiceShmError | None = None
        self._given: Frame | None = None
        self._warned = False
        self._leases: dict[int, Lease] = {}
        self._ended: deque[Lease] = deque()
        self._in_step = False
        self._token = trio.lowlevel.current_trio_token()
        self._ordinary_serial = 0
        self._copies = Copies()
        self._new_canvas = False

    @property
    def shared(self) -> bool:
        """Whether frames are read in place from the server's memory."""
        return self._machine.shared

    @property
    def wire_bytes(self) -> int:
        """Bytes through the display channel's socket so far, both ways."""
        return self._stream.bytes_received + self._stream.bytes_sent if self._stream else 0

    # Opening

    def open(self, stream: Stream, link: ClientLink) -> None:
        """Begin the display channel on a stream whose link phase is done."""
        self._stream = stream
        offered = DisplayCap.SHARED_MEMORY in link.caps
        self._machine = ClientDisplay(mini=link.mini, shareable=offered)
        if not offered:
            self.reason = (
                "the server does not share memory"
                if stream.is_unix
                else "memory cannot be shared over TCP"
            )
        if DisplayCap.PREF_COMPRESSION in link.caps:
            self._machine.send(display.PreferredCompression(_COMPRESSION_OFF))
        self._machine.send(display.DisplayInit(0, 0, 0, 0))
        self._flush()

    async def first_frame(self) -> None:
        """Wait for the first complete picture. Raises what ended the connection before it."""
        while not self._something_new:
            await self._wait()

    # The display channel

    async def read(self, first: bytes) -> None:
        """Read the channel while the program does not; ``first`` came behind the link phase."""
        stream = self._stream
        assert stream is not None
        self._received(first, ())
        while self._failure is None:
            if self._attended:
                await self._while_attended()
            elif stream.pending:  # a server that does not read our answers is not read either
                await stream.settled()
            elif self._machine.awaits_descriptor:
                self._received(*await _in_time(stream))
            else:
                self._received(*await stream.receive())

    @property
    def _attended(self) -> bool:
        """Whether the program reads the channel, or did a moment ago and so may do again."""
        if self._failure is not None or not self._may_be_left_to_program:
            return False
        return self._program_reads or trio.current_time() - self._program_left < AWAY_S

    @property
    def _may_read(self) -> bool:
        """Whether the task that asks can read the channel itself."""
        taken = self._background_reads or self._program_reads or self._failure is not None
        return not taken and self._may_be_left_to_program

    @property
    def _may_be_left_to_program(self) -> bool:
        assert self._stream is not None
        machine = self._machine
        return machine.shared and not self._stream.pending and not machine.awaits_descriptor

    async def _while_attended(self) -> None:
        self._background_reads = False
        if self._waiting:  # who waited for what was read here reads again himself
            self._arrived.set()
        try:
            while self._attended:
                self._needed = trio.Event()
                left = self._program_left
                with trio.move_on_after(AWAY_S):
                    await self._needed.wait()
                if self._program_reads and self._program_left == left:
                    # It waits and nothing comes: then there is nothing to look after.
                    self._unwatched = True
                    await self._needed.wait()
                    self._unwatched = False
        finally:
            self._background_reads = True
            self._unwatched = False

    async def _read_for_program(self) -> None:
        """Wait for whatever comes next. Raises what ended the connection."""
        assert self._stream is not None
        self._program_reads = True
        try:
            self._received(*await self._stream.receive())
        except (ProtocolError, Disconnected) as error:
            raise self.fail(error) from None
        finally:
            self._program_reads = False
            self._program_left = trio.current_time()
            if self._unwatched or not self._may_be_left_to_program:
                self._needed.set()
            if self._waiting:  # others take over
                self._arrived.set()

    def _read_what_came(self) -> None:
        """What was sent while neither the program nor the background read."""
        assert self._stream is not None
        try:
            received = self._stream.receive_now()
            if received is not None:
                self._received(*received)
        except (ProtocolError, Disconnected) as error:
            raise self.fail(error) from None

    def fail(self, error: ProtocolError | Disconnected) -> SpiceShmError:
        """The connection is over: whoever waits is told why. Returns the first such error."""
        if self._failure is None:
            error.args = (f"{self.address}: {error}",)
            self._failure = error
        if self._stream is not None:
            self._stream.close()
        self._arrived.set()
        self._needed.set()
        return self._failure

    def _received(self, data: bytes | memoryview, descriptors: Sequence[Descriptor]) -> None:
        for message in self._machine.receive_data(data, descriptors):
            if type(message) is ShmDamage:
                self._damage(message)
            elif isinstance(message, display.DrawCopy):
                self._draw(message)
            else:
                self._cold(message)
        if len(self._drawn) > MOST_DRAWN:
            self._drawn = region.merge(self._drawn)
        if self._drawn:
            self._arrived.set()
        if self._waiting and self._something_new:  # who waits is woken, and will read himself
            self._program_left = trio.current_time()
        self._flush()

    def _cold(self, message: Message) -> None:
        if isinstance(message, ShmOffer):
            self._answer(message)
        elif isinstance(message, shm.SurfaceCreateShm):
            self._resize(message.width, message.height)
            self._stride = message.stride
            self.reason = None
            self._canvas = None
        elif isinstance(message, display.SurfaceCreate) and message.surface_id == 0:
            self._resize(message.width, message.height)
            if self.reason is None:
                shared = "the server shared none of its memory; its log says why"
                self.reason = shared if self._segments else "the server made no offer"
            self._ordinary_serial = max(self._ordinary_serial, self._machine.last_serial)
            self._segments.clear()
            self.segment_bytes = 0
            self._canvas = Canvas(message.width, message.height)
            self._new_canvas = True
        elif isinstance(message, shm.ShmWithdraw):
            segment = self._segments.pop(message.segment_id, None)
            if segment is not None:
                self.segment_bytes -= segment.size

    def _resize(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._drawn = []
        self._old = None
        self._drop_pending()

    def _answer(self, offer: ShmOffer) -> None:
        """Check an offer in the order that the protocol fixes, map it, and reply."""
        descriptors = self._machine.take_descriptors(offer.segment_id)
        try:
            fault = self._machine.fault(offer)
            if fault:
                raise MemoryRefused(f"the offer's {fault} is malformed", Refusal.MALFORMED)
            if self._wish == "off":
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
        self._machine.accept(offer, segment.token, min(self._credits, offer.credits))

    def _damage(self, damage: ShmDamage) -> None:
        # The machine has checked all of the message, and may be further on than this one is.
        pixels = self._segments[damage.segment_id].pixels(
            damage.shm_offset, self.width, self.height, self._stride
        )
        self._leases[damage.serial] = Lease(pixels, self._lease_ended, damage.serial)
        self._offer_frame(
            Frame(
                pixels,
                damage.rects,
                serial=damage.serial,
                published=damage.published,
                full=bool(damage.flags & shm.FLAG_FULL),
            )
        )

    def _draw(self, copy: display.DrawCopy) -> None:
        if self._canvas is not None and copy.surface_id == 0:
            drawn = self._canvas.draw(copy)
            self._drawn += drawn
            self.pixel_bytes += region.area(drawn) * 4

    def _show_canvas(self, canvas: Canvas) -> None:
        """Ordinary SPICE has no frames: what was drawn when somebody asks is one, on pixels that
        do not change any more."""
        pixels = self._copies.of(canvas.pixels)
        self._ordinary_serial += 1
        rects = np.array(region.merge(self._drawn), "<i4")
        full = self._new_canvas
        self._drawn, self._new_canvas = [], False
        self._pending = Frame(pixels, rects, serial=self._ordinary_serial, published=0, full=full)

    # Frames

    def _offer_frame(self, frame: Frame) -> None:
        """Make it the one that is given next; what nobody looked at only adds its damage."""
        self.pixel_bytes += region.area(frame.rects.tolist()) * 4
        if self._pending is not None:
            frame.add_missed(self._pending)
            self._drop_pending()
        if self._old is not None:
            frame.add_missed(self._old)
            self._old = None
        self._pending = frame
        self._arrived.set()

    def _drop_pending(self) -> None:
        if self._pending is not None:
            self._release(self._pending)
            self._pending = None

    @property
    def _something_new(self) -> bool:
        return self._pending is not None or bool(self._drawn)

    async def next_frame(self) -> Frame:
        """The next step of `spiceshm.client.Frames`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._given is not None:
            self._release(self._given)
            self._given = None
            self._flush()
        if self._shows_old():
            await self._refresh()
        held_since: float | None = None
        while not self._something_new:
            if not self.shared or len(self._leases) < self._machine.credits:
                held_since = None
                await self._wait()
            else:
                held_since = await self._wait_held(held_since)
        if self._pending is None and self._canvas is not None:
            self._show_canvas(self._canvas)
        frame, self._pending = self._pending, None
        assert frame is not None
        self._given = frame
        return frame

    def _shows_old(self) -> bool:
        """Whether a frame lies here, or in the socket, that came while the program was away."""
        if trio.current_time() - self._program_left > STALE_S and self._may_read:
            self._read_what_came()
            if not self._may_be_left_to_program:
                self._needed.set()
            return self._pending is not None and self._pending.age > STALE_S
        return self._pending is not None and self.shared and self._pending.waited > STALE_S

    async def _refresh(self) -> None:
        """Exchange a frame that nobody asked for in time for the newest one.

        While it lay here its credit was used, so the server could not send a newer one; given back,
        the server answers at once if it has any. If not, a copy of the old one is the newest.
        """
        old = self._pending
        assert old is not None
        self._old = copy = old.on(self._copies.of(old.pixels))
        self._drop_pending()
        self._flush()
        try:
            # Where the connection ends meanwhile, the old frame is the last one.
            with trio.move_on_after(ANSWER_S), contextlib.suppress(SpiceShmError):
                while self._old is copy:
                    await self._wait()
        finally:  # also where who asks gives up
            if self._old is copy:
                self._pending, self._old = copy, None
                self._arrived.set()

    async def _wait_held(self, since: float | None) -> float:
        """Wait, but not for ever, where the program's own views are what prevents a frame.

        ``since`` is when that began, None for now; it is returned. A frame is not all that may
        come meanwhile.
        """
        began = since
        if began is None:
            began, self._warned = trio.current_time(), False
        if not self._warned:
            with trio.move_on_at(began + HELD_WARNING_S):
                await self._wait()
                return began
            self._warned = True
            log.warning("%s", self._held())
        with trio.move_on_at(began + HELD_LIMIT_S):
            await self._wait()
            return began
        raise FramesHeld(self._held())

    def _held(self) -> str:
        oldest = max(time.monotonic() - lease.since for lease in self._leases.values())
        return (
            f"{self.address}: views of {len(self._leases)} frames are still held, the oldest for "
            f"{oldest:.1f} s, so no new frame can come; a variable that names a view counts: "
            "del it, keep frame.copy()"
            + (", or connect with more credits" if self._machine.credits < shm.MAX_CREDITS else "")
        )

    async def _wait(self) -> None:
        """Until something arrived. Raises what ended the connection."""
        if self._failure is not None:
            raise self._failure
        if self._may_read:
            await self._read_for_program()
            return
        if not self._may_be_left_to_program:
            self._needed.set()
        if self._arrived.is_set():
            self._arrived = trio.Event()
        self._waiting += 1
        try:
            await self._arrived.wait()
        finally:
            self._waiting -= 1

    # Leases

    def _release(self, frame: Frame) -> None:
        """Give it back, if no view is left of it; the caller flushes."""
        self._in_step = True
        try:
            frame.release()
        finally:
            self._in_step = False

    def _lease_ended(self, lease: Lease) -> None:
        """On any thread, in the middle of anything: take note and wake the loop."""
        self._ended.append(lease)
        if not self._in_step:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._flush_quietly)

    def _flush_quietly(self) -> None:
        with contextlib.suppress(SpiceShmError):
            self._flush()

    def _flush(self) -> None:
        """Give back what is no longer looked at, and send all that is to be sent.

        Where that fails the connection is over, which whoever waits is told.
        """
        if self._stream is None or self._failure is not None:
            return
        while self._ended:
            lease = self._ended.popleft()
            del self._leases[lease.serial]
            self._machine.release(lease.serial)
        if parts := self._machine.data_to_send():
            try:
                self._stream.send_parts(parts)
            except Disconnected as error:
                self.fail(error)

    def close(self) -> None:
        """Nothing more is received; pixels that somebody holds stay readable."""
        self.fail(Disconnected("the connection was closed here"))
        self._machine.close()
        self._segments.clear()


async def _in_time(stream: Stream) -> tuple[memoryview, list[Descriptor]]:
    """The bytes behind an offer."""
    with trio.move_on_after(HANDSHAKE_S):
        return await stream.receive()
    raise RemoteProtocolError(
        "display.shm_offer", "descriptor", f"did not come within {HANDSHAKE_S:g} s"
    )
