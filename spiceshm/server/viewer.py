"""One display channel of one client: which frames it is sent, shared or drawn.

Strategy: there is no queue. Whenever something happened (a frame was published, a reply, a release,
an acknowledgement came) `pump` looks at the state and sends what can be sent now; what cannot stays
in the reader's accumulated damage. One task reads; sending never waits.

In ordinary SPICE another task draws: it holds the newest frame for as long as it takes to encode
what is new in it. Then nothing more is made for this client until it has acknowledged that.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import trio

from .. import region
from ..errors import SpiceShmError
from ..nursery import open_nursery
from ..protocol import ServerDisplay, State
from ..wire import Message, display, shm, types
from ..wire.base import SetAck
from ..wire.shm import ShmDamageHandled, ShmOffer, ShmReply
from . import encoding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..memory import Frame, Pool, Reader, Segment
    from ..region import Rect
    from ..transport import Stream
    from .encoding import CompressionWish, Encoders, Piece
    from .sessions import Session
    from .surface import Surface

log = logging.getLogger("spiceshm.server")

HANDSHAKE_S = 10.0
READ_SIZE = 1 << 11
"""Bytes read from a client at once: what bounds the work of one turn, so that a client that floods
us keeps the others waiting for milliseconds only."""

AGAIN_S = 0.1
SHARED_WINDOW = 20
ORDINARY_WINDOW = 1
"""Each update is acknowledged by itself, so that one at most is on its way."""


@dataclass(frozen=True)
class ViewerStats:
    """One client's display channel in figures, of all the time since it connected.

    peer: who it is, in words. shm: whether it looks into shared memory; reason: why not, if not.
    frames: frames (shared) or updates (ordinary SPICE) that it was sent. coalesced: frames that it
    was sent only as damage of a later one. lag_frames: frames published since the last one that it
    was sent. held_frames: frames that it holds now, and held_s: for how long it has held the oldest
    of them, in seconds. bytes_sent: through its socket. input: whether it may press keys: "no"
    while its inputs channel is not open, "view only" where it may not, else "yes". input_events:
    events of it that were played, input_held: keys and buttons that it holds down now, input_s:
    seconds since its last event, None before the first. images: what ordinary SPICE has drawn by,
    so many of each kind: "raw", "lz4" and "lz" pictures, and "fill" of one colour.
    """

    peer: str
    shm: bool
    reason: str | None
    frames: int
    coalesced: int
    lag_frames: int
    held_frames: int
    held_s: float
    bytes_sent: int
    input: Literal["no", "view only", "yes"]
    input_events: int
    input_held: int
    input_s: float | None
    images: Mapping[str, int]


class Viewer:
    """A client's display channel. ``no_sharing`` says why its memory cannot be shared, if so."""

    def __init__(
        self,
        stream: Stream,
        machine: ServerDisplay,
        surface: Callable[[], Surface | None],
        session: Session,
        *,
        encoders: Encoders,
        compression: CompressionWish,
        knows_lz4: bool,
        monitors: bool,
        no_sharing: str | None,
    ) -> None:
        self.peer = stream.peer
        self._frames = 0
        self._coalesced = 0
        self._stream = stream
        self._machine = machine
        self._surface = surface
        self._session = session
        self._encoders = encoders
        self._compression = compression
        self._knows_lz4 = knows_lz4
        self._preferred: int | None = None
        self._monitors = monitors
        self._heads: list[Rect] = []
        """The monitors that it was told of."""
        self._no_sharing = no_sharing
        self._shown: Surface | None = None
        self._marked = False
        self._reader: Reader | None = None
        self._lent: dict[int, tuple[Surface, Reader, float]] = {}
        self._sent_serial = 0
        self._ids: dict[Segment, int] = {}
        self._version = -1
        self._pumping = self._again = False
        self._tokens: dict[int, tuple[Segment, int]] = {}
        self._images: Counter[str] = Counter()
        self._to_draw = trio.Event()
        self._rest: list[Rect] = []  # what one update had no room for, to be sent before all else
        self._rest_of = 0  # ... and the frame that it is of, which newer ones may have replaced
        self._update_ends: int | None = None
        self._update_serial = 0
        self._scope = trio.CancelScope()
        self._failure: Exception | None = None
        self._left = False
        self._announced: str | None = None
        self._unoffered = trio.Event()

    @property
    def shared(self) -> bool:
        """Whether this client looks into our memory."""
        return self._machine.shared

    @property
    def stats(self) -> ViewerStats:
        """How this client does, now."""
        since = [lent for _, _, lent in self._lent.values()]
        reader, surface, hands = self._reader, self._surface(), self._session.hands
        return ViewerStats(
            peer=self.peer,
            shm=self.shared,
            reason=None if self.shared else self._no_sharing or self._machine.refusal,
            frames=self._frames,
            coalesced=self._coalesced + (reader.coalesced if reader else 0),
            lag_frames=self._lag(surface.serial) if surface else 0,
            held_frames=len(since),
            held_s=round(time.monotonic() - min(since), 3) if since else 0.0,
            bytes_sent=self._stream.bytes_sent,
            input="view only" if self._session.view_only else "yes" if hands.open else "no",
            input_events=hands.events,
            input_held=len(hands.held),
            input_s=None if hands.last is None else round(time.monotonic() - hands.last, 3),
            images=dict(self._images),
        )

    def _lag(self, newest: int) -> int:
        # A new surface has serial 0 until it is drawn on; serials go on where they were.
        return max(0, newest - self._sent_serial) if self._sent_serial else 0

    async def run(self, first: bytes) -> None:
        """Serve the channel to its end; ``first`` is what came behind the link phase.

        Raises RemoteProtocolError for a breach, Disconnected, TooSlowError for a hand-shake that
        takes longer than 10 s.
        """
        with self._scope:
            self._scope.deadline = trio.current_time() + HANDSHAKE_S
            try:
                self._received(memoryview(first))
                async with open_nursery() as nursery:
                    nursery.start_soon(self._stream.flush_when_writable)
                    nursery.start_soon(self._offer_again)
                    nursery.start_soon(self._draw_updates)
                    while True:
                        data, _ = await self._stream.receive(READ_SIZE)
                        self._received(data)
            finally:
                self._leave()
        if self._failure is not None:
            raise self._failure
        raise trio.TooSlowError(f"the hand-shake took longer than {HANDSHAKE_S:g} s")

    async def _offer_again(self) -> None:
        """What could not be offered is offered later, also where nothing else happens."""
        while True:
            await self._unoffered.wait()
            self._unoffered = trio.Event()
            await trio.sleep(AGAIN_S)
            self.published()

    def published(self) -> None:
        """A new frame, surface or segment is there. Never raises: a broken one ends by itself."""
        if self._left:
            return
        try:
            self._pump()
        except (SpiceShmError, MemoryError) as error:
            # Its frames are those of whoever draws, too: what he draws from would be kept with it.
            error.__traceback__ = error.__context__ = None
            self._failure = error
            self._scope.cancel()

    def _received(self, data: memoryview) -> None:
        for message in self._machine.receive_data(data):
            if isinstance(message, ShmDamageHandled):
                self._released(message.serial)
            else:
                self._handle(message)
                self._again = True
        # A frame that is given back only makes room for the next one, if there is one.
        reader = self._reader
        if self._again or reader is None or reader.damage or reader.busy:
            self._pump()

    def _released(self, serial: int) -> None:
        surface, reader, _ = self._lent.pop(serial)
        self._give_back(surface, reader, serial)

    def _give_back(self, surface: Surface, reader: Reader, serial: int) -> None:
        surface.release(reader, serial)
        if reader is not self._reader and not reader.leases:
            surface.leave(reader)

    def _handle(self, message: Message) -> None:
        if isinstance(message, ShmReply):
            segment, offset = self._tokens.pop(message.segment_id)
            segment.give_token_back(offset)
            if self._shown and self._reader and self._machine.has(message.segment_id):
                self._shown.accepted(self._reader, segment)
        elif isinstance(message, display.DisplayInit):
            self._scope.deadline = float("inf")
            window = ORDINARY_WINDOW if self._no_sharing else SHARED_WINDOW
            self._machine.send(SetAck(1, window))
        elif isinstance(message, display.PreferredCompression):
            self._preferred = message.image_compression

    # What to send

    def _pump(self) -> None:
        """Do what can be done now. What it does may call it again: that is then done after it."""
        self._again = True
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._again:
                self._again = False
                self._step()
        finally:
            self._pumping = False

    def _step(self) -> None:
        machine = self._machine
        if machine.ready:
            surface = self._surface()
            if surface is not self._shown:
                if self._is_behind:
                    self._wait_for_no_more()
                else:
                    self._change(surface)
            elif surface is not None and machine.refusal and machine.shared:
                self._hide()
                self._change(surface)
            if self._shown is not None and self._reader is not None:
                if self._monitors and self._heads != self._shown.heads:
                    self._say_heads(self._shown.heads)
                if machine.shared:
                    if self._version != self._shown.pool.version:
                        self._offer(self._shown.pool)
                    self._lend_frames(self._shown, self._reader)
                else:
                    self._want_update(self._shown, self._reader)
        if parts := self._machine.data_to_send():
            self._stream.send_parts(parts)

    def _change(self, surface: Surface | None) -> None:
        """Show another surface; returns without having done it while replies are awaited."""
        if self._shown is not None:
            self._hide()
        if surface is None or self._is_silent:
            return
        if self._may_share():
            self._offer(surface.pool)
        if self._machine.undecided:
            return
        if self._may_share() and self._machine.state is State.OFFERED:
            self._no_sharing = surface.why_not(self._machine.credits)
            if self._no_sharing is not None:
                log.warning("%s: no shared memory: %s", self.peer, self._no_sharing)
        if self._may_share() and self._accepted(surface.pool):
            self._begin_shared(surface)
        elif not self._machine.shared or self._machine.refusal:
            self._begin_ordinary(surface)

    def _accepted(self, pool: Pool) -> set[Segment]:
        """What may be written of the memory that this client has accepted."""
        ids, has = self._ids, self._machine.has
        return {segment for segment in pool.segments if segment in ids and has(ids[segment])}

    def _may_share(self) -> bool:
        ordinary = self._machine.state in (State.ORDINARY, State.ORDINARY_EMPTY)
        return self._no_sharing is None and self._machine.refusal is None and not ordinary

    @property
    def _is_silent(self) -> bool:
        """Whether a client that shares memory has not answered later offers yet."""
        return self._machine.shared and bool(self._tokens)

    def _offer(self, pool: Pool) -> None:
        """Offer the segments that this client does not know yet, and only those.

        But none while it owes us replies: descriptors on their way are counted for all of a user's
        connections together, so one that does not read would take them from the others.
        """
        self._version = pool.version
        for segment in self._ids.keys() - {*pool.segments, *pool.retiring}:
            self._machine.send(shm.ShmWithdraw(self._ids.pop(segment)))
            if self._reader is not None:
                self._reader.segments.discard(segment)
        if self._is_silent:
            self._version = -1
            return
        for segment in pool.segments:
            if segment in self._ids:
                continue
            try:
                descriptor = segment.duplicate()
            except OSError as error:
                self._cannot_offer(f"no descriptor is left to pass: {error.strerror}")
                return
            place = segment.take_token()
            if place is None:
                descriptor.close()
                self._cannot_offer("too many offers are open")
                return
            offset, token = place
            segment_id = self._machine.next_segment_id()
            self._ids[segment] = segment_id
            self._tokens[segment_id] = segment, offset
            if self._machine.state is State.READY:
                self._scope.deadline = trio.current_time() + HANDSHAKE_S
            offer = ShmOffer(
                shm.OFFER_MAGIC,
                shm.OFFER_VERSION,
                segment_id,
                shm.HANDLE_DESCRIPTOR,
                shm.FLAG_SEALED,
                shm.MAX_CREDITS,
                segment.size,
                offset,
                len(token),
            )
            self._machine.offer(offer, token, descriptor)

    def _cannot_offer(self, why: str) -> None:
        """A new client gets ordinary SPICE; one that shares memory waits until it can be offered
        more, for it takes no other surface."""
        if self._machine.shared:
            self._version = -1
            self._unoffered.set()
        else:
            self._no_sharing = why

    def _begin_shared(self, surface: Surface) -> None:
        pool = surface.pool
        self._scope.deadline = float("inf")
        seen = self._accepted(pool)
        # Not always that of the picture: it may lie in memory that is about to be given back.
        first = next(b for b in (pool.current, *pool.buffers) if b and b.segment in seen)
        self._machine.send(
            shm.SurfaceCreateShm(
                0,
                pool.width,
                pool.height,
                types.SurfaceFormat.XRGB,
                display.SURFACE_FLAG_PRIMARY,
                self._ids[first.segment],
                pool.stride,
                first.offset,
                shm.MODE_LEASED,
            )
        )
        self._begin(surface, self._machine.credits)
        assert self._reader is not None
        self._reader.segments = seen
        size = sum(segment.size for segment in pool.segments)
        self._announce(f"shared memory, {len(pool.buffers)} buffers, {size / 1e6:.1f} MB")

    def _begin_ordinary(self, surface: Surface) -> None:
        self._scope.deadline = float("inf")
        if self._machine.acks.window != ORDINARY_WINDOW:
            self._machine.send(SetAck(2, ORDINARY_WINDOW))
        self._machine.send(
            display.SurfaceCreate(
                0,
                surface.width,
                surface.height,
                types.SurfaceFormat.XRGB,
                display.SURFACE_FLAG_PRIMARY,
            )
        )
        self._begin(surface, 1, local=True)
        self._announce(f"ordinary SPICE: {self._no_sharing or self._machine.refusal}")

    def _begin(self, surface: Surface, credits: int, *, local: bool = False) -> None:
        if self._monitors:
            self._say_heads(surface.heads)
        self._reader = surface.join(credits, local=local)
        self._shown = surface
        self._marked = False
        self._rest = []
        self._update_ends = None
        self._update_serial = 0

    def _say_heads(self, heads: list[Rect]) -> None:
        self._heads = heads
        told = (
            display.Head(number, 0, right - left, bottom - top, left, top, 0)
            for number, (top, left, bottom, right) in enumerate(heads)
        )
        self._machine.send(display.MonitorsConfig(len(heads), tuple(told)))

    def _announce(self, how: str) -> None:
        if self._announced != how:
            self._announced = how
            log.info("%s: %s", self.peer, how)

    def _hide(self) -> None:
        """End the surface that is shown; what is lent of it stays lent."""
        assert self._shown is not None
        surface, reader = self._shown, self._reader
        self._machine.send(display.SurfaceDestroy(0))
        while self._ids:
            _, segment_id = self._ids.popitem()
            if self._machine.shared and not self._machine.refusal:  # else it all ends by itself
                self._machine.send(shm.ShmWithdraw(segment_id))
        self._shown = self._reader = None
        if reader is not None:
            self._coalesced += reader.coalesced
            surface.dismiss(reader)

    def _lend_frames(self, surface: Surface, reader: Reader) -> None:
        machine = self._machine
        if reader.busy and machine.may_lend():
            surface.resumed(reader)
        while reader.damage and machine.may_lend() and (frame := surface.pool.lend(reader)):
            self._lent[frame.serial] = surface, reader, time.monotonic()
            machine.lend(
                self._ids[frame.buffer.segment],
                frame.buffer.offset,
                frame.serial,
                frame.published,
                shm.FLAG_FULL if frame.full else 0,
                frame.rects,
            )
            self._sent(frame.serial)
        if reader.ready and not machine.may_lend():
            # Frames of an earlier surface use its credits, or its ACK is outstanding.
            reader.busy = True

    # Ordinary SPICE

    @property
    def _is_behind(self) -> bool:
        """Whether it is still to read what it was sent of the surface that it is shown. It is told
        of no other before, else each that comes and goes meanwhile would wait for it."""
        if self._shown is None or self._machine.shared:
            return False
        ends = self._update_ends
        return self._stream.pending or (ends is not None and not self._delivered(ends))

    def _wait_for_no_more(self) -> None:
        """Another surface is shown, of which this client hears later."""
        surface, reader = self._shown, self._reader
        if surface is not None and reader in surface.pool.readers:
            surface.dismiss(reader)

    def _want_update(self, surface: Surface, reader: Reader) -> None:
        if self._update_ends is not None and self._delivered(self._update_ends):
            self._update_ends = None
            surface.delivered(reader, self._update_serial)
        if surface.pool.current is not None and reader.damage and reader.ready:
            self._to_draw.set()

    def _delivered(self, update_ends: int) -> bool:
        """Whether the client has acknowledged the last update and all bytes are on their way."""
        return self._machine.acks.delivered >= update_ends and not self._stream.pending

    async def _draw_updates(self) -> None:
        while True:
            await self._to_draw.wait()
            self._to_draw = trio.Event()
            surface, reader = self._shown, self._reader
            if surface is None or reader is None or not reader.local:
                continue
            if encoding.is_quick(reader.damage, self._image_type):
                await self._draw_update(surface, reader)
                continue
            reader.busy = True  # nobody need draw for it while it waits for its turn
            async with self._encoders.turn:
                if reader is self._reader:
                    reader.busy = False
                    await self._draw_update(surface, reader)

    async def _draw_update(self, surface: Surface, reader: Reader) -> None:
        """Encode and send what is new in the newest frame, as much as one update may have."""
        frame = surface.pool.lend(reader)
        if frame is None:
            return
        # What there was no room for comes first, else new damage would keep it waiting for ever.
        begins = not self._rest
        if begins:
            self._rest_of = frame.serial
        most = encoding.FIRST_PIXELS if frame.full else encoding.UPDATE_PIXELS
        rects, self._rest = encoding.portion(frame.rects if begins else self._rest, most)
        owed = self._rest if begins else [*region.subtract(frame.rects, rects), *self._rest]
        if owed:
            surface.pool.owe(reader, owed)
        whole = frame.full and not self._rest
        pieces: list[Piece] = []
        try:
            pieces = await self._encoded(frame, rects, whole=whole)
        finally:
            if reader is self._reader:
                reader.busy = True  # until the client has it
            self._give_back(surface, reader, frame.serial)
        if reader is not self._reader:
            return
        for piece in pieces:
            self._draw(piece)
        if not self._rest:
            self._finish_frame(reader, frame.serial, owed=bool(owed))
        self._update_ends = self._machine.acks.sent
        self._pump()

    def _finish_frame(self, reader: Reader, newest: int, *, owed: bool) -> None:
        """All of a frame was sent, in one update or several; the ``newest`` too, if nothing is
        ``owed`` of that."""
        if owed and self._rest_of != newest:
            reader.coalesced -= 1  # it was not, though newer ones came before all of it was sent
        self._update_serial = self._rest_of if owed else newest
        self._sent(self._update_serial)

    async def _encoded(self, frame: Frame, rects: list[Rect], *, whole: bool) -> list[Piece]:
        image_type = self._image_type
        work = partial(encoding.encode, frame.buffer.words, rects, image_type, whole=whole)
        if encoding.is_quick(rects, image_type):
            return work()
        return await self._encoders.run(work)

    @property
    def _image_type(self) -> types.ImageType:
        return encoding.choose(
            self._compression,
            local=self._stream.is_unix,
            knows_lz4=self._knows_lz4,
            preferred=self._preferred,
        )

    def _draw(self, piece: Piece) -> None:
        self._images[piece.name] += 1
        if piece.image_type is not None:
            self._machine.draw(piece.rect, piece.image_type, piece.data)
            return
        brush = display.Brush(display.BRUSH_SOLID, piece.colour)
        self._machine.send(
            display.DrawFill(
                0, types.Rect(*piece.rect), None, brush, display.ROP_PUT, display.NO_MASK
            )
        )

    def _sent(self, serial: int) -> None:
        self._frames += 1
        self._sent_serial = serial
        if not self._marked:
            self._marked = True
            self._machine.send(display.Mark())

    def _leave(self) -> None:
        """Everything that this client held comes back to the pools."""
        self._left = True
        for surface, reader, _ in self._lent.values():
            surface.leave(reader)
        self._lent.clear()
        if self._shown is not None and self._reader is not None:
            self._shown.leave(self._reader)
        for segment, offset in self._tokens.values():
            segment.give_token_back(offset)
        self._tokens.clear()
        self._machine.close()
