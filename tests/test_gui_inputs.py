"""Keys, buttons and the pointer on real desktops: what real programs and the X server say of them,
in the end and when whoever pressed them is killed; and the same from a shell."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio

import spiceshm
from tests import dialog
from tests.dialog import BAR, HEIGHT, TERMINAL, WIDTH
from tests.gui import (
    GREEN,
    OWN,
    Report,
    button_in,
    corner,
    dialog_begins,
    focus,
    opened,
    reporting,
    terminal_is,
)
from tests.programs import (
    DEADLINE,
    Program,
    Server,
    command,
    look,
    script,
    serving,
    short_directory,
    until,
)
from tests.test_programs import decoded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from spiceshm import RemoteDisplay

xcffib: Any = pytest.importorskip("xcffib", reason="needs xcffib (the extra x11)")
xfixes: Any = pytest.importorskip("xcffib.xfixes")

pytestmark = pytest.mark.peer("Xvfb", "xterm", "xdotool", "xev", "xset", "setxkbmap")


@pytest.fixture
def report() -> Iterator[Report]:
    with reporting() as pipe:
        yield pipe


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for pictures."""
    with short_directory() as path:
        yield path


def run(environment: dict[str, str], *words: str) -> str:
    """Run a program on a desktop to its end; what it printed."""
    return subprocess.run(
        words, env=environment, check=True, timeout=DEADLINE, stdout=subprocess.PIPE, text=True
    ).stdout


# Typing


def reader(report: Report) -> tuple[str, ...]:
    """A terminal, green when it is ready, whose program passes on what it reads as it comes."""
    shell = r"stty raw -echo; printf '\033[?25l\033[42m\033[2J'; exec cat >" + report.path
    utf8 = ("env", "LC_ALL=C.UTF-8", *TERMINAL, "-u8")
    return (*utf8, "-e", "sh", "-c", shell)


PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))
GERMAN = PRINTABLE + "äöüÄÖÜ§°²³€"
NOT_WITH_CAPS_LOCK = "ßµ"
"""Their keys give capitals of them then."""


def long_text(characters: str, length: int) -> str:
    """All of the characters, and then some of them in any order."""
    rest = random.Random(1).choices(characters + "\n\t", k=length - len(characters))
    return characters + "".join(rest)


async def arrives(display: RemoteDisplay, report: Report, text: str) -> None:
    """Type a text in one call; the terminal has Enter for the ends of lines."""
    expected = text.replace("\n", "\r").encode()
    await display.type(text)
    assert await report.read(len(expected)) == expected


def caps_lock(environment: dict[str, str]) -> str:
    match = re.search(r"Caps Lock:\s+(\w+)", run(environment, "xset", "q"))
    assert match
    return match[1]


async def test_thousands_of_characters_arrive_as_typed(report: Report) -> None:
    async with opened(*reader(report)) as desktop:
        await terminal_is(desktop.display, GREEN)
        await arrives(desktop.display, report, long_text(PRINTABLE, 5000))
        await desktop.display.key("Caps_Lock")
        assert caps_lock(desktop.environment) == "on"
        await arrives(desktop.display, report, long_text(PRINTABLE, 1000))
        assert caps_lock(desktop.environment) == "on"
        await desktop.display.key("caps")
        assert caps_lock(desktop.environment) == "off"
        await arrives(desktop.display, report, PRINTABLE)


async def test_caps_lock_was_pressed_by_somebody_else(report: Report) -> None:
    """Just before each text, so that nobody here has heard of it yet."""
    async with opened(*reader(report)) as desktop:
        await terminal_is(desktop.display, GREEN)
        for number in range(40):
            run(desktop.environment, "xdotool", "key", "Caps_Lock")
            await arrives(desktop.display, report, f"aB{number}")


async def test_a_german_keyboard(report: Report) -> None:
    async with opened(*reader(report)) as desktop:
        await terminal_is(desktop.display, GREEN)
        run(desktop.environment, "setxkbmap", "de")
        async with spiceshm.connect(desktop.address, keyboard="de") as display:
            await arrives(display, report, long_text(GERMAN + NOT_WITH_CAPS_LOCK, 2000))
            await display.key("Caps_Lock")
            await arrives(display, report, long_text(GERMAN, 1000))
            for character in NOT_WITH_CAPS_LOCK:
                with pytest.raises(spiceshm.CannotType, match="while Caps Lock is on"):
                    await display.type(f"a{character}")
            await arrives(display, report, "Nothing came of it.")
            assert caps_lock(desktop.environment) == "on"


