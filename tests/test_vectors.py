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

from spiceshm.client.display import DisplayChannel
from spiceshm.client.wishes import Wishes
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
from spiceshm.wire import (
    MESSAGES,
    Message,
    Record,
    Sender,
    agent,
    cursor,
    display,
    inputs,
    main,
    shm,
)
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
from spiceshm.wire.message import As, Pointed
from spiceshm.wire.shm import ShmDamage, ShmDamageHandled, ShmOffer, ShmReply, ShmWithdraw
from spiceshm.wire.types import Clip, Rects, Tuple
from tests.idl import Fields, Idl
from tests.test_wire import unlike

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PROTOCOL = Path(__file__).parent.parent / "protocol"
SPEC = Idl((PROTOCOL / "spiceshm.proto").read_text())
FILES = {
    path.name: tomllib.loads(path.read_text()) for path in sorted((PROTOCOL / "vectors").iterdir())
}

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


LINK = {
    kind.title: kind
    for kind in (LinkHeader, LinkMess, LinkReply, AuthMechanism, Ticket, LinkResult)
}
AGENT = {
    kind.title: kind for kind in (agent.MonitorsConfig, agent.Reply, agent.AnnounceCapabilities)
}


def kind_of(row: Row) -> type[Record]:
    """The class of a row's message; KeyError where there is none."""
    channel, _, name = row["message"].partition(".")
    if channel == "link":
        assert row["number"] == 0
        return LINK[name]
    if channel == "agent":
        assert row["number"] == AGENT[row["message"]].number
        return AGENT[row["message"]]
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
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(
        **{name: value_of(layout[name], told.get(POINTED.get(name, name))) for name in names}
    )


def value_of(subcon: Any, told: Any) -> Any:
    """The value of one field, by what the layout says that it is."""
    match subcon:
        case construct.IfThenElse():
            return None if told is None else value_of(subcon.thensubcon, told)
        case construct.Switch() if told is None:
            return None
        case construct.Switch():
            [case] = {case.kind for case in subcon.cases.values() if fits(told, members(case.kind))}
            return make(case, told)
        case Pointed():
            return make(subcon.kind, told) if told else None
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


def members(kind: type[Record]) -> dict[str, bool]:
    """The fields of a record, and whether they may be missing."""
    return {
        subcon.name: isinstance(subcon.subcon, construct.IfThenElse)
        for subcon in kind.layout.subcons
        if subcon.name
    }


def fits(told: dict[str, Any], fields: dict[str, bool]) -> bool:
    """Whether it has those fields and no others."""
    needed = {name for name, optional in fields.items() if not optional}
    return needed <= told.keys() <= fields.keys()


def complete(told: Any, shape: str) -> None:
    """``fields`` has every field of the text, in its order, but those called reserved."""
    if "|" in shape:
        if told is None:
            return
        [shape] = {
            one
            for one in shape.removesuffix("?").split("|")
            if fits(told, {name: kind[-1] == "?" for name, kind in SPEC.structs[one]})
        }
    struct, array, optional = re.fullmatch(r"(\w+)\*?(\[.*\])?(\?)?", shape).groups()
    if struct not in SPEC.structs or (optional and told is None) or told == 0:
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
        assert kind.parse(memoryview(b"?" + body)[1:]).packed == made.packed
    descriptor = kind is ShmOffer and made.handle == shm.HANDLE_DESCRIPTOR
    assert row["fds"] == int(descriptor)


def test_every_message_has_a_golden_vector() -> None:
    shown = {
        (*row["message"].partition(".")[:1], row["sender"], row["number"], row["message"])
        for row in GOLDEN
    }
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
SHARED = [
    *CREATE,
    PRIMARY,
    damage(5, 4096, shm.FLAG_FULL),
    damage(6, 16384),
    ShmDamageHandled(0, 5),
]
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
    "empty": [*SHARED, SurfaceDestroy(0)],
    "later": [*SHARED, LATER],
    "ordinary": [*INIT, ORDINARY],
}
PLAIN: dict[str, list[Message]] = {
    "main": [main.MainInit(1, 1, 3, 2, 0, 10, 0, 0)],
    "inputs": [inputs.InputsInit(0)],
    "cursor": [cursor.CursorInit(0, 0, 0, 0, 0, cursor.Cursor(cursor.FLAG_NONE))],
}


