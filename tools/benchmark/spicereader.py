"""A client of ordinary SPICE that does as little as a measurement needs, the same for any server.

It takes messages off the socket, acknowledges them, and keeps them. Nothing is decoded meanwhile,
but what covers a mark: `SpiceReader.picture` makes up for that later. It has neither a cache nor a
dictionary, and takes no streams, so that what it gets is pictures in the format that it asked for.
"""

from __future__ import annotations

import socket
import struct
import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spiceshm.protocol import ClientLink
from spiceshm.wire import display, main
from spiceshm.wire.base import Ack, AckSync, Ping, Pong, SetAck
from spiceshm.wire.types import BitmapFormat, ChannelType, Compression, DisplayCap, ImageType

from .contents import MARKS
from .process import Failed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spiceshm.wire import Message

SOON_S = 15.0
"""A server that says nothing for so long says nothing any more."""

_PREFERRED = {"raw": Compression.OFF, "lz4": Compression.LZ4, "lz": Compression.LZ}
_CAPS = frozenset({DisplayCap.MONITORS_CONFIG, DisplayCap.LZ4_COMPRESSION, DisplayCap.MULTI_CODEC})
_HEADER = struct.Struct("<HI")
_BASE = struct.Struct("<5iB")
_POINT = struct.Struct("<2i")
_RECT = struct.Struct("<4i")
_BRUSH = struct.Struct("<BIH")
_COPY = struct.Struct("<I4iHB")
_IMAGE = struct.Struct("<QBBII")
_BITMAP = struct.Struct("<BBIIII")
_COPY_BITS = 104
_OFF_SCREEN = 104
"""The image type that is a surface; `_COPY_BITS` is a message."""
_DRAWING = range(302, 320)
_OWN = {
    kind.number for kind in (display.SurfaceCreate, display.SurfaceDestroy, display.MonitorsConfig)
}


