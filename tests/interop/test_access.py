"""Who is refused, with what words, and that nobody else notices; who is let in, all at once.

Most refusals are asked for by hand, for no stock program can be made to send what is refused. What
stock programs make of the answers is read off their exit status, their words and their windows.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import subprocess
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import load_der_public_key

import spiceshm
from spiceshm.errors import Disconnected
from spiceshm.sources.pattern import Pattern
from spiceshm.transport import open_stream, parse_address
from spiceshm.wire import main
from spiceshm.wire.link import LinkHeader, LinkMess, LinkReply
from spiceshm.wire.types import ChannelType, MouseMode
from tests import byhand
from tests.interop.viewers import opened
from tests.programs import DEADLINE, serving, short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from spiceshm.client import Sharing
    from spiceshm.events import Event
    from spiceshm.transport import Stream

WIDTH, HEIGHT = 640, 480
TICKET = b"sesame"
ANSWERED_S = 1.0
"""Seconds within which everybody is answered, and sees what is drawn."""

MAIN, DISPLAY, INPUTS = ChannelType.MAIN, ChannelType.DISPLAY, ChannelType.INPUTS


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for sockets and files."""
    with short_directory() as path:
        yield path


# Who is there, and must notice nothing


def picture(step: int) -> np.ndarray:
    """Its first two pixels tell which it is."""
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
    pixels[0, :2, 0] = divmod(step, 256)
    return pixels


class Bystander:
    def __init__(self) -> None:
        self.step = 0

    async def watch(
        self,
        address: str,
        shm: Sharing,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with spiceshm.connect(address, shm=shm, password=TICKET.decode()) as remote:
            task_status.started()
            async for frame in remote.frames():
                high, low = frame.pixels[0, :2, 0].tolist()
                self.step = 256 * high + low


class Scene:
    def __init__(self, display: spiceshm.Display) -> None:
        self.display = display
        self.unix, self.tcp = map(str, display.addresses)
        [self.view_only] = map(str, display.view_only_addresses)
        self.step = 0
        self.bystanders = [Bystander(), Bystander()]

    async def draw(self, surface: spiceshm.Surface) -> None:
        pixels = picture(0)
        while True:
            self.step += 1
            pixels[0, :2, 0] = divmod(self.step, 256)
            surface.draw(pixels, [(0, 0, 1, 2)])
            await trio.sleep(0.005)

    async def all_is_well(self) -> None:
        """Everybody sees what is drawn from now on."""
        now = self.step
        with trio.fail_after(ANSWERED_S):
            while any(bystander.step <= now for bystander in self.bystanders):
                await trio.sleep(0.001)


@contextlib.asynccontextmanager
async def scene(place: Path, *, max_clients: int | None = None) -> AsyncIterator[Scene]:
    """A display that is drawn on all the time; a reader of shared memory, and another over TCP."""

    async def play(events: Sequence[Event]) -> None:
        pass

    async with spiceshm.serve(
        f"unix:{place}/s",
        "tcp:127.0.0.1:0",
        view_only=[f"unix:{place}/v"],
        inputs=play,
        password=TICKET.decode(),
        max_clients=max_clients,
    ) as display:
        surface = display.create_surface(WIDTH, HEIGHT)
        surface.draw(picture(0))
        it = Scene(display)
        reader, stock = it.bystanders
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.draw, surface)
            await nursery.start(reader.watch, it.unix, "require")
            await nursery.start(stock.watch, it.tcp, "off")
            await it.all_is_well()
            yield it
            await it.all_is_well()
            nursery.cancel_scope.cancel()


# Who is refused


class Refusal(NamedTuple):
    """``where``: in the reply to the link message, in the result behind it, or in another reply."""

    where: str
    error: int


class Attempt(NamedTuple):
    """What a client says; ``size`` is what its header says of the link message, None: the truth."""

    kind: int = MAIN
    session: int = 0
    channel_id: int = 0
    magic: bytes = b"REDQ"
    major: int = 2
    size: int | None = None
    mechanism: int = 1
    ticket: bytes = TICKET

    @property
    def first(self) -> bytes:
        mess = LinkMess(self.session, self.kind, self.channel_id, (0b1001,), ()).packed
        size = len(mess) if self.size is None else self.size
        return LinkHeader(self.magic, self.major, 2, size).packed + mess