def machine_in(
    state: str, channel: str, role: Sender, *, mini: bool = True, but: str = ""
) -> Channel:
    """One end of a channel in a state of malformed.toml; ``but`` is an init that is left out."""
    machine: Channel
    if channel == "display":
        ends = {Sender.SERVER: ServerDisplay, Sender.CLIENT: ClientDisplay}
        machine = ends[role](mini=mini, shareable=state != "plain")
        script = DISPLAY_STATES[state]
    else:
        assert state == "plain"
        machine = Channel("main" if channel == "base" else channel, role, mini=mini)
        script = [message for message in PLAIN[machine.channel] if message.title != but]
    play(machine, *script, mini=mini)
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
                for one in machine.take_descriptors(message.segment_id):
                    one.close()
        elif isinstance(message, ShmOffer):
            assert isinstance(machine, ServerDisplay)
            token = TOKEN[: message.token_size]
            machine.offer(message, token, a_descriptor() if descriptor else None)
        else:
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


# streams


STREAMS = rows("stream")


def parts_of(row: Row) -> list[tuple[Row, bytes, Message | Record | None]]:
    """Every message of a stream: what is told of it, its body, and what the body reads as."""
    data = hexed(row["hex"])
    found = []
    for part in sorted(row["messages"] + row.get("skipped", []), key=lambda part: part["at"]):
        start = part["at"] + {"none": 0, "mini": 6, "full": 18}[row["header"]]
        body = data[start : start + part["size"]]
        kind = kind_of({**row, **part}) if "message" in part else None
        found.append((part, body, kind.parse(body) if kind else None))
    return found


def written(row: Row, serials: Iterable[int]) -> bytes:
    """A stream put together again from its messages, which must lie where the row says."""
    out = b""
    carriers = []
    for (part, body, message), serial in zip(parts_of(row), serials, strict=False):
        assert part["at"] == len(out)
        if message is not None:
            body = message.packed
        assert len(body) == part["size"]
        if row["header"] != "none":
            out += header(part["number"], len(body), mini=row["header"] == "mini", serial=serial)
        out += body
        if message is not None and is_with_descriptor(message):
            carriers.append(len(out))
            out += b"@"
    assert carriers == row.get("descriptor_at", [])
    assert len(carriers) == row["fds"]
    return out


def reads(data: bytes, carriers: list[int], most: int) -> Iterable[tuple[bytes, list[Descriptor]]]:
    """What a Unix socket gives: a read ends at a byte that carries a descriptor."""
    start = 0
    while start < len(data):
        end = min([start + most, len(data), *(at + 1 for at in carriers if at >= start)])
        yield data[start:end], [a_descriptor()] if end - 1 in carriers else []
        start = end


def reader_of(row: Row) -> Callable[[bytes, list[Descriptor]], list[Any]]:
    """What reads a stream, in its state: give it bytes and descriptors, it gives messages."""
    mini = row["header"] == "mini"
    if row["channel"] == "link":
        link = ServerLink(generate_key())
        if row["messages"][0]["message"] == "link.auth_mechanism":
            link_server_accepts(link)

        def read(data: bytes, fds: list[Descriptor]) -> list[Any]:
            event = link.receive_data(data)
            return [] if event is None else [event]

        return read
    machine = machine_in(row["state"], row["channel"], Sender(row["sender"]).other, mini=mini)

    def read_channel(data: bytes, fds: list[Descriptor]) -> list[Any]:
        messages = machine.receive_data(data, fds)
        for message in messages:
            if is_with_descriptor(message):
                [descriptor] = machine.take_descriptors(message.segment_id)
                descriptor.close()
        return messages

    return read_channel


def link_server_accepts(link: ServerLink) -> None:
    """Bring a server to where it waits for the mechanism."""
    mess = LinkMess(0, 1, 0, (9,), ())
    link.receive_data(LinkHeader(MAGIC, 2, 2, len(mess.packed)).packed + mess.packed)
    link.accept(frozenset())
    link.data_to_send()


