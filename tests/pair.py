"""Two machines joined in memory: what one end sends is what the other one reads.

`ConnectionPair` moves bytes and real descriptors the way a Unix socket does: a read may bring any
number of bytes, ends at bytes that carry descriptors, and the descriptors of a write come with the
first of its bytes that is read. `at` brings a display channel to any state of its table.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tomllib
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from spiceshm.fds import Descriptor
from spiceshm.protocol import Channel, ClientDisplay, Outgoing, ServerDisplay, State
from spiceshm.wire import MESSAGES, Message, display, shm, types

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
TOKEN = bytes(range(32))
SIZE = 1 << 16
"""Bytes of the segment that `offer` offers; its token lies in the last 32."""

WIDTH, HEIGHT, STRIDE = 64, 48, 256


class Wire:
    """One direction: writes go in, reads come out."""

    def __init__(self) -> None:
        self._parts: deque[Outgoing] = deque()

    def __len__(self) -> int:
        return sum(len(part.data) for part in self._parts)

    def write(self, part: Outgoing) -> None:
        if part.data:
            self._parts.append(part)

    def read(self, most: int | None = None) -> tuple[bytes, list[Descriptor]]:
        """At most ``most`` bytes, and the descriptors that come with them."""
        data = b""
        while self._parts and (most is None or len(data) < most):
            first = self._parts.popleft()
            take = len(first.data) if most is None else most - len(data)
            data += first.data[:take]
            if rest := first.data[take:]:
                self._parts.appendleft(Outgoing(rest))
            if first.fds:
                return data, list(first.fds)
        return data, []

    def close(self) -> None:
        while self._parts:
            for descriptor in self._parts.popleft().fds:
                descriptor.close()


class ConnectionPair:
    """A server's and a client's machine, and the two wires between them.

    ``chunk`` is the most bytes that one read brings; None for as many as there are.
    """

    def __init__(self, server: Channel, client: Channel, *, chunk: int | None = None) -> None:
        self.server = server
        self.client = client
        self.chunk = chunk
        self.down = Wire()
        """What is under way to the client."""
        self.up = Wire()
        """What is under way to the server."""

    def flush(self) -> None:
        """Put what both machines have queued on the wires."""
        for machine, wire in ((self.server, self.down), (self.client, self.up)):
            for part in machine.data_to_send():
                wire.write(part)

    def to_client(self) -> list[Message]:
        """Deliver everything to the client; returns its messages."""
        return self._deliver(self.down, self.client)

    def to_server(self) -> list[Message]:
        """Deliver everything to the server; returns its messages."""
        return self._deliver(self.up, self.server)

    def _deliver(self, wire: Wire, machine: Channel) -> list[Message]:
        self.flush()
        messages: list[Message] = []
        while wire:
            messages += machine.receive_data(*wire.read(self.chunk))
        self.flush()
        return messages

    def server_sends(self, *messages: Message) -> list[Message]:
        """The server sends these; returns what the client makes of them."""
        for message in messages:
            self.server.send(message)
        return self.to_client()

    def client_sends(self, *messages: Message) -> list[Message]:
        """The client sends these; returns what the server makes of them."""
        for message in messages:
            self.client.send(message)
        return self.to_server()

    def settle(self) -> None:
        """Deliver both ways until both wires are empty."""
        self.flush()
        while self.down or self.up:
            self.to_client()
            self.to_server()

    def close(self) -> None:
        """Close both machines and what is under way."""
        self.server.close()
        self.client.close()
        self.down.close()
        self.up.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class DisplayPair(ConnectionPair):
    """A pair on the display channel, with the steps of the extension's conversation."""

    server: ServerDisplay
    client: ClientDisplay

    def __init__(
        self, *, shareable: bool = True, mini: bool = True, chunk: int | None = None
    ) -> None:
        super().__init__(
            ServerDisplay(mini=mini, shareable=shareable),
            ClientDisplay(mini=mini, shareable=shareable),
            chunk=chunk,
        )

    def init(self) -> None:
        self.client_sends(INIT)

    def offer(self, segment_id: int, *, credits: int = 2, token: bytes = TOKEN) -> shm.ShmOffer:
        """The server offers a segment; returns the offer as the client got it."""
        offer = offer_of(segment_id, credits=credits)
        self.server.offer(offer, token, a_descriptor())
        [received] = self.to_client()
        assert isinstance(received, shm.ShmOffer)
        return received

    def accept(self, offer: shm.ShmOffer, *, credits: int = 2, proof: bytes = TOKEN) -> None:
        """The client takes a segment: its descriptors are closed, as if it were mapped."""
        self.take(offer)
        self.client.accept(offer, proof, credits)
        self.to_server()

    def refuse(self, offer: shm.ShmOffer, reason: int = 1) -> None:
        self.take(offer)
        self.client_sends(shm.ShmReply(offer.segment_id, 0, reason, 0, 0, b""))

    def take(self, offer: shm.ShmOffer) -> int:
        """Close the descriptors of an offer; returns how many there were."""
        descriptors = self.client.take_descriptors(offer.segment_id)
        for descriptor in descriptors:
            descriptor.close()
        return len(descriptors)

    def share(self, segment_id: int = 1) -> None:
        """One segment offered and accepted, and the primary surface in it."""
        self.accept(self.offer(segment_id))
        self.server_sends(create_shm(segment_id))


