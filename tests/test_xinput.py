"""Keys, buttons and pointer played to real X servers, and what programs there got of them.

Programs are xev and xterm, and a window of our own that keeps all events. What must come out is
held against xmodmap, xdotool and xset, which ask the X server by themselves.
"""

from __future__ import annotations

import contextlib
import logging
import random
import re
import signal
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import spiceshm
from spiceshm.errors import SourceError
from spiceshm.events import (
    CAPS_LOCK,
    EXTRA,
    NUM_LOCK,
    SCROLL_LOCK,
    SIDE,
    Button,
    Event,
    Key,
    Locks,
    PointerBy,
    PointerTo,
)
from spiceshm.nursery import open_nursery
from spiceshm.scancodes import LINUX, X_OFFSET
from spiceshm.sources.x11 import XDesktop
from spiceshm.sources.xcb import Lacking, XError
from spiceshm.sources.xinput import BATCH, XInput

from .programs import until
from .turns import idle
from .xvfb import environment, run, xvfb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

xcffib: Any = pytest.importorskip("xcffib", reason="needs xcffib (the extra x11)")
xproto: Any = pytest.importorskip("xcffib.xproto")

pytestmark = pytest.mark.peer("Xvfb", "xev", "xterm", "xdotool", "xmodmap", "xkbcomp", "xset")

DEADLINE_S = 30.0
A, B, CAPS, UP = 0x1E, 0x30, 0x3A, 0xE048

OTHER_KEYCODES = """xkb_keymap {
    xkb_keycodes { include "xfree86+aliases(qwerty)" };
    xkb_types { include "complete" };
    xkb_compat { include "complete" };
    xkb_symbols { include "pc+us" };
};
"""
"""What X servers without evdev have: most keys that are not on the oldest keyboards differ."""


def struck(*codes: int) -> list[Event]:
    return [Key(code, down) for code in codes for down in (True, False)]


class Window:
    """A window over the whole screen that has the keyboard's focus and keeps what it gets."""

    def __init__(self, display: str) -> None:
        self.connection = xcffib.connect(display)
        self.core = self.connection.core
        screen = self.connection.setup.roots[0]
        self.window = window = self.connection.generate_id()
        mask = xproto.EventMask
        wanted = mask.KeyPress | mask.KeyRelease | mask.ButtonPress | mask.ButtonRelease
        size = (screen.width_in_pixels, screen.height_in_pixels)
        parts = (window, screen.root, 0, 0, *size, 0, 1, 0, xproto.CW.EventMask, [wanted])
        self.core.CreateWindow(screen.root_depth, *parts)
        self.core.MapWindow(window)
        self.core.SetInputFocus(0, window, 0)
        self.sync()

    def sync(self) -> None:
        self.core.GetInputFocus().reply()

    def paint(self, colour: int) -> None:
        """All of it, in 0xRRGGBB."""
        self.core.ChangeWindowAttributes(self.window, xproto.CW.BackPixel, [colour])
        self.core.ClearArea(False, self.window, 0, 0, 0, 0)
        self.sync()

    def got(self) -> list[tuple[str, int]]:
        """What came since it was asked last: "KeyPress" and the like, and the number."""
        self.sync()
        found = []
        while (event := self.connection.poll_for_event()) is not None:
            if hasattr(event, "detail"):
                found.append((type(event).__name__.removesuffix("Event"), event.detail))
        return found


@contextlib.contextmanager
def window_on(display: str) -> Iterator[Window]:
    window = Window(display)
    try:
        yield window
    finally:
        window.connection.disconnect()


@contextlib.contextmanager
def xterm(display: str, script: str) -> Iterator[None]:
    """A shell script in an xterm that has the keyboard."""
    with subprocess.Popen(["xterm", "-e", "sh", "-c", script], env=environment(display)) as xterm:
        try:
            run(
                *(display, "xdotool", "search", "--sync", "--onlyvisible", "--class", "xterm"),
                *("windowfocus", "--sync"),
            )
            yield
        finally:
            xterm.terminate()


# keys