KEYS = {
    **{f"F{number}": f"F{number}" for number in range(1, 13)},
    **{name: name for name in ("Up", "Down", "Left", "Right", "Home", "End", "Insert", "Delete")},
    **{"PageUp": "Prior", "Page_Down": "Next", "Tab": "Tab", "Escape": "Escape", "esc": "Escape"},
    **{"BackSpace": "BackSpace", "Return": "Return", "enter": "Return", "space": "space"},
    **{"ctrl": "Control_L", "Shift_R": "Shift_R", "alt": "Alt_L", "super": "Super_L"},
    **{"Menu": "Menu", "Print": "Print", "Pause": "Pause", "Scroll_Lock": "Scroll_Lock"},
    **{f"KP_{name}": f"KP_{name}" for name in ("Add", "Subtract", "Multiply", "Divide", "Enter")},
    **{"KP_7": "KP_Home", "KP_5": "KP_Begin", "KP_0": "KP_Insert", "KP_Decimal": "KP_Delete"},
}
"""Names of keys, and what X calls that which they give while Num Lock is off."""


def said_by_xev(xev: Program) -> list[str]:
    """The keys that it saw up to the letter q: "+" and the name for down, "-" for up."""
    found = []
    kind = ""
    while "-q" not in found:
        line = xev.line()
        if line.startswith("Key"):
            kind = "+" if line.startswith("KeyPress") else "-"
        elif kind and (match := re.search(r"keysym \w+, (\S+)\)", line)):
            found.append(kind + match[1])
            kind = ""
    return found[:-2]


async def test_keys_arrive_by_their_names() -> None:
    xev = ["xev", "-geometry", f"{WIDTH}x{HEIGHT}+0+0", "-event", "keyboard"]
    async with opened() as desktop:
        with Program(xev, desktop.environment) as program:
            focus(desktop.environment, "Event Tester")
            display = desktop.display
            for name in KEYS:
                await display.key(name)
            await display.key("q")
            expected = [sign + name for name in KEYS.values() for sign in "+-"]
            assert said_by_xev(program) == expected

            await display.key("Num_Lock")
            for number in range(10):
                await display.key(f"KP_{number}")
            await display.key("KP_Decimal")
            await display.key("Num_Lock")
            names = ["Num_Lock", *(f"KP_{number}" for number in range(10)), "KP_Decimal"]
            await display.key("q")
            assert said_by_xev(program) == [s + name for name in [*names, names[0]] for s in "+-"]

            await display.key("ctrl+shift+F5")
            await display.key("super+L")
            await display.key("q")
            one = "+Control_L +Shift_L +F5 -F5 -Shift_L -Control_L"
            two = "+Super_L +Shift_L +L -L -Shift_L -Super_L"
            assert said_by_xev(program) == [*one.split(), *two.split()]


# Who holds something and is killed


