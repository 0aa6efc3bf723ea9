"""The codec of the messages that pass once a frame, derived from their construct declarations.

Reading SHM_DAMAGE through construct costs tens of microseconds, a `struct.Struct` one. So at import
the declaration's fields are walked and joined into one ``Struct``; construct stays the definition,
and also the judge: whatever is not plainly well formed is handed to it, and its error is the error.
"""

from __future__ import annotations

from itertools import chain
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING, Any

import construct
import numpy as np

from .base import Ack, MiniHeader
from .shm import ShmDamage, ShmDamageHandled
from .types import MAX_RECTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .message import Message


def derive(layout: construct.Struct) -> Struct:
    """The plain integers at the head of a layout as one little endian `struct.Struct`."""
    code = "<"
    for field in layout.subcons:
        while isinstance(field, construct.Subconstruct):
            field = field.subcon
        if not isinstance(field, construct.FormatField):
            break
        code += field.fmtstr.lstrip("<")
    return Struct(code)


MINI = derive(MiniHeader.layout)
_DAMAGE = derive(ShmDamage.layout)
_HANDLED = derive(ShmDamageHandled.layout)
_RECTS = [Struct(f"<{4 * n}i") for n in range(MAX_RECTS + 1)]
_INT32 = np.dtype("<i4")


def _make(kind: type[Message], values: dict[str, Any]) -> Any:
    """A frozen dataclass without a ``__setattr__`` for each field."""
    made = object.__new__(kind)
    made.__dict__.update(values)
    return made


def parse_damage(body: bytes | memoryview) -> ShmDamage:
    """Equal to ``ShmDamage.parse``, also in what it raises."""
    size = len(body)
    if size >= _DAMAGE.size:
        surface, segment, offset, serial, published, flags, _, n, _ = _DAMAGE.unpack_from(body)
        if 1 <= n <= MAX_RECTS and size == _DAMAGE.size + 16 * n:
            rects = np.ndarray((n, 4), _INT32, bytes(body[_DAMAGE.size :]))
            values = {
                "surface_id": surface,
                "segment_id": segment,
                "shm_offset": offset,
                "serial": serial,
                "published": published,
                "flags": flags,
                "rects": rects,
            }
            damage: ShmDamage = _make(ShmDamage, values)
            return damage
    return ShmDamage.parse(body)


def pack_damage(message: ShmDamage) -> bytes:
    """Equal to ``message.packed``, also in what it raises."""
    rects = np.asarray(message.rects)
    if rects.ndim == 2 and rects.shape[1] == 4 and 1 <= len(rects) <= MAX_RECTS:
        m = message
        try:
            return damage_body(
                m.surface_id,
                m.segment_id,
                m.shm_offset,
                m.serial,
                m.published,
                m.flags,
                rects.tolist(),
            )
        except (StructError, OverflowError):
            pass
    return message.packed


def damage_body(
    surface: int,
    segment: int,
    offset: int,
    serial: int,
    published: int,
    flags: int,
    rects: Sequence[Sequence[int]],
) -> bytes:
    """The body of a ShmDamage of these values; ``rects`` are 1 to 64 rows of four numbers."""
    n = len(rects)
    head = _DAMAGE.pack(surface, segment, offset, serial, published, flags, 0, n, 0)
    return head + _RECTS[n].pack(*chain.from_iterable(rects))


def parse_handled(body: bytes | memoryview) -> ShmDamageHandled:
    """Equal to ``ShmDamageHandled.parse``, also in what it raises."""
    if len(body) == _HANDLED.size:
        surface, _, serial = _HANDLED.unpack(body)
        handled: ShmDamageHandled = _make(
            ShmDamageHandled, {"surface_id": surface, "serial": serial}
        )
        return handled
    return ShmDamageHandled.parse(body)


def pack_handled(message: ShmDamageHandled) -> bytes:
    """Equal to ``message.packed``, also in what it raises."""
    try:
        return handled_body(message.surface_id, message.serial)
    except StructError:
        return message.packed


def handled_body(surface: int, serial: int) -> bytes:
    """The body of a ShmDamageHandled of these values."""
    return _HANDLED.pack(surface, 0, serial)


def _parse_ack(body: bytes | memoryview) -> Ack:
    return Ack.parse(body) if body else _ACK


_ACK = Ack()
_PARSERS: dict[type[Message], Callable[[bytes | memoryview], Message]] = {
    ShmDamage: parse_damage,
    ShmDamageHandled: parse_handled,
    Ack: _parse_ack,
}
_PACKERS: dict[type[Message], Callable[[Any], bytes]] = {
    ShmDamage: pack_damage,
    ShmDamageHandled: pack_handled,
}


def parse(kind: type[Message], body: bytes | memoryview) -> Message:
    """Read a body by the quickest codec that there is for its kind."""
    return _PARSERS.get(kind, kind.parse)(body)


def pack(message: Message) -> bytes:
    """Write a body by the quickest codec that there is for its kind."""
    packer = _PACKERS.get(type(message))
    return packer(message) if packer else message.packed
