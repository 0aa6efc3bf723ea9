"""The library's two ends on a real socket: frames, leases, views, mode changes, both kinds."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import re
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
import trio.lowlevel
import trio.testing

import spiceshm
from spiceshm.client import RemoteDisplay
from spiceshm.client import display as client_display
from spiceshm.client import session as client_session
from spiceshm.memory import Budget, Reader, Segment
from spiceshm.transport import Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from spiceshm.fds import Descriptor

WIDTH, HEIGHT = 320, 200
SHM = ("auto", "off")


@pytest.fixture
def four_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A surface begins with four."""
    monkeypatch.setattr("spiceshm.server.surface.FIRST_BUFFERS", 4)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/display.sock"


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 4), np.uint8)


def rgb(pixels: np.ndarray) -> np.ndarray:
    """Without the byte that means nothing."""
    return pixels[:, :, :3]


@asynccontextmanager
async def both_ends(
    address: str, **options: object
) -> AsyncIterator[tuple[spiceshm.Display, spiceshm.Surface, RemoteDisplay]]:
    async with spiceshm.serve(address) as display:
        surface = display.create_surface(WIDTH, HEIGHT)
        surface.draw(picture(0))
        async with spiceshm.connect(address, **options) as remote:  # type: ignore[arg-type]
            yield display, surface, remote


async def next_frame(remote: RemoteDisplay) -> spiceshm.Frame:
    with trio.fail_after(10):
        return await anext(remote.frames())


async def until(remote: RemoteDisplay, pixels: np.ndarray) -> spiceshm.Frame:
    """The first frame that shows ``pixels``; ordinary SPICE may show a part before the whole."""
    with trio.fail_after(10):
        async for frame in remote.frames():
            if np.array_equal(rgb(frame.pixels), rgb(pixels)):
                return frame
    raise AssertionError("unreachable")


@pytest.mark.parametrize("shm", SHM)
async def test_frames_arrive_with_their_damage(address: str, shm: str) -> None:
    async with both_ends(address, shm=shm) as (_, surface, remote):
        assert remote.shared is (shm == "auto")
        assert (remote.reason is None) is remote.shared
        first = await next_frame(remote)
        assert first.full
        assert first.rects.tolist() == [[0, 0, HEIGHT, WIDTH]]
        truth = picture(0)
        assert np.array_equal(rgb(first.pixels), rgb(truth))
        for step in range(1, 20):
            rects = [(step, 2 * step, step + 5, 2 * step + 7), (100, step, 101, step + 1)]
            new = picture(step)
            for top, left, bottom, right in rects:
                truth[top:bottom, left:right] = new[top:bottom, left:right]
            surface.draw(truth, rects)
            frame = await until(remote, truth)
            assert not frame.full
            assert frame.pixels.shape == (HEIGHT, WIDTH, 4)
            assert not frame.pixels.flags.writeable
            if remote.shared:
                assert sorted(frame.rects.tolist()) == sorted(map(list, rects))
                assert frame.serial == surface.serial
                assert 0 < frame.age < 10


@pytest.mark.parametrize("shm", SHM)
async def test_a_slow_reader_gets_the_newest_with_all_it_missed(address: str, shm: str) -> None:
    async with both_ends(address, shm=shm) as (_, surface, remote):
        mirror = (await next_frame(remote)).copy()
        truth = picture(0)
        for step in range(50):  # nobody looks meanwhile
            top, left = step * 3, step * 5
            truth[top : top + 4, left : left + 6] = step
            surface.draw(truth, [(top, left, top + 4, left + 6)])
        frames = 0
        with trio.fail_after(10):
            async for frame in remote.frames():
                frames += 1
                for top, left, bottom, right in frame.rects.tolist():
                    mirror[top:bottom, left:right] = frame.pixels[top:bottom, left:right]
                if np.array_equal(rgb(frame.pixels), rgb(truth)):
                    break
        assert np.array_equal(rgb(mirror), rgb(truth))
        if shm == "auto":
            assert frames <= 2  # the one that was on its way, and the newest


@pytest.mark.parametrize("shm", SHM)
async def test_who_looks_again_after_a_while_sees_what_is_there_now(
    address: str, shm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_display, "STALE_S", 0.0)
    async with both_ends(address, shm=shm) as (_, surface, remote):
        for step in range(1, 4):
            surface.draw(picture(step))
            if shm == "off":  # where a thread has to encode it
                await surface.consumed(surface.serial)
            await trio.testing.wait_all_tasks_blocked()
        frame = await next_frame(remote)
        assert np.array_equal(rgb(frame.pixels), rgb(picture(3)))
        assert frame.full
        assert frame.rects.tolist()[-1] == [0, 0, HEIGHT, WIDTH]
        surface.draw(picture(4))
        second = await next_frame(remote)
        assert np.array_equal(rgb(second.pixels), rgb(picture(4)))


