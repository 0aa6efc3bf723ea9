"""Connecting: two channels of one session, each through its link phase, and the tasks that read."""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from ..errors import ConnectError, Disconnected, LinkRefused, MemoryRefused, ProtocolError
from ..nursery import open_nursery
from ..protocol import Channel, ClientLink
from ..transport import Address, Stream, default_address, open_stream, parse_address
from ..wire import Sender, main
from ..wire.shm import MAX_CREDITS
from ..wire.types import ChannelType, DisplayCap
from .display import DisplayChannel, Sharing
from .reading import HANDSHAKE_S
from .remote import RemoteDisplay

log = logging.getLogger("spiceshm.client")

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from .frame import Frame


@contextlib.asynccontextmanager
async def connect(
    address: str | None = None, *, password: str = "", shm: Sharing = "auto", credits: int = 3
) -> AsyncIterator[RemoteDisplay]:
    """Connect to a SPICE server and look at its display.

    ``address`` is ``unix:/path``, ``unix:@name``, ``tcp:host:port``, ``spice://host:port`` or
    ``spice+unix:///path``; None is the default of `spiceshm.serve`. ``shm`` "auto" shares memory if
    the server can, "off" refuses it, "require" raises MemoryRefused where it is not shared.
    ``credits``, 1 to 8, is how many frames you may hold at once in shared memory: the one that the
    loop gives you, and those of which some variable still names a view. The first complete picture
    is there when the block begins.

    Raises AddressError, ConnectError (nobody there, refused, nothing shown within 10 s),
    RemoteProtocolError, Disconnected.
    """
    if credits not in range(1, MAX_CREDITS + 1):
        raise ValueError(f"credits are {credits!r}, not 1 to {MAX_CREDITS}")
    if shm not in ("auto", "off", "require"):
        raise ValueError(f'shm is {shm!r}, not "auto", "off" or "require"')
    place = parse_address(address) if address is not None else default_address()
    async with open_nursery() as nursery:
        with contextlib.ExitStack() as stack:
            try:
                channel = DisplayChannel(place, shm, credits)
                stack.callback(channel.close)
                session = Session(channel, password, nursery, stack)
                with _deadline(place):
                    await session.begin()
                if shm == "require" and not channel.shared:
                    raise MemoryRefused(f"{place}: memory is not shared: {channel.reason}")
                yield RemoteDisplay(channel, session)
            finally:
                nursery.cancel_scope.cancel()  # before the sockets close under its tasks


class Session:
    """The channels of one session: main and display from the beginning, others when used."""

    def __init__(
        self,
        display: DisplayChannel,
        password: str,
        nursery: trio.Nursery,
        stack: contextlib.ExitStack,
    ) -> None:
        self._display = display
        self._password = password
        self._nursery = nursery
        self._stack = stack
        self._session_id = 0

    async def begin(self) -> None:
        """Open main and display channel and wait for the first picture."""
        display = self._display
        main_stream, main_link = await self.open(ChannelType.MAIN)
        with _named(display.address):
            main_channel = _MainChannel(main_stream, main_link)
            self._session_id = await main_channel.begin()
        stream, link = await self.open(ChannelType.DISPLAY)
        with _named(display.address):
            display.open(stream, link)
        self.run(main_channel.read)
        self.run(partial(display.reading.run, link.rest))
        self.run(stream.flush_when_writable)
        await display.first_frame()
        how = "shared memory" if display.shared else f"ordinary SPICE: {display.reason}"
        log.info("%s: %dx%d, %s", display.address, display.width, display.height, how)

    async def look_again(self) -> Frame:
        """The present picture, by a display channel that is opened for it alone.

        For where the last frame went back to the server while a newer one was waited for.
        """
        channel = DisplayChannel(self._display.address, self._display.wish, 1)
        stream, link = await self.open(ChannelType.DISPLAY)
        channel.open(stream, link)
        async with open_nursery() as nursery:
            try:
                self.run(partial(channel.reading.run, link.rest), channel, nursery)
                frame = await channel.picture()
            finally:
                nursery.cancel_scope.cancel()
                channel.close()
        self._display.show(frame)
        return frame

    def run(
        self,
        task: Callable[[], Awaitable[None]],
        display: DisplayChannel | None = None,
        nursery: trio.Nursery | None = None,
    ) -> None:
        """Run a background task; its end is the end of the display, told to who waits."""

        async def ended() -> None:
            try:
                await task()
            except (ProtocolError, Disconnected) as error:
                (display or self._display).fail(error)

        (nursery or self._nursery).start_soon(ended)

    async def open(self, channel: ChannelType) -> tuple[Stream, ClientLink]:
        """Connect one channel and go through its link phase.

        Raises RemoteProtocolError, Disconnected, LinkRefused.
        """
        caps: frozenset[int] = frozenset()
        if channel is ChannelType.DISPLAY:
            caps = frozenset(
                {DisplayCap.MONITORS_CONFIG, DisplayCap.MULTI_CODEC, DisplayCap.SHARED_MEMORY}
            )
        place = self._display.address
        with _named(place):
            stream = await open_stream(place, descriptors=channel is ChannelType.DISPLAY)
            self._stack.callback(stream.close)
            link = ClientLink(
                connection_id=self._session_id,
                channel_type=channel,
                channel_id=0,
                channel_caps=caps,
                password=self._password.encode(),
            )
            while not link.done:
                stream.send(link.data_to_send())
                await stream.drain()
                data, descriptors = await stream.receive(link.bytes_wanted)
                for descriptor in descriptors:
                    descriptor.close()
                link.receive_data(bytes(data))
        return stream, link


@contextlib.contextmanager
def _named(place: Address) -> Iterator[None]:
    """What goes wrong in the block says with which server."""
    try:
        yield
    except (ProtocolError, Disconnected, LinkRefused) as error:
        error.args = (f"{place}: {error}",)
        raise


@contextlib.contextmanager
def _deadline(place: Address) -> Iterator[None]:
    try:
        with trio.fail_after(HANDSHAKE_S):
            yield
    except trio.TooSlowError:
        raise ConnectError(
            f"{place}: nothing was shown within {HANDSHAKE_S:g} s of connecting"
        ) from None


class _MainChannel:
    """The session: its INIT tells the session id, and PINGs are answered for ever."""

    def __init__(self, stream: Stream, link: ClientLink) -> None:
        self._stream = stream
        self._rest = link.rest
        self._machine = Channel("main", Sender.CLIENT, mini=link.mini)

    async def begin(self) -> int:
        """Wait for MAIN_INIT; returns the session id."""
        data: bytes | memoryview = self._rest
        while True:
            for message in self._machine.receive_data(data):
                if isinstance(message, main.MainInit):
                    self._machine.send(main.AttachChannels())
                    self._flush()
                    return message.session_id
            data, _ = await self._stream.receive()

    async def read(self) -> None:
        while True:
            data, _ = await self._stream.receive()
            self._machine.receive_data(data)
            self._flush()
            await self._stream.drain()

    def _flush(self) -> None:
        for part in self._machine.data_to_send():
            self._stream.send(part.data)