def exactly(connection: socket.socket, size: int) -> bytearray:
    """So many bytes that a server sends. Raises Failed where it ends before."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view, 0, socket.MSG_WAITALL)
        if not count:
            raise Failed("the server closed the connection")
        view = view[count:]
    return data


class _Base(NamedTuple):
    """Where a message draws; ``end`` is where its own fields begin."""

    surface: int
    box: tuple[int, int, int, int]
    clip: list[tuple[int, int, int, int]]
    end: int


class _Channel:
    """One connection, message by message."""

    def __init__(self, place: str, session: int, kind: ChannelType, caps: frozenset[int]) -> None:
        host, _, port = place.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), SOON_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = ClientLink(connection_id=session, channel_type=kind, channel_id=0, channel_caps=caps)
        while not link.done:
            if data := link.data_to_send():
                self._socket.sendall(data)
            link.receive_data(bytes(exactly(self._socket, link.bytes_wanted)))
        if not link.mini:
            raise Failed("the server has no mini headers")
        self.received_bytes = 0
        self._window = self._unacknowledged = 0

    def next(self) -> tuple[int, bytearray]:
        """The next message, a number and a body. PING and SET_ACK are answered."""
        number, size = _HEADER.unpack(exactly(self._socket, _HEADER.size))
        body = exactly(self._socket, size)
        self.received_bytes += _HEADER.size + size
        if number == Ping.number:
            ping = Ping.parse(body)
            self.send(Pong(ping.id, ping.timestamp))
        if number == SetAck.number:
            order = SetAck.parse(body)
            self._window, self._unacknowledged = order.window, 0
            self.send(AckSync(order.generation))
        elif self._window:
            self._unacknowledged += 1
            if self._unacknowledged == self._window:
                self._unacknowledged = 0
                self.send(Ack())
        return number, body

    def send(self, *messages: Message) -> None:
        """In one write."""
        packed = [(one.number, one.packed) for one in messages]
        parts = [_HEADER.pack(number, len(body)) + body for number, body in packed]
        self._socket.sendall(b"".join(parts))


class SpiceReader:
    """Connected to ``place`` (host:port), with the ``format`` that is preferred: raw, lz4 or lz."""

    def __init__(self, place: str, format: str) -> None:
        self._marks: list[int | None] = [None, None]
        self._pending: list[tuple[int, bytearray]] = []
        self._surfaces: dict[int, NDArray[np.uint32]] = {}
        self._main = _Channel(place, 0, ChannelType.MAIN, frozenset())
        session = self._begin()
        # A server that hears nothing on the main channel closes it after a while.
        threading.Thread(target=self._keep_alive, daemon=True).start()
        self._display = _Channel(place, session, ChannelType.DISPLAY, _CAPS)
        # In one write: a stock server looks at what is preferred when it reads INIT.
        self._display.send(
            display.PreferredCompression(_PREFERRED[format]), display.DisplayInit(1, 0, 1, 0)
        )

    @property
    def received_bytes(self) -> int:
        """Of the display channel's messages, headers included."""
        return self._display.received_bytes

    @property
    def mark(self) -> int | None:
        """The frame whose marks are both seen."""
        return self._marks[0] if self._marks[0] == self._marks[1] else None

    def read(self) -> None:
        """Wait for a message. Raises OSError, Failed."""
        number, body = self._display.next()
        if number < min(_OWN) and number != _COPY_BITS and number not in _DRAWING:
            return
        self._pending.append((number, body))
        if number in _DRAWING and number not in _OWN:
            self._look_for_marks(number, body)

    def picture(self) -> NDArray[np.uint32]:
        """What is shown, after all that was received: (height, width) of 0x00RRGGBB."""
        self._catch_up()
        return self._surfaces[0] & np.uint32(0xFFFFFF)

    def _begin(self) -> int:
        session = 0
        while True:
            number, body = self._main.next()
            if number == main.MainInit.number:
                session = main.MainInit.parse(body).session_id
                self._main.send(main.AttachChannels())
            if number == main.ChannelsList.number:
                return session

    def _keep_alive(self) -> None:
        while True:
            try:
                self._main.next()
            except TimeoutError:
                continue
            except (OSError, Failed):
                return

    # Marks

    def _look_for_marks(self, number: int, body: bytearray) -> None:
        base = _base(body)
        if base.surface != 0:
            return
        for nth, (y, x) in enumerate(MARKS):
            top, left, bottom, right = base.box
            if top <= y < bottom and left <= x < right:
                self._marks[nth] = self._colour(number, body, base, y, x)

    def _colour(self, number: int, body: bytearray, base: _Base, y: int, x: int) -> int:
        if number == display.DrawFill.number and base.clip == [base.box]:
            return int(_BRUSH.unpack_from(body, base.end)[1])
        self._catch_up()
        return int(self._surfaces[0][y, x]) & 0xFFFFFF

    # Drawing

    def _catch_up(self) -> None:
        for number, body in _still_seen(self._pending):
            self._do(number, body)
        self._pending.clear()

    def _do(self, number: int, body: bytearray) -> None:
        if number == display.SurfaceCreate.number:
            made = display.SurfaceCreate.parse(bytes(body))
            self._surfaces[made.surface_id] = np.zeros((made.height, made.width), np.uint32)
        elif number == display.SurfaceDestroy.number:
            del self._surfaces[display.SurfaceDestroy.parse(bytes(body)).surface_id]
        elif number == display.DrawFill.number:
            self._fill(body)
        elif number == display.DrawCopy.number:
            self._copy(body)
        elif number == _COPY_BITS:
            self._copy_bits(body)
        elif number in _DRAWING and number not in _OWN:
            raise Failed(f"the server draws by message {number}, which is not known here")

    def _fill(self, body: bytearray) -> None:
        base = _base(body)
        kind, colour, rop = _BRUSH.unpack_from(body, base.end)
        if kind != display.BRUSH_SOLID or rop != display.ROP_PUT:
            raise Failed(f"a fill by brush {kind}, rop {rop:#x}, is not known here")
        for top, left, bottom, right in base.clip:
            self._surfaces[base.surface][top:bottom, left:right] = colour

    def _copy(self, body: bytearray) -> None:
        base = _base(body)
        image_at, y, x, y_end, x_end, rop, _ = _COPY.unpack_from(body, base.end)
        y0, x0, y1, x1 = base.box
        if rop != display.ROP_PUT or (y_end - y, x_end - x) != (y1 - y0, x1 - x0):
            raise Failed(f"a scaled copy, or one by rop {rop:#x}, is not known here")
        image = self._image(body, image_at)[y:y_end, x:x_end]
        for top, left, bottom, right in base.clip:
            part = image[top - y0 : bottom - y0, left - x0 : right - x0]
            self._surfaces[base.surface][top:bottom, left:right] = part

    def _copy_bits(self, body: bytearray) -> None:
        base = _base(body)
        x, y = _POINT.unpack_from(body, base.end)
        surface = self._surfaces[base.surface]
        y0, x0, y1, x1 = base.box
        before = surface[y : y + y1 - y0, x : x + x1 - x0].copy()
        for top, left, bottom, right in base.clip:
            part = before[top - y0 : bottom - y0, left - x0 : right - x0]
            surface[top:bottom, left:right] = part

    def _image(self, body: bytearray, at: int) -> NDArray[np.uint32]:
        _, kind, _, width, height = _IMAGE.unpack_from(body, at)
        at += _IMAGE.size
        if kind == ImageType.BITMAP:
            return _bitmap(body, at)
        if kind == _OFF_SCREEN:
            return self._surfaces[struct.unpack_from("<I", body, at)[0]]
        (size,) = struct.unpack_from("<I", body, at)
        data = bytes(body[at + 4 : at + 4 + size])
        if kind == ImageType.LZ4:
            return _lz4(data, width, height)
        if kind == ImageType.LZ_RGB:
            return _lz(data, width, height)
        raise Failed(f"an image of type {kind} is not known here")


