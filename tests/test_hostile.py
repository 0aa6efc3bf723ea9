"""Peers that mean harm, against both of our ends, over real sockets.

The hostile side is written by hand: plain sockets, bytes built with `struct` where a message must
be wrong. All the while a well-behaved client watches a well-behaved server in the same process:
after every attack it must see every further frame, and nothing may be left of the attacker. What
memory allows and what it does not is asked of real processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import itertools
import json
import logging
import os
import re
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

import spiceshm
from spiceshm.wire import Message, Sender, display, lookup, main, shm, types
from spiceshm.wire.base import Ack, AckSync, Ping, Pong, SetAck
from spiceshm.wire.link import LinkHeader, LinkMess, LinkReply
from tests.programs import (
    Server,
    command,
    environment,
    limited,
    look,
    mapped,
    script,
    serving,
    short_directory,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

WIDTH, HEIGHT = 64, 48
SOON = 10.0
"""Seconds within which everything happens that is not meant to be timed out."""

HANDSHAKE = 10.0
"""Seconds that the protocol gives a peer."""

MAIN, DISPLAY = 1, 2
CAPS = (1 << 1, 0, 1 << 19)
"""Display capabilities as words: MONITORS_CONFIG, SHARED_MEMORY."""

OFFER, DAMAGE, CREATE_SHM, WITHDRAW, REPLY, HANDLED = 460, 461, 462, 463, 460, 461


@pytest.fixture(autouse=True)
def nothing_stays_mapped() -> Iterator[None]:
    """No test may leave shared memory mapped."""
    before = len(mapped(os.getpid()))
    yield
    if len(mapped(os.getpid())) > before:
        gc.collect()
    assert len(mapped(os.getpid())) <= before


@pytest.fixture
def jumping() -> trio.testing.MockClock:
    """Time that jumps to the next deadline when nothing has happened for a tenth of a second."""
    return trio.testing.MockClock(autojump_threshold=0.1)


# One connection, spoken by hand


class Cut(Exception):
    """The connection ends here, as was planned."""


class Wire:
    """One end of one connection. ``budget`` is how many bytes may still be sent before it is cut.

    ``hang``: instead of being closed it falls silent.
    """

    def __init__(
        self,
        sock: trio.socket.SocketType,
        sender: Sender,
        *,
        budget: list[float] | None = None,
        hang: bool = False,
    ) -> None:
        self.sock = sock
        self.sender = sender
        self.channel = "main"
        self.sent = 0
        self._budget = budget or [float("inf")]
        self._hang = hang

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def write(self, data: bytes, fds: Sequence[int] = ()) -> None:
        left = self._budget[0]
        self._budget[0] -= len(data)
        cut = left < len(data)
        data = data[: int(left)] if cut else data
        if fds and data:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
            data = data[await self.sock.sendmsg([data], rights) :]
            self.sent += 1
        while data:
            count = await self.sock.send(data)
            self.sent += count
            data = data[count:]
        if cut:
            if self._hang:
                await trio.sleep_forever()
            self.close()
            raise Cut

    async def put(self, *messages: Message | bytes) -> None:
        """Send messages in one go; bytes are messages that `raw` made, or anything else."""
        await self.write(b"".join(as_bytes(message) for message in messages))

    async def read(self, size: int) -> bytes:
        """Exactly so many bytes. Raises EOFError where they end."""
        data = b""
        while len(data) < size:
            try:
                some = await self.sock.recv(size - len(data))
            except ConnectionResetError:
                some = b""
            if not some:
                raise EOFError(f"{len(data)} of {size} bytes")
            data += some
        return data

    async def next(self) -> Message:
        """The next message; an offer without its descriptor byte."""
        number, size = struct.unpack("<HI", await self.read(6))
        kind = lookup(self.channel, self.sender.other, number)
        assert kind is not None, f"{self.channel} message {number}"
        return kind.parse(await self.read(size))

    async def take(self, kind: type[Message]) -> Any:
        """The next message, which must be of this kind."""
        message = await self.next()
        assert type(message) is kind, message
        return message

    async def find(self, kind: type[Message]) -> Any:
        """The next message of this kind; those before it are dropped."""
        while type(message := await self.next()) is not kind:
            pass
        return message

    async def descriptor(self) -> int:
        """The byte behind an offer, and the descriptor with it."""
        data, ancillary, _, _ = await self.sock.recvmsg(1, socket.CMSG_SPACE(4))
        assert data == b"@"
        [(_, _, number)] = ancillary
        return int.from_bytes(number, "little")

    async def ended(self) -> bytes:
        """Wait until the other end closes; returns what it had to say before that."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while some := await self.sock.recv(1 << 16):
                data += some
        return data


