"""Keys and pointer: what clients do is given to the program, and undone when a client goes.

Strategy: all clients share one keyboard and one pointer, the `Seat`. What each holds down is known,
so that a key which two hold comes up when the last lets go, and nothing stays down behind a client
that vanished. A channel reads on when what it read has been played: a slow program slows down the
clients that press keys, and nobody else.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import trio

from ..errors import SourceError
from ..events import Button, Event, Key, PointerBy, PointerTo
from ..nursery import open_nursery
from ..wire.inputs import InputsInit, KeyModifiers
from ..wire.types import MAX_SIDE
from .viewer import READ_SIZE

if TYPE_CHECKING:
    from ..protocol import ServerInputs
    from ..transport import Stream

log = logging.getLogger("spiceshm.server")

RELEASE_S = 5.0
"""How long the release of what a vanished client held may take: the end of a server waits for it,
also where the program hangs."""

Play: TypeAlias = Callable[[Sequence[Event]], Awaitable[None]]
"""Plays events to whatever is shown; returns when that has got all of them."""


class Hands:
    """What one client does: ``held`` are the downs of keys and buttons that it has not let go."""

    def __init__(self) -> None:
        self.open = False
        """Whether it has an inputs channel."""
        self.held: dict[Key | Button, None] = {}
        self.events = 0
        self.last: float | None = None
        """When its last event was played, on the clock of `time.monotonic`."""


class Seat:
    """The keyboard and the pointer that all clients share; ``play`` None: there are none.

    ``size`` tells width and height of what is shown, which positions are bounded by.
    """

    def __init__(self, play: Play | None, size: Callable[[], tuple[int, int]]) -> None:
        self.locks = 0
        self.positions = True
        """Whether the pointer can be put to a place; else it only moves by so many pixels."""
        self.changed = trio.Event()
        """Set when ``locks`` or ``positions`` change, and exchanged for a new one."""
        self._play = play
        self._size = size
        self._turn = trio.Lock()
        self._holders: Counter[Key | Button] = Counter()
        self._late: dict[Key | Button, None] = {}  # what did not come up when it should have

    def set_locks(self, state: int) -> None:
        if state != self.locks:
            self.locks = state
            self._tell()

    def take_positions(self, taken: bool) -> None:
        if taken != self.positions:
            self.positions = taken
            self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def play(self, hands: Hands, events: Sequence[Event]) -> int:
        """Play what one client did, and nothing of another's in between.

        Returns when that began, in ns on the clock of frames. What the program raises is raised.
        """
        assert self._play is not None
        async with self._turn:
            began = time.monotonic_ns()
            late = self._take_late()
            own = [self._bounded(event) for event in events if self._note(hands, event)]
            if batch := [*late, *own]:
                try:
                    await self._play(batch)
                except BaseException:
                    self._doubt(hands, batch)
                    raise
                hands.events += len(own)
                hands.last = time.monotonic()
        return began

    def _note(self, hands: Hands, event: Event) -> bool:
        """Whether the event is to be played: not the release of what is not, or still, held."""
        if not isinstance(event, Key | Button):
            return True
        what = dataclasses.replace(event, down=True)
        if event.down:
            if what not in hands.held:
                hands.held[what] = None
                self._holders[what] += 1
            return True
        if what not in hands.held:
            return False
        self._forget(hands, what)
        return what not in self._holders

    def _take_late(self) -> list[Event]:
        late, self._late = self._late, {}
        return [dataclasses.replace(what, down=False) for what in late if not self._holders[what]]

    def _doubt(self, hands: Hands, batch: Sequence[Event]) -> None:
        """Only a part may have been played: what was to come up may be down, so it is held."""
        for event in reversed(batch):
            if isinstance(event, Key | Button) and not event.down:
                self._note(hands, dataclasses.replace(event, down=True))

    def _forget(self, hands: Hands, what: Key | Button) -> None:
        del hands.held[what]
        self._holders[what] -= 1
        if not self._holders[what]:
            del self._holders[what]

    def _bounded(self, event: Event) -> Event:
        """A client may name any place; programs need not expect any that is not there."""
        if isinstance(event, PointerTo):
            width, height = self._size()
            return PointerTo(min(event.x, width - 1), min(event.y, height - 1))
        if isinstance(event, PointerBy):
            return PointerBy(*(max(-MAX_SIDE, min(by, MAX_SIDE)) for by in (event.dx, event.dy)))
        return event

    async def release(self, hands: Hands, peer: str) -> None:
        """Let go of all that a client holds, the last first; ``peer`` is who it was, in words.

        Is not cancelled, but ends after `RELEASE_S`; what is down then comes up before the next
        that anybody does.
        """
        ups: list[Event] = [dataclasses.replace(what, down=False) for what in reversed(hands.held)]
        if not ups:
            return
        try:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + RELEASE_S) as scope:
                await self.play(hands, ups)
            if scope.cancelled_caught:
                log.warning(
                    "%s: %d keys and buttons may stay down until more is played: no release was "
                    "played within %g s",
                    peer,
                    len(ups),
                    RELEASE_S,
                )
        except SourceError as error:
            log.info("%s: what it held was not released: %s", peer, str(error))
        finally:
            for what in [*reversed(hands.held)]:  # where its turn never came, or was not played
                self._forget(hands, what)
                self._late[what] = None


class InputsChannel:
    """A client's inputs channel."""

    def __init__(self, stream: Stream, machine: ServerInputs, seat: Seat, hands: Hands) -> None:
        self._stream = stream
        self._machine = machine
        self._seat = seat
        self._hands = hands
        self._stamp = 0
        self._told = seat.locks

    async def run(self, first: bytes) -> None:
        """Serve the channel to its end; ``first`` is what came behind the link phase.

        Raises RemoteProtocolError for a breach, Disconnected, and what the program raises.
        """
        self._hands.open = True
        try:
            self._machine.send(InputsInit(self._told))
            self._flush()
            async with open_nursery() as nursery:
                nursery.start_soon(self._stream.flush_when_writable)
                nursery.start_soon(self._tell_locks)
                await self._received(first)
                while True:
                    data, _ = await self._stream.receive(READ_SIZE)
                    await self._received(data)
        finally:
            self._hands.open = False
            await self._seat.release(self._hands, self._stream.peer)

    async def _received(self, data: bytes | memoryview) -> None:
        events: list[Event] = []
        for message in self._machine.receive_data(data):
            events += self._machine.events(message)
        if events:
            self._stamp = await self._seat.play(self._hands, events)
        else:  # whoever was woken at the same time, to tell of locks, has his turn first
            await trio.lowlevel.checkpoint()
        self._say_locks()
        self._machine.acknowledge(self._stamp)
        self._flush()
        await self._stream.settled()

    async def _tell_locks(self) -> None:
        """Tell every new lock state, or only the newest to a client that does not read."""
        while True:
            while self._told == self._seat.locks:
                await self._seat.changed.wait()
            await self._stream.settled()
            self._say_locks()
            self._flush()

    def _say_locks(self) -> None:
        if self._told != self._seat.locks:
            self._told = self._seat.locks
            self._machine.send(KeyModifiers(self._told))

    def _flush(self) -> None:
        self._stream.send_parts(self._machine.data_to_send())
