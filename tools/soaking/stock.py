"""Viewers that people have, each on an X screen of its own that is large enough for all its pixels.

They run at the lowest priority, and so do their X servers: what they decode and paint takes a
processor like any other program, and is not what is measured.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_AT_THE_LOWEST_PRIORITY = ("setpriv", "--pdeathsig", "KILL", "nice", "-n", "19")
_USERS_OWN = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "DBUS_SESSION_BUS_ADDRESS")
_BARS = (80, 120)
"""Pixels that a viewer's window may be wider and higher than what it shows."""
_STARTED_S = 60.0
_LANDMARK = 16
_SPICY = """\
[general]
scaling=false
resize-guest=false
"""
"""spicy's settings: a pixel is a pixel."""


def _start(*command: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start a program that ends with us; a Ctrl-C is not for it. Raises OSError without it."""
    if shutil.which(command[0]) is None:
        raise OSError(f"{command[0]} is not installed; tools/peers says how")
    return subprocess.Popen(
        [*_AT_THE_LOWEST_PRIORITY, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
        **options,
    )


class Viewer:
    """A program that runs, until it is ended."""

    def __init__(self, process: subprocess.Popen[bytes], screen: Screen) -> None:
        self.name = os.path.basename(process.args[len(_AT_THE_LOWEST_PRIORITY)])  # type: ignore[index]
        self.screen = screen
        self._process = process

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class Screen:
    """An X server with one screen on which a picture of some size fits, and the viewer's bars."""

    def __init__(self, name: str, home: Path) -> None:
        import xcffib  # of the extra "x11": whoever looks at no viewer need not have it
        import xcffib.xproto

        self._name = name
        self._home = home
        self._connection = xcffib.connect(display=name)
        self._root = self._connection.get_setup().roots[0]

    def start(self, *command: str) -> Viewer:
        """Show a program here; it has no window manager and nobody to talk to."""
        env = {name: value for name, value in os.environ.items() if name not in _USERS_OWN}
        env |= {"DISPLAY": self._name, "HOME": str(self._home), "GDK_BACKEND": "x11"}
        env |= {"GSETTINGS_BACKEND": "memory", "NO_AT_BRIDGE": "1"}
        return Viewer(_start(*command, env=env), self)

    def shows(self, picture: NDArray[np.uint8]) -> bool:
        """Whether all pixels of a picture (height, width, 4) are on the screen, one to one.

        The beginning of its first line must be nowhere else.
        """
        pixels, wanted = self._pixels(), picture.view(np.uint32)[:, :, 0] & 0xFFFFFF
        height, width = wanted.shape
        places = pixels[: len(pixels) - height + 1, : pixels.shape[1] - width + 1]
        for y, x in np.argwhere(places == wanted[0, 0]).tolist():
            if np.array_equal(pixels[y, x : x + _LANDMARK], wanted[0, :_LANDMARK]):
                return np.array_equal(pixels[y : y + height, x : x + width], wanted)
        return False

    def _pixels(self) -> NDArray[np.uint32]:
        from xcffib.xproto import ImageFormat

        root = self._root
        size = root.width_in_pixels, root.height_in_pixels
        get = self._connection.core.GetImage
        image = get(ImageFormat.ZPixmap, root.root, 0, 0, *size, 0xFFFFFFFF).reply()
        return np.frombuffer(image.data.buf(), np.uint32).reshape(size[::-1]) & 0xFFFFFF

    def close(self) -> None:
        self._connection.disconnect()


@contextlib.contextmanager
def screens(count: int, width: int, height: int, home: Path) -> Iterator[Sequence[Screen]]:
    """So many, each for a picture of ``width`` x ``height`` pixels, for the block.

    ``home`` is an empty folder that is the home of all programs there.
    Raises OSError if there is no Xvfb or one does not start.
    """
    settings = home / ".config" / "spicy" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(_SPICY)
    size = f"{width + _BARS[0]}x{height + _BARS[1]}x24"
    with contextlib.ExitStack() as stack:
        numbers = []
        for _ in range(count):  # all of them start at once
            reader, writer = os.pipe()
            numbers.append(stack.enter_context(os.fdopen(reader)))
            command = ("Xvfb", "-displayfd", str(writer), "-nolisten", "tcp", "-noreset")
            try:
                server = _start(*command, "-screen", "0", size, pass_fds=[writer])
            finally:
                os.close(writer)
            stack.callback(server.wait)
            stack.callback(server.terminate)  # so that it removes its socket
        found = []
        for number in numbers:
            ready = select.select([number], [], [], _STARTED_S)[0]
            if not ready or not (line := number.readline()):
                raise OSError("Xvfb did not start; is it installed?")
            found.append(Screen(f":{line.strip()}", home))
            stack.callback(found[-1].close)
        yield found
