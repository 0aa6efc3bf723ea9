"""Stock viewers that stay: after any number of updates, and in any size, their windows show what we
drew, one on a Unix socket and one over TCP at the same time."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
import trio

import spiceshm
from spiceshm.codecs import solid
from spiceshm.server import encoding
from tests.interop.viewers import opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.interop.viewers import Viewer

pytestmark = pytest.mark.peer("spicy", "remote-viewer", "Xvfb")

WIDTH, HEIGHT = 640, 480


class Windows:
    """Of several viewers."""

    def __init__(self, *viewers: Viewer) -> None:
        self._viewers = viewers

    async def show(self, picture: np.ndarray) -> None:
        """Wait until all of them show exactly this."""
        async with trio.open_nursery() as nursery:
            for viewer in self._viewers:
                nursery.start_soon(viewer.shows, picture)


@contextlib.asynccontextmanager
async def windows(display: spiceshm.Display) -> AsyncIterator[Windows]:
    unix, tcp = (place.uri or "" for place in display.addresses)
    async with opened("spicy", unix) as spicy, opened("remote-viewer", tcp) as remote_viewer:
        yield Windows(spicy, remote_viewer)


@pytest.mark.parametrize("kind", ["raw", "lz4", "lz"])
async def test_updates_in_strips_and_fills(
    tmp_path: Path, kind: Literal["raw", "lz4", "lz"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "STRIP_PIXELS", 20_000)
    monkeypatch.setattr(encoding, "INLINE_PIXELS", 5_000)
    monkeypatch.setattr(solid, "LEAST", 4096)
    rng = np.random.default_rng(1)
    truth = np.repeat(rng.integers(0, 9, (HEIGHT, 81, 4), np.uint8), 8, axis=1)[:, :WIDTH].copy()
    async with spiceshm.serve(f"unix:{tmp_path}/s", "tcp:127.0.0.1:0", compression=kind) as display:
        surface = display.create_surface(WIDTH, HEIGHT)
        surface.draw(truth)
        async with windows(display) as seen:
            await seen.show(truth)
            for step in range(40):
                rects = []
                for _ in range(step % 3 + 1):
                    top, left = int(rng.integers(0, HEIGHT)), int(rng.integers(0, WIDTH))
                    bottom = int(rng.integers(top + 1, HEIGHT + 1))
                    right = int(rng.integers(left + 1, WIDTH + 1))
                    part = truth[top:bottom, left:right]
                    wide = rng.integers(0, 256, (bottom - top, 1, 4), np.uint8)
                    part[:] = wide if step % 2 else rng.integers(0, 3, part.shape, np.uint8)
                    part[: len(part) // 2] = step
                    rects.append((top, left, bottom, right))
                surface.draw(truth, rects)
                if step % 4 == 0:
                    await seen.show(truth)
            await seen.show(truth)
            assert len(display.viewers) == 2
            for viewer in display.viewers:
                assert viewer.stats.images[kind] > 40
                assert viewer.stats.images["fill"] > 5


async def test_the_program_changes_the_size(tmp_path: Path) -> None:
    """Viewers scale where they must; these sizes they need not, as they are set here."""
    rng = np.random.default_rng(2)
    async with spiceshm.serve(f"unix:{tmp_path}/s", "tcp:127.0.0.1:0") as display:
        display.create_surface(WIDTH, HEIGHT)
        async with windows(display) as seen:
            for width, height in [(640, 480), (800, 600), (1023, 767), (641, 479), (320, 200)]:
                truth = rng.integers(0, 256, (height, width, 4), np.uint8)
                surface = display.create_surface(width, height)
                surface.draw(truth)
                await seen.show(truth)
                truth[::3, 5:-7] ^= 255
                surface.draw(truth, [(0, 5, height, width - 7)])
                await seen.show(truth)
