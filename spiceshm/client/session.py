"""Connecting: the channels of one session, each through its link phase, and the tasks that read."""

from __future__ import annotations

import contextlib
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from ..errors import (
    ConnectError,
    Disconnected,
    LinkRefused,
    LocalProtocolError,
    MemoryRefused,
    SourceError,
    SpiceShmError,
    Timeout,
)
from ..nursery import open_nursery
from ..protocol import Channel, ClientAgent, ClientLink
from ..protocol.agent import FromServer
from ..transport import Address, Stream, default_address, open_stream, parse_address
from ..wire import Message, Sender, main
from ..wire.types import ChannelType, LinkError, MouseMode
from .cursor import CursorChannel
from .display import DisplayChannel
from .inputs import Inputs
from .keyboard import Keyboard
from .reading import ENDS, HANDSHAKE_S, PIECE
from .remote import RemoteDisplay
from .wishes import Wishes

log = logging.getLogger("spiceshm.client")

GRACE_S = 0.5
"""So long a connection is not given up while its display channel is being opened."""

AGAIN_S = 0.02
"""How often one looks for a server that is not there yet: nothing tells when it comes."""

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from .frame import Frame
    from .reading import End
    from .wishes import Compressing, Sharing


class Parts(NamedTuple):
    """A connection, for who passes it on: `RemoteDisplay` is all of it for a program."""

    display: DisplayChannel
    session: Session
    inputs: Inputs
    cursor: CursorChannel


@contextlib.asynccontextmanager
async def connect(
    address: str | None = None,
    *,
    password: str = "",
    shm: Sharing = "auto",
    credits: int = 3,
    view_only: bool = False,
    keyboard: str = "us",
    wait_server: float = 0.0,
    compression: Compressing = "auto",
    cache_pixels: int = 0,
    video: bool = False,
    strict: bool = False,
) -> AsyncIterator[RemoteDisplay]:
    """Connect to a SPICE server, look at its display, and act on it.

    ``address`` is ``unix:/path``, ``unix:@name``, ``tcp:host:port``, ``spice://host:port`` or
    ``spice+unix:///path``; None is the default of `spiceshm.serve`. ``shm`` "auto" shares memory if
    the server can, "off" refuses it, "require" raises MemoryRefused where it is not shared.
    ``credits``, 1 to 8, is how many frames you may hold at once in shared memory: the one that the
    loop gives you, and those of which some variable still names a view. ``view_only`` refuses to
    act: no key or pointer can reach the server. ``keyboard`` is the keyboard layout *over there*,
    in which text is typed: "us", or what ``setxkbmap`` takes, a variant in brackets: "de",
    "fr(oss)". A server that is not there yet may come within ``wait_server`` seconds. The first
    complete picture is there when the block begins.

    The rest is for servers that do not share memory. ``compression`` is what their images shall be
    packed with: "auto" is "off" over a Unix socket and "lz4" over TCP; "quic", "auto-lz" and
    "auto-glz" take the extra ``jit``, and the GLZ kinds may take 32 MB. ``cache_pixels`` of images
    are kept here for a server that shows some again. ``video`` lets it send moving parts as MJPEG,
    which is not exact. What cannot be decoded is logged once and is in `Frame.stale`; with
    ``strict`` it ends the connection with CannotDecode.

    Raises AddressError, ConnectError (nobody there, refused, nothing shown within 10 s),
    RemoteProtocolError, Disconnected, and CannotType for a layout that is not to be had.
    """
    wishes = Wishes(shm, credits, compression, cache_pixels, video, strict)
    async with opened(
        address,
        wishes,
        password=password,
        view_only=view_only,
        keyboard=keyboard,
        wait_server=wait_server,
    ) as parts:
        yield RemoteDisplay(*parts)


