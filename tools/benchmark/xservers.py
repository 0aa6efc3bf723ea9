"""X displays that are looked at, the servers between them and who looks, and what is missing."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .process import Failed
from .work import HD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_END_S = 2.0
_PACKAGES = {
    "Xvfb": "xvfb",
    "Xspice": "xserver-xspice",
    "qemu-system-x86_64": "qemu-system-x86",
    "spicy-screenshot": "spice-client-gtk",
}

_XSPICE = """\
Section "Device"
    Identifier "Device"
    Driver "spiceqxl"
    Option "SpicePort" "{port}"
    Option "SpiceAddr" "127.0.0.1"
    Option "SpiceDisableTicketing" "True"
    Option "SpiceStreamingVideo" "off"
    Option "NumHeads" "1"
    Option "SpiceJpegWanCompression" "{lossy}"
    Option "SpiceZlibGlzWanCompression" "{lossy}"
    # Without sizes it ends at once, whatever its manual says about what they are then.
    Option "SurfaceBufferSize" "128"
    Option "CommandBufferSize" "128"
    Option "FrameBufferSize" "32"
EndSection
Section "Monitor"
    Identifier "Monitor"
EndSection
Section "Screen"
    Identifier "Screen"
    Device "Device"
    Monitor "Monitor"
    DefaultDepth 24
    SubSection "Display"
        Depth 24
        Modes "{width}x{height}"
    EndSubSection
EndSection
Section "InputDevice"
    Identifier "Pointer"
    Driver "xspice pointer"
EndSection
Section "InputDevice"
    Identifier "Keyboard"
    Driver "xspice keyboard"
EndSection
Section "ServerLayout"
    Identifier "Layout"
    Screen "Screen"
    InputDevice "Keyboard"
    InputDevice "Pointer"
EndSection
Section "ServerFlags"
    Option "AutoAddDevices" "False"
EndSection
"""
"""What Xorg is told to be Xspice, which is a script that starts it so and sleeps."""


def missing(programs: Iterable[str], modules: Iterable[str]) -> str | None:
    """How to install those that are not there."""
    lacking = [p for p in programs if shutil.which(p) is None]
    ways = [f"apt-get install {_PACKAGES.get(program, program)}" for program in lacking]
    ways += [f"pip install {m}" for m in modules if importlib.util.find_spec(m) is None]
    return "; ".join(ways) or None


def number(pixel: Any) -> int:
    """The colour of one pixel B, G, R, X as 0xRRGGBB."""
    return int(pixel[0]) | int(pixel[1]) << 8 | int(pixel[2]) << 16


@contextmanager
def program(
    command: list[str], *, stdout: int = subprocess.PIPE, pass_fds: tuple[int, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Run it as long as the block; what it says on stderr is dropped."""
    process = subprocess.Popen(
        command, stdout=stdout, stderr=subprocess.DEVNULL, text=True, pass_fds=pass_fds
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:  # x11vnc does not always take the hint
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def xvfb(*options: str) -> Iterator[tuple[str, int]]:
    """An X server; gives its display and its pid."""
    screen = f"{HD[0]}x{HD[1]}x24"
    with _x_server("Xvfb", "-screen", "0", screen, *options) as found:
        yield found


@contextmanager
def xspice(*, far: bool = False) -> Iterator[tuple[str, int, str]]:
    """An X server that is a SPICE server; gives its display, its pid, and host:port.

    If ``far`` it packs JPEG in place of QUIC, and GLZ by zlib, as for a client that is far away.
    """
    with tempfile.TemporaryDirectory(prefix="spiceshm-bench-") as directory:
        port, config = free_port(), Path(directory, "xorg.conf")
        config.write_text(
            _XSPICE.format(port=port, width=HD[0], height=HD[1], lossy="always" if far else "never")
        )
        log = f"{directory}/log"
        words = ["Xorg", "-config", str(config), "-logfile", log, "-nocursor"]
        with _x_server(*words) as (display, pid):
            yield display, pid, f"127.0.0.1:{port}"


@contextmanager
def _x_server(*words: str) -> Iterator[tuple[str, int]]:
    # Not through stdout, which the X server would close: what a driver prints there would then go
    # to the client that has the number.
    theirs, ours = socket.socketpair()
    with ours, theirs:
        name = str(theirs.fileno())
        command = [*words, "-displayfd", name, "-nolisten", "tcp", "-noreset"]
        passed = (theirs.fileno(),)
        with program(command, stdout=subprocess.DEVNULL, pass_fds=passed) as process:
            theirs.close()
            number = ours.makefile().readline().strip()
            if not number:
                raise Failed(f"{words[0]} did not start")
            yield f":{number}", process.pid


@contextmanager
def served(
    server: Literal["spiceshm", "relay", "vnc"] | None, display: str, *options: str
) -> Iterator[tuple[str, list[int]]]:
    """What is between X server and reader, if anything is: what the reader is told, and the pids.

    Of a relay ``display`` is the address of a SPICE server instead.
    ``options`` are that server's; our own listens at a Unix socket if they do not say where.
    """
    with ExitStack() as stack:
        if server is None:
            yield display, []
        elif server == "vnc":
            port = free_port()
            command = ["x11vnc", "-display", display, "-localhost", "-nopw", "-shared", "-forever"]
            command += ["-wait", "1", "-defer", "1", "-noscr", "-rfbport", str(port), *options]
            process = stack.enter_context(program(command))
            _await_line("x11vnc", process, "PORT=")
            yield str(port), [process.pid]
        else:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="spiceshm-bench-"))
            command = [sys.executable, "-m", "spiceshm.cli.server", "--json", *options, "--source"]
            command += ["x11", "--display", display] if server == "spiceshm" else [uri(display)]
            if "--listen" not in options:
                command += ["--listen", f"unix:{directory}/s"]
            process = stack.enter_context(program(command))
            said = json.loads(_await_line("spiceshm-server", process, "{"))
            yield said["listening"][0]["address"], [process.pid]


def uri(address: str) -> str:
    """An address of ours as stock clients take it."""
    return address.replace("unix:", "spice+unix://").replace("tcp:", "spice://")


def _await_line(name: str, process: subprocess.Popen[str], start: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise Failed(f"{name} ended early")


def free_port() -> int:
    """A port of TCP that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
