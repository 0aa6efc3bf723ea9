"""What ``spiceshm-client`` does once its options are read."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from ..errors import SpiceShmError
from .acting import act, acts, check
from .common import UsageError, one_line, run, until_interrupted
from .connecting import connected
from .options import OK
from .pictures import save
from .stats import Table, Watch

if TYPE_CHECKING:
    import argparse

    import numpy as np
    from numpy.typing import NDArray

    from ..client import RemoteDisplay


def run_client(name: str, arguments: argparse.Namespace) -> int:
    """Look as long as the options say, or do the actions; returns the exit status."""
    return run(name, arguments, partial(_run, arguments))


async def _run(arguments: argparse.Namespace) -> int:
    _check_stdout(arguments)
    check(arguments)
    if acts(arguments):
        return await act(arguments)
    told: dict[str, Any] = {}
    try:
        async with until_interrupted(), connected(arguments) as display:
            await _watch(display, arguments, told)
    except (SpiceShmError, UsageError, OSError) as error:
        if arguments.json:
            told["error"] = one_line(error)
        raise
    finally:
        if told:
            print(json.dumps(told), flush=True)
    return OK


def _check_stdout(arguments: argparse.Namespace) -> None:
    """Raises UsageError where not all that goes there can."""
    pictures = _pictures(arguments).count("-")
    if arguments.json and pictures:
        raise UsageError("--json and --screenshot - both want stdout; name a file for one")
    if pictures > 1:
        raise UsageError("--screenshot - can be given once; name files for the others")
    if pictures and sys.stdout is None:
        raise UsageError("--screenshot - wants stdout, which is closed; name a file")


def _pictures(arguments: argparse.Namespace) -> list[str]:
    return [step.value for step in arguments.steps if step.option == "screenshot"]


async def _watch(
    display: RemoteDisplay, arguments: argparse.Namespace, told: dict[str, Any]
) -> None:
    """Look as long as the options say; with --json the figures go to ``told``."""
    watch = Watch(display)
    table = Table(watch, display) if arguments.stats else None
    path = next(iter(_pictures(arguments)), None)
    picture: NDArray[np.uint8] | None = None
    endless = arguments.stats or arguments.duration or arguments.frames
    most = arguments.frames or (None if endless else 1)
    try:
        with trio.move_on_after(arguments.duration or float("inf")):
            async for frame in display.frames():
                watch.saw(frame)
                if path is not None:
                    picture = frame.copy()  # whichever turns out to be the last
                if table is not None:
                    table.update()
                if watch.frames == most:
                    break
    finally:
        # Also after Ctrl-C and when the server went away: what was seen was seen.
        if arguments.json:
            told |= watch.result()
        if table is not None:
            table.update(last=True)
        if picture is not None and path is not None:
            save(picture[:, :, 2::-1], path)  # from B, G, R, X
        if watch.frames and not (arguments.json or arguments.steps or arguments.stats):
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
