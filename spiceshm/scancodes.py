"""Keys by number: PC scan codes of set 1, as SPICE sends them, and Linux's key codes.

A key is its make code; one behind a prefix is ``0xE000`` + code, and Pause, which no other is like,
is ``0xE11D``. X servers whose rules are "evdev" number keys by Linux's key code (its
input-event-codes.h) plus 8.
"""

from __future__ import annotations

PAUSE = 0xE11D
X_OFFSET = 8
"""An X key code of the rules "evdev" is the Linux key code plus this."""

_SAME = range(0x01, 0x54)
_OTHERS = {
    0x54: 99,  # Print while Alt is down
    0x56: 86,  # the key right of the left Shift, on keyboards with 102 keys
    0x57: 87,  # F11
    0x58: 88,
    0x59: 117,  # = on the keypad
    0x70: 93,  # Japanese keyboards
    0x73: 89,
    0x79: 92,
    0x7B: 94,
    0x7D: 124,
    0xE01C: 96,  # Enter on the keypad
    0xE01D: 97,  # the right Ctrl
    0xE020: 113,  # mute, softer, louder
    0xE02E: 114,
    0xE030: 115,
    0xE035: 98,  # / on the keypad
    0xE037: 99,  # Print
    0xE038: 100,  # the right Alt
    0xE046: 119,  # Pause while Ctrl is down
    0xE047: 102,  # Home, Up, Page up
    0xE048: 103,
    0xE049: 104,
    0xE04B: 105,  # Left, Right
    0xE04D: 106,
    0xE04F: 107,  # End, Down, Page down
    0xE050: 108,
    0xE051: 109,
    0xE052: 110,  # Insert, Delete
    0xE053: 111,
    0xE05B: 125,  # the left and the right logo key, Menu
    0xE05C: 126,
    0xE05D: 127,
    PAUSE: 119,
} | {0x64 + n: 183 + n for n in range(11)}  # F13 to F23

LINUX: dict[int, int] = {code: code for code in _SAME} | _OTHERS
"""Linux's key code of every key that is known."""