def raw(number: int, body: bytes, size: int | None = None) -> bytes:
    """A message with any body, and any size in its header."""
    return struct.pack("<HI", number, len(body) if size is None else size) + body


def as_bytes(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else raw(message.number, message.packed)


# Memory as an attacker sees it: read through the descriptor


class Offered(NamedTuple):
    """An offer as a hostile client has it."""

    segment_id: int
    fd: int
    token_offset: int
    token_size: int
    credits: int

    @property
    def token(self) -> bytes:
        return os.pread(self.fd, self.token_size, self.token_offset)


# The hostile client


def reply(
    segment_id: int, accepted: int = 1, credits: int = 1, proof: bytes = b"", **odd: Any
) -> bytes:
    """SHM_REPLY; the sizes are right unless they are given."""
    nonce = odd.get("nonce", b"")
    sizes = odd.get("proof_size", len(proof)), odd.get("nonce_size", len(nonce))
    fixed = segment_id, accepted, odd.get("reason", 0), credits, odd.get("flags", 0)
    return raw(REPLY, struct.pack("<IBBBBII", *fixed, *sizes) + proof + nonce)


def handled(serial: int, surface_id: int = 0) -> bytes:
    return raw(HANDLED, struct.pack("<IIQ", surface_id, 0, serial))


INIT = raw(101, bytes(14))


async def dial(path: str, **options: Any) -> Wire:
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.connect(path)
    return Wire(sock, Sender.CLIENT, **options)


def link_mess(channel: int, session: int, *, channel_id: int = 0, common: int = 0b1000) -> bytes:
    """The client's first words; by default without AUTH_SELECTION."""
    caps = CAPS if channel == DISPLAY else ()
    body = LinkMess(session, channel, channel_id, (common,), caps).packed
    return LinkHeader(b"REDQ", 2, 2, len(body)).packed + body


async def link_reply(wire: Wire) -> LinkReply:
    header = LinkHeader.parse(await wire.read(16))
    return LinkReply.parse(await wire.read(header.size))


def ticket(reply: LinkReply, password: bytes = b"\0") -> bytes:
    key = load_der_public_key(reply.pub_key)
    assert isinstance(key, rsa.RSAPublicKey)
    return key.encrypt(password, padding.OAEP(padding.MGF1(SHA1()), SHA1(), None))


async def link(wire: Wire, channel: int, session: int = 0) -> None:
    """Go through the link phase."""
    await wire.write(link_mess(channel, session))
    await wire.write(ticket(await link_reply(wire)))
    assert await wire.read(4) == bytes(4)
    wire.channel = "main" if channel == MAIN else "display"


class Attacker:
    """A hostile client: main is open, and the rest is to be spoken."""

    def __init__(self, path: str, stack: contextlib.ExitStack, **options: Any) -> None:
        self.path = path
        self.stack = stack
        self.options = options
        self.session = 0
        self.main: Wire
        self.display: Wire

    async def dial(self) -> Wire:
        return self.stack.enter_context(await dial(self.path, **self.options))

    async def open_main(self) -> None:
        self.main = await self.dial()
        await link(self.main, MAIN)
        self.session = (await self.main.take(main.MainInit)).session_id
        await self.main.take(main.ChannelsList)

    async def open_display(self) -> None:
        """Up to where the server waits for INIT."""
        await self.open_main()
        self.display = await self.dial()
        await link(self.display, DISPLAY, self.session)

    async def offers(self, segments: int) -> list[Offered]:
        """INIT, and so many offers."""
        await self.open_display()
        await self.display.put(INIT)
        ack = await self.display.take(SetAck)
        await self.display.put(AckSync(ack.generation))
        return [await self.offer() for _ in range(segments)]

    async def offer(self) -> Offered:
        offer = await self.display.find(shm.ShmOffer)
        fd = await self.display.descriptor()
        self.stack.callback(os.close, fd)
        return Offered(offer.segment_id, fd, offer.token_offset, offer.token_size, offer.credits)

    async def accept(self, *offers: Offered) -> None:
        for offer in offers:
            await self.display.put(reply(offer.segment_id, proof=offer.token))

    async def share(self, segments: int) -> tuple[list[Offered], int]:
        """Up to the first frame, whose serial is returned."""
        offers = await self.offers(segments)
        await self.accept(*offers)
        await self.display.take(shm.SurfaceCreateShm)
        await self.display.take(display.MonitorsConfig)
        damage = await self.display.take(shm.ShmDamage)
        await self.display.take(display.Mark)
        return offers, damage.serial

    async def main_is_well(self) -> None:
        """A breach on another channel is none of main's business."""
        await self.main.put(main.MouseModeRequest(1))
        await self.main.find(main.MouseMode)


# The good ones


class Bystander:
    """A well-behaved client that must notice nothing."""

    def __init__(self) -> None:
        self.remote: spiceshm.RemoteDisplay
        self.seen: tuple[int, np.ndarray] = (0, np.zeros(0))
        self._news = trio.Event()

    async def watch(
        self, address: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with spiceshm.connect(address, shm="require") as self.remote:
            task_status.started()
            async for frame in self.remote.frames():
                self.seen = frame.serial, frame.copy()
                self._news.set()

    async def has_seen(self, serial: int) -> np.ndarray:
        while self.seen[0] < serial:
            self._news = trio.Event()
            await self._news.wait()
        assert self.seen[0] == serial
        return self.seen[1]


class Scene:
    """A server with a surface, and somebody who watches it."""

    def __init__(self, path: str, server: spiceshm.Display, surface: spiceshm.Surface) -> None:
        self.path = path
        self.server = server
        self.surface = surface
        self.bystander = Bystander()
        self._numbers = itertools.count(1)

    def draw(self, seed: int | None = None) -> int:
        return self.surface.draw(picture(next(self._numbers) if seed is None else seed))

    async def all_is_well(self, frames: int = 3) -> None:
        """The bystander sees every frame that is drawn now."""
        with trio.fail_after(SOON):
            for _ in range(frames):
                number = next(self._numbers)
                serial = self.draw(number)
                seen = await self.bystander.has_seen(serial)
                assert np.array_equal(seen[:, :, :3], picture(number)[:, :, :3])

    async def alone(self) -> None:
        """Wait until the server has forgotten everybody but the bystander."""
        with trio.fail_after(SOON):
            while self.server._connections > 2:
                await trio.sleep(0.001)
        assert len(self.server.viewers) == 1
        assert len(self.server._sessions) == 1
        pool = self.surface.pool
        assert len(pool.readers) == 1
        assert sum(buffer.leases for buffer in pool.buffers) <= 1

    @property
    def segments(self) -> int:
        return len(self.surface.pool.segments)

    @contextlib.asynccontextmanager
    async def attacker(self, **options: Any) -> AsyncIterator[Attacker]:
        with contextlib.ExitStack() as stack:
            yield Attacker(self.path, stack, **options)


@functools.cache
def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 4), np.uint8)


