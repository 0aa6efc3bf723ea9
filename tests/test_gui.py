"""Programs that look and act, on real desktops with real programs: dialogs, and what waits.

No test here sleeps: each step waits for the picture, or for what the program itself says.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import string
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
import trio.testing

import spiceshm
from spiceshm import sync
from spiceshm.background import the_loop
from tests import dialog
from tests.dialog import BAR, HEIGHT, TERMINAL, WIDTH
from tests.gui import (
    GREEN,
    OWN,
    Report,
    bar_of,
    button_in,
    corner,
    dialog_begins,
    focus,
    opened,
    reporting,
    terminal_is,
)
from tests.programs import DEADLINE, Program, script, serving
from tests.test_desktop import server_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spiceshm import RemoteDisplay

pytestmark = pytest.mark.peer("Xvfb", "xterm", "xdotool")

ROUNDS = 100


@pytest.fixture(autouse=True, scope="module")
def thread_runs() -> None:
    """Its descriptors stay for the whole process, so that no test is blamed for them."""
    the_loop()


@pytest.fixture
def report() -> Iterator[Report]:
    with reporting() as pipe:
        yield pipe


def said_in(number: int) -> str:
    """What is typed in a round: something else each time, capitals and signs too."""
    signs = random.Random(number).choices(string.ascii_letters + string.punctuation, k=9)
    return f"{number} {''.join(signs)}"


# Dialogs


async def test_a_dialog_a_hundred_times(report: Report) -> None:
    """Every wait returns for the one change that was waited for, with all that came before it."""
    async with opened(*dialog.command(report.path)) as desktop:
        display = desktop.display
        await dialog_begins(display)
        for number in range(ROUNDS):
            await display.type(f"{said_in(number)}\n")
            frame = await display.wait_change(BAR)
            assert bar_of(frame) == dialog.rgb(dialog.bar(2 * number + 1))
            assert await report.line() == f"read {said_in(number)}"
            await display.click(*corner(button_in(frame.rgb()), number))
            frame = await display.wait_change(BAR)
            assert bar_of(frame) == dialog.rgb(dialog.bar(2 * number + 2))
            assert button_in(frame.rgb()) is None
            assert await report.line() == "pressed"


def begin(display: sync.RemoteDisplay) -> None:
    """Wait until the dialog is there."""
    frame = display.latest()
    while bar_of(frame) != dialog.rgb(dialog.bar(0)):
        frame = display.wait_change(BAR, since=frame)


def play(display: sync.RemoteDisplay, report: Report, readers: list[Program]) -> None:
    """The same rounds in ordinary Python, while others look on."""
    begin(display)
    for reader in readers:
        reader.line()
    for number in range(ROUNDS):
        display.type(f"{said_in(number)}\n")
        frame = display.wait_change(BAR)
        assert bar_of(frame) == dialog.rgb(dialog.bar(2 * number + 1))
        assert trio.run(report.line) == f"read {said_in(number)}"
        seen = f"{bar_of(frame)} {button_in(frame.rgb())} whole"
        assert [reader.line() for reader in readers] == [seen] * len(readers)
        display.click(*corner(button_in(frame.rgb()), number))
        frame = display.wait_change(BAR)
        assert bar_of(frame) == dialog.rgb(dialog.bar(2 * number + 2))
        assert trio.run(report.line) == "pressed"
        seen = f"{bar_of(frame)} None whole"
        assert [reader.line() for reader in readers] == [seen] * len(readers)


def test_a_dialog_a_hundred_times_in_ordinary_python(report: Report) -> None:
    with sync.desktop(*dialog.command(report.path), width=WIDTH, height=HEIGHT) as desktop:
        play(desktop.display, report, [])


READER = """
import sys
import numpy as np
from spiceshm import sync
from spiceshm.background import the_loop
from tests.gui import bar_of, button_in

with sync.connect(sys.argv[1]) as display:
    built, bar = np.zeros((display.height, display.width, 3), np.uint8), None
    for frame in display.frames():
        for top, left, bottom, right in frame.rects:
            built[top:bottom, left:right] = frame.pixels[top:bottom, left:right, :3]
        whole = np.array_equal(built, frame.pixels[:, :, :3])
        if bar_of(frame) != bar or not whole:
            bar = bar_of(frame)
            print(bar, button_in(frame.rgb()), "whole" if whole else "damage missing", flush=True)
