"""The display channel's two ends: the extension's numbers held against each other, without I/O.

`tables` says which message may come when. This module adds what depends on numbers: which segments
were offered and taken, which frames are out on lease, whether a damage message points inside a
segment. Both ends distrust the other: the server believes a proof, never a client's word; the
client checks every offset against the size that was offered (and that its memory tower has held
against the file) before anybody makes a view of it.

Neither class touches memory. The server is told the token that lies in a segment; the client is
told the bytes that were read there.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..errors import LocalProtocolError, ProtocolError, Refusal, RemoteProtocolError
from ..wire import Message, Sender, hot, shm
from ..wire.base import Ack
from ..wire.display import DrawCopy, SurfaceCreate, SurfaceDestroy
from ..wire.shm import (
    ShmDamage,
    ShmDamageHandled,
    ShmOffer,
    ShmReply,
    ShmWithdraw,
    SurfaceCreateShm,
)
from .channel import Channel, trace
from .tables import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..fds import Descriptor

MAX_SEGMENTS = 64
"""Segments that one connection may have at a time."""

_MOST_PLACES = 1024
MAX_SURFACES = 16
"""Surfaces that one connection may have at a time: one, and in ordinary SPICE off-screen ones."""

_DRAWING = frozenset({104, *range(122, 127), *range(302, 314), 316, 318, 320, 321})
"""Numbers of messages that draw, known to us or not: none of them comes in shared-memory mode."""

_DAMAGE, _OFFER, _CREATE = "display.shm_damage", "display.shm_offer", "display.surface_create_shm"
_REPLY, _HANDLED = "display.shm_reply", "display.shm_damage_handled"


@dataclass
class OfferedSegment:
    """What a connection knows of one segment. ``accepted`` is None until it was answered."""

    offer: ShmOffer
    token: bytes = b""
    accepted: bool | None = None
    withdrawn: bool = False

    def holds(self, offset: int, size: int) -> bool:
        """Whether ``size`` bytes at ``offset`` lie inside the segment and outside its token."""
        offer = self.offer
        if offset + size > offer.size:
            return False
        token_end = offer.token_offset + offer.token_size
        return offer.token_size == 0 or offset >= token_end or offset + size <= offer.token_offset


class SharedSurface(NamedTuple):
    """The primary surface in shared memory: pixels, bytes a line, `SurfaceFormat`."""

    surface_id: int
    width: int
    height: int
    format: int
    stride: int

    @property
    def size(self) -> int:
        """Bytes of one buffer of this surface."""
        return self.stride * self.height


class _Display(Channel):
    """What both ends keep: segments, leases, and which surfaces there are."""

    def __init__(self, role: Sender, *, mini: bool, shareable: bool) -> None:
        super().__init__("display", role, mini=mini)
        self.shareable = shareable
        self.segments: dict[int, OfferedSegment] = {}
        self.leases: dict[int, int] = {}
        """Frames out on lease: serial to surface_id."""
        self.surfaces: set[int] = set()
        """Surfaces that exist, the primary (0) among them."""
        self._last_serial = -1

    @property
    def shared(self) -> bool:
        return self.state in (State.SHARED, State.SHARED_EMPTY)

    @property
    def undecided(self) -> bool:
        """Some offer has not been answered yet."""
        return any(segment.accepted is None for segment in self.segments.values())

    def _settle(self, state: State) -> State:
        if state is State.ORDINARY or state is State.ORDINARY_EMPTY:
            return State.ORDINARY if 0 in self.surfaces else State.ORDINARY_EMPTY
        return state

    def _note_surface(self, message: Message, wrong: type[ProtocolError]) -> None:
        """Hold a message of the server against the surfaces that exist, and take note of it."""
        if isinstance(message, SurfaceCreate):
            if message.surface_id in self.surfaces:
                raise wrong(message.title, "surface_id", f"{message.surface_id} exists already")
            if len(self.surfaces) == MAX_SURFACES:
                raise wrong(message.title, "surface_id", f"more than {MAX_SURFACES} surfaces")
            self.surfaces.add(message.surface_id)
        elif isinstance(message, SurfaceCreateShm):
            if message.surface_id != 0:
                raise wrong(message.title, "surface_id", "the primary surface is 0")
            self.surfaces.add(0)
        elif isinstance(message, SurfaceDestroy | DrawCopy):
            if message.surface_id not in self.surfaces:
                raise wrong(message.title, "surface_id", f"there is no {message.surface_id}")
            if isinstance(message, SurfaceDestroy):
                self.surfaces.remove(message.surface_id)


class ServerDisplay(_Display):
    """The server's end. ``shareable`` is whether both ends announced the capability."""

    def __init__(self, *, mini: bool = True, shareable: bool = False) -> None:
        super().__init__(Sender.SERVER, mini=mini, shareable=shareable)
        self.credits = 0
        """How many frames the client takes at once; 0 until its first reply."""
        self.refusal: str | None = None
        """Why this client does not share memory, once it has refused any."""
        self._offered_ids = 0
        self._used_ids: set[int] = set()

    def _parse_hot(self, view: memoryview, messages: list[Message]) -> int:
        at, end = 0, len(view)
        if self.shared and self._mini and not self._tracing:
            while at < end and (found := hot.read_handled(view, at)):
                handled, at = found
                self._end_lease(handled)
                messages.append(handled)
        return at

    @property
    def ready(self) -> bool:
        """The client has sent its INIT."""
        return self.state is not State.START

    def lend(
        self,
        segment_id: int,
        offset: int,
        serial: int,
        published: int,
        flags: int,
        rects: Sequence[Sequence[int]],
    ) -> None:
        """`send` of the ShmDamage that these make for the primary surface, only quicker.

        ``rects`` are 1 to 64 tuples top, left, bottom, right inside the surface. Raises
        LocalProtocolError as `send` does.
        """
        if self.state is not State.SHARED:
            raise LocalProtocolError(_DAMAGE, "", f"not allowed in state {self.state.name}")
        self._note_lease(0, segment_id, serial)
        body = hot.damage_body(0, segment_id, offset, serial, published, flags, rects)
        if self._tracing:
            trace.debug("> %s", ShmDamage.parse(body))
        self._queue(ShmDamage.number, body)
        self.acks.sent += 1

    def may_lend(self) -> bool:
        """Whether another frame may be sent now: a credit is free and the ACK window open."""
        return len(self.leases) < self.credits and self.acks.open

    def has(self, segment_id: int) -> bool:
        """Whether the client has accepted this segment."""
        segment = self.segments.get(segment_id)
        return segment is not None and segment.accepted is True and not segment.withdrawn

    def next_segment_id(self) -> int:
        """A segment id that this connection has never used."""
        self._offered_ids += 1
        return self._offered_ids

    def offer(self, offer: ShmOffer, token: bytes, descriptor: Descriptor | None) -> None:
        """Queue an offer and, for HANDLE_DESCRIPTOR, the byte that carries the descriptor.

        The descriptor is owned by the channel from here on, also if this raises.
        """
        try:
            if (descriptor is not None) != (offer.handle == shm.HANDLE_DESCRIPTOR):
                raise LocalProtocolError(_OFFER, "handle", "does not tell whether '@' follows")
            self.send(offer)
        except BaseException:
            if descriptor is not None:
                descriptor.close()
            raise
        self.segments[offer.segment_id].token = token
        if descriptor is not None:
            self._send_descriptors(shm.DESCRIPTOR_BYTE, [descriptor])

    def _check_sent(self, message: Message) -> None:
        if isinstance(message, ShmDamage):
            self._note_lease(message.surface_id, message.segment_id, message.serial)
        elif isinstance(message, ShmOffer):
            self._offer(message)
        elif isinstance(message, ShmWithdraw):
            self._withdraw(message.segment_id)
        elif isinstance(message, SurfaceCreate | SurfaceCreateShm):
            self._create(message)
        else:
            self._note_surface(message, LocalProtocolError)

    def _offer(self, offer: ShmOffer) -> None:
        if not self.shareable:
            raise LocalProtocolError(_OFFER, "", "the client does not know the extension")
        if offer.segment_id in self._used_ids:
            raise LocalProtocolError(_OFFER, "segment_id", f"{offer.segment_id} was used before")
        if len(self.segments) == MAX_SEGMENTS:
            raise LocalProtocolError(_OFFER, "segment_id", f"more than {MAX_SEGMENTS} segments")
        self._used_ids.add(offer.segment_id)
        self.segments[offer.segment_id] = OfferedSegment(offer)

    def _create(self, create: SurfaceCreate | SurfaceCreateShm) -> None:
        if self.state is State.OFFERED and self.undecided:
            raise LocalProtocolError(create.title, "", "not every offer was answered")
        if isinstance(create, SurfaceCreateShm):
            if self.refusal:
                raise LocalProtocolError(_CREATE, "", "not every offer was accepted")
            if not self.has(create.segment_id):
                raise LocalProtocolError(_CREATE, "segment_id", "is not accepted by the client")
        self._note_surface(create, LocalProtocolError)

    def _withdraw(self, segment_id: int) -> None:
        segment = self.segments.get(segment_id)
        if segment is None or segment.withdrawn:
            raise LocalProtocolError("display.shm_withdraw", "segment_id", "is not in use")
        if segment.accepted is None:
            segment.withdrawn = True  # its reply is still to come and is no breach
        else:
            del self.segments[segment_id]

    def _note_lease(self, surface_id: int, segment_id: int, serial: int) -> None:
        if len(self.leases) >= self.credits:
            raise LocalProtocolError(_DAMAGE, "serial", "the client has no credit left")
        if not self.has(segment_id):
            raise LocalProtocolError(_DAMAGE, "segment_id", "is not accepted by the client")
        if surface_id not in self.surfaces:
            raise LocalProtocolError(_DAMAGE, "surface_id", f"there is no {surface_id}")
        if serial <= self._last_serial:
            raise LocalProtocolError(_DAMAGE, "serial", "does not rise")
        self._last_serial = serial
        self.leases[serial] = surface_id

    def _check_received(self, message: Message) -> None:
        if isinstance(message, ShmDamageHandled):
            self._end_lease(message)
        elif isinstance(message, ShmReply):
            self._check_reply(message)

    def _end_lease(self, handled: ShmDamageHandled) -> None:
        serial, surface_id = handled.serial, handled.surface_id
        if self.leases.get(serial) != surface_id:
            raise RemoteProtocolError(
                _HANDLED, "serial", f"{serial} of surface {surface_id} is not out"
            )
        del self.leases[serial]

    def _check_reply(self, reply: ShmReply) -> None:
        segment = self.segments.get(reply.segment_id)
        if segment is None or segment.accepted is not None:
            raise RemoteProtocolError(
                _REPLY, "segment_id", f"{reply.segment_id} is not offered or answered already"
            )
        offer = segment.offer
        if reply.accepted and not 1 <= reply.credits <= offer.credits:
            raise RemoteProtocolError(
                _REPLY, "credits", f"{reply.credits} is not in 1..{offer.credits}"
            )
        may_ask = reply.accepted and offer.handle != shm.HANDLE_DESCRIPTOR
        if reply.nonce and not (may_ask and len(reply.nonce) == offer.token_size):
            raise RemoteProtocolError(_REPLY, "nonce_size", f"{len(reply.nonce)} bytes")
        proven = hmac.compare_digest(reply.proof, segment.token)
        segment.accepted = bool(reply.accepted) and proven
        if segment.withdrawn:
            del self.segments[reply.segment_id]
        if segment.accepted:
            self.credits = self.credits or reply.credits
        elif self.refusal is None:
            self.refusal = "wrong proof" if reply.accepted else Refusal.explain(reply.reason)


