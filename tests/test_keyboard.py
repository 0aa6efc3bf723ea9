"""From text and names to keys, held against a keyboard that is pressed key by key."""

from __future__ import annotations

import ctypes
import string
import unicodedata
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import spiceshm
from spiceshm.client import keyboard, layouts, xkb
from spiceshm.client.keyboard import Keyboard
from spiceshm.client.layouts import Stroke, layout
from spiceshm.scancodes import LINUX, X_OFFSET
from tests.conftest import REQUIRED

if TYPE_CHECKING:
    from collections.abc import Iterator

LAYOUTS = ("us", "gb", "de", "fr(oss)", "us(dvorak)", "us(intl)", "es", "ch")
PRINTABLE = string.digits + string.ascii_letters + string.punctuation + " "
CAPS, CTRL, ALT, SHIFT, ALT_GR, ENTER = 0x3A, 0x1D, 0x38, 0x2A, 0xE038, 0x1C

_COMBINING = {"grave": 0x300, "acute": 0x301, "circumflex": 0x302, "tilde": 0x303, "macron": 0x304}
_COMBINING |= {"breve": 0x306, "abovedot": 0x307, "diaeresis": 0x308, "abovering": 0x30A}
_COMBINING |= {"doubleacute": 0x30B, "caron": 0x30C, "cedilla": 0x327, "ogonek": 0x328}


@pytest.fixture(autouse=True)
def _library() -> None:
    """Without libxkbcommon there is nothing to hold anything against."""
    try:
        xkb.Keymap("us", "")
    except spiceshm.CannotType as error:
        if REQUIRED:
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


class Model:
    """A keyboard with a layout, and what a program gets when its keys go down and up."""

    def __init__(self, name: str) -> None:
        found = layouts._NAME.fullmatch(name)
        assert found is not None
        self._keymap = xkb.Keymap(found["layout"], found["variant"] or "")
        self._library = self._keymap._library
        self._state = self._library.xkb_state_new(self._keymap._keymap)
        self._down: set[int] = set()
        self._dead = ""
        self.text = ""

    def close(self) -> None:
        assert not self._down, "keys that stayed down"
        self._library.xkb_state_unref(self._state)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stroke(self, stroke: Stroke) -> None:
        keys = (*stroke.held, stroke.code)
        for code in keys:
            self._press(code)
        for code in reversed(keys):
            self._library.xkb_state_update_key(self._state, LINUX[code] + X_OFFSET, 0)
            self._down.remove(code)

    def _press(self, code: int) -> None:
        assert code not in self._down
        self._down.add(code)
        key = LINUX[code] + X_OFFSET
        name = ctypes.create_string_buffer(64)
        symbol = self._library.xkb_state_key_get_one_sym(self._state, key)
        self._library.xkb_keysym_get_name(symbol, name, 64)
        number = self._library.xkb_state_key_get_utf32(self._state, key)
        self._library.xkb_state_update_key(self._state, key, 1)
        kind, _, accent = name.value.decode().partition("_")
        if kind == "dead":
            self._dead = chr(_COMBINING[accent])
        elif number:
            self._got(chr(number))

    def _got(self, character: str) -> None:
        character = {"\r": "\n"}.get(character, character)
        if self._dead and character == " ":
            character = {"\u0300": "`", "\u0302": "^", "\u0303": "~"}[self._dead]
        elif self._dead:
            character = unicodedata.normalize("NFC", character + self._dead)
        self._dead = ""
        self.text += character


def typed(name: str, strokes: list[Stroke], *, caps: bool) -> str:
    """What the strokes give on a keyboard, after its Caps Lock was pressed or not."""
    with Model(name) as model:
        if caps:
            model.stroke(Stroke((), CAPS))
        for stroke in strokes:
            model.stroke(stroke)
        return model.text


def typeable(name: str, *, caps: bool) -> list[str]:
    keys = layout(name).caps if caps else layout(name).plain
    return sorted(keys.characters)


# Text


@pytest.mark.parametrize("caps", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_whatever_a_program_prints_can_be_typed(name: str, caps: bool) -> None:
    text = PRINTABLE + "\n\t"
    assert typed(name, Keyboard(name).text(text, caps=caps), caps=caps) == text


@pytest.mark.parametrize("caps", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_all_that_a_layout_has_comes_out_as_it_went_in(name: str, caps: bool) -> None:
    text = "".join(typeable(name, caps=caps))
    assert len(text) >= len(PRINTABLE)
    assert typed(name, Keyboard(name).text(text, caps=caps), caps=caps) == text


@given(st.data())
def test_any_text_comes_out_as_it_went_in(data: st.DataObject) -> None:
    name, caps = data.draw(st.sampled_from(LAYOUTS)), data.draw(st.booleans())
    text = data.draw(st.text(st.sampled_from(typeable(name, caps=caps)), max_size=30))
    assert typed(name, Keyboard(name).text(text, caps=caps), caps=caps) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("de", "^`êà€ßÄ"),
        ("fr(oss)", "être à Noël, œuvre ~"),
        ("us(intl)", "ÀÉîõü'\""),
        ("es", "¿ñ?"),
    ],
)
def test_accents_that_keys_have_or_dead_keys_give(name: str, text: str) -> None:
    assert typed(name, Keyboard(name).text(text), caps=False) == text


def test_us_is_ours_and_the_same_as_everybodys() -> None:
    """Without libxkbcommon nobody would notice a wrong key."""
    ours, theirs = layout("us"), layouts._from_xkb("us")
    for mine, other in ((ours.plain, theirs.plain), (ours.caps, theirs.caps)):
        assert set(mine.characters) == set(PRINTABLE + "\n\t")
        assert {char: other.characters[char] for char in mine.characters} == mine.characters