def seen_by_xev(display: str, events: list[Event]) -> list[tuple[int, str]]:
    """What a real program says of the keys that went down: their numbers and names."""
    with subprocess.Popen(
        ["xev", "-geometry", "640x480+0+0", "-event", "keyboard"],
        env=environment(display),
        stdout=subprocess.PIPE,
        text=True,
    ) as xev:
        assert xev.stdout is not None
        run(display, *["xdotool", "search", "--sync", "--onlyvisible", "--name", "Event.Tester"])
        found = []

        async def play() -> None:
            with XInput.open(display) as keyboard:
                await keyboard.play([PointerTo(99, 99), *events, *struck(A)])

        trio.run(play)
        pressed = False
        for line in xev.stdout:
            pressed = line.startswith("KeyPress") or (pressed and not line.startswith("Key"))
            if pressed and (match := re.search(r"keycode (\d+) \(keysym \w+, (\S+)\)", line)):
                found.append((int(match[1]), match[2]))
                if len(found) > 1 and found[-1][1] == "a":
                    break
        xev.terminate()
    return found[:-1]


def named_by_xmodmap(display: str) -> dict[int, str]:
    lines = run(display, "xmodmap", "-pke").decode().splitlines()
    words = [line.replace("=", "").split() for line in lines]
    return {int(line[1]): line[2] for line in words if len(line) > 2}


def every_key() -> tuple[list[int], list[Event]]:
    """All scan codes, A as the last, and all of them struck, with no lock on in between."""
    codes = [code for code in LINUX if code != A] + [A]
    return codes, [event for code in codes for event in (*struck(code), Locks(0))]


def test_every_key_arrives_at_a_program_as_what_it_is() -> None:
    codes, events = every_key()
    with xvfb(640, 480, 24) as display:
        seen = seen_by_xev(display, events[:-3])
        names = named_by_xmodmap(display)
    expected = [LINUX[code] + X_OFFSET for code in codes[:-1]]
    assert [number for number, _ in seen] == expected
    named = [(number, name) for number, name in seen if number in names]
    assert named == [(number, names[number]) for number, _ in named]
    assert len(named) > 100


def test_keys_are_found_by_their_names_where_numbers_differ(tmp_path: Path) -> None:
    (tmp_path / "map").write_text(OTHER_KEYCODES)
    _, events = every_key()
    with xvfb(640, 480, 24) as display:
        usual = [name for _, name in seen_by_xev(display, struck(UP, 0xE01D, 0xE05B, A))]
        run(display, "xkbcomp", "-w0", str(tmp_path / "map"), display)
        other = seen_by_xev(display, struck(UP, 0xE01D, 0xE05B, A))
        assert len(seen_by_xev(display, events)) > 95
    assert usual[:2] == ["Up", "Control_R"]
    assert [name for _, name in other] == usual
    assert other[0][0] == 98 != LINUX[UP] + X_OFFSET


async def test_a_change_of_the_keymap_is_noticed(tmp_path: Path) -> None:
    """A key that is held meanwhile is that key until it comes up."""
    (tmp_path / "map").write_text(OTHER_KEYCODES)
    with xvfb(640, 480, 24) as display, window_on(display) as window:
        with XInput.open(display) as keyboard:
            await keyboard.play([Key(UP, True)])
            run(display, "xkbcomp", "-w0", str(tmp_path / "map"), display)
            await keyboard.play([Key(UP, True), Key(UP, False), *struck(UP)])
            seen = window.got()
    assert [what for what in seen if what[1] in (98, 111)] == [
        *(("KeyPress", 111), ("KeyRelease", 111)),
        *(("KeyPress", 98), ("KeyRelease", 98)),
    ]


async def test_thousands_of_keys_arrive_in_order() -> None:
    letters = "qwertyuiop"
    random.seed(4)
    codes = [0x10 + letters.index(letter) for letter in random.choices(letters, k=2000)]
    with xvfb(640, 480, 24) as display, window_on(display) as window:
        with XInput.open(display) as keyboard:
            await keyboard.play(struck(*codes))
            seen = window.got()
    expected = [LINUX[code] + X_OFFSET for code in codes]
    assert len(expected) > BATCH
    assert [number for kind, number in seen if kind == "KeyPress"] == expected
    assert [number for kind, number in seen if kind == "KeyRelease"] == expected