async def test_a_still_picture_can_be_looked_at_again(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_display, "STALE_S", 0.0)
    async with both_ends(address) as (_, surface, remote):
        frame = await next_frame(remote)
        assert np.array_equal(rgb(frame.pixels), rgb(picture(0)))
        assert frame.serial == surface.serial
        assert not frame.pixels.flags.writeable


@pytest.mark.parametrize("shm", SHM)
async def test_the_surface_changes_its_size(address: str, shm: str) -> None:
    async with both_ends(address, shm=shm) as (display, _, remote):
        held = (await next_frame(remote)).pixels
        for seed, (width, height) in enumerate([(64, 48), (500, 300), (1, 1), (WIDTH, HEIGHT)]):
            surface = display.create_surface(width, height)
            new = picture(seed, width, height)
            surface.draw(new)
            if seed == 0:
                assert np.array_equal(rgb(held), rgb(picture(0)))
                del held
            frame = await until(remote, new)
            assert frame.full or shm == "off"
            assert (frame.width, frame.height) == (width, height)
            assert (remote.width, remote.height) == (width, height)
            frame.release()
        assert remote.shared is (shm == "auto")


async def test_credits_are_bounded(address: str) -> None:
    for credits in (0, 9):
        with pytest.raises(ValueError, match="not 1 to 8"):
            async with spiceshm.connect(address, credits=credits):
                pass


async def test_drawing_in_place_and_thinking_better_of_it(address: str) -> None:
    async with both_ends(address) as (_, surface, remote):
        truth = picture(0)
        with surface.frame([(5, 5, 10, 10)]) as drawing:
            assert np.array_equal(rgb(drawing.pixels[20:]), rgb(truth[20:]))
            drawing.pixels[5:10, 5:10] = 77
            kept = drawing.pixels
        with pytest.raises(ValueError, match="read-only"):
            kept[0, 0] = 1
        truth[5:10, 5:10] = 77
        await until(remote, truth)
        serial = surface.serial

        def give_up() -> None:
            with surface.frame() as drawing:
                drawing.pixels[:] = 0
                raise KeyError("changed my mind")

        with pytest.raises(KeyError):
            give_up()
        assert surface.serial == serial
        surface.draw(truth, [(0, 0, 1, 1)])
        assert np.array_equal(rgb((await next_frame(remote)).pixels), rgb(truth))


async def test_one_frame_at_a_time(address: str) -> None:
    async with spiceshm.serve(address) as display:
        surface = display.create_surface(8, 8)
        with surface.frame(), pytest.raises(spiceshm.SpiceShmError, match="being drawn already"):
            surface.frame()
        assert surface.serial == 1


async def test_what_a_producer_can_get_wrong(address: str) -> None:
    async with spiceshm.serve(address) as display:
        for width, height in ((0, 1), (1, 0), (16385, 1), (-1, 5)):
            with pytest.raises(ValueError, match=r"not within 1x1 to 16384x16384"):
                display.create_surface(width, height)
        surface = display.create_surface(8, 6)
        with pytest.raises(ValueError, match=r"not \(6, 8, 4\) of uint8"):
            surface.draw(np.zeros((8, 6, 4), np.uint8))
        with pytest.raises(ValueError, match=r"not \(6, 8, 4\) of uint8"):
            surface.draw(np.zeros((6, 8, 4), np.uint16))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="outside a surface of 8x6"):
            surface.draw(np.zeros((6, 8, 4), np.uint8), [(0, 0, 7, 8)])
        assert surface.serial == 0


async def test_several_readers_see_the_same(address: str) -> None:
    async with both_ends(address) as (display, surface, first):
        async with (
            spiceshm.connect(address) as second,
            spiceshm.connect(address, shm="off") as third,
        ):
            assert (first.shared, second.shared, third.shared) == (True, True, False)
            assert len(display.viewers) == 3
            for step in range(1, 10):
                surface.draw(picture(step))
                for remote in (first, second, third):
                    (await until(remote, picture(step))).release()
        with trio.fail_after(10):
            while len(display.viewers) > 1:
                await trio.lowlevel.checkpoint()


async def test_wanted_paces_a_producer(address: str) -> None:
    async with spiceshm.serve(address) as display:
        surface = display.create_surface(8, 8)
        surface.draw(np.zeros((8, 8, 4), np.uint8))
        with trio.move_on_after(0.02) as nobody:
            await surface.wanted()
        assert nobody.cancelled_caught
        async with spiceshm.connect(address, credits=1) as remote:
            with trio.move_on_after(0.02) as held:
                await surface.wanted()
            assert held.cancelled_caught  # its one credit is with the first frame
            (await next_frame(remote)).release()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_ignore, next_frame, remote)
                with trio.fail_after(10):
                    await surface.wanted()
                nursery.cancel_scope.cancel()


