"""The server: listens, opens sessions, and shows one surface to everybody who connects."""

from __future__ import annotations

import contextlib
import hmac
import itertools
import logging
import os
import secrets
from typing import TYPE_CHECKING, Literal

import trio

from ..errors import Disconnected, ListenError, ProtocolError, RemoteProtocolError
from ..memory import Budget
from ..nursery import open_nursery
from ..protocol import Channel, Password, ServerDisplay, ServerLink, generate_key
from ..transport import (
    Address,
    Listener,
    Stream,
    TcpAddress,
    default_address,
    parse_address,
)
from ..wire import Sender, main
from ..wire.link import LinkMess
from ..wire.types import MAX_SIDE, ChannelType, DisplayCap, LinkError, MouseMode, caps_from_words
from .surface import Surface
from .viewer import HANDSHAKE_S, READ_SIZE, Viewer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from ..memory import Segment

log = logging.getLogger("spiceshm.server")

SHM_LIMIT = 10**9
"""Bytes of shared memory in use at once, unless somebody says otherwise."""

MAX_CONNECTIONS = 256
"""Connections at a time, all channels and half-open ones together."""

_MOUSE_MODES = MouseMode.SERVER | MouseMode.CLIENT
_Shm = Literal["auto", "off"]


class Display:
    """What `serve` gives: make a surface and draw on it; everybody connected sees it."""

    def __init__(
        self, nursery: trio.Nursery, *, shm: _Shm, shm_limit: int, password: bytes | None
    ) -> None:
        self.addresses: list[Address] = []
        """Where it listens, with the ports that were chosen."""
        self.surface: Surface | None = None
        self._nursery = nursery
        self._budget = Budget(shm_limit)
        self._shm = shm
        self._password = password
        self._key = generate_key()
        self._serials = itertools.count(1)
        self._viewers: list[Viewer] = []
        self._sessions: dict[int, set[trio.CancelScope]] = {}
        self._connections = 0

    @property
    def viewers(self) -> Sequence[Viewer]:
        """The display channels that are open now."""
        return tuple(self._viewers)

    @property
    def shm_bytes(self) -> int:
        """Bytes of shared memory in use now."""
        return self._budget.used

    def create_surface(
        self, width: int, height: int, *, attach: Callable[[Segment], None] | None = None
    ) -> Surface:
        """Make the surface that is shown from now on; one that was shown before is replaced.

        ``width`` and ``height`` are in pixels, 1 to 16384. ``attach`` is called with new memory
        before it is sealed, for a producer in another process that has to map it too. Raises
        ValueError for a size that is not possible, MemoryRefused if there is no memory for it.
        """
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            raise ValueError(f"a surface of {width}x{height} is not within 1x1 to 16384x16384")
        surface = Surface(
            width, height, self._serials, self._viewers, self._nursery, self._budget, attach
        )
        old, self.surface = self.surface, surface
        for viewer in list(self._viewers):
            viewer.published()
        if old is not None:
            old.close()
        return surface

    # Connections

    async def handle(self, stream: Stream) -> None:
        """Serve one connection to its end. Whatever a peer does ends here, in one log line.

        Its text is logged, not the error: a log that keeps errors would keep their memory too.
        """
        with stream:
            if self._connections >= MAX_CONNECTIONS:
                log.warning("%s: refused, %d connections are open", stream.peer, MAX_CONNECTIONS)
                return
            self._connections += 1
            channel = "link"
            try:
                with trio.fail_after(HANDSHAKE_S):
                    link = await self._link(stream)
                if link is None or link.mess is None:
                    return
                channel = ChannelType(link.mess.channel_type).name.lower()
                await self._serve_channel(stream, link, link.mess)
            except ProtocolError as error:
                log.warning("%s: %s channel closed: %s", stream.peer, channel, str(error))
            except Disconnected as error:
                log.info("%s: %s channel: %s", stream.peer, channel, str(error))
            except trio.TooSlowError as error:
                log.warning(
                    "%s: %s channel closed: %s", stream.peer, channel, str(error) or "too slow"
                )
            except MemoryError:
                log.warning("%s: %s channel closed: no memory is left", stream.peer, channel)
            finally:
                self._connections -= 1

    async def _link(self, stream: Stream) -> ServerLink | None:
        """The link phase; None if the client was refused."""
        link = ServerLink(self._key)
        try:
            while not link.done:
                data, _ = await stream.receive(link.bytes_wanted)
                event = link.receive_data(bytes(data))
                if isinstance(event, LinkMess):
                    self._decide(stream, link, event)
                elif isinstance(event, Password):
                    self._admit(stream, link, event)
                stream.send(link.data_to_send())
                await stream.drain()
        except RemoteProtocolError:
            stream.send(link.data_to_send())
            raise
        return None if link.refused else link

    def _decide(self, stream: Stream, link: ServerLink, mess: LinkMess) -> None:
        who = stream.credentials()
        if who is not None and who.uid != os.getuid():
            log.warning("%s: refused, uid %d is not ours", stream.peer, who.uid)
            link.refuse(LinkError.PERMISSION_DENIED)
        elif mess.channel_type not in (ChannelType.MAIN, ChannelType.DISPLAY) or mess.channel_id:
            log.info(
                "%s: no channel of type %d, id %d", stream.peer, mess.channel_type, mess.channel_id
            )
            link.refuse(LinkError.CHANNEL_NOT_AVAILABLE)
        elif mess.channel_type == ChannelType.MAIN:
            link.accept(frozenset())
        else:
            link.accept(self._display_caps(stream))

    def _display_caps(self, stream: Stream) -> frozenset[int]:
        caps = {int(DisplayCap.MONITORS_CONFIG)}
        if self._shm == "auto" and stream.is_unix:
            caps.add(DisplayCap.SHARED_MEMORY)
        return frozenset(caps)

    def _admit(self, stream: Stream, link: ServerLink, ticket: Password) -> None:
        mess = link.mess
        assert mess is not None
        wrong = self._password is not None and not hmac.compare_digest(
            ticket.text or b"", self._password
        )
        if ticket.text is None or wrong:
            log.warning("%s: wrong password", stream.peer)
            link.finish(LinkError.PERMISSION_DENIED)
        elif mess.channel_type == ChannelType.MAIN and mess.connection_id:
            log.warning("%s: asks for a migrated session, there are none", stream.peer)
            link.finish(LinkError.BAD_CONNECTION_ID)
        elif mess.channel_type != ChannelType.MAIN and mess.connection_id not in self._sessions:
            log.warning("%s: connection id %#x is no session", stream.peer, mess.connection_id)
            link.finish(LinkError.BAD_CONNECTION_ID)
        else:
            link.finish(LinkError.OK)

    async def _serve_channel(self, stream: Stream, link: ServerLink, mess: LinkMess) -> None:
        if mess.channel_type == ChannelType.MAIN:
            await self._serve_main(stream, link)
            return
        channels = self._sessions.get(mess.connection_id)
        if channels is None:
            raise Disconnected("its session ended")
        with trio.CancelScope() as scope:
            channels.add(scope)
            try:
                await self._serve_display(stream, link, mess)
            finally:
                channels.discard(scope)

    async def _serve_main(self, stream: Stream, link: ServerLink) -> None:
        session_id = self._new_session_id()
        channels = self._sessions[session_id] = set()
        try:
            await self._talk_main(stream, link, session_id)
        finally:
            # A session is its main channel: with it all its other channels end.
            del self._sessions[session_id]
            for scope in channels:
                scope.cancel()

    def _new_session_id(self) -> int:
        """Unguessable, because it is all that binds a channel to its session."""
        while True:
            session_id = secrets.randbits(32)
            if session_id and session_id not in self._sessions:
                return session_id

    async def _talk_main(self, stream: Stream, link: ServerLink, session_id: int) -> None:
        machine = Channel("main", Sender.SERVER, mini=link.mini)
        machine.send(
            main.MainInit(session_id, 1, _MOUSE_MODES, MouseMode.CLIENT, 0, 0, _ms_now(), 0)
        )
        machine.send(main.ChannelsList((main.ChannelId(ChannelType.DISPLAY, 0),)))
        data: bytes | memoryview = link.rest
        while True:
            for message in machine.receive_data(data):
                if isinstance(message, main.MouseModeRequest):
                    machine.send(main.MouseMode(_MOUSE_MODES, message.mode & _MOUSE_MODES))
            for part in machine.data_to_send():
                stream.send(part.data)
            await stream.drain()
            data, _ = await stream.receive(READ_SIZE)

    async def _serve_display(self, stream: Stream, link: ServerLink, mess: LinkMess) -> None:
        theirs = caps_from_words(mess.channel_caps)
        machine = ServerDisplay(
            mini=link.mini,
            shareable=DisplayCap.SHARED_MEMORY in theirs & self._display_caps(stream),
        )
        viewer = Viewer(
            stream,
            machine,
            lambda: self.surface,
            monitors=DisplayCap.MONITORS_CONFIG in theirs,
            no_sharing=None if machine.shareable else self._why_not(stream),
        )
        self._viewers.append(viewer)
        try:
            await viewer.run(link.rest)
        finally:
            self._viewers.remove(viewer)

    def _why_not(self, stream: Stream) -> str:
        if self._shm == "off":
            return "shared memory is off (--shm off)"
        if not stream.is_unix:
            return "no descriptor can be passed over TCP"
        return "the client does not know shared memory"

    def close(self) -> None:
        """Nothing is shown any more; `serve` does it at the end of its block."""
        if self.surface is not None:
            self.surface.close()


