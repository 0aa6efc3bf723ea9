"""The main channel: one a session; when it closes, all of the session's channels do."""

from __future__ import annotations

from construct import Bytes, GreedyBytes, Int8ul, Int16ul, Int32ul, Rebuild, Struct, len_, this

from .message import As, Message, Record, Sender, empty, message, record
from .types import between, counted

MAX_AGENT_DATA = 2048


@message("main", Sender.SERVER, 103)
class MainInit(Message):
    """The session is open; ``session_id`` is what its other channels give as connection_id.

    Mouse modes are `MouseMode` bits; ``multi_media_time`` is in ms; ``ram_hint`` in bytes.
    """

    layout = Struct(
        "session_id" / Int32ul,
        "display_channels_hint" / Int32ul,
        "supported_mouse_modes" / Int32ul,
        "current_mouse_mode" / Int32ul,
        "agent_connected" / Int32ul,
        "agent_tokens" / Int32ul,
        "multi_media_time" / Int32ul,
        "ram_hint" / Int32ul,
    )
    session_id: int
    display_channels_hint: int
    supported_mouse_modes: int
    current_mouse_mode: int
    agent_connected: int
    agent_tokens: int
    multi_media_time: int
    ram_hint: int


@record
class ChannelId(Record):
    layout = Struct("type" / Int8ul, "id" / Int8ul)
    type: int
    id: int


@message("main", Sender.SERVER, 104)
class ChannelsList(Message):
    layout = Struct(
        *counted(As(ChannelId), Int32ul, 65536, name="channels", count="num_of_channels")
    )
    channels: tuple[ChannelId, ...]


@message("main", Sender.SERVER, 105)
class MouseMode(Message):
    layout = Struct("supported_modes" / Int16ul, "current_mode" / Int16ul)
    supported_modes: int
    current_mode: int


@message("main", Sender.SERVER, 106)
class MultiMediaTime(Message):
    layout = Struct("time" / Int32ul)
    time: int


@message("main", Sender.SERVER, 107)
class AgentConnected(Message):
    layout = empty()


@message("main", Sender.SERVER, 108)
class AgentDisconnected(Message):
    layout = Struct("error_code" / Int32ul)
    error_code: int


@message("main", Sender.SERVER, 109)
class AgentData(Message):
    layout = Struct("data" / GreedyBytes)
    data: bytes


@message("main", Sender.SERVER, 110)
class AgentToken(Message):
    layout = Struct("num_tokens" / Int32ul)
    num_tokens: int


@message("main", Sender.SERVER, 113)
class Name(Message):
    """The machine's name with a NUL behind it, as sent."""

    layout = Struct(
        "name_len" / Rebuild(between(Int32ul, 0, 4096), len_(this.name)),
        "name" / Bytes(this.name_len),
    )
    name: bytes


@message("main", Sender.SERVER, 114)
class Uuid(Message):
    layout = Struct("uuid" / Bytes(16))
    uuid: bytes


@message("main", Sender.SERVER, 115)
class AgentConnectedTokens(Message):
    layout = Struct("num_tokens" / Int32ul)
    num_tokens: int


@message("main", Sender.CLIENT, 104)
class AttachChannels(Message):
    layout = empty()


@message("main", Sender.CLIENT, 105)
class MouseModeRequest(Message):
    layout = Struct("mode" / Int16ul)
    mode: int


@message("main", Sender.CLIENT, 106)
class AgentStart(Message):
    layout = Struct("num_tokens" / Int32ul)
    num_tokens: int


@message("main", Sender.CLIENT, 107)
class ClientAgentData(Message):
    layout = Struct("data" / GreedyBytes)
    data: bytes


@message("main", Sender.CLIENT, 108)
class ClientAgentToken(Message):
    layout = Struct("num_tokens" / Int32ul)
    num_tokens: int
