"""The leased pool: its six rules, under anything that writer and readers may do."""

from __future__ import annotations

import itertools
import random

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from spiceshm import region
from spiceshm.memory import MOST_LOCAL, BufferState, Frame, Pool, Reader
from spiceshm.memory.pool import MOST_LOOSE

WIDTH, HEIGHT = 12, 9


class Plain:
    """Memory that is not shared: the pool only wants arrays of it."""

    def __init__(self, buffers: int, size: int) -> None:
        self.first, self.size = 0, buffers * size
        self._bytes = np.zeros(self.size, np.uint8)

    def pixels(self, offset: int, width: int, height: int, stride: int) -> np.ndarray:
        rows = self._bytes[offset : offset + height * stride].reshape(height, stride)
        return rows[:, : width * 4].reshape(height, width, 4)

    def close(self) -> None:
        pass


def make_pool(buffers: int) -> Pool:
    pool = Pool(WIDTH, HEIGHT, itertools.count(1))
    pool.add(Plain(buffers, pool.buffer_size))  # type: ignore[arg-type]
    return pool


def join(pool: Pool, credits: int) -> Reader:
    """A reader with credits, or for 0 one in this process."""
    reader = pool.join(credits or 1, local=not credits)
    if credits:
        reader.segments = set(pool.segments)
    return reader


def draw(pool: Pool, damage: list[region.Rect], value: int) -> int:
    buffer = pool.begin(damage)
    for top, left, bottom, right in damage:
        buffer.pixels[top:bottom, left:right] = value
    return pool.publish(buffer, damage, now=value)


@st.composite
def rects(draw_from: st.DrawFn) -> region.Rect:
    top, left = draw_from(st.integers(0, HEIGHT - 1)), draw_from(st.integers(0, WIDTH - 1))
    return (
        top,
        left,
        draw_from(st.integers(top + 1, HEIGHT)),
        draw_from(st.integers(left + 1, WIDTH)),
    )


DAMAGE = st.lists(rects(), min_size=1, max_size=4)


class Readers(RuleBasedStateMachine):
    """Random drawing, lending, releasing, joining and leaving, beside a plain array as the truth.

    Each reader keeps a mirror from damage alone, and a copy of every frame that it holds.
    """

    @initialize(sizes=st.lists(st.integers(0, 2), min_size=1, max_size=3), spare=st.integers(0, 2))
    def begin(self, sizes: list[int], spare: int) -> None:
        self.pool = make_pool(max(3, sum(sizes) + 2 - spare))
        self.truth = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
        self.value = 0
        self.mirrors: dict[Reader, np.ndarray] = {}
        self.held: dict[Reader, dict[int, tuple[Frame, np.ndarray]]] = {}
        self.seen: dict[Reader, int] = {}
        for credits in sizes:
            self.add_reader(credits)

    def add_reader(self, credits: int) -> None:
        reader = join(self.pool, credits)
        self.mirrors[reader] = np.full((HEIGHT, WIDTH, 4), 99, np.uint8)
        self.held[reader] = {}
        self.seen[reader] = 0

    @rule(damage=DAMAGE)
    def publish(self, damage: list[region.Rect]) -> None:
        self.value = self.value % 250 + 1
        draw(self.pool, damage, self.value)
        for top, left, bottom, right in damage:
            self.truth[top:bottom, left:right] = self.value

    @rule(damage=DAMAGE)
    def change_ones_mind(self, damage: list[region.Rect]) -> None:
        buffer = self.pool.begin(damage)
        for top, left, bottom, right in damage:
            buffer.pixels[top:bottom, left:right] = 255
        self.pool.abandon(buffer)

    @rule(data=st.data())
    def lend(self, data: st.DataObject) -> None:
        reader = self.some_reader(data)
        frame = self.pool.lend(reader) if reader else None
        if reader is None or frame is None:
            return
        assert frame.serial > self.seen[reader]
        self.seen[reader] = frame.serial
        self.take(reader, frame)
        self.held[reader][frame.serial] = (frame, frame.buffer.pixels.copy())

    @rule(data=st.data())
    def owe(self, data: st.DataObject) -> None:
        """A frame that did not arrive comes again."""
        reader = self.some_reader(data)
        frame = self.pool.lend(reader) if reader else None
        if reader is not None and frame is not None:
            self.pool.release(reader, frame.serial)
            self.pool.owe(reader, frame.rects)
            assert reader.damage

    def take(self, reader: Reader, frame: Frame) -> None:
        mirror = self.mirrors[reader]
        for top, left, bottom, right in frame.rects:
            mirror[top:bottom, left:right] = frame.buffer.pixels[top:bottom, left:right]
        # Rule 4: a mirror kept from damage alone equals the frame, and both the truth.
        assert np.array_equal(mirror, frame.buffer.pixels)
        assert np.array_equal(mirror, self.truth)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        reader = self.some_reader(data)
        if reader is None or not self.held[reader]:
            return
        serial = data.draw(st.sampled_from(sorted(self.held[reader])))
        del self.held[reader][serial]
        self.pool.release(reader, serial)
        with pytest.raises(KeyError):
            self.pool.release(reader, serial)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        reader = self.some_reader(data)
        if reader is not None:
            self.pool.leave(reader)
            del self.mirrors[reader], self.held[reader], self.seen[reader]

    @rule(credits=st.integers(0, 2))
    def come(self, credits: int) -> None:
        if len(self.mirrors) < 4:
            self.add_reader(credits)

    def some_reader(self, data: st.DataObject) -> Reader | None:
        readers = list(self.mirrors)
        return data.draw(st.sampled_from(readers)) if readers else None

    @invariant()
    def held_frames_never_change(self) -> None:
        for frames in getattr(self, "held", {}).values():
            for frame, copy in frames.values():
                assert np.array_equal(frame.buffer.pixels, copy)

    @invariant()
    def the_rules_hold(self) -> None:
        if not hasattr(self, "pool"):
            return
        leased = [buffer for buffer in self.pool.buffers if buffer.leases]
        free = [b for b in self.pool.buffers if b.state is BufferState.FREE]
        assert free  # rule 3: the writer never waits
        assert not any(buffer.leases for buffer in free)  # rule 1
        assert len(leased) <= len(self.pool.buffers) - 2
        assert sum(len(frames) for r, frames in self.held.items() if r.local) <= MOST_LOCAL
        for reader, frames in self.held.items():
            assert len(frames) <= reader.credits  # rule 5
            assert set(reader.leases) == set(frames)  # rule 2
        total = sum(len(frames) for frames in self.held.values())
        assert sum(buffer.leases for buffer in self.pool.buffers) == total


