"""What a message is: a construct declaration, a frozen dataclass over it, and a number.

Strategy: each message is declared once, as a construct ``Struct`` called ``layout``. The dataclass
fields are the part of it that carries meaning; counts, magic and reserved fields are in the layout
alone. A body either parses in full or raises `RemoteProtocolError` that names message and field;
nothing here does I/O or knows the state of a connection.
"""

from __future__ import annotations

import dataclasses
import enum
import io
import re
import struct
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, dataclass_transform

from construct import Adapter, Construct, ConstructError, Int32ul, Struct, ValidationError

from ..errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable


_SHOWN = 4
"""Of what is many."""

_LARGE = 1 << 16
"""Bytes of a body that is not copied once more to be read."""

_ERRORS = (ConstructError, UnicodeDecodeError, OverflowError)


class Sender(enum.Enum):
    """Which end sends a message."""

    SERVER = "server"
    CLIENT = "client"

    __hash__ = object.__hash__  # Enum's own is Python code, and tables ask for it

    @property
    def other(self) -> Sender:
        return Sender.CLIENT if self is Sender.SERVER else Sender.SERVER


class Record:
    """A piece of a message with a layout of its own; instances are immutable."""

    layout: ClassVar[Construct]
    title: ClassVar[str] = ""
    """Its dotted name, for errors and traces."""
    exact: ClassVar[bool] = True
    """False where the peer may send more bytes than the layout reads."""

    @classmethod
    def parse(cls, body: bytes | memoryview) -> Self:
        """Read one from exactly ``body``. Raises RemoteProtocolError that names the field."""
        stream = io.BytesIO(body) if len(body) < _LARGE else _Reader(body)
        pointers: list[_Pointer] = []
        try:
            values = cls.layout.parse_stream(stream, pointers=pointers)
        except _ERRORS as error:
            raise RemoteProtocolError(cls.title, *_explain(error)) from None
        if pointers:
            cls._follow(stream, pointers, len(body))
            _settle(values)
        elif cls.exact and (rest := len(stream.read())):
            raise RemoteProtocolError(cls.title, "", f"{rest} bytes too many behind its last field")
        return cls(**{field: values[field] for field in cls._fields()})

    @classmethod
    def _follow(cls, stream: io.BytesIO | _Reader, pointers: list[_Pointer], size: int) -> None:
        """Read what pointers lead to, and what those of that lead to, behind the fixed part.

        Those of one message may not lead to the same bytes: it would be larger than it says.
        """
        end = read = stream.tell()
        for pointer in pointers:  # which grow by those that are found there
            if pointer.at < end:
                problem = f"{pointer.at}: not a place behind the fixed part"
                raise RemoteProtocolError(cls.title, pointer.field, problem)
            stream.seek(pointer.at)
            inner: list[_Pointer] = []
            try:
                values = pointer.kind.layout.parse_stream(stream, pointers=inner)
            except _ERRORS as error:
                field, problem = _explain(error)
                raise RemoteProtocolError(cls.title, f"{pointer.field}.{field}", problem) from None
            read += stream.tell() - pointer.at
            if read > size:
                problem = f"{pointer.at}: what else leads to these bytes is read already"
                raise RemoteProtocolError(cls.title, pointer.field, problem)
            pointer.value = pointer.kind(**{name: values[name] for name in pointer.kind._fields()})
            for one in inner:
                one.field = f"{pointer.field}.{one.field}"
            pointers += inner
        for pointer in pointers:
            _settle(vars(pointer.value))

    @cached_property
    def packed(self) -> bytes:
        """The bytes of the body, little endian. Raises LocalProtocolError for a bad value.

        What it points to lies behind it, in the order of the pointers.
        """
        body = bytearray()
        pointers = [_Pointer(-1, type(self), "", self)]
        try:
            for pointer in pointers:  # which grow by those of what they point to
                if pointer.at >= 0:
                    struct.pack_into("<I", body, pointer.at, len(body))
                inner: list[_Pointer] = []
                values = pointer.value._values()
                built = pointer.kind.layout.build(values, pointers=inner)
                for one in inner:
                    one.at += len(body)
                pointers += inner
                body += built
        except (*_ERRORS, ValueError) as error:
            raise LocalProtocolError(self.title, *_explain(error)) from None
        return bytes(body)

    @classmethod
    @cache
    def _fields(cls) -> tuple[str, ...]:
        return tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]

    def _values(self) -> dict[str, Any]:
        return {field: getattr(self, field) for field in self._fields()}

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={_short(value)}" for key, value in self._values().items())
        return f"{type(self).__name__}({inside})"

    def __eq__(self, other: object) -> bool:
        # Fields may be arrays, whose own == is no answer: messages are equal if their bytes are.
        return type(self) is type(other) and self.packed == other.packed

    def __hash__(self) -> int:
        return hash((type(self), self.packed))


