"""The display channel's two ends: the extension's numbers held against each other, without I/O.

`tables` says which message may come when. What depends on numbers is added here and, for one end
each, in `display_server` and `display_client`: which segments were offered and taken, which frames
are out on lease, whether a damage message points inside a segment. Both ends distrust the other:
the server believes a proof, never a client's word; the client checks every offset against the size
that was offered (and that its memory tower has held against the file) before anybody makes a view
of it.

No end touches memory. The server is told the token that lies in a segment; the client is told the
bytes that were read there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..wire.display import DrawCopy, Drawing, StreamCreate, SurfaceCreate, SurfaceDestroy
from ..wire.shm import SurfaceCreateShm
from .channel import Channel
from .tables import State

if TYPE_CHECKING:
    from ..errors import ProtocolError
    from ..wire import Message, Sender
    from ..wire.shm import ShmOffer

MAX_SEGMENTS = 64
"""Segments that one connection may have at a time."""

MAX_SURFACES = 1024
"""Surfaces that one connection may have at a time: as many as stock servers let a guest have."""

DAMAGE, OFFER, CREATE = "display.shm_damage", "display.shm_offer", "display.surface_create_shm"
REPLY, HANDLED = "display.shm_reply", "display.shm_damage_handled"
COPY = DrawCopy.title
"""What errors call the messages."""


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


class DisplayEnd(Channel):
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
        elif isinstance(message, SurfaceDestroy | StreamCreate | Drawing):
            if message.surface_id not in self.surfaces:
                raise wrong(message.title, "surface_id", f"there is no {message.surface_id}")
            if isinstance(message, SurfaceDestroy):
                self.surfaces.remove(message.surface_id)
