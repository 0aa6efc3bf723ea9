"""Keys and pointer of an X display: played through XTEST, and its locks followed through XKB.

Three things need care.

*Playing ends when the X server is done.* The server handles one client's requests in order, so the
reply to one that comes after the events says so, and notices that they led to came before it.

*A held key is the X server's to repeat*, at the rate that the desktop's user has set. What clients
send while a key is down, because their own desktop repeats it, is not played.

*Locks are set, not typed.* A client's wish for Caps Lock goes to the modifiers that its light
stands for. The key may do something else on this desktop, and pressing it could come too late.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import trio

from ..events import Button, Key, Locks, PointerBy, PointerTo
from .xcb import Refused, XConnection, XError
from .xkeys import INDICATORS, WANTED_NAMES, Keymap, read_keymap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..events import Event
    from .xcb import Xcb

log = logging.getLogger("spiceshm.sources")

BATCH = 128
"""Events sent before their end is awaited: so few that the connection always has room for them, and
sending never waits for the X server."""

_KEY_PRESS, _KEY_RELEASE, _BUTTON_PRESS, _BUTTON_RELEASE, _MOTION = range(2, 7)
_ABSOLUTE, _RELATIVE = 0, 1
_FURTHEST = 0x7FFF
_BUTTONS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 9}  # X's 6 and 7 are a wheel that tilts
_CORE_KEYBOARD = 0x100
_NEW_KEYBOARD, _MAP, _STATE, _INDICATOR_MAP, _NAMES = 0, 1, 2, 5, 6
_MAP_CHANGES = (_NEW_KEYBOARD, _MAP, _INDICATOR_MAP, _NAMES)
_LOCKED_CHANGES = 1 << 3  # the part of a keyboard's state that StateNotify is wanted for
_ALL_INDICATORS = 0xFFFFFFFF


class XInput(XConnection):
    """The input of one X screen. Made by `open`, which raises Lacking if it cannot be played."""

    def __init__(self, xcb: Xcb, connection: Any, screen: Any, name: str) -> None:
        super().__init__(xcb, connection, screen, name)
        self._keymap = Keymap({}, {})
        self._keymap_changed = True
        self._down: dict[int, int] = {}  # scan code -> the key code that was pressed for it
        self._asked: list[int] = []  # requests whose replies are due
        self._turn = trio.Lock()  # for whoever sends and awaits what came of it
        self._tell: Callable[[int], None] | None = None

    def _start(self) -> None:
        xcb = self._xcb
        self._xtest, _ = self._need(xcb.xtest.key)
        self._xkb, self._first_xkb = self._need(xcb.xkb.key)
        if not self._xkb.UseExtension(1, 0).reply().supported:
            raise XError(f"X display {self._name} has no XKEYBOARD 1.0")
        intern = self._connection.core.InternAtom
        asked = {intern(False, len(name), name): bit for name, bit in INDICATORS.items()}
        self._atoms = {cookie.reply().atom: bit for cookie, bit in asked.items()}
        # A window manager that has grabbed the server waits for a button to come up, for example.
        self._xtest.GrabControl(True)
        changes = sum(1 << kind for kind in _MAP_CHANGES)
        self._xkb.SelectEvents(
            *(_CORE_KEYBOARD, changes | 1 << _STATE, 0, changes, 0xFF, 0xFF),
            [_LOCKED_CHANGES, _LOCKED_CHANGES],
            is_checked=True,
        ).check()
        self._locked: int = self._xkb.GetState(_CORE_KEYBOARD).reply().lockedMods

    async def play(self, events: Sequence[Event]) -> None:
        """Do what the events say; returns when the X server has done all of it. Raises XError.

        Places outside of the screen mean its edge. Keys, buttons and locks that the X server has
        not got are left out. Cancelled, it may have done a part.
        """
        async with self._turn:
            await self._learn()
            for start in range(0, len(events), BATCH):
                with self._sending():
                    for event in events[start : start + BATCH]:
                        self._send(event)
                    self._asked.append(self._connection.core.GetInputFocus().sequence)
                await self._catch_up()

    async def watch(
        self,
        tell: Callable[[int], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Tell the locks that are on (bits of `events`) at first and whenever that changes.

        Started once that is told. What `play` has changed is told before that returns. For ever;
        raises XError when the X server goes away.
        """
        async with self._turn:
            await self._learn()
        self._tell = tell
        tell(self.locks)
        task_status.started()
        try:
            while True:
                await self._readable()
                self._pump()
                if self._keymap_changed:
                    async with self._turn:
                        await self._learn()
        finally:
            self._tell = None

    @property
    def locks(self) -> int:
        """The locks that are on, as far as the X server has told."""
        return self._keymap.lock_state(self._locked)

    # what the server has

    async def _learn(self) -> None:
        """Find out the keymap, if it is not known."""
        await self._catch_up()
        while self._keymap_changed:
            self._keymap_changed = False
            try:
                await self._ask_keymap()
            except BaseException:
                self._keymap_changed = True
                raise
            self._pump()

    async def _ask_keymap(self) -> None:
        with self._sending():
            self._asked += [
                self._xkb.GetNames(_CORE_KEYBOARD, WANTED_NAMES).sequence,
                self._xkb.GetIndicatorMap(_CORE_KEYBOARD, _ALL_INDICATORS).sequence,
            ]
        names, indicators = await self._answer(), await self._answer()
        before = self.locks
        self._keymap = read_keymap(names, indicators, self._atoms)
        self._told(before)

    def _saw(self, kind: int, sequence: int, event: Any) -> None:
        if kind != self._first_xkb:
            return
        change = event[1][0]
        if change == _STATE:
            before = self.locks
            self._locked = event[12][0]
            self._told(before)
        elif change in _MAP_CHANGES:
            self._keymap_changed = True

    def _told(self, before: int) -> None:
        if self._tell is not None and self.locks != before:
            self._tell(self.locks)

    async def _catch_up(self) -> None:
        """Wait until the server has done all that was sent, also by who was cancelled meanwhile."""
        await trio.lowlevel.checkpoint()
        while self._asked:
            await self._answer()
        self._pump()

    async def _answer(self) -> Any:
        """The reply that is due next. Cancelled, it is due still: nothing more is sent before."""
        try:
            reply = await self._reply(self._asked[0])
        except Refused:
            del self._asked[0]
            raise
        except trio.Cancelled:
            with contextlib.suppress(XError):
                self._pump()  # libxcb may have read notices that `watch` will not be woken for
            raise
        del self._asked[0]
        return reply

    # what it is sent

    def _send(self, event: Event) -> None:
        if isinstance(event, Key):
            self._send_key(event)
        elif isinstance(event, Button):
            self._send_button(event)
        elif isinstance(event, PointerTo):
            self._fake(_MOTION, _ABSOLUTE, self._root, _clip(event.x, 0), _clip(event.y, 0))
        elif isinstance(event, PointerBy):
            dx, dy = _clip(event.dx, -_FURTHEST), _clip(event.dy, -_FURTHEST)
            self._fake(_MOTION, _RELATIVE, 0, dx, dy)
        else:
            self._send_locks(event)

    def _send_key(self, event: Key) -> None:
        """A key that is held is the one that went down until it is up, whatever the map says."""
        if not event.down:
            released = self._down.pop(event.code, None)
            if released is not None:
                self._fake(_KEY_RELEASE, released)
        elif event.code not in self._keymap.keys:
            log.debug("X display %s has no key for scan code %#x", self._name, event.code)
        elif event.code not in self._down:
            self._down[event.code] = self._keymap.keys[event.code]
            self._fake(_KEY_PRESS, self._down[event.code])

    def _send_button(self, event: Button) -> None:
        if event.button in _BUTTONS:
            kind = _BUTTON_PRESS if event.down else _BUTTON_RELEASE
            self._fake(kind, _BUTTONS[event.button])
        else:
            log.debug("X display %s has no button %d", self._name, event.button)

    def _send_locks(self, event: Locks) -> None:
        every, on = self._keymap.lock_modifiers(event.state)
        self._xkb.LatchLockState(_CORE_KEYBOARD, every, on, False, 0, 0, False, 0)

    def _fake(self, kind: int, detail: int, root: int = 0, x: int = 0, y: int = 0) -> None:
        self._xtest.FakeInput(kind, detail, 0, root, x, y, 0)


def _clip(value: int, least: int) -> int:
    """What fits into the request; the X server itself keeps the pointer on its screen."""
    return min(max(value, least), _FURTHEST)
