"""Reading an X root window: real X servers, real clients, every pixel compared.

What the pictures are held against comes from other programs (xwd, ImageMagick's import), and what
was drawn is drawn by a second connection or a second process. Nothing here sleeps to be in time:
either the order of requests makes the outcome certain, or a condition is polled until a deadline.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio
import trio.testing
from numpy.typing import NDArray

from spiceshm.sources import xcb, xscreen
from spiceshm.sources.xscreen import Target, XError, XResized, XScreen, bands

from .xvfb import DEADLINE, environment, run, xvfb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from spiceshm.region import Rect

xcffib: Any = pytest.importorskip("xcffib", reason="needs xcffib (the extra x11)")
xproto: Any = pytest.importorskip("xcffib.xproto")

Pixels = NDArray[np.uint8]


# helpers


class Pen:
    """A client that draws on the root window, over a connection of its own."""

    def __init__(self, display: str) -> None:
        self.connection = xcffib.connect(display)
        self.core = self.connection.core
        self.screen = self.connection.setup.roots[0]
        self.root = self.screen.root
        self.gc = self.connection.generate_id()
        self.core.CreateGC(self.gc, self.root, 0, [])

    def fill(self, rect: Rect, colour: int) -> None:
        """Ask for a rectangle of one pixel value; it is sent, not awaited."""
        top, left, bottom, right = rect
        self.core.ChangeGC(self.gc, xproto.GC.Foreground, [colour])
        area = xproto.RECTANGLE.synthetic(left, top, right - left, bottom - top)
        self.core.PolyFillRectangle(self.root, self.gc, 1, [area])
        self.connection.flush()

    def sync(self) -> None:
        """Return when the server has done all that this client asked for."""
        self.core.GetInputFocus().reply()

    def draw(self, rect: Rect, colour: int) -> None:
        self.fill(rect, colour)
        self.sync()


@contextlib.contextmanager
def pen_on(display: str) -> Iterator[Pen]:
    pen = Pen(display)
    try:
        yield pen
    finally:
        pen.connection.disconnect()


@contextlib.contextmanager
def picture_for(screen: XScreen, attach: bool = True, offset: int = 0) -> Iterator[Target]:
    """Memory for one picture: a memfd, attached if asked for and possible, else an array."""
    shape = (screen.height, screen.width, 4)
    size = offset + screen.height * screen.width * 4
    fd = os.memfd_create("test")
    try:
        os.posix_fallocate(fd, 0, size)
        shmseg = screen.attach(fd, size) if attach else None
        mapping = mmap.mmap(fd, size)
    finally:
        os.close(fd)
    yield np.frombuffer(mapping, np.uint8)[offset:].reshape(shape), shmseg, offset
    if shmseg is not None:
        screen.detach(shmseg)


def until(condition: Callable[[], bool], what: str) -> None:
    """Poll a condition outside of trio."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE} s for {what}"
        time.sleep(0.01)


def xwd(display: str) -> tuple[int, NDArray[Any]]:
    """What ``xwd -root`` sees: the depth and the pixel values, (height, width) of 16 or 32 bits."""
    data = run(display, "xwd", "-silent", "-root")
    head = struct.unpack_from(">25I", data)
    size, depth, width, height = head[0], head[3], head[4], head[5]
    bits, line, colours = head[11], head[12], head[19]
    order = ">" if head[7] else "<"
    rows = np.frombuffer(data, np.uint8, line * height, size + 12 * colours)
    values = rows.reshape(height, line).view(f"{order}u{bits // 8}")
    return depth, values[:, :width]


def as_bgr(depth: int, values: NDArray[Any]) -> Pixels:
    """Pixel values as B, G, R; of five and six bits the high ones are repeated below."""
    if depth == 24:
        return np.stack([values >> shift & 0xFF for shift in (0, 8, 16)], axis=2).astype(np.uint8)
    value = values.astype(int)
    blue, green, red = value % 32 * 33 // 4, value // 32 % 64 * 65 // 16, value // 2048 * 33 // 4
    return np.stack([blue, green, red], axis=2).astype(np.uint8)


def imported(display: str, width: int, height: int) -> Pixels:
    """What ``import -window root`` sees, as B, G, R."""
    data = run(display, "import", "-window", "root", "-depth", "8", "rgb:-")
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)[..., ::-1]


def is_damaged(screen: XScreen) -> bool:
    """``screen.damaged``, out of reach of a type checker that thinks it stays as it was."""
    return screen.damaged


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def settle(screen: XScreen) -> None:
    """Take all damage that is there, so that a test begins with none."""
    while screen.damaged:
        await screen.take_damage()


