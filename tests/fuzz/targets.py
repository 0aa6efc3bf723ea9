"""What is fuzzed and what must hold of it, for tests/test_fuzz.py and tools/fuzz.

    Any bytes give messages or RemoteProtocolError (LinkRefused in the client's link phase), within
    a second and 64 MiB, and leave no descriptor open.

A target is a function of an `Input`. It brings a machine to where the input says, feeds it, and
does with what comes out what a server or a client would: map what is offered, look at the pixels,
answer, draw.
"""

from __future__ import annotations

import copy
import dataclasses
import fcntl
import os
import struct
import tomllib
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from spiceshm import region
from spiceshm.client import images
from spiceshm.client.canvas import Canvas
from spiceshm.codecs import glz
from spiceshm.errors import (
    LinkRefused,
    LocalProtocolError,
    MemoryRefused,
    Refusal,
    RemoteProtocolError,
)
from spiceshm.fds import Descriptor
from spiceshm.memory import MappedSegment
from spiceshm.protocol import (
    TABLES,
    Channel,
    ClientDisplay,
    ClientInputs,
    ClientLink,
    Password,
    ServerAgent,
    ServerDisplay,
    ServerInputs,
    ServerLink,
    SharedSurface,
    State,
    generate_key,
)
from spiceshm.protocol.agent import FromClient
from spiceshm.wire import MESSAGES, Message, Sender, agent, display, main, shm
from spiceshm.wire.link import LinkMess
from spiceshm.wire.types import LinkError
from tests import pair
from tests.fuzz import streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

HERE = Path(__file__).resolve().parent
SEEDS, FINDS = HERE / "seeds", HERE / "finds"
VECTORS = HERE.parent.parent / "protocol" / "vectors"

_MOST_PIXELS = 1 << 20


class Input(NamedTuple):
    """One run: the machine's situation, how the bytes come, and the bytes."""

    situation: int
    """Chooses among what a target has."""
    step: int
    """Most bytes that a read brings; 0 for all."""
    gifts: int
    """Which reads bring descriptors, how many, and of what: see `descriptors`. 0 for none."""
    data: bytes

    @classmethod
    def decode(cls, raw: bytes) -> Input:
        situation, step, gifts = raw[:3].ljust(3, b"\0")
        return cls(situation, step, gifts, raw[3:])

    def encode(self) -> bytes:
        return bytes([self.situation, self.step, self.gifts]) + self.data

    def reads(self) -> Iterator[tuple[bytes, list[Descriptor]]]:
        """What the machine's end of the socket gives, read by read."""
        step = self.step or max(len(self.data), 1)
        for number, at in enumerate(range(0, len(self.data), step)):
            yield self.data[at : at + step], self.descriptors(number)

    def descriptors(self, read: int) -> list[Descriptor]:
        """Two bits say of what, two how many less one, the others with which reads."""
        every = self.gifts >> 4
        if not self.gifts or read % (every + 1):
            return []
        return [_open(self.gifts & 3) for _ in range(1 + (self.gifts >> 2 & 3))]


def _open(what: int) -> Descriptor:
    """A sealed segment as `pair.offer_of` offers it, one without seals, a pipe, a device."""
    if what < 2:
        return _memory(sealed=what == 0)
    if what == 2:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.close(writer)
        return Descriptor(reader)
    return pair.a_descriptor()


