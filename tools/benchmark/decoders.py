"""How long it takes to decode what stock servers send, beside copying as many pixels.

Pictures of 1920x1080 are shown by Xspice, in this run, to a client that prefers one format; what it
was sent is decoded again and again. It is sent two of each kind, the second one scrolled, so that
GLZ has an earlier one to repeat. Of what Xspice sends nothing has a palette, and its JPEG all has
alpha: LZ_PLT and JPEG are made here of the same pictures.
"""

from __future__ import annotations

import functools
import struct
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import trio

import spiceshm
from spiceshm.client import images
from spiceshm.client.canvas import Canvas
from spiceshm.codecs import glz, jit, lz, quic, tokens
from spiceshm.protocol import ClientDisplay
from spiceshm.wire import display, hot
from spiceshm.wire.types import ImageType, Rect

from .contents import LINE, Painter, gradients, painter
from .process import Failed, workers
from .work import HD
from .xservers import missing, xspice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

    from spiceshm.wire import Message

    from .stats import Measures

Codec: TypeAlias = Literal[
    "raw",
    "lz4",
    "lz",
    "lz-python",
    "lz-plt",
    "lz-plt-python",
    "glz",
    "glz-python",
    "zlib-glz",
    "zlib-glz-python",
    "jpeg",
    "jpeg-alpha",
    "jpeg-alpha-python",
    "quic",
    "canvas-raw",
    "canvas-lz4",
]
"""What is decoded; with python without numba; with canvas from the bytes of the message on."""

CODECS: tuple[Codec, ...] = get_args(Codec)
SHOWN = ("text", "desktop", "photo")

_ASKED = {
    "raw": "off",
    "lz4": "lz4",
    "lz": "lz",
    "lz-plt": "off",
    "glz": "glz",
    "zlib-glz": "glz",
    "jpeg": "quic",
    "jpeg-alpha": "quic",
    "quic": "quic",
}
_FAR = ("zlib-glz", "jpeg", "jpeg-alpha")
_PIXELS = HD[0] * HD[1]
_READ = 1 << 18
"""Bytes that a read of a socket brings."""
_SCROLLED = 40
_NOISE = 12
_COPIED_S = 0.05
_RUN = 4
_SOON_S = 20.0


def lacks(codec: Codec) -> str | None:
    """How to install what a codec needs, where it is not."""
    needed = ["lz4"] * codec.endswith("lz4")
    if not codec.endswith(("raw", "lz4", "python", "jpeg")):
        needed.append("numba")
    return missing(["Xspice"], ["xcffib", *needed])


def _format(codec: Codec) -> str:
    return codec.removesuffix("-python").removeprefix("canvas-")


# What is decoded


