"""What ordinary SPICE is sent of a frame, and where the time for that is taken from.

A frame's rectangles become `Piece` s: parts of one colour to fill, and pictures in the format that
suits the client. What takes long is done in threads, few and of low priority, so that neither who
draws nor who shares memory waits for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, TypeVar

import trio

from .. import codecs, region
from ..errors import SpiceShmError
from ..memory import MOST_LOCAL
from ..wire.types import IMAGE_NAMES, Compression, ImageType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from ..region import Rect

CompressionWish: TypeAlias = Literal["auto", "raw", "lz4", "lz"]

FILL = "fill"
"""What statistics call it."""

STRIP_PIXELS = 1 << 18
"""Most pixels of one picture, so that a client need not wait for the last line to show the first;
but a client's first picture is a single one."""

UPDATE_PIXELS = 1 << 22
"""Most pixels of one update: what is encoded and waits to be sent is never more."""

FIRST_PIXELS = 1 << 24
"""The same of a client's first update, for some programs take the first thing that is drawn for the
whole picture."""

INLINE_PIXELS = 1 << 14
"""So few pixels take less time than asking a thread would, but for LZ."""

_LEAST_PIXELS = 64
"""Fewer are not compressed."""

_NICENESS = 5
"""A little only: who holds Python's lock and gets no processor keeps the whole program waiting."""
_THREAD_NAME = "spiceshm-encode"

T = TypeVar("T")


class Piece(NamedTuple):
    """One drawing message: a picture of ``image_type``, or without one a ``colour`` to fill."""

    rect: Rect
    image_type: ImageType | None
    data: bytes | memoryview
    colour: int = 0

    @property
    def name(self) -> str:
        return FILL if self.image_type is None else IMAGE_NAMES[self.image_type]


def check_wish(wish: CompressionWish) -> None:
    """Raises SpiceShmError if it cannot be granted to anybody, ValueError if it is none."""
    if wish not in ("auto", "raw", "lz4", "lz"):
        raise ValueError(f"compression is {wish!r}, not auto, raw, lz4 or lz")
    if wish == "lz4" and not codecs.lz4.AVAILABLE:
        raise SpiceShmError("lz4 is not installed; try pip install 'spiceshm[lz4]'")


def choose(
    wish: CompressionWish, *, local: bool, knows_lz4: bool, preferred: int | None
) -> ImageType:
    """The type of image for a client.

    ``local``: what it is sent does not leave the machine. ``knows_lz4``: it announced so.
    ``preferred``: what it asked for in PREFERRED_COMPRESSION, if it did.
    """
    if preferred == Compression.OFF:
        return ImageType.BITMAP
    can_lz4 = knows_lz4 and codecs.lz4.AVAILABLE
    if wish == "auto":
        if local:
            return ImageType.BITMAP
        lz = preferred in (Compression.LZ, Compression.GLZ, Compression.QUIC)
        return ImageType.LZ4 if can_lz4 and not lz else ImageType.LZ_RGB
    if wish == "lz4":
        return ImageType.LZ4 if can_lz4 else ImageType.LZ_RGB
    return ImageType.LZ_RGB if wish == "lz" else ImageType.BITMAP


def is_quick(rects: Sequence[Rect], image_type: ImageType) -> bool:
    """Whether encoding them takes so little time that nobody notices.

    LZ takes a quarter of a millisecond for each picture, however small: an update of many small
    ones would keep everybody else's frames waiting for longer than a frame lasts.
    """
    pixels = region.area(rects)
    return pixels <= (_LEAST_PIXELS if image_type is ImageType.LZ_RGB else INLINE_PIXELS)


# Cutting


