"""The server: listens, opens sessions, and shows one surface to everybody who connects."""

from __future__ import annotations

import contextlib
import itertools
import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from ..errors import Disconnected, ListenError, ProtocolError, SourceError
from ..memory import Budget
from ..nursery import open_nursery
from ..protocol import Channel, ServerDisplay, ServerInputs, ServerLink, generate_key
from ..transport import (
    Address,
    Listener,
    Stream,
    TcpAddress,
    default_address,
    parse_address,
)
from ..wire import Sender
from ..wire.types import MAX_SIDE, ChannelType, DisplayCap, caps_from_words
from .agent import Agent, Resize, Sizes
from .cursor import CursorChannel, Pointer
from .encoding import Encoders, check_wish
from .entrance import Entrance
from .inputs import InputsChannel, Play, Seat
from .sessions import MainChannel, Session, new_session_id
from .surface import Surface
from .viewer import Viewer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from ..events import CursorShape
    from ..memory import Segment
    from ..wire.link import LinkMess
    from .encoding import CompressionWish
    from .entrance import Shm

log = logging.getLogger("spiceshm.server")

SHM_LIMIT = 10**9
"""Bytes of shared memory in use at once, unless somebody says otherwise."""


class Display:
    """What `serve` gives: make a surface and draw on it; everybody connected sees it."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        shm: Shm,
        shm_limit: int,
        password: bytes | None,
        inputs: Play | None,
        resize: Resize | None,
        compression: CompressionWish,
        max_clients: int | None,
    ) -> None:
        self.addresses: list[Address] = []
        """Where it listens, with the ports that were chosen."""
        self.view_only_addresses: list[Address] = []
        """Where it listens to clients that may only look."""
        self.surface: Surface | None = None
        self._nursery = nursery
        self._budget = Budget(shm_limit)
        self._seat = Seat(inputs, self._size)
        self._sizes: Sizes | None = None
        if resize is not None:
            self._sizes = Sizes(resize, self._shown_size, self._why_not)
            nursery.start_soon(self._sizes.run)
        self._pointer = Pointer()
        self._serials = itertools.count(1)
        self._viewers: list[Viewer] = []
        self._sessions: dict[int, Session] = {}
        self._entrance = Entrance(
            generate_key(),
            self._sessions,
            shm=shm,
            password=password,
            inputs=inputs is not None,
            max_clients=max_clients,
        )
        self._compression = compression
        self._encoders = Encoders()

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

    def _size(self) -> tuple[int, int]:
        return self._shown_size() or (MAX_SIDE, MAX_SIDE)

    def _shown_size(self) -> tuple[int, int] | None:
        surface = self.surface
        return (surface.width, surface.height) if surface else None

    def _why_not(self, width: int, height: int) -> str | None:
        """Why there cannot be a surface of the size that a client would like, whoever makes it."""
        if self.surface is None:
            return "nothing is shown yet"
        if max(width, height) > MAX_SIDE:
            return f"it is not within 1x1 to {MAX_SIDE}x{MAX_SIDE}"
        return self._budget.why_not(Surface.first_bytes(width, height))

    # Locks and the pointer

    @property
    def locks(self) -> int:
        """The lock state that `set_locks` told last: bits as in `spiceshm.events`, 0 at first."""
        return self._seat.locks

    def set_locks(self, state: int) -> None:
        """Say which locks are on really; every client that may press keys is told of a change."""
        self._seat.set_locks(state)

    def take_positions(self, taken: bool) -> None:
        """Say whether the pointer can be put to a place (PointerTo), as it is taken at first, or
        only moved by so many pixels (PointerBy): every client is told to do only that then."""
        self._seat.take_positions(taken)

    def set_cursor(self, shape: CursorShape | None) -> None:
        """Say what the pointer looks like; None: it is hidden.

        Clients that come after the first call of this or of `cursor_wanted` are told that there is
        a pointer. Raises ValueError for a shape of no or more than 256x256 pixels, or whose hot
        spot is not within it.
        """
        self._pointer.show(shape)

    def move_cursor(self, x: int, y: int) -> None:
        """Say where the pointer's hot spot is, in pixels from the left and the top of the surface.

        May be called as often as one likes: clients are told the newest place as they can take it.
        """
        self._pointer.move(x, y)

    @property
    def cursor_watched(self) -> bool:
        """Whether some client looks at the pointer, so that following it is worth the work."""
        return self._pointer.wanted.is_set()

    async def cursor_wanted(self) -> None:
        """Wait until some client looks at the pointer, which is then told with `set_cursor`."""
        await self._pointer.wait_wanted()

    async def cursor_unwanted(self) -> None:
        """Wait until no client looks at the pointer any more."""
        await self._pointer.unwanted.wait()

    # Connections

    async def handle(self, stream: Stream, *, view_only: bool = False) -> None:
        """Serve one connection to its end. Whatever a peer does ends here, in one log line.

        ``view_only`` is whether it came to an address where clients may only look. An error's text
        is logged, not the error: a log that keeps errors would keep their memory too.
        """
        with stream:
            channel = "link"
            try:
                link = await self._entrance.link(stream, view_only=view_only)
                if link is None or link.mess is None:
                    return
                channel = ChannelType(link.mess.channel_type).name.lower()
                with self._entrance.serving():
                    await self._serve_channel(stream, link, link.mess, view_only)
            except (ProtocolError, SourceError) as error:
                log.warning("%s: %s channel closed: %s", stream.peer, channel, str(error))
            except Disconnected as error:
                log.info("%s: %s channel: %s", stream.peer, channel, str(error))
            except trio.TooSlowError as error:
                log.warning(
                    "%s: %s channel closed: %s", stream.peer, channel, str(error) or "too slow"
                )
            except MemoryError:
                log.warning("%s: %s channel closed: no memory is left", stream.peer, channel)

    async def _serve_channel(
        self, stream: Stream, link: ServerLink, mess: LinkMess, view_only: bool
    ) -> None:
        kind = ChannelType(mess.channel_type)
        if kind is ChannelType.MAIN:
            await self._serve_main(stream, link, view_only)
            return
        session = self._sessions.get(mess.connection_id)
        if session is None:
            raise Disconnected("its session ended")
        with session.channel(kind):
            if kind is ChannelType.DISPLAY:
                await self._serve_display(stream, link, mess, session)
            elif kind is ChannelType.INPUTS:
                inputs = ServerInputs(mini=link.mini)
                await InputsChannel(stream, inputs, self._seat, session.hands).run(link.rest)
            else:
                cursor = Channel("cursor", Sender.SERVER, mini=link.mini)
                await CursorChannel(stream, cursor, self._pointer).run(link.rest)

    async def _serve_main(self, stream: Stream, link: ServerLink, view_only: bool) -> None:
        session = Session(new_session_id(self._sessions), view_only=view_only)
        # Without a picture of the pointer other viewers would hide their own over the surface.
        channels = [
            kind
            for kind in self._entrance.channels(view_only=view_only)
            if kind is not ChannelType.CURSOR or self._pointer.known
        ]
        machine = Channel("main", Sender.SERVER, mini=link.mini)
        agent = None
        if self._sizes is not None and not view_only:
            agent = Agent(stream.peer, self._sizes)
        self._sessions[session.id] = session
        try:
            await MainChannel(stream, machine, session, channels, self._seat, agent).run(link.rest)
        finally:
            if agent is not None:
                agent.leave()
            # A session is its main channel: with it all its other channels end.
            del self._sessions[session.id]
            session.end()

    async def _serve_display(
        self, stream: Stream, link: ServerLink, mess: LinkMess, session: Session
    ) -> None:
        theirs = caps_from_words(mess.channel_caps)
        ours = self._entrance.display_caps(stream)
        machine = ServerDisplay(mini=link.mini, shareable=DisplayCap.SHARED_MEMORY in theirs & ours)
        viewer = Viewer(
            stream,
            machine,
            lambda: self.surface,
            session,
            encoders=self._encoders,
            compression=self._compression,
            knows_lz4=DisplayCap.LZ4_COMPRESSION in theirs,
            monitors=DisplayCap.MONITORS_CONFIG in theirs,
            no_sharing=None if machine.shareable else self._entrance.why_not_shared(stream),
        )
        self._viewers.append(viewer)
        try:
            await viewer.run(link.rest)
        finally:
            self._viewers.remove(viewer)

    def close(self) -> None:
        """Nothing is shown any more; `serve` does it at the end of its block."""
        if self.surface is not None:
            self.surface.close()
        self._encoders.close()


@contextlib.asynccontextmanager
async def serve(
    *addresses: str,
    view_only: Sequence[str] = (),
    inputs: Play | None = None,
    resize: Resize | None = None,
    shm: Shm = "auto",
    shm_limit: int = SHM_LIMIT,
    password: str | None = None,
    no_auth: bool = False,
    compression: CompressionWish = "auto",
    max_clients: int | None = None,
) -> AsyncIterator[Display]:
    """Serve a display at ``addresses``; without any at the user's default socket.

    An address is ``unix:/path``, ``unix:@name`` or ``tcp:host:port``. ``shm="off"`` speaks ordinary
    SPICE only. ``shm_limit`` is how many bytes of shared memory may be in use at once; a client
    that would pass it is served by ordinary SPICE. ``password`` (at most 60 bytes of UTF-8) is
    asked of every client; on TCP beyond loopback it is required unless ``no_auth``. Whoever guesses
    waits up to 0.8 s for each answer. Clients on Unix sockets must be of our own user.
    ``max_clients`` is how many may be connected at a time, None: as many as come, up to 256
    connections (a client has one for each of its channels).

    Clients that do not share memory are sent pictures. ``compression="auto"`` leaves them as they
    are on Unix sockets and for clients that want it so; others get LZ4 if they know it and the
    package ``lz4`` is installed, else SPICE's own LZ. "raw", "lz4" and "lz" are for all clients
    alike, except those that do not know LZ4, which get LZ, and those that want no compression.

    ``inputs`` is called with what clients do: a sequence of the events of `spiceshm.events`, which
    it is to play to whatever is shown; it returns when that has got them all, and is never called
    again before. A key or a button that several clients hold comes up when the last of them lets
    go, or vanishes. When it raises SourceError, that client's inputs channel is closed and it goes
    on looking; other errors end the server. Without ``inputs``, and for clients of the
    ``view_only`` addresses, which are listened on besides, there is nothing but to look.

    ``resize`` is called with the width and height in pixels, each 1 to 16384, that a viewer would
    like, mostly because its window got that size; never with the size that there is, and never
    again before it returned, then with what was wished last. It makes a surface of that size, or of
    another, or none. Who got its wish and says it again when another size is shown, as viewers do,
    is not heard. When it raises SourceError or MemoryRefused, that is refused and all stays as
    it is; other errors end the server. Without ``resize``, and for clients of the ``view_only``
    addresses, viewers do not ask.

    Raises AddressError for what is no address, ListenError for one that cannot be listened on,
    ValueError for a password that is too long or beside ``no_auth``, for ``max_clients`` below 1 or
    a ``compression`` that there is not, SpiceShmError for ``compression="lz4"`` without its
    package. At the end of the block every connection is closed.
    """
    places = [parse_address(text) for text in addresses] or [default_address()]
    others = [parse_address(text) for text in view_only]
    secret = _password(password)
    if secret and no_auth:
        raise ValueError("a password is asked of every client (password) or of none (no_auth)")
    if max_clients is not None and max_clients < 1:
        raise ValueError(f"max_clients is {max_clients}, which leaves room for nobody")
    check_wish(compression)
    for place in [*places, *others]:
        if isinstance(place, TcpAddress) and not (place.loopback or secret or no_auth):
            raise ListenError(
                f"{place}: anybody could connect; "
                "set a password (--password-file, SPICESHM_PASSWORD) or allow it (--no-auth)"
            )
    async with open_nursery() as nursery:
        display = Display(
            nursery,
            shm=shm,
            shm_limit=shm_limit,
            password=secret,
            inputs=inputs,
            resize=resize,
            compression=compression,
            max_clients=max_clients,
        )
        with contextlib.ExitStack() as stack:
            stack.callback(display.close)
            listeners = [_listen(place, stack) for place in places]
            lookers = [_listen(place, stack) for place in others]
            display.addresses = [listener.address for listener in listeners]
            display.view_only_addresses = [listener.address for listener in lookers]
            only_look = partial(display.handle, view_only=True)
            try:
                for listener in listeners:
                    nursery.start_soon(listener.serve, display.handle, nursery)
                for listener in lookers:
                    nursery.start_soon(listener.serve, only_look, nursery)
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
