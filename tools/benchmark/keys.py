"""From a key to what comes of it on the screen, as a program that presses keys sees it.

The same for each: an Xvfb of 1920x1080 with one program, which fills a patch with the next colour
whenever it gets a key. Time counts from before the call that presses the key until the colour is
found in a pixel of the patch, whatever has to be called for that. Between two keys there is a
random pause, so that nobody is in step with anything.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import trio

import spiceshm

from .process import Failed, total_cpu_ns, workers
from .stats import Measures, latencies
from .work import HD, TILE
from .xservers import missing, number, served, xvfb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

Peer = Literal["spiceshm", "asyncvnc", "vncdotool", "xdotool"]
PEERS: tuple[Peer, ...] = ("spiceshm", "asyncvnc", "vncdotool", "xdotool")

_X, _Y = HD[0] // 4, HD[1] // 4
_COLOURS = (0xFF0000, 0x00FF00, 0x0000FF, 0xFFFF00, 0x00FFFF)
_MOST_PAUSE_S = 0.02
_FIRST = 3
"""Keys that are not counted: with the first ones things are opened."""


def lacks(peer: Peer) -> str | None:
    """How to install what a peer needs, where it is not."""
    programs = {"asyncvnc": ["x11vnc"], "vncdotool": ["x11vnc"], "xdotool": ["xdotool"]}
    modules = {"asyncvnc": ["asyncvnc"], "vncdotool": ["vncdotool"], "xdotool": ["mss"]}
    return missing(["Xvfb", *programs.get(peer, [])], ["xcffib", *modules.get(peer, [])])


def react(link: Connection, display: str) -> None:
    """The program: paint the patch in the next colour at every key, as long as the X server is."""
    import xcffib
    import xcffib.xproto as x

    connection: Any = xcffib.connect(display=display)
    core, screen = connection.core, connection.get_setup().roots[0]
    window, context = connection.generate_id(), connection.generate_id()
    parts = (window, screen.root, 0, 0, *HD, 0, x.WindowClass.InputOutput, screen.root_visual)
    core.CreateWindow(screen.root_depth, *parts, x.CW.EventMask, [x.EventMask.KeyPress])
    core.CreateGC(context, window, 0, [])
    core.MapWindow(window)
    core.SetInputFocus(0, window, 0)
    core.GetInputFocus().reply()
    link.send("ready")
    patch = [x.RECTANGLE.synthetic(_X, _Y, TILE, TILE)]
    count = 0
    while True:
        try:
            event = connection.wait_for_event()
        except xcffib.ConnectionException:
            return
        if isinstance(event, x.KeyPressEvent):
            core.ChangeGC(context, x.GC.Foreground, [_COLOURS[count % len(_COLOURS)]])
            core.PolyFillRectangle(window, context, 1, patch)
            connection.flush()
            count += 1


# Those who press keys and look


@dataclass
class _Keys:
    """The keys that are pressed, and how long each took. ``pids`` are the servers'."""

    pids: list[int]
    seconds: float
    taken: list[int] = field(default_factory=list)
    cpu: tuple[int, int] = (0, 0)
    servers_cpu: tuple[int, int] = (0, 0)

    def turns(self) -> Iterator[tuple[float, int]]:
        """For each key: seconds to wait before it, and the colour that comes of it."""
        pauses = random.Random(0)
        end = time.monotonic() + self.seconds
        count = 0
        while time.monotonic() < end or count < _FIRST + 2:
            if count == _FIRST:
                before = _own_cpu_ns(), total_cpu_ns(self.pids)
            yield pauses.uniform(0, _MOST_PAUSE_S), _COLOURS[count % len(_COLOURS)]
            count += 1
        self.cpu = before[0], _own_cpu_ns()
        self.servers_cpu = before[1], total_cpu_ns(self.pids)

    def saw(self, begun: int) -> None:
        """The colour was found just now; ``begun`` is when the key was pressed."""
        self.taken.append(time.monotonic_ns() - begun)

    def measures(self) -> Measures:
        counted = self.taken[_FIRST:]
        return {
            "reader_cpu_us": (self.cpu[1] - self.cpu[0]) / 1000 / len(counted),
            "server_cpu_us": (self.servers_cpu[1] - self.servers_cpu[0]) / 1000 / len(counted),
            **latencies("effect", np.array(counted, np.int64)),
        }


