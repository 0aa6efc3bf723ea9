"""The pointer's shape and place, as programs on real X servers make them.

The shapes are drawn here or named by xsetroot; what is told must be that, pixel for pixel.
"""

from __future__ import annotations

import contextlib
import fcntl
import termios
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio

from spiceshm.events import CursorShape, PointerBy, PointerTo
from spiceshm.sources.xcb import XError
from spiceshm.sources.xcursor import XCursor
from spiceshm.sources.xinput import XInput

from .turns import idle
from .xvfb import run, xvfb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

xcffib: Any = pytest.importorskip("xcffib", reason="needs xcffib (the extra x11)")
xproto: Any = pytest.importorskip("xcffib.xproto")
xinput: Any = pytest.importorskip("xcffib.xinput")
render: Any = pytest.importorskip("xcffib.render")

pytestmark = pytest.mark.peer("Xvfb", "xdotool", "xsetroot")

DEADLINE_S = 30.0


class Told:
    """Stands for a `Display`: it can be watched or not, and keeps what it is told."""

    def __init__(self) -> None:
        self.shape: CursorShape | None = None
        self.at = (-1, -1)
        self.moves = 0
        self.shapes = 0
        self.connection = -1
        self._watched = trio.Event()
        self._unwatched = trio.Event()
        self._unwatched.set()
        self._more = trio.Event()

    def unread(self) -> int:
        """Bytes that the X server has sent and nobody has read."""
        return int.from_bytes(fcntl.ioctl(self.connection, termios.FIONREAD, bytes(4)), "little")

    async def cursor_wanted(self) -> None:
        await self._watched.wait()

    async def cursor_unwanted(self) -> None:
        await self._unwatched.wait()

    def watch(self, on: bool) -> None:
        if on:
            self._watched.set()
            self._unwatched = trio.Event()
        else:
            self._watched = trio.Event()
            self._unwatched.set()

    def set_cursor(self, shape: CursorShape | None) -> None:
        self.shape = shape
        self.shapes += 1
        self._happened()

    def move_cursor(self, x: int, y: int) -> None:
        self.at = (x, y)
        self.moves += 1
        self._happened()

    def _happened(self) -> None:
        self._more.set()
        self._more = trio.Event()

    async def is_at(self, x: int, y: int) -> None:
        with trio.fail_after(DEADLINE_S):
            while self.at != (x, y):
                await self._more.wait()

    async def new_shape(self, after: int) -> CursorShape | None:
        with trio.fail_after(DEADLINE_S):
            while self.shapes == after:
                await self._more.wait()
        return self.shape


@contextlib.asynccontextmanager
async def following(display: str, pause: float = 0.0) -> AsyncIterator[Told]:
    """The pointer is followed and watched, and its first shape and place are told."""
    told = Told()
    with XCursor.open(display) as cursor:
        told.connection = cursor.fileno()
        async with trio.open_nursery() as nursery:
            await nursery.start(cursor.follow, told, pause)
            told.watch(True)
            with trio.fail_after(DEADLINE_S):
                while told.shapes < 2:
                    await told._more.wait()
            yield told
            nursery.cancel_scope.cancel()


class Painter:
    """A program that sets the pointer's shape for the whole screen."""

    def __init__(self, display: str) -> None:
        self.connection = xcffib.connect(display)
        self.core = self.connection.core
        self.root = self.connection.setup.roots[0].root
        self.render = self.connection(render.key)
        formats = self.render.QueryPictFormats().reply().formats
        self.format = next(f.id for f in formats if f.depth == 32 and f.direct.alpha_shift == 24)

    def point(self, pixels: NDArray[np.uint8], hot_x: int, hot_y: int) -> None:
        """Point with (height, width, 4) of B, G, R, A, premultiplied."""
        height, width, _ = pixels.shape
        pixmap, picture, gc, cursor = (self.connection.generate_id() for _ in range(4))
        self.core.CreatePixmap(32, pixmap, self.root, width, height)
        self.core.CreateGC(gc, pixmap, 0, [])
        for top in range(0, height, 64):  # a request has room for 256 KB
            rows = pixels[top : top + 64]
            data = rows.tobytes()
            self.core.PutImage(
                2, pixmap, gc, width, len(rows), 0, top, 0, 32, len(data), list(data)
            )
        self.render.CreatePicture(picture, pixmap, self.format, 0, [])
        self.render.CreateCursor(cursor, picture, hot_x, hot_y)
        self.core.ChangeWindowAttributes(self.root, xproto.CW.Cursor, [cursor])
        self.sync()

    def sync(self) -> None:
        self.core.GetInputFocus().reply()


