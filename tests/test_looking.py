"""Looking without a loop: the newest frame, waiting for a change, waiting until all is still."""

from __future__ import annotations

import gc
import io
import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
import trio.lowlevel
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import spiceshm
from spiceshm.client.changes import Changes, Moment
from spiceshm.client.display import STALE_S, DisplayChannel
from spiceshm.client.frame import Copies
from spiceshm.client.session import Session
from spiceshm.server.sessions import MOST_DISPLAYS
from spiceshm.transport import Stream
from tests.test_library import HEIGHT, WIDTH, both_ends, picture, rgb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from typing import Any

    from spiceshm.region import Rect

SHM = ["auto", "off"]
ELSEWHERE = (0, 0, 4, 4)
REGION = (8, 8, 16, 24)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/display.sock"


def draw(surface: spiceshm.Surface, rect: Rect, value: int) -> None:
    """Fill a rectangle, and only that."""
    with surface.frame([rect]) as frame:
        top, left, bottom, right = rect
        frame.pixels[top:bottom, left:right] = value


async def soon(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.002)


# The newest frame


@pytest.mark.parametrize("shm", SHM)
@pytest.mark.parametrize("credits", [1, 2, 3, 8])
async def test_latest_is_the_newest_whatever_was_missed(
    address: str, shm: str, credits: int
) -> None:
    async with both_ends(address, shm=shm, credits=credits) as (_, surface, remote):
        for step in range(1, 9):
            for _ in range(step):
                surface.draw(picture(step))
                await trio.sleep(0.003 * (step % 3))
            await trio.sleep(2 * STALE_S)  # a look may be so much behind
            with trio.fail_after(10):  # ordinary SPICE has no way to ask
                while not np.array_equal(rgb((await remote.latest()).pixels), rgb(picture(step))):
                    assert shm == "off"
                    await trio.sleep(0.001)


@pytest.mark.parametrize("credits", [1, 2, 3])
async def test_latest_comes_back_while_frames_never_end(address: str, credits: int) -> None:
    async with both_ends(address, credits=credits) as (_, surface, remote):
        async with trio.open_nursery() as nursery:

            async def never_end() -> None:
                while True:
                    surface.draw(picture(1))
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(never_end)
            serials = []
            for pause in (0.0, 0.001, 0.02, 0.2) * 5:
                await trio.sleep(pause)
                with trio.fail_after(1):
                    serials.append((await remote.latest()).serial)
            assert serials == sorted(serials)
            nursery.cancel_scope.cancel()


async def test_latest_is_the_same_while_nothing_is_newer(address: str) -> None:
    async with both_ends(address) as (_, surface, remote):
        frame = await remote.latest()
        assert frame.full
        assert frame is await remote.latest()
        surface.draw(picture(1))
        await soon(lambda: surface.serial > frame.serial)
        newer = await remote.latest()
        assert newer is not frame
        assert newer.serial == surface.serial


async def test_frames_stay_right_while_they_are_kept(address: str) -> None:
    async with both_ends(address) as (display, surface, remote):
        kept = []
        for step in range(12):  # more than the server lends
            surface.draw(picture(step))
            with trio.fail_after(1):
                kept.append(await remote.latest())
                await trio.lowlevel.checkpoint()
        for step, frame in enumerate(kept):
            assert np.array_equal(rgb(frame.pixels), rgb(picture(step)))
        # The last, and the one before, of which nobody knew yet whether it would be kept.
        await soon(lambda: display.viewers[0].stats.held_frames == 2)
        await remote.latest()
        await soon(lambda: display.viewers[0].stats.held_frames == 1)


