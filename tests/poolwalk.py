"""A world of a real `Pool`, its writer and its readers, and every way that it can go: `walk`.

The surface has two pixels; a frame draws both, or only the right one. From each state every action
that is possible is tried: publish (into each buffer that may be chosen), think better of it, lend,
release of any held frame, join, leave (a disconnect), growth that each reader accepts, refuses or
never answers, memory withdrawn, all memory replaced, and the end of the surface (a mode change).
States that were seen before are not walked again.

What comes next does not depend on the pixels, so they do not tell states apart. That is checked,
not assumed: at every state each buffer has the picture but for what it is said to have missed, and
each reader's mirror has it but for the damage that it is said not to know. So no number of frames
bounds the walk: it goes on until there is nothing new, and stands for any number of them. Of the
damage only the left pixel's is told apart, and whether there is any: the pool treats pixels alike.
States that differ only in which of several like readers it is, or which buffer of a
segment, are one: `Pool.begin` may take any free buffer.

(Not a test module: pytest would make each assertion in it twice as slow.)
"""

from __future__ import annotations

import hashlib
import itertools
import marshal
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from spiceshm.memory import MOST_LOCAL, Buffer, BufferState, Pool, Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from spiceshm.memory import Frame, Segment
    from spiceshm.region import Rect

RIGHT, BOTH = [(0, 1, 1, 2)], [(0, 0, 1, 2)]
LEFT_BIT = 1

Action = tuple[Any, ...]
State = tuple[Any, ...]


