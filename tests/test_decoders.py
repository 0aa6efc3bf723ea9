"""Images of stock servers are read as they were meant, and nonsense is an error.

What is read was recorded (tests/recordings), written by our encoders, or put together here, token
by token, as the formats allow it and no server does. Bodies from a server that lies give a picture
of the size that was asked for or CannotDecode, within a second and 64 MiB.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import lzma
import random
import struct
import time
import tracemalloc
import zlib
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import hypothesis.strategies as st
import lz4.block
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

from spiceshm import codecs
from spiceshm.codecs import bitmap, glz, jit, jpeg, lz, quic, tokens
from spiceshm.errors import CannotDecode
from tests.test_codecs import noise, pictures, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RECORDINGS = sorted((Path(__file__).parent / "recordings").glob("*.xz"))
SECONDS = 1.0
BYTES = 64 << 20
LOOPS = {"python": tokens, "compiled": jit}

some = partial(
    settings,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=LOOPS if jit.AVAILABLE else ["python"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """LZ, GLZ and QUIC are read by the one or the other."""
    if request.param == "compiled":
        jit.prepare()
    else:  # QUIC is read by what is compiled, only more slowly
        monkeypatch.setattr(jit, "compiled", lambda loop: loop)
        monkeypatch.setattr(jit, "AVAILABLE", True)
    monkeypatch.setattr(lz, "read", LOOPS[request.param].lz)
    monkeypatch.setattr(glz, "read", LOOPS[request.param].glz)
    return str(request.param)


# What servers sent


class Sent(NamedTuple):
    """An image as its message has it, and where it goes."""

    type: int
    width: int
    height: int
    content: bytes
    box: tuple[int, int, int, int]


class Recording(NamedTuple):
    picture: np.ndarray
    messages: tuple[tuple[int, bytes], ...]


@cache
def recording(path: Path) -> Recording:
    raw = lzma.decompress(path.read_bytes())
    width, height = struct.unpack_from("<II", raw)
    at = 8 + width * height * 3
    picture = np.frombuffer(raw[8:at], np.uint8).reshape(height, width, 3)
    messages = []
    while at < len(raw):
        number, size = struct.unpack_from("<HI", raw, at)
        messages.append((number, raw[at + 6 : at + 6 + size]))
        at += 6 + size
    return Recording(picture, tuple(messages))


def sent(body: bytes) -> Sent:
    """The image of a DRAW_COPY without a clip."""
    assert body[20] == 0
    box = struct.unpack_from("<4i", body, 4)
    (at,) = struct.unpack_from("<I", body, 21)
    assert struct.unpack_from("<4i", body, 25) == (0, 0, box[2] - box[0], box[3] - box[1])
    return Sent(body[at + 8], *struct.unpack_from("<II", body, at + 10), body[at + 18 :], box)


def all_sent(path: Path) -> list[Sent]:
    return [sent(body) for number, body in recording(path).messages if number == 304]


BITMAP, QUIC, LZ_RGB, GLZ_RGB = 0, 1, 101, 102
JPEG, ZLIB_GLZ, JPEG_ALPHA, LZ4 = 105, 107, 108, 109
HEAD = {
    BITMAP: 18,
    ZLIB_GLZ: 8,
    JPEG_ALPHA: 9,
    **dict.fromkeys((QUIC, LZ_RGB, GLZ_RGB, JPEG, LZ4), 4),
}
"""Bytes of the content before those that are decoded: what the message says of them."""

LOSSY = (JPEG, JPEG_ALPHA)


def decoded(image: Sent, dictionary: glz.Dictionary) -> np.ndarray:
    size = image.width, image.height
    head, body = image.content[: HEAD[image.type]], image.content[HEAD[image.type] :]
    match image.type:
        case 0:
            kind, flags, _, _, stride, _ = struct.unpack("<BBIIII", head)
            return bitmap.decode(body, *size, stride=stride, format=kind, top_down=flags & 4 > 0)
        case 1:
            return quic.decode(body, *size)
        case 101:
            return lz.decode(body, *size)
        case 102:
            return glz.decode(body, *size, dictionary)
        case 105:
            return jpeg.decode(body, *size)
        case 107:
            inflated, _ = struct.unpack("<II", head)
            return glz.decode_zlib(body, *size, inflated, dictionary)
        case 108:
            flags, colours, _ = struct.unpack("<BII", head)
            return jpeg.decode_alpha(body, *size, colour_size=colours, top_down=flags & 1 > 0)
        case _:
            return codecs.lz4.decode(body, *size)


WHAT = {
    "qemu-lz": {LZ_RGB: 1},
    "qemu-glz": {LZ_RGB: 1, GLZ_RGB: 81},
    "qemu-lz4": {LZ4: 1},
    "qemu-jpeg": {JPEG: 20},
    "qemu-zlib-glz": {LZ_RGB: 1, GLZ_RGB: 1, ZLIB_GLZ: 31},
    "qemu-quic": {QUIC: 1},
    "xspice-quic": {QUIC: 9},
    "xspice-lz": {LZ_RGB: 9},
    "xspice-glz": {LZ_RGB: 1, GLZ_RGB: 8},
    "xspice-lz4": {LZ4: 5, BITMAP: 4},
    "xspice-jpeg": {LZ_RGB: 7, JPEG_ALPHA: 3},
    "xspice-zlib-glz": {LZ_RGB: 1, GLZ_RGB: 3, ZLIB_GLZ: 5},
}


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_what_a_server_sent_is_the_picture_that_it_had(path: Path, loops: str) -> None:
    dictionary = glz.Dictionary(1 << 22)
    types: Counter[int] = Counter()
    for number, body in recording(path).messages:
        if number == 314:  # SURFACE_CREATE
            _, width, height = struct.unpack_from("<III", body)
            surface, lossy = np.zeros((height, width, 4), np.uint8), np.zeros((height, width), bool)
        elif number == 302:  # DRAW_FILL
            top, left, bottom, right = struct.unpack_from("<4i", body, 4)
            surface[top:bottom, left:right] = np.frombuffer(body[22:26], np.uint8)
        elif number == 304:  # DRAW_COPY
            image = sent(body)
            top, left, bottom, right = image.box
            surface[top:bottom, left:right] = decoded(image, dictionary)
            lossy[top:bottom, left:right] = image.type in LOSSY
            types[image.type] += 1
    assert types == WHAT[path.stem]
    off = surface[..., :3].astype(int) - recording(path).picture
    assert not off[~lossy].any()
    if lossy.any():
        assert 10 * np.log10(255**2 / np.mean(off[lossy] ** 2)) > 35  # dB


def small_ones() -> Iterator[tuple[str, Sent, glz.Dictionary]]:
    """The smallest image of every type and server, and what came before it."""
    for path in RECORDINGS:
        images = all_sent(path)
        for kind in {image.type for image in images[1:]}:
            which = min(
                (nth for nth, image in enumerate(images) if image.type == kind and nth > 1),
                key=lambda nth: len(images[nth].content),
                default=0,
            )
            dictionary = glz.Dictionary(1 << 22)
            for image in images[:which]:
                decoded(image, dictionary)
            if len(images[which].content) < 2500:
                yield f"{path.stem}-{kind}", images[which], dictionary


def test_an_image_cut_off_anywhere_is_an_error_or_the_same(loops: str) -> None:
    tried = set()
    for name, image, dictionary in small_ones():
        whole = decoded(image, dictionary)
        for size in range(HEAD[image.type], len(image.content)):
            try:
                again = decoded(image._replace(content=image.content[:size]), dictionary)
            except CannotDecode:
                continue
            # What is behind the last line of a bitmap, of a JPEG its end marker, of QUIC zeroes.
            assert image.type in (BITMAP, QUIC, *LOSSY), name
            assert np.array_equal(again, whole), name
        tried.add(image.type)
    assert tried == {BITMAP, QUIC, LZ_RGB, GLZ_RGB, JPEG, ZLIB_GLZ, JPEG_ALPHA, LZ4}


# What our encoders write


@pytest.mark.parametrize("name", ["lz", "lz4"])
@given(picture=pictures())
@some(max_examples=60)
def test_what_we_write_is_read_back(name: str, picture: np.ndarray, loops: str) -> None:
    height, width = picture.shape
    codec = getattr(codecs, name)
    got = codec.decode(codec.encode(picture), width, height)
    assert np.array_equal(got[..., :3], bitmap.as_bytes(picture)[..., :3])


def test_a_screen_is_read_back(loops: str) -> None:
    for picture in (text(300, 700), noise(300, 700), np.full((300, 700), 0x123456, np.uint32)):
        got = lz.decode(lz.encode(picture), 700, 300)
        assert np.array_equal(got[..., :3], bitmap.as_bytes(picture)[..., :3])


# Bitmaps, pixel by pixel


class Line(NamedTuple):
    """The bytes of a line and how to tell its pixels."""

    raw: bytes
    palette: list[int]

    def pixel(self, kind: int, x: int) -> tuple[int, int, int, int | None]:
        """B, G, R and A, as whoever draws them would say; None is anything."""
        raw = self.raw
        if kind <= 5:
            bits = {1: 1, 2: 1, 3: 4, 4: 4, 5: 8}[kind]
            byte, nth = divmod(x * bits, 8)
            shift = nth if kind in (1, 3) else 8 - bits - nth
            colour = self.palette[raw[byte] >> shift & (1 << bits) - 1]
            return colour & 255, colour >> 8 & 255, colour >> 16 & 255, None
        if kind == 6:
            (word,) = struct.unpack_from("<H", raw, 2 * x)
            blue, green, red = (round((word >> 5 * nth & 31) * 255 / 31) for nth in range(3))
            return blue, green, red, None
        if kind == 7:
            return *raw[3 * x : 3 * x + 3], None
        if kind == 10:
            return 0, 0, 0, raw[x]
        blue, green, red, alpha = raw[4 * x : 4 * x + 4]
        return blue, green, red, alpha if kind == 9 else None


def assert_pixels(got: np.ndarray, kind: int, lines: list[bytes], palette: list[int]) -> None:
    height, width, _ = got.shape
    for y, x in itertools.product(range(height), range(width)):
        *colours, alpha = Line(lines[y], palette).pixel(kind, x)
        for channel, (is_, should) in enumerate(
            zip(got[y, x].tolist(), [*colours, alpha], strict=True)
        ):
            # The five bits of x555 are made eight by repeating the upper ones, not by rounding.
            assert should is None or abs(is_ - should) <= (kind == 6), (y, x, channel)


BITS = {1: 1, 2: 1, 3: 4, 4: 4, 5: 8, 6: 16, 7: 24, 8: 32, 9: 32, 10: 8}


@pytest.mark.parametrize("kind", bitmap.Format)
@given(st.integers(1, 19), st.integers(1, 5), st.integers(0, 9), st.booleans(), st.integers(0, 99))
@some(max_examples=25)
def test_bitmaps_of_every_format(
    kind: int, width: int, height: int, slack: int, top_down: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 1 << 24, min(256, 1 << BITS[kind])).tolist()
    stride = (width * BITS[kind] + 7) // 8 + slack
    data = rng.bytes(stride * height)
    lines = [data[y * stride : (y + 1) * stride] for y in range(height)]
    got = bitmap.decode(
        data,
        width,
        height,
        stride=stride,
        format=kind,
        top_down=top_down,
        palette=[colour | 0xAB000000 for colour in palette] if kind <= 5 else None,
    )
    assert_pixels(got, kind, lines if top_down else lines[::-1], palette)
    if kind <= 2:
        mask = bitmap.decode_mask(
            data, width, height, stride=stride, format=kind, top_down=top_down
        )
        white = bitmap.decode(
            data,
            width,
            height,
            stride=stride,
            format=kind,
            top_down=top_down,
            palette=[0, 1],
        )
        assert mask.dtype == bool
        assert np.array_equal(mask, white[..., 0] == 1)


def test_31_of_31_is_white() -> None:
    got = bitmap.decode(b"\xff\xff\0\x80", 2, 1, stride=4, format=6, top_down=True)
    assert got[..., :3].tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"format": 0}, "unknown bitmap format 0"),
        ({"format": 11}, "unknown bitmap format 11"),
        ({"width": 0}, "a picture of 0x3 pixels"),
        ({"height": 0, "format": 5, "palette": [1]}, "a picture of 4x0 pixels"),
        ({"stride": 15}, "a stride of 15 bytes for lines of 16"),
        ({"height": 4}, "48 bytes of pixels where there must be 64"),
        ({"format": 5}, "a palette is missing"),
        ({"format": 5, "palette": [1, 2]}, "colour 7 of a palette of 2"),
        ({"format": 1, "palette": [0]}, "colour 1 of a palette of 1"),
        ({"format": 1, "palette": []}, "colour 1 of a palette of 0"),
    ],
)
def test_bitmaps_that_lie(options: dict[str, object], why: str) -> None:
    given = {"width": 4, "height": 3, "stride": 16, "format": 8, "top_down": True} | options
    with pytest.raises(CannotDecode, match=f"^{why}$"):
        bitmap.decode(b"\7" * 48, **given)  # type: ignore[arg-type]


# LZ and GLZ, token by token


def lz_place(back: int) -> tuple[int, bytes]:
    """The lower five bits of a control byte, and what goes on at the end of the token."""
    back -= 1
    if back < 8191:
        return back >> 8, bytes([back & 255])
    return 31, b"\xff" + struct.pack(">H", back - 8191)


def glz_place(place: int, image: int, rng: random.Random) -> tuple[int, bytes]:
    """In any of the ways that reach so far."""
    if place < 1 << 12 and rng.random() < 0.8:
        size = least_bytes(image >> 6, rng)
        x = size << 6 | image & 63
        return place & 15, bytes([place >> 4, x]) + (image >> 6).to_bytes(size, "little")
    size = least_bytes(image, rng)
    last = bytes([place >> 17]) if place >> 17 or rng.random() < 0.2 else b""
    x = size << 6 | len(last) << 5 | place >> 12 & 31
    more = bytes([place >> 4 & 255, x]) + image.to_bytes(size, "little") + last
    return 16 | place & 15, more


def least_bytes(number: int, rng: random.Random) -> int:
    return min(3, (number.bit_length() + 7) // 8 + rng.choice([0, 0, 0, 1]))


Units: TypeAlias = "list[bytes]"


def packed(
    rng: random.Random, count: int, unit: int, earlier: dict[int, Units] | None = None
) -> tuple[bytes, Units]:
    """Random tokens that make ``count`` units, and those: of LZ, or of GLZ with what earlier images
    have by how far back they are."""
    units: Units = []
    body = bytearray()
    bias = 3 - unit
    while left := count - len(units):
        image = rng.choice([0, *(earlier or {})])
        source = earlier[image] if earlier and image else units
        length = min(left, rng.choice([3, 4, 8, 9, 20, 263, 264, 265, 600]))
        if not source or length <= bias or rng.random() < 0.4:
            length = min(left, rng.randint(1, 32))
            literals = [rng.choice([bytes(unit), rng.randbytes(unit)]) for _ in range(length)]
            body += bytes([length - 1]) + b"".join(literals)
            units += literals
            continue
        if image:
            length = min(length, len(source))
            if length <= bias:
                continue
            start = rng.choice([0, len(source) - length])
            low, last = glz_place(start, image, rng)
            units += source[start : start + length]
        else:
            back = min(len(units), rng.choice([1, 2, 5, 8191, 8192, 8193, len(units)]))
            back = min(back, 8192 + 0xFFFF)
            low, last = lz_place(back) if earlier is None else glz_place(back - 1, 0, rng)
            for _ in range(length):
                units.append(units[-back])
        code = length - bias
        more = b"" if code < 7 else b"\xff" * ((code - 7) // 255) + bytes([(code - 7) % 255])
        body += bytes([min(code, 7) << 5 | low]) + more + last
    return bytes(body), units


def lz_header(kind: int, width: int, height: int, top_down: bool) -> bytes:
    bits = {**BITS, 8: 32, 10: 32, 11: 8}[kind]
    stride = (width * bits + 7) // 8
    return struct.pack(">7I", 0x20205A4C, 0x10001, kind, width, height, stride, top_down)


def lines_of(kind: int, width: int, height: int, units: Units, alpha: Units) -> list[bytes]:
    """Bytes as a bitmap has them: what a server packed."""
    if kind == 6:  # the one that has its upper byte first
        units = [unit[::-1] for unit in units]
    if kind == 8:
        units = [unit + b"?" for unit in units]
    if kind == 9:
        units = [unit + last for unit, last in zip(units, alpha, strict=True)]
    size = len(units) // height
    return [b"".join(units[y * size : (y + 1) * size]) for y in range(height)]


SIZES = st.one_of(
    st.tuples(st.integers(1, 30), st.integers(1, 20)), st.just((640, 40)), st.just((1, 12000))
)


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11])
@given(size=SIZES, top_down=st.booleans(), seed=st.integers(0, 1 << 30))
@some(max_examples=25)
def test_lz_of_every_type(
    kind: int, size: tuple[int, int], top_down: bool, seed: int, loops: str
) -> None:
    rng = random.Random(seed)
    width, height = size
    if kind <= 5:
        body, units = packed(rng, (width * BITS[kind] + 7) // 8 * height, 1)
    else:
        body, units = packed(rng, width * height, {6: 2, 11: 1}.get(kind, 3))
    more, alpha = packed(rng, width * height, 1) if kind == 9 else (b"", [])
    palette = [rng.randrange(1 << 24) for _ in range(1 << BITS[kind])] if kind <= 5 else None
    got = lz.decode(lz_header(kind, *size, top_down) + body + more, *size, palette)
    assert got.shape == (height, width, 4)
    lines = lines_of(kind, width, height, units, alpha)
    want = bitmap.decode(
        b"".join(lines),
        *size,
        stride=len(lines[0]),
        format=10 if kind == 11 else kind,
        top_down=top_down,
        palette=palette,
    )
    channels = 4 if kind in (9, 11) else 3
    assert np.array_equal(got[..., :channels], want[..., :channels])


@given(seed=st.integers(0, 1 << 30), kinds=st.lists(st.integers(6, 9), min_size=1, max_size=8))
@some(max_examples=80)
def test_glz_repeats_earlier_images(seed: int, kinds: list[int], loops: str) -> None:
    rng = random.Random(seed)
    dictionary = glz.Dictionary(1 << 20)
    had: dict[int, dict[int, Units]] = {}
    number = rng.choice([0, 5, 1 << 40])
    for kind in kinds:
        unit = 2 if kind == 6 else 3
        width, height = rng.choice([(3, 2), (40, 30), (300, 30), (1, 1)])
        planes: dict[int, Units] = {}
        body = b""
        for size in (unit, *((1,) if kind == 9 else ())):
            earlier = {number - nr: had[nr][size] for nr in had if size in had[nr]}
            more, planes[size] = packed(rng, width * height, size, earlier)
            body += more
        top_down = rng.random() < 0.5
        oldest = rng.choice([0, *had])
        head = glz_header(kind, width, height, top_down, number, min(number - oldest, 1 << 31))
        got = glz.decode(head + body, width, height, dictionary)
        lines = lines_of(kind, width, height, planes[unit], planes.get(1, []))
        want = bitmap.decode(
            b"".join(lines),
            width,
            height,
            stride=len(lines[0]),
            format=kind,
            top_down=top_down,
        )
        channels = 4 if kind == 9 else 3
        assert np.array_equal(got[..., :channels], want[..., :channels])
        got[...] = 77  # what the caller does with it is his own affair
        had = {nr: image for nr, image in had.items() if nr >= oldest} | {number: planes}
        number += rng.choice([1, 1, 1, 2, 63, 64, 300, 17000])


def glz_header(
    kind: int, width: int, height: int, top_down: bool, number: int, back: int = 0
) -> bytes:
    mixed = kind | top_down << 4
    return struct.pack(
        ">IIBIIIQI", 0x20205A4C, 0x10001, mixed, width, height, width * 4, number, back
    )


# What goes from the dictionary


def glz_plain(number: int, back: int, colour: bytes = b"abc", size: int = 100) -> bytes:
    """An image of one colour and one line."""
    return glz_header(8, size, 1, True, number, back) + b"\0" + colour + glz_match(size - 1, 0, 0)


def glz_match(length: int, place: int, image: int) -> bytes:
    low, last = glz_place(place, image, random.Random(1))
    code = bytes([length << 5 | low]) if length < 7 else bytes([7 << 5 | low, length - 7])
    return code + last


def glz_copy(number: int, image: int, size: int = 100, back: int = 1 << 20) -> bytes:
    """All of an earlier one."""
    return glz_header(8, size, 1, True, number, back) + glz_match(size, 0, image)


def test_what_later_images_do_not_repeat_goes(loops: str) -> None:
    dictionary = glz.Dictionary(1 << 20)
    for number in range(5):
        glz.decode(glz_plain(number, number if number < 4 else 2), 100, 1, dictionary)
    assert glz.decode(glz_copy(5, 3), 100, 1, dictionary)[0, 99].tolist()[:3] == list(b"abc")
    with pytest.raises(CannotDecode, match=r"^it repeats image 1, which is not there$"):
        glz.decode(glz_copy(6, 5), 100, 1, dictionary)


def test_a_full_dictionary_drops_the_oldest(loops: str) -> None:
    dictionary = glz.Dictionary(256)
    for number in range(3):
        glz.decode(glz_plain(number, 100), 100, 1, dictionary)
    glz.decode(glz_copy(3, 2), 100, 1, dictionary)
    with pytest.raises(CannotDecode, match="repeats image 0"):
        glz.decode(glz_copy(4, 4), 100, 1, dictionary)
    # One that is too large to keep is read, and leaves nothing.
    assert glz.decode(glz_plain(4, 100, size=257), 257, 1, dictionary).shape == (1, 257, 4)
    with pytest.raises(CannotDecode, match="repeats image 4"):
        glz.decode(glz_copy(5, 1), 100, 1, dictionary)


def test_small_images_fill_it_too(loops: str) -> None:
    dictionary = glz.Dictionary(12800)
    for number in range(101):
        glz.decode(glz_plain(number, 200, size=5), 5, 1, dictionary)
    glz.decode(glz_copy(101, 99, size=5), 5, 1, dictionary)
    with pytest.raises(CannotDecode, match="repeats image 1,"):
        glz.decode(glz_copy(102, 101, size=5), 5, 1, dictionary)


def test_an_image_in_place_of_one_of_the_same_number(loops: str) -> None:
    dictionary = glz.Dictionary(128)
    for colour in (b"abc", b"xyz") * 3:
        glz.decode(glz_plain(7, 0, colour), 100, 1, dictionary)
    assert glz.decode(glz_copy(8, 1), 100, 1, dictionary)[0, 5].tolist()[:3] == list(b"xyz")


def test_an_image_that_is_an_error_leaves_no_trace(loops: str) -> None:
    dictionary = glz.Dictionary(128)
    glz.decode(glz_plain(7, 0), 100, 1, dictionary)
    for bad in (glz_plain(8, 0)[:-1], glz_plain(8, 0) + b"\0", glz_copy(8, 3)):
        with pytest.raises(CannotDecode):
            glz.decode(bad, 100, 1, dictionary)
    assert glz.decode(glz_copy(8, 1), 100, 1, dictionary)[0, 5].tolist()[:3] == list(b"abc")


# Servers that lie


def lz32(width: int, height: int, body: bytes = b"") -> bytes:
    return lz_header(8, width, height, True) + body


def refused(why: str, decode: Callable[..., object], *values: object, **named: object) -> None:
    with pytest.raises(CannotDecode, match=f"^{why}"):
        decode(*values, **named)


def test_lz_that_lies(loops: str) -> None:
    good = lz32(2, 2, b"\3" + bytes(12))
    lz.decode(good, 2, 2)
    refused("its data end before its header", lz.decode, good[:27], 2, 2)
    refused("its data end before its last pixel", lz.decode, good[:-1], 2, 2)
    refused("1 bytes behind its last pixel", lz.decode, good + b"\0", 2, 2)
    refused("its data are no LZ", lz.decode, b"!" + good[1:], 2, 2)
    refused("a picture of 0x2 pixels", lz.decode, lz32(0, 2), 0, 2)
    refused("its data are of 2x2 pixels", lz.decode, good, 4, 1)
    refused("its data are of 2x2 pixels", lz.decode, good, 65535, 32768)
    refused("a picture of 65536x32768 pixels", lz.decode, lz32(1 << 16, 1 << 15), 1 << 16, 1 << 15)
    refused("unknown LZ type 12", lz.decode, good[:11] + b"\x0c" + good[12:], 2, 2)
    refused("it has nothing but alpha", lz.decode, lz_header(10, 2, 2, True) + good[28:], 2, 2)
    refused("it has no alpha where", lz.decode_alpha, good, 2, 2)
    refused("a stride of 9 bytes for lines of 8", lz.decode, good[:23] + b"\x09" + good[24:], 2, 2)
    refused("a palette is missing", lz.decode, lz_header(5, 2, 2, True) + b"\3abcd", 2, 2)
    refused("it repeats what is before", lz.decode, lz32(2, 2, b"\0abc\x60\1"), 2, 2)
    refused("it repeats what is before", lz.decode, lz32(2, 2, b"\x80\0"), 2, 2)
    for many in (b"\4" + bytes(15), b"\0abc\x80\0", b"\0abc\xe0\xff\xff\xff\0\0"):
        refused("its data have more pixels", lz.decode, lz32(2, 2, many), 2, 2)


def test_glz_that_lies(loops: str) -> None:
    dictionary = glz.Dictionary(1000)
    glz.decode(glz_plain(7, 0), 100, 1, dictionary)
    read = partial(glz.decode, dictionary=dictionary)
    good = glz_plain(8, 1)
    refused("its data end before its header", read, good[:32], 100, 1)
    refused("its data end before its last pixel", read, good[:-1], 100, 1)
    refused("1 bytes behind its last pixel", read, good + b"\0", 100, 1)
    refused("its data are no GLZ", read, b"!" + good[1:], 100, 1)
    refused("its data are of 100x1 pixels", read, good, 10, 10)
    for kind in (0, 5, 10, 15):
        refused(f"unknown GLZ type {kind}", read, good[:8] + bytes([kind]) + good[9:], 100, 1)
    head = glz_header(8, 100, 1, True, 8, 1)
    refused("it repeats what is outside", read, head + glz_match(100, 1, 1), 100, 1)
    refused("it repeats what is before", read, head + glz_match(100, 0, 0), 100, 1)
    refused("it repeats image 6, which is not there", read, head + glz_match(100, 0, 2), 100, 1)
    refused("it repeats image -1,", read, head + glz_match(100, 0, 9), 100, 1)
    refused("its data have more pixels", read, head + glz_match(101, 0, 1), 100, 1)
    other = glz_header(6, 100, 1, True, 8, 1) + glz_match(99, 0, 1)
    refused("it repeats image 7, which is of another type", read, other, 100, 1)


def quic_header(kind: int, width: int, height: int) -> bytes:
    return struct.pack("<5I", 0x43495551, 0, kind, width, height)


def test_quic_that_lies(loops: str) -> None:
    head = quic_header(4, 3, 4)
    black = b"\xff\x80\x80\x80" + b"\xff" * 400
    good = head + black[:8] + bytes(4)
    assert not quic.decode(good, 3, 4).any()
    refused("its data end before its header", quic.decode, good[:19], 3, 4)
    refused("its data end before its last pixel", quic.decode, good[:20] + black[:4], 3, 4)
    refused("its data end before its last pixel", quic.decode, head + bytes(4), 3, 4)
    refused("its data are no QUIC", quic.decode, b"!" + good[1:], 3, 4)
    refused("its data are of 3x4 pixels", quic.decode, good, 4, 3)
    for kind in (0, 1, 6):
        refused(f"unknown QUIC type {kind}", quic.decode, quic_header(kind, 3, 4) + good, 3, 4)
    wide = quic_header(4, 200, 2) + black
    refused("a run that goes on behind the end of its line", quic.decode, wide, 200, 2)


def test_quic_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "AVAILABLE", False)
    refused("the package numba is not installed", quic.decode, quic_header(4, 4, 3), 4, 3)


def test_zlib_that_lies() -> None:
    dictionary = glz.Dictionary(1000)
    body = glz_plain(7, 0)
    good = zlib.compress(body)
    read = partial(glz.decode_zlib, dictionary=dictionary)
    read(good, 100, 1, len(body))
    refused("its data are no zlib", read, b"!" + good, 100, 1, len(body))
    for size in (len(body) - 1, len(body) + 1):
        refused(f"its data are not {size} bytes of GLZ", read, good, 100, 1, size)
    refused("its data are not", read, good[:-1], 100, 1, len(body))
    refused("700 bytes of GLZ are too many", read, good, 100, 1, 700)


def lz4_body(*blocks: bytes, kind: int = 8) -> bytes:
    return bytes([1, kind]) + b"".join(struct.pack(">I", len(block)) + block for block in blocks)


def test_lz4_blocks_go_on_with_what_came_before() -> None:
    lines = noise(6, 9000).astype("<u4").tobytes()
    blocks, before = [], b""
    for start in (0, 36000, 72000, 144000):
        block = (lines + lines)[start : start + 36000 * (2 if start == 72000 else 1)]
        blocks.append(lz4.block.compress(block, store_size=False, dict=before))
        before = (before + block)[-65536:]
    got = codecs.lz4.decode(lz4_body(*blocks), 9000, 5)
    assert got.tobytes() == lines[:180000]
    for top_down in (0, 1):
        body = bytes([top_down, 7]) + lz4_body(lz4.block.compress(b"abcdef", store_size=False))[2:]
        read = codecs.lz4.decode(body, 1, 2)[..., :3].tobytes()
        assert read == (b"abcdef" if top_down else b"defabc")


def test_lz4_that_lies() -> None:
    compress = partial(lz4.block.compress, store_size=False)
    good = lz4_body(compress(bytes(64)))
    read = codecs.lz4.decode
    read(good, 4, 4)
    refused("its data end before its header", read, b"\1", 4, 4)
    refused("its data end before its last line", read, good[:-1], 4, 4)
    refused("its data end before its last line", read, lz4_body(compress(bytes(48))), 4, 4)
    refused("1 bytes behind its last line", read, good + b"\0", 4, 4)
    refused("bitmap format 5 in LZ4", read, lz4_body(kind=5), 4, 4)
    refused("a damaged block of LZ4", read, lz4_body(b"\xff\xff"), 4, 4)
    refused("a damaged block of LZ4", read, lz4_body(compress(bytes(65))), 4, 4)
    refused("a block of 8 bytes where lines have 16", read, lz4_body(compress(bytes(8))), 4, 4)
    refused("a block of 0 bytes", read, lz4_body(compress(b"")), 4, 4)


def test_lz4_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs.lz4, "_decompress", None)
    refused("the package lz4 is not installed", codecs.lz4.decode, b"\1\x08", 2, 2)


def jpeg_of(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height)).save(out, "JPEG", **options)
    return out.getvalue()


def test_jpeg_that_lies() -> None:
    good = jpeg_of(16, 16)
    assert jpeg.decode(good, 16, 16).shape == (16, 16, 4)
    refused("its data are of 16x16 pixels", jpeg.decode, good, 8, 16)
    refused("its data are no JPEG", jpeg.decode, b"nonsense", 8, 16)
    refused("its data are no JPEG", jpeg.decode, b"", 8, 16)
    kind = "a JPEG of a kind that no server sends"
    refused(kind, jpeg.decode, jpeg_of(16, 16, "L"), 16, 16)
    progressive = jpeg_of(16, 16, progressive=True)
    refused("a JPEG of too many scans", jpeg.decode, progressive, 16, 16)
    refused(kind, jpeg.decode, b"\xff\xda".join(progressive.split(b"\xff\xda")[:3]), 16, 16)
    start = good.index(b"\xff\xda")
    refused("a JPEG of too many scans", jpeg.decode, good[:-2] + good[start:] * 3, 16, 16)
    huge = good.replace(b"\x08\0\x10\0\x10", b"\x08\xff\xff\xff\xff")
    refused("its data are of 65535x65535 pixels", jpeg.decode, huge, 16, 16)


def test_jpeg_alpha_that_lies() -> None:
    colours = jpeg_of(3, 2)
    alpha = lz_header(10, 3, 2, False) + b"\5abcdef"
    read = partial(jpeg.decode_alpha, colour_size=len(colours))
    got = read(colours + alpha, 3, 2, top_down=False)
    assert got[..., 3].tobytes() == b"defabc"
    refused("its alpha is the other way up", read, colours + alpha, 3, 2, top_down=True)
    refused("its data are of 3x2 pixels", read, colours + alpha, 2, 3, top_down=False)
    refused("its data end before its header", read, colours, 3, 2, top_down=False)
    short = colours + lz_header(10, 2, 3, False) + b"\5abcdef"
    refused("its data are of 2x3 pixels", read, short, 3, 2, top_down=False)


# Within a second and 64 MiB


def read(image: Sent, dictionary: glz.Dictionary) -> bool:
    """Whether it could be, of the size that was asked for and nothing else, and in time."""
    start = time.process_time()
    try:
        got = decoded(image, dictionary)
    except CannotDecode as error:
        got, reason = None, str(error)
    assert time.process_time() - start < SECONDS
    if got is None:
        assert "\n" not in reason
        return False
    assert got.shape == (image.height, image.width, 4)
    assert got.dtype == np.uint8
    return True


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()


@cache
def to_mutate() -> list[tuple[Sent, glz.Dictionary]]:
    return [(image, dictionary) for _, image, dictionary in small_ones()]


@given(data=st.data())
@some(max_examples=400)
def test_images_that_were_changed(data: st.DataObject, loops: str) -> None:
    image, dictionary = data.draw(st.sampled_from(to_mutate()))
    raw = bytearray(image.content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(HEAD[image.type], len(raw)))
        end = min(len(raw), at + data.draw(st.integers(0, 40)))
        how = data.draw(st.sampled_from(["byte", "number", "cut", "double"]))
        if how == "byte":
            raw[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
        elif how == "number":
            raw[at : at + 4] = data.draw(
                st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\x7f" + b"\xff" * 3])
            )
        elif how == "cut":
            del raw[at:end]
        else:
            raw[at:at] = raw[at:end]
    changed = image._replace(content=bytes(raw))
    if data.draw(st.integers(0, 9)) == 0:
        changed = changed._replace(width=data.draw(st.integers(0, 2000)))
    with little_memory():
        read(changed, dictionary)


@pytest.mark.parametrize(
    "body",
    [b"\1abcdef" + b"\x20\1" * (1024 * 768 - 2), b"\0abc" * (1024 * 768)],
    ids=["repeated", "literal"],
)
def test_lz_in_tokens_of_one_pixel(body: bytes, loops: str) -> None:
    image = Sent(LZ_RGB, 1024, 768, bytes(4) + lz32(1024, 768, body), (0, 0, 0, 0))
    assert read(image, glz.Dictionary(0))


def test_glz_in_tokens_of_one_pixel_from_any_image(loops: str) -> None:
    dictionary = glz.Dictionary(1 << 20)
    for number in range(1000):
        glz.decode(glz_plain(number, 1000), 100, 1, dictionary)
    tokens = b"".join(glz_match(1, nth % 100, 1 + nth % 1000) for nth in range(1000))
    body = glz_header(8, 1000, 500, True, 1000, 1000) + tokens * 500
    assert read(Sent(GLZ_RGB, 1000, 500, bytes(4) + body, (0, 0, 0, 0)), dictionary)


@pytest.mark.parametrize("pixels", [1 << 19, 1 << 21])
def test_glz_that_repeats_itself_pixel_by_pixel(pixels: int, loops: str) -> None:
    """A list of all that is repeated would be larger than any picture."""
    size = 2048, pixels // 2048
    body = glz_header(8, *size, True, 1) + b"\0abc" + b"\x20\0\0" * (pixels - 1)
    image = Sent(GLZ_RGB, *size, bytes(4) + body, (0, 0, 0, 0))
    assert read(image, glz.Dictionary(0)) is (loops == "compiled" or pixels < tokens.MOST)
    if loops == "compiled":
        with little_memory():
            assert decoded(image, glz.Dictionary(0)).any()


@pytest.mark.parametrize(
    ("body", "good"),
    [
        (b"\0abc\xe0" + b"\xff" * (16 << 20), False),
        (b"\0abc\xe0" + b"\xff" * 100_000 + b"\0\0", False),
        (b"\0abc\xe0" + b"\xff" * 32896 + bytes([4096 * 2048 - 8 - 32896 * 255]) + b"\0", True),
        (b"\1abcdef\xe0" + b"\xff" * 32896 + bytes([4096 * 2048 - 9 - 32896 * 255]) + b"\1", True),
    ],
    ids=["as long as it can be", "endless", "a pixel", "two pixels"],
)
def test_lz_that_repeats_for_ever(body: bytes, good: bool, loops: str) -> None:
    image = Sent(LZ_RGB, 4096, 2048, bytes(4) + lz32(4096, 2048, body), (0, 0, 0, 0))
    assert read(image, glz.Dictionary(0)) is good
    if len(body) < 1 << 20:
        with little_memory():
            read(image, glz.Dictionary(0))


def test_sizes_that_lie_cost_nothing(loops: str) -> None:
    size = 65535, 32000
    with little_memory():
        for image in (
            Sent(LZ_RGB, *size, bytes(4) + lz32(*size, b"\0abc"), (0, 0, 0, 0)),
            Sent(GLZ_RGB, *size, bytes(4) + glz_header(8, *size, True, 1) + b"\0abc", (0, 0, 0, 0)),
            Sent(JPEG, *size, bytes(4) + jpeg_of(16, 16), (0, 0, 0, 0)),
            Sent(
                LZ4, *size, bytes(4) + lz4_body(lz4.block.compress(b"", store_size=False)), (0,) * 4
            ),
        ):
            assert not read(image, glz.Dictionary(0))


def test_a_dictionary_of_small_images_is_no_larger_than_another(loops: str) -> None:
    dictionary = glz.Dictionary(1 << 18)
    tracemalloc.start()
    for number in range(5000):
        glz.decode(glz_header(8, 1, 1, True, number, 5000) + b"\0abc", 1, 1, dictionary)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 8 << 18


def test_zlib_that_never_ends() -> None:
    squeeze = zlib.compressobj(9)
    bomb = b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(200)) + squeeze.flush()
    size = struct.pack("<II", 1920 * 1080 * 6, 0)
    with little_memory():
        assert not read(Sent(ZLIB_GLZ, 1920, 1080, size + bomb, (0, 0, 0, 0)), glz.Dictionary(0))