@pytest.mark.parametrize("way", ["whole", "byte by byte", "trailing"])
@each(STREAMS)
def test_stream_is_read(row: Row, way: str) -> None:
    data, carriers = hexed(row["hex"]), row.get("descriptor_at", [])
    expected = [message for _, _, message in parts_of(row) if message is not None]
    if row["channel"] == "link":
        # The server's end gives what asks for a decision: the message, or the ticket's content.
        last = expected[-1]
        expected = [Password(None) if isinstance(last, Ticket) else last]
    last_word: Message = Ping(7, 8, b"?") if row["sender"] == "server" else Pong(7, 8)
    trailing = framed(last_word, mini=row["header"] == "mini", serial=99)
    if row["channel"] == "link":
        trailing = b""
    cut = 4 if way == "trailing" and trailing else 0

    read = reader_of(row)
    found = []
    most = 1 if way == "byte by byte" else len(data) + cut
    for piece, fds in reads(data + trailing[:cut], carriers, most):
        found += read(piece, fds)
    assert len(found) == len(expected)
    assert not any(map(unlike, found, expected))
    if trailing:
        [after] = read(trailing[cut:], [])
        assert not unlike(after, last_word)


@each([row for row in STREAMS if row["channel"] == "link"])
def test_bytes_behind_the_link_phase_are_kept(row: Row) -> None:
    link = ServerLink(generate_key())
    ticket = row["messages"][-1]["message"] == "link.ticket"
    if ticket:
        link_server_accepts(link)
    assert link.receive_data(hexed(row["hex"]) + b"rest") is not None
    assert link.rest == b"rest"


@each(STREAMS)
def test_stream_is_written(row: Row) -> None:
    serials = [part.get("serial", 0) for part, _, _ in parts_of(row)]
    assert written(row, serials) == hexed(row["hex"])
    if row["channel"] == "link" or "skipped" in row:
        return
    machine = machine_in(
        row["state"], row["channel"], Sender(row["sender"]), mini=row["header"] == "mini"
    )
    play(machine, *(message for _, _, message in parts_of(row)))
    sent = machine.data_to_send()
    for part in sent:
        assert len(part.fds) == (part.data == b"@")
        for descriptor in part.fds:
            descriptor.close()
    data = b"".join(part.data for part in sent)
    first = 0 if row["header"] == "mini" else DataHeader.parse(data[:18]).serial
    assert data == written(row, range(first, first + len(serials)))


# malformed ones


MALFORMED = rows("malformed")


def judge_of(row: Row) -> str:
    """Which of the tests below judges a row."""
    state, outcome = row.get("state"), row["outcome"]
    if outcome == "breach":
        return {None: "decoder", "link": "link"}.get(state, "machine")
    assert outcome == "ordinary", row
    if row["message"] == ShmOffer.title:
        return "client"
    assert row["message"] == ShmReply.title, row
    return "server"


def judged_by(judge: str) -> Any:
    return each([row for row in MALFORMED if judge_of(row) == judge])


def body_of(row: Row) -> bytes:
    return hexed(row["hex"]) + b"\x61" * row.get("fill", 0)


def blamed(error: RemoteProtocolError) -> tuple[str, str]:
    """The message and the field that an error names, without the field's own parts."""
    assert "\n" not in str(error)
    assert error.detail
    assert str(error).startswith(error.message)
    field = error.field.partition(".")[0]
    return error.message, POINTED.get(field, field)


def culprit(row: Row) -> tuple[str, str]:
    channel, _, name = row["message"].partition(".")
    message = row["message"].removeprefix("link.")
    if name == "unassigned":
        message = f"{channel} message {row['number']}"
    return message, row.get("field", "")


LINK_ERRORS = {"magic": "invalid_magic", "major": "version_mismatch"}
"""The link phase's machines name SPICE's error in the field's place; all others: invalid_data."""


@judged_by("decoder")
def test_decoder_refuses(row: Row) -> None:
    kind, body = kind_of(row), body_of(row)
    with pytest.raises(RemoteProtocolError) as caught:
        kind.parse(body)
    assert blamed(caught.value) == culprit(row)
    with pytest.raises(RemoteProtocolError) as caught:
        kind.parse(memoryview(b"?" + body)[1:])
    assert blamed(caught.value) == culprit(row)
    if "link_error" in row:
        link = ServerLink(generate_key())
        with pytest.raises(RemoteProtocolError):
            link.receive_data(LinkHeader(MAGIC, 2, 2, len(body)).packed + body)
        assert link_error_in(link) == row["link_error"]


def link_error_in(link: ServerLink) -> int:
    answer = link.data_to_send()
    reply = LinkReply.parse(answer[16:])
    assert answer == LinkHeader(MAGIC, 2, 2, 178).packed + reply.packed
    assert not any(answer[20:])
    return reply.error