@contextlib.asynccontextmanager
async def scene(**options: Any) -> AsyncIterator[Scene]:
    with short_directory() as place:
        path = f"{place}/s"
        async with spiceshm.serve(f"unix:{path}", **options) as server:
            it = Scene(path, server, server.create_surface(WIDTH, HEIGHT))
            it.draw()
            async with trio.open_nursery() as nursery:
                if options.get("shm") != "off":
                    await nursery.start(it.bystander.watch, f"unix:{path}")
                    # Makes the pool grow now, so that it need not grow for one attacker.
                    async with spiceshm.connect(f"unix:{path}"):
                        while it.segments < 2:
                            await trio.sleep(0.001)
                    await it.alone()
                    await it.all_is_well()
                yield it
                nursery.cancel_scope.cancel()


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the server and the client logged that somebody should look at."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("spiceshm") and record.levelno >= logging.WARNING
    ]


# Attacks on a server that are a breach on the display channel

Attack = "Callable[[Attacker, Scene], Awaitable[None]]"
BREACHES: list[Any] = []
LINKS: list[Any] = []


def breach(complaint: str) -> Callable[[Any], Any]:
    """An attack that ends the display connection, with this in the log (a regular expression)."""

    def declare(attack: Any) -> Any:
        BREACHES.append(pytest.param(attack, complaint, id=attack.__name__))
        return attack

    return declare


