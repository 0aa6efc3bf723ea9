"""What we type and move is what a virtual machine behind a stock server gets."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

import pytest
import trio

import spiceshm
from tests.interop.viewers import eventually
from tests.programs import DEADLINE, short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from spiceshm.client import RemoteDisplay

pytestmark = pytest.mark.peer("qemu-system-x86_64")

BOOT_SECTOR = bytes.fromhex("fa e464 a801 74fa e460 e6e9 ebf4").ljust(510, b"\0") + b"\x55\xaa"
"""For ever: wait until the keyboard controller has a byte, and write it to the debug console."""

F2 = b"\x3c\xbc"
"""Down and up."""


def write(file: Path, data: bytes) -> None:
    file.write_bytes(data)


@contextlib.asynccontextmanager
async def machine(*options: str) -> AsyncIterator[tuple[RemoteDisplay, Path]]:
    """A machine that runs nothing but the boot sector, and the file of what its keyboard sent."""
    with short_directory() as place:
        write(place / "boot", BOOT_SECTOR)
        command = ["qemu-system-x86_64", "-nodefaults", "-m", "16", "-display", "none"]
        command += ["-vga", "std", "-drive", f"file={place}/boot,format=raw", *options]
        command += ["-chardev", f"file,id=keys,path={place}/keys"]
        command += ["-device", "isa-debugcon,iobase=0xe9,chardev=keys"]
        command += ["-spice", f"unix=on,addr={place}/s,disable-ticketing=on"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                await eventually((place / "s").exists)
                async with spiceshm.connect(f"unix:{place}/s", wait_server=20) as remote:
                    yield remote, place / "keys"
            finally:
                process.kill()


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


async def test_a_machine_gets_every_key() -> None:
    async with machine() as (remote, keys):
        before = await begun(remote, keys)
        await remote.type("aB")
        async with remote.hold("ctrl"):
            await remote.key("Page_Up")
        await remote.key("pause")
        expected = bytes.fromhex("1e9e 2a30b0aa 1d e049e0c9 9d e11d45e19dc5")
        await eventually(lambda: len(got(keys, before)) >= len(expected))
        assert got(keys, before) == expected


async def test_a_machine_gets_all_of_a_long_text() -> None:
    async with machine() as (remote, keys):
        before = await begun(remote, keys)
        await remote.type("ab" * 100)
        expected = bytes.fromhex("1e9e 30b0") * 100
        await eventually(lambda: len(got(keys, before)) >= len(expected))
        assert got(keys, before) == expected


async def test_a_machine_without_a_tablet_is_moved_by_some() -> None:
    async with machine() as (remote, _):
        await remote.move_by(3, 4)
        await remote.click()
        await remote.scroll(2)
        with pytest.raises(spiceshm.ViewOnly, match="usb-tablet"):
            await remote.move(3, 4)
        assert (await remote.cursor()).shape is None


async def test_a_machine_that_starts_again_is_looked_at_on() -> None:
    """Its server has the pointer reset twice before it tells of it again."""
    with short_directory() as place:
        monitor = f"{place}/monitor"
        options = ("-vga", "qxl", "-monitor", f"unix:{monitor},server=on,wait=off")
        async with machine(*options) as (remote, keys):
            before = await begun(remote, keys)
            await remote.cursor()
            async with await trio.open_unix_socket(monitor) as console:
                await console.send_all(b"system_reset\n")
                await remote.wait_change()
                with trio.fail_after(DEADLINE):
                    while not got(keys, before):
                        await remote.key("F1")
                        await trio.sleep(0.01)
            await remote.cursor()
