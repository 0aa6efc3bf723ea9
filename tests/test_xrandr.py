"""Real X servers get another size, or say why not; what we made for it does not stay behind.

Xvnc can have any size, Xorg with the driver for no screen is the server of real ones, and Xvfb has
the size that it started with.
"""

from __future__ import annotations

import contextlib
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
import xcffib
import xcffib.randr
import xcffib.xproto

import spiceshm
from spiceshm.errors import SourceError
from spiceshm.sources.x11 import XDesktop
from spiceshm.sources.xcb import Lacking, XError
from spiceshm.sources.xrandr import XRandr
from tests.programs import DEADLINE
from tests.xvfb import run, xorg, xvfb, xvnc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.xvfb import Display

pytestmark = pytest.mark.peer("Xvnc", "Xorg", "Xvfb", "xrandr")

SIZES = [(700, 500), (1500, 400), (501, 1203), (501, 1203), (3840, 2160), (65, 64), (800, 600)]


@contextlib.contextmanager
def server(kind: str, folder: Path) -> Iterator[Display]:
    with xvnc(1024, 768) if kind == "Xvnc" else xorg(folder) as display:
        yield display


both = pytest.mark.parametrize("kind", ["Xvnc", "Xorg"])


class Look:
    """What the X server has, as another client sees it."""

    def __init__(self, display: str) -> None:
        self.connection = xcffib.connect(display=display)
        self.root = self.connection.get_setup().roots[0].root
        self.randr = self.connection(xcffib.randr.key)
        self.randr.QueryVersion(1, 3).reply()

    @property
    def size(self) -> tuple[int, int]:
        geometry = self.connection.core.GetGeometry(self.root).reply()
        return geometry.width, geometry.height

    @property
    def resources(self) -> xcffib.randr.GetScreenResourcesCurrentReply:
        return self.randr.GetScreenResourcesCurrent(self.root).reply()

    @property
    def output_sizes(self) -> list[tuple[int, int]]:
        infos = [self.randr.GetCrtcInfo(crtc, 0).reply() for crtc in self.resources.crtcs]
        return [(info.width, info.height) for info in infos if info.mode]

    @property
    def our_modes(self) -> list[str]:
        resources, found, at = self.resources, [], 0
        for mode in resources.modes:
            found.append(bytes(resources.names)[at : at + mode.name_len].decode())
            at += mode.name_len
        return [name for name in found if name.startswith("spiceshm-")]

    def set_edid(self, data: bytes) -> None:
        atom = self.connection.core.InternAtom(False, 4, "EDID").reply().atom
        integer = xcffib.xproto.Atom.INTEGER
        output = self.resources.outputs[0]
        self.randr.ChangeOutputProperty(
            output, atom, integer, 8, 0, len(data), data, is_checked=True
        ).check()


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def looking(stack: contextlib.ExitStack, display: str) -> Look:
    look = Look(display)
    stack.callback(look.connection.disconnect)
    return look


async def resize(display: str, width: int, height: int) -> None:
    with XRandr.open(display) as randr:
        await randr.resize(width, height)


