"""Random walks of programs that look, at a server that draws: tests/test_looking_walk.py.

Every draw writes its number into the pixels that it names, so the highest number in a picture tells
which picture it must be, whole. `World` knows the pictures and judges what programs are given;
`Walker` is a program: it looks in all ways there are, keeps, drops, waits and gives up at random.
Run as a program, this module is a server that draws for ever.

(Not a test module: pytest would make each assertion in it twice as slow.)
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import trio
import trio.lowlevel

import spiceshm

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from numpy.typing import NDArray

    from spiceshm.region import Rect

SIZES = [(48, 32), (20, 40), (64, 8)]
KNOWN = 4000
"""Pictures that are remembered."""
PAUSES = [0.0] * 4 + [0.001] * 3 + [0.015] * 2 + [0.12]
STEP_S = 10.0
"""No step takes so long, whatever else the machine does."""
FRESH_S = 0.02
"""A frame that is younger may be passed over by `latest`."""
HEARD_S = 0.15
"""After so long a frame has come to a client that could be sent it."""


class Drawn(NamedTuple):
    """One draw: when (time.monotonic), what, and the serial that it was given."""

    at: float
    rects: list[Rect]
    serial: int


def numbers(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The draw that wrote each pixel."""
    return np.ascontiguousarray(pixels).view(np.uint32)[:, :, 0] & 0xFFFFFF


