"""The job in spiceshm: a producer and its readers, through the public API alone.

Each runs in a process of its own. The producer decides what is measured: it warms up, takes times
for so many seconds, and closes; readers look until then. Both note what they see by serial, and
`measure` joins that.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import tempfile
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import trio

import spiceshm

from .process import Failed, cpu_ns, workers
from .stats import Measures, latencies
from .work import Work, everything, moved

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

    from .process import Worker

_SETTLE_S = 0.05
"""So long after it something that happens at once has happened."""

_LEAST = 3
"""Updates that are made whatever time they take."""

_MARK = 0xFFFFFF


@dataclass(frozen=True)
class Produced:
    """What the producer did in the measured time: update ``first + i`` was begun at ``begun[i]``,
    and painting and publishing it took ``painted[i]`` ns."""

    first: int
    begun: NDArray[np.int64]
    painted: NDArray[np.int64]
    start: int
    end: int
    cpu: int
    readers_cpu: int


@dataclass(frozen=True)
class Seen:
    """What one reader saw: each frame's serial, when it was published, when it was copied.

    ``wire`` is the bytes of its display channel for all of that, both ways; ``pixels`` the bytes
    of pixels that were said to have changed. Both are the library's own counters.
    """

    serials: NDArray[np.int64]
    published: NDArray[np.int64]
    copied: NDArray[np.int64]
    wire: int
    pixels: int


# The producer


def produce(link: Connection, work: Work, address: str, seconds: float, warmup: float) -> None:
    """Serve at ``address``; send where that is, wait for the readers' pids, send `Produced`."""
    trio.run(_produce, link, work, address, seconds, warmup)


async def _produce(
    link: Connection, work: Work, address: str, seconds: float, warmup: float
) -> None:
    with trio.fail_after(seconds + warmup + 60):
        async with spiceshm.serve(address, shm="auto" if work.through == "shm" else "off") as to:
            surface = to.create_surface(*work.size)
            surface.draw(np.zeros((work.size[1], work.size[0], 4), np.uint8))
            link.send(str(to.addresses[0]))
            readers: list[int] = await trio.to_thread.run_sync(link.recv)
            await trio.sleep(_SETTLE_S)  # memory for many credits is made when a reader has come
            paint = _painter(work, surface)
            await _paint_for(warmup, work, surface, paint)
            cpu, start = [cpu_ns(pid) for pid in readers], time.monotonic_ns()
            own, first = time.process_time_ns(), surface.serial + 1
            begun, painted = await _paint_for(seconds, work, surface, paint)
            end, own = time.monotonic_ns(), time.process_time_ns() - own
            used = sum(cpu_ns(pid) - before for pid, before in zip(readers, cpu, strict=True))
            await trio.sleep(_SETTLE_S + work.hold_s * bool(work.slow))
        times = np.array(begun, np.int64), np.array(painted, np.int64)
        link.send(Produced(first, *times, start, end, own, used))


async def _paint_for(
    seconds: float, work: Work, surface: Any, paint: Callable[[int], None]
) -> tuple[list[int], list[int]]:
    """Make updates for a while; returns when each was begun, and how long it took."""
    begun: list[int] = []
    painted: list[int] = []
    end = time.monotonic_ns() + int(seconds * 1e9)
    while True:
        if work.pause_s:
            await trio.sleep(work.pause_s)
        else:
            await surface.wanted()
        now = time.monotonic_ns()
        if now >= end and len(begun) >= _LEAST:
            return begun, painted
        begun.append(now)
        paint(surface.serial + 1)
        painted.append(time.monotonic_ns() - now)


def _painter(work: Work, surface: Any) -> Callable[[int], None]:
    """A function that makes one update, given its serial."""
    whole = work.rects == everything(work.size)
    top, left = work.rects[0][:2]
    picture = _page_aligned(work.size)
    words = picture.view(np.uint32)[:, :, 0]

    def damage(serial: int) -> Any:
        return "all" if whole else moved(work, serial)

    def draw(serial: int) -> None:
        words[top, left] = serial & _MARK
        surface.draw(picture, damage(serial))

    def fill(serial: int) -> None:
        with surface.frame(damage(serial)) as frame:
            for t, l, b, r in moved(work, serial):  # noqa: E741
                frame.pixels[t:b, l:r] = serial & 0xFF

    def stamp(serial: int) -> None:
        with surface.frame(damage(serial)) as frame:
            for t, l, _, r in moved(work, serial):  # noqa: E741
                frame.pixels[t, l:r].view(np.uint32)[:] = serial & _MARK

    return {"draw": draw, "fill": fill, "stamp": stamp}[work.paint]


