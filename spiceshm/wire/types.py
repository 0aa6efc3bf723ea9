"""The building blocks that several messages share, and the numbers that SPICE gave to things."""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from construct import (
    Adapter,
    Array,
    Bytes,
    Construct,
    If,
    Int8ul,
    Int32sl,
    Int32ul,
    Rebuild,
    Struct,
    ValidationError,
    len_,
    this,
)

from .message import As, Record, record

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

MAX_SIDE = 16384
"""Most pixels a surface may have in either direction."""

MAX_CAPABILITY_WORDS = 32
MAX_RECTS = 64
MAX_CLIP_RECTS = 65536


class ChannelType(enum.IntEnum):
    """``SPICE_CHANNEL_*``"""

    MAIN = 1
    DISPLAY = 2
    INPUTS = 3
    CURSOR = 4


class LinkError(enum.IntEnum):
    """``SPICE_LINK_ERR_*``"""

    OK = 0
    ERROR = 1
    INVALID_MAGIC = 2
    INVALID_DATA = 3
    VERSION_MISMATCH = 4
    NEED_SECURED = 5
    NEED_UNSECURED = 6
    PERMISSION_DENIED = 7
    BAD_CONNECTION_ID = 8
    CHANNEL_NOT_AVAILABLE = 9


class CommonCap(enum.IntEnum):
    """``SPICE_COMMON_CAP_*``: bit numbers."""

    AUTH_SELECTION = 0
    AUTH_SPICE = 1
    AUTH_SASL = 2
    MINI_HEADER = 3


class MainCap(enum.IntEnum):
    """``SPICE_MAIN_CAP_*``: bit numbers; those about migration are never set by us."""

    NAME_AND_UUID = 1
    AGENT_CONNECTED_TOKENS = 2


class DisplayCap(enum.IntEnum):
    """``SPICE_DISPLAY_CAP_*``: bit numbers, and ours."""

    SIZED_STREAM = 0
    MONITORS_CONFIG = 1
    LZ4_COMPRESSION = 5
    PREF_COMPRESSION = 6
    MULTI_CODEC = 8
    CODEC_MJPEG = 9
    SHARED_MEMORY = 83


class InputsCap(enum.IntEnum):
    """``SPICE_INPUTS_CAP_*``: bit numbers."""

    KEY_SCANCODE = 0


class SurfaceFormat(enum.IntEnum):
    """``SPICE_SURFACE_FMT_*``; shown are XRGB and ARGB, whose bytes are B, G, R, X (or A)."""

    A1 = 1
    A8 = 8
    RGB555 = 16
    XRGB = 32
    RGB565 = 80
    ARGB = 96


class ImageType(enum.IntEnum):
    """``SPICE_IMAGE_TYPE_*``"""

    BITMAP = 0
    QUIC = 1
    LZ_PLT = 100
    LZ_RGB = 101
    GLZ_RGB = 102
    FROM_CACHE = 103
    SURFACE = 104
    JPEG = 105
    FROM_CACHE_LOSSLESS = 106
    ZLIB_GLZ_RGB = 107
    JPEG_ALPHA = 108
    LZ4 = 109


IMAGE_NAMES = {kind: kind.name.lower() for kind in ImageType} | {
    ImageType.BITMAP: "raw",
    ImageType.LZ_RGB: "lz",
    ImageType.GLZ_RGB: "glz",
    ImageType.ZLIB_GLZ_RGB: "zlib_glz",
}
"""What statistics call the types of images."""


class BitmapFormat(enum.IntEnum):
    """``SPICE_BITMAP_FMT_*``: bits of a palette's numbers, lowest or highest bit first; colours."""

    BIT_LE = 1
    BIT_BE = 2
    NIBBLE_LE = 3
    NIBBLE_BE = 4
    BYTE = 5
    RGB16 = 6
    RGB24 = 7
    XRGB = 8
    ARGB = 9
    A8 = 10


class Compression(enum.IntEnum):
    """``SPICE_IMAGE_COMPRESSION_*``: what a client may prefer."""

    OFF = 1
    AUTO_GLZ = 2
    AUTO_LZ = 3
    QUIC = 4
    GLZ = 5
    LZ = 6
    LZ4 = 7


class MouseMode(enum.IntFlag):
    """``SPICE_MOUSE_MODE_*``"""

    SERVER = 1
    CLIENT = 2


