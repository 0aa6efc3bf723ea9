"""The inputs channel's two ends: scan codes read byte by byte, motions counted, without I/O.

A client may have eight motions on their way; the server acknowledges every fourth. Both ends count
alike, so a client that fills up to a multiple of four knows with the acknowledgement that all it
sent before was delivered; our server says with a PING directly before it when that was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import LocalProtocolError, RemoteProtocolError
from ..events import Button, Event, Key, Locks, PointerBy, PointerTo
from ..scancodes import PAUSE
from ..wire import Message, Sender
from ..wire.base import Ping
from ..wire.inputs import (
    ClientKeyModifiers,
    InputsInit,
    KeyDown,
    KeyModifiers,
    KeyScancode,
    KeyUp,
    MouseMotion,
    MouseMotionAck,
    MousePosition,
    MousePress,
    MouseRelease,
)
from .channel import Channel

if TYPE_CHECKING:
    from collections.abc import Iterable

MOTIONS_AN_ACK = 4
MOST_MOTIONS = 8
"""Motions that a client may have sent without an acknowledgement."""

_LOCKS = 7
_BUTTONS = range(1, 8)
_UP = 0x80
_TWO, _THREE = 0xE0, 0xE1
"""Prefixes of scan codes of so many bytes."""


class ScanCodes:
    """Bytes of PC scan code set 1 made keys; what one message begins another may go on with."""

    def __init__(self) -> None:
        self._begun: tuple[int, ...] = ()

    def feed(self, data: Iterable[int]) -> list[Key]:
        """The keys that are complete now. Bytes that mean nothing are skipped, as a PC does."""
        return [key for byte in data if (key := self._take(byte)) is not None]

    def _take(self, byte: int) -> Key | None:
        if byte in (_TWO, _THREE):
            self._begun = (byte,)
            return None
        begun, self._begun = self._begun, ()
        code, up = byte & ~_UP, byte & _UP
        if begun == (_THREE,) and code == 0x1D:
            self._begun = (_THREE, byte)
            return None
        if code == 0:
            return None
        if begun == (_TWO,):
            return Key(_TWO << 8 | code, not up)
        if begun == (_THREE, 0x1D | up) and code == 0x45:
            return Key(PAUSE, not up)
        return Key(code, not up)


def key_message(key: Key) -> KeyDown | KeyUp:
    """The message that `ScanCodes` makes ``key`` of."""
    up = 0 if key.down else _UP
    prefix, code = divmod(key.code, 256)
    scan = [prefix, code | up] if prefix else [code | up]
    if key.code == PAUSE:
        scan = [_THREE, 0x1D | up, 0x45 | up]
    number = int.from_bytes(scan, "little")
    return KeyDown(number) if key.down else KeyUp(number)


class ServerInputs(Channel):
    """The server's end: what messages mean, and how many acknowledgements are due."""

    def __init__(self, *, mini: bool = True) -> None:
        super().__init__("inputs", Sender.SERVER, mini=mini)
        self.acks_due = 0
        """Acknowledgements that the client waits for: see `acknowledge`."""
        self._motions = 0
        self._pings = 0
        self._scan_codes = ScanCodes()
        self._wish: int | None = None
        self._answers = 0

    def _check_received(self, message: Message) -> None:
        if isinstance(message, MouseMotion | MousePosition):
            self._motions += 1
            if self._motions % MOTIONS_AN_ACK == 0:
                self.acks_due += 1

    def _check_sent(self, message: Message) -> None:
        if isinstance(message, MouseMotionAck):
            if not self.acks_due:
                raise LocalProtocolError(message.title, "", "none is due")
            self.acks_due -= 1
        elif isinstance(message, KeyModifiers) and message.modifiers != self._wish:
            self._answers += 1

    def events(self, message: Message) -> list[Event]:
        """What the client did with one message; to be asked once for each, in order.

        As in other servers nothing that a field may hold is a breach: what means nothing makes no
        event, which is a ``button`` beyond 7, a ``display_id`` other than 0, a motion by 0, 0, and
        scan codes that are none. The ``buttons_state`` of all messages is not looked at: each
        change of it comes as a message too. Both kinds of motion count in either mouse mode.

        Nor do locks make one that only say again, because others were told, what the client has
        wished before. Viewers answer so at once (spice-gtk: ``guest_modifiers_changed``): whoever
        looks on would undo what another user locks, and two of them would never come to an end.
        """
        match message:
            case KeyDown() | KeyUp():
                return [*self._scan_codes.feed(_until_zero(message.code))]
            case KeyScancode():
                return [*self._scan_codes.feed(message.data)]
            case ClientKeyModifiers():
                return self._wished(message.modifiers & _LOCKS)
            case MouseMotion() if message.dx or message.dy:
                return [PointerBy(message.dx, message.dy)]
            case MousePosition(display_id=0):
                return [PointerTo(message.x, message.y)]
            case MousePress() | MouseRelease() if message.button in _BUTTONS:
                return [Button(message.button, isinstance(message, MousePress))]
        return []

    def _wished(self, locks: int) -> list[Event]:
        if self._answers and locks == self._wish:
            self._answers -= 1
            return []
        self._wish = locks
        return [Locks(locks)]

    def acknowledge(self, timestamp: int) -> None:
        """Send every acknowledgement that is due, each behind a PING that says ``timestamp``: when,
        on the clock of frames, what the client last did began to be delivered; 0: nothing yet."""
        while self.acks_due:
            self._pings += 1
            self.send(Ping(self._pings & 0xFFFFFFFF, timestamp))
            self.send(MouseMotionAck())


