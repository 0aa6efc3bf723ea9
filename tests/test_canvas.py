"""Drawing in ordinary SPICE, held against a canvas that draws one pixel after the other.

`Slow` below is that canvas: for every pixel of a box it says in plain Python what becomes of it.
Images are decoded by the test itself there, as far as that is of interest.
"""

from __future__ import annotations

import dataclasses
import mmap
import time
import tracemalloc
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spiceshm.client.canvas import MOST_OFF_SCREEN_PIXELS, Canvas, Drawn
from spiceshm.client.frame import Copies
from spiceshm.client.streams import MOST_STREAMS
from spiceshm.codecs import lz4
from spiceshm.errors import CannotDecode, RemoteProtocolError
from spiceshm.wire import display
from spiceshm.wire.types import ImageType, Point, Rect

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import DataObject

    from spiceshm.wire import Message

WIDTH, HEIGHT = 13, 11
WHOLE = (0, 0, HEIGHT, WIDTH)
Box = tuple[int, int, int, int]

examples = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def canvas_of(*formats: int, **options: Any) -> Canvas:
    """Surfaces 0, 1, ... of these formats (the first one xRGB if there are none), all black."""
    canvas = Canvas(**options)
    for number, format_ in enumerate(formats or (32,)):
        canvas.receive(display.SurfaceCreate(number, WIDTH, HEIGHT, format_, 0))
    return canvas


