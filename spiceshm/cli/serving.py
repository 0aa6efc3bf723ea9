"""What ``spiceshm-server`` does once its options are read."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from ..nursery import open_nursery
from ..server import Display, ViewerStats, serve
from ..server.display import SHM_LIMIT
from ..sources.processes import PASSWORD, NotStarted
from ..transport import default_address, parse_address
from .common import UsageError, password_in, read_password, run, until_interrupted
from .options import OK, SOURCES
from .viewing import commands, connection_file, for_stock_viewers, in_lines

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractContextManager

    from ..relay import Relay, UpstreamStats
    from ..server.agent import Resize
    from ..server.inputs import Play
    from ..sources.xvfb import Xvfb
    from ..transport import Address

PATTERN_SURFACE = (1920, 1080)
DESKTOP_SURFACE = (1280, 800)
DEFAULT_FPS = 60.0
STATS_S = 1.0


def run_server(name: str, arguments: argparse.Namespace) -> int:
    """Serve until a signal; returns the exit status."""
    return run(name, arguments, partial(_serve, name, arguments))


_OTHER_SERVER = "spice+unix:///path or spice://host:port"
"""What sources are that have no name of their own."""

_FOR = {
    "surface": ("pattern", "xvfb"),
    "fps": ("pattern", "x11", "xvfb"),
    "damage": ("pattern",),
    "display": ("x11",),
    "command": ("xvfb",),
    "source_password_file": (_OTHER_SERVER,),
}
"""Which sources an option is for."""


def _check(arguments: argparse.Namespace) -> None:
    """Options that belong to one source are wrong with another, not silently ignored."""
    kind = arguments.source if arguments.source in SOURCES else _OTHER_SERVER
    for option, sources in _FOR.items():
        if getattr(arguments, option) not in (None, []) and kind not in sources:
            what = "a command" if option == "command" else f"--{option.replace('_', '-')}"
            raise UsageError(f"{what} is for --source {' and '.join(sources)}")
    if kind == _OTHER_SERVER:
        _check_elsewhere(arguments)


def _check_elsewhere(arguments: argparse.Namespace) -> None:
    """The other server is not this one."""
    own = [parse_address(text) for text in arguments.listen or ()] or [default_address()]
    own += [parse_address(text) for text in arguments.listen_view_only or ()]
    if parse_address(arguments.source) in own:
        raise UsageError(f"--source {arguments.source}: there this server listens itself")


def _password(arguments: argparse.Namespace) -> str | None:
    password = read_password(arguments.password_file)
    if password is not None and arguments.no_auth:
        where = PASSWORD if arguments.password_file is None else "--password-file"
        raise UsageError(f"--no-auth asks nobody for the password of {where}; leave one out")
    return password


class Source(NamedTuple):
    """What is served: for viewers' windows its name, for who reads it in so many words."""

    title: str
    words: str
    show: Callable[..., Awaitable[None]]
    """Shows it on a `Display` for ever; to be started, it tells when there is a surface."""
    play: Play | None = None
    """Plays the input of clients, if it can."""
    resize: Resize | None = None
    """Follows what viewers wish for, if it can."""
    xvfb: Xvfb | None = None
    """The X server, if it is our own."""
    relay: Relay | None = None
    """What passes another SPICE server on, if it is one."""


@contextlib.asynccontextmanager
async def _source(arguments: argparse.Namespace) -> AsyncIterator[Source]:
    fps = DEFAULT_FPS if arguments.fps is None else arguments.fps
    if arguments.source == "x11":
        from ..sources.x11 import XDesktop

        async with XDesktop.open(arguments.display) as desktop:
            show = partial(desktop.show, fps=fps)
            yield Source(
                f"X display {desktop.name}", str(desktop), show, desktop.play, desktop.resize
            )
    elif arguments.source == "xvfb":
        from ..sources.xvfb import open_own_desktop

        width, height = arguments.surface or DESKTOP_SURFACE
        async with open_own_desktop(width, height) as (xvfb, desktop):
            show = partial(desktop.show, fps=fps)
            title, words = f"X display {desktop.name}", f"Xvfb, {desktop}"
            yield Source(title, words, show, desktop.play, desktop.resize, xvfb)
    elif arguments.source not in SOURCES:
        from ..relay import Relay

        file = arguments.source_password_file
        password = "" if file is None else password_in(file, "--source-password-file")
        relay = Relay(arguments.source, password=password)
        title, words = str(relay.address), str(relay)
        yield Source(title, words, relay.show, relay.play, relay.resize, relay=relay)
    else:
        from ..sources.pattern import PatternSource

        width, height = arguments.surface or PATTERN_SURFACE
        full = arguments.damage == "full"
        pattern = PatternSource(width, height, fps=fps, full=full)
        words = f"test pattern {width}x{height}"
        yield Source("test pattern", words, pattern.show, resize=pattern.resize)


