"""What a client does with keys and pointer, as a source gets it; and the pointer's picture.

Nothing here knows of messages: the server makes these of what clients send, and sources play them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCROLL_LOCK, NUM_LOCK, CAPS_LOCK = 1, 2, 4
"""Bits of a lock state, as SPICE has them."""

LEFT, MIDDLE, RIGHT, WHEEL_UP, WHEEL_DOWN, SIDE, EXTRA = range(1, 8)
"""Buttons, as SPICE and X number the first five."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key goes down or up; ``code`` is a scan code as in `scancodes`.

    A client may repeat the down of a key that it holds; X servers repeat by themselves.
    """

    code: int
    down: bool


@dataclass(frozen=True, slots=True)
class Button:
    """A button goes down or up: 1 left, 2 middle, 3 right, 4 and 5 the wheel up and down, 6, 7."""

    button: int
    down: bool


@dataclass(frozen=True, slots=True)
class PointerTo:
    """The pointer is at a place, in pixels from the left and the top of the surface."""

    x: int
    y: int


@dataclass(frozen=True, slots=True)
class PointerBy:
    """The pointer moves by so many pixels, right and down."""

    dx: int
    dy: int


@dataclass(frozen=True, slots=True)
class Locks:
    """The lock state that a client wants: bits SCROLL_LOCK, NUM_LOCK, CAPS_LOCK."""

    state: int


Event: TypeAlias = Key | Button | PointerTo | PointerBy | Locks


@dataclass(frozen=True, slots=True, eq=False)
class CursorShape:
    """The pointer's picture: (height, width, 4) uint8 of B, G, R, A, premultiplied by A.

    ``hot_x``, ``hot_y`` is the pixel of it that points. The array must not be written any more.
    """

    pixels: NDArray[np.uint8] = field(repr=False)
    hot_x: int
    hot_y: int