def words_from_caps(bits: set[int] | frozenset[int]) -> tuple[int, ...]:
    """Capability bit numbers as u32 words, no more of them than the highest bit needs."""
    words = [0] * (max(bits) // 32 + 1 if bits else 0)
    for bit in bits:
        words[bit // 32] |= 1 << bit % 32
    return tuple(words)


def caps_from_words(words: tuple[int, ...]) -> frozenset[int]:
    """The bit numbers set in u32 capability words."""
    return frozenset(
        32 * at + bit for at, word in enumerate(words) for bit in range(32) if word >> bit & 1
    )


class Limited(Adapter):  # type: ignore[misc]
    """An integer field of which only some values are allowed, which ``accepts`` says in words."""

    def __init__(self, kind: Construct, allowed: Callable[[int], bool], accepts: str) -> None:
        super().__init__(kind)
        self._allowed = allowed
        self._accepts = accepts

    def _decode(self, obj: int, context: Any, path: str) -> int:
        if not self._allowed(obj):
            raise ValidationError(f"{obj} is not {self._accepts}", path=path)
        return obj

    _encode = _decode


class Held(Adapter):  # type: ignore[misc]
    """A field that must fit the fields before it: ``fits(value, context)``, ``accepts`` in words.

    Only what a peer sent is held against it; what we build fits by itself.
    """

    def __init__(self, kind: Construct, fits: Callable[[Any, Any], bool], accepts: str) -> None:
        super().__init__(kind)
        self._fits = fits
        self._accepts = accepts

    def _decode(self, obj: Any, context: Any, path: str) -> Any:
        if not self._fits(obj, context):
            shown = f"{len(obj)} bytes" if isinstance(obj, bytes) else obj
            raise ValidationError(f"{shown}: not {self._accepts}", path=path)
        return obj

    def _encode(self, obj: Any, context: Any, path: str) -> Any:
        return obj


def between(kind: Construct, low: int, high: int) -> Construct:
    """An integer field that must lie in ``low``..``high``, both included."""
    return Limited(kind, lambda value: low <= value <= high, f"in {low}..{high}")


def one_of(kind: Construct, *values: int) -> Construct:
    """An integer field that must be one of ``values``."""
    return Limited(kind, lambda value: value in values, " or ".join(map(str, values)))


class Tuple(Adapter):  # type: ignore[misc]
    """A list field as a tuple, so that messages stay immutable."""

    def _decode(self, obj: Any, context: Any, path: str) -> tuple[Any, ...]:
        return tuple(obj)

    def _encode(self, obj: Any, context: Any, path: str) -> list[Any]:
        return list(obj)


class Alike(Tuple):
    """``count`` records of nothing but integers as a tuple, read together: there may be many."""

    def __init__(self, kind: type[Record], count: Any) -> None:
        super().__init__(Array(count, As(kind)))
        self._kind = kind
        fields = [field.subcon.fmtstr.lstrip("<") for field in kind.layout.subcons]
        self._one = struct.Struct("<" + "".join(fields))

    def _parse(self, stream: Any, context: Any, path: str) -> tuple[Any, ...]:
        start = stream.tell()
        size = self.subcon.count(context) * self._one.size
        data = stream.read(size)
        if len(data) < size:  # construct says in which field it ends
            stream.seek(start)
            return super()._parse(stream, context, path)  # type: ignore[no-any-return]
        return tuple(self._kind(*values) for values in self._one.iter_unpack(data))


class Rects(Adapter):  # type: ignore[misc]
    """``count`` rectangles as an array (n, 4) of int32: top, left, bottom, right."""

    def __init__(self, count: Any) -> None:
        super().__init__(Bytes(count * 16))

    def _decode(self, obj: bytes, context: Any, path: str) -> NDArray[np.int32]:
        return np.frombuffer(obj, "<i4").reshape(-1, 4)

    def _encode(self, obj: Any, context: Any, path: str) -> bytes:
        return np.ascontiguousarray(obj, "<i4").reshape(-1, 4).tobytes()


def counted(
    kind: Construct, number: Construct, most: int, *, name: str, count: str
) -> tuple[Construct, Construct]:
    """Two fields: how many (``count``, at most ``most``), and that many ``kind`` (``name``)."""
    limited = Rebuild(between(number, 0, most), len_(this[name]))
    return count / limited, name / Tuple(Array(this[count], kind))


@record
class Rect(Record):
    """``SpiceRect``: i32 each; right and bottom are exclusive."""

    layout = Struct("top" / Int32sl, "left" / Int32sl, "bottom" / Int32sl, "right" / Int32sl)
    top: int
    left: int
    bottom: int
    right: int


@record
class Point(Record):
    """``SpicePoint``: i32 each."""

    layout = Struct("x" / Int32sl, "y" / Int32sl)
    x: int
    y: int


@record
class ClipRects(Record):
    """``SpiceClipRects``: ``rects`` as in `Rects`, at most `MAX_CLIP_RECTS` of them."""

    layout = Struct(
        "num_rects" / Rebuild(between(Int32ul, 0, MAX_CLIP_RECTS), lambda ctx: len(ctx.rects)),
        "rects" / Rects(this.num_rects),
    )
    rects: NDArray[np.int32]


class Clip(Adapter):  # type: ignore[misc]
    """``SpiceClip``: None, or the array of a `ClipRects`."""

    def __init__(self) -> None:
        super().__init__(
            Struct("type" / one_of(Int8ul, 0, 1), "rects" / If(this.type, As(ClipRects)))
        )

    def _decode(self, obj: Any, context: Any, path: str) -> NDArray[np.int32] | None:
        return obj.rects.rects if obj.type else None

    def _encode(self, obj: Any, context: Any, path: str) -> dict[str, Any]:
        if obj is None:
            return {"type": 0, "rects": None}
        return {"type": 1, "rects": ClipRects(obj)}