def noise(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Words with all sorts of bits; some equal each other, so that a colour key hits some."""
    words = np.random.default_rng(seed).integers(0, 1 << 32, (height, width), np.uint64)
    words[::3] = 0x80402010
    return words.astype(np.uint32)


def painted(*formats: int, **options: Any) -> Canvas:
    """The same with noise on them."""
    canvas = canvas_of(*formats, **options)
    for number, surface in canvas.surfaces.items():
        surface.words[:] = noise(number)
    return canvas


def bitmap(words: np.ndarray, *, format: int = 8, flags: int = 0, **more: Any) -> display.Image:
    height, width = words.shape
    raw = display.Bitmap(format, 4, width, height, width * 4, words.astype("<u4").tobytes())
    return display.Image(more.get("id", 0), 0, flags, width, height, raw)


def bits(pattern: np.ndarray, flags: int = 0, number: int = 0) -> display.Image:
    height, width = pattern.shape
    data = np.packbits(pattern, axis=1, bitorder="little")
    raw = display.Bitmap(1, 4, width, height, data.shape[1], data.tobytes())
    return display.Image(number, 0, flags, width, height, raw)


def of_surface(number: int) -> display.Image:
    return display.Image(0, ImageType.SURFACE, 0, 0, 0, display.SurfaceImage(number))


def of_type(
    kind: int, number: int = 0, flags: int = 0, size: tuple[int, int] = (2, 2)
) -> display.Image:
    content = display.ImageData(b"?") if kind in (1, 101, 105, 109) else None
    return display.Image(number, kind, flags, *size, content)


def copy(
    box: Box,
    image: display.Image,
    area: Box = WHOLE,
    *,
    clip: object = None,
    rop: int = 8,
    scale: int = 1,
    mask: display.QMask = display.NO_MASK,
    on: int = 0,
) -> display.DrawCopy:
    return display.DrawCopy(on, Rect(*box), clip, Rect(*area), rop, scale, mask, image)


def solid(color: int = 0x123456) -> display.Brush:
    return display.Brush(display.BRUSH_SOLID, color)


def tiles(image: display.Image) -> display.Brush:
    return display.Brush(display.BRUSH_PATTERN, None, display.Pattern(image, Point(0, 0)))


def masked(image: display.Image, flags: int = 0) -> display.QMask:
    return display.QMask(flags, Point(0, 0), image)


def fill(
    box: Box,
    *,
    brush: display.Brush | None = None,
    clip: object = None,
    rop: int = 8,
    mask: display.QMask = display.NO_MASK,
    on: int = 0,
) -> display.DrawFill:
    return display.DrawFill(on, Rect(*box), clip, brush or solid(), rop, mask)


# one pixel after the other


class Slow:
    """What a message makes of the surfaces of a canvas, and which pixels it draws."""

    def __init__(self, canvas: Canvas) -> None:
        self.before = {n: s.words.copy() for n, s in canvas.surfaces.items()}
        self.formats = {n: s.format for n, s in canvas.surfaces.items()}

    def drawn(self, message: Any) -> np.ndarray:
        after = self.before[message.surface_id].copy()
        for y in range(HEIGHT):
            for x in range(WIDTH):
                if self.is_drawn(message, y, x):
                    after[y, x] = self.pixel(message, y, x, int(after[y, x]))
        return after

    def is_drawn(self, message: Any, y: int, x: int) -> bool:
        box, clip = message.box, message.clip
        if not (box.top <= y < box.bottom and box.left <= x < box.right):
            return False
        if clip is not None and not any(
            top <= y < bottom and left <= x < right for top, left, bottom, right in clip
        ):
            return False
        mask = getattr(message, "mask", display.NO_MASK)
        if mask.bitmap is None:
            return True
        raw = mask.bitmap.content
        my, mx = y - box.top + mask.pos.y, x - box.left + mask.pos.x
        if not (0 <= my < raw.y and 0 <= mx < raw.x):
            return False
        bit = raw.data[my * raw.stride + mx // 8] >> mx % 8 & 1
        return bool(bit) != bool(mask.flags & display.MASK_INVERS)

    def pixel(self, message: Any, y: int, x: int, dest: int) -> int:
        match message:
            case display.CopyBits():
                sy = y - message.box.top + message.src_pos.y
                sx = x - message.box.left + message.src_pos.x
                inside = 0 <= sy < HEIGHT and 0 <= sx < WIDTH
                return int(self.before[message.surface_id][sy, sx]) if inside else dest
            case display.DrawBlackness():
                return 0
            case display.DrawWhiteness():
                return 0xFFFFFFFF
            case display.DrawInvers():
                return dest ^ 0xFFFFFFFF
            case display.DrawFill():
                source = self.brush(message.brush, y, x)
                return rop(message.rop_descriptor, source, dest, 2, 4)
            case display.DrawCopy() | display.DrawBlend():
                return rop(message.rop_descriptor, self.source(message, y, x), dest, 1, 4)
            case display.DrawOpaque():
                under = self.source(message, y, x)
                return rop(message.rop_descriptor, self.brush(message.brush, y, x), under, 2, 1)
            case display.DrawRop3():
                brush, source = self.brush(message.brush, y, x), self.source(message, y, x)
                places = [4 * (brush >> n & 1) + 2 * (source >> n & 1) for n in range(32)]
                return sum(
                    (message.rop3 >> place + (dest >> n & 1) & 1) << n
                    for n, place in enumerate(places)
                )
            case display.DrawTransparent():
                source = self.source(message, y, x)
                return dest if (source ^ message.true_color) & 0xFFFFFF == 0 else source
            case display.DrawAlphaBlend():
                if message.alpha == 0:
                    return dest  # X and all
                return self.blended(message, self.source(message, y, x), dest)
        raise AssertionError(message)

    def brush(self, brush: display.Brush, y: int, x: int) -> int:
        if brush.pattern is None:
            return brush.color or 0
        words = self.words(brush.pattern.pat)
        height, width = words.shape
        pos = brush.pattern.pos
        return int(words[(y - pos.y) % height, (x - pos.x) % width])

    def words(self, image: display.Image) -> np.ndarray:
        raw = image.content
        if isinstance(raw, display.SurfaceImage):
            return self.before[raw.surface_id]
        return np.frombuffer(raw.data, "<u4").reshape(raw.y, raw.x)

    def source(self, message: Any, y: int, x: int) -> int:
        box, area, words = message.box, message.src_area, self.words(message.image)
        height, width = box.bottom - box.top, box.right - box.left
        high, wide = area.bottom - area.top, area.right - area.left
        y, x = y - box.top, x - box.left
        if (height, width) == (high, wide):
            return int(words[area.top + y, area.left + x])
        if getattr(message, "scale_mode", 1) == 1:
            y, x = nearest(y, high, height), nearest(x, wide, width)
            return int(words[area.top + y, area.left + x])
        (y, down), (x, across) = before(y, high, height), before(x, wide, width)
        value = 0
        for shift in (0, 8, 16, 24):
            a, b, c, d = (
                channel(words, area.top + y + row, area.left + x + column, shift)
                for row in (0, 1)
                for column in (0, 1)
            )
            upper, lower = a * (256 - across) + b * across, c * (256 - across) + d * across
            value |= (upper * (256 - down) + lower * down >> 16) << shift
        return value

    def blended(self, message: display.DrawAlphaBlend, source: int, dest: int) -> int:
        image, flags = message.image, message.alpha_flags
        if isinstance(image.content, display.SurfaceImage):
            opaque = self.formats[image.content.surface_id] != 96 and not flags & 2
        else:
            opaque = image.content.format != 9
        dest_opaque = self.formats[message.surface_id] != 96 and not flags & 1
        s = [source >> n & 255 for n in (0, 8, 16, 24)]
        d = [dest >> n & 255 for n in (0, 8, 16, 24)]
        if opaque:
            s[3] = 255
        if dest_opaque:
            d[3] = 255
        s = [rounded(channel * message.alpha) for channel in s]
        out = [
            min(255, above + rounded(below * (255 - s[3])))
            for above, below in zip(s, d, strict=True)
        ]
        if dest_opaque:
            out[3] = 0
        return sum(channel << n for channel, n in zip(out, (0, 8, 16, 24), strict=True))


def rounded(product: int) -> int:
    """A 255th, to the nearest: no product of two bytes lies half way."""
    return (2 * product + 255) // 510


def nearest(at: int, many: int, scaled: int) -> int:
    """The centre of a pixel, 2 at + 1 halves of ``scaled``, among ``many``; on an edge the one
    before."""
    step = many * 65536 // scaled
    return max(0, (step * (2 * at + 1) + 1) // 2 - 1) // 65536


def before(at: int, many: int, scaled: int) -> tuple[int, int]:
    """The pixel before a centre, and how near the one behind it is, in even 256ths."""
    step = many * 65536 // scaled
    place = (step * (2 * at + 1) + 1) // 2 - 32768
    return place // 65536, place % 65536 // 512 * 2


def channel(words: np.ndarray, y: int, x: int, shift: int) -> int:
    """Of a pixel, which is black where the picture has ended."""
    inside = 0 <= y < words.shape[0] and 0 <= x < words.shape[1]
    return int(words[y, x]) >> shift & 255 if inside else 0


def rop(descriptor: int, source: int, dest: int, source_bit: int, dest_bit: int) -> int:
    """As the names of its bits say; the first operation counts."""
    every = 0xFFFFFFFF
    s = source ^ (every if descriptor & source_bit else 0)
    d = dest ^ (every if descriptor & dest_bit else 0)
    result = every if descriptor & 0x400 else 0
    for bit, value in ((8, s), (16, s | d), (32, s & d), (64, s ^ d)):
        if descriptor & bit:
            return value ^ result
    for bit, value in ((0x80, 0), (0x100, every), (0x200, dest ^ every)):
        if descriptor & bit:
            return value
    return source


# any of them


def spans(most: int, beyond: int = 3) -> Any:
    ends = st.tuples(*[st.integers(-beyond, most + beyond)] * 2)
    return ends.filter(lambda pair: pair[0] != pair[1]).map(sorted)


boxes = st.tuples(spans(HEIGHT), spans(WIDTH)).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1]))
inside = st.tuples(spans(HEIGHT, 0), spans(WIDTH, 0)).map(
    lambda s: (s[0][0], s[1][0], s[0][1], s[1][1])
)
points = st.builds(Point, st.integers(-20, 20), st.integers(-20, 20))


@st.composite
def clips(draw: Any) -> list[Box] | None:
    """None, or the cells of a grid: disjoint, as a region's are, and some of no size."""
    if draw(st.booleans()):
        return None
    ys = sorted(draw(st.lists(st.integers(-2, HEIGHT + 2), min_size=2, max_size=4)))
    xs = sorted(draw(st.lists(st.integers(-2, WIDTH + 2), min_size=2, max_size=4)))
    cells = [
        (top, left, bottom, right) for top, bottom in pairwise(ys) for left, right in pairwise(xs)
    ]
    return [cell for cell in cells if draw(st.booleans())]


@st.composite
def masks(draw: Any) -> display.QMask:
    if draw(st.booleans()):
        return display.NO_MASK
    size = draw(st.tuples(st.integers(1, 14), st.integers(1, 18)))
    pattern = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 2, size, np.uint8)
    pos = Point(draw(st.integers(-4, 6)), draw(st.integers(-4, 6)))
    return display.QMask(draw(st.integers(0, 1)), pos, bits(pattern))