class Memory:
    """A piece of memory that is not shared, for buffers of two pixels each."""

    def __init__(self, number: int, buffers: int) -> None:
        self.number = number
        self.first, self.size = 0, buffers * 4096
        self.words = np.zeros((buffers, 2), np.uint32)

    def pixels(self, offset: int, width: int, height: int, stride: int) -> np.ndarray:
        words = self.words[offset // 4096]
        return words.view(np.uint8).reshape(height, width, 4)


@dataclass(eq=False)
class Peer:
    """What a reader does on its side of the socket: answers, a mirror, the frames that it holds.

    One with 0 credits is in our own process, where it sees all memory and holds a frame at most.
    """

    credits: int
    reader: Reader | None = None
    asked: frozenset[Any] = frozenset()
    seen: frozenset[Any] = frozenset()
    mirror: tuple[int, int] = (0, 0)
    held: dict[int, tuple[int, int]] = field(default_factory=dict)
    refused: bool = False


class World:
    """A pool, its writer and its readers; `save` and `restore` make walking back possible."""

    def __init__(
        self,
        credits: tuple[int, ...],
        first: int,
        segments: int,
        *,
        forgets: bool = False,
        kind: Callable[..., Pool] = Pool,
    ) -> None:
        self.forgets = forgets
        self.segments = segments
        self.pool = kind(2, 1, itertools.count(1))
        self.peers = [Peer(number) for number in credits]
        self.most = max(first, sum(credits) + min(credits.count(0), MOST_LOCAL) + 2)
        self.numbers = itertools.count(1)
        self.values = itertools.count(1)
        self.truth = (0, 0)
        self.ended = False
        self._add(first)

    def _add(self, buffers: int) -> None:
        memory = Memory(next(self.numbers), buffers)
        self.pool.add(memory)  # type: ignore[arg-type]
        for peer in self.peers:
            if peer.credits and peer.reader is not None and not peer.refused:
                peer.asked |= {memory}

    # Actions

    def actions(self) -> Iterator[Action]:
        pool = self.pool
        if not self.ended:
            for buffer in self._candidates():
                yield from (("publish", buffer, damage) for damage in (RIGHT, BOTH))
                yield "abandon", buffer
            if pool.serial:
                yield ("end",)
            if self.forgets:
                yield ("forget",)
            if len(pool.segments) < self.segments and pool.missing_with(0):
                yield ("grow",)
            if self._spare_segment():
                yield from (("shrink", buffer) for buffer in self._refuges())
        for peer in self.peers:
            if peer.reader is None:
                if not self.ended:
                    yield "join", peer
                continue
            yield "leave", peer
            yield from (("release", peer, serial) for serial in peer.held)
            if self.ended or peer.refused:
                continue
            if peer.reader.damage and pool.current is not None:
                yield "lend", peer
            for memory in peer.asked:
                yield "accept", peer, memory
                yield "refuse", peer, memory

    def _refuges(self) -> list[Buffer | None]:
        """Where the picture may go if it is in memory that nobody needs."""
        surplus = self.pool.surplus
        if self.pool.current is None or self.pool.current.segment not in surplus:
            return [None]
        return [*self._candidates(surplus)]

    def _candidates(self, surplus: Sequence[Segment] = ()) -> list[Buffer]:
        """The buffers that `Pool.begin` may take, whatever their order; one of those alike."""
        free = [
            b
            for b in self.pool.buffers
            if b.state is BufferState.FREE and b.segment not in {*self.pool.retiring, *surplus}
        ]
        readers = [p.reader for p in self.peers if p.reader is not None]
        seen = [b for b in free if all(r.sees(b.segment) for r in readers)]
        return list({(b.segment, cells(b.missed) & LEFT_BIT): b for b in seen or free}.values())

    def do(self, action: Action) -> None:
        getattr(self, "_" + action[0])(*action[1:])
        self.pool._note_missed()  # `begin` would do it first of all, and nobody looks before
        self.check()

    def _begin(self, buffer: Buffer, damage: list[Rect]) -> None:
        self.put_first(buffer)
        assert self.pool.begin(damage) is buffer
        assert not buffer.leases  # 1

    def put_first(self, buffer: Buffer) -> None:
        """Any order of the buffers is as good as any other."""
        self.pool.buffers.remove(buffer)
        self.pool.buffers.insert(0, buffer)

    def _publish(self, buffer: Buffer, damage: list[Rect]) -> None:
        pool = self.pool
        memory = list(pool.buffers), list(pool.segments)
        self._begin(buffer, damage)
        value = next(self.values)
        left, _ = self.truth
        self.truth = (left if damage is RIGHT else value, value)
        for _, start, _, end in damage:
            buffer.words[0, start:end] = value
        pool.publish(buffer, damage, now=0)
        same = memory[1] == pool.segments and {*memory[0]} == {*pool.buffers}
        assert same, "publishing allocates"  # 3

    def _abandon(self, buffer: Buffer) -> None:
        self._begin(buffer, BOTH)
        buffer.words[:] = next(self.values)
        self.pool.abandon(buffer)

    def _join(self, peer: Peer) -> None:
        peer.reader = self.pool.join(peer.credits or 1, local=not peer.credits)
        if peer.credits:
            peer.reader.segments = set(self.pool.segments)
            peer.seen = frozenset(self.pool.segments)

    def _lend(self, peer: Peer) -> None:
        assert peer.reader is not None
        frame = self.pool.lend(peer.reader)
        if frame is not None:
            accepted = frame.buffer.segment in peer.seen or not peer.credits
            assert accepted, "lent in memory that it has not accepted"
            assert frame.serial not in peer.held
            peer.held[frame.serial] = self._look(peer, frame)

    def _look(self, peer: Peer, frame: Frame) -> tuple[int, int]:
        """Keep a mirror from damage alone."""
        seen = content(frame.buffer)
        mirror = list(peer.mirror)
        for _, start, _, end in frame.rects:
            mirror[start:end] = seen[start:end]
        assert tuple(mirror) == seen == self.truth, "a mirror is not the picture"  # 4
        peer.mirror = seen
        return seen

    def _release(self, peer: Peer, serial: int) -> None:
        assert peer.reader is not None
        del peer.held[serial]
        self.pool.release(peer.reader, serial)
        if peer.refused and not peer.held:
            self._leave(peer)
        self._give_back()

    def _leave(self, peer: Peer) -> None:
        assert peer.reader is not None
        self.pool.leave(peer.reader)
        self._forget_peer(peer)
        self._give_back()

    def _forget_peer(self, peer: Peer) -> None:
        peer.reader, peer.asked, peer.mirror = None, frozenset(), (0, 0)
        peer.held.clear()
        peer.refused = False

    def _grow(self) -> None:
        self._add(self.pool.missing_with(0))
        assert self._writable() >= self._needed(), "too little memory for all credits"

    def _writable(self) -> int:
        return sum(b.segment not in self.pool.retiring for b in self.pool.buffers)

    def _needed(self) -> int:
        there = [p.credits for p in self.peers if p.reader is not None]
        return 2 + sum(there) + min(there.count(0), MOST_LOCAL)

    def _spare_segment(self) -> bool:
        """Whether the newest segment could be given back."""
        newest = self.pool.segments[-1]
        size = sum(b.segment is newest for b in self.pool.buffers)
        return len(self.pool.segments) > 1 and self._writable() - size >= self._needed()

    def _accept(self, peer: Peer, memory: Memory) -> None:
        assert peer.reader is not None
        peer.asked -= {memory}
        peer.seen |= {memory}
        peer.reader.segments.add(memory)  # type: ignore[arg-type]

    def _refuse(self, peer: Peer, memory: Memory) -> None:
        """It turns to ordinary SPICE: it is lent nothing more, and leaves with its last frame."""
        peer.asked = frozenset()
        peer.refused = True
        if not peer.held:
            self._leave(peer)

    def _forget(self) -> None:
        old = list(self.pool.segments)
        self._add(self.pool.missing_with(0, all_new=True))
        self._retire(old)

    def _shrink(self, refuge: Buffer | None) -> None:
        if refuge is not None:
            self.put_first(refuge)
        self._retire(self.pool.surplus)
        assert not self._spare_segment(), "memory is kept that nobody needs"  # 6

    def _end(self) -> None:
        self.ended = True
        self.pool.end()
        self._retire(list(self.pool.segments))

    def _retire(self, segments: list[Segment]) -> None:
        self.pool.retire(segments)
        for peer in self.peers:
            peer.asked -= {*segments}  # the offer is withdrawn
        self._give_back()

    def _give_back(self) -> None:
        """As the surface does: the picture moves out of memory that retires, then that goes."""
        pool = self.pool
        if not pool.retiring:
            return
        if pool.current is not None and pool.current.segment in pool.retiring:
            pool.publish(pool.begin([]), [], now=0)
        gone = pool.collect()
        held = {
            b.segment for peer in self.peers if peer.reader for b in peer.reader.leases.values()
        }
        assert held.isdisjoint(gone), "memory was given back in which somebody looks"
        assert pool.retiring <= held, "memory is kept in which nobody looks"  # 6
        for peer in self.peers:
            if peer.reader is not None:
                peer.reader.segments -= {*gone}

    # Rules

    def check(self) -> None:
        pool = self.pool
        free = leases = 0
        for buffer in pool.buffers:
            if buffer.state is BufferState.FREE:
                assert not buffer.leases, "a free buffer is leased"  # 1
                free += buffer.segment not in pool.retiring
            elif buffer.state is BufferState.CURRENT:
                assert buffer is pool.current
            else:
                assert buffer.state is BufferState.RETAINED
                assert buffer.leases
            self._check_pixels(content(buffer), buffer.missed)
            leases += buffer.leases
        for peer in self.peers:
            if peer.reader is None:
                continue
            lent = peer.reader.leases
            assert lent.keys() == peer.held.keys(), "a lease is not what a reader holds"  # 2
            assert len(lent) <= (peer.credits or 1), "more is lent than its credits"  # 5
            leases -= len(lent)
            for serial, seen in peer.held.items():
                assert content(lent[serial]) == seen, "a held frame has changed"  # 1
                assert lent[serial] in pool.buffers  # 6: and its memory is still counted
            self._check_pixels(peer.mirror, peer.reader.damage)  # 4
        assert not leases  # 2
        local = sum(len(peer.held) for peer in self.peers if not peer.credits)
        assert local <= MOST_LOCAL, "more is lent in this process than is counted"  # 5
        if self.ended:
            assert pool.current is None
            return
        assert free, "the writer would have to wait"  # 3
        assert self._writable() <= self.most, "more memory than for all credits"  # 6
        if pool.current is not None:
            assert content(pool.current) == self.truth

    def _check_pixels(self, pixels: tuple[int, int], unknown: list[Rect]) -> None:
        """It is the picture but for what is said not to be."""
        bits = cells(unknown)
        assert bits & 1 or pixels[0] == self.truth[0], "damage was lost"
        assert bits & 2 or pixels[1] == self.truth[1], "damage was lost"

    # States

    def save(self) -> State:
        pool = self.pool
        buffers = [(b, b.state, b.leases, b.missed, content(b)) for b in pool.buffers]
        peers = []
        for p in self.peers:
            r = p.reader
            reader = r and (r, r.damage, r.full, r.loose, r.segments.copy(), r.leases.copy())
            peers.append((p, p.asked, p.seen, p.mirror, p.held.copy(), p.refused, reader))
        rest = (pool.current, pool.serial, list(pool.segments), set(pool.retiring))
        return buffers, peers, rest, self.truth, self.ended

    def restore(self, saved: State) -> None:
        pool = self.pool
        buffers, peers, rest, self.truth, self.ended = saved
        pool.buffers = []
        for b, b.state, b.leases, missed, pixels in buffers:
            b.missed = missed.copy()
            b.words[0] = pixels
            pool.buffers.append(b)
        pool.readers = set()
        for p, p.asked, p.seen, p.mirror, held, p.refused, reader in peers:
            p.held = held.copy()
            p.reader = None
            if reader:
                r, damage, r.full, r.loose, segments, leases = reader
                p.reader = r
                r.damage, r.segments, r.leases = damage.copy(), segments.copy(), leases.copy()
                pool.readers.add(r)
        pool.current, pool.serial, segments, retiring = rest
        pool.segments, pool.retiring = segments.copy(), retiring.copy()
        pool._count()

    def key(self) -> Any:
        """What tells states apart, the same for states that are alike."""
        pool = self.pool
        rank = {memory: at for at, memory in enumerate(pool.segments)}
        # Of memory that retires only what is held counts: nothing is written there any more.
        kept = [b for b in pool.buffers if b.leases or b.segment in rank]
        plain = [
            (
                rank.get(b.segment, -1),
                b.state.value,
                b.segment in rank and cells(b.missed) & LEFT_BIT,
            )
            for b in kept
        ]
        place = {b: at for at, b in enumerate(kept)}
        peers = []
        for p in self.peers:
            r = p.reader
            if r is None:
                peers.append(((p.credits,), ()))
                continue
            held = [place[b] for b in r.leases.values()]
            if self.ended:
                peers.append(((p.credits, p.refused, len(held)), held))
                continue
            plainly = (
                p.credits,
                p.refused,
                p.refused or cells(r.damage),
                p.refused or r.full,
                sum(1 << rank[s] for s in r.segments if s in rank),
                sum(1 << rank[m] for m in p.asked if m in rank),
                tuple(sorted([plain[at] for at in held])),
            )
            peers.append((plainly, held))
        peers.sort(key=first)
        alike = [[*group] for _, group in itertools.groupby(peers, key=first)]
        buffers = min(self._holders(plain, order) for order in orders(alike))
        return (self.ended, tuple(p[0] for p in peers), buffers)

    def _holders(self, plain: list[tuple[Any, ...]], order: list[Any]) -> tuple[Any, ...]:
        """The buffers, each with who holds it, in an order of their own."""
        holders = [0] * len(plain)
        for at, (_, held) in enumerate(order):
            for place in held:
                holders[place] |= 1 << at
        return tuple(sorted((*b, h) for b, h in zip(plain, holders, strict=True)))


def number(memory: Memory) -> int:
    return memory.number


def first(pair: tuple[Any, ...]) -> Any:
    return pair[0]


def orders(alike: list[list[Any]]) -> Iterator[list[Any]]:
    """Every order of readers in which only those that are alike change places."""
    if all(len(group) == 1 for group in alike):
        yield [group[0] for group in alike]
        return
    for choice in itertools.product(*(itertools.permutations(group) for group in alike)):
        yield [peer for group in choice for peer in group]


def content(buffer: Buffer) -> tuple[int, int]:
    left, right = buffer.words.tolist()[0]
    return left, right


def cells(rects: list[Rect]) -> int:
    """Which of the two pixels, as bits."""
    bits = 0
    for _, left, _, right in rects:
        bits |= (1 << right) - (1 << left)
    return bits


def walk(
    world: World, visit: Callable[[State], None] = lambda saved: None
) -> tuple[int, Counter[str]]:
    """Visit every state that can be reached; returns how many there are, and how often each kind
    of action was tried."""
    tried: Counter[str] = Counter()
    seen = {digest(world.key())}
    todo = [world.save()]
    while todo:
        saved = todo.pop()
        visit(saved)
        world.restore(saved)
        for action in list(world.actions()):
            world.restore(saved)
            world.do(action)
            tried[action[0]] += 1
            key = digest(world.key())
            if key not in seen:
                seen.add(key)
                todo.append(world.save())
    return len(seen), tried


def digest(key: Any) -> bytes:
    """What is kept of a state that was seen: some have a million of them."""
    return hashlib.blake2b(marshal.dumps(key, 2), digest_size=16).digest()
