"""An X desktop as several programs see it: from a drawing to a numpy array in the reader.

The same for each: an Xvfb of 1920x1080, on which a square is painted in a new colour when the
reader has seen the last one and has had a moment to wait again. Time counts from before the
request is sent to the X server until the reader finds the colour in an array (height, width, 4) of
the whole screen. mss asks for a screenshot (MIT-SHM) as often as it can, as that is the only way to
notice anything; x11vnc polls as often as its options allow, and asyncvnc reads what it sends.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import trio

import spiceshm

from .process import cpu_ns, total_cpu_ns, workers
from .stats import Measures, latencies
from .work import HD, TILE
from .xservers import missing, number, served, xvfb

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Peer = Literal["spiceshm", "mss", "vnc"]
PEERS: tuple[Peer, ...] = ("spiceshm", "mss", "vnc")

_X, _Y = HD[0] // 4, HD[1] // 4
_PAUSE_S = 0.02
_STOP = 0xFFFFFF
_FIRST = 3
"""Pictures that are not counted."""


def lacks(peer: Peer) -> str | None:
    """How to install what a peer needs, where it is not."""
    programs = ["Xvfb"] + ["x11vnc"] * (peer == "vnc")
    modules = {"spiceshm": [], "mss": ["mss"], "vnc": ["asyncvnc"]}
    return missing(programs, ["xcffib", *modules[peer]])


class _Notes:
    """Tells the parent of every new colour."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._last = -1

    def saw(self, colour: int) -> bool:
        """Note what the square shows now; returns whether it was the last one."""
        if colour != self._last:
            self._last = colour
            self._link.send((colour, time.monotonic_ns()))
        return colour == _STOP


# Readers


def look_spiceshm(link: Connection, address: str) -> None:
    async def run() -> None:
        notes = _Notes(link)
        async with spiceshm.connect(address, shm="require") as display:
            async for frame in display.frames():
                if notes.saw(number(frame.pixels[_Y, _X])):
                    return

    trio.run(run)


def look_mss(link: Connection, display: str) -> None:
    import mss

    notes = _Notes(link)
    with mss.MSS(display=display) as screen:
        while True:
            shot = screen.grab(screen.monitors[0])
            pixels = np.frombuffer(shot.raw, np.uint8).reshape(shot.height, shot.width, 4)
            if notes.saw(number(pixels[_Y, _X])):
                return


def look_vnc(link: Connection, port: str) -> None:
    import asyncvnc  # type: ignore[import-untyped]

    async def run() -> None:
        notes = _Notes(link)
        async with asyncvnc.connect("127.0.0.1", int(port)) as client:
            order = [client.video.mode.index(part) for part in "bgr"]
            while True:
                client.video.refresh()
                while await client.read() is not asyncvnc.UpdateType.VIDEO:
                    pass
                if notes.saw(number(client.video.data[_Y, _X][order])):
                    return

    asyncio.run(run())


_READERS = {"spiceshm": look_spiceshm, "mss": look_mss, "vnc": look_vnc}


# What they look at


class _Canvas:
    """Paints the square, as any X client does."""

    def __init__(self, display: str) -> None:
        import xcffib
        import xcffib.xproto

        connection: Any = xcffib.connect(display=display)
        self._connection = connection
        self._core = connection.core
        self._root = connection.get_setup().roots[0].root
        self._context = connection.generate_id()
        self._foreground = xcffib.xproto.GC.Foreground
        self._square = [xcffib.xproto.RECTANGLE.synthetic(_X, _Y, TILE, TILE)]
        self._core.CreateGC(self._context, self._root, self._foreground, [0])

    def paint(self, colour: int) -> int:
        """Returns when it was begun."""
        begun = time.monotonic_ns()
        self._core.ChangeGC(self._context, self._foreground, [colour])
        self._core.PolyFillRectangle(self._root, self._context, len(self._square), self._square)
        self._connection.flush()
        return begun

    def close(self) -> None:
        self._connection.disconnect()


def measure(peer: Peer, seconds: float) -> Measures:
    """Paint for so long and see how soon ``peer`` sees it. Raises Failed."""
    server = None if peer == "mss" else peer
    options = ["--fps", "0"] if peer == "spiceshm" else []
    with (
        xvfb() as (display, x_pid),
        served(server, display, *options) as (place, pids),
        workers() as start,
    ):
        reader = start(_READERS[peer], place)
        canvas = _Canvas(display)
        try:
            reader.receive()
            taken = []
            colour, end = 0, time.monotonic() + seconds
            while time.monotonic() < end or colour < _FIRST + 2:
                if colour == _FIRST:
                    cpu = cpu_ns(reader.pid), total_cpu_ns([x_pid, *pids])
                time.sleep(_PAUSE_S)
                colour += 1
                begun = canvas.paint(colour)
                seen = -1
                while seen != colour:
                    seen, when = reader.receive()
                taken.append(when - begun)
            used = cpu_ns(reader.pid) - cpu[0], total_cpu_ns([x_pid, *pids]) - cpu[1]
            canvas.paint(_STOP)
        finally:
            canvas.close()
    counted = taken[_FIRST:]
    return {
        "reader_cpu_us": used[0] / 1000 / len(counted),
        "server_cpu_us": used[1] / 1000 / len(counted),
        **latencies("done", np.array(counted, np.int64)),
    }
