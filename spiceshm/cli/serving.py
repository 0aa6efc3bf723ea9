"""What ``spiceshm-server`` does once its options are read."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import trio

from ..nursery import open_nursery
from ..server import Display, ViewerStats, serve
from ..server.display import SHM_LIMIT
from ..transport import Address, default_address
from .common import UsageError, read_password, run, until_interrupted
from .options import OK

if TYPE_CHECKING:
    import argparse

    from ..server.inputs import Play

DEFAULT_SURFACE = (1920, 1080)
DEFAULT_FPS = 60.0
STATS_S = 1.0


def run_server(name: str, arguments: argparse.Namespace) -> int:
    """Serve until a signal; returns the exit status."""
    return run(name, arguments, partial(_serve, name, arguments))


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
async def _source(arguments: argparse.Namespace) -> AsyncIterator[tuple[str, Show, Play | None]]:
    """What is shown, in words, the task that shows it, and what plays the input of clients."""
    fps = DEFAULT_FPS if arguments.fps is None else arguments.fps
    if arguments.source == "x11":
        from ..sources.x11 import XDesktop

        async with XDesktop.open(arguments.display) as desktop:
            yield str(desktop), partial(desktop.show, fps=fps), desktop.play
        return
    from ..sources.pattern import show_pattern

    width, height = arguments.surface or DEFAULT_SURFACE
    full = arguments.damage == "full"
    show = partial(show_pattern, width=width, height=height, fps=fps, full=full)
    yield f"test pattern {width}x{height}", show, None


async def _serve(name: str, arguments: argparse.Namespace) -> int:
    _check(arguments)
    password = read_password(arguments.password_file)
    async with (
        until_interrupted(),
        _source(arguments) as (what, show, play),
        serve(
            *arguments.listen or (),
            view_only=arguments.listen_view_only or (),
            inputs=play,
            shm=arguments.shm,
            shm_limit=arguments.shm_limit_mb * 10**6 if arguments.shm_limit_mb else SHM_LIMIT,
            password=password,
            no_auth=arguments.no_auth,
        ) as display,
    ):
        async with open_nursery() as nursery:
            await nursery.start(show, display)
            _announce(name, display, what, arguments)
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
            summary = {
                "serial": serial,
                "fps": fps,
                "shm_bytes": display.shm_bytes,
                "copied_bytes": display.surface.copied_bytes if display.surface else 0,
            }
            print(json.dumps({**summary, "clients": [asdict(v) for v in viewers]}), flush=True)
        if arguments.stats:
            print(_table(viewers, fps, display.shm_bytes), file=sys.stderr, flush=True)


def _table(viewers: Sequence[ViewerStats], fps: float, shm_bytes: int) -> str:
    lines = [f"{fps:.1f} frames/s, {shm_bytes / 1e6:.1f} MB shared, {len(viewers)} clients"]
    if viewers:
        lines.append(
            "    frames coalesced   lag  held   held s       sent B  how     "
            "input      events down  client"
        )
    lines += (
        f"{v.frames:10} {v.coalesced:9} {v.lag_frames:5} {v.held_frames:5} {v.held_s:8.3f} "
        f"{v.bytes_sent:12}  {'shared' if v.shm else 'SPICE '}  "
        f"{v.input:9} {v.input_events:7} {v.input_held:4}  {v.peer}"
        for v in viewers
    )
    return "\n".join(lines)


def _announce(name: str, display: Display, what: str, arguments: argparse.Namespace) -> None:
    """Say where it listens and what to type to look; flushed, so that a script can wait for it."""
    if arguments.json:
        print(
            json.dumps(
                {
                    "source": what,
                    "listening": _places(display.addresses),
                    "view_only": _places(display.view_only_addresses),
                    "pid": os.getpid(),
                }
            ),
            flush=True,
        )
        return
    lines = [f"{name}: {what}"]
    for place in (*display.addresses, *display.view_only_addresses):
        here = "" if place == default_address() else f" {place}"
        only = " (view only)" if place in display.view_only_addresses else ""
        lines.append(f"listening on {place}{only}")
        ticket = " --password-file FILE" if arguments.password_file else ""
        lines.append(f"  look at it:           spiceshm-client --stats{ticket}{here}")
        if place.uri:
            lines.append(f"  with a stock viewer:  remote-viewer {place.uri}")
    print("\n".join(lines), flush=True)


def _places(addresses: Sequence[Address]) -> list[dict[str, str | None]]:
    return [{"address": str(address), "uri": address.uri} for address in addresses]