INIT = display.DisplayInit(0, 0, 0, 0)


def framed(message: Message, *, mini: bool = True, serial: int = 1) -> bytes:
    """A message as it lies on the wire, made without a machine."""
    body = message.packed
    if mini:
        return struct.pack("<HI", message.number, len(body)) + body
    return struct.pack("<QHII", serial, message.number, len(body), 0) + body


def sent(machine: Channel) -> bytes:
    """All that a machine has queued."""
    return b"".join(part.data for part in machine.data_to_send())


def a_descriptor() -> Descriptor:
    """A real descriptor, of nothing in particular."""
    return Descriptor(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


def offer_of(
    segment_id: int, *, credits: int = 2, handle: int = 1, size: int = SIZE
) -> shm.ShmOffer:
    return shm.ShmOffer(
        shm.OFFER_MAGIC,
        shm.OFFER_VERSION,
        segment_id,
        handle,
        shm.FLAG_SEALED,
        credits,
        size,
        size - len(TOKEN),
        len(TOKEN),
    )


def create_shm(segment_id: int = 1, *, offset: int = 0, stride: int = STRIDE) -> Message:
    return shm.SurfaceCreateShm(
        0, WIDTH, HEIGHT, types.SurfaceFormat.XRGB, 1, segment_id, stride, offset, shm.MODE_LEASED
    )


def create(surface_id: int = 0) -> display.SurfaceCreate:
    flags = display.SURFACE_FLAG_PRIMARY if surface_id == 0 else 0
    return display.SurfaceCreate(surface_id, WIDTH, HEIGHT, types.SurfaceFormat.XRGB, flags)


def damage(
    serial: int,
    *rects: tuple[int, int, int, int],
    segment_id: int = 1,
    offset: int = 0,
    surface_id: int = 0,
    flags: int = 0,
) -> shm.ShmDamage:
    """Damage of the whole surface where no rectangle is given."""
    array = np.array(rects or ((0, 0, HEIGHT, WIDTH),), "<i4")
    return shm.ShmDamage(surface_id, segment_id, offset, serial, 0, flags, array)


def draw(surface_id: int = 0) -> display.DrawCopy:
    """One pixel."""
    box = types.Rect(0, 0, 1, 1)
    bitmap = display.Bitmap(types.BitmapFormat.XRGB, display.BITMAP_TOP_DOWN, 1, 1, 4, b"\1\2\3\0")
    image = display.Image(0, types.ImageType.BITMAP, 0, 1, 1, bitmap)
    return display.DrawCopy(surface_id, box, None, box, display.ROP_PUT, 0, display.NO_MASK, image)


def fill(surface_id: int = 0) -> display.DrawFill:
    """One pixel."""
    brush = display.Brush(display.BRUSH_SOLID, 0x123456)
    return display.DrawFill(
        surface_id, types.Rect(0, 0, 1, 1), None, brush, display.ROP_PUT, display.NO_MASK
    )


def at(
    state: State,
    *,
    shareable: bool = True,
    answered: bool = False,
    mini: bool = True,
    chunk: int | None = None,
) -> DisplayPair:
    """A display channel whose both ends are in ``state``, with as much going on as it allows.

    Segment 1 is the accepted one and 2 an offer that awaits its reply (in OFFERED there is no 2
    where ``answered``). Of two credits one is out: the lease on the frame 5. ORDINARY is reached
    from SHARED; surface 3 is off-screen.
    """
    pair = DisplayPair(shareable=shareable, mini=mini, chunk=chunk)
    if state is State.START:
        return pair
    pair.init()
    if state is State.READY:
        return pair
    pair.accept(pair.offer(1))
    if state is State.OFFERED:
        if not answered:
            pair.take(pair.offer(2))
        return pair
    pair.server_sends(create_shm(), damage(5, flags=shm.FLAG_FULL))
    pair.take(pair.offer(2))
    if state is State.SHARED:
        return pair
    pair.server_sends(display.SurfaceDestroy(0))
    if state is State.SHARED_EMPTY:
        return pair
    pair.server_sends(create(0), create(3))
    if state is State.ORDINARY_EMPTY:
        pair.server_sends(display.SurfaceDestroy(0))
    return pair


def examples() -> dict[type[Message], list[Message]]:
    """Messages of every kind, as the golden vectors have them."""
    kinds = {(kind.title, kind.sender.value): kind for kind in MESSAGES.values()}
    found: dict[type[Message], list[Message]] = {kind: [] for kind in MESSAGES.values()}
    for path in sorted((ROOT / "protocol" / "vectors").glob("*.toml")):
        for vector in tomllib.loads(path.read_text()).get("vector", []):
            kind = kinds.get((vector["message"], vector["sender"]))
            if kind is not None:
                found[kind].append(kind.parse(bytes.fromhex(vector["hex"])))
    return found


def descriptors_open() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """What is opened in the block is closed in it: for many cases in one test."""
    before = descriptors_open()
    yield
    assert descriptors_open() == before
