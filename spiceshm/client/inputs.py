"""Keys and pointer: what a program does there, and when the server has done it.

Strategy: what one call does goes out in one piece, so that nothing that is cancelled leaves a key
down; only then one waits. Behind it go motions by 0, 0 up to the next acknowledgement, which the
server sends when it has done all that came before. Long texts go in pieces, each awaited, so that
nothing piles up on the way; stock servers lose what comes faster than a machine takes it.
"""

from __future__ import annotations

import contextlib
import operator
from collections import Counter
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

import trio

from ..errors import CannotType, LinkRefused, SpiceShmError, Timeout, ViewOnly
from ..events import CAPS_LOCK as CAPS
from ..events import (
    EXTRA,
    LEFT,
    MIDDLE,
    RIGHT,
    SIDE,
    WHEEL_DOWN,
    WHEEL_UP,
    Button,
    Event,
    Key,
    Locks,
    PointerBy,
    PointerTo,
)
from ..protocol.inputs import MOTIONS_AN_ACK, ClientInputs, key_message
from ..wire.inputs import ClientKeyModifiers, MouseMotion, MousePosition, MousePress, MouseRelease
from ..wire.types import ChannelType, LinkError, MouseMode
from .channels import LaterChannel
from .keyboard import CAPS_LOCK, NUM_LOCK, SCROLL_LOCK, Keyboard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

    from ..wire import Message
    from .layouts import Stroke
    from .session import Session

BUTTONS = {"left": LEFT, "middle": MIDDLE, "right": RIGHT, "side": SIDE, "extra": EXTRA}
PIECE = 64
"""Characters, or clicks of the wheel, that are sent at once."""

MOST_PRESSED = 4
"""Keys and buttons that go down or up at once, where nobody tells that the machine took them."""

PAUSE_S = 0.02
"""What a machine is left to take a key, where nobody tells that it has: faster than any typist."""

LOCKS_S = 0.25
"""How long a lock key waits to be told that the lock changed: servers tell it by and by."""

DONE_S = 30.0
"""How long a server may take to do what it was sent."""

DRAG_STEPS = 3
"""Places on the way of a drag: who gets but one motion may take it for a click."""

MOST_PIXELS = (1 << 31) - 1
_LOCK_KEYS = frozenset({CAPS_LOCK, NUM_LOCK, SCROLL_LOCK})
Place: TypeAlias = tuple[int, int]


