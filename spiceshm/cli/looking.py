"""What ``spiceshm-client`` does once its options are read."""

from __future__ import annotations

import io
import json
import sys
from functools import partial
from typing import TYPE_CHECKING

import trio

from ..client import RemoteDisplay, Sharing, connect
from ..errors import MemoryRefused
from .common import UsageError, read_password, run, until_interrupted
from .options import NOT_SHARED, OK
from .stats import Table, Watch

if TYPE_CHECKING:
    import argparse

    import numpy as np
    from numpy.typing import NDArray


def run_client(name: str, arguments: argparse.Namespace) -> int:
    """Look as long as the options say; returns the exit status."""
    return run(name, arguments, partial(_look, name, arguments))


async def _look(name: str, arguments: argparse.Namespace) -> int:
    if arguments.json and arguments.screenshot == "-":
        raise UsageError("--json and --screenshot - both want stdout; name a file for one")
    if arguments.screenshot == "-" and sys.stdout is None:
        raise UsageError("--screenshot - wants stdout, which is closed; name a file")
    password = read_password(arguments.password_file) or ""
    shm: Sharing = "auto"
    if arguments.no_shm or arguments.require_shm:
        shm = "off" if arguments.no_shm else "require"
    async with until_interrupted():
        try:
            async with connect(arguments.uri, password=password, shm=shm) as display:
                await _watch(display, arguments)
        except MemoryRefused as error:
            print(f"{name}: {error}", file=sys.stderr)
            return NOT_SHARED
    return OK


async def _watch(display: RemoteDisplay, arguments: argparse.Namespace) -> None:
    watch = Watch(display)
    table = Table(watch, display) if arguments.stats else None
    picture: NDArray[np.uint8] | None = None
    endless = arguments.stats or arguments.duration or arguments.frames
    most = arguments.frames or (None if endless else 1)
    try:
        with trio.move_on_after(arguments.duration or float("inf")):
            async for frame in display.frames():
                watch.saw(frame)
                if arguments.screenshot:
                    picture = frame.copy()  # whichever turns out to be the last
                if table is not None:
                    table.update()
                if watch.frames == most:
                    break
    finally:
        # Also after Ctrl-C and when the server went away: what was seen was seen.
        if table is not None:
            table.update(last=True)
        if picture is not None:
            _save(picture, arguments.screenshot)
        if watch.frames or arguments.json:
            _report(display, watch, arguments)


def _report(display: RemoteDisplay, watch: Watch, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps(watch.result()), flush=True)
    elif not arguments.screenshot and not arguments.stats:
        _describe(display, watch)


def _describe(display: RemoteDisplay, watch: Watch) -> None:
    how = (
        f"shared memory ({display.segment_bytes / 1e6:.1f} MB mapped read-only)"
        if display.shared
        else f"ordinary SPICE ({display.reason})"
    )
    print(f"{display.address}: {display.width}x{display.height}, {how}")
    if watch.frames > 1:
        figures = watch.result()
        print(f"{figures['frames']} frames in {figures['seconds']} s, {figures['fps']} frames/s")
    if display.address.uri:
        print(f"a stock viewer shows it too:  remote-viewer {display.address.uri}")


def _save(pixels: NDArray[np.uint8], path: str) -> None:
    """Write (height, width, 4) of B, G, R, X as a picture."""
    from PIL import Image  # slow to import, and only a screenshot needs it

    size = pixels.shape[1], pixels.shape[0]
    image = Image.frombuffer("RGB", size, pixels.tobytes(), "raw", "BGRX", 0, 1)
    if path == "-":
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        sys.stdout.buffer.write(buffer.getvalue())
        sys.stdout.buffer.flush()
    else:
        image.save(path)
