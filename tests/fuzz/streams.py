"""What real servers said on the display channel, changed as somebody would who means harm.

Strategy: some messages of a recorded session, on the surfaces that there were, among them drawings
that no server here sends, made of recorded images; then bits are turned, fields set to extremes,
messages cut, doubled, dropped or put elsewhere, and images exchanged. All by a seed.
"""

from __future__ import annotations

import dataclasses
import struct
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

import numpy as np

from spiceshm.errors import RemoteProtocolError
from spiceshm.wire import Message, Sender, display
from spiceshm.wire.types import Point, Rect
from tests import pair
from tools.recording import load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

SESSIONS = Path(__file__).resolve().parent.parent / "recordings" / "sessions"
SURFACE_CREATE, SURFACE_DESTROY, STREAM_CREATE = 314, 315, 122
NUMBERS = sorted(
    {kind.number for kind in get_args(display.Drawing)} | set(range(101, 127)) | {314, 316}
)
EXTREMES = [0, 1, 2, 64, 255, 0x7FFF, 0xFFFF, 1 << 14, 1 << 16, 1 << 24, 0x7FFFFFFF, 0x80000000,
            0xFFFFFFFF]  # fmt: skip
SIDES = [1, 2, 15, 720, 2048, 5000, 16384]
FORMATS = [32, 32, 32, 96, 16, 80, 8, 1]


class Said(NamedTuple):
    """A message: its number and its body."""

    number: int
    body: bytes

    @property
    def framed(self) -> bytes:
        return struct.pack("<HI", self.number, len(self.body)) + self.body


@cache
def sessions() -> list[list[Said]]:
    """What each recorded server said on the display channel."""
    return [
        [Said(one.number, one.body) for one in connection.messages(Sender.SERVER)]
        for path in sorted(SESSIONS.glob("*.spice.gz"))
        for connection in load(path).connections
        if connection.channel == "display"
    ]


@cache
def copies() -> list[display.DrawCopy]:
    """A few of each kind of image of each session, small ones."""
    found: dict[tuple[int, int], list[display.DrawCopy]] = {}
    for which, session in enumerate(sessions()):
        for said in session:
            if said.number == display.DrawCopy.number and len(said.body) < 30_000:
                copy = display.DrawCopy.parse(said.body)
                some = found.setdefault((which, copy.image.type), [])
                if len(some) < 6:
                    some.append(copy)
    return [copy for some in found.values() for copy in some]


def said(message: Message) -> Said:
    return Said(message.number, message.packed)


def seeds() -> Iterator[bytes]:
    """The first two of each kind of message in each session, on the surface that it had."""
    for session in sessions():
        kinds: dict[int, int] = {}
        surface = b""
        for one in session:
            kinds[one.number] = kinds.get(one.number, 0) + 1
            if one.number in (SURFACE_CREATE, STREAM_CREATE):
                surface = (surface if one.number == STREAM_CREATE else b"") + one.framed
            elif kinds[one.number] <= 2 and len(one.body) < 4000:
                yield surface + one.framed


def stream(random: Random) -> list[bytes]:
    """Framed messages, one by one."""
    some = _window(random)
    for _ in range(random.randrange(4)):
        some.insert(random.randint(1, len(some)), said(drawing(random)))
    for _ in range(random.choice([0, 1, 1, 2, 3, 5])):
        _change(random, some)
    framed = [one.framed for one in some]
    if random.random() < 0.1:
        at = random.randrange(len(framed))
        size = random.choice(EXTREMES)
        framed[at] = framed[at][:2] + struct.pack("<I", size) + framed[at][6:]
    return framed


def _window(random: Random) -> list[Said]:
    """Some messages in a row, and before them the surfaces that there were."""
    session = random.choice(sessions())
    start = random.randrange(1, len(session))
    surfaces: dict[bytes, Said] = {}
    for one in session[:start]:
        if one.number in (SURFACE_CREATE, STREAM_CREATE):
            surfaces[one.body[: 4 if one.number == SURFACE_CREATE else 8]] = one
        elif one.number == SURFACE_DESTROY:
            surfaces.clear()
    if not surfaces:
        surfaces[b""] = next(one for one in session if one.number == SURFACE_CREATE)
    another = display.SurfaceCreate(
        7, random.choice(SIDES), random.choice(SIDES[:-2]), random.choice(FORMATS), 0
    )
    window = session[start : start + random.randint(1, 12)]
    return [*surfaces.values(), said(another), *(one for one in window if len(one.body) < 1 << 18)]


