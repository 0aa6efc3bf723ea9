"""A virtual machine becomes shared memory: QEMU as it is, and what readers see of it and do."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
from PIL import Image

import spiceshm
from tests.interop.viewers import eventually, opened
from tests.programs import DEADLINE, serving, short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from spiceshm.client import RemoteDisplay

pytestmark = pytest.mark.peer("qemu-system-x86_64", "spicy", "Xvfb")

ECHO = bytes.fromhex("b400 cd16 e6e9 b40e bb0700 cd10 ebf1")
"""For ever: wait for a character, and write it to the debug console and onto the screen."""
GRAPHICS = bytes.fromhex("b81200 cd10") + ECHO
"""The same in a mode of 640x480."""


class Machine:
    """A machine that runs nothing but a boot sector; ``typed`` is the file of what that got."""

    def __init__(self, place: Path, process: subprocess.Popen[bytes]) -> None:
        self.typed = place / "typed"
        self._place = place
        self._process = process

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    async def does(self, command: str, **arguments: str) -> None:
        """Have its monitor do something, and wait until that is done."""
        async with await trio.open_unix_socket(f"{self._place}/qmp") as monitor:
            for what, how in (("qmp_capabilities", {}), (command, arguments)):
                asked = json.dumps({"execute": what, "arguments": how})
                await monitor.send_all(asked.encode())
                heard = b""
                while b'"return"' not in heard:
                    heard += await monitor.receive_some()
                    assert b'"error"' not in heard, heard

    async def picture(self) -> np.ndarray:
        """Its screen as it says itself: (height, width, 3) of B, G, R."""
        await self.does("screendump", filename=f"{self._place}/dump")
        return np.asarray(Image.open(self._place / "dump").convert("RGB"))[:, :, ::-1]


@contextlib.asynccontextmanager
async def machine(place: Path, boot: bytes) -> AsyncIterator[Machine]:
    (place / "boot").write_bytes(boot.ljust(510, b"\0") + b"\x55\xaa")
    (place / "typed").write_bytes(b"")
    command = ["qemu-system-x86_64", "-nodefaults", "-m", "16", "-display", "none", "-vga", "qxl"]
    command += ["-drive", f"file={place}/boot,format=raw,snapshot=on"]
    command += ["-chardev", f"file,id=typed,path={place}/typed"]
    command += ["-device", "isa-debugcon,iobase=0xe9,chardev=typed"]
    command += ["-qmp", f"unix:{place}/qmp,server=on,wait=off"]
    spice = f"unix=on,addr={place}/vm,disable-ticketing=on,image-compression=off"
    with subprocess.Popen([*command, "-spice", spice], stderr=subprocess.DEVNULL) as process:
        try:
            yield Machine(place, process)
        finally:
            process.kill()


async def begun(remote: RemoteDisplay, guest: Machine) -> None:
    """Wait until the boot sector runs: the firmware swallows what is typed before."""
    with trio.fail_after(DEADLINE):
        while not guest.typed.read_bytes():
            await remote.type(".")
            await trio.sleep(0.01)


async def types(remote: RemoteDisplay, guest: Machine, text: str) -> None:
    """What is typed arrives there, all of it, and is seen by who typed it."""
    before = await remote.latest()
    await remote.type(text)
    await remote.wait_change(since=before, timeout=DEADLINE)
    await eventually(lambda: guest.typed.read_bytes().endswith(text.encode()))


async def all_see(remotes: Sequence[RemoteDisplay], guest: Machine) -> np.ndarray:
    """Every reader sees what the machine, which is stopped, says that it shows. Returns that."""
    wanted = await guest.picture()
    for remote in remotes:
        with trio.fail_after(DEADLINE):
            while not _equal((await remote.latest()).pixels, wanted):
                await trio.sleep(0.01)
    return wanted


def _equal(pixels: np.ndarray, picture: np.ndarray) -> bool:
    return pixels.shape[:2] == picture.shape[:2] and np.array_equal(pixels[:, :, :3], picture)


async def test_a_machine_is_read_typed_to_killed_and_started_again() -> None:
    with short_directory() as place, contextlib.ExitStack() as programs:
        source = f"spice+unix://{place}/vm"
        async with contextlib.AsyncExitStack() as stack:
            async with machine(place, ECHO) as guest:
                listening = serving("--source", source, at=f"unix:{place}/relay")
                relay = programs.enter_context(listening)
                remotes = [
                    await stack.enter_async_context(
                        spiceshm.connect(relay.address, wait_server=DEADLINE)
                    )
                    for _ in range(3)
                ]
                viewer = await stack.enter_async_context(
                    opened("spicy", f"spice+unix://{place}/relay")
                )
                await begun(remotes[0], guest)
                await types(remotes[1], guest, "Through the relay, all 4 of us. " * 3)
                await guest.does("stop")
                seen = await all_see(remotes, guest)
                assert seen.shape == (400, 720, 3)
                await viewer.shows(seen)
                # The machine has one client at a time, and the relay would take it back at once.
                relay.send(signal.SIGSTOP)
                async with spiceshm.connect(source) as direct:
                    assert _equal((await direct.latest()).pixels, seen)
                relay.send(signal.SIGCONT)
                guest.kill()
            for remote in remotes:  # the last picture stays
                assert _equal((await remote.latest()).pixels, seen)
            async with machine(place, GRAPHICS) as guest:
                await begun(remotes[2], guest)
                await types(remotes[0], guest, "And here we are again.")
                await guest.does("stop")
                seen = await all_see(remotes, guest)
                assert seen.shape == (480, 640, 3)
                await viewer.shows(seen)
            assert all(remote.shared for remote in remotes)
        assert "is there again" in relay.errors
