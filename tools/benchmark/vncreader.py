"""A VNC client that does as little as a measurement needs.

As `spicereader`: what comes is kept, and decoded only where it covers a mark. The next update is
asked for when one has come. It takes tight without JPEG, which loses nothing, or raw pixels.
"""

from __future__ import annotations

import socket
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from .contents import MARKS
from .process import Failed
from .spicereader import SOON_S, exactly

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RAW, _TIGHT = 0, 7
_LAST_RECT = -224
_ACCEPTED = {"tight": (_TIGHT, _LAST_RECT, _RAW), "raw": (_RAW,)}
_FORMAT = struct.pack(">BBBBHHHBBBxxx", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
_RECT = struct.Struct(">4Hi")
_FILL, _JPEG, _HAS_FILTER, _NOT_TIGHT = 8, 9, 0x40, -1
_COPY, _PALETTE = range(2)
_UNCOMPRESSED = 12
"""Fewer bytes are not compressed."""


_Rect: TypeAlias = tuple[int, int, int, int]


class _Kept(NamedTuple):
    """A rectangle (x, y, width, height) that is not decoded yet.

    ``control`` is tight's first byte, -1: raw pixels. ``data`` is a colour, if it is a fill.
    """

    rect: _Rect
    control: int
    data: bytes
    filter: int = _COPY
    palette: bytes = b""


class VncReader:
    """Connected to ``place``, a port of this machine, with the ``format`` tight or raw."""

    def __init__(self, place: str, format: str) -> None:
        self.received_bytes = 0
        self._socket = socket.create_connection(("127.0.0.1", int(place)), SOON_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._marks: list[int | None] = [None, None]
        self._pending: list[_Kept] = []
        self._streams = [zlib.decompressobj() for _ in range(4)]
        width, height = self._shake_hands(_ACCEPTED[format])
        self._picture = np.zeros((height, width), np.uint32)
        self._ask(incremental=False)

    @property
    def mark(self) -> int | None:
        """The frame whose marks are both seen."""
        return self._marks[0] if self._marks[0] == self._marks[1] else None

    def read(self) -> None:
        """Wait for an update. Raises OSError, Failed."""
        kind = self._exactly(1)[0]
        if kind == 2:  # a bell
            return
        if kind == 3:
            self._exactly(struct.unpack(">3xI", self._exactly(7))[0])
            return
        if kind != 0:
            raise Failed(f"the server sent message {kind}, which is not known here")
        (count,) = struct.unpack(">xH", self._exactly(3))
        changed = []
        for _ in range(count):
            x, y, width, height, encoding = _RECT.unpack(self._exactly(_RECT.size))
            if encoding == _LAST_RECT:
                break
            changed.append(self._take((x, y, width, height), encoding))
        self._ask(incremental=True)
        self._pending += changed
        self._look_for_marks(changed)

    def picture(self) -> NDArray[np.uint32]:
        """What is shown, after all that was received: (height, width) of 0x00RRGGBB."""
        for kept in self._pending:
            self._do(kept)
        self._pending.clear()
        return self._picture & np.uint32(0xFFFFFF)

    def _shake_hands(self, encodings: tuple[int, ...]) -> tuple[int, int]:
        self._exactly(12)
        self._socket.sendall(b"RFB 003.008\n")
        self._exactly(self._exactly(1)[0])
        self._socket.sendall(b"\1")  # no password
        if self._exactly(4) != bytes(4):
            raise Failed("the server lets nobody in")
        self._socket.sendall(b"\1")  # beside others
        width, height, _, length = struct.unpack(">HH16sI", self._exactly(24))
        self._exactly(length)
        self._socket.sendall(b"\0\0\0\0" + _FORMAT)
        codes = struct.pack(f">BxH{len(encodings)}i", 2, len(encodings), *encodings)
        self._socket.sendall(codes)
        return width, height

    def _ask(self, *, incremental: bool) -> None:
        height, width = self._picture.shape
        self._socket.sendall(struct.pack(">BBHHHH", 3, incremental, 0, 0, width, height))

    def _look_for_marks(self, changed: list[_Kept]) -> None:
        for nth, (y, x) in enumerate(MARKS):
            covering = [kept for kept in changed if _covers(kept.rect, y, x)]
            if not covering:
                continue
            last = covering[-1]
            if last.control >> 4 == _FILL:
                self._marks[nth] = int.from_bytes(last.data)
            else:
                self._marks[nth] = int(self.picture()[y, x])

    # Rectangles as they come

    def _take(self, rect: _Rect, encoding: int) -> _Kept:
        _, _, width, height = rect
        if encoding == _RAW:
            return _Kept(rect, _NOT_TIGHT, self._exactly(width * height * 4))
        if encoding != _TIGHT:
            raise Failed(f"an encoding {encoding} is not known here")
        control = self._exactly(1)[0]
        if control >> 4 == _FILL:
            return _Kept(rect, control, self._exactly(3))
        if control >> 4 >= _JPEG:
            raise Failed(f"a tight rectangle {control:#x} is not known here")
        kind = self._exactly(1)[0] if control & _HAS_FILTER else _COPY
        if kind not in (_COPY, _PALETTE):
            raise Failed(f"tight's filter {kind} is not known here")
        palette = self._exactly((self._exactly(1)[0] + 1) * 3) if kind == _PALETTE else b""
        size = _size(width, height, kind, len(palette) // 3)
        data = self._exactly(size if size < _UNCOMPRESSED else self._length())
        return _Kept(rect, control, data, kind, palette)

    def _length(self) -> int:
        length = 0
        for shift in (0, 7, 14):
            byte = self._exactly(1)[0]
            length |= (byte & (0x7F if shift < 14 else 0xFF)) << shift
            if not byte & 0x80:
                break
        return length

    def _exactly(self, size: int) -> bytes:
        data = bytes(exactly(self._socket, size))
        self.received_bytes += size
        return data

    # Drawing

    def _do(self, kept: _Kept) -> None:
        x, y, width, height = kept.rect
        part = self._picture[y : y + height, x : x + width]
        if kept.control == _NOT_TIGHT:
            part[:] = np.frombuffer(kept.data, "<u4").reshape(height, width)
            return
        for nth in range(4):
            if kept.control >> nth & 1:
                self._streams[nth] = zlib.decompressobj()
        if kept.control >> 4 == _FILL:
            part[:] = int.from_bytes(kept.data)
            return
        data, colours = kept.data, _words(kept.palette)
        if _size(width, height, kept.filter, len(colours)) >= _UNCOMPRESSED:
            data = self._streams[kept.control >> 4 & 3].decompress(data)
        if kept.filter == _PALETTE:
            part[:] = _by_palette(width, height, colours, data)
        else:
            part[:] = _words(data).reshape(height, width)


def _covers(rect: _Rect, y: int, x: int) -> bool:
    left, top, width, height = rect
    return top <= y < top + height and left <= x < left + width


def _size(width: int, height: int, kind: int, colours: int) -> int:
    """Bytes of a tight rectangle before they are compressed."""
    if kind == _COPY:
        return width * height * 3
    return (width + 7) // 8 * height if colours == 2 else width * height


def _words(data: bytes) -> NDArray[np.uint32]:
    """Pixels of R, G, B as 0x00RRGGBB."""
    parts = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.uint32)
    return parts[:, 0] << 16 | parts[:, 1] << 8 | parts[:, 2]


def _by_palette(
    width: int, height: int, colours: NDArray[np.uint32], data: bytes
) -> NDArray[np.uint32]:
    which = np.frombuffer(data, np.uint8)
    if len(colours) == 2:
        which = np.unpackbits(which.reshape(height, -1), axis=1)[:, :width]
    return colours[which.reshape(height, width)]
