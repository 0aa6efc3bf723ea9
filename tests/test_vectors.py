"""Every vector of protocol/vectors against the codec and the machines.

Golden ones are read and written, by construct and by the quick codec. Streams go through the
receiving machine whole, byte by byte and with the beginning of another message behind them, and
come out of the sending one. Malformed ones are refused by the decoder or by a machine in the state
that they name, and the error names message and field. A table, a key or a state that no test here
can judge is an error, not a vector less.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import construct
import numpy as np
import pytest

from spiceshm.client.display import RemoteDisplay
from spiceshm.errors import LocalProtocolError, RemoteProtocolError
from spiceshm.fds import Descriptor
from spiceshm.protocol import (
    Channel,
    ClientDisplay,
    ClientLink,
    Password,
    ServerDisplay,
    ServerLink,
    State,
    generate_key,
)
from spiceshm.transport import parse_address
from spiceshm.wire import MESSAGES, Message, Record, Sender, cursor, display, hot, inputs, main, shm
from spiceshm.wire import base as base_messages
from spiceshm.wire.base import DataHeader, MiniHeader, Ping, Pong, SetAck
from spiceshm.wire.display import DisplayInit, SurfaceCreate, SurfaceDestroy
from spiceshm.wire.link import (
    MAGIC,
    AuthMechanism,
    LinkHeader,
    LinkMess,
    LinkReply,
    LinkResult,
    Ticket,
)
from spiceshm.wire.message import As
from spiceshm.wire.shm import ShmDamage, ShmDamageHandled, ShmOffer, ShmReply, ShmWithdraw
from spiceshm.wire.types import Clip, LinkError, Rects, Tuple
from tests.idl import Fields, Idl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PROTOCOL = Path(__file__).parent.parent / "protocol"
SPEC = Idl((PROTOCOL / "spiceshm.proto").read_text())
FILES = {path.name: tomllib.loads(path.read_text()) for path in (PROTOCOL / "vectors").iterdir()}

Row = dict[str, Any]


def rows(table: str) -> list[Row]:
    return [row for file in FILES.values() for row in file.get(table, [])]


def name_of(row: Row) -> str:
    what = row.get("message", "stream")
    return re.sub(r"\W+", "-", f"{what} {row.get('why', row.get('note'))}")[:90].strip("-")


def each(vectors: list[Row]) -> Any:
    return pytest.mark.parametrize("row", [pytest.param(row, id=name_of(row)) for row in vectors])


def hexed(text: str) -> bytes:
    return bytes.fromhex(text)


LINK = {kind.title: kind for kind in (LinkHeader, LinkMess, LinkReply, AuthMechanism, Ticket, LinkResult)}


def kind_of(row: Row) -> type[Record]:
    """The class of a row's message; KeyError where there is none."""
    channel, _, name = row["message"].partition(".")
    if channel == "link":
        assert row["number"] == 0
        return LINK[name]
    kind = MESSAGES[channel, Sender(row["sender"]), row["number"]]
    assert kind.title == row["message"]
    return kind


def specified(row: Row) -> Fields:
    channel = row["message"].partition(".")[0]
    return SPEC.messages[channel, row["sender"], row["number"], row["message"]]


# golden vectors


GOLDEN = rows("vector")
POINTED = {"image": "src_bitmap"}
"""What lies where a pointer points to has a name of its own in the code."""


def make(kind: type[Record], told: dict[str, Any]) -> Any:
    """A message of what ``fields`` tells, and of nothing else."""
    layout = {subcon.name: subcon.subcon for subcon in kind.layout.subcons if subcon.name}
    for name in told.keys() & layout.keys():
        if isinstance(layout[name], construct.Default):
            assert told[name] == layout[name].value
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: value_of(layout[name], told.get(POINTED.get(name, name))) for name in names})