@st.composite
def pictures(draw: Any, surfaces: int = 3) -> display.Image:
    if draw(st.booleans()):
        return of_surface(draw(st.integers(0, surfaces - 1)))
    return bitmap(noise(draw(st.integers(0, 99))), format=draw(st.sampled_from([8, 9])))


@st.composite
def brushes(draw: Any) -> display.Brush:
    kind = draw(st.integers(0, 2))
    if kind == display.BRUSH_PATTERN:
        size = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
        tile = bitmap(noise(7, *size))
        image = draw(st.sampled_from([tile, of_surface(0), of_surface(1)]))
        return display.Brush(kind, None, display.Pattern(image, draw(points)))
    return display.Brush(kind, draw(st.integers(0, (1 << 32) - 1)) if kind else None)


@st.composite
def areas(draw: Any, box: Box) -> Box:
    """A part of a picture: of the box's size if that can be, or of any."""
    height, width = box[2] - box[0], box[3] - box[1]
    if height <= HEIGHT and width <= WIDTH and draw(st.booleans()):
        top, left = draw(st.integers(0, HEIGHT - height)), draw(st.integers(0, WIDTH - width))
        return top, left, top + height, left + width
    return draw(inside)


KINDS = (
    display.CopyBits,
    display.DrawFill,
    display.DrawOpaque,
    display.DrawCopy,
    display.DrawBlend,
    display.DrawBlackness,
    display.DrawWhiteness,
    display.DrawInvers,
    display.DrawRop3,
    display.DrawTransparent,
    display.DrawAlphaBlend,
)


@st.composite
def drawings(draw: Any, kind: type[Any]) -> Any:
    box = draw(boxes)
    flags = draw(st.integers(0, 3))
    descriptors = st.integers(0, 0x7FF) | st.builds(
        lambda op, inversions: op | inversions,
        st.sampled_from([8, 16, 32, 64]),
        st.sampled_from([0, 1, 2, 4, 7, 0x400, 0x407]),
    )
    ways = {
        "surface_id": st.integers(0, 2),
        "box": st.just(Rect(*box)),
        "clip": clips(),
        "src_pos": points,
        "brush": brushes(),
        "rop_descriptor": descriptors,
        "mask": masks(),
        "src_area": areas(box).map(lambda area: Rect(*area)),
        "scale_mode": st.integers(0, 1),
        "image": pictures(),
        "rop3": st.integers(0, 255),
        "src_color": st.just(0),
        "true_color": st.sampled_from([0x402010, 0xFF402010, 0x123456]),
        "alpha_flags": st.just(flags),
        "alpha": st.integers(0, 255) | st.just(255),
    }
    fields = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: draw(ways[name]) for name in fields})


def covered(rects: list[Box]) -> np.ndarray:
    where = np.zeros((HEIGHT, WIDTH), bool)
    for top, left, bottom, right in rects:
        assert 0 <= top < bottom <= HEIGHT
        assert 0 <= left < right <= WIDTH
        where[top:bottom, left:right] = True
    return where


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@examples
@given(data=st.data())
def test_every_drawing_is_what_it_is_pixel_by_pixel(kind: type[Any], data: DataObject) -> None:
    canvas = painted(32, 96, 32)
    message = kind.parse(data.draw(drawings(kind)).packed)  # as it comes from the wire
    slow = Slow(canvas)
    expected = slow.drawn(message)
    drawn = canvas.receive(message)
    assert drawn.surface_id in (message.surface_id, 0)
    found = canvas.surfaces[message.surface_id].words
    assert np.array_equal(found, expected)
    changed = found != slow.before[message.surface_id]
    assert not (changed & ~covered(drawn.rects)).any()
    assert drawn.stale == []
    assert drawn.why == ""
    for number, surface in canvas.surfaces.items():
        if number != message.surface_id:
            assert np.array_equal(surface.words, slow.before[number])


@pytest.mark.parametrize("code", range(256))
def test_all_codes_of_rop3(code: int) -> None:
    """With words that have every combination of the three operands among their bits."""
    canvas = painted(32, 96)
    rop3 = display.DrawRop3(
        0,
        Rect(*WHOLE),
        None,
        Rect(*WHOLE),
        solid(0x0F0F3355),
        code,
        1,
        display.NO_MASK,
        bitmap(noise(5)),
    )
    small = dataclasses.replace(rop3, box=Rect(0, 0, 2, 3), src_area=Rect(3, 0, 5, 3))
    expected = Slow(canvas).drawn(small)
    canvas.receive(small)
    assert np.array_equal(canvas.surfaces[0].words, expected)


@pytest.mark.parametrize(("format_", "bits_"), [(16, (5, 5, 5)), (80, (5, 6, 5))])
def test_a_surface_of_16_bits_has_only_their_colours(format_: int, bits_: Any) -> None:
    canvas = canvas_of(format_)
    canvas.receive(copy(WHOLE, bitmap(noise(3))))
    canvas.receive(fill((0, 0, 2, 2), brush=solid(0x1234)))
    canvas.receive(fill((0, 0, 4, 4), brush=solid(0x4321), rop=64))
    words = canvas.surfaces[0].words
    for shift, many in zip((16, 8, 0), bits_, strict=True):
        channel = words >> shift & 255
        top = channel >> 8 - many
        assert np.array_equal(channel, top << 8 - many | top >> 2 * many - 8)
    kept = noise(3)[5, 5]
    assert words[5, 5] >> 19 == (kept >> 19 & 31)
    low = sum(bits_[1:])
    red = (0x1234 ^ 0x4321) >> low & 31
    assert words[0, 0] >> 19 == red


