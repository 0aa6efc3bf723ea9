"""Waiting on damage: until something changed, until nothing changes any more.

What is waited for is told by the damage that arrives, so nothing is polled and no pixel is
compared; what was changed and changed back has changed.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from ..errors import Timeout
from .changes import Moment
from .frame import Frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..region import Rect
    from .display import DisplayChannel

SILENT_S = 3.0
"""A server that was not heard of for so long is worth a word: ours says something every second."""

_EVERYTHING = (0, 0, 1 << 31, 1 << 31)  # whatever size it will have


async def change(
    channel: DisplayChannel,
    region: Rect | None,
    since: Frame | int | None,
    timeout: float | None,
) -> None:
    """Return when a frame changed the region; see `spiceshm.RemoteDisplay.wait_change`."""
    box = _box(channel, region)
    serial = since.serial if isinstance(since, Frame) else since
    moment = channel.last_look if serial is None else Moment(serial)
    with _limit(channel, timeout, f"nothing changed in {_words(region)}"):
        await channel.changed(moment, box)


async def stable(
    channel: DisplayChannel, quiet: float, region: Rect | None, timeout: float | None
) -> None:
    """Return when the region is still; see `spiceshm.RemoteDisplay.wait_stable`."""
    box = _box(channel, region)
    with _limit(channel, timeout, f"{_words(region)} was never still for {quiet:g} s"):
        while True:
            await channel.reading.have_read()
            now = Moment(channel.changes.newest)
            with trio.move_on_after(quiet):
                await channel.changed(now, box)
                continue
            await channel.reading.have_read()  # what came while this task was kept from running
            if not channel.changes.later(now, box):
                return


def _box(channel: DisplayChannel, region: Rect | None) -> Rect:
    if region is None:
        return _EVERYTHING
    top, left, bottom, right = region
    if not (0 <= top < bottom <= channel.height and 0 <= left < right <= channel.width):
        raise ValueError(
            f"region {tuple(region)} is not within (0, 0, {channel.height}, {channel.width}), "
            "which are top, left, bottom, right"
        )
    return region


def _words(region: Rect | None) -> str:
    return "the picture" if region is None else f"the region {tuple(map(int, region))}"


@contextlib.contextmanager
def _limit(channel: DisplayChannel, timeout: float | None, complaint: str) -> Iterator[None]:
    if timeout is None:
        yield
        return
    with trio.move_on_after(timeout) as scope:
        yield
    if scope.cancelled_caught:
        raise Timeout(
            f"{channel.address}: {complaint} within {timeout:g} s{silence(channel.silent_s)}"
        )


def silence(seconds: float) -> str:
    """The end of a complaint about a server that was not heard of for so long, if that is long."""
    return f"; the server has been silent for {seconds:.0f} s" if seconds > SILENT_S else ""
