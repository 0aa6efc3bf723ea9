"""An X desktop served by the program and read here, in another process, pixel for pixel.

The picture is compared with ``xwd``, which asks the X server by itself.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
from PIL import Image

import spiceshm
from spiceshm.sources.x11 import XDesktop

from .xvfb import environment, run, xvfb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from spiceshm.client import Frames, RemoteDisplay

pytestmark = pytest.mark.peer("Xvfb", "xwd", "convert", "xterm", "xclock", "xlogo", "xdotool")

DEADLINE_S = 30.0

FILLER = """
import sys, time, xcffib, xcffib.xproto as x
connection = xcffib.connect(display=sys.argv[1])
screen = connection.get_setup().roots[0]
contexts = []
for colour in (0xAA3311, 0x1155CC):
    context = connection.generate_id()
    connection.core.CreateGC(context, screen.root, x.GC.Foreground, [colour])
    contexts.append(context)
area = x.RECTANGLE.synthetic(0, 0, screen.width_in_pixels, screen.height_in_pixels)
print("ready", flush=True)
step = 0
while True:
    connection.core.PolyFillRectangle(screen.root, contexts[step % 2], 1, [area])
    connection.flush()
    connection.core.GetInputFocus().reply()
    step += 1
    time.sleep(1 / 60)
"""


@contextmanager
def process(*command: str, display: str = "") -> Iterator[subprocess.Popen[str]]:
    """A program that has printed its first line; killed at the end."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment(display) if display else None
    ) as running:
        try:
            yield running
        finally:
            running.kill()


@contextmanager
def served(display: str, socket: Path, *options: str) -> Iterator[str]:
    """spiceshm-server on an X display; gives the address."""
    address = f"unix:{socket}"
    command = [sys.executable, "-m", "spiceshm.cli.server", "--json", "--source", "x11"]
    command += ["--display", display, "--listen", address, *options]
    with process(*command) as server:
        assert server.stdout is not None
        assert json.loads(server.stdout.readline())["listening"][0]["address"] == address
        yield address


@contextmanager
def programs(display: str) -> Iterator[None]:
    """Real programs, some that move by themselves, all that have drawn their windows."""
    commands = (
        ["xclock", "-update", "1", "-bg", "#3a6", "-geometry", "200x200+40+40"],
        [
            "xterm",
            "-bg",
            "navy",
            "-fg",
            "gold",
            "-geometry",
            "60x20+300+60",
            "-e",
            "sh -c 'ls -l /usr/bin | head -40; cat'",
        ],
        ["xlogo", "-fg", "#c31", "-geometry", "150x140+60+320"],
    )
    running = []
    try:
        for command in commands:
            running.append(subprocess.Popen(command, env=environment(display)))
            run(display, "xdotool", "search", "--sync", "--onlyvisible", "--class", command[0])
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()


def screenshot(display: str) -> np.ndarray:
    """What the X server says itself: (height, width, 3) of B, G, R."""
    dump = run(display, "xwd", "-root", "-silent")
    png = subprocess.run(["convert", "xwd:-", "png:-"], input=dump, capture_output=True, check=True)
    return np.asarray(Image.open(BytesIO(png.stdout)).convert("RGB"))[:, :, ::-1]


async def settles(remote: RemoteDisplay, display: str) -> np.ndarray:
    """Follow the display until it is still and both pictures are one; returns it."""
    frames = remote.frames()
    seen = None
    with trio.fail_after(DEADLINE_S):
        while True:
            with trio.move_on_after(0.2):
                seen = (await anext(frames)).copy()[:, :, :3]
                continue
            truth = await trio.to_thread.run_sync(screenshot, display)
            if seen is not None and np.array_equal(seen, truth):
                return truth


@asynccontextmanager
async def looking(address: str, **options: object) -> AsyncIterator[RemoteDisplay]:
    async with spiceshm.connect(address, **options) as remote:  # type: ignore[arg-type]
        yield remote


