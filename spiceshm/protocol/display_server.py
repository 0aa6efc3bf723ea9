"""The server's end of the display channel: what it offers and lends."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from ..errors import LocalProtocolError, Refusal, RemoteProtocolError
from ..wire import Message, Sender, hot, shm
from ..wire.display import DrawCopy, SurfaceCreate
from ..wire.shm import (
    ShmDamage,
    ShmDamageHandled,
    ShmOffer,
    ShmReply,
    ShmWithdraw,
    SurfaceCreateShm,
)
from .channel import trace
from .display import (
    COPY,
    CREATE,
    DAMAGE,
    HANDLED,
    MAX_SEGMENTS,
    OFFER,
    REPLY,
    DisplayEnd,
    OfferedSegment,
)
from .tables import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..fds import Descriptor


class ServerDisplay(DisplayEnd):
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
            raise LocalProtocolError(DAMAGE, "", f"not allowed in state {self.state.name}")
        self._note_lease(0, segment_id, serial)
        body = hot.damage_body(0, segment_id, offset, serial, published, flags, rects)
        if self._tracing:
            trace.debug("> %s", ShmDamage.parse(body))
        self._queue(ShmDamage.number, body)
        self.acks.sent += 1

    def draw(
        self, rect: tuple[int, int, int, int], image_type: int, data: bytes | memoryview
    ) -> None:
        """`send` of a DrawCopy onto the primary surface, only quicker.

        ``rect`` is top, left, bottom, right inside the surface. ``data`` is a raw bitmap of its
        size, 32 bits a pixel and the top line first, or what the type's `ImageData` holds. It is
        not copied, and must not change until it was sent. Raises LocalProtocolError as `send` does.
        """
        if self.state is not State.ORDINARY:
            raise LocalProtocolError(COPY, "", f"not allowed in state {self.state.name}")
        head = hot.copy_head(0, rect, image_type, len(data))
        if self._tracing:
            trace.debug("> %s", DrawCopy.parse(head + data))
        self._queue(DrawCopy.number, head, data)
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
                raise LocalProtocolError(OFFER, "handle", "does not tell whether '@' follows")
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
            raise LocalProtocolError(OFFER, "", "the client does not know the extension")
        if offer.segment_id in self._used_ids:
            raise LocalProtocolError(OFFER, "segment_id", f"{offer.segment_id} was used before")
        if len(self.segments) == MAX_SEGMENTS:
            raise LocalProtocolError(OFFER, "segment_id", f"more than {MAX_SEGMENTS} segments")
        self._used_ids.add(offer.segment_id)
        self.segments[offer.segment_id] = OfferedSegment(offer)

    def _create(self, create: SurfaceCreate | SurfaceCreateShm) -> None:
        if self.state is State.OFFERED and self.undecided:
            raise LocalProtocolError(create.title, "", "not every offer was answered")
        if isinstance(create, SurfaceCreateShm):
            if self.refusal:
                raise LocalProtocolError(CREATE, "", "not every offer was accepted")
            if not self.has(create.segment_id):
                raise LocalProtocolError(CREATE, "segment_id", "is not accepted by the client")
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
            raise LocalProtocolError(DAMAGE, "serial", "the client has no credit left")
        if not self.has(segment_id):
            raise LocalProtocolError(DAMAGE, "segment_id", "is not accepted by the client")
        if surface_id not in self.surfaces:
            raise LocalProtocolError(DAMAGE, "surface_id", f"there is no {surface_id}")
        if serial <= self._last_serial:
            raise LocalProtocolError(DAMAGE, "serial", "does not rise")
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
                HANDLED, "serial", f"{serial} of surface {surface_id} is not out"
            )
        del self.leases[serial]

    def _check_reply(self, reply: ShmReply) -> None:
        segment = self.segments.get(reply.segment_id)
        if segment is None or segment.accepted is not None:
            raise RemoteProtocolError(
                REPLY, "segment_id", f"{reply.segment_id} is not offered or answered already"
            )
        offer = segment.offer
        if reply.accepted and not 1 <= reply.credits <= offer.credits:
            raise RemoteProtocolError(
                REPLY, "credits", f"{reply.credits} is not in 1..{offer.credits}"
            )
        may_ask = reply.accepted and offer.handle != shm.HANDLE_DESCRIPTOR
        if reply.nonce and not (may_ask and len(reply.nonce) == offer.token_size):
            raise RemoteProtocolError(REPLY, "nonce_size", f"{len(reply.nonce)} bytes")
        proven = hmac.compare_digest(reply.proof, segment.token)
        segment.accepted = bool(reply.accepted) and proven
        if segment.withdrawn:
            del self.segments[reply.segment_id]
        if segment.accepted:
            self.credits = self.credits or reply.credits
        elif self.refusal is None:
            self.refusal = "wrong proof" if reply.accepted else Refusal.explain(reply.reason)