@breach(r"display\.init: not allowed in state OFFERED")
async def a_second_init(it: Attacker, at: Scene) -> None:
    await it.offers(at.segments)
    await it.display.put(INIT)


@breach(r"display\.init: not allowed in state SHARED")
async def an_init_while_frames_flow(it: Attacker, at: Scene) -> None:
    await it.share(at.segments)
    await it.display.put(INIT)


@breach(r"display\.shm_reply: not allowed in state START")
async def a_reply_before_anything(it: Attacker, at: Scene) -> None:
    await it.open_display()
    await it.display.put(reply(1, proof=bytes(32)))


@breach(r"display\.shm_damage_handled: not allowed in state (READY|OFFERED)")
async def handled_before_anything_was_lent(it: Attacker, at: Scene) -> None:
    await it.offers(at.segments)
    await it.display.put(handled(1))


@breach(r"display\.shm_reply: segment_id: \d+ is not offered or answered already")
async def a_reply_for_a_segment_that_is_none(it: Attacker, at: Scene) -> None:
    offers = await it.offers(at.segments)
    await it.display.put(reply(max(o.segment_id for o in offers) + 1))


@breach(r"display\.shm_reply: segment_id: \d+ is not offered or answered already")
async def two_replies(it: Attacker, at: Scene) -> None:
    offers = await it.offers(at.segments)
    await it.accept(offers[0], offers[0])


@breach(r"display\.shm_reply: segment_id: \d+ is not offered or answered already")
async def a_refusal_after_the_acceptance(it: Attacker, at: Scene) -> None:
    offers, _ = await it.share(at.segments)
    await it.display.put(reply(offers[0].segment_id, 0, 0, reason=1))


@breach(r"display\.shm_reply: accepted: 2 is not 0 or 1")
async def a_reply_that_is_neither_yes_nor_no(it: Attacker, at: Scene) -> None:
    offers = await it.offers(at.segments)
    await it.display.put(reply(offers[0].segment_id, 2, proof=offers[0].token))


@breach(r"display\.shm_reply: credits: 0 is not in 1\.\.\d")
async def no_credits(it: Attacker, at: Scene) -> None:
    offers = await it.offers(at.segments)
    await it.display.put(reply(offers[0].segment_id, 1, 0, proof=offers[0].token))


@breach(r"display\.shm_reply: credits: \d is not in 1\.\.\d")
async def more_credits_than_offered(it: Attacker, at: Scene) -> None:
    offers = await it.offers(at.segments)
    more = offers[0].credits + 1
    await it.display.put(reply(offers[0].segment_id, 1, more, proof=offers[0].token))


@breach(r"display\.shm_reply: credits: 255 is not in 1\.\.\d")
async def credits_without_end(it: Attacker, at: Scene) -> None:
    offers = await it.offers(at.segments)
    await it.display.put(reply(offers[0].segment_id, 1, 255, proof=offers[0].token))


@breach(r"display\.shm_reply: nonce_size: 32 bytes")
async def a_nonce_where_none_is_allowed(it: Attacker, at: Scene) -> None:
    offers = await it.offers(at.segments)
    await it.display.put(
        reply(offers[0].segment_id, proof=offers[0].token, nonce=bytes(32)),
    )


