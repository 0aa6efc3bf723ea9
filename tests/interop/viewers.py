"""Stock viewers: their windows are found and compared, and what went over the wire is read.

async with opened("remote-viewer", uri) as viewer:      # on an X screen of its own
    await viewer.shows(picture)                         # pixel for pixel
    await viewer.do("key", "a")                         # what its user does

async with recorder(address) as record:                 # listens, and passes everything on
    await screenshot(record.uri, file)
assert record.drawn() == {"lz4": 1}
"""

from __future__ import annotations

import contextlib
import subprocess
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
import xcffib
import xcffib.xproto
from PIL import Image

from spiceshm.transport import Address, Listener, TcpAddress
from spiceshm.wire import Message, Sender, display
from spiceshm.wire.types import ImageType
from tests.programs import DEADLINE, Program, short_directory
from tests.xvfb import environment, xvfb
from tools.recording import Recording
from tools.recording.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

SCREEN = 1200, 900
"""Width and height of the X screens that windows are on."""

SPICY = "[general]\nscaling=false\nresize-guest=false\n"
"""Settings with which it shows a pixel as a pixel, and does not ask for another size."""

OPTIONS = {"spicy": ("--uri",), "remote-viewer": ("--auto-resize=never",)}
"""Before the address; with these remote-viewer does not ask for another size either."""


async def eventually(condition: Callable[[], object]) -> None:
    """Look again and again until it is so."""
    with trio.fail_after(DEADLINE):
        while not condition():
            await trio.sleep(0.01)


async def screenshot(uri: str, file: Path, *options: str) -> np.ndarray:
    """What spicy-screenshot makes of a server's picture: (height, width, 3) of B, G, R."""
    command = ["spicy-screenshot", f"--uri={uri}", "-o", str(file), *options]
    run = partial(subprocess.run, command, check=True, timeout=DEADLINE, stdout=subprocess.DEVNULL)
    await trio.to_thread.run_sync(run)
    return np.asarray(Image.open(file).convert("RGB"))[:, :, ::-1]


async def xdotool(screen: str, *command: str) -> None:
    """What the user of an X screen does."""
    await trio.run_process(["xdotool", *command], env=environment(screen))


# Windows


_REPLY_HEADER = 8
"""Words of a reply before its pixels."""


