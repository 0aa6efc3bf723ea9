"""Another SPICE server as a source: what it shows reaches our readers as it came, and what they do
reaches it. The other server is ours, or speaks as stock servers do, over real sockets."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import trio

import spiceshm
from spiceshm.errors import SourceError
from spiceshm.events import CAPS_LOCK, CursorShape, Key, Locks, PointerBy, PointerTo
from spiceshm.nursery import open_nursery
from spiceshm.sources.pattern import read_stamp
from spiceshm.wire import cursor, display, inputs, main
from spiceshm.wire.types import ChannelType, LinkError, MouseMode, Rect, SurfaceFormat
from tests import byhand, stockserver
from tests.byhand import window
from tests.programs import (
    DEADLINE,
    Server,
    command,
    environment,
    forked,
    mapped,
    run,
    serving,
    short_directory,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from spiceshm.client import RemoteDisplay
    from spiceshm.events import Event

WIDTH, HEIGHT = 320, 200
SOON = 20.0
CAPS, SHIFT, CTRL = 0x3A, 0x2A, 0x1D

pytestmark = pytest.mark.usefixtures("nothing_stays_mapped")


@pytest.fixture(autouse=True)
def one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a key takes longer than everything else in most of these tests."""
    monkeypatch.setattr("spiceshm.server.display.generate_key", lambda: stockserver.KEY)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for sockets and files."""
    with short_directory() as path:
        yield path


class Machine:
    """The program of the other server: it notes what it is to play, and takes sizes."""

    def __init__(self) -> None:
        self.display: spiceshm.Display
        self.events: list[Event] = []
        self.gate = trio.Event()
        self.gate.set()
        self.asked = trio.Event()
        self.fits = True

    async def play(self, events: Sequence[Event]) -> None:
        self.events += events
        self.asked.set()
        await self.gate.wait()

    async def resize(self, width: int, height: int) -> None:
        if not self.fits:
            raise SourceError("not now")
        self.display.create_surface(width, height).draw(picture(width, width, height))

    def taken(self) -> list[Event]:
        """What was played since the last call."""
        events, self.events = self.events, []
        return events


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 4), np.uint8)


def rgb(pixels: np.ndarray) -> np.ndarray:
    """Without the byte that means nothing."""
    return pixels[:, :, :3]


class Chain(NamedTuple):
    """The other server, its program, and the server that passes it on, which listens at
    ``address``."""

    upstream: spiceshm.Display
    machine: Machine
    relay: spiceshm.Relay
    display: spiceshm.Display
    address: str


@contextlib.asynccontextmanager
async def upstream_at(
    address: str, machine: Machine, *, width: int = WIDTH, height: int = HEIGHT, agent: bool = True
) -> AsyncIterator[spiceshm.Display]:
    resize = machine.resize if agent else None
    async with spiceshm.serve(address, inputs=machine.play, resize=resize) as display:
        machine.display = display
        display.create_surface(width, height).draw(picture(0, width, height))
        display.set_cursor(None)
        yield display


@contextlib.asynccontextmanager
async def relayed(
    source: str, place: Path
) -> AsyncIterator[tuple[spiceshm.Relay, spiceshm.Display, str]]:
    relay = spiceshm.Relay(source)
    address = f"unix:{place}/relay"
    async with (
        spiceshm.serve(address, inputs=relay.play, resize=relay.resize) as display,
        open_nursery() as nursery,
    ):
        await nursery.start(relay.show, display)
        yield relay, display, address
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def chain(place: Path, at: str = "", *, agent: bool = True) -> AsyncIterator[Chain]:
    """``at`` is where the other server listens."""
    machine = Machine()
    with trio.fail_after(3 * SOON):
        async with (
            upstream_at(at or f"unix:{place}/up", machine, agent=agent) as upstream,
            relayed(str(upstream.addresses[0]), place) as (relay, display, address),
        ):
            yield Chain(upstream, machine, relay, display, address)


async def eventually(condition: Callable[[], object]) -> None:
    with trio.fail_after(DEADLINE):
        while not condition():
            await trio.sleep(0.001)


async def sees(remote: RemoteDisplay, wanted: np.ndarray) -> None:
    """Wait until a client sees exactly this."""
    with trio.fail_after(DEADLINE):
        while True:
            pixels = (await remote.latest()).pixels
            if pixels.shape == wanted.shape and np.array_equal(rgb(pixels), rgb(wanted)):
                return
            await trio.sleep(0.001)


# What is shown


@pytest.mark.parametrize("at", ["", "tcp:127.0.0.1:0"], ids=["shared", "ordinary"])
async def test_every_frame_arrives_with_exactly_its_damage(place: Path, at: str) -> None:
    async with chain(place, at) as it, spiceshm.connect(it.address) as remote:
        surface = it.upstream.surface
        assert surface is not None
        assert it.relay.stats.shm is (at == "")
        truth = picture(0)
        async with contextlib.aclosing(_frames(remote)) as frames:
            first = await anext(frames)
            assert np.array_equal(rgb(first.pixels), rgb(truth))
            for step in range(1, 30):
                if step == 10:  # by now all buffers that are used have been filled once
                    copied, drawn = it.display.surface.copied_bytes, 0
                rects = [(step, 2 * step, step + 5, 2 * step + 7), (100, step, 101, step + 1)]
                for top, left, bottom, right in rects:
                    truth[top:bottom, left:right] = picture(step)[top:bottom, left:right]
                surface.draw(truth, rects)
                drawn = step >= 10 and drawn + 36 * 4
                seen: set[tuple[int, ...]] = set()
                while seen != set(rects):  # ordinary SPICE may show a part before the whole
                    frame = await anext(frames)
                    assert not frame.full
                    seen |= set(map(tuple, frame.rects.tolist()))
                    assert seen <= set(rects)
                assert np.array_equal(rgb(frame.pixels), rgb(truth))
                if at == "":
                    assert frame.published == surface.pool.published  # as old as it is
        # Each pixel that changed was copied once from there, and once from one buffer to the next.
        assert it.display.surface.copied_bytes - copied <= 2 * drawn


async def _frames(remote: RemoteDisplay) -> AsyncIterator[spiceshm.Frame]:
    async for frame in remote.frames():
        yield frame


async def test_what_comes_quicker_than_it_is_passed_on_is_one_frame(place: Path) -> None:
    async with chain(place) as it, spiceshm.connect(it.address) as remote:
        surface, truth = it.upstream.surface, picture(0)
        assert surface is not None
        before = it.display.surface.serial
        for step in range(100):  # nobody else runs meanwhile
            truth[step] = step
            surface.draw(truth, [(step, 0, step + 1, WIDTH)])
        await sees(remote, truth)
        assert it.display.surface.serial - before < 10


async def test_all_readers_see_the_same_whatever_the_size(place: Path) -> None:
    async with (
        chain(place) as it,
        spiceshm.connect(it.address) as one,
        spiceshm.connect(it.address) as two,
        spiceshm.connect(it.address) as three,
        spiceshm.connect(it.address, shm="off") as other,
    ):
        for width, height in ((64, 48), (1, 1), (801, 33), (WIDTH, HEIGHT)):
            wanted = picture(width, width, height)
            it.upstream.create_surface(width, height).draw(wanted)
            for remote in (one, two, three, other):
                await sees(remote, wanted)
        assert [remote.shared for remote in (one, two, three, other)] == [True] * 3 + [False]


async def test_a_size_in_which_nothing_was_drawn_yet_is_black(place: Path) -> None:
    """As a virtual machine's may be for long, whose mode changes."""
    source = f"unix:{place}/up"
    async with (
        stockserver.serving(source) as server,
        relayed(source, place) as (_, _, address),
        spiceshm.connect(address) as remote,
    ):
        wanted = np.zeros((30, 50, 4), np.uint8)
        create = display.SurfaceCreate(0, 50, 30, SurfaceFormat.XRGB, display.SURFACE_FLAG_PRIMARY)
        screen = await server.channel(ChannelType.DISPLAY)
        screen.put(display.SurfaceDestroy(0), create, display.Mark())
        await sees(remote, wanted)
        white = display.Brush(display.BRUSH_SOLID, 0xFFFFFF)
        box = Rect(10, 20, 30, 40)
        screen.put(display.DrawFill(0, box, None, white, display.ROP_PUT, display.NO_MASK))
        wanted[10:30, 20:40] = 255
        await sees(remote, wanted)


