"""What is in a recording: sessions, their connections, and the messages on each.

Nothing here checks who may say what: a recording is what was said. Bodies stay bytes until somebody
has them parsed.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from spiceshm.errors import RemoteProtocolError
from spiceshm.protocol.link import MAX_LINK_MESSAGE
from spiceshm.wire import Message, Sender, lookup
from spiceshm.wire.base import DataHeader, MiniHeader
from spiceshm.wire.link import (
    AUTH_SPICE,
    MAGIC,
    TICKET_SIZE,
    AuthMechanism,
    LinkHeader,
    LinkMess,
    LinkReply,
    LinkResult,
)
from spiceshm.wire.main import MainInit
from spiceshm.wire.shm import HANDLE_DESCRIPTOR, ShmOffer
from spiceshm.wire.types import ChannelType, CommonCap, LinkError

from .file import read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .file import Event

_HEADER_SIZE: int = LinkHeader.layout.sizeof()
_WORD_SIZE: int = AuthMechanism.layout.sizeof()
_MOST = _HEADER_SIZE + MAX_LINK_MESSAGE + _WORD_SIZE + TICKET_SIZE
"""Bytes of a link phase, from one end."""


class Passed(NamedTuple):
    """A message: ``time_ns`` is when its last byte was read, since the recording began."""

    time_ns: int
    channel: str
    sender: Sender
    number: int
    body: bytes

    @property
    def kind(self) -> type[Message] | None:
        """Its class; None if we have none for its number."""
        return lookup(self.channel, self.sender, self.number)

    @property
    def name(self) -> str:
        """As in "draw_copy"; its number where we have no name."""
        return self.kind.title.partition(".")[2] if self.kind else str(self.number)

    def parse(self) -> Message:
        """All of its body. Raises RemoteProtocolError, also for a number without a class."""
        if self.kind is None:
            raise RemoteProtocolError(f"{self.channel} message {self.number}", "", "is unknown")
        return self.kind.parse(self.body)


class Link:
    """The link phase of one connection, while it goes on or when it is over.

    What was not said yet is None. All of it raises RemoteProtocolError for what is not SPICE.
    """

    def __init__(self) -> None:
        self._said = {sender: bytearray() for sender in Sender}

    def hear(self, sender: Sender, data: bytes) -> None:
        """More of what an end said; what is behind the link phase does no harm."""
        said = self._said[sender]
        said += data[: _MOST - len(said)]

    @property
    def mess(self) -> LinkMess | None:
        piece = self._first(Sender.CLIENT)
        return LinkMess.parse(piece) if piece is not None else None

    @property
    def reply(self) -> LinkReply | None:
        piece = self._first(Sender.SERVER)
        return LinkReply.parse(piece) if piece is not None else None

    @property
    def mechanism(self) -> int | None:
        """What the client authenticates itself with: AUTH_SPICE if it is not asked."""
        if self.mess is None or self.reply is None:
            return None
        if not self._both(CommonCap.AUTH_SELECTION):
            return AUTH_SPICE
        piece = self._piece(Sender.CLIENT, self._first_end(Sender.CLIENT), _WORD_SIZE)
        return AuthMechanism.parse(piece).auth_mechanism if piece is not None else None

    @property
    def ticket(self) -> range | None:
        """Where in what the client says it is, or will be."""
        if self.mess is None or self.reply is None:
            return None
        mechanism = _WORD_SIZE if self._both(CommonCap.AUTH_SELECTION) else 0
        start = self._first_end(Sender.CLIENT) + mechanism
        return range(start, start + TICKET_SIZE)

    @property
    def opened(self) -> bool:
        """Whether messages follow."""
        if self.mess is None or self.reply is None or self.reply.error != LinkError.OK:
            return False
        piece = self._piece(Sender.SERVER, self._first_end(Sender.SERVER), _WORD_SIZE)
        return piece is not None and LinkResult.parse(piece).error == LinkError.OK

    @property
    def mini(self) -> bool:
        return self._both(CommonCap.MINI_HEADER)

    def ends(self, sender: Sender) -> tuple[int, ...]:
        """Where in what an end of an open connection said its pieces end: LinkMess or LinkReply,
        then the mechanism and the ticket, or the result; messages follow behind the last."""
        first = self._first_end(sender)
        if sender is Sender.SERVER:
            return first, first + _WORD_SIZE
        assert self.ticket is not None
        return first, self.ticket.start, self.ticket.stop

    def _both(self, cap: CommonCap) -> bool:
        assert self.mess is not None
        assert self.reply is not None
        return all(
            words and words[0] >> cap & 1
            for words in (self.mess.common_caps, self.reply.common_caps)
        )

    def _first(self, sender: Sender) -> bytes | None:
        """LinkMess or LinkReply."""
        if len(self._said[sender]) < _HEADER_SIZE:
            return None
        return self._piece(sender, _HEADER_SIZE, self._first_end(sender) - _HEADER_SIZE)

    def _first_end(self, sender: Sender) -> int:
        header = LinkHeader.parse(bytes(self._said[sender][:_HEADER_SIZE]))
        if header.magic != MAGIC or header.size > MAX_LINK_MESSAGE:
            raise RemoteProtocolError("link_header", "", "is not SPICE; TLS is not understood")
        return _HEADER_SIZE + header.size

    def _piece(self, sender: Sender, start: int, size: int) -> bytes | None:
        said = self._said[sender]
        return bytes(said[start : start + size]) if len(said) >= start + size else None


class Frames:
    """Cuts what one end of a channel says into messages."""

    def __init__(self, channel: str, sender: Sender, *, mini: bool) -> None:
        self._header: type[MiniHeader | DataHeader] = MiniHeader if mini else DataHeader
        self._size: int = self._header.layout.sizeof()
        self._buffer = bytearray()
        self._offers = channel == "display" and sender is Sender.SERVER
        self._skip = 0

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[int, bytes]]:
        """Number and body of each message that is complete now."""
        self._buffer += data
        while len(self._buffer) >= self._skip + self._size:
            start = self._skip + self._size
            head = self._header.parse(bytes(self._buffer[self._skip : start]))
            if len(self._buffer) < start + head.size:
                return
            body = bytes(self._buffer[start : start + head.size])
            del self._buffer[: start + head.size]
            self._skip = self._bytes_behind(head.type, body)
            yield head.type, body

    def _bytes_behind(self, number: int, body: bytes) -> int:
        """The byte that carries a descriptor does not count as a part of its message."""
        if not self._offers or number != ShmOffer.number:
            return 0
        return 1 if ShmOffer.parse(body).handle == HANDLE_DESCRIPTOR else 0


class Connection:
    """All that went over one connection, in ``events``."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.link = Link()

    def add(self, event: Event) -> None:
        self.events.append(event)
        self.link.hear(event.sender, event.data)

    @property
    def channel(self) -> str:
        """As in "display", or "channel 9" if it is one that we do not know."""
        mess = self.link.mess
        assert mess is not None, "the client did not say what it wants"
        return channel_name(mess.channel_type)

    def messages(self, sender: Sender | None = None) -> Iterator[Passed]:
        """What was said behind the link phase, by one end or by both, in the order of time.

        Nothing if there was no more than the link phase. A last message that was not read to its
        end is left out. Raises RemoteProtocolError for what is not SPICE.
        """
        if not self.link.opened:
            return
        channel, mini = self.channel, self.link.mini
        frames = {one: Frames(channel, one, mini=mini) for one in Sender}
        left = {one: self.link.ends(one)[-1] for one in Sender}
        for event in self.events:
            if sender not in (None, event.sender):
                continue
            skip = min(left[event.sender], len(event.data))
            left[event.sender] -= skip
            for number, body in frames[event.sender].feed(memoryview(event.data)[skip:]):
                yield Passed(event.time_ns, channel, event.sender, number, body)


