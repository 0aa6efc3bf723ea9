"""Keyboard layouts: which keys give a character, with Caps Lock off and on.

Strategy: a server is told of keys, never of characters, so what somebody types depends on the
layout over there. US is a table of our own. Every other layout is asked of libxkbcommon, which
reads the files that X servers and Wayland compositors read: one presses each key with Shift, AltGr
and both, and notes what comes of it.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import product
from typing import NamedTuple

from ..errors import CannotType
from ..scancodes import LINUX
from . import xkb
from .xkb import ACCEPTED, ALT_GR, SHIFT

ENTER, TAB, SPACE = 0x1C, 0x0F, 0x39
_NAME = re.compile(r"(?P<layout>[\w-]+)(?:\((?P<variant>[\w-]+)\))?", re.ASCII)


class Stroke(NamedTuple):
    """A key to press and let go, and those that are held meanwhile; all are scan codes."""

    held: tuple[int, ...]
    code: int


class Keys(NamedTuple):
    """What gives each character, and each dead key, which is named by its combining character."""

    characters: dict[str, Stroke]
    dead: dict[str, Stroke]


class Layout(NamedTuple):
    """A layout with Caps Lock off and with Caps Lock on."""

    plain: Keys
    caps: Keys

    def strokes(self, character: str, *, caps: bool) -> tuple[Stroke, ...]:
        """How to type a character while Caps Lock is on or off. Raises CannotType."""
        keys = self.caps if caps else self.plain
        if character in keys.characters:
            return (keys.characters[character],)
        mark, base = _MARK_AND_SPACE.get(character) or _taken_apart(character)
        if mark in keys.dead and base in keys.characters:
            return keys.dead[mark], keys.characters[base]
        raise CannotType(
            f"no key of this keyboard layout gives {character!r}"
            + (" while Caps Lock is on" if caps and self._without_caps(character) else "")
        )

    def _without_caps(self, character: str) -> bool:
        return character in self.plain.characters


_ALWAYS = {"\n": Stroke((), ENTER), "\t": Stroke((), TAB), " ": Stroke((), SPACE)}
_HELD: tuple[tuple[int, ...], ...] = ((), (SHIFT,), (ALT_GR,), (SHIFT, ALT_GR))
_KEYPAD = frozenset({0x37, *range(0x47, 0x54), 0x59, 0xE01C, 0xE035})
_SECOND = (0x56,)
"""The key right of the left Shift, which many keyboards don't have."""

_EVERYWHERE = tuple(sorted(set(LINUX) - _KEYPAD - set(_SECOND)))
_US_ROWS = (
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
)
_MARK_AND_SPACE = {"`": ("\u0300", " "), "^": ("\u0302", " "), "~": ("\u0303", " ")}
"""What a dead key and the space bar give; of others not all programs think the same."""

_DEAD = {
    "dead_grave": "\u0300",
    "dead_acute": "\u0301",
    "dead_circumflex": "\u0302",
    "dead_tilde": "\u0303",
    "dead_macron": "\u0304",
    "dead_breve": "\u0306",
    "dead_abovedot": "\u0307",
    "dead_diaeresis": "\u0308",
    "dead_abovering": "\u030a",
    "dead_doubleacute": "\u030b",
    "dead_caron": "\u030c",
    "dead_cedilla": "\u0327",
    "dead_ogonek": "\u0328",
}


def layout(name: str) -> Layout:
    """The layout of that name, as ``setxkbmap`` takes it, a variant in brackets: ``fr(oss)``.

    Raises CannotType if there is none, or if libxkbcommon would be needed and is not installed.
    """
    return _us() if name == "us" else _from_xkb(name)


@cache
def _us() -> Layout:
    plain, caps = dict(_ALWAYS), dict(_ALWAYS)
    for first, *rows in _US_ROWS:
        for held, row in zip(((), (SHIFT,)), rows, strict=True):
            for code, character in enumerate(row, first):
                plain[character] = Stroke(held, code)
                caps[character.swapcase()] = Stroke(held, code)
    return Layout(Keys(plain, {}), Keys(caps, {}))


def _taken_apart(character: str) -> tuple[str, str]:
    """The combining character and what it stands on; two empty strings if it is of one piece."""
    parts = unicodedata.normalize("NFD", character)
    return (parts[1], parts[0]) if len(parts) == 2 else ("", "")


@cache
def _from_xkb(name: str) -> Layout:
    found = _NAME.fullmatch(name)
    if found is None:
        raise CannotType(f"keyboard layout {name!r}: {ACCEPTED}")
    table = xkb.Keymap(found["layout"], found["variant"] or "")
    return Layout(_keys(table, caps=False), _keys(table, caps=True))


def _keys(table: xkb.Keymap, *, caps: bool) -> Keys:
    """What each key gives; where several give the same, that with the least to hold, but one that
    all keyboards have."""
    characters, dead = dict(_ALWAYS), dict[str, Stroke]()
    for codes, held in product((_EVERYWHERE, _SECOND), _HELD):
        for code, given in table.given(codes, held, caps=caps):
            if given.name in _DEAD:
                dead.setdefault(_DEAD[given.name], Stroke(held, code))
            elif given.character and given.character.isprintable():
                characters.setdefault(given.character, Stroke(held, code))
    return Keys(characters, dead)