def children(pen: Pen) -> list[Rect]:
    """The rectangles of the windows that can be seen."""
    found = []
    for window in pen.core.QueryTree(pen.root).reply().children:
        if pen.core.GetWindowAttributes(window).reply().map_state == xproto.MapState.Viewable:
            at = pen.core.GetGeometry(window).reply()
            found.append((at.y, at.x, at.y + at.height, at.x + at.width))
    return found


@contextlib.contextmanager
def desktop(display: str) -> Iterator[None]:
    """xterm, xlogo and xclock, drawn and then stopped, so that the picture keeps still."""
    commands = [
        ["xterm", "-geometry", "50x20+7+9", "-e", "sh", "-c", "seq 300; exec sleep 1000"],
        ["xlogo", "-geometry", "200x200+333+11", "-fg", "#c03080", "-bg", "#10e0a0"],
        ["xclock", "-geometry", "150x160+400+250", "-hd", "#2040ff"],
    ]
    clients = [
        subprocess.Popen(c, env=environment(display), stderr=subprocess.DEVNULL) for c in commands
    ]
    try:
        with pen_on(display) as pen:
            until(lambda: len(children(pen)) == len(clients), "windows")
            until(lambda: all(drawn(display, at) for at in children(pen)), "something in them")
        for client in clients:
            client.send_signal(signal.SIGSTOP)
        yield
    finally:
        for client in clients:
            client.kill()
            client.wait()


def drawn(display: str, at: Rect) -> bool:
    top, left, bottom, right = at
    return len(np.unique(xwd(display)[1][top:bottom, left:right])) > 1


# pixels


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize(
    ("width", "height", "depth"),
    [(1920, 1080, 24), (1366, 768, 24), (1366, 768, 16), (641, 479, 16)],
)
async def test_picture_is_what_other_programs_see(
    width: int, height: int, depth: int, attach: bool
) -> None:
    with xvfb(width, height, depth) as display, desktop(display), XScreen.open(display) as screen:
        assert (screen.width, screen.height, screen.depth) == (width, height, depth)
        assert screen.name == display
        assert screen.can_attach is (depth == 24)
        with picture_for(screen, attach) as target:
            assert (target[1] is not None) is (attach and depth == 24)
            before, seen = None, xwd(display)[1]
            while before is None or not np.array_equal(before, seen):
                before = seen
                assert (await screen.snapshot(lambda rects: target)) or before is not None
                ours = target[0][..., :3].copy()
                seen = xwd(display)[1]
            theirs = imported(display, width, height)
        assert len(np.unique(seen)) > 3
        assert np.array_equal(ours, as_bgr(depth, seen))
        # At depth 16 import rounds down where xwd's readers, and we, repeat the high bits.
        assert np.abs(ours.astype(int) - theirs).max() <= (depth == 16)


async def test_every_rgb565_value() -> None:
    with xvfb(256, 256, 16) as display, XScreen.open(display) as screen, pen_on(display) as pen:
        every = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
        for top in range(0, 256, 64):  # in parts below the longest request
            part = every[top : top + 64].tobytes()
            pen.core.PutImage(
                *(xproto.ImageFormat.ZPixmap, pen.root, pen.gc, 256, 64, 0, top, 0, 16),
                *(len(part), part),
            )
        pen.sync()
        out = np.zeros((256, 256, 4), np.uint8)
        await screen.fetch([(0, 256)], out, None, 0)
        assert np.array_equal(out[..., :3], as_bgr(16, every))
        picture = run(display, "sh", "-c", "xwd -silent -root | convert xwd:- -depth 8 rgb:-")
        shown = np.frombuffer(picture, np.uint8).reshape(256, 256, 3)[..., ::-1]
        assert np.array_equal(out[..., :3], shown)
        assert (out[0, 0, :3].tolist(), out[-1, -1, :3].tolist()) == ([0, 0, 0], [255, 255, 255])


@pytest.mark.parametrize(("depth", "attach"), [(24, True), (24, False), (16, False)])
async def test_only_the_bands_are_written(depth: int, attach: bool) -> None:
    with xvfb(333, 300, depth) as display, XScreen.open(display) as screen, pen_on(display) as pen:
        pen.draw((0, 0, 300, 333), 0)
        with picture_for(screen, attach, offset=8192) as target:
            target[0][:] = 77
            await screen.fetch([(3, 4), (100, 231)], *target)
            written = (target[0][..., :3] == 0).all(axis=(1, 2))
            untouched = (target[0] == 77).all(axis=(1, 2))
        assert np.flatnonzero(written).tolist() == [3, *range(100, 231)]
        assert (written ^ untouched).all()


