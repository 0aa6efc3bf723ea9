"""``spiceshm-client``: look at a display from the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .options import INTERRUPTED, address, count, parser, seconds

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


def main() -> int:
    """The program's entry point; returns its exit status."""
    arguments = _options().parse_args()
    try:
        from .looking import run_client

        return run_client(NAME, arguments)
    except KeyboardInterrupt:  # while importing; later it ends in order
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