@pytest.mark.parametrize(
    ("caps", "stroke"), [(False, Stroke((SHIFT,), 0x1E)), (True, Stroke((), 0x1E))]
)
def test_caps_lock_exchanges_the_keys(caps: bool, stroke: Stroke) -> None:
    assert Keyboard().text("A", caps=caps) == [stroke]


@pytest.mark.parametrize(
    ("name", "text", "caps", "complaint"),
    [
        ("us", "aé", False, "no key of this keyboard layout gives 'é'"),
        ("us", "\r", False, r"'\\r'"),
        ("ru", "q", False, "gives 'q'"),
        ("de", "aß", True, "gives 'ß' while Caps Lock is on"),
    ],
)
def test_what_cannot_be_typed_is_named(name: str, text: str, caps: bool, complaint: str) -> None:
    with pytest.raises(spiceshm.CannotType, match=complaint):
        Keyboard(name).text(text, caps=caps)


# Layouts


@pytest.mark.parametrize(
    "name", ["nowhere", "de(nonsense)", "", "us,ru", "a b", "../us", "us(", "us()"]
)
def test_a_layout_that_there_is_not(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        spiceshm.CannotType, match=r'accepted are "us" and what setxkbmap'
    ) as caught:
        Keyboard(name)
    assert repr(name) in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_without_the_library_us_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xkb, "_LIBRARY", "libxkbcommon.so.none")
    xkb._library.cache_clear()
    layouts._from_xkb.cache_clear()
    try:
        assert Keyboard("us").text("a")
        with pytest.raises(spiceshm.CannotType, match="install libxkbcommon0 and xkb-data"):
            Keyboard("de")
    finally:
        xkb._library.cache_clear()


def test_the_environment_chooses_no_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    layouts._from_xkb.cache_clear()
    monkeypatch.setenv("XKB_DEFAULT_VARIANT", "dvorak")
    monkeypatch.setenv("XKB_DEFAULT_OPTIONS", "ctrl:swapcaps")
    assert layouts._from_xkb("us").plain.characters["q"] == Stroke((), 0x10)


# Combinations


@pytest.mark.parametrize(
    ("combo", "codes"),
    [
        ("ctrl+alt+F1", (CTRL, ALT, 0x3B)),
        ("Control_L+Alt_L+f1", (CTRL, ALT, 0x3B)),
        ("a", (0x1E,)),
        ("A", (SHIFT, 0x1E)),
        ("shift+A", (SHIFT, 0x1E)),
        ("ctrl++", (CTRL, SHIFT, 0x0D)),
        ("ctrl+plus", (CTRL, SHIFT, 0x0D)),
        ("+", (SHIFT, 0x0D)),
        ("ctrl+-", (CTRL, 0x0C)),
        ("ctrl + c", (CTRL, 0x2E)),
        ("ctrl+ ", (CTRL, 0x39)),
        ("Return", (ENTER,)),
        ("enter", (ENTER,)),
        ("\n", (ENTER,)),
        ("Page_Up", (0xE049,)),
        ("pageup", (0xE049,)),
        ("PAGE UP", (0xE049,)),
        ("Prior", (0xE049,)),
        ("super", (0xE05B,)),
        ("AltGr", (ALT_GR,)),
        ("pause", (0xE11D,)),
        ("Print", (0xE037,)),
        ("F10", (0x44,)),
        ("F11", (0x57,)),
        ("F12", (0x58,)),
        ("F13", (0x64,)),
        ("F23", (0x6E,)),
        ("KP_7", (0x47,)),
        ("KP_Enter", (0xE01C,)),
    ],
)
def test_a_combination(combo: str, codes: tuple[int, ...]) -> None:
    assert Keyboard().combo(combo) == codes


@pytest.mark.parametrize(
    ("name", "combo", "codes"),
    [
        ("de", "ctrl+z", (CTRL, 0x15)),
        ("de", "@", (ALT_GR, 0x10)),
        ("fr(oss)", "ctrl+a", (CTRL, 0x10)),
    ],
)
def test_characters_are_those_of_the_layout(name: str, combo: str, codes: tuple[int, ...]) -> None:
    assert Keyboard(name).combo(combo) == codes


def spelled(name: str) -> Iterator[str]:
    """Other ways to write the same name."""
    yield from (name, name.upper(), name.capitalize(), "_".join(name) if len(name) > 1 else name)


@given(st.data())
def test_any_names_go_together(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(keyboard._KEYS)), min_size=1, max_size=5))
    written = [data.draw(st.sampled_from(list(spelled(name)))) for name in names]
    codes = Keyboard().combo("+".join(written))
    assert codes == tuple(dict.fromkeys(keyboard._KEYS[name] for name in names))
    assert all(code in LINUX for code in codes)


@given(st.text())
def test_any_other_text_is_a_combination_or_refused(text: str) -> None:
    try:
        codes = Keyboard().combo(text)
    except spiceshm.CannotType:
        return
    assert codes
    assert set(codes) <= set(LINUX)


@pytest.mark.parametrize("combo", ["", "+a", "ctrl+", "++", "hyper+x", "ctrl+ctrll+nothing", "F24"])
def test_a_name_that_there_is_not(combo: str) -> None:
    with pytest.raises(spiceshm.CannotType, match="no key is named") as caught:
        Keyboard().combo(combo)
    assert str(caught.value).startswith(repr(combo))


def test_a_character_of_two_keys_is_no_combination() -> None:
    with pytest.raises(spiceshm.CannotType, match=r"'\^' takes more than one key"):
        Keyboard("de").combo("ctrl+^")