class Alone:
    """A surface whose readers are played by the test: nothing is sent, so nothing is in a hurry."""

    def __init__(self, nursery: trio.Nursery, limit: int = 1 << 30) -> None:
        self.surface = spiceshm.Surface(8, 8, itertools.count(1), [], nursery, Budget(limit))
        self.pool = self.surface.pool

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in list(self.pool.readers):
            self.surface.leave(reader)
        self.surface.close()

    def join(self, credits: int) -> Reader:
        reader = self.surface.join(credits)
        reader.segments = set(self.pool.segments)
        return reader

    def hold_a_new_frame(self, *readers: Reader) -> int:
        serial = self.surface.draw(np.zeros((8, 8, 4), np.uint8))
        for reader in readers:
            assert self.pool.lend(reader)
        return serial

    async def grown(self, buffers: int) -> None:
        await settled(self.surface, buffers)
        while self.surface._growing:
            await trio.sleep(0.001)


async def not_wanted(surface: spiceshm.Surface) -> None:
    """Whoever waits has to go on waiting; what would make this fail wakes him at once."""
    with trio.move_on_after(0.02):
        await surface.wanted()
        pytest.fail("a frame was wanted that nobody would be sent")


async def soon_wanted(surface: spiceshm.Surface, change: Callable[[], object]) -> None:
    """Whoever waits is woken by ``change``."""
    await not_wanted(surface)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(surface.wanted)
        await trio.testing.wait_all_tasks_blocked()
        change()
        nursery.cancel_scope.deadline = trio.current_time() + 10
    assert not nursery.cancel_scope.cancelled_caught


@pytest.mark.usefixtures("four_buffers")
async def test_nothing_is_wanted_while_there_are_too_few_buffers() -> None:
    """Growth was refused: four buffers, and readers that together might hold ten."""
    async with trio.open_nursery() as nursery:
        with Alone(nursery, limit=Segment.size_for(4 * 4096)) as alone:
            first, second = alone.join(8), alone.join(2)
            while alone.surface._growing:
                await trio.sleep(0.001)
            assert len(alone.pool.buffers) == 4
            await alone.surface.wanted()
            serial = alone.hold_a_new_frame(first, second)  # one buffer, which both look at
            await alone.surface.wanted()
            alone.hold_a_new_frame(first)
            assert alone.pool.lend(second)
            assert len(first.leases) == len(second.leases) == 2
            # The first has credits left; the writer has none but the two buffers that it needs.
            await not_wanted(alone.surface)
            alone.surface.release(first, serial)
            await soon_wanted(alone.surface, lambda: alone.surface.release(second, serial))
            alone.hold_a_new_frame(first, second)


@pytest.mark.usefixtures("four_buffers")
async def test_nothing_is_wanted_in_memory_that_nobody_has_accepted() -> None:
    async with trio.open_nursery() as nursery:
        with Alone(nursery) as alone:
            [old] = alone.pool.segments
            reader = alone.join(4)
            await alone.grown(6)
            [_, new] = alone.pool.segments
            serials = [alone.hold_a_new_frame(reader) for _ in range(3)]
            alone.surface.draw(np.zeros((8, 8, 4), np.uint8))
            # All four buffers that it sees are in use: the next frame will lie where it does not.
            assert reader.ready
            assert reader.segments == {old}
            await soon_wanted(alone.surface, lambda: alone.surface.accepted(reader, new))
            assert alone.pool.lend(reader)
            await soon_wanted(alone.surface, lambda: alone.surface.release(reader, serials[0]))