class Pictures:
    """What is drawn, the same for the same seed: sizes, rectangles, numbers."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self.picture = np.zeros((0, 0), np.uint32)
        self.number = 0
        self.resize()

    def resize(self) -> tuple[int, int]:
        width, height = self._random.choice(SIZES)
        self.picture = np.zeros((height, width), np.uint32)
        return width, height

    def next(self) -> list[Rect]:
        """The next draw, made in ``picture``."""
        self.number += 1
        rects = [self.rect(self._random) for _ in range(self._random.choice([1, 1, 1, 2, 5]))]
        self.picture = self.picture.copy()
        for top, left, bottom, right in rects:
            self.picture[top:bottom, left:right] = self.number
        return rects

    def rect(self, rng: random.Random) -> Rect:
        height, width = self.picture.shape
        if rng.random() < 0.1:
            return 0, 0, height, width
        top, left = rng.randrange(height), rng.randrange(width)
        return top, left, min(height, top + rng.randint(1, 6)), min(width, left + rng.randint(1, 9))


def draw(surface: spiceshm.Surface, pictures: Pictures) -> list[Rect]:
    """Draw the next picture, in place or by a copy."""
    rects = pictures.next()
    pixels = pictures.picture.view(np.uint8).reshape(*pictures.picture.shape, 4)
    if pictures.number % 2:
        surface.draw(pixels, rects)
    else:
        with surface.frame(rects) as frame:
            for top, left, bottom, right in rects:
                frame.pixels[top:bottom, left:right] = pixels[top:bottom, left:right]
    return rects


def touches(rects: list[Rect], box: Rect | None) -> bool:
    if box is None:
        return True
    top, left, bottom, right = box
    return any(t < bottom and b > top and x < right and r > left for t, x, b, r in rects)


@dataclass
class Held:
    """Something that a program keeps, and what it must go on to show."""

    what: spiceshm.Frame | NDArray[np.uint8]
    right: NDArray[np.uint32]

    def check(self) -> None:
        pixels = self.what.pixels if isinstance(self.what, spiceshm.Frame) else self.what
        assert np.array_equal(numbers(pixels), self.right), "what is held has changed"


@dataclass
class World:
    """What was drawn, and what has been given of it to all programs of one client together."""

    shared: bool
    pictures: Callable[[int], NDArray[np.uint32]]
    """By number."""
    newest: int = -1
    """The highest serial that was given."""
    last: spiceshm.Frame | None = None
    last_picture: NDArray[np.uint32] | None = None
    given: int = 0
    views: list[Held] = field(default_factory=list)

    def gave(self, frame: spiceshm.Frame, newest_before: int) -> NDArray[np.uint32]:
        """A call that was made when ``newest_before`` was the highest serial has given that."""
        picture = numbers(frame.pixels)
        assert frame.serial >= newest_before, "an older frame came after a newer one"
        if self.shared:
            right = self.pictures(int(picture.max()))
            assert np.array_equal(picture, right), f"{frame} is no picture that ever was"
        if frame is self.last:
            return picture
        self.given += 1
        before, self.last, self.last_picture = self.last_picture, frame, picture
        self.newest = max(self.newest, frame.serial)
        assert frame.rects.shape[1:] == (4,)
        if frame.full or before is None:
            return picture
        assert before.shape == picture.shape, "another size that was not said"
        differs = picture != before
        for top, left, bottom, right_ in frame.rects.tolist():
            differs[top:bottom, left:right_] = False
        assert not differs.any(), f"{frame} differs where it does not say so"
        if self.shared:
            return picture
        assert (picture >= before).all(), "an older pixel came after a newer one"
        return picture


class Walker:
    """A program that looks at a display at random, for some time."""

    def __init__(
        self, remote: spiceshm.RemoteDisplay, world: World, rng: random.Random, credits: int
    ) -> None:
        self.remote = remote
        self.world = world
        self.rng = rng
        self.credits = credits
        self.steps = 0
        self.held: list[Held] = []
        self.loops = [remote.frames(), remote.frames()]
        self.looped: dict[int, Held] = {}

    async def walk(self, until: float) -> None:
        while time.monotonic() < until:
            step = self.rng.choice(
                [self.latest] * 4 + [self.loop] * 6 + [self.change] * 4
                + [self.stable, self.pause, self.pause, self.keep, self.keep, self.drop]
                + [self.drop_views, self.drop_views]
            )  # fmt: skip
            await self.do(step)
            self.steps += 1

    async def do(self, step: Callable[[], Awaitable[None]]) -> None:
        """One step, which may be given up at any moment; then all that is held is looked at."""
        patience = self.rng.choice([None, None, None, 0.0, 0.0005, 0.004, 0.03])
        try:
            with trio.fail_after(STEP_S):
                if patience is None:
                    await step()
                else:
                    with trio.move_on_after(patience):
                        await step()
        except trio.TooSlowError:
            raise AssertionError(f"{step.__name__} never came back") from None
        self.check()

    def check(self) -> None:
        for held in [*self.held, *self.looped.values(), *self.world.views]:
            held.check()

    async def pause(self) -> None:
        await trio.sleep(self.rng.choice(PAUSES))

    async def latest(self) -> None:
        before = self.world.newest
        try:
            frame = await self.remote.latest()
        except spiceshm.FramesHeld:
            self.only_by_views()
            return
        self.have(frame, before)

    async def loop(self) -> None:
        which = self.rng.randrange(2)
        self.looped.pop(which, None)
        before = self.world.newest
        with trio.move_on_after(0.1):
            frame = await anext(self.loops[which])
            self.looped[which] = Held(frame, self.world.gave(frame, before))

    async def change(self) -> None:
        before = self.world.newest
        with contextlib.suppress(spiceshm.Timeout, spiceshm.FramesHeld):
            self.have(await self.remote.wait_change(self.region(), timeout=0.2), before)

    async def stable(self) -> None:
        before = self.world.newest
        with contextlib.suppress(spiceshm.Timeout, spiceshm.FramesHeld):
            self.have(await self.remote.wait_stable(0.03, self.region(), timeout=0.2), before)

    def region(self) -> Rect | None:
        if self.rng.random() < 0.3:
            return None
        height, width = self.remote.height, self.remote.width
        top, left = self.rng.randrange(height), self.rng.randrange(width)
        bottom, right = self.rng.randint(top + 1, height), self.rng.randint(left + 1, width)
        return top, left, bottom, right

    def have(self, frame: spiceshm.Frame, before: int) -> None:
        picture = self.world.gave(frame, before)
        if self.rng.random() < 0.7:
            self.held.append(Held(frame, picture))
            del self.held[:-8]

    async def keep(self) -> None:
        """A view of something, which holds what the server has lent."""
        among = [*self.held, *self.looped.values()]
        if among and len(self.world.views) < self.credits:
            held = self.rng.choice(among)
            assert isinstance(held.what, spiceshm.Frame)
            view = held.what.pixels[1:, 2:] if self.rng.random() < 0.5 else held.what.pixels
            right = held.right[1:, 2:] if view.shape != held.what.pixels.shape else held.right
            self.world.views.append(Held(view, right))

    async def drop(self) -> None:
        del self.held[: self.rng.randrange(9)]

    async def drop_views(self) -> None:
        del self.world.views[: self.rng.randrange(1, 9)]

    def only_by_views(self) -> None:
        """Nothing but views may be said to be held."""
        views = self.world.views
        assert len(views) >= self.credits, f"{len(views)} views do not hold {self.credits} frames"
        views.clear()


class Server:
    """Draws at a display of this process, and remembers when it drew what."""

    def __init__(self, display: spiceshm.Display, rng: random.Random, seed: str) -> None:
        self.display = display
        self.rng = rng
        self.pictures = Pictures(seed)
        self.known: dict[int, NDArray[np.uint32]] = {}
        self.log: list[Drawn] = []
        self.modes = 0
        self.began = time.monotonic()
        self._disturbed = self.began
        self._resize()

    def _resize(self) -> None:
        self.surface = self.display.create_surface(*self.pictures.resize())
        self.draw()

    def draw(self) -> None:
        rects = draw(self.surface, self.pictures)
        self.known[self.pictures.number] = self.pictures.picture
        self.known.pop(self.pictures.number - KNOWN, None)
        self.log.append(Drawn(time.monotonic(), rects, self.surface.serial))
        del self.log[:-KNOWN]

    @property
    def calm_since(self) -> float:
        """When memory last came or went, or is about to: until it is accepted frames may wait."""
        pool = self.surface.pool
        everywhere = all(
            reader.segments.issuperset(pool.segments) for reader in pool.readers if reader.credits
        )
        if self.surface._growing or pool.starved or not everywhere:
            self._disturbed = time.monotonic()
        return self._disturbed

    async def walk(self, until: float) -> None:
        """Draw, change the mode, replace the memory, go in step, have another client."""
        async with trio.open_nursery() as nursery:
            while time.monotonic() < until:
                step = self.rng.random()
                if step < 0.004:
                    self._disturbed = time.monotonic()
                    self.modes += 1
                    self._resize()
                elif step < 0.008:
                    self._disturbed = time.monotonic()
                    await self.surface.forget()
                elif step < 0.015:
                    nursery.start_soon(self._another)
                elif step < 0.1:
                    self.draw()
                    with trio.move_on_after(0.1):
                        await self.surface.consumed(self.surface.serial)
                else:
                    for _ in range(self.rng.choice([1, 1, 2, 7])):
                        self.draw()
                await trio.sleep(self.rng.choice(PAUSES))
            nursery.cancel_scope.cancel()

    async def _another(self) -> None:
        self._disturbed = time.monotonic()
        try:
            credits = self.rng.randint(1, 8)
            address = str(self.display.addresses[0])
            async with spiceshm.connect(address, credits=credits) as other:
                for _ in range(self.rng.randrange(5)):
                    await other.latest()
                    await trio.sleep(self.rng.choice(PAUSES))
        finally:
            self._disturbed = time.monotonic()

    def drawn(self, serial: int, box: Rect | None, begin: float, end: float) -> list[Drawn]:
        """What was drawn in a box later than a frame, in a time."""
        return [
            one
            for one in self.log
            if one.serial > serial and begin <= one.at <= end and touches(one.rects, box)
        ]


class Judge(Walker):
    """A walker at a server of this process, which knows what it must be told, and when."""

    server: Server

    async def latest(self) -> None:
        began, before, calm = time.monotonic(), self.world.newest, self.server.calm_since
        try:
            frame = await self.remote.latest()
        except spiceshm.FramesHeld:
            self.only_by_views()
            return
        if self.world.shared and max(calm, self.server.calm_since) < began - HEARD_S:
            missed = self.server.drawn(frame.serial, None, began - 1, began - FRESH_S)
            assert not missed, f"{missed[-1].serial} was newer than {frame.serial}"
        self.have(frame, before)

    async def change(self) -> None:
        box = self.region()
        since = self.rng.choice(
            [None, self.world.newest, self.world.newest - self.rng.randrange(9)]
        )
        timeout = self.rng.choice([0, 0.02, 0.02, 0.3])
        before, modes = self.world.newest, self.server.modes
        serial = before if since is None else since
        held = len(self.world.views) >= self.credits  # then nothing may come
        began = time.monotonic()
        try:
            frame = await self.remote.wait_change(box, since=since, timeout=timeout)
        except spiceshm.FramesHeld:
            self.only_by_views()
            return
        except spiceshm.Timeout:
            held = held or len(self.world.views) >= self.credits
            if self.world.shared and not held and self.server.calm_since < began - HEARD_S:
                end = began + timeout - HEARD_S
                missed = self.server.drawn(serial, box, began - 1, end)
                assert not missed, f"missed {missed[0].serial}, later than {serial}"
            return
        if self.world.shared and modes == self.server.modes:
            kept = {known for known, _, _ in self.remote._channel.changes._kept}
            reason = self.server.drawn(serial, box, 0, time.monotonic())
            assert reason or serial not in kept, f"nothing in {box} changed after {serial}"
            assert frame.serial > serial
        self.have(frame, before)

    async def stable(self) -> None:
        box, quiet = self.region(), self.rng.choice([0, 0.03, 0.1])
        before, modes = self.world.newest, self.server.modes
        began = time.monotonic()
        try:
            frame = await self.remote.wait_stable(quiet, box, timeout=0.5)
        except spiceshm.FramesHeld:
            self.only_by_views()
            return
        except spiceshm.Timeout:
            return
        ended = time.monotonic()
        if self.world.shared and modes == self.server.modes:
            times = [began, *(d.at for d in self.server.drawn(-1, box, began, ended)), ended]
            gap = max(later - earlier for earlier, later in pairwise(times))
            assert gap > quiet - 0.03, f"it was still for {gap:.3f} s only, not {quiet}"
        self.have(frame, before)


class Replayed:
    """The pictures of a server in another process, by number."""

    def __init__(self, seed: str) -> None:
        self._pictures = Pictures(seed)
        self._known: dict[int, NDArray[np.uint32]] = {}

    def __call__(self, number: int) -> NDArray[np.uint32]:
        while self._pictures.number < number:
            if renewed(self._pictures):
                self._pictures.resize()
            self._pictures.next()
            self._known[self._pictures.number] = self._pictures.picture
            self._known.pop(self._pictures.number - KNOWN, None)
        return self._known[number]


def renewed(pictures: Pictures) -> bool:
    """Whether the next draw of a server in another process is on a surface of another size."""
    return pictures.number % 150 == 149


async def draw_for_ever(address: str, seed: str) -> None:
    """A server that draws as `Replayed` says, and at random moments."""
    pictures, rng = Pictures(seed), random.Random(seed + "times")
    async with spiceshm.serve(address) as display:
        surface = display.create_surface(*reversed(pictures.picture.shape))
        draw(surface, pictures)
        print("listening", flush=True)
        while True:
            if renewed(pictures):
                surface = display.create_surface(*pictures.resize())
            draw(surface, pictures)
            if rng.random() < 0.1:
                with trio.move_on_after(0.1):
                    await surface.consumed(surface.serial)
            elif rng.random() < 0.7:
                await trio.sleep(rng.choice(PAUSES))
            await trio.lowlevel.checkpoint()


if __name__ == "__main__":
    trio.run(draw_for_ever, sys.argv[1], sys.argv[2])
