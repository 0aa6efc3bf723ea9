"""Every interleaving of writer and readers, walked with the real `Pool`, not with a model of it.

What is walked, and why that is all there is, says tests/poolwalk.py. Each case says how many states
there are, so that none is lost unnoticed. Three readers are walked with growth where each has one
credit, and up to two credits each where the pool has its size from the start (all buffers, or too
few for ever).

SPICESHM_WALK_SCALE=2 walks LARGE too, which takes 250 s more where CASES take 40. Not walked at
all is growth for three readers of whom two or three have two credits.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from spiceshm.memory import Buffer, BufferState, Pool, Reader
from tests.poolwalk import Memory, State, World, digest, walk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spiceshm.memory import Frame, Segment
    from spiceshm.region import Rect

SCALE = int(os.environ.get("SPICESHM_WALK_SCALE", "1"))

# credits, buffers at first, most segments, all memory replaced at any time, states
CASES = [
    ((1,), 3, 3, True, 162),
    ((2,), 4, 3, True, 444),
    ((0, 1), 3, 3, True, 14707),
    ((0, 0, 0), 3, 2, False, 1940),
    ((0, 0, 0), 4, 1, False, 398),
    ((1, 1), 3, 2, True, 7240),
    ((2, 1), 4, 2, False, 10486),
    ((2, 2), 4, 2, False, 27563),
    ((1, 1, 1), 4, 2, False, 19033),
    ((2, 1, 1), 6, 1, False, 3326),
    ((2, 2, 2), 4, 1, False, 1263),
    ((2, 2, 2), 8, 1, False, 9036),
]
LARGE = [
    ((1, 1), 4, 3, True, 19534),
    ((2, 1), 4, 2, True, 52270),
    ((2, 2), 4, 2, True, 68708),
    ((2, 1, 1), 4, 2, False, 306908),
]


@pytest.mark.parametrize(
    ("credits", "first", "segments", "forgets", "states"), CASES + (LARGE if SCALE > 1 else [])
)
def test_every_interleaving(
    credits: tuple[int, ...], first: int, segments: int, forgets: bool, states: int
) -> None:
    found, tried = walk(World(credits, first, segments, forgets=forgets))
    wanted = ["publish", "abandon", "join", "leave", "lend", "release", "end"]
    wanted += ["forget"] if forgets else []
    wanted += ["accept", "refuse"] if any(credits) and (forgets or segments > 1) else []
    wanted += ["grow", "shrink"] if segments > 1 else []
    assert sorted(tried) == sorted(wanted)
    # Fewer would mean that something is not walked any more; more, that the pool does more.
    assert found == states


@pytest.mark.parametrize("case", [((2,), 4, 3, True), ((1, 1), 3, 2, False)])
def test_states_that_are_alike_go_on_alike(case: tuple[tuple[int, ...], int, int, bool]) -> None:
    """What is not walked again may be left out: whenever a state that was met comes again, made in
    another way, the same states come after it."""
    world = World(*case[:3], forgets=case[3])
    after: dict[bytes, set[bytes]] = {}
    met: Counter[bytes] = Counter()
    todo = [world.save()]
    while todo:
        saved = todo.pop()
        world.restore(saved)
        key, following = digest(world.key()), set()
        for action in list(world.actions()):
            world.restore(saved)
            world.do(action)
            follower = digest(world.key())
            following.add(follower)
            met[follower] += 1
            if met[follower] <= 3:
                todo.append(world.save())
        assert after.setdefault(key, following) == following
    assert sum(count > 1 for count in met.values()) > len(met) / 2


@pytest.mark.parametrize("credits", [(2,), (1, 1), (0, 2)])
def test_a_frame_is_wanted_where_somebody_would_be_lent_it(credits: tuple[int, ...]) -> None:
    """In every state, whichever buffer is drawn in: `Pool.wants` is right, both ways."""
    world = World(credits, 3, 2)
    answers: Counter[bool] = Counter()

    def visit(saved: State) -> None:
        world.restore(saved)
        for action in [action for action in world.actions() if action[0] == "publish"]:
            for peer in world.peers:
                world.restore(saved)
                world.put_first(action[1])
                if peer.reader is None:
                    continue
                wanted = world.pool.wants(peer.reader)
                world.do(action)
                frame = world.pool.lend(peer.reader)
                assert wanted == (frame is not None)
                answers[wanted] += 1

    walk(world, visit)
    assert answers[True] > 100
    assert answers[False] > 100


def test_all_that_a_state_is_made_of_is_known() -> None:
    """Whoever gives the pool more to remember has to look at `World.save` and `World.key`."""
    world = World((1,), 3, 1)
    assert vars(world.pool).keys() == {
        *("width", "height", "stride", "segments", "retiring", "buffers", "readers", "current"),
        *("serial", "published", "version", "starved", "_serials"),
        *("carried", "_news", "_complete"),  # a figure; noted and counted before it is looked at
    }
    assert vars(world.pool.buffers[0]).keys() == {
        *("segment", "offset", "pixels", "words", "missed", "state", "leases"),
    }
    assert vars(world.pool.join(1)).keys() == {
        *("credits", "damage", "local", "full", "loose"),
        *("busy", "done", "coalesced", "segments", "leases"),
    }


# The walk can fail: a pool with a fault, and what is found


class FreesWhatIsLent(Pool):
    def publish(self, buffer: Buffer, damage: Sequence[Rect], now: int) -> int:
        old, serial = self.current, super().publish(buffer, damage, now)
        if old is not None:
            old.state = BufferState.FREE
        return serial


class DrawsInWhatIsLent(Pool):
    def begin(self, damage: Sequence[Rect]) -> Buffer:
        for reader in self.readers:
            for lent in reader.leases.values():
                if lent is not self.current:
                    lent.words[:] = 1 << 31
        return super().begin(damage)


class EndsLeasesWithTheSurface(Pool):
    def end(self) -> None:
        super().end()
        for reader in self.readers:
            for serial in list(reader.leases):
                self.release(reader, serial)


class EndsTheOldestLease(Pool):
    """As a timer would."""

    def publish(self, buffer: Buffer, damage: Sequence[Rect], now: int) -> int:
        for reader in self.readers:
            if len(reader.leases) == reader.credits:
                self.release(reader, min(reader.leases))
        return super().publish(buffer, damage, now)


class KeepsNoBufferBack(Pool):
    def _spare(self, buffer: Buffer) -> bool:
        return True


class KeepsOneBufferFewerBack(Pool):
    def _spare(self, buffer: Buffer) -> bool:
        leased = sum(1 for other in self.buffers if other.leases)
        return bool(buffer.leases) or leased + 1 <= len(self.buffers) - 1


class GrowsWhenItPublishes(Pool):
    def publish(self, buffer: Buffer, damage: Sequence[Rect], now: int) -> int:
        self.add(Memory(99, 1))  # type: ignore[arg-type]
        return super().publish(buffer, damage, now)


class LosesDamageOfTheRefused(Pool):
    def lend(self, reader: Reader) -> Frame | None:
        frame = super().lend(reader)
        if frame is None and self.starved:
            reader.damage = []
        return frame


class LosesDamageOfThoseWithoutCredit(Pool):
    def publish(self, buffer: Buffer, damage: Sequence[Rect], now: int) -> int:
        before = {reader: reader.damage for reader in self.readers if not reader.ready}
        serial = super().publish(buffer, damage, now)
        for reader, old in before.items():
            reader.damage = old
        return serial


class CopiesNothingForward(Pool):
    def begin(self, damage: Sequence[Rect]) -> Buffer:
        for buffer in self.buffers:
            if buffer.state is BufferState.FREE:
                buffer.missed = []
        return super().begin(damage)


class LendsWhatIsNotSeen(Pool):
    def lend(self, reader: Reader) -> Frame | None:
        reader.segments.update(self.segments)
        return super().lend(reader)


class LendsBeyondCredits(Pool):
    def lend(self, reader: Reader) -> Frame | None:
        reader.credits += 1
        try:
            return super().lend(reader)
        finally:
            reader.credits -= 1


class KeepsMemory(Pool):
    def collect(self) -> list[Segment]:
        return []


class GivesBackWhatIsLent(Pool):
    def collect(self) -> list[Segment]:
        gone, self.retiring = self.retiring, set()
        self.buffers = [b for b in self.buffers if b.segment not in gone]
        return list(gone)


class NeverShrinks(Pool):
    surplus: list[Segment] = []  # type: ignore[assignment]  # noqa: RUF012


class GrowsTooMuch(Pool):
    def missing_with(self, credits: int, *, all_new: bool = False) -> int:
        return 3 * super().missing_with(credits, all_new=all_new)


class GrowsTooLittle(Pool):
    def missing_with(self, credits: int, *, all_new: bool = False) -> int:
        missing = super().missing_with(credits, all_new=all_new)
        return missing if all_new else min(missing, 1)


class LendsToAllInThisProcess(Pool):
    _local_is_full = False  # type: ignore[assignment]


class LendsInThisProcessForNothing(Pool):
    @property
    def _credits(self) -> int:
        return sum(reader.credits for reader in self.readers if not reader.local)


FAULTS = [
    (FreesWhatIsLent, "a free buffer is leased"),  # 1
    (DrawsInWhatIsLent, "a held frame has changed|damage was lost"),  # 1
    (EndsLeasesWithTheSurface, "a lease is not what a reader holds"),  # 2
    (EndsTheOldestLease, "a lease is not what a reader holds"),  # 2
    (KeepsNoBufferBack, "the writer would have to wait"),  # 3
    (KeepsOneBufferFewerBack, "the writer would have to wait"),  # 3
    (GrowsWhenItPublishes, "publishing allocates"),  # 3
    (LosesDamageOfTheRefused, "damage was lost"),  # 4
    (LosesDamageOfThoseWithoutCredit, "damage was lost"),  # 4
    (CopiesNothingForward, "damage was lost"),  # 4
    (LendsWhatIsNotSeen, "lent in memory that it has not accepted"),
    (LendsBeyondCredits, "more is lent than its credits"),  # 5
    (KeepsMemory, "memory is kept in which nobody looks"),  # 6
    (GivesBackWhatIsLent, "memory was given back in which somebody looks"),  # 6
    (NeverShrinks, "memory is kept that nobody needs"),  # 6
    (GrowsTooMuch, "more memory than for all credits"),  # 6
    (GrowsTooLittle, "too little memory for all credits"),
]


@pytest.mark.parametrize(("kind", "found"), FAULTS)
def test_a_fault_is_found(kind: type[Pool], found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        walk(World((2, 1), 3, 2, forgets=True, kind=kind))


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (LendsToAllInThisProcess, "more is lent in this process|the writer would have to wait"),
        (LendsInThisProcessForNothing, "too little memory for all credits|have to wait"),
    ],
)
def test_a_fault_among_readers_in_this_process_is_found(kind: type[Pool], found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        walk(World((0, 0, 0), 3, 2, kind=kind))
