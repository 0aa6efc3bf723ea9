"""``spiceshm-server``: serve a test pattern, an X desktop, one of its own, or a virtual machine."""

from __future__ import annotations

import argparse
import re
import sys

from .options import INTERRUPTED, SOURCES, address, count, parser

NAME = "spiceshm-server"
DESCRIPTION = """\
Serve a display over SPICE. Clients on this machine read its pixels in place from sealed shared
memory; every other SPICE viewer is sent them as usual."""
EXAMPLES = """\
examples:
  spiceshm-server                              a test pattern of 1920x1080 at the default socket
  spiceshm-server --source x11 --display :5    the X desktop :5
  spiceshm-server --source xvfb -- xterm       a desktop of its own, with xterm, until xterm ends
  spiceshm-server --source xvfb --surface 1280x800 -- xterm -e top
  spiceshm-server --source spice+unix:///run/vm.sock      a virtual machine, or any SPICE server
  spiceshm-server --listen unix:/run/user/1000/demo.sock --listen-view-only tcp:127.0.0.1:5930
  spiceshm-server --surface 1280x720 --fps 30 --damage full
  spiceshm-server --listen tcp:0.0.0.0:5930 --password-file ~/.ticket --write-vv a.vv

another SPICE server is waited for, also when it goes and comes back; who looks here keeps its last
picture meanwhile. Its addresses are spice+unix:///path, spice://host:port, and those below.

addresses: unix:/path, unix:@name (abstract: no file protects it, only the check that the client is
of your own user), tcp:host:port (port 0: any free one). Whoever can connect can type: TCP beyond
loopback needs a password, and on loopback, without one, every user of this machine can connect.

exit status: 0 ended by a signal, 1 could not run, 2 wrong options; behind a command that ended, its
own: 128+N if signal N killed it, 127 if there is no such program, 126 if it cannot be run."""

MAX_FPS = 1000.0


def _surface(text: str) -> tuple[int, int]:
    from ..wire.types import MAX_SIDE

    match = re.fullmatch(r"(\d{1,9})[xX](\d{1,9})", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not WIDTHxHEIGHT in pixels, each 1 to {MAX_SIDE}, for example 1920x1080"
        )
    return size


def _source(text: str) -> str:
    if text in SOURCES:
        return text
    try:
        return address(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; or {', '.join(SOURCES)}") from None


def _fps(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_FPS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of frames a second from 0 (as fast as somebody looks) "
            f"to {MAX_FPS:g}"
        )
    return value


def _options() -> argparse.ArgumentParser:
    options = parser(NAME, DESCRIPTION, EXAMPLES)
    options.add_argument(
        "command",
        nargs="*",
        metavar="COMMAND",
        help="behind --: the program on the desktop of --source xvfb; with it all ends",
    )
    options.add_argument(
        "--source",
        type=_source,
        metavar="WHAT",
        default="pattern",
        help="what is shown: a test pattern (pattern), an X desktop (x11), one of its own without "
        "a screen (xvfb), or the display of another SPICE server, such as a virtual machine "
        "(spice+unix:///path or spice://host:port) (default: pattern)",
    )
    options.add_argument(
        "--source-password-file",
        metavar="FILE",
        help="its first line is the password that the SPICE server of --source asks for",
    )
    options.add_argument(
        "--surface",
        type=_surface,
        metavar="WxH",
        help="size in pixels of the pattern (default: 1920x1080) or of a desktop of its own "
        "(default: 1280x800); --source x11 has one already",
    )
    options.add_argument(
        "--fps",
        type=_fps,
        metavar="N",
        help="frames a second: of the pattern (default: 60; 0: as fast as somebody looks), "
        "at most of a desktop, besides one for each input (default: 60; 0: no limit)",
    )
    options.add_argument(
        "--damage",
        choices=("small", "full"),
        help="of the pattern, redraw what moves or every pixel (default: small)",
    )
    options.add_argument(
        "--no-resize",
        action="store_true",
        help="keep the size whatever size viewers' windows have; otherwise the pattern follows "
        "them, and so does an X desktop that can and is on no real screen, and a machine whose "
        "agent can",
    )
    options.add_argument(
        "--display", metavar=":N", help="the X desktop of --source x11 (default: $DISPLAY)"
    )
    options.add_argument(
        "--listen",
        type=address,
        action="append",
        metavar="ADDRESS",
        help="where to listen, may be repeated (default: a socket in your runtime directory)",
    )
    options.add_argument(
        "--listen-view-only",
        type=address,
        action="append",
        metavar="ADDRESS",
        help="where to listen besides to clients that may look, but neither press keys nor move "
        "the pointer; may be repeated",
    )
    options.add_argument(
        "--shm",
        choices=("auto", "off"),
        default="auto",
        help="share memory with clients that can (auto), or speak ordinary SPICE only (off)",
    )
    options.add_argument(
        "--compression",
        choices=("auto", "raw", "lz4", "lz"),
        default="auto",
        help="of what clients are sent that do not share memory: auto is raw on Unix sockets, "
        "elsewhere lz4 if the client knows it, else lz (default: auto)",
    )
    options.add_argument(
        "--password-file",
        metavar="FILE",
        help="its first line is asked of every client (default: $SPICESHM_PASSWORD, if set)",
    )
    options.add_argument(
        "--no-auth", action="store_true", help="let anybody in who reaches a TCP address"
    )
    options.add_argument(
        "--max-clients",
        type=count,
        metavar="N",
        help="clients at a time, further ones are refused (default: as many as come)",
    )
    options.add_argument(
        "--write-vv",
        metavar="FILE",
        help="while it runs, a file for remote-viewer FILE: where to connect, and the password, so "
        "only you can read it",
    )
    options.add_argument(
        "--shm-limit-mb",
        type=count,
        metavar="N",
        help="megabytes of shared memory in use at most (default: 1000)",
    )
    options.add_argument(
        "--stats", action="store_true", help="every second a table of the clients on stderr"
    )
    options.add_argument(
        "--stats-json", action="store_true", help="every second one JSON object on stdout"
    )
    options.add_argument(
        "--json", action="store_true", help="say where it listens as one JSON object on stdout"
    )
    return options


def main() -> int:
    """The program's entry point; returns its exit status."""
    try:
        arguments = _options().parse_args()
        from .serving import run_server

        return run_server(NAME, arguments)
    except KeyboardInterrupt:  # while importing; later it ends in order
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
