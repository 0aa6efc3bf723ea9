"""A viewer's window gets another size, and what is shown follows it; and the other way round.

Viewers that people have run on an X screen of their own, without a window manager, and their
windows are resized by hand.
"""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
import xcffib
import xcffib.xproto

import spiceshm
from tests.programs import DEADLINE, Server, serving
from tests.xvfb import environment, run, xorg, xvfb, xvnc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from spiceshm.client import RemoteDisplay

pytestmark = pytest.mark.peer("spicy", "remote-viewer", "Xvfb", "xdotool", "Xvnc", "Xorg")

WIDTH, HEIGHT = 640, 480
VIEWERS = ["spicy", "remote-viewer"]


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 255, (height, width, 4), np.uint8)


class Screen:
    """The X screen that viewers are on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._connection = xcffib.connect(display=name)
        self._root = self._connection.get_setup().roots[0]

    def shows(self, wanted: np.ndarray) -> bool:
        """Whether a picture (height, width, 4) is somewhere on it, pixel by pixel."""
        root = self._root
        size = root.width_in_pixels, root.height_in_pixels
        zpixmap = xcffib.xproto.ImageFormat.ZPixmap
        image = self._connection.core.GetImage(zpixmap, root.root, 0, 0, *size, 0xFFFFFFFF)
        words = np.frombuffer(image.reply().data.buf(), np.uint32).reshape(size[1], size[0])
        words, sought = words & 0xFFFFFF, wanted.view(np.uint32)[:, :, 0] & 0xFFFFFF
        height, width = sought.shape
        down, across = size[1] - height + 1, size[0] - width + 1
        if min(down, across) < 1:
            return False
        fits = np.ones((down, across), bool)
        for y in (0, height - 1):
            for x in (0, width - 1):
                fits &= words[y : y + down, x : x + across] == sought[y, x]
        return any(
            np.array_equal(words[y : y + height, x : x + width], sought)
            for y, x in np.argwhere(fits).tolist()
        )

    async def window(self, width: int, height: int) -> None:
        """Give the viewer's window this size, in pixels and with its bars."""
        await self._to_window("windowsize", str(width), str(height))

    async def window_size(self) -> tuple[int, int]:
        said = dict(
            line.split("=")
            for line in (await self._to_window("getwindowgeometry", "--shell")).split()
        )
        return int(said["WIDTH"]), int(said["HEIGHT"])

    async def _to_window(self, *command: str) -> str:
        done = await trio.run_process(
            ["xdotool", "search", "--onlyvisible", "--name", "spice", *command],
            env=environment(self.name),
            capture_stdout=True,
        )
        return done.stdout.decode()

    def close(self) -> None:
        self._connection.disconnect()


@contextlib.contextmanager
def screen() -> Iterator[Screen]:
    with xvfb(1200, 900, 24) as name:
        it = Screen(name)
        yield it
        it.close()


