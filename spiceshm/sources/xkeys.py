"""Which key codes and modifiers an X server has for what clients press, read off its keymap.

Key codes differ from server to server, and so do key symbols from layout to layout. What does not
is the *name* that XKB has for the place of a key (``AD01`` is right of Tab, whatever it types), so
scan codes are looked up by that.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from ..events import CAPS_LOCK, NUM_LOCK, SCROLL_LOCK
from .xcb import REPLY_HEAD

_ROWS = {
    0x01: "ESC AE01 AE02 AE03 AE04 AE05 AE06 AE07 AE08 AE09 AE10 AE11 AE12 BKSP",
    0x0F: "TAB AD01 AD02 AD03 AD04 AD05 AD06 AD07 AD08 AD09 AD10 AD11 AD12 RTRN",
    0x1D: "LCTL AC01 AC02 AC03 AC04 AC05 AC06 AC07 AC08 AC09 AC10 AC11 TLDE",
    0x2A: "LFSH BKSL AB01 AB02 AB03 AB04 AB05 AB06 AB07 AB08 AB09 AB10 RTSH",
    0x37: "KPMU LALT SPCE CAPS",
    0x3B: "FK01 FK02 FK03 FK04 FK05 FK06 FK07 FK08 FK09 FK10",
    0x45: "NMLK SCLK",
    0x47: "KP7 KP8 KP9 KPSU KP4 KP5 KP6 KPAD KP1 KP2 KP3 KP0 KPDL PRSC",
    0x56: "LSGT FK11 FK12 KPEQ",
    0x64: "FK13 FK14 FK15 FK16 FK17 FK18 FK19 FK20 FK21 FK22 FK23",
    0x70: "HKTG",
    0x73: "AB11",
    0x79: "HENK",
    0x7B: "MUHE",
    0x7D: "AE13",
    0xE01C: "KPEN RCTL",
    0xE020: "MUTE",
    0xE02E: "VOL-",
    0xE030: "VOL+",
    0xE035: "KPDV",
    0xE037: "PRSC RALT",
    0xE046: "PAUS HOME UP PGUP",
    0xE04B: "LEFT",
    0xE04D: "RGHT",
    0xE04F: "END DOWN PGDN INS DELE",
    0xE05B: "LWIN RWIN COMP",
    0xE11D: "PAUS",
}

NAMES: dict[int, str] = {
    first + at: name for first, row in _ROWS.items() for at, name in enumerate(row.split())
}
"""XKB's name of every key that has a scan code (as in `scancodes`)."""

INDICATORS = {"Caps Lock": CAPS_LOCK, "Num Lock": NUM_LOCK, "Scroll Lock": SCROLL_LOCK}
"""The lights of a keyboard by XKB's names; what lights one is what locks it."""

WANTED_NAMES = 1 << 8 | 1 << 9 | 1 << 10
"""What to ask XkbGetNames for: the names of indicators and of keys, and other names of keys."""

_INDICATORS = 32


class Keymap(NamedTuple):
    """An X key code for every scan code that it has, and the modifiers that make each lock."""

    keys: dict[int, int]
    locks: dict[int, int]

    def lock_state(self, locked: int) -> int:
        """The locks that are on (bits of `events`) while these modifiers are locked."""
        return sum(bit for bit, modifiers in self.locks.items() if locked & modifiers)

    def lock_modifiers(self, state: int) -> tuple[int, int]:
        """All modifiers that are some lock, and those of them that are locked in this state."""
        every = on = 0
        for bit, modifiers in self.locks.items():
            every |= modifiers
            on |= modifiers if state & bit else 0
        return every, on


def read_keymap(names: Any, indicators: Any, atoms: dict[int, int]) -> Keymap:
    """A keymap out of the replies to XkbGetNames (`WANTED_NAMES`) and XkbGetIndicatorMap (all).

    ``atoms`` has the lock that each name of an indicator, an X atom, stands for.
    """
    first, count, lit, aliases = struct.unpack_from("=18xBBIxB", names)
    at = REPLY_HEAD
    locks: dict[int, int] = {}
    for number in range(_INDICATORS):
        if lit >> number & 1:
            (atom,) = struct.unpack_from("=I", names, at)
            at += 4
            modifiers = indicators[REPLY_HEAD + 12 * number + 4][0]
            if atom in atoms and modifiers:
                locks[atoms[atom]] = modifiers
    codes: dict[str, int] = {}
    for number in range(count):
        codes.setdefault(_name(names, at + 4 * number), first + number)
    at += 4 * count
    for number in range(aliases):
        real, other = _name(names, at + 8 * number), _name(names, at + 8 * number + 4)
        if real in codes:
            codes.setdefault(other, codes[real])
    return Keymap({code: codes[name] for code, name in NAMES.items() if name in codes}, locks)


def _name(reply: Any, at: int) -> str:
    return bytes(reply[at : at + 4]).rstrip(b"\0").decode("latin-1")