@contextlib.contextmanager
def painter_on(display: str) -> Iterator[Painter]:
    painter = Painter(display)
    try:
        yield painter
    finally:
        painter.connection.disconnect()


def drawn(width: int, height: int) -> NDArray[np.uint8]:
    """A picture in which every pixel is one of its own, with all degrees of transparency."""
    pixels = np.random.default_rng(4).integers(0, 256, (height, width, 4)).astype(np.uint8)
    pixels[:, :, :3] = np.minimum(pixels[:, :, :3], pixels[:, :, 3:])
    return pixels


# shape


async def test_the_shape_is_what_a_program_drew() -> None:
    with xvfb(640, 480, 24) as display, painter_on(display) as painter:
        async with following(display) as told:
            for width, height, hot in ((24, 32, (3, 7)), (1, 1, (0, 0)), (64, 48, (63, 47))):
                pixels, before = drawn(width, height), told.shapes
                painter.point(pixels, *hot)
                shape = await told.new_shape(before)
                assert shape is not None
                assert (shape.hot_x, shape.hot_y) == hot
                assert np.array_equal(shape.pixels, pixels)
                assert not shape.pixels.flags.writeable


async def test_a_shape_of_two_colours(tmp_path: Path) -> None:
    """One of the oldest kind, which is a bitmap and a mask."""
    bitmap = "#define {0}_width 8\n#define {0}_height 2\n#define {0}_x_hot 5\n#define {0}_y_hot 1\n"
    bitmap += "static char {0}_bits[] = {{\n{1}, {2} }};\n"
    (tmp_path / "shape").write_text(bitmap.format("shape", "0x0f", "0x03"))
    (tmp_path / "mask").write_text(bitmap.format("mask", "0x3f", "0x0f"))
    # Without SECURITY: that keeps the shapes of programs that have ended to itself.
    with xvfb(640, 480, 24, "-extension", "SECURITY") as display:
        async with following(display) as told:
            before = told.shapes
            files = (str(tmp_path / name) for name in ("shape", "mask"))
            run(display, "xsetroot", "-fg", "red", "-bg", "blue", "-cursor", *files)
            shape = await told.new_shape(before)
    assert shape is not None
    assert (shape.hot_x, shape.hot_y) == (5, 1)
    red, blue, none = (0, 0, 255, 255), (255, 0, 0, 255), (0, 0, 0, 0)
    rows = [[red] * 4 + [blue] * 2 + [none] * 2, [red] * 2 + [blue] * 2 + [none] * 4]
    assert shape.pixels.tolist() == [[list(pixel) for pixel in row] for row in rows]


async def test_a_shape_that_cannot_be_read_is_an_arrow() -> None:
    with xvfb(640, 480, 24) as display:
        async with following(display) as told:
            before = told.shapes
            run(display, "xsetroot", "-cursor_name", "watch")
            shape = await told.new_shape(before)
    assert shape is not None
    assert (shape.hot_x, shape.hot_y) == (0, 0)
    assert shape.pixels[0, :2].tolist() == [[0, 0, 0, 255], [0, 0, 0, 0]]
    assert shape.pixels[5, 2].tolist() == [255, 255, 255, 255]


