"""The client's end of the display channel: what it is offered, what it holds, what it believes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import LocalProtocolError, Refusal, RemoteProtocolError
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
from .channel import SERVER_MESSAGE_LIMIT
from .display import (
    CREATE,
    DAMAGE,
    HANDLED,
    MAX_SEGMENTS,
    OFFER,
    REPLY,
    DisplayEnd,
    OfferedSegment,
    SharedSurface,
)
from .tables import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..fds import Descriptor

_MOST_PLACES = 1024
_MOST_OFFERS = 1 << 16
"""That a server may make in all: each is remembered, for none may have the id of another."""

_BESIDE_PIXELS = 1 << 20
"""Bytes of a message beside a raw image in it: its clip, for one."""

_DRAWING = frozenset({320, 321})
"""Numbers of messages that draw and that we do not know: none comes in shared-memory mode."""


class ClientDisplay(DisplayEnd):
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
        self._surface_bytes: dict[int, int] = {}
        """Of each surface in ordinary SPICE."""
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
        elif self.state is State.ORDINARY and self._mini and not self._tracing:
            while copy := self._hot_copy(view, at):
                if self.acks.count_received():
                    self.send(Ack())
                messages.append(copy[0])
                at = copy[1]
        return at

    def _hot_copy(self, view: memoryview, at: int) -> tuple[DrawCopy, int] | None:
        """The DrawCopy at ``at`` and where it ends, if it is plain and nothing is wrong with it."""
        if len(view) - at < hot.MINI.size:
            return None
        number, size = hot.MINI.unpack_from(view, at)
        start = at + hot.MINI.size
        end = start + size
        if number != DrawCopy.number or end > len(view) or size > self._limit:
            return None
        copy = hot.read_copy(view[start:end])
        return (copy, end) if copy and copy.surface_id in self.surfaces else None

    def _parse_one(self, view: memoryview, at: int, messages: list[Message]) -> int:
        if self._awaited is None:
            return super()._parse_one(view, at, messages)
        if at == len(view):
            return at
        if view[at] != shm.DESCRIPTOR_BYTE[0]:
            raise RemoteProtocolError(OFFER, "descriptor", f"byte 0x{view[at]:02x} is not '@'")
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

    def _read(self, kind: type[Message], body: memoryview) -> Message:
        copy = hot.read_copy(body) if kind is DrawCopy else None
        return copy or super()._read(kind, body)

    @property
    def last_serial(self) -> int:
        """Of the newest frame in shared memory; -1 before the first."""
        return self._last_serial

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
                raise LocalProtocolError(HANDLED, "serial", f"{message.serial} is not held")
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
            raise LocalProtocolError(REPLY, "segment_id", "nothing to answer")
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
            if isinstance(message, SurfaceDestroy):
                self._note_size(message.surface_id, 0)
                if self.shared:
                    self.surface = None

    def _note_size(self, surface_id: int, size: int) -> None:
        """A surface in ordinary SPICE has so many bytes; 0: it is gone."""
        self._surface_bytes[surface_id] = size
        if not size:
            del self._surface_bytes[surface_id]
        largest = max(self._surface_bytes.values(), default=0)
        self._limit = max(SERVER_MESSAGE_LIMIT["display"], largest + _BESIDE_PIXELS)

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
            raise RemoteProtocolError(OFFER, "", "came without the capability")
        self._offered_later |= self.shared
        self._offered_credits = self._offered_credits or offer.credits
        if offer.segment_id in self._in_use:
            raise RemoteProtocolError(OFFER, "segment_id", f"{offer.segment_id} was used before")
        if len(self._in_use) == _MOST_OFFERS:
            raise RemoteProtocolError(OFFER, "segment_id", f"more than {_MOST_OFFERS} offers")
        self._in_use[offer.segment_id] = True
        if len(self.segments) == MAX_SEGMENTS:
            self._surplus.add(offer.segment_id)
        else:
            self.segments[offer.segment_id] = OfferedSegment(offer)

    def _check_create(self, create: SurfaceCreateShm) -> None:
        if self.state is State.OFFERED and (self._refused or self.undecided or self._surplus):
            raise RemoteProtocolError(CREATE, "", "came although not every offer was accepted")
        self._note_surface(create, RemoteProtocolError)
        if create.mode != shm.MODE_LEASED:
            raise RemoteProtocolError(CREATE, "mode", "in place was not asked for")
        if create.stride < create.width * 4 or create.stride % 4:
            raise RemoteProtocolError(
                CREATE, "stride", f"{create.stride} for {create.width} pixels"
            )
        surface = SharedSurface(0, create.width, create.height, create.format, create.stride)
        self._check_place(CREATE, create.segment_id, create.shm_offset, surface)
        self.surface = surface

    def _check_ordinary(self, create: SurfaceCreate) -> None:
        if self.state is State.SHARED_EMPTY and not self._offered_later:
            raise RemoteProtocolError(create.title, "", "came in shared memory mode")
        if self.state is State.OFFERED and (self.undecided or self._surplus):
            raise RemoteProtocolError(create.title, "", "came before every offer was answered")
        self._note_surface(create, RemoteProtocolError)
        self._note_size(create.surface_id, create.width * create.height * 4)
        # Segments count no more; offers that are still to be answered are answered all the same.
        for segment_id, segment in list(self.segments.items()):
            segment.withdrawn = True
            if segment.accepted is not None:
                del self.segments[segment_id]

    def _check_damage(self, damage: ShmDamage) -> None:
        surface = self.surface
        if surface is None or damage.surface_id != surface.surface_id:
            raise RemoteProtocolError(
                DAMAGE, "surface_id", f"there is no surface {damage.surface_id}"
            )
        if damage.serial <= self._last_serial:
            raise RemoteProtocolError(DAMAGE, "serial", f"{damage.serial} does not rise")
        if len(self.leases) >= self.credits:
            raise RemoteProtocolError(DAMAGE, "serial", f"more than {self.credits} frames at once")
        place = damage.segment_id, damage.shm_offset
        if place not in self._good_places:
            self._check_place(DAMAGE, *place, surface)
            if len(self._good_places) == _MOST_PLACES:
                self._good_places.clear()
            self._good_places.add(place)
        _, width, height, _, _ = surface
        for top, left, bottom, right in damage.rects.tolist():
            if not (0 <= top < bottom <= height and 0 <= left < right <= width):
                raise RemoteProtocolError(
                    DAMAGE, "rects", f"{(top, left, bottom, right)} is not inside {width}x{height}"
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
