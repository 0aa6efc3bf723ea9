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
import json
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
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
from spiceshm.protocol import TABLES, State
from spiceshm.server import entrance
from spiceshm.wire import (
    MESSAGES,
    Message,
    Sender,
    cursor,
    display,
    inputs,
    lookup,
    main,
    shm,
    types,
)
from spiceshm.wire.base import Ack, AckSync, Pong, SetAck
from spiceshm.wire.link import LinkHeader, LinkMess, LinkReply
from tests import pair
from tests.fuzz import streams
from tests.programs import (
    DEADLINE,
    Program,
    command,
    limited,
    look,
    mapped,
    run,
    serving,
    short_directory,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

WIDTH, HEIGHT = 64, 48
SOON = 10.0
"""Seconds within which everything happens that is not meant to be timed out."""

HANDSHAKE = 10.0
"""Seconds that the protocol gives a peer."""

MAIN, DISPLAY = 1, 2
CAPS = (1 << 1, 0, 1 << 19)
"""Display capabilities as words: MONITORS_CONFIG, SHARED_MEMORY."""

OFFER, DAMAGE, CREATE_SHM, WITHDRAW, REPLY, HANDLED = 460, 461, 462, 463, 460, 461


pytestmark = pytest.mark.usefixtures("nothing_stays_mapped")


@pytest.fixture(autouse=True)
def one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a key takes longer than everything else in most of these tests."""
    monkeypatch.setattr("spiceshm.server.display.generate_key", lambda: KEY)


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
        self.offered: list[Offered] = []
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

    async def first_offer(self) -> Offered:
        """INIT, and the first offer, which is not answered."""
        await self.open_display()
        await self.display.put(INIT)
        ack = await self.display.take(SetAck)
        await self.display.put(AckSync(ack.generation))
        return await self.remember(await self.display.take(shm.ShmOffer))

    async def remember(self, offer: shm.ShmOffer) -> Offered:
        fd = await self.display.descriptor()
        self.stack.callback(os.close, fd)
        known = Offered(offer.segment_id, fd, offer.token_offset, offer.token_size, offer.credits)
        self.offered.append(known)
        return known

    async def next(self) -> Message:
        """The next message of display; offers are accepted and withdrawals passed over."""
        while True:
            message = await self.display.next()
            if isinstance(message, shm.ShmOffer):
                offer = await self.remember(message)
                await self.display.put(reply(offer.segment_id, proof=offer.token))
            elif not isinstance(message, shm.ShmWithdraw):
                return message

    async def take(self, kind: type[Message]) -> Any:
        """The next message but for those, which must be of this kind."""
        message = await self.next()
        assert type(message) is kind, message
        return message

    async def find(self, kind: type[Message]) -> Any:
        """The next message of this kind; those before it are dropped."""
        while type(message := await self.next()) is not kind:
            pass
        return message

    async def share(self) -> int:
        """Up to the first frame, whose serial is returned."""
        await self.open_display()
        await self.display.put(INIT)
        ack = await self.take(SetAck)
        await self.display.put(AckSync(ack.generation))
        await self.take(shm.SurfaceCreateShm)
        await self.take(display.MonitorsConfig)
        damage: shm.ShmDamage = await self.take(shm.ShmDamage)
        await self.take(display.Mark)
        return damage.serial

    async def later_offer(self) -> Offered:
        """The next offer, which is not answered; frames before it are dropped."""
        return await self.remember(await self.display.find(shm.ShmOffer))

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
        async with spiceshm.connect(address, shm="require", credits=1) as self.remote:
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


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(SOON):
        while not condition():
            await trio.sleep(0.001)


class Scene:
    """A server with a surface, and those who watch it."""

    def __init__(self, path: str, server: spiceshm.Display, surface: spiceshm.Surface) -> None:
        self.path = path
        self.server = server
        self.surface = surface
        self.bystanders: list[Bystander] = []
        self._number = 0

    def draw(self) -> int:
        """A new picture; returns its serial."""
        self._number += 1
        return self.surface.draw(picture(self._number))

    @property
    def picture(self) -> np.ndarray:
        """What is shown now: (height, width, 3)."""
        return picture(self._number)[:, :, :3]

    async def all_is_well(self, frames: int = 3) -> None:
        """Every bystander sees every frame that is drawn now."""
        with trio.fail_after(SOON):
            for _ in range(frames):
                serial = self.draw()
                for bystander in self.bystanders:
                    seen = await bystander.has_seen(serial)
                    assert np.array_equal(seen[:, :, :3], self.picture)

    async def alone(self) -> None:
        """Wait until the server has forgotten everybody but the bystanders."""
        good = len(self.bystanders)
        await eventually(lambda: self.server._entrance.connections <= 2 * good)
        assert len(self.server.viewers) == good
        assert len(self.server._sessions) == good
        pool = self.surface.pool
        assert len(pool.readers) == good
        assert sum(buffer.leases for buffer in pool.buffers) <= good

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
async def scene(*, bystanders: int = 1, **options: Any) -> AsyncIterator[Scene]:
    with short_directory() as place:
        path = f"{place}/s"
        async with spiceshm.serve(f"unix:{path}", **options) as server:
            at = Scene(path, server, server.create_surface(WIDTH, HEIGHT))
            at.draw()
            async with trio.open_nursery() as nursery:
                for _ in range(bystanders):
                    bystander = Bystander()
                    await nursery.start(bystander.watch, f"unix:{path}")
                    at.bystanders.append(bystander)
                await at.all_is_well()
                yield at
                nursery.cancel_scope.cancel()


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the server and the client logged that somebody should look at."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("spiceshm") and record.levelno >= logging.WARNING
    ]


# Attacks on a server that are a breach on the display channel

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
    await it.first_offer()
    await it.display.put(INIT)


@breach(r"display\.init: not allowed in state SHARED")
async def an_init_while_frames_flow(it: Attacker, at: Scene) -> None:
    await it.share()
    await it.display.put(INIT)


@breach(r"display\.shm_reply: not allowed in state START")
async def a_reply_before_anything(it: Attacker, at: Scene) -> None:
    await it.open_display()
    await it.display.put(reply(1, proof=bytes(32)))


@breach(r"display\.shm_damage_handled: not allowed in state (READY|OFFERED)")
async def handled_before_anything_was_lent(it: Attacker, at: Scene) -> None:
    await it.first_offer()
    await it.display.put(handled(1))


@breach(r"display\.shm_reply: segment_id: \d+ is not offered or answered already")
async def a_reply_for_a_segment_that_is_none(it: Attacker, at: Scene) -> None:
    offer = await it.first_offer()
    await it.display.put(reply(offer.segment_id + 1000))


@breach(r"display\.shm_reply: segment_id: \d+ is not offered or answered already")
async def two_replies(it: Attacker, at: Scene) -> None:
    offer = await it.first_offer()
    await it.display.put(*[reply(offer.segment_id, proof=offer.token)] * 2)


@breach(r"display\.shm_reply: segment_id: \d+ is not offered or answered already")
async def a_refusal_after_the_acceptance(it: Attacker, at: Scene) -> None:
    await it.share()
    offer = it.offered[0]
    await it.display.put(reply(offer.segment_id, 0, 0, reason=1))


@breach(r"display\.shm_reply: accepted: 2 is not 0 or 1")
async def a_reply_that_is_neither_yes_nor_no(it: Attacker, at: Scene) -> None:
    offer = await it.first_offer()
    await it.display.put(reply(offer.segment_id, 2, proof=offer.token))


@breach(r"display\.shm_reply: credits: 0 is not in 1\.\.\d")
async def no_credits(it: Attacker, at: Scene) -> None:
    offer = await it.first_offer()
    await it.display.put(reply(offer.segment_id, 1, 0, proof=offer.token))


@breach(r"display\.shm_reply: credits: \d is not in 1\.\.\d")
async def more_credits_than_offered(it: Attacker, at: Scene) -> None:
    offer = await it.first_offer()
    more = offer.credits + 1
    await it.display.put(reply(offer.segment_id, 1, more, proof=offer.token))


@breach(r"display\.shm_reply: credits: 255 is not in 1\.\.\d")
async def credits_without_end(it: Attacker, at: Scene) -> None:
    offer = await it.first_offer()
    await it.display.put(reply(offer.segment_id, 1, 255, proof=offer.token))


@breach(r"display\.shm_reply: nonce_size: 32 bytes")
async def a_nonce_where_none_is_allowed(it: Attacker, at: Scene) -> None:
    offer = await it.first_offer()
    await it.display.put(
        reply(offer.segment_id, proof=offer.token, nonce=bytes(32)),
    )


@breach(r"display\.shm_reply: .*")
async def a_proof_shorter_than_its_size(it: Attacker, at: Scene) -> None:
    offer = await it.first_offer()
    await it.display.put(reply(offer.segment_id, proof=bytes(32), proof_size=33))


@breach(r"display\.shm_reply: .*")
async def a_proof_longer_than_its_size(it: Attacker, at: Scene) -> None:
    offer = await it.first_offer()
    await it.display.put(reply(offer.segment_id, proof=bytes(32), proof_size=31))


@breach(r"display\.shm_reply: .*")
async def a_proof_of_4_gib(it: Attacker, at: Scene) -> None:
    offer = await it.first_offer()
    await it.display.put(reply(offer.segment_id, proof_size=0xFFFFFFFF, nonce_size=0xFFFFFFFF))


@breach(r"display\.shm_damage_handled: serial: \d+ of surface 0 is not out")
async def handled_for_a_frame_that_was_never_sent(it: Attacker, at: Scene) -> None:
    serial = await it.share()
    await it.display.put(handled(serial + 1))


@breach(r"display\.shm_damage_handled: serial: \d+ of surface 0 is not out")
async def handled_twice(it: Attacker, at: Scene) -> None:
    serial = await it.share()
    await it.display.put(handled(serial), handled(serial))


@breach(r"display\.shm_damage_handled: serial: \d+ of surface 7 is not out")
async def handled_on_another_surface(it: Attacker, at: Scene) -> None:
    serial = await it.share()
    await it.display.put(handled(serial, 7))


@breach(r"display\.shm_damage_handled: size: 17 bytes, the limit is 16")
async def handled_with_a_tail(it: Attacker, at: Scene) -> None:
    serial = await it.share()
    await it.display.put(raw(HANDLED, struct.pack("<IIQB", 0, 0, serial, 0)))


@breach(r"display\.shm_damage_handled: .*")
async def handled_cut_short(it: Attacker, at: Scene) -> None:
    serial = await it.share()
    await it.display.put(raw(HANDLED, struct.pack("<IIQ", 0, 0, serial)[:-1]))


@breach(r"display message 462: is unknown")
async def a_servers_message(it: Attacker, at: Scene) -> None:
    await it.share()
    await it.display.put(raw(CREATE_SHM, bytes(44)))


@breach(r"display message 479: is unknown")
async def an_unknown_message_of_the_block(it: Attacker, at: Scene) -> None:
    await it.share()
    await it.display.put(raw(479, b""))


@breach(r"display message 65535: is unknown")
async def an_unknown_message(it: Attacker, at: Scene) -> None:
    await it.open_display()
    await it.display.put(INIT + raw(65535, b""))


@breach(r"display message 65535: size: 4294967295 bytes, the limit is 65536")
async def a_message_of_4_gib(it: Attacker, at: Scene) -> None:
    await it.share()
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


# Attacks during the link phase


def link_attack(error: int | None, complaint: str) -> Callable[[Any], Any]:
    """A link phase that fails: with this SPICE link error (None: cut off), this in the log."""

    def declare(attack: Any) -> Any:
        LINKS.append(pytest.param(attack, error, complaint, id=attack.__name__))
        return attack

    return declare


def link_header(magic: bytes = b"REDQ", major: int = 2, size: int = 18) -> bytes:
    return struct.pack("<4sIII", magic, major, 2, size)


def words(channel: int, common: int, own: int, offset: int, caps: bytes = b"") -> bytes:
    """A LinkMess with any counts and offset, and its header."""
    body = struct.pack("<IBBIII", 0, channel, 0, common, own, offset) + caps
    return link_header(size=len(body)) + body


@link_attack(2, r"link channel closed: link_header: invalid_magic: 52 46 42 20")
async def another_protocol(wire: Wire) -> None:
    await wire.write(b"RFB 003.008\n".ljust(16))


@link_attack(2, r"link channel closed: link_header: invalid_magic: 47 45 54 20")
async def a_web_browser(wire: Wire) -> None:
    await wire.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


@link_attack(4, r"link channel closed: link_header: version_mismatch: .*")
async def another_version(wire: Wire) -> None:
    await wire.write(link_header(major=3))


@link_attack(3, r"link channel closed: link_header: invalid_data: .*")
async def a_link_message_of_nothing(wire: Wire) -> None:
    await wire.write(link_header(size=0))


@link_attack(3, r"link channel closed: link_header: invalid_data: .*")
async def a_link_message_of_4_gib(wire: Wire) -> None:
    await wire.write(link_header(size=0xFFFFFFFF))


@link_attack(3, r"link channel closed: link_mess: invalid_data: .*")
async def more_capabilities_than_bytes(wire: Wire) -> None:
    await wire.write(words(MAIN, 1, 1, 18, bytes(4)))


@link_attack(3, r"link channel closed: link_mess: invalid_data: .*")
async def capabilities_without_end(wire: Wire) -> None:
    await wire.write(words(MAIN, 0xFFFFFFFF, 0xFFFFFFFF, 18, bytes(100)))


@link_attack(3, r"link channel closed: link_mess: invalid_data: .*")
async def capabilities_over_the_fixed_part(wire: Wire) -> None:
    await wire.write(words(MAIN, 1, 0, 4, bytes(4)))


@link_attack(3, r"link channel closed: link_mess: invalid_data: .*")
async def capabilities_far_outside(wire: Wire) -> None:
    await wire.write(words(MAIN, 1, 0, 0xFFFFFFFF, bytes(4)))


@link_attack(9, "")
async def a_channel_that_is_none(wire: Wire) -> None:
    await wire.write(words(255, 0, 0, 18))


@link_attack(9, "")
async def a_second_display(wire: Wire) -> None:
    await wire.write(link_mess(DISPLAY, 0, channel_id=1))


@link_attack(3, r"link channel closed: auth_mechanism: invalid_data: 2, only 1 is known")
async def another_way_to_prove_who_one_is(wire: Wire) -> None:
    await wire.write(link_mess(MAIN, 0, common=0b1011))
    await link_reply(wire)
    await wire.write(struct.pack("<I", 2))


@link_attack(7, "wrong password")
async def a_ticket_of_zeroes(wire: Wire) -> None:
    await wire.write(link_mess(MAIN, 0))
    await link_reply(wire)
    await wire.write(bytes(128))


@link_attack(7, "wrong password")
async def a_ticket_of_noise(wire: Wire) -> None:
    await wire.write(link_mess(MAIN, 0))
    await link_reply(wire)
    await wire.write(bytes(range(128)))


@link_attack(8, "asks for a migrated session, there are none")
async def a_main_channel_with_a_session(wire: Wire) -> None:
    await wire.write(link_mess(MAIN, 1234))
    await wire.write(ticket(await link_reply(wire)))


@link_attack(8, "connection id 0x4d2 is no session")
async def a_display_without_a_session(wire: Wire) -> None:
    await wire.write(link_mess(DISPLAY, 1234))
    await wire.write(ticket(await link_reply(wire)))


@link_attack(8, r"connection id 0(x0)? is no session")
async def a_display_without_a_main_channel(wire: Wire) -> None:
    await wire.write(link_mess(DISPLAY, 0))
    await wire.write(ticket(await link_reply(wire)))


@pytest.mark.parametrize(("attack", "error", "complaint"), LINKS)
async def test_a_link_that_fails_says_why_and_ends(
    attack: Any, error: int, complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene() as at, at.attacker() as it:
        with trio.fail_after(SOON):
            wire = await it.dial()
            await attack(wire)
            answer = await wire.ended()
        # In the place of LinkReply an error comes with a header, in that of LinkResult without.
        assert struct.unpack_from("<I", answer, 16 if len(answer) > 4 else 0) == (error,)
        if complaint:
            [line] = complaints(caplog)
            peer = re.escape(f"unix:{at.path} pid {os.getpid()}")
            assert re.fullmatch(f"{peer}: {complaint}", line)
        await at.all_is_well()
        await at.alone()


async def test_a_wrong_password_is_refused_on_every_channel(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with scene(password="right", bystanders=0) as at, at.attacker() as it:
        for word in (b"\0", b"wrong\0", b"right but longer\0", b"righ\0", b"RIGHT\0"):
            wire = await it.dial()
            await wire.write(link_mess(MAIN, 0))
            await wire.write(ticket(await link_reply(wire), word))
            assert await wire.ended() == struct.pack("<I", 7)
        assert len(complaints(caplog)) == 4  # viewers try without one before they ask
        good = await it.dial()
        await good.write(link_mess(MAIN, 0))
        await good.write(ticket(await link_reply(good), b"right\0"))
        assert await good.read(4) == bytes(4)
        good.channel = "main"
        session = (await good.take(main.MainInit)).session_id
        wire = await it.dial()  # knowing a session is not enough
        await wire.write(link_mess(DISPLAY, session))
        await wire.write(ticket(await link_reply(wire)))
        assert await wire.ended() == struct.pack("<I", 7)


# The ways to ordinary SPICE: no breach


@pytest.mark.parametrize(
    "answer",
    ["refused", "wrong proof", "empty proof", "proof cut short", "proof too long", "next token"],
)
async def test_a_reply_that_proves_nothing_means_ordinary_spice(
    answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene() as at, at.attacker() as it:
        with trio.fail_after(SOON):
            offer = await it.first_offer()
            proof = {
                "refused": b"",
                "wrong proof": bytes(32),
                "empty proof": b"",
                "proof cut short": offer.token[:-1],
                "proof too long": offer.token + b"\0",
                "next token": os.pread(offer.fd, 32, offer.token_offset - 32),
            }[answer]
            accepted = int(answer != "refused")
            await it.display.put(
                reply(offer.segment_id, accepted, accepted, proof, reason=4 * (not accepted))
            )
            seen = await ordinary_picture(it)
        assert np.array_equal(seen, at.picture)
        assert complaints(caplog) == []
        await at.all_is_well()
        it.stack.close()
        await at.alone()


async def ordinary_picture(it: Attacker) -> np.ndarray:
    """What ordinary SPICE shows up to MARK, drawn by hand."""
    create = await it.find(display.SurfaceCreate)
    pixels = np.zeros((create.height, create.width, 3), np.uint8)
    while not isinstance(message := await it.next(), display.Mark):
        if isinstance(message, display.DrawCopy):
            box, bitmap = message.box, message.image.content
            assert isinstance(bitmap, display.Bitmap)
            lines = np.frombuffer(bitmap.data, np.uint8).reshape(bitmap.y, bitmap.x, 4)
            pixels[box.top : box.bottom, box.left : box.right] = lines[:, :, :3]
    return pixels


# Silence


@pytest.mark.parametrize(
    "what", ["nothing", "half a header", "half a link message", "half a ticket", "drop by drop"]
)
async def test_who_does_not_finish_the_link_phase_is_closed_after_10_s(
    what: str, jumping: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene() as at, at.attacker() as it:
        start = trio.current_time()
        wire = await it.dial()
        mess = link_mess(MAIN, 0)
        match what:
            case "half a header":
                await wire.write(mess[:8])
            case "half a link message":
                await wire.write(mess[:-1])
            case "half a ticket":
                await wire.write(mess)
                await wire.write(ticket(await link_reply(wire))[:64])
            case "drop by drop":
                with contextlib.suppress(BrokenPipeError):
                    for byte in mess:
                        await wire.write(bytes([byte]))
                        await trio.sleep(1)
        with trio.fail_after(100):
            await wire.ended()
        assert HANDSHAKE <= trio.current_time() - start < HANDSHAKE + 2
        [line] = complaints(caplog)
        assert line == f"unix:{at.path} pid {os.getpid()}: link channel closed: too slow"
        await at.all_is_well()
        await at.alone()


@pytest.mark.parametrize("what", ["no init", "half an init", "no reply", "not every reply"])
async def test_who_does_not_finish_the_hand_shake_is_closed_after_10_s(
    what: str,
    jumping: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spiceshm.server.surface.FIRST_BUFFERS", 3)
    async with scene(bystanders=2) as at, at.attacker() as it:
        if what in ("no init", "half an init"):
            await it.open_display()
            start = trio.current_time()
            if what == "half an init":
                await it.display.write(INIT[:10])
        else:
            await eventually(lambda: at.segments > 1)
            offer = await it.first_offer()
            start = trio.current_time()
            if what == "not every reply":
                await it.display.put(reply(offer.segment_id, proof=offer.token))
        with trio.fail_after(100):
            await it.display.ended()
        assert HANDSHAKE <= trio.current_time() - start < HANDSHAKE + 2
        [line] = complaints(caplog)
        assert line == (
            f"unix:{at.path} pid {os.getpid()}: display channel closed: "
            "the hand-shake took longer than 10 s"
        )
        await it.main_is_well()
        await at.all_is_well()
        it.stack.close()
        await at.alone()


async def test_who_is_silent_after_the_hand_shake_may_stay(
    jumping: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene() as at, at.attacker() as it:
        serial = await it.share()
        await trio.sleep(3 * HANDSHAKE)
        await at.all_is_well()
        await it.display.put(handled(serial))
        assert (await it.take(shm.ShmDamage)).serial == at.surface.serial
        await it.main_is_well()
        assert complaints(caplog) == []


# Those who take and never give


async def test_who_never_acknowledges_costs_its_credits_and_nothing_else() -> None:
    async with scene() as at, at.attacker() as it:
        buffers = len(at.surface.pool.buffers)
        with trio.fail_after(SOON):
            serial = await it.share()
        await at.all_is_well(frames=50)
        with trio.move_on_after(0.05):
            message = await it.next()
            raise AssertionError(f"nothing was to come, not {message}")
        assert len(at.surface.pool.buffers) <= max(2 + 2, buffers)  # a credit each, and two
        with trio.fail_after(SOON):
            await it.display.put(handled(serial))
            damage = await it.take(shm.ShmDamage)
        # At once the newest frame, with the damage of all that were passed over.
        assert damage.serial == at.surface.serial
        assert spiceshm.region.area(damage.rects.tolist()) >= WIDTH * HEIGHT
        it.stack.close()
        await at.alone()
        await at.all_is_well()


@pytest.mark.parametrize("end", ["gives back", "goes"])
async def test_who_had_to_wait_for_memory_is_sent_the_frame_when_there_is_some(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the pool cannot grow, a held frame may cost another reader its turn, not its frame."""
    monkeypatch.setattr("spiceshm.server.surface.FIRST_BUFFERS", 3)
    gate, run_sync = trio.Event(), trio.to_thread.run_sync

    async def later(*arguments: Any) -> Any:
        await gate.wait()
        return await run_sync(*arguments)

    async with scene() as at, at.attacker() as it:
        monkeypatch.setattr("trio.to_thread.run_sync", later)
        with trio.fail_after(SOON):
            serial = await it.share()
        drawn = at.draw()
        with trio.move_on_after(0.05) as waited:
            await at.bystanders[0].has_seen(drawn)
        assert waited.cancelled_caught  # or there was nothing to wait for
        if end == "goes":
            it.stack.close()
        else:
            await it.display.put(handled(serial))
        with trio.fail_after(SOON):
            await at.bystanders[0].has_seen(drawn)
        gate.set()
        await at.all_is_well()


async def test_who_never_answers_a_later_offer_waits_alone() -> None:
    async with scene() as at, at.attacker() as it:
        with trio.fail_after(SOON):
            serial = await it.share()
        async with spiceshm.connect(f"unix:{at.path}") as one:
            async with spiceshm.connect(f"unix:{at.path}") as two:
                # More readers, more buffers; the new memory is offered to everybody.
                with trio.fail_after(SOON):
                    later = await it.later_offer()
                for remote in (one, two):
                    await at.all_is_well(frames=20)
                    with trio.fail_after(SOON):
                        frames = remote.frames()
                        while (await anext(frames)).serial < at.surface.serial:
                            pass
                await it.display.put(handled(serial))
                message = None
                with trio.fail_after(SOON):  # it is sent frames again once they lie elsewhere
                    while not isinstance(message, shm.ShmDamage):
                        assert not isinstance(message, shm.ShmOffer)  # it owes an answer already
                        at.draw()
                        for remote in (one, two):
                            while (await anext(remote.frames())).serial < at.surface.serial:
                                pass
                        with trio.move_on_after(0.1):
                            message = await it.display.next()
                assert message.segment_id == it.offered[0].segment_id != later.segment_id
                await at.all_is_well()
        await it.main_is_well()
        it.stack.close()
        await at.alone()


async def test_a_later_refusal_is_the_turn_to_ordinary_spice() -> None:
    async with scene() as at, at.attacker() as it:
        with trio.fail_after(SOON):
            serial = await it.share()
        async with spiceshm.connect(f"unix:{at.path}"), spiceshm.connect(f"unix:{at.path}"):
            with trio.fail_after(SOON):
                later = await it.later_offer()
                await it.display.put(reply(later.segment_id, 0, 0, reason=1))
                seen = await ordinary_picture(it)
            assert np.array_equal(seen, at.picture)
            await it.display.put(handled(serial))  # the lease outlives the turn
            await at.all_is_well()
        await it.main_is_well()
        it.stack.close()
        await at.alone()


@pytest.mark.parametrize("reads", [True, False])
async def test_who_never_acknowledges_ordinary_updates_has_one_under_way(reads: bool) -> None:
    """Also where the update is larger than what the kernel takes and nobody reads it."""
    async with scene(shm="off", bystanders=0) as at, at.attacker() as it:
        at.surface = at.server.create_surface(1024, 1024)
        pixels = np.random.default_rng(1).integers(0, 255, (1024, 1024, 4), np.uint8)
        at.surface.draw(pixels)
        await it.open_display()
        await it.display.put(INIT)
        ack = await it.display.take(SetAck)
        await it.display.put(AckSync(ack.generation))
        with trio.fail_after(SOON):
            acks = 1
            if reads:
                while not isinstance(await it.display.next(), display.Mark):
                    acks += 1
            [viewer] = at.server.viewers
            while not viewer.stats.frames:
                await trio.sleep(0.001)
            for number in range(1, 20):
                pixels[:, :, 0] = number
                at.surface.draw(pixels)
                await trio.testing.wait_all_tasks_blocked()
        assert viewer.stats.frames == 1
        assert sum(len(data) for data, _ in viewer._stream._unsent) <= 1024 * 1024 * 4 + 1000
        if reads:
            with trio.fail_after(SOON):
                await it.display.put(*[Ack()] * acks)
                copy = await it.display.take(display.DrawCopy)
            assert copy.image.content.data[0] == 19


# Floods


FLOODS = {
    "mouse modes on main": ("main", as_bytes(main.MouseModeRequest(1))),
    "agent data on main": ("main", as_bytes(main.ClientAgentData(bytes(100)))),
    "pongs on main": ("main", as_bytes(Pong(1, 2))),
    "acks on display": ("display", as_bytes(Ack())),
    "ack syncs on display": ("display", as_bytes(AckSync(1))),
    "compressions on display": ("display", as_bytes(display.PreferredCompression(1))),
    "codecs on display": ("display", as_bytes(display.PreferredVideoCodecType((1,)))),
}


class Steps(trio.abc.Instrument):
    """The longest that any task has kept all others waiting, in seconds of processor time."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._start = time.thread_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._start = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, time.thread_time() - self._start)


@pytest.mark.parametrize("what", FLOODS)
async def test_a_flood_keeps_nobody_waiting(what: str, caplog: pytest.LogCaptureFixture) -> None:
    channel, message = FLOODS[what]
    async with scene() as at, at.attacker() as it:
        await it.share()
        wire = it.main if channel == "main" else it.display
        block = message * (100_000 // len(message))
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, wire, block)
            nursery.start_soon(swallow, wire)
            await at.all_is_well(frames=10)
            nursery.cancel_scope.cancel()
        trio.lowlevel.remove_instrument(steps)
        assert steps.longest < 0.1
        assert complaints(caplog) == []
        it.stack.close()
        await at.alone()
        await at.all_is_well()


async def flood(wire: Wire, block: bytes) -> None:
    while True:
        await wire.write(block)


async def swallow(wire: Wire) -> None:
    """Read whatever comes."""
    while True:
        await wire.sock.recv(1 << 16)


# Descriptors, connections, and ends at every point


async def test_descriptors_that_a_client_passes_are_not_kept() -> None:
    async with scene() as at, at.attacker() as it:
        await it.share()
        fds = [0] * 200
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            await it.main.write(as_bytes(main.MouseModeRequest(1)), fds)
            await it.display.write(as_bytes(Pong(1, 2)), fds)
            await it.main_is_well()
            await at.all_is_well(frames=1)
        wire = await it.dial()
        await wire.write(link_mess(MAIN, 0), fds)
        await wire.write(ticket(await link_reply(wire)), fds)
        assert await wire.read(4) == bytes(4)
        # Both ends of that connection, and what the memory takes that is made meanwhile.
        assert len(os.listdir("/proc/self/fd")) < before + 20


async def test_a_client_may_go_at_every_point(caplog: pytest.LogCaptureFixture) -> None:
    """After every single byte of a whole conversation."""
    async with scene() as at:
        async with at.attacker() as it:
            await a_conversation(it)
            whole = it.main.sent + it.display.sent
        for bytes_sent in range(whole):
            async with at.attacker(budget=[bytes_sent]) as it:
                with pytest.raises(Cut):
                    await a_conversation(it)
            if bytes_sent % 50 == 0:
                await at.all_is_well(frames=1)
        await at.alone()
        await at.all_is_well()
        assert complaints(caplog) == []


async def a_conversation(it: Attacker) -> None:
    with trio.fail_after(SOON):
        serial = await it.share()
        await it.display.put(handled(serial), Ack())
        await it.main_is_well()


@pytest.mark.parametrize("point", ["main", "display", "offer", "frame"])
async def test_many_who_come_and_go_leave_nothing(point: str) -> None:
    async with scene() as at:
        segments = list(at.surface.pool.segments)
        for _ in range(130):  # more than a segment has places for tokens
            async with at.attacker() as it:
                with trio.fail_after(SOON):
                    match point:
                        case "main":
                            await it.open_main()
                        case "display":
                            await it.open_display()
                        case "offer":
                            await it.first_offer()
                        case "frame":
                            await it.share()
        await at.alone()
        await at.all_is_well()
        async with spiceshm.connect(f"unix:{at.path}", shm="require"):
            await at.all_is_well()
        assert at.surface.pool.segments[0] is segments[0]


async def test_those_who_only_connect_make_room_for_each_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with scene() as at:
        with contextlib.ExitStack() as stack:
            crowd = [stack.enter_context(await dial(at.path)) for _ in range(300)]
            async with trio.open_nursery() as nursery:
                gone: list[Wire] = []

                async def wait(wire: Wire) -> None:
                    await wire.ended()
                    gone.append(wire)

                for wire in crowd:
                    nursery.start_soon(wait, wire)
                await eventually(lambda: len(gone) >= 300 - 64)
                await at.all_is_well()
                assert len(gone) == 300 - 64
                start = trio.current_time()
                async with at.attacker() as honest:
                    await honest.open_main()
                    assert trio.current_time() - start < 1
                    await eventually(lambda: len(gone) == 300 - 63)
                nursery.cancel_scope.cancel()
            [line] = complaints(caplog)
            assert line.startswith(f"unix:{at.path} pid {os.getpid()}: 64 connections before it")
        await at.alone()
        with contextlib.ExitStack() as stack:  # and another crowd is news again
            for _ in range(65):
                stack.enter_context(await dial(at.path))
            await eventually(lambda: len(complaints(caplog)) == 2)
        await at.alone()
        await at.all_is_well()


async def test_too_many_connections_are_turned_away(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrance, "MAX_CONNECTIONS", 8)
    async with scene() as at:
        with contextlib.ExitStack() as stack:
            for _ in range(3):  # the bystander has two
                await Attacker(at.path, stack).open_display()
            for _ in range(2):
                wire = stack.enter_context(await dial(at.path))
                await wire.write(link_mess(MAIN, 0))
                answer = await wire.ended()
                assert len(answer) == 16 + 178
                assert struct.unpack_from("<I", answer, 16) == (1,)
            peer = f"unix:{at.path} pid {os.getpid()}"
            assert complaints(caplog) == [f"{peer}: refused, 8 connections are open"] * 2
            await at.all_is_well()
        await at.alone()
        async with spiceshm.connect(f"unix:{at.path}"):
            await at.all_is_well()


async def test_who_loses_the_race_for_the_last_place_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with scene(bystanders=0, max_clients=1) as at, at.attacker() as it:
        with trio.fail_after(SOON):
            wires = [await it.dial(), await it.dial()]
            tickets = []
            for wire in wires:
                await wire.write(link_mess(MAIN, 0))
                tickets.append(ticket(await link_reply(wire)))
            first, second = wires
            await first.write(tickets[0])
            assert await first.read(4) == bytes(4)
            await second.write(tickets[1])
            assert await second.ended() == struct.pack("<I", 1)
        [line] = complaints(caplog)
        assert line.endswith(": refused, no more clients than 1 may be connected")


async def test_another_surface_comes_while_attackers_are_at_every_point(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with scene() as at, at.attacker() as linked, at.attacker() as offered:
        async with at.attacker() as shared:
            with trio.fail_after(SOON):
                await linked.open_display()
                offer = await offered.first_offer()
                serial = await shared.share()
            for _ in range(5):
                old, at.surface = at.surface, at.server.create_surface(WIDTH, HEIGHT)
                assert old is not at.surface
                await at.all_is_well()
            with trio.fail_after(SOON):
                # What was under way when the surface went is no breach.
                await offered.display.put(reply(offer.segment_id, proof=offer.token))
                await shared.display.put(handled(serial))
                await linked.display.put(INIT)
                await at.all_is_well()
                for it in (linked, offered, shared):
                    await it.main_is_well()
                    await it.find(shm.ShmDamage)
        assert complaints(caplog) == []
        linked.stack.close()
        offered.stack.close()
        await at.alone()


async def test_a_server_without_descriptors_goes_on(tmp_path: Path) -> None:
    """A crowd takes every descriptor that the server may have."""
    with (
        serving("--surface", "64x48", "--fps", "200", prelude=limited(NOFILE=40)) as server,
        contextlib.ExitStack() as stack,
    ):
        path = server.address.removeprefix("unix:")
        async with spiceshm.connect(server.address, shm="require") as display_:
            crowd: list[Attacker] = []
            with trio.fail_after(SOON):
                while len(os.listdir(f"/proc/{server.pid}/fd")) < 40:
                    with trio.move_on_after(0.2):
                        it = Attacker(path, stack)
                        crowd.append(it)
                        await it.open_main()
                        it.display = await it.dial()
                        await link(it.display, DISPLAY, it.session)
                # Each now wants to be offered memory, and no descriptor is left to offer it with.
                for it in crowd:
                    with contextlib.suppress(AttributeError):
                        await it.display.put(INIT)
                frames = display_.frames()
                first = (await anext(frames)).serial
                while (await anext(frames)).serial < first + 100:
                    pass
            stack.close()
            with trio.fail_after(SOON):
                async with spiceshm.connect(server.address, shm="require"):
                    await anext(frames)
        assert server.status is None
        assert "Traceback" not in server.errors


# The hostile server


KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)
PAGE = 4096
STRIDE = WIDTH * 4
BUFFER = STRIDE * HEIGHT
SIZE = PAGE + 3 * BUFFER
TOKEN = bytes(range(32))


def memory(
    size: int = SIZE, seals: int = fcntl.F_SEAL_SHRINK, token: bytes = TOKEN, token_offset: int = 0
) -> int:
    """A descriptor of memory with a token in it, and some pixels behind that."""
    fd = os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.pwrite(fd, token, token_offset)
    for buffer in range(3):
        os.pwrite(fd, bytes([buffer + 1]) * BUFFER, PAGE + buffer * BUFFER)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def offer(segment_id: int = 1, **odd: Any) -> bytes:
    """SHM_OFFER for `memory`, or with anything else in its fields."""
    fields = {
        "magic": b"SHM1",
        "version": 1,
        "handle": 1,
        "flags": 1,
        "credits": 1,
        "size": SIZE,
        "token_offset": 0,
        "token_size": 32,
        "name": b"",
    } | odd
    fields.setdefault("name_size", len(fields["name"]))
    fixed = struct.pack(
        "<4sHHIBBBBQQII",
        fields["magic"],
        fields["version"],
        0,
        segment_id,
        *(fields[name] for name in ("handle", "flags", "credits")),
        0,
        *(fields[name] for name in ("size", "token_offset", "token_size", "name_size")),
    )
    return raw(OFFER, fixed + fields["name"])


def create_shm(**odd: Any) -> bytes:
    """SURFACE_CREATE_SHM in `memory`, or with anything else in its fields."""
    fields = {
        "surface_id": 0,
        "width": WIDTH,
        "height": HEIGHT,
        "format": 32,
        "flags": 1,
        "segment_id": 1,
        "stride": STRIDE,
        "shm_offset": PAGE,
        "mode": 0,
    } | odd
    return raw(CREATE_SHM, struct.pack("<7IQB7x", *fields.values()))


def damage(serial: int = 1, *rects: tuple[int, int, int, int], **odd: Any) -> bytes:
    """SHM_DAMAGE; without rectangles of the whole surface."""
    rects = rects or ((0, 0, HEIGHT, WIDTH),)
    fields = {"surface_id": 0, "segment_id": 1, "shm_offset": PAGE, "flags": 1} | odd
    fixed = struct.pack(
        "<IIQQQIIII",
        fields["surface_id"],
        fields["segment_id"],
        fields["shm_offset"],
        serial,
        0,
        fields["flags"],
        0,
        odd.get("n", len(rects)),
        0,
    )
    return raw(DAMAGE, fixed + b"".join(struct.pack("<4i", *rect) for rect in rects))


MARK = raw(102, b"")
WITHDRAW_1 = raw(WITHDRAW, struct.pack("<I", 1))
CREATE = raw(314, struct.pack("<5I", 0, WIDTH, HEIGHT, 32, 1))
DESTROY = raw(315, struct.pack("<I", 0))


def draw_copy(width: int = WIDTH, height: int = HEIGHT, byte: int = 7) -> bytes:
    """DRAW_COPY of a raw bitmap of one colour, at the top left."""
    rect = types.Rect(0, 0, height, width)
    data = bytes([byte]) * (width * height * 4)
    bitmap = display.Bitmap(8, display.BITMAP_TOP_DOWN, width, height, width * 4, data)
    image = display.Image(0, 0, 0, width, height, bitmap)
    copy = display.DrawCopy(0, rect, None, rect, display.ROP_PUT, 0, display.NO_MASK, image)
    return as_bytes(copy)


class HostileServer:
    """One connection of our client to a server that means harm."""

    def __init__(self, caps: tuple[int, ...] = CAPS, **options: Any) -> None:
        self.caps = caps
        self.options = options
        self.main: Wire
        self.display: Wire
        self.listener: trio.socket.SocketType
        self.stack = contextlib.ExitStack()
        self._fds: list[int] = []

    def keep(self, fd: int) -> int:
        """Close it at the end."""
        self.stack.callback(os.close, fd)
        return fd

    async def accept(self, listener: trio.socket.SocketType) -> Wire:
        sock, _ = await listener.accept()
        return self.stack.enter_context(Wire(sock, Sender.SERVER, **self.options))

    async def link(self, wire: Wire) -> LinkMess:
        """The link phase, which lets everybody in."""
        header = LinkHeader.parse(await wire.read(16))
        mess = LinkMess.parse(await wire.read(header.size))
        der = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        caps = self.caps if mess.channel_type == DISPLAY else ()
        body = LinkReply(0, der, (0b1011,), caps).packed
        await wire.write(LinkHeader(b"REDQ", 2, 2, len(body)).packed + body)
        await wire.read(4 + 128)
        await wire.write(bytes(4))
        wire.channel = "display" if mess.channel_type == DISPLAY else "main"
        return mess

    async def open_main(self, listener: trio.socket.SocketType) -> None:
        self.main = await self.accept(listener)
        await self.link(self.main)
        await self.main.put(main.MainInit(77, 1, 3, 2, 0, 0, 0, 0))
        await self.main.take(main.AttachChannels)

    async def open_display(self, listener: trio.socket.SocketType) -> None:
        self.display = await self.accept(listener)
        assert (await self.link(self.display)).connection_id == 77
        await self.display.find(display.DisplayInit)
        await self.display.put(SetAck(1, 20))

    async def offer(self, segment_id: int = 1, fds: Sequence[int] = (), **odd: Any) -> shm.ShmReply:
        """Offer memory; returns the answer. Without ``fds`` nothing is wrong with it."""
        fds = fds or [self.keep(memory())]
        await self.display.put(offer(segment_id, **odd))
        await self.display.write(b"@", fds)
        answer: shm.ShmReply = await self.display.find(shm.ShmReply)
        assert answer.segment_id == segment_id
        return answer

    async def share(self, **odd: Any) -> None:
        """Up to the first frame; its serial is 1."""
        answer = await self.offer(**odd)
        assert (answer.accepted, answer.proof) == (1, TOKEN)
        await self.display.put(create_shm(), damage(1), MARK)

    async def ordinary(self) -> None:
        """Show something in ordinary SPICE."""
        await self.display.put(CREATE, draw_copy(), MARK)


@contextlib.asynccontextmanager
async def hostile(act: Any, **options: Any) -> AsyncIterator[str]:
    """A server that does ``act`` on the display channel, then keeps its connections open."""
    with short_directory() as place:
        server = HostileServer(**options)
        with trio.socket.socket(socket.AF_UNIX) as listener, server.stack:
            await listener.bind(f"{place}/h")
            listener.listen()
            server.listener = listener

            async def run() -> None:
                try:
                    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
                        await server.open_main(listener)
                        await server.open_display(listener)
                        await act(server)
                        await server.display.ended()
                except Cut:
                    server.stack.close()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                yield f"unix:{place}/h"
                nursery.cancel_scope.cancel()


# Offers that our client refuses: it goes on in ordinary SPICE and says why


REFUSED: list[Any] = []


def refused(reason: int, why: str) -> Callable[[Any], Any]:
    def declare(act: Any) -> Any:
        REFUSED.append(pytest.param(act, reason, why, id=act.__name__))
        return act

    return declare


@refused(4, "the memory is not sealed against shrinking")
async def unsealed_memory(it: HostileServer) -> shm.ShmReply:
    return await it.offer(fds=[it.keep(memory(seals=0))])


@refused(4, "the memory is not sealed against shrinking")
async def memory_sealed_against_everything_else(it: HostileServer) -> shm.ShmReply:
    seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    return await it.offer(fds=[it.keep(memory(seals=seals))])


@refused(4, "the memory is not sealed against shrinking")
async def a_file_on_disk(it: HostileServer) -> shm.ShmReply:
    fd = it.keep(os.open(__file__, os.O_RDONLY))
    return await it.offer(fds=[fd], size=100, token_offset=0)


@refused(4, "the memory is not sealed against shrinking")
async def a_path_only_descriptor(it: HostileServer) -> shm.ShmReply:
    return await it.offer(fds=[it.keep(os.open(__file__, os.O_PATH))])


@refused(3, rf"the memory has {SIZE - 1} bytes, {SIZE} were offered")
async def memory_that_is_too_small(it: HostileServer) -> shm.ShmReply:
    return await it.offer(fds=[it.keep(memory(SIZE - 1))])


@refused(3, rf"the memory has {SIZE} bytes, {1 << 32} were offered")
async def an_offer_of_4_gib(it: HostileServer) -> shm.ShmReply:
    return await it.offer(size=1 << 32)


@refused(4, "the memory is not sealed against shrinking")
async def memory_that_shrinks_after_the_offer(it: HostileServer) -> shm.ShmReply:
    fd = it.keep(memory(seals=0))
    await it.display.put(offer())
    await it.display.write(b"@", [fd])
    os.ftruncate(fd, 0)
    answer: shm.ShmReply = await it.display.find(shm.ShmReply)
    return answer


@refused(2, "the descriptor is no regular file")
async def a_pipe(it: HostileServer) -> shm.ShmReply:
    reader, writer = os.pipe()
    it.keep(writer)
    return await it.offer(fds=[it.keep(reader)])


@refused(2, "the descriptor is no regular file")
async def a_socket(it: HostileServer) -> shm.ShmReply:
    return await it.offer(fds=[it.display.sock.fileno()])


@refused(2, "the descriptor is no regular file")
async def a_directory(it: HostileServer) -> shm.ShmReply:
    return await it.offer(fds=[it.keep(os.open("/", os.O_RDONLY))])


@refused(2, "the descriptor is no regular file")
async def a_device(it: HostileServer) -> shm.ShmReply:
    return await it.offer(fds=[it.keep(os.open("/dev/zero", os.O_RDONLY))])


@refused(2, r"cannot map .* MB of shared memory: .*")
async def memory_that_cannot_be_read(it: HostileServer) -> shm.ShmReply:
    fd = it.keep(memory())
    return await it.offer(fds=[it.keep(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY))])


@refused(2, "0 descriptors came with the offer, not one")
async def no_descriptor(it: HostileServer) -> shm.ShmReply:
    await it.display.put(offer() + b"@")
    answer: shm.ShmReply = await it.display.find(shm.ShmReply)
    return answer


@refused(2, "2 descriptors came with the offer, not one")
async def two_descriptors(it: HostileServer) -> shm.ShmReply:
    fd = it.keep(memory())
    return await it.offer(fds=[fd, fd])


@refused(2, r"\d+ descriptors came with the offer, not one")
async def sixteen_descriptors(it: HostileServer) -> shm.ShmReply:
    return await it.offer(fds=[it.keep(memory())] * 16)


@refused(2, r"0 descriptors came with the offer, not one")
async def more_descriptors_than_anybody_may_send(it: HostileServer) -> shm.ShmReply:
    return await it.offer(fds=[it.keep(memory())] * 250)


@refused(5, "memory of kind 2 is not known")
async def a_file_by_name(it: HostileServer) -> shm.ShmReply:
    await it.display.put(offer(handle=2, name=b"/etc/passwd"))
    answer: shm.ShmReply = await it.display.find(shm.ShmReply)
    return answer


@refused(5, "memory of kind 77 is not known")
async def memory_of_no_kind(it: HostileServer) -> shm.ShmReply:
    await it.display.put(offer(handle=77))
    answer: shm.ShmReply = await it.display.find(shm.ShmReply)
    return answer


for name, odd in {
    "magic": {"magic": b"SHM2"},
    "version": {"version": 2},
    "credits": {"credits": 0},
    "credits ": {"credits": 9},
    "size": {"size": 0},
    "size ": {"size": (1 << 32) + 1},
    "size  ": {"size": (1 << 64) - 1},
    "token": {"token_size": 15},
    "token ": {"token_size": 65},
    "token  ": {"token_offset": SIZE - 31},
    "token   ": {"token_offset": (1 << 64) - 16},
    "token    ": {"token_size": 0xFFFFFFFF},
    "name": {"name": b"a name"},
}.items():

    async def malformed(it: HostileServer, odd: Any = odd) -> shm.ShmReply:
        return await it.offer(**odd)

    why = f"the offer's {name.strip()} is malformed"
    REFUSED.append(pytest.param(malformed, 6, why, id=f"malformed_{name}"))


@pytest.mark.parametrize(("act", "reason", "why"), REFUSED)
async def test_an_offer_that_is_refused_leads_to_ordinary_spice(
    act: Any, reason: int, why: str
) -> None:
    answers: list[shm.ShmReply] = []

    async def script(it: HostileServer) -> None:
        answers.append(await act(it))
        await it.ordinary()

    async with scene() as at, hostile(script) as address:
        with trio.fail_after(SOON):
            async with spiceshm.connect(address) as remote:
                frame = await anext(remote.frames())
                assert (frame.pixels[:, :, :3] == 7).all()
                assert not remote.shared
                assert remote.segment_bytes == 0
                assert re.fullmatch(why, remote.reason or "")
                await at.all_is_well()
        [answer] = answers
        assert (answer.accepted, answer.credits, answer.proof) == (0, 0, b"")
        assert answer.reason == reason
        await at.all_is_well()


# What a server must not do: our client closes and says what it was


FAULTS: list[Any] = []


def fault(why: str, **options: Any) -> Callable[[Any], Any]:
    """Something that ends the connection with this error; ``options`` are for `HostileServer`."""

    def declare(act: Any) -> Any:
        FAULTS.append(pytest.param(act, why, options, id=act.__name__))
        return act

    return declare


def bad_damage(name: str, why: str, **odd: Any) -> None:
    """A SHM_DAMAGE that is wrong, after one that was right."""

    async def act(it: HostileServer) -> None:
        await it.share()
        await it.display.find(shm.ShmDamageHandled)
        rects = odd.get("rects", ((0, 0, HEIGHT, WIDTH),))
        fields = {key: value for key, value in odd.items() if key not in ("rects", "serial")}
        await it.display.put(damage(odd.get("serial", 2), *rects, **fields))

    FAULTS.append(pytest.param(act, f"display\\.shm_damage: {why}", {}, id=f"damage_{name}"))


OUTSIDE = r"rects: \(.*\) is not inside 64x48"
NOWHERE = r"shm_offset: \d+ is misaligned, past the segment or on its token"
bad_damage("below", OUTSIDE, rects=[(0, 0, HEIGHT + 1, WIDTH)])
bad_damage("right", OUTSIDE, rects=[(0, 0, HEIGHT, WIDTH + 1)])
bad_damage("above", OUTSIDE, rects=[(-1, 0, 1, 1)])
bad_damage("left", OUTSIDE, rects=[(0, -1, 1, 1)])
bad_damage("empty", OUTSIDE, rects=[(5, 5, 5, 6)])
bad_damage("inside_out", OUTSIDE, rects=[(6, 5, 5, 6)])
bad_damage("extreme", OUTSIDE, rects=[(-(1 << 31), -(1 << 31), (1 << 31) - 1, (1 << 31) - 1)])
bad_damage("one_bad_of_64", OUTSIDE, rects=[(0, 0, 1, 1)] * 63 + [(0, 0, HEIGHT, WIDTH + 1)])
bad_damage("without_rectangles", r"n: 0 is not in 1\.\.64", n=0, rects=[(0, 0, 1, 1)])
bad_damage("with_65", r"size: 1088 bytes, the limit is 1072", rects=[(0, 0, 1, 1)] * 65)
bad_damage("counting_more_than_there_are", ".*", n=2)
bad_damage("counting_fewer_than_there_are", ".*", n=1, rects=[(0, 0, 1, 1)] * 2)
bad_damage("counting_without_end", r"n: \d+ is not in 1\.\.64", n=0xFFFFFFFF)
bad_damage("past_the_segment", NOWHERE, shm_offset=SIZE - BUFFER + 4)
bad_damage("behind_the_segment", NOWHERE, shm_offset=SIZE)
bad_damage("on_the_token", NOWHERE, shm_offset=0)
bad_damage("on_the_tokens_last_byte", NOWHERE, shm_offset=28)
bad_damage("misaligned", NOWHERE, shm_offset=PAGE + 2)
bad_damage("wrapping_round", NOWHERE, shm_offset=(1 << 64) - 4)
bad_damage("wrapping_round_exactly", NOWHERE, shm_offset=(1 << 64) - BUFFER)
bad_damage("of_another_surface", r"surface_id: there is no surface 1", surface_id=1)
bad_damage("in_another_segment", r"segment_id: 2 is not accepted", segment_id=2)
bad_damage("again", r"serial: 1 does not rise", serial=1)
bad_damage("going_back", r"serial: 0 does not rise", serial=0)


@fault(r"display\.shm_damage: serial: more than 1 frames at once")
async def more_frames_than_credits(it: HostileServer) -> None:
    await it.offer()
    await it.display.put(create_shm(), damage(1), damage(2), MARK)


@fault(r"display\.shm_damage: not allowed in state OFFERED")
async def damage_without_a_surface(it: HostileServer) -> None:
    await it.offer()
    await it.display.put(damage(1))


@fault(r"display\.shm_damage: not allowed in state SHARED_EMPTY")
async def damage_on_a_surface_that_is_gone(it: HostileServer) -> None:
    await it.share()
    await it.display.put(DESTROY, damage(2))


@fault(r"display\.shm_damage: segment_id: 1 is not accepted")
async def damage_in_a_segment_that_was_withdrawn(it: HostileServer) -> None:
    await it.share()
    await it.display.find(shm.ShmDamageHandled)
    await it.display.put(WITHDRAW_1, damage(2))


@fault(r"display\.shm_damage: segment_id: 2 is not accepted")
async def damage_in_a_segment_that_was_refused(it: HostileServer) -> None:
    await it.share()
    await it.display.find(shm.ShmDamageHandled)
    assert not (await it.offer(2, fds=[it.keep(memory(seals=0))])).accepted
    await it.display.put(damage(2, segment_id=2))


def bad_create(name: str, why: str, **odd: Any) -> None:
    """A SURFACE_CREATE_SHM that is wrong."""

    async def act(it: HostileServer) -> None:
        await it.offer()
        await it.display.put(create_shm(**odd))

    why = f"display\\.surface_create_shm: {why}"
    FAULTS.append(pytest.param(act, why, {}, id=f"create_{name}"))


bad_create("without_width", r"width: 0 is not in 1\.\.16384", width=0)
bad_create("too_wide", r"width: 16385 is not in 1\.\.16384", width=16385)
bad_create("too_high", r"height: \d+ is not in 1\.\.16384", height=0xFFFFFFFF)
bad_create("in_another_format", r"format: 16 is not 32 or 96", format=16)
bad_create("in_place", r"mode: in place was not asked for", mode=1)
bad_create("in_a_mode_that_is_none", r"mode: 2 is not 0 or 1", mode=2)
bad_create("of_another_surface", r"surface_id: the primary surface is 0", surface_id=1)
bad_create("in_a_segment_that_is_none", r"segment_id: 2 is not accepted", segment_id=2)
bad_create("with_lines_too_short", r"stride: 252 for 64 pixels", stride=STRIDE - 4)
bad_create("with_odd_lines", r"stride: 258 for 64 pixels", stride=STRIDE + 2)
bad_create("with_endless_lines", NOWHERE, stride=0xFFFFFFFC)
bad_create("larger_than_the_segment", NOWHERE, height=3 * HEIGHT + 1)
bad_create("on_the_token", NOWHERE, shm_offset=0)
bad_create("past_the_segment", NOWHERE, shm_offset=SIZE)
bad_create("wrapping_round", NOWHERE, shm_offset=(1 << 64) - BUFFER)


@fault(r"display\.surface_create_shm: came although not every offer was accepted")
async def shared_memory_after_a_refusal(it: HostileServer) -> None:
    await it.offer(fds=[it.keep(memory(seals=0))])
    await it.display.put(create_shm())


@fault(r"display\.surface_create_shm: not allowed in state READY")
async def a_shared_surface_without_an_offer(it: HostileServer) -> None:
    await it.display.put(create_shm())


@fault(r"display\.surface_create_shm: not allowed in state SHARED")
async def a_second_surface(it: HostileServer) -> None:
    await it.share()
    await it.display.put(create_shm())


@fault(r"display\.surface_create_shm: not allowed in state ORDINARY")
async def shared_memory_after_ordinary_spice(it: HostileServer) -> None:
    await it.offer()
    await it.ordinary()
    await it.display.put(create_shm())


@fault(r"display\.draw_copy: not allowed in state SHARED")
async def drawing_in_shared_memory_mode(it: HostileServer) -> None:
    await it.share()
    await it.display.put(draw_copy())


@fault(r"display message 321: not allowed in state SHARED")
async def drawing_that_we_do_not_know_in_shared_memory_mode(it: HostileServer) -> None:
    await it.share()
    await it.display.put(raw(321, bytes(50)))


@fault(r"display\.surface_create: not allowed in state SHARED")
async def ordinary_spice_while_a_shared_surface_exists(it: HostileServer) -> None:
    await it.share()
    await it.display.put(CREATE)


@fault(r"display\.surface_destroy: surface_id: .*")
async def destroying_what_is_not_there(it: HostileServer) -> None:
    await it.share()
    await it.display.put(raw(315, struct.pack("<I", 5)))


@fault(r"display\.shm_withdraw: segment_id: is not in use")
async def withdrawing_what_was_never_offered(it: HostileServer) -> None:
    await it.share()
    await it.display.put(raw(WITHDRAW, struct.pack("<I", 9)))


@fault(r"display\.shm_withdraw: segment_id: is not in use")
async def withdrawing_twice(it: HostileServer) -> None:
    await it.share()
    await it.display.put(WITHDRAW_1, WITHDRAW_1)


@fault(r"display message 464: is unknown")
async def an_unknown_message_of_our_block(it: HostileServer) -> None:
    await it.share()
    await it.display.put(raw(464, b""))


@fault(r"display\.shm_offer: descriptor: byte 0x41 is not '@'")
async def a_wrong_byte_behind_the_offer(it: HostileServer) -> None:
    await it.display.put(offer())
    await it.display.write(b"A", [it.keep(memory())])


@fault(r"display\.shm_offer: descriptor: byte 0x.. is not '@'")
async def a_message_in_the_place_of_the_byte(it: HostileServer) -> None:
    await it.display.put(offer(), CREATE, MARK)


@fault(r"display\.shm_offer: .*")
async def an_offer_whose_name_is_shorter_than_it_says(it: HostileServer) -> None:
    await it.display.put(offer(handle=2, name=b"abc", name_size=4))


@fault(r"display\.shm_offer: .*")
async def an_offer_whose_name_is_longer_than_it_says(it: HostileServer) -> None:
    await it.display.put(offer(handle=2, name=b"abc", name_size=2))


@fault(r"display\.shm_offer: came without the capability", caps=(1 << 1,))
async def an_offer_without_the_capability(it: HostileServer) -> None:
    await it.display.put(offer())
    await it.display.write(b"@", [it.keep(memory())])


@fault(r"display message 65535: size: 4294967295 bytes, the limit is \d+")
async def a_message_of_4_gib_for_us(it: HostileServer) -> None:
    await it.display.put(raw(65535, b"", 0xFFFFFFFF))


@fault(r"display\.mark: size: 1 bytes, the limit is 0")
async def a_mark_with_a_body(it: HostileServer) -> None:
    await it.share()
    await it.display.put(raw(102, b"!"))


@fault(r"main message 65535: size: \d+ bytes, the limit is \d+")
async def a_huge_message_on_main(it: HostileServer) -> None:
    await it.share()
    await it.main.put(raw(65535, b"", 1 << 30))


@fault(r"main\.init: not allowed in state OPEN")
async def a_second_session_on_main(it: HostileServer) -> None:
    await it.share()
    await it.main.put(main.MainInit(78, 1, 3, 2, 0, 0, 0, 0))


def bad_draw(name: str, why: str, body: bytes) -> None:
    """A DRAW_COPY that is wrong, on a surface in ordinary SPICE."""

    async def act(it: HostileServer) -> None:
        await it.ordinary()
        await it.display.put(raw(304, body))

    FAULTS.append(pytest.param(act, f"display\\.draw_copy: {why}", {}, id=f"draw_{name}"))


def drawing(**odd: Any) -> bytes:
    """The body of a DRAW_COPY of 4x4 pixels, field by field."""
    f = {
        "surface_id": 0,
        "box": (0, 0, 4, 4),
        "clip": b"\0",
        "src_bitmap": None,
        "src_area": (0, 0, 4, 4),
        "mask": 0,
        "image_type": 0,
        "format": 8,
        "x": 4,
        "y": 4,
        "stride": 16,
        "data": bytes(64),
    } | odd
    head = struct.pack("<I4i", f["surface_id"], *f["box"]) + f["clip"]
    tail = struct.pack("<4iHBBiiI", *f["src_area"], 8, 0, 0, 0, 0, f["mask"])
    at = len(head) + 4 + len(tail) if f["src_bitmap"] is None else f["src_bitmap"]
    image = struct.pack("<QBBII", 1, f["image_type"], 0, 4, 4)
    bitmap = struct.pack("<BBIIII", f["format"], 4, f["x"], f["y"], f["stride"], 0)
    return head + struct.pack("<I", at) + tail + image + bitmap + f["data"]


bad_draw("of_nothing", ".*", b"")
bad_draw("of_noise", ".*", bytes(range(256)) * 4)
bad_draw("inside_out", r"box: is empty", drawing(box=(4, 4, 0, 0)))
bad_draw("from_outside", r"src_area: is outside the image", drawing(src_area=(1, 0, 5, 4)))
bad_draw("from_before", r"src_area: is outside the image", drawing(src_area=(-1, 0, 3, 4)))
bad_draw("compressed", r"image\.content\.data: .*", drawing(image_type=1))
bad_draw("in_zlib_glz", r"image\.content\.data: .*", drawing(image_type=107))
bad_draw("cut_short", ".*", drawing(data=bytes(63)))
bad_draw("with_short_lines", r"image\..*stride: .*", drawing(stride=8))
bad_draw("with_endless_lines", ".*", drawing(stride=0xFFFFFFFF))
bad_draw("of_a_huge_image", ".*", drawing(x=0xFFFFFFFF, y=0xFFFFFFFF))
bad_draw("with_the_image_nowhere", ".*", drawing(src_bitmap=0xFFFFFFFF))
bad_draw("with_the_image_in_itself", ".*", drawing(src_bitmap=0))
bad_draw("on_no_surface", r"surface_id: there is no 9", drawing(surface_id=9))
bad_draw("clipped_by_nothing_there", ".*", drawing(clip=b"\1" + struct.pack("<I", 0xFFFFFFFF)))


@fault(r"display\.draw_fill: brush\.type: 3 is not 0 or 1 or 2")
async def a_fill_with_no_known_brush(it: HostileServer) -> None:
    await it.ordinary()
    await it.display.put(raw(302, pair.fill().packed.replace(b"\0\1\x56", b"\0\3\x56")))


@fault(r"display\.draw_fill: box: is empty")
async def a_fill_inside_out(it: HostileServer) -> None:
    await it.ordinary()
    body = bytearray(pair.fill().packed)
    body[12:16] = struct.pack("<i", -1)
    await it.display.put(raw(302, bytes(body)))


async def look_on(address: str) -> None:
    """Look at every frame."""
    async with spiceshm.connect(address) as remote:
        async for _ in remote.frames():
            pass


@pytest.mark.parametrize(("act", "why", "options"), FAULTS)
async def test_a_servers_fault_ends_the_connection_with_one_line(
    act: Any, why: str, options: Any
) -> None:
    async with scene() as at, hostile(act, **options) as address:
        with trio.fail_after(SOON), pytest.raises(spiceshm.RemoteProtocolError) as caught:
            await look_on(address)
        assert re.fullmatch(f"{re.escape(address)}: {why}", str(caught.value))
        await at.all_is_well()


# Every message that a client can be sent, cut off, with more behind it, and too large


SPOILT = ("cut", "longer", "huge")
EXAMPLES = pair.examples()


def spoilt(message: Message, how: str) -> bytes | None:
    """A message that nobody may send; None if it could be sent so."""
    kind, body = type(message), message.packed
    if how == "huge":
        return raw(kind.number, b"", 0xFFFFFFFF)
    body = body[:-1] if how == "cut" else body + b"\1"
    try:
        kind.parse(body)
    except spiceshm.RemoteProtocolError:
        return raw(kind.number, body)
    return None


def sent_on(channel: str) -> list[Message]:
    """What a server may say on a channel that is open, a message of each kind."""
    state = State.ORDINARY if channel == "display" else State.OPEN
    kinds = [
        kind
        for kind in MESSAGES.values()
        if kind.sender is Sender.SERVER
        and (kind.channel == "base" or kind in TABLES[channel][state])
    ]
    return [max(EXAMPLES[kind], key=lambda example: len(example.packed)) for kind in kinds]


FIRST = {
    "cursor": cursor.CursorInit(0, 0, 0, 0, 1, cursor.Cursor(cursor.FLAG_NONE)),
    "inputs": inputs.InputsInit(0),
}


@pytest.mark.parametrize("channel", ["display", "main", "cursor", "inputs"])
async def test_no_message_of_a_server_may_be_cut_off_or_too_long(channel: str) -> None:
    """One line that names the server, the message and what is wrong; nothing stays open."""
    wrong: bytes

    async def act(it: HostileServer) -> None:
        await it.ordinary()
        wire = it.main if channel == "main" else it.display
        if channel in FIRST:
            listed = [main.ChannelId(kind, 0) for kind in (1, 2, 3, 4)]
            await it.main.put(main.ChannelsList(tuple(listed)))
            wire = await it.accept(it.listener)
            await it.link(wire)
            await wire.put(FIRST[channel])
        await wire.put(wrong)

    async def look(address: str) -> None:
        async with spiceshm.connect(address) as remote:
            if channel == "cursor":
                await remote.cursor()
            elif channel == "inputs":
                await remote.key("a")
            async for _ in remote.frames():
                pass

    tried = 0
    with pair.no_descriptor_left():
        for message in sent_on(channel):
            for how in SPOILT:
                if (found := spoilt(message, how)) is None:
                    continue
                wrong = found
                async with hostile(act) as address:
                    with (
                        trio.fail_after(SOON),
                        pytest.raises(spiceshm.RemoteProtocolError) as caught,
                    ):
                        await look(address)
                title = re.escape(f"{address}: {message.title}: ")
                assert re.fullmatch(
                    title + r"[a-z][^\n]*|" + title + r"\d+ bytes[^\n]*", str(caught.value)
                )
                tried += 1
    assert tried > 2 * len(sent_on(channel))


@pytest.mark.parametrize("strict", [False, True])
async def test_recorded_sessions_that_were_changed_end_in_one_line(strict: bool) -> None:
    """As tests/test_fuzz.py has them, for a whole client that looks at what is drawn."""
    ends: Counter[str] = Counter()

    async def act(it: HostileServer) -> None:
        for data in streams.stream(random):
            await it.display.write(data)
        raise Cut

    async def look(address: str) -> None:
        options = {"cache_pixels": 1 << 20, "compression": "glz", "video": True}
        async with spiceshm.connect(address, strict=strict, **options) as remote:
            async for frame in remote.frames():
                assert not remote.shared
                assert frame.pixels.shape == (remote.height, remote.width, 4)
                await remote.latest()

    with pair.no_descriptor_left():
        for seed in range(40):
            random = Random(seed)
            async with hostile(act) as address:
                with trio.fail_after(SOON), pytest.raises(spiceshm.SpiceShmError) as caught:
                    await look(address)
            assert str(caught.value).startswith(f"{address}: ")
            assert "\n" not in str(caught.value)
            ends[type(caught.value).__name__] += 1
    assert ends["RemoteProtocolError"] > 10
    assert ends["Disconnected"] > 4
    assert ends["CannotDecode"] > 0 or not strict
    assert set(ends) <= {"RemoteProtocolError", "Disconnected", "CannotDecode"}


# Servers that go, hang, or talk nonsense before anything is shown


async def a_whole_show(it: HostileServer) -> None:
    """Everything that a server says, up to the second frame."""
    await it.share()
    await it.display.find(shm.ShmDamageHandled)
    await it.display.put(damage(2, (0, 0, 1, 1), flags=0))
    await it.display.find(shm.ShmDamageHandled)


async def show(address: str) -> int:
    """Look at a display for as long as it lives; returns the serial of the last frame."""
    seen = 0
    with contextlib.suppress(spiceshm.Disconnected):
        async with spiceshm.connect(address) as remote:
            async for frame in remote.frames():
                assert (frame.pixels == 1).all()
                seen = frame.serial
    return seen


async def bytes_of_a_show() -> int:
    sent = 0

    async def act(it: HostileServer) -> None:
        nonlocal sent
        await a_whole_show(it)
        sent = it.main.sent + it.display.sent
        raise Cut

    async with hostile(act) as address:
        assert await show(address) == 2
    return sent


async def test_a_server_may_go_at_every_point() -> None:
    """After every single byte of what it says."""
    seen = []
    async with scene() as at:
        for budget in range(await bytes_of_a_show()):
            with trio.fail_after(SOON):
                async with hostile(a_whole_show, budget=[budget]) as address:
                    seen.append(await show(address))
            if budget % 50 == 0:
                await at.all_is_well(frames=1)
        await at.all_is_well()
    assert seen == sorted(seen)
    assert set(seen) == {0, 1}


async def test_a_server_that_hangs_before_anything_is_shown_is_given_up_after_10_s(
    jumping: trio.testing.MockClock,
) -> None:
    first_frame = await bytes_of_a_show() - 2 * 70  # two messages of damage
    async with scene() as at:
        for budget in [*range(0, first_frame, 60), first_frame]:
            async with hostile(a_whole_show, budget=[budget], hang=True) as address:
                start = trio.current_time()
                with trio.fail_after(100), pytest.raises(spiceshm.ConnectError) as caught:
                    await show(address)
                assert HANDSHAKE <= trio.current_time() - start < HANDSHAKE + 2
            assert str(caught.value) == (f"{address}: nothing was shown within 10 s of connecting")
        await at.all_is_well()


@pytest.mark.parametrize("descriptor", ["never", "never, for a later offer"])
async def test_an_offer_whose_descriptor_never_comes_is_given_up_after_10_s(
    descriptor: str, jumping: trio.testing.MockClock
) -> None:
    async def act(it: HostileServer) -> None:
        if descriptor != "never":
            await it.share()
            await it.display.find(shm.ShmDamageHandled)
        await it.display.put(offer(2))

    async with scene() as at, hostile(act) as address:
        start = trio.current_time()
        with trio.fail_after(100), pytest.raises(spiceshm.SpiceShmError) as caught:
            await look_on(address)
        assert HANDSHAKE <= trio.current_time() - start < HANDSHAKE + 2
        assert "\n" not in str(caught.value)
        await at.all_is_well()


NONSENSE: dict[str, tuple[bytes, type[Exception], str]] = {
    "nothing": (
        b"",
        spiceshm.Disconnected,
        "the other end closed the connection before it said anything; a port for TLS, which is not "
        "spoken here, is like that",
    ),
    "VNC": (
        b"RFB 003.008\n    ",
        spiceshm.RemoteProtocolError,
        "link_header: invalid_magic: 52 46 42 20.*",
    ),
    "a web server": (
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        spiceshm.RemoteProtocolError,
        "link_header: invalid_magic: 48 54 54 50.*",
    ),
    "another version": (
        link_header(major=1, size=178) + bytes(178),
        spiceshm.RemoteProtocolError,
        "link_header: version_mismatch: 52 45 44 51.*",
    ),
    "a reply of 4 GiB": (
        link_header(size=0xFFFFFFFF),
        spiceshm.RemoteProtocolError,
        "link_header: invalid_data: 52 45 44 51.*",
    ),
    "a reply of nothing": (
        link_header(size=0),
        spiceshm.RemoteProtocolError,
        "link_header: invalid_data: 52 45 44 51.*",
    ),
    "no key": (
        link_header(size=178) + struct.pack("<I162sIII", 0, bytes(162), 0, 0, 178),
        spiceshm.RemoteProtocolError,
        "link_reply: pub_key: .*",
    ),
    "capabilities outside": (
        link_header(size=178) + struct.pack("<I162sIII", 0, bytes(162), 2, 2, 0xFFFFFFFF),
        spiceshm.RemoteProtocolError,
        "link_reply: .*",
    ),
    "a refusal": (
        link_header(size=178) + struct.pack("<I162sIII", 5, bytes(162), 0, 0, 178),
        spiceshm.LinkRefused,
        r"the server refused the connection: need secured \(5\); it wants TLS, "
        "which is not spoken here",
    ),
    "a refusal of no known kind": (
        link_header(size=178) + struct.pack("<I162sIII", 99, bytes(162), 0, 0, 178),
        spiceshm.LinkRefused,
        r"the server refused the connection: unknown \(99\)",
    ),
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_what_is_no_spice_server_is_one_line(what: str) -> None:
    said, kind, why = NONSENSE[what]
    with short_directory() as place, trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(f"{place}/h")
        listener.listen()

        async def serve() -> None:
            sock, _ = await listener.accept()
            with sock:
                await sock.send(said)
                sock.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    while await sock.recv(1000):
                        pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with trio.fail_after(SOON), pytest.raises(spiceshm.SpiceShmError) as caught:
                async with spiceshm.connect(f"unix:{place}/h"):
                    pass
        assert type(caught.value) is kind
        assert re.fullmatch(rf"unix:{re.escape(str(place))}/h: {why}", str(caught.value))


# What holds whatever the server does


async def test_a_segment_withdrawn_while_a_frame_is_held_stays_readable() -> None:
    withdrawn, let_go = trio.Event(), trio.Event()

    async def act(it: HostileServer) -> None:
        await it.share()
        await it.offer(2, fds=[it.keep(memory())])
        await it.display.put(WITHDRAW_1)
        await it.display.put(raw(4, struct.pack("<IQ", 1, 2)))  # its PONG: all was read
        await it.display.find(Pong)
        withdrawn.set()
        assert (await it.display.find(shm.ShmDamageHandled)).serial == 1
        await it.display.put(damage(2, segment_id=2, shm_offset=PAGE + BUFFER))
        let_go.set()

    async with scene() as at, hostile(act) as address:
        async with spiceshm.connect(address) as remote:
            frames = remote.frames()
            frame = await anext(frames)
            held = frame.pixels
            with trio.fail_after(SOON):
                await withdrawn.wait()
            assert (held == 1).all()
            assert len(hostile_maps()) == 2
            assert remote.segment_bytes == SIZE
            del held
            with trio.fail_after(SOON):
                frame = await anext(frames)
                await let_go.wait()
            assert (frame.pixels == 2).all()
            assert len(hostile_maps()) == 1  # nobody looks into the other one any more
        await at.all_is_well()


def hostile_maps() -> list[str]:
    maps = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in maps if "/memfd:hostile" in line]


async def test_an_offer_of_holes_makes_no_memory() -> None:
    size = 1 << 30

    async def act(it: HostileServer) -> None:
        fd = it.keep(memory(size))
        await it.offer(fds=[fd], size=size)
        await it.display.put(create_shm(), damage(1), MARK)
        await it.display.find(shm.ShmDamageHandled)
        allocated.append(os.fstat(fd).st_blocks * 512)
        raise Cut

    allocated: list[int] = []
    async with hostile(act) as address:
        assert await show(address) == 1
    assert allocated[0] < 10 << 20


async def test_every_mapping_of_a_client_is_read_only() -> None:
    async def act(it: HostileServer) -> None:
        await it.share()

    async with hostile(act) as address, spiceshm.connect(address) as remote:
        frame = await anext(remote.frames())
        assert not frame.pixels.flags.writeable
        with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
            frame.pixels[0, 0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            frame.pixels.flags.writeable = True
        [line] = hostile_maps()
        assert line.split()[1] == "r--s"


@pytest.mark.parametrize("channel", ["main", "display"])
async def test_a_flood_of_pings_is_answered_and_disturbs_nobody(channel: str) -> None:
    rounds = 2000

    async def act(it: HostileServer) -> None:
        await it.share()
        wire = it.main if channel == "main" else it.display
        ping = raw(4, struct.pack("<IQ", 1, 2) + bytes(100))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.write, ping * rounds)
            for _ in range(rounds):
                await wire.find(Pong)
        done.set()

    done = trio.Event()
    async with scene() as at, hostile(act) as address:
        async with spiceshm.connect(address) as remote:
            await anext(remote.frames())
            while not done.is_set():
                await at.all_is_well(frames=1)


@pytest.mark.parametrize("channel", ["main", "display"])
async def test_a_server_that_pings_and_never_reads_costs_no_memory(channel: str) -> None:
    most = 8 << 20

    async def act(it: HostileServer) -> None:
        nonlocal sent
        await it.share()
        wire = it.main if channel == "main" else it.display
        block = raw(4, struct.pack("<IQ", 1, 2)) * 5000
        while sent < most:
            await wire.write(block)
            sent += len(block)

    sent = 0
    async with scene() as at, hostile(act) as address:
        async with spiceshm.connect(address) as remote:
            await anext(remote.frames())
            before = -1
            while sent > before and sent < most:  # until it is no longer read, or all is
                before = sent
                await at.all_is_well(frames=20)
            assert sent < most, "the client took it all, so it keeps the answers"


# What memory allows, asked of real processes


def many_fills(surface_id: int) -> bytes:
    """A few bytes draw on all of a large surface, and a read has room for many of these."""
    side = 2000
    tile = display.Image(0, 0, 0, 1, 1, display.Bitmap(8, 4, 1, 1, 4, b"abcd"))
    brush = display.Brush(2, None, display.Pattern(tile, types.Point(0, 0)))
    box = types.Rect(0, 0, side, side)
    fill = display.DrawFill(surface_id, box, None, brush, 8, display.NO_MASK)
    return raw(314, struct.pack("<5I", surface_id, side, side, 32, 1)) + as_bytes(fill) * 4000


@pytest.mark.parametrize("looks", ["never", "asks", "loops"])
async def test_a_flood_of_drawing_keeps_nobody_waiting(looks: str) -> None:
    async def act(it: HostileServer) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await it.display.write(many_fills(0))

    async def look(remote: spiceshm.RemoteDisplay) -> None:
        while looks == "asks":
            await remote.latest()
        async for frame in remote.frames():
            assert frame.pixels[-1, -1].tobytes() == b"abcd"

    longest = 0.0
    async with hostile(act) as address, spiceshm.connect(address) as remote:
        async with trio.open_nursery() as nursery:
            if looks != "never":
                nursery.start_soon(look, remote)
            now = time.monotonic()
            for _ in range(8):
                await trio.sleep(0.01)
                before, now = now, time.monotonic()
                longest = max(longest, now - before)
            nursery.cancel_scope.cancel()
        assert remote.wire_bytes > 1 << 10
    assert longest < 1


async def test_a_flood_of_drawing_before_anything_is_shown_does_not_keep_the_deadline() -> None:
    async def act(it: HostileServer) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await it.display.write(many_fills(7))

    start = time.monotonic()
    async with hostile(act) as address:
        with trio.move_on_after(0.3) as scope:
            async with spiceshm.connect(address):
                pass
    assert scope.cancelled_caught
    assert time.monotonic() - start < 3


async def test_what_changed_in_many_parts_is_remembered_in_few() -> None:
    """Of the last 1024 frames it is known where they changed the picture."""
    box = types.Rect(0, 0, HEIGHT, WIDTH)
    dots = np.array([(y, x, y + 1, x + 1) for y in range(0, 16, 2) for x in range(0, 16, 2)], "<i4")
    brush = display.Brush(display.BRUSH_SOLID, 0x123456)
    fill = as_bytes(display.DrawFill(0, box, dots, brush, 8, display.NO_MASK))

    connected = trio.Event()

    async def act(it: HostileServer) -> None:
        await it.ordinary()
        await connected.wait()
        await it.display.write(fill * 400)

    async with hostile(act) as address, spiceshm.connect(address) as remote:
        connected.set()
        with trio.fail_after(SOON):
            while remote.wire_bytes < 400 * len(fill):
                await trio.lowlevel.checkpoint()
        kept = [rects for _, _, rects in remote._channel.changes._kept]
        assert len(kept) > 1
        assert max(map(len, kept)) <= 256


def vm_flags(pid: int) -> list[set[str]]:
    """The VmFlags of every mapping of our memory, as /proc/PID/smaps has them."""
    found, ours = [], False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = "/memfd:spiceshm" in line
        elif ours and line.startswith("VmFlags:"):
            found.append(set(line.split()[1:]))
    return found


def test_a_client_process_maps_read_only_and_neither_dumps_it() -> None:
    with serving("--surface", "640x480", "--fps", "100") as server:
        with Program(command("client", "--duration", "60", server.address)) as client:
            until(lambda: mapped(client.pid))
            assert {permissions for permissions, _ in mapped(client.pid)} == {"r--s"}
            assert {permissions for permissions, _ in mapped(server.pid)} == {"rw-s"}
            for pid in (client.pid, server.pid):
                flags = vm_flags(pid)
                assert flags
                assert all("dd" in each for each in flags), "it would be in a core dump"
            assert not any("mw" in each for each in vm_flags(client.pid)), "it may be made writable"


ATTEMPTS = """
import ctypes, errno, fcntl, json, mmap, os, sys

fd = int(sys.argv[1])
size = os.fstat(fd).st_size
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
RW = mmap.PROT_READ | mmap.PROT_WRITE

def checked(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), "")