@pytest.mark.parametrize("arguments", [("-extension", "MIT-SHM"), ("-listen", "tcp", "-ac")])
async def test_without_shared_memory_rows_are_copied(arguments: tuple[str, ...]) -> None:
    for depth in (24, 16):
        with xvfb(301, 200, depth, *arguments) as display, pen_on(display) as pen:
            name = f"localhost{display}" if "tcp" in arguments else display
            with XScreen.open(name) as screen, picture_for(screen) as target:
                assert not screen.can_attach
                assert target[1] is None
                pen.draw((0, 0, 200, 301), 0x1234)
                assert await screen.snapshot(lambda rects: target) == [(0, 0, 200, 301)]
                assert np.array_equal(target[0][..., :3], as_bgr(*xwd(display)))


async def test_targets_that_do_not_fit() -> None:
    with xvfb(64, 48, 24) as display, XScreen.open(display) as screen:
        good = np.zeros((48, 64, 4), np.uint8)
        with picture_for(screen) as (out, shmseg, _), pytest.raises(ValueError, match="offset 4"):
            await screen.fetch([(0, 48)], out, shmseg, 4)
        with pytest.raises(ValueError, match="no room"):
            await screen.fetch([(0, 48)], good, shmseg, 0)  # detached
        for bad in (good[:-1], good[..., :3], good.astype(np.int32), good[:, ::-1]):
            with pytest.raises(ValueError, match="contiguous"):
                await screen.fetch([(0, 48)], bad, None, 0)  # type: ignore[arg-type]
        for band in ((0, 49), (-1, 2), (5, 5), (6, 5)):
            with pytest.raises(ValueError, match="band"):
                await screen.fetch([band], good, None, 0)
        await screen.fetch([(0, 48)], good, None, 0)


async def test_memory_that_the_server_cannot_map() -> None:
    with xvfb(64, 48, 24) as display, XScreen.open(display) as screen:
        reader, writer = os.pipe()
        before = descriptors()
        assert screen.attach(reader, 4096) is None
        assert descriptors() == before
        os.close(reader)
        os.close(writer)
        screen.detach(12345)
        with picture_for(screen) as target:
            assert target[1] is not None
            await screen.fetch([(0, 48)], *target)


# damage


async def test_damage_is_exactly_what_was_drawn() -> None:
    with xvfb(640, 480, 24) as display, XScreen.open(display) as screen, pen_on(display) as pen:
        assert is_damaged(screen)
        assert await screen.take_damage() == [(0, 0, 480, 640)]
        assert not is_damaged(screen)
        assert await screen.take_damage() == []
        pen.draw((7, 11, 20, 31), 0xFF)
        assert is_damaged(screen)
        assert await screen.take_damage() == [(7, 11, 20, 31)]
        assert not is_damaged(screen)
        pen.draw((470, 630, 500, 700), 0xFF)  # reaches over the edge
        pen.draw((-5, -5, 1, 2), 0xFF)
        assert await screen.take_damage() == [(0, 0, 1, 2), (470, 630, 480, 640)]


async def test_made_up_events_are_not_believed() -> None:
    with xvfb(640, 480, 24) as display, XScreen.open(display) as screen, pen_on(display) as pen:
        await settle(screen)
        fake = struct.pack("=BxHIIIhhHHHBx4x", 22, 0, pen.root, pen.root, 0, 0, 0, 9, 9, 0, 0)
        pen.core.SendEvent(False, pen.root, xproto.EventMask.StructureNotify, fake)
        pen.sync()
        select.select([screen], [], [], DEADLINE)
        assert not screen.resized


async def test_old_notice_is_forgotten_and_new_one_kept() -> None:
    """A DamageNotify from before the Subtract says nothing new; one from after it does."""
    with xvfb(640, 480, 24) as display, XScreen.open(display) as screen, pen_on(display) as pen:
        await settle(screen)
        pen.draw((0, 0, 5, 5), 1)  # its notice is in the stream before anything we ask for now
        assert await screen.take_damage() == [(0, 0, 5, 5)]
        assert not is_damaged(screen)
        with screen._sending():  # as take_damage does, with a stroke between its requests' ends
            cookie = screen._damage_ext.Subtract(screen._damage, 0, screen._fresh)
            screen._subtracted, screen._notified = cookie.sequence, None
            focus = screen._connection.core.GetInputFocus().sequence
        await screen._reply(focus)
        pen.draw((0, 0, 5, 5), 2)
        assert is_damaged(screen)
        assert await screen.take_damage() == [(0, 0, 5, 5)]
        assert not is_damaged(screen)


async def test_damage_that_comes_while_we_look() -> None:
    """Between looking and waiting nothing may be read: it would never wake us."""

    class Watched(XScreen):
        looks = 1  # so that nothing happens yet

        def _pump(self) -> None:
            super()._pump()
            self.looks += 1
            if self.looks == 1:
                pen.draw((1, 2, 3, 4), 5)
                select.select([self], [], [], DEADLINE)  # its notice is there

    with xvfb(320, 200, 24) as display, Watched.open(display) as screen, pen_on(display) as pen:
        assert isinstance(screen, Watched)
        await settle(screen)
        screen.looks = 0
        with trio.fail_after(DEADLINE):
            await screen.wait()
        assert await screen.take_damage() == [(1, 2, 3, 4)]


