"""Messages of every channel, and the header in front of each message."""

from __future__ import annotations

from construct import (
    Bytes,
    Const,
    GreedyBytes,
    Int16ul,
    Int32ul,
    Int64ul,
    Optional,
    Rebuild,
    Struct,
    len_,
    this,
)

from .message import Message, Record, Sender, empty, message, record
from .types import between

MAX_NOTIFY = 1 << 16


@record
class MiniHeader(Record):
    """``SpiceMiniDataHeader``: in effect if both ends have the capability MINI_HEADER."""

    layout = Struct("type" / Int16ul, "size" / Int32ul)
    type: int
    size: int


@record
class DataHeader(Record):
    """``SpiceDataHeader``: the full one; ``serial`` counts from 1 in each direction."""

    layout = Struct("serial" / Int64ul, "type" / Int16ul, "size" / Int32ul, "sub_list" / Int32ul)
    serial: int
    type: int
    size: int
    sub_list: int


@message("base", Sender.SERVER, 3)
class SetAck(Message):
    """From now on the client sends one Ack for every ``window`` messages; 0: none."""

    layout = Struct("generation" / Int32ul, "window" / Int32ul)
    generation: int
    window: int


@message("base", Sender.SERVER, 4)
class Ping(Message):
    """Answered at once by a Pong without the padding."""

    layout = Struct("id" / Int32ul, "timestamp" / Int64ul, "data" / GreedyBytes)
    id: int
    timestamp: int
    data: bytes = b""


@message("base", Sender.SERVER, 6)
class Disconnecting(Message):
    layout = Struct("time_stamp" / Int64ul, "reason" / Int32ul)
    time_stamp: int
    reason: int


@message("base", Sender.SERVER, 7)
class Notify(Message):
    """A word to the user: severity 0 info, 1 warning, 2 error. ``message`` is bytes, as sent.

    Stock servers add a NUL behind the text that its length does not count.
    """

    layout = Struct(
        "time_stamp" / Int64ul,
        "severity" / Int32ul,
        "visibility" / Int32ul,
        "what" / Int32ul,
        "message_len" / Rebuild(between(Int32ul, 0, MAX_NOTIFY), len_(this.message)),
        "message" / Bytes(this.message_len),
        "zero" / Optional(Const(b"\0")),
    )
    time_stamp: int
    severity: int
    visibility: int
    what: int
    message: bytes


@message("base", Sender.CLIENT, 1)
class AckSync(Message):
    layout = Struct("generation" / Int32ul)
    generation: int


@message("base", Sender.CLIENT, 2)
class Ack(Message):
    layout = empty()


@message("base", Sender.CLIENT, 3)
class Pong(Message):
    layout = Struct("id" / Int32ul, "timestamp" / Int64ul)
    id: int
    timestamp: int


@message("base", Sender.CLIENT, 6)
class ClientDisconnecting(Message):
    layout = Struct("time_stamp" / Int64ul, "reason" / Int32ul)
    time_stamp: int
    reason: int
