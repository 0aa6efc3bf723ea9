"""Pictures that are written and read back, by readers that know the formats and nothing of ours."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import lz4.block
import numpy as np
import pytest
from hypothesis import given, settings

from spiceshm import codecs
from spiceshm.codecs import lz

if TYPE_CHECKING:
    from collections.abc import Callable

RGB = np.uint32(0xFFFFFF)

# The readers


def read_raw(body: bytes, width: int, height: int) -> np.ndarray:
    return np.frombuffer(body, "<u4").reshape(height, width)


def read_lz4(body: bytes, width: int, height: int) -> np.ndarray:
    """Block by block, each with what came before it as its dictionary, as SPICE may have it."""
    assert body[:2] == b"\1\x08"  # the top line first, 32 bits
    out, at = b"", 2
    while at < len(body):
        (size,) = struct.unpack_from(">I", body, at)
        block = body[at + 4 : at + 4 + size]
        assert len(block) == size
        left = width * height * 4 - len(out)
        out += lz4.block.decompress(block, uncompressed_size=left, dict=out[-65536:])
        at += 4 + size
        assert len(out) % (width * 4) == 0, "a block of part of a line"
    return np.frombuffer(out, "<u4").reshape(height, width)


def read_lz(body: bytes, width: int, height: int) -> np.ndarray:
    """Token by token, as slowly as that is."""
    header = struct.unpack_from(">7I", body)
    assert header == (0x20205A4C, 0x00010001, 8, width, height, width * 4, 1)
    out: list[bytes] = []
    at = 28
    while len(out) < width * height:
        control, at = body[at], at + 1
        if control < 32:
            for _ in range(control + 1):
                assert at + 3 <= len(body)
                out.append(body[at : at + 3])
                at += 3
            continue
        length, back = control >> 5, (control & 31) << 8
        if length == 7:
            while (more := body[at]) == 255:
                length, at = length + 255, at + 1
            length, at = length + more, at + 1
        low, at = body[at], at + 1
        back += low
        if back == 0x1FFF:
            back, at = struct.unpack_from(">H", body, at)[0] + 8191, at + 2
        begin = len(out) - back - 1
        assert begin >= 0, "before the first pixel"
        for nth in range(length):
            out.append(out[begin + nth])
    assert len(out) == width * height, "past the last pixel"
    assert at == len(body), "bytes too many"
    rgb = np.frombuffer(b"".join(out), np.uint8).reshape(-1, 3).astype(np.uint32)
    return (rgb[:, 0] | rgb[:, 1] << 8 | rgb[:, 2] << 16).reshape(height, width)


CODECS: dict[str, tuple[Callable[..., bytes], Callable[..., np.ndarray]]] = {
    "raw": (codecs.raw.encode, read_raw),
    "lz4": (codecs.lz4.encode, read_lz4),
    "lz": (codecs.lz.encode, read_lz),
}


def assert_read_back(name: str, picture: np.ndarray) -> int:
    """Whole, and as a part of something larger; returns how many bytes it took."""
    write, read = CODECS[name]
    height, width = picture.shape
    body = bytes(write(picture))
    assert np.array_equal(read(body, width, height) & RGB, picture & RGB)
    larger = np.full((height + 3, width + 5), 0xABCDEF, np.uint32)
    larger[2 : 2 + height, 1 : 1 + width] = picture
    assert bytes(write(larger[2 : 2 + height, 1 : 1 + width])) == body
    return len(body)


# The pictures


def noise(height: int, width: int, seed: int = 1, colours: int = 1 << 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, colours, (height, width), np.uint32)


def text(height: int, width: int, seed: int = 1) -> np.ndarray:
    """Lines of the same few glyphs, dark on light, on pixels whose X is anything."""
    rng = np.random.default_rng(seed)
    glyphs = np.where(rng.random((12, 16, 8)) < 0.3, 0x202020, 0xF0F0F0)
    rows = -(-height // 16)
    lines = [
        np.hstack(glyphs[rng.integers(0, 12, -(-width // 8))]) if row % 3 else None
        for row in range(rows)
    ]
    blank = np.full((16, width), 0xF0F0F0)
    page = np.vstack([blank if line is None else line[:, :width] for line in lines])[:height]
    return page.astype(np.uint32) | noise(height, width, seed) & ~RGB


@st.composite
def pictures(draw: st.DrawFn) -> np.ndarray:
    """Of any size: few colours or many, patches of one colour, parts that are there twice."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    colours = draw(st.sampled_from([1, 2, 3, 256, 1 << 32]))
    picture = noise(height, width, draw(st.integers(0, 999)), colours)
    for _ in range(draw(st.integers(0, 4))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        part = picture[top : top + draw(st.integers(1, 40)), left : left + draw(st.integers(1, 70))]
        if draw(st.booleans()):
            part[:] = draw(st.integers(0, 3))
        else:
            y = draw(st.integers(0, height - part.shape[0]))
            x = draw(st.integers(0, width - part.shape[1]))
            picture[y : y + part.shape[0], x : x + part.shape[1]] = part.copy()
    return picture


@pytest.mark.parametrize("name", CODECS)
@given(picture=pictures())
@settings(max_examples=150, deadline=None)
def test_any_picture_is_read_back(name: str, picture: np.ndarray) -> None:
    assert_read_back(name, picture)


SIZES = [(1, 1), (1, 2), (2, 1), (3, 5), (1, 16384), (16384, 1), (479, 641), (33, 4099)]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_that_are_no_multiple_of_anything(name: str, size: tuple[int, int]) -> None:
    for picture in (text(*size), noise(*size), np.full(size, 0x1234567, np.uint32)):
        assert_read_back(name, picture)


@pytest.mark.parametrize("name", ["lz4", "lz"])
def test_what_can_be_written_shorter_is(name: str) -> None:
    raw = 400 * 640 * 4
    assert assert_read_back(name, np.full((400, 640), 7, np.uint32)) < raw / 200
    page = text(400, 640) & RGB
    assert assert_read_back(name, page) < raw / 4
    assert assert_read_back(name, noise(400, 640)) < raw * 1.01


def test_lz4_writes_large_pictures_in_blocks_of_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs.lz4, "_BLOCK", 10_000)
    assert_read_back("lz4", text(100, 333))
    body = codecs.lz4.encode(noise(100, 333))
    blocks, at = 0, 2
    while at < len(body):
        at += 4 + struct.unpack_from(">I", body, at)[0]
        blocks += 1
    assert blocks == -(-100 // (10_000 // (333 * 4)))
    assert_read_back("lz4", noise(3, 4000))  # a line that is longer than a block


def test_lz4_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs.lz4, "_compress", None)
    with pytest.raises(RuntimeError, match="lz4 is not installed"):
        codecs.lz4.encode(noise(2, 2))