@pytest.mark.parametrize(
    ("width", "height", "depth", "shm"),
    [
        (1920, 1080, 24, "auto"),
        (1366, 768, 24, "auto"),
        (1366, 768, 24, "off"),
        (1366, 768, 16, "auto"),
        (641, 479, 16, "off"),
    ],
)
async def test_real_programs_pixel_for_pixel(
    tmp_path: Path, width: int, height: int, depth: int, shm: str
) -> None:
    with xvfb(width, height, depth) as display, served(display, tmp_path / "s") as address:
        async with looking(address, shm=shm) as remote:
            assert remote.shared is (shm == "auto")
            assert (remote.width, remote.height) == (width, height)
            with programs(display):
                run(display, "xdotool", "search", "--class", "xclock", "windowkill")
                before = await settles(remote, display)
                assert len(np.unique(before @ [1, 1 << 8, 1 << 16])) >= 5
                for x, y in ((100, 200), (220, 10), (0, 0), (width - 60, height - 60)):
                    for name in ("xterm", "xlogo"):
                        run(display, *f"xdotool search --class {name} windowmove {x} {y}".split())
                        x += 90
                    assert not np.array_equal(await settles(remote, display), before)


async def test_moving_programs_while_somebody_looks(tmp_path: Path) -> None:
    """A mirror kept from damage alone is the picture, also while a clock ticks and text scrolls."""
    with xvfb(1024, 768, 24) as display, served(display, tmp_path / "s") as address:
        with programs(display):
            async with looking(address) as remote:
                frames = remote.frames()
                mirror = (await anext(frames)).copy()
                into_xterm = ["search", "--class", "xterm", "windowfocus", "type", "--delay", "1"]
                run(display, "xdotool", *into_xterm, "x" * 400)
                changed = 0
                with trio.fail_after(DEADLINE_S):
                    async for frame in frames:
                        for top, left, bottom, right in frame.rects.tolist():
                            mirror[top:bottom, left:right] = frame.pixels[top:bottom, left:right]
                        assert np.array_equal(mirror[:, :, :3], frame.pixels[:, :, :3])
                        changed += 1
                        if changed == 5:
                            break
                assert frame.rects.shape[0] >= 1


def is_mixed(pixels: np.ndarray) -> bool:
    words = pixels.reshape(-1).view(np.uint32) & 0xFFFFFF
    return bool((words != words[0]).any())


async def test_no_mixed_frame_under_full_screen_fills(tmp_path: Path) -> None:
    """Fills of alternating colour at 60 Hz for 10 s: every frame shows one of them only."""
    with xvfb(1920, 1080, 24) as display, served(display, tmp_path / "s") as address:
        with process(sys.executable, "-c", FILLER, display) as filler:
            assert filler.stdout is not None
            filler.stdout.readline()
            mixed = frames = 0
            colours = set()
            async with looking(address) as remote:
                with trio.move_on_after(10):
                    async for frame in remote.frames():
                        frames += 1
                        mixed += is_mixed(frame.pixels)
                        colours.add(frame.pixels[0, 0, :3].tobytes())
        assert mixed == 0
        assert frames > 100
        assert len(colours) >= 2


def test_the_frame_buffer_file_does_show_mixed_frames(tmp_path: Path) -> None:
    """The same look at Xvfb's own file finds torn pictures: so the test above could fail."""
    with xvfb(1920, 1080, 24, "-fbdir", str(tmp_path)) as display:
        with process(sys.executable, "-c", FILLER, display) as filler:
            assert filler.stdout is not None
            filler.stdout.readline()
            pixels = frame_buffer_file(tmp_path / "Xvfb_screen0")
            looks = mixed = 0
            while not mixed and looks < 20_000:
                looks += 1
                mixed += is_mixed(pixels.copy())
            del pixels
    assert mixed


