"""spicy-screenshot in front of ``spiceshm-server``: the picture that it writes is the one that the
source has, which is asked by itself, and what went over the wire is counted there."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import trio

import spiceshm
from spiceshm.sources.pattern import Pattern, read_stamp
from spiceshm.transport import parse_address
from tests.interop.viewers import recorder, screenshot
from tests.programs import DEADLINE, Server, serving, short_directory
from tests.test_xscreen import as_bgr, desktop, xwd
from tests.xvfb import xvfb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.peer("spicy-screenshot")

PASSWORD = "sesame"


@contextlib.contextmanager
def listening(*options: str) -> Iterator[Server]:
    """A server on a Unix socket and on TCP, both with a ticket."""
    with short_directory() as place:
        (place / "password").write_text(f"{PASSWORD}\n")
        words = ["--listen", f"unix:{place}/s", "--listen", "tcp:127.0.0.1:0", *options]
        with serving(*words, "--password-file", f"{place}/password") as server:
            yield server


class Shots(NamedTuple):
    """What spicy-screenshot wrote, (height, width, 3) of B, G, R each, and how it was drawn."""

    unix: np.ndarray
    tcp: np.ndarray
    drawn: dict[str, int]
    """Images and fills that went over TCP."""


async def shots(server: Server, place: Path) -> Shots:
    """Over both at once."""
    uris = [listener["uri"] for listener in server.said["listening"]]
    seen = {}

    async def shoot(name: str, uri: str) -> None:
        seen[name] = await screenshot(uri, place / f"{name}.ppm", "-w", PASSWORD)

    async with recorder(parse_address(server.addresses[1])) as record:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shoot, "unix", uris[0])
            nursery.start_soon(shoot, "tcp", record.uri)
    return Shots(seen["unix"], seen["tcp"], record.drawn())


def pattern(width: int, height: int, number: int) -> np.ndarray:
    """Frame ``number`` of the pattern, as nobody has sent it."""
    pixels = np.zeros((height, width, 4), np.uint8)
    drawn = Pattern(width, height)
    for step in range(number + 1):
        drawn.paint(pixels, step)
    return pixels[:, :, :3]


def number_in(shot: np.ndarray) -> int:
    """Which frame it is; none that is torn."""
    words = np.dstack([shot, np.zeros(shot.shape[:2], np.uint8)])
    number = read_stamp(np.ascontiguousarray(words))
    assert isinstance(number, int)
    return number


@pytest.mark.parametrize(
    ("width", "height", "kind"), [(1920, 1080, "lz4"), (1366, 768, "lz"), (641, 479, "raw")]
)
async def test_the_pattern(tmp_path: Path, width: int, height: int, kind: str) -> None:
    options = ["--surface", f"{width}x{height}", "--compression", kind, "--fps", "0.01"]
    with listening(*options) as server:
        seen = await shots(server, tmp_path)
    truth = pattern(width, height, 0)
    assert seen.drawn == {kind: 1}
    assert np.array_equal(seen.unix, truth)
    assert np.array_equal(seen.tcp, truth)


async def test_the_pattern_while_it_moves(tmp_path: Path) -> None:
    """Each of them is one of its frames, and whole."""
    with listening("--surface", "641x479") as server:
        seen = await shots(server, tmp_path)
    for shot in (seen.unix, seen.tcp):
        assert np.array_equal(shot, pattern(641, 479, number_in(shot)))


async def still(remote: spiceshm.RemoteDisplay, display: str) -> np.ndarray:
    """Wait until a client that shares memory has got what xwd says; returns it."""
    with trio.fail_after(DEADLINE):
        while True:
            truth = as_bgr(24, xwd(display)[1])
            frame = await remote.latest()
            if np.array_equal(frame.pixels[:, :, :3], truth):
                return truth
            await trio.sleep(0.01)


@pytest.mark.peer("Xvfb", "xwd", "xterm", "xclock", "xlogo")
@pytest.mark.parametrize(
    ("width", "height", "kind"), [(1920, 1080, "lz"), (1366, 768, "raw"), (641, 479, "lz4")]
)
async def test_a_desktop_with_real_programs(
    tmp_path: Path, width: int, height: int, kind: str
) -> None:
    """What xwd says of it is what viewers show, beside a client that shares memory."""
    with xvfb(width, height, 24) as display, desktop(display):
        options = ["--source", "x11", "--display", display, "--compression", kind]
        with listening(*options) as server:
            async with spiceshm.connect(server.address, password=PASSWORD) as remote:
                truth = await still(remote, display)
                seen = await shots(server, tmp_path)
                assert np.array_equal(as_bgr(24, xwd(display)[1]), truth)
    assert len(np.unique(truth @ [1, 1 << 8, 1 << 16])) >= 5
    assert seen.drawn == {kind: 1}
    assert np.array_equal(seen.unix, truth)
    assert np.array_equal(seen.tcp, truth)