@both
async def test_any_size_and_no_mode_stays(
    kind: str, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    with server(kind, tmp_path) as display:
        look = looking(stack, display)
        for size in SIZES:
            await resize(display, *size)
            assert look.size == size
            assert look.output_sizes == [size]
            known = size == (800, 600)
            assert look.our_modes == ([] if known else ["spiceshm-{}x{}".format(*size)])


@both
async def test_no_size_in_between_is_seen(
    kind: str, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    """Wider and lower at once takes two steps; whoever asks meanwhile waits for the last."""
    with server(kind, tmp_path) as display, XRandr.open(display) as randr:
        look = looking(stack, display)
        seen: set[tuple[int, int]] = set()
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                while True:
                    seen.add(await trio.to_thread.run_sync(lambda: look.size))

            nursery.start_soon(watch)
            for step in range(20):
                await randr.resize(*((1300, 300), (300, 1300))[step % 2])
            nursery.cancel_scope.cancel()
        assert seen <= {(1024, 768), (1300, 300), (300, 1300)}


@both
async def test_what_the_server_cannot(
    kind: str, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    with server(kind, tmp_path) as display:
        look = looking(stack, display)
        with pytest.raises(SourceError, match=f"^X display {display} can be .* to .* pixels$"):
            await resize(display, 10, 10)
        if kind == "Xorg":  # its video memory has no room for it
            with pytest.raises(SourceError, match=f"^X display {display} refused 9000x8000: "):
                await resize(display, 9000, 8000)
        assert look.size == (1024, 768)
        assert look.output_sizes == [(1024, 768)]
        assert look.our_modes == []


@both
async def test_what_the_output_refuses_is_undone(
    kind: str, tmp_path: Path, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No output here refuses a mode that it has taken, so the refusal is made up."""

    def refuse(randr: XRandr, *_: object) -> None:
        raise XError("it does not want to")

    monkeypatch.setattr(XRandr, "_set_output", refuse)
    with server(kind, tmp_path) as display:
        look = looking(stack, display)
        with pytest.raises(SourceError, match="it does not want to"):
            await resize(display, 1300, 300)
        assert look.size == (1024, 768)
        assert look.output_sizes == [(1024, 768)]
        assert look.our_modes == []


async def test_xvfb_has_one_size(stack: contextlib.ExitStack) -> None:
    with xvfb(640, 480, 24) as display:
        look = looking(stack, display)
        for size in ((320, 200), (641, 480)):
            with pytest.raises(SourceError, match=f"^X display {display} has one size only$"):
                await resize(display, *size)
        assert look.size == (640, 480)
        assert look.our_modes == []


async def test_without_randr() -> None:
    with xvfb(64, 48, 24, "-extension", "RANDR") as display:
        with pytest.raises(Lacking, match=f"^X display {display} lacks the extension RANDR$"):
            await resize(display, 32, 32)


async def test_a_real_screen_is_not_changed(tmp_path: Path, stack: contextlib.ExitStack) -> None:
    with xorg(tmp_path) as display:
        look = looking(stack, display)
        look.set_edid(b"")
        await resize(display, 700, 500)
        look.set_edid(bytes(128))
        with pytest.raises(SourceError, match=r"is on a real screen \(DUMMY0\), which is not"):
            await resize(display, 800, 600)
        assert look.size == (700, 500)


async def test_neither_are_several_outputs(tmp_path: Path, stack: contextlib.ExitStack) -> None:
    with xorg(tmp_path) as display:
        look = looking(stack, display)
        run(display, "xrandr", "--addmode", "DUMMY1", "640x480")
        run(display, "xrandr", "--output", "DUMMY1", "--mode", "640x480", "--right-of", "DUMMY0")
        before = look.size
        with pytest.raises(SourceError, match="has 2 outputs in use, not one"):
            await resize(display, 800, 600)
        run(display, "xrandr", "--output", "DUMMY0", "--off", "--output", "DUMMY1", "--off")
        with pytest.raises(SourceError, match="has 0 outputs in use, not one"):
            await resize(display, 800, 600)
        assert before == (1024 + 640, 768)


async def test_an_x_server_that_hangs_or_dies() -> None:
    with xvnc(1024, 768) as display:
        start = time.monotonic()
        with XRandr.open(display) as randr:
            display.process.send_signal(signal.SIGSTOP)
            with trio.move_on_after(0.1) as scope:
                await randr.resize(700, 500)
            assert scope.cancelled_caught
        assert time.monotonic() - start < DEADLINE
        display.process.send_signal(signal.SIGCONT)
        with XRandr.open(display) as randr:
            display.process.kill()
            with pytest.raises(SourceError, match=f"^X display {display} closed the connection$"):
                await randr.resize(700, 500)


# As a source


@both
async def test_each_wish_makes_one_surface(kind: str, tmp_path: Path) -> None:
    """Of its size, also where that takes the X server two steps; and it is there when the call
    returns, so that the next wish is not compared with the size before."""
    sizes: list[tuple[int, int]] = []
    with server(kind, tmp_path) as name:
        async with (
            XDesktop.open(name) as desktop,
            spiceshm.serve(f"unix:{tmp_path}/s", resize=desktop.resize) as display,
            trio.open_nursery() as nursery,
        ):
            create = display.create_surface

            def noted(width: int, height: int, **more: Any) -> spiceshm.Surface:
                sizes.append((width, height))
                return create(width, height, **more)

            display.create_surface = noted  # type: ignore[method-assign]
            await nursery.start(partial(desktop.show, fps=0), display)
            wished = [(1300, 300), (300, 1300)] * 10 + [(1024, 768)]
            for size in wished:
                await desktop.resize(*size)
                assert sizes[-1] == size
            await desktop.resize(1024, 768)
            nursery.cancel_scope.cancel()
    assert sizes == [(1024, 768), *wished]


async def test_a_wish_while_the_x_server_hangs_holds_up_nothing(tmp_path: Path) -> None:
    with xvnc(1024, 768) as name:
        async with (
            XDesktop.open(name) as desktop,
            spiceshm.serve(f"unix:{tmp_path}/s", resize=desktop.resize) as display,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(partial(desktop.show, fps=0), display)
            async with spiceshm.connect(f"unix:{tmp_path}/s") as remote:
                name.process.send_signal(signal.SIGSTOP)
                nursery.start_soon(desktop.resize, 700, 500)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert (await remote.latest()).pixels.shape == (768, 1024, 4)
            start = time.monotonic()
            nursery.cancel_scope.cancel()
        assert time.monotonic() - start < DEADLINE
