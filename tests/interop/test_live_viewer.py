"""A stock viewer that stays: after any number of updates its window shows what we drew."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
import trio
import xcffib
import xcffib.xproto

import spiceshm
from spiceshm.codecs import solid
from spiceshm.server import encoding
from tests.programs import DEADLINE
from tests.xvfb import environment, xvfb

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.peer("spicy", "Xvfb")

WIDTH, HEIGHT = 640, 480


class Screen:
    """An X screen as an array (height, width, 3) of B, G, R."""

    def __init__(self, name: str) -> None:
        self.connection = xcffib.connect(display=name)
        self._root = self.connection.get_setup().roots[0]
        self._corner: tuple[int, int] | None = None

    def pixels(self) -> np.ndarray:
        root = self._root
        size = root.width_in_pixels, root.height_in_pixels
        zpixmap = xcffib.xproto.ImageFormat.ZPixmap
        image = self.connection.core.GetImage(zpixmap, root.root, 0, 0, *size, 0xFFFFFFFF).reply()
        return np.frombuffer(image.data.buf(), np.uint8).reshape(size[1], size[0], 4)[:, :, :3]

    def shows(self, picture: np.ndarray) -> bool:
        """Whether it is somewhere; and from then on, whether it is there."""
        pixels = self.pixels()
        if self._corner is None:
            row = picture[0, :16, :3]
            begins = np.lib.stride_tricks.sliding_window_view(pixels, (1, 2, 3))[:, :, 0, 0]
            starts = np.argwhere((begins == row[:2]).all(axis=(2, 3)))
            for y, x in starts.tolist():
                if np.array_equal(pixels[y, x : x + 16], row):
                    self._corner = y, x
                    break
            else:
                return False
        y, x = self._corner
        height, width = picture.shape[:2]
        return np.array_equal(pixels[y : y + height, x : x + width], picture[:, :, :3])


async def eventually_shows(screen: Screen, picture: np.ndarray) -> None:
    with trio.fail_after(DEADLINE):
        while not screen.shows(picture):
            await trio.sleep(0.01)


@pytest.mark.parametrize("kind", ["raw", "lz4", "lz"])
async def test_updates_in_strips_and_fills(
    tmp_path: Path, kind: Literal["raw", "lz4", "lz"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "STRIP_PIXELS", 20_000)
    monkeypatch.setattr(encoding, "INLINE_PIXELS", 5_000)
    monkeypatch.setattr(solid, "LEAST", 4096)
    rng = np.random.default_rng(1)
    truth = np.repeat(rng.integers(0, 9, (HEIGHT, 81, 4), np.uint8), 8, axis=1)[:, :WIDTH].copy()
    truth[0, :16] = rng.integers(0, 256, (16, 4))
    with xvfb(1000, 800, 24) as name:
        screen = Screen(name)
        async with (
            spiceshm.serve(f"unix:{tmp_path}/s", compression=kind) as display,
            trio.open_nursery() as nursery,
        ):
            surface = display.create_surface(WIDTH, HEIGHT)
            surface.draw(truth)
            spicy = await nursery.start(_run_spicy, name, f"spice+unix://{tmp_path}/s", tmp_path)
            await eventually_shows(screen, truth)
            for step in range(40):
                rects = []
                for _ in range(step % 3 + 1):
                    top, left = int(rng.integers(0, HEIGHT)), int(rng.integers(17, WIDTH))
                    bottom = int(rng.integers(top + 1, HEIGHT + 1))
                    right = int(rng.integers(left + 1, WIDTH + 1))
                    part = truth[top:bottom, left:right]
                    wide = rng.integers(0, 256, (bottom - top, 1, 4), np.uint8)
                    part[:] = wide if step % 2 else rng.integers(0, 3, part.shape, np.uint8)
                    part[: len(part) // 2] = step
                    rects.append((top, left, bottom, right))
                surface.draw(truth, rects)
                if step % 4 == 0:
                    await eventually_shows(screen, truth)
            await eventually_shows(screen, truth)
            [viewer] = display.viewers
            assert viewer.stats.images[kind] > 40
            assert viewer.stats.images["fill"] > 5
            assert spicy.poll() is None
            spicy.kill()
            await spicy.wait()
        screen.connection.disconnect()


async def _run_spicy(
    screen: str,
    uri: str,
    home: Path,
    task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED,
) -> None:
    await trio.run_process(
        ["spicy", "--uri", uri],
        env={**environment(screen), "HOME": str(home)},
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        task_status=task_status,
    )
