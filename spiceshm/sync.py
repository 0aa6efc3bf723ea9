"""The client's calls in ordinary Python: the same names as in `spiceshm`, without ``await``.

    with spiceshm.sync.connect() as display:
        for frame in display.frames():
            ...

Also without ``with``, as in a REPL or a notebook: ``display = connect()``, ``display.close()``;
what is still open when the interpreter ends is closed then. Pings are answered in a thread of its
own while the program does something else. Ctrl-C interrupts any call at once, and the display can
be used on. A display may be used from several threads. After ``os.fork`` it is the parent's alone,
and the child connects anew. A call blocks its thread, so that in an async program nothing else
runs there meanwhile.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Self, TypeVar

from . import client, desktops
from .background import Host, the_loop
from .client.remote import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from types import TracebackType

    import numpy as np
    import trio
    from numpy.typing import NDArray

    from .client import Compressing, Cursor, Frame, Sharing
    from .region import Rect
    from .transport import Address

F = TypeVar("F", bound="Callable[..., object]")

__all__ = ["Desktop", "Frames", "Process", "RemoteDisplay", "connect", "desktop"]


def _as(original: object) -> Callable[[F], F]:
    """Give a function the docstring of its async ``original``, read without ``await``."""

    def describe(function: F) -> F:
        function.__doc__ = re.sub(r"\b(async|await) ", "", original.__doc__ or "")
        return function

    return describe


class RemoteDisplay:
    """A display that somebody else draws; made by `connect`. As `spiceshm.RemoteDisplay`."""

    def __init__(self, remote: client.RemoteDisplay, host: Host) -> None:
        self._remote = remote
        self._host = host

    def close(self) -> None:
        """Close the connection, as the end of a ``with`` block does; harmless twice.

        Calls that wait in other threads raise Disconnected.
        """
        self._host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._host.close()
        else:
            self._host.wait_closed()

    def __del__(self) -> None:
        if self._host.alive:
            warnings.warn(
                f"{self._host.name}: the display was never closed", ResourceWarning, stacklevel=2
            )
            self._host.leave_soon()

    @property
    @_as(client.RemoteDisplay.address)
    def address(self) -> Address:
        return self._remote.address

    @property
    @_as(client.RemoteDisplay.width)
    def width(self) -> int:
        return self._remote.width

    @property
    @_as(client.RemoteDisplay.height)
    def height(self) -> int:
        return self._remote.height

    @property
    @_as(client.RemoteDisplay.shared)
    def shared(self) -> bool:
        return self._remote.shared

    @property
    @_as(client.RemoteDisplay.reason)
    def reason(self) -> str | None:
        return self._remote.reason

    @property
    @_as(client.RemoteDisplay.segment_bytes)
    def segment_bytes(self) -> int:
        return self._remote.segment_bytes

    @property
    @_as(client.RemoteDisplay.pixel_bytes)
    def pixel_bytes(self) -> int:
        return self._remote.pixel_bytes

    @property
    @_as(client.RemoteDisplay.stale)
    def stale(self) -> list[Rect]:
        return self._remote.stale

    @property
    @_as(client.RemoteDisplay.wire_bytes)
    def wire_bytes(self) -> int:
        return self._remote.wire_bytes

    @property
    @_as(client.RemoteDisplay.images)
    def images(self) -> dict[str, int]:
        return self._remote.images

    @_as(client.RemoteDisplay.frames)
    def frames(self) -> Frames:
        return Frames(self, self._host, self._remote.frames())

    # Looking

    @property
    @_as(client.RemoteDisplay.silent_s)
    def silent_s(self) -> float:
        return self._remote.silent_s

    @_as(client.RemoteDisplay.latest)
    def latest(self) -> Frame:
        return self._host.call(self._remote.latest)

    @_as(client.RemoteDisplay.wait_change)
    def wait_change(
        self,
        region: Rect | None = None,
        *,
        since: Frame | int | None = None,
        timeout: float | None = TIMEOUT_S,
    ) -> Frame:
        return self._host.call(
            lambda: self._remote.wait_change(region, since=since, timeout=timeout)
        )

    @_as(client.RemoteDisplay.wait_stable)
    def wait_stable(
        self,
        quiet: float = 0.3,
        region: Rect | None = None,
        *,
        timeout: float | None = TIMEOUT_S,
    ) -> Frame:
        return self._host.call(lambda: self._remote.wait_stable(quiet, region, timeout=timeout))

    @_as(client.RemoteDisplay.screenshot)
    def screenshot(self, region: Rect | None = None, *, cursor: bool = False) -> NDArray[np.uint8]:
        return self._host.call(lambda: self._remote.screenshot(region, cursor=cursor))

    # Acting

    @_as(client.RemoteDisplay.type)
    def type(self, text: str) -> None:
        self._host.call(lambda: self._remote.type(text))

    @_as(client.RemoteDisplay.key)
    def key(self, combo: str) -> None:
        self._host.call(lambda: self._remote.key(combo))

    @_as(client.RemoteDisplay.hold)
    def hold(self, combo: str) -> AbstractContextManager[None]:
        return Host(self._host, self._host.name).opened(lambda: self._remote.hold(combo))

    @_as(client.RemoteDisplay.hold_button)
    def hold_button(self, button: str) -> AbstractContextManager[None]:
        return Host(self._host, self._host.name).opened(lambda: self._remote.hold_button(button))

    @_as(client.RemoteDisplay.move)
    def move(self, x: float, y: float) -> None:
        self._host.call(lambda: self._remote.move(x, y))

    @_as(client.RemoteDisplay.move_by)
    def move_by(self, dx: float, dy: float) -> None:
        self._host.call(lambda: self._remote.move_by(dx, dy))

    @_as(client.RemoteDisplay.click)
    def click(self, x: float | None = None, y: float | None = None, button: str = "left") -> None:
        self._host.call(lambda: self._remote.click(x, y, button))

    @_as(client.RemoteDisplay.double_click)
    def double_click(
        self, x: float | None = None, y: float | None = None, button: str = "left"
    ) -> None:
        self._host.call(lambda: self._remote.double_click(x, y, button))

    @_as(client.RemoteDisplay.drag)
    def drag(self, x: float, y: float, to_x: float, to_y: float, button: str = "left") -> None:
        self._host.call(lambda: self._remote.drag(x, y, to_x, to_y, button))

    @_as(client.RemoteDisplay.scroll)
    def scroll(self, clicks: int, x: float | None = None, y: float | None = None) -> None:
        self._host.call(lambda: self._remote.scroll(clicks, x, y))

    @_as(client.RemoteDisplay.cursor)
    def cursor(self) -> Cursor:
        return self._host.call(self._remote.cursor)


class Frames:
    """The iterator that `RemoteDisplay.frames` gives."""

    def __init__(self, display: RemoteDisplay, host: Host, frames: client.Frames) -> None:
        self._display = display  # kept: who iterates may have no other name for it
        self._host = host
        self._frames = frames

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Frame:
        return self._host.call(self._frames.__anext__)


@_as(client.connect)
def connect(
    address: str | None = None,
    *,
    password: str = "",
    shm: Sharing = "auto",
    credits: int = 3,
    view_only: bool = False,
    keyboard: str = "us",
    wait_server: float = 0.0,
    compression: Compressing = "auto",
    cache_pixels: int = 0,
    video: bool = False,
    strict: bool = False,
) -> RemoteDisplay:
    host = Host(the_loop(), address or "the default server")
    remote = host.open(
        lambda: client.connect(
            address,
            password=password,
            shm=shm,
            credits=credits,
            view_only=view_only,
            keyboard=keyboard,
            wait_server=wait_server,
            compression=compression,
            cache_pixels=cache_pixels,
            video=video,
            strict=strict,
        )
    )
    host.name = str(remote.address)
    return RemoteDisplay(remote, host)


class Process:
    """A program on a desktop."""

    def __init__(self, process: trio.Process, host: Host) -> None:
        self._process = process
        self._host = host

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit status, -N if signal N killed it, None while it runs."""

        async def poll() -> int | None:
            return self._process.poll()

        return self._host.call(poll)

    def wait(self, *, timeout: float | None = TIMEOUT_S) -> int:
        """Wait for its end; its exit status, or -N if signal N killed it.

        Raises Timeout if it has not ended within ``timeout`` seconds (None: no limit).
        """
        return self._host.call(lambda: desktops.end_of(self._process, timeout))

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""

        async def send() -> None:
            self._process.send_signal(number)

        self._host.call(send)


