"""The test pattern: its damage is honest, and its stamp tells a torn frame from a whole one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio

import spiceshm
from spiceshm import region
from spiceshm.errors import MemoryRefused
from spiceshm.sources.pattern import TORN, Pattern, PatternSource, read_stamp
from tests.programs import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path

SIZES = [(1920, 1080), (641, 479), (64, 48), (5, 5), (3, 7), (1, 1), (1, 300), (300, 1)]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("full", [False, True])
def test_damage_is_what_changes(width: int, height: int, full: bool) -> None:
    pattern = Pattern(width, height, full=full)
    before = np.zeros((height, width, 4), np.uint8)
    pattern.paint(before, 0)
    for number in range(1, 30):
        after = before.copy()
        pattern.paint(after, number)
        damage = region.from_damage(pattern.damage(number), width, height)
        outside = np.ones((height, width), bool)
        for top, left, bottom, right in damage:
            outside[top:bottom, left:right] = False
        assert np.array_equal(before[outside], after[outside])
        assert width < 4 or not np.array_equal(before, after)
        assert full or width * height < 10_000 or region.area(damage) < width * height / 8
        before = after


@pytest.mark.parametrize("full", [False, True])
def test_a_frame_is_the_same_however_one_came_to_it(full: bool) -> None:
    """Frame n painted over n - 1, as a server does, is frame n painted by one that starts anew."""
    pattern = Pattern(200, 150, full=full)
    pixels = np.zeros((150, 200, 4), np.uint8)
    for number in range(10):
        pattern.paint(pixels, number)
    fresh = np.zeros((150, 200, 4), np.uint8)
    fresh_pattern = Pattern(200, 150, full=full)
    fresh_pattern.paint(fresh, 0)
    fresh_pattern.paint(fresh, 9)
    changed = np.zeros((150, 200), bool)
    for number in (1, 9):
        for top, left, bottom, right in fresh_pattern.damage(number):
            changed[top:bottom, left:right] = True
    assert np.array_equal(pixels[~changed], fresh[~changed])
    assert np.array_equal(pixels[:, :2], fresh[:, :2])


def test_the_stamp_is_read_back() -> None:
    pattern = Pattern(64, 48)
    pixels = np.zeros((48, 64, 4), np.uint8)
    for number in (0, 1, 255, 256, 70_000, 2**24 + 5):
        pattern.paint(pixels, number)
        assert read_stamp(pixels) == number % 2**24


def test_one_row_of_another_frame_is_torn() -> None:
    pattern = Pattern(64, 48)
    old, new = (np.zeros((48, 64, 4), np.uint8) for _ in range(2))
    pattern.paint(old, 0)
    pattern.paint(new, 0)
    pattern.paint(new, 1)
    for rows in (slice(0, 1), slice(47, 48), slice(10, 30)):
        torn = new.copy()
        torn[rows] = old[rows]
        assert read_stamp(torn) == TORN
    right_half = new.copy()
    right_half[:, 32:] = old[:, 32:]
    assert read_stamp(right_half) == TORN


def test_other_pictures_have_no_stamp() -> None:
    assert read_stamp(np.zeros((48, 64, 4), np.uint8)) is None
    assert read_stamp(np.zeros((48, 2, 4), np.uint8)) is None
    noise = np.random.default_rng(1).integers(0, 255, (48, 64, 4), np.uint8)
    assert read_stamp(noise) is None


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("fps", [0, 60])
async def test_it_goes_on_at_another_size(tmp_path: Path, fps: float, full: bool) -> None:
    source = PatternSource(320, 200, fps=fps, full=full)
    async with spiceshm.serve(f"unix:{tmp_path}/s") as display, trio.open_nursery() as nursery:
        await nursery.start(source.show, display)
        async with spiceshm.connect(f"unix:{tmp_path}/s") as remote:
            for width, height in ((201, 303), (640, 100), (64, 48)):
                await source.resize(width, height)
                assert display.surface is not None
                assert (display.surface.width, display.surface.height) == (width, height)
                stamps: list[object] = []
                with trio.fail_after(DEADLINE):
                    async for frame in remote.frames():
                        if frame.pixels.shape == (height, width, 4):
                            stamps.append(read_stamp(frame.pixels))
                        if len(stamps) == 3:
                            break
                assert len(set(stamps)) == 3
                assert TORN not in stamps
                assert None not in stamps
        nursery.cancel_scope.cancel()


async def test_it_stays_as_it_is_where_there_is_no_memory(tmp_path: Path) -> None:
    source = PatternSource(64, 48, fps=60)
    async with (
        spiceshm.serve(f"unix:{tmp_path}/s", shm_limit=10**6) as display,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(source.show, display)
        surface = display.surface
        assert surface is not None
        with pytest.raises(MemoryRefused):
            await source.resize(1000, 1000)
        before = surface.serial
        with trio.fail_after(DEADLINE):
            while surface.serial < before + 2:
                await trio.sleep(0.001)
        assert display.surface is surface
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("failure", [MemoryError(), RuntimeError("can't start new thread")])
async def test_it_stays_as_it_is_where_the_machine_has_nothing_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    async def run_sync(*_: object, **__: object) -> None:
        raise failure

    source = PatternSource(64, 48, fps=60)
    async with spiceshm.serve(f"unix:{tmp_path}/s") as display, trio.open_nursery() as nursery:
        await nursery.start(source.show, display)
        surface = display.surface
        with monkeypatch.context() as patch:
            patch.setattr(trio.to_thread, "run_sync", run_sync)
            with pytest.raises(MemoryRefused, match=r"100x99: (no memory|can't start)"):
                await source.resize(100, 99)
        assert display.surface is surface
        nursery.cancel_scope.cancel()
