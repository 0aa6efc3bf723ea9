"""Rectangles: merging loses nothing, subtracting is exact, checks name what is wrong."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiceshm import region

WIDTH, HEIGHT = 40, 30


@st.composite
def rects(draw: st.DrawFn) -> region.Rect:
    top = draw(st.integers(0, HEIGHT - 1))
    left = draw(st.integers(0, WIDTH - 1))
    return (
        top,
        left,
        draw(st.integers(top + 1, HEIGHT)),
        draw(st.integers(left + 1, WIDTH)),
    )


def mask(rects: list[region.Rect]) -> np.ndarray:
    """The region as an independent oracle sees it: one bool a pixel."""
    covered = np.zeros((HEIGHT, WIDTH), bool)
    for top, left, bottom, right in rects:
        covered[top:bottom, left:right] = True
    return covered


@given(st.lists(rects(), max_size=40))
def test_merge_without_need_covers_exactly_the_same(some: list[region.Rect]) -> None:
    merged = region.merge(some)
    assert np.array_equal(mask(merged), mask(some))
    assert len(merged) <= len(some)


@given(st.lists(rects(), min_size=1, max_size=400), st.integers(1, 8))
def test_merge_to_few_covers_at_least_the_same(some: list[region.Rect], most: int) -> None:
    merged = region.merge(some, most)
    assert len(merged) <= most
    assert not (mask(some) & ~mask(merged)).any()


@given(st.lists(rects(), max_size=12), st.lists(rects(), max_size=12))
def test_add_covers_exactly_both(some: list[region.Rect], more: list[region.Rect]) -> None:
    for first, second in ((some, more), (some[:1], more), (some, more[:1]), (some, some)):
        both = region.add(first, second)
        assert np.array_equal(mask(both), mask(first) | mask(second))
        assert both is not first
        assert both is not second


@given(st.lists(rects(), max_size=6), st.lists(rects(), max_size=6))
def test_gather_covers_exactly_both(some: list[region.Rect], more: list[region.Rect]) -> None:
    gathered = region.gather(some, more)
    assert np.array_equal(mask(gathered), mask(some + more))
    assert len(gathered) <= len(some) + len(more)
    assert region.gather(gathered, more) == gathered  # as what blinks would have it


def test_merge_joins_neighbours() -> None:
    tiles = [(y, x, y + 64, x + 64) for y in range(0, 512, 64) for x in range(0, 512, 64)]
    assert region.merge(tiles) == [(0, 0, 512, 512)]
    assert region.merge([(0, 0, 4, 4), (0, 8, 4, 12)]) == [(0, 0, 4, 4), (0, 8, 4, 12)]


def spiral(turns: int) -> list[region.Rect]:
    """A square of rectangles, of which each two become one only after those inside of them."""
    corner = [(0, 0, 1, 1)]
    for at in range(1, turns):
        corner += [(0, at, at, at + 1), (at, 0, at + 1, at + 1)]
    return corner


def test_merge_takes_no_longer_than_its_rectangles_are_many() -> None:
    """As many as one message may name, as bad as can be."""
    side = 1 << 8
    checks = [(y, x, y + 1, x + 1) for y in range(side) for x in range(0, 2 * side, 2)]
    for some in (spiral(1 << 10), spiral(1 << 14), checks, checks[::-1]):
        start = time.process_time()
        merged = region.merge(some)
        assert time.process_time() - start < 0.6
        assert len(merged) <= region.MOST_RECTS
        assert region.bounds(merged) == region.bounds(some)


@given(st.lists(rects(), max_size=8), st.lists(rects(), max_size=4))
def test_subtract_is_exact(some: list[region.Rect], holes: list[region.Rect]) -> None:
    left = region.subtract(some, holes)
    if left != some:
        assert np.array_equal(mask(left), mask(some) & ~mask(holes))
    else:
        assert len(some) == 0 or not mask(holes).any() or _untouched(some, holes)


def _untouched(some: list[region.Rect], holes: list[region.Rect]) -> bool:
    return not (mask(some) & mask(holes)).any()


def test_subtract_gives_up_rather_than_shatter() -> None:
    holes = [(y, x, y + 1, x + 1) for y in range(0, 30, 2) for x in range(0, 40, 2)]
    assert region.subtract([(0, 0, 30, 40)], holes) == [(0, 0, 30, 40)]


def test_damage_is_checked_and_named() -> None:
    assert region.from_damage("all", 8, 4) == [(0, 0, 4, 8)]
    assert region.from_damage(np.array([[0, 0, 2, 2]]), 8, 4) == [(0, 0, 2, 2)]
    assert region.from_damage([], 8, 4) == []
    for bad in [(0, 0, 5, 8), (0, 0, 4, 9), (-1, 0, 4, 8), (2, 0, 2, 8), (0, 3, 4, 3)]:
        with pytest.raises(ValueError, match=r"outside a surface of 8x4"):
            region.from_damage([bad], 8, 4)
    with pytest.raises(ValueError, match="'some'"):
        region.from_damage("some", 8, 4)  # type: ignore[arg-type]


def test_area_and_bounds() -> None:
    some = [(0, 0, 2, 3), (5, 1, 6, 9)]
    assert region.area(some) == 14
    assert region.bounds(some) == (0, 0, 6, 9)
