"""``spiceshm-server``: serve a test pattern or an X desktop."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict
from functools import partial

import trio

from ..nursery import open_nursery
from ..server import Display, ViewerStats, serve
from ..server.display import SHM_LIMIT
from ..transport import default_address
from ..wire.types import MAX_SIDE
from .common import OK, UsageError, address, count, parser, read_password, run, until_interrupted

NAME = "spiceshm-server"
DESCRIPTION = """\
Serve a display over SPICE. Clients on this machine read its pixels in place from sealed shared
memory; every other SPICE viewer is sent them as usual."""
EXAMPLES = """\
examples:
  spiceshm-server                              a test pattern of 1920x1080 at the default socket
  spiceshm-server --source x11 --display :5    the X desktop :5
  spiceshm-server --listen unix:/run/user/1000/demo.sock --listen tcp:127.0.0.1:5930
  spiceshm-server --surface 1280x720 --fps 30 --damage full

addresses: unix:/path, unix:@name (abstract: no file protects it, only the check that the client is
of your own user), tcp:host:port (port 0: any free one). TCP beyond loopback needs a password.

exit status: 0 ended by a signal, 1 could not run, 2 wrong options."""

DEFAULT_SURFACE = (1920, 1080)
DEFAULT_FPS = 60.0
MAX_FPS = 1000.0
STATS_S = 1.0


def _surface(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})[xX](\d{1,9})", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not WIDTHxHEIGHT in pixels, each 1 to {MAX_SIDE}, for example 1920x1080"
        )
    return size


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
        "--source",
        choices=("pattern", "x11"),
        default="pattern",
        help="what is shown: a test pattern, or an X desktop (default: pattern)",
    )
    options.add_argument(
        "--surface",
        type=_surface,
        metavar="WxH",
        help="size of the pattern in pixels (default: 1920x1080); an X desktop has its own",
    )
    options.add_argument(
        "--fps",
        type=_fps,
        metavar="N",
        help="frames a second: of the pattern (default: 60; 0: as fast as somebody looks), "
        "at most of an X desktop (default: 60; 0: no limit)",
    )
    options.add_argument(
        "--damage",
        choices=("small", "full"),
        help="of the pattern, redraw what moves or every pixel (default: small)",
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
        "--shm",
        choices=("auto", "off"),
        default="auto",
        help="share memory with clients that can (auto), or speak ordinary SPICE only (off)",
    )
    options.add_argument(
        "--password-file", metavar="FILE", help="its first line is asked of every client"
    )
    options.add_argument(
        "--no-auth", action="store_true", help="let anybody in who reaches a TCP address"
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


def _check(arguments: argparse.Namespace) -> None:
    """Options that belong to one source are wrong with the other, not silently ignored."""
    if arguments.source == "x11":
        for option in ("surface", "damage"):
            if getattr(arguments, option) is not None:
                raise UsageError(f"--{option} is for --source pattern, an X desktop has its own")
    elif arguments.display is not None:
        raise UsageError("--display is for --source x11")


Show = Callable[..., Awaitable[None]]
"""Shows something on a `Display` for ever; to be started, it tells when there is a surface."""


@contextlib.asynccontextmanager
async def _source(arguments: argparse.Namespace) -> AsyncIterator[tuple[str, Show]]:
    """What is shown, in words, and the task that shows it."""
    fps = DEFAULT_FPS if arguments.fps is None else arguments.fps
    if arguments.source == "x11":
        from ..sources.x11 import XDesktop

        async with XDesktop.open(arguments.display) as desktop:
            yield str(desktop), partial(desktop.show, fps=fps)
        return
    from ..sources.pattern import show_pattern

    width, height = arguments.surface or DEFAULT_SURFACE
    full = arguments.damage == "full"
    show = partial(show_pattern, width=width, height=height, fps=fps, full=full)
    yield f"test pattern {width}x{height}", show


async def _serve(arguments: argparse.Namespace) -> int:
    _check(arguments)
    password = read_password(arguments.password_file)
    async with (
        until_interrupted(),
        _source(arguments) as (what, show),
        serve(
            *arguments.listen or (),
            shm=arguments.shm,
            shm_limit=arguments.shm_limit_mb * 10**6 if arguments.shm_limit_mb else SHM_LIMIT,
            password=password,
            no_auth=arguments.no_auth,
        ) as display,
    ):
        async with open_nursery() as nursery:
            await nursery.start(show, display)
            _announce(display, what, arguments)
            if arguments.stats or arguments.stats_json:
                nursery.start_soon(_report, display, arguments)
    return OK


async def _report(display: Display, arguments: argparse.Namespace) -> None:
    """Every second, how each client does."""
    before = display.surface.serial if display.surface else 0
    while True:
        await trio.sleep(STATS_S)
        serial = display.surface.serial if display.surface else 0
        fps, before = (serial - before) / STATS_S, serial
        viewers = [viewer.stats for viewer in display.viewers]
        if arguments.stats_json:
            summary = {"serial": serial, "fps": fps, "shm_bytes": display.shm_bytes}
            print(json.dumps({**summary, "clients": [asdict(v) for v in viewers]}), flush=True)
        if arguments.stats:
            print(_table(viewers, fps, display.shm_bytes), file=sys.stderr, flush=True)


def _table(viewers: Sequence[ViewerStats], fps: float, shm_bytes: int) -> str:
    lines = [f"{fps:.1f} frames/s, {shm_bytes / 1e6:.1f} MB shared, {len(viewers)} clients"]
    if viewers:
        lines.append("    frames coalesced   lag  held   held s       sent B  how     client")
    lines += (
        f"{v.frames:10} {v.coalesced:9} {v.lag_frames:5} {v.held_frames:5} {v.held_s:8.3f} "
        f"{v.bytes_sent:12}  {'shared' if v.shm else 'SPICE '}  {v.peer}"
        for v in viewers
    )
    return "\n".join(lines)


def _announce(display: Display, what: str, arguments: argparse.Namespace) -> None:
    """Say where it listens and what to type to look; flushed, so that a script can wait for it."""
    if arguments.json:
        places = [{"address": str(a), "uri": a.uri} for a in display.addresses]
        print(json.dumps({"source": what, "listening": places, "pid": os.getpid()}), flush=True)
        return
    lines = [f"{NAME}: {what}"]
    for place in display.addresses:
        here = "" if place == default_address() else f" {place}"
        lines.append(f"listening on {place}")
        ticket = " --password-file FILE" if arguments.password_file else ""
        lines.append(f"  look at it:           spiceshm-client --stats{ticket}{here}")
        if place.uri:
            lines.append(f"  with a stock viewer:  remote-viewer {place.uri}")
    print("\n".join(lines), flush=True)


def main() -> int:
    """The program's entry point; returns its exit status."""
    arguments = _options().parse_args()
    return run(NAME, arguments, partial(_serve, arguments))


if __name__ == "__main__":
    sys.exit(main())
