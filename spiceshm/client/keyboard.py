"""What a program names (text, keys, combinations of keys) made scan codes.

Keys go by the names that X gives them and by those that are printed on them, in any case:
"Return" or "enter", "Page_Up" or "pageup". A single character is the key, with Shift or AltGr where
they are needed, that gives it.
"""

from __future__ import annotations

from ..errors import CannotType
from .layouts import ENTER, SPACE, TAB, Stroke, layout
from .xkb import ALT_GR, SHIFT

CAPS_LOCK, NUM_LOCK, SCROLL_LOCK = 0x3A, 0x45, 0x46

_KEYS: dict[str, int] = {
    **dict.fromkeys(("shift", "shiftl"), SHIFT),
    "shiftr": 0x36,
    **dict.fromkeys(("ctrl", "control", "ctrll", "controll"), 0x1D),
    **dict.fromkeys(("ctrlr", "controlr"), 0xE01D),
    **dict.fromkeys(("alt", "altl"), 0x38),
    **dict.fromkeys(("altgr", "altr", "isolevel3shift"), ALT_GR),
    **dict.fromkeys(("super", "superl", "meta", "win", "windows", "logo", "cmd"), 0xE05B),
    "superr": 0xE05C,
    "menu": 0xE05D,
    **dict.fromkeys(("enter", "return"), ENTER),
    **dict.fromkeys(("esc", "escape"), 0x01),
    "tab": TAB,
    "space": SPACE,
    "backspace": 0x0E,
    **dict.fromkeys(("capslock", "caps"), CAPS_LOCK),
    "numlock": NUM_LOCK,
    "scrolllock": SCROLL_LOCK,
    **dict.fromkeys(("print", "printscreen", "prtsc", "sysrq"), 0xE037),
    **dict.fromkeys(("pause", "break"), 0xE11D),
    **dict.fromkeys(("insert", "ins"), 0xE052),
    **dict.fromkeys(("delete", "del"), 0xE053),
    "home": 0xE047,
    "end": 0xE04F,
    **dict.fromkeys(("pageup", "pgup", "prior"), 0xE049),
    **dict.fromkeys(("pagedown", "pgdn", "pgdown", "next"), 0xE051),
    **dict.fromkeys(("up", "arrowup"), 0xE048),
    **dict.fromkeys(("left", "arrowleft"), 0xE04B),
    **dict.fromkeys(("right", "arrowright"), 0xE04D),
    **dict.fromkeys(("down", "arrowdown"), 0xE050),
    **{f"f{n}": 0x3A + n for n in range(1, 11)},
    **{f"f{n}": 0x57 + n - 11 for n in (11, 12)},
    **{f"f{n}": 0x64 + n - 13 for n in range(13, 24)},
    **{f"kp{n}": code for n, code in enumerate(b"\x52\x4f\x50\x51\x4b\x4c\x4d\x47\x48\x49")},
    **dict.fromkeys(("kpdecimal", "kpdelete"), 0x53),
    "kpadd": 0x4E,
    "kpsubtract": 0x4A,
    "kpmultiply": 0x37,
    "kpdivide": 0xE035,
    "kpequal": 0x59,
    "kpenter": 0xE01C,
    **dict.fromkeys(("mute", "xf86audiomute"), 0xE020),
    **dict.fromkeys(("volumedown", "xf86audiolowervolume"), 0xE02E),
    **dict.fromkeys(("volumeup", "xf86audioraisevolume"), 0xE030),
}
"""Keys by name, in lower case, without what joins the words of a name."""

_CHARACTERS = {
    "exclam": "!",
    "quotedbl": '"',
    "numbersign": "#",
    "dollar": "$",
    "percent": "%",
    "ampersand": "&",
    **dict.fromkeys(("apostrophe", "quoteright"), "'"),
    "parenleft": "(",
    "parenright": ")",
    "asterisk": "*",
    "plus": "+",
    "comma": ",",
    **dict.fromkeys(("minus", "hyphen", "dash"), "-"),
    **dict.fromkeys(("period", "dot"), "."),
    "slash": "/",
    "colon": ":",
    "semicolon": ";",
    "less": "<",
    "equal": "=",
    "greater": ">",
    "question": "?",
    "at": "@",
    "bracketleft": "[",
    "backslash": "\\",
    "bracketright": "]",
    "asciicircum": "^",
    "underscore": "_",
    **dict.fromkeys(("grave", "quoteleft"), "`"),
    "braceleft": "{",
    **dict.fromkeys(("bar", "pipe"), "|"),
    "braceright": "}",
    "asciitilde": "~",
}
_JOINTS = str.maketrans("", "", "_- ")


class Keyboard:
    """The keyboard of one layout. Raises CannotType for a layout that is not to be had."""

    def __init__(self, name: str = "us") -> None:
        self._layout = layout(name)

    def text(self, text: str, *, caps: bool = False) -> list[Stroke]:
        """How to type a text while Caps Lock is on or off. Raises CannotType."""
        return [
            stroke for character in text for stroke in self._layout.strokes(character, caps=caps)
        ]

    def combo(self, combo: str) -> tuple[int, ...]:
        """The keys of a combination such as "ctrl+alt+F1", in the order in which they go down.

        A capital letter is the letter's key with Shift; Caps Lock is not looked at. Raises
        CannotType.
        """
        codes: dict[int, None] = {}
        for name in _names(combo):
            codes |= dict.fromkeys(self._key(name, combo))
        return tuple(codes)

    def _key(self, name: str, combo: str) -> tuple[int, ...]:
        plain = name.lower().translate(_JOINTS)
        if len(name) > 1 and plain in _KEYS:
            return (_KEYS[plain],)
        character = name if len(name) == 1 else _CHARACTERS.get(plain, "")
        if not character:
            raise CannotType(
                f"{combo!r}: no key is named {name!r}; accepted are single characters and names, "
                "such as ctrl, alt, F1, Return, esc, Page_Up, joined by +"
            )
        strokes = self._layout.strokes(character, caps=False)
        if len(strokes) > 1:
            raise CannotType(f"{character!r} takes more than one key of this keyboard layout")
        return (*strokes[0].held, strokes[0].code)


def _names(combo: str) -> list[str]:
    """The parts of a combination; "+" itself may be the last of them."""
    if combo == "+":
        return ["+"]
    if combo.endswith("++"):
        return [*_names(combo[:-2]), "+"]
    return [name.strip() or name for name in combo.split("+")]