class _Screen(Painter):
    """Shows pictures on all of the screen, as programs do it that draw themselves."""

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Of each kind one: (height, width, 4)."""
        width, height = HD
        pixmap = self._new_pixmap(*HD)
        self._put(pixmap, (0, 0), np.full((height, width, 4), 255, np.uint8))
        for line in range(height // LINE):
            self._write(pixmap, line * LINE, line)
        left = self._fetch(pixmap, width // 2, height)
        noise = np.random.default_rng(0).integers(0, _NOISE, (height, width, 4), np.uint8)
        return {
            "text": np.hstack([left, left]),
            "desktop": self._fetch(self._root, *HD),
            "photo": gradients(*HD, 1) + noise,
        }

    def show(self, picture: NDArray[np.uint8]) -> None:
        self._put(self._root, (0, 0), picture)
        self._core.GetInputFocus().reply()


def record(link: Connection, place: str, asked: Any) -> None:
    """Look at the display, with one connection for each kind of picture: send what images come of
    two, each shown when the one before has come."""
    kept: list[display.Image] = []
    decode = images.decode

    def keep(image: display.Image, *others: Any, **more: Any) -> NDArray[np.uint8]:
        kept.append(image)
        return decode(image, *others, **more)

    async def look() -> None:
        async with spiceshm.connect(place, compression=asked) as remote:
            await remote.latest()
            for _ in range(2):
                kept.clear()
                link.send("next")
                with trio.fail_after(_SOON_S):
                    while sum(_area(image) for image in kept) < _PIXELS:
                        await remote.wait_change()
                link.send(kept)

    images.decode = keep
    for _ in SHOWN:
        trio.run(look)


@functools.cache
def recorded(asked: str, far: bool) -> dict[str, list[display.Image]]:
    """What Xspice sent of each kind of picture: two, one after the other."""
    found = {}
    with (
        workers() as start,
        xspice(far=far) as (x_display, _, place),
        painter(x_display, _Screen) as screen,
    ):
        reader = start(record, f"tcp:{place}", asked)
        for shown, picture in screen.pictures().items():
            found[shown] = []
            for nth in range(2):
                reader.receive(_SOON_S)
                screen.show(np.roll(picture, -nth * _SCROLLED, axis=0))
                found[shown] += reader.receive(_SOON_S)
    return found


def _area(image: display.Image) -> int:
    """Pixels."""
    if isinstance(image.content, display.Bitmap):
        return image.content.x * image.content.y
    return image.width * image.height


def _made(codec: Codec) -> dict[str, list[display.Image]]:
    """What there is to decode. What would not become smaller a server sends raw, so that not every
    kind of picture need be there."""
    format = _format(codec)
    found = recorded(_ASKED[format], format in _FAR)
    if format == "lz-plt":
        return {shown: [_with_palette(one) for one in some] for shown, some in found.items()}
    if format == "jpeg":
        return {shown: [_without_alpha(one) for one in some] for shown, some in found.items()}
    kept = {
        shown: some
        for shown, some in found.items()
        if all(_NAMES.get(ImageType(image.type)) == format for image in some)
    }
    if not kept:
        raise Failed("Xspice sent nothing in this format")
    return kept


_NAMES = {
    ImageType.BITMAP: "raw",
    ImageType.LZ4: "lz4",
    ImageType.LZ_RGB: "lz",
    ImageType.GLZ_RGB: "glz",
    ImageType.ZLIB_GLZ_RGB: "zlib-glz",
    ImageType.JPEG_ALPHA: "jpeg-alpha",
    ImageType.QUIC: "quic",
}


def _without_alpha(image: display.Image) -> display.Image:
    """Of a JPEG_ALPHA the JPEG."""
    both = image.content
    if not isinstance(both, display.JpegAlpha):
        raise Failed(f"Xspice sent an image of the type {image.type}")
    content = display.ImageData(both.data[: both.jpeg_size])
    return replace(image, type=ImageType.JPEG, content=content)


def _with_palette(image: display.Image) -> display.Image:
    """A picture in 256 colours, as LZ_PLT; only runs of one colour are packed."""
    pixels = images.decode(image, None)
    indices = pixels[..., 2] >> 5 << 5 | pixels[..., 1] >> 5 << 2 | pixels[..., 0] >> 6
    height, width = indices.shape
    head = struct.pack(">7I", lz.MAGIC, lz.VERSION, lz.Type.BYTE, width, height, width, 1)
    palette = display.Palette(1, tuple(range(0, 1 << 24, 1 << 16)))
    content = display.LzPalette(0, head + runs(indices.tobytes()), palette)
    return display.Image(1, ImageType.LZ_PLT, 0, width, height, content)


def runs(data: bytes) -> bytes:
    """Bytes in LZ: each run as its first byte and a match of that."""
    values = np.frombuffer(data, np.uint8)
    starts = np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1))
    lengths = np.diff(starts, append=len(values))
    out, literals = bytearray(), bytearray()

    def flush() -> None:
        for at in range(0, len(literals), 32):
            some = literals[at : at + 32]
            out.append(len(some) - 1)
            out.extend(some)
        literals.clear()

    for value, length in zip(values[starts].tolist(), lengths.tolist(), strict=True):
        if length < _RUN:
            literals.extend([value] * length)
            continue
        literals.append(value)
        flush()
        rest = length - 1 - 2  # a match of bytes is three at least, and says two less
        out.append(min(rest, 7) << 5)
        if rest >= 7:
            out.extend(b"\xff" * ((rest - 7) // 255))
            out.append((rest - 7) % 255)
        out.append(0)
    flush()
    return bytes(out)


# Who decodes


def decode(
    link: Connection, codec: Codec, sent: dict[str, list[display.Image]], seconds: float
) -> None:
    """Decode the images of each kind for so long, and copy as many pixels; send the measures."""
    if codec.endswith("python"):
        lz.read, glz.read = tokens.lz, tokens.glz
    elif jit.AVAILABLE:
        jit.prepare()
        if codec == "quic":
            quic.prepare()
    # First: what it needed is freed then, and as in a client that has had a picture as large as the
    # screen the C library no longer gives memory back to the system with every image.
    measures: Measures = {"copy_us": _us(_copying(), _COPIED_S)}
    for shown, some in sent.items():
        steps = _on_canvas(some) if codec.startswith("canvas") else _alone(some)
        measures[f"{shown}_us"] = _us(steps, seconds / len(sent))
        measures[f"{shown}_bytes"] = _bytes(some)
    link.send(measures)


Steps: TypeAlias = "Iterator[tuple[Callable[[], object], int]]"
"""What is to be done one after the other, without end, and how many pixels each makes."""


def _alone(some: list[display.Image]) -> Steps:
    while True:
        earlier = glz.Dictionary(1 << 22)
        for image in some:
            palette = getattr(image.content, "palette", None)
            colours = palette.ents if palette is not None else None
            yield functools.partial(images.decode, image, colours, earlier), _area(image)


def _on_canvas(some: list[display.Image]) -> Steps:
    """From the bytes of the messages, as they are read from a socket, to pixels of a surface."""
    machine, canvas = ClientDisplay(), Canvas()
    machine.send(display.DisplayInit(1, 0, 1, 0))
    create = display.SurfaceCreate(0, *HD, 32, display.SURFACE_FLAG_PRIMARY)

    def take(data: memoryview) -> None:
        for at in range(0, len(data), _READ):
            for message in machine.receive_data(data[at : at + _READ]):
                canvas.receive(message)

    take(_with_header(create))
    sent = [(_with_header(_drawn(image)), _area(image)) for image in some]
    while True:
        for data, area in sent:
            yield functools.partial(take, data), area


def _drawn(image: display.Image) -> display.DrawCopy:
    content = image.content
    raw = isinstance(content, display.Bitmap)
    width, height = (content.x, content.y) if raw else (image.width, image.height)
    box = Rect(0, 0, height, width)
    return display.DrawCopy(0, box, None, box, display.ROP_PUT, 0, display.NO_MASK, image)


def _with_header(message: Message) -> memoryview:
    body = message.packed
    return memoryview(hot.MINI.pack(message.number, len(body)) + body)


def _copying() -> Steps:
    source = np.random.default_rng(0).integers(0, 256, (HD[1], HD[0], 4), np.uint8)
    copy = source.copy()
    while True:
        yield functools.partial(np.copyto, copy, source), _PIXELS


def _us(steps: Steps, seconds: float) -> float:
    """Microseconds for a screen's pixels: what all steps took that were begun in the time."""
    next(steps)[0]()  # not counted: with it things are opened and made
    taken, pixels, end = 0, 0, time.monotonic() + seconds
    while not pixels or time.monotonic() < end:
        do, area = next(steps)
        begun = time.perf_counter_ns()
        do()
        taken += time.perf_counter_ns() - begun
        pixels += area
    return taken / 1000 * _PIXELS / pixels


def _bytes(some: list[display.Image]) -> float:
    """Of the images of a screen."""
    contents: list[Any] = [image.content for image in some]
    return sum(len(one.data) for one in contents) * _PIXELS / sum(_area(one) for one in some)


def measure(codec: Codec, seconds: float) -> Measures:
    """Decode what Xspice sends; each kind of picture for a third of the time. Raises Failed."""
    sent = _made(codec)
    with workers() as start:
        measures: Measures = start(decode, codec, sent, seconds).receive(seconds)
    return measures
