"""What we type and move is what a virtual machine behind a stock server gets."""

from __future__ import annotations

import logging
import re
import string
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio

import spiceshm
from tests.interop.machine import PROMPT, Machine, machine, prompted, seen, shows, written
from tests.interop.viewers import eventually
from tests.programs import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spiceshm.client import RemoteDisplay

pytestmark = pytest.mark.peer("qemu-system-x86_64")

ECHO = """
    fa    begin:  cli
    e464  wait:   in al, 0x64
    a801          test al, 1
    74fa          jz wait
    e460          in al, 0x60
    e6e9          out 0xe9, al
    ebf4          jmp wait
"""
"""For ever: wait until the keyboard controller has a byte, and write it to the debug console."""

F2 = b"\x3c\xbc"
"""Down and up."""

LINE = (0, 0, 16, 720)
"""The first line of text mode."""


# Keys, byte by byte


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[tuple[Machine, Path]]:
    """A machine that runs `ECHO`, and the file of what its keyboard sent."""
    keys = tmp_path / "keys"
    chardev = f"file,id=keys,path={keys}"
    debug = "isa-debugcon,iobase=0xe9,chardev=keys"
    with machine("-vga", "qxl", "-chardev", chardev, "-device", debug, program=ECHO) as it:
        yield it, keys


async def begun(remote: RemoteDisplay, keys: Path) -> int:
    """Wait until the boot sector runs; returns how many bytes it wrote before what comes now."""
    with trio.fail_after(DEADLINE):
        while not got(keys):  # the firmware may swallow the first ones
            await remote.key("F1")
            await trio.sleep(0.01)
    await remote.key("F2")
    await eventually(lambda: got(keys).endswith(F2))
    return len(got(keys))


def got(keys: Path, before: int = 0) -> bytes:
    return keys.read_bytes()[before:]


async def test_a_machine_gets_every_key(echo: tuple[Machine, Path]) -> None:
    it, keys = echo
    async with spiceshm.connect(it.address) as remote:
        before = await begun(remote, keys)
        await remote.type("aB")
        async with remote.hold("ctrl"):
            await remote.key("Page_Up")
        await remote.key("pause")
        expected = bytes.fromhex("1e9e 2a30b0aa 1d e049e0c9 9d e11d45e19dc5")
        await eventually(lambda: len(got(keys, before)) >= len(expected))
        assert got(keys, before) == expected


async def test_a_machine_gets_all_of_a_long_text(echo: tuple[Machine, Path]) -> None:
    it, keys = echo
    async with spiceshm.connect(it.address) as remote:
        before = await begun(remote, keys)
        await remote.type("ab" * 40)
        expected = bytes.fromhex("1e9e 30b0") * 40
        await eventually(lambda: len(got(keys, before)) >= len(expected))
        assert got(keys, before) == expected


async def test_a_machine_that_starts_again_is_looked_at_on(echo: tuple[Machine, Path]) -> None:
    """Its server has the pointer reset twice before it tells of it again."""
    it, keys = echo
    async with spiceshm.connect(it.address) as remote:
        before = await begun(remote, keys)
        await remote.cursor()
        it.do("system_reset")
        await remote.wait_change()
        with trio.fail_after(DEADLINE):
            while not got(keys, before):
                await remote.key("F1")
                await trio.sleep(0.01)
        await remote.cursor()


# Text, on the screen


@pytest.fixture(scope="module")
def tablet() -> Iterator[Machine]:
    """A machine with a tablet that nothing in it uses; it says what its devices are told."""
    trace = ("-trace", "input_event_*")
    with machine("-vga", "std", "-usb", "-device", "usb-tablet", *trace, tcp=True) as it:
        yield it


async def test_what_is_typed_appears(tablet: Machine) -> None:
    words = [string.ascii_letters + string.digits, string.punctuation]
    async with spiceshm.connect(tablet.address) as remote:
        await prompted(tablet, remote)
        before = await remote.latest()
        await remote.type(words[0][0])
        after = await remote.wait_change(LINE, since=before)
        await remote.type(words[0][1:] + "\n" + words[1])
        await written(tablet, remote, f"{PROMPT} {words[0]}\n{PROMPT} {words[1]}")
        assert not np.array_equal(before.pixels, after.pixels)
        await shows(tablet, remote)