async def test_monitors_are_passed_on(place: Path) -> None:
    async with (
        chain(place) as it,
        spiceshm.connect(it.address) as one,
        spiceshm.connect(it.address, shm="off") as other,
    ):
        remotes = one._channel, other._channel
        assert [remote.heads for remote in remotes] == [[(0, 0, HEIGHT, WIDTH)]] * 2
        heads = [(0, 0, HEIGHT, 100), (0, 100, 50, WIDTH)]
        it.upstream.surface.set_heads(heads)
        await eventually(lambda: all(remote.heads == heads for remote in remotes))
        async with spiceshm.connect(it.address) as late:
            assert late._channel.heads == heads
        it.upstream.create_surface(64, 48).draw(picture(1, 64, 48))
        await eventually(lambda: all(remote.heads == [(0, 0, 48, 64)] for remote in remotes))


async def test_the_pointer_is_passed_on(place: Path) -> None:
    shapes = [CursorShape(picture(seed, 16, 24), 3, 5) for seed in (1, 2)]
    async with chain(place) as it, spiceshm.connect(it.address) as remote:
        assert not (await remote.cursor()).visible
        for shape in shapes:
            it.upstream.set_cursor(shape)
            it.upstream.move_cursor(7, 9)
            await _points(remote, 7, 9, shape)
        it.upstream.move_cursor(11, 12)
        await _points(remote, 11, 12, shapes[1])
        it.upstream.set_cursor(None)
        with trio.fail_after(SOON):
            while (await remote.cursor()).visible:
                await trio.sleep(0.001)
        # Where clients say where it is, the other server need not.
        it.upstream.set_cursor(shapes[0])
        await remote.move(20, 30)
        async with spiceshm.connect(it.address) as other:
            await _points(other, 20, 30, shapes[0])


