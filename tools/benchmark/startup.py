"""How long programs take to start, and what memory they hold."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .process import Failed, resident_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .stats import Measures

_LOOK = """
import sys, time
import spiceshm, trio
async def main():
    async with spiceshm.connect(sys.argv[1], shm="require") as display:
        async for frame in display.frames():
            print(time.monotonic_ns(), display.segment_bytes, flush=True)
            break
        await trio.to_thread.run_sync(sys.stdin.read)
trio.run(main)
"""


def python() -> Measures:
    """A Python that does nothing, and one that imports the package."""
    return {"bare_ms": _run_ms(""), "import_ms": _run_ms("import spiceshm")}


def _run_ms(source: str) -> float:
    begun = time.monotonic_ns()
    subprocess.run([sys.executable, "-c", source], check=True)
    return (time.monotonic_ns() - begun) / 1e6


def programs() -> Measures:
    """A server of 1920x1080 until it listens, a client until it has a frame, and their memory."""
    with tempfile.TemporaryDirectory(prefix="spiceshm-bench-") as directory:
        command = [sys.executable, "-m", "spiceshm.cli.server", "--json", "--fps", "10"]
        begun = time.monotonic_ns()
        with _started([*command, "--listen", f"unix:{directory}/s"]) as server:
            said = json.loads(_line(server))
            listening = time.monotonic_ns()
            address = said["listening"][0]["address"]
            with _started([sys.executable, "-c", _LOOK, address]) as client:
                seen, segment_bytes = (int(word) for word in _line(client).split())
                ours, theirs = resident_bytes(server.pid), resident_bytes(client.pid)
    return {
        "listening_ms": (listening - begun) / 1e6,
        "first_frame_ms": (seen - listening) / 1e6,
        "segment_bytes": float(segment_bytes),
        "server_private_bytes": float(ours["private"]),
        "server_shared_bytes": float(ours["shared"]),
        "client_private_bytes": float(theirs["private"]),
        "client_shared_bytes": float(theirs["shared"]),
    }


@contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise Failed("a program ended before it was ready")
    return line
