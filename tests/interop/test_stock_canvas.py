"""Our canvas and the stock client's draw the same, pixel by pixel, whatever a server has drawn.

Every cell of a grid is a surface of its own with noise on it, on which a few messages draw that
chance has made; in the end all of them are shown side by side. Left out is what ends the stock
client, or what it draws from memory that it was never given:

* ROP3 that does not depend on all of brush, image and what is there; without a brush; with a
  pattern that begins to the right of the box or below it; scaled, where it takes pixels from beside
  the part of the image that it should
* images with a palette on surfaces of 5, 6 and 5 bits, and of 1 or 4 bits in little-endian
* surfaces of another depth as images, unless they are blended
* masks that begin 32 pixels to the left of a box or more
* a surface that draws from itself, but for COPY_BITS

On surfaces with alpha that of opaque images is not compared where they are scaled or have to be
converted: it is different from one message to the other.
"""

from __future__ import annotations

import contextlib
import io
import random
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pytest

from spiceshm.client.canvas import Canvas
from spiceshm.wire import display
from spiceshm.wire.types import BitmapFormat, ChannelType, ImageType, Point, Rect, SurfaceFormat
from tests import stockserver
from tests.interop.viewers import opened, screenshot
from tests.test_canvas import bitmap, bits, copy, fill, masked, of_surface, of_type, solid, tiles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from spiceshm.wire import Message

pytestmark = pytest.mark.peer("spicy-screenshot")

WIDTH, HEIGHT = 24, 20
WHOLE = (0, 0, HEIGHT, WIDTH)
COLUMNS, ROWS = 25, 16
EACH = 3
"""Messages for a cell."""

BOARD, NOISE, NOISE_ALPHA, FIRST = 1, 2, 3, 4
"""Surfaces: what is shown in the end, two that are only drawn from, and that of the first cell."""

ALPHA, DEEP = SurfaceFormat.ARGB, (SurfaceFormat.XRGB, SurfaceFormat.ARGB)
BITS = {2: 1, 4: 4, 5: 8, 6: 16, 7: 24, 8: 32, 9: 32, 10: 8}
KEY = 0x402010
Box = tuple[int, int, int, int]