@pytest.mark.usefixtures("four_buffers")
async def test_growth_makes_frames_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a buffer that it sees, but the writer would keep too few, until there are more."""
    go_on = threading.Event()
    make = spiceshm.Surface._new_segment

    def make_later(surface: spiceshm.Surface, buffers: int) -> Segment:
        assert buffers == 4 or go_on.wait(10)
        return make(surface, buffers)

    monkeypatch.setattr(spiceshm.Surface, "_new_segment", make_later)
    async with trio.open_nursery() as nursery:
        with Alone(nursery) as alone:
            reader = alone.join(3)
            for _ in range(2):
                alone.hold_a_new_frame(reader)
            await soon_wanted(alone.surface, go_on.set)
            alone.hold_a_new_frame(reader)


@pytest.mark.usefixtures("four_buffers")
async def test_a_producer_that_waits_until_it_is_wanted(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It neither spins while a client holds all that can be lent, nor hangs when that ends."""
    make = spiceshm.Surface._new_segment

    def no_more_than_four(surface: spiceshm.Surface, buffers: int) -> Segment:
        if surface.pool.buffers:
            raise spiceshm.MemoryRefused("for this test there is none")
        return make(surface, buffers)

    monkeypatch.setattr(spiceshm.Surface, "_new_segment", no_more_than_four)
    async with both_ends(address, credits=8) as (_, surface, remote):
        [reader] = surface.pool.readers

        async def produce() -> None:
            while True:
                await surface.wanted()
                surface.draw(picture(surface.serial), [(0, 0, 1, 1)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            for _ in range(20):
                kept = [(await next_frame(remote)).pixels for _ in range(2)]
                with trio.fail_after(10):
                    while len(reader.leases) < 2:
                        await trio.sleep(0.001)
                await not_wanted(surface)
                drawn = surface.serial
                assert len(surface.pool.buffers) == 4
                await trio.sleep(0.002)
                assert surface.serial == drawn
                kept.clear()
            nursery.cancel_scope.cancel()


async def test_frames_of_an_earlier_surface_use_credits(address: str) -> None:
    async with both_ends(address) as (display, surface, remote):
        kept = []
        for step in range(1, 3):
            frame = await next_frame(remote)
            kept.append(frame.pixels)
            surface.draw(picture(step))
        frame.release()
        surface = display.create_surface(64, 48)
        surface.draw(picture(3, 64, 48))
        with trio.fail_after(10):
            while not surface.pool.readers:
                await trio.sleep(0.001)
        await soon_wanted(surface, kept.clear)
        surface.draw(picture(4, 64, 48))
        await until(remote, picture(4, 64, 48))


async def test_who_has_turned_to_ordinary_spice_is_lent_nothing(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its views of frames that it was lent before make nobody draw."""
    async with both_ends(address, credits=3) as (_, surface, remote):
        kept = (await next_frame(remote)).pixels
        monkeypatch.setattr(client_display, "MappedSegment", _refuse)
        await surface.forget()
        with trio.fail_after(10):
            while remote.shared:
                await trio.sleep(0.001)
        [lent] = [reader for reader in surface.pool.readers if reader.leases]
        assert not surface.pool.wants(lent)
        assert np.array_equal(rgb(kept), rgb(picture(0)))
        surface.draw(picture(1))
        await until(remote, picture(1))
        del kept
        with trio.fail_after(10):
            while lent in surface.pool.readers:
                await trio.sleep(0.001)


def _refuse(*_: object) -> None:
    raise spiceshm.MemoryRefused("not any more")


async def _ignore(call, *args) -> None:  # type: ignore[no-untyped-def]
    await call(*args)


async def test_passwords(address: str) -> None:
    async with spiceshm.serve(address, password="sesame") as display:
        display.create_surface(8, 8).draw(np.zeros((8, 8, 4), np.uint8))
        async with spiceshm.connect(address, password="sesame") as remote:
            assert remote.width == 8
        for wrong in ("", "sesam", "sesame2"):
            with pytest.raises(spiceshm.LinkRefused, match="wrong or missing password"):
                async with spiceshm.connect(address, password=wrong):
                    pass


async def test_beyond_loopback_somebody_must_be_kept_out() -> None:
    with pytest.raises(spiceshm.ListenError, match="anybody could connect"):
        async with spiceshm.serve("tcp:0.0.0.0:0"):
            pass
    async with spiceshm.serve("tcp:0.0.0.0:0", no_auth=True) as display:
        assert str(display.addresses[0]) != "tcp:0.0.0.0:0"


async def test_limits_that_let_nobody_in_or_say_two_things(address: str) -> None:
    for options, why in (
        ({"max_clients": 0}, "max_clients is 0"),
        ({"password": "sesame", "no_auth": True}, r"of every client \(password\) or of none"),
        ({"password": "x" * 61}, "1 to 60 bytes"),
    ):
        with pytest.raises(ValueError, match=why):
            async with spiceshm.serve(address, **options):  # type: ignore[arg-type]
                pass


async def test_as_many_clients_as_are_wanted(address: str) -> None:
    async with spiceshm.serve(address, max_clients=2) as display:
        display.create_surface(8, 8).draw(np.zeros((8, 8, 4), np.uint8))
        for _ in range(2):  # who has gone makes room
            async with spiceshm.connect(address), spiceshm.connect(address):
                with pytest.raises(spiceshm.LinkRefused, match=r"error \(1\); it may have no room"):
                    async with spiceshm.connect(address):
                        pass
            with trio.fail_after(10):
                while display._entrance.connections:
                    await trio.sleep(0.001)


async def test_tcp_and_abstract_sockets(tmp_path: Path) -> None:
    name = f"unix:@spiceshm-test-{tmp_path.name}"
    async with spiceshm.serve("tcp:127.0.0.1:0", name) as display:
        display.create_surface(WIDTH, HEIGHT).draw(picture(3))
        tcp = str(display.addresses[0])
        for place, shared in ((tcp, False), (tcp.replace("tcp:", "spice://"), False), (name, True)):
            async with spiceshm.connect(place) as remote:
                assert remote.shared is shared
                frame = await next_frame(remote)
                assert np.array_equal(rgb(frame.pixels), rgb(picture(3)))
        with pytest.raises(spiceshm.MemoryRefused, match="cannot be shared over TCP"):
            async with spiceshm.connect(tcp, shm="require"):
                pass


async def test_a_server_that_shares_nothing(address: str) -> None:
    async with spiceshm.serve(address, shm="off") as display:
        display.create_surface(WIDTH, HEIGHT).draw(picture(1))
        async with spiceshm.connect(address) as remote:
            assert not remote.shared
            assert remote.reason == "the server does not share memory"


async def test_nothing_to_see_is_said_in_time(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_session, "HANDSHAKE_S", 0.2)
    async with spiceshm.serve(address):
        with pytest.raises(spiceshm.ConnectError, match="nothing was shown within"):
            async with spiceshm.connect(address):
                pass


async def test_a_body_that_fails_fails_as_itself(address: str) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with both_ends(address):
            raise KeyError("mine")


async def test_server_goes_client_is_told(address: str) -> None:
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def server(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            with scope:
                async with spiceshm.serve(address) as display:
                    display.create_surface(8, 8).draw(np.zeros((8, 8, 4), np.uint8))
                    task_status.started()
                    await trio.sleep_forever()

        await nursery.start(server)
        async with spiceshm.connect(address) as remote:
            frames = remote.frames()
            await anext(frames)
            scope.cancel()
            with trio.fail_after(10), pytest.raises(spiceshm.Disconnected, match=address):
                await anext(frames)
    with pytest.raises(spiceshm.ConnectError, match="no server is listening"):
        async with spiceshm.connect(address):
            pass


async def settled(surface: spiceshm.Surface, buffers: int) -> None:
    with trio.fail_after(10):
        while len(surface.pool.buffers) != buffers:
            await trio.sleep(0.001)


async def test_memory_grows_and_shrinks_with_the_readers(address: str) -> None:
    async with both_ends(address) as (display, surface, remote):
        await settled(surface, 5)
        async with spiceshm.connect(address, credits=8) as second:
            await settled(surface, 13)
            async with spiceshm.connect(address, credits=2) as third:
                await settled(surface, 15)
                for step in range(1, 5):
                    surface.draw(picture(step))
                    for reader in (remote, second, third):
                        (await until(reader, picture(step))).release()
                assert display.shm_bytes == sum(s.size for s in surface.pool.segments)
        await settled(surface, 5)
        for step in range(5, 9):
            surface.draw(picture(step))
            (await until(remote, picture(step))).release()
        assert display.shm_bytes == surface.pool.segments[0].size
        # The mappings of what was given back are gone on the client's side too.
        assert remote.segment_bytes == display.shm_bytes


async def test_many_readers_do_not_make_too_many_segments(address: str) -> None:
    async with spiceshm.serve(address) as display:
        surface = display.create_surface(WIDTH, HEIGHT)
        with trio.fail_after(10):
            readers = []
            for _ in range(128):
                readers.append(surface.join(credits=2))
                while surface.pool.missing_with(0):
                    await trio.sleep(0.001)
        assert len(surface.pool.segments) <= 45
        for reader in readers:
            surface.leave(reader)
        assert display.shm_bytes == surface.pool.segments[0].size


async def test_a_surface_is_never_in_more_pieces_than_a_connection_can_know(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with spiceshm.serve(address) as display:
        surface = display.create_surface(WIDTH, HEIGHT)
        with trio.fail_after(10):
            while not caplog.text:  # there is never room for more than one buffer more
                display._budget.limit = display.shm_bytes + surface._size_of(1)
                surface.join(credits=1)
                while surface._growing:
                    await trio.sleep(0.001)
        assert "it lies in 60 pieces already" in caplog.text
        assert len(surface.pool.segments) == 60


async def test_a_limit_of_memory(address: str, caplog: pytest.LogCaptureFixture) -> None:
    size = WIDTH * HEIGHT * 4
    async with spiceshm.serve(address, shm_limit=10 * size) as display:
        display.create_surface(WIDTH, HEIGHT).draw(picture(0))
        async with spiceshm.connect(address) as first:
            assert first.shared
            with caplog.at_level("INFO"):
                async with spiceshm.connect(address, credits=8) as greedy:
                    assert not greedy.shared
                    assert greedy.reason == "the server shared none of its memory; its log says why"
                    frame = await next_frame(greedy)
                    assert np.array_equal(rgb(frame.pixels), rgb(picture(0)))
            assert "would pass the limit" in caplog.text
            async with spiceshm.connect(address) as third:
                assert third.shared
        with pytest.raises(spiceshm.MemoryRefused, match="would pass the limit of"):
            display.create_surface(4 * WIDTH, HEIGHT)


async def test_forgetting_replaces_the_memory(address: str) -> None:
    async with both_ends(address, credits=2) as (_, surface, remote):
        held = (await next_frame(remote)).pixels
        before = set(surface.pool.segments)
        await surface.forget()
        assert not before & set(surface.pool.segments)
        assert before >= surface.pool.retiring
        assert np.array_equal(rgb(held), rgb(picture(0)))  # a lease is a lease
        surface.draw(picture(1))
        frame = await until(remote, picture(1))
        frame.release()
        del frame
        wiped = held.base if isinstance(held.base, np.ndarray) else None
        assert wiped is None
        del held
        gc.collect()
        with trio.fail_after(10):
            while surface.pool.retiring:
                await trio.sleep(0.001)
        assert all(segment.fileno() >= 0 for segment in surface.pool.segments)
        assert len(surface.pool.buffers) == 4


async def test_forgetting_again_and_again_turns_nobody_away(address: str) -> None:
    async with both_ends(address) as (display, surface, remote):
        for step in range(1, 20):
            await surface.forget()  # offers are withdrawn before they are answered
            if step % 3 == 0:
                surface.draw(picture(step))
                await until(remote, picture(step))
        surface.draw(picture(20))
        await until(remote, picture(20))
        assert remote.shared
        assert display.viewers[0].stats.shm


async def test_serials_go_on_where_shared_memory_ends(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with both_ends(address) as (_, surface, remote):
        for step in range(1, 5):
            surface.draw(picture(step))
            last = await until(remote, picture(step))
        serial = last.serial
        assert serial == surface.serial
        wishes = remote._channel.wishes._replace(shm="off")  # it takes no more memory
        monkeypatch.setattr(remote._channel, "wishes", wishes)
        surface.join(8)
        surface.draw(picture(5))
        with trio.fail_after(10):
            while remote.shared:
                await next_frame(remote)
                surface.draw(picture(surface.serial))
        frame = await until(remote, picture(surface.serial - 1))
        assert not remote.shared
        assert frame.serial > serial


async def test_figures_of_a_client_outlast_a_surface(address: str) -> None:
    async with both_ends(address, credits=1) as (display, surface, remote):
        held = (await next_frame(remote)).pixels
        for step in range(1, 6):
            surface.draw(picture(step))
        [viewer] = display.viewers
        assert viewer.stats.lag_frames == 5
        missed = viewer.stats.coalesced
        assert missed >= 4
        surface = display.create_surface(WIDTH, HEIGHT)
        for step in range(6, 9):
            surface.draw(picture(step))
        assert viewer.stats.lag_frames == 8
        assert viewer.stats.coalesced >= missed
        del held
        await until(remote, picture(8))
        await asked_again(lambda: viewer.stats.lag_frames == 0)
        assert viewer.stats.frames > 1


async def test_the_limit_of_held_frames_holds_also_while_something_else_comes(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_display, "HELD_WARNING_S", 0.1)
    monkeypatch.setattr(client_display, "HELD_LIMIT_S", 0.5)
    async with both_ends(address, credits=1) as (_, surface, remote):
        held = (await next_frame(remote)).pixels

        async def replace_memory() -> None:
            while True:
                await surface.forget()
                await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replace_memory)
            with pytest.raises(spiceshm.FramesHeld, match=r"keep frame.copy\(\), or connect"):
                await next_frame(remote)
            nursery.cancel_scope.cancel()
        assert caplog.text.count("are still held") == 1
        assert np.array_equal(rgb(held), rgb(picture(0)))


async def test_lock_step(address: str) -> None:
    async with both_ends(address, credits=1) as (_, surface, remote):
        seen: list[int] = []

        async def look() -> None:
            async for frame in remote.frames():
                seen.append(frame.serial)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            for step in range(1, 20):
                serial = surface.draw(picture(step), [(0, 0, 1, 1)])
                with trio.fail_after(10):
                    await surface.consumed(serial)
                assert seen[-1] == serial
            nursery.cancel_scope.cancel()
    assert len(seen) == 20  # every single one, and the first picture


async def test_who_holds_frames_of_an_earlier_surface_is_not_waited_for(address: str) -> None:
    async with both_ends(address, credits=2) as (display, surface, remote):
        held = []
        for step in range(2):
            held.append((await until(remote, picture(step))).pixels)
            serial = surface.draw(picture(step + 1))
        [reader] = surface.pool.readers
        assert reader.done < serial
        display.create_surface(WIDTH, HEIGHT).draw(picture(3))
        assert len(reader.leases) == 2
        with trio.fail_after(10):
            await surface.consumed(serial)
        assert np.array_equal(rgb(held[0]), rgb(picture(0)))
        held.clear()
        await until(remote, picture(3))


async def test_what_makes_no_sense_is_refused(address: str) -> None:
    async with both_ends(address) as (display, surface, _):
        for fps in (0, -5, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="no number of steps a second above 0"):
                surface.pace(fps)
        for options in ({"credits": 0}, {"credits": 9}, {"credits": 2.5}, {"credits": "x"}):
            with pytest.raises(ValueError, match="not 1 to 8"):
                async with spiceshm.connect(address, **options):  # type: ignore[arg-type]
                    pass
        with pytest.raises(ValueError, match="shm is 'bogus'"):
            async with spiceshm.connect(address, shm="bogus"):  # type: ignore[arg-type]
                pass
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(draws_no_more, surface)
                await trio.testing.wait_all_tasks_blocked()
                display.create_surface(8, 8)
        with pytest.raises(spiceshm.SpiceShmError, match="was replaced"):
            await surface.wanted()


async def draws_no_more(surface: spiceshm.Surface) -> None:
    async def draw() -> None:
        while True:
            await surface.wanted()
            surface.draw(picture(0))

    with pytest.raises(spiceshm.SpiceShmError, match="was replaced"):
        await draw()


async def test_pace(autojump_clock: trio.testing.MockClock) -> None:
    async with spiceshm.serve(f"unix:@spiceshm-pace-{os.getpid()}") as display:
        surface = display.create_surface(8, 8)
        times = []
        async for _ in surface.pace(10):
            times.append(trio.current_time())
            if len(times) == 3:
                await trio.sleep(1)  # far too late for the next ones
            if len(times) == 6:
                break
    steps = np.diff(times)
    assert steps == pytest.approx([0.1, 0.1, 1.0, 0.0, 0.1], abs=0.01)


async def test_statistics_tell_who_holds_what(address: str) -> None:
    async with both_ends(address, credits=1) as (display, surface, remote):
        frame = await next_frame(remote)
        async with spiceshm.connect(address, shm="off"):
            for step in range(1, 6):
                surface.draw(picture(step))
            shared, ordinary = sorted(
                (viewer.stats for viewer in display.viewers), key=lambda stats: not stats.shm
            )
            assert (shared.shm, ordinary.shm) == (True, False)
            assert shared.reason is None
            assert ordinary.reason == "the client does not want shared memory"
            assert (shared.held_frames, ordinary.held_frames) == (1, 0)
            assert shared.held_s >= 0
            assert shared.lag_frames == 5
            assert shared.coalesced == 4
            assert shared.frames == 1
            assert ordinary.bytes_sent > WIDTH * HEIGHT * 4 > shared.bytes_sent
        frame.release()
        del frame
        await until(remote, picture(5))
        assert display.viewers[0].stats.lag_frames == 0


async def test_a_server_may_come_later(address: str) -> None:
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await trio.sleep(0.1)
            async with spiceshm.serve(address) as display:
                display.create_surface(8, 8).draw(picture(1, 8, 8))
                await trio.sleep_forever()

        nursery.start_soon(serve)
        with pytest.raises(spiceshm.ConnectError, match="no server is listening"):
            async with spiceshm.connect(address):
                raise AssertionError("nobody is there yet")
        async with spiceshm.connect(address, wait_server=10) as remote:
            assert (remote.width, remote.height) == (8, 8)
        nursery.cancel_scope.cancel()
    began = trio.current_time()
    with pytest.raises(spiceshm.ConnectError):
        async with spiceshm.connect(address, wait_server=0.2):
            raise AssertionError("nobody is there any more")
    assert trio.current_time() - began >= 0.2


async def test_a_surface_that_was_replaced_is_not_drawn_on(address: str) -> None:
    async with both_ends(address) as (display, surface, _):
        display.create_surface(64, 48)
        with pytest.raises(spiceshm.SpiceShmError, match="draw on the new one"):
            surface.draw(picture(1))


async def test_publishing_waits_for_nobody_makes_no_memory_and_sends_once_to_who_has_a_credit(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with both_ends(address, credits=1) as (display, surface, remote):
        async with spiceshm.connect(address, credits=1), spiceshm.connect(address, credits=8):
            await next_frame(remote)
            await asked_again(lambda: accepted(surface))
            surface.draw(picture(1))
            surface.draw(picture(2))

            def held() -> list[int]:
                return sorted(viewer.stats.held_frames for viewer in display.viewers)

            # Two clients hold the one frame that they may, the third one of eight.
            await asked_again(lambda: held() == [1, 1, 1])
            await trio.testing.wait_all_tasks_blocked()
            sent: list[str] = []
            send = Stream._try_send

            def noted(stream: Stream, *what: object) -> object:
                sent.append(stream.peer)
                return send(stream, *what)  # type: ignore[arg-type]

            monkeypatch.setattr(Stream, "_try_send", noted)
            monkeypatch.setattr(Segment, "__init__", None)
            memory = display.shm_bytes
            for step in range(3, 12):
                surface.draw(picture(step))
            assert display.shm_bytes == memory
            assert len(sent) == 7
            assert held() == [1, 1, 8]


async def test_who_cannot_be_offered_new_memory_waits_for_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with both_ends(address) as (display, surface, remote):
        await until(remote, picture(0))
        duplicate, refused = Segment.duplicate, []

        def none_left(segment: Segment) -> Descriptor:
            refused.append(segment)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        # Growth: what lies in the old memory can still be seen.
        monkeypatch.setattr(Segment, "duplicate", none_left)
        surface.join(8)
        await asked_again(lambda: len(surface.pool.segments) > 1 and bool(refused))
        for step in range(1, 9):
            surface.draw(picture(step))
            await until(remote, picture(step))
        monkeypatch.setattr(Segment, "duplicate", duplicate)
        surface.draw(picture(9))
        mine = display.viewers[0]._reader
        assert mine is not None
        await asked_again(lambda: mine.segments >= set(surface.pool.segments))

        # Another surface, of which nothing can be offered yet.
        refused.clear()
        monkeypatch.setattr(Segment, "duplicate", none_left)
        surface = display.create_surface(WIDTH, HEIGHT)
        for step in range(10, 13):
            surface.draw(picture(step))
        assert refused
        monkeypatch.setattr(Segment, "duplicate", duplicate)
        surface.draw(picture(13))
        await until(remote, picture(13))
        assert remote.shared
        assert display.viewers[0].stats.reason is None


# Who reads the channel


def accepted(surface: spiceshm.Surface) -> bool:
    """Whether memory has grown and every reader has taken all of it."""
    pool = surface.pool
    return len(pool.segments) > 1 and all(
        reader.segments >= set(pool.segments) for reader in pool.readers if reader.credits
    )


async def asked_again(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.005)


async def test_memory_is_taken_while_the_program_is_away(address: str) -> None:
    async with both_ends(address) as (_, surface, remote):
        held = await next_frame(remote)
        surface.draw(picture(1))
        async with spiceshm.connect(address, credits=8):
            await asked_again(lambda: accepted(surface))
        assert np.array_equal(rgb(held.pixels), rgb(picture(0)))
        await until(remote, picture(1))


@pytest.mark.parametrize("most", [1, 7])
async def test_memory_is_taken_while_the_program_waits_whatever_a_read_brings(
    address: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Stream.receive_now
    monkeypatch.setattr(
        Stream, "receive_now", lambda stream, asked=most: read(stream, min(asked, most))
    )
    async with both_ends(address) as (_, surface, remote), trio.open_nursery() as nursery:
        for step in range(3):
            surface.draw(picture(step))
            await until(remote, picture(step))
        nursery.start_soon(until, remote, picture(99))
        await trio.testing.wait_all_tasks_blocked()
        async with spiceshm.connect(address, credits=8):
            await asked_again(lambda: accepted(surface))
            surface.draw(picture(99))
            await asked_again(lambda: not nursery.child_tasks)


async def test_of_several_tasks_that_wait_each_goes_on_when_another_gives_up(address: str) -> None:
    seen: list[int] = []

    async def wait(remote: RemoteDisplay, scope: trio.CancelScope) -> None:
        with scope:
            seen.append((await next_frame(remote)).serial)

    async with both_ends(address) as (_, surface, remote):
        await next_frame(remote)
        for step in range(1, 4):
            async with trio.open_nursery() as nursery:
                scopes = [trio.CancelScope() for _ in range(3)]
                for scope in scopes:
                    nursery.start_soon(wait, remote, scope)
                    await trio.testing.wait_all_tasks_blocked()
                scopes[0].cancel()
                scopes[2].cancel()
                await trio.testing.wait_all_tasks_blocked()
                surface.draw(picture(step))
            assert seen.pop() == surface.serial
            assert not seen


async def test_a_server_that_goes_is_noticed_by_who_waits_and_by_who_was_away(address: str) -> None:
    async def serve(task_status: trio.TaskStatus[spiceshm.Surface]) -> None:
        async with spiceshm.serve(address) as display:
            surface = display.create_surface(WIDTH, HEIGHT)
            surface.draw(picture(0))
            task_status.started(surface)
            await trio.sleep_forever()

    async def lose(remote: RemoteDisplay) -> None:
        with pytest.raises(spiceshm.Disconnected, match=f"^{re.escape(address)}: "):
            await next_frame(remote)

    async with trio.open_nursery() as serving:
        surface = await serving.start(serve)
        async with spiceshm.connect(address) as near, spiceshm.connect(address) as away:
            for step in range(1, 3):
                surface.draw(picture(step))
                await until(near, picture(step))
                await until(away, picture(step))
            async with trio.open_nursery() as waiting:
                waiting.start_soon(lose, near)
                await trio.testing.wait_all_tasks_blocked()
                serving.cancel_scope.cancel()
            await lose(away)