class Pressed:
    """Asks an X server by itself what is down."""

    def __init__(self, server: Server) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XAUTHORITY", server.said["xauthority"])
            self._connection = xcffib.connect(server.said["display"])
        self._root = self._connection.setup.roots[0].root

    def now(self) -> tuple[set[int], int]:
        """The numbers of the keys, and a bit for each button."""
        core = self._connection.core
        keys = core.QueryKeymap().reply().keys
        down = {n for n in range(256) if keys[n // 8] >> n % 8 & 1}
        return down, core.QueryPointer(self._root).reply().mask >> 8 & 0x1F

    def __enter__(self) -> Pressed:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.disconnect()


NOTHING: tuple[set[int], int] = (set(), 0)
SHIFT_AND_LEFT = ({50}, 1)

HOLDER = """
import signal, sys
from spiceshm import sync
with sync.connect(sys.argv[1]) as display:
    display.move(50, 60)
    with display.hold("shift"), display.hold_button("left"):
        print("holding", flush=True)
        signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_client_holds_nothing(number: signal.Signals) -> None:
    with serving(*OWN) as server, Pressed(server) as pressed:
        assert pressed.now() == NOTHING
        with script(HOLDER, server.address) as holder:
            assert holder.line() == "holding"
            assert pressed.now() == SHIFT_AND_LEFT
            holder.send(number)
            assert holder.wait() == -number
            until(lambda: pressed.now() == NOTHING)


def test_a_stopped_client_holds_until_it_is_killed() -> None:
    """Others can act meanwhile; what they press and let go is not what it holds."""
    with serving(*OWN) as server, Pressed(server) as pressed:
        with script(HOLDER, server.address) as holder:
            assert holder.line() == "holding"
            holder.send(signal.SIGSTOP)
            words = ["--type", "Ab", "--click", "9,9", "--wait-change", "1.5"]
            assert look(*words, server.address).returncode == 4
            assert pressed.now() == SHIFT_AND_LEFT
            holder.send(signal.SIGKILL)
            until(lambda: pressed.now() == NOTHING)


async def test_a_client_that_is_killed_while_it_types(report: Report) -> None:
    text = "Ab" * 15000
    with serving(*OWN, "--", *reader(report)) as server, Pressed(server) as pressed:
        async with spiceshm.connect(server.address) as display:
            await terminal_is(display, GREEN)
            with Program(command("client", "--type", text, server.address)) as typist:
                begun = await report.read(100)
                typist.send(signal.SIGKILL)
                assert typist.wait() == -signal.SIGKILL
            until(lambda: pressed.now() == NOTHING)
            await display.type("End.")
            arrived = (begun + await report.read_until(b"End.")).decode()
    assert text.startswith(arrived)
    assert len(arrived) < len(text)


# The pointer


def pointer_of_x(environment: dict[str, str]) -> tuple[int, int]:
    words = run(environment, "xdotool", "getmouselocation").split()
    x, y = (int(word.partition(":")[2]) for word in words[:2])
    return x, y


async def test_who_connects_is_told_where_the_pointer_is() -> None:
    """It was moved by others while nobody looked at it."""
    async with opened() as desktop:
        for number in range(20):
            x, y = 10 + 29 * number, 400 - 17 * number
            run(desktop.environment, "xdotool", "mousemove", str(x), str(y))
            async with spiceshm.connect(desktop.address, view_only=True) as display:
                now = await display.cursor()
                assert (now.x, now.y) == (x, y) == pointer_of_x(desktop.environment)
                assert now.visible
                if number % 2:  # while it is followed, which is no more often than frames are made
                    await desktop.display.move(3, 4)


def with_pointer(picture: NDArray[np.uint8], environment: dict[str, str]) -> NDArray[np.uint8]:
    """The picture with the pointer as the X server has it, which is asked by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XAUTHORITY", environment["XAUTHORITY"])
        connection = xcffib.connect(environment["DISPLAY"])
    extension = connection(xfixes.key)
    extension.QueryVersion(4, 0).reply()
    it = extension.GetCursorImage().reply()
    pixels = np.array(it.cursor_image, np.uint32).view(np.uint8).reshape(it.height, it.width, 4)
    connection.disconnect()
    top, left = it.y - it.yhot, it.x - it.xhot
    margin = np.pad(picture, ((64, 64), (64, 64), (0, 0))).astype(float)
    part = margin[64 + top :, 64 + left :][: it.height, : it.width]
    part *= 1 - pixels[:, :, 3:] / 255
    part += pixels[:, :, 2::-1]
    return margin[64:-64, 64:-64].round().astype(np.uint8)


@pytest.mark.parametrize("spot", [(100, 120), (0, 0), (WIDTH - 1, HEIGHT - 1), (300, 476)])
async def test_a_screenshot_with_the_pointer(report: Report, spot: tuple[int, int]) -> None:
    """Over a terminal and over the desktop below of it, which have pointers of their own."""
    async with opened(*reader(report)) as desktop:
        await terminal_is(desktop.display, GREEN)
        run(desktop.environment, "xdotool", "mousemove", *map(str, spot))
        async with spiceshm.connect(desktop.address) as display:
            plain = await display.screenshot()
            shown = await display.screenshot(cursor=True)
            part = await display.screenshot((100, 80, 200, 300), cursor=True)
            assert pointer_of_x(desktop.environment) == spot
            expected = with_pointer(plain, desktop.environment)
    assert (expected != plain).any()
    assert np.array_equal(shown, expected)
    assert np.array_equal(part, expected[100:200, 80:300])


# From a shell


async def begins(address: str) -> None:
    async with spiceshm.connect(address, view_only=True) as display:
        await dialog_begins(display)


def test_a_dialog_from_a_shell(report: Report, place: Path) -> None:
    top, left, bottom, right = BAR
    bar = ["--region", f"{left},{top},{right - left},{bottom - top}"]
    change = [*bar, "--wait-change", f"{DEADLINE}", "--region", "all"]
    with serving(*OWN, "--", *dialog.command(report.path)) as server:
        trio.run(begins, server.address)
        for number in range(3):
            words = [*bar, "--type", f"Hello {number}!", "--key", "Return", *change]
            words += ["--wait-stable", "0.1", "--screenshot", f"{place}/before.png"]
            done = look("--json", *words, server.address)
            assert (done.returncode, done.stderr) == (0, b"")
            told = json.loads(done.stdout)
            names = [action["action"] for action in told["actions"]]
            assert names == ["type", "key", "wait-change", "wait-stable", "screenshot"]
            assert all(action["ok"] for action in told["actions"])
            assert trio.run(report.line) == f"read Hello {number}!"

            x, y = corner(button_in(decoded(place / "before.png")), number)
            words = ["--click", f"{x},{y}", *change, "--screenshot", f"{place}/after.png"]
            assert look(*words, server.address).returncode == 0
            assert trio.run(report.line) == "pressed"
            assert button_in(decoded(place / "after.png")) is None


def test_how_it_ends_for_a_shell(report: Report) -> None:
    with serving(*OWN, "--", *dialog.command(report.path)) as server:
        trio.run(begins, server.address)
        for words in (["--wait-change", "0.2"], ["--timeout", "0.2", "--wait-stable", "9"]):
            done = look("--json", *words, server.address)
            assert done.returncode == 4
            assert json.loads(done.stdout)["actions"][-1]["ok"] is False
        words = ["-v", "--type", "Hello", "--wait-stable", "0.1", "--wait-change", "1000"]
        with Program(command("client", *words, server.address)) as waiting:
            until(lambda: f"{WIDTH}x{HEIGHT}" in waiting.errors)
            server.send(signal.SIGKILL)
            assert waiting.wait() == 5
            assert waiting.errors.splitlines()[-1].startswith("spiceshm-client: --")