# what is cut off


def test_boxes_reach_beyond_the_surface_and_draw_what_is_inside() -> None:
    canvas = painted(32)
    assert canvas.receive(fill((-5, -5, 2, 100))).rects == [(0, 0, 2, WIDTH)]
    assert canvas.receive(fill((HEIGHT, 0, HEIGHT + 5, 5))).rects == []
    huge = fill((-(1 << 31), -(1 << 31), (1 << 31) - 1, (1 << 31) - 1))
    assert canvas.receive(huge).rects == [WHOLE]
    scaled = copy(dataclasses.astuple(huge.box), bitmap(noise(1)), scale=0)
    assert canvas.receive(scaled).rects == [WHOLE]
    assert canvas.receive(copy((0, 0, HEIGHT, WIDTH), bitmap(noise(1)), clip=[])).rects == []


def test_many_clip_rectangles_draw_every_pixel_once() -> None:
    canvas = painted(32)
    cells = [(y, x, y + 1, x + 1) for y in range(HEIGHT) for x in range(WIDTH) if (x + y) % 2]
    invers = display.DrawInvers(0, Rect(*WHOLE), cells, display.NO_MASK)
    expected = Slow(canvas).drawn(invers)
    drawn = canvas.receive(invers)
    assert np.array_equal(canvas.surfaces[0].words, expected)
    assert len(drawn.rects) <= 64
    overlapping = dataclasses.replace(invers, clip=[(0, 0, 3, 3), (1, 1, 4, 4)])
    expected = Slow(canvas).drawn(overlapping)
    canvas.receive(overlapping)
    assert np.array_equal(canvas.surfaces[0].words, expected)


# formats


def palette(number: int = 7) -> display.Palette:
    return display.Palette(number, tuple(range(0x102030, 0x102030 + 256)))


def indexed(format_: int, data: bytes, stride: int, **more: Any) -> display.Image:
    raw = display.Bitmap(format_, more.pop("flags", 4), 3, 2, stride, data, **more)
    return display.Image(0, 0, 0, 3, 2, raw)


COLOURS = np.array([[1, 0, 1], [0, 1, 1]]) + 0x102030


@pytest.mark.parametrize(
    ("format_", "stride", "data"),
    [
        (1, 1, "05 06"),
        (1, 2, "f5ff feff"),
        (2, 1, "a0 60"),
        (3, 2, "01f1 1001"),
        (4, 2, "1010 011f"),
        (5, 3, "010001 000101"),
        (5, 4, "010001ff 000101ff"),
    ],
)
@pytest.mark.parametrize("top_down", [True, False])
def test_numbers_of_a_palette(format_: int, stride: int, data: str, top_down: bool) -> None:
    canvas = canvas_of()
    flags = 4 if top_down else 0
    image = indexed(format_, bytes.fromhex(data), stride, flags=flags, palette=palette())
    canvas.receive(copy((0, 0, 2, 3), image, (0, 0, 2, 3)))
    expected = COLOURS if top_down else COLOURS[::-1]
    assert np.array_equal(canvas.surfaces[0].words[:2, :3], expected)


@pytest.mark.parametrize(
    ("format_", "data", "words"),
    [
        (6, "007c e003 1f00 ff7f 0000 0180", [0xFF0000, 0xFF00, 0xFF, 0xFFFFFF, 0, 0x08]),
        (7, "010203" * 6, [0x030201] * 6),
        (8, "01020304" * 6, [0x04030201] * 6),
        (9, "01020304" * 6, [0x04030201] * 6),
        (10, "010203 fffe00", [0x1000000, 0x2000000, 0x3000000, 0xFF000000, 0xFE000000, 0]),
    ],
)
def test_colours(format_: int, data: str, words: list[int]) -> None:
    canvas = canvas_of()
    raw = bytes.fromhex(data)
    canvas.receive(copy((0, 0, 2, 3), indexed(format_, raw, len(raw) // 2), (0, 0, 2, 3)))
    assert canvas.surfaces[0].words[:2, :3].ravel().tolist() == words


def test_high_bits_are_set_where_an_image_says_so() -> None:
    canvas = canvas_of(96)
    for format_, word in ((8, 0xFF123456), (9, 0x123456)):
        words = np.full((1, 1), 0x123456, np.uint32)
        image = bitmap(words, format=format_, flags=display.IMAGE_HIGH_BITS_SET)
        canvas.receive(copy((0, 0, 1, 1), image, (0, 0, 1, 1)))
        assert canvas.surfaces[0].words[0, 0] == word


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (indexed(5, b"\0\1\2\3\4\5", 3), "palette is missing"),
        (indexed(5, b"\0\1\2\3\4\5", 3, palette=display.Palette(1, (1, 2))), "colour 5"),
        (indexed(77, b"\0\1\2\3\4\5", 3), "format 77"),
    ],
)
def test_a_bitmap_that_cannot_be_read_is_stale(image: display.Image, name: str) -> None:
    drawn = canvas_of().receive(copy((0, 0, 2, 3), image, (0, 0, 2, 3)))
    assert drawn.why == "bitmap"
    assert name in drawn.detail


# stale


def test_what_cannot_be_decoded_is_stale_until_it_is_drawn_over() -> None:
    canvas = painted(32, 32)
    before = canvas.surfaces[0].words.copy()
    drawn = canvas.receive(copy((1, 1, 9, 9), of_type(1), (0, 0, 2, 2), clip=[(0, 0, 5, 5)]))
    assert drawn == Drawn(0, [], [(1, 1, 5, 5)], "quic", "its data end before its header")
    assert np.array_equal(canvas.surfaces[0].words, before)
    assert canvas.surfaces[0].stale == [(1, 1, 5, 5)]

    canvas.receive(fill((0, 0, 2, 9), rop=64))  # which leaves it as wrong as it was
    assert canvas.surfaces[0].stale == [(1, 1, 5, 5)]
    drawn = canvas.receive(copy((0, 0, 2, 3), of_surface(0), (3, 3, 5, 6), on=1))
    assert (drawn.surface_id, drawn.stale, drawn.why) == (1, [(0, 0, 2, 3)], "quic")
    moved = display.CopyBits(0, Rect(6, 6, 8, 8), None, Point(4, 4))
    assert canvas.receive(moved).stale == [(6, 6, 8, 8)]

    canvas.receive(fill((0, 0, 3, 9)))
    assert canvas.surfaces[0].stale == [(3, 1, 5, 5), (6, 6, 8, 8)]
    canvas.receive(fill(WHOLE))
    assert canvas.surfaces[0].stale == []
    assert canvas.surfaces[1].stale == [(0, 0, 2, 3)]


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (copy(WHOLE, of_type(77)), "image type 77"),
        (copy(WHOLE, of_type(109)), "lz4"),
        (fill(WHOLE, brush=tiles(of_type(1))), "quic"),
        (fill(WHOLE, mask=masked(of_type(101))), "mask of lz_rgb"),
        (display.DrawStroke(0, Rect(*WHOLE), None, b""), "stroke"),
        (display.DrawText(0, Rect(*WHOLE), None, b""), "text"),
        (display.DrawComposite(0, Rect(*WHOLE), None, b""), "composite"),
        (fill(WHOLE, on=1), "surface format 8"),
        (copy(WHOLE, of_surface(1)), "surface format 8"),
    ],
)
def test_it_is_called_by_name(message: Any, name: str) -> None:
    canvas = painted(32, 8)
    drawn = canvas.receive(message)
    assert drawn.why == name
    assert drawn.detail
    assert drawn.stale == [WHOLE]
    assert drawn.rects == []


