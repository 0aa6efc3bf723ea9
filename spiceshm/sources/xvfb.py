"""An X server of our own without a screen (Xvfb), and programs on it.

It picks a free display number itself and says when it is ready. Only who reads our cookie can
connect, and only our own user can read it. Of both the server and the programs nothing stays
behind, however we end: `processes` sees to that.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

import trio

from ..errors import SourceError
from ..events import PointerTo
from ..nursery import open_nursery
from .processes import Group, NotStarted, environment_for_others, open_group
from .x11 import XDesktop
from .xcb import XError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

READY_S = 20.0
"""Seconds that Xvfb may take to be ready."""

_LAST_WORDS_S = 2.0  # its connections break a moment before it has ended
_COOKIE = b"MIT-MAGIC-COOKIE-1"
_ANY_HOST = 0xFFFF  # FamilyWild of Xauthority files
_WAYLAND = ("WAYLAND_DISPLAY", "WAYLAND_SOCKET")
_ON_X = {"XDG_SESSION_TYPE": "x11", "GDK_BACKEND": "x11"}


class Xvfb:
    """An X server that runs; made by `start_xvfb`."""

    def __init__(self, name: str, folder: Path, cookie: bytes, programs: Group) -> None:
        self.name = name
        """The display's name, as ``:5``."""
        self.folder = folder
        """A private folder (mode 0700) that is removed with the server."""
        self.cookie = cookie
        """What lets a client in: the 16 bytes of MIT-MAGIC-COOKIE-1."""
        self._programs = programs

    @property
    def xauthority(self) -> Path:
        """The file (mode 0600) with the cookie, for $XAUTHORITY."""
        return self.folder / "Xauthority"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a program that is to show itself here: ours, with this display.

        The password that ours may have is left out. Toolkits that would rather go to the user's
        own Wayland desktop are told not to.
        """
        ours = environment_for_others()
        for name in _WAYLAND:
            ours.pop(name, None)
        return {**ours, **_ON_X, "DISPLAY": self.name, "XAUTHORITY": str(self.xauthority)}

    async def run(self, *command: str) -> trio.Process:
        """Start a program here; its output goes where ours goes, and it has nothing to read.

        It is ended before the server is: SIGTERM for it and all of its process group, SIGKILL
        after 2 s. Raises NotStarted, which names the command.
        """
        return await self._programs.start(*command, env=self.environment)


@contextlib.asynccontextmanager
async def start_xvfb(width: int, height: int) -> AsyncIterator[Xvfb]:
    """Run Xvfb with one screen of ``width`` x ``height`` pixels, 24 bits deep, for the block.

    It is ready when the block begins. Raises SourceError if it is not installed, does not start,
    or ends before the block does, ValueError if there would be no pixel.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a screen of {width}x{height} has no pixel")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spiceshm-xvfb-")))
        output = stack.enter_context((folder / "output").open("a+b"))
        cookie = secrets.token_bytes(16)
        _write_cookie(folder / "Xauthority", cookie)
        async with open_group(folder) as group:
            server, number = await _start(group, folder, f"{width}x{height}x24", output)
            stack.callback(_remove_if_stale, f"/tmp/.X11-unix/X{number}")
            async with _noticed(server, f"Xvfb :{number}", output), open_group() as programs:
                yield Xvfb(f":{number}", folder, cookie, programs)


@contextlib.asynccontextmanager
async def open_own_desktop(width: int, height: int) -> AsyncIterator[tuple[Xvfb, XDesktop]]:
    """`start_xvfb`, and its desktop as a source.

    The pointer begins in the corner on the left and top: without a window manager windows open
    there, and keys go to what is under the pointer. Raises as `start_xvfb`.
    """
    async with (
        start_xvfb(width, height) as xvfb,
        XDesktop.open(xvfb.name, xvfb.cookie) as source,
    ):
        if source.play is not None:
            await source.play([PointerTo(0, 0)])
        yield xvfb, source


def _remove_if_stale(path: str) -> None:
    """Remove the socket of an X server that was killed, so that it could not do that itself."""
    with socket.socket(socket.AF_UNIX) as end, contextlib.suppress(OSError):
        end.setblocking(False)  # a server that has the name by now may be busy
        try:
            end.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def _write_cookie(path: Path, cookie: bytes) -> None:
    """One entry of an Xauthority file that holds for every display: the number is not known yet."""
    entry = struct.pack(">H", _ANY_HOST)
    for field in (b"", b"", _COOKIE, cookie):  # address, display number, name, data
        entry += struct.pack(">H", len(field)) + field
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(entry)


async def _start(
    group: Group, folder: Path, screen: str, output: IO[bytes]
) -> tuple[trio.Process, int]:
    """Start the server and wait until it is ready; it and the number of its display."""
    reader, writer = os.pipe()
    async with trio.lowlevel.FdStream(reader) as numbers:
        command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", screen]
        command += ["-auth", str(folder / "Xauthority"), "-nolisten", "tcp", "-noreset"]
        # It would keep pointers from us whose program has ended, and is of no use in one's own.
        command += ["-extension", "SECURITY"]
        try:
            server = await group.start(*command, pass_fds=[writer], output=output)
        except NotStarted as error:
            raise SourceError(f"{error}; apt install xvfb") from None
        finally:
            os.close(writer)
        with trio.move_on_after(READY_S):
            number = await _line(numbers)
            if number:
                output.truncate(0)  # of the numbers that others have
                return server, int(number)
            raise SourceError(f"Xvfb {screen} {_end_of(await server.wait(), output)}")
    raise SourceError(f"Xvfb {screen} was not ready within {READY_S:g} s")


async def _line(stream: trio.lowlevel.FdStream) -> bytes:
    """The one line that is written to a pipe; nothing if it ends before."""
    line = b""
    while not line.endswith(b"\n"):
        some = await stream.receive_some()
        if not some:
            return b""
        line += some
    return line


@contextlib.asynccontextmanager
async def _noticed(server: trio.Process, name: str, output: IO[bytes]) -> AsyncIterator[None]:
    """If the server ends before the block, the block is cancelled and SourceError raised."""
    async with open_nursery() as nursery:

        async def watch() -> None:
            await server.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            yield
        except XError:  # who was connected may have noticed first
            with trio.move_on_after(_LAST_WORDS_S):
                await server.wait()
            if server.returncode is None:
                raise
        nursery.cancel_scope.cancel()
    if server.returncode is not None:
        raise SourceError(f"{name} {_end_of(server.returncode, output)}")


def _end_of(status: int, output: IO[bytes]) -> str:
    """How it ended, in words, with the last that it said."""
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    output.seek(0)
    said = [line.decode(errors="replace").removeprefix("(EE)").strip() for line in output]
    said = [line for line in said if line]
    return f"{how}: {said[-1]}" if said else how