def value_of(subcon: Any, told: Any) -> Any:
    """The value of one field, by what the layout says that it is."""
    match subcon:
        case construct.IfThenElse():
            return None if told is None else value_of(subcon.thensubcon, told)
        case construct.Switch():
            (case,) = subcon.cases.values()
            return value_of(case, told)
        case As():
            return make(subcon.kind, told)
        case Rects():
            names = ("top", "left", "bottom", "right")
            return np.array([[rect[n] for n in names] for rect in told], "<i4").reshape(-1, 4)
        case Clip():
            if told["type"] == 0:
                return None
            assert told["rects"]["num_rects"] == len(told["rects"]["rects"])
            return value_of(Rects(0), told["rects"]["rects"])
        case Tuple():
            return tuple(value_of(subcon.subcon.subcon, one) for one in told)
        case _ if isinstance(told, str):
            return hexed(told.removeprefix("hex:"))
    assert isinstance(told, int)
    return told


def unlike(a: Any, b: Any) -> str:
    """The first field in which two messages differ, their bytes left out of it; "" if none."""
    if type(a) is not type(b):
        return f"{a!r} {b!r}"
    if isinstance(a, Record):
        for field in dataclasses.fields(a):  # type: ignore[arg-type]
            if found := unlike(getattr(a, field.name), getattr(b, field.name)):
                return f"{field.name}: {found}"
        return ""
    if isinstance(a, np.ndarray):
        same = a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())
    elif isinstance(a, tuple):
        same = len(a) == len(b) and not any(map(unlike, a, b))
    else:
        same = a == b
    return "" if same else f"{a!r} {b!r}"


def complete(told: Any, shape: str) -> None:
    """``fields`` has every field of the text, in its order, but those called reserved."""
    struct, array, optional = re.fullmatch(r"(\w+)\*?(\[.*\])?(\?)?", shape).groups()
    if struct not in SPEC.structs or (optional and told is None):
        return
    for one in told if array else [told]:
        complete_struct(one, SPEC.structs[struct])


def complete_struct(told: dict[str, Any], fields: Fields) -> None:
    there = [(name, shape) for name, shape in fields if not name.startswith("reserved")]
    there = [(name, shape) for name, shape in there if name in told or not shape.endswith("?")]
    assert list(told) == [name for name, _ in there]
    for name, shape in there:
        complete(told[name], shape)


@each(GOLDEN)
def test_golden(row: Row) -> None:
    kind, body, told = kind_of(row), hexed(row["hex"]), row["fields"]
    complete_struct(told, specified(row))
    made = make(kind, told)

    parsed = kind.parse(body)
    assert not unlike(parsed, made)
    everything = kind.layout.parse(body)
    for name in told.keys() & everything.keys() - POINTED.keys() - set(POINTED.values()):
        if isinstance(everything[name], int):
            assert everything[name] == told[name], name
    if "zero" in told:
        assert (everything["zero"] or b"") == hexed(told["zero"].removeprefix("hex:"))
    if not row.get("decode_only"):
        assert made.packed == body
        assert parsed.packed == body

    if issubclass(kind, Message):
        for data in (body, memoryview(b"?" + body)[1:]):
            assert not unlike(hot.parse(kind, data), made)
        assert hot.pack(made) == made.packed
        assert hot.pack(hot.parse(kind, body)) == made.packed
    descriptor = kind is ShmOffer and made.handle == shm.HANDLE_DESCRIPTOR
    assert row["fds"] == int(descriptor)


def test_every_message_has_a_golden_vector() -> None:
    shown = {(*row["message"].partition(".")[:1], row["sender"], row["number"], row["message"]) for row in GOLDEN}
    assert shown == SPEC.messages.keys()


# machines in the states that malformed.toml describes


TOKEN = bytes(range(32))
OFFER = ShmOffer(b"SHM1", 1, 1, shm.HANDLE_DESCRIPTOR, 1, 3, 65536, 0, 32)
OFFER_FILE = dataclasses.replace(OFFER, handle=shm.HANDLE_FILE, flags=0, token_size=16)
LATER = dataclasses.replace(OFFER, segment_id=2)
ACCEPTED = ShmReply(1, 1, 0, 3, 0, TOKEN)
PRIMARY = shm.SurfaceCreateShm(0, 64, 48, 32, 1, 1, 256, 4096, shm.MODE_LEASED)
ORDINARY = SurfaceCreate(0, 64, 48, 32, 1)