def test_every_image_goes_through_one_function() -> None:
    seen: list[tuple[int, object]] = []

    def decode(image: display.Image, colours: object) -> np.ndarray:
        seen.append((image.type, colours))
        if image.type == 109:
            raise CannotDecode("its data end too early")
        return np.full((2, 2, 4), 9, np.uint8)

    canvas = canvas_of(decode=decode)
    plt = display.LzPalette(0, b"", display.Palette(3, (1, 2)))
    canvas.receive(copy((0, 0, 2, 2), display.Image(0, 100, 0, 2, 2, plt), (0, 0, 2, 2)))
    assert (canvas.surfaces[0].words[:2, :2] == 0x09090909).all()
    drawn = canvas.receive(copy((0, 0, 2, 2), of_type(109), (0, 0, 2, 2)))
    assert (drawn.why, drawn.detail) == ("lz4", "its data end too early")
    canvas.receive(copy((0, 0, 2, 2), bitmap(noise(1)), (0, 0, 2, 2)))
    assert seen == [(100, [1, 2]), (109, None), (0, None)]


def test_what_was_drawn_by_is_counted() -> None:
    canvas = painted(32, 32, cache_pixels=1000)
    mask = masked(bits(noise(1) & 1, 1, 6))
    for message in (
        fill(WHOLE),
        copy(WHOLE, cached(5)),
        from_cache(5),
        copy(WHOLE, of_surface(1)),
        copy((0, 0, 1, 1), of_type(105), (0, 0, 1, 1), mask=mask),
        copy((0, 0, 1, 1), of_type(77), (0, 0, 1, 1)),
        fill(WHOLE, brush=tiles(of_type(106, 5))),
        display.CopyBits(0, Rect(0, 0, 3, 3), None, Point(1, 1)),
        display.DrawInvers(0, Rect(0, 0, 3, 3), None, display.NO_MASK),
        stream(),
        display.StreamData(5, 0, b"jpeg"),
    ):
        canvas.receive(message)
    assert canvas.counts == {
        "raw": 2,
        "from_cache": 1,
        "from_cache_lossless": 1,
        "surface": 1,
        "jpeg": 1,
        "image type 77": 1,
        "fill": 1,
        "copy_bits": 1,
        "invers": 1,
        "mjpeg": 1,
    }


# caches


def cached(number: int, flags: int = 1) -> display.Image:
    return bitmap(noise(number), flags=flags, id=number)


def from_cache(number: int, kind: int = 103) -> display.DrawCopy:
    return copy(WHOLE, of_type(kind, number))


def test_images_are_kept_until_the_server_says_otherwise() -> None:
    canvas = canvas_of(cache_pixels=1000)
    canvas.receive(copy((0, 0, 1, 1), cached(5), (0, 0, 1, 1)))
    canvas.receive(fill((0, 0, 1, 1), mask=masked(bits(noise(1) & 1, 1, 6))))
    canvas.receive(copy((50, 50, 51, 51), cached(8), (0, 0, 1, 1)))  # is not even seen
    for number, kind in ((5, 103), (8, 106)):
        canvas.receive(from_cache(number, kind))
        assert np.array_equal(canvas.surfaces[0].words, noise(number))
    mask = display.QMask(1, Point(0, 0), of_type(103, 6))
    canvas.receive(fill(WHOLE, mask=mask))
    kept = canvas.surfaces[0].words == noise(8)
    assert np.array_equal(kept, noise(1) & 1 == 1)

    canvas.receive(display.InvalList((display.Resource(1, 5), display.Resource(1, 99))))
    with pytest.raises(RemoteProtocolError, match=r"draw_copy: image\.id: 5 is not in the cache"):
        canvas.receive(from_cache(5))
    canvas.receive(from_cache(8))
    canvas.receive(display.InvalAllPixmaps(()))
    with pytest.raises(RemoteProtocolError, match=r"image\.id: 8 is not in the cache"):
        canvas.receive(from_cache(8))


def test_what_could_not_be_decoded_is_no_better_in_the_cache() -> None:
    canvas = canvas_of(cache_pixels=1000)
    canvas.receive(copy(WHOLE, of_type(1, 5, flags=1), (0, 0, 2, 2)))
    assert canvas.receive(from_cache(5)).why == "quic"