class _Reader:
    """Reads from a body in place, for `io.BytesIO` would copy all of it first."""

    def __init__(self, body: bytes | memoryview) -> None:
        self._body = memoryview(body)
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        start, end = self._at, len(self._body)
        self._at = end if size < 0 else min(end, start + size)
        return bytes(self._body[start : self._at])

    def seek(self, at: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET  # construct needs nothing else
        self._at = min(at, len(self._body))
        return self._at

    def tell(self) -> int:
        return self._at


class Message(Record):
    """A message of the data phase: what follows the header with number ``number``."""

    channel: ClassVar[str]
    sender: ClassVar[Sender]
    number: ClassVar[int]

    def __str__(self) -> str:
        inside = " ".join(f"{key}={_short(value)}" for key, value in self._values().items())
        return f"{self.title} {inside}".strip()


R = TypeVar("R", bound=Record)
M = TypeVar("M", bound=Message)

MESSAGES: dict[tuple[str, Sender, int], type[Message]] = {}
"""Every declared message by channel (``base`` for those of all channels), sender and number."""


@dataclass_transform(frozen_default=True, eq_default=False)
def record(cls: type[R]) -> type[R]:
    """Make a class with a ``layout`` an immutable record."""
    made = dataclasses.dataclass(frozen=True, eq=False)(cls)
    inside = {subcon.name for subcon in made.layout.subcons}
    missing = set(made._fields()) - inside
    if missing:
        raise TypeError(f"{cls.__name__}: no {sorted(missing)} in its layout")
    made.title = _snake(cls.__name__)
    return made


@dataclass_transform(frozen_default=True, eq_default=False)
def message(channel: str, sender: Sender, number: int) -> Callable[[type[M]], type[M]]:
    """Declare a message: ``@message("display", SERVER, 314)`` over a class with a ``layout``.

    Its dotted name is the channel and the class name in snake case without the channel's name:
    ``display.surface_create``, ``display.init``. Where both ends send a message of one name, the
    client's class is called ``Client...``, which is no part of the dotted name.
    """

    def declare(cls: type[M]) -> type[M]:
        made = record(cls)
        made.channel, made.sender, made.number = channel, sender, number
        own = _snake(cls.__name__).removeprefix("client_").removeprefix(channel + "_")
        made.title = f"{channel}.{own}"
        key = (channel, sender, number)
        if key in MESSAGES:
            raise TypeError(f"{made.title}: {key} is {MESSAGES[key].title} already")
        MESSAGES[key] = made
        return made

    return declare


def lookup(channel: str, sender: Sender, number: int) -> type[Message] | None:
    """The class of a message on a channel, those of all channels included; None if unknown."""
    return MESSAGES.get((channel, sender, number)) or MESSAGES.get(("base", sender, number))


class As(Adapter):  # type: ignore[misc]
    """Lets a layout hold a `Record` as one of its fields."""

    def __init__(self, kind: type[Record]) -> None:
        super().__init__(kind.layout)
        self.kind = kind

    def _decode(self, obj: Any, context: Any, path: str) -> Record:
        return self.kind(**{field: obj[field] for field in self.kind._fields()})

    def _encode(self, obj: Record, context: Any, path: str) -> dict[str, Any]:
        return obj._values()


@dataclasses.dataclass
class _Pointer:
    """What ``field`` points to. ``at`` is where that lies in the body; while a body is being
    built, where the pointer does."""

    at: int
    kind: type[Record]
    field: str
    value: Any = None


class Pointed(Construct):  # type: ignore[misc]
    """A `Record` that lies anywhere behind the fixed part of a message: here is a u32, where it
    begins, counted from the first byte of the body.

    None is 0, and only where it is ``optional``.
    """

    def __init__(self, kind: type[Record], *, optional: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.optional = optional

    def _parse(self, stream: Any, context: Any, path: str) -> _Pointer | None:
        at = Int32ul._parsereport(stream, context, path)
        if at == 0 and self.optional:
            return None
        pointer = _Pointer(at, self.kind, _field(path))
        context._params.get("pointers", []).append(pointer)
        return pointer

    def _build(self, obj: Record | None, stream: Any, context: Any, path: str) -> Record | None:
        if obj is None and not self.optional:
            raise ValidationError("nothing to point to", path=path)
        if obj is not None:
            pointers = context._params.get("pointers", [])
            pointers.append(_Pointer(stream.tell(), self.kind, _field(path), obj))
        Int32ul._build(0, stream, context, path)
        return obj

    def _sizeof(self, context: Any, path: str) -> int:
        return 4


def _settle(values: dict[str, Any]) -> None:
    """Put what pointers lead to in their place, in a message that nobody has seen yet."""
    for name, value in values.items():
        if isinstance(value, _Pointer):
            values[name] = value.value
        elif isinstance(value, Record):
            _settle(vars(value))


def empty() -> Struct:
    """The layout of a message without a body."""
    return Struct()


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _explain(error: Exception) -> tuple[str, str]:
    """The field and the reason of a construct error, each short enough for a log line."""
    field = _field(getattr(error, "path", None) or "")
    reason = str(error).splitlines()[-1] if str(error) else type(error).__name__
    return field, re.sub(r"^Error in path [^\n]*", "", reason)[:200]


def _field(path: str) -> str:
    """A field by a path of construct's, whose first part says what was being done."""
    return ".".join(path.split(" -> ")[1:])


def _short(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)}B"
    if isinstance(value, tuple) and len(value) > _SHOWN:
        return f"{_short(value[:_SHOWN])[:-1]}, ... {len(value)} in all)"
    return re.sub(r"\s+", " ", str(value))[:80]