def _ms_now() -> int:
    return int(trio.current_time() * 1000) & 0xFFFFFFFF


@contextlib.asynccontextmanager
async def serve(
    *addresses: str,
    shm: _Shm = "auto",
    shm_limit: int = SHM_LIMIT,
    password: str | None = None,
    no_auth: bool = False,
) -> AsyncIterator[Display]:
    """Serve a display at ``addresses``; without any at the user's default socket.

    An address is ``unix:/path``, ``unix:@name`` or ``tcp:host:port``. ``shm="off"`` speaks ordinary
    SPICE only. ``shm_limit`` is how many bytes of shared memory may be in use at once; a client
    that would pass it is served by ordinary SPICE. ``password`` (at most 60 bytes of UTF-8) is
    asked of every client; on TCP beyond loopback it is required unless ``no_auth``. Clients on Unix
    sockets must be of our own user.

    Raises AddressError for what is no address, ListenError for one that cannot be listened on,
    ValueError for a password that is too long. At the end of the block every connection is closed.
    """
    places = [parse_address(text) for text in addresses] or [default_address()]
    secret = _password(password)
    for place in places:
        if isinstance(place, TcpAddress) and not (place.loopback or secret or no_auth):
            raise ListenError(
                f"{place}: anybody could connect; "
                "set a password (--password-file) or allow it (--no-auth)"
            )
    async with open_nursery() as nursery:
        display = Display(nursery, shm=shm, shm_limit=shm_limit, password=secret)
        with contextlib.ExitStack() as stack:
            stack.callback(display.close)
            listeners = [_listen(place, stack) for place in places]
            display.addresses = [listener.address for listener in listeners]
            try:
                for listener in listeners:
                    nursery.start_soon(listener.serve, display.handle, nursery)
                yield display
            finally:
                nursery.cancel_scope.cancel()  # before the sockets close under its tasks


def _listen(place: Address, stack: contextlib.ExitStack) -> Listener:
    listener = Listener(place)
    stack.callback(listener.close)
    return listener


def _password(text: str | None) -> bytes | None:
    if text is None:
        return None
    secret = text.encode()
    if not secret or len(secret) > 60 or b"\0" in secret:
        raise ValueError("a password has 1 to 60 bytes and no NUL")
    return secret
