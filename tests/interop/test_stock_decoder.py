"""What we make of images that no server here sends is what the stock client makes of them."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import lz4.block
import pytest

from spiceshm.codecs import bitmap, glz, jit, lz, quic
from spiceshm.codecs import lz4 as lz4_images
from spiceshm.wire import display
from spiceshm.wire.types import ChannelType, ImageType, Rect, SurfaceFormat
from tests import stockserver
from tests.interop.viewers import screenshot
from tests.test_decoders import BITS, Units, glz_header, lz_header, packed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np

    from spiceshm.wire import Message

pytestmark = pytest.mark.peer("spicy-screenshot")

WIDTH, HEIGHT = 37, 11
SIZE = (WIDTH, HEIGHT)
COLUMNS = 8
ROWS = 8
WHOLE = (COLUMNS * WIDTH, ROWS * HEIGHT)
DRAWN = 57
"""Where the image of a DRAW_COPY begins that has neither clip nor mask."""

DESCRIPTOR = 18


def palette(kind: int, rng: random.Random) -> list[int]:
    return [rng.randrange(1 << 24) for _ in range(1 << BITS[kind])]


def palette_block(colours: list[int]) -> bytes:
    return struct.pack(f"<QH{len(colours)}I", 1, len(colours), *colours)


def bitmaps(rng: random.Random) -> Iterator[tuple[int, bytes, np.ndarray]]:
    for kind in (2, 4, 5, 6, 7, 8, 9):  # the others it gives up on
        for top_down in (True, False):
            stride = (WIDTH * BITS[kind] + 31) // 32 * 4
            data = rng.randbytes(stride * HEIGHT)
            colours = palette(kind, rng) if kind <= 5 else None
            at = DRAWN + DESCRIPTOR + 18 + len(data) if colours else 0
            head = struct.pack("<BBIIII", kind, 4 * top_down, WIDTH, HEIGHT, stride, at)
            got = bitmap.decode(
                data, *SIZE, stride=stride, format=kind, top_down=top_down, palette=colours
            )
            yield 0, head + data + (palette_block(colours) if colours else b""), got


def lzs(rng: random.Random) -> Iterator[tuple[int, bytes, np.ndarray]]:
    for kind in range(1, 10):
        top_down = rng.random() < 0.5
        if kind <= 5:
            count, unit = (WIDTH * BITS[kind] + 7) // 8 * HEIGHT, 1
        else:
            count, unit = WIDTH * HEIGHT, 2 if kind == 6 else 3
        body = lz_header(kind, *SIZE, top_down) + packed(rng, count, unit)[0]
        if kind == 9:
            body += packed(rng, count, 1)[0]
        if kind > 5:
            yield 101, struct.pack("<I", len(body)) + body, lz.decode(body, *SIZE)
            continue
        colours = palette(kind, rng)
        head = struct.pack("<BII", 0, len(body), DRAWN + DESCRIPTOR + 9 + len(body))
        yield 100, head + body + palette_block(colours), lz.decode(body, *SIZE, colours)


def glzs(rng: random.Random) -> Iterator[tuple[int, bytes, np.ndarray]]:
    """Of one type after another: servers refer to images of the same type only."""
    dictionary = glz.Dictionary(1 << 20)
    number = 0
    for kind in (6, 7, 8, 9):
        had: list[dict[int, Units]] = []
        for _ in range(4):
            planes: dict[int, Units] = {}
            body = b""
            for unit in ((2,), (3,), (3,), (3, 1))[kind - 6]:
                earlier = {1 + back: image[unit] for back, image in enumerate(reversed(had))}
                more, planes[unit] = packed(rng, WIDTH * HEIGHT, unit, earlier)
                body += more
            had.append(planes)
            body = glz_header(kind, *SIZE, rng.random() < 0.5, number, number) + body
            got = glz.decode(body, *SIZE, dictionary)
            yield 102, struct.pack("<I", len(body)) + body, got
            number += 1


def lz4s(rng: random.Random) -> Iterator[tuple[int, bytes, np.ndarray]]:
    for kind in (6, 7, 8, 9):
        for top_down in (True, False):
            stride = WIDTH * BITS[kind] // 8
            lines = (rng.randbytes(stride) * 2 + rng.randbytes(stride * HEIGHT))[: stride * HEIGHT]
            body = bytes([top_down, kind])
            for start, stop in ((0, 1), (1, 5), (5, HEIGHT)):
                block = lz4.block.compress(
                    lines[start * stride : stop * stride],
                    store_size=False,
                    dict=lines[: start * stride],
                )
                body += struct.pack(">I", len(block)) + block
            got = lz4_images.decode(body, *SIZE)
            yield 109, struct.pack("<I", len(body)) + body, got


def quics(rng: random.Random) -> Iterator[tuple[int, bytes, np.ndarray]]:
    """Nearly any bits are a picture, but have no runs; those are in the recordings."""
    for kind in (2, 3, 4, 5):
        body = struct.pack("<5I", 0x43495551, 0, kind, *SIZE) + rng.randbytes(6000)
        yield 1, struct.pack("<I", len(body)) + body, quic.decode(body, *SIZE)


def drawing(box: tuple[int, int, int, int], kind: int, content: bytes) -> Message:
    """A DRAW_COPY onto surface 1."""
    top, left, bottom, right = box
    height, width = bottom - top, right - left
    body = struct.pack("<I4iB", 1, *box, 0)
    body += struct.pack("<I4iHB", DRAWN, 0, 0, height, width, display.ROP_PUT, 0)
    body += struct.pack("<B2iI", 0, 0, 0, 0)
    assert len(body) == DRAWN
    body += struct.pack("<QBBII", 0, kind, 0, width, height) + content
    return display.DrawCopy.parse(body)


def all_drawn(images: Iterable[tuple[int, bytes]]) -> Iterator[Message]:
    """Images side by side on a surface that is not seen, and that one on the screen."""
    for surface in (0, 1):
        flags = display.SURFACE_FLAG_PRIMARY if surface == 0 else 0
        yield display.SurfaceCreate(surface, *WHOLE, SurfaceFormat.XRGB, flags)
    for nth, (kind, content) in enumerate(images):
        yield drawing(place_of(nth), kind, content)
    everything = Rect(0, 0, WHOLE[1], WHOLE[0])
    other = display.Image(0, ImageType.SURFACE, 0, *WHOLE, display.SurfaceImage(1))
    yield display.DrawCopy(
        0, everything, None, everything, display.ROP_PUT, 0, display.NO_MASK, other
    )


def place_of(nth: int) -> tuple[int, int, int, int]:
    row, column = divmod(nth, COLUMNS)
    return row * HEIGHT, column * WIDTH, (row + 1) * HEIGHT, (column + 1) * WIDTH


async def test_every_format_is_what_the_stock_client_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not jit.AVAILABLE:
        monkeypatch.setattr(jit, "compiled", lambda loop: loop)
        monkeypatch.setattr(jit, "AVAILABLE", True)
    rng = random.Random(1)
    images = [*bitmaps(rng), *lzs(rng), *glzs(rng), *lz4s(rng), *quics(rng)]
    assert 50 < len(images) <= COLUMNS * ROWS
    async with stockserver.serving(f"unix:{tmp_path}/s") as server:
        server.kinds = {ChannelType.DISPLAY}
        server.drawn = list(all_drawn((kind, content) for kind, content, _ in images))
        seen = await screenshot(f"spice+unix://{tmp_path}/s", tmp_path / "shot.ppm")
    assert seen.shape == (*WHOLE[::-1], 3)
    for nth, (kind, content, got) in enumerate(images):
        top, left, bottom, right = place_of(nth)
        wrong = (seen[top:bottom, left:right] != got[..., :3]).any(-1).sum()
        assert not wrong, (nth, kind, content[:40].hex())
