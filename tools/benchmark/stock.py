"""Stock SPICE servers as programs see them: how soon there is a picture, how often a new one.

The same for each: a screen of 1920x1080, in QEMU or in Xspice. First nothing is drawn, and the
reader gets the picture again and again, each time with a new connection. Then a line of text is
drawn again and again, then all of the screen, and the reader takes what it is given: it counts
those pictures in which the beginning of that line is another than in the one before, so that a
picture that was read twice counts once. What is counted is always in a numpy array.
"""

from __future__ import annotations

import asyncio
import functools
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import trio

import spiceshm

from .contents import Painter, painter
from .guest import Monitor, guest
from .process import Failed, workers
from .work import HD
from .xservers import missing, served, uri, xspice

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

    from .stats import Measures

    Picture: TypeAlias = NDArray[np.uint8]

Peer: TypeAlias = Literal[
    "qemu-unix",
    "qemu-tcp",
    "qemu-client",
    "qemu-spicy",
    "qemu-screendump",
    "qemu-relay",
    "xspice-raw",
    "xspice-lz4",
    "xspice-client",
    "xspice-spicy",
    "xspice-vnc",
    "xspice-mss",
]
"""The server, and who looks: unix, tcp, raw, lz4 are programs of ours, and client our command.

Through relay a program of ours shares memory with a spiceshm-server whose source is the machine.
"""

PEERS: tuple[Peer, ...] = get_args(Peer)
CHANGES = ("line", "page")

_LEAST = 3
"""So often the first picture is got at least."""

_PROBE = (slice(0, 13), slice(0, 36))
"""The beginning of the line, which no two pictures have the same; all of it is 960 pixels long."""

_FIRST = 2
"""Pictures that are not counted."""


def lacks(peer: Peer) -> str | None:
    """How to install what a peer needs, where it is not."""
    server, _, who = peer.partition("-")
    programs = {"qemu": ["qemu-system-x86_64"], "xspice": ["Xspice"]}[server]
    programs += {"spicy": ["spicy-screenshot"], "vnc": ["x11vnc"]}.get(who, [])
    modules = ["xcffib"] * (server == "xspice")
    modules += {"vnc": ["asyncvnc"], "mss": ["mss"], "tcp": ["lz4"], "lz4": ["lz4"]}.get(who, [])
    return missing(programs, modules)


def _changes(peer: Peer) -> tuple[str, ...]:
    """A command of ours is looked with once; programs have the library."""
    return () if peer.endswith("client") else CHANGES


# Who looks: each has a way to get one picture, and one to get all that come


class _Ours:
    """A program that uses this library."""

    def __init__(self, address: str, **options: Any) -> None:
        self._connect = functools.partial(spiceshm.connect, address, **options)

    async def first(self) -> Picture:
        async with self._connect() as display:
            return (await display.latest()).pixels

    async def all(self) -> AsyncGenerator[Picture, None]:
        async with self._connect() as display:
            async for frame in display.frames():
                yield frame.pixels


class _Polled:
    """Who gets every picture as the first one. ``get`` is called for it."""

    def __init__(self, get: Callable[[], Picture]) -> None:
        self._get = get

    async def first(self) -> Picture:
        return self._get()

    async def all(self) -> AsyncGenerator[Picture, None]:
        while True:
            yield self._get()


class _Screendump:
    """The monitor's command, over one connection; a PPM file that is read."""

    def __init__(self, qmp: str, directory: str) -> None:
        self._qmp = Path(qmp)
        self._file = f"{directory}/dump.ppm"

    def _get(self, monitor: Monitor) -> Picture:
        monitor.do("screendump", filename=self._file)
        return _ppm(self._file)

    async def first(self) -> Picture:
        monitor = Monitor(self._qmp)
        try:
            return self._get(monitor)
        finally:
            monitor.close()

    async def all(self) -> AsyncGenerator[Picture, None]:
        monitor = Monitor(self._qmp)
        while True:
            yield self._get(monitor)


class _Vnc:
    """asyncvnc, which runs on asyncio."""

    def __init__(self, port: str) -> None:
        self._port = int(port)

    async def first(self) -> Picture:
        async with aclosing(self.all()) as pictures:
            return await anext(pictures)

    async def all(self) -> AsyncGenerator[Picture, None]:
        import asyncvnc  # type: ignore[import-untyped]

        async with asyncvnc.connect("127.0.0.1", self._port) as client:
            while True:
                client.video.refresh()
                while await client.read() is not asyncvnc.UpdateType.VIDEO:
                    pass
                yield client.video.data