def _memory(*, sealed: bool = True) -> Descriptor:
    fd = os.memfd_create("spiceshm-fuzz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, pair.SIZE)
    os.pwrite(fd, pair.TOKEN, pair.SIZE - len(pair.TOKEN))
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return Descriptor(fd)


def _map(descriptors: Iterable[Descriptor], offer: shm.ShmOffer) -> MappedSegment:
    return MappedSegment(list(descriptors), offer.size, offer.token_offset, offer.token_size)


# The display channel

_STATES = list(TABLES["display"])


def _ends(given: Input) -> pair.DisplayPair:
    """Both ends in one of the states, with mini or full headers, shareable or not."""
    state = _STATES[given.situation % len(_STATES)]
    answered, full, alone = (given.situation // len(_STATES) >> bit & 1 for bit in range(3))
    return _prepared(state, bool(answered), not full, not (alone and state is State.READY))


@cache
def _prepared(state: State, answered: bool, mini: bool, shareable: bool) -> pair.DisplayPair:
    return pair.at(state, answered=answered, mini=mini, shareable=shareable)


class Viewer:
    """What a client does with a display channel."""

    def __init__(self, machine: ClientDisplay) -> None:
        self.machine = machine
        self.mapped: dict[int, MappedSegment] = {}
        self.canvas = Canvas()
        # Its own, for the machine may be further on: one read can bring a frame and its end.
        self.surface = machine.surface
        for number, segment in machine.segments.items():
            if segment.accepted:
                self.mapped[number] = _map([_memory()], segment.offer)

    def hear(self, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, shm.ShmOffer):
                self.answer(message)
            elif isinstance(message, shm.ShmDamage):
                self.look(message)
            elif isinstance(message, shm.SurfaceCreateShm):
                _, width, height, format_, _, _, stride, *_ = dataclasses.astuple(message)
                self.surface = SharedSurface(0, width, height, format_, stride)
            elif isinstance(message, shm.ShmWithdraw):
                self.mapped.pop(message.segment_id, None)
            elif isinstance(message, display.SurfaceCreate):
                if message.width * message.height <= _MOST_PIXELS:
                    self.canvas.receive(message)
            elif getattr(message, "surface_id", 0) in self.canvas.surfaces:
                self.canvas.receive(message)
            str(message)

    def answer(self, offer: shm.ShmOffer) -> None:
        descriptors = self.machine.take_descriptors(offer.segment_id)
        try:
            if self.machine.fault(offer):
                raise MemoryRefused("malformed", Refusal.MALFORMED)
            if offer.handle != shm.HANDLE_DESCRIPTOR:
                raise MemoryRefused("unknown", Refusal.HANDLE)
            segment = _map(descriptors, offer)
        except MemoryRefused as error:
            self.machine.refuse(offer, error.reason)
            return
        finally:
            for descriptor in descriptors:
                descriptor.close()
        self.mapped[offer.segment_id] = segment
        self.machine.accept(offer, segment.token, min(2, offer.credits))

    def look(self, damage: shm.ShmDamage) -> None:
        """Read the corners of the picture and of every rectangle; give every other frame back."""
        surface = self.surface
        assert surface is not None
        segment = self.mapped[damage.segment_id]
        pixels = segment.pixels(damage.shm_offset, surface.width, surface.height, surface.stride)
        assert pixels[0, 0, 0] + pixels[-1, -1, 3] >= 0
        for top, left, bottom, right in damage.rects.tolist():
            assert pixels[top, left, 0] + pixels[bottom - 1, right - 1, 3] >= 0
        if damage.serial % 2:
            self.machine.release(damage.serial)


def display_client(given: Input) -> None:
    """The client's display machine in every state."""
    client = copy.deepcopy(_ends(given).client)
    try:
        viewer = Viewer(client)
        for data, descriptors in given.reads():
            viewer.hear(client.receive_data(data, descriptors))
            _count(client)
    finally:
        client.close()


class Painter:
    """Ordinary SPICE at a client: what a server says, drawn message by message.

    A server may cause pictures, regions that are stale, and errors. What it is asked to have kept
    is of a size that a client asks for.
    """

    def __init__(self, situation: int = 0) -> None:
        cached, repeated, full = (situation >> bit & 1 for bit in range(3))
        self.machine = ClientDisplay(mini=not full)
        pixels = 1 << 20
        earlier = glz.Dictionary(pixels * (1 - repeated))
        self.canvas = Canvas(
            cache_pixels=pixels * (1 - cached), decode=partial(images.decode, earlier=earlier)
        )
        self.machine.send(pair.INIT)

    def hear(self, data: bytes) -> None:
        for message in self.machine.receive_data(data):
            str(message)
            drawn = self.canvas.receive(message)
            surface = self.canvas.surfaces.get(drawn.surface_id)
            for top, left, bottom, right in drawn.rects + drawn.stale:
                assert surface is not None
                assert 0 <= top < bottom <= surface.height
                assert 0 <= left < right <= surface.width
            assert bool(drawn.why) == bool(drawn.stale)
            assert "\n" not in drawn.why + drawn.detail
            assert len(drawn.rects) <= region.MOST_RECTS
        self.machine.data_to_send()

    @property
    def allowed(self) -> int:
        """Bytes of memory beside the surfaces: 64 MiB, or for each pixel of the largest one 16."""
        sizes = [surface.width * surface.height for surface in self.canvas.surfaces.values()]
        return max([64 << 20, *(16 * size for size in sizes)])


def drawing(given: Input) -> None:
    """Whatever a server sends to be drawn ends in an error, or in pictures and stale regions."""
    painter = Painter(given.situation)
    for data, descriptors in given.reads():
        for descriptor in descriptors:
            descriptor.close()
        painter.hear(data)


def display_server(given: Input) -> None:
    """The server's display machine, which goes on with the conversation wherever it may."""
    server = copy.deepcopy(_ends(given).server)
    try:
        for data, descriptors in given.reads():
            for message in server.receive_data(data, descriptors):
                str(message)
            _go_on(server)
            _count(server)
    finally:
        server.close()


def _go_on(server: ServerDisplay) -> None:
    """What a server sends as soon as it may."""
    if server.state is State.READY and server.shareable:
        server.offer(pair.offer_of(server.next_segment_id()), pair.TOKEN, pair.a_descriptor())
    elif server.state in (State.OFFERED, State.SHARED_EMPTY) and not server.undecided:
        usable = [number for number in server.segments if server.has(number)]
        shared = usable and server.refusal is None
        server.send(pair.create_shm(usable[0]) if shared else pair.create())
    elif server.state is State.SHARED and server.refusal:
        server.send(display.SurfaceDestroy(0))
    elif server.state is State.SHARED and server.may_lend() and server.has(1):
        server.send(pair.damage(max([5, *server.leases]) + 100 + server.acks.sent))
    elif server.state is State.ORDINARY:
        server.send(pair.draw())


def _count(machine: Channel) -> None:
    """Nobody leases more than there are credits, and what is queued goes nowhere."""
    assert isinstance(machine, ClientDisplay | ServerDisplay)
    assert len(machine.leases) <= max(machine.credits, 0)
    for part in machine.data_to_send():
        for descriptor in part.fds:
            descriptor.close()


# Other channels

_CHANNELS = [
    (channel, role, state)
    for channel in ("main", "inputs", "cursor")
    for role in Sender
    for state in TABLES[channel]
]


_END: dict[tuple[str, Sender], Callable[..., Channel]] = {
    ("inputs", Sender.SERVER): ServerInputs,
    ("inputs", Sender.CLIENT): ClientInputs,
}


def channels(given: Input) -> None:
    """Main, inputs and cursor, both roles, before and after INIT, mini and full headers."""
    channel, role, state = _CHANNELS[given.situation % len(_CHANNELS)]
    mini = given.situation // len(_CHANNELS) % 4 != 3
    machine = _END.get((channel, role), partial(Channel, channel, role))(mini=mini)
    machine.state = state
    try:
        for data, descriptors in given.reads():
            for message in machine.receive_data(data, descriptors):
                str(message)
                if isinstance(machine, ServerInputs):
                    machine.events(message)
            if isinstance(machine, ServerInputs) and state is State.OPEN:
                machine.acknowledge(0)
            machine.data_to_send()
    finally:
        machine.close()


# The agent inside main

_AGENT_STARTS: list[list[main.AgentStart | main.ClientAgentData]] = [
    [],
    [main.AgentStart(3)],
    [main.AgentStart(0), main.ClientAgentData(agent.AgentHeader(2, 28).packed + b"1")],
    [main.AgentStart(0xFFFFFFFF), main.ClientAgentData(agent.AgentHeader(4, 9999).packed)],
]
"""What the client has said: nothing, that it begins, and a part of a message of either sort."""

_AGENT_KEEPS = 1 << 11


def guest_agent(given: Input) -> None:
    """Whatever a client says on main, the agent keeps less than 2 KiB of it, and says no more than
    there are tokens for."""
    start = _AGENT_STARTS[given.situation % len(_AGENT_STARTS)]
    channel, played = Channel("main", Sender.SERVER), ServerAgent()
    tokens = 0
    for message in start:
        played.receive(message)
        tokens = message.num_tokens if isinstance(message, main.AgentStart) else tokens
    for data, descriptors in given.reads():
        for message in channel.receive_data(data, descriptors):
            if isinstance(message, FromClient):
                wish = played.receive(message)
                assert wish is None or min(wish) > 0
            if isinstance(message, main.AgentStart):
                tokens = message.num_tokens
            elif isinstance(message, main.ClientAgentToken):
                tokens += message.num_tokens
            assert len(played._messages._body) < _AGENT_KEEPS
            played.reply(ok=True)
        tokens -= sum(type(sent) is main.AgentData for sent in played.messages_to_send())
        assert tokens >= 0


# The link phase


@cache
def _key() -> RSAPrivateKey:
    return generate_key()


def link_server(given: Input) -> None:
    """The server's link phase, from the first byte or from the ticket on."""
    link = ServerLink(_key())
    if given.situation & 1:
        hello = struct.pack("<4s3I", b"REDQ", 2, 2, 22) + struct.pack(
            "<IBBIIII", 0, 1, 0, 1, 0, 18, 9 if given.situation & 2 else 8
        )
        assert isinstance(link.receive_data(hello), LinkMess)
        link.accept(frozenset({0, 83}))
    for data, descriptors in given.reads():
        for descriptor in descriptors:
            descriptor.close()
        event = link.receive_data(data)
        while event is not None:
            if isinstance(event, Password):
                link.finish(LinkError.OK if given.situation & 4 else LinkError.PERMISSION_DENIED)
            elif given.situation & 8:
                link.refuse(LinkError.CHANNEL_NOT_AVAILABLE)
            else:
                link.accept(frozenset({0, 83}))
            event = link.receive_data(b"")
    assert link.done or link.bytes_wanted
    assert len(link.data_to_send()) <= 4096


def link_client(given: Input) -> None:
    """The client's link phase, from the first byte or from the result on."""
    link = ClientLink(
        connection_id=1,
        channel_type=2,
        channel_id=0,
        channel_caps=frozenset({83}),
        password=b"secret",
    )
    if given.situation & 1:
        link.receive_data(_good_reply())
    for data, descriptors in given.reads():
        for descriptor in descriptors:
            descriptor.close()
        link.receive_data(data)
    assert link.done or link.bytes_wanted
    assert len(link.data_to_send()) <= 4096


@cache
def _good_reply() -> bytes:
    link = ServerLink(_key())
    hello = struct.pack("<4s3I", b"REDQ", 2, 2, 18) + struct.pack("<IBBIII", 0, 1, 0, 0, 0, 18)
    link.receive_data(hello)
    link.accept(frozenset())
    return link.data_to_send()


# Bodies

KINDS = sorted(MESSAGES.values(), key=lambda kind: (kind.channel, kind.sender.value, kind.number))


def bodies(given: Input) -> None:
    """Every message's own parser; what it made can be printed, and written if it can be read."""
    kind = KINDS[given.situation % len(KINDS)]
    message = kind.parse(given.data)
    str(message)
    try:
        packed = message.packed
    except LocalProtocolError:
        return
    assert kind.parse(packed) == message


TARGETS: dict[str, Callable[[Input], None]] = {
    "display-client": display_client,
    "drawing": drawing,
    "display-server": display_server,
    "channels": channels,
    "agent": guest_agent,
    "link-server": link_server,
    "link-client": link_client,
    "bodies": bodies,
}


def run(target: str, raw: bytes) -> str:
    """Run one input and hold it against the invariant; returns how it ended, for statistics."""
    given = Input.decode(raw)
    before = _lowest_free()
    try:
        TARGETS[target](given)
        outcome = "messages"
    except RemoteProtocolError:
        outcome = "breach"
    except LinkRefused:
        assert target == "link-client"
        outcome = "refused"
    assert _lowest_free() == before, "a descriptor stays open"
    return outcome


def _lowest_free() -> int:
    """The number that the next descriptor would get: it rises if one is left open."""
    number = os.dup(0)
    os.close(number)
    return number


# Where to begin


def seeds(target: str) -> Iterator[bytes]:
    """Inputs worth starting from: the vectors, a whole conversation, and the files in seeds."""
    yield from sorted(set(_from_vectors(target)))
    for path in files(SEEDS / target) + files(FINDS / target):
        yield path.read_bytes()


def files(folder: Path) -> list[Path]:
    """What lies in a folder, if it is there."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _from_vectors(target: str) -> Iterator[bytes]:
    for path in sorted(VECTORS.glob("*.toml")):
        document = tomllib.loads(path.read_text())
        for vector in document.get("vector", []) + document.get("malformed", []):
            body = bytes.fromhex(vector["hex"]) + b"a" * vector.get("fill", 0)
            yield from _as_inputs(target, vector, body)
    if target == "display-client":
        for situation in range(len(_STATES)):
            yield Input(situation, 47, 0xF0, conversation()).encode()
    if target == "drawing":
        for data in streams.seeds():
            yield Input(0, 0, 0, data).encode()


def _as_inputs(target: str, vector: dict[str, object], body: bytes) -> Iterator[bytes]:
    channel, _, _ = str(vector["message"]).partition(".")
    sender = Sender(vector["sender"])
    number = vector["number"]
    assert isinstance(number, int)
    framed = struct.pack("<HI", number, len(body)) + body
    if target == "bodies":
        for at, kind in enumerate(KINDS):
            if (kind.sender, kind.number) == (sender, number):
                yield Input(at, 0, 0, body).encode()
    elif channel == "link" and target == f"link-{sender.other.value}":
        yield Input(0, 0, 0, body).encode()
        yield Input(1, 0, 0, body).encode()
    elif channel in ("main", "agent", "base") and sender is Sender.CLIENT and target == "agent":
        if channel == "agent":
            body = agent.AgentHeader(number, len(body)).packed + body
            framed = struct.pack("<HI", main.ClientAgentData.number, len(body)) + body
        for situation in range(len(_AGENT_STARTS)):
            yield Input(situation, 0, 0, framed).encode()
    elif channel in ("display", "base") and target == f"display-{sender.other.value}":
        tail = b"@" if vector.get("fds") else b""
        for situation, state in enumerate(_STATES):
            if state is not State.START:
                yield Input(situation, 0, 0, framed + tail).encode()
        yield Input(1, 0, 0xF0, framed + tail).encode()
    elif channel == "display" and target == "drawing" and sender is Sender.SERVER:
        yield Input(0, 0, 0, pair.framed(pair.create()) + framed).encode()
    elif target == "channels":
        for at, (of, role, _) in enumerate(_CHANNELS):
            if channel in ("base", of) and role is sender.other:
                yield Input(at, 0, 0, framed).encode()


def conversation() -> bytes:
    """All that a server says from the first offer to the turn to ordinary SPICE."""
    sealed = pair.framed(pair.offer_of(21)) + b"@"
    shared = [pair.create_shm(21), pair.damage(7, segment_id=21), display.Mark()]
    later = [pair.offer_of(22, handle=shm.HANDLE_FILE), shm.ShmWithdraw(21)]
    ordinary = [display.SurfaceDestroy(0), pair.create(), pair.draw(), display.Mark()]
    return sealed + b"".join(map(pair.framed, [*shared, *later, *ordinary]))