def call(name, *arguments):
    checked(getattr(libc, name)(*arguments))

def address():
    place = libc.mmap(None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    assert place != ctypes.c_void_p(-1).value
    return ctypes.c_void_p(place)

def again(flags):
    return os.open(f"/proc/self/fd/{fd}", flags)

def through_proc_mem():
    memory = os.open("/proc/self/mem", os.O_RDWR)
    os.pwrite(memory, b"x", address().value)

source = os.memfd_create("source")
os.write(source, b"x" * 100)

attempts = {
    "map it writable": lambda: mmap.mmap(fd, size, mmap.MAP_SHARED, RW),
    "map it writable only": lambda: mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_WRITE),
    "make the mapping writable": lambda: call("mprotect", address(), ctypes.c_size_t(size), RW),
    "write through /proc/self/mem": through_proc_mem,
    "write": lambda: os.write(fd, b"x"),
    "pwrite": lambda: os.pwrite(fd, b"x", 4096),
    "sendfile": lambda: os.sendfile(fd, source, 0, 100),
    "copy_file_range": lambda: os.copy_file_range(source, fd, 100, 0, 0),
    "shrink": lambda: os.ftruncate(fd, 0),
    "shrink by a page": lambda: os.ftruncate(fd, size - 4096),
    "grow": lambda: os.ftruncate(fd, size + 4096),
    "allocate more": lambda: os.posix_fallocate(fd, 0, size + 4096),
    "punch a hole": lambda: call(
        "fallocate", fd, 3, ctypes.c_long(4096), ctypes.c_long(4096)
    ),
    "remove a page": lambda: call("madvise", address(), ctypes.c_size_t(4096), 9),
    "add a seal": lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    "open it again and write": lambda: os.write(again(os.O_RDWR), b"x"),
    "open it again and map it": lambda: mmap.mmap(again(os.O_RDWR), size, mmap.MAP_SHARED, RW),
    "open it again to truncate it": lambda: again(os.O_RDWR | os.O_TRUNC),
    "open it again to shrink it": lambda: os.truncate(f"/proc/self/fd/{fd}", 0),
}
outcome = {}
for name, attempt in attempts.items():
    try:
        attempt()
        outcome[name] = "done"
    except OSError as error:
        outcome[name] = errno.errorcode.get(error.errno, str(error))