class Screen:
    """An X screen, and where on it a picture is."""

    def __init__(self, name: str) -> None:
        self.connection = xcffib.connect(display=name)
        self._root = self.connection.get_setup().roots[0]
        self._corner: tuple[int, int] | None = None
        self._size: tuple[int, ...] = ()

    @property
    def corner(self) -> tuple[int, int]:
        """x and y of the picture that it showed last."""
        assert self._corner is not None
        return self._corner

    def pixels(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """A part as (height, width) of 0x00RRGGBB."""
        form = xcffib.xproto.ImageFormat.ZPixmap
        core, root = self.connection.core, self._root.root
        cookie = core.GetImage(form, root, x, y, width, height, 0xFFFFFFFF)
        # Its reply() makes a number of every byte, which takes a tenth of a second.
        data = self.connection.wait_for_reply(cookie.sequence).buf
        return np.frombuffer(data, "<u4")[_REPLY_HEADER:].reshape(height, width) & 0xFFFFFF

    def shows(self, picture: np.ndarray) -> bool:
        """Whether all of (height, width, 3 or 4) of B, G, R is there without a gap.

        It is looked for until it is found, and from then on expected there until its size changes.
        """
        words = np.zeros((*picture.shape[:2], 4), np.uint8)
        words[:, :, :3] = picture[:, :, :3]
        wanted = words.view("<u4")[:, :, 0]
        height, width = wanted.shape
        if self._size == wanted.shape:
            return np.array_equal(self.pixels(*self.corner, width, height), wanted)
        root = self._root
        whole = self.pixels(0, 0, root.width_in_pixels, root.height_in_pixels)
        for place in _places(whole, wanted):
            self._corner, self._size = place, wanted.shape
            return True
        return False


def _places(whole: np.ndarray, part: np.ndarray) -> Iterator[tuple[int, int]]:
    """x and y of wherever the part is, all of it; first a few edges of it are looked for."""
    height, width = part.shape
    down, across = whole.shape[0] - height + 1, whole.shape[1] - width + 1
    edges = np.flatnonzero(np.diff(part.ravel()))
    some = edges[np.linspace(0, len(edges) - 1, min(len(edges), 32), dtype=int)]
    tops, lefts = np.indices((max(0, down), max(0, across))).reshape(2, -1)
    for y, x in zip(*np.divmod(np.concatenate([some, some + 1]), width), strict=True):
        like = whole[tops + y, lefts + x] == part[y, x]
        tops, lefts = tops[like], lefts[like]
    for top, left in zip(tops.tolist(), lefts.tolist(), strict=True):
        if np.array_equal(whole[top : top + height, left : left + width], part):
            yield left, top


class Viewer:
    """A stock viewer and the X screen that it has for itself."""

    def __init__(self, process: Program, screen: Screen, name: str) -> None:
        self.screen = screen
        self._process = process
        self._name = name

    async def shows(self, picture: np.ndarray) -> None:
        """Wait until its window shows exactly this."""

        def there() -> bool:
            self.check()
            return self.screen.shows(picture)

        await eventually(there)

    def check(self) -> None:
        """Raises AssertionError with its last words if it has ended."""
        assert self._process.status is None, self._process.errors

    async def do(self, *command: str) -> None:
        """What its user does: a command of xdotool."""
        await xdotool(self._name, *command)

    async def point(self, x: int, y: int) -> None:
        """Move the user's pointer to a place in the picture that the window showed last."""
        left, top = self.screen.corner
        await self.do("mousemove", str(left + x), str(top + y))


@contextlib.asynccontextmanager
async def opened(
    program: str, uri: str, *options: str, before: tuple[str, ...] = ()
) -> AsyncIterator[Viewer]:
    """Run "spicy" or "remote-viewer"; it must be alive at the end of the block.

    ``before`` is what xdotool does on its screen before it comes.
    """
    with short_directory() as home, xvfb(*SCREEN, 24) as name, _screen(name) as screen:
        settings = home / ".config" / "spicy" / "settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(SPICY)
        if before:
            await xdotool(name, *before)
        command = [program, *options, *OPTIONS[program], uri]
        with Program(command, {**environment(name), "HOME": str(home)}) as process:
            viewer = Viewer(process, screen, name)
            yield viewer
            viewer.check()


@contextlib.contextmanager
def _screen(name: str) -> Iterator[Screen]:
    screen = Screen(name)
    try:
        yield screen
    finally:
        screen.connection.disconnect()


# The wire


class Recorder(Recording):
    """What goes through it, as it goes. ``port`` is its own."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.uri = f"spice://127.0.0.1:{port}"

    @property
    def size(self) -> int:
        """Bytes that went over the wire."""
        return sum(len(event.data) for one in self.connections for event in one.events)

    def drawn(self) -> dict[str, int]:
        """So many images of each type, and fills, went over all display channels."""
        counts: Counter[str] = Counter()
        for connection in self.connections:
            for message in connection.messages(Sender.SERVER):
                if message.kind in (display.DrawCopy, display.DrawFill):
                    counts[_drawn_by(message.parse())] += 1
        return dict(counts)


_IMAGES = {ImageType.BITMAP: "raw", ImageType.LZ_RGB: "lz", ImageType.LZ4: "lz4"}


def _drawn_by(message: Message) -> str:
    if isinstance(message, display.DrawCopy):
        return _IMAGES[ImageType(message.image.type)]
    return "fill"


@contextlib.asynccontextmanager
async def recorder(address: Address) -> AsyncIterator[Recorder]:
    """Listens on loopback and passes everything on to a server, and back."""
    with contextlib.closing(Listener(TcpAddress("127.0.0.1", 0))) as listener:
        assert isinstance(listener.address, TcpAddress)
        record = Recorder(listener.address.port)
        async with trio.open_nursery() as nursery:
            proxy = Proxy(address, record.add, pytest.fail)
            nursery.start_soon(listener.serve, proxy.handle, nursery)
            yield record
            nursery.cancel_scope.cancel()
