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
from typing import TYPE_CHECKING, Any, Literal

from .process import Failed
from .work import HD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_END_S = 2.0
_PACKAGES = {"Xvfb": "xvfb"}


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
def _program(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **options
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
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def xvfb() -> Iterator[tuple[str, int]]:
    """An X server; gives its display and its pid."""
    screen = f"{HD[0]}x{HD[1]}x24"
    command = ["Xvfb", "-displayfd", "1", "-nolisten", "tcp", "-noreset", "-screen", "0", screen]
    with _program(command) as process:
        assert process.stdout is not None
        number = process.stdout.readline().strip()
        if not number:
            raise Failed("Xvfb did not start")
        yield f":{number}", process.pid


@contextmanager
def served(
    server: Literal["spiceshm", "vnc"] | None, display: str, *options: str
) -> Iterator[tuple[str, list[int]]]:
    """What is between X server and reader, if anything is: what the reader is told, and the pids.

    ``options`` are for our own server.
    """
    with ExitStack() as stack:
        if server is None:
            yield display, []
        elif server == "vnc":
            port = _free_port()
            command = ["x11vnc", "-display", display, "-localhost", "-nopw", "-shared", "-forever"]
            command += ["-wait", "1", "-defer", "1", "-noscr", "-rfbport", str(port)]
            process = stack.enter_context(_program(command))
            _await_line("x11vnc", process, "PORT=")
            yield str(port), [process.pid]
        else:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="spiceshm-bench-"))
            command = [sys.executable, "-m", "spiceshm.cli.server", "--json", "--source", "x11"]
            command += ["--display", display, "--listen", f"unix:{directory}/s", *options]
            process = stack.enter_context(_program(command))
            said = json.loads(_await_line("spiceshm-server", process, "{"))
            yield said["listening"][0]["address"], [process.pid]


def _await_line(name: str, process: subprocess.Popen[str], start: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise Failed(f"{name} ended early")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