@pytest.mark.parametrize("attach", [True, False])
async def test_snapshot_fetches_rows_around_the_damage(attach: bool) -> None:
    with xvfb(640, 480, 24) as display, XScreen.open(display) as screen, pen_on(display) as pen:
        with picture_for(screen, attach) as target:
            begun: list[list[Rect]] = []

            def begin(rects: list[Rect]) -> Target:
                begun.append(rects)
                return target

            pen.draw((0, 0, 480, 640), 0x445566)
            assert await screen.snapshot(begin) == [(0, 0, 480, 640)]
            assert await screen.snapshot(begin) == []
            pen.draw((10, 20, 30, 40), 0x010203)
            pen.draw((300, 0, 301, 640), 0x010203)
            target[0][0] = 9  # a row that nobody drew in is not fetched
            rects = [(10, 20, 30, 40), (300, 0, 301, 640)]
            assert await screen.snapshot(begin) == rects
            assert begun == [[(0, 0, 480, 640)], rects]
            assert (target[0][0] == 9).all()
            assert target[0][15, 30, :3].tolist() == [3, 2, 1]
            assert np.array_equal(target[0][1:, :, :3], as_bgr(*xwd(display))[1:])
            assert not is_damaged(screen)


def test_bands() -> None:
    assert bands([]) == []
    assert bands([(5, 0, 9, 4)]) == [(5, 9)]
    assert bands([(100, 0, 110, 4), (0, 0, 37, 4)]) == [(0, 110)]
    assert bands([(100, 0, 110, 4), (0, 0, 36, 4)]) == [(0, 36), (100, 110)]
    assert bands([(0, 0, 50, 9), (10, 9, 20, 12), (200, 0, 201, 1)]) == [(0, 50), (200, 201)]


def test_rectangles_are_clipped() -> None:
    boxes = [(-3, -4, 10, 10), (90, 95, 40, 40), (100, 0, 5, 5), (5, 6, 0, 9), (-9, 9, 60000, 1)]
    reply = bytes(32) + b"".join(struct.pack("=hhHH", *box) for box in boxes)
    assert xscreen._rects(reply, 100, 99) == [(0, 0, 6, 7), (95, 90, 99, 100), (9, 0, 10, 100)]


async def test_what_was_drawn_before_the_last_image_counts() -> None:
    with xvfb(64, 48, 24) as display, XScreen.open(display) as screen:
        await settle(screen)
        out = np.zeros((48, 64, 4), np.uint8)
        images = xscreen._Images([7, 8, 9], [(0, 16), (16, 32), (32, 48)], out, False)
        for notified, before in ((6, True), (8, True), (9, False), (10, False), (None, False)):
            screen._notified = notified
            assert screen._drawn_before(images) is before


def test_request_numbers_wrap() -> None:
    assert xscreen._precedes(1, 2)
    assert not xscreen._precedes(2, 2)
    assert not xscreen._precedes(3, 2)
    assert xscreen._precedes(0xFFFFFFFF, 3)
    assert not xscreen._precedes(3, 0xFFFFFFFF)


# frames are never a mixture


class Counted(XScreen):
    """Counts how often the other clients were stopped."""

    grabs = 0

    def grab(self) -> None:
        self.grabs += 1
        super().grab()


async def test_what_is_drawn_during_a_snapshot_is_fetched_too() -> None:
    """Each time that a picture is begun, another program draws elsewhere: it can never be whole
    until that program is stopped. Certain, because ``begin`` is called between the requests."""
    with xvfb(640, 480, 24) as display, Counted.open(display) as screen, pen_on(display) as pen:
        assert isinstance(screen, Counted)
        await settle(screen)
        pen.draw((0, 0, 1, 640), 0xAA)
        with picture_for(screen) as target:
            begun: list[list[Rect]] = []
            before = np.zeros_like(target[0])

            def begin(rects: list[Rect]) -> Target:
                begun.append(rects)
                pen.fill((100 * len(begun), 0, 100 * len(begun) + 1, 640), 0xAA)
                if len(begun) <= xscreen.TRIES:
                    pen.sync()
                return target

            rects = await screen.snapshot(begin)
            seen = np.flatnonzero((target[0] != before).any(axis=(1, 2)))
        strokes = [(100 * n, 0, 100 * n + 1, 640) for n in range(5)]
        assert begun == [strokes[: n + 1] for n in range(4)]
        assert rects == strokes[:4]
        assert seen.tolist() == [0, 100, 200, 300]
        assert screen.grabs == 1
        pen.sync()  # let go again, and its last stroke is news
        assert await screen.take_damage() == strokes[4:]