TestReaders = Readers.TestCase
TestReaders.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_one_buffer_fewer_and_the_writer_would_wait() -> None:
    """The rule that keeps a buffer back is needed: without it the pool runs dry."""
    pool = make_pool(3)
    first, second = join(pool, 1), join(pool, 1)
    draw(pool, region.full(WIDTH, HEIGHT), 1)
    assert pool.lend(first)
    draw(pool, region.full(WIDTH, HEIGHT), 2)
    assert pool.lend(second) is None
    pool._spare = lambda buffer: True  # type: ignore[method-assign]
    assert pool.lend(second)
    draw(pool, region.full(WIDTH, HEIGHT), 3)
    with pytest.raises(AssertionError, match="no free buffer"):
        draw(pool, region.full(WIDTH, HEIGHT), 4)


def test_a_reader_gets_only_memory_that_it_has_accepted() -> None:
    pool = make_pool(3)
    reader = pool.join(1)
    draw(pool, region.full(WIDTH, HEIGHT), 1)
    assert pool.lend(reader) is None
    reader.segments = set(pool.segments)
    frame = pool.lend(reader)
    assert frame is not None
    assert frame.full


def test_copy_forward_spares_what_will_be_drawn() -> None:
    pool = make_pool(3)
    everything = region.full(WIDTH, HEIGHT)
    draw(pool, everything, 1)
    buffer = pool.begin(everything)
    assert (buffer.pixels == 0).all()  # nothing was copied: all of it is about to be drawn
    pool.abandon(buffer)
    buffer = pool.begin([(0, 0, 1, 1)])
    assert (buffer.pixels[1:] == 1).all()
    assert (buffer.pixels[0, 0] == 0).all()


def test_only_a_writing_buffer_can_be_published() -> None:
    pool = make_pool(3)
    buffer = pool.begin([(0, 0, 1, 1)])
    pool.publish(buffer, [(0, 0, 1, 1)], now=0)
    with pytest.raises(AssertionError, match="CURRENT"):
        pool.publish(buffer, [(0, 0, 1, 1)], now=0)


def test_nothing_new_nothing_lent() -> None:
    pool = make_pool(3)
    reader = join(pool, 2)
    assert pool.lend(reader) is None
    draw(pool, [(0, 0, 1, 1)], 1)
    assert pool.lend(reader)
    assert pool.lend(reader) is None


@given(seed=st.integers(0, 1000), many=st.integers(1, 6))
@settings(max_examples=20)
def test_what_is_noted_for_who_takes_nothing_is_bounded_and_complete(seed: int, many: int) -> None:
    """For a reader that takes no frames, and for buffers that nobody needs."""
    choose = random.Random(seed)
    pool = Pool(400, 300, itertools.count(1))
    pool.add(Plain(6, pool.buffer_size))  # type: ignore[arg-type]
    reader, brisk = join(pool, 1), join(pool, 1)
    truth, mirror = np.zeros((2, 300, 400), np.uint32)

    def take() -> None:
        frame = pool.lend(reader)
        assert frame is not None
        assert len(frame.rects) <= region.MOST_RECTS
        for top, left, bottom, right in frame.rects:
            mirror[top:bottom, left:right] = frame.buffer.words[top:bottom, left:right]
        assert np.array_equal(mirror, truth)
        pool.release(reader, frame.serial)

    for step in range(300):
        damage = []
        for _ in range(many):
            top, left = choose.randrange(290), choose.randrange(390)
            damage.append((top, left, top + choose.randint(1, 9), left + choose.randint(1, 9)))
        buffer = pool.begin(damage)
        for top, left, bottom, right in damage:
            truth[top:bottom, left:right] = buffer.words[top:bottom, left:right] = step
        assert np.array_equal(buffer.words, truth)
        pool.publish(buffer, damage, now=step)
        if step % 100 == 70:
            held = pool.lend(brisk)
            assert held is not None
        elif step % 100 == 99:  # another buffer was drawn in meanwhile
            pool.release(brisk, next(iter(brisk.leases)))
        if step in (0, 3, 250):
            take()
        assert len(reader.damage) <= MOST_LOOSE
        assert all(len(each.missed) <= MOST_LOOSE for each in pool.buffers)
    take()


def test_damage_that_comes_bit_by_bit_is_merged() -> None:
    pool = make_pool(4)
    reader = join(pool, 1)
    draw(pool, region.full(WIDTH, HEIGHT), 1)
    frame = pool.lend(reader)
    assert frame is not None
    pool.release(reader, frame.serial)
    for at in range(6):
        draw(pool, [(2, at, 4, at + 1)], 2)
    frame = pool.lend(reader)
    assert frame is not None
    assert frame.rects == [(2, 0, 4, 6)]