async def test_a_terminal_reads_what_is_typed(tmp_path: Path) -> None:
    text = tmp_path / "text"
    typed = struck(0x23, 0x12, 0x26, 0x26, 0x18)  # hello
    shifted: list[Event] = [Key(0x2A, True), *struck(0x11), Key(0x2A, False)]
    line = [*typed, *shifted, *struck(0x1C)]
    with xvfb(640, 480, 24) as display, XInput.open(display) as keyboard:
        with xterm(display, f"head -n 200 > {text}.new; mv {text}.new {text}"):
            for _ in range(200):
                await keyboard.play(line)
            until(text.exists)
    assert text.read_text() == "helloW\n" * 200


async def test_a_held_key_is_repeated_by_the_x_server_alone() -> None:
    with xvfb(640, 480, 24) as display, window_on(display) as window:
        with XInput.open(display) as keyboard:
            run(display, "xset", "r", "rate", "200", "50")
            begun = time.monotonic()
            await keyboard.play([Key(A, True)] * 50)
            await keyboard.play([Key(A, True)] * 50)
            at_once = window.got()
            soon = time.monotonic() - begun < 0.2
            seen = list(at_once)
            until(lambda: seen.extend(window.got()) or len(seen) > 9)  # type: ignore[func-returns-value]
            await keyboard.play([Key(A, False)])
            window.got()
            run(display, "xset", "r", "off")
            await keyboard.play([Key(A, True)] * 9 + [Key(A, False)] * 9)
            still = window.got()
    assert not soon or at_once == [("KeyPress", 38)]
    assert {number for _, number in seen} == {38}
    assert still == [("KeyPress", 38), ("KeyRelease", 38)]


async def test_what_there_is_no_key_for_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with xvfb(640, 480, 24) as display, window_on(display) as window:
        with XInput.open(display) as keyboard, caplog.at_level(logging.DEBUG, "spiceshm.sources"):
            await keyboard.play([*struck(0xE07F), Button(0, True), Button(9, False), *struck(A)])
            seen = window.got()
    assert seen == [("KeyPress", 38), ("KeyRelease", 38)]
    assert [record.getMessage() for record in caplog.records] == [
        f"X display {display} has no key for scan code 0xe07f",
        f"X display {display} has no button 0",
        f"X display {display} has no button 9",
    ]


# the pointer


def place(display: str) -> tuple[int, int]:
    said = run(display, "xdotool", "getmouselocation").decode()
    x, y = (int(word.partition(":")[2]) for word in said.split()[:2])
    return x, y


async def test_the_pointer_goes_where_it_is_told() -> None:
    with xvfb(640, 480, 24) as display, XInput.open(display) as pointer:
        run(display, "xset", "m", "10/1", "1")  # acceleration is for hands, not for numbers
        for events, expected in (
            ([PointerTo(100, 200)], (100, 200)),
            ([PointerBy(70, -50), PointerBy(7, 5)], (177, 155)),
            ([PointerTo(10**6, 10**6)], (639, 479)),
            ([PointerTo(0, 479), PointerBy(3, -(10**6))], (3, 0)),
            ([PointerBy(10**6, 0)], (639, 0)),
        ):
            await pointer.play(events)  # type: ignore[arg-type]
            assert place(display) == expected


async def test_buttons_are_what_x_calls_them() -> None:
    """Two more than the wheel are the ones at the side, which X numbers after a second wheel."""
    with xvfb(640, 480, 24) as display, window_on(display) as window:
        with XInput.open(display) as pointer:
            clicks = [Button(b, down) for b in range(1, EXTRA + 1) for down in (True, False)]
            await pointer.play(clicks)
            seen = window.got()
    pressed = [number for kind, number in seen if kind == "ButtonPress"]
    assert pressed == [1, 2, 3, 4, 5, 8, 9]
    assert [number for kind, number in seen if kind == "ButtonRelease"] == pressed
    assert pressed[SIDE - 1] == 8