async def test_more_in_the_same_place_does_not_begin_again() -> None:
    with xvfb(640, 480, 24) as display, Counted.open(display) as screen, pen_on(display) as pen:
        assert isinstance(screen, Counted)
        await settle(screen)
        pen.draw((0, 0, 10, 10), 1)
        with picture_for(screen) as target:
            begun: list[list[Rect]] = []

            def begin(rects: list[Rect]) -> Target:
                begun.append(rects)
                pen.draw((2, 2, 8, 8), 2)
                return target

            assert await screen.snapshot(begin) == [(0, 0, 10, 10)]
            assert len(begun) == 1
            assert target[0][5, 5, 0] == 2
        assert screen.grabs == 0
        assert not is_damaged(screen)


PAINTER = """
import sys, time, xcffib, xcffib.xproto as xproto
display, pause = sys.argv[1], float(sys.argv[2])
connection = xcffib.connect(display)
core, screen = connection.core, connection.setup.roots[0]
width, height = screen.width_in_pixels, screen.height_in_pixels
gc = connection.generate_id()
core.CreateGC(gc, screen.root, 0, [])

def fill(colour, *area):
    core.ChangeGC(gc, xproto.GC.Foreground, [colour])
    core.PolyFillRectangle(screen.root, gc, 1, [xproto.RECTANGLE.synthetic(*area)])
    core.GetInputFocus().reply()
    time.sleep(pause)

count = 0
while True:
    count += 1
    colour = count * 0x010307 & 0xffffff
    fill(colour, 0, 0, width, height)
    for blink in (0xffffff, 0, 0xffffff):
        fill(colour ^ blink, 300, 200, 40, 30)
    if count == 1:
        print(flush=True)
"""


@contextlib.contextmanager
def painter(display: str, pause: float) -> Iterator[None]:
    """Another process that fills the screen with one colour, and blinks in a corner of it."""
    command = [sys.executable, "-c", PAINTER, display, str(pause)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("pause", [0.004, 0.0])
@pytest.mark.parametrize("attach", [True, False])
async def test_no_picture_is_a_mixture(attach: bool, pause: float) -> None:
    """200 pictures of a screen that is filled with a new colour all the time (60 Hz, and as fast as
    it goes): each has one colour, and its corner that one or the opposite. And what was said to be
    damaged is all that changed: a mirror kept from it alone is always the same picture."""
    with xvfb(1280, 720, 24) as display, painter(display, pause), trio.fail_after(3 * DEADLINE):
        with XScreen.open(display) as screen, picture_for(screen, attach) as target:
            pixels = target[0].view(np.uint32)[..., 0]
            mirror = np.zeros_like(pixels)
            colours = set()
            for _ in range(200):
                await screen.wait()
                for top, left, bottom, right in await screen.snapshot(lambda rects: target):
                    mirror[top:bottom, left:right] = pixels[top:bottom, left:right]
                ground = int(pixels[0, 0])
                corner = pixels[200:230, 300:340]
                assert (corner == corner[0, 0]).all()
                assert int(corner[0, 0]) & 0xFFFFFF in (ground, ground ^ 0xFFFFFF)
                colours.add(ground)
                assert np.array_equal(mirror, pixels)
                corner[:] = ground
                assert (pixels == ground).all()
                corner[:] = mirror[200:230, 300:340]
        assert len(colours) > 20


# what can go wrong


async def test_server_dies_while_we_wait() -> None:
    with xvfb(320, 200, 24) as display, XScreen.open(display) as screen:
        await settle(screen)

        async def waiter() -> None:
            with pytest.raises(XError, match=f"^X display {display} closed the connection$"):
                await screen.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter)
            await trio.testing.wait_all_tasks_blocked()
            display.process.kill()


async def test_server_dies_during_a_snapshot() -> None:
    with xvfb(320, 200, 24) as display, XScreen.open(display) as screen:

        def begin(rects: list[Rect]) -> Target:
            display.process.kill()
            display.process.wait()
            return np.zeros((200, 320, 4), np.uint8), None, 0

        with pytest.raises(XError, match="closed the connection"):
            await screen.snapshot(begin)
        for ask in (lambda: screen.damaged, lambda: screen.resized, screen.resize, screen.grab):
            with pytest.raises(XError, match="closed the connection"):
                ask()
        for again in (screen.wait, screen.take_damage, lambda: screen.snapshot(begin)):
            with pytest.raises(XError, match="closed the connection"):
                await again()
        with pytest.raises(XError, match="closed the connection"):
            screen.attach(0, 4096)
        screen.detach(1)
        screen.ungrab()