def portion(rects: Sequence[Rect], most: int) -> tuple[list[Rect], list[Rect]]:
    """The first of ``rects`` that together have no more than ``most`` pixels, and the rest; one
    that is too large is cut between lines. There is always a line at least in the first."""
    now: list[Rect] = []
    for at, (top, left, bottom, right) in enumerate(rects):
        lines = max(most // (right - left), 0 if now else 1)
        if lines < bottom - top:
            middle = top + lines
            now += [(top, left, middle, right)] if lines else []
            return now, [(middle, left, bottom, right), *rects[at + 1 :]]
        now.append((top, left, bottom, right))
        most -= (bottom - top) * (right - left)
    return now, []


def _strips(rect: Rect) -> Iterator[Rect]:
    top, left, bottom, right = rect
    lines = max(1, STRIP_PIXELS // (right - left))
    for line in range(top, bottom, lines):
        yield line, left, min(line + lines, bottom), right


# Encoding


def encode(
    words: NDArray[np.uint32], rects: Sequence[Rect], image_type: ImageType, *, whole: bool
) -> list[Piece]:
    """What to send of a picture, an array (height, width) of pixels B, G, R, X.

    Together the pieces cover ``rects``; where those are ``whole``, each is a single one.
    """
    pieces = []
    for rect in rects:
        colour = codecs.solid.colour_of(_part(words, rect))
        if colour is not None:
            pieces.append(Piece(rect, None, b"", colour))
        elif whole:
            pieces.append(_picture(words, rect, image_type))
        else:
            pieces += _pieces(words, rect, image_type)
    return pieces


def _part(words: NDArray[np.uint32], rect: Rect) -> NDArray[np.uint32]:
    top, left, bottom, right = rect
    return words[top:bottom, left:right]


def _pieces(words: NDArray[np.uint32], rect: Rect, image_type: ImageType) -> Iterator[Piece]:
    solid, rest = [], [rect]
    if region.area([rect]) >= codecs.solid.LEAST:
        found, left_over = codecs.solid.parts_of(_part(words, rect))
        solid = [Piece(_moved(part.rect, rect), None, b"", part.colour) for part in found]
        rest = [_moved(part, rect) for part in left_over]
    yield from solid
    for part in rest:
        for strip in _strips(part):
            yield _picture(words, strip, image_type)


def _moved(part: Rect, rect: Rect) -> Rect:
    """What is told from the corner of ``rect``, told from the surface's."""
    y, x = rect[:2]
    return part[0] + y, part[1] + x, part[2] + y, part[3] + x


def _picture(words: NDArray[np.uint32], rect: Rect, image_type: ImageType) -> Piece:
    part = _part(words, rect)
    if image_type is not ImageType.BITMAP and part.size >= _LEAST_PIXELS:
        lz4 = image_type is ImageType.LZ4
        data = codecs.lz4.encode(part) if lz4 else codecs.lz.encode(part)
        if len(data) < part.size * 4:
            return Piece(rect, image_type, data)
    return Piece(rect, ImageType.BITMAP, codecs.raw.encode(part))


# Threads


class Encoders:
    """What all clients of a server share: who has a ``turn`` may `run` something in a thread.

    The threads stay until `close`: starting one keeps who starts it waiting until it runs, which on
    a machine with much to do is longer than most encoding takes. They are none of trio's, for they
    keep their low priority.
    """

    def __init__(self) -> None:
        most = most_threads()
        self.turn = trio.CapacityLimiter(most)
        self._threads = ThreadPoolExecutor(most, _THREAD_NAME, _lower_priority)

    async def run(self, work: Callable[[], T]) -> T:
        """What ``work`` returns or raises, done in a thread. It is waited for in any case.

        Raises MemoryError where no thread can be started.
        """
        done, token = trio.Event(), trio.lowlevel.current_trio_token()
        try:
            future = self._threads.submit(work)
        except RuntimeError as error:
            raise MemoryError(str(error)) from None
        future.add_done_callback(lambda _: token.run_sync_soon(done.set))
        with trio.CancelScope(shield=True):
            await done.wait()
        return future.result()

    def close(self) -> None:
        """The threads end, those that are at work as soon as that is done."""
        self._threads.shutdown(wait=False)


def most_threads() -> int:
    """How many threads encode at once: a processor is left for who draws and who looks."""
    if sys.platform == "linux":
        processors = len(os.sched_getaffinity(0))
    else:
        processors = os.cpu_count() or 1
    return max(1, min(MOST_LOCAL, processors - 1))


def _lower_priority() -> None:
    """Of the thread that calls it; on Linux, where threads have one each."""
    if sys.platform == "linux":
        who = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, who, os.getpriority(os.PRIO_PROCESS, who) + _NICENESS)