def _page_aligned(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Memory that begins on a page, as a reader of pixels should have it: see the README."""
    pixels = np.frombuffer(mmap.mmap(-1, size[0] * size[1] * 4), np.uint8)
    pixels[:] = 0x55
    return pixels.reshape(size[1], size[0], 4)


# The readers


def look(link: Connection, work: Work, address: str, hold_s: float) -> None:
    """Connect and say so, mirror what is shown until the producer goes, send `Seen`."""
    trio.run(_look, link, work, address, hold_s)


async def _look(link: Connection, work: Work, address: str, hold_s: float) -> None:
    choose = random.Random(os.getpid())
    mirror = _page_aligned(work.size)
    shm: Literal["require", "off"] = "require" if work.through == "shm" else "off"
    serials: list[int] = []
    published: list[int] = []
    copied: list[int] = []
    async with spiceshm.connect(address, shm=shm, credits=work.credits) as display:
        link.send("connected")
        wire, pixels = display.wire_bytes, display.pixel_bytes
        try:
            async for frame in display.frames():
                serials.append(_mirror(frame, mirror, work))
                copied.append(time.monotonic_ns())
                published.append(frame.published)
                if hold_s:
                    await trio.sleep(choose.uniform(0, hold_s) if work.uneven else hold_s)
        except spiceshm.Disconnected:
            pass
        wire, pixels = display.wire_bytes - wire, display.pixel_bytes - pixels
    link.send(Seen(np.array(serials), np.array(published), np.array(copied), wire, pixels))


def _mirror(frame: spiceshm.Frame, mirror: NDArray[np.uint8], work: Work) -> int:
    """Copy what changed; returns the frame's serial, of ordinary SPICE from the picture."""
    pixels = frame.pixels
    for top, left, bottom, right in frame.rects.tolist():
        mirror[top:bottom, left:right] = pixels[top:bottom, left:right]
    if work.through == "shm":
        return frame.serial
    top, left = work.rects[0][:2]
    return int.from_bytes(mirror[top, left].tobytes(), "little") & _MARK


# Both


def measure(work: Work, cores: Sequence[int], seconds: float, warmup: float) -> Measures:
    """Run the job once. Raises Failed."""
    first, second = {
        "two": (cores[0], cores[-1]),
        "one": (cores[0], cores[0]),
        "any": (None, None),
    }[work.cores]
    with tempfile.TemporaryDirectory(prefix="spiceshm-bench-") as directory, workers() as start:
        wish = "tcp:127.0.0.1:0" if work.through == "tcp" else f"unix:{directory}/s"
        producer = start(produce, work, wish, seconds, warmup, cpu=first)
        address = producer.receive()
        holds = [0.0] * work.readers + [work.hold_s] * work.slow + [0.0] * work.stopped
        readers: list[Worker] = [start(look, work, address, hold, cpu=second) for hold in holds]
        for reader in readers:
            reader.receive()
        stopped = readers[len(readers) - work.stopped :]
        for reader in stopped:
            os.kill(reader.pid, signal.SIGSTOP)
        producer.send([reader.pid for reader in readers])
        produced: Produced = producer.receive(seconds + warmup)
        for reader in stopped:
            os.kill(reader.pid, signal.SIGCONT)
        seen: list[Seen] = [reader.receive() for reader in readers]
    return _joined(work, produced, seen[: work.readers])


def _joined(work: Work, produced: Produced, seen: Sequence[Seen]) -> Measures:
    """What producer and quick readers noted, as measures."""
    updates = len(produced.begun)
    if updates < 2 or any(not len(one.serials) for one in seen):
        raise Failed("too few updates")
    took = (produced.end - produced.start) / 1e9
    timely = [_within(one, produced) for one in seen]
    # The first frame is the one that connecting waited for: nothing came for it since.
    frames = max(1, sum(len(one.serials) - 1 for one in seen))
    deliveries = sum(len(one.serials) for one in timely)
    begun = [one.copied - produced.begun[one.serials - produced.first] for one in timely]
    measures: Measures = {
        "updates_per_s": updates / took,
        "deliveries_per_s": deliveries / took,
        "server_cpu_us": produced.cpu / 1000 / updates,
        "reader_cpu_us": produced.readers_cpu / 1000 / updates,
        "server_cpu_per_delivery_us": produced.cpu / 1000 / max(deliveries, 1),
        "wire_bytes": sum(one.wire for one in seen) / frames,
        "changed_bytes": sum(one.pixels for one in seen) / frames,
        "painted_bytes": float(work.painted_bytes),
    }
    measures |= latencies("done", np.concatenate(begun))
    measures |= latencies("paint", produced.painted)
    if work.through == "shm":
        spans = [one.copied - one.published for one in timely]
        measures |= latencies("seen", np.concatenate(spans))
    return measures


def _within(seen: Seen, produced: Produced) -> Seen:
    """What a reader saw of the measured updates, in the measured time."""
    end = produced.first + len(produced.begun)
    mine = (seen.serials >= produced.first) & (seen.serials < end) & (seen.copied <= produced.end)
    return replace(
        seen,
        serials=seen.serials[mine],
        published=seen.published[mine],
        copied=seen.copied[mine],
    )