async def _points(remote: RemoteDisplay, x: int, y: int, shape: CursorShape) -> None:
    with trio.fail_after(SOON):
        while True:
            now = await remote.cursor()
            if (now.x, now.y, now.visible) == (x, y, True) and now.shape is not None:
                seen = now.shape
                if np.array_equal(seen.pixels, shape.pixels):
                    assert (seen.hot_x, seen.hot_y) == (shape.hot_x, shape.hot_y)
                    return
            await trio.sleep(0.001)


async def test_a_pointer_larger_than_ours_may_be_is_shown_around_its_hot_spot(place: Path) -> None:
    source = f"unix:{place}/up"
    async with (
        stockserver.serving(source) as server,
        relayed(source, place) as (_, _, address),
        spiceshm.connect(address) as remote,
    ):
        await remote.cursor()
        pixels = picture(1, 300, 10)
        header = cursor.CursorHeader(1, cursor.TYPE_ALPHA, 300, 10, 299, 500)
        shape = cursor.Cursor(0, header, pixels.tobytes())
        (await server.channel(ChannelType.CURSOR)).put(cursor.CursorSet(1, 2, 1, shape))
        await _points(remote, 1, 2, CursorShape(pixels[:, 44:], 255, 9))


async def test_a_server_without_a_pointer_is_none_with_a_hidden_one(place: Path) -> None:
    """Viewers would hide their own over it."""
    source = f"unix:{place}/up"
    async with stockserver.serving(source) as server:
        server.kinds = {ChannelType.DISPLAY}
        async with relayed(source, place) as (_, _, address), byhand.session(address) as client:
            assert ChannelType.CURSOR not in client.listed


# What clients do


