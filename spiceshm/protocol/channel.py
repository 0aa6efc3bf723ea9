"""The data phase of any channel, without I/O: bytes and descriptors in, messages out, and back.

Strategy: a `Channel` frames messages, holds the conversation against its table of states
(`tables`), answers what SPICE wants answered at once (PING, SET_ACK, ACK windows), and knows
neither sockets nor clocks. Use it so:

    for message in channel.receive_data(data, fds):   # raises RemoteProtocolError: close
        ...
    channel.send(message)                             # raises LocalProtocolError: our mistake
    for data, fds in channel.data_to_send():          # each with fds in a sendmsg of its own
        ...

The display channel adds to it in `display`.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from construct import SizeofError

from ..errors import LocalProtocolError, RemoteProtocolError
from ..wire import MESSAGES, Message, Sender, display, hot, inputs, main, shm
from ..wire.base import Ack, AckSync, DataHeader, Ping, Pong, SetAck
from ..wire.types import MAX_RECTS
from .tables import START, TABLES, State, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..fds import Descriptor

CLIENT_MESSAGE_LIMIT = 1 << 16
"""Most bytes of a body that a client may send; none that we know comes near."""

SERVER_MESSAGE_LIMIT = {"display": (1 << 24) + (1 << 20), "cursor": (1 << 20) + (1 << 16)}
"""Most bytes of a body that a server may send: a raw image of 4 Mi pixels fits, and a pointer of
512x512, which is QEMU's largest. Where a surface is larger, an image of it does: see
`display_client`."""

_SERVER_DEFAULT_LIMIT = 1 << 20
_MOST_JOINED = 1 << 16
"""A body of more bytes is not copied once more to be sent with what comes before and after."""
_LIMITS: dict[type[Message], int] = {
    main.ChannelsList: 4096,
    main.AgentData: main.MAX_AGENT_DATA,
    main.ClientAgentData: main.MAX_AGENT_DATA,
    display.MonitorsConfig: 1 << 16,
    shm.ShmOffer: 1 << 16,
    shm.ShmDamage: 48 + 16 * MAX_RECTS,
    shm.ShmReply: 16 + 2 * shm.MAX_TOKEN,
    inputs.KeyScancode: 256,
}
"""Most bytes of a body where its channel's limit is too generous for a layout of no fixed size."""
trace = logging.getLogger("spiceshm.trace")
"""At level DEBUG: every message, ``<`` what came in and ``>`` what went out."""

_FULL_HEADER_SIZE = DataHeader.layout.sizeof()


class Outgoing(NamedTuple):
    """Bytes for the socket; with descriptors they must be one sendmsg of their own."""

    data: bytes | memoryview
    fds: tuple[Descriptor, ...] = ()


