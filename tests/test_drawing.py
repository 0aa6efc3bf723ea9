"""Ordinary SPICE beside shared memory: what clients without the extension are sent, when, and what
that costs those who draw."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import given

import spiceshm
from spiceshm import codecs, region
from spiceshm.server import encoding
from spiceshm.wire import Message, base, display
from spiceshm.wire.types import ChannelType, Compression, ImageType
from tests import byhand
from tests.test_codecs import CODECS
from tests.test_library import asked_again, next_frame, rgb, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from spiceshm.server.viewer import Viewer

TYPES = {0: "raw", 101: "lz", 109: "lz4"}


def picture(height: int, width: int, seed: int = 1) -> np.ndarray:
    """Noise that compresses, of many colours but no large parts of one."""
    few = np.random.default_rng(seed).integers(0, 4, (height, -(-width // 4), 4), np.uint8)
    return np.repeat(few, 4, axis=1)[:, :width]


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/s"


# A client by hand


class Looker:
    """The display channel of a client without the extension, which draws when it is told to."""

    def __init__(self, peer: byhand.Peer, height: int, width: int) -> None:
        self.peer = peer
        self.seen = np.zeros((height, width), np.uint32)
        self.drawn: list[str] = []
        self.areas: list[int] = []

    async def first(self) -> None:
        """Draw up to MARK."""
        while not isinstance(await self.next(), display.Mark):
            pass

    async def next(self) -> Message:
        """One message: drawn, and acknowledged by the machine."""
        message = await self.peer.next()
        self._draw(message)
        return message

    def trickle(self, most: int) -> bool:
        """Draw what is complete with so many bytes more; whether anything was."""
        before = len(self.drawn)
        for message in self.peer.take(most):
            self._draw(message)
        return len(self.drawn) > before

    def _draw(self, message: Message) -> None:
        if isinstance(message, display.DrawFill):
            self._note("fill", message.box)[:] = message.brush.color
        elif isinstance(message, display.DrawCopy):
            content, box = message.image.content, message.box
            name = TYPES[message.image.type]
            data = content.data  # type: ignore[union-attr]
            part = self._note(name, box)
            part[:] = CODECS[name][1](data, part.shape[1], part.shape[0])

    def _note(self, name: str, box: Any) -> np.ndarray:
        self.drawn.append(name)
        part = self.seen[box.top : box.bottom, box.left : box.right]
        self.areas.append(part.size)
        return part

    async def until(self, truth: np.ndarray) -> None:
        with trio.fail_after(20):
            while not self.sees(truth):
                await self.next()

    def sees(self, truth: np.ndarray) -> bool:
        return np.array_equal(self.seen & 0xFFFFFF, words(truth) & 0xFFFFFF)


def words(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels).view("<u4")[:, :, 0]


@contextlib.asynccontextmanager
async def looking(
    address: str, truth: np.ndarray, *, caps: tuple[int, ...] = (), prefers: int | None = None
) -> AsyncIterator[Looker]:
    async with byhand.session(address) as client:
        peer = await client.open(ChannelType.DISPLAY, caps=frozenset(caps))
        if prefers is not None:
            await peer.put(display.PreferredCompression(prefers))
        await peer.put(display.DisplayInit(0, 0, 0, 0))
        yield Looker(peer, *truth.shape[:2])


# Which encoder


@pytest.mark.parametrize(
    ("wish", "caps", "prefers", "unix", "kind"),
    [
        ("auto", (5,), None, True, "raw"),
        ("auto", (5,), None, False, "lz4"),
        ("auto", (), None, False, "lz"),
        ("auto", (5,), Compression.OFF, False, "raw"),
        ("auto", (5,), Compression.LZ, False, "lz"),
        ("auto", (5,), Compression.LZ4, False, "lz4"),
        ("auto", (), Compression.LZ4, False, "lz"),
        ("auto", (5,), Compression.AUTO_GLZ, False, "lz4"),
        ("auto", (5,), 99, False, "lz4"),
        ("raw", (5,), Compression.LZ, False, "raw"),
        ("lz4", (5,), Compression.OFF, False, "raw"),
        ("lz4", (5,), None, True, "lz4"),
        ("lz4", (), None, False, "lz"),
        ("lz", (5,), None, True, "lz"),
    ],
)
async def test_the_encoder_is_the_one_that_suits(
    tmp_path: Path, wish: Any, caps: tuple[int, ...], prefers: int | None, unix: bool, kind: str
) -> None:
    truth = picture(120, 301)
    address = f"unix:{tmp_path}/s" if unix else "tcp:127.0.0.1:0"
    async with spiceshm.serve(address, compression=wish) as server:
        surface = server.create_surface(301, 120)
        surface.draw(truth)
        place = str(server.addresses[0])
        async with looking(place, truth, caps=caps, prefers=prefers) as client:
            with trio.fail_after(10):
                await client.first()
            assert client.drawn == [kind]
            assert client.sees(truth)
            truth[7:100, 9:200] = picture(93, 191, 2)
            surface.draw(truth, [(7, 9, 100, 200)])
            await client.until(truth)
            assert client.drawn == [kind, kind]
            [viewer] = server.viewers
            assert viewer.stats.images == {kind: 2}


async def test_without_the_package_there_is_no_lz4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs.lz4, "AVAILABLE", False)
    assert encoding.choose("auto", local=False, knows_lz4=True, preferred=7) is ImageType.LZ_RGB
    with pytest.raises(spiceshm.SpiceShmError, match=r"pip install 'spiceshm\[lz4\]'"):
        async with spiceshm.serve("tcp:127.0.0.1:0", compression="lz4"):
            pass


async def test_a_compression_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="'zip'"):
        async with spiceshm.serve("tcp:127.0.0.1:0", compression="zip"):  # type: ignore[arg-type]
            pass


SIZES = [(1, 1), (1, 7), (3, 1), (479, 641), (768, 1366), (1, 16384), (16384, 1), (600, 1001)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("wish", ["raw", "lz4", "lz"])
async def test_surfaces_of_any_size(address: str, wish: Any, size: tuple[int, int]) -> None:
    """The first picture is a single one; then strips, none of them too large."""
    height, width = size
    truth = picture(height, width)
    async with spiceshm.serve(address, compression=wish) as server:
        surface = server.create_surface(width, height)
        surface.draw(truth)
        async with looking(address, truth, caps=(5,)) as client:
            with trio.fail_after(20):
                await client.first()
            assert client.areas == [height * width]
            assert client.sees(truth)
            truth = picture(height, width, 5)
            surface.draw(truth)
            await client.until(truth)
            assert max(client.areas[1:]) <= encoding.STRIP_PIXELS


async def test_large_surfaces_in_portions(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No update is larger than it may be, and all of it arrives although more comes meanwhile."""
    monkeypatch.setattr(encoding, "FIRST_PIXELS", 50_000)
    monkeypatch.setattr(encoding, "UPDATE_PIXELS", 30_000)
    monkeypatch.setattr(encoding, "INLINE_PIXELS", 0)
    truth = picture(400, 600)
    async with spiceshm.serve(address) as server:
        surface = server.create_surface(600, 400)
        surface.draw(truth)
        async with looking(address, truth) as client:
            with trio.fail_after(20):
                for step in range(100):
                    if isinstance(await client.next(), display.Mark):
                        break
                    truth[step : step + 3, 100:300] = step
                    surface.draw(truth, [(step, 100, step + 3, 300)])
            await client.until(truth)
            assert 30_000 < client.areas[0] <= 50_000
            assert max(client.areas[1:]) <= 30_000
            with trio.fail_after(20):
                await surface.consumed(surface.serial)


