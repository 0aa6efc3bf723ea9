"""An X root window, read straight into memory that somebody else owns.

Strategy: the X server does the copying. It maps our memory (MIT-SHM 1.2, AttachFd) and writes the
damaged rows into it, so that a picture costs one memcpy in the server and none here. This module
knows X, numpy and trio, but neither surfaces nor messages: it is told where rows belong.

One thing needs care.

*A frame is never a mixture of two states.* One GetImage request is atomic, because the X server
runs one request at a time, but between asking what was drawn and fetching those rows another
program may draw elsewhere: the rows would be new and the rest old. XDamage tells us, because with
report level NonEmpty the server sends a DamageNotify as soon as anything is drawn after a Subtract,
and events and replies come in one stream. Every event carries the number of the last of *our*
requests that the server had begun, so the order needs no guessing::

    Subtract (number s) ... GetImage (last one: number g)
    notify <  s   drawn before the Subtract: it is in the rectangles that we got; forgotten
    s <= n < g    drawn before the last GetImage ran: perhaps a mixture; once more
    n >= g        drawn after it: the picture is whole; this belongs to the next one

All events sent before a reply have been read when the reply is there, so looking once after the
last reply suffices. What was drawn and not yet delivered is collected in a region *in the server*:
it grows with each try, is emptied only after a snapshot came to its end, and so a cancelled or
failed one loses nothing.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import struct
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import trio

from .xcb import REPLY_HEAD, Refused, Xcb, XConnection, XError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ..region import Rect

Band: TypeAlias = tuple[int, int]
"""Rows ``top`` (inclusive) to ``bottom`` (exclusive), full width."""

Target: TypeAlias = "tuple[NDArray[np.uint8], int | None, int]"
"""Where a picture goes: the array (height, width, 4), its segment if attached, and the offset in
bytes of the array's first pixel in that segment."""

BAND_GAP = 64
"""Damaged row ranges with fewer rows than this between them are fetched as one band: below it, one
more request costs more than the rows."""

TRIES = 3
"""How often a snapshot is tried before it stops the X server's other clients for an instant."""

GRACE = 2.0
"""Seconds that a cancelled fetch waits until the server has written the last of its rows."""

_PIECE = 1 << 18  # bytes of one core GetImage reply: libxcb reads a reply whole, so keep it short
_EXPAND_ROWS = 64  # 16 bit rows turned into 32 bit at a time, so that the index stays in the cache
_ALL_PLANES = 0xFFFFFFFF
_Z_PIXMAP = 2
_ROOT_STRUCTURE = 0x20000  # StructureNotifyMask: ConfigureNotify when the root changes its size
_CW_EVENT_MASK = 0x0800
_CONFIGURE_NOTIFY = 22
_NON_EMPTY = 3
_BAD_MATCH = 8
_TRUE_COLOR = 4
_MASKS = {24: (0xFF0000, 0xFF00, 0xFF), 16: (0xF800, 0x7E0, 0x1F)}
_BITS = {24: 32, 16: 16}
_ACCEPTED = "accepted are depth 24 with 32 bits a pixel (BGRX) and depth 16 (RGB565)"


class XResized(Exception):
    """The root window has another size now: call `XScreen.resize`, then take new memory."""


class _Stage(NamedTuple):
    """Memory of our own that the server writes 16 bit rows into; the array holds the mapping."""

    shmseg: int
    memory: NDArray[np.uint8]


class _Images(NamedTuple):
    """GetImage requests that are out: their numbers in sending order, and the rows of each.

    ``shared``: the server writes the rows to memory, ``stage`` if that is ours. Not shared: the
    rows are in the replies.
    """

    sequences: list[int]
    bands: list[Band]
    out: NDArray[np.uint8]
    shared: bool
    stage: _Stage | None = None


