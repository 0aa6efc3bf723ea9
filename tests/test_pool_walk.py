"""Every interleaving of writer and readers, walked with the real `Pool`, not with a model of it.

The surface has two pixels; frames draw the left one, the right one or both. From each state every
action that is possible is tried: publish, lend, release of any held frame, join, leave, growth
that each reader accepts, refuses or never answers, giving memory back, and the end of the surface
(a mode change). States that were seen before are not walked again. At every state the rules hold:
the writer has a free buffer, a lease is what a reader holds, a held frame does not change, a mirror
kept from damage alone is the picture.

SPICESHM_WALK_SCALE=2 walks the larger cases too (minutes).
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from spiceshm.memory import BufferState, Pool, Reader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spiceshm.region import Rect

LEFT, RIGHT, BOTH = [(0, 0, 1, 1)], [(0, 1, 1, 2)], [(0, 0, 1, 2)]
SCALE = int(os.environ.get("SPICESHM_WALK_SCALE", "1"))


class Memory:
    """A piece of memory that is not shared, for a pool of two pixels."""

    def __init__(self, number: int, buffers: int) -> None:
        self.number = number
        self.first, self.size = 0, buffers * 4096

    def pixels(self, offset: int, width: int, height: int, stride: int) -> np.ndarray:
        return np.zeros((height, width, 4), np.uint8)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Memory) and other.number == self.number


@dataclass
class Peer:
    """What a reader does on its side of the socket: answers, a mirror, the frames that it holds."""

    reader: Reader | None = None
    asked: set[int] = field(default_factory=set)
    mirror: tuple[int, ...] = ()
    held: dict[int, tuple[int, ...]] = field(default_factory=dict)
    gone: bool = False
    refused: bool = False


class World:
    """A pool, its writer and its readers; `save` and `restore` make walking back possible."""

    def __init__(self, credits: tuple[int, ...], frames: int, first: int) -> None:
        self.credits = credits
        self.frames_left = frames
        self.pool = Pool(2, 1, itertools.count(1))
        self.memories = [Memory(0, first)]
        self.pool.add(self.memories[0])  # type: ignore[arg-type]
        self.peers = [Peer() for _ in credits]
        self.truth = (0, 0)
        self.ended = False

    # Actions

    def actions(self) -> Iterator[tuple[Any, ...]]:
        if self.frames_left and not self.ended:
            yield from (("publish", which) for which in range(3))
        for at, peer in enumerate(self.peers):
            if peer.reader is None:
                if not peer.gone and not self.ended:
                    yield "join", at
                continue
            if not self.ended and not peer.refused:
                yield "lend", at
            yield from (("release", at, serial) for serial in peer.held)
            yield "leave", at
            for number in peer.asked:
                yield "accept", at, number
                yield "refuse", at, number
        if not self.ended:
            if self.pool.missing_with(0) and len(self.memories) < 3:
                yield ("grow",)
            if self.pool.surplus:
                yield ("shrink",)
            if self.pool.serial:
                yield ("end",)

    def do(self, action: tuple[Any, ...]) -> None:
        getattr(self, "_" + action[0])(*action[1:])
        self.check()

    def _publish(self, which: int) -> None:
        damage: list[Rect] = (LEFT, RIGHT, BOTH)[which]
        self.frames_left -= 1
        value = 10 - self.frames_left
        buffer = self.pool.begin(damage)
        left, right = self.truth
        self.truth = (value if which != 1 else left, value if which != 0 else right)
        for _, start, _, end in damage:
            buffer.pixels[0, start:end] = value
        self.pool.publish(buffer, damage, now=0)
        assert content(buffer.pixels) == self.truth

    def _join(self, at: int) -> None:
        reader = self.pool.join(self.credits[at])
        reader.segments = set(self.pool.segments)
        self.peers[at] = Peer(reader, mirror=(99, 99))

    def _lend(self, at: int) -> None:
        peer = self.peers[at]
        assert peer.reader is not None
        frame = self.pool.lend(peer.reader)
        if frame is None:
            return
        seen = content(frame.buffer.pixels)
        mirror = list(peer.mirror)
        for _, start, _, end in frame.rects:
            mirror[start:end] = seen[start:end]
        assert tuple(mirror) == seen == self.truth
        assert frame.serial not in peer.held
        peer.mirror = seen
        peer.held[frame.serial] = seen

    def _release(self, at: int, serial: int) -> None:
        peer = self.peers[at]
        assert peer.reader is not None
        del peer.held[serial]
        self.pool.release(peer.reader, serial)
        if peer.refused and not peer.held:
            self._leave(at)

    def _leave(self, at: int) -> None:
        peer = self.peers[at]
        assert peer.reader is not None
        self.pool.leave(peer.reader)
        self.peers[at] = Peer(gone=True)

    def _grow(self) -> None:
        memory = Memory(len(self.memories), self.pool.missing_with(0))
        self.memories.append(memory)
        self.pool.add(memory)  # type: ignore[arg-type]
        for peer in self.peers:
            if peer.reader is not None:
                peer.asked.add(memory.number)

    def _accept(self, at: int, number: int) -> None:
        peer = self.peers[at]
        assert peer.reader is not None
        peer.asked.discard(number)
        peer.reader.segments.add(self.memories[number])  # type: ignore[arg-type]

    def _refuse(self, at: int, number: int) -> None:
        """It turns to ordinary SPICE: it is lent nothing more, and leaves with its last frame."""
        peer = self.peers[at]
        peer.asked.clear()
        peer.refused = True
        if not peer.held:
            self._leave(at)

    def _shrink(self) -> None:
        self.pool.retire(self.pool.surplus)
        current = self.pool.current
        if current is not None and current.segment in self.pool.retiring:
            self.pool.publish(self.pool.begin([]), [], now=0)
        self.pool.collect()

    def _end(self) -> None:
        self.ended = True
        self.pool.retire(list(self.pool.segments))
        self.pool.end()
        self.pool.collect()

    # Rules

    def check(self) -> None:
        pool = self.pool
        free = [b for b in pool.buffers if b.state is BufferState.FREE]
        assert not any(buffer.leases for buffer in free)  # 1
        leases = 0
        for peer, credits in zip(self.peers, self.credits, strict=True):
            if peer.reader is None:
                continue
            assert set(peer.reader.leases) == set(peer.held)  # 2
            assert len(peer.held) <= credits  # 5
            leases += len(peer.held)
            for serial, seen in peer.held.items():
                buffer = peer.reader.leases[serial]
                assert content(buffer.pixels) == seen  # a held frame does not change
                assert buffer in pool.buffers  # 6: and its memory is still counted
        assert sum(buffer.leases for buffer in pool.buffers) == leases
        if self.ended:
            assert all(buffer.leases for buffer in pool.buffers) or pool.retiring
            return
        assert any(b.segment not in pool.retiring for b in free), "the writer would have to wait"
        if pool.current is not None:
            assert content(pool.current.pixels) == self.truth

    # States

    def save(self) -> tuple[Any, ...]:
        pool = self.pool
        buffers = [(b, b.state, b.leases, list(b.missed), b.pixels.tobytes()) for b in pool.buffers]
        readers = [
            (r, list(r.damage), r.full, r.done, r.coalesced, set(r.segments), dict(r.leases))
            for r in pool.readers
        ]
        peers = [
            Peer(p.reader, set(p.asked), p.mirror, dict(p.held), p.gone, p.refused)
            for p in self.peers
        ]
        rest = (
            pool.current,
            pool.serial,
            list(pool.segments),
            set(pool.retiring),
            pool.version,
            pool._news,
        )
        own = (self.frames_left, list(self.memories), self.truth, self.ended)
        return buffers, readers, peers, rest, own

    def restore(self, saved: tuple[Any, ...]) -> None:
        pool = self.pool
        buffers, readers, peers, rest, own = saved
        pool.buffers = [b for b, *_ in buffers]
        for b, state, leases, missed, pixels in buffers:
            b.state, b.leases, b.missed = state, leases, list(missed)
            b.pixels[:] = np.frombuffer(pixels, np.uint8).reshape(b.pixels.shape)
        pool.readers = {r for r, *_ in readers}
        for r, damage, full, done, coalesced, segments, leased in readers:
            r.damage, r.full, r.done, r.coalesced = list(damage), full, done, coalesced
            r.segments, r.leases = set(segments), dict(leased)
        self.peers = [
            Peer(p.reader, set(p.asked), p.mirror, dict(p.held), p.gone, p.refused) for p in peers
        ]
        pool.current, pool.serial, segments, retiring, pool.version, pool._news = rest
        pool.segments, pool.retiring = list(segments), set(retiring)
        self.frames_left, memories, self.truth, self.ended = own
        self.memories = list(memories)
        pool._serials = itertools.count(pool.serial + 1)
        pool._count()

    def key(self) -> Any:
        """What tells states apart; serials only by their order, buffers by their place."""
        pool = self.pool
        place = {id(b): at for at, b in enumerate(pool.buffers)}
        buffers = tuple(
            (b.segment.number, b.state, cells(b.missed), content(b.pixels))  # type: ignore[attr-defined]
            for b in pool.buffers
        )
        peers = tuple(
            (
                p.gone,
                p.refused,
                p.mirror,
                frozenset(p.asked),
                p.reader is not None
                and (
                    cells(p.reader.damage),
                    p.reader.full,
                    frozenset(s.number for s in p.reader.segments),  # type: ignore[attr-defined]
                    tuple(place[id(p.reader.leases[serial])] for serial in sorted(p.held)),
                ),
            )
            for p in self.peers
        )
        current = place[id(pool.current)] if pool.current is not None else None
        retiring = frozenset(s.number for s in pool.retiring)  # type: ignore[attr-defined]
        news = cells(list(pool._news))
        return (self.frames_left, self.truth, self.ended, current, news, buffers, peers, retiring)


def content(pixels: np.ndarray) -> tuple[int, ...]:
    return int(pixels[0, 0, 0]), int(pixels[0, 1, 0])


def cells(rects: list[Rect]) -> int:
    return sum({1 << column for _, left, _, right in rects for column in range(left, right)})


def walk(world: World) -> int:
    """Visit every state that can be reached; returns how many there are."""
    seen = {world.key()}
    stack = [(world.save(), list(world.actions()))]
    while stack:
        saved, actions = stack[-1]
        if not actions:
            stack.pop()
            continue
        action = actions.pop()
        world.restore(saved)
        world.do(action)
        key = world.key()
        if key not in seen:
            seen.add(key)
            stack.append((world.save(), list(world.actions())))
    return len(seen)


CASES = [((1,), 5, 3), ((2,), 4, 4), ((1, 1), 3, 3), ((1, 1), 3, 4)]
LARGE = [
    ((2,), 4, 3),
    ((2, 1), 2, 3),
    ((2,), 5, 3),
    ((1, 1), 5, 3),
    ((2, 1), 4, 3),
    ((2, 2), 3, 3),
    ((1, 1, 1), 3, 3),
]


@pytest.mark.parametrize(("credits", "frames", "first"), CASES + (LARGE if SCALE > 1 else []))
def test_every_interleaving(credits: tuple[int, ...], frames: int, first: int) -> None:
    assert walk(World(credits, frames, first)) > 100


def test_with_one_buffer_kept_back_fewer_the_writer_would_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The walk can fail: it finds the blocked writer when the rule is off by one."""
    monkeypatch.setattr(Pool, "_spare", lambda self, buffer: True)
    with pytest.raises(AssertionError, match="the writer would have to wait"):
        walk(World((1, 1), 3, 3))
