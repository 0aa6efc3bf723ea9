"""Drawing in ordinary SPICE: boxes, clips, line order; what does not fit is refused by name."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest

from spiceshm.client.canvas import Canvas
from spiceshm.client.frame import Copies
from spiceshm.errors import RemoteProtocolError
from spiceshm.wire import display
from spiceshm.wire.types import Point, Rect


def copy(
    box: tuple[int, int, int, int],
    pixels: np.ndarray,
    *,
    area: tuple[int, int, int, int] | None = None,
    clip: object = None,
    flags: int = display.BITMAP_TOP_DOWN,
) -> display.DrawCopy:
    height, width = pixels.shape[:2]
    bitmap = display.Bitmap(8, flags, width, height, width * 4, pixels.tobytes())
    return display.DrawCopy(
        0,
        Rect(*box),
        clip,
        Rect(*(area or (0, 0, height, width))),
        display.ROP_PUT,
        0,
        display.NO_MASK,
        display.Image(0, 0, 0, width, height, bitmap),
    )


def fill(
    box: tuple[int, int, int, int], *, clip: object = None, rop: int = 8, mask: int = 0
) -> display.DrawFill:
    brush = display.Brush(display.BRUSH_SOLID, 0x123456)
    qmask = display.QMask(0, Point(0, 0), mask)
    return display.DrawFill(0, Rect(*box), clip, brush, rop, qmask)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(1, 255, (height, width, 4), np.uint8)


def test_a_box_is_filled_and_nothing_else() -> None:
    canvas, source = Canvas(20, 10), picture(4, 6)
    assert canvas.draw(copy((2, 3, 6, 9), source)) == [(2, 3, 6, 9)]
    assert np.array_equal(canvas.pixels[2:6, 3:9], source)
    canvas.pixels[2:6, 3:9] = 0
    assert not canvas.pixels.any()


def test_part_of_an_image_bottom_up() -> None:
    canvas, source = Canvas(20, 10), picture(8, 8)
    canvas.draw(copy((0, 0, 2, 3), source, area=(1, 2, 3, 5), flags=0))
    assert np.array_equal(canvas.pixels[0:2, 0:3], source[::-1][1:3, 2:5])


def test_only_what_the_clip_lets_through() -> None:
    canvas, source = Canvas(20, 10), picture(10, 20)
    drawn = canvas.draw(copy((0, 0, 10, 20), source, clip=[(0, 0, 2, 2), (5, 5, 99, 99)]))
    assert drawn == [(0, 0, 2, 2), (5, 5, 10, 20)]
    assert np.array_equal(canvas.pixels[5:, 5:], source[5:, 5:])
    assert not canvas.pixels[2:5].any()


def test_a_box_of_one_colour() -> None:
    canvas = Canvas(20, 10)
    assert canvas.draw(fill((2, 3, 6, 9))) == [(2, 3, 6, 9)]
    assert (canvas.pixels[2:6, 3:9, :3] == [0x56, 0x34, 0x12]).all()
    canvas.pixels[2:6, 3:9] = 0
    assert not canvas.pixels.any()
    assert canvas.draw(fill((0, 0, 10, 20), clip=[(5, 5, 99, 99)])) == [(5, 5, 10, 20)]
    assert canvas.pixels[5:, 5:, 0].all()
    assert not canvas.pixels[:5].any()


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"box": (0, 0, 11, 6)}, "box"),
        ({"box": (3, 0, 3, 6)}, "box"),
        ({"clip": [(0, 0, 4, 6)] * 2}, "clip"),
        ({"rop": 0x40}, "rop_descriptor"),
        ({"mask": 41}, "mask"),
    ],
)
def test_a_box_of_one_colour_that_does_not_fit(wrong: dict[str, Any], field: str) -> None:
    canvas = Canvas(20, 10)
    with pytest.raises(RemoteProtocolError, match=r"display\.draw_fill") as caught:
        canvas.draw(fill(**{"box": (0, 0, 4, 6), **wrong}))
    assert caught.value.field == field
    assert not canvas.pixels.any()


@pytest.mark.parametrize(
    ("box", "area", "clip", "field"),
    [
        ((0, 0, 11, 6), None, None, "box"),
        ((0, 0, 0, 6), None, None, "box"),
        ((-1, 0, 3, 6), None, None, "box"),
        ((0, 0, 3, 6), (0, 0, 4, 6), None, "src_area"),
        ((0, 0, 4, 6), (1, 0, 5, 6), None, "src_area"),
        ((0, 0, 4, 6), None, [(0, 0, 4, 6)] * 2, "clip"),
    ],
)
def test_what_does_not_fit(
    box: tuple[int, int, int, int], area: object, clip: object, field: str
) -> None:
    canvas = Canvas(20, 10)
    with pytest.raises(RemoteProtocolError) as caught:
        canvas.draw(copy(box, picture(4, 6), area=area, clip=clip))  # type: ignore[arg-type]
    assert caught.value.field.startswith(field)
    assert not canvas.pixels.any()


def test_memory_of_a_copy_is_used_again_only_when_no_view_is_left() -> None:
    copies = Copies()
    first = copies.of(np.full((5, 7, 4), 1, np.uint8))
    place = first.ctypes.data
    assert place % mmap.PAGESIZE == 0
    assert not first.flags.writeable
    crop = first[1:3, 2:]
    del first
    second = copies.of(np.full((5, 7, 4), 2, np.uint8))
    assert second.ctypes.data != place
    assert (crop == 1).all()
    del crop
    third = copies.of(np.full((5, 7, 4), 3, np.uint8))
    assert third.ctypes.data == place
    assert (second == 2).all()
    assert (third == 3).all()
    del third
    other = copies.of(np.full((4, 7, 4), 4, np.uint8))  # of another size
    assert (other == 4).all()
    assert other.shape == (4, 7, 4)