async def test_a_program_that_has_grabbed_the_server_gets_what_it_waits_for() -> None:
    with xvfb(640, 480, 24) as display, window_on(display) as window:
        with XInput.open(display) as pointer:
            window.core.GrabServer()
            window.sync()
            with trio.fail_after(DEADLINE_S):
                await pointer.play([Button(1, True), Button(1, False), *struck(A)])
            seen = window.got()
    assert [kind for kind, _ in seen] == ["ButtonPress", "ButtonRelease", "KeyPress", "KeyRelease"]


# locks


def lights(display: str) -> int:
    """The locks that are on, as xset says."""
    said = run(display, "xset", "q").decode()
    on = [f"{name} Lock:" for name in ("Scroll", "Num", "Caps")]
    return sum(1 << bit for bit, name in enumerate(on) if re.search(rf"{name}\s+on", said))


class Told:
    """Lock states as they are told; `next` waits for one more."""

    def __init__(self) -> None:
        self.states: list[int] = []
        self._more = trio.Event()

    def __call__(self, state: int) -> None:
        self.states.append(state)
        self._more.set()
        self._more = trio.Event()

    async def next(self, count: int) -> int:
        with trio.fail_after(DEADLINE_S):
            while len(self.states) < count:
                await self._more.wait()
        return self.states[count - 1]


@contextlib.asynccontextmanager
async def watching(keyboard: XInput) -> AsyncIterator[Told]:
    """What is told from now on; the locks of now are told already."""
    told = Told()
    async with trio.open_nursery() as nursery:
        await nursery.start(keyboard.watch, told)
        yield told
        nursery.cancel_scope.cancel()


async def test_locks_are_told_and_set() -> None:
    with xvfb(640, 480, 24) as display, XInput.open(display) as keyboard:
        run(display, "xdotool", "key", "Num_Lock")
        async with watching(keyboard) as told:
            assert told.states == [NUM_LOCK]

            await keyboard.play(struck(CAPS))  # told before it returns
            assert told.states == [NUM_LOCK, NUM_LOCK | CAPS_LOCK]
            await keyboard.play([Locks(NUM_LOCK | CAPS_LOCK)])
            assert len(told.states) == 2
            await keyboard.play([Locks(CAPS_LOCK)])
            assert told.states[2:] == [CAPS_LOCK]
            assert lights(display) == CAPS_LOCK
            await keyboard.play([Locks(0)])
            assert told.states[3:] == [0]

            run(display, "xdotool", "key", "Caps_Lock")
            assert await told.next(5) == CAPS_LOCK
            await keyboard.play(struck(A, B, UP))
            assert len(told.states) == 5


async def test_locks_are_told_whoever_looks_first() -> None:
    """What others do is told by the task that watches, also while another one plays."""
    with xvfb(640, 480, 24) as display, XInput.open(display) as keyboard:
        async with watching(keyboard) as told, trio.open_nursery() as nursery:

            async def play() -> None:
                while True:
                    await keyboard.play(struck(A))

            nursery.start_soon(play)
            for number in range(1, 20):
                await trio.to_thread.run_sync(run, display, "xdotool", "key", "Caps_Lock")
                assert await told.next(number + 1) == number % 2 * CAPS_LOCK
            nursery.cancel_scope.cancel()


async def test_locks_that_the_keymap_has_no_key_for() -> None:
    """Caps Lock as a further Ctrl: it can be set all the same. Scroll Lock is nothing here."""
    with xvfb(640, 480, 24) as display, XInput.open(display) as keyboard:
        run(display, "setxkbmap", "-option", "ctrl:nocaps", "us")
        async with watching(keyboard) as told:
            await keyboard.play([Locks(CAPS_LOCK | SCROLL_LOCK)])
        assert told.states == [0, CAPS_LOCK]
        assert lights(display) == CAPS_LOCK


# what is seen of it


