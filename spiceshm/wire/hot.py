"""The codec of the messages that pass once a frame, derived from their construct declarations.

Reading SHM_DAMAGE through construct costs tens of microseconds, a `struct.Struct` one. So at import
the declaration's fields are walked and joined into one ``Struct``; construct stays the definition,
and also the judge: whatever is not plainly well formed is handed to it, and its error is the error.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING, Any

import construct
import numpy as np

from .base import Ack, MiniHeader
from .shm import ShmDamage, ShmDamageHandled
from .types import MAX_RECTS

if TYPE_CHECKING:
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
            rects = np.frombuffer(bytes(body[_DAMAGE.size :]), "<i4").reshape(n, 4)
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
    n = len(message.rects)
    try:
        head = _DAMAGE.pack(
            message.surface_id,
            message.segment_id,
            message.shm_offset,
            message.serial,
            message.published,
            message.flags,
            0,
            n,
            0,
        )
        rects = np.ascontiguousarray(message.rects, "<i4").tobytes()
    except (StructError, OverflowError):
        return message.packed
    if not 1 <= n <= MAX_RECTS or len(rects) != 16 * n:
        return message.packed
    return head + rects


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
        return _HANDLED.pack(message.surface_id, 0, message.serial)
    except StructError:
        return message.packed


def parse(kind: type[Message], body: bytes | memoryview) -> Message:
    """Read a body by the quickest codec that there is for its kind."""
    if kind is ShmDamage:
        return parse_damage(body)
    if kind is ShmDamageHandled:
        return parse_handled(body)
    if kind is Ack and not body:
        return _ACK
    return kind.parse(body)


def pack(message: Message) -> bytes:
    """Write a body by the quickest codec that there is for its kind."""
    kind = type(message)
    if kind is ShmDamage:
        return pack_damage(message)  # type: ignore[arg-type]
    if kind is ShmDamageHandled:
        return pack_handled(message)  # type: ignore[arg-type]
    return message.packed


_ACK = Ack()