async def acts(remote: RemoteDisplay) -> None:
    await remote.type("Hello, World\n" * 6)
    await remote.key("ctrl+alt+Page_Up")
    await remote.click(3, 4, "right")
    await remote.drag(10, 10, 90, 70)
    await remote.move_by(-3, 400)
    await remote.scroll(9)
    async with remote.hold("shift"), remote.hold_button("left"):
        await remote.move(0, 0)
        await remote.move(WIDTH - 1, HEIGHT - 1)


async def test_what_a_client_does_arrives_as_if_it_was_connected_there(place: Path) -> None:
    async with chain(place) as it:
        async with spiceshm.connect(str(it.upstream.addresses[0])) as direct:
            await acts(direct)
            expected = it.machine.taken()
        async with spiceshm.connect(it.address) as remote:
            await acts(remote)
            assert it.machine.taken() == expected  # all of it, when the last call has returned
        assert len(expected) > 200


async def test_it_is_done_when_the_other_server_says_so(place: Path) -> None:
    async with (
        chain(place) as it,
        spiceshm.connect(it.address) as remote,
        open_nursery() as nursery,
    ):
        await remote.key("a")
        it.machine.gate, it.machine.asked = trio.Event(), trio.Event()
        done = trio.Event()

        async def press() -> None:
            await remote.key("b")
            done.set()

        nursery.start_soon(press)
        await it.machine.asked.wait()
        # A round trip to each server: an answer that did not wait for the program would be here.
        async with spiceshm.connect(it.address) as other:
            assert (await other.latest()).width == WIDTH
        assert not done.is_set()
        it.machine.gate.set()
        with trio.fail_after(SOON):
            await done.wait()