def test_images_beside_one_that_cannot_be_decoded_are_kept_all_the_same() -> None:
    canvas = canvas_of(cache_pixels=1000)
    pattern = display.Brush(2, None, display.Pattern(cached(5), Point(0, 0)))
    mask = masked(bits(noise(1) & 1, 1, 6))
    opaque = display.DrawOpaque(
        0, Rect(*WHOLE), None, Rect(0, 0, 2, 2), pattern, 8, 0, mask, of_type(1)
    )
    assert canvas.receive(opaque).why == "quic"
    canvas.receive(from_cache(5))
    canvas.receive(fill(WHOLE, mask=masked(of_type(103, 6))))
    assert np.array_equal(canvas.surfaces[0].words != noise(5), noise(1) & 1 == 1)


def test_a_lossy_image_is_replaced() -> None:
    canvas = canvas_of(cache_pixels=1000, decode=lambda image, _: np.zeros((2, 2, 4), np.uint8))
    canvas.receive(copy((0, 0, 2, 2), of_type(105, 5, flags=1), (0, 0, 2, 2)))
    small = copy((0, 0, 2, 2), of_type(106, 5), (0, 0, 2, 2))
    with pytest.raises(RemoteProtocolError, match="not lossless"):
        canvas.receive(small)
    canvas.receive(copy((0, 0, 2, 2), of_type(101, 5, flags=4), (0, 0, 2, 2)))
    assert canvas.receive(small).rects == [(0, 0, 2, 2)]


def test_the_cache_is_as_large_as_was_asked_for() -> None:
    canvas = canvas_of(cache_pixels=2 * WIDTH * HEIGHT)
    for number in range(3):  # of which the last may be there before another one goes
        canvas.receive(copy(WHOLE, cached(number)))
    with pytest.raises(RemoteProtocolError, match=r"image\.flags: more are to be cached"):
        canvas.receive(copy(WHOLE, cached(3)))
    canvas.receive(display.InvalList((display.Resource(1, 0),)))
    canvas.receive(copy(WHOLE, cached(3)))
    without = canvas_of()
    without.receive(copy(WHOLE, cached(1)))
    with pytest.raises(RemoteProtocolError, match="is not in the cache"):
        without.receive(from_cache(1))


def test_palettes_are_kept_until_the_server_says_otherwise() -> None:
    canvas = canvas_of()
    data = bytes.fromhex("010001 000101")
    first = indexed(5, data, 3, flags=5, palette=palette(9))
    again = copy((0, 0, 2, 3), indexed(5, data, 3, flags=6, palette_id=9), (0, 0, 2, 3))
    for inval in (display.InvalPalette(9), display.InvalAllPalettes(), display.Reset()):
        canvas.receive(copy((0, 0, 2, 3), first, (0, 0, 2, 3)))
        canvas.receive(fill(WHOLE))
        canvas.receive(again)
        assert np.array_equal(canvas.surfaces[0].words[:2, :3], COLOURS)
        canvas.receive(display.InvalPalette(8))
        canvas.receive(again)
        canvas.receive(inval)
        with pytest.raises(RemoteProtocolError, match=r"content\.palette_id: 9 is not in the cach"):
            canvas.receive(again)


def test_palettes_are_no_more_than_a_server_has() -> None:
    canvas = canvas_of()
    *most, one_more = (
        copy(
            (0, 0, 2, 3),
            indexed(5, bytes(6), 3, flags=5, palette=display.Palette(number, (1,))),
            (0, 0, 2, 3),
        )
        for number in range(257)
    )
    for message in most:
        canvas.receive(message)
    with pytest.raises(RemoteProtocolError, match="more than 256"):
        canvas.receive(one_more)


# surfaces and streams


def test_surfaces_come_and_go() -> None:
    canvas = painted(32, 32)
    primary = canvas.primary
    assert primary is canvas.surfaces[0]
    assert canvas.receive(display.Reset()).rects == [WHOLE]
    assert not primary.pixels.any()
    assert canvas.surfaces[1].pixels.any()
    canvas.receive(display.SurfaceDestroy(0))
    assert canvas.primary is None
    with pytest.raises(RemoteProtocolError, match="surface_id: there is no 0"):
        canvas.receive(fill(WHOLE))
    with pytest.raises(RemoteProtocolError, match=r"image\.content\.surface_id: there is no 0"):
        canvas.receive(copy(WHOLE, of_surface(0), on=1))