def damage(serial: int, offset: int, flags: int = 0, rect: Any = (0, 0, 48, 64)) -> ShmDamage:
    return ShmDamage(0, 1, offset, serial, 0, flags, np.array([rect], "<i4"))


INIT = [DisplayInit(0, 0, 0, 0), SetAck(1, 20)]
CREATE = [*INIT, OFFER, ACCEPTED]
SHARED = [*CREATE, PRIMARY, damage(5, 4096, shm.FLAG_FULL), damage(6, 16384), ShmDamageHandled(0, 5)]
DISPLAY_STATES: dict[str, list[Message]] = {
    "plain": INIT,
    "offer": INIT,
    "unwanted": INIT,
    "reply": [*INIT, OFFER],
    "reply_file": [*INIT, OFFER_FILE],
    "create": CREATE,
    "shared": SHARED,
    "withdrawn": [*SHARED, ShmWithdraw(1)],
    "gone": [*CREATE, ShmWithdraw(1)],
    "later": [*SHARED, LATER],
    "ordinary": [*INIT, ORDINARY],
}
PLAIN: dict[str, list[Message]] = {
    "main": [main.MainInit(1, 1, 3, 2, 0, 10, 0, 0)],
    "inputs": [inputs.InputsInit(0)],
    "cursor": [cursor.CursorInit(0, 0, 0, 0, 0, cursor.Cursor(cursor.FLAG_NONE))],
}


def machine_in(state: str, channel: str, role: Sender, *, mini: bool = True, but: str = "") -> Channel:
    """One end of a channel in a state of malformed.toml; ``but`` is an init that is left out."""
    machine: Channel
    if channel == "display":
        ends = {Sender.SERVER: ServerDisplay, Sender.CLIENT: ClientDisplay}
        machine = ends[role](mini=mini, shareable=state != "plain")
        script = DISPLAY_STATES[state]
    else:
        assert state == "plain"
        machine = Channel("main" if channel == "base" else channel, role, mini=mini)
        script = PLAIN[machine.channel]
    play(machine, *(message for message in script if message.title != but), mini=mini)
    for part in machine.data_to_send():
        for descriptor in part.fds:
            descriptor.close()
    return machine


def play(machine: Channel, *script: Message, mini: bool = True) -> None:
    """A conversation, as one of its ends sends and receives it."""
    for message in script:
        descriptor = is_with_descriptor(message)
        if message.sender is not machine.role:
            machine.receive_data(framed(message, mini=mini))
            if descriptor:
                machine.receive_data(b"@", [a_descriptor()])
                for one in machine.take_descriptors(message.segment_id):  # type: ignore[attr-defined]
                    one.close()
        elif isinstance(message, ShmOffer):
            assert isinstance(machine, ServerDisplay)
            token = TOKEN[: message.token_size]
            machine.offer(message, token, a_descriptor() if descriptor else None)
        elif message.title != "base.ack_sync":
            machine.send(message)


def is_with_descriptor(message: Record) -> bool:
    return isinstance(message, ShmOffer) and message.handle == shm.HANDLE_DESCRIPTOR


def framed(message: Message, *, mini: bool = True, serial: int = 1) -> bytes:
    return header(message.number, len(message.packed), mini=mini, serial=serial) + message.packed


def header(number: int, size: int, *, mini: bool = True, serial: int = 1) -> bytes:
    return (MiniHeader(number, size) if mini else DataHeader(serial, number, size, 0)).packed


def a_descriptor(row: Row | None = None, size: int = 0) -> Descriptor:
    """What a row says that comes with an offer: a memfd, sealed if nothing else is said."""
    row = row or {}
    if row.get("descriptor") == "pipe":
        reader, writer = os.pipe()
        os.close(writer)
        return Descriptor(reader)
    fd = os.memfd_create("vector", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, row.get("descriptor_size", size))
    if row.get("descriptor") != "unsealed":
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return Descriptor(fd)
