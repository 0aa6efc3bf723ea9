"""A reader of protocol/spiceshm.proto, SPICE's own interface language as far as it is used there.

A field becomes (name, shape). The shape is what lies on the wire: an integer type, enums and flags
turned into theirs, or the name of a struct; behind it ``[count]`` for an array (``[]`` to the end
of the body, ``[a * b]`` for image_size), ``*`` for a pointer, ``?`` for a part that a switch leaves
out, with ``|`` between them where it has several. Anything that the language does not have raises
ValueError.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

Fields: TypeAlias = tuple[tuple[str, str], ...]
Message: TypeAlias = tuple[str, str, int, str]
"""Channel, sender, number and dotted name."""

_DECLARATION = r"(\w+) (\w+)(?: : BaseChannel)? \{(.*?)\};"
_NUMBER = r"(\w+) = (\d+),"
_CHANNEL = r"\w+ (\w+) = (\d+);"
_MESSAGE = r"(?:(server|client):\s*)?message \{(.*?)\} (\w+) = (\d+);"
_FIELD = r"(\w+) (\*?)(\w+)(?:\[(.*?)\])?;"
_CASES = r"switch \(\w+\) \{(.*?)\} u @anon;"
_CASE = rf"case !?\w+:\s*({_FIELD})"
_MEMBER = rf"(?:{_CASES}|({_FIELD}))"


class Idl:
    """What the text declares."""

    def __init__(self, text: str) -> None:
        self.enums: dict[str, dict[str, int]] = {}
        """Word to value; for flags, to bit number."""
        self.structs: dict[str, Fields] = {}
        self.messages: dict[Message, Fields] = {}
        self.channels: dict[str, int] = {}
        integers = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
        self._types = {name: name for name in integers}
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        for word, name, body in _every(_DECLARATION, text):
            if sized := re.fullmatch(r"(?:enum|flags)(8|16|32)", word):
                self._types[name] = f"uint{sized[1]}"
                self.enums[name] = {key: int(value) for key, value in _every(_NUMBER, body)}
            elif word == "struct":
                self._types[name] = name
                self.structs[name] = self._fields(body)
            elif word == "channel":
                self._messages(re.sub("Channel|Phase", "", name).lower(), body)
            elif word == "protocol":
                self.channels = {key: int(value) for key, value in _every(_CHANNEL, body)}
            else:
                raise ValueError(f"what is {word} {name}?")

    def _messages(self, channel: str, body: str) -> None:
        sender = ""
        for of, fields, name, number in _every(_MESSAGE, body):
            sender = of or sender
            key = channel, sender, int(number), f"{channel}.{name}"
            if key in self.messages:
                raise ValueError(f"{key} is declared twice")
            self.messages[key] = self._fields(fields)

    def _fields(self, body: str) -> Fields:
        fields = []
        for cases, _, *field in _every(_MEMBER, body):
            if cases is None:
                fields.append(self._field(*field))
                continue
            choice = [self._field(*one) for _, *one in _every(_CASE, cases)]
            [name] = {name for name, _ in choice}
            fields.append((name, "|".join(dict.fromkeys(shape for _, shape in choice)) + "?"))
        return tuple(fields)

    def _field(self, kind: str, pointer: str, name: str, count: str | None) -> tuple[str, str]:
        if kind not in self._types:
            raise ValueError(f"{kind} is no type")
        array = "" if count is None else f"[{count}]"
        array = re.sub(r"image_size\(8, (\w+), (\w+)\)", r"\1 * \2", array)
        return name, self._types[kind] + pointer + array


def _every(pattern: str, text: str) -> Iterator[tuple[str, ...]]:
    """The groups of matches that follow each other and leave nothing of the text."""
    at = 0
    for match in re.finditer(rf"\s*{pattern}\s*", text, re.DOTALL):
        if match.start() != at:
            break
        at = match.end()
        yield match.groups()
    if text[at:].strip():
        raise ValueError(f"cannot be read: {text[at:].strip()[:60]!r}")
