"""``spiceshm-client``: look at a display from the command line."""

from __future__ import annotations

import argparse
import io
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from ..client import RemoteDisplay, Sharing, connect
from ..errors import MemoryRefused
from .common import (
    NOT_SHARED,
    OK,
    UsageError,
    address,
    count,
    parser,
    read_password,
    run,
    seconds,
    until_interrupted,
)
from .stats import Table, Watch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "spiceshm-client"
DESCRIPTION = """\
Look at a SPICE display. On the machine of a spiceshm-server the pixels are read in place from its
shared memory. Without options: say what is shown there and how to look at it."""
EXAMPLES = """\
examples:
  spiceshm-client                               what does the default server show?
  spiceshm-client --screenshot now.png
  spiceshm-client --screenshot - unix:/run/user/1000/demo.sock | display -
  spiceshm-client --stats                       a live table until Ctrl-C
  spiceshm-client --duration 10 --json spice://127.0.0.1:5930

addresses: unix:/path, unix:@name, tcp:host:port, spice://host:port, spice+unix:///path.

exit status: 0 done, 1 could not run, 2 wrong options, 3 memory is not shared (--require-shm),
5 the server went away."""


def _picture(text: str) -> str:
    if text == "-" or Path(text).suffix.lower() in (".png", ".ppm"):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} does not end in .png or .ppm; - is PNG on stdout")


def _options() -> argparse.ArgumentParser:
    options = parser(NAME, DESCRIPTION, EXAMPLES)
    options.add_argument(
        "uri", type=address, nargs="?", help="where (default: the default socket of the server)"
    )
    options.add_argument(
        "--screenshot",
        type=_picture,
        metavar="FILE",
        help="save the last frame seen: .png or .ppm; - is PNG on stdout",
    )
    options.add_argument("--frames", type=count, metavar="N", help="end after N frames")
    options.add_argument("--duration", type=seconds, metavar="S", help="end after S seconds")
    options.add_argument(
        "--stats", action="store_true", help="a live table on stderr; until Ctrl-C if no other end"
    )
    options.add_argument(
        "--json",
        action="store_true",
        help="at the end one JSON object on stdout: frames, fps, latency_us, torn, rects, "
        "wire_bytes, pixel_bytes, shm, reason",
    )
    sharing = options.add_mutually_exclusive_group()
    sharing.add_argument("--no-shm", action="store_true", help="refuse shared memory")
    sharing.add_argument(
        "--require-shm", action="store_true", help="end with status 3 if memory is not shared"
    )
    options.add_argument("--password-file", metavar="FILE", help="its first line is the password")
    return options


async def _look(arguments: argparse.Namespace) -> int:
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
            print(f"{NAME}: {error}", file=sys.stderr)
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


def main() -> int:
    """The program's entry point; returns its exit status."""
    arguments = _options().parse_args()
    return run(NAME, arguments, partial(_look, arguments))


if __name__ == "__main__":
    sys.exit(main())