class XScreen(XConnection):
    """One X screen: its size, what was drawn on it, and its pixels.

    One task at a time may use the ``async`` methods; `attach` and `detach` may be called from any
    thread at any time. Descriptors and server resources are freed by `close` (or ``with``).
    """

    def __init__(self, xcb: Xcb, connection: Any, screen: Any, name: str) -> None:
        super().__init__(xcb, connection, screen, name)
        self._depth: int = screen.root_depth
        self._pitch = 0  # bytes from one row to the next, as the server pads them
        self._scanline_pad = 0
        self._size = (0, 0)  # what the caller knows and every request uses
        self._next_size = (0, 0)  # what the server has said last
        self._resized = False
        self._stage: _Stage | None = None
        self._passes_fds = False
        self._grabbed = False
        self._subtracted = 0  # number of the last Subtract
        self._notified: int | None = None  # number in the DamageNotify that came after it
        self._undelivered = True  # the collected region may hold something; at first: everything
        self._delivered = False  # ... and all of it has been handed out: empty it first

    @property
    def width(self) -> int:
        """Pixels across, as of `open` or the last `resize`."""
        return self._size[0]

    @property
    def height(self) -> int:
        """Rows, as of `open` or the last `resize`."""
        return self._size[1]

    @property
    def depth(self) -> int:
        """24, or 16: then pictures are converted to 24 on their way."""
        return self._depth

    @property
    def can_attach(self) -> bool:
        """Whether the server can write memory of ours: MIT-SHM 1.2, one machine, depth 24."""
        return self._passes_fds and self._depth == 24

    @property
    def damaged(self) -> bool:
        """Whether something was drawn that no snapshot has delivered. Raises XError."""
        self._pump()
        return self._undelivered or self._notified is not None

    @property
    def resized(self) -> bool:
        """Whether the root window's size is no longer ``width`` x ``height``. Raises XError."""
        self._pump()
        return self._resized

    def resize(self) -> tuple[int, int]:
        """Take over the root window's present size and return (width, height).

        Everything counts as damaged then, so the next snapshot covers the new screen.
        """
        self._pump()
        self._set_size(*self._next_size)
        self._resized = False
        with self._sending():
            self._xfixes.SetRegion(self._collected, 1, [self._everything()])
        self._undelivered, self._delivered = True, False
        return self._size

    async def wait(self) -> None:
        """Return as soon as something was drawn or the size changed. Raises XError."""
        self._token = trio.lowlevel.current_trio_token()
        await trio.lowlevel.checkpoint()
        while True:
            # Once, and only then all flags: what a second look takes in would be slept over.
            self._pump()
            if self._undelivered or self._notified is not None or self._resized:
                return
            await self._readable()

    # memory

    def attach(self, fd: int, size: int) -> int | None:
        """Let the X server map ``fd``, a memfd of ``size`` bytes that is not sealed yet.

        Returns the segment's id for `fetch`, or None when the server cannot do it; pictures are
        copied then. ``fd`` stays the caller's. It blocks for one round trip, so call it in a worker
        thread, where memory is made anyway. Raises XError when the server is gone.
        """
        return self._attach(fd, size) if self.can_attach else None

    # damage

    async def take_damage(self) -> list[Rect]:
        """What was drawn since it was last taken, as disjoint rectangles clipped to the screen.

        For use without `snapshot`, which takes it by itself. Raises XError.
        """
        rects = await self._collect()
        self._deliver()
        return rects

    # pixels

    async def fetch(
        self, bands: Sequence[Band], out: NDArray[np.uint8], shmseg: int | None, offset: int
    ) -> None:
        """Fill rows of ``out``, a C-contiguous uint8 array (height, width, 4), B G R X in memory.

        With a segment from `attach` the server writes the rows itself, at ``offset`` + top * width
        * 4; ``out`` is then not touched through the array. Without one (None), or at depth 16, rows
        are copied. Bands are fetched one after the other: each is whole, all together only if
        nothing was drawn meanwhile (see `snapshot`). The X byte is undefined.

        Cancelled, it still waits until the server is done with the memory, up to ``GRACE`` seconds;
        after that the screen is unusable. Raises XResized, XError, ValueError.
        """
        await self._receive(await self._ask(bands, (out, shmseg, offset)))

    async def snapshot(self, begin: Callable[[list[Rect]], Target]) -> list[Rect]:
        """Fetch all that was drawn since the last snapshot, as one state of the screen.

        ``begin`` is called with the damage and answers where the picture goes: memory that holds
        the previous picture, of which whole rows around the damage are overwritten. If the damage
        grows during the fetch, ``begin`` is called again with all of it; its last answer counts.
        Returns the final damage: outside of it no pixel differs from the previous snapshot. With no
        damage that is an empty list, and ``begin`` is not called. The first snapshot, and the first
        after `resize`, covers the screen.

        A snapshot that is cancelled or fails leaves the memory undefined where it was about to
        write; its damage is in the next one. Raises XResized, XError, ValueError and what ``begin``
        raises.
        """
        known: list[Rect] = []
        target: Target | None = None
        for attempt in range(TRIES + 1):
            if attempt == TRIES:
                self.grab()
            try:
                rects = await self._collect()
                if not rects:
                    return []
                if target is None or rects != known:
                    known, target = rects, begin(rects)
                images = await self._ask(bands(rects), target)
            finally:
                # The server takes the requests in order, so it may let the others go before we
                # have the answers: the rows are of one state all the same.
                if attempt == TRIES:
                    self.ungrab()
            await self._receive(images)
            if attempt == TRIES or not self._drawn_before(images):
                break
        self._deliver()
        return known

    def grab(self) -> None:
        """Stop all other clients of the X server until `ungrab`; flushed. Raises XError."""
        self._grabbed = True
        with self._sending():
            self._connection.core.GrabServer()

    def ungrab(self) -> None:
        """End `grab`; flushed. Nothing happens without one, or if the server is gone."""
        if self._grabbed:
            self._grabbed = False
            with contextlib.suppress(XError), self._sending():
                self._connection.core.UngrabServer()

    def close(self) -> None:
        super().close()
        self._stage = None

    # opening

    def _check_format(self) -> None:
        """Raise XError unless the root's pixels are of one of the two kinds that we know."""
        screen = self._screen
        setup = self._connection.setup
        of_depth = [f for f in setup.pixmap_formats if f.depth == self._depth]
        visuals = [v for d in screen.allowed_depths for v in d.visuals]
        visual = next(v for v in visuals if v.visual_id == screen.root_visual)
        bits = of_depth[0].bits_per_pixel
        masks = (visual.red_mask, visual.green_mask, visual.blue_mask)
        if setup.image_byte_order != 0:
            kind = "big-endian pixels"
        elif self._depth not in _BITS or bits != _BITS[self._depth]:
            kind = f"depth {self._depth} with {bits} bits a pixel"
        elif self._depth == 24 and of_depth[0].scanline_pad > 32:
            kind = f"rows padded to {of_depth[0].scanline_pad} bits"
        elif visual._class != _TRUE_COLOR or masks != _MASKS[self._depth]:
            kind = "colour masks " + " ".join(f"{mask:#x}" for mask in masks)
        else:
            self._scanline_pad = of_depth[0].scanline_pad
            return
        raise XError(f"X display {self._name} has {kind}; {_ACCEPTED}")

    def _start(self) -> None:
        """Ask for the extensions and watch the root window."""
        self._check_format()
        connection, xcb = self._connection, self._xcb
        self._damage_ext, self._first_damage = self._need(xcb.damage.key)
        self._xfixes, _ = self._need(xcb.xfixes.key)
        self._damage_ext.QueryVersion(1, 1).reply()
        if self._xfixes.QueryVersion(2, 0).reply().major_version < 2:
            raise XError(f"X display {self._name} has no XFIXES 2 (regions)")
        connection.core.ChangeWindowAttributes(self._root, _CW_EVENT_MASK, [_ROOT_STRUCTURE])
        geometry = connection.core.GetGeometry(self._root).reply()
        self._next_size = (geometry.width, geometry.height)
        self._set_size(*self._next_size)
        self._collected: int = connection.generate_id()
        self._fresh: int = connection.generate_id()
        self._damage: int = connection.generate_id()
        self._xfixes.CreateRegion(self._collected, 1, [self._everything()])
        self._xfixes.CreateRegion(self._fresh, 0, [])
        self._damage_ext.Create(self._damage, self._root, _NON_EMPTY, is_checked=True).check()
        self._passes_fds = self._probe_attach()
        if self._depth == 16 and self._passes_fds:
            self._stage = self._make_stage()

    def _probe_attach(self) -> bool:
        """Whether a descriptor gets through to a server that maps it: tried, with one page."""
        if not self._extension(self._xcb.shm.key).present or not hasattr(os, "memfd_create"):
            return False
        self._shm = self._connection(self._xcb.shm.key)
        version = self._shm.QueryVersion().reply()
        if (version.major_version, version.minor_version) < (1, 2):
            return False
        if not hasattr(self._xcb.lib, "xcb_send_request_with_fds"):
            return False
        end = socket.socket(fileno=self._fd)
        family = end.family
        end.detach()
        if family != socket.AF_UNIX:
            return False
        fd = os.memfd_create("spiceshm-x-probe")
        try:
            os.ftruncate(fd, mmap.PAGESIZE)
            shmseg = self._attach(fd, mmap.PAGESIZE)
        finally:
            os.close(fd)
        if shmseg is not None:
            self.detach(shmseg)
        return shmseg is not None

    def _set_size(self, width: int, height: int) -> None:
        self._size = (width, height)
        pad = self._scanline_pad
        self._pitch = (width * _BITS[self._depth] + pad - 1) // pad * pad // 8

    def _everything(self) -> Any:
        return self._xcb.xproto.RECTANGLE.synthetic(0, 0, self.width, self.height)

    # segments

    def _make_stage(self) -> _Stage | None:
        """Make memory for one picture as the server pads it, and attach it; blocks."""
        size = self._pitch * self.height
        fd = os.memfd_create("spiceshm-x-stage")
        try:
            os.posix_fallocate(fd, 0, size)
            mapping = mmap.mmap(fd, size)
            shmseg = self._attach(fd, size)
        except OSError:  # no memory to be had: copy what the replies bring
            return None
        finally:
            os.close(fd)
        return None if shmseg is None else _Stage(shmseg, np.frombuffer(mapping, np.uint8))

    async def _staging(self) -> _Stage | None:
        """The stage, made anew in a thread if the screen has outgrown it."""
        stage, size = self._stage, self._pitch * self.height
        if self._passes_fds and (stage is None or stage.memory.size < size):
            self._stage = None
            if stage is not None:
                self.detach(stage.shmseg)
            self._stage = await trio.to_thread.run_sync(self._make_stage, abandon_on_cancel=True)
            self._passes_fds = self._stage is not None
        return self._stage

    # requests

    async def _collect(self) -> list[Rect]:
        """Move what was drawn into the collected region and return all of that region."""
        with self._sending():
            if self._delivered:
                self._xfixes.SetRegion(self._collected, 0, [])
            cookie = self._damage_ext.Subtract(self._damage, 0, self._fresh)
            self._subtracted, self._notified = cookie.sequence, None
            self._xfixes.UnionRegion(self._collected, self._fresh, self._collected)
            fetch: int = self._xfixes.FetchRegion(self._collected).sequence
        self._undelivered, self._delivered = True, False
        with self._discarding([fetch]) as pending:
            reply = await self._reply(fetch)
            pending.clear()
        rects = _rects(reply, *self._size)
        self._undelivered = bool(rects)
        return rects

    def _deliver(self) -> None:
        """All that was collected has been handed out; the next taking empties the region first."""
        self._undelivered, self._delivered = False, True

    async def _ask(self, wanted: Sequence[Band], target: Target) -> _Images:
        """Send the requests for some rows, all in one flush."""
        out, shmseg, offset = target
        self._check_target(wanted, *target)
        if self._resized:
            raise XResized(self._resize_text())
        if self._depth == 16:
            stage = await self._staging()
            if stage is not None:
                sequences = self._ask_shared(wanted, stage.shmseg, 0)
                return _Images(sequences, list(wanted), out, True, stage)
        elif shmseg is not None:
            return _Images(self._ask_shared(wanted, shmseg, offset), list(wanted), out, True)
        pieces = self._pieces(wanted)
        return _Images(self._ask_plain(pieces), pieces, out, False)

    def _ask_shared(self, wanted: Sequence[Band], shmseg: int, offset: int) -> list[int]:
        with self._sending():
            return [
                self._shm.GetImage(
                    *(self._root, 0, top, self.width, bottom - top, _ALL_PLANES, _Z_PIXMAP),
                    *(shmseg, offset + top * self._pitch),
                ).sequence
                for top, bottom in wanted
            ]

    def _ask_plain(self, pieces: Sequence[Band]) -> list[int]:
        with self._sending():
            return [
                self._connection.core.GetImage(
                    _Z_PIXMAP, self._root, 0, top, self.width, bottom - top, _ALL_PLANES
                ).sequence
                for top, bottom in pieces
            ]

    def _pieces(self, wanted: Sequence[Band]) -> list[Band]:
        """The same rows in bands that are small enough for a reply on the wire."""
        step = max(1, _PIECE // self._pitch)
        return [
            (row, min(row + step, bottom))
            for top, bottom in wanted
            for row in range(top, bottom, step)
        ]

    def _check_target(
        self, wanted: Sequence[Band], out: NDArray[np.uint8], shmseg: int | None, offset: int
    ) -> None:
        """Raise ValueError before the server is asked to write where it must not."""
        shape = (self.height, self.width, 4)
        if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.shape} {out.dtype}, not a contiguous {shape} uint8")
        if any(not 0 <= top < bottom <= self.height for top, bottom in wanted):
            raise ValueError(f"a band of {list(wanted)} is empty or outside {self.height} rows")
        if shmseg is not None and not 0 <= offset <= self._segments.get(shmseg, 0) - out.nbytes:
            raise ValueError(f"offset {offset}: no room for the picture in segment {shmseg:#x}")

    # answers

    async def _receive(self, images: _Images) -> None:
        """Await the rows and put them where they belong. Raises XResized, XError."""
        try:
            if images.shared:
                await self._settle(list(images.sequences))
            else:
                await self._copy(images)
        except Refused as error:
            await self._explain(error)
            raise
        if images.stage is not None:
            for top, bottom in images.bands:
                start, end = top * self._pitch, bottom * self._pitch
                self._put(images.out, top, bottom, images.stage.memory[start:end])
        self._pump()
        if self._resized:
            raise XResized(self._resize_text())

    def _put(
        self, out: NDArray[np.uint8], top: int, bottom: int, source: NDArray[np.uint8]
    ) -> None:
        """Copy rows out of ``source``, the bytes that the server gave."""
        put = _put_16 if self._depth == 16 else _put_32
        put(out[top:bottom], source.reshape(bottom - top, self._pitch))

    async def _settle(self, pending: list[int]) -> None:
        """Await all answers, even if cancelled: until then the server may write the memory."""
        try:
            await self._answered(pending)
        except trio.Cancelled:
            with trio.move_on_after(GRACE, shield=True), contextlib.suppress(XError):
                await self._answered(pending)
            if pending and self._gone is None:
                self._gone = f"X display {self._name} did not answer within {GRACE} s"
            raise

    async def _answered(self, pending: list[int]) -> None:
        """Await the answers in order, taking each out of ``pending`` as it comes."""
        refused: Refused | None = None
        while pending:
            try:
                await self._reply(pending[0])
            except Refused as error:
                refused = error
            del pending[0]
        if refused is not None:
            raise refused

    async def _copy(self, images: _Images) -> None:
        """Await the rows in the replies and copy each as it comes."""
        with self._discarding(list(images.sequences)) as pending:
            for top, bottom in images.bands:
                reply = await self._reply(pending.pop(0))
                rows = np.frombuffer(reply, np.uint8, (bottom - top) * self._pitch, REPLY_HEAD)
                self._put(images.out, top, bottom, rows)
                # libxcb takes each reply whole, waiting for its end: let others run in between.
                await trio.lowlevel.checkpoint()

    async def _explain(self, error: Refused) -> None:
        """A refused GetImage (BadMatch) mostly means that the screen has shrunk: raise XResized."""
        if error.code == _BAD_MATCH:
            with self._sending():
                sequence: int = self._connection.core.GetGeometry(self._root).sequence
            with self._discarding([sequence]) as pending:
                reply = await self._reply(sequence)
                pending.clear()
            self._saw_size(*struct.unpack_from("=HH", reply, 16))
            if self._resized:
                raise XResized(self._resize_text()) from error

    # events

    def _saw(self, kind: int, sequence: int, event: Any) -> None:
        if kind == self._first_damage:
            self._saw_damage(sequence)
        elif kind == _CONFIGURE_NOTIFY:
            self._saw_size(*struct.unpack_from("=HH", event, 20))

    def _saw_damage(self, sequence: int) -> None:
        # One from before the last Subtract tells of what that Subtract took.
        if not _precedes(sequence, self._subtracted):
            self._notified = sequence

    def _saw_size(self, width: int, height: int) -> None:
        # There and back again is a change too: nobody knows what the screen shows in between.
        if (width, height) != self._next_size:
            self._next_size = (width, height)
            self._resized = True

    def _drawn_before(self, images: _Images) -> bool:
        """Whether something was drawn after the last Subtract but before the last of ``images``."""
        self._pump()
        return self._notified is not None and _precedes(self._notified, images.sequences[-1])

    # errors

    def _resize_text(self) -> str:
        old, new = ("{}x{}".format(*size) for size in (self._size, self._next_size))
        return f"X display {self._name} changed from {old} to {new}"


