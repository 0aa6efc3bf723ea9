"""The whole of it: a server, a crowd, phase after phase, and what must hold of them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .crowd import Crowd
from .process import Child
from .reader import KINDS, Plan
from .writer import HOME, Phase, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .picture import Tally

PATIENCE_S = 60.0
"""Whatever takes longer than this on the slowest machine will never come."""

LIMIT = 48_000_000
"""Bytes of shared memory; little enough that some readers cannot have all that they want."""

_SIZES = ((64, 48), (333, 217), (320, 240), (640, 360), (321, 200))
PHASES = (
    Phase("steady", 300),
    Phase("a mode every 100 ms", 250, mode_s=0.1, sizes=_SIZES),
    Phase("as fast as it can", 0, sizes=((333, 217),)),
    Phase("memory replaced", 500, forget=True, sizes=((640, 360),)),
    Phase("both at once", 0, mode_s=0.1, sizes=_SIZES, forget=True),
)
_PHASE_S = 6.0
_FROZEN_FRAMES = 200
_ENOUGH_FRAMES = 100
_BROKEN_PATIENCE_S = 1.0
_GROWTH = 64_000_000
"""Private memory that a server may gain between the second phase and the last one."""

STEADY = (1, 2, 4, 8, 16)
_STEADY_PHASE = Phase("steady readers", 0, sizes=((640, 360),))


class Broken(Exception):
    """It cannot go on; the text says why."""


@dataclass
class Result:
    """What was seen, and what was wrong with it."""

    seed: str
    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    interrupted: bool = False

    def check_tally(self, tally: Tally) -> None:
        for name, count in tally.bad.items():
            self.failures.append(f"{count} of {tally.frames} frames were {name}")


class Server:
    """The writer's process."""

    def __init__(self, address: str, seed: str, *, limit: int = LIMIT, broken: str | None = None):
        self.child = Child(write, address, seed, limit, broken)
        self._expect("ready")

    def enter(self, phase: Phase) -> None:
        self.child.tell("phase", phase)

    def ask(self, what: str) -> dict[str, Any]:
        """Its "report", or what it "holds"."""
        self.child.tell(what)
        answer: dict[str, Any] = self._expect(what)[1]
        return answer

    def _expect(self, word: str) -> tuple[Any, ...]:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and not self.child.gone:
            self.child.link.poll(0.1)
            for said in self.child.heard():
                if said[0] == word:
                    return said
                raise Broken(f"the server: {' '.join(map(str, said))}")
        raise Broken(f"the server {'is gone' if self.child.gone else 'does not answer'}")

    def end(self) -> None:
        """End it as a program ends."""
        self.child.tell("end")
        self._expect("end")
        until(lambda: self.child.heard() or self.child.gone, "the server's end")
        if self.child.close():
            raise Broken("the server ended with an error")