def frame_buffer_file(path: Path) -> np.ndarray:
    """The pixels of an XWD file, mapped: a header of big endian words, colours, then lines."""
    header = struct.unpack(">25I", path.read_bytes()[:100])
    size, height, stride, colours = header[0], header[5], header[12], header[19]
    memory = np.memmap(path, np.uint8, "r", offset=size + colours * 12)
    return memory[: height * stride].reshape(height, stride // 4, 4)


def test_a_still_desktop_that_nobody_watches_costs_nothing(tmp_path: Path) -> None:
    def switches(pid: int) -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    with xvfb(640, 480, 24) as display:
        command = [sys.executable, "-m", "spiceshm.cli.server", "--json", "--stats-json"]
        command += ["--source", "x11", "--display", display, "--listen", f"unix:{tmp_path}/s"]
        with process(*command) as server:
            assert server.stdout is not None
            server.stdout.readline()
            told = [json.loads(server.stdout.readline())]
            before = switches(server.pid)
            told += [json.loads(server.stdout.readline()) for _ in range(3)]
            woken = switches(server.pid) - before
    assert {(line["serial"], line["copied_bytes"]) for line in told} == {(1, 0)}
    assert woken < 30  # three times for the lines that it printed


def test_no_such_display() -> None:
    command = [sys.executable, "-m", "spiceshm.cli.server", "--source", "x11", "--display", ":4711"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert ":4711 does not exist" in done.stderr
    no_display = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    done = subprocess.run(
        command[:-2], capture_output=True, text=True, check=False, timeout=60, env=no_display
    )
    assert done.returncode == 1
    assert "$DISPLAY" in done.stderr


async def to_the_end(frames: Frames) -> None:
    async for _ in frames:
        pass


async def test_the_x_server_dies(tmp_path: Path) -> None:
    with xvfb(640, 480, 24) as display:
        command = [sys.executable, "-m", "spiceshm.cli.server", "--json", "--source", "x11"]
        command += ["--display", display, "--listen", f"unix:{tmp_path}/s"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            server.stdout.readline()
            async with looking(f"unix:{tmp_path}/s") as remote:
                frames = remote.frames()
                await anext(frames)
                display.process.kill()
                with trio.fail_after(DEADLINE_S), pytest.raises(spiceshm.Disconnected):
                    await to_the_end(frames)
            _, complaint = await trio.to_thread.run_sync(server.communicate)
            assert server.returncode == 1
            assert complaint == f"spiceshm-server: X display {display} closed the connection\n"
    assert not (tmp_path / "s").exists()


async def test_an_x_server_that_hangs_at_the_beginning(tmp_path: Path) -> None:
    """It can be given up, and what it opens all the same when it goes on is closed."""
    with xvfb(640, 480, 24) as display:
        display.process.send_signal(signal.SIGSTOP)
        before = open_sockets()
        with trio.move_on_after(0.2) as gave_up:
            async with XDesktop.open(display):
                pass
        assert gave_up.cancelled_caught
        assert open_sockets() == before + 1
        display.process.send_signal(signal.SIGCONT)
        with trio.fail_after(DEADLINE_S):
            while open_sockets() != before:
                await trio.sleep(0.01)


async def test_an_x_server_that_hangs_while_memory_is_made(tmp_path: Path) -> None:
    """A thread waits for it then, which nothing can cancel."""
    address = f"unix:{tmp_path}/s"
    with xvfb(64, 48, 24) as display:
        too_late = threading.Timer(DEADLINE_S, display.process.kill)
        too_late.start()
        async with (
            XDesktop.open(display) as desktop,
            spiceshm.serve(address) as server,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(partial(desktop.show, fps=60), server)
            async with spiceshm.connect(address):
                display.process.send_signal(signal.SIGSTOP)
                async with spiceshm.connect(address, credits=8):
                    while not desktop._screen._users:
                        await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        too_late.cancel()
        assert display.process.poll() is None


def open_sockets() -> int:
    count = 0
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += os.readlink(path).startswith("socket:")
    return count