private = mmap.mmap(fd, size, mmap.MAP_PRIVATE, RW)
private[:] = b"x" * size  # its own copy, and nobody else's
print(json.dumps(outcome))
"""


async def test_who_holds_the_descriptor_cannot_change_a_byte() -> None:
    with serving("--surface", "640x480", "--fps", "0.001") as server:
        with contextlib.ExitStack() as stack:
            it = Attacker(server.address.removeprefix("unix:"), stack)
            fd = (await it.first_offer()).fd
            size = os.fstat(fd).st_size
            before = os.pread(fd, size, 0)
            assert any(before)
            child = subprocess.run(
                [sys.executable, "-c", ATTEMPTS, str(fd)],
                pass_fds=[fd],
                capture_output=True,
                timeout=DEADLINE,
            )
            assert child.stderr == b""
            outcome = json.loads(child.stdout)
            assert len(outcome) == 19
            assert {name: error for name, error in outcome.items() if error == "done"} == {}
            assert set(outcome.values()) <= {"EPERM", "EACCES", "EIO", "EFAULT"}
            assert os.pread(fd, size, 0) == before
            assert os.fstat(fd).st_size == size


def test_a_server_without_memory_says_so_in_one_line(tmp_path: Path) -> None:
    for prelude in (limited(FSIZE=1 << 20), limited(AS=1 << 29)):
        result = run(
            "server", "--surface", "8192x4096", "--listen", f"unix:{tmp_path}/s", prelude=prelude
        )
        assert result.returncode == 1
        [line] = result.stderr.decode().splitlines()
        assert re.fullmatch(
            r"spiceshm-server: cannot (have|map) \d+\.\d MB of shared memory: .*", line
        )
        assert not (tmp_path / "s").exists()


NO_MAPPING = """
import errno, mmap, os
class Refused(mmap.mmap):
    def __new__(cls, fd, *arguments):
        if fd >= 0:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return super().__new__(cls, fd, *arguments)