def test_server_dies_before_memory_is_attached() -> None:
    with xvfb(320, 200, 24) as display, XScreen.open(display) as screen:
        display.process.kill()
        display.process.wait()
        before = descriptors()
        with pytest.raises(XError, match="closed the connection"), picture_for(screen):
            pass
        assert descriptors() == before


async def test_closing_ends_what_waits() -> None:
    with xvfb(320, 200, 24) as display:
        screen = XScreen.open(display)
        await settle(screen)

        async def waiter() -> None:
            with pytest.raises(XError, match=f"^X display {display} was closed$"):
                await screen.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter)
            await trio.testing.wait_all_tasks_blocked()
            assert screen.fileno() >= 0
            screen.close()
        assert screen.fileno() == -1
        screen.close()
        with pytest.raises(XError, match="was closed"):
            await screen.take_damage()


async def test_the_loop_runs_while_the_server_does_not_answer() -> None:
    """Another client stops the server for all others: our tasks must not notice."""
    with xvfb(320, 200, 24) as display, XScreen.open(display) as screen, pen_on(display) as pen:
        with picture_for(screen) as target:
            pen.core.GrabServer()
            pen.sync()
            done: list[list[Rect]] = []

            async def snapshot() -> None:
                done.append(await screen.snapshot(lambda rects: target))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(snapshot)
                await trio.testing.wait_all_tasks_blocked()
                assert not done
                pen.core.UngrabServer()
                pen.connection.flush()
            assert done == [[(0, 0, 200, 320)]]


async def test_cancelled_while_damage_is_taken() -> None:
    """Damage that was taken from the server but not delivered is in the next snapshot."""
    with xvfb(320, 200, 24) as display, XScreen.open(display) as screen, pen_on(display) as pen:
        await settle(screen)
        pen.draw((1, 2, 3, 4), 5)
        pen.core.GrabServer()
        pen.sync()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(screen.take_damage)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        pen.core.UngrabServer()
        pen.sync()
        assert is_damaged(screen)
        assert await screen.take_damage() == [(1, 2, 3, 4)]
        assert not is_damaged(screen)