def bands(rects: Sequence[Rect]) -> list[Band]:
    """The rows to fetch for some damage: ascending, joined where fewer than 64 rows lie between."""
    out: list[Band] = []
    for top, _, bottom, _ in sorted(rects):
        if out and top - out[-1][1] < BAND_GAP:
            out[-1] = (out[-1][0], max(out[-1][1], bottom))
        else:
            out.append((top, bottom))
    return out


def _put_32(out: NDArray[np.uint8], rows: NDArray[np.uint8]) -> None:
    """Copy rows of 32 bit pixels, (n, pitch) uint8; they are never padded."""
    out[:] = rows.reshape(out.shape)


def _put_16(out: NDArray[np.uint8], rows: NDArray[np.uint8]) -> None:
    """Turn rows of RGB565, (n, pitch) uint8 with padded ends, into 32 bit pixels."""
    count, width = out.shape[:2]
    pixels = out.view("<u4")[..., 0]
    source = rows.view("<u2")[:, :width]
    table = _rgb565()
    for row in range(0, count, _EXPAND_ROWS):
        piece = slice(row, row + _EXPAND_ROWS)
        # mode "wrap" lets take write into out directly; "raise" would go through a copy
        table.take(source[piece], out=pixels[piece], mode="wrap")


@cache
def _rgb565() -> NDArray[np.uint32]:
    """All 65536 RGB565 values as xRGB: the high bits of each channel fill up its low ones."""
    value = np.arange(1 << 16)
    red, green, blue = value >> 11, value >> 5 & 0x3F, value & 0x1F
    red, green, blue = red << 3 | red >> 2, green << 2 | green >> 4, blue << 3 | blue >> 2
    return (red << 16 | green << 8 | blue).astype("<u4")


def _rects(reply: Any, width: int, height: int) -> list[Rect]:
    """The rectangles of a FetchRegion reply, clipped to the screen."""
    extents = np.frombuffer(reply, np.int16, offset=REPLY_HEAD).reshape(-1, 4).astype(np.int32)
    x, y, w, h = (extents & (-1, -1, 0xFFFF, 0xFFFF)).T  # position is signed, size is not
    left, right = x.clip(0, width), (x + w).clip(0, width)
    top, bottom = y.clip(0, height), (y + h).clip(0, height)
    rows = np.stack((top, left, bottom, right), axis=1)[(top < bottom) & (left < right)]
    return [(t, le, b, r) for t, le, b, r in rows.tolist()]


def _precedes(a: int, b: int) -> bool:
    """Whether request number ``a`` came before ``b``; numbers are 32 bit and wrap."""
    return (a - b) & 0xFFFFFFFF >= 0x80000000