def _own_cpu_ns() -> int:
    """CPU time of this process, and of those that it has started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return int(sum(one.ru_utime + one.ru_stime for one in used) * 1e9)


def press_spiceshm(address: str, keys: _Keys) -> None:
    async def run() -> None:
        patch = (_Y, _X, _Y + TILE, _X + TILE)
        async with spiceshm.connect(address, shm="require") as display:
            for pause_s, colour in keys.turns():
                await trio.sleep(pause_s)
                begun = time.monotonic_ns()
                await display.key("a")
                while number((await display.wait_change(patch)).pixels[_Y, _X]) != colour:
                    pass
                keys.saw(begun)

    trio.run(run)


def press_asyncvnc(port: str, keys: _Keys) -> None:
    import asyncvnc  # type: ignore[import-untyped]

    async def run() -> None:
        async with asyncvnc.connect("127.0.0.1", int(port)) as client:
            order = [client.video.mode.index(part) for part in "bgr"]

            async def look() -> int:
                client.video.refresh(_X, _Y, TILE, TILE)
                while await client.read() is not asyncvnc.UpdateType.VIDEO:
                    pass
                return number(client.video.data[_Y, _X][order])

            for pause_s, colour in keys.turns():
                await asyncio.sleep(pause_s)
                begun = time.monotonic_ns()
                client.keyboard.press("a")
                while await look() != colour:
                    pass
                keys.saw(begun)

    asyncio.run(run())


def press_vncdotool(port: str, keys: _Keys) -> None:
    from PIL import Image
    from vncdotool import api  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory(prefix="spiceshm-bench-") as directory:
        pictures = {colour: str(Path(directory, f"{colour:06x}.png")) for colour in _COLOURS}
        for colour, file in pictures.items():
            Image.new("RGB", (TILE, TILE), f"#{colour:06x}").save(file)
        try:
            with api.connect(f"127.0.0.1::{port}") as client:
                for pause_s, colour in keys.turns():
                    time.sleep(pause_s)
                    begun = time.monotonic_ns()
                    client.keyPress("a")
                    client.expectRegion(pictures[colour], _X, _Y)
                    keys.saw(begun)
        finally:
            api.shutdown()


def press_xdotool(display: str, keys: _Keys) -> None:
    import mss

    command = ["xdotool", "key", "--delay", "0", "a"]
    environment = {**os.environ, "DISPLAY": display}
    patch = {"left": _X, "top": _Y, "width": TILE, "height": TILE}
    with mss.MSS(display=display) as screen:
        for pause_s, colour in keys.turns():
            time.sleep(pause_s)
            begun = time.monotonic_ns()
            subprocess.run(command, env=environment, check=True)
            while number(screen.grab(patch).raw) != colour:
                pass
            keys.saw(begun)


_PRESS = {
    "spiceshm": press_spiceshm,
    "asyncvnc": press_asyncvnc,
    "vncdotool": press_vncdotool,
    "xdotool": press_xdotool,
}


def press(link: Connection, peer: Peer, place: str, pids: list[int], seconds: float) -> None:
    """Press keys for so long and look for what comes of each; send the measures."""
    keys = _Keys(pids, seconds)
    _PRESS[peer](place, keys)
    link.send(keys.measures())


def measure(peer: Peer, seconds: float) -> Measures:
    """Have ``peer`` press keys for so long. Raises Failed."""
    servers: dict[Peer, Literal["spiceshm", "vnc"]] = {
        "spiceshm": "spiceshm",
        "asyncvnc": "vnc",
        "vncdotool": "vnc",
    }
    # The program ends with the X server, so the processes are waited for behind that.
    with workers() as start, xvfb() as (display, x_pid):
        start(react, display).receive()
        with served(servers.get(peer), display) as (place, pids):
            measures = start(press, peer, place, [x_pid, *pids], seconds).receive(seconds)
    if not isinstance(measures, dict):
        raise Failed(f"{peer} measured nothing")
    return measures