def until(condition: Callable[[], object], what: str) -> None:
    """Ask again and again until it says something true. Raises Broken after a minute."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise Broken(f"waited {PATIENCE_S:g} s for {what}")
        time.sleep(0.01)


@contextlib.contextmanager
def place() -> Iterator[tuple[Path, str]]:
    """A directory for the socket, which must be empty again at the end; and the address."""
    with tempfile.TemporaryDirectory(prefix="spiceshm-soak-") as directory:
        yield Path(directory), f"unix:{directory}/s"


@dataclass
class Soak:
    """One run, for ``seconds``, and until so many ``visits`` were paid by readers.

    ``tell`` is told of the progress: seconds, phase, figures.
    """

    seconds: float
    readers: int
    seed: str
    visits: int = 0
    broken: str | None = None
    tell: Callable[[float, str, dict[str, Any]], None] = lambda *_: None

    def __post_init__(self) -> None:
        self.result = Result(self.seed)
        self._choose = random.Random(self.seed)
        self._most_shm = 0
        self._private = 0
        self._stalls = 0
        self._start = time.monotonic()

    def run(self) -> Result:
        """Run to the end. Ctrl-C ends it early, with all its checks."""
        try:
            with place() as (directory, address):
                self._main_part(address)
                if os.listdir(directory):
                    self.result.failures.append(f"left behind: {os.listdir(directory)}")
            if not (self.broken or self.result.interrupted):
                with place() as (_, address):
                    self._server_killed(address)
        except Broken as error:
            self.result.failures.append(str(error))
        self.result.figures["seconds"] = round(time.monotonic() - self._start, 1)
        return self.result

    def _main_part(self, address: str) -> None:
        server = Server(address, self.seed, broken=self.broken)
        crowd = Crowd(address, self.readers, self._choose)
        try:
            before = server.ask("holds")
            try:
                self._phases(server, crowd)
            except KeyboardInterrupt:
                self.result.interrupted = True
            self._everybody_leaves(crowd)
            self._nothing_is_left(server, before)
            self._judge(server.ask("report"), crowd)
            server.end()
        finally:
            crowd.close()
            if not server.child.gone:
                server.child.close()

    def _phases(self, server: Server, crowd: Crowd) -> None:
        length = min(_PHASE_S, self.seconds / len(PHASES))
        at = 0
        while not self._done(crowd):
            phase = PHASES[at % len(PHASES)]
            server.enter(phase)
            if self.broken:
                self._for_a_while(server, crowd, phase, self._spent + _PHASE_S)
                continue
            end = self._spent + length
            self._for_a_while(server, crowd, phase, end - length / 2)
            self._frozen(server, crowd)
            self._for_a_while(server, crowd, phase, end)
            at += 1
            if at == 2:
                self._private = server.ask("report")["private_bytes"]

    @property
    def _spent(self) -> float:
        return time.monotonic() - self._start

    def _done(self, crowd: Crowd) -> bool:
        if self.broken:
            return self._found(crowd)
        return self._spent >= self.seconds and crowd.counts["readers"] >= self.visits

    def _found(self, crowd: Crowd) -> bool:
        """Whether a writer that is wrong on purpose has had time to show what is wrong with it."""
        return bool(self.broken and (crowd.tally.frames > _ENOUGH_FRAMES or self._stalls))

    def _for_a_while(self, server: Server, crowd: Crowd, phase: Phase, end: float) -> None:
        next_look = 0.0
        while self._spent < end and not self._found(crowd):
            crowd.tick()
            if self._spent > next_look:
                next_look = self._spent + 0.5
                self._look(server, crowd, phase)

    def _look(self, server: Server, crowd: Crowd, phase: Phase) -> None:
        report = server.ask("report")
        self._most_shm = max(self._most_shm, report["shm_bytes"])
        self._stalls = report["stalls"]
        self.tell(self._spent, phase.name, self._figures(report, crowd))

    def _frozen(self, server: Server, crowd: Crowd) -> None:
        """Whatever the readers hold at this moment, the writer goes on without them."""
        crowd.freeze()
        before = server.ask("report")["published"]
        try:
            until(
                lambda: server.ask("report")["published"] >= before + _FROZEN_FRAMES,
                f"{_FROZEN_FRAMES} frames while all readers were stopped",
            )
        finally:
            crowd.thaw()

    def _everybody_leaves(self, crowd: Crowd) -> None:
        crowd.dismiss()
        _tick_until(crowd, lambda: not crowd.members, "readers to leave when told")

    def _nothing_is_left(self, server: Server, before: dict[str, Any]) -> None:
        """In the mode of the beginning the server must hold what it held there."""
        server.enter(Phase("the end", 200, sizes=(HOME,)))
        end = time.monotonic() + (_BROKEN_PATIENCE_S if self.broken else PATIENCE_S)
        while (now := server.ask("holds")) != before:
            if time.monotonic() > end:
                left = {
                    name: (before[name], now[name]) for name in now if now[name] != before[name]
                }
                self.result.failures.append(f"left over, before and after: {left}")
                return
            time.sleep(0.02)

    def _judge(self, report: dict[str, Any], crowd: Crowd) -> None:
        self.result.figures = self._figures(report, crowd)
        self.result.check_tally(crowd.tally)
        self.result.failures += crowd.failures
        self.result.failures += [f"the server warned: {text}" for text in report["warnings"]]
        if report["stalls"]:
            self.result.failures.append(
                f"the writer waited {report['stalls']} times, up to {report['longest_us']} us"
            )
        if self._private and report["private_bytes"] > self._private + _GROWTH:
            self.result.failures.append(
                f"the server's own memory grew from {self._private / 1e6:.0f} "
                f"to {report['private_bytes'] / 1e6:.0f} MB"
            )
        if self._most_shm > LIMIT:
            self.result.failures.append(f"{self._most_shm} bytes of shared memory pass the limit")
        lost = crowd.counts["disconnected"]
        if lost:
            self.result.failures.append(f"{lost} readers were disconnected by a living server")

    def _figures(self, report: dict[str, Any], crowd: Crowd) -> dict[str, Any]:
        tally, counts = crowd.tally, crowd.counts
        return {
            "published": report["published"],
            "seen": tally.frames,
            "torn": tally.torn,
            "lost": tally.lost,
            "wrong": tally.wrong,
            "changed": tally.changed,
            "backwards": tally.backwards,
            "readers": counts["readers"],
            "readers_now": len(crowd.members),
            "shared": counts["shared"],
            "killed": counts["killed"],
            "stopped": counts["stopped"],
            "kinds": dict(sorted(crowd.kinds.items())),
            "modes": report["modes"],
            "memory_replaced": report["forgotten"],
            "memory_refused": report["refused"] + report["too_few_buffers"],
            "most_shm_bytes": self._most_shm,
            "draw_median_us": report["median_us"],
            "draw_longest_us": report["longest_us"],
            "draw_stalls": report["stalls"],
            "private_bytes": report["private_bytes"],
        }

    def _server_killed(self, address: str) -> None:
        """A server that is killed: every reader is told, and none is torn from what it holds."""
        server = Server(address, self.seed)
        server.enter(Phase("to be killed", 300))
        crowd = Crowd(address, 0, self._choose)
        try:
            kinds = [kind for kind in KINDS if kind != "brief"]
            for kind in kinds:
                crowd.start(Plan(kind, PATIENCE_S, 3, self.seed), spared=True)
            _tick_until(crowd, lambda: all(m.tally.frames for m in crowd.members), "first frames")
            server.child.signal(signal.SIGKILL)
            _tick_until(crowd, lambda: not crowd.members, "readers to notice that it is gone")
            self.result.failures += crowd.failures
            self.result.check_tally(crowd.tally)
            if crowd.counts["disconnected"] != len(kinds):
                self.result.failures.append(
                    f"of {len(kinds)} readers of a killed server ended: {dict(crowd.counts)}"
                )
        finally:
            crowd.close()
            server.child.close()


def _tick_until(crowd: Crowd, condition: Callable[[], bool], what: str) -> None:
    """Let the crowd go on, without replacing anybody, until something is so."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        crowd.tick(replace=False)
        if time.monotonic() > end:
            raise Broken(f"waited {PATIENCE_S:g} s for {what}")


