"""Makes the recordings in this folder anew, all of them or those that are named:

    python -m tests.recordings.sessions.make qemu-std-off xspice-lz4

from the repository's root, with qemu-system-x86_64, Xspice, spicy, xterm and ImageMagick installed.
Each is one visit of spicy, through tools/record. Beside it, as PNG, is what the machine itself says
that it showed at the end (HMP screendump, or import on the X server); where all images are lossless
spicy showed exactly this.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import trio
import xcffib
import xcffib.xproto
from PIL import Image

from tests.interop.viewers import Viewer, opened
from tests.programs import DEADLINE, until
from tests.xvfb import environment as on_screen
from tests.xvfb import xspice as xspice_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextlib.asynccontextmanager
async def visit(name: str, to: str, *options: str) -> AsyncIterator[Viewer]:
    """spicy at a server, and a recording of it until the block ends."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        file = HERE / f"{name}.spice.gz"
        command = [sys.executable, "-m", "tools.recording", "--json"]
        command += ["--listen", f"unix:{place}/s", "--to", to, str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline()
                async with opened("spicy", f"spice+unix://{place}/s", *options) as viewer:
                    yield viewer
                process.send_signal(signal.SIGTERM)
                process.wait(DEADLINE)
                print(name, file.stat().st_size, process.stdout.read().decode())
            finally:
                process.kill()
        file.chmod(0o644)


def save(name: str, picture: np.ndarray) -> np.ndarray:
    """As PNG; ``picture`` is (height, width, 3) of R, G, B. Returns B, G, R."""
    Image.fromarray(picture).save(HERE / f"{name}.png", optimize=True)
    return np.ascontiguousarray(picture[:, :, ::-1])


class Machine:
    def __init__(self, place: str) -> None:
        self._monitor = socket.socket(socket.AF_UNIX)
        until(lambda: os.path.exists(f"{place}/monitor"))
        self._monitor.connect(f"{place}/monitor")
        self._monitor.settimeout(DEADLINE)
        self._answer()
        self._place = place

    def _answer(self) -> None:
        said = b""
        while not said.endswith(b"(qemu) "):
            said += self._monitor.recv(4096)

    def tell(self, line: str) -> None:
        self._monitor.sendall(line.encode() + b"\n")
        self._answer()

    def shows(self) -> np.ndarray:
        """(height, width, 3) of R, G, B."""
        self.tell(f"screendump {self._place}/dump.ppm")
        return np.asarray(Image.open(f"{self._place}/dump.ppm").convert("RGB"))

    def settles(self) -> None:
        """Until its picture is the same for two seconds, but for what blinks."""
        before, since = self.shows(), time.monotonic()
        while time.monotonic() - since < 2:
            time.sleep(0.2)
            now = self.shows()
            if now.shape != before.shape or np.mean(now != before) > 0.001:
                before, since = now, time.monotonic()

    def close(self) -> None:
        self._monitor.close()


def splash(file: str, cell: int) -> None:
    """A picture that the firmware shows in a graphics mode; the smaller its cells the smoother."""
    y, x = np.mgrid[:480, :640] // cell * cell
    picture = np.stack([x // 3, y // 2, (x + y) // 5], 2).astype(np.uint8)
    Image.fromarray(picture).save(file, quality=90)


async def qemu(
    name: str, vga: str, spicy: str, *, spice: str = "", unix: bool = False, exact: bool = True
) -> None:
    """From the first instruction, with a splash screen, over a reset, to iPXE's last words."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        splash(f"{place}/splash.jpg", cell=32 if exact else 1)
        port = free_port()
        where = f"unix=on,addr={place}/q" if unix else f"port={port},addr=127.0.0.1"
        command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-vga", vga, "-nodefaults"]
        command += ["-display", "none", "-nic", "user,model=e1000", "-S", "-L", place]
        command += ["-L", "/usr/share/qemu", "-L", "/usr/share/seabios", "-L", "/usr/lib/ipxe/qemu"]
        command += ["-boot", "menu=on,splash=splash.jpg,splash-time=1500"]
        command += ["-monitor", f"unix:{place}/monitor,server,nowait"]
        command += ["-spice", f"{where},disable-ticketing=on{spice}"]
        with subprocess.Popen(command) as process:
            try:
                machine = Machine(place)
                to = f"unix:{place}/q" if unix else f"tcp:127.0.0.1:{port}"
                options = (f"--spice-preferred-compression={spicy}",) if spicy else ()
                async with visit(name, to, *options) as viewer:
                    await trio.sleep(2)  # it draws before anything runs
                    machine.tell("cont")
                    await trio.sleep(1)
                    await viewer.do("mousemove", "300", "300", "click", "1", "key", "a")
                    await trio.to_thread.run_sync(machine.settles)
                    machine.tell("system_reset")
                    await trio.sleep(1)
                    await trio.to_thread.run_sync(machine.settles)
                    machine.tell("stop")
                    picture = save(name, machine.shows())
                    if exact:
                        await viewer.shows(picture)
                    else:
                        await trio.sleep(1)
                machine.close()
            finally:
                process.kill()


TYPING = "for i in $(seq 40); do echo line $i of text that scrolls; sleep 0.03; done; sleep 1000"


def gradient(width: int, height: int, step: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    plane = 127 + 127 * np.sin(x / 37 + step / 5) * np.cos(y / 29 - step / 7)
    return np.dstack([plane, plane * 0.7 + y / 8, 255 - plane, plane]).astype(np.uint8)


class Painter:
    """A window into which pixels are put, as a player of films does."""

    def __init__(self, screen: str, x: int, y: int, width: int, height: int) -> None:
        self._connection = xcffib.connect(display=screen)
        setup = self._connection.get_setup().roots[0]
        core = self._connection.core
        self._size = width, height
        self._window, self._gc = (self._connection.generate_id() for _ in range(2))
        core.CreateWindow(
            24, self._window, setup.root, x, y, width, height, 0, 1, setup.root_visual, 0, []
        )
        core.MapWindow(self._window)
        core.CreateGC(self._gc, self._window, 0, [])
        self._connection.flush()

    def paint(self, step: int, levels: int = 256) -> None:
        width, height = self._size
        data = (gradient(width, height, step) // (256 // levels) * (256 // levels)).tobytes()
        self._connection.core.PutImage(
            2, self._window, self._gc, width, height, 0, 0, 0, 24, len(data), data
        )
        self._connection.flush()

    def close(self) -> None:
        self._connection.disconnect()

    def move(self, x: int, y: int) -> None:
        """And above all others."""
        what = xcffib.xproto.ConfigWindow
        mask = what.X | what.Y | what.StackMode
        above = xcffib.xproto.StackMode.Above
        self._connection.core.ConfigureWindow(self._window, mask, [x, y, above])
        self._connection.flush()


async def desktop(screen: str, painter: Painter, viewer: Viewer) -> None:
    """xterm scrolls; a smooth picture in a window is dragged over it; the pointer has a shape."""
    subprocess.run(["xsetroot", "-cursor_name", "left_ptr"], env=on_screen(screen), check=True)
    for step in (0, 1, 0, 1, 0):
        painter.paint(step)
        await trio.sleep(0.1)
    for step in range(5):
        await trio.sleep(0.1)
        painter.move(350 - 40 * step, 20 + 30 * step)
    await viewer.do("mousemove", "300", "300", "click", "1", "key", "a")
    await viewer.do("mousemove", "550", "450")
    await trio.sleep(2.5)


async def film(screen: str, painter: Painter, viewer: Viewer) -> None:
    """Something moves in a window."""
    painter.move(400, 200)
    for step in range(50):
        painter.paint(step, 32)
        await trio.sleep(0.04)
    await trio.sleep(2.5)


async def xspice(
    name: str,
    spicy: str,
    act: Callable[[str, Painter, Viewer], Awaitable[None]],
    *,
    streaming: str = "off",
    cache: bool = False,
    exact: bool = True,
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        caches = dict.fromkeys(("EnableImageCache", "EnableFallbackCache"), str(cache))
        options = (f"--spice-preferred-compression={spicy}",)
        with (
            xspice_server(Path(place), SpiceStreamingVideo=streaming, **caches) as screen,
            contextlib.ExitStack() as until_then,  # what is on it goes when spicy has gone
        ):
            async with visit(name, f"tcp:127.0.0.1:{screen.port}", *options) as viewer:
                await trio.sleep(1)
                xterm = ["xterm", "-geometry", "50x24+10+10", "-e", "sh", "-c", TYPING]
                process = until_then.enter_context(subprocess.Popen(xterm, env=on_screen(screen)))
                until_then.callback(process.kill)
                painter = Painter(screen, 350, 20, 128, 96)
                until_then.callback(painter.close)
                await act(screen, painter, viewer)
                command = ["import", "-window", "root", f"{place}/root.png"]
                subprocess.run(command, env=on_screen(screen), check=True)
                picture = save(name, np.asarray(Image.open(f"{place}/root.png").convert("RGB")))
                if exact:
                    await viewer.shows(picture)
                else:
                    await trio.sleep(0.5)


WAN = ",jpeg-wan-compression=always,zlib-glz-wan-compression=always"
RECORDINGS = {
    "qemu-qxl-glz": lambda name: qemu(name, "qxl", ""),
    "qemu-std-off": lambda name: qemu(name, "std", "off", unix=True),
    "qemu-qxl-wan": lambda name: qemu(name, "qxl", "", spice=WAN, exact=False),
    "xspice-lz": lambda name: xspice(name, "lz", desktop),
    "xspice-lz4": lambda name: xspice(name, "lz4", desktop),
    "xspice-glz": lambda name: xspice(name, "glz", desktop, cache=True),
    "xspice-auto-glz": lambda name: xspice(name, "auto-glz", desktop),
    "xspice-quic": lambda name: xspice(name, "quic", desktop),
    "xspice-stream": lambda name: xspice(name, "lz4", film, streaming="all", exact=False),
}


async def main() -> None:
    for name in sys.argv[1:] or RECORDINGS:
        await RECORDINGS[name](name)


if __name__ == "__main__":
    trio.run(main)
