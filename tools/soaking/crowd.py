"""Readers that come and go: how many, of which kinds, and what is done to them is drawn at random.

Strategy: nothing here waits. `tick` hears what the readers say, does to them what is due, and
replaces those that are gone; whoever runs the crowd calls it again and again.
"""

from __future__ import annotations

import collections
import multiprocessing.connection
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .picture import Tally
from .process import Child
from .reader import Plan, read

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

KINDS = {
    "brief": (8, 5.0, 5.0),
    "fast": (6, 0.1, 2.0),
    "slow": (6, 0.1, 2.0),
    "silent": (3, 0.5, 3.0),
    "leaking": (1, 6.5, 7.5),
    "ordinary": (3, 0.1, 2.0),
    "ordinary-slow": (2, 0.1, 2.0),
}
"""How often, and for how many seconds, from and to."""

_KILLED, _STOPPED = 0.2, 0.25
_TICK_S = 0.02


@dataclass(eq=False)
class Member:
    """One reader and what is to be done to it, by the clock; infinity: never."""

    plan: Plan
    child: Child
    kill_at: float = float("inf")
    stop_at: float = float("inf")
    go_on_at: float = float("inf")
    killed: bool = False
    shared: bool = False
    tally: Tally = field(default_factory=Tally)


class Crowd:
    """``size`` readers of the server at ``address``, and all those before them."""

    def __init__(self, address: str, size: int, choose: random.Random) -> None:
        self.address = address
        self.size = size
        self.members: list[Member] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.kinds: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []
        self._choose = choose
        self._past = Tally()

    @property
    def tally(self) -> Tally:
        """What all readers so far have seen."""
        return sum((member.tally for member in self.members), self._past)

    def tick(self, *, replace: bool = True) -> None:
        """Go on for a moment."""
        links = [member.child.link for member in self.members]
        multiprocessing.connection.wait(links, _TICK_S)
        now = time.monotonic()
        for member in list(self.members):
            self._hear(member)
            if member.child.here and not member.child.gone:
                self._do(member, now)
        while replace and len(self.members) < self.size:
            self.start(self._plan())

    def start(self, plan: Plan, *, spared: bool = False) -> Member:
        """One reader more; ``spared``: nothing is done to it."""
        now = time.monotonic()
        member = Member(plan, Child(read, self.address, plan))
        fate = 1.0 if spared else self._choose.random()
        if fate < _KILLED:
            member.kill_at = now + self._choose.uniform(0, min(plan.seconds, 1.5))
        elif fate < _KILLED + _STOPPED:
            member.stop_at = now + self._choose.uniform(0, min(plan.seconds, 1.5))
            member.go_on_at = member.stop_at + self._choose.uniform(0.05, 1.0)
        self.members.append(member)
        self.counts["readers"] += 1
        self.kinds[plan.kind] += 1
        return member

    def _plan(self) -> Plan:
        kinds = list(KINDS)
        if self.counts["readers"] < len(kinds):  # one of each, to begin with
            kind = kinds[self.counts["readers"]]
        else:
            [kind] = self._choose.choices(kinds, [row[0] for row in KINDS.values()])
        seconds = self._choose.uniform(*KINDS[kind][1:])
        return Plan(kind, seconds, self._choose.randint(1, 8), str(self._choose.random()))

    def _hear(self, member: Member) -> None:
        for word, *rest in member.child.heard():
            if word == "tally":
                member.tally, shared = rest
                member.shared = member.shared or shared
            elif word == "failed":
                self.failures.append(f"a {member.plan.kind} reader failed: {rest[0]}")
            else:
                self._ended(member, rest[0])
        if member.child.gone:
            self._gone(member)

    def _ended(self, member: Member, how: str) -> None:
        if how.startswith("not connected"):
            self.failures.append(f"a {member.plan.kind} reader was {how}")
        self.counts[how.partition(":")[0]] += 1

    def _gone(self, member: Member) -> None:
        status = member.child.close()
        self.members.remove(member)
        self._past += member.tally
        self.counts["shared"] += member.shared
        if member.killed:
            self.counts["killed"] += 1
        elif status != 0:
            self.failures.append(f"a {member.plan.kind} reader ended with status {status}")

    def _do(self, member: Member, now: float) -> None:
        if now > member.kill_at:
            member.kill_at, member.killed = float("inf"), True
            member.child.signal(signal.SIGKILL)
        if now > member.stop_at:
            member.stop_at = float("inf")
            member.child.signal(signal.SIGSTOP)
            self.counts["stopped"] += 1
        elif now > member.go_on_at:
            member.go_on_at = float("inf")
            member.child.signal(signal.SIGCONT)

    def freeze(self) -> None:
        """Stop every reader where it is; those that only begin are waited for."""
        while not all(member.child.here for member in self.members):
            self.tick(replace=False)
        for member in self.members:
            member.child.signal(signal.SIGSTOP)
            self.counts["stopped"] += 1

    def thaw(self) -> None:
        for member in self.members:
            member.stop_at = member.go_on_at = float("inf")
            member.child.signal(signal.SIGCONT)

    def dismiss(self, members: Iterable[Member] | None = None) -> None:
        """Tell readers, all unless some are named, to leave."""
        self.thaw()
        for member in self.members if members is None else members:
            member.child.tell("leave")

    def close(self) -> None:
        """End all of them now."""
        for member in self.members:
            member.child.close()
        self.members.clear()
