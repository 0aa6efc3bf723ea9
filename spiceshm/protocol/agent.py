"""The agent in the guest: as the server plays it for one client, and as a client speaks to it,
without I/O.

There is no guest, but viewers tell only an agent which size they would like the display to have.
So the server says in main's INIT that there is one, which can do just that: what it has not
announced, such as the clipboard, is passed over as it comes, and nothing of it is kept.

Use it beside main's machine, for each of the client's messages that it `takes`:

    wish = agent.receive(message)         # raises RemoteProtocolError: close main
    ...
    for message in agent.messages_to_send():
        channel.send(message)

Both directions have tokens, one for each AGENT_DATA: the client has those that INIT gave it and
gets them back five at a time, as from other servers; what we have to say waits for those of the
client, the newest of each kind, so that a client that gives none makes us keep nothing. The same
holds for what a client has to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ..errors import LocalProtocolError, RemoteProtocolError
from ..wire.agent import (
    CAP_FILE_XFER_DISABLED,
    CAP_MONITORS_CONFIG,
    CAP_REPLY,
    MAX_MONITORS,
    REPLY_ERROR,
    REPLY_SUCCESS,
    AgentHeader,
    AgentRecord,
    AnnounceCapabilities,
    Monitor,
    MonitorsConfig,
    MonitorSize,
    Reply,
)
from ..wire.main import (
    AgentConnected,
    AgentConnectedTokens,
    AgentData,
    AgentDisconnected,
    AgentStart,
    AgentToken,
    ClientAgentData,
    ClientAgentToken,
    MainInit,
)
from ..wire.types import MAX_CAPABILITY_WORDS, caps_from_words, words_from_caps

if TYPE_CHECKING:
    from ..wire import Message

AGENT_TOKENS = 10
"""AGENT_DATA that a client may send before it gets tokens back: what INIT is to say."""

TOKENS_BACK = 5
"""Tokens are given back so many at a time."""

CAPABILITIES = frozenset({CAP_MONITORS_CONFIG, CAP_REPLY, CAP_FILE_XFER_DISABLED})
"""Without the last one a viewer would wait for the agent to take a file that is dropped on it."""

CLIENT_CAPABILITIES = frozenset({CAP_MONITORS_CONFIG, CAP_REPLY})

NO_LIMIT = 0xFFFFFFFF
"""Tokens that a client gives which keeps nothing of what it hears."""

DEPTH = 32
"""Bits of a pixel."""

FromClient: TypeAlias = AgentStart | ClientAgentData | ClientAgentToken
FromServer: TypeAlias = (
    MainInit | AgentConnected | AgentConnectedTokens | AgentDisconnected | AgentData | AgentToken
)

_HEADER_SIZE = AgentHeader.layout.sizeof()
_MONITOR_SIZE = Monitor.layout.sizeof() + MonitorSize.layout.sizeof()
_Kinds: TypeAlias = dict[int, tuple[type[AgentRecord], int]]
"""What is not passed over, and the most bytes that it may have."""

_FROM_CLIENT: _Kinds = {
    MonitorsConfig.number: (MonitorsConfig, 8 + MAX_MONITORS * _MONITOR_SIZE),
    AnnounceCapabilities.number: (AnnounceCapabilities, 4 + 4 * MAX_CAPABILITY_WORDS),
}
_FROM_SERVER: _Kinds = {Reply.number: (Reply, 8)}


class Wish(NamedTuple):
    """The size in pixels that a client would like the display to have, each 1 or more."""

    width: int
    height: int


class _Messages:
    """The agent's messages, put together again from AGENT_DATA, of which none holds parts of two.

    ``carrier`` is the title of AGENT_DATA; messages of other ``kinds`` are passed over.
    """

    def __init__(self, carrier: str, kinds: _Kinds) -> None:
        self._carrier = carrier
        self._kinds = kinds
        self._type = 0
        self._left: int | None = None  # bytes of the message that is coming
        self._body = bytearray()

    def feed(self, data: bytes) -> AgentRecord | None:
        """Returns the message that is complete now, if one is. Raises RemoteProtocolError."""
        if self._left is None:
            self._left = self._begin(data)
            data = data[_HEADER_SIZE:]
        if len(data) > self._left:
            raise RemoteProtocolError(
                self._carrier, "data", f"{len(data) - self._left} bytes behind the end of a message"
            )
        self._left -= len(data)
        if self._type in self._kinds:
            self._body += data
        return None if self._left else self._end()

    def _begin(self, data: bytes) -> int:
        """Read a header; returns how many bytes follow it."""
        if len(data) < _HEADER_SIZE:
            raise RemoteProtocolError(
                self._carrier,
                "data",
                f"{len(data)} bytes, a message begins with a header of {_HEADER_SIZE}",
            )
        header = AgentHeader.parse(data[:_HEADER_SIZE])
        if header.type in self._kinds:
            kind, most = self._kinds[header.type]
            if header.size > most:
                raise RemoteProtocolError(
                    kind.title, "size", f"{header.size} bytes, the limit is {most}"
                )
        self._type = header.type
        return header.size

    def _end(self) -> AgentRecord | None:
        """All of a message has come."""
        body, self._body, self._left = bytes(self._body), bytearray(), None
        return self._kinds[self._type][0].parse(body) if self._type in self._kinds else None


def _whole(body: AgentRecord) -> bytes:
    """A message with its header, as it fits into one AGENT_DATA."""
    return AgentHeader(body.number, len(body.packed)).packed + body.packed


class ServerAgent:
    """The agent for one client."""

    def __init__(self) -> None:
        self._started = False
        self._tokens = 0  # AGENT_DATA that we may send
        self._theirs = AGENT_TOKENS  # ... that the client may
        self._handled = 0  # ... of the client, for which it has got no token back
        self._messages = _Messages(ClientAgentData.title, _FROM_CLIENT)
        self._knows_reply = False
        self._to_say: dict[type[AgentRecord], AgentRecord] = {}

    def receive(self, message: FromClient) -> Wish | None:
        """Take what came on main; returns what the client wants, if that is complete now.

        Of several monitors the first counts; there is one display. Raises RemoteProtocolError.
        """
        if isinstance(message, AgentStart):
            self._started = True
            self._tokens = message.num_tokens
        elif isinstance(message, ClientAgentToken):
            self._tokens += message.num_tokens
        else:
            return self._take(message)
        return None

    def reply(self, *, ok: bool) -> None:
        """Say how it went with the last wish, to a client that knows such answers."""
        if self._knows_reply:
            result = REPLY_SUCCESS if ok else REPLY_ERROR
            self._to_say[Reply] = Reply(MonitorsConfig.number, result)

    def messages_to_send(self) -> list[Message]:
        """What is due to be sent now, in this order."""
        out: list[Message] = []
        while self._handled >= TOKENS_BACK:
            self._handled -= TOKENS_BACK
            self._theirs += TOKENS_BACK
            out.append(AgentToken(TOKENS_BACK))
        for kind in list(self._to_say)[: self._tokens]:
            body = self._to_say.pop(kind)
            self._tokens -= 1
            out.append(AgentData(_whole(body)))
        return out

    def _take(self, message: ClientAgentData) -> Wish | None:
        if not self._started:
            raise RemoteProtocolError(message.title, "", "comes before agent_start")
        if not self._theirs:
            raise RemoteProtocolError(message.title, "", "the client has no token left for it")
        self._theirs -= 1
        self._handled += 1
        heard = self._messages.feed(message.data)
        if isinstance(heard, AnnounceCapabilities):
            self._meet(heard)
        elif isinstance(heard, MonitorsConfig):
            return _wish(heard)
        return None

    def _meet(self, theirs: AnnounceCapabilities) -> None:
        self._knows_reply = CAP_REPLY in caps_from_words(theirs.caps)
        if theirs.request:
            ours = words_from_caps(CAPABILITIES)
            self._to_say[AnnounceCapabilities] = AnnounceCapabilities(0, ours)


def _wish(config: MonitorsConfig) -> Wish | None:
    """A monitor without a pixel is one that is switched off."""
    for monitor in config.monitors[:1]:
        if monitor.width and monitor.height:
            return Wish(monitor.width, monitor.height)
    return None


class ClientAgent:
    """A client's end: it can wish for a size, if there is an agent; who does not says nothing.

    Feed it whatever main's machine brings that is `FromServer`, and send what `messages_to_send`
    has, each time that it was fed or asked for something.
    """

    def __init__(self) -> None:
        self.connected = False
        """Whether there is an agent now."""
        self.outcome: bool | None = None
        """How it went with the last wish, None while that is not told; some agents never tell."""
        self._tokens = 0  # AGENT_DATA that we may send
        self._started = False
        self._messages = _Messages(AgentData.title, _FROM_SERVER)
        self._to_say: dict[type[AgentRecord], AgentRecord] = {}

    def receive(self, message: FromServer) -> None:
        """Take what came on main. Raises RemoteProtocolError."""
        match message:
            case MainInit():
                self._tokens = message.agent_tokens
                if message.agent_connected:
                    self._begin(self._tokens)
            case AgentConnectedTokens():
                self._begin(message.num_tokens)
            case AgentConnected():
                self._begin(self._tokens)
            case AgentDisconnected():
                self.connected = False
                self._to_say.clear()
            case AgentToken():
                self._tokens += message.num_tokens
            case AgentData():
                self._heard(self._messages.feed(message.data))

    def _begin(self, tokens: int) -> None:
        self.connected, self._started = True, False
        self._tokens = tokens
        self._messages = _Messages(AgentData.title, _FROM_SERVER)
        self._to_say.clear()

    def _heard(self, message: AgentRecord | None) -> None:
        if isinstance(message, Reply) and message.type == MonitorsConfig.number:
            self.outcome = message.error == REPLY_SUCCESS

    def wish(self, width: int, height: int) -> None:
        """Would like the display to have a size in pixels; instead of what still waits to be said.

        Raises LocalProtocolError without an agent.
        """
        if not self.connected:
            raise LocalProtocolError(MonitorsConfig.title, "", "there is no agent")
        self.outcome = None
        if not self._started:
            ours = words_from_caps(CLIENT_CAPABILITIES)
            self._to_say[AnnounceCapabilities] = AnnounceCapabilities(0, ours)
        self._to_say[MonitorsConfig] = MonitorsConfig(0, (Monitor(height, width, DEPTH, 0, 0),))

    def messages_to_send(self) -> list[Message]:
        """What is due to be sent now, in this order."""
        out: list[Message] = []
        if self._to_say and not self._started:
            self._started = True
            out.append(AgentStart(NO_LIMIT))
        for kind in list(self._to_say)[: self._tokens]:
            self._tokens -= 1
            out.append(ClientAgentData(_whole(self._to_say.pop(kind))))
        return out
