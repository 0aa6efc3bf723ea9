"""Runs the cases in rounds: every case once a round, in an order of the round's own.

What disturbs a machine lasts longer than a case but rarely as long as a benchmark; so the cases
that are compared with one another lie in the same round, and no case is always run at the same
place in it.
"""

from __future__ import annotations

import random
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import floor
from .machine import describe
from .process import Failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .cases import Case, Conditions
    from .stats import Measures

FORMAT = 1


@dataclass
class Gathered:
    """What was measured: for each case one entry a round, None where it failed.

    ``problems`` says of a case why it was not measured at all, or how it failed.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    rounds: dict[str, list[Measures | None]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "machine": self.machine,
            "settings": self.settings,
            "rounds": self.rounds,
            "problems": self.problems,
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Gathered:
        """Raises ValueError for what is no result of ours."""
        if stored.get("format") != FORMAT:
            raise ValueError(f"is not of format {FORMAT}")
        return cls(stored["machine"], stored["settings"], stored["rounds"], stored["problems"])


@contextmanager
def with_floor(conditions: Conditions) -> Iterator[Conditions]:
    """The conditions with the C floor compiled; without it where there is no compiler."""
    if floor.compiler() is None:
        yield conditions
        return
    with tempfile.TemporaryDirectory(prefix="spiceshm-bench-") as directory:
        yield replace(conditions, floor=floor.build(Path(directory)))


def gather(
    cases: Sequence[Case],
    conditions: Conditions,
    rounds: int,
    progress: Callable[[str], None],
) -> Gathered:
    """Run ``cases`` for so many rounds; ``progress`` is told of each before it begins."""
    settings = {"rounds": rounds, "seconds": conditions.seconds, "warmup": conditions.warmup}
    found = Gathered(describe(), settings)
    with with_floor(conditions) as now:
        runnable = []
        for case in cases:
            found.rounds[case.name] = []
            lack = case.lacks(now)
            if lack is None:
                runnable.append(case)
            else:
                found.problems[case.name] = f"not installed: {lack}"
        for number in range(rounds):
            order = random.Random(number).sample(runnable, len(runnable))
            for done, case in enumerate(order):
                progress(f"round {number + 1}/{rounds}, {done + 1}/{len(order)}: {case.name}")
                found.rounds[case.name].append(_once(case, now, found.problems))
    return found


def _once(case: Case, conditions: Conditions, problems: dict[str, str]) -> Measures | None:
    try:
        return case.run(conditions)
    except Failed as error:
        problems[case.name] = f"failed: {error}"
        return None