def steady(frames: int, seed: str, tell: Callable[[str], None]) -> Result:
    """``frames`` frames checked, by 1, 2, 4, 8 and 16 readers in turn that do nothing wrong."""
    result = Result(seed)
    start = time.monotonic()
    rows: list[dict[str, int]] = []
    try:
        for readers in STEADY:
            with place() as (_, address):
                row = _steady(address, readers, -(-frames // len(STEADY)), result)
            rows.append(row)
            tell(", ".join(f"{value} {name}" for name, value in row.items()))
    except Broken as error:
        result.failures.append(str(error))
    except KeyboardInterrupt:
        result.interrupted = True
    total = {name: sum(row[name] for row in rows) for name in ("published", "seen", "torn", "lost")}
    seconds = round(time.monotonic() - start, 1)
    result.figures = {**total, "by_readers": rows, "seconds": seconds}
    return result


def _steady(address: str, readers: int, frames: int, result: Result) -> dict[str, int]:
    server = Server(address, result.seed)
    crowd = Crowd(address, 0, random.Random(result.seed))
    try:
        server.enter(_STEADY_PHASE)
        for _ in range(readers):
            crowd.start(Plan("fast", float("inf")), spared=True)
        moved, seen = time.monotonic(), 0
        while (now := crowd.tally.frames) < frames and not crowd.failures:
            if now > seen:
                moved, seen = time.monotonic(), now
            if time.monotonic() > moved + PATIENCE_S:
                raise Broken(f"no frame within {PATIENCE_S:g} s")
            crowd.tick(replace=False)
        crowd.dismiss()
        _tick_until(crowd, lambda: not crowd.members, "readers to leave")
        report = server.ask("report")
        server.end()
    finally:
        crowd.close()
        if not server.child.gone:
            server.child.close()
    tally = crowd.tally
    result.check_tally(tally)
    result.failures += crowd.failures
    counts = {"readers": readers, "published": report["published"], "seen": tally.frames}
    return {**counts, "torn": tally.torn, "lost": tally.lost}