def _until_zero(code: int) -> bytes:
    return code.to_bytes(4, "little").split(b"\0", 1)[0]


class ClientInputs(Channel):
    """The client's end: locks, and what of what was sent has been delivered."""

    def __init__(self, *, mini: bool = True) -> None:
        super().__init__("inputs", Sender.CLIENT, mini=mini)
        self.locks = 0
        """The lock state that the server told last: bits as in `events`."""
        self.motions = 0
        """Motions sent so far, relative and absolute ones."""
        self.delivered = 0
        """Motions of which the server has said that they, and all before them, were delivered."""
        self.stamp: int | None = None
        """What the last acknowledgement's PING said, None if it had none: see `ServerInputs`."""
        self._ping: int | None = None
        self._behind = False

    @property
    def unacked(self) -> int:
        """Motions on their way; none may be sent while these are eight."""
        return self.motions - self.delivered

    @property
    def barrier(self) -> int:
        """How many motions by 0, 0 are to be sent, 0 to 4, so that whatever was sent before is
        acknowledged once `delivered` is what `motions` is then."""
        missing = -self.motions % MOTIONS_AN_ACK
        return missing or (MOTIONS_AN_ACK if self._behind else 0)

    def _check_sent(self, message: Message) -> None:
        if isinstance(message, MouseMotion | MousePosition):
            if self.unacked == MOST_MOTIONS:
                raise LocalProtocolError(
                    message.title, "", f"{MOST_MOTIONS} are not acknowledged yet"
                )
            self.motions += 1
            self._behind = False
        elif message.channel == "inputs":
            self._behind = True  # which no acknowledgement of the motions so far speaks of

    def _check_received(self, message: Message) -> None:
        if isinstance(message, MouseMotionAck):
            if self.unacked < MOTIONS_AN_ACK:
                raise RemoteProtocolError(
                    message.title, "", f"only {self.unacked} motions are not acknowledged"
                )
            self.delivered += MOTIONS_AN_ACK
            self.stamp = self._ping
        elif isinstance(message, InputsInit):
            self.locks = message.keyboard_modifiers & _LOCKS
        elif isinstance(message, KeyModifiers):
            self.locks = message.modifiers & _LOCKS
        self._ping = message.timestamp if isinstance(message, Ping) else None