@breach(r"display\.shm_reply: .*")
async def a_proof_shorter_than_its_size(it: Attacker, at: Scene) -> None:
    offers = await it.offers(at.segments)
    await it.display.put(reply(offers[0].segment_id, proof=bytes(32), proof_size=33))


@breach(r"display\.shm_reply: .*")
async def a_proof_longer_than_its_size(it: Attacker, at: Scene) -> None:
    offers = await it.offers(at.segments)
    await it.display.put(reply(offers[0].segment_id, proof=bytes(32), proof_size=31))


@breach(r"display\.shm_reply: .*")
async def a_proof_of_4_gib(it: Attacker, at: Scene) -> None:
    offers = await it.offers(at.segments)
    await it.display.put(reply(offers[0].segment_id, proof_size=0xFFFFFFFF, nonce_size=0xFFFFFFFF))


@breach(r"display\.shm_damage_handled: serial: \d+ of surface 0 is not out")
async def handled_for_a_frame_that_was_never_sent(it: Attacker, at: Scene) -> None:
    _, serial = await it.share(at.segments)
    await it.display.put(handled(serial + 1))


@breach(r"display\.shm_damage_handled: serial: \d+ of surface 0 is not out")
async def handled_twice(it: Attacker, at: Scene) -> None:
    _, serial = await it.share(at.segments)
    await it.display.put(handled(serial), handled(serial))


@breach(r"display\.shm_damage_handled: serial: \d+ of surface 7 is not out")
async def handled_on_another_surface(it: Attacker, at: Scene) -> None:
    _, serial = await it.share(at.segments)
    await it.display.put(handled(serial, 7))


@breach(r"display\.shm_damage_handled: size: 17 bytes, the limit is 16")
async def handled_with_a_tail(it: Attacker, at: Scene) -> None:
    _, serial = await it.share(at.segments)
    await it.display.put(raw(HANDLED, struct.pack("<IIQB", 0, 0, serial, 0)))


@breach(r"display\.shm_damage_handled: .*")
async def handled_cut_short(it: Attacker, at: Scene) -> None:
    _, serial = await it.share(at.segments)
    await it.display.put(raw(HANDLED, struct.pack("<IIQ", 0, 0, serial)[:-1]))


@breach(r"display message 462: is unknown")
async def a_servers_message(it: Attacker, at: Scene) -> None:
    await it.share(at.segments)
    await it.display.put(raw(CREATE_SHM, bytes(44)))


@breach(r"display message 479: is unknown")
async def an_unknown_message_of_the_block(it: Attacker, at: Scene) -> None:
    await it.share(at.segments)
    await it.display.put(raw(479, b""))


@breach(r"display message 65535: is unknown")
async def an_unknown_message(it: Attacker, at: Scene) -> None:
    await it.open_display()
    await it.display.put(INIT + raw(65535, b""))


@breach(r"display message 65535: size: 4294967295 bytes, the limit is 65536")
async def a_message_of_4_gib(it: Attacker, at: Scene) -> None:
    await it.share(at.segments)
    await it.display.put(raw(65535, b"", 0xFFFFFFFF))


@breach(r"display\.init: size: 15 bytes, the limit is 14")
async def an_init_that_is_too_long(it: Attacker, at: Scene) -> None:
    await it.open_display()
    await it.display.put(raw(101, bytes(15)))


@breach(r"display message 0: is unknown")
async def zeroes(it: Attacker, at: Scene) -> None:
    await it.open_display()
    await it.display.put(bytes(1000))


@pytest.mark.parametrize(("attack", "complaint"), BREACHES)
async def test_a_breach_ends_one_connection_with_one_line(
    attack: Any, complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene() as at, at.attacker() as it:
        with trio.fail_after(SOON):
            await attack(it, at)
            await it.display.ended()
            await it.main_is_well()
        [line] = complaints(caplog)
        peer = re.escape(f"unix:{at.path} pid {os.getpid()}")
        assert re.fullmatch(f"{peer}: display channel closed: {complaint}", line)
        await at.all_is_well()
        it.stack.close()
        await at.alone()
        await at.all_is_well()
