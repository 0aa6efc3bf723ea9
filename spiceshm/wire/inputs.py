"""The inputs channel: keys and pointer from the client, lock state from the server.

Scan codes are PC set 1, up to four bytes in a u32, the first in the low byte. Button masks have bit
n - 1 for button n (1 left, 2 middle, 3 right, 4 and 5 wheel).
"""

from __future__ import annotations

from construct import GreedyBytes, Int8ul, Int16ul, Int32sl, Int32ul, Struct

from .message import Message, Sender, empty, message


@message("inputs", Sender.SERVER, 101)
class InputsInit(Message):
    """Lock state: bit 0 scroll, 1 num, 2 caps."""

    layout = Struct("keyboard_modifiers" / Int16ul)
    keyboard_modifiers: int


@message("inputs", Sender.SERVER, 102)
class KeyModifiers(Message):
    layout = Struct("modifiers" / Int16ul)
    modifiers: int


@message("inputs", Sender.SERVER, 111)
class MouseMotionAck(Message):
    """One for every four motions or positions; a client stops at eight without."""

    layout = empty()


@message("inputs", Sender.CLIENT, 101)
class KeyDown(Message):
    layout = Struct("code" / Int32ul)
    code: int


@message("inputs", Sender.CLIENT, 102)
class KeyUp(Message):
    layout = Struct("code" / Int32ul)
    code: int


@message("inputs", Sender.CLIENT, 103)
class ClientKeyModifiers(Message):
    """The lock state that the client wants."""

    layout = Struct("modifiers" / Int16ul)
    modifiers: int


@message("inputs", Sender.CLIENT, 104)
class KeyScancode(Message):
    """Raw scan code bytes, if the server has the capability KEY_SCANCODE."""

    layout = Struct("data" / GreedyBytes)
    data: bytes


@message("inputs", Sender.CLIENT, 111)
class MouseMotion(Message):
    """Relative motion in pixels."""

    layout = Struct("dx" / Int32sl, "dy" / Int32sl, "buttons_state" / Int16ul)
    dx: int
    dy: int
    buttons_state: int


@message("inputs", Sender.CLIENT, 112)
class MousePosition(Message):
    """Absolute position in pixels of the display ``display_id``."""

    layout = Struct("x" / Int32ul, "y" / Int32ul, "buttons_state" / Int16ul, "display_id" / Int8ul)
    x: int
    y: int
    buttons_state: int
    display_id: int


@message("inputs", Sender.CLIENT, 113)
class MousePress(Message):
    """``buttons_state`` includes the button that goes down."""

    layout = Struct("button" / Int8ul, "buttons_state" / Int16ul)
    button: int
    buttons_state: int


@message("inputs", Sender.CLIENT, 114)
class MouseRelease(Message):
    """``buttons_state`` is without the button that comes up."""

    layout = Struct("button" / Int8ul, "buttons_state" / Int16ul)
    button: int
    buttons_state: int