async def test_what_is_let_go_while_nothing_answers_comes_up_all_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a machine that was stopped for long would go on with a key that stays down."""
    monkeypatch.setattr("spiceshm.client.inputs.DONE_S", 0.05)
    source = f"unix:{place}/up"
    async with (
        stockserver.serving(source) as server,
        relayed(source, place) as (_, _, address),
        byhand.session(address) as client,
    ):
        server.acks = False
        keys = await client.open(ChannelType.INPUTS)
        await keys.put(inputs.KeyDown(SHIFT), inputs.MousePress(1, 0))
        there = await server.channel(ChannelType.INPUTS)
        await there.find(inputs.MousePress)
        await keys.put(inputs.KeyDown(CTRL), inputs.MouseRelease(1, 0))
        assert await there.find(inputs.MouseRelease) == [inputs.MouseRelease(1, 0)]
        await keys.put(*map(inputs.KeyUp, (CTRL | 0x80, SHIFT | 0x80)))
        assert await there.find(inputs.KeyUp) == [inputs.KeyUp(SHIFT | 0x80)]
        assert await there.find(inputs.KeyDown) == [inputs.KeyDown(SHIFT)]  # the other one is lost


async def test_locks_go_both_ways(place: Path) -> None:
    async with chain(place) as it, byhand.session(it.address) as client:
        keys = await client.open(ChannelType.INPUTS)
        assert await keys.next() == inputs.InputsInit(0)
        it.upstream.set_locks(CAPS_LOCK)
        assert await keys.find(inputs.KeyModifiers) == inputs.KeyModifiers(CAPS_LOCK)
        await keys.put(inputs.ClientKeyModifiers(0))
        await eventually(lambda: it.machine.events == [Locks(0)])
        async with byhand.session(it.address) as late:
            other = await late.open(ChannelType.INPUTS)
            assert await other.next() == inputs.InputsInit(CAPS_LOCK)


async def test_the_mouse_mode_is_what_the_other_server_can(place: Path) -> None:
    source, both = f"unix:{place}/up", MouseMode.SERVER | MouseMode.CLIENT
    async with stockserver.serving(source) as server:
        server.modes = server.mode = int(MouseMode.SERVER)
        async with (
            relayed(source, place) as (_, _, address),
            spiceshm.connect(address) as remote,
            byhand.session(address) as client,
        ):
            with pytest.raises(spiceshm.ViewOnly, match="no positions"):
                await remote.move(1, 1)
            await client.main.put(main.MouseModeRequest(MouseMode.CLIENT))
            answer = await client.main.find(main.MouseMode)
            assert answer == main.MouseMode(MouseMode.SERVER, MouseMode.SERVER)
            await remote.move_by(5, -6)
            keys = await server.channel(ChannelType.INPUTS)
            moved = next(m for m in keys.came if isinstance(m, inputs.MouseMotion) and m.dx)
            assert moved == inputs.MouseMotion(5, -6, 0)
            assert not await keys.find(inputs.MousePosition, 0)
            # Its guest has found a tablet.
            server.modes = int(both)
            (await server.channel(ChannelType.MAIN)).put(main.MouseMode(both, MouseMode.SERVER))
            assert await client.main.find(main.MouseMode) == main.MouseMode(both, MouseMode.CLIENT)
            await remote.move(7, 8)
            assert (await keys.find(inputs.MousePosition))[-1] == inputs.MousePosition(7, 8, 0, 0)
            assert server.mode == MouseMode.CLIENT
            # And lost it: who is told late and says where it is, is not heard.
            server.modes = server.mode = int(MouseMode.SERVER)
            told = main.MouseMode(MouseMode.SERVER, MouseMode.SERVER)
            (await server.channel(ChannelType.MAIN)).put(told)
            assert await client.main.find(main.MouseMode) == told
            count = len(await keys.find(inputs.MousePosition))
            mouse = await client.open(ChannelType.INPUTS)
            await mouse.put(*[inputs.MousePosition(9, 9, 0, 0)] * 4, inputs.KeyDown(0x1E))
            await mouse.find(inputs.MouseMotionAck)
            await keys.find(inputs.KeyDown)
            assert len(await keys.find(inputs.MousePosition)) == count


async def test_a_server_that_takes_nothing_is_looked_at(place: Path) -> None:
    source = f"unix:{place}/up"
    async with stockserver.serving(source) as server:
        server.kinds = {ChannelType.DISPLAY}
        async with relayed(source, place) as (_, _, address), spiceshm.connect(address) as remote:
            await remote.type("lost")
            assert (await remote.latest()).width == 64


async def test_a_channel_that_is_refused_leaves_the_others(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = f"unix:{place}/up"
    async with stockserver.serving(source) as server:
        server.listed, server.kinds = server.kinds, server.kinds - {ChannelType.CURSOR}
        server.refusal = LinkError.ERROR
        async with relayed(source, place) as (relay, _, address):
            async with spiceshm.connect(address) as remote:
                await remote.key("a")
                assert len((await server.channel(ChannelType.INPUTS)).came) >= 2
            assert relay.stats.connected
    assert "the server refused the connection" in caplog.text


async def test_the_size_that_a_viewer_would_like(place: Path) -> None:
    async with chain(place) as it, window(it.address) as viewer:
        for size in ((80, 60), (33, 77)):
            await viewer.wants(*size)
            assert await viewer.got_it()
            assert (it.display.surface.width, it.display.surface.height) == size
        it.machine.fits = False
        await viewer.wants(99, 98)
        assert not await viewer.got_it()
        assert (it.display.surface.width, it.display.surface.height) == (33, 77)


async def test_where_there_is_no_agent_the_size_stays(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with chain(place, agent=False) as it, window(it.address) as viewer:
        await viewer.wants(80, 60)
        assert not await viewer.got_it()
        assert "would like 80x60, refused: unix:" in caplog.text
        assert "no agent runs there" in caplog.text


# Coming and going


async def test_what_was_held_when_it_went_is_forgotten(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, machine = f"unix:{place}/up", Machine()
    async with relayed(source, place) as (relay, _, address), byhand.session(address) as client:
        keys = await client.open(ChannelType.INPUTS)
        await keys.put(inputs.KeyDown(CAPS))
        async with upstream_at(source, machine):
            await eventually(lambda: relay.stats.connected)
            await keys.put(inputs.KeyDown(SHIFT))
            await eventually(lambda: machine.events == [Key(SHIFT, True)])
        machine.taken()  # what a server lets go that ends
        await eventually(lambda: not relay.stats.connected)
        await keys.put(inputs.KeyDown(CTRL))
        async with upstream_at(source, machine):
            await eventually(lambda: relay.stats.connected)
            assert relay.stats.reconnects == 1
            await keys.put(*map(inputs.KeyUp, (SHIFT | 0x80, CTRL | 0x80, CAPS | 0x80)))
            await keys.put(inputs.KeyDown(SHIFT))
            await eventually(lambda: machine.events)
            assert machine.events == [Key(SHIFT, True)]
    said = [record.message for record in caplog.records if record.name == "spiceshm.relay"]
    gone = f"{source}: the other end closed the connection; trying again until it is there"
    assert said == [
        f"{source}: no server is listening there; trying again until it is there",
        gone,
        f"{source}: is there again",
        gone,
    ]


async def test_a_size_is_refused_while_it_is_away(place: Path) -> None:
    relay = spiceshm.Relay(f"unix:{place}/up")
    with pytest.raises(SourceError, match="is not there"):
        await relay.resize(80, 60)
    await relay.play([PointerTo(1, 1), PointerBy(1, 1)])


async def test_readers_that_vanish_keep_no_frame_of_the_other_server(place: Path) -> None:
    """A few of them would hold all that it lends."""
    async with chain(place) as it:
        gc.disable()
        try:
            async with spiceshm.connect(it.address) as remote:
                lent = picture(1)
                kept = weakref.ref(lent)
                remote._channel._stream.close()
                it.display.surface.draw(lent)
                del lent
            await eventually(lambda: not it.display.viewers)
            assert kept() is None
        finally:
            gc.enable()


async def test_who_shows_it_no_more_has_no_connection(place: Path) -> None:
    source, machine = f"unix:{place}/up", Machine()
    async with upstream_at(source, machine):
        async with relayed(source, place) as (relay, _, _):
            await eventually(lambda: relay.stats.connected)
        assert not relay.stats.connected
        with pytest.raises(SourceError, match="is not there"):
            await relay.resize(80, 60)


async def test_a_password_that_was_changed_is_told_and_tried_on(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, machine = f"unix:{place}/up", Machine()
    async with relayed(source, place) as (relay, _, _):
        async with upstream_at(source, machine):
            await eventually(lambda: relay.stats.connected)
        async with spiceshm.serve(source, password="new") as locked:
            locked.create_surface(8, 8).draw(np.zeros((8, 8, 4), np.uint8))
            await eventually(lambda: "wrong or missing password" in str(relay.stats.why))
        async with upstream_at(source, machine):
            await eventually(lambda: relay.stats.connected)
    lines = [record.message for record in caplog.records if "wrong or missing" in record.message]
    assert len(lines) == 1
    assert "(--source-password-file)" in lines[0]


# The program


async def test_a_machine_that_is_killed_and_started_again(place: Path) -> None:
    """With another size each time, and nothing of a connection stays when it is over."""
    source = f"unix:{place}/up"

    def sockets(pid: int) -> int:
        found = 0
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found += os.readlink(descriptor).startswith("socket:")
        return found

    with serving("--source", source, "--stats-json", at=f"unix:{place}/relay") as relay:
        assert "no server is listening there; trying again until it is there" in relay.errors
        before = sockets(relay.pid)
        async with contextlib.AsyncExitStack() as stack:
            remotes: list[RemoteDisplay] = []
            for width in (64, 80):
                with serving("--surface", f"{width}x48", at=source) as server:
                    if not remotes:
                        for shm in ("auto", "auto", "auto", "off"):
                            connecting = spiceshm.connect(relay.address, shm=shm, wait_server=SOON)
                            remotes.append(await stack.enter_async_context(connecting))
                    for remote in remotes:
                        await _shows_pattern(remote, width)
                    server.send(signal.SIGKILL)
                    server.wait()
                for remote in remotes:  # the last picture stays
                    assert (await remote.latest()).width == width
            assert [remote.shared for remote in remotes] == [True] * 3 + [False]
        upstream = {"connected": True}
        while upstream["connected"] or not upstream["reconnects"]:
            upstream = json.loads(relay.line())["upstream"]
        assert (upstream["address"], upstream["reconnects"]) == (source, 1)
        await eventually(lambda: sockets(relay.pid) == before)
        assert {how for how, _ in mapped(relay.pid)} == {"rw-s"}  # its own, nobody else's
    assert relay.status == 0
    assert relay.errors.count("is there again") == 1
    assert os.listdir(place) == ["up"]  # of the server that was killed


async def _shows_pattern(remote: RemoteDisplay, width: int) -> None:
    """Wait until a client sees the pattern of this width, and that it moves."""
    with trio.fail_after(DEADLINE):
        async for frame in remote.frames():
            stamp = read_stamp(frame.pixels)
            if frame.width == width and isinstance(stamp, int) and stamp > 2:
                return


async def test_a_machine_that_is_stopped_stops_nobody(place: Path) -> None:
    with (
        serving("--surface", "64x48", at=f"unix:{place}/up") as server,
        serving("--source", server.address, at=f"unix:{place}/relay") as relay,
    ):
        async with spiceshm.connect(relay.address) as remote:
            server.send(signal.SIGSTOP)
            try:
                with trio.fail_after(SOON):
                    before = await remote.wait_stable(0.1)
                    async with spiceshm.connect(relay.address) as other:  # a newcomer sees it too
                        assert np.array_equal((await other.latest()).pixels, before.pixels)
            finally:
                server.send(signal.SIGCONT)
            await remote.wait_change(since=before, timeout=SOON)


def test_the_password_comes_from_a_file(place: Path) -> None:
    for name, text in (("right", "secret\n"), ("wrong", "guess\n"), ("empty", "\n")):
        (place / name).write_text(text)
        (place / name).chmod(0o600)
    source = f"unix:{place}/up"
    listen = ("--source", source, "--listen", f"unix:{place}/relay", "--source-password-file")
    with serving("--surface", "64x48", "--password-file", f"{place}/right", at=source):
        with Server(*listen, f"{place}/right") as relay:
            assert relay.said["source"] == f"SPICE server {source}"
        wrong = run("server", *listen, f"{place}/wrong")
        without = run("server", *listen[:-1])
    for result in (wrong, without):
        assert result.returncode == 1
        assert result.stdout == b""
        assert result.stderr.decode() == (
            f"spiceshm-server: {source}: wrong or missing password (--source-password-file)\n"
        )
    empty = run("server", *listen, f"{place}/empty")
    assert empty.returncode == 2
    assert empty.stderr.decode().startswith(
        f"spiceshm-server: --source-password-file {place}/empty: its first line must have"
    )


async def test_what_is_no_spice_server_is_told(place: Path) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20)
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        serve = trio.serve_tcp
        [listener] = await nursery.start(_serve_loopback, serve, answer)
        port = listener.socket.getsockname()[1]
        words = command("server", "--source", f"spice://127.0.0.1:{port}", "--listen")
        result = await trio.run_process(
            [*words, f"unix:{place}/relay"],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment(),
        )
        nursery.cancel_scope.cancel()
    assert result.returncode == 1
    assert b"is that a SPICE server?" in result.stderr
    assert result.stderr.count(b"\n") == 1


async def _serve_loopback(serve, answer, task_status=trio.TASK_STATUS_IGNORED) -> None:
    await serve(answer, 0, host="127.0.0.1", task_status=task_status)


def test_options_that_make_no_sense(place: Path) -> None:
    other = "spice+unix:///path or spice://host:port"
    wrong = {
        "--source spice://host": "has no port",
        "--source vnc": "is no address; accepted: ",
        "--source unix:/x --surface 8x8": "--surface is for --source pattern and xvfb",
        "--source unix:/x --fps 8": "--fps is for --source pattern and x11 and xvfb",
        "--source-password-file /x": f"--source-password-file is for --source {other}",
        "--source spice+unix:///x --listen unix:/x": "/x: there this server listens itself",
    }
    results = forked([("server", words.split()) for words in wrong], place)
    for (status, out, err), complaint in zip(results, wrong.values(), strict=True):
        assert complaint in err
        assert (status, out) == (2, "")
