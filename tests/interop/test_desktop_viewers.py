"""spicy and remote-viewer in front of an X desktop at the same time: both show what xwd says of it,
and what their users press arrives in a program on it, which says so itself."""

from __future__ import annotations

import contextlib
import itertools
import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import trio

from tests.gui import focus
from tests.interop.viewers import opened
from tests.programs import DEADLINE, Program, serving, short_directory
from tests.test_xscreen import as_bgr, desktop, set_size, xwd
from tests.xvfb import Display, environment, run, xvfb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.interop.viewers import Viewer

pytestmark = pytest.mark.peer(
    "spicy", "remote-viewer", "Xvfb", "xdotool", "xwd", "xev", "xterm", "xlogo", "xclock"
)

WIDTH, HEIGHT = 640, 480


class Scene(NamedTuple):
    """An X desktop, and who looks at it."""

    desktop: Display
    viewers: tuple[Viewer, Viewer]
    """spicy on a Unix socket and remote-viewer over TCP."""

    async def shown(self) -> np.ndarray:
        """Wait until both show what xwd says; returns it."""
        truth = as_bgr(24, xwd(self.desktop)[1])
        async with trio.open_nursery() as nursery:
            for viewer in self.viewers:
                nursery.start_soon(viewer.shows, truth)
        return truth


@contextlib.asynccontextmanager
async def scene(display: Display) -> AsyncIterator[Scene]:
    with short_directory() as place:
        listen = ["--listen", f"unix:{place}/s", "--listen", "tcp:127.0.0.1:0"]
        with serving("--source", "x11", "--display", display, *listen) as server:
            unix, tcp = (listener["uri"] for listener in server.said["listening"])
            async with opened("spicy", unix) as spicy, opened("remote-viewer", tcp) as other:
                yield Scene(display, (spicy, other))


async def test_real_programs_pixel_for_pixel() -> None:
    """While they are moved about, and in another size."""
    with xvfb(1000, 700, 24) as display, desktop(display):
        async with scene(display) as it:
            truth = await it.shown()
            assert len(np.unique(truth @ [1, 1 << 8, 1 << 16])) >= 5
            for x, y in ((100, 200), (220, 10), (900, 600)):
                before = truth
                run(display, *f"xdotool search --class xlogo windowmove {x} {y}".split())
                truth = await it.shown()
                assert not np.array_equal(truth, before)
            for width, height in ((800, 600), (641, 479), (1000, 700)):
                set_size(display, width, height)
                assert (await it.shown()).shape == (height, width, 3)


def said(xev: Program) -> list[str]:
    """What it got until q was pressed: keys and buttons, + for down and - for up, buttons with the
    place, and places alone."""
    found: list[str] = []
    event = place = ""
    while not found or found[-1] != "+q":
        line = xev.line()
        if match := re.match(r"(\w+) event,", line):
            event = match[1]
        elif match := re.search(r"root:\((\d+,\d+)\)", line):
            place = match[1]
            if event == "MotionNotify":
                found.append(place)
        elif match := re.search(r"button (\d+)|keysym \w+, (\w+)\)", line):
            sign = "-" if event.endswith("Release") else "+"
            found.append(f"{sign}{match[1]}@{place}" if match[1] else sign + match[2])
    return found[:-1]


KEYS = (
    "a",
    "KP_Divide",
    "Up",
    "Right",
    "Delete",
    "KP_Enter",
    "F5",
    "Return",
    "Tab",
    "Print",
    "Pause",
)
"""Of all kinds: of one byte, of two, and of three."""


async def test_keys_buttons_and_the_wheel_arrive() -> None:
    program = ["xev", "-geometry", f"{WIDTH}x{HEIGHT}+0+0", "-bw", "0"]
    program += [word for kind in ("keyboard", "mouse") for word in ("-event", kind)]
    with xvfb(WIDTH, HEIGHT, 24) as display, Program(program, environment(display)) as xev:
        focus(environment(display), "Event Tester")
        async with scene(display) as it:
            await it.shown()
            for viewer in it.viewers:
                await is_ready(viewer, display)
                await acts(viewer, xev)


async def is_ready(viewer: Viewer, display: Display) -> None:
    """Wait until its pointer is ours: it may show a picture before it can act."""
    places = itertools.cycle([(40, 41), (50, 60)])
    with trio.fail_after(DEADLINE):
        while True:
            x, y = next(places)
            await viewer.point(x, y)
            if run(display, "xdotool", "getmouselocation").startswith(f"x:{x} y:{y} ".encode()):
                break


async def acts(viewer: Viewer, xev: Program) -> None:
    """Do something, and see what comes of it."""
    await viewer.point(100, 121)
    await viewer.do(
        "mousedown", "1", "mouseup", "1", "key", "q"
    )  # the keyboard is its own when it was clicked on
    assert said(xev)[-3:] == ["100,121", "+1@100,121", "-1@100,121"]

    for button in "12345":
        await viewer.do("mousedown", button, "mouseup", button)
    await viewer.do("mousedown", "1")
    await viewer.point(WIDTH - 1, HEIGHT - 1)
    await viewer.do("mouseup", "1", "key", "q")
    clicks = [f"{sign}{button}@100,121" for button in "12345" for sign in "+-"]
    corner = f"{WIDTH - 1},{HEIGHT - 1}"
    assert said(xev) == ["-q", *clicks, "+1@100,121", corner, f"-1@{corner}"]

    with_shift = ("keydown", "shift", "key", "b", "keyup", "shift")
    with_control = ("keydown", "ctrl", "key", "c", "keyup", "ctrl")
    await viewer.do("key", *KEYS, *with_shift, *with_control, "key", "q")
    one = [sign + key for key in KEYS for sign in "+-"]
    two = ["+Shift_L", "+B", "-B", "-Shift_L", "+Control_L", "+c", "-c", "-Control_L"]
    assert said(xev) == ["-q", *one, *two]

    await viewer.do("key", "Caps_Lock", "a", "Caps_Lock", "a", "q")
    caps = ["+Caps_Lock", "-Caps_Lock"]
    assert said(xev) == ["-q", *caps, "+A", "-A", *caps, "+a", "-a"]