# Drawings that servers might send


def drawing(random: Random) -> Message:
    """Any sort of drawing, of recorded images and what else there is to draw with."""
    kind = random.choice(get_args(display.Drawing))
    box = _rect(random, empty=random.random() < 0.02)
    base = {"surface_id": random.choice([0, 0, 0, 7]), "box": box, "clip": _clip(random)}
    image = _image(random)
    size = image.width, image.height
    if isinstance(image.content, display.SurfaceImage):
        size = 64, 64
    area = Rect(0, 0, size[1], size[0]) if random.random() < 0.9 else _rect(random)
    fields = {
        "src_pos": _point(random),
        "image": image,
        "src_area": area,
        "brush": _brush(random),
        "rop_descriptor": random.choice([8, 8, 0, 16, 32, 64, 512, 1024, 0xFFFF]),
        "rop3": random.randrange(256),
        "scale_mode": random.randrange(3),
        "mask": _mask(random),
        "src_color": 0,
        "true_color": random.choice([0, 0xFFFFFF]),
        "alpha_flags": random.randrange(4),
        "alpha": random.choice([0, 1, 128, 255]),
        "rest": bytes(8),
    }
    own = {field.name for field in dataclasses.fields(kind)} - set(base)
    message: Message = kind(**base, **{name: fields[name] for name in own})
    return message


def _rect(random: Random, *, empty: bool = False) -> Rect:
    top, left = (random.choice([0, 0, 0, -5, 3, 300, -(1 << 31)]) for _ in range(2))
    if empty:
        return Rect(top, left, top, left)
    size = [random.choice([1, 2, 16, 64, 400, 720, 16384, (1 << 31) - 1]) for _ in range(2)]
    bottom, right = (
        min(start + side, (1 << 31) - 1) for start, side in zip((top, left), size, strict=True)
    )
    return Rect(top, left, bottom, right)


def _point(random: Random) -> Point:
    x, y = (random.choice([0, 0, 1, -1, 7, 300, -(1 << 31), (1 << 31) - 1]) for _ in range(2))
    return Point(x, y)


def _clip(random: Random) -> np.ndarray | None:
    """None, a few rectangles, or as many as fit into a grid, apart or over each other."""
    how = random.choice(["none", "none", "few", "grid", "nonsense"])
    if how == "none":
        return None
    if how == "few":
        return np.array([(y, 3, y + 5, 300) for y in range(0, 60, 7)], "<i4")
    if how == "nonsense":
        values = [random.choice([*EXTREMES[:8], -1, -(1 << 31)]) for _ in range(4 * 9)]
        return np.array(values, "<i4").reshape(-1, 4)
    step, many = random.choice([(1, 9), (2, 40), (3, 150)])
    return np.array(
        [
            (y, x, y + 2, x + 2)
            for y in range(0, step * many, step)
            for x in range(0, step * many, step)
        ],
        "<i4",
    )


def _image(random: Random) -> display.Image:
    how = random.random()
    if how < 0.15:
        surface = display.SurfaceImage(random.choice([0, 7, 7, 9]))
        return display.Image(0, 104, 0, 0, 0, surface)
    image = random.choice(copies()).image
    if how < 0.3:
        image = dataclasses.replace(image, id=random.randrange(4), flags=random.choice([1, 4, 5]))
    elif how < 0.4:
        return dataclasses.replace(image, id=random.randrange(4), type=103, content=None)
    return image


def _brush(random: Random) -> display.Brush:
    how = random.randrange(3)
    pattern = (
        display.Pattern(_image(random), _point(random)) if how == display.BRUSH_PATTERN else None
    )
    colour = random.choice(EXTREMES) if how == display.BRUSH_SOLID else None
    return display.Brush(how, colour, pattern)