@pytest.mark.parametrize("attach", [True, False])
async def test_cancelled_while_rows_are_fetched(attach: bool) -> None:
    """A server that may still write our memory is waited for; one that only sends is not."""
    with xvfb(320, 200, 24) as display, XScreen.open(display) as screen, pen_on(display) as pen:
        with picture_for(screen, attach) as target:

            def begin(rects: list[Rect]) -> Target:
                pen.core.GrabServer()
                pen.sync()
                begun.set()
                return target

            pen.draw((0, 0, 200, 320), 0x777777)
            begun, over = trio.Event(), trio.Event()

            async def snapshot(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
                with trio.CancelScope() as scope:
                    task_status.started(scope)
                    await screen.snapshot(begin)
                assert scope.cancelled_caught
                over.set()

            async with trio.open_nursery() as nursery:
                scope = await nursery.start(snapshot)
                await begun.wait()
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                await trio.testing.wait_all_tasks_blocked()
                assert over.is_set() is not attach
                pen.core.UngrabServer()
                pen.sync()
            assert ((target[0][..., :3] == 0x77).all()) == attach
            assert is_damaged(screen)
            assert await screen.snapshot(lambda rects: target) == [(0, 0, 200, 320)]
            assert (target[0][..., :3] == 0x77).all()


async def test_cancelled_and_the_server_never_answers(
    mock_clock: trio.testing.MockClock,
) -> None:
    with xvfb(320, 200, 24) as display, XScreen.open(display) as screen, pen_on(display) as pen:
        with picture_for(screen) as target:

            def begin(rects: list[Rect]) -> Target:
                pen.core.GrabServer()
                pen.sync()
                mock_clock.autojump_threshold = 0  # nothing will come now: let the time run
                return target

            with trio.move_on_after(10) as scope:
                await screen.snapshot(begin)
            assert scope.cancelled_caught
            with pytest.raises(XError, match=f"did not answer within {xscreen.GRACE} s"):
                await screen.take_damage()


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_the_server_is_always_let_go(how: str) -> None:
    class Interrupted(Counted):
        async def _collect(self) -> list[Rect]:
            if self.grabs and how == "cancelled":
                scope.cancel()
                await trio.lowlevel.checkpoint()
            return await super()._collect()

        def _drawn_before(self, images: Any) -> bool:
            return True

    with xvfb(320, 200, 24) as display, Interrupted.open(display) as screen:
        assert isinstance(screen, Interrupted)
        begun = 0

        def begin(rects: list[Rect]) -> Target:
            nonlocal begun
            begun += 1
            if screen.grabs:
                raise LookupError("no memory")
            pen.draw((begun, 0, begun + 1, 1), begun)
            return np.zeros((200, 320, 4), np.uint8), None, 0

        with pen_on(display) as pen:
            await settle(screen)
            pen.draw((0, 0, 1, 1), 0)
            with contextlib.suppress(LookupError), trio.CancelScope() as scope:
                await screen.snapshot(begin)
            assert screen.grabs == 1
            assert begun == (4 if how == "failed" else 3)
            with trio.fail_after(DEADLINE):
                await trio.to_thread.run_sync(pen.sync, abandon_on_cancel=True)


async def test_a_thread_that_attaches_takes_no_answer_away() -> None:
    """A thread that waits in libxcb reads what a task waits for too; that task must be woken."""
    with xvfb(320, 200, 24) as display, XScreen.open(display) as screen, pen_on(display) as pen:
        pen.core.GrabServer()
        pen.sync()

        def attach_one() -> None:
            with picture_for(screen) as target:
                assert target[1] is not None

        thread = threading.Thread(target=attach_one, daemon=True)
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(screen.take_damage)
                await trio.testing.wait_all_tasks_blocked()
                thread.start()
                until(lambda: screen._users == 1, "the thread to attach")
                # All answers come now, and the loop stands still until the thread has read them.
                pen.core.UngrabServer()
                pen.sync()
                thread.join(DEADLINE)
        assert not thread.is_alive()


async def test_attaching_all_the_time() -> None:
    with xvfb(320, 200, 24) as display, XScreen.open(display) as screen, pen_on(display) as pen:
        stop = threading.Event()
        counts: list[int] = []

        def attach_all_the_time() -> None:
            count = 0
            while not stop.is_set():
                with picture_for(screen) as target:
                    assert target[1] is not None
                    count += 1
            counts.append(count)

        with picture_for(screen) as target, trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(trio.to_thread.run_sync, attach_all_the_time)
                try:
                    for count in range(300):
                        pen.fill((0, 0, 200, 320), count)
                        await screen.wait()
                        await screen.snapshot(lambda rects: target)
                finally:
                    stop.set()
        assert min(counts) > 5


async def test_a_thread_that_attaches_holds_nobody_up() -> None:
    """The server does not answer it: other segments can be detached all the same, and closing
    lets it go."""
    with xvfb(320, 200, 24) as display, pen_on(display) as pen:
        screen = XScreen.open(display)

        def attach_one() -> None:
            with pytest.raises(XError, match="was closed"), picture_for(screen):
                pass

        with picture_for(screen) as target, trio.fail_after(DEADLINE):
            pen.core.GrabServer()
            pen.sync()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, attach_one)
                while screen._users == 0:
                    await trio.lowlevel.checkpoint()
                assert target[1] is not None
                screen.detach(target[1])
                screen.close()


# size


def set_size(display: str, width: int, height: int) -> None:
    """Change the root window's size. xrandr complains: Xvfb's one output has one size only."""
    command = ["xrandr", "--fb", f"{width}x{height}"]
    subprocess.run(command, env=environment(display), stderr=subprocess.DEVNULL, check=False)


@pytest.mark.parametrize(("depth", "attach"), [(24, True), (24, False), (16, False)])
async def test_size_changes(depth: int, attach: bool) -> None:
    with xvfb(1024, 768, depth) as display, XScreen.open(display) as screen, pen_on(display) as pen:
        await settle(screen)
        for size in ((801, 600), (1024, 768)):
            with picture_for(screen, attach) as target:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(screen.wait)
                    await trio.testing.wait_all_tasks_blocked()
                    set_size(display, *size)
                assert screen.resized is True
                was = (screen.width, screen.height)
                text = "changed from {}x{} to {}x{}".format(*was, *size)
                for _ in range(2):
                    with pytest.raises(XResized, match=text):
                        await screen.fetch([(0, screen.height)], *target)
                assert (screen.width, screen.height) == was
            assert screen.resize() == size == (screen.width, screen.height)
            assert is_damaged(screen)
            pen.draw((0, 0, 5, size[0]), 0x3456)
            with picture_for(screen, attach) as target:
                rects = await screen.snapshot(lambda rects: target)
                assert rects == [(0, 0, size[1], size[0])]
                assert np.array_equal(target[0][..., :3], as_bgr(*xwd(display)))


async def test_screen_outgrows_what_it_began_with() -> None:
    with xvfb(1024, 768, 16) as display:
        set_size(display, 333, 200)
        with XScreen.open(display) as screen, pen_on(display) as pen:
            assert (screen.width, screen.height) == (333, 200)
            set_size(display, 1024, 768)
            until(lambda: screen.resized, "the new size")
            screen.resize()
            pen.draw((600, 0, 768, 1024), 0xF81F)
            out = np.zeros((768, 1024, 4), np.uint8)
            assert await screen.snapshot(lambda rects: (out, None, 0)) == [(0, 0, 768, 1024)]
            assert np.array_equal(out[..., :3], as_bgr(*xwd(display)))