async def test_a_frame_that_makes_room_for_the_next_is_never_copied(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []
    copy = Copies.of

    def counted(copies: Copies, pixels: np.ndarray) -> np.ndarray:
        copied.append(len(pixels))
        return copy(copies, pixels)

    monkeypatch.setattr(Copies, "of", counted)
    async with both_ends(address) as (_, surface, remote):
        frame = await remote.latest()
        for step in range(1, 20):
            surface.draw(picture(step))
            frame = await remote.wait_change()
            assert np.array_equal(rgb(frame.pixels), rgb(picture(step)))
    assert copied == []


async def test_views_of_all_that_is_lent_are_an_error_not_an_old_picture(address: str) -> None:
    async with both_ends(address, credits=2) as (_, surface, remote):
        views = []
        for step in range(2):
            surface.draw(picture(step))
            views.append((await remote.latest()).pixels)
        surface.draw(picture(2))
        with pytest.raises(spiceshm.FramesHeld, match="views of 2 frames"):
            await remote.latest()
        views.clear()
        assert np.array_equal(rgb((await remote.latest()).pixels), rgb(picture(2)))


@pytest.mark.parametrize("shm", SHM)
async def test_latest_after_a_loop_that_was_given_up(address: str, shm: str) -> None:
    async with both_ends(address, shm=shm) as (display, surface, remote):
        with trio.move_on_after(0.05):
            async for frame in remote.frames():
                serial = frame.serial
        with pytest.raises(ValueError, match="released"):
            _ = frame.pixels
        again = await remote.latest()
        assert again.serial == serial
        assert np.array_equal(rgb(again.pixels), rgb(picture(0)))
        assert len(display.viewers) == 1 or await soon(lambda: len(display.viewers) == 1) is None
        surface.draw(picture(1))
        assert np.array_equal(rgb((await remote.wait_change()).pixels), rgb(picture(1)))


async def test_what_was_opened_for_one_look_is_gone_after_it(address: str) -> None:
    """Each has a buffer of its own: a program that looks so every second would grow for ever."""
    async with both_ends(address) as (_, _, remote):
        frames = remote.frames()
        before = streams()
        for _ in range(10):
            with trio.move_on_after(0.01):
                await anext(frames)
            await remote.latest()
        assert streams() <= before + 2  # the last one's ends, if it was a moment ago


async def test_more_tasks_look_than_a_session_may_have_channels(address: str) -> None:
    async with both_ends(address) as (_, _, remote), trio.open_nursery() as nursery:
        await given_up(remote)

        async def look() -> None:
            assert np.array_equal(rgb((await remote.latest()).pixels), rgb(picture(0)))

        for _ in range(MOST_DISPLAYS + 1):
            nursery.start_soon(look)


def streams() -> int:
    """How many there are in this process, closed ones too."""
    gc.collect()
    return sum(isinstance(one, Stream) for one in gc.get_objects())


async def given_up(remote: spiceshm.RemoteDisplay) -> None:
    """Wait for a frame in vain: the one before has gone back to the server then."""
    with trio.move_on_after(0.02):
        async for _ in remote.frames():
            pass


@pytest.mark.parametrize("shm", SHM)
async def test_latest_after_loops_that_were_given_up_goes_on_in_order(
    address: str, shm: str
) -> None:
    async with both_ends(address, shm=shm) as (_, surface, remote):
        serial = 0
        for step in range(1, 12):
            surface.draw(picture(step))
            frame = await remote.wait_change(timeout=10)
            assert frame.serial > serial
            serial = frame.serial
            await given_up(remote)
            again = await remote.latest()
            assert again.serial == serial
            assert np.array_equal(rgb(again.pixels), rgb(picture(step)))
            del frame, again
        assert len(remote._session._stack._exit_callbacks) < 10  # type: ignore[attr-defined]


async def test_latest_looks_again_where_memory_is_not_shared_any_more(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with both_ends(address) as (_, surface, remote):
        for step in range(5):
            surface.draw(picture(step))
            frame = await remote.wait_change(timeout=10)
        await given_up(remote)
        monkeypatch.setattr(spiceshm.Surface, "why_not", lambda *_: "there is none left")
        again = await remote.latest()
        assert again.serial == frame.serial
        assert np.array_equal(rgb(again.pixels), rgb(picture(4)))
        with pytest.raises(spiceshm.Timeout):
            await remote.wait_change(timeout=0.05)


async def test_a_frame_that_was_seen_already_does_not_come_once_more(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with both_ends(address) as (_, surface, remote):
        await given_up(remote)
        opened = Session.open_further

        async def open_late(*args: Any, **options: Any) -> Any:
            surface.draw(picture(1))  # comes on both channels
            draw(surface, REGION, 1)
            return await opened(*args, **options)

        monkeypatch.setattr(Session, "open_further", open_late)
        frame = await remote.latest()
        assert frame.serial == surface.serial
        with pytest.raises(spiceshm.Timeout):
            await remote.wait_change(timeout=0.05)
        assert await remote.latest() is frame
        draw(surface, ELSEWHERE, 2)
        newer = await remote.wait_change(timeout=10)
        assert newer.serial == surface.serial


async def test_latest_while_a_loop_of_another_task_is_further(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with both_ends(address) as (_, surface, remote):
        await given_up(remote)
        loop = remote.frames()
        picked: list[spiceshm.Frame] = []
        picture_of = DisplayChannel.picture

        async def slow(channel: DisplayChannel) -> spiceshm.Frame:
            frame = await picture_of(channel)
            draw(surface, REGION, 1)
            picked.append(await anext(loop))
            return frame

        monkeypatch.setattr(DisplayChannel, "picture", slow)
        old = await remote.latest()
        assert old.serial < picked[0].serial
        assert await remote.latest() is picked[0]
        draw(surface, ELSEWHERE, 1)
        assert (await remote.wait_change(timeout=10)).full  # who has the old one needs all


async def test_latest_in_a_loop_is_the_frame_of_the_loop(address: str) -> None:
    async with both_ends(address) as (_, _, remote):
        async for frame in remote.frames():
            assert await remote.latest() is frame
            break


@pytest.mark.parametrize("shm", SHM)
async def test_latest_keeps_a_frame_that_a_loop_goes_on_from(address: str, shm: str) -> None:
    async with both_ends(address, shm=shm) as (_, surface, remote):
        loop = remote.frames()
        for step in range(6):
            looped = await anext(loop)
            kept = await remote.latest()
            assert kept is looped
            right = looped.copy()
            surface.draw(picture(step))
            await anext(loop)
            assert np.array_equal(kept.pixels, right)
            surface.draw(picture(step + 1))


async def test_latest_of_a_frame_that_the_program_released(address: str) -> None:
    async with both_ends(address) as (_, _, remote):
        frame = await remote.latest()
        frame.release()
        again = await remote.latest()
        assert again.serial == frame.serial
        assert np.array_equal(rgb(again.pixels), rgb(picture(0)))


async def test_latest_of_a_server_that_went(address: str) -> None:
    async with both_ends(address) as (display, _, remote):
        await remote.latest()
        for session in list(display._sessions.values()):
            session.end()
        await soon(lambda: not display.viewers)
        await goes(remote.latest, remote)


async def test_an_idle_client_reads_a_hundred_times_a_second_at_most(address: str) -> None:
    async with both_ends(address) as (display, surface, remote):
        await remote.latest()
        before, began = display.viewers[0].stats.frames, time.monotonic()
        for step in range(300):
            surface.draw(picture(step % 7))
            await trio.sleep(0.001)
        frames = display.viewers[0].stats.frames - before
        # It lends three at most each time.
        assert frames <= 3 * (2 + (time.monotonic() - began) / 0.01)
        assert frames >= 3


# Waiting for a change


@pytest.mark.parametrize("shm", SHM)
async def test_a_change_is_waited_for(address: str, shm: str) -> None:
    async with both_ends(address, shm=shm) as (_, surface, remote):
        await remote.latest()
        async with trio.open_nursery() as nursery:

            async def change() -> None:
                await trio.sleep(0.03)
                draw(surface, REGION, 77)

            nursery.start_soon(change)
            frame = await remote.wait_change(timeout=10)
        assert (frame.pixels[8:16, 8:24, :3] == 77).all()
        assert REGION in [tuple(row) for row in frame.rects.tolist()]


@pytest.mark.parametrize("shm", SHM)
async def test_changes_elsewhere_do_not_count(address: str, shm: str) -> None:
    async with both_ends(address, shm=shm) as (_, surface, remote):
        await remote.latest()
        async with trio.open_nursery() as nursery:
            changed = trio.Event()

            async def change() -> None:
                for value in range(30):
                    draw(surface, ELSEWHERE, value)
                    await trio.sleep(0.003)
                changed.set()
                draw(surface, REGION, 77)

            nursery.start_soon(change)
            frame = await remote.wait_change(REGION, timeout=10)
            assert changed.is_set()
            rects = [tuple(row) for row in frame.rects.tolist()]
            assert REGION in rects
            assert ELSEWHERE in rects  # that was not seen by anybody, so it is told now


@pytest.mark.parametrize("shm", SHM)
async def test_a_change_between_two_calls_is_not_missed(address: str, shm: str) -> None:
    async with both_ends(address, shm=shm) as (_, surface, remote):
        frame = await remote.latest()
        for value in range(1, 20):
            draw(surface, REGION, value)
            await trio.sleep(0.002 * (value % 3))
            frame = await remote.wait_change(REGION, timeout=10)
            assert (frame.pixels[8:16, 8:24, :3] == value).all()
        draw(surface, REGION, 99)
        draw(surface, ELSEWHERE, 99)
        await soon(lambda: (remote._channel.reading.read_now(), True)[1])
        later = await remote.wait_change(ELSEWHERE, timeout=10)
        # That one was given with the change of REGION in it, so it is no news any more ...
        with pytest.raises(spiceshm.Timeout):
            await remote.wait_change(REGION, timeout=0.05)
        # ... unless somebody asks from an older frame on.
        assert (await remote.wait_change(REGION, since=frame, timeout=0)).serial >= later.serial
        assert await remote.wait_change(REGION, since=frame.serial, timeout=0)


@pytest.mark.parametrize("shm", SHM)
async def test_what_was_undone_has_changed(address: str, shm: str) -> None:
    async with both_ends(address, shm=shm) as (_, surface, remote):
        before = (await remote.latest()).copy()
        draw(surface, REGION, 1)
        draw(surface, REGION, int(before[8, 8, 0]))
        await remote.wait_change(REGION, timeout=10)


@pytest.mark.parametrize("shm", SHM)
async def test_no_time_is_enough_for_what_is_there(address: str, shm: str) -> None:
    async with both_ends(address, shm=shm) as (_, surface, remote):
        frame = await remote.latest()
        with pytest.raises(spiceshm.Timeout, match="nothing changed in the picture within 0 s"):
            await remote.wait_change(timeout=0)
        draw(surface, REGION, 5)
        await remote.wait_change(timeout=10)
        assert await remote.wait_change(REGION, since=frame, timeout=0)
        with pytest.raises(spiceshm.Timeout, match=r"the region \(8, 8, 16, 24\) within 0 s"):
            await remote.wait_change(REGION, timeout=0)
        with pytest.raises(TimeoutError):  # as other libraries' users catch it
            await remote.wait_change(timeout=0.01)


async def test_who_waits_in_vain_is_told_of_a_server_that_is_silent(address: str) -> None:
    async with both_ends(address) as (_, _, remote):
        await remote.latest()
        for wait in (remote.wait_change, remote.wait_stable):
            remote._channel.heard -= 100
            with pytest.raises(spiceshm.Timeout, match=r"; the server has been silent for 10\d s$"):
                await wait(timeout=0)
            remote._channel.heard = time.monotonic()
            with pytest.raises(spiceshm.Timeout, match=r" within 0 s$"):
                await wait(timeout=0)


async def test_an_impossible_region_is_named(address: str) -> None:
    async with both_ends(address) as (_, _, remote):
        for region in ((0, 0, HEIGHT + 1, 1), (4, 4, 4, 8), (-1, 0, 4, 4), (0, 0, 1, WIDTH + 1)):
            with pytest.raises(ValueError, match=rf"not within \(0, 0, {HEIGHT}, {WIDTH}\)"):
                await remote.wait_change(region, timeout=1)
            with pytest.raises(ValueError, match="top, left, bottom, right"):
                await remote.wait_stable(0, region, timeout=1)
            with pytest.raises(ValueError, match="top, left, bottom, right"):
                await remote.screenshot(region)


@pytest.mark.parametrize("shm", SHM)
async def test_a_wait_that_is_cancelled_or_too_late_loses_nothing(address: str, shm: str) -> None:
    async with both_ends(address, shm=shm) as (_, surface, remote):
        await remote.latest()
        for value in range(1, 8):
            with trio.move_on_after(0.005):
                await remote.wait_change(REGION, timeout=10)
            draw(surface, ELSEWHERE, value)
            with pytest.raises(spiceshm.Timeout):
                await remote.wait_change(REGION, timeout=0.03)
            draw(surface, REGION, value)
            frame = await remote.wait_change(REGION, timeout=10)
            rects = [tuple(row) for row in frame.rects.tolist()]
            assert ELSEWHERE in rects
            assert REGION in rects
            assert (frame.pixels[8:16, 8:24, :3] == value).all()


async def test_a_change_of_mode_is_a_change(address: str) -> None:
    async with both_ends(address) as (display, _, remote):
        await remote.latest()
        async with trio.open_nursery() as nursery:

            async def change() -> None:
                await trio.sleep(0.02)
                display.create_surface(64, 48).draw(picture(3, 64, 48))

            nursery.start_soon(change)
            frame = await remote.wait_change(REGION, timeout=10)
        assert (frame.width, frame.height) == (64, 48)
        assert frame.full


@pytest.mark.parametrize("shm", SHM)
async def test_a_change_of_mode_that_comes_at_once_with_its_picture(address: str, shm: str) -> None:
    async with both_ends(address, shm=shm) as (display, surface, remote):
        first = await remote.latest()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(remote.wait_change, (60, 60, 64, 64), timeout=10))
            for value in range(5):  # not of what is waited for, so nobody looks
                draw(surface, (value * 3, 0, value * 3 + 1, 4), value)
                await trio.sleep(0.01)
            display.create_surface(80, 70).draw(picture(3, 80, 70))
        assert (await remote.latest()).serial > first.serial + 5


@pytest.mark.parametrize("shm", SHM)
async def test_a_region_that_a_new_mode_does_not_have_has_changed(address: str, shm: str) -> None:
    async with both_ends(address, shm=shm) as (display, _, remote):
        frame = await remote.latest()
        display.create_surface(64, 48).draw(picture(3, 64, 48))
        newer = await remote.wait_change((HEIGHT - 1, 0, HEIGHT, 1), timeout=10)
        assert (newer.width, newer.height) == (64, 48)
        assert newer.serial > frame.serial


async def test_a_picture_that_is_no_more_is_no_change_to_look_at(address: str) -> None:
    async with both_ends(address) as (display, surface, remote):
        before = await remote.latest()
        draw(surface, REGION, 1)
        new = display.create_surface(64, 48)
        await soon(lambda: remote.width == 64)
        with pytest.raises(spiceshm.Timeout):
            await remote.wait_change(REGION, since=before, timeout=0.05)
        new.draw(picture(3, 64, 48))
        frame = await remote.wait_change(REGION, since=before, timeout=10)
        assert (frame.width, frame.height) == (64, 48)


async def test_more_frames_than_anybody_remembers_count_as_a_change(address: str) -> None:
    async with both_ends(address) as (_, surface, remote):
        first = await remote.latest()
        for value in range(1100):
            draw(surface, ELSEWHERE, value % 200)
            await remote.wait_change(ELSEWHERE, timeout=10)
        assert await remote.wait_change(REGION, since=first, timeout=0)


@pytest.mark.parametrize("shm", SHM)
async def test_a_server_that_goes_ends_the_wait(address: str, shm: str) -> None:
    async with trio.open_nursery() as nursery:

        async def server(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
            with trio.CancelScope() as scope:
                async with spiceshm.serve(address) as display:
                    display.create_surface(WIDTH, HEIGHT).draw(picture(0))
                    task_status.started(scope)
                    await trio.sleep_forever()

        for wait in ("wait_change", "wait_stable"):
            scope = await nursery.start(server)
            async with spiceshm.connect(address, shm=shm) as remote:  # type: ignore[arg-type]
                nursery.start_soon(_cancel_soon, scope)
                await goes(getattr(remote, wait), remote)


async def goes(look: Callable[..., Awaitable[object]], remote: spiceshm.RemoteDisplay) -> None:
    """Look again and again until the server goes."""

    async def until_it_goes() -> None:
        with trio.fail_after(10):
            while True:
                await look()

    with pytest.raises(spiceshm.Disconnected, match=str(remote.address)):
        await until_it_goes()


async def _cancel_soon(scope: trio.CancelScope) -> None:
    await trio.sleep(0.05)
    scope.cancel()


@pytest.mark.parametrize("credits", [1, 3])
@pytest.mark.parametrize("way", ["loop", "change"])
async def test_what_another_task_looked_at_holds_nobody_up(
    address: str, credits: int, way: str
) -> None:
    async with both_ends(address, credits=credits) as (_, surface, remote):
        await anext(loop := remote.frames())
        kept = []

        async def look() -> None:
            draw(surface, ELSEWHERE, 1)
            await remote.wait_change(ELSEWHERE)
            kept.append(await remote.latest())
            await surface.consumed(kept[0].serial)
            draw(surface, REGION, 2)

        with trio.fail_after(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look)
                if way == "change":
                    await remote.wait_change(REGION)
                else:
                    while (await anext(loop)).pixels[8, 8, 0] != 2:
                        pass
        assert (kept[0].pixels[:4, :4, :3] == 1).all()


@pytest.mark.parametrize("credits", [1, 2, 3])
async def test_a_source_that_goes_in_step_is_not_held_up(address: str, credits: int) -> None:
    async with both_ends(address, credits=credits) as (_, surface, remote):
        await remote.latest()
        async with trio.open_nursery() as nursery:

            async def in_step() -> None:
                for value in range(1, 60):
                    draw(surface, REGION if value % 4 == 0 else ELSEWHERE, value)
                    await surface.consumed(surface.serial)

            nursery.start_soon(in_step)
            seen = 0
            with trio.fail_after(20):
                while seen < 56:
                    frame = await remote.wait_change(REGION)
                    seen = int(frame.pixels[8, 8, 0])
                    assert seen % 4 == 0
            nursery.cancel_scope.cancel()  # nobody takes the last ones


# Waiting until it is still


@pytest.mark.parametrize("shm", SHM)
async def test_still_means_quiet_since_the_last_change(address: str, shm: str) -> None:
    async with both_ends(address, shm=shm) as (_, surface, remote):
        async with trio.open_nursery() as nursery:
            last = 0.0

            async def change() -> None:
                nonlocal last
                for value in range(10):
                    last = time.monotonic()
                    draw(surface, REGION, value)
                    await trio.sleep(0.02)

            nursery.start_soon(change)
            frame = await remote.wait_stable(0.2, timeout=10)
            assert time.monotonic() - last >= 0.2
            assert (frame.pixels[8:16, 8:24, :3] == 9).all()


async def test_a_cursor_that_blinks_outside_does_not_keep_a_region_from_being_still(
    address: str,
) -> None:
    async with both_ends(address) as (_, surface, remote):
        async with trio.open_nursery() as nursery:

            async def blink() -> None:
                for value in range(10**6):
                    draw(surface, ELSEWHERE, value % 200)
                    await trio.sleep(0.01)

            nursery.start_soon(blink)
            began = time.monotonic()
            await remote.wait_stable(0.1, REGION, timeout=10)
            assert time.monotonic() - began >= 0.1
            with pytest.raises(spiceshm.Timeout, match=r"was never still for 0.1 s within 0.3 s"):
                await remote.wait_stable(0.1, ELSEWHERE, timeout=0.3)
            with pytest.raises(spiceshm.Timeout, match="the picture was never still"):
                await remote.wait_stable(0.1, timeout=0.3)
            nursery.cancel_scope.cancel()


async def test_still_without_any_time(address: str) -> None:
    async with both_ends(address) as (_, _, remote):
        with pytest.raises(spiceshm.Timeout):
            await remote.wait_stable(0.1, timeout=0)
        assert (await remote.wait_stable(0, timeout=1)).full


async def test_what_came_while_nothing_could_run_is_seen_before_it_is_called_still(
    address: str,
) -> None:
    async with both_ends(address) as (_, surface, remote):
        await remote.latest()
        async with trio.open_nursery() as nursery:

            async def stall() -> None:
                await trio.sleep(0.05)
                draw(surface, REGION, 1)
                time.sleep(0.2)  # noqa: ASYNC251 - the whole program is kept from running

            nursery.start_soon(stall)
            frame = await remote.wait_stable(0.1, timeout=10)
            assert (frame.pixels[8:16, 8:24, :3] == 1).all()


# After an input


async def test_only_what_was_published_after_the_input_counts(address: str) -> None:
    async with both_ends(address) as (_, surface, remote):
        first = await remote.latest()
        draw(surface, REGION, 1)
        await remote.wait_change(timeout=10)
        draw(surface, REGION, 2)  # by chance, just before
        await trio.sleep(0.02)
        remote._channel.about_to_act()
        draw(surface, REGION, 3)  # while the input is on its way
        remote._channel.acted(time.monotonic_ns())
        with pytest.raises(spiceshm.Timeout):
            await remote.wait_change(timeout=0.05)
        draw(surface, REGION, 4)
        frame = await remote.wait_change(timeout=10)
        assert frame.pixels[8, 8, 0] == 4
        assert await remote.wait_change(since=first, timeout=0)


# Pictures


@pytest.mark.parametrize("region", [None, REGION, (0, 0, 1, 1), (HEIGHT - 1, 3, HEIGHT, WIDTH)])
async def test_pictures_of_a_frame(address: str, region: Rect | None) -> None:
    async with both_ends(address) as (_, surface, remote):
        surface.draw(picture(5))
        frame = await remote.wait_change(timeout=10)
        top, left, bottom, right = region or (0, 0, HEIGHT, WIDTH)
        expected = picture(5)[top:bottom, left:right, 2::-1]
        assert np.array_equal(frame.rgb(region), expected)
        assert np.array_equal(await remote.screenshot(region), expected)
        assert frame.rgb(region).flags.writeable
        out = np.zeros((bottom - top, right - left + 5, 3), np.uint8)[:, 5:]  # not contiguous
        assert frame.rgb(region, out) is out
        assert np.array_equal(out, expected)
        with Image.open(io.BytesIO(frame.png(region))) as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), expected)
        for wrong in (np.zeros((1, 2, 3), np.uint8), out.astype(np.float32)):
            with pytest.raises(ValueError, match="out is"):
                frame.rgb(region, wrong)  # type: ignore[arg-type]


RECTS = st.tuples(*[st.integers(0, 6)] * 4).map(
    lambda four: (min(four[0], four[2]), min(four[1], four[3]), max(four[0], four[2]) + 1,
                  max(four[1], four[3]) + 1)
)  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 50), st.lists(RECTS, min_size=1)),
             max_size=12),
    st.integers(-1, 20),
    st.integers(0, 50),
    RECTS,
)  # fmt: skip
def test_changes_are_found_as_by_looking_at_every_pixel(
    frames: list[tuple[int, int, list[Rect]]], serial: int, published: int, box: Rect
) -> None:
    changes = Changes()
    found, now = False, 0
    for step, stamp, rects in frames:
        now += step
        changes.note(now, stamp, np.array(rects, "<i4"))
        screen = np.zeros((8, 8), bool)
        for top, left, bottom, right in rects:
            screen[top:bottom, left:right] = True
        top, left, bottom, right = box
        counts = now > serial and (stamp == 0 or stamp >= published)
        found |= counts and bool(screen[top:bottom, left:right].any())
    assert changes.later(Moment(serial, published), box) == found
