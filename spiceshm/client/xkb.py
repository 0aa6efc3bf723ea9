"""libxkbcommon, as far as it tells which key gives what; loaded when first asked."""

from __future__ import annotations

import ctypes
import weakref
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from ..errors import CannotType
from ..scancodes import LINUX, X_OFFSET

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SHIFT, ALT_GR = 0x2A, 0xE038
"""Scan codes of the left Shift, and of the right Alt, which is AltGr where a layout has one."""

ACCEPTED = 'accepted are "us" and what setxkbmap takes, such as "de", "fr(oss)", "us(dvorak)"'

_LIBRARY = "libxkbcommon.so.0"
_LOCK = 2
"""The modifier mask of Caps Lock: its place is fixed in every keymap, by X's protocol."""

_NO_ENVIRONMENT = 2
_DEPRESSED = 1
_SILENT = 0
_PTR, _UINT, _INT = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int
_FUNCTIONS = {
    "xkb_context_new": (_PTR, _INT),
    "xkb_context_set_log_level": (None, _PTR, _INT),
    "xkb_context_unref": (None, _PTR),
    "xkb_keymap_new_from_names": (_PTR, _PTR, _PTR, _INT),
    "xkb_keymap_unref": (None, _PTR),
    "xkb_state_new": (_PTR, _PTR),
    "xkb_state_unref": (None, _PTR),
    "xkb_state_update_key": (_INT, _PTR, _UINT, _INT),
    "xkb_state_update_mask": (_INT, _PTR, *[_UINT] * 6),
    "xkb_state_serialize_mods": (_UINT, _PTR, _INT),
    "xkb_state_key_get_one_sym": (_UINT, _PTR, _UINT),
    "xkb_state_key_get_utf32": (_UINT, _PTR, _UINT),
    "xkb_keysym_get_name": (_INT, _UINT, _PTR, ctypes.c_size_t),
}
"""What each returns, and what it takes."""


class Given(NamedTuple):
    """What a key gives: the name of its keysym, and its character, empty if it has none."""

    name: str
    character: str


class _Names(ctypes.Structure):
    _fields_ = tuple(
        (field, ctypes.c_char_p) for field in ("rules", "model", "layout", "variant", "options")
    )


class Keymap:
    """A layout of X's rules "evdev". Raises CannotType if there is none of that name."""

    def __init__(self, layout: str, variant: str) -> None:
        self._library = library = _library()
        context = library.xkb_context_new(_NO_ENVIRONMENT)
        library.xkb_context_set_log_level(context, _SILENT)
        names = _Names(b"evdev", b"pc105", layout.encode(), variant.encode(), b"")
        keymap = library.xkb_keymap_new_from_names(context, ctypes.byref(names), 0)
        library.xkb_context_unref(context)
        if not keymap:
            name = f"{layout}({variant})" if variant else layout
            raise CannotType(f"keyboard layout {name!r} is in no file of xkb-data; {ACCEPTED}")
        self._keymap = keymap
        weakref.finalize(self, library.xkb_keymap_unref, keymap)

    def given(
        self, codes: Iterable[int], held: tuple[int, ...], *, caps: bool
    ) -> Iterator[tuple[int, Given]]:
        """What each of the keys ``codes`` gives while ``held`` are held; all are scan codes."""
        library = self._library
        depressed = self._mask(held)
        state = library.xkb_state_new(self._keymap)
        library.xkb_state_update_mask(state, depressed, 0, _LOCK if caps else 0, 0, 0, 0)
        name = ctypes.create_string_buffer(64)
        for code in codes:
            key = LINUX[code] + X_OFFSET
            symbol = library.xkb_state_key_get_one_sym(state, key)
            library.xkb_keysym_get_name(symbol, name, len(name))
            number = library.xkb_state_key_get_utf32(state, key)
            yield code, Given(name.value.decode(), chr(number) if number else "")
        library.xkb_state_unref(state)

    def _mask(self, held: tuple[int, ...]) -> int:
        """The modifiers that these keys are in this layout."""
        library = self._library
        state = library.xkb_state_new(self._keymap)
        for code in held:
            library.xkb_state_update_key(state, LINUX[code] + X_OFFSET, 1)
        mask: int = library.xkb_state_serialize_mods(state, _DEPRESSED)
        library.xkb_state_unref(state)
        return mask


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise CannotType(
            f'keyboard layouts other than "us" need {_LIBRARY}: install libxkbcommon0 and xkb-data'
        ) from None
    for name, (returns, *takes) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = returns, takes
    return library