@judged_by("link")
def test_link_phase_refuses(row: Row) -> None:
    data = body_of(row)
    if row["message"] in ("link.link_mess", "link.link_reply"):
        data = LinkHeader(MAGIC, 2, 2, len(data)).packed + data
    link: ServerLink | ClientLink
    if row["sender"] == "server":
        link = ClientLink(connection_id=0, channel_type=1, channel_id=0, channel_caps=frozenset())
    else:
        link = ServerLink(generate_key())
        if row["message"] == "link.auth_mechanism":
            link_server_accepts(link)
    with pytest.raises(RemoteProtocolError) as caught:
        link.receive_data(data)
    message, field = culprit(row)
    if row["message"] == "link.link_reply":
        assert blamed(caught.value) == (message, field)
    else:
        assert blamed(caught.value) == (message, LINK_ERRORS.get(field, "invalid_data"))
    if row["message"] == "link.link_mess":
        assert caught.value.detail.startswith(f"{field}: ")
    if "link_error" in row:
        assert isinstance(link, ServerLink)
        assert link_error_in(link) == row["link_error"]


@pytest.mark.parametrize("mini", [True, False], ids=["mini", "full"])
@judged_by("machine")
def test_machine_refuses(row: Row, mini: bool) -> None:
    channel, role = row["message"].partition(".")[0], Sender(row["sender"]).other
    machine = machine_in(row["state"], channel, role, mini=mini, but=row["message"])
    body = body_of(row)
    data = header(row["number"], len(body), mini=mini) + body
    after, fds = hexed(row.get("after", "")), []
    try:
        if after:
            assert machine.receive_data(data) == []
            data, fds = after, [a_descriptor() for _ in range(row["fds"])]
        with pytest.raises(RemoteProtocolError) as caught:
            machine.receive_data(data, fds)
        found = blamed(caught.value)
        if found[1] == "size" != row.get("field"):
            # No such message is so long: the machine needs the header alone to know it.
            with pytest.raises(RemoteProtocolError) as caught:
                kind_of(row).parse(body)
            found = blamed(caught.value)
        assert found == culprit(row)
    finally:
        machine.close()


@judged_by("client")
async def test_client_refuses_an_offer(row: Row) -> None:
    machine = machine_in(row["state"], "display", Sender.CLIENT)
    assert isinstance(machine, ClientDisplay)
    body = body_of(row)
    messages = machine.receive_data(header(row["number"], len(body)) + body)
    if not messages:
        size = int.from_bytes(body[16:24], "little") if row["reason"] < 6 else 0
        fds = [a_descriptor(row, size) for _ in range(row["fds"])]
        messages = machine.receive_data(b"@", fds)
    else:
        assert row["fds"] == 0
    [offer] = messages
    assert isinstance(offer, ShmOffer)
    fault = machine.fault(offer)
    assert (fault is not None) == (row["reason"] == 6)
    assert row.get("field", "").startswith(fault or "")

    answer = answer_of(machine, offer, wanted=row["state"] != "unwanted")
    assert answer == framed(ShmReply(offer.segment_id, 0, row["reason"], 0, 0, b""))
    goes_on_in_ordinary_spice(machine)


def answer_of(machine: ClientDisplay, offer: Message, *, wanted: bool = True) -> bytes:
    """What the client answers an offer, by the code that answers servers."""
    assert isinstance(offer, ShmOffer)
    remote = DisplayChannel(parse_address("unix:/nowhere"), Wishes("auto" if wanted else "off", 3))
    remote._machine = machine
    remote._answer(offer)
    [answer] = machine.data_to_send()
    assert not answer.fds
    return answer.data


@judged_by("server")
def test_server_takes_a_refusal(row: Row) -> None:
    machine = machine_in(row["state"], "display", Sender.SERVER)
    assert isinstance(machine, ServerDisplay)
    body = body_of(row)
    [reply] = machine.receive_data(header(row["number"], len(body)) + body)
    assert isinstance(reply, ShmReply)
    assert not machine.has(reply.segment_id)
    assert machine.refusal
    if row["state"] != "later":
        with pytest.raises(LocalProtocolError):
            machine.send(PRIMARY)
    goes_on_in_ordinary_spice(machine)