"""
"""Says each colour of the bar, with the button, and whether the damage so far makes the picture."""


def test_a_dialog_while_four_others_watch(report: Report) -> None:
    """Processes of their own, as the server is: each sees every change, with its damage."""
    with serving(*OWN, "--", *dialog.command(report.path)) as server:
        with sync.connect(server.address) as display, contextlib.ExitStack() as stack:
            begin(display)
            readers = [stack.enter_context(script(READER, server.address)) for _ in range(4)]
            play(display, report, readers)
            assert all(reader.status is None for reader in readers)


# Waiting


CELL = (2, 2, 15, 8)
"""The first character of the terminal."""

ELSEWHERE = (200, 200, 400, 400)


async def test_a_cursor_that_blinks_outside_of_the_region() -> None:
    async with opened(*TERMINAL, "-bc", "-bcn", "40", "-bcf", "40", "-e", "cat") as desktop:
        display = desktop.display
        focus(desktop.environment)  # a cursor without it does not blink
        for _ in range(10):
            frame = await display.wait_change(CELL)
        with pytest.raises(spiceshm.Timeout, match=r"region \(2, 2, 15, 8\) was never still"):
            await display.wait_stable(1, CELL, timeout=1.5)
        with pytest.raises(spiceshm.Timeout, match="the picture was never still"):
            await display.wait_stable(1, timeout=1.5)
        with pytest.raises(spiceshm.Timeout, match=r"nothing changed in the region \(200"):
            await display.wait_change(ELSEWHERE, timeout=0.3)
        still = await display.wait_stable(0.3, ELSEWHERE, timeout=DEADLINE)
        assert still.serial > frame.serial
        assert np.array_equal(still.rgb(ELSEWHERE), frame.rgb(ELSEWHERE))


FLASH = r"""stty raw -echo; printf '\033[?25l\033[42m\033[2J'
while read -r -n 1 key; do printf '\033[H#\b \b'; done"""
"""Green; each key draws something and takes it away at once."""


async def test_what_is_undone_at_once_was_a_change() -> None:
    async with opened(*TERMINAL, "-e", "bash", "-c", FLASH) as desktop:
        display = desktop.display
        before = (await terminal_is(display, GREEN)).rgb()
        for _ in range(20):
            await display.key("x")
            await display.wait_change(CELL)
        frame = await display.wait_stable(0.2)
        assert np.array_equal(frame.rgb(), before)


async def test_a_change_between_two_calls_and_no_time_and_no_more() -> None:
    async with opened(*TERMINAL, "-e", "bash", "-c", FLASH) as desktop:
        display = desktop.display
        await terminal_is(display, GREEN)
        first = await display.wait_stable(0.2)
        with pytest.raises(spiceshm.Timeout, match="within 0 s"):
            await display.wait_change(timeout=0)
        with pytest.raises(spiceshm.Timeout, match="within 0 s"):
            await display.wait_stable(0.2, timeout=0)
        await display.key("x")
        await display.wait_change(CELL)  # it is seen, by a call that does not know of `first`
        last = await display.wait_stable(0.2)
        with pytest.raises(spiceshm.Timeout):
            await display.wait_change(timeout=0)
        for since in (first, first.serial):
            assert (await display.wait_change(CELL, since=since, timeout=0)).serial == last.serial
        with pytest.raises(spiceshm.Timeout):
            await display.wait_change(ELSEWHERE, since=first, timeout=0)


async def test_a_wait_that_is_cancelled_loses_nothing() -> None:
    async with opened(*TERMINAL, "-e", "bash", "-c", FLASH) as desktop:
        display = desktop.display
        await terminal_is(display, GREEN)
        for _ in range(20):
            frame = await display.wait_stable(0.05)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(display.wait_change)
                nursery.start_soon(display.wait_stable, 1000)
                await trio.testing.wait_all_tasks_blocked()
                await display.key("x")
                nursery.cancel_scope.cancel()
            assert (await display.wait_change(CELL, since=frame)).serial > frame.serial


@pytest.mark.parametrize("wait", ["wait_change", "wait_stable", "frames"])
async def test_who_waits_when_the_x_server_is_killed_is_told(wait: str) -> None:
    with serving(*OWN, "--", *TERMINAL, "-e", "bash", "-c", FLASH) as server:
        async with spiceshm.connect(server.address) as display:
            await terminal_is(display, GREEN)
            await display.wait_stable(0.2)
            waits = {
                "wait_change": lambda: display.wait_change(timeout=None),
                "wait_stable": lambda: display.wait_stable(1000, timeout=None),
                "frames": lambda: all_frames(display),
            }

            async def kill() -> None:
                await trio.testing.wait_all_tasks_blocked()
                os.kill(server_of(server.said["display"]), signal.SIGKILL)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill)
                began = time.monotonic()
                with trio.fail_after(DEADLINE):
                    with pytest.raises(spiceshm.Disconnected):
                        await waits[wait]()
                assert time.monotonic() - began < 5
        assert server.wait() == 1
        assert server.errors.endswith("was killed by signal 9\n")


async def all_frames(display: RemoteDisplay) -> None:
    async for _ in display.frames():
        pass


def test_in_ordinary_python_the_x_server_is_killed(report: Report) -> None:
    def kill() -> None:
        with sync.desktop(*dialog.command(report.path), width=WIDTH, height=HEIGHT) as desktop:
            begin(desktop.display)
            os.kill(server_of(desktop.x_display), signal.SIGKILL)
            desktop.display.wait_change(timeout=DEADLINE)

    with pytest.raises(spiceshm.SourceError, match=r"^Xvfb :\d+ was killed by signal 9$"):
        kill()
