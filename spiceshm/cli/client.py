"""``spiceshm-client``: look at a display, and act on it, from the command line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .options import INTERRUPTED, address, count, parser, seconds
from .steps import add_steps, bind_texts

if TYPE_CHECKING:
    import argparse

NAME = "spiceshm-client"
DESCRIPTION = """\
Look at a SPICE display, and use its keyboard and pointer. On the machine of a spiceshm-server the
pixels are read in place from its shared memory. Without options: say what is shown there and how
to look at it."""
EXAMPLES = """\
examples:
  spiceshm-client                               what does the default server show?
  spiceshm-client --screenshot now.png
  spiceshm-client --screenshot - unix:/run/user/1000/demo.sock | display -
  spiceshm-client --stats                       a live table until Ctrl-C
  spiceshm-client --duration 10 --json spice://127.0.0.1:5930

a test of a program with windows, from a shell; the first action that fails ends it:
  spiceshm-client --wait-stable 0.5 --click 100,20 --type "make test" --key enter \\
      --wait-change 5 --wait-stable 2 --screenshot after.png
  spiceshm-client --type $'two lines\\nin bash\\n' --region 0,0,640,20 --wait-change 2 \\
      --screenshot head.png --region all --screenshot all.png || echo "nothing came"

addresses: unix:/path, unix:@name, tcp:host:port, spice://host:port, spice+unix:///path.

exit status: 0 done, 1 could not run, 2 wrong options, 3 memory is not shared (--require-shm),
4 what was waited for did not come in time, 5 the server went away, 130 actions were interrupted."""


COMPRESSIONS = ("auto", "off", "lz4", "lz", "glz", "quic", "auto-lz", "auto-glz")


def _options() -> argparse.ArgumentParser:
    options = parser(NAME, DESCRIPTION, EXAMPLES)
    options.add_argument(
        "uri", type=address, nargs="?", help="where (default: the default socket of the server)"
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
        "wire_bytes, pixel_bytes, shm, reason, images, stale; with actions what came of each; the "
        "error, if it failed",
    )
    add_steps(options)
    options.add_argument("--cursor", action="store_true", help="draw the pointer into screenshots")
    options.add_argument(
        "--keyboard",
        default="us",
        metavar="LAYOUT",
        help="how the keyboard over there is laid out, as setxkbmap has it (default: us)",
    )
    options.add_argument(
        "--view-only", action="store_true", help="never touch keyboard and pointer"
    )
    sharing = options.add_mutually_exclusive_group()
    sharing.add_argument("--no-shm", action="store_true", help="refuse shared memory")
    sharing.add_argument(
        "--require-shm", action="store_true", help="end with status 3 if memory is not shared"
    )
    ordinary = options.add_argument_group("servers that do not share memory")
    ordinary.add_argument(
        "--compression",
        choices=COMPRESSIONS,
        default="auto",
        help="how they shall pack images; auto: not at all over a Unix socket, lz4 over TCP",
    )
    ordinary.add_argument(
        "--cache-pixels",
        type=count,
        default=0,
        metavar="N",
        help="keep N pixels of images that a server may show again (default: none)",
    )
    ordinary.add_argument(
        "--video", action="store_true", help="let them send moving parts as MJPEG, which loses some"
    )
    ordinary.add_argument(
        "--strict",
        action="store_true",
        help="end with status 1 when an image cannot be decoded; else it is told of once, and what "
        "it should have covered stays as it was",
    )
    options.add_argument(
        "--wait-server",
        type=seconds,
        metavar="S",
        help="a server that is not there yet may come within S seconds",
    )
    options.add_argument(
        "--password-file",
        metavar="FILE",
        help="its first line is the password (default: $SPICESHM_PASSWORD, if set)",
    )
    return options


def main() -> int:
    """The program's entry point; returns its exit status."""
    try:
        arguments = _options().parse_args(bind_texts(sys.argv[1:]))
        from .looking import run_client

        return run_client(NAME, arguments)
    except KeyboardInterrupt:  # while importing; later it ends in order
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
