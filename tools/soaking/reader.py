"""A reader's process, of one kind or another. Each ends when its time is over or when it is told.

What it has seen it says again and again, ``("tally", Tally, shared)``, so that of one that is
killed only the last moment is lost.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import trio

import spiceshm

from .picture import Eye

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from multiprocessing.connection import Connection

_TELL_S = 0.1
_MOST_LEAKED = 12


@dataclass(frozen=True)
class Plan:
    """What becomes of one reader."""

    kind: str
    seconds: float
    credits: int = 2
    seed: str = ""


class Looking:
    """A reader that is connected: frames one by one, checked and told."""

    def __init__(self, link: Connection, remote: spiceshm.RemoteDisplay, plan: Plan) -> None:
        self.link = link
        self.remote = remote
        self.plan = plan
        self.choose = random.Random(plan.seed)
        self.eye = Eye()
        self._frames = remote.frames()
        self._told = 0.0

    async def next(self) -> spiceshm.Frame:
        frame = await anext(self._frames)
        # Of what a frame is is decided when it arrives: one of shared memory may be looked at after
        # the turn to ordinary SPICE.
        self.eye.saw(frame, whole=bool(frame.published))
        self.tell()
        return frame

    def tell(self, *, now: bool = False) -> None:
        if now or time.monotonic() > self._told + _TELL_S:
            self._told = time.monotonic()
            self.link.send(("tally", replace(self.eye.tally), self.remote.shared))


async def fast(it: Looking) -> None:
    """Takes every frame that it can have."""
    while True:
        await it.next()


async def slow(it: Looking) -> None:
    """Holds each frame for a while, and looks at it again before it gives it back."""
    while True:
        frame = await it.next()
        await trio.sleep(it.choose.choice((0.001, 0.01, 0.05, 0.2)) * it.choose.random())
        it.eye.look_again(frame)


async def leaking(it: Looking) -> None:
    """Keeps a view of every frame until it is told that it holds them all; then lets go."""
    while True:
        held: list[Any] = []
        try:
            while len(held) < _MOST_LEAKED:
                frame = await it.next()
                held.append((frame.pixels[1:, 3:-2], frame.pixels[1:, 3:-2].copy()))
        except spiceshm.FramesHeld:
            pass
        while held:
            it.eye.compare(*held.pop())


async def silent(it: Looking) -> None:
    """Does not read for a long time: frames and offers of memory lie in its socket."""
    while True:
        frame = await it.next()
        it.tell(now=True)
        it.link.poll(it.choose.uniform(0.1, 1.5))  # the whole process
        it.eye.look_again(frame)
        for _ in range(10):
            await it.next()


async def brief(it: Looking) -> None:
    """Leaves when it has hardly come."""
    for _ in range(it.choose.randrange(4)):
        await it.next()


KINDS: dict[str, Callable[[Looking], Awaitable[None]]] = {
    "fast": fast,
    "slow": slow,
    "leaking": leaking,
    "silent": silent,
    "brief": brief,
    "ordinary": fast,
    "ordinary-slow": slow,
}


def read(link: Connection, address: str, plan: Plan) -> str:
    """The process; returns how it ended."""
    # That views are held, which is said as a warning, is what some readers are for.
    logging.getLogger("spiceshm.client").setLevel(logging.ERROR)
    return trio.run(_read, link, address, plan)


async def _read(link: Connection, address: str, plan: Plan) -> str:
    how = "left"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_told, link, nursery.cancel_scope)
        with trio.move_on_after(plan.seconds):
            how = await _look(link, address, plan)
        nursery.cancel_scope.cancel()
    return how


async def _look(link: Connection, address: str, plan: Plan) -> str:
    shm: Any = "off" if plan.kind.startswith("ordinary") else "auto"
    try:
        async with spiceshm.connect(address, shm=shm, credits=plan.credits) as remote:
            it = Looking(link, remote, plan)
            try:
                await KINDS[plan.kind](it)
            finally:
                it.tell(now=True)
    except spiceshm.Disconnected:
        return "disconnected"
    except spiceshm.ConnectError as error:
        return f"not connected: {error}"
    return "left"


async def _until_told(link: Connection, scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(link.fileno())
    scope.cancel()
