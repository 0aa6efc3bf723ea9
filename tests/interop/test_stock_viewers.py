"""Viewers that people already have see what our own client sees, beside it and at the same time."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
import trio

import spiceshm
from tests.interop.viewers import recorder, screenshot

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.peer("spicy-screenshot")


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 255, (height, width, 4), np.uint8)


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1366, 768), (641, 479), (320, 200)])
async def test_spicy_screenshot_is_what_we_drew(tmp_path: Path, width: int, height: int) -> None:
    truth = picture(width, height)
    async with spiceshm.serve(f"unix:{tmp_path}/s", "tcp:127.0.0.1:0") as display:
        display.create_surface(width, height).draw(truth)
        for place in display.addresses:
            seen = await screenshot(place.uri or "", tmp_path / "shot.ppm")
            assert np.array_equal(seen, truth[:, :, :3])


def screen(width: int, height: int) -> np.ndarray:
    """As on a screen: a plain ground, a window of text, a gradient, some noise; X is anything."""
    rng = np.random.default_rng(height)
    pixels = rng.integers(0, 256, (height, width, 4), np.uint8)
    y, x = np.mgrid[:height, :width]
    pixels[:, :, :3] = np.stack([x, y, x + y], 2)
    pixels[: height // 3, :, :3] = [90, 60, 30]
    letters = np.where(rng.random((9, 16, 8, 1)) < 0.3, 20, 240)
    for top in range(height // 4, height - 40, 20):
        for left in range(width // 5, width // 2, 8):
            pixels[top : top + 16, left : left + 8, :3] = letters[(7 * top + left) % 9]
    pixels[-30:, -50:, :3] = rng.integers(0, 256, (30, 50, 3))
    return pixels


@pytest.mark.parametrize("kind", ["raw", "lz4", "lz"])
@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1366, 768), (641, 479)])
async def test_every_encoder_over_tcp_with_a_ticket(
    tmp_path: Path, width: int, height: int, kind: Literal["raw", "lz4", "lz"]
) -> None:
    truth = screen(width, height)
    async with spiceshm.serve("tcp:127.0.0.1:0", password="sesame", compression=kind) as display:
        display.create_surface(width, height).draw(truth)
        async with recorder(display.addresses[0]) as record:
            seen = await screenshot(record.uri, tmp_path / "shot.ppm", "-w", "sesame")
    assert np.array_equal(seen, truth[:, :, :3])
    assert record.drawn() == {kind: 1}
    compressed = record.size < truth.nbytes * 0.8
    assert compressed is (kind != "raw")


@pytest.mark.parametrize(("place", "kind"), [("unix:{}/s", "raw"), ("tcp:127.0.0.1:0", "lz4")])
async def test_the_encoder_that_suits_is_found(tmp_path: Path, place: str, kind: str) -> None:
    """Debian's viewers know LZ4."""
    truth = screen(800, 600)
    async with spiceshm.serve(place.format(tmp_path)) as display:
        display.create_surface(800, 600).draw(truth)
        async with recorder(display.addresses[0]) as record:
            seen = await screenshot(record.uri, tmp_path / "shot.ppm")
    assert np.array_equal(seen, truth[:, :, :3])
    assert record.drawn() == {kind: 1}


ODD = [(1, 1), (1, 479), (641, 1), (17, 3), (7, 9), (16384, 2), (3, 16384)]


@pytest.mark.parametrize("kind", ["raw", "lz4", "lz"])
async def test_odd_sizes(tmp_path: Path, kind: Literal["raw", "lz4", "lz"]) -> None:
    """Less than 64 pixels are not worth compressing, and a single one is a colour."""

    async def shoot(width: int, height: int) -> None:
        rng = np.random.default_rng(width)
        words = np.repeat(rng.integers(0, 1 << 32, width * height // 4 + 1, np.uint32), 4)
        truth = words[: width * height].view(np.uint8).reshape(height, width, 4)
        async with spiceshm.serve("tcp:127.0.0.1:0", compression=kind) as display:
            display.create_surface(width, height).draw(truth)
            async with recorder(display.addresses[0]) as record:
                seen = await screenshot(record.uri, tmp_path / f"{width}x{height}.ppm")
        assert np.array_equal(seen, truth[:, :, :3])
        pixels = width * height
        assert record.drawn() == {"fill" if pixels == 1 else "raw" if pixels < 64 else kind: 1}

    async with trio.open_nursery() as nursery:
        for size in ODD:
            nursery.start_soon(shoot, *size)


async def test_a_screen_of_one_colour_is_filled(tmp_path: Path) -> None:
    async with spiceshm.serve(f"unix:{tmp_path}/s") as display:
        truth = np.full((479, 641, 4), [1, 2, 3, 4], np.uint8)
        display.create_surface(641, 479).draw(truth)
        seen = await screenshot(f"spice+unix://{tmp_path}/s", tmp_path / "shot.ppm")
        assert np.array_equal(seen, truth[:, :, :3])


async def test_beside_a_reader_of_shared_memory(tmp_path: Path) -> None:
    """The shared reader goes on at full pace while stock viewers come and go, and all are right."""
    async with spiceshm.serve(f"unix:{tmp_path}/s") as display:
        surface = display.create_surface(640, 480)
        truth = picture(640, 480)
        surface.draw(truth)
        uri = f"spice+unix://{tmp_path}/s"
        async with spiceshm.connect(f"unix:{tmp_path}/s") as remote, trio.open_nursery() as nursery:
            assert remote.shared

            async def shots() -> None:
                for _ in range(3):
                    seen = await screenshot(uri, tmp_path / "shot.ppm")
                    assert np.array_equal(seen[:, 8:], truth[:, 8:, :3])
                nursery.cancel_scope.cancel()

            nursery.start_soon(shots)
            frames, step = remote.frames(), 0
            await anext(frames)
            while True:
                step = (step + 1) % 256
                truth[:, :8] = step
                surface.draw(truth, [(0, 0, 480, 8)])
                frame = await anext(frames)
                assert np.array_equal(frame.pixels[:, :, :3], truth[:, :, :3])


async def test_a_ticket(tmp_path: Path) -> None:
    async with spiceshm.serve(f"unix:{tmp_path}/s", password="sesame") as display:
        truth = picture(320, 200)
        display.create_surface(320, 200).draw(truth)
        uri = f"spice+unix://{tmp_path}/s"
        with pytest.raises(subprocess.CalledProcessError):
            await screenshot(uri, tmp_path / "none.ppm")
        seen = await screenshot(uri, tmp_path / "shot.ppm", "-w", "sesame")
        assert np.array_equal(seen, truth[:, :, :3])