async def read(stream: Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += bytes((await stream.receive(count - len(data)))[0])
    return data


async def all_of(stream: Stream) -> bytes:
    """What comes up to the end."""
    data = b""
    with contextlib.suppress(Disconnected):
        while True:
            data += bytes((await stream.receive())[0])
    return data


async def refusal(address: str, attempt: Attempt) -> Refusal:
    with trio.fail_after(ANSWERED_S):
        with await open_stream(parse_address(address)) as stream:
            stream.send(attempt.first)
            header = LinkHeader.parse(await read(stream, 16))
            reply = LinkReply.parse(await read(stream, header.size))
            if not reply.error:
                mechanism = struct.pack("<I", attempt.mechanism)
                stream.send(mechanism + encrypted(reply, attempt.ticket))
            rest = await all_of(stream)
    if reply.error:
        assert (header.size, rest) == (178, b"")
        return Refusal("reply", reply.error)
    if len(rest) == 4:
        return Refusal("result", *struct.unpack("<I", rest))
    assert (len(rest), rest[:4]) == (16 + 178, b"REDQ")
    return Refusal("another reply", *struct.unpack_from("<I", rest, 16))


def encrypted(reply: LinkReply, ticket: bytes) -> bytes:
    key = load_der_public_key(reply.pub_key)
    assert isinstance(key, rsa.RSAPublicKey)
    return key.encrypt(ticket + b"\0", padding.OAEP(padding.MGF1(SHA1()), SHA1(), None))


REFUSED = {
    "a bad magic": (Attempt(magic=b"HTTP"), Refusal("reply", 2)),
    "another major version": (Attempt(major=1), Refusal("reply", 4)),
    "a link message of 5000 bytes": (Attempt(size=5000), Refusal("reply", 3)),
    "a link message of 10 bytes": (Attempt(size=10), Refusal("reply", 3)),
    "an unknown channel": (Attempt(kind=77), Refusal("reply", 9)),
    "a channel that there is not": (Attempt(kind=5), Refusal("reply", 9)),
    "a second display": (Attempt(kind=DISPLAY, channel_id=1), Refusal("reply", 9)),
    "a bad connection id": (Attempt(kind=DISPLAY, session=77), Refusal("result", 8)),
    "no connection id": (Attempt(kind=INPUTS), Refusal("result", 8)),
    "a main channel of somebody's": (Attempt(session=77), Refusal("result", 8)),
    "another mechanism": (Attempt(mechanism=9), Refusal("another reply", 3)),
    "no ticket": (Attempt(ticket=b""), Refusal("result", 7)),
    "a wrong ticket": (Attempt(ticket=b"sesame!"), Refusal("result", 7)),
}


@pytest.mark.parametrize("way", ["unix", "tcp"])
async def test_each_is_answered_within_a_second_and_nobody_else_notices(
    place: Path, way: str
) -> None:
    async with scene(place) as it:
        address = it.unix if way == "unix" else it.tcp
        answers = {}
        for name, (attempt, _) in REFUSED.items():
            answers[name] = await refusal(address, attempt)
            await it.all_is_well()
        assert answers == {name: answer for name, (_, answer) in REFUSED.items()}


async def test_a_session_gives_no_more_than_it_has(place: Path) -> None:
    """Neither by the way that others came, nor to another user."""
    async with scene(place) as it:
        async with byhand.session(it.view_only, TICKET) as looker:
            attempt = Attempt(kind=INPUTS, session=looker.session_id)
            for address in (it.unix, it.tcp):
                assert await refusal(address, attempt) == Refusal("result", 9)
        async with byhand.session(it.unix, TICKET) as owner:
            attempt = Attempt(kind=INPUTS, session=owner.session_id)
            assert await refusal(it.view_only, attempt) == Refusal("reply", 9)
            stranger = os.getuid() + 1
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "getuid", lambda: stranger)
                assert await refusal(it.unix, attempt) == Refusal("reply", 7)
            await it.all_is_well()
        # With its main channel a session is over.
        with trio.fail_after(DEADLINE):
            while owner.session_id in it.display._sessions:
                await trio.sleep(0.001)
        assert await refusal(it.unix, attempt) == Refusal("result", 8)


async def test_a_second_main_channel_is_another_client(place: Path) -> None:
    async with scene(place) as it:
        async with byhand.session(it.tcp, TICKET) as one, byhand.session(it.tcp, TICKET) as other:
            assert one.session_id != other.session_id
            for client in (one, other):
                await client.main.put(main.MouseModeRequest(MouseMode.SERVER))
                await client.main.find(main.MouseMode)
            await it.all_is_well()


async def test_guessing_is_slow_but_keeps_nobody_out(place: Path) -> None:
    async with scene(place) as it:

        async def seconds() -> float:
            start = trio.current_time()
            async with byhand.session(it.tcp, TICKET):
                return trio.current_time() - start

        for number in range(3):
            answer = await refusal(it.tcp, Attempt(ticket=b"%d" % number))
            assert answer == Refusal("result", 7)
        assert 0.4 <= await seconds() < 1  # the right one waits as another wrong one would
        assert await seconds() < 0.5
        await it.all_is_well()


