"""Sessions: a client each. The main channel is the session, the others belong to it."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import time
from typing import TYPE_CHECKING

import trio

from ..errors import RemoteProtocolError
from ..nursery import open_nursery
from ..protocol.agent import AGENT_TOKENS, FromClient
from ..wire import main
from ..wire.base import Ping
from ..wire.types import ChannelType, MouseMode
from .inputs import Hands
from .viewer import READ_SIZE

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from ..protocol import Channel
    from ..transport import Stream
    from .agent import Agent
    from .inputs import Seat

HEARTBEAT_S = 1.0
"""A client that hears nothing for a few of these knows that something is wrong."""

MOST_DISPLAYS = 4
"""Display channels of a session: each may have a whole picture waiting to be sent. Our own client
has one more for each task that looks while a loop over frames stands still."""

_MOUSE_MODES = MouseMode.SERVER | MouseMode.CLIENT


class Session:
    """One client. ``view_only`` is whether it came where clients may only look."""

    def __init__(self, session_id: int, *, view_only: bool) -> None:
        self.id = session_id
        self.view_only = view_only
        self.hands = Hands()
        self.mouse_mode = MouseMode.CLIENT
        """How the client would like the pointer to be moved."""
        self._channels: dict[trio.CancelScope, ChannelType] = {}

    @contextlib.contextmanager
    def channel(self, kind: ChannelType) -> Iterator[None]:
        """The block is one of the session's channels: it is cancelled when the session ends.

        Raises RemoteProtocolError for one too many of its kind at a time: other servers close it
        without a word.
        """
        most = MOST_DISPLAYS if kind is ChannelType.DISPLAY else 1
        if list(self._channels.values()).count(kind) >= most:
            why = f"the session has {most} already"
            raise RemoteProtocolError("link_mess", "channel_type", why)
        with trio.CancelScope() as scope:
            self._channels[scope] = kind
            try:
                yield
            finally:
                del self._channels[scope]

    def end(self) -> None:
        for scope in list(self._channels):
            scope.cancel()


def new_session_id(taken: Container[int]) -> int:
    """Unguessable, because it is all that binds a channel to its session."""
    while True:
        session_id = secrets.randbits(32)
        if session_id and session_id not in taken:
            return session_id


class MainChannel:
    """A session's main channel; ``channels`` are the others that it may open.

    ``seat`` tells how the pointer is moved. ``agent`` hears which size the client would like; None:
    the client is told that there is none.
    """

    def __init__(
        self,
        stream: Stream,
        machine: Channel,
        session: Session,
        channels: Sequence[ChannelType],
        seat: Seat,
        agent: Agent | None,
    ) -> None:
        self._stream = stream
        self._machine = machine
        self._session = session
        self._channels = channels
        self._seat = seat
        self._told = self._modes
        self._agent = agent

    async def run(self, first: bytes) -> None:
        """Serve the channel to its end; ``first`` is what came behind the link phase.

        Raises RemoteProtocolError for a breach, Disconnected.
        """
        agent = (0, 0) if self._agent is None else (1, AGENT_TOKENS)
        self._machine.send(main.MainInit(self._session.id, 1, *self._told, *agent, _ms_now(), 0))
        others = tuple(main.ChannelId(kind, 0) for kind in self._channels)
        self._machine.send(main.ChannelsList(others))
        async with open_nursery() as nursery:
            nursery.start_soon(self._stream.flush_when_writable)
            nursery.start_soon(self._beat)
            nursery.start_soon(self._tell_modes)
            if self._agent is not None:
                nursery.start_soon(self._tell_answers, self._agent)
            data: bytes | memoryview = first
            while True:
                self._received(data)
                await self._stream.settled()
                data, _ = await self._stream.receive(READ_SIZE)

    def _received(self, data: bytes | memoryview) -> None:
        for message in self._machine.receive_data(data):
            if isinstance(message, main.MouseModeRequest):
                if message.mode in (MouseMode.SERVER, MouseMode.CLIENT):
                    self._session.mouse_mode = MouseMode(message.mode)
                self._say_modes()
            elif self._agent is not None and isinstance(message, FromClient):
                self._agent.received(message)
        self._flush()

    @property
    def _modes(self) -> tuple[int, int]:
        """The mouse modes that the client may choose of, and the one that it has."""
        if self._seat.positions:
            return _MOUSE_MODES, self._session.mouse_mode
        return MouseMode.SERVER, MouseMode.SERVER

    def _say_modes(self) -> None:
        self._told = self._modes
        self._machine.send(main.MouseMode(*self._told))

    async def _tell_modes(self) -> None:
        """Tell every change, or only the newest to a client that does not read."""
        while True:
            while self._told == self._modes:
                await self._seat.changed.wait()
            await self._stream.settled()
            self._say_modes()
            self._flush()

    async def _tell_answers(self, agent: Agent) -> None:
        while True:
            await agent.answered()
            self._flush()

    async def _beat(self) -> None:
        for number in itertools.count(1):
            await trio.sleep(HEARTBEAT_S)
            if not self._stream.pending:
                self._machine.send(Ping(number & 0xFFFFFFFF, time.monotonic_ns()))
                self._flush()

    def _flush(self) -> None:
        for message in self._agent.messages_to_send() if self._agent is not None else ():
            self._machine.send(message)
        self._stream.send_parts(self._machine.data_to_send())


def _ms_now() -> int:
    return int(trio.current_time() * 1000) & 0xFFFFFFFF
