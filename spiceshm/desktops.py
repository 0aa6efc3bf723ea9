"""A desktop of one's own: an X server, what shows it, and who looks at it, all in one block.

Here server, client and sources meet; nothing below knows of it.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import trio

from .client import RemoteDisplay, connect
from .client.remote import TIMEOUT_S
from .errors import Timeout
from .nursery import open_nursery
from .server import serve
from .sources.xvfb import Xvfb, open_own_desktop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Desktop:
    """A desktop that nobody else has; made by `desktop`."""

    def __init__(
        self, xvfb: Xvfb, display: RemoteDisplay, process: trio.Process | None = None
    ) -> None:
        self._xvfb = xvfb
        self._display = display
        self._process = process

    @property
    def display(self) -> RemoteDisplay:
        """The desktop as a client sees it, connected."""
        return self._display

    @property
    def process(self) -> trio.Process | None:
        """The program that the desktop was made with; None if it was made without one."""
        return self._process

    @property
    def address(self) -> str:
        """Where further clients can connect."""
        return str(self._display.address)

    @property
    def x_display(self) -> str:
        """The X display's name, as ``:5``."""
        return self._xvfb.name

    @property
    def environment(self) -> dict[str, str]:
        """The environment for programs of your own: this process's, with DISPLAY and XAUTHORITY.

        SPICESHM_PASSWORD is not in it, nor in that of the programs that are started here.
        """
        return self._xvfb.environment

    async def run(self, *command: str) -> trio.Process:
        """Start a further program here; it is ended with the desktop, if it has not ended before.

        It has nothing to read, and its output goes where ours goes. Raises SourceError, which names
        the command, if it cannot be started.
        """
        return await self._xvfb.run(*command)

    async def wait(self, *, timeout: float | None = TIMEOUT_S) -> int:
        """Wait for the end of `process`; its exit status, or -N if signal N killed it.

        The desktop stays. Raises Timeout if it has not ended within ``timeout`` seconds (None: no
        limit), ValueError if the desktop was made without a program.
        """
        if self._process is None:
            raise ValueError("this desktop was made without a program to wait for")
        return await end_of(self._process, timeout)


async def end_of(process: trio.Process, timeout: float | None) -> int:
    """Wait for the end of a program; its exit status. Raises Timeout, which names it."""
    with trio.move_on_after(float("inf") if timeout is None else timeout):
        return await process.wait()
    command = process.args[0] if isinstance(process.args, list | tuple) else process.args
    raise Timeout(f"{command!r} has not ended within {timeout:g} s")


@contextlib.asynccontextmanager
async def desktop(
    *command: str, width: int = 1280, height: int = 800, fps: float = 60, address: str | None = None
) -> AsyncIterator[Desktop]:
    """A desktop of one's own, without a screen: Xvfb, a server in this process, a client.

    ``command`` is the first program on it, if any. ``width`` and ``height`` are in pixels; at most
    ``fps`` frames a second are shown, besides one for each input (0: no limit). ``address`` is
    where further clients can connect, as in `serve`; without it that is a socket that only this
    user can reach. At the end of the block all programs on it are ended (SIGTERM, after 2 s
    SIGKILL), and no file stays; also when this process is killed. There is no window manager:
    windows open in the corner on the left and top, where the pointer is at first, and keys go to
    the window under the pointer.

    Raises SourceError if Xvfb is missing or ends, or if the command cannot be started; and what
    `serve` raises.
    """
    async with (
        open_own_desktop(width, height) as (xvfb, source),
        serve(address or f"unix:{xvfb.folder}/display.sock", inputs=source.play) as server,
        open_nursery() as nursery,
    ):
        await nursery.start(partial(source.show, fps=fps), server)
        async with connect(str(server.addresses[0])) as display:
            yield Desktop(xvfb, display, await xvfb.run(*command) if command else None)
        nursery.cancel_scope.cancel()