# What stock programs make of it


async def screenshot(uri: str, file: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    command = ["spicy-screenshot", f"--uri={uri}", "-o", str(file), *options]
    call = partial(subprocess.run, command, capture_output=True, timeout=DEADLINE)
    return await trio.to_thread.run_sync(call)


def seen(file: Path) -> np.ndarray:
    """A PPM as (height, width, 3) of B, G, R."""
    kind, size, most, data = file.read_bytes().split(b"\n", 3)
    assert (kind, most) == (b"P6", b"255")
    width, height = map(int, size.split())
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)[:, :, ::-1]


@pytest.mark.peer("spicy-screenshot")
@pytest.mark.parametrize("way", ["unix", "tcp"])
async def test_stock_clients_tell_a_wrong_ticket_from_a_full_server(place: Path, way: str) -> None:
    link_error, wrong_ticket = b"main channel event: 22", b"main channel event: 23"
    file = place / "shot.ppm"
    async with scene(place, max_clients=3) as it:
        uri = it.display.addresses[way == "tcp"].uri
        assert uri is not None
        wrong = await screenshot(uri, file, "-w", "guess")
        assert (wrong.returncode, wrong_ticket in wrong.stderr) == (1, True)
        right = await screenshot(uri, file, "-w", TICKET.decode())
        assert right.returncode == 0
        assert np.array_equal(seen(file)[1:], picture(0)[1:, :, :3])
        async with byhand.session(it.unix, TICKET):
            full = await screenshot(uri, file, "-w", TICKET.decode())
            assert (full.returncode, link_error in full.stderr) == (1, True)
            await it.all_is_well()


@pytest.mark.peer("spicy-screenshot", "spicy", "Xvfb")
async def test_several_stock_clients_at_once(place: Path) -> None:
    async with scene(place) as it:
        unix, tcp = [address.uri for address in it.display.addresses]
        assert unix is not None
        assert tcp is not None
        files = [place / f"{number}.ppm" for number in range(3)]

        async def shot(uri: str, file: Path) -> None:
            done = await screenshot(uri, file, "-w", TICKET.decode())
            assert done.returncode == 0, done.stderr

        async with opened("spicy", tcp, "-w", "sesame") as spicy:
            async with trio.open_nursery() as shots:
                for file, uri in zip(files, (unix, tcp, unix), strict=True):
                    shots.start_soon(shot, uri, file)
            await it.all_is_well()
            await spicy.shows(picture(0)[1:])
        for file in files:
            assert np.array_equal(seen(file)[1:], picture(0)[1:, :, :3])


@pytest.mark.peer("remote-viewer", "spicy", "Xvfb", "xdotool")
@pytest.mark.parametrize("way", ["unix", "tcp"])
@pytest.mark.parametrize("program", ["remote-viewer", "spicy"])
async def test_stock_viewers_ask_for_the_password(place: Path, program: str, way: str) -> None:
    """So that no command that we print needs to have it."""
    async with scene(place) as it:
        uri = it.display.addresses[way == "tcp"].uri
        assert uri is not None
        async with opened(program, uri) as viewer:
            asks = ["search", "--sync", "--onlyvisible", "--name", "^Authentication"]
            types = ["windowfocus", "--sync", "type", "--delay", "0", TICKET.decode()]
            await viewer.do(*asks, *types)
            await viewer.do("key", "Return")
            await viewer.shows(picture(0)[1:])


@pytest.mark.peer("remote-viewer", "Xvfb")
@pytest.mark.parametrize("listen", ["unix:{}/a socket", "tcp:127.0.0.1:0"])
async def test_remote_viewer_opens_the_connection_file(place: Path, listen: str) -> None:
    """It shows our pixels, with a ticket that is hard to write down, and asks for nothing."""
    vv, ticket, truth = place / "desk top.vv", place / "ticket", np.zeros((480, 640, 4), np.uint8)
    ticket.write_text("  #;=\\s\\t\"ä ' ")
    ticket.chmod(0o600)
    Pattern(WIDTH, HEIGHT).paint(truth, 0)
    words = ["--surface", f"{WIDTH}x{HEIGHT}", "--fps", "0.001", "--write-vv", str(vv)]
    words += ["--password-file", str(ticket)]
    with serving(*words, at=listen.format(place)) as server:
        assert stat.S_IMODE(vv.stat().st_mode) == 0o600
        [command] = [line for line in server.said["listening"][0]["commands"] if str(vv) in line]
        assert command == ["remote-viewer", str(vv)]
        async with opened(*command) as viewer:
            await viewer.shows(truth)
    assert server.errors == ""  # no wrong password either
    assert not vv.exists()
