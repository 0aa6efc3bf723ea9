"""Real X servers without a screen, for tests: ``with xvfb(1920, 1080, 24) as display: ...``"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEADLINE = 20.0
"""Seconds that an X server may take to start on a busy machine."""


class Display(str):
    """The name of a display, as ``:5``, with the ``process`` that serves it; of Xspice its port."""

    process: subprocess.Popen[bytes]
    port: int


@contextmanager
def xvfb(width: int, height: int, depth: int, *arguments: str) -> Iterator[Display]:
    """Run Xvfb with one screen; at the end it is killed and waited for.

    The server picks a free number itself and tells it when it is ready, so any number of tests may
    do this at once and none has to guess when to begin. ``arguments`` go to Xvfb and override ours.
    Skips the test where Xvfb is not installed.
    """
    screen = f"{width}x{height}x{depth}"
    with running("Xvfb", "xvfb", "-noreset", "-screen", "0", screen, *arguments) as display:
        yield display


@contextmanager
def xvnc(width: int, height: int) -> Iterator[Display]:
    """The same with Xvnc, whose screen can have any size; no VNC viewer can connect."""
    size = f"{width}x{height}"
    arguments = ["-geometry", size, "-depth", "24", "-SecurityTypes", "None", "-rfbport", "-1"]
    with running("Xvnc", "tigervnc-standalone-server", "-noreset", *arguments) as display:
        yield display


XORG = """
Section "ServerFlags"
    Option "AutoAddDevices" "false"
EndSection
Section "Device"
    Identifier "device"
    Driver "dummy"
    VideoRam 65536
EndSection
Section "Screen"
    Identifier "screen"
    Device "device"
    DefaultDepth 24
EndSection
"""


@contextmanager
def xorg(folder: Path) -> Iterator[Display]:
    """Xorg as it runs on real screens, but with the driver for none: 1024x768 at first.

    ``folder`` is for its configuration and its log. Skips the test for users who may not start it.
    """
    if os.getuid() != 0:
        pytest.skip("only root may start Xorg")
    (folder / "xorg.conf").write_text(XORG)
    files = ["-config", str(folder / "xorg.conf"), "-logfile", str(folder / "xorg.log")]
    package = "xserver-xorg-core and xserver-xorg-video-dummy"
    with running("Xorg", package, "-noreset", "-sharevts", "-novtswitch", *files) as display:
        yield display


XSPICE = """
Section "ServerFlags"
    Option "AutoAddDevices" "false"
EndSection
Section "Device"
    Identifier "device"
    Driver "spiceqxl"
    # Without sizes it ends at once, whatever its manual says about what they are then.
    Option "SurfaceBufferSize" "64"
    Option "CommandBufferSize" "64"
    Option "FrameBufferSize" "32"
    Option "NumHeads" "1"
    Option "SpiceAddr" "127.0.0.1"
    Option "SpiceDisableTicketing" "true"
    {options}
EndSection
Section "Monitor"
    Identifier "monitor"
EndSection
Section "Screen"
    Identifier "screen"
    Device "device"
    Monitor "monitor"
    DefaultDepth 24
    SubSection "Display"
        Depth 24
        Modes "{size}"
    EndSubSection
EndSection
Section "InputDevice"
    Identifier "pointer"
    Driver "xspice pointer"
EndSection
Section "InputDevice"
    Identifier "keyboard"
    Driver "xspice keyboard"
EndSection
Section "ServerLayout"
    Identifier "layout"
    Screen "screen"
    InputDevice "pointer"
    InputDevice "keyboard"
EndSection
"""


@contextmanager
def xspice(
    folder: Path, *arguments: str, size: str = "640x480", **options: str
) -> Iterator[Display]:
    """Xspice, an X server that is a SPICE server, at the loopback port ``Display.port``.

    ``arguments`` go to the X server, ``options`` to its driver; ``size`` is one that VESA has.
    ``folder`` is for its configuration and its log. Skips the test for users who may not start it.
    """
    if os.getuid() != 0:
        pytest.skip("only root may start Xorg")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
    words = {"SpicePort": str(port), "SpiceStreamingVideo": "off", **options}
    lines = "\n".join(f'Option "{name}" "{word}"' for name, word in words.items())
    (folder / "xorg.conf").write_text(XSPICE.format(options=lines, size=size))
    files = ["-config", str(folder / "xorg.conf"), "-logfile", str(folder / "xorg.log")]
    with running("Xorg", "xserver-xspice", "-noreset", *files, *arguments) as display:
        display.port = port
        yield display


@contextmanager
def running(server: str, package: str, *arguments: str) -> Iterator[Display]:
    if shutil.which(server) is None:
        pytest.skip(f"needs {server} (Debian: {package})")
    reader, writer = os.pipe()
    command = [server, "-displayfd", str(writer), "-nolisten", "tcp", *arguments]
    try:
        process = subprocess.Popen(
            command, pass_fds=[writer], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    finally:
        os.close(writer)
    try:
        with os.fdopen(reader) as numbers:
            display = Display(f":{_read_number(numbers)}")
        display.process = process
        yield display
    finally:
        process.kill()
        process.wait()


def _read_number(numbers: IO[str]) -> int:
    """The number of the display, which the server writes when it is ready."""
    if not select.select([numbers], [], [], DEADLINE)[0]:
        raise TimeoutError(f"the X server did not start within {DEADLINE} s")
    line = numbers.readline()
    if not line:
        raise RuntimeError("the X server ended at once; try it in a shell to see why")
    return int(line)


def environment(display: str) -> dict[str, str]:
    """The environment for a program that is to show itself on ``display``."""
    return {**os.environ, "DISPLAY": display}


def run(display: str, *command: str) -> bytes:
    """Run a program on ``display`` to its end and return what it printed. Raises on failure."""
    return subprocess.run(
        command,
        env=environment(display),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        check=True,
        timeout=60,
    ).stdout