def channel_name(number: int) -> str:
    known = {*ChannelType}
    return ChannelType(number).name.lower() if number in known else f"channel {number}"


class Session(NamedTuple):
    """A main channel that was opened, and the others of the same client."""

    number: int
    """What MAIN_INIT called it."""
    main: Connection
    others: list[Connection]

    @property
    def last_ns(self) -> int:
        """When the last thing was said on any of its channels."""
        return max(one.events[-1].time_ns for one in (self.main, *self.others))


class Recording:
    """``connections`` are in the order in which something was first said on them."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self._numbered: dict[int, Connection] = {}

    def add(self, event: Event) -> None:
        connection = self._numbered.get(event.connection)
        if connection is None:
            connection = self._numbered[event.connection] = Connection()
            self.connections.append(connection)
        connection.add(event)

    def sessions(self) -> list[Session]:
        """Every session that was begun; other connections, which were refused, are left out."""
        found = []
        opened = [one for one in self.connections if one.link.opened]
        for main in opened:
            if main.channel != "main":
                continue
            for message in main.messages(Sender.SERVER):
                if message.kind is MainInit:
                    number = MainInit.parse(message.body).session_id
                    found.append(Session(number, main, _of_session(opened, number)))
                    break
        return found

    def counts(self) -> Counts:
        counts = Counts()
        for connection in self.connections:
            for message in connection.messages():
                counts.add(message)
        return counts


def _of_session(opened: list[Connection], number: int) -> list[Connection]:
    return [
        one
        for one in opened
        if one.channel != "main" and one.link.mess and one.link.mess.connection_id == number
    ]


class Counts:
    """How many messages of each name, and how many bytes their bodies have."""

    def __init__(self) -> None:
        self._messages: Counter[tuple[str, str, str]] = Counter()
        self._bytes: Counter[tuple[str, str, str]] = Counter()

    def add(self, message: Passed) -> None:
        key = message.channel, message.sender.value, message.name
        self._messages[key] += 1
        self._bytes[key] += len(message.body)

    def as_json(self) -> dict[str, dict[str, dict[str, int]]]:
        """``{"display": {"server": {"draw_copy": 9}}}``"""
        made: dict[str, dict[str, dict[str, int]]] = {}
        for (channel, sender, name), count in sorted(self._messages.items()):
            made.setdefault(channel, {}).setdefault(sender, {})[name] = count
        return made

    def lines(self) -> Iterator[str]:
        """A table for people."""
        yield f"{'channel':10} {'sender':7} {'message':26} {'count':>7} {'bytes':>10}"
        for key, count in sorted(self._messages.items()):
            channel, sender, name = key
            yield f"{channel:10} {sender:7} {name:26} {count:7} {self._bytes[key]:10}"


def load(path: Path | str) -> Recording:
    """Read a file. Raises RecordingError, which names it."""
    recording = Recording()
    for event in read(path):
        recording.add(event)
    return recording