class Channel:
    """One end of one channel; ``role`` says which: the `Sender` that we are.

    ``mini`` is whether both ends have the capability MINI_HEADER.
    """

    def __init__(self, channel: str, role: Sender, *, mini: bool = True) -> None:
        self.channel = channel
        self.role = role
        self.state: State = START
        self.acks = _Acks()
        self._mini = mini
        self._tracing = trace.isEnabledFor(logging.DEBUG)
        self._partial = bytearray()
        self._out = bytearray()
        self._out_parts: list[Outgoing] = []
        self._serial = 0
        self._limit = (
            CLIENT_MESSAGE_LIMIT
            if role is Sender.SERVER
            else SERVER_MESSAGE_LIMIT.get(channel, _SERVER_DEFAULT_LIMIT)
        )
        self._limits = _limits(channel, role.other)
        self._kinds = _kinds(channel, role.other)
        self._table = _with_base(channel)

    # What comes in

    def receive_data(
        self, data: bytes | bytearray | memoryview, fds: Iterable[Descriptor] = ()
    ) -> list[Message]:
        """Take what one read brought; returns every message that is complete now, in order.

        ``fds`` are owned by the channel from here on; only the display channel expects any, here
        they are closed. Raises RemoteProtocolError; the channel is of no use after that.
        """
        for descriptor in fds:
            descriptor.close()
        return self._parse_all(data)

    def _parse_all(self, data: bytes | bytearray | memoryview) -> list[Message]:
        if self._partial:
            self._partial += data
            if len(self._partial) < self._wanted():
                return []
            data, self._partial = self._partial, bytearray()
        messages: list[Message] = []
        view = memoryview(data)
        at, end = self._parse_hot(view, messages), len(view)
        while at < end and (then := self._parse_one(view, at, messages)) > at:
            at = then
        if at < end:
            self._partial += view[at:]
        return messages

    def _parse_hot(self, view: memoryview, messages: list[Message]) -> int:
        """Take the messages at the head of ``view`` that a quicker way knows; returns their end.

        The same comes of it as of `_parse_one`. A channel that has such messages overrides it.
        """
        return 0

    def _parse_one(self, view: memoryview, at: int, messages: list[Message]) -> int:
        """Parse the message at ``at``; returns where the next one begins, ``at`` if incomplete."""
        head = self._read_header(view, at)
        if head is None:
            return at
        number, start, size = head
        if len(view) - start < size:
            return at
        message = self._accept(number, view[start : start + size])
        if message is not None:
            messages.append(message)
        return start + size

    def _read_header(self, view: memoryview, at: int) -> tuple[int, int, int] | None:
        """Number, start and size of the body at ``at``; None while the header is incomplete."""
        if self._mini:
            if len(view) - at < hot.MINI.size:
                return None
            number, size = hot.MINI.unpack_from(view, at)
            start = at + hot.MINI.size
        else:
            if len(view) - at < _FULL_HEADER_SIZE:
                return None
            header = DataHeader.parse(view[at : at + _FULL_HEADER_SIZE])
            number, size, start = header.type, header.size, at + _FULL_HEADER_SIZE
        if size > (limit := self._limits.get(number, self._limit)):
            raise RemoteProtocolError(
                self._name_of(number), "size", f"{size} bytes, the limit is {limit}"
            )
        return number, start, size

    def _wanted(self) -> int:
        """How many bytes must be there before it is worth parsing again."""
        head = self._read_header(memoryview(self._partial), 0)
        return head[1] + head[2] if head else 0

    @property
    def missing(self) -> int:
        """How many bytes there are still to come of a message that has begun; 0 if unknown."""
        return max(0, self._wanted() - len(self._partial))

    def _name_of(self, number: int) -> str:
        kind = self._kinds.get(number)
        return kind.title if kind else f"{self.channel} message {number}"

    def _accept(self, number: int, body: memoryview) -> Message | None:
        """Check a received message against the state, and answer it where SPICE wants that."""
        if self.role is Sender.CLIENT and self.acks.count_received():
            self.send(Ack())
        kind = self._kinds.get(number)
        if kind is None:
            self._unknown(number)
            return None
        state = self._table[self.state].get(kind)
        if state is None:
            raise RemoteProtocolError(kind.title, "", f"not allowed in state {self.state.name}")
        message = self._read(kind, body)
        if self._tracing:
            trace.debug("< %s", message)
        self._check_received(message)
        self.state = self._settle(state)
        if kind.channel == "base":
            self._answer(message)
        return message

    def _read(self, kind: type[Message], body: memoryview) -> Message:
        """Parse a body; a channel that knows a quicker way for some kind overrides it."""
        return kind.parse(body)

    def _unknown(self, number: int) -> None:
        """Servers grow new messages, which clients skip; a client must know what it may send."""
        if self.role is Sender.SERVER:
            raise RemoteProtocolError(f"{self.channel} message {number}", "", "is unknown")

    def _settle(self, state: State) -> State:
        """The state that the table's really is, where that depends on what a message holds."""
        return state

    def _check_received(self, message: Message) -> None:
        """What the table cannot say; a channel with more to check overrides it."""

    def _answer(self, message: Message) -> None:
        """What SPICE wants done about messages of all channels."""
        if isinstance(message, Ack):
            self.acks.acknowledge()
        elif isinstance(message, AckSync):
            self.acks.synchronize(message.generation)
        elif isinstance(message, SetAck):
            self.acks.expect(message.window)
            self.send(AckSync(message.generation))
        elif isinstance(message, Ping):
            self.send(Pong(message.id, message.timestamp))

    # What goes out

    def send(self, message: Message) -> None:
        """Queue a message. Raises LocalProtocolError if the state does not allow it."""
        if message.sender is not self.role:
            raise LocalProtocolError(message.title, "", f"is not sent by a {self.role.value}")
        if message.channel not in ("base", self.channel):
            raise LocalProtocolError(message.title, "", f"is not of the {self.channel} channel")
        state = self._table[self.state].get(type(message))
        if state is None:
            raise LocalProtocolError(message.title, "", f"not allowed in state {self.state.name}")
        body = message.packed
        self._check_sent(message)
        if self._tracing:
            trace.debug("> %s", message)
        self._queue(message.number, body)
        self.state = self._settle(state)
        if self.role is Sender.SERVER:
            self.acks.count_sent(message)

    def _check_sent(self, message: Message) -> None:
        """What the table cannot say about our own messages; where it raises it notes nothing."""

    def _queue(self, number: int, body: bytes, rest: bytes | memoryview = b"") -> None:
        """A message's body is in two parts where it would take long to join them."""
        size = len(body) + len(rest)
        if self._mini:
            self._out += hot.MINI.pack(number, size)
        else:
            self._serial += 1
            self._out += DataHeader(self._serial, number, size, 0).packed
        for part in (body, rest):
            if len(part) > _MOST_JOINED:
                self._flush_out()
                self._out_parts.append(Outgoing(part))
            else:
                self._out += part

    def _send_descriptors(self, carrier: bytes, fds: Sequence[Descriptor]) -> None:
        """Queue bytes that carry descriptors, apart from what comes before and after."""
        self._flush_out()
        self._out_parts.append(Outgoing(carrier, tuple(fds)))

    def _flush_out(self) -> None:
        if self._out:
            self._out_parts.append(Outgoing(bytes(self._out)))
            self._out.clear()

    def data_to_send(self) -> list[Outgoing]:
        """Everything queued, to be written in this order; the caller owns the descriptors now."""
        if not self._out_parts:  # nearly always
            data, self._out = bytes(self._out), bytearray()
            return [Outgoing(data)] if data else []
        self._flush_out()
        parts, self._out_parts = self._out_parts, []
        return parts

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        for part in self.data_to_send():
            for descriptor in part.fds:
                descriptor.close()


