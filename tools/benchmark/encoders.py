"""What ordinary viewers are sent of a desktop, in each of the formats, by us and by others.

The same program paints on the desktop of each (see `contents`), a frame as soon as the last one has
been seen, that is when the reader has received all of it; the reader is the same for all that speak
SPICE. Nobody decodes while it is measured. Afterwards everything that was received is drawn, and
has to be the picture that the X server has.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from .contents import CONTENTS, Mark, Painter, painter
from .process import Failed, Worker, total_cpu_ns, workers
from .spicereader import SpiceReader
from .vncreader import VncReader
from .xservers import missing, served, xspice, xvfb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from .stats import Measures

Peer: TypeAlias = Literal[
    "raw", "lz4", "lz", "xspice-raw", "xspice-lz4", "xspice-lz", "vnc-tight", "vnc-raw"
]
"""Who sends what: those without a name are ours."""

PEERS: tuple[Peer, ...] = get_args(Peer)

_FIRST = 3
"""Frames of a content that are not counted: windows open with them."""

_LOOK = 0x800000
"""Added to a frame's number: the reader is to say what it sees."""

_LOOKS = 2
"""x11vnc may have fetched what was painted before the marks a moment too early."""

_STOP = 0xFFFFFF


def lacks(peer: Peer) -> str | None:
    """How to install what a peer needs, where it is not."""
    server, _ = _parts(peer)
    programs = {"spiceshm": ["Xvfb"], "xspice": ["Xspice"], "vnc": ["Xvfb", "x11vnc"]}
    return missing(programs[server], ["xcffib", "lz4"])


def _parts(peer: Peer) -> tuple[str, str]:
    """The server and the format."""
    server, _, format = peer.rpartition("-")
    return server or "spiceshm", format


# Who looks


def look(link: Connection, peer: Peer, place: str) -> None:
    """Tell of every frame that is seen, and send the picture where that is asked for."""
    server, format = _parts(peer)
    connect = VncReader if server == "vnc" else SpiceReader
    reader = connect(place, format)
    last = None
    while last != _STOP:
        reader.read()
        mark = reader.mark
        if mark is None or mark == last:
            continue
        last = mark
        link.send(Mark(mark, reader.received_bytes))
        if mark & _LOOK and mark != _STOP:
            link.send(reader.picture())


# What it looks at


@contextmanager
def _desktop(peer: Peer) -> Iterator[tuple[str, str, list[int]]]:
    """The X display, where the reader connects, and the pids of all that serves it."""
    server, format = _parts(peer)
    with ExitStack() as stack:
        if server == "xspice":
            display, pid, place = stack.enter_context(xspice())
            yield display, place, [pid]
            return
        display, pid = stack.enter_context(xvfb("-nocursor"))
        if server == "vnc":
            place, pids = stack.enter_context(served("vnc", display, "-nocursor"))
        else:
            options = ("--fps", "0", "--listen", "tcp:127.0.0.1:0", "--compression", format)
            address, pids = stack.enter_context(served("spiceshm", display, *options))
            place = address.removeprefix("tcp:")
        yield display, place, [pid, *pids]


@dataclass
class _Scene:
    """One desktop while it is painted on and looked at."""

    canvas: Painter
    reader: Worker
    pids: list[int]
    frame: int = 0

    def show(self, bits: int = 0) -> Mark:
        """Paint the next frame and wait until it is seen."""
        self.frame += 1
        self.canvas.paint(self.frame | bits)
        while (seen := self.reader.receive()).frame != self.frame | bits:
            pass
        assert isinstance(seen, Mark)
        return seen

    def measure(self, content: str, seconds: float) -> Measures:
        """Show so many frames of one content as can be in the time; the last one is compared."""
        self.canvas.change(content)
        for _ in range(_FIRST):
            first = self.show()
        begun, cpu = time.monotonic(), total_cpu_ns(self.pids)
        while time.monotonic() < begun + seconds or self.frame == first.frame:
            last = self.show()
        taken, used = time.monotonic() - begun, total_cpu_ns(self.pids) - cpu
        self._compare(content)
        count = last.frame - first.frame
        received = last.received_bytes - first.received_bytes
        return {
            f"{content}_frames_per_s": count / taken,
            f"{content}_mb_per_s": received / taken / 1e6,
            f"{content}_bytes": received / count,
            f"{content}_cpu_us": used / 1000 / count,
        }

    def _compare(self, content: str) -> None:
        for _ in range(_LOOKS):
            self.show(_LOOK)
            seen = self.reader.receive()
            wrong = np.count_nonzero(seen != self.canvas.picture())
            if not wrong:
                return
        raise Failed(f"{content}: {wrong} pixels are not those of the X server")


def measure(peer: Peer, seconds: float) -> Measures:
    """Show each content for so long to a reader of ``peer``. Raises Failed."""
    with (
        workers() as start,
        _desktop(peer) as (display, place, pids),
        painter(display, Painter) as canvas,
    ):
        scene = _Scene(canvas, start(look, peer, place), pids)
        measures: Measures = {}
        for content in CONTENTS:
            measures |= scene.measure(content, seconds)
        canvas.paint(_STOP)
    return measures
