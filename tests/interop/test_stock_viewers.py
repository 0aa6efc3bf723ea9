"""Viewers that people already have see what our own client sees, beside it and at the same time."""

from __future__ import annotations

import subprocess
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
from PIL import Image

import spiceshm

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.peer("spicy-screenshot")

DEADLINE_S = 30


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 255, (height, width, 4), np.uint8)


async def spicy_screenshot(uri: str, file: Path) -> np.ndarray:
    """What the stock client made of it: (height, width, 3) of B, G, R."""
    command = ["spicy-screenshot", f"--uri={uri}", "-o", str(file)]
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