async def test_keys_with_others_held(tablet: Machine) -> None:
    async with spiceshm.connect(tablet.address) as remote:
        await prompted(tablet, remote)
        await remote.key("ctrl+c")
        await remote.key("Escape")
        async with remote.hold("shift"):
            await remote.key("a")
            await remote.key("1")
        await remote.key("z")
        await written(tablet, remote, f"{PROMPT} ^C^[A!z")


async def test_text_is_the_same_with_caps_lock(tablet: Machine) -> None:
    """The firmware lights the lamp with the key behind it, and the server tells of the lamp."""
    async with spiceshm.connect(tablet.address) as remote:
        await prompted(tablet, remote)
        for locks, first in ((4, "A"), (0, "a")):
            await remote.key("Caps_Lock")
            await remote.key("a")
            await eventually(lambda locks=locks: remote._inputs._machine.locks == locks)
            await remote.type("bCd\n")
            await seen(remote, lambda _, first=first: f"{PROMPT} {first}bCd\n" in tablet.text())


async def test_the_firmware_takes_keys() -> None:
    with machine("-vga", "virtio", "-boot", "menu=on") as it:
        async with spiceshm.connect(it.address, wait_server=DEADLINE) as remote:
            await seen(remote, lambda _: "for boot menu" in it.text())
            await remote.key("Escape")
            await seen(remote, lambda _: "1. ata0-0" in it.text())
            await shows(it, remote)
            await remote.type("1")
            await written(it, remote, PROMPT)


# The pointer


def events(it: Machine, before: str) -> list[str]:
    """What the machine's pointing devices were told since then, but for no motion at all."""
    told = re.findall(r"input_event_(rel|abs|btn) con -1, (.*)", it.qemu.errors[len(before) :])
    return [what for kind, what in told if (kind, what[-7:]) != ("rel", "value 0")]


def use(it: Machine, *, absolute: bool) -> None:
    """As if a driver in the machine had begun to use that device, and QEMU's server tells it."""
    [index] = [one["index"] for one in it.do("query-mice") if one["absolute"] == absolute]
    it.say(f"mouse_set {index}")


async def test_the_pointer_moves_as_the_machine_wants(tablet: Machine) -> None:
    async with spiceshm.connect(tablet.address) as remote:
        width, height = remote.width, remote.height
        for _ in range(2):
            use(tablet, absolute=False)
            before = tablet.qemu.errors
            await remote.move_by(3, -4)
            await remote.click()
            await remote.scroll(1)
            assert events(tablet, before) == [
                "axis x, value 3",
                "axis y, value -4",
                "button left, down 1",
                "button left, down 0",
                "button wheel-down, down 1",
                "button wheel-down, down 0",
            ]
            with pytest.raises(spiceshm.ViewOnly, match="usb-tablet"):
                await remote.move(3, 4)
            assert tablet.do("query-spice")["mouse-mode"] == "server"

            use(tablet, absolute=True)
            await _taken(remote)
            assert tablet.do("query-spice")["mouse-mode"] == "client"
            before = tablet.qemu.errors
            await remote.click(width - 1, height // 2, "right")
            assert events(tablet, before) == [
                f"axis x, value {(width - 1) * 0x7FFF // width:#x}",
                f"axis y, value {height // 2 * 0x7FFF // height:#x}",
                "button right, down 1",
                "button right, down 0",
            ]
            pointer = await remote.cursor()  # which a driver would draw; there is none
            assert (pointer.x, pointer.y, pointer.visible) == (width - 1, height // 2, False)
            assert pointer.shape is None
            await remote.move_by(1, 0)  # the other way is possible as well
            assert tablet.do("query-spice")["mouse-mode"] == "server"


async def _taken(remote: RemoteDisplay) -> None:
    """Move as soon as positions are taken, which no call waits for."""
    with trio.fail_after(DEADLINE):
        while True:
            try:
                return await remote.move(1, 1)
            except spiceshm.ViewOnly:
                await trio.sleep(0.01)


# What the server asks


async def test_pings_are_answered_on_every_channel(
    tablet: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """Over TCP a stock server measures the way there; who does not answer is closed in the end."""
    caplog.set_level(logging.DEBUG, "spiceshm.trace")

    def said(what: str) -> list[str]:
        return [record.args[0].id for record in caplog.records if what in record.getMessage()]

    async with spiceshm.connect(tablet.address) as remote:
        await remote.key("Escape")
        await remote.cursor()
        await eventually(lambda: len(said("< base.ping")) >= 3 + 2 * 3)
        assert said("> base.pong") == said("< base.ping")