class Chance(random.Random):
    """Makes messages for surfaces of a format."""

    def __init__(self, surface_format: SurfaceFormat) -> None:
        super().__init__(int(surface_format))
        self.surface_format = surface_format
        self.formats = set(BITS)
        if surface_format is SurfaceFormat.RGB565:
            self.formats -= {2, 4, 5}
        elif surface_format is ALPHA:
            self.formats = {8, 9, 10}

    def often(self) -> bool:
        return self.random() < 0.6

    def words(self, height: int, width: int) -> np.ndarray:
        """Noise in which one colour is frequent."""
        data = self.randbytes(height * width * 4)
        words = np.frombuffer(data, "<u4").reshape(height, width).copy()
        words[:: self.randint(1, 3), :: self.randint(2, 3)] = 0x80000000 | KEY
        return words

    def span(self, most: int, beyond: int) -> list[int]:
        return sorted(self.sample(range(-beyond, most + beyond + 1), 2))

    def box(self, beyond: int = 2) -> Box:
        (top, bottom), (left, right) = self.span(HEIGHT, beyond), self.span(WIDTH, beyond)
        return top, left, bottom, right

    def clip(self) -> tuple[Box, ...] | None:
        """None, or cells of a grid: disjoint, as servers send them."""
        if self.often():
            return None
        ys, xs = sorted(self.sample(range(HEIGHT + 1), 4)), sorted(self.sample(range(WIDTH + 1), 4))
        cells = [
            (top, left, bottom, right)
            for top, bottom in pairwise(ys)
            for left, right in pairwise(xs)
        ]
        return tuple(cell for cell in cells if self.often()) or None

    def mask(self) -> display.QMask:
        if self.often():
            return display.NO_MASK
        height, width = self.randint(1, HEIGHT + 2), self.randint(1, WIDTH + 16)
        stride = (width + 7) // 8 + self.choice([0, 3])
        top_down, kind = display.BITMAP_TOP_DOWN * self.randint(0, 1), self.choice([1, 2])
        data = self.randbytes(stride * height)
        raw = display.Bitmap(kind, top_down, width, height, stride, data)
        image = display.Image(0, 0, 0, width, height, raw)
        return display.QMask(
            self.randint(0, 1), Point(self.randint(-4, 6), self.randint(-4, 6)), image
        )

    def image(self, height: int, width: int, formats: set[int]) -> display.Image:
        kind = self.choice(sorted(formats))
        stride = (width * BITS[kind] + 31) // 32 * 4 + self.choice([0, 8])
        top_down = display.BITMAP_TOP_DOWN * self.randint(0, 1)
        if kind in (BitmapFormat.XRGB, BitmapFormat.ARGB):
            words = np.pad(self.words(height, width), ((0, 0), (0, stride // 4 - width)))
            data, colours = words.tobytes(), None
        else:
            data, colours = self.randbytes(stride * height), None
        if kind <= BitmapFormat.BYTE:
            ents = tuple(self.randrange(1 << 24) for _ in range(1 << BITS[kind]))
            colours = display.Palette(self.getrandbits(60), ents)
        raw = display.Bitmap(kind, top_down, width, height, stride, data, colours)
        return display.Image(0, 0, 0, width, height, raw)

    def brush(self, *, before: Box | None = None) -> display.Brush:
        """``before`` that box a pattern begins, and there is one."""
        kind = self.random()
        if kind < 0.1 and before is None:
            return display.Brush(display.BRUSH_NONE)
        if kind < 0.4:
            return solid(self.getrandbits(32) if self.often() else KEY)
        top, left = before[:2] if before else (9, 9)
        pos = Point(self.randint(-9, left), self.randint(-9, top))
        if self.often():
            image = self.image(self.randint(1, 9), self.randint(1, 9), self.formats)
        else:
            image = of_surface(self.choice([NOISE, NOISE_ALPHA]))
        return display.Brush(display.BRUSH_PATTERN, None, display.Pattern(image, pos))

    def rop(self) -> int:
        operation = self.choice([0, 8, 8, 8, 16, 32, 64, 128, 256, 512])
        return operation | self.randrange(8) | self.choice([0, 0, display.ROP_INVERS_RES])

    def rop3(self) -> int:
        while True:
            code = self.randrange(256)
            if all(code & low != code >> by & low for low, by in ((0x0F, 4), (0x33, 2), (0x55, 1))):
                return code

    def source(self, box: Box, can_scale: bool) -> tuple[display.Image, Rect, int]:
        """An image, the part of it that is drawn into the box, and how it is scaled, if it is."""
        height, width = box[2] - box[0], box[3] - box[1]
        formats = self.formats
        if scaled := can_scale and not self.often():
            height, width = self.randint(1, HEIGHT), self.randint(1, WIDTH)
            if self.surface_format is ALPHA:
                formats = {9}
        if self.often() or height > HEIGHT or width > WIDTH:
            top, left = self.randint(0, 3), self.randint(0, 3)
            more = self.randint(0, 3)
            image = self.image(top + height + more, left + width + more, formats)
        else:
            top, left = self.randint(0, HEIGHT - height), self.randint(0, WIDTH - width)
            opaque = scaled and self.surface_format is ALPHA
            image = of_surface(NOISE_ALPHA if opaque else self.choice([NOISE, NOISE_ALPHA]))
        mode = display.SCALE_NEAREST if self.often() else display.SCALE_INTERPOLATE
        return image, Rect(top, left, top + height, left + width), mode

    def message(self, on: int) -> Message:
        """Anything that draws on a surface."""
        kind: type[Any] = self.choice(KINDS)
        of_rop3 = kind is display.DrawRop3
        box = self.box(0 if of_rop3 or kind is display.CopyBits else 2)
        image, area, mode = self.source(box, not of_rop3)
        within = Point(WIDTH - (box[3] - box[1]) + 3, HEIGHT - (box[2] - box[0]) + 3)
        fields = {
            "surface_id": on,
            "box": Rect(*box),
            "clip": self.clip(),
            "src_pos": Point(self.randint(-3, within.x), self.randint(-3, within.y)),
            "brush": self.brush(before=box if of_rop3 else None),
            "rop_descriptor": self.rop(),
            "mask": self.mask(),
            "src_area": area,
            "scale_mode": mode,
            "image": image,
            "rop3": self.rop3(),
            "src_color": 0,
            "true_color": self.choice([KEY, 0xFF000000 | KEY]),
            "alpha_flags": self.randrange(4),
            "alpha": self.choice([255, 255, self.randrange(256)]),
        }
        message: Message = kind(**{name: fields[name] for name in kind.__dataclass_fields__})
        return message


KINDS = (
    display.CopyBits,
    display.DrawFill,
    display.DrawOpaque,
    display.DrawCopy,
    display.DrawCopy,
    display.DrawBlend,
    display.DrawBlackness,
    display.DrawWhiteness,
    display.DrawInvers,
    display.DrawRop3,
    display.DrawTransparent,
    display.DrawAlphaBlend,
    display.DrawAlphaBlend,
)


async def both(messages: list[Message], place: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the stock client shows once it has drawn these, and what we do."""
    async with serving(messages, place) as uri:
        seen = await screenshot(uri, place / "shot.ppm")
    return seen, ours(messages)


@contextlib.asynccontextmanager
async def serving(messages: list[Message], place: Path) -> AsyncIterator[str]:
    """A server that has these drawn; gives its URI."""
    async with stockserver.serving(f"unix:{place}/s") as server:
        server.kinds = {ChannelType.DISPLAY}
        server.drawn = messages
        yield f"spice+unix://{place}/s"


def ours(messages: list[Message]) -> np.ndarray:
    """What we show."""
    canvas = Canvas(cache_pixels=1 << 20)
    for message in messages:
        drawn = canvas.receive(type(message).parse(message.packed))
        assert not drawn.why, (drawn, message)
    assert canvas.primary is not None
    return canvas.primary.pixels[..., :3]


def create(number: int, form: SurfaceFormat, columns: int = 1, rows: int = 1) -> Message:
    flags = 0 if number else display.SURFACE_FLAG_PRIMARY
    return display.SurfaceCreate(number, columns * WIDTH, rows * HEIGHT, form, flags)


def corner(cell: int) -> tuple[int, int]:
    """y and x on the board."""
    row, column = divmod(cell, COLUMNS)
    return row * HEIGHT, column * WIDTH


def shown(cell: int, form: SurfaceFormat) -> Message:
    """With its alpha, if it has some; and another depth can only be blended."""
    y, x = corner(cell)
    box, image = (y, x, y + HEIGHT, x + WIDTH), of_surface(FIRST + cell)
    if form is SurfaceFormat.XRGB:
        return copy(box, image, WHOLE, on=BOARD)
    return display.DrawAlphaBlend(BOARD, Rect(*box), None, 0, 255, Rect(*WHOLE), image)


EVERYTHING = (0, 0, ROWS * HEIGHT, COLUMNS * WIDTH)


def board() -> list[Message]:
    """A white one, and what is shown."""
    made = [create(number, SurfaceFormat.XRGB, COLUMNS, ROWS) for number in (0, BOARD)]
    return [*made, fill(EVERYTHING, brush=solid(0xFFFFFF), on=BOARD)]


def all_of_board() -> Message:
    """Shown at last, for the client takes its picture as soon as there is something to be seen."""
    return copy(EVERYTHING, of_surface(BOARD), EVERYTHING)


def cells(chance: Chance, form: SurfaceFormat) -> Iterator[tuple[Message, ...]]:
    """What is drawn on each."""
    for cell in range(COLUMNS * ROWS):
        on = FIRST + cell
        yield (
            create(on, form),
            copy(WHOLE, of_surface(NOISE_ALPHA), on=on),
            *(chance.message(on) for _ in range(EACH)),
        )


FORMS = (SurfaceFormat.XRGB, SurfaceFormat.ARGB, SurfaceFormat.RGB555, SurfaceFormat.RGB565)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
async def test_all_drawing_is_what_it_is_in_the_stock_client(
    form: SurfaceFormat, tmp_path: Path
) -> None:
    chance = Chance(form)
    drawn = list(cells(chance, form))
    sources: list[Message] = []
    others = DEEP if form in DEEP else (form, form)
    for number, other in zip((NOISE, NOISE_ALPHA), others, strict=True):
        noise = bitmap(chance.words(HEIGHT, WIDTH), format=BitmapFormat.ARGB)
        sources += [create(number, other), copy(WHOLE, noise, on=number)]
    shows = [(*some, shown(cell, form)) for cell, some in enumerate(drawn)]
    messages = [*board(), *sources, *chain.from_iterable(shows), all_of_board()]
    seen, own = await both(messages, tmp_path)
    for cell, some in enumerate(drawn):
        y, x = corner(cell)
        wrong = (seen[y : y + HEIGHT, x : x + WIDTH] != own[y : y + HEIGHT, x : x + WIDTH]).any(-1)
        assert not wrong.any(), (cell, int(wrong.sum()), some[2:])


def jpeg(number: int, flags: int) -> display.Image:
    file = io.BytesIO()
    PIL.Image.new("RGB", (WIDTH, HEIGHT), "red").save(file, "JPEG")
    data = display.ImageData(file.getvalue())
    return display.Image(number, ImageType.JPEG, flags, WIDTH, HEIGHT, data)


def coloured(palette: display.Palette | int) -> display.Image:
    """An image with a palette that is to be kept, or with one that is."""
    data = random.Random(5).randbytes(WIDTH * HEIGHT)
    flags = display.BITMAP_TOP_DOWN
    if isinstance(palette, int):
        flags |= display.BITMAP_PAL_FROM_CACHE
        raw = display.Bitmap(5, flags, WIDTH, HEIGHT, WIDTH, data, palette_id=palette)
    else:
        flags |= display.BITMAP_PAL_CACHE_ME
        raw = display.Bitmap(5, flags, WIDTH, HEIGHT, WIDTH, data, palette)
    return display.Image(0, 0, 0, WIDTH, HEIGHT, raw)


async def test_what_is_kept_is_what_the_stock_client_keeps(tmp_path: Path) -> None:
    """Images, masks and palettes, that go and come anew; a lossy one, until it is replaced."""
    chance = Chance(SurfaceFormat.XRGB)
    drawn: list[Message] = [create(FIRST, SurfaceFormat.XRGB)]
    boxes: list[Box] = []

    def cell() -> Box:
        y, x = corner(len(boxes))
        boxes.append((y, x, y + HEIGHT, x + WIDTH))
        return boxes[-1]

    def show(*images: display.Image) -> None:
        drawn.extend(copy(cell(), image, WHOLE, on=BOARD) for image in images)

    def noise(number: int, flags: int = display.IMAGE_CACHE_ME) -> display.Image:
        return bitmap(chance.words(HEIGHT, WIDTH), flags=flags, id=number)

    def palette() -> display.Palette:
        return display.Palette(7, tuple(chance.randrange(1 << 24) for _ in range(256)))

    kept, kept_mask = of_type(ImageType.FROM_CACHE, 1), of_type(ImageType.FROM_CACHE, 2)
    for _ in range(2):
        show(noise(1), kept)
        drawn.append(fill(cell(), brush=tiles(kept), on=BOARD))
        mask = masked(bits(chance.words(HEIGHT, WIDTH) & 1, display.IMAGE_CACHE_ME, 2))
        drawn.append(fill(cell(), mask=mask, on=BOARD))
        again = masked(kept_mask, display.MASK_INVERS)
        drawn.append(fill(cell(), mask=again, on=BOARD))
        drawn.append(display.InvalList((display.Resource(1, 1),)))
        show(noise(1), kept)
        drawn.append(copy(WHOLE, jpeg(3, display.IMAGE_CACHE_ME), WHOLE, on=FIRST))
        show(noise(3, display.IMAGE_CACHE_REPLACE_ME), of_type(ImageType.FROM_CACHE_LOSSLESS, 3))
        show(coloured(palette()), coloured(7))
        drawn.append(display.InvalPalette(7))
        show(coloured(palette()), coloured(7))
        drawn += [display.InvalAllPixmaps(()), display.InvalAllPalettes()]
    seen, own = await both([*board(), *drawn, all_of_board()], tmp_path)
    assert (own != 255).any(-1).mean() > 0.05
    for nth, (top, left, bottom, right) in enumerate(boxes):
        assert np.array_equal(seen[top:bottom, left:right], own[top:bottom, left:right]), nth


@pytest.mark.peer("spicy", "Xvfb")
async def test_a_screen_that_is_reset_is_black(tmp_path: Path) -> None:
    red = fill((9, 9, HEIGHT, WIDTH), brush=solid(0xFF0000))
    messages = [*board(), fill(EVERYTHING), display.Reset(), red]
    async with serving(messages, tmp_path) as uri, opened("spicy", uri) as viewer:
        await viewer.shows(ours(messages))
