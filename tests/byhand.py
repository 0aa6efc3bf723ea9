"""A client spoken message by message, over real sockets: when it sends and reads is the test's.

async with byhand.session(address) as client:      # its main channel is open
    keys = await client.open(ChannelType.INPUTS)   # through the link phase
    await keys.put(inputs.KeyDown(0x1E))
    assert await keys.next() == inputs.InputsInit(0)
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING

import trio

from spiceshm.errors import Disconnected
from spiceshm.protocol import Channel, ClientInputs, ClientLink
from spiceshm.transport import open_stream, parse_address
from spiceshm.wire import Message, Sender, agent, main
from spiceshm.wire.types import ChannelType, MouseMode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from spiceshm.transport import Stream

SOON = 20.0
"""Seconds within which everything happens."""


class Peer:
    """The client's end of one channel. PING and SET_ACK are answered when they are read."""

    def __init__(self, stream: Stream, link: ClientLink, machine: Channel) -> None:
        self.stream = stream
        self.machine = machine
        self._come: deque[Message] = deque(machine.receive_data(link.rest))

    async def put(self, *messages: Message) -> None:
        """Send these in one go, and wait until the kernel has them."""
        for message in messages:
            self.machine.send(message)
        self.flush()
        await self.stream.drain()

    def flush(self) -> None:
        """Send what is queued, the answers among it, as far as the kernel takes it."""
        for part in self.machine.data_to_send():
            self.stream.send(part.data)

    async def next(self) -> Message:
        """The next message, whatever it is."""
        with trio.fail_after(SOON):
            while not self._come:
                data, _ = await self.stream.receive()
                self._come += self.machine.receive_data(data)
                self.flush()
        return self._come.popleft()

    def take(self, most: int) -> list[Message]:
        """What is complete with at most ``most`` bytes more, of those that have come already."""
        if received := self.stream.receive_now(most):
            self._come += self.machine.receive_data(received[0])
            self.flush()
        come, self._come = list(self._come), deque()
        return come

    async def find(self, kind: type[Message]) -> Message:
        """The next message of a kind; those before it are dropped."""
        while type(message := await self.next()) is not kind:
            pass
        return message

    async def ended(self) -> list[Message]:
        """Wait until the server closes the channel; returns what it had to say before that."""
        said = []
        with contextlib.suppress(Disconnected):
            while True:
                said.append(await self.next())
        return said

    def close(self) -> None:
        self.stream.close()


class Client:
    """A session; ``listed`` are the channels that the server told of, ``agent`` whether it told of
    a guest's agent, and how many messages that may be sent at first."""

    def __init__(self, address: str, stack: contextlib.ExitStack, password: bytes = b"") -> None:
        self.address = address
        self.password = password
        self.session_id = 0
        self.listed: set[int] = set()
        self.agent = (0, 0)
        self.main: Peer
        self._stack = stack

    async def begin(self) -> None:
        self.main = await self.open(ChannelType.MAIN)
        init = await self.main.next()
        assert isinstance(init, main.MainInit)
        self.session_id = init.session_id
        self.agent = (init.agent_connected, init.agent_tokens)
        channels = await self.main.next()
        assert isinstance(channels, main.ChannelsList)
        self.listed = {channel.type for channel in channels.channels}

    async def open(
        self, kind: ChannelType, address: str | None = None, *, caps: frozenset[int] = frozenset()
    ) -> Peer:
        """Open a channel of the session, at another of the server's addresses if one is given.

        ``caps`` are the channel's capabilities. Raises LinkRefused.
        """
        with trio.fail_after(SOON):
            stream = await open_stream(parse_address(address or self.address))
            self._stack.callback(stream.close)
            link = ClientLink(
                connection_id=self.session_id,
                channel_type=kind,
                channel_id=0,
                channel_caps=caps,
                password=self.password,
            )
            while not link.done:
                stream.send(link.data_to_send())
                await stream.drain()
                data, _ = await stream.receive(link.bytes_wanted)
                link.receive_data(bytes(data))
        if kind is ChannelType.INPUTS:
            return Peer(stream, link, ClientInputs(mini=link.mini))
        return Peer(stream, link, Channel(kind.name.lower(), Sender.CLIENT, mini=link.mini))


@contextlib.asynccontextmanager
async def session(address: str, password: bytes = b"") -> AsyncIterator[Client]:
    """A session whose main channel is open; at the end of the block all its sockets close."""
    with contextlib.ExitStack() as stack:
        client = Client(address, stack, password)
        await client.begin()
        yield client


class Window:
    """A viewer's window: its main channel, on which it says how large it is."""

    def __init__(self, client: Client) -> None:
        self.main = client.main

    async def begin(self) -> None:
        await self.main.put(
            main.AgentStart(0xFFFFFFFF), said(agent.AnnounceCapabilities(1, (0x00035077,)))
        )
        heard = await self.main.find(main.AgentData)
        assert isinstance(heard, main.AgentData)
        assert heard.data[20:] == agent.AnnounceCapabilities(0, (0x2006,)).packed

    async def wants(self, width: int, height: int) -> None:
        monitor = agent.Monitor(height, width, 32, 0, 0)
        await self.main.put(said(agent.MonitorsConfig(0, (monitor,))))

    async def got_it(self) -> bool:
        """Wait for the answer to a wish; whether it was granted."""
        heard = await self.main.find(main.AgentData)
        assert isinstance(heard, main.AgentData)
        reply = agent.Reply.parse(heard.data[20:])
        assert reply.type == agent.MonitorsConfig.number
        return reply.error == agent.REPLY_SUCCESS

    async def is_served(self) -> None:
        """Wait until the server has read all that was said, and answers."""
        await self.main.put(main.MouseModeRequest(MouseMode.CLIENT))
        await self.main.find(main.MouseMode)


def said(body: agent.AgentRecord) -> main.ClientAgentData:
    header = agent.AgentHeader(body.number, len(body.packed))
    return main.ClientAgentData(header.packed + body.packed)


@contextlib.asynccontextmanager
async def window(address: str) -> AsyncIterator[Window]:
    async with session(address) as client:
        assert client.agent == (1, 10)
        window = Window(client)
        await window.begin()
        yield window
