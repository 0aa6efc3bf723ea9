"""Stock viewers beside a reader of shared memory: what they cost it, and the server, interleaved.

Round after round the reader is alone for a while, then beside one spicy on the Unix socket, one
remote-viewer over TCP, and one spicy that is stopped, in turn on either. At the end of each round
all of them must show the last picture, the stopped one as soon as it goes on; then they are killed,
and the server must hold what it held before.

The viewers and their X servers run at the lowest priority, for they would take the processors from
the server and the reader as any program would: what is left is what the server does for them.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import moving, stock
from .process import Child
from .run import PATIENCE_S, Broken, Result, place, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from .stock import Screen, Viewer

MOST_RATIO = 1.5
"""What may be so many times worse beside viewers than alone: medians of the rounds' ratios."""
JUDGED = ("deliveries", "cost_of_parts", "own_cost_of_parts", "own_cost_of_wholes")
"""Not how fast bursts are, which are few: whether somebody else had the processor then decides."""

GROWTH = 24_000_000
"""Bytes of its own that a server may gain between the first quarter of the run and the last."""

UPDATE = moving.WIDTH * moving.HEIGHT * 4 + (1 << 16)
"""Most bytes that may wait for one viewer that does not read its display channel: one update."""
OTHER = 1 << 16
"""The same of any other channel."""
CURSOR_MESSAGES = 3

_ROUNDS = 4
_MOST_ROUND_S = 40.0
_ALONE = 0.35
"""What part of a round the reader is alone."""
_SAMPLE_S = 0.2
_LEAST_S, _LEAST_BURSTS = 2.0, 2
"""How long anything is measured at least, also where viewers take their time to start."""
_KINDS = ("parts", "wholes")
_RATES = ("deliveries", "burst_deliveries")


class Part:
    """What was measured while nothing changed: alone or beside viewers."""

    def __init__(self, server: dict[str, Any], reader: dict[str, Any]) -> None:
        self.deliveries_per_s = len(reader["late"]) / reader["seconds"]
        self.burst_deliveries_per_s = reader["wholes"] / server["burst_s"]
        self.late_ns = reader["late"]
        self.costs = {kind: server[kind] for kind in _KINDS}
        self.published = sum(len(server[kind]) for kind in _KINDS)
        self.cpu = server["cpu_s"] / server["seconds"]
        self.images = Counter[str]()
        self.updates = [viewer["updates"] for viewer in server["viewers"]]
        for viewer in server["viewers"]:
            self.images.update(viewer["images"])

    def cost_us(self, kind: str) -> float:
        """The median time from begin to publish, of frames of one kind."""
        return float(np.median(self.costs[kind][:, 0])) / 1e3

    def own_cost_us(self, kind: str) -> float:
        """The same without the time in which others had the processor."""
        return float(np.median(_own(self.costs[kind]))) / 1e3


