"""A viewer that people have, on an X screen of its own, driven by hand: what its user does arrives,
and the pointer that the user sees is the one that we drew."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import trio
import xcffib.xfixes

import spiceshm
from spiceshm import scancodes
from spiceshm.events import (
    CAPS_LOCK,
    WHEEL_DOWN,
    WHEEL_UP,
    Button,
    CursorShape,
    Event,
    Key,
    Locks,
    PointerTo,
)
from tests.interop.viewers import eventually, opened
from tests.programs import DEADLINE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.interop.viewers import Viewer

pytestmark = pytest.mark.peer("spicy", "Xvfb", "xdotool")

WIDTH, HEIGHT = 640, 480
A, SHIFT, CAPS = 0x1E, 0x2A, 0x3A
UP, RIGHT = 0xE048, 0xE04D


class Scene(NamedTuple):
    """A server, and spicy that shows it."""

    display: spiceshm.Display
    played: list[Event]
    spicy: Viewer

    async def do(self, *command: str) -> None:
        """What the user does: a command of xdotool."""
        await self.spicy.do(*command)

    async def played_are(self, *events: Event) -> None:
        """Wait until these were played since the last time, and nothing else."""
        await eventually(lambda: len(self.played) >= len(events))
        assert self.played == [*events]
        self.played.clear()


@contextlib.asynccontextmanager
async def scene(place: Path, *before: str) -> AsyncIterator[Scene]:
    """spicy is there, its pointer over the surface; ``before`` that xdotool does something."""
    played: list[Event] = []

    async def play(events: Sequence[Event]) -> None:
        played.extend(events)

    async with spiceshm.serve(f"unix:{place}/s", inputs=play) as display:
        display.create_surface(WIDTH, HEIGHT).draw(np.zeros((HEIGHT, WIDTH, 4), np.uint8))
        display.set_cursor(None)
        async with opened("spicy", f"spice+unix://{place}/s", before=before) as spicy:
            await eventually(lambda: any(isinstance(event, Locks) for event in played))
            with trio.fail_after(DEADLINE):
                while not any(isinstance(event, PointerTo) for event in played):
                    await spicy.do("mousemove", "200", "200", "mousemove", "250", "250")
            await spicy.do("mousemove", "300", "300")  # which comes after all of those
            await eventually(lambda: played[-1] == _at(300, played))
            yield Scene(display, played, spicy)


def _at(x: int, played: list[Event]) -> PointerTo:
    """The place at column ``x``: the window's bars are above the surface, and as high as fonts."""
    places = [event for event in played if isinstance(event, PointerTo)]
    return PointerTo(x, places[-1].y)


def pressed(*codes: int) -> list[Event]:
    return [Key(code, down) for code in codes for down in (True, False)]


async def test_keys_buttons_and_the_wheel(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        it.played.clear()
        await it.do("key", "a")
        await it.played_are(*pressed(A))
        await it.do("keydown", "shift", "key", "a", "keyup", "shift")
        await it.played_are(Key(SHIFT, True), *pressed(A), Key(SHIFT, False))
        await it.do("key", "Up", "key", "Right", "key", "Pause")
        await it.played_are(*pressed(UP, RIGHT, scancodes.PAUSE))
        for button in (1, 2, 3, WHEEL_UP, WHEEL_DOWN):
            await it.do("click", str(button))
            await it.played_are(Button(button, True), Button(button, False))
        [viewer] = it.display.viewers
        assert viewer.stats.input == "yes"
        assert viewer.stats.input_held == 0


async def test_the_pointer_goes_on_moving(tmp_path: Path) -> None:
    """Far beyond the eight motions that may be on their way: they are acknowledged."""
    async with scene(tmp_path) as it:
        places = [_at(x, it.played) for x in range(301, 341)]
        it.played.clear()
        for place in places:
            await it.do("mousemove", str(place.x), "300")
            await eventually(lambda place=place: it.played and it.played[-1] == place)
        assert it.played == places


async def test_locks_both_ways(tmp_path: Path) -> None:
    """A viewer tells of its own Caps Lock when it comes, and a key toggles it like any other."""
    async with scene(tmp_path, "key", "Caps_Lock") as it:
        assert it.played[0] == Locks(CAPS_LOCK)
        it.display.set_locks(CAPS_LOCK)
        it.played.clear()
        await it.do("key", "Caps_Lock")
        await it.played_are(*pressed(CAPS))
        it.display.set_locks(0)
        await it.do("key", "a")
        await it.played_are(*pressed(A))


async def test_the_pointer_that_the_user_sees_is_ours(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        connection = it.spicy.screen.connection
        for seed, (width, height) in enumerate([(24, 24), (7, 31), (64, 40)]):
            picture = np.random.default_rng(seed).integers(0, 255, (height, width, 4), np.uint8)
            picture[:, :, 3] = 255
            it.display.set_cursor(CursorShape(picture, 3, 5))
            it.display.move_cursor(seed, seed)
            await eventually(lambda seen=picture: _shows(connection, seen))
        it.display.set_cursor(None)
        await eventually(lambda: not _pointer(connection)[0][:, :, 3].any())


def _shows(connection: xcffib.Connection, picture: np.ndarray) -> bool:
    pixels, hot = _pointer(connection)
    return hot == (3, 5) and np.array_equal(pixels, picture)


def _pointer(connection: xcffib.Connection) -> tuple[np.ndarray, tuple[int, int]]:
    """The pointer's picture on the X screen, (height, width, 4) of B, G, R, A, and its hot spot."""
    fixes = connection(xcffib.xfixes.key)
    fixes.QueryVersion(5, 0).reply()
    image = fixes.GetCursorImage().reply()
    pixels = np.array(image.cursor_image, "<u4").view(np.uint8)
    return pixels.reshape(image.height, image.width, 4), (image.xhot, image.yhot)