class ClientDisplay(_Display):
    """The client's end. ``shareable`` is whether both ends announced the capability.

    `receive_data` returns an offer as a message once its descriptor byte is there too; ask
    `fault`, take its descriptors with `take_descriptors`, and answer it with `accept` or `refuse`.
    """

    def __init__(self, *, mini: bool = True, shareable: bool = False) -> None:
        super().__init__(Sender.CLIENT, mini=mini, shareable=shareable)
        self.credits = 0
        self.surface: SharedSurface | None = None
        """The primary surface while it lies in shared memory, as of the last message received:
        a frame that the same read brought before that may be of an earlier one."""
        self._good_places: set[tuple[int, int]] = set()
        """Places of frames that were found good; surfaces and segments are the same since."""
        self._refused = False
        self._offered_later = False
        self._offered_credits = 0
        self._in_use: dict[int, bool] = {}
        """Every segment_id that was ever offered; False once it was withdrawn."""
        self._surplus: set[int] = set()
        """Offers of more segments than there may be: not kept, and to be refused."""
        self._awaited: ShmOffer | None = None
        self._arrived: list[Descriptor] = []
        self._claimed: dict[int, tuple[Descriptor, ...]] = {}

    # Bytes and descriptors

    def receive_data(
        self, data: bytes | bytearray | memoryview, fds: Iterable[Descriptor] = ()
    ) -> list[Message]:
        """Take what one read brought; ``fds`` are owned by the channel from here on.

        The kernel ends a read at the byte that carries descriptors, so those of one read belong to
        the first offer that is complete in it. Descriptors that no offer can claim are closed, and
        so are all beyond the second: an offer with two is as bad as one with more.
        """
        if fds:
            self._arrived += fds
            self._drop_arrived(2)
        messages = self._parse_all(data)
        if self._arrived and not self._may_be_offer():
            self._drop_arrived()
        return messages

    def _parse_hot(self, view: memoryview, messages: list[Message]) -> int:
        at, end = 0, len(view)
        if self.state is State.SHARED and self._mini and not (self._awaited or self._tracing):
            while at < end and (found := hot.read_damage(view, at)):
                damage, at = found
                if self.acks.count_received():
                    self.send(Ack())
                self._check_damage(damage)
                messages.append(damage)
        return at

    def _parse_one(self, view: memoryview, at: int, messages: list[Message]) -> int:
        if self._awaited is None:
            return super()._parse_one(view, at, messages)
        if at == len(view):
            return at
        if view[at] != shm.DESCRIPTOR_BYTE[0]:
            raise RemoteProtocolError(_OFFER, "descriptor", f"byte 0x{view[at]:02x} is not '@'")
        offer, self._awaited = self._awaited, None
        self._claimed[offer.segment_id] = tuple(self._arrived)
        self._arrived = []
        messages.append(offer)
        return at + 1

    def _accept(self, number: int, body: memoryview) -> Message | None:
        message = super()._accept(number, body)
        if isinstance(message, ShmOffer) and message.handle == shm.HANDLE_DESCRIPTOR:
            self._awaited = message
            return None
        return message

    @property
    def awaits_descriptor(self) -> bool:
        """Whether nothing but the byte behind an offer may come next."""
        return self._awaited is not None

    def _unknown(self, number: int) -> None:
        if self.shareable and shm.FIRST_NUMBER <= number <= shm.LAST_NUMBER:
            raise RemoteProtocolError(f"display message {number}", "", "is unknown")
        if self.shared and number in _DRAWING:
            raise RemoteProtocolError(
                f"display message {number}", "", f"not allowed in state {self.state.name}"
            )

    def _may_be_offer(self) -> bool:
        """Whether what has not been parsed yet may be an offer that owns the descriptors."""
        if self._awaited is not None:
            return True
        if not self._partial:
            return False
        head = self._read_header(memoryview(self._partial), 0)
        return head is None or head[0] == ShmOffer.number

    def take_descriptors(self, segment_id: int) -> tuple[Descriptor, ...]:
        """The descriptors that came with an offer; two stand for any greater number.

        The caller owns them now.
        """
        return self._claimed.pop(segment_id, ())

    def _drop_arrived(self, keep: int = 0) -> None:
        for descriptor in self._arrived[keep:]:
            descriptor.close()
        del self._arrived[keep:]

    def close(self) -> None:
        super().close()
        self._drop_arrived()
        while self._claimed:
            for descriptor in self._claimed.popitem()[1]:
                descriptor.close()

    # Offers

    def fault(self, offer: ShmOffer) -> str | None:
        """What is wrong with an offer's values (to be refused as malformed), or None."""
        checks = (
            (offer.magic != shm.OFFER_MAGIC, "magic"),
            (offer.version != shm.OFFER_VERSION, "version"),
            (not 1 <= offer.credits <= shm.MAX_CREDITS, "credits"),
            (not 1 <= offer.size <= shm.MAX_SEGMENT_SIZE, "size"),
            (not self._token_fits(offer), "token"),
            (offer.handle == shm.HANDLE_DESCRIPTOR and bool(offer.name), "name"),
            (len(offer.name) > shm.MAX_NAME or not _is_text(offer.name), "name"),
            (self._offered_credits not in (0, offer.credits), "credits"),
            (offer.segment_id in self._surplus, "segment_id"),
        )
        return next((name for wrong, name in checks if wrong), None)

    def _token_fits(self, offer: ShmOffer) -> bool:
        if offer.token_size == 0:
            return offer.handle == shm.HANDLE_DESCRIPTOR
        fits = offer.token_offset + offer.token_size <= offer.size
        return fits and shm.MIN_TOKEN <= offer.token_size <= shm.MAX_TOKEN

    def accept(self, offer: ShmOffer, proof: bytes, credits: int) -> None:
        """Answer: we have it mapped. ``proof`` is what lies at its token_offset."""
        self.send(ShmReply(offer.segment_id, 1, Refusal.NONE, credits, 0, proof))

    def refuse(self, offer: ShmOffer, reason: Refusal) -> None:
        """Answer: no, because of ``reason``."""
        self.send(ShmReply(offer.segment_id, 0, reason, 0, 0, b""))

    def release(self, serial: int) -> None:
        """`send` a ShmDamageHandled: the lease on a frame is over. Only quicker than that.

        Raises LocalProtocolError if we do not hold it.
        """
        surface_id = self.leases.get(serial)
        if surface_id is None or self._tracing:
            self.send(ShmDamageHandled(surface_id or 0, serial))
            return
        del self.leases[serial]
        self._queue(ShmDamageHandled.number, hot.handled_body(surface_id, serial))

    # What the table cannot say

    def _check_sent(self, message: Message) -> None:
        if isinstance(message, ShmDamageHandled):
            if message.serial not in self.leases:
                raise LocalProtocolError(_HANDLED, "serial", f"{message.serial} is not held")
            del self.leases[message.serial]
        elif isinstance(message, ShmReply):
            self._reply(message)

    def _reply(self, reply: ShmReply) -> None:
        segment = self.segments.get(reply.segment_id)
        if segment is not None and segment.accepted is None:
            segment.accepted = bool(reply.accepted)
            self.credits = self.credits or reply.credits
            if segment.withdrawn:
                del self.segments[reply.segment_id]
        elif reply.segment_id in self._surplus and not reply.accepted:
            self._surplus.remove(reply.segment_id)
        else:
            raise LocalProtocolError(_REPLY, "segment_id", "nothing to answer")
        self._refused |= not reply.accepted

    def _check_received(self, message: Message) -> None:
        if isinstance(message, ShmDamage):
            self._check_damage(message)
            return
        self._good_places.clear()
        if isinstance(message, ShmOffer):
            self._check_offer(message)
        elif isinstance(message, SurfaceCreateShm):
            self._check_create(message)
        elif isinstance(message, SurfaceCreate):
            self._check_ordinary(message)
        elif isinstance(message, ShmWithdraw):
            self._check_withdraw(message)
        else:
            self._note_surface(message, RemoteProtocolError)
            if isinstance(message, SurfaceDestroy) and self.shared:
                self.surface = None

    def _check_withdraw(self, withdraw: ShmWithdraw) -> None:
        """An offer that is still to be answered is remembered for that: its reply is awaited."""
        if not self._in_use.get(withdraw.segment_id):
            raise RemoteProtocolError(withdraw.title, "segment_id", "is not in use")
        self._in_use[withdraw.segment_id] = False
        segment = self.segments.get(withdraw.segment_id)
        if segment is not None and segment.accepted is None:
            segment.withdrawn = True
        elif segment is not None:
            del self.segments[withdraw.segment_id]

    def _check_offer(self, offer: ShmOffer) -> None:
        if not self.shareable:
            raise RemoteProtocolError(_OFFER, "", "came without the capability")
        self._offered_later |= self.shared
        self._offered_credits = self._offered_credits or offer.credits
        if offer.segment_id in self._in_use:
            raise RemoteProtocolError(_OFFER, "segment_id", f"{offer.segment_id} was used before")
        self._in_use[offer.segment_id] = True
        if len(self.segments) == MAX_SEGMENTS:
            self._surplus.add(offer.segment_id)
        else:
            self.segments[offer.segment_id] = OfferedSegment(offer)

    def _check_create(self, create: SurfaceCreateShm) -> None:
        if self.state is State.OFFERED and (self._refused or self.undecided or self._surplus):
            raise RemoteProtocolError(_CREATE, "", "came although not every offer was accepted")
        self._note_surface(create, RemoteProtocolError)
        if create.mode != shm.MODE_LEASED:
            raise RemoteProtocolError(_CREATE, "mode", "in place was not asked for")
        if create.stride < create.width * 4 or create.stride % 4:
            raise RemoteProtocolError(
                _CREATE, "stride", f"{create.stride} for {create.width} pixels"
            )
        surface = SharedSurface(0, create.width, create.height, create.format, create.stride)
        self._check_place(_CREATE, create.segment_id, create.shm_offset, surface)
        self.surface = surface

    def _check_ordinary(self, create: SurfaceCreate) -> None:
        if self.state is State.SHARED_EMPTY and not self._offered_later:
            raise RemoteProtocolError(create.title, "", "came in shared memory mode")
        if self.state is State.OFFERED and (self.undecided or self._surplus):
            raise RemoteProtocolError(create.title, "", "came before every offer was answered")
        self._note_surface(create, RemoteProtocolError)
        # Segments count no more; offers that are still to be answered are answered all the same.
        for segment_id, segment in list(self.segments.items()):
            segment.withdrawn = True
            if segment.accepted is not None:
                del self.segments[segment_id]

    def _check_damage(self, damage: ShmDamage) -> None:
        surface = self.surface
        if surface is None or damage.surface_id != surface.surface_id:
            raise RemoteProtocolError(
                _DAMAGE, "surface_id", f"there is no surface {damage.surface_id}"
            )
        if damage.serial <= self._last_serial:
            raise RemoteProtocolError(_DAMAGE, "serial", f"{damage.serial} does not rise")
        if len(self.leases) >= self.credits:
            raise RemoteProtocolError(_DAMAGE, "serial", f"more than {self.credits} frames at once")
        place = damage.segment_id, damage.shm_offset
        if place not in self._good_places:
            self._check_place(_DAMAGE, *place, surface)
            if len(self._good_places) == _MOST_PLACES:
                self._good_places.clear()
            self._good_places.add(place)
        _, width, height, _, _ = surface
        for top, left, bottom, right in damage.rects.tolist():
            if not (0 <= top < bottom <= height and 0 <= left < right <= width):
                raise RemoteProtocolError(
                    _DAMAGE, "rects", f"{(top, left, bottom, right)} is not inside {width}x{height}"
                )
        self._last_serial = damage.serial
        self.leases[damage.serial] = damage.surface_id

    def _check_place(self, name: str, segment_id: int, offset: int, surface: SharedSurface) -> None:
        segment = self.segments.get(segment_id)
        if segment is None or not segment.accepted or segment.withdrawn:
            raise RemoteProtocolError(name, "segment_id", f"{segment_id} is not accepted")
        if offset % 4 or not segment.holds(offset, surface.size):
            raise RemoteProtocolError(
                name, "shm_offset", f"{offset} is misaligned, past the segment or on its token"
            )


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