async def test_what_comes_of_a_key_does_not_wait_for_the_next_frames_time(tmp_path: Path) -> None:
    """At a frame in 100 s: each key has one of its own, and without keys there is none."""
    with xvfb(64, 48, 24) as display, window_on(display) as window:
        async with (
            XDesktop.open(display) as desktop,
            spiceshm.serve(f"unix:{tmp_path}/s", inputs=desktop.play) as shown,
            open_nursery() as nursery,
        ):
            await nursery.start(partial(desktop.show, shown, fps=0.01))
            async with spiceshm.connect(f"unix:{tmp_path}/s") as remote:
                first = (await remote.latest()).serial
                for count in range(1, 6):
                    await remote.key("a")
                    window.paint(count)
                    frame = await remote.wait_change(timeout=DEADLINE_S)
                    assert frame.pixels[0, 0, 0] == count
                    assert frame.serial == first + count
                for colour in range(10):
                    window.paint(colour)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                await remote.key("a")
                frame = await remote.wait_change(timeout=DEADLINE_S)
                assert frame.pixels[0, 0, 0] == 9
                assert frame.serial == first + 6
            nursery.cancel_scope.cancel()


# X servers that cannot, hang or end


async def test_without_xtest_there_is_looking(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with xvfb(64, 48, 24, "-extension", "XTEST") as display:
        with pytest.raises(Lacking, match=f"^X display {display} lacks the extension XTEST$"):
            XInput.open(display)
        async with XDesktop.open(display) as desktop:
            assert desktop.play is None
            async with (
                spiceshm.serve(f"unix:{tmp_path}/s", inputs=desktop.play) as shown,
                trio.open_nursery() as nursery,
            ):
                await nursery.start(partial(desktop.show, shown, fps=60))
                async with spiceshm.connect(f"unix:{tmp_path}/s") as remote:
                    frame = await anext(remote.frames())
                    assert frame.pixels.shape == (48, 64, 4)
                nursery.cancel_scope.cancel()
    assert "lacks the extension XTEST: clients can look but not act" in caplog.text


async def test_an_x_server_that_hangs_holds_up_nobody_else() -> None:
    """The trio loop goes on, however much is to be played, and what was sent is done later."""
    flood = struck(A) * 50_000
    with xvfb(640, 480, 24) as display, window_on(display) as window:
        with XInput.open(display) as keyboard:
            await keyboard.play(struck(A))
            await keyboard.play([])  # with its first key the X server has noticed its keyboard
            display.process.send_signal(signal.SIGSTOP)
            for _ in range(300):
                with trio.move_on_after(0.001) as gave_up:
                    await keyboard.play(flood)
                assert gave_up.cancelled_caught
            display.process.send_signal(signal.SIGCONT)
            with trio.fail_after(DEADLINE_S):
                await keyboard.play([Key(A, False), *struck(B)])
            seen = window.got()
    assert seen[-2:] == [("KeyPress", 56), ("KeyRelease", 56)]
    assert len(seen) == 2 + BATCH + 2


async def test_the_x_server_ends_while_something_is_played() -> None:
    with xvfb(640, 480, 24) as display, XInput.open(display) as keyboard:
        failures: list[str] = []

        async def play_on() -> None:
            while True:
                await keyboard.play(struck(A))

        async def play() -> None:
            with pytest.raises(SourceError) as caught:
                await play_on()
            failures.append(str(caught.value))

        async def watch() -> None:
            with pytest.raises(SourceError) as caught:
                await keyboard.watch(lambda state: None)
            failures.append(str(caught.value))

        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(play)
                nursery.start_soon(watch)
                await trio.testing.wait_all_tasks_blocked()
                display.process.kill()
        assert failures == [f"X display {display} closed the connection"] * 2
        with pytest.raises(XError):
            await keyboard.play([])


async def test_nobody_is_woken_while_nothing_changes() -> None:
    with xvfb(640, 480, 24) as display, XInput.open(display) as keyboard:
        async with watching(keyboard) as told:
            await keyboard.play(struck(A))
            run(display, "xdotool", "mousemove", "5", "5", "key", "a", "click", "1")
            assert await idle() == 0
            run(display, "xdotool", "key", "Caps_Lock")
            assert await told.next(2) == CAPS_LOCK