class Inputs(LaterChannel):
    """The inputs channel; `RemoteDisplay` is what a program sees of it."""

    _machine: ClientInputs

    def __init__(
        self,
        session: Session,
        keyboard: Keyboard,
        moved: Callable[[int, int], None],
        *,
        view_only: bool,
    ) -> None:
        """``moved`` is told of every place that the pointer is put to."""
        super().__init__(session, ChannelType.INPUTS)
        self._keyboard = keyboard
        self._view_only = view_only
        self._turn = trio.Lock()
        self._keys: Counter[int] = Counter()
        self._buttons: Counter[int] = Counter()
        self._moved = moved

    def _new_machine(self, *, mini: bool) -> ClientInputs:
        return ClientInputs(mini=mini)

    async def open(self) -> None:
        """As of every `LaterChannel`. Raises ViewOnly too."""
        if self._view_only:
            raise ViewOnly(f"{self._session.address}: connected with view_only, so it only looks")
        try:
            if self._stream is None and not await self._session.offers(ChannelType.INPUTS):
                raise self._only_to_look()
            await super().open()
        except LinkRefused as error:
            if error.code == LinkError.CHANNEL_NOT_AVAILABLE:
                raise self._only_to_look() from None
            raise

    def _only_to_look(self) -> ViewOnly:
        return ViewOnly(f"{self._session.address}: the server takes neither keys nor pointer here")

    # Keys

    async def type(self, text: str) -> None:
        """See `RemoteDisplay.type`."""
        async with self._acting():
            if self._plays:  # it tells of locks that it knows of before it answers
                self._machine.send(MouseMotion(0, 0, self._mask))
                await self._asked()
            self._strokes(text)
            at = 0
            while at < len(text):
                piece = text[at : at + self._piece]
                at += len(piece)
                await self._deliver(chain.from_iterable(map(self._stroke, self._strokes(piece))))

    def _strokes(self, text: str) -> list[Stroke]:
        return self._keyboard.text(text, caps=bool(self._machine.locks & CAPS))

    def _stroke(self, stroke: Stroke) -> Iterator[Message]:
        with_held = (*stroke.held, stroke.code)
        yield from self._press(with_held)
        yield from self._release(with_held)

    async def key(self, combo: str) -> None:
        """See `RemoteDisplay.key`."""
        codes = self._keyboard.combo(combo)
        async with self._acting():
            locks = self._machine.locks
            await self._deliver(chain(self._press(codes), self._release(codes)))
            if not _LOCK_KEYS.isdisjoint(codes):
                with trio.move_on_after(LOCKS_S):
                    while self._machine.locks == locks:
                        await self._news()

    @contextlib.asynccontextmanager
    async def hold(self, combo: str) -> AsyncIterator[None]:
        """See `RemoteDisplay.hold`."""
        codes = self._keyboard.combo(combo)
        down, up = partial(self._press, codes), partial(self._release, codes)
        async with self._holding(down, up):
            yield

    def _press(self, codes: Iterable[int]) -> Iterator[Message]:
        """Keys that go down: those that are not down already."""
        for code in codes:
            self._keys[code] += 1
            if self._keys[code] == 1:
                yield key_message(Key(code, True))

    def _release(self, codes: Sequence[int]) -> Iterator[Message]:
        """Keys that come up: those that nobody else holds."""
        for code in reversed(codes):
            self._keys[code] -= 1
            if not self._keys[code]:
                yield key_message(Key(code, False))

    # Pointer

    async def move(self, x: float, y: float) -> None:
        """See `RemoteDisplay.move`."""
        place = self._spot(x, y)
        async with self._acting():
            await self._positions_taken()
            await self._deliver(self._to(place))

    async def move_by(self, dx: float, dy: float) -> None:
        """See `RemoteDisplay.move_by`."""
        dx, dy = round(dx), round(dy)
        if max(abs(dx), abs(dy)) > MOST_PIXELS:
            raise ValueError(f"nothing moves by {dx}, {dy} pixels")
        async with self._acting():
            await self._session.mouse_mode(MouseMode.SERVER)
            await self._deliver([MouseMotion(dx, dy, self._mask)])

    async def click(self, x: float | None, y: float | None, button: str, *, times: int = 1) -> None:
        """See `RemoteDisplay.click` and `RemoteDisplay.double_click`."""
        number, place = _button(button), self._place(x, y)
        async with self._acting():
            await self._positions_taken(place)
            clicks = (self._clicked(number) for _ in range(times))
            await self._deliver(chain(self._to(place), *clicks))

    async def drag(self, x: float, y: float, to_x: float, to_y: float, button: str) -> None:
        """See `RemoteDisplay.drag`."""
        number, begin, end = _button(button), self._spot(x, y), self._spot(to_x, to_y)
        async with self._acting():
            await self._positions_taken()
            way = (_between(begin, end, step / DRAG_STEPS) for step in range(1, DRAG_STEPS + 1))
            moves = (message for place in way for message in self._to(place))
            down, up = self._button_down(number), self._button_up(number)
            await self._deliver(chain(self._to(begin), down, moves, up))

    async def scroll(self, clicks: int, x: float | None, y: float | None) -> None:
        """See `RemoteDisplay.scroll`."""
        number = WHEEL_DOWN if clicks > 0 else WHEEL_UP
        left, place = abs(operator.index(clicks)), self._place(x, y)
        turn = [MousePress(number, 0), MouseRelease(number, 0)]
        async with self._acting():
            await self._positions_taken(place)
            await self._deliver(self._to(place))
            while left:
                piece = min(left, self._piece)
                left -= piece
                await self._deliver(piece * turn)

    @contextlib.asynccontextmanager
    async def hold_button(self, button: str) -> AsyncIterator[None]:
        """See `RemoteDisplay.hold_button`."""
        number = _button(button)
        down, up = partial(self._button_down, number), partial(self._button_up, number)
        async with self._holding(down, up):
            yield

    def _place(self, x: float | None, y: float | None) -> Place | None:
        """A place of the display, None if neither is given. Raises ValueError."""
        if x is None and y is None:
            return None
        if x is None or y is None:
            raise ValueError(f"a place has both x and y: {x}, {y}")
        return self._spot(x, y)

    def _spot(self, x: float, y: float) -> Place:
        """A place of the display. Raises ValueError."""
        x, y = round(x), round(y)  # the middle of what was found in a picture is seldom whole
        width, height = self._session.size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"({x}, {y}) is outside of the display, which is {width}x{height}")
        return x, y

    async def _positions_taken(self, place: Place | None = (0, 0)) -> None:
        """Have the server take positions, if there is a ``place`` to go to. Raises ViewOnly."""
        if place is not None and not await self._session.mouse_mode(MouseMode.CLIENT):
            raise ViewOnly(
                f"{self._session.address}: the server takes no positions, only moves by so many "
                "pixels; a virtual machine needs a tablet for them (-usb -device usb-tablet), "
                "and a system that drives it"
            )

    def _to(self, place: Place | None) -> Iterator[Message]:
        if place is not None:
            self._moved(*place)
            yield MousePosition(*place, self._mask, 0)

    def _clicked(self, number: int) -> Iterator[Message]:
        yield from self._button_down(number)
        yield from self._button_up(number)

    @property
    def _mask(self) -> int:
        """The buttons that are down."""
        return sum(1 << number - 1 for number, count in self._buttons.items() if count)

    def _button_down(self, number: int) -> Iterator[Message]:
        self._buttons[number] += 1
        if self._buttons[number] == 1:
            yield MousePress(number, self._mask)

    def _button_up(self, number: int) -> Iterator[Message]:
        self._buttons[number] -= 1
        if not self._buttons[number]:
            yield MouseRelease(number, self._mask)

    # What others did

    @property
    def locks(self) -> int:
        """The lock state that the server told last: bits as in `spiceshm.events`."""
        return self._machine.locks

    async def play(self, events: Sequence[Event]) -> None:
        """Do what events say, in order; returns when the server has done it.

        Left out is what does not fit: that something comes up which this connection does not hold
        down, and places where the server takes none. Raises as calls that act do; after Timeout
        what the events let go comes up all the same, as soon as the server goes on.
        """
        try:
            await self._play(events)
        except Timeout:
            self._let_go(chain.from_iterable(map(self._played, filter(_is_up, events))))
            raise

    async def _play(self, events: Sequence[Event]) -> None:
        async with self._acting():
            pressed = 0
            for event in events:
                up = False
                if isinstance(event, PointerTo | PointerBy):
                    if not await self._moved_by(event):
                        continue
                elif isinstance(event, Key | Button):
                    pressed, up = pressed + 1, not event.down
                self._put(self._played(event))
                enough = not self._plays and (up or pressed == MOST_PRESSED)
                if enough or self._machine.unacked >= MOTIONS_AN_ACK:
                    await self._acknowledged(pause=bool(pressed))
                    pressed = 0
            await self._acknowledged(pause=bool(pressed))

    async def _moved_by(self, event: PointerTo | PointerBy) -> bool:
        """Have the server take such motions, when it has done all before; whether it does."""
        mode = MouseMode.CLIENT if isinstance(event, PointerTo) else MouseMode.SERVER
        if not self._session.moves_by(mode):
            await self._acknowledged(pause=False)
        return await self._session.mouse_mode(mode)

    def _played(self, event: Event) -> Iterator[Message]:
        match event:
            case Key(code, down):
                if down or self._keys[code]:
                    self._keys[code] = int(down)
                    yield key_message(event)
            case Button(number, down):
                if down or self._buttons[number]:
                    self._buttons[number] = int(down)
                    yield (MousePress if down else MouseRelease)(number, self._mask)
            case PointerTo(x, y):
                yield from self._to((x, y))
            case PointerBy(dx, dy):
                yield MouseMotion(dx, dy, self._mask)
            case Locks(state):
                yield ClientKeyModifiers(state)

    # Delivery

    @property
    def _piece(self) -> int:
        """Characters, or clicks of the wheel, that are sent at once."""
        return PIECE if self._plays else 1

    @property
    def _plays(self) -> bool:
        """Whether the server is known to acknowledge what has been played, and says when it was.

        Others acknowledge what they have put where a machine takes it from, 16 bytes at most.
        """
        return self._machine.stamp is not None

    @contextlib.asynccontextmanager
    async def _acting(self) -> AsyncIterator[None]:
        """One call at a time, when the channel is open and all that was sent before is done."""
        async with self._turn:
            await self.open()
            await self._done()
            yield

    async def _deliver(self, messages: Iterable[Message]) -> None:
        """Send all of these at once, and wait until the server has done them.

        They move the pointer four times at most, which with the motions behind them makes eight.
        """
        self._put(messages)
        await self._asked()

    async def _asked(self) -> None:
        await self._acknowledged(pause=True)

    async def _acknowledged(self, *, pause: bool) -> None:
        """Send what was put, and wait until the server has done it.

        With a ``pause`` for the machine, where nobody tells that it has taken a key.
        """
        still = MouseMotion(0, 0, self._mask)
        for _ in range(self._machine.barrier):
            self._machine.send(still)
        self._flush()
        await self._done()
        if pause and not self._plays:
            await trio.sleep(PAUSE_S)

    def _put(self, messages: Iterable[Message]) -> None:
        self._session.about_to_act()
        for message in messages:
            self._machine.send(message)

    async def _done(self) -> None:
        """Wait until the server has done all that was sent."""
        with trio.move_on_after(DONE_S):
            while self._machine.unacked:
                await self._news()
        if self._machine.unacked:
            raise Timeout(
                f"{self._session.address}: inputs.mouse_motion_ack did not come within {DONE_S:g} "
                "s, so nobody knows whether keys and moves were done"
            )
        if self._machine.stamp:
            self._session.acted(self._machine.stamp)

    @contextlib.asynccontextmanager
    async def _holding(
        self, down: Callable[[], Iterator[Message]], up: Callable[[], Iterator[Message]]
    ) -> AsyncIterator[None]:
        """What went down comes up at the end of the block, also if that is cancelled or fails."""
        is_down = False
        try:
            async with self._acting():
                is_down = True
                await self._deliver(down())
            yield
        except BaseException:
            if is_down:
                with contextlib.suppress(SpiceShmError):
                    self._let_go(up())
            raise
        self._let_go(up())
        async with self._acting():
            await self._asked()

    def _let_go(self, messages: Iterable[Message]) -> None:
        """Never waits, nor for its turn: keys that come up mix with whatever is typed meanwhile."""
        self._put(messages)
        self._flush()


def _button(name: str) -> int:
    if name not in BUTTONS:
        raise CannotType(f"no button is named {name!r}; accepted are {', '.join(BUTTONS)}")
    return BUTTONS[name]


def _is_up(event: Event) -> bool:
    return isinstance(event, Key | Button) and not event.down


def _between(begin: Place, end: Place, part: float) -> Place:
    (x, y), (to_x, to_y) = begin, end
    return round(x + (to_x - x) * part), round(y + (to_y - y) * part)