async def test_a_transparent_shape_is_none_and_a_large_one_is_cut() -> None:
    with xvfb(640, 480, 24) as display, painter_on(display) as painter:
        async with following(display) as told:
            before = told.shapes
            painter.point(np.zeros((16, 16, 4), np.uint8), 8, 8)
            assert await told.new_shape(before) is None
            pixels, before = drawn(300, 280), told.shapes
            painter.point(pixels, 290, 150)
            shape = await told.new_shape(before)
    assert shape is not None
    assert np.array_equal(shape.pixels, pixels[22:278, 44:300])
    assert (shape.hot_x, shape.hot_y) == (246, 128)


@pytest.mark.parametrize(("width", "height"), [(16, 24), (300, 280)])
async def test_a_hot_spot_just_outside_is_at_the_edge(width: int, height: int) -> None:
    """X servers take it, and no program may end the server of everybody with it."""
    with xvfb(640, 480, 24) as display, painter_on(display) as painter:
        async with following(display) as told:
            before = told.shapes
            painter.point(drawn(width, height), width, height)
            shape = await told.new_shape(before)
    assert shape is not None
    assert (shape.hot_x, shape.hot_y) == (min(width, 256) - 1, min(height, 256) - 1)


# place


async def test_the_place_follows_programs_and_clients() -> None:
    """Also over a window that keeps motion to itself, and while that has grabbed the pointer."""
    with xvfb(640, 480, 24) as display, XInput.open(display) as pointer:
        with painter_on(display) as program:
            async with following(display) as told:
                run(display, "xdotool", "mousemove", "77", "88")
                await told.is_at(77, 88)
                await pointer.play([PointerTo(400, 300), PointerBy(5, -5)])
                await told.is_at(405, 295)

                window, core = program.connection.generate_id(), program.core
                mask = xproto.EventMask.PointerMotion
                place = (program.root, 100, 100, 200, 200, 0, 1, 0)
                core.CreateWindow(24, window, *place, xproto.CW.EventMask, [mask])
                core.MapWindow(window)
                program.sync()
                for grab in (False, True):
                    if grab:
                        core.GrabPointer(False, window, mask, 1, 1, 0, 0, 0).reply()
                    run(display, "xdotool", "mousemove", "150", "160")
                    await told.is_at(150, 160)
                    await pointer.play([PointerTo(170, 180 + grab)])
                    await told.is_at(170, 180 + grab)

                motion = xinput.EventMask.synthetic(0, 1, [xinput.XIEventMask.Motion])
                program.connection(xinput.key).XISelectEvents(window, 1, [motion])
                program.sync()
                await pointer.play([PointerTo(190, 191)])  # of all devices now
                await told.is_at(190, 191)


async def test_a_place_is_told_no_more_often_than_wanted() -> None:
    with xvfb(640, 480, 24) as display, XInput.open(display) as pointer:
        async with following(display, pause=0.2) as told:
            before, begun = told.moves, trio.current_time()
            for x in range(200):
                await pointer.play([PointerTo(x, 2 * x)])
            await told.is_at(199, 398)
            took = trio.current_time() - begun
    assert told.moves - before <= 2 + took / 0.2


# who is woken, and who is asked


async def test_nobody_is_woken_by_a_pointer_that_rests_or_that_nobody_watches() -> None:
    with xvfb(640, 480, 24) as display:
        async with following(display) as told:
            assert await idle() == 0
            before = told.at
            told.watch(False)
            await idle()
            run(display, "xdotool", "mousemove", "8", "9")
            assert await idle() == 0
            assert told.at == before
            assert told.unread() == 0
            told.watch(True)
            await told.is_at(8, 9)
            run(display, "xdotool", "mousemove", "10", "11")
            await told.is_at(10, 11)


async def test_the_x_server_ends() -> None:
    told = Told()
    with xvfb(640, 480, 24) as display, XCursor.open(display) as cursor:
        async with trio.open_nursery() as nursery:

            async def follow(task_status: trio.TaskStatus[None]) -> None:
                with pytest.raises(XError, match=f"^X display {display} closed the connection$"):
                    await cursor.follow(told, 0.0, task_status=task_status)  # type: ignore[arg-type]

            await nursery.start(follow)
            told.watch(True)
            display.process.kill()
