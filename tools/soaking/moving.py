"""A server that draws what moves, and a reader beside it, each a process that times itself.

Of the server ``("take",)`` asks what its drawing has cost since the last time, ``("holds",)`` what
it holds for whom, and ``("draw", True)`` or False lets it draw or not: the answer to that is the
picture as it is now. Of the reader ``("take",)`` asks what it has got.
"""

from __future__ import annotations

import gc
import itertools
import logging
import resource
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import trio

import spiceshm
from spiceshm.events import CursorShape
from spiceshm.transport import Stream

from .process import descriptors, mappings, threads
from .writer import Log, resting_threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

    from .picture import Rect

WIDTH, HEIGHT = 1920, 1080
FPS = 60
BURST_EVERY, BURST = 40, 15
"""After so many frames of the window that moves, so many of the whole picture: as fast as somebody
takes them."""

_WINDOW = 360, 480
_GROUNDS = 3
_TOP, _MARK = 8, 16
_POINTER = 24


class Moving:
    """What is drawn: a window of what is like video, over grounds like text that are exchanged.

    Above them something small changes here and there, so that what a viewer misses is many parts.
    ``pixels`` is the picture, (height, width, 4) of uint8. The beginning of its first line never
    changes, so that the picture can be found on a screen.
    """

    def __init__(self, seed: str) -> None:
        rng = np.random.default_rng(list(seed.encode()))
        self._grounds = [_ground(rng) for _ in range(_GROUNDS)]
        self._video = rng.integers(0, 256, (2 * _WINDOW[0], _WINDOW[1], 4), np.uint8)
        self._steps = itertools.count()
        self._at = _TOP, 0
        self.pixels = self._grounds[0].copy()
        self.pixels[:_TOP] = rng.integers(0, 256, (_TOP, WIDTH, 4))

    def step(self) -> list[Rect]:
        """The window moves, and something else changes; returns what did."""
        before = top, left, bottom, right = self._here
        self.pixels[top:bottom, left:right] = self._grounds[0][top:bottom, left:right]
        step = self._put()
        left = _MARK * (2 + 2 * step % (WIDTH // _MARK - 2))
        self.pixels[:_TOP, left : left + _MARK, :3] ^= 255
        return [before, self._here, (0, left, _TOP, left + _MARK)]

    def exchange(self) -> list[Rect]:
        """All but the top is another picture; returns what changed."""
        self._grounds.append(self._grounds.pop(0))
        self.pixels[_TOP:] = self._grounds[0][_TOP:]
        self._put()
        return [(_TOP, 0, HEIGHT, WIDTH)]

    @property
    def _here(self) -> Rect:
        (top, left), (height, width) = self._at, _WINDOW
        return top, left, top + height, left + width

    def _put(self) -> int:
        step, (height, width) = next(self._steps), _WINDOW
        self._at = (
            _to_and_fro(8, HEIGHT - height, 3 * step),
            _to_and_fro(0, WIDTH - width, 7 * step),
        )
        top, left, bottom, right = self._here
        self.pixels[top:bottom, left:right] = self._video[step % height :][:height]
        return step


def _ground(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A page of letters."""
    letters = np.where(rng.random((64, 20, 10)) < 0.2, np.uint32(0x202020), np.uint32(0xF0F0E8))
    page = letters[rng.integers(0, len(letters), (HEIGHT // 20, WIDTH // 10))]
    words = np.ascontiguousarray(page.transpose(0, 2, 1, 3)).reshape(HEIGHT, WIDTH)
    return words.view(np.uint8).reshape(HEIGHT, WIDTH, 4)


def _to_and_fro(first: int, last: int, way: int) -> int:
    length = last - first
    return last - abs(way % (2 * length) - length)


class Times:
    """What drawing has cost: of each frame the time from begin to publish, of that the processor's,
    and how often it waited: for Python's lock, that is, which an encoder may have.

    The rest of the time others had the processor, or the machine that this machine runs on.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int]] = []

    def measure(self, draw: Callable[[], object]) -> None:
        waits = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        cpu, start = time.thread_time_ns(), time.monotonic_ns()
        draw()
        took, cpu = time.monotonic_ns() - start, time.thread_time_ns() - cpu
        waits = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - waits
        self._rows.append((took, cpu, waits))

    def take(self) -> NDArray[np.int64]:
        """(frames, 3): ns, ns and a number."""
        rows, self._rows = self._rows, []
        return np.array(rows, np.int64).reshape(-1, 3)


class Server:
    """The surface and who draws on it."""

    def __init__(self, display: spiceshm.Display, seed: str) -> None:
        self.display = display
        self.log = Log()
        logging.getLogger("spiceshm").addHandler(self.log)
        self._picture = Moving(seed)
        self._surface = display.create_surface(WIDTH, HEIGHT)
        self._surface.draw(self._picture.pixels)
        self._parts, self._wholes = Times(), Times()
        self._since = time.monotonic()
        self._bursts, self._burst_s = 0, 0.0
        self._cpu = _cpu_s()
        self._draws = trio.Event()
        self._shapes = itertools.count()

    async def run(self) -> None:
        """Draw for ever, whenever it is to."""
        pace = self._surface.pace(FPS)
        for step in itertools.count(1):
            await anext(pace)
            await self._allowed()
            self._draw(self._parts, self._picture.step())
            self.display.move_cursor(7 * step % WIDTH, 5 * step % HEIGHT)
            if step % BURST_EVERY == 0:
                self.display.set_cursor(_pointer(next(self._shapes)))
                await self._burst()

    async def _burst(self) -> None:
        start = time.monotonic()
        for _ in range(BURST):
            await self._surface.wanted()
            await self._allowed()
            self._draw(self._wholes, self._picture.exchange())
        self._burst_s += time.monotonic() - start
        self._bursts += 1

    async def _allowed(self) -> None:
        while not self._draws.is_set():
            await self._draws.wait()

    def _draw(self, times: Times, damage: list[Rect]) -> None:
        times.measure(lambda: self._surface.draw(self._picture.pixels, damage))

    def draw(self, on: bool) -> NDArray[np.uint8]:
        if on:
            self._draws.set()
        elif self._draws.is_set():
            self._draws = trio.Event()
        return self._picture.pixels

    def take(self) -> dict[str, Any]:
        now, cpu = time.monotonic(), _cpu_s()
        taken = {
            "parts": self._parts.take(),
            "wholes": self._wholes.take(),
            "seconds": now - self._since,
            "burst_s": self._burst_s,
            "cpu_s": cpu - self._cpu,
            "viewers": [
                {"updates": viewer.stats.frames, "images": viewer.stats.images}
                for viewer in self.display.viewers
                if not viewer.shared
            ],
        }
        self._since, self._cpu, self._bursts, self._burst_s = now, cpu, 0, 0.0
        return taken

    def bursts(self) -> int:
        """Since the last time that somebody took the figures."""
        return self._bursts

    def holds(self) -> dict[str, Any]:
        """What it holds, and of that what waits for clients that do not read."""
        gc.collect()
        streams = [thing for thing in gc.get_objects() if isinstance(thing, Stream)]
        displays = {viewer._stream for viewer in self.display.viewers}
        return {
            "viewers": len(self.display.viewers),
            "connections": sum(not stream.closed for stream in streams),
            "shm_bytes": self.display.shm_bytes,
            "descriptors": sum(descriptors("self").values()),
            "mappings": mappings("self"),
            "threads": threads("self") - resting_threads(),
            "waiting": {
                "display": [_waiting(stream) for stream in streams if stream in displays],
                "others": [_waiting(stream) for stream in streams if stream not in displays],
            },
            "unacknowledged_of_cursor": [
                channel._machine.acks.sent - channel._machine.acks.delivered
                for channel in self.display._pointer._channels
            ],
            "warnings": self.log.others,
        }


def _waiting(stream: Stream) -> int:
    """Bytes that the kernel has not taken yet."""
    return sum(len(data) for data, _ in stream._unsent)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _pointer(number: int) -> CursorShape:
    pixels = np.full((_POINTER, _POINTER, 4), number % 256, np.uint8)
    pixels[:, :, 3] = 255
    return CursorShape(pixels, 0, 0)


def serve(link: Connection, addresses: tuple[str, ...], seed: str) -> str:
    """The server's process; it says ``("ready", URIs)``, and ends as it is told to."""
    return trio.run(_serve, link, addresses, seed)


async def _serve(link: Connection, addresses: tuple[str, ...], seed: str) -> str:
    async with spiceshm.serve(*addresses) as display, trio.open_nursery() as nursery:
        server = Server(display, seed)
        nursery.start_soon(server.run)
        link.send(("ready", [place.uri for place in display.addresses]))
        await _obey(link, server)
        nursery.cancel_scope.cancel()
    return "told"


class Reader:
    """Gets frames, and of each copies what is new, as fast as they come."""

    def __init__(self) -> None:
        self._mirror = np.zeros((HEIGHT, WIDTH), np.uint32)
        self._late_ns: list[int] = []
        self._wholes = 0
        self._since = time.monotonic()

    async def run(self, address: str) -> None:
        async with spiceshm.connect(address) as remote:
            async for frame in remote.frames():
                words = frame.pixels.view(np.uint32)[:, :, 0]
                for top, left, bottom, right in frame.rects.tolist():
                    self._mirror[top:bottom, left:right] = words[top:bottom, left:right]
                self._late_ns.append(time.monotonic_ns() - frame.published)
                self._wholes += [_TOP, 0, HEIGHT, WIDTH] in frame.rects.tolist()

    def take(self) -> dict[str, Any]:
        """How many frames in how many seconds, how many of them all new, and how long each took
        from being published."""
        late, self._late_ns = self._late_ns, []
        wholes, self._wholes = self._wholes, 0
        now = time.monotonic()
        since, self._since = self._since, now
        return {"late": np.array(late, np.int64), "wholes": wholes, "seconds": now - since}

    def shows(self) -> NDArray[np.uint32]:
        """The picture as it was put together from damage alone, (height, width)."""
        return self._mirror


def read(link: Connection, address: str) -> str:
    """The reader's process."""
    return trio.run(_read, link, address)


async def _read(link: Connection, address: str) -> str:
    reader = Reader()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run, address)
        await _obey(link, reader)
        nursery.cancel_scope.cancel()
    return "told"


async def _obey(link: Connection, who: Server | Reader) -> None:
    """Answer what is asked, until it is told to end or nobody is left to tell it."""
    while True:
        await trio.lowlevel.wait_readable(link.fileno())
        try:
            word, *rest = link.recv()
        except EOFError:
            return
        if word == "end":
            return
        link.send((word, getattr(who, word)(*rest)))
