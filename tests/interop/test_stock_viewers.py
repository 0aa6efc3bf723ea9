"""Viewers that people already have see what our own client sees, beside it and at the same time."""

from __future__ import annotations

import subprocess
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
import trio
from PIL import Image

import spiceshm

if TYPE_CHECKING:
    from pathlib import Path

    from spiceshm.server.viewer import Viewer

pytestmark = pytest.mark.peer("spicy-screenshot")

DEADLINE_S = 30


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 255, (height, width, 4), np.uint8)


async def spicy_screenshot(uri: str, file: Path, *options: str) -> np.ndarray:
    """What the stock client made of it: (height, width, 3) of B, G, R."""
    command = ["spicy-screenshot", f"--uri={uri}", "-o", str(file), *options]
    call = partial(
        subprocess.run, command, check=True, timeout=DEADLINE_S, stdout=subprocess.DEVNULL
    )
    await trio.to_thread.run_sync(call)
    return np.asarray(Image.open(file).convert("RGB"))[:, :, ::-1]


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1366, 768), (641, 479), (320, 200)])
async def test_spicy_screenshot_is_what_we_drew(tmp_path: Path, width: int, height: int) -> None:
    truth = picture(width, height)
    async with spiceshm.serve(f"unix:{tmp_path}/s", "tcp:127.0.0.1:0") as display:
        display.create_surface(width, height).draw(truth)
        for place in display.addresses:
            assert place.uri is not None
            seen = await spicy_screenshot(place.uri, tmp_path / "shot.ppm")
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


async def watch(display: spiceshm.Display, seen: set[Viewer]) -> None:
    """Whoever comes, however briefly."""
    while True:
        seen.update(display.viewers)
        await trio.sleep(0.001)


@pytest.mark.parametrize("kind", ["raw", "lz4", "lz"])
@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1366, 768), (641, 479)])
async def test_every_encoder_over_tcp_with_a_ticket(
    tmp_path: Path, width: int, height: int, kind: Literal["raw", "lz4", "lz"]
) -> None:
    truth = screen(width, height)
    viewers: set[Viewer] = set()
    async with (
        spiceshm.serve("tcp:127.0.0.1:0", password="sesame", compression=kind) as display,
        trio.open_nursery() as nursery,
    ):
        display.create_surface(width, height).draw(truth)
        nursery.start_soon(watch, display, viewers)
        uri = display.addresses[0].uri
        assert uri is not None
        seen = await spicy_screenshot(uri, tmp_path / "shot.ppm", "-w", "sesame")
        nursery.cancel_scope.cancel()
    assert np.array_equal(seen, truth[:, :, :3])
    [viewer] = viewers
    assert viewer.stats.images == {kind: 1}
    compressed = viewer.stats.bytes_sent < truth.nbytes * 0.8
    assert compressed is (kind != "raw")


@pytest.mark.parametrize(("place", "kind"), [("unix:{}/s", "raw"), ("tcp:127.0.0.1:0", "lz4")])
async def test_the_encoder_that_suits_is_found(tmp_path: Path, place: str, kind: str) -> None:
    """Debian's viewers know LZ4."""
    truth = screen(800, 600)
    viewers: set[Viewer] = set()
    async with (
        spiceshm.serve(place.format(tmp_path)) as display,
        trio.open_nursery() as nursery,
    ):
        display.create_surface(800, 600).draw(truth)
        nursery.start_soon(watch, display, viewers)
        assert display.addresses[0].uri is not None
        seen = await spicy_screenshot(display.addresses[0].uri, tmp_path / "shot.ppm")
        nursery.cancel_scope.cancel()
    assert np.array_equal(seen, truth[:, :, :3])
    assert [viewer.stats.images for viewer in viewers] == [{kind: 1}]


async def test_a_screen_of_one_colour_is_filled(tmp_path: Path) -> None:
    async with spiceshm.serve(f"unix:{tmp_path}/s") as display:
        truth = np.full((479, 641, 4), [1, 2, 3, 4], np.uint8)
        display.create_surface(641, 479).draw(truth)
        assert display.addresses[0].uri is not None
        seen = await spicy_screenshot(display.addresses[0].uri, tmp_path / "shot.ppm")
        assert np.array_equal(seen, truth[:, :, :3])


async def test_beside_a_reader_of_shared_memory(tmp_path: Path) -> None:
    """The shared reader goes on at full pace while stock viewers come and go, and all are right."""
    async with spiceshm.serve(f"unix:{tmp_path}/s") as display:
        surface = display.create_surface(640, 480)
        truth = picture(640, 480)
        surface.draw(truth)
        uri = display.addresses[0].uri
        assert uri is not None
        async with spiceshm.connect(f"unix:{tmp_path}/s") as remote, trio.open_nursery() as nursery:
            assert remote.shared

            async def shots() -> None:
                for _ in range(3):
                    seen = await spicy_screenshot(uri, tmp_path / "shot.ppm")
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
        uri = f"spice+unix://{tmp_path}/s?password=sesame"
        with pytest.raises(subprocess.CalledProcessError):
            await spicy_screenshot(f"spice+unix://{tmp_path}/s", tmp_path / "none.ppm")
        command = ["spicy-screenshot", f"--uri=spice+unix://{tmp_path}/s", "-w", "sesame"]
        command += ["-o", str(tmp_path / "shot.ppm")]
        assert uri
        await trio.to_thread.run_sync(
            partial(subprocess.run, command, check=True, timeout=DEADLINE_S)
        )
        seen = np.asarray(Image.open(tmp_path / "shot.ppm").convert("RGB"))[:, :, ::-1]
        assert np.array_equal(seen, truth[:, :, :3])