# LZ at its edges


@pytest.mark.parametrize("length", [1, 2, 6, 7, 8, 261, 262, 263, 516, 517, 518, 70_000, 200_000])
def test_lz_matches_of_every_length(length: int) -> None:
    """Bytes go on in steps of 255, and blocks end in the midst of a match."""
    line = np.concatenate([noise(1, 40)[0], np.full(length, 5), noise(1, 40, 2)[0]])
    assert_read_back("lz", line.astype(np.uint32)[None, :])


@pytest.mark.parametrize("back", [1, 2, 31, 255, 256, 8190, 8191, 8192, 8193, 8447, 16384])
def test_lz_matches_at_every_distance(back: int) -> None:
    """Near ones end at 8191, far ones take two bytes more. The line above is as far as it goes."""
    line = noise(1, back)
    assert assert_read_back("lz", np.tile(line, (3, 1))) < back * 3 * 1.1 + 200
    assert_read_back("lz", np.tile(line, (1, 3)))


def test_lz_literals_in_runs_of_32() -> None:
    for width in (31, 32, 33, 63, 64, 65):
        # No pixel is like another, so that there is nothing but literals.
        assert assert_read_back("lz", np.arange(width, dtype=np.uint32)[None, :]) == (
            28 + 3 * width + -(-width // 32)
        )


def test_lz_blocks_that_end_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for block in (1, 2, 3, 5, 64, 1000):
        monkeypatch.setattr(lz, "_BLOCK", block)
        assert_read_back("lz", text(19, 70))
        assert_read_back("lz", noise(19, 70, colours=3))


# Parts of one colour


@given(picture=pictures(), factor=st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_solid_parts_and_the_rest_are_the_picture(picture: np.ndarray, factor: int) -> None:
    picture = np.repeat(np.repeat(picture & 3, factor, 0), factor, 1)[:300, :300]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codecs.solid, "LEAST", 2048)
        found, rest = codecs.solid.parts_of(picture)
    assert len(found) <= codecs.solid.MOST
    covered = np.zeros(picture.shape, np.uint8)
    for (top, left, bottom, right), colour in found:
        assert (picture[top:bottom, left:right] & RGB == colour).all()
        assert (bottom - top) * (right - left) >= 2048
        covered[top:bottom, left:right] += 1
    for top, left, bottom, right in rest:
        assert bottom > top
        assert right > left
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()


def test_a_page_with_wide_margins() -> None:
    page = noise(1080, 1920)
    page[:, :400] = 0xFFFFFF
    page[500:, 400:] = 0x10000ED  # whatever its X is
    found, rest = codecs.solid.parts_of(page)
    assert sorted(found) == [((0, 0, 1056, 384), 0xFFFFFF), ((512, 416, 1056, 1920), 0xED)]
    assert sum((b - t) * (r - left) for t, left, b, r in rest) == page.size - sum(
        (b - t) * (r - left) for (t, left, b, r), _ in found
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_picture_of_one_colour(size: tuple[int, int]) -> None:
    picture = noise(*size) & ~RGB | 0x123456
    assert codecs.solid.colour_of(picture) == 0x123456
    picture[-1, -1] ^= 1
    assert codecs.solid.colour_of(picture) == (0x123457 if size == (1, 1) else None)