def _command(directory: str, *words: str) -> Callable[[], Picture]:
    """A program that writes the picture into a PPM file, whose name is its last word."""
    file = f"{directory}/shot.ppm"

    def get() -> Picture:
        subprocess.run(
            [*words, file], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return _ppm(file)

    return get


def _mss(display: str) -> Callable[[], Picture]:
    import mss

    screen = mss.MSS(display=display)

    def get() -> Picture:
        shot = screen.grab(screen.monitors[0])
        return np.frombuffer(shot.raw, np.uint8).reshape(shot.height, shot.width, 4)

    return get


def _ppm(file: str) -> Picture:
    """(height, width, 3) of a file that another program has written."""
    data = Path(file).read_bytes()
    kind, width, height, most = data.split(maxsplit=4)[:4]
    if (kind, most) != (b"P6", b"255"):
        raise Failed(f"{file} is no PPM")
    size = int(width) * int(height) * 3
    return np.frombuffer(data, np.uint8, size, len(data) - size).reshape(int(height), -1, 3)


def _reader(peer: Peer, place: str, directory: str) -> Any:
    who = peer.partition("-")[2]
    match who:
        case "unix" | "raw":
            return _Ours(place, compression="off")
        case "tcp" | "lz4":
            return _Ours(place, compression="lz4")
        case "relay":
            return _Ours(place, shm="require")
        case "client":
            ours = (sys.executable, "-m", "spiceshm.cli.client", place, "--screenshot")
            return _Polled(_command(directory, *ours))
        case "spicy":
            words = ("spicy-screenshot", f"--uri={uri(place)}", "--out-file")
            return _Polled(_command(directory, *words))
        case "screendump":
            return _Screendump(place, directory)
        case "vnc":
            return _Vnc(place)
    return _Polled(_mss(place))


async def _firsts(reader: Any, seconds: float) -> float:
    """The median of the seconds that it takes to get the first picture."""
    taken: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(taken) < _LEAST:
        begun = time.monotonic()
        picture = await reader.first()
        taken.append(time.monotonic() - begun)
        if picture.shape[:2] != (HD[1], HD[0]):
            raise Failed(f"a picture of {picture.shape[1]}x{picture.shape[0]}")
    return median(taken)


async def count(reader: Any, seconds: float) -> Measures:
    """How many new pictures there are in a second, and the CPU time that each takes here."""
    new, last = -_FIRST, b""
    begun, cpu = time.monotonic(), 0.0
    async with aclosing(reader.all()) as pictures:
        async for picture in pictures:
            seen = picture[_PROBE].tobytes()
            if seen != last:
                new += 1
                last = seen
            if new <= 0:
                begun, cpu = time.monotonic(), _own_cpu_s()
            elif time.monotonic() > begun + seconds:
                break
    taken, used = time.monotonic() - begun, _own_cpu_s() - cpu
    return {"pictures_per_s": new / taken, "reader_cpu_us": used * 1e6 / new}


def _own_cpu_s() -> float:
    """CPU time of this process, and of those that it has started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def look(link: Connection, peer: Peer, place: str, seconds: float) -> None:
    """Get the first picture for so long, and then whatever comes of each kind of change."""
    run = asyncio.run if peer.endswith("vnc") else lambda job: trio.run(lambda: job)
    with tempfile.TemporaryDirectory(prefix="spiceshm-bench-") as directory:
        reader = _reader(peer, place, directory)
        link.send({"first_ms": 1000 * run(_firsts(reader, seconds))})
        for change in _changes(peer):
            link.recv()
            found = run(count(reader, seconds))
            link.send({f"{change}_{name}": value for name, value in found.items()})


# What they look at


class _Wall(Painter):
    """Draws on all of an X display."""

    def prepare(self) -> None:
        """A page of text that is longer than the screen."""
        pixmap = self._new_pixmap(*HD)
        self._core.CopyArea(self._root, pixmap, self._context, 0, 0, 0, 0, *HD)
        half = self._fetch(pixmap, *HD)
        self._page = self._share(np.vstack([half, half]))

    def line(self, number: int) -> None:
        self._write(self._root, 0, number)

    def page(self, number: int) -> None:
        self._page(self._root, number % HD[1], HD[1])

    def sync(self) -> None:
        self._core.GetInputFocus().reply()


def draw(link: Connection, display: str) -> None:
    """Draw what the parent says, as often as the X server can, until it says something else."""
    with painter(display, _Wall) as wall:
        wall.prepare()
        wall.sync()
        link.send("ready")
        number = 0
        doing = link.recv()
        while doing != "end":
            getattr(wall, doing)(number)
            wall.sync()
            number += 1
            if link.poll():
                doing = link.recv()


@contextmanager
def _qemu(peer: Peer) -> Iterator[tuple[str, Callable[[Any], None]]]:
    through: Any = "tcp" if peer.endswith("tcp") else "unix"
    with ExitStack() as stack:
        machine, place = stack.enter_context(guest(through))
        if peer.endswith("screendump"):
            place = str(machine.qmp)
        elif peer.endswith("relay"):
            place, _ = stack.enter_context(served("relay", place))
        yield place, machine.do


@contextmanager
def _xspice(peer: Peer) -> Iterator[tuple[str, Callable[[Any], None]]]:
    with ExitStack() as stack:
        start = stack.enter_context(workers())
        display, _, place = stack.enter_context(xspice())
        artist = start(draw, display)
        artist.receive()
        if peer.endswith("vnc"):
            place, _ = stack.enter_context(served("vnc", display))
        elif peer.endswith("mss"):
            place = display
        else:
            place = f"tcp:{place}"
        try:
            yield place, artist.send
        finally:
            artist.send("end")


def measure(peer: Peer, seconds: float) -> Measures:
    """Have ``peer`` look for so long at each of what there is. Raises Failed."""
    served_by = _qemu if peer.startswith("qemu") else _xspice
    with workers() as start, served_by(peer) as (place, do):
        reader = start(look, peer, place, seconds)
        measures: Measures = reader.receive(seconds)
        for change in _changes(peer):
            do(change)
            reader.send("look")
            measures |= reader.receive(seconds)
    return measures