@contextlib.asynccontextmanager
async def opened(
    address: str | None,
    wishes: Wishes,
    *,
    password: str = "",
    view_only: bool = False,
    keyboard: str = "us",
    wait_server: float = 0.0,
) -> AsyncIterator[Parts]:
    """As `connect`, in parts."""
    wishes.check()
    place = parse_address(address) if address is not None else default_address()
    keys = Keyboard(keyboard)
    async with open_nursery() as nursery:
        with contextlib.ExitStack() as stack:
            try:
                channel = DisplayChannel(place, wishes)
                stack.callback(channel.close)
                session = Session(channel, password, nursery, stack)
                cursor = CursorChannel(session)
                inputs = Inputs(session, keys, cursor.moved, view_only=view_only)
                if wishes.to_compile:
                    await trio.to_thread.run_sync(wishes.prepare)
                with _deadline(place, wait_server):
                    await session.begin(wait_server)
                if wishes.shm == "require" and not channel.shared:
                    raise MemoryRefused(f"{place}: memory is not shared: {channel.reason}")
                yield Parts(channel, session, inputs, cursor)
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
        self.address = display.address
        self._display = display
        display.told = self.tell
        self._told = trio.Event()
        self._looking = trio.Lock()
        self._password = password
        self._nursery = nursery
        self._stack = stack
        self._main: _MainChannel | None = None
        self._session_id = 0

    async def begin(self, patience: float) -> None:
        """Open main and display channel and wait for the first picture.

        A server that is not there yet may come within ``patience`` seconds.
        """
        display = self._display
        main_stream, main_link = await self._reach(patience)
        self.keep(main_stream)
        with self.named():
            self._main = main_channel = _MainChannel(main_stream, main_link, self)
            self._session_id = await main_channel.begin()
        async with _not_cancelled(GRACE_S):
            stream, link = await self.open(ChannelType.DISPLAY)
            self.keep(stream)
            with self.named():
                display.open(stream, link)
            if not link.rest:
                with trio.move_on_after(GRACE_S):
                    await stream.readable()
        self.run(main_channel.read)
        self.run(main_stream.flush_when_writable)
        self.run(partial(display.reading.run, link.rest))
        self.run(stream.flush_when_writable)
        await display.first_frame()
        how = "shared memory" if display.shared else f"ordinary SPICE: {display.reason}"
        log.info("%s: %dx%d, %s", display.address, display.width, display.height, how)

    async def _reach(self, patience: float) -> tuple[Stream, ClientLink]:
        """Open main; raises as `open` when ``patience`` is over and nobody is there."""
        deadline = trio.current_time() + patience
        while True:
            try:
                return await self.open(ChannelType.MAIN)
            except LinkRefused:
                raise
            except ConnectError:
                if trio.current_time() >= deadline:
                    raise
            await trio.sleep(AGAIN_S)

    async def look_again(self) -> Frame:
        """The present picture, by a display channel that is opened for it alone.

        For where the last frame went back to the server while a newer one was waited for. Tasks
        take turns, for a session may have few such channels.
        """
        async with self._looking:
            return await self._look_again()

    async def _look_again(self) -> Frame:
        known = self._display.changes.newest
        channel = DisplayChannel(self._display.address, self._display.wishes._replace(credits=1))
        stream, link = await self.open_further(ChannelType.DISPLAY)
        channel.open(stream, link)
        async with open_nursery() as nursery:
            try:
                self.run(partial(channel.reading.run, link.rest), channel, nursery)
                with trio.fail_after(HANDSHAKE_S):
                    frame = await channel.picture()
            except trio.TooSlowError:
                raise Timeout(f"{self.address}: no picture came within {HANDSHAKE_S:g} s") from None
            finally:
                nursery.cancel_scope.cancel()
                channel.close()
        if not channel.shared:  # it counts for itself then, from 1
            frame.serial = known
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
            except ENDS as error:
                (display or self._display).fail(error)
                self.tell()

        (nursery or self._nursery).start_soon(ended)

    def fail(self, error: End) -> SpiceShmError:
        """The connection is over: whoever waits is told why. Returns the first such error."""
        first = self._display.reading.fail(error)
        self.tell()
        return first

    def check(self) -> None:
        """Raises what ended the connection, if anything has."""
        if self._display.reading.failure is not None:
            raise self._display.reading.failure

    def hear(self) -> None:
        """The server was heard of, on whatever channel."""
        self._display.heard = time.monotonic()

    def tell(self) -> None:
        """Something beside pixels may have changed: whoever waits in `told` looks."""
        self._told.set()
        self._told = trio.Event()

    async def told(self) -> None:
        """Wait until something may have changed that is no pixel: sizes, locks, the pointer and how
        it is moved, what the agent says, or that the connection is there."""
        await self._told.wait()

    def about_to_act(self) -> None:
        """Something is about to be sent that may change the picture. Raises what ended the
        connection."""
        self.check()
        self._display.about_to_act()

    def acted(self, delivered_ns: int) -> None:
        """All that was sent was delivered at that time: CLOCK_MONOTONIC in ns."""
        self._display.acted(delivered_ns)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the display, in pixels."""
        return self._display.width, self._display.height

    async def offers(self, channel: ChannelType) -> bool:
        """Whether the server has such a channel for us; a server that does not say has."""
        assert self._main is not None
        self.check()
        with trio.move_on_after(HANDSHAKE_S):
            while self._main.channels is None:
                await self._main.news()
                self.check()
        return self._main.channels is None or channel in self._main.channels

    @property
    def takes_positions(self) -> bool:
        """Whether the server can put the pointer to a place, as it said last."""
        return self._main is not None and bool(self._main.mouse_modes & MouseMode.CLIENT)

    def moves_by(self, mode: MouseMode) -> bool:
        """Whether the pointer is moved so."""
        return self._main is not None and self._main.mouse_mode == mode

    async def resize(self, width: int, height: int) -> None:
        """Have the guest's agent give the display another size, in pixels.

        Returns when it says that it has, or when the display has that size. Raises SourceError
        where there is no agent, or it does not do it, or not within 10 s; and what ended the
        connection.
        """
        assert self._main is not None
        self.check()
        agent = self._main.agent
        try:
            self._main.wish(width, height)
        except LocalProtocolError:
            raise SourceError(f"{self.address}: no agent runs there that could do it") from None
        except Disconnected as error:
            raise self.fail(error) from None
        with trio.move_on_after(HANDSHAKE_S):
            while agent.connected and agent.outcome is None and self.size != (width, height):
                await self.told()
                self.check()
        if not agent.outcome and self.size != (width, height):
            raise SourceError(f"{self.address}: its agent did not do it")

    async def mouse_mode(self, mode: MouseMode) -> bool:
        """Have the pointer moved so; returns whether the server does.

        Raises Timeout if it does not answer, and what ended the connection.
        """
        assert self._main is not None
        self.check()
        try:
            self._main.request(mode)
        except Disconnected as error:
            raise self.fail(error) from None
        with trio.move_on_after(HANDSHAKE_S):
            while self._main.requested:
                await self._main.news()
                self.check()
        if self._main.requested:
            self._main.requested = False
            raise Timeout(f"{self.address}: main.mouse_mode did not come within {HANDSHAKE_S:g} s")
        return self._main.mouse_mode == mode

    async def open(self, channel: ChannelType) -> tuple[Stream, ClientLink]:
        """Connect one channel and go through its link phase; the stream is the caller's to close.

        Raises RemoteProtocolError, Disconnected, ConnectError.
        """
        caps: frozenset[int] = frozenset()
        if channel is ChannelType.DISPLAY:
            caps = self._display.wishes.caps
        with self.named():
            stream = await open_stream(self.address, descriptors=channel is ChannelType.DISPLAY)
            link = ClientLink(
                connection_id=self._session_id,
                channel_type=channel,
                channel_id=0,
                channel_caps=caps,
                password=self._password.encode(),
            )
            try:
                await _link(stream, link)
            except BaseException as error:
                stream.close()
                silent = channel is ChannelType.MAIN and not stream.bytes_received
                if silent and isinstance(error, Disconnected):
                    raise Disconnected(
                        f"{error} before it said anything; a port for TLS, which is not spoken "
                        "here, is like that"
                    ) from None
                raise
        return stream, link

    def keep(self, stream: Stream) -> None:
        """Close it at the end of the session; its reading may fail before."""
        self._stack.callback(stream.close)

    async def open_further(self, channel: ChannelType) -> tuple[Stream, ClientLink]:
        """`open` one more channel; where the server or the session is no more, the connection is
        lost, not the address wrong."""
        try:
            return await self.open(channel)
        except LinkRefused as error:
            if error.code != LinkError.BAD_CONNECTION_ID:
                raise
            raise Disconnected(str(error)) from None
        except ConnectError as error:
            raise Disconnected(str(error)) from None

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """What goes wrong in the block says with which server."""
        try:
            yield
        except (*ENDS, LinkRefused) as error:
            error.args = (f"{self.address}: {error}",)
            raise


async def _link(stream: Stream, link: ClientLink) -> None:
    while not link.done:
        stream.send(link.data_to_send())
        await stream.drain()
        data, descriptors = await stream.receive(link.bytes_wanted)
        for descriptor in descriptors:
            descriptor.close()
        link.receive_data(bytes(data))


@contextlib.asynccontextmanager
async def _not_cancelled(seconds: float) -> AsyncIterator[None]:
    """A block that is cancelled only when it has run for so long.

    QEMU dies of a client that goes while it opens the display channel.
    """
    async with open_nursery() as nursery:
        begun = trio.CancelScope(shield=True)
        with trio.CancelScope(shield=True) as kept:

            async def let_go() -> None:
                with begun:
                    await trio.sleep(seconds)
                kept.shield = False

            nursery.start_soon(let_go)
            try:
                yield
            finally:
                begun.cancel()


@contextlib.contextmanager
def _deadline(place: Address, patience: float) -> Iterator[None]:
    try:
        with trio.fail_after(HANDSHAKE_S + patience):
            yield
    except trio.TooSlowError:
        raise ConnectError(
            f"{place}: nothing was shown within {HANDSHAKE_S:g} s of connecting"
        ) from None


class _MainChannel:
    """The session: who it is, its channels, how the pointer moves; PINGs are answered for ever."""

    def __init__(self, stream: Stream, link: ClientLink, session: Session) -> None:
        self._stream = stream
        self._session = session
        self._rest = link.rest
        self._machine = Channel("main", Sender.CLIENT, mini=link.mini)
        self._session_id: int | None = None
        self._arrived = trio.Event()
        self.agent = ClientAgent()
        self.mouse_modes = 0
        self.mouse_mode = 0
        self.requested = False
        """Whether a mouse mode was asked for and the server has not answered yet."""
        self.channels: frozenset[int] | None = None
        """Types of the channels that the server has; None before it said."""

    async def begin(self) -> int:
        """Wait for MAIN_INIT; returns the session id."""
        self._received(self._rest)
        while self._session_id is None:
            data, _ = await self._stream.receive(PIECE)
            self._received(data)
            await self._stream.drain()
        return self._session_id

    async def read(self) -> None:
        try:
            while True:
                data, _ = await self._stream.receive(PIECE)
                self._received(data)
                await self._stream.settled()
        finally:
            self._arrived.set()

    async def news(self) -> None:
        """Wait until the channels or how the pointer moves are told, or nothing more will be."""
        await self._arrived.wait()

    def request(self, mode: MouseMode) -> None:
        """Ask for a way to move the pointer, if it is not moved so already and can be."""
        if self.mouse_mode != mode and self.mouse_modes & mode:
            self._machine.send(main.MouseModeRequest(mode))
            self._flush()
            self.requested = True

    def wish(self, width: int, height: int) -> None:
        """Ask the agent for a size. Raises LocalProtocolError if there is none."""
        self.agent.wish(width, height)
        self._flush()

    def _received(self, data: bytes | memoryview) -> None:
        self._session.hear()
        for message in self._machine.receive_data(data):
            self._take(message)
        self._flush()

    def _take(self, message: Message) -> None:
        if isinstance(message, FromServer):
            self.agent.receive(message)
            self._session.tell()
        if isinstance(message, main.MainInit):
            self._session_id = message.session_id
            self.mouse_modes = message.supported_mouse_modes
            self.mouse_mode = message.current_mouse_mode
            self._machine.send(main.AttachChannels())
        elif isinstance(message, main.MouseMode):
            self.mouse_modes, self.mouse_mode = message.supported_modes, message.current_mode
            self.requested = False
            self._tell()
        elif isinstance(message, main.ChannelsList):
            self.channels = frozenset(channel.type for channel in message.channels)
            self._tell()

    def _tell(self) -> None:
        self._arrived.set()
        self._arrived = trio.Event()
        self._session.tell()

    def _flush(self) -> None:
        for message in self.agent.messages_to_send():
            self._machine.send(message)
        for part in self._machine.data_to_send():
            self._stream.send(part.data)