@contextlib.asynccontextmanager
async def viewing(
    viewer: str, screen: Screen, uri: str, home: Path, *, follow: bool = True
) -> AsyncIterator[None]:
    """A viewer runs. ``follow`` tells spicy to wish for the size of its window, which remote-viewer
    does in any case."""
    settings = home / ".config" / "spicy" / "settings"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(f"[general]\nresize-guest={str(follow).lower()}\n")
    env = environment(screen.name) | {"HOME": str(home), "XDG_CONFIG_HOME": f"{home}/.config"}
    place = [f"--uri={uri}"] if viewer == "spicy" else [uri]
    process = await trio.lowlevel.open_process(
        [viewer, *place],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
        assert process.poll() is None
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def eventually(condition: Callable[[], object]) -> None:
    with trio.fail_after(DEADLINE):
        while not condition():
            await trio.sleep(0.01)


async def follows(remote: RemoteDisplay, width: int, height: int) -> tuple[int, int]:
    """Wait until a reader sees what fits into a window of this size, but for its bars; returns the
    size of that."""
    with trio.fail_after(DEADLINE):
        while True:
            down, across, _ = (await remote.latest()).pixels.shape
            if width - 20 <= across <= width and height - 150 <= down < height:
                return across, down
            await trio.sleep(0.01)


async def sees(remote: RemoteDisplay, wanted: np.ndarray) -> None:
    with trio.fail_after(DEADLINE):
        while not np.array_equal((await remote.latest()).pixels[:, :, :3], wanted[:, :, :3]):
            await trio.sleep(0.01)


class Program:
    """A program that draws at whatever size is wished."""

    display: spiceshm.Display

    async def resize(self, width: int, height: int) -> None:
        self.display.create_surface(width, height).draw(picture(width, height))


@pytest.mark.parametrize("viewer", VIEWERS)
async def test_a_program_follows_the_window(tmp_path: Path, viewer: str) -> None:
    program = Program()
    with screen() as desk:
        async with spiceshm.serve(f"unix:{tmp_path}/s", resize=program.resize) as display:
            program.display = display
            await program.resize(WIDTH, HEIGHT)
            async with (
                viewing(viewer, desk, f"spice+unix://{tmp_path}/s", tmp_path),
                spiceshm.connect(f"unix:{tmp_path}/s") as reader,
            ):
                assert reader.shared
                await eventually(lambda: desk.shows(picture(WIDTH, HEIGHT)))
                for wanted in ((1001, 751), (800, 650)):
                    await desk.window(*wanted)
                    size = await follows(reader, *wanted)
                    await eventually(lambda size=size: desk.shows(picture(*size)))
                    await sees(reader, picture(*size))


async def test_a_program_that_changes_the_size_changes_it_for_all(tmp_path: Path) -> None:
    """remote-viewer's window follows; spicy's keeps its size, and shows all once it is that large.
    Nobody's wish undoes it."""
    program = Program()
    with screen() as one, screen() as other:
        async with spiceshm.serve(f"unix:{tmp_path}/s", resize=program.resize) as display:
            program.display = display
            await program.resize(WIDTH, HEIGHT)
            uri = f"spice+unix://{tmp_path}/s"
            async with (
                viewing("spicy", one, uri, tmp_path, follow=False),
                viewing("remote-viewer", other, uri, tmp_path),
                spiceshm.connect(f"unix:{tmp_path}/s") as reader,
            ):
                await eventually(lambda: one.shows(picture(WIDTH, HEIGHT)))
                _, bars = await one.window_size()
                bars -= HEIGHT
                for size in ((801, 601), (1024, 700), (WIDTH, HEIGHT)):
                    await program.resize(*size)
                    await eventually(lambda size=size: other.shows(picture(*size)))
                    await one.window(size[0], size[1] + bars)
                    await eventually(lambda size=size: one.shows(picture(*size)))
                    await sees(reader, picture(*size))


def root_size(display: str) -> tuple[int, int]:
    connection = xcffib.connect(display=display)
    root = connection.get_setup().roots[0]
    connection.disconnect()
    return root.width_in_pixels, root.height_in_pixels


@pytest.mark.parametrize(("kind", "viewer"), [("Xvnc", "remote-viewer"), ("Xorg", "spicy")])
async def test_an_x_desktop_follows_the_window(tmp_path: Path, kind: str, viewer: str) -> None:
    with (
        xvnc(1024, 768) if kind == "Xvnc" else xorg(tmp_path) as desktop,
        serving("--source", "x11", "--display", desktop) as server,
        screen() as desk,
    ):
        run(desktop, "xsetroot", "-solid", "#123456")
        uri = server.said["listening"][0]["uri"]
        async with (
            spiceshm.connect(server.address) as reader,
            viewing(viewer, desk, uri, tmp_path),
        ):
            await eventually(lambda: desk.shows(plain(500, 300)))
            for wanted in ((800, 750), (1150, 600)):
                await desk.window(*wanted)
                size = await follows(reader, *wanted)
                assert root_size(desktop) == size
                await sees(reader, plain(*size))
                await eventually(lambda size=size: desk.shows(plain(*size)))


def plain(width: int, height: int) -> np.ndarray:
    """The ground of the desktop."""
    return np.full((height, width, 4), [0x56, 0x34, 0x12, 0], np.uint8)


async def test_on_xvfb_it_is_refused_and_the_picture_stays(tmp_path: Path) -> None:
    with (
        serving("-v", "--source", "xvfb", "--surface", "640x480") as server,
        screen() as desk,
    ):
        uri = server.said["listening"][0]["uri"]
        async with (
            spiceshm.connect(server.address) as reader,
            viewing("remote-viewer", desk, uri, tmp_path),
        ):
            serial = (await reader.latest()).serial
            await eventually(lambda: "ordinary SPICE" in server.errors)
            for times, wanted in ((1, (500, 400)), (2, (900, 700))):
                await eventually_asks(desk, wanted, lambda times=times: refusals(server) == times)
            frame = await reader.latest()
            assert (frame.pixels.shape, frame.serial) == ((480, 640, 4), serial)
            assert refusals(server) == 2


def refusals(server: Server) -> int:
    return server.errors.count("has one size only\n")


async def eventually_asks(desk: Screen, size: tuple[int, int], done: Callable[[], object]) -> None:
    """Give the window a size, again until it is there to get it."""
    with trio.fail_after(DEADLINE):
        while not done():
            with contextlib.suppress(subprocess.CalledProcessError):
                await desk.window(*size)
            await trio.sleep(0.05)
