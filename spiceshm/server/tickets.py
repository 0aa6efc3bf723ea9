"""Guessing made slow: who was wrong of late waits for the next verdict, be it right or wrong.

The first wrong ticket is answered at once, so that nobody who mistypes notices. No verdict waits
longer than `LONGEST_S`: whoever knows the password gets in beside one who guesses from the same
host. Here is no clock: ``now`` is in seconds of any that only goes forward.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable

FIRST_S = 0.1
"""What a verdict waits after one wrong ticket, in seconds; twice that after two, and so on."""

LONGEST_S = 0.8
FORGET_S = 60.0
"""Seconds without a wrong ticket after which a host is as good as new."""

MAX_HOSTS = 1024
"""Hosts that are remembered; the one that was wrong the longest ago makes room for another."""


class _Failures(NamedTuple):
    times: int
    last: float


class WrongTickets:
    """How often each host has shown a wrong ticket of late. A host is anything that hashes."""

    def __init__(self) -> None:
        self._hosts: OrderedDict[Hashable, _Failures] = OrderedDict()

    def judge(self, host: Hashable, *, right: bool, now: float) -> float:
        """Take down a verdict; returns how many seconds it is to wait before it is told.

        That depends on what was before and not on the verdict: a guess can be known to be wrong no
        sooner than a right one would be known to be right.
        """
        known = self._hosts.pop(host, None)
        count = known.times if known is not None and now - known.last < FORGET_S else 0
        if not right:
            if len(self._hosts) >= MAX_HOSTS:
                self._hosts.popitem(last=False)
            self._hosts[host] = _Failures(count + 1, now)
        return min(FIRST_S * 2 ** min(count - 1, 8), LONGEST_S) if count else 0.0

    def __len__(self) -> int:
        return len(self._hosts)
