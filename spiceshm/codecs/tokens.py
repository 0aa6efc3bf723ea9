"""What LZ and GLZ are made of: control bytes, and behind each some units or where to copy some.

A unit is one pixel of three or two bytes, or one byte of alpha or of a line with a palette. Its
bytes come as they are, and what is copied are whole units. See `lz` and `glz` for the formats.

Strategy: one loop that appends to a bytearray, with as little in it as can be: what a control byte
says is looked up, a copy is one slice, and data that end too early are seen by an index error or by
the place reached. Two passes were slower: to find with numpy where the tokens begin takes as long
as to read and copy them here. The loop holds the interpreter's lock; `jit`, which is used instead
where numba is installed, does not.

Time is bounded by `MOST` and ``count`` units of output, memory by the output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from ..errors import CannotDecode
from . import bitmap

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Plane: TypeAlias = "bytearray | NDArray[np.uint32]"
"""Units: their bytes, or as `jit` has them a word for each, its lowest byte the first."""

_LITERAL = 32
"""Control bytes below are so many units and one more, which follow."""

_LONG = 7 << 5
"""Control bytes from here on have a length that goes on in the next byte."""

MOST = 1 << 20
"""Fewer control bytes than this there must be: half a second's work. Of text and noise servers send
one for about ten pixels."""

FAR = 8192
"""Units: a distance in LZ that goes on in two more bytes."""

ENDS_EARLY = "its data end before its last pixel"
TOO_MANY = "its data have more pixels than it has"
BEFORE_FIRST = "it repeats what is before its first pixel"
TOO_LONG = "it is in too many pieces to be read without the package numba"
OUTSIDE = "it repeats what is outside of an earlier image"


class _Table(NamedTuple):
    """By control byte, in bytes of output: of matches the length; of LZ's the upper distance."""

    length: list[int]
    back: list[int]


def bias(unit: int) -> int:
    """What is added to a match's length: of small units it takes more of them to be worth one."""
    return 3 - unit


_TABLES = {
    unit: _Table(
        [unit * ((control >> 5) + bias(unit)) for control in range(256)],
        [unit * (((control & 31) << 8) + 1) for control in range(256)],
    )
    for unit in (1, 2, 3)
}


def lz(body: bytes, at: int, count: int, unit: int) -> tuple[bytearray, int]:
    """Read ``count`` units of LZ from ``body`` at ``at``; returns them and where they end.

    Raises CannotDecode if there are fewer or more, or one is to be copied from before the first.
    """
    length, back = _TABLES[unit]
    far = unit * FAR
    out, done, end = bytearray(), 0, unit * count
    try:
        for _ in range(MOST):
            if done >= end:
                break
            control = body[at]
            if control < _LITERAL:
                stop = at + 1 + unit * (control + 1)
                out += body[at + 1 : stop]
                done += stop - at - 1
                at = stop
                continue
            size = length[control]
            if control >= _LONG:
                at += 1
                while (more := body[at]) == 255:
                    size += 255 * unit
                    at += 1
                    if size > end:
                        raise CannotDecode(TOO_MANY)
                size += more * unit
                if done + size > end:
                    raise CannotDecode(TOO_MANY)
            more = body[at + 1]
            at += 2
            distance = back[control] + more * unit
            if more == 255 and distance == far:
                distance += unit * (body[at] << 8 | body[at + 1])
                at += 2
            start = done - distance
            if start < 0:
                raise CannotDecode(BEFORE_FIRST)
            if size <= distance:
                out += out[start : start + size]
            else:
                again = out[start:]
                out += again * (size // distance)
                out += again[: size % distance]
            done += size
        else:
            raise CannotDecode(TOO_LONG)
    except IndexError:
        raise CannotDecode(ENDS_EARLY) from None
    return _whole(out, done, end, at, len(body)), at


def glz(
    body: bytes, at: int, count: int, unit: int, earlier: Callable[[int], bytearray]
) -> tuple[bytearray, int]:
    """Read ``count`` units of GLZ as `lz` does.

    ``earlier`` returns all units of the image that is so many before this one; it is asked once for
    each. Raises CannotDecode also if one is to be copied from outside of them.
    """
    length, _ = _TABLES[unit]
    out, done, end = bytearray(), 0, unit * count
    images: dict[int, bytearray] = {}
    try:
        for _ in range(MOST):
            if done >= end:
                break
            control = body[at]
            if control < _LITERAL:
                stop = at + 1 + unit * (control + 1)
                out += body[at + 1 : stop]
                done += stop - at - 1
                at = stop
                continue
            size = length[control]
            if control >= _LONG:
                at += 1
                while (more := body[at]) == 255:
                    size += 255 * unit
                    at += 1
                    if size > end:
                        raise CannotDecode(TOO_MANY)
                size += more * unit
            if done + size > end:
                raise CannotDecode(TOO_MANY)
            place = control & 15 | body[at + 1] << 4
            more = body[at + 2]
            at += 3
            stop = at + (more >> 6)
            image = int.from_bytes(body[at:stop], "little")
            at = stop
            if control & 16:
                place |= (more & 31) << 12
                if more & 32:
                    place |= body[at] << 17
                    at += 1
            else:
                image = image << 6 | more & 63
            if image:
                start = place * unit
                source = images.get(image)
                if source is None:
                    source = images[image] = earlier(image)
                if start + size > len(source):
                    raise CannotDecode(OUTSIDE)
                out += source[start : start + size]
            else:
                distance = (place + 1) * unit
                start = done - distance
                if start < 0:
                    raise CannotDecode(BEFORE_FIRST)
                if size <= distance:
                    out += out[start : start + size]
                else:
                    again = out[start:]
                    out += again * (size // distance)
                    out += again[: size % distance]
            done += size
        else:
            raise CannotDecode(TOO_LONG)
    except IndexError:
        raise CannotDecode(ENDS_EARLY) from None
    return _whole(out, done, end, at, len(body)), at


def as_words(plane: Plane, unit: int) -> NDArray[np.uint32]:
    """A word for each unit, its lowest byte the first."""
    if not isinstance(plane, bytearray):
        return plane
    if unit < 3:
        return np.frombuffer(plane, f"<u{unit}").astype(np.uint32)
    return bitmap.widened(np.frombuffer(plane, np.uint8).reshape(-1, 3)).view("<u4")[..., 0]


def as_alpha(plane: Plane) -> NDArray[np.uint8]:
    """Units that are bytes as bytes."""
    if isinstance(plane, bytearray):
        return np.frombuffer(plane, np.uint8)
    return plane.astype(np.uint8)


def _whole(out: bytearray, done: int, end: int, at: int, size: int) -> bytearray:
    """What was read, if it is what there had to be."""
    if at > size:
        raise CannotDecode(ENDS_EARLY)
    if done != end:
        raise CannotDecode(TOO_MANY)
    return out