async def test_all_of_a_large_surface_arrives_where_all_of_it_changes_all_the_time(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one update has no room for comes with the next, whatever is new above it by then."""
    monkeypatch.setattr(encoding, "FIRST_PIXELS", 50_000)
    monkeypatch.setattr(encoding, "UPDATE_PIXELS", 30_000)
    truth = np.zeros((400, 600, 4), np.uint8)
    truth[:, ::2] = 255  # no part of it is of one colour
    async with spiceshm.serve(address) as server:
        surface = server.create_surface(600, 400)
        surface.draw(truth)
        async with looking(address, truth) as client:
            marks = 0
            while not client.drawn:
                await client.next()
            for step in range(1, 60):
                marks += isinstance(await client.next(), display.Mark)
                truth[:, 1::2] = step
                surface.draw(truth)
            assert marks == 1
            oldest = (client.seen[:, 1] & 0xFF).min()
            assert step - oldest <= 2 * (400 * 600 // 30_000) + 4  # an update is a picture or two
            await client.until(truth)
            with trio.fail_after(20):
                await surface.consumed(surface.serial)
            stats = server.viewers[0].stats
            assert stats.frames > 4
            assert stats.frames + stats.coalesced == surface.serial
            assert stats.lag_frames == 0


RECTS = st.lists(
    st.tuples(*[st.integers(0, 9)] * 2, *[st.integers(10, 40)] * 2), min_size=1, max_size=5
)


@given(rects=RECTS, most=st.integers(1, 3000))
def test_a_portion_and_the_rest_are_everything(rects: list[region.Rect], most: int) -> None:
    now, later = encoding.portion(rects, most)
    assert region.area(now) + region.area(later) == region.area(rects)
    assert region.area(now) <= max(most, 40)
    assert now
    lines = [(y, left, right) for top, left, bottom, right in rects for y in range(top, bottom)]
    assert lines == [
        (y, left, right) for top, left, bottom, right in now + later for y in range(top, bottom)
    ]


# Parts of one colour


async def test_what_is_of_one_colour_is_filled(address: str) -> None:
    truth = picture(600, 800)
    async with spiceshm.serve(address) as server:
        surface = server.create_surface(800, 600)
        surface.draw(np.full_like(truth, 9))
        async with looking(address, truth) as client, spiceshm.connect(address, shm="off") as ours:
            with trio.fail_after(10):
                await client.first()
            assert client.drawn == ["fill"]
            surface.draw(truth)
            await client.until(truth)
            assert set(client.drawn) == {"fill", "raw"}
            client.drawn.clear()
            truth[32:512, 64:640] = [1, 2, 3, 0]
            surface.draw(truth, [(0, 32, 600, 700)])
            await client.until(truth)
            assert client.drawn.count("fill") == 1
            assert client.drawn[0] == "fill"
            await until(ours, truth)
            assert set(ours.images) == {"fill", "raw"}  # as it is told at both ends
            assert ours.images in [viewer.stats.images for viewer in server.viewers]


# What it costs those who draw, and others


@contextlib.contextmanager
def slow_encoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[int]]]:
    """Encoding waits for the event; and how many are waiting or have waited, by their threads."""
    go_on, threads = threading.Event(), list[int]()
    encode = encoding.encode

    def wait(*args: Any, **options: Any) -> Any:
        threads.append(threading.get_native_id())
        assert go_on.wait(20)
        return encode(*args, **options)

    monkeypatch.setattr(encoding, "encode", wait)
    try:
        yield go_on, threads
    finally:
        go_on.set()


async def test_drawing_waits_for_no_encoder_and_copies_nothing_for_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four clients are being encoded for, for ever; who shares memory sees every frame."""
    truth = picture(300, 400)
    with slow_encoder(monkeypatch) as (go_on, threads):
        async with (
            spiceshm.serve(address) as server,
            looking(address, truth) as one,
            looking(address, truth) as two,
            looking(address, truth) as three,
            looking(address, truth) as four,
        ):
            surface = server.create_surface(400, 300)
            surface.draw(truth)
            many = encoding.most_threads()
            await asked_again(lambda: len(threads) == many)  # and the others wait for their turn
            async with spiceshm.connect(address) as shared:
                await next_frame(shared)
                before = surface.copied_bytes
                for step in range(30):
                    truth = picture(300, 400, step)
                    surface.draw(truth)
                    frame = await next_frame(shared)
                    assert frame.serial == surface.serial
                    assert np.array_equal(rgb(frame.pixels), rgb(truth))
                assert surface.copied_bytes - before == 30 * truth.nbytes
                assert len(threads) == many
                buffers = len(surface.pool.buffers)
                assert buffers <= 3 + encoding.MOST_LOCAL + 2
                go_on.set()
                for client in (one, two, three, four):
                    await client.until(truth)
            assert threading.get_native_id() not in threads


async def test_small_updates_are_encoded_at_once_but_not_in_the_producers_call(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = picture(300, 400)
    async with spiceshm.serve(address) as server:
        surface = server.create_surface(400, 300)
        surface.draw(truth)
        async with looking(address, truth) as client:
            await client.first()
            await surface.consumed(surface.serial)
            with slow_encoder(monkeypatch) as (go_on, threads):
                go_on.set()
                truth[5:50, 7:90] = 3
                surface.draw(truth, [(5, 7, 50, 90)])
                assert not threads
                await client.until(truth)
                assert threads == [threading.get_native_id()]


async def test_small_updates_in_lz_are_not_encoded_where_others_wait(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few pixels they have, each takes its time."""
    truth = picture(300, 400)
    async with spiceshm.serve(address, compression="lz") as server:
        surface = server.create_surface(400, 300)
        surface.draw(truth)
        async with looking(address, truth) as client:
            await client.first()
            await surface.consumed(surface.serial)
            with slow_encoder(monkeypatch) as (go_on, threads):
                go_on.set()
                small = [(y, x, y + 12, x + 12) for y in (0, 50, 100) for x in (0, 50, 100)]
                for top, left, bottom, right in small:
                    truth[top:bottom, left:right] = picture(12, 12, left)
                surface.draw(truth, small)
                await client.until(truth)
                assert threads
                assert threading.get_native_id() not in threads


async def test_threads_of_encoders_are_used_again_and_end_with_the_server(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = picture(300, 400)
    with slow_encoder(monkeypatch) as (go_on, threads):
        go_on.set()
        async with spiceshm.serve(address) as server:
            surface = server.create_surface(400, 300)
            async with looking(address, truth) as client:
                for step in range(5):
                    truth = picture(300, 400, step)
                    surface.draw(truth)
                    await client.until(truth)
            assert len(threads) == 5
            assert len(set(threads)) == 1
            go_on.clear()
            async with looking(address, truth):
                await asked_again(lambda: len(threads) == 6)
                server.close()  # while it is at work
                go_on.set()
        await asked_again(lambda: not Path(f"/proc/self/task/{threads[0]}").exists())


async def test_who_leaves_while_it_is_encoded_for(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when its surface is replaced meanwhile: the memory is given back when that is over."""
    truth = picture(300, 400)
    async with spiceshm.serve(address) as server:
        surface = server.create_surface(400, 300)
        surface.draw(truth)
        before = server.shm_bytes
        with slow_encoder(monkeypatch) as (go_on, threads):
            async with looking(address, truth):
                await asked_again(lambda: len(threads) == 1)
                surface = server.create_surface(400, 300)
                surface.draw(picture(300, 400, 2))
                assert server.shm_bytes == 2 * before
            await trio.testing.wait_all_tasks_blocked()
            assert server.shm_bytes > before  # somebody reads it
            go_on.set()
            await asked_again(lambda: not server.viewers)
            assert not surface.pool.readers
            await asked_again(lambda: server.shm_bytes == before)


async def test_a_surface_that_is_replaced_while_it_is_encoded(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the old one is drawn on the new one."""
    truth = picture(300, 400)
    async with spiceshm.serve(address) as server:
        server.create_surface(400, 300).draw(truth)
        with slow_encoder(monkeypatch) as (go_on, threads):
            async with looking(address, truth) as client:
                await asked_again(lambda: len(threads) == 1)
                server.create_surface(200, 100).draw(picture(100, 200, 2))
                go_on.set()
                await client.peer.find(display.SurfaceDestroy)
                with trio.fail_after(10):
                    await client.first()
                assert client.areas == [200 * 100]
                assert np.array_equal(client.seen[:100, :200], words(picture(100, 200, 2)))


# Slow ones


async def test_a_slow_client_gets_the_newest_and_no_backlog(address: str) -> None:
    truth = picture(300, 400)
    async with spiceshm.serve(address) as server:
        surface = server.create_surface(400, 300)
        surface.draw(truth)
        async with looking(address, truth) as client:
            await client.first()
            await surface.consumed(surface.serial)
            for step in range(200):  # it does not read, and so acknowledges nothing
                truth = picture(300, 400, step)
                surface.draw(truth)
                await trio.lowlevel.checkpoint()
            await asked_again(lambda: server.viewers[0].stats.frames == 2)
            await client.until(truth)
            assert server.viewers[0].stats.frames <= 3
            assert server.viewers[0].stats.coalesced >= 197


@pytest.mark.parametrize("place", ["unix:{}/s", "tcp:127.0.0.1:0"])
async def test_a_throttled_client_is_never_two_updates_behind(tmp_path: Path, place: str) -> None:
    """A picture a tick, and nine ticks for the bytes of one: the clock is ours."""
    side, budget = 128, 8000
    ticks = side * side * 4 // budget + 1  # for all bytes of an update
    base = picture(side, side)
    async with spiceshm.serve(place.format(tmp_path), compression="raw") as server:
        surface = server.create_surface(side, side)
        surface.draw(base)
        async with looking(str(server.addresses[0]), base) as client:
            await client.first()
            await surface.consumed(surface.serial)
            shown, late = [0], []
            for now in range(1, 251):
                surface.draw(base ^ np.uint8(now))
                await trio.testing.wait_all_tasks_blocked()
                if client.trickle(budget):
                    shown.append(int(client.seen[0, 0] & 255) ^ int(base[0, 0, 0]))
                    late.append(now - shown[-1])
                    assert client.sees(base ^ np.uint8(shown[-1]))
            assert shown == sorted(shown)
            assert 250 // (ticks + 2) <= len(late) <= 250 // (ticks - 1)
            assert max(late) <= ticks + 2
            for _ in range(2 * (ticks + 2)):
                await trio.testing.wait_all_tasks_blocked()
                client.trickle(budget)
            assert client.sees(base ^ np.uint8(250))


async def test_updates_of_a_throttled_client_become_larger_and_not_more(address: str) -> None:
    """Damage of two lines a tick, and bytes for one line: what it is late for comes together."""
    side = 128
    truth = picture(side, side)
    async with spiceshm.serve(address) as server:
        surface = server.create_surface(side, side)
        surface.draw(truth)
        async with looking(address, truth) as client:
            await client.first()
            await surface.consumed(surface.serial)
            for step in range(600):
                top = 2 * step % side
                truth[top : top + 2] = picture(2, side, step)
                surface.draw(truth, [(top, 0, top + 2, side)])
                await trio.testing.wait_all_tasks_blocked()
                client.trickle(side * 4)
                assert unsent(server.viewers[0]) <= truth.nbytes
            areas = client.areas[1:]
            assert len(areas) <= 20
            assert areas[0] == 2 * side
            assert max(areas) == areas[-1] > 100 * side
            ticks = 0
            while not client.sees(truth):
                await trio.testing.wait_all_tasks_blocked()
                client.trickle(side * 4)
                ticks += 1
                assert ticks <= 2 * side + 20


async def test_who_never_reads_costs_one_update(address: str) -> None:
    """However much is drawn, what waits for it stays what it was."""
    truth = picture(1000, 1000)
    async with spiceshm.serve(address) as server:
        surface = server.create_surface(1000, 1000)
        surface.draw(truth)
        async with looking(address, truth):
            await asked_again(lambda: server.viewers and server.viewers[0].stats.frames == 1)
            [viewer] = server.viewers
            waiting = unsent(viewer)
            assert 0 < waiting <= truth.nbytes + 1000
            buffers, resident = len(surface.pool.buffers), resident_bytes()
            for step in range(50):
                surface.draw(picture(1000, 1000, step % 2))
                await trio.testing.wait_all_tasks_blocked()
            assert unsent(viewer) == waiting
            assert resident_bytes() - resident < 10 * truth.nbytes
            assert len(surface.pool.buffers) == buffers
            assert not any(reader.leases for reader in surface.pool.readers)
            assert viewer.stats.frames == 1
            with trio.move_on_after(0.1):  # what it has not acknowledged is not delivered
                await surface.consumed(surface.serial)
                pytest.fail("nothing was consumed")


async def test_who_never_reads_is_told_of_no_surface_that_came_and_went(address: str) -> None:
    """Surfaces that replace each other cost it nothing, and then it sees the last of them."""
    truth = picture(300, 400)
    async with spiceshm.serve(address) as server:
        server.create_surface(400, 300).draw(truth)
        async with looking(address, truth) as client:
            await client.first()
            [viewer] = server.viewers
            await asked_again(lambda: viewer.stats.frames == 1)
            surface = server.create_surface(400, 300)  # of this one it is told at once
            surface.draw(truth)
            await asked_again(lambda: viewer.stats.frames == 2)
            before = viewer.stats.bytes_sent + unsent(viewer)
            for step in range(20):
                surface = server.create_surface(400, 300)
                truth = picture(300, 400, step)
                surface.draw(truth)
                await trio.testing.wait_all_tasks_blocked()
            assert viewer.stats.bytes_sent + unsent(viewer) == before
            assert viewer.stats.frames == 2
            with trio.fail_after(20):
                while not isinstance(await client.next(), display.SurfaceDestroy):
                    pass
                while not isinstance(await client.next(), display.SurfaceDestroy):
                    pass
                await client.first()
            assert client.sees(truth)
            assert viewer.stats.frames == 3
            with trio.fail_after(20):
                await surface.consumed(surface.serial)


async def test_a_client_has_four_display_channels_at_most(address: str) -> None:
    """Each may have a picture waiting to be sent, so that many would take all memory."""
    truth = picture(100, 200)
    async with spiceshm.serve(address) as server:
        surface = server.create_surface(200, 100)
        surface.draw(truth)
        async with byhand.session(address) as session:
            client = Looker(await session.open(ChannelType.DISPLAY), 100, 200)
            await client.peer.put(display.DisplayInit(0, 0, 0, 0))
            await client.first()
            others = [await session.open(ChannelType.DISPLAY) for _ in range(3)]
            one_too_many = await session.open(ChannelType.DISPLAY)
            assert await one_too_many.ended() == []
            assert len(server.viewers) == 4
            for other in others:
                other.close()
            truth = picture(100, 200, 2)
            surface.draw(truth)
            await client.until(truth)
            client.peer.close()
            await asked_again(lambda: not server.viewers)
            client = Looker(await session.open(ChannelType.DISPLAY), 100, 200)
            await client.peer.put(display.DisplayInit(0, 0, 0, 0))
            await client.until(truth)  # one at a time, as often as one likes


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def unsent(viewer: Viewer) -> int:
    return sum(len(data) for data, _ in viewer._stream._unsent)


async def test_an_update_counts_as_delivered_when_it_is_acknowledged(address: str) -> None:
    truth = picture(100, 100)
    async with spiceshm.serve(address) as server:
        surface = server.create_surface(100, 100)
        surface.draw(truth)
        async with looking(address, truth) as client:
            await client.peer.find(display.Mark)  # which acknowledges all before it
            await client.peer.put(base.Ack())
            with trio.fail_after(10):
                await surface.consumed(surface.serial)
                await surface.wanted()