async def test_taking_over_the_size_damages_everything() -> None:
    with xvfb(320, 200, 24) as display, XScreen.open(display) as screen, pen_on(display) as pen:
        await settle(screen)
        pen.draw((1, 2, 3, 4), 5)
        assert await screen.take_damage() == [(1, 2, 3, 4)]
        assert screen.resize() == (320, 200)
        assert is_damaged(screen)
        assert await screen.take_damage() == [(0, 0, 200, 320)]
        assert await screen.take_damage() == []


async def test_size_changes_during_a_snapshot() -> None:
    with xvfb(1024, 768, 24) as display, XScreen.open(display) as screen:
        with picture_for(screen) as target:

            def begin(rects: list[Rect]) -> Target:
                set_size(display, 640, 480)
                return target

            with pytest.raises(XResized, match="from 1024x768 to 640x480"):
                await screen.snapshot(begin)
        assert screen.resize() == (640, 480)
        with picture_for(screen) as target:
            assert await screen.snapshot(lambda rects: target) == [(0, 0, 480, 640)]


# opening and closing


@pytest.mark.parametrize(("depth", "attach"), [(24, True), (24, False), (16, False)])
async def test_no_descriptor_is_left(depth: int, attach: bool) -> None:
    with xvfb(320, 200, depth) as display:
        XScreen.open(display).close()  # libraries are loaded
        before = descriptors()
        for _ in range(3):
            with XScreen.open(display) as screen, picture_for(screen, attach) as target:
                await screen.fetch([(0, 200)], *target)
            del target  # a mapping made by Python holds a descriptor
        assert descriptors() == before


def refusal(display: str | None) -> str:
    """The one line with which a display is refused; no descriptor may be left."""
    before = descriptors()
    with pytest.raises(XError) as caught:
        XScreen.open(display)
    assert descriptors() == before
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_no_display_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    assert refusal(None) == "no X display: name one such as ':0', or set $DISPLAY"


def test_display_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with xvfb(64, 48, 24) as display:
        monkeypatch.setenv("DISPLAY", display)
        with XScreen.open(None) as screen:
            assert screen.name == display


def test_displays_that_are_none() -> None:
    with xvfb(64, 48, 24) as display:
        assert refusal(f"{display}.7").startswith(f"X display {display}.7 has no such screen")
    gone = f"X display {display} does not exist: no server listens at /tmp/.X11-unix/X{display[1:]}"
    assert refusal(display) == gone
    assert refusal("nonsense").startswith("'nonsense' is no X display; accepted are")
    assert "nobody answers there" in refusal("localhost:4999")


def test_not_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def field(data: bytes) -> bytes:
        return struct.pack(">H", len(data)) + data

    any_host, cookie = struct.pack(">H", 0xFFFF) + field(b"") + field(b""), os.urandom(16)
    keys = tmp_path / "keys"
    keys.write_bytes(any_host + field(b"MIT-MAGIC-COOKIE-1") + field(cookie))
    monkeypatch.setenv("XAUTHORITY", str(tmp_path / "none"))
    with xvfb(64, 48, 24, "-auth", str(keys)) as display:
        assert "does not let this user in; set XAUTHORITY" in refusal(display)
        with pytest.raises(XError, match="does not let this user in"):
            XScreen.open(display, os.urandom(16))
        XScreen.open(display, cookie).close()
        monkeypatch.setenv("XAUTHORITY", str(keys))
        XScreen.open(display).close()


@pytest.mark.parametrize("depth", [8, 15, 30])
def test_other_depths_are_refused(depth: int) -> None:
    with xvfb(64, 48, depth) as display:
        text = refusal(display)
    assert f"X display {display} has depth {depth} with" in text
    assert "accepted are depth 24 with 32 bits a pixel (BGRX) and depth 16 (RGB565)" in text


@pytest.mark.parametrize("extension", ["DAMAGE", "XFIXES"])
def test_extensions_that_must_be_there(extension: str) -> None:
    with xvfb(64, 48, 24, "-extension", extension) as display:
        assert refusal(display) == f"X display {display} lacks the extension {extension}"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ImportError("no"), "X displays need xcffib: pip install 'spiceshm[x11]'"),
        (OSError("libxcb.so: cannot open"), "X displays need the library libxcb (Debian: libxcb1)"),
    ],
)
def test_what_must_be_installed(
    error: Exception, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise error

    monkeypatch.setattr("importlib.import_module", missing)
    xcb.load.cache_clear()
    try:
        assert refusal(":0").startswith(text)
    finally:
        xcb.load.cache_clear()