def test_surfaces_off_screen_have_their_limit() -> None:
    canvas = canvas_of(32, 32)
    canvas.receive(display.SurfaceCreate(6, 16384, MOST_OFF_SCREEN_PIXELS // 32768, 32, 0))
    large = display.SurfaceCreate(7, 16384, MOST_OFF_SCREEN_PIXELS // 32768, 32, 0)
    with pytest.raises(RemoteProtocolError, match="surface_create: width: more than"):
        canvas.receive(large)
    canvas.receive(display.SurfaceDestroy(1))
    canvas.receive(large)


def test_a_surface_has_its_limit() -> None:
    canvas = Canvas()
    canvas.receive(display.SurfaceCreate(0, 7680, 4320, 32, 1))
    for number in (0, 1):
        with pytest.raises(RemoteProtocolError, match="surface_create: width: 8192x4097 are more"):
            canvas.receive(display.SurfaceCreate(number, 8192, 4097, 32, 0))


def test_what_is_kept_is_no_more_than_it_counts_as() -> None:
    """Images that are small parts of much data, and as many rectangles as fit into messages."""
    canvas = canvas_of(cache_pixels=1 << 20)
    wide = display.Bitmap(8, 4, 1, 32, 1 << 16, bytes(1 << 21))
    many = np.array([(y, 0, y + 1, 1) for y in range(4096)], "<i4")
    tracemalloc.start()
    for number in range(64):
        image = display.Image(number, 0, 1, 1, 32, wide)
        canvas.receive(copy((0, 0, 1, 1), image, (0, 0, 1, 1)))
        for message in (
            stream(id=number, clip=many.copy()),
            display.StreamClip(number, many.copy()),
        ):
            canvas.receive(message)
        with pytest.raises(RemoteProtocolError, match="stream_create: clip: more than 4096"):
            canvas.receive(stream(id=number, clip=np.vstack([many, many])))
    canvas.receive(copy((0, 0, 1, 1), of_type(103, 5), (0, 0, 32, 1)))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 8 << 20
    assert peak < 12 << 20


def stream(**more: Any) -> display.StreamCreate:
    plain = display.StreamCreate(0, 5, 1, 1, 0, 2, 2, 4, 4, Rect(2, 3, 6, 7), None)
    return dataclasses.replace(plain, **more)


def frames(image: display.Image, colours: object) -> np.ndarray:
    """A picture that says how large it is."""
    assert image.type == ImageType.JPEG
    return np.arange(image.width * image.height * 4, dtype=np.uint8).reshape(
        image.height, image.width, 4
    )


def test_a_stream_is_shown_in_its_place() -> None:
    canvas = canvas_of(decode=frames)
    data = display.StreamData(5, 0, b"jpeg")
    assert canvas.receive(data) == Drawn(0, [], [])  # there is none yet
    canvas.receive(stream())
    assert canvas.receive(data).rects == [(2, 3, 6, 7)]
    first = canvas.surfaces[0].words[2:6, 3:7].copy()
    assert (first[::2, ::2] == [[0x03020100, 0x07060504], [0x0B0A0908, 0x0F0E0D0C]]).all()
    assert (first[1::2, 1::2] == first[::2, ::2]).all()
    canvas.receive(display.StreamClip(5, [(0, 0, 3, 99)]))
    assert canvas.receive(data).rects == [(2, 3, 3, 7)]
    canvas.receive(stream(flags=0))
    canvas.receive(data)
    assert np.array_equal(canvas.surfaces[0].words[2:6, 3:7], first[::-1])
    sized = display.StreamDataSized(5, 0, 3, 1, Rect(0, 0, 1, 3), b"jpeg")
    assert canvas.receive(sized).rects == [(0, 0, 1, 3)]
    assert canvas.surfaces[0].words[0, :3].tolist() == [0x03020100, 0x07060504, 0x0B0A0908]
    for end in (
        display.StreamDestroy(5),
        display.StreamDestroyAll(),
        display.SurfaceDestroy(0),
    ):
        canvas.receive(stream())
        canvas.receive(end)
        assert canvas.receive(data) == Drawn(0, [], [])


def test_a_stream_that_cannot_be_decoded_is_stale_by_its_name() -> None:
    canvas = canvas_of()
    for codec, name in ((1, "mjpeg"), (3, "h264"), (99, "video codec 99")):
        canvas.receive(stream(codec_type=codec))
        drawn = canvas.receive(display.StreamData(5, 0, b""))
        assert (drawn.stale, drawn.why) == ([(2, 3, 6, 7)], name)
    canvas.receive(display.StreamClip(6, None))
    canvas.receive(display.StreamDestroy(6))


# what does not fit


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (fill((3, 0, 3, 6)), "box"),
        (fill((4, 0, 3, 6)), "box"),
        (fill((0, 5, 3, -5)), "box"),
        (fill((0, 0, 4, 6), clip=[(0, 0, 4, 6)] * 2), "clip"),
        (copy((0, 0, 4, 6), bitmap(noise(1)), (8, 0, 12, 6)), "src_area"),
        (copy((0, 0, 4, 6), bitmap(noise(1)), (-1, 0, 3, 6)), "src_area"),
        (copy((0, 0, 4, 6), bitmap(noise(1)), (1, 1, 1, 6)), "src_area"),
        (copy((0, 0, 4, 6), bitmap(noise(1)), (0, 0, 1 << 30, 6)), "src_area"),
        (copy((0, 0, 4, 6), of_surface(0), (0, 0, 12, 6)), "src_area"),
        (copy((0, 0, 4, 6), of_surface(9)), "image.content.surface_id"),
        (copy(WHOLE, of_type(1, size=(0, 2))), "image.width"),
        (copy(WHOLE, of_type(1, size=(1 << 31, 1 << 31))), "image.width"),
        (copy(WHOLE, of_type(1, size=(8192, 8192))), "image.width"),
        (fill(WHOLE, mask=masked(bitmap(noise(1)))), "mask.bitmap.content.format"),
        (fill(WHOLE, mask=masked(of_type(103, 4))), "mask.bitmap.id"),
        (fill(WHOLE, on=4), "surface_id"),
        (stream(id=MOST_STREAMS), "id"),
        (stream(surface_id=9), "surface_id"),
    ],
)
def test_what_does_not_fit(message: Message, field: str) -> None:
    canvas = canvas_of(cache_pixels=1000)
    with pytest.raises(RemoteProtocolError) as caught:
        canvas.receive(message)
    assert (caught.value.message, caught.value.field) == (message.title, field)
    assert "\n" not in str(caught.value)
    assert not canvas.surfaces[0].pixels.any()


@pytest.mark.parametrize(
    "make",
    [
        lambda image: copy(WHOLE, image),
        lambda image: fill(WHOLE, brush=tiles(image)),
    ],
)
def test_a_mask_is_no_picture(make: Callable[[display.Image], Any]) -> None:
    canvas = canvas_of(cache_pixels=1000)
    canvas.receive(fill(WHOLE, mask=masked(bits(noise(1) & 1, 1, 6))))
    with pytest.raises(RemoteProtocolError, match="is in the cache as a mask"):
        canvas.receive(make(of_type(103, 6)))
    canvas.receive(copy(WHOLE, cached(5)))
    with pytest.raises(RemoteProtocolError, match="but as no mask"):
        canvas.receive(fill(WHOLE, mask=masked(of_type(103, 5))))


def test_large_drawing_takes_little_memory_in_between() -> None:
    canvas = Canvas()
    canvas.receive(display.SurfaceCreate(0, 3000, 2000, 32, 1))
    box = Rect(0, 0, 2000, 3000)
    blend = display.DrawAlphaBlend(0, box, None, 0, 99, Rect(*WHOLE), bitmap(noise(1), format=9))
    scaled = copy((0, 0, 2000, 3000), bitmap(noise(1)), scale=0)
    pattern = display.Brush(2, None, display.Pattern(bitmap(noise(1)), Point(0, 0)))
    checks = [(y, x, y + 1, x + 1) for y in range(200) for x in range(200) if (x + y) % 2]
    for message in (
        blend,
        scaled,
        fill((0, 0, 2000, 3000), brush=pattern, rop=64),
        fill((0, 0, 2000, 3000), clip=checks),
    ):
        tracemalloc.start()
        canvas.receive(message)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 32 << 20, message.title


LARGE = (0, 0, 2160, 3840)
ALL = Rect(*LARGE)
DOTS = np.array([(y, x, y + 1, x + 1) for y in range(0, 512, 2) for x in range(0, 512, 2)], "<i4")
THE_MOST = {
    "a pattern of itself": lambda: fill(LARGE, brush=tiles(of_surface(0)), rop=64),
    "itself, mixed": lambda: copy(LARGE, of_surface(0), (0, 0, 2159, 3839), scale=0),
    "a few pixels, mixed": lambda: copy(LARGE, bitmap(noise(1)), scale=0),
    "the nearest of a few": lambda: copy(LARGE, bitmap(noise(1))),
    "itself, blended": lambda: display.DrawAlphaBlend(0, ALL, None, 3, 99, ALL, of_surface(0)),
    "all but one colour": lambda: display.DrawTransparent(0, ALL, None, ALL, 0, 0, of_surface(0)),
    "three with a mask": lambda: display.DrawRop3(
        0,
        ALL,
        None,
        Rect(*WHOLE),
        tiles(bitmap(noise(2))),
        0x69,
        0,
        masked(bits(np.ones((2160, 3840), np.uint8))),
        bitmap(noise(1)),
    ),
    "many parts": lambda: fill(LARGE, clip=DOTS, rop=64),
    "many parts of itself": lambda: display.CopyBits(0, ALL, DOTS, Point(1, 1)),
}


@pytest.mark.parametrize("what", THE_MOST)
def test_the_most_that_one_message_draws(what: str) -> None:
    """It does not take long, also on the largest surface, which is four times as large as this."""
    canvas = Canvas()
    canvas.receive(display.SurfaceCreate(0, 3840, 2160, 32, 1))
    canvas.surfaces[0].words[:] = np.arange(3840, dtype=np.uint32)
    message = THE_MOST[what]()
    start = time.process_time()
    drawn = canvas.receive(message)
    took = time.process_time() - start
    assert drawn.rects
    assert not drawn.why
    assert took < (1.0 if message.clip is not None else 0.6)


# memory of the frames


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


def test_a_copy_has_all_that_changed_since_its_memory_was_filled() -> None:
    """Whatever is still looked at, so that another memory is used, and however often."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 60, 4), np.uint8)
    copies = Copies()
    kept: list[tuple[np.ndarray, np.ndarray]] = [(copies.of(pixels), pixels.copy())]
    for _ in range(300):
        changed = []
        for _ in range(rng.integers(0, 4)):
            top, left = rng.integers(0, 40), rng.integers(0, 60)
            bottom, right = rng.integers(top, 40) + 1, rng.integers(left, 60) + 1
            changed.append((int(top), int(left), int(bottom), int(right)))
            pixels[top:bottom, left:right] = rng.integers(0, 256, 4, np.uint8)
        if rng.integers(0, 20) == 0:  # as of another surface
            pixels[:] = rng.integers(0, 256, 4, np.uint8)
            changed = None
        kept.append((copies.of(pixels, changed), pixels.copy()))
        while len(kept) > rng.integers(0, 14):
            kept.pop(rng.integers(0, len(kept)))
        assert all((one == right).all() for one, right in kept)


def test_only_what_changed_is_copied() -> None:
    copies = Copies()
    pixels = np.zeros((50, 50, 4), np.uint8)
    copy = copies.of(pixels)
    del copy
    pixels[:] = 7
    copy = copies.of(pixels, [(1, 2, 3, 4)])
    assert (copy[1:3, 2:4] == 7).all()
    assert copy.sum() == 7 * 4 * 4


def test_nobody_writes_to_what_a_later_copy_is_made_of() -> None:
    copy = Copies().of(np.zeros((5, 5, 4), np.uint8))
    for array in (copy, copy[1:], copy.base):
        assert array is not None
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


PLAIN = [
    ((0, 0, 5, 7), (0, 0, 5, 7)),
    ((HEIGHT - 5, WIDTH - 7, HEIGHT, WIDTH), (0, 0, 5, 7)),
    ((HEIGHT - 4, 0, HEIGHT + 1, 7), (0, 0, 5, 7)),  # not all of it on the surface
    ((-1, -2, 4, 5), (0, 0, 5, 7)),
    ((0, 0, 4, 6), (1, 1, 5, 7)),
    ((0, 0, 5, 7), (0, 0, 4, 6)),  # scaled
]


@pytest.mark.parametrize(("box", "area"), PLAIN)
@pytest.mark.parametrize("on", [16, 80, 32, 96])
@pytest.mark.parametrize("kind", ["raw", "alpha", "lz4", "high"])
def test_what_is_put_quickly_is_what_is_drawn(box: Box, area: Box, on: int, kind: str) -> None:
    """A clip to all of it makes no other picture, but is drawn as everything else is."""
    words = noise(9, 5, 7)
    image = bitmap(words, format=9 if kind == "alpha" else 8, flags=2 if kind == "high" else 0)
    if kind == "lz4":
        image = display.Image(0, 109, 0, 7, 5, display.ImageData(lz4.encode(words)))
    quick, slow = painted(on), painted(on)
    for canvas in (quick, slow):
        canvas.receive(copy((0, 0, 2, 2), of_type(77, size=(2, 2)), (0, 0, 2, 2)))
        assert canvas.surfaces[0].stale
    put = quick.receive(copy(box, image, area))
    drawn = slow.receive(copy(box, image, area, clip=[WHOLE]))
    assert put == drawn
    assert np.array_equal(quick.surfaces[0].words, slow.surfaces[0].words)
    assert quick.surfaces[0].stale == slow.surfaces[0].stale
