"""Who reads the client's channel: the program that waits, or the background, and between the two
nothing is lost, nobody is forgotten, and no older frame comes after a newer one."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
import trio.lowlevel
import trio.testing

import spiceshm
from spiceshm.client import Frame
from spiceshm.client import display as client_display
from spiceshm.client import reading as client_reading
from spiceshm.client.display import DisplayChannel
from spiceshm.transport import Stream
from spiceshm.wire import display
from spiceshm.wire.types import ChannelType, Rect
from tests import stockserver
from tests.test_library import HEIGHT, WIDTH, both_ends, next_frame, picture, rgb, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from typing import Any


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/display.sock"


@pytest.fixture
def no_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """The background comes only where it is called, never because time has passed."""
    monkeypatch.setattr(client_reading, "AWAY_S", 1e6)


async def look_and_draw(
    surface: spiceshm.Surface, remote: spiceshm.RemoteDisplay, frames: int
) -> None:
    """So many frames, each drawn when the one before was seen."""
    with trio.fail_after(10):
        for step in range(frames):
            surface.draw(picture(step))
            await until(remote, picture(step))


@pytest.mark.usefixtures("no_help")
async def test_the_byte_behind_an_offer_may_be_late(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Stream._try_send
    kept: list[int] = []

    def late(stream: Stream, data: Any, descriptors: Any) -> Any:
        if descriptors and len(kept) < 5:
            kept.append(len(data))
            return memoryview(data), descriptors
        return send(stream, data, descriptors)

    async with both_ends(address) as (_, surface, remote):
        await look_and_draw(surface, remote, 3)
        monkeypatch.setattr(Stream, "_try_send", late)
        surface.join(8)  # memory grows, and is offered
        await look_and_draw(surface, remote, 30)
        with trio.fail_after(10):
            while not kept:
                await trio.sleep(0.001)
        await look_and_draw(surface, remote, 30)


@pytest.mark.usefixtures("no_help")
async def test_answers_may_wait_for_a_full_socket(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Stream._try_send

    async with both_ends(address) as (_, surface, remote):
        await look_and_draw(surface, remote, 3)
        for _ in range(5):
            full = [1]

            def once(stream: Stream, data: Any, descriptors: Any, full: list[int] = full) -> Any:
                if stream is remote._channel._stream and full:
                    full.pop()
                    return memoryview(data), descriptors
                return send(stream, data, descriptors)

            monkeypatch.setattr(Stream, "_try_send", once)
            await look_and_draw(surface, remote, 4)
            assert not full


async def test_a_fresh_frame_is_given_at_once_to_who_was_away(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with both_ends(address) as (_, surface, remote):
        await look_and_draw(surface, remote, 3)
        monkeypatch.setattr(client_display, "STALE_S", 0.0)
        monkeypatch.setattr(client_reading, "AWAY_S", 1e6)
        monkeypatch.setattr(Frame, "age", property(lambda _: -1.0))
        monkeypatch.setattr(DisplayChannel, "_catch_up", None)  # it would copy and ask
        surface.draw(picture(3))
        await trio.sleep(0.02)
        frame = await next_frame(remote)
        assert np.array_equal(rgb(frame.pixels), rgb(picture(3)))


async def away(remote: spiceshm.RemoteDisplay) -> None:
    """Until the background reads."""
    with trio.fail_after(10):
        while not remote._channel.reading._background_reads:
            await trio.sleep(0.01)


async def test_of_two_who_wait_one_gives_up_an_old_frame(address: str) -> None:
    async with both_ends(address, credits=2) as (_, surface, remote):
        await until(remote, picture(0))
        await away(remote)
        surface.draw(picture(1))
        await trio.sleep(0.05)  # it is old now, and is about to be exchanged
        seen: list[Frame] = []

        async def wait(scope: trio.CancelScope) -> None:
            with scope:
                seen.append(await next_frame(remote))

        async with trio.open_nursery() as nursery:
            scopes = [trio.CancelScope() for _ in range(2)]
            for scope in scopes:
                nursery.start_soon(wait, scope)
                await trio.testing.wait_all_tasks_blocked()
            scopes[0].cancel()
        assert len(seen) >= 1


async def test_serials_rise_for_two_who_wait(address: str) -> None:
    async with both_ends(address) as (_, surface, remote):
        await until(remote, picture(0))
        for _ in range(5):
            await away(remote)
            surface.draw(picture(1))
            await trio.sleep(0.02)
            serials: list[int] = []

            async def wait(serials: list[int] = serials) -> None:
                serials.append((await next_frame(remote)).serial)

            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(wait)
                    await trio.testing.wait_all_tasks_blocked()
                surface.draw(picture(2))
                with trio.fail_after(10):
                    while len(serials) < 2:
                        await trio.sleep(0.06)
                        surface.draw(picture(3))
            assert serials == sorted(serials)


async def test_a_mode_change_while_an_old_frame_is_exchanged(address: str) -> None:
    async with both_ends(address) as (display, surface, remote):
        await until(remote, picture(0))
        surface.draw(picture(1))
        await trio.sleep(0.05)

        async def change() -> None:
            await trio.sleep(0.01)
            new = display.create_surface(64, 48)
            await trio.sleep(0.1)
            new.draw(picture(2, 64, 48))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            frame = await next_frame(remote)
            assert (frame.width, frame.height) == (remote.width, remote.height)


async def test_closing_while_bytes_wait_is_no_other_error(address: str) -> None:
    async with both_ends(address) as (_, _, remote):
        await until(remote, picture(0))
        stream = remote._channel._stream
        assert stream is not None
        stream._unsent.append((memoryview(b"x"), ()))
        stream._blocked.set()  # as where the kernel takes nothing
        remote._channel.fail(spiceshm.Disconnected("over"))
        with pytest.raises(spiceshm.Disconnected, match="over"):
            await next_frame(remote)


# A server that goes on while the client's loop is kept from running


@contextlib.asynccontextmanager
async def elsewhere(
    address: str, pause: float = float("inf")
) -> AsyncIterator[Callable[[int], None]]:
    """A server in a thread of its own, which draws every so often. Yields what draws a picture."""
    started: SimpleQueue[Any] = SimpleQueue()

    async def serve() -> None:
        async with spiceshm.serve(address) as display:
            surface = display.create_surface(WIDTH, HEIGHT)
            surface.draw(picture(0))
            with trio.CancelScope() as scope:
                started.put((trio.lowlevel.current_trio_token(), surface, scope))
                while True:
                    await trio.sleep(pause)
                    surface.draw(picture(0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, trio.run, serve)
        token, surface, scope = await trio.to_thread.run_sync(started.get)
        try:
            yield lambda seed: token.run_sync_soon(surface.draw, picture(seed))
        finally:
            token.run_sync_soon(scope.cancel)


@pytest.mark.parametrize("waits", [False, True])
async def test_the_newest_is_what_came_while_nothing_could_run(address: str, waits: bool) -> None:
    async with (
        elsewhere(address) as draw,
        spiceshm.connect(address, shm="require") as remote,
        trio.open_nursery() as nursery,
    ):
        if waits:
            nursery.start_soon(partial(remote.wait_change, since=1 << 40, timeout=None))
        for step in range(1, 17):
            before = await remote.latest()
            await trio.sleep(0.02)
            draw(step)
            time.sleep(0.02)  # noqa: ASYNC251
            if step % 2:
                frame = await remote.wait_change(since=before, timeout=0)
            else:
                frame = await remote.latest()
            assert np.array_equal(rgb(frame.pixels), rgb(picture(step)))
        nursery.cancel_scope.cancel()


async def test_a_loop_that_computes_lets_others_run(address: str) -> None:
    async with elsewhere(address, 0.002), spiceshm.connect(address) as remote:
        seen = 0
        with trio.move_on_after(0.2):
            async for _ in remote.frames():
                seen += 1
                assert seen < 100
                time.sleep(0.015)  # noqa: ASYNC251
        assert seen > 3


async def test_what_a_read_has_left_to_do_is_not_read_over(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program reads in the very turn in which the background is told that there is something,
    and more comes before that has its turn."""
    monkeypatch.setattr(client_display, "TURN_S", 0.0)
    brush = display.Brush(display.BRUSH_SOLID, 0x123456)
    dot = display.DrawFill(0, Rect(0, 0, 1, 1), None, brush, display.ROP_PUT, display.NO_MASK)
    sent = 0
    async with stockserver.serving(address) as server, spiceshm.connect(address) as remote:
        end = await server.channel(ChannelType.DISPLAY)
        for _ in range(30):
            end.put(*[dot] * 8)
            await trio.lowlevel.checkpoint()
            await remote.latest()
            end.put(*[dot] * 8)
            sent += 16
            with trio.fail_after(10):
                while remote.images.get("fill", 0) < sent:
                    await remote.latest()
        assert remote.images["fill"] == sent
