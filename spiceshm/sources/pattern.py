"""A test pattern: motion, text, edges and colours, and a number in every row.

Every row begins and ends with the number of its frame, so that whoever looks can tell a torn frame
(rows of two frames) from a whole one with `read_stamp`, whatever the pixels came through.
"""

from __future__ import annotations

import colorsys
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import trio

from ..errors import MemoryRefused, SpiceShmError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..region import Rect
    from ..server import Display, Surface

_STAMP_WIDTH = 2
_STAMP_KEY = 0xA5C35A
_NUMBER_MASK = 0xFFFFFF

TORN: Literal["torn"] = "torn"


class Pattern:
    """Draws frame after frame of the pattern into arrays (height, width, 4) of uint8, B, G, R, X.

    ``full`` redraws every pixel of every frame; otherwise only what moves.
    """

    def __init__(self, width: int, height: int, *, full: bool = False) -> None:
        self.width = width
        self.height = height
        self._full = full
        self._background = _background(width, height)
        # Beside itself, so that any slice of it is the background scrolled round.
        self._scrolling = np.hstack([self._background, self._background]) if full else None
        self._box = max(1, min(width, height) // 8)
        self._digits = _digits(max(8, min(48, height // 12)))

    def damage(self, number: int) -> list[Rect]:
        """What frame ``number`` changes of the one before it; number 0 changes everything."""
        if number == 0 or self._full:
            return [(0, 0, self.height, self.width)]
        rects = [self._box_at(number - 1), self._box_at(number), *self._stamps()]
        counter = self._counter()
        return [*rects, counter] if counter else rects

    def paint(self, pixels: NDArray[np.uint8], number: int) -> None:
        """Draw the damage of frame ``number`` over a picture of the frame before it."""
        if self._scrolling is not None:
            shift = number * 4 % self.width
            pixels[:] = self._scrolling[:, shift : shift + self.width]
        else:
            for top, left, bottom, right in self.damage(number):
                pixels[top:bottom, left:right] = self._background[top:bottom, left:right]
        self._paint_counter(pixels, number)
        top, left, bottom, right = self._box_at(number)
        pixels[top:bottom, left:right] = _colour(number)
        _stamp(pixels, number)

    def _stamps(self) -> list[Rect]:
        if self.width < 2 * _STAMP_WIDTH:
            return []
        right = self.width - _STAMP_WIDTH
        return [(0, 0, self.height, _STAMP_WIDTH), (0, right, self.height, self.width)]

    def _box_at(self, number: int) -> Rect:
        """A square that bounces about."""
        left = _bounce(number * 7, self.width - self._box)
        top = _bounce(number * 5, self.height - self._box)
        return (top, left, top + self._box, left + self._box)

    def _counter(self) -> Rect | None:
        """Where the frame's number is written; None where there is no room."""
        height, width = self._digits.shape[1], self._digits.shape[2] * 8
        top, left = self.height // 3, self.width // 16
        if top + height > self.height or left + width > self.width:
            return None
        return (top, left, top + height, left + width)

    def _paint_counter(self, pixels: NDArray[np.uint8], number: int) -> None:
        counter = self._counter()
        if counter is None:
            return
        top, left, bottom, _ = counter
        width = self._digits.shape[2]
        for at, digit in enumerate(f"{number % 10**8:08d}"):
            start = left + at * width
            pixels[top:bottom, start : start + width] = self._digits[int(digit)]


def read_stamp(pixels: NDArray[np.uint8]) -> int | Literal["torn"] | None:
    """The frame number that the pattern wrote into every row, modulo 2**24.

    ``pixels`` is (height, width, 4) of uint8. None if this is no picture of the pattern, ``"torn"``
    if its rows belong to different frames.
    """
    width = pixels.shape[1]
    if width < 2 * _STAMP_WIDTH:
        return None
    words = pixels.view(np.uint32)[:, :, 0]
    numbers = words[:, [0, width - 2]] & _NUMBER_MASK
    keys = words[:, [1, width - 1]] & _NUMBER_MASK
    if not np.array_equal(numbers ^ _STAMP_KEY, keys):
        return None
    first = int(numbers[0, 0])
    return first if (numbers == first).all() else TORN


class PatternSource:
    """The pattern as something that is shown, ``fps`` frames a second; 0: as fast as somebody takes
    them. ``full`` redraws every pixel of every frame."""

    def __init__(self, width: int, height: int, *, fps: float, full: bool = False) -> None:
        self._size = (width, height)
        self._fps = fps
        self._full = full
        self._number = 0
        self._display: Display
        self._surface: Surface
        self._pattern: Pattern

    async def show(
        self, display: Display, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Show it for ever. Started once there is a surface. Raises MemoryRefused if there is no
        memory for it."""
        self._display = display
        self._surface = display.create_surface(*self._size)
        task_status.started()
        self._pattern = Pattern(*self._size, full=self._full)
        pace = self._surface.pace(self._fps) if self._fps else None
        while True:
            if pace is not None:
                await anext(pace)
            else:
                await self._wanted()
            self._draw()

    async def resize(self, width: int, height: int) -> None:
        """Go on at another size, beginning with frame 0, for ``serve(resize=...)``.

        To be called while it is shown. Raises MemoryRefused if there is no memory for that.
        """
        make = partial(Pattern, width, height, full=self._full)
        try:
            pattern = await trio.to_thread.run_sync(make, abandon_on_cancel=True)
        except (RuntimeError, MemoryError) as error:  # no thread can be started, or no memory
            why = str(error) or "no memory is left"
            raise MemoryRefused(f"cannot make a pattern of {width}x{height}: {why}") from None
        self._surface = self._display.create_surface(width, height)
        self._pattern, self._number = pattern, 0
        self._draw()

    async def _wanted(self) -> None:
        """Wait until somebody would take a frame, of whichever surface is shown then."""
        surface = None
        while surface is not self._surface:
            surface = self._surface
            try:
                await surface.wanted()
            except SpiceShmError:
                if surface is self._surface:
                    raise

    def _draw(self) -> None:
        with self._surface.frame(self._pattern.damage(self._number)) as frame:
            self._pattern.paint(frame.pixels, self._number)
        self._number += 1


def _stamp(pixels: NDArray[np.uint8], number: int) -> None:
    width = pixels.shape[1]
    if width < 2 * _STAMP_WIDTH:
        return
    words = pixels.view(np.uint32)[:, :, 0]
    words[:, [0, width - 2]] = number & _NUMBER_MASK
    words[:, [1, width - 1]] = number & _NUMBER_MASK ^ _STAMP_KEY


def _bounce(distance: int, room: int) -> int:
    if room <= 0:
        return 0
    there = distance % (2 * room)
    return there if there < room else 2 * room - there


def _colour(number: int) -> tuple[int, int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number % 360 / 360, 0.8, 1.0)
    return int(blue * 255), int(green * 255), int(red * 255), 0


def _background(width: int, height: int) -> NDArray[np.uint8]:
    """Ramps above, colour bars in the middle, edges of one pixel below, words over it."""
    across = np.linspace(0, 255, width).astype(np.uint8)
    down = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    picture = np.zeros((height, width, 4), np.uint8)
    picture[:, :, 0], picture[:, :, 1], picture[:, :, 2] = across, down, across[::-1]
    bars = np.arange(width) * 8 // width
    top, bottom = height // 2, height * 3 // 4
    for channel in range(3):
        picture[top:bottom, :, channel] = 255 * (7 - bars >> channel & 1)
    edges = picture[bottom:]
    edges[:, :, :3] = 0
    edges[::4] = edges[:, ::4] = (255, 255, 255, 0)
    _write(picture, "spiceshm test pattern", width // 16, height // 8, max(8, height // 12))
    return picture


def _write(picture: NDArray[np.uint8], text: str, left: int, top: int, size: int) -> None:
    """White letters on black, as far as there is room."""
    mask = _letters(text, size)
    area = picture[top : top + mask.shape[0], left : left + mask.shape[1]]
    area[:, :, :3] = mask[: area.shape[0], : area.shape[1], None]


def _digits(size: int) -> NDArray[np.uint8]:
    """Pictures of 0 to 9: (10, height, width, 4), all of one size."""
    masks = [_letters(digit, size) for digit in "0123456789"]
    width = max(mask.shape[1] for mask in masks)
    pictures = np.zeros((10, masks[0].shape[0], width, 4), np.uint8)
    for at, mask in enumerate(masks):
        pictures[at, :, : mask.shape[1], :3] = mask[:, :, None]
    return pictures


def _letters(text: str, size: int) -> NDArray[np.uint8]:
    """A line of text as (height, width) of coverage, 0 to 255."""
    from PIL import Image, ImageDraw, ImageFont  # slow to import, and only the pattern needs it

    font = ImageFont.load_default(size)
    width = max(1, int(font.getlength(text)) + 2)
    image = Image.new("L", (width, size * 5 // 4))
    ImageDraw.Draw(image).text((1, 0), text, fill=255, font=font)
    return np.asarray(image)
