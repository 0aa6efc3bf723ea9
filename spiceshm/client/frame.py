"""A frame as a program sees it, and how long the memory under it is kept."""

from __future__ import annotations

import io
import mmap
import time
import weakref
from collections import deque
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..region import MOST_RECTS, area, merge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ..region import Rect

_MOST_FREE = 2
_MOST_CHANGES = 8

_NOWHERE = np.empty((0, 4), "<i4")
_NOWHERE.flags.writeable = False


def page_aligned(height: int, width: int) -> NDArray[np.uint8]:
    """Zeroed (height, width, 4) uint8 that begins on a page.

    Not ``np.zeros``: at its offset of 16 bytes some processors copy rows from shared memory ten
    times slower.
    """
    memory = mmap.mmap(-1, width * height * 4)
    return np.frombuffer(memory, np.uint8).reshape(height, width, 4)


class Frame:
    """One picture of the display; it never changes.

    ``rects`` is what changed since the frame that you were given before: an array (n, 4) of int32,
    each row top, left, bottom, right; bottom and right exclusive; rectangles may overlap. ``full``
    means that everything may have changed, the size too: forget what you knew of earlier frames.
    ``serial`` rises from frame to frame; numbers may be skipped. ``published`` is CLOCK_MONOTONIC
    in ns when the server made it current, 0 in ordinary SPICE. ``stale`` is where the picture is
    not what the server shows, because something that it drew there could not be decoded: an array
    as ``rects`` is, whether new in this frame or not; empty where memory is shared.

    With shared memory the pixels are the server's own, read in place; the server reuses them only
    when the frame has been released *and* no view of `pixels` is left. So a view that you keep
    stays right, and keeps one of the frames that the server lends you. What shares the pixels in
    any way that Python knows of is a view (crops, memoryviews, an image of Pillow's, a tensor made
    by DLPack); a bare address and ``pixels.base`` are not.
    """

    __slots__ = (
        "__weakref__",
        "_arrived",
        "_lent",
        "_pixels",
        "full",
        "kept",
        "published",
        "rects",
        "serial",
        "stale",
    )

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        rects: NDArray[np.int32],
        *,
        serial: int,
        published: int,
        full: bool,
        lent: bool = False,
    ) -> None:
        self._pixels: NDArray[np.uint8] | None = pixels
        self._lent = lent
        self.rects = rects
        self.serial = serial
        self.published = published
        self.full = full
        self.stale = _NOWHERE
        self.kept = False
        self._arrived = time.monotonic_ns()

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """Read-only array (height, width, 4) of uint8: B, G, R and a byte that means nothing.

        Raises ValueError once the frame was released.
        """
        pixels = self._pixels  # once: another thread may release it meanwhile
        if pixels is None:
            raise ValueError("this frame was released; take frame.copy() before the next step")
        return pixels

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.pixels.shape[0])

    @property
    def age(self) -> float:
        """Seconds since the server published it, or since it arrived where that is not known."""
        return (time.monotonic_ns() - (self.published or self._arrived)) / 1e9

    def copy(self) -> NDArray[np.uint8]:
        """The pixels in memory of your own, writable; the frame need not be kept for it."""
        return self.pixels.copy()

    def rgb(
        self, region: Rect | None = None, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """The picture as an array (height, width, 3) of uint8, R, G, B, in memory of your own.

        ``region`` is (top, left, bottom, right), bottom and right exclusive; all of it by default.
        ``out`` is such an array to be filled and returned instead of a new one. Raises ValueError
        for a region outside of the frame, an ``out`` that does not fit, a frame released before.
        """
        part = self._part(region)
        wanted = (*part.shape[:2], 3)
        if out is None:
            out = np.empty(wanted, np.uint8)
        elif out.shape != wanted or out.dtype != np.uint8:
            raise ValueError(f"out is {out.shape} of {out.dtype}, not {wanted} of uint8")
        for channel in range(3):  # several times faster than to copy part[..., 2::-1]
            out[..., channel] = part[..., 2 - channel]
        return out

    def png(self, region: Rect | None = None) -> bytes:
        """The picture, or a ``region`` of it as in `rgb`, as the bytes of a PNG file."""
        from PIL import Image  # slow to import, and not everybody wants pictures

        file = io.BytesIO()
        Image.fromarray(self.rgb(region)).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def _part(self, region: Rect | None) -> NDArray[np.uint8]:
        pixels = self.pixels
        if region is None:
            return pixels
        height, width = pixels.shape[:2]
        top, left, bottom, right = region
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise ValueError(
                f"region {tuple(region)} is not within (0, 0, {height}, {width}), "
                "which are top, left, bottom, right"
            )
        return pixels[top:bottom, left:right]

    @property
    def waited(self) -> float:
        """Seconds since it arrived."""
        return (time.monotonic_ns() - self._arrived) / 1e9

    @property
    def released(self) -> bool:
        """Whether its pixels are gone."""
        return self._pixels is None

    @property
    def lent(self) -> bool:
        """Whether its pixels are the server's own, which it waits to get back."""
        return self._lent and self._pixels is not None

    def move_to(self, copy: NDArray[np.uint8]) -> None:
        """From now on its pixels are that copy of them, which is ours."""
        self._pixels, self._lent = copy, False

    def add_missed(self, earlier: Frame) -> None:
        """Take over the damage of a frame that the program was never given."""
        if self.full:
            return
        self.rects = np.vstack([earlier.rects, self.rects])
        self.full = earlier.full
        if len(self.rects) > 4 * MOST_RECTS:
            merged = merge([tuple(row) for row in self.rects.tolist()])
            self.rects = np.array(merged, "<i4")

    def release(self) -> None:
        """Give the frame back now. `frames` does it at its next step. Harmless twice."""
        self._pixels = None

    def __repr__(self) -> str:
        if self._pixels is None:
            return f"<Frame {self.serial} released>"
        return f"<Frame {self.serial} {self.width}x{self.height} rects={len(self.rects)}>"


class Lease(weakref.ref[Any]):
    """Tells when the last view of a frame's pixels is gone.

    Every view that numpy, memoryview or Pillow makes keeps the array it was made of, so the death
    of that array is the end of the lease. It may come on any thread and in the middle of anything:
    ``ended``, which is called with the lease, must only take note. The garbage collector does not
    track arrays, so the reference never tells of a death before it is final: what a finaliser
    brings back still has its pixels.
    """

    __slots__ = ("serial", "since")
    serial: int
    since: float

    def __new__(
        cls, pixels: NDArray[np.uint8], ended: Callable[[Lease], None], serial: int
    ) -> Self:
        lease = super().__new__(cls, pixels, ended)
        lease.serial = serial
        lease.since = time.monotonic()
        return lease

    def __init__(self, *_: object) -> None:
        """All is done above: that of a weak reference would not take a third argument."""


class Copies:
    """Pictures of our own for frames that no server lends; their memory is used again.

    For to have memory filled with zeros and then with a picture takes ten times as long as to copy
    the picture. Used again is only what no view is left of, as with a `Lease`; and where it has an
    earlier picture of the same, only what changed since then is copied.
    """

    def __init__(self) -> None:
        self._out: dict[int, _Watch] = {}
        self._free: deque[_Memory] = deque(maxlen=_MOST_FREE)
        self._made = 0
        self._changes: deque[Sequence[Rect]] = deque(maxlen=_MOST_CHANGES)
        """Those that led to the last pictures, from each to the next."""

    def of(
        self, pixels: NDArray[np.uint8], changed: Sequence[Rect] | None = None
    ) -> NDArray[np.uint8]:
        """A read-only copy of an array (height, width, 4).

        ``changed`` is where it differs from that of the call before; None: anywhere.
        """
        self._made += 1
        if changed is None:
            self._changes.clear()
        else:
            self._changes.append(changed)
        memory = self._take(pixels.nbytes)
        self._fill(memory, pixels)
        # Nothing that is made of it can be written to: a later picture begins with what is there.
        whole = np.frombuffer(memoryview(memory.bytes).toreadonly(), np.uint8)
        watch = _Watch(whole, self._back)
        watch.memory = memory
        self._out[id(watch)] = watch
        return whole.reshape(pixels.shape)

    def _fill(self, memory: _Memory, pixels: NDArray[np.uint8]) -> None:
        copy = np.ndarray(pixels.shape, np.uint8, memory.bytes)
        missed = self._made - memory.made
        memory.made = self._made
        if missed <= len(self._changes):
            rects = merge(list(chain.from_iterable(islice(reversed(self._changes), missed))))
            if area(rects) < copy.size // 4 // 2:
                for top, left, bottom, right in rects:
                    copy[top:bottom, left:right] = pixels[top:bottom, left:right]
                return
        copy[:] = pixels

    def _take(self, size: int) -> _Memory:
        while self._free:
            memory = self._free.pop()
            if len(memory.bytes) == size:
                return memory
        return _Memory(mmap.mmap(-1, size))

    def _back(self, watch: _Watch) -> None:
        """On any thread, in the middle of anything."""
        del self._out[id(watch)]
        self._free.append(watch.memory)


class _Memory:
    """``made`` is the number of the picture that it has."""

    __slots__ = ("bytes", "made")

    def __init__(self, bytes: mmap.mmap) -> None:
        self.bytes = bytes
        self.made = -_MOST_CHANGES - 1


class _Watch(weakref.ref[Any]):
    __slots__ = ("memory",)
    memory: _Memory