def _still_seen(messages: list[tuple[int, bytearray]]) -> list[tuple[int, bytearray]]:
    """Without what is drawn over as a whole before anything is read back: decoding takes long."""
    kept = []
    covered: set[tuple[int, tuple[int, int, int, int]]] = set()
    for number, body in reversed(messages):
        if number not in (display.DrawFill.number, display.DrawCopy.number):
            covered.clear()
            kept.append((number, body))
            continue
        base = _base(body)
        if any(
            base.surface == where and _inside(base.box, box) == base.box for where, box in covered
        ):
            continue
        kept.append((number, body))
        if number == display.DrawCopy.number and _kind(body, base) == _OFF_SCREEN:
            covered.clear()
        if base.clip == [base.box]:
            covered.add((base.surface, base.box))
    return kept[::-1]


def _kind(body: bytearray, base: _Base) -> int:
    """The type of the image that a copy is of."""
    image_at, *_ = _COPY.unpack_from(body, base.end)
    return int(_IMAGE.unpack_from(body, image_at)[1])


def _base(body: bytearray) -> _Base:
    surface, top, left, bottom, right, clipped = _BASE.unpack_from(body)
    box = top, left, bottom, right
    if not clipped:
        return _Base(surface, box, [box], _BASE.size)
    (count,) = struct.unpack_from("<I", body, _BASE.size)
    start = _BASE.size + 4
    end = start + count * _RECT.size
    inside = [_inside(rect, box) for rect in _RECT.iter_unpack(body[start:end])]
    return _Base(surface, box, [rect for rect in inside if rect is not None], end)


def _inside(
    rect: tuple[int, ...], box: tuple[int, int, int, int]
) -> tuple[int, int, int, int] | None:
    top, left = max(rect[0], box[0]), max(rect[1], box[1])
    bottom, right = min(rect[2], box[2]), min(rect[3], box[3])
    return (top, left, bottom, right) if top < bottom and left < right else None


def _bitmap(body: bytearray, at: int) -> NDArray[np.uint32]:
    format, flags, width, height, stride, _ = _BITMAP.unpack_from(body, at)
    if format not in (BitmapFormat.XRGB, BitmapFormat.ARGB):
        raise Failed(f"a bitmap of format {format} is not known here")
    at += _BITMAP.size
    lines = np.frombuffer(body, np.uint8, stride * height, at).reshape(height, stride)
    pixels = lines[:, : width * 4].copy().view("<u4")
    return pixels if flags & display.BITMAP_TOP_DOWN else pixels[::-1]


def _lz4(data: bytes, width: int, height: int) -> NDArray[np.uint32]:
    """Blocks, each with what came before it as its dictionary."""
    import lz4.block

    if data[1] not in (BitmapFormat.XRGB, BitmapFormat.ARGB):
        raise Failed(f"an LZ4 image of format {data[1]} is not known here")
    out, at = b"", 2
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        block = data[at + 4 : at + 4 + size]
        left = width * height * 4 - len(out)
        out += lz4.block.decompress(block, uncompressed_size=left, dict=out[-65536:])
        at += 4 + size
    pixels = np.frombuffer(out, "<u4").reshape(height, width)
    return pixels if data[0] else pixels[::-1]


_LZ_HEADER = struct.Struct(">7I")
_LZ_RGB32, _LZ_RGBA = 8, 9


def _lz(data: bytes, width: int, height: int) -> NDArray[np.uint32]:
    """Token by token; a plane of alpha behind the colours is left alone."""
    _, _, kind, *_, top_down = _LZ_HEADER.unpack_from(data)
    if kind not in (_LZ_RGB32, _LZ_RGBA):
        raise Failed(f"an LZ image of type {kind} is not known here")
    out, at = bytearray(), _LZ_HEADER.size
    size = width * height * 3
    while len(out) < size:
        control, at = data[at], at + 1
        if control < 32:
            end = at + 3 * (control + 1)
            out += data[at:end]
            at = end
            continue
        length, back = control >> 5, (control & 31) << 8
        if length == 7:
            while (more := data[at]) == 255:
                length, at = length + 255, at + 1
            length, at = length + more, at + 1
        back, at = back + data[at], at + 1
        if back == 0x1FFF:
            back, at = struct.unpack_from(">H", data, at)[0] + 8191, at + 2
        repeated = out[len(out) - 3 * (back + 1) :][: 3 * length]
        out += (repeated * (length // (back + 1) + 1))[: 3 * length]
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[..., :3] = np.frombuffer(out, np.uint8).reshape(height, width, 3)
    words = pixels.view("<u4")[..., 0]
    return words if top_down else words[::-1]
