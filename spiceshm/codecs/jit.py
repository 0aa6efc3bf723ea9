"""`tokens` compiled by numba, where that is installed: five to sixteen times as fast, and other
threads run meanwhile.

The first image of a process waits until numba is imported and what it compiled is loaded: a second,
and a few more the very first time. `prepare` does that beforehand.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CannotDecode
from .tokens import BEFORE_FIRST, ENDS_EARLY, FAR, OUTSIDE, TOO_MANY, bias

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .tokens import Plane

AVAILABLE = importlib.util.find_spec("numba") is not None
"""Whether numba is there. It is imported when it is first needed."""

_MOST = 256
"""More units than a byte can make: one that says how a length goes on is worth 255."""

_TOGETHER = 1 << 16
"""Matches of GLZ that are carried out together."""

_REASONS = {-1: ENDS_EARLY, -2: TOO_MANY, -3: BEFORE_FIRST, -4: OUTSIDE}
"""What a loop returns instead of a place. Compiled code raises nothing: that would be slower."""


def prepare() -> None:
    """Have LZ and GLZ compiled, which takes seconds the first time: call it in a thread."""
    lz(bytes(4), 0, 1, 3)
    glz(b"\0\0\0\0\x20\0\1", 0, 2, 3, lambda _: np.zeros(1, np.uint32))


def lz(body: bytes, at: int, count: int, unit: int) -> tuple[NDArray[np.uint32], int]:
    """What `tokens.lz` does; a word for each unit."""
    out = _room(count, len(body) - at)
    data = np.frombuffer(body, np.uint8)
    return out, _place(compiled(_lz)(data, at, out, unit, bias(unit)))


def glz(
    body: bytes, at: int, count: int, unit: int, earlier: Callable[[int], Plane]
) -> tuple[NDArray[np.uint32], int]:
    """What `tokens.glz` does; a word for each unit, also of what ``earlier`` returns.

    Strategy: compiled code cannot be given all earlier images at once. So matches are listed, some
    at a time, while the literals are placed; then come those of each earlier image, and those in
    this one last, when all is there that they may repeat.
    """
    out = _room(count, len(body) - at)
    data = np.frombuffer(body, np.uint8)
    images: dict[int, Plane] = {}
    matches = np.empty((_TOGETHER, 4), np.int32)
    done = 0
    while done < count:
        at, done, many = compiled(_glz)(data, at, out, done, unit, bias(unit), matches)
        _place(at)
        _repeat(matches[:many], out, earlier, images)
    return out, at


def _repeat(
    matches: NDArray[np.int32],
    out: NDArray[np.uint32],
    earlier: Callable[[int], Plane],
    images: dict[int, Plane],
) -> None:
    """Carry out matches; ``images`` are those that were asked for."""
    copy = compiled(_copy)
    foreign = matches[matches[:, 1] > 0]
    foreign = foreign[np.argsort(foreign[:, 1], kind="stable")]
    numbers, starts = np.unique(foreign[:, 1], return_index=True)
    for image, some in zip(numbers.tolist(), np.split(foreign, starts[1:]), strict=False):
        if image not in images:
            images[image] = earlier(image)
        _place(copy(some, out, images[image], False))
    _place(copy(matches[matches[:, 1] == 0], out, out, True))


def _room(count: int, size: int) -> NDArray[np.uint32]:
    """Where ``count`` units go that ``size`` bytes are said to make, if they can."""
    if count > _MOST * size:
        raise CannotDecode(ENDS_EARLY)
    return np.empty(count, np.uint32)


def _place(result: int) -> int:
    if result < 0:
        raise CannotDecode(_REASONS[result])
    return result


@functools.cache
def compiled(loop: Any) -> Any:
    """``loop``, which takes arrays and numbers, as machine code."""
    import numba  # slow to import

    try:
        return numba.njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # nowhere to keep it
        return numba.njit(nogil=True)(loop)


# What is compiled: nobody looks whether an index is inside of an array, so every one is looked at
# here. Sums of numpy's small integers would be small integers too: hence int().


def _lz(data: Any, at: int, out: Any, unit: int, bias: int) -> int:
    size, count, done = len(data), len(out), 0
    while done < count:
        if at >= size:
            return -1
        control = int(data[at])
        at += 1
        if control < 32:
            if at + (control + 1) * unit > size:
                return -1
            if done + control + 1 > count:
                return -2
            for _ in range(control + 1):
                word = 0
                for byte in range(unit):
                    word |= int(data[at + byte]) << 8 * byte
                out[done] = word
                done += 1
                at += unit
            continue
        length = (control >> 5) + bias
        if control >= 224:
            more = 255
            while more == 255:
                if at >= size:
                    return -1
                more = int(data[at])
                at += 1
                length += more
        if at >= size:
            return -1
        distance = ((control & 31) << 8) + int(data[at]) + 1
        at += 1
        if distance == FAR:
            if at + 2 > size:
                return -1
            distance += int(data[at]) << 8 | int(data[at + 1])
            at += 2
        if distance > done:
            return -3
        if done + length > count:
            return -2
        for place in range(done, done + length):
            out[place] = out[place - distance]
        done += length
    return at


def _glz(
    data: Any, at: int, out: Any, done: int, unit: int, bias: int, matches: Any
) -> tuple[int, int, int]:
    """Place the literals, and list the matches: to where, the image, from where and how many; of
    this image how far back instead. Ends where no more can be listed: the place in ``data``, what
    of ``out`` is done, and how many are listed."""
    size, count, many = len(data), len(out), 0
    while done < count and many < len(matches):
        if at >= size:
            return -1, 0, 0
        control = int(data[at])
        at += 1
        if control < 32:
            if at + (control + 1) * unit > size:
                return -1, 0, 0
            if done + control + 1 > count:
                return -2, 0, 0
            for _ in range(control + 1):
                word = 0
                for byte in range(unit):
                    word |= int(data[at + byte]) << 8 * byte
                out[done] = word
                done += 1
                at += unit
            continue
        length = (control >> 5) + bias
        if control >= 224:
            more = 255
            while more == 255:
                if at >= size:
                    return -1, 0, 0
                more = int(data[at])
                at += 1
                length += more
        if at + 2 > size:
            return -1, 0, 0
        place = control & 15 | int(data[at]) << 4
        more = int(data[at + 1])
        at += 2
        long, last = control & 16, control & 16 and more & 32
        if at + (more >> 6) + (1 if last else 0) > size:
            return -1, 0, 0
        image = 0
        for byte in range(more >> 6):
            image |= int(data[at]) << 8 * byte
            at += 1
        if long:
            place |= (more & 31) << 12
        else:
            image = image << 6 | more & 63
        if last:
            place |= int(data[at]) << 17
            at += 1
        if done + length > count:
            return -2, 0, 0
        matches[many, 0] = done
        matches[many, 1] = image
        matches[many, 2] = place
        matches[many, 3] = length
        many += 1
        done += length
    return at, done, many


def _copy(matches: Any, out: Any, source: Any, own: bool) -> int:
    for nth in range(len(matches)):
        done, start, length = matches[nth, 0], matches[nth, 2], matches[nth, 3]
        if own:
            start = done - start - 1
            if start < 0:
                return -3
        elif start + length > len(source):
            return -4
        for step in range(length):
            out[done + step] = source[start + step]
    return 0