class Desktop:
    """A desktop that nobody else has; made by `desktop`. As `spiceshm.Desktop`."""

    def __init__(self, own: desktops.Desktop, host: Host) -> None:
        self._own = own
        self._host = host
        self._display = RemoteDisplay(own.display, host)
        self._process = Process(own.process, host) if own.process is not None else None

    def close(self) -> None:
        """End it with all programs on it, as the end of a ``with`` block does; harmless twice."""
        self._host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._display.__exit__(kind, error, trace)

    @property
    def display(self) -> RemoteDisplay:
        """The desktop as a client sees it, connected; to close it ends the desktop."""
        return self._display

    @property
    @_as(desktops.Desktop.process)
    def process(self) -> Process | None:
        return self._process

    @property
    @_as(desktops.Desktop.address)
    def address(self) -> str:
        return self._own.address

    @property
    @_as(desktops.Desktop.x_display)
    def x_display(self) -> str:
        return self._own.x_display

    @property
    @_as(desktops.Desktop.environment)
    def environment(self) -> dict[str, str]:
        return self._own.environment

    @_as(desktops.Desktop.run)
    def run(self, *command: str) -> Process:
        return Process(self._host.call(lambda: self._own.run(*command)), self._host)

    @_as(desktops.Desktop.wait)
    def wait(self, *, timeout: float | None = TIMEOUT_S) -> int:
        return self._host.call(lambda: self._own.wait(timeout=timeout))


@_as(desktops.desktop)
def desktop(
    *command: str, width: int = 1280, height: int = 800, fps: float = 60, address: str | None = None
) -> Desktop:
    host = Host(the_loop(), "the desktop")
    own = host.open(
        lambda: desktops.desktop(*command, width=width, height=height, fps=fps, address=address)
    )
    host.name = f"desktop {own.x_display}"
    return Desktop(own, host)