async def _serve(name: str, arguments: argparse.Namespace) -> int:
    _check(arguments)
    password = _password(arguments)
    status = OK
    async with (
        until_interrupted(),
        _source(arguments) as source,
        serve(
            *arguments.listen or (),
            view_only=arguments.listen_view_only or (),
            inputs=source.play,
            resize=None if arguments.no_resize else source.resize,
            shm=arguments.shm,
            shm_limit=arguments.shm_limit_mb * 10**6 if arguments.shm_limit_mb else SHM_LIMIT,
            password=password,
            no_auth=arguments.no_auth,
            compression=arguments.compression,
            max_clients=arguments.max_clients,
        ) as display,
    ):
        with _connection_file(arguments, display, source, password):
            async with open_nursery() as nursery:
                await nursery.start(source.show, display)
                _announce(name, display, source, arguments, password is not None)
                if arguments.stats or arguments.stats_json:
                    nursery.start_soon(_report, display, arguments, source.relay)
                if source.xvfb is not None and arguments.command:
                    status = await _run(name, source.xvfb, arguments.command)
                    nursery.cancel_scope.cancel()
    return status


async def _run(name: str, xvfb: Xvfb, command: Sequence[str]) -> int:
    """Run a program to its end; its exit status, as a shell would tell it."""
    try:
        program = await xvfb.run(*command)
    except NotStarted as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.status
    status = await program.wait()
    return 128 - status if status < 0 else status


async def _report(display: Display, arguments: argparse.Namespace, relay: Relay | None) -> None:
    """Every second, how each client does."""
    before = display.surface.serial if display.surface else 0
    while True:
        await trio.sleep(STATS_S)
        serial = display.surface.serial if display.surface else 0
        fps, before = (serial - before) / STATS_S, serial
        viewers = [viewer.stats for viewer in display.viewers]
        if arguments.stats_json:
            summary: dict[str, Any] = {
                "width": display.surface.width if display.surface else 0,
                "height": display.surface.height if display.surface else 0,
                "serial": serial,
                "fps": fps,
                "shm_bytes": display.shm_bytes,
                "copied_bytes": display.surface.copied_bytes if display.surface else 0,
            }
            if relay is not None:
                summary["upstream"] = asdict(relay.stats)
            print(json.dumps({**summary, "clients": [asdict(v) for v in viewers]}), flush=True)
        if arguments.stats and relay is not None:
            print(_upstream(relay.stats), file=sys.stderr)
        if arguments.stats:
            print(_table(display, viewers, fps), file=sys.stderr, flush=True)


def _upstream(stats: UpstreamStats) -> str:
    """A line for people on the other server."""
    state = "connected" if stats.connected else "not there"
    how = f", {'shared' if stats.shm else 'SPICE'}" if stats.connected else ""
    return (
        f"{stats.address}: {state} for {stats.since_s:.0f} s{how}, {stats.reconnects} reconnects"
        + (f"; {stats.why}" if stats.why else "")
    )


def _table(display: Display, viewers: Sequence[ViewerStats], fps: float) -> str:
    surface = display.surface
    size = f"{surface.width}x{surface.height}, " if surface else ""
    shared = display.shm_bytes / 1e6
    lines = [f"{size}{fps:.1f} frames/s, {shared:.1f} MB shared, {len(viewers)} clients"]
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


def _connection_file(
    arguments: argparse.Namespace, display: Display, source: Source, password: str | None
) -> AbstractContextManager[None]:
    """The block has the file that --write-vv wants, if it wants one."""
    if arguments.write_vv is None:
        return contextlib.nullcontext()
    title = f"{source.title} of {socket.gethostname()}"
    return connection_file(arguments.write_vv, _places(display), title=title, password=password)


def _places(display: Display) -> list[Address]:
    return [*display.addresses, *display.view_only_addresses]


def _announce(
    name: str, display: Display, source: Source, arguments: argparse.Namespace, password: bool
) -> None:
    """Say where it listens and what to type to look; flushed, so that a script can wait for it."""
    vv_place = for_stock_viewers(_places(display))

    def viewers(place: Address) -> list[list[str]]:
        vv = arguments.write_vv if place == vv_place else None
        return commands(place, password_file=arguments.password_file, vv=vv)

    if arguments.json:
        said: dict[str, Any] = {
            "source": source.words,
            "listening": [_place(place, viewers(place)) for place in display.addresses],
            "view_only": [_place(place, viewers(place)) for place in display.view_only_addresses],
            "pid": os.getpid(),
        }
        if source.xvfb is not None:
            said |= {"display": source.xvfb.name, "xauthority": str(source.xvfb.xauthority)}
        print(json.dumps(said), flush=True)
        return
    lines = [f"{name}: {source.words}"]
    for place in _places(display):
        only = " (view only)" if place in display.view_only_addresses else ""
        lines += [f"listening on {place}{only}", *in_lines(viewers(place))]
    if password:
        lines.append(_about_the_password(arguments))
    if source.xvfb is not None:
        where = f"DISPLAY={source.xvfb.name} XAUTHORITY={source.xvfb.xauthority}"
        lines.append(f"for further programs on it:  export {where}")
    # Beside objects for a program this would be in their way.
    print("\n".join(lines), file=sys.stderr if arguments.stats_json else sys.stdout, flush=True)


def _about_the_password(arguments: argparse.Namespace) -> str:
    words = "viewers ask for the password"
    if arguments.write_vv is not None:
        words += f", but not those that open {arguments.write_vv}: it is in there"
    if arguments.password_file is None:
        words += f"; spiceshm-client reads {PASSWORD}"
    return words


def _place(place: Address, viewers: list[list[str]]) -> dict[str, Any]:
    return {"address": str(place), "uri": place.uri, "commands": viewers}