def goes_on_in_ordinary_spice(machine: ClientDisplay | ServerDisplay) -> None:
    if machine.shared:
        play(machine, SurfaceDestroy(0))
    play(machine, ORDINARY)
    assert machine.state is State.ORDINARY
    assert not machine.shared


# nothing is left out


KEYS = {
    "vector": {"message", "sender", "number", "note", "fds", "hex", "fields", "decode_only"},
    "stream": {
        *("note", "state", "channel", "sender", "header", "fds", "descriptor_at", "hex"),
        *("messages", "skipped"),
    },
    "malformed": {
        *(
            "message",
            "sender",
            "number",
            "state",
            "why",
            "outcome",
            "reason",
            "link_error",
            "field",
        ),
        *("hex", "fill", "fds", "after", "descriptor", "descriptor_size"),
    },
}


@pytest.mark.parametrize("name", FILES)
def test_every_table_and_key_is_one_that_is_judged(name: str) -> None:
    for table, found in FILES[name].items():
        for row in found:
            assert row.keys() <= KEYS[table], row
            if table == "malformed":
                assert judge_of(row)
                # Where the message as a whole is at fault, its kind is still one that there is.
                assert row["message"].endswith(".unassigned") or kind_of(row)
    assert name == "malformed.toml" or set(FILES[name]) in ({"vector"}, {"stream"})


GOOD_OFFER = [LATER, ShmReply(2, 1, 0, 3, 0, TOKEN)]
CONTROLS: dict[tuple[str, str], list[Message]] = {
    ("main", "plain"): [main.AgentData(bytes(2048)), main.ClientAgentData(bytes(2048))],
    ("cursor", "plain"): [
        cursor.CursorReset(),
        cursor.CursorInit(
            0, 0, 0, 0, 1, cursor.Cursor(0, cursor.CursorHeader(1, 0, 2, 1, 0, 0), bytes(8))
        ),
        cursor.CursorSet(
            0, 0, 1, cursor.Cursor(0, cursor.CursorHeader(1, 1, 9, 2, 0, 0), bytes(8))
        ),
    ],
    ("display", "plain"): [ORDINARY, SurfaceDestroy(0)],
    ("display", "offer"): [OFFER, ACCEPTED],
    ("display", "unwanted"): [OFFER, ShmReply(1, 0, 1, 0, 0, b"")],
    ("display", "reply"): [ACCEPTED],
    ("display", "reply_file"): [ShmReply(1, 1, 0, 3, 0, TOKEN[:16], bytes(16))],
    ("display", "create"): [PRIMARY],
    ("display", "shared"): [
        damage(7, 32, rect=(10, 20, 30, 40)),
        ShmDamageHandled(0, 6),
        *GOOD_OFFER,
        ShmWithdraw(1),
        SurfaceDestroy(0),
    ],
    ("display", "withdrawn"): [ShmDamageHandled(0, 6), *GOOD_OFFER],
    ("display", "gone"): GOOD_OFFER,
    ("display", "empty"): [ShmDamageHandled(0, 6), PRIMARY, damage(7, 32)],
    ("display", "later"): [GOOD_OFFER[1], damage(7, 32), ShmWithdraw(2)],
    ("display", "ordinary"): [display.Mark(), SurfaceDestroy(0), ORDINARY],
}


@pytest.mark.parametrize("role", Sender)
@pytest.mark.parametrize(("channel", "state"), CONTROLS)
def test_what_is_right_in_a_state_is_taken(channel: str, state: str, role: Sender) -> None:
    """So a row in this state is refused for what it says, not for the state."""
    machine = machine_in(state, channel, role)
    play(machine, *CONTROLS[channel, state])
    machine.close()


def test_every_state_has_such_a_control() -> None:
    used = {
        (row["message"].partition(".")[0], row["state"])
        for row in MALFORMED
        if "state" in row and row["state"] != "link"
    }
    assert used == CONTROLS.keys()


async def test_client_takes_the_offer_of_which_the_rows_are_variations() -> None:
    machine = machine_in("offer", "display", Sender.CLIENT)
    assert isinstance(machine, ClientDisplay)
    machine.receive_data(framed(OFFER))
    [offer] = machine.receive_data(b"@", [a_descriptor(size=65536)])
    answer = answer_of(machine, offer)
    assert answer == framed(ShmReply(1, 1, 0, 3, 0, bytes(32)))
