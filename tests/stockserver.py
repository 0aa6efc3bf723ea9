"""A server spoken message by message, over real sockets, as stock servers speak: what it has and
what it says is the test's.

async with stockserver.serving(address) as server:          # one picture of 64x48, ordinary SPICE
    async with spiceshm.connect(address) as remote:
        keys = await server.channel(ChannelType.INPUTS)     # once the client has opened it
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio
from cryptography.hazmat.primitives.asymmetric import rsa

from spiceshm.errors import Disconnected
from spiceshm.nursery import open_nursery
from spiceshm.protocol import Channel, ServerInputs, ServerLink
from spiceshm.transport import Listener, Stream, parse_address
from spiceshm.wire import Message, Sender, cursor, display, inputs, main
from spiceshm.wire.types import ChannelType, LinkError, MouseMode
from tests import pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SOON = 20.0
"""Seconds within which everything happens."""

KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)
SESSION = 7
BOTH = int(MouseMode.SERVER | MouseMode.CLIENT)
"""Mouse modes of a machine with a tablet."""


class End:
    """The server's end of one channel: what came is in ``came``."""

    def __init__(self, stream: Stream, machine: Channel) -> None:
        self.came: list[Message] = []
        self.stream = stream
        self.machine = machine
        self.news = trio.Event()

    def put(self, *messages: Message) -> None:
        """Send these."""
        for message in messages:
            self.machine.send(message)
        for part in self.machine.data_to_send():
            self.stream.send(part.data)

    async def read(self, first: bytes) -> None:
        data: bytes | memoryview = first
        while True:
            self.came += self.machine.receive_data(data)
            self.put()
            self.news.set()
            self.news = trio.Event()
            data, _ = await self.stream.receive()

    async def find(self, kind: type[Message], count: int = 1) -> list[Message]:
        """Wait until so many messages of a kind have come; returns all of that kind."""
        with trio.fail_after(SOON):
            while len(found := [one for one in self.came if isinstance(one, kind)]) < count:
                await self.news.wait()
        return found


class StockServer:
    """``kinds`` are the channels beside main that it lists and has; ``refusal`` is what others are
    answered, None: they are closed without a word. ``modes`` are its mouse modes."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._streams: list[Stream] = []
        self.kinds = {ChannelType.DISPLAY, ChannelType.INPUTS, ChannelType.CURSOR}
        self.listed: set[ChannelType] | None = None
        self.refusal: LinkError | None = None
        self.modes, self.mode = BOTH, int(MouseMode.CLIENT)
        self.caps: frozenset[int] = frozenset()
        """Those of its display channel."""
        self.acks = True
        self.answers = True
        """Whether it answers requests for a mouse mode."""
        self.drawn: list[Message] = [pair.create(), pair.draw()]
        """What it has drawn before it shows anything: one pixel."""
        self.linked: list[ChannelType] = []
        """Every channel that a client has asked for."""
        self._ends: dict[ChannelType, End] = {}
        self._opened = trio.Event()

    def leave(self) -> None:
        """Go, as a server does that is killed."""
        self._listener.close()
        for stream in self._streams:
            stream.close()

    async def channel(self, kind: ChannelType) -> End:
        """The newest channel of a kind, once there is one."""
        with trio.fail_after(SOON):
            while kind not in self._ends:
                await self._opened.wait()
        return self._ends[kind]

    async def handle(self, stream: Stream) -> None:
        self._streams.append(stream)
        with stream, contextlib.suppress(Disconnected):
            link = ServerLink(KEY)
            while not link.done:
                data, _ = await stream.receive(link.bytes_wanted)
                event = link.receive_data(bytes(data))
                if link.mess is not None and event is link.mess:
                    kind = ChannelType(link.mess.channel_type)
                    self.linked.append(kind)
                    if kind not in {ChannelType.MAIN, *self.kinds}:
                        if self.refusal is None:
                            return
                        link.refuse(self.refusal)
                    else:
                        link.accept(self.caps if kind is ChannelType.DISPLAY else frozenset())
                elif event is not None:
                    link.finish(LinkError.OK)
                stream.send(link.data_to_send())
                await stream.drain()
            if not link.refused:
                await self._serve(stream, link, kind)

    async def _serve(self, stream: Stream, link: ServerLink, kind: ChannelType) -> None:
        name = kind.name.lower()
        machine = (
            ServerInputs(mini=link.mini)
            if kind is ChannelType.INPUTS
            else Channel(name, Sender.SERVER, mini=link.mini)
        )
        end = self._ends[kind] = End(stream, machine)
        self._opened.set()
        self._opened = trio.Event()
        async with open_nursery() as nursery:
            nursery.start_soon(getattr(self, f"_{name}"), end)
            await end.read(link.rest)

    async def _main(self, end: End) -> None:
        end.put(main.MainInit(SESSION, 1, self.modes, self.mode, 0, 0, 0, 0))
        await end.find(main.AttachChannels)
        kinds = self.kinds if self.listed is None else self.listed
        end.put(main.ChannelsList(tuple(main.ChannelId(kind, 0) for kind in sorted(kinds))))
        asked = 0
        while True:
            asked += 1
            request = (await end.find(main.MouseModeRequest, asked))[-1]
            assert isinstance(request, main.MouseModeRequest)
            if not self.answers:
                continue
            self.mode = request.mode
            end.put(main.MouseMode(self.modes, self.mode))

    async def _display(self, end: End) -> None:
        await end.find(display.DisplayInit)
        end.put(*self.drawn, display.Mark())
        await end.stream.drain()
        await trio.sleep_forever()

    async def _inputs(self, end: End) -> None:
        machine = end.machine
        assert isinstance(machine, ServerInputs)
        end.put(inputs.InputsInit(0))
        while True:
            await end.news.wait()
            if self.acks:
                end.put(*[inputs.MouseMotionAck()] * machine.acks_due)

    async def _cursor(self, end: End) -> None:
        end.put(cursor.CursorInit(0, 0, 0, 0, 0, cursor.Cursor(cursor.FLAG_NONE)))
        await trio.sleep_forever()


@contextlib.asynccontextmanager
async def serving(address: str) -> AsyncIterator[StockServer]:
    """A server that listens; at the end of the block it is gone."""
    listener = Listener(parse_address(address))
    server = StockServer(listener)
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            with contextlib.suppress(trio.ClosedResourceError):
                await listener.serve(server.handle, nursery)

        try:
            nursery.start_soon(listen)
            yield server
        finally:
            nursery.cancel_scope.cancel()
            server.leave()