@cache
def _kinds(channel: str, sender: Sender) -> dict[int, type[Message]]:
    """What ``sender`` may send on a channel, by number."""
    of = [kind for kind in MESSAGES.values() if kind.sender is sender]
    base = {kind.number: kind for kind in of if kind.channel == "base"}
    return base | {kind.number: kind for kind in of if kind.channel == channel}


@cache
def _with_base(channel: str) -> Table:
    """A channel's table with the messages of all channels, which are always allowed."""
    base = [kind for kind in MESSAGES.values() if kind.channel == "base"]
    return {state: dict.fromkeys(base, state) | steps for state, steps in TABLES[channel].items()}


@cache
def _limits(channel: str, sender: Sender) -> dict[int, int]:
    """Most bytes of a body by number: the size of a fixed layout, or what `_LIMITS` says."""
    limits = {}
    for (of, by, number), kind in MESSAGES.items():
        if of not in ("base", channel) or by is not sender:
            continue
        try:
            limits[number] = kind.layout.sizeof()
        except SizeofError:
            if kind in _LIMITS:
                limits[number] = _LIMITS[kind]
    return limits


class _Acks:
    """The ACK window, seen from either end.

    A client sends an Ack for every ``window`` messages behind SET_ACK; a server stops at twice the
    window without one. ``delivered`` counts messages since the last SET_ACK that surely arrived.
    """

    def __init__(self) -> None:
        self.window = 0
        self.sent = 0
        self.delivered = 0
        self._left = 0
        self._generation: int | None = None

    def expect(self, window: int) -> None:
        """Client: SET_ACK came."""
        self.window = self._left = window

    def count_received(self) -> bool:
        """Client: a message came; is an Ack due?"""
        if not self.window:
            return False
        self._left -= 1
        if self._left:
            return False
        self._left = self.window
        return True

    def count_sent(self, message: Message) -> None:
        """Server: a message went out."""
        if type(message) is SetAck:
            self.window = message.window
            self.sent = self.delivered = 0
            self._generation = message.generation
        else:
            self.sent += 1

    def synchronize(self, generation: int) -> None:
        """Server: ACK_SYNC came; acknowledgements before it were for an older window."""
        if generation == self._generation:
            self._generation = None

    def acknowledge(self) -> None:
        """Server: ACK came."""
        if self._generation is None and self.window:
            self.delivered = min(self.delivered + self.window, self.sent)

    @property
    def open(self) -> bool:
        """Server: may another message go out?"""
        return not self.window or self.sent - self.delivered <= 2 * self.window