mmap.mmap = Refused
"""


def test_a_client_that_cannot_map_goes_on_in_ordinary_spice() -> None:
    with serving("--surface", "640x480", "--fps", "0.001") as server:
        result = look("--json", server.address, prelude=NO_MAPPING)
        assert result.returncode == 0, result.stderr
        said = json.loads(result.stdout)
        assert said["shm"] is False
        assert re.match(
            r"cannot map \d\.\d MB of shared memory: .*Cannot allocate memory", said["reason"]
        )
        result = look("--require-shm", server.address, prelude=NO_MAPPING)
        assert result.returncode == 3
        [line] = result.stderr.decode().splitlines()
        assert "memory is not shared: cannot map" in line


async def test_a_held_view_outlives_its_server() -> None:
    with serving("--surface", "320x200", "--fps", "200", "--damage", "full") as server:
        async with spiceshm.connect(server.address, shm="require", credits=3) as remote:
            with contextlib.suppress(spiceshm.Disconnected), trio.fail_after(SOON):
                async for frame in remote.frames():
                    held, copy = frame.pixels, frame.copy()
                    if frame.serial > 20:
                        server.send(signal.SIGKILL)
                        server.wait()
    assert server.status == -signal.SIGKILL
    assert np.array_equal(held, copy)
    assert mapped(os.getpid())


async def test_a_held_view_outlives_its_surface() -> None:
    async with scene() as at, spiceshm.connect(f"unix:{at.path}", credits=2) as remote:
        frames = remote.frames()
        frame = await anext(frames)
        held, copy = frame.pixels, frame.copy()
        frame.release()
        assert remote.shared
        for _ in range(10):
            at.surface = at.server.create_surface(WIDTH, HEIGHT)
            await at.all_is_well()
            with trio.fail_after(SOON):
                while (await anext(frames)).serial < at.surface.serial:
                    pass
            assert np.array_equal(held, copy)
        at.surface = at.server.create_surface(2 * WIDTH, 2 * HEIGHT)
        at.surface.draw(np.zeros((2 * HEIGHT, 2 * WIDTH, 4), np.uint8))
        assert np.array_equal(held, copy)