def _own(costs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Processor's time, or where Python's lock was waited for all the time: see `moving.Times`."""
    took, cpu, waits = costs.T
    return np.where(waits > 0, took, cpu)


class _Scene(NamedTuple):
    server: Child
    reader: Child
    screens: Sequence[Screen]
    uris: Sequence[str]


@dataclass
class Beside:
    """One run, for ``seconds``; ``tell`` is told of the progress: a line at a time."""

    seconds: float
    seed: str
    tell: Callable[[str], None]
    _alone: list[Part] = field(default_factory=list)
    _with: list[Part] = field(default_factory=list)
    _memory: list[tuple[int, int]] = field(default_factory=list)
    _most: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self.result = Result(self.seed)
        self._start = time.monotonic()

    def run(self) -> Result:
        """Run to the end. Ctrl-C ends it early, with what was measured until then."""
        with place() as (directory, address), contextlib.ExitStack() as stack:
            size = moving.WIDTH, moving.HEIGHT
            try:
                screens = stack.enter_context(stock.screens(3, *size, directory / "home"))
                self._main_part(address, screens)
            except (Broken, OSError) as error:
                self.result.failures.append(str(error))
            except KeyboardInterrupt:
                self.result.interrupted = True
        if self._with:
            self._judge()
        return self.result

    def _main_part(self, address: str, screens: Sequence[Screen]) -> None:
        with _child(moving.serve, (address, "tcp:127.0.0.1:0"), self.seed) as server:
            uris = _said(server, "ready")[0]
            with _child(moving.read, address) as reader:
                _ask(server, "draw", True)
                until(lambda: len(_ask(reader, "take")["late"]), "the first frames")
                before = _left(_ask(server, "holds"))
                length = min(_MOST_ROUND_S, self.seconds / _ROUNDS)
                self._start = time.monotonic()
                while (at := len(self._with)) < max(_ROUNDS, round(self.seconds / length)):
                    it = _Scene(server, reader, screens, uris)
                    self._round(it, at, self._start + (at + 1) * length)
                    _returns(server, before)

    def _round(self, it: _Scene, at: int, end: float) -> None:
        server, reader, screens, uris = it
        now = time.monotonic()
        alone = self._measure(server, reader, now + max(_LEAST_S, _ALONE * (end - now)))
        viewers: list[Viewer] = []
        try:
            viewers.append(screens[0].start("spicy", "--uri", uris[0]))
            viewers.append(screens[1].start("remote-viewer", "--auto-resize=never", uris[1]))
            viewers.append(screens[2].start("spicy", "--uri", uris[at % 2]))
            until(lambda: _all_look(server), "three viewers")
            viewers[2].stop()
            beside = self._measure(
                server, reader, max(end, time.monotonic() + _LEAST_S), server.pid
            )
            self._check_held(_ask(server, "holds"))
            self._check_pictures(server, reader, viewers)
        finally:
            for viewer in viewers:
                viewer.end()
        self._alone.append(alone)
        self._with.append(beside)
        self.tell(self._line(alone, beside))

    def _measure(self, server: Child, reader: Child, end: float, pid: int | None = None) -> Part:
        """What is done until ``end``, and until there were bursts; meanwhile the memory of process
        ``pid`` is noted."""
        _ask(server, "take")
        _ask(reader, "take")
        while time.monotonic() < end or _ask(server, "bursts") < _LEAST_BURSTS:
            if pid is not None:
                self._memory.append(resident_bytes(pid))
            time.sleep(_SAMPLE_S)
        return Part(_ask(server, "take"), _ask(reader, "take"))

    # What must hold

    def _check_held(self, holds: dict[str, Any]) -> None:
        """What waits for who does not read is no more than may."""
        for what, most in (("display", UPDATE), ("others", OTHER)):
            worst = max(holds["waiting"][what])
            self._most[f"most_waiting_{what}_bytes"] = max(
                worst, self._most[f"most_waiting_{what}_bytes"]
            )
            if worst > most:
                self._fail(f"{worst} bytes wait on a channel ({what})")
        worst = max(holds["unacknowledged_of_cursor"], default=0)
        if worst > CURSOR_MESSAGES:
            self._fail(f"{worst} messages of the pointer are on their way")
        for text in holds["warnings"]:
            self._fail(f"the server warned: {text}")

    def _check_pictures(self, server: Child, reader: Child, viewers: Sequence[Viewer]) -> None:
        """The last picture is everywhere: with the reader, on living screens, and then on the one
        of the viewer that was stopped."""
        picture = _ask(server, "draw", False)
        wanted = picture.view(np.uint32)[:, :, 0]
        until(lambda: np.array_equal(_ask(reader, "shows"), wanted), "the reader's last picture")
        for viewer in viewers[:2]:
            until(lambda v=viewer: v.screen.shows(picture), f"{viewer.name}'s last picture")
        viewers[2].go_on()
        stopped = viewers[2]
        until(lambda: stopped.screen.shows(picture), "the stopped viewer's last picture")
        for viewer in viewers:
            if not viewer.runs:
                self._fail(f"{viewer.name} ended by itself")
        _ask(server, "draw", True)

    def _fail(self, text: str) -> None:
        if text not in self.result.failures:
            self.result.failures.append(text)

    def _judge(self) -> None:
        ratios = {name: statistics.median(each) for name, each in self._ratios().items()}
        first, last = self._quarters()
        self.result.figures = {
            **self._figures(),
            **{f"ratio_{name}": round(ratio, 3) for name, ratio in ratios.items()},
            "private_mb_first_last_quarter": _mb(first[0], last[0]),
            "shared_mb_first_last_quarter": _mb(first[1], last[1]),
            **self._most,
            "seconds": round(time.monotonic() - self._start, 1),
        }
        for name in JUDGED:
            if ratios[name] > MOST_RATIO:
                self._fail(f"{name}: {ratios[name]:.2f} times worse beside viewers")
        if sum(last) > sum(first) + GROWTH:
            self._fail(
                f"resident memory grew from {sum(first) / 1e6:.0f} to {sum(last) / 1e6:.0f} MB"
            )

    def _ratios(self) -> dict[str, list[float]]:
        """Of each round how much worse it was beside viewers."""
        pairs = list(zip(self._alone, self._with, strict=True))
        ratios = {}
        for kind in _KINDS:
            ratios[f"cost_of_{kind}"] = [b.cost_us(kind) / a.cost_us(kind) for a, b in pairs]
            ratios[f"own_cost_of_{kind}"] = [
                b.own_cost_us(kind) / a.own_cost_us(kind) for a, b in pairs
            ]
        for rate in _RATES:
            ratios[rate] = [
                getattr(a, f"{rate}_per_s") / getattr(b, f"{rate}_per_s") for a, b in pairs
            ]
        return ratios

    def _quarters(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Medians of the server's own and its shared memory in the first and the last quarter."""
        samples = np.array(self._memory)
        count = max(1, len(samples) // 4)
        first, last = (np.median(part, axis=0) for part in (samples[:count], samples[-count:]))
        return (first[0], first[1]), (last[0], last[1])

    def _figures(self) -> dict[str, Any]:
        images = sum((part.images for part in self._with), Counter[str]())
        figures: dict[str, Any] = {"rounds": len(self._with), "images": dict(images)}
        for name, parts in (("alone", self._alone), ("beside", self._with)):
            for rate in _RATES:
                figures[f"{rate}_per_s_{name}"] = round(
                    statistics.median(getattr(part, f"{rate}_per_s") for part in parts), 1
                )
            for kind in _KINDS:
                costs = np.concatenate([part.costs[kind] for part in parts])
                figures[f"{kind}_{name}_us"] = _spread(costs[:, 0])
                figures[f"{kind}_{name}_own_us"] = _spread(_own(costs))
                waited = costs[costs[:, 2] > 0]
                figures[f"{kind}_{name}_waited_us"] = {
                    "frames_percent": round(100 * len(waited) / max(1, len(costs)), 1),
                    **_spread(waited[:, 0] - waited[:, 1]),
                }
            late = np.concatenate([part.late_ns for part in parts])
            figures[f"late_{name}_us"] = _spread(late)
            figures[f"server_cpu_{name}"] = round(statistics.median(p.cpu for p in parts), 2)
        return figures

    def _line(self, alone: Part, beside: Part) -> str:
        private, shared = self._memory[-1]
        updates = ", ".join(map(str, beside.updates))
        return (
            f"{time.monotonic() - self._start:5.0f} s  alone {alone.deliveries_per_s:.0f}/s, "
            f"beside viewers {beside.deliveries_per_s:.0f}/s, in bursts "
            f"{alone.burst_deliveries_per_s:.0f} and {beside.burst_deliveries_per_s:.0f}/s; "
            f"a part {alone.cost_us('parts'):.0f} and {beside.cost_us('parts'):.0f} us; "
            f"{updates} updates; "
            f"{private / 1e6:.0f} + {shared / 1e6:.0f} MB"
        )


def _spread(samples: NDArray[np.int64]) -> dict[str, int]:
    """Of times in ns, in us."""
    median, p99 = np.percentile(samples, [50, 99]) if len(samples) else (0, 0)
    return {"median": round(median / 1e3), "p99": round(p99 / 1e3)}


def _mb(*sizes: float) -> list[float]:
    return [round(float(size) / 1e6, 1) for size in sizes]


def resident_bytes(pid: int) -> tuple[int, int]:
    """Memory of a process that is resident: its own, and what it shares."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = dict(re.findall(r"^Rss(\w+):\s+(\d+) kB$", text, re.M))
    return int(found["Anon"]) * 1024, int(found["Shmem"]) * 1024


@contextlib.contextmanager
def _child(function: Callable[..., str], *arguments: Any) -> Iterator[Child]:
    child = Child(function, *arguments)
    try:
        yield child
    finally:
        child.close()


def _ask(child: Child, word: str, *rest: Any) -> Any:
    """What a process answers."""
    child.tell(word, *rest)
    return _said(child, word)[0]


def _said(child: Child, word: str) -> Sequence[Any]:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and not child.gone:
        child.link.poll(0.1)
        for first, *rest in child.heard():
            if first == word:
                return rest
            raise Broken(f"a process ended: {first} {' '.join(map(str, rest))}")
    raise Broken(f"no answer to {word!r} within {PATIENCE_S:g} s")


def _all_look(server: Child) -> bool:
    """Whether three viewers have been sent more than their first picture."""
    viewers = _ask(server, "take")["viewers"]
    return sum(viewer["updates"] > 3 for viewer in viewers) == 3


_RETURNS = ("viewers", "connections", "shm_bytes", "descriptors", "mappings", "threads")


def _left(holds: dict[str, Any]) -> dict[str, Any]:
    return {name: holds[name] for name in _RETURNS}


def _returns(server: Child, before: dict[str, Any]) -> None:
    """Wait until the server holds what it held before viewers came. Raises Broken."""
    now: dict[str, Any] = {}

    def same() -> bool:
        now.update(_left(_ask(server, "holds")))
        return now == before

    try:
        until(same, "viewers to be forgotten")
    except Broken as error:
        left = {name: (before[name], now[name]) for name in now if now[name] != before[name]}
        raise Broken(f"{error}: before and after {left}") from None
