"""Writers that are wrong on purpose, through what the library offers: the checks must find each.

Each is what draws one frame: it is given the surface, the picture that is drawn already, and its
damage.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import spiceshm

    from .picture import Picture, Rect

_leaked: list[int] = []
_MOST_LEAKED = 300


def outside(surface: spiceshm.Surface, picture: Picture, damage: list[Rect]) -> None:
    """Draws where it named no damage: mirrors differ from the frame."""
    with surface.frame(damage) as frame:
        frame.pixels[:] = picture.pixels
        frame.pixels[picture.height // 2, 3:-2] = np.frombuffer(os.urandom(4), np.uint8)


def unnamed(surface: spiceshm.Surface, picture: Picture, damage: list[Rect]) -> None:
    """Names less than it drew when it publishes."""
    with surface.frame("all") as frame:
        frame.pixels[:] = picture.pixels
        frame.publish(damage[-2:])


def half(surface: spiceshm.Surface, picture: Picture, damage: list[Rect]) -> None:
    """Names damage and draws only the upper half of it: the rows have two numbers."""
    with surface.frame(damage) as frame:
        middle = picture.height // 2
        for top, left, bottom, right in frame.damage:
            end = min(bottom, middle)
            frame.pixels[top:end, left:right] = picture.pixels[top:end, left:right]


def shown(surface: spiceshm.Surface, picture: Picture, damage: list[Rect]) -> None:
    """Goes on drawing in a frame that is shown: it changes under those who hold it."""
    with surface.frame(damage) as frame:
        mine = frame.pixels[:]
        for top, left, bottom, right in frame.damage:
            mine[top:bottom, left:right] = picture.pixels[top:bottom, left:right]
    mine[picture.height // 2 :, 3:-2] ^= 0x40


def waits(surface: spiceshm.Surface, picture: Picture, damage: list[Rect]) -> None:
    """Waits in the middle of drawing, as if for somebody else."""
    with surface.frame(damage) as frame:
        frame.pixels[:] = picture.pixels
        time.sleep(1.1)


def leaks(surface: spiceshm.Surface, picture: Picture, damage: list[Rect]) -> None:
    """Leaves descriptors behind, ever more: those of before the first look are not noticed."""
    serial = surface.draw(picture.pixels, damage)
    if serial % 10 == 0 and len(_leaked) < _MOST_LEAKED:
        _leaked.append(os.dup(0))


BREAKS = {f.__name__: f for f in (outside, unnamed, half, shown, waits, leaks)}
