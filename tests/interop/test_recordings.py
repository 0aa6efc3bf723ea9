"""Recordings of real servers, played to a stock viewer: it shows what the machine itself showed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import trio
from PIL import Image

from spiceshm.transport import Listener, parse_address
from tests.interop.viewers import opened
from tools.recording import load
from tools.recording.replay import Server
from tools.recording.session import Counts

SESSIONS = Path(__file__).parent.parent / "recordings" / "sessions"

pytestmark = pytest.mark.peer("spicy", "Xvfb")


@pytest.mark.parametrize("name", ["qemu-qxl-glz", "xspice-glz"])
async def test_spicy_shows_it_again(tmp_path: Path, name: str) -> None:
    truth = np.asarray(Image.open(SESSIONS / f"{name}.png").convert("RGB"))[:, :, ::-1]
    server = Server(load(SESSIONS / f"{name}.spice.gz"), Counts(), with_times=False)
    with contextlib.closing(Listener(parse_address(f"unix:{tmp_path}/s"))) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, server.handle, nursery)
            async with opened("spicy", f"spice+unix://{tmp_path}/s") as viewer:
                await viewer.shows(truth)
            nursery.cancel_scope.cancel()