def _mask(random: Random) -> display.QMask:
    if random.random() < 0.6:
        return display.NO_MASK
    x, y = random.choice([(8, 8), (100, 30), (2000, 500)])
    bits = display.Bitmap(random.choice([1, 2, 8]), 4, x, y, x * 4, random.randbytes(x * 4 * y))
    image = display.Image(random.randrange(4), 0, random.choice([0, 1]), x, y, bits)
    return display.QMask(random.randrange(2), _point(random), image)


# Changes


def _change(random: Random, some: list[Said]) -> None:
    at = random.randrange(len(some))
    number, body = some[at]
    change = random.choice(_CHANGES)
    made = change(random, number, body)
    if made is not None:
        some[at] = made
        return
    how = random.randrange(4)
    if how == 0 and len(some) > 1:
        del some[at]
    elif how == 1:
        some[at:at] = [some[at]] * random.choice([1, 1, 5])
    else:
        to = random.randrange(len(some))
        some[at], some[to] = some[to], some[at]


def _turn_bits(random: Random, number: int, body: bytes) -> Said | None:
    changed = bytearray(body)
    for _ in range(random.choice([1, 1, 3, 20])):
        if changed:
            near = random.random() < 0.7  # what matters most is at the head
            at = random.randrange(min(len(changed), 130) if near else len(changed))
            changed[at] ^= 1 << random.randrange(8)
    return Said(number, bytes(changed))


def _set_field(random: Random, number: int, body: bytes) -> Said | None:
    size = random.choice([1, 2, 4, 4, 4, 8])
    if len(body) < size:
        return None
    near = random.random() < 0.8
    at = random.randrange(min(len(body) - size + 1, 130 if near else len(body)))
    value = random.choice(EXTREMES) & (1 << 8 * size) - 1
    order = "little" if random.random() < 0.8 else "big"
    return Said(number, body[:at] + value.to_bytes(size, order) + body[at + size :])


def _cut(random: Random, number: int, body: bytes) -> Said | None:
    start, end = sorted(random.randrange(len(body) + 1) for _ in range(2))
    kept = body[:start] if random.random() < 0.5 else body[:start] + body[end:]
    return Said(number, kept)


def _grow(random: Random, number: int, body: bytes) -> Said | None:
    at = random.randrange(len(body) + 1)
    more = random.choice(
        [b"\0", random.randbytes(9), body[:200], b"\xff" * 100_000, bytes(300_000)]
    )
    return Said(number, body[:at] + more + body[at:])


def _renumber(random: Random, number: int, body: bytes) -> Said | None:
    return Said(random.choice(NUMBERS), body)


def _exchange_image(random: Random, number: int, body: bytes) -> Said | None:
    """What another message draws, with this one's descriptor or with its own."""
    if number != display.DrawCopy.number:
        return None
    try:
        copy = display.DrawCopy.parse(body)
    except RemoteProtocolError:
        return None
    other = random.choice(copies()).image
    if random.random() < 0.5:
        size = copy.image.width, copy.image.height
        other = dataclasses.replace(other, width=size[0], height=size[1])
    return said(dataclasses.replace(copy, image=other))


def _resize(random: Random, number: int, body: bytes) -> Said | None:
    if number != SURFACE_CREATE or len(body) != 20:
        return None
    values = random.choice(SIDES), random.choice(SIDES[:-2]), random.choice(FORMATS)
    return Said(number, body[:4] + struct.pack("<3I", *values) + body[16:])


def _example(random: Random, number: int, body: bytes) -> Said | None:
    kinds = [
        kind
        for kind, messages in _examples().items()
        if kind.channel in ("display", "base") and kind.sender is Sender.SERVER and messages
    ]
    return said(random.choice(_examples()[random.choice(kinds)]))


@cache
def _examples() -> dict[type[Message], list[Message]]:
    return pair.examples()


def _other_order(random: Random, number: int, body: bytes) -> Said | None:
    return None


_CHANGES = [
    _turn_bits,
    _turn_bits,
    _set_field,
    _set_field,
    _set_field,
    _cut,
    _grow,
    _renumber,
    _exchange_image,
    _exchange_image,
    _resize,
    _example,
    _other_order,
    _other_order,
]
