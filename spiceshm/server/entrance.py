"""The link phase: who is let in, and to which channel."""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
from typing import TYPE_CHECKING, Literal

import trio

from ..errors import RemoteProtocolError
from ..protocol import Password, ServerLink
from ..wire.link import LinkMess
from ..wire.types import ChannelType, DisplayCap, InputsCap, LinkError
from .doorstep import Doorstep
from .tickets import WrongTickets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from ..transport import Stream
    from .sessions import Session

log = logging.getLogger("spiceshm.server")

Shm = Literal["auto", "off"]

MAX_CONNECTIONS = 256
"""Connections that are served at a time, all channels together."""


class Entrance:
    """What every connection passes first. ``inputs`` is whether anybody may press keys at all.

    ``max_clients`` is how many ``sessions`` there may be at a time, None: as many as come.
    """

    def __init__(
        self,
        key: RSAPrivateKey,
        sessions: Mapping[int, Session],
        *,
        shm: Shm,
        password: bytes | None,
        inputs: bool,
        max_clients: int | None,
    ) -> None:
        self._key = key
        self._sessions = sessions
        self._shm = shm
        self._password = password
        self._inputs = inputs
        self._max_clients = max_clients
        self._doorstep = Doorstep()
        self._wrong_tickets = WrongTickets()
        self._served = 0

    @property
    def connections(self) -> int:
        """Connections that are open, half-open ones among them."""
        return len(self._doorstep) + self._served

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """In the block a connection is served that was let in."""
        self._served += 1
        try:
            yield
        finally:
            self._served -= 1

    def channels(self, *, view_only: bool) -> tuple[ChannelType, ...]:
        """The channels that a session may have beside main."""
        if view_only or not self._inputs:
            return ChannelType.DISPLAY, ChannelType.CURSOR
        return ChannelType.DISPLAY, ChannelType.INPUTS, ChannelType.CURSOR

    async def link(self, stream: Stream, *, view_only: bool) -> ServerLink | None:
        """Go through the link phase; None if the client was refused, or had to make room.

        ``view_only`` is whether it came where clients may only look. Raises RemoteProtocolError for
        a breach, Disconnected, TooSlowError.
        """
        link = ServerLink(self._key)
        with self._doorstep.wait(stream.peer):
            await self._talk(stream, link, self.channels(view_only=view_only))
        return link if link.done and not link.refused else None

    async def _talk(
        self, stream: Stream, link: ServerLink, channels: tuple[ChannelType, ...]
    ) -> None:
        try:
            while not link.done:
                data, _ = await stream.receive(link.bytes_wanted)
                event = link.receive_data(bytes(data))
                if isinstance(event, LinkMess):
                    self._decide(stream, link, event, channels)
                elif isinstance(event, Password):
                    await self._admit(stream, link, event)
                stream.send(link.data_to_send())
                await stream.drain()
        except RemoteProtocolError:
            stream.send(link.data_to_send())
            raise

    def _decide(
        self, stream: Stream, link: ServerLink, mess: LinkMess, channels: tuple[ChannelType, ...]
    ) -> None:
        who = stream.credentials()
        if who is not None and who.uid != os.getuid():
            log.warning("%s: refused, uid %d is not ours", stream.peer, who.uid)
            link.refuse(LinkError.PERMISSION_DENIED)
        elif mess.channel_type not in (ChannelType.MAIN, *channels) or mess.channel_id:
            log.info(
                "%s: no channel of type %d, id %d", stream.peer, mess.channel_type, mess.channel_id
            )
            link.refuse(LinkError.CHANNEL_NOT_AVAILABLE)
        elif (why := self._full(mess.channel_type)) is not None:
            # Here, where viewers take it for a failure: an error after the ticket, whatever it is,
            # makes them ask for another password.
            log.warning("%s: refused, %s", stream.peer, why)
            link.refuse(LinkError.ERROR)
        else:
            link.accept(self._caps(stream, ChannelType(mess.channel_type)))

    def _caps(self, stream: Stream, channel: ChannelType) -> frozenset[int]:
        if channel is ChannelType.DISPLAY:
            return self.display_caps(stream)
        return frozenset({InputsCap.KEY_SCANCODE} if channel is ChannelType.INPUTS else ())

    def display_caps(self, stream: Stream) -> frozenset[int]:
        """What the display channel of this connection can do."""
        caps = {int(DisplayCap.MONITORS_CONFIG), int(DisplayCap.PREF_COMPRESSION)}
        if self._shm == "auto" and stream.is_unix:
            caps.add(DisplayCap.SHARED_MEMORY)
        return frozenset(caps)

    def why_not_shared(self, stream: Stream) -> str:
        """Why a display channel cannot share memory, where it cannot."""
        if self._shm == "off":
            return "shared memory is off (--shm off)"
        if not stream.is_unix:
            return "no descriptor can be passed over TCP"
        return "the client does not know shared memory"

    def _full(self, channel_type: int) -> str | None:
        """Why there is no room for a channel of this type, if there is none."""
        if self._served >= MAX_CONNECTIONS:
            return f"{self._served} connections are open"
        most = self._max_clients
        if channel_type == ChannelType.MAIN and most is not None and len(self._sessions) >= most:
            return f"no more clients than {most} may be connected"
        return None

    async def _admit(self, stream: Stream, link: ServerLink, ticket: Password) -> None:
        mess = link.mess
        assert mess is not None
        right = await self._is_right(stream, ticket)
        session = self._sessions.get(mess.connection_id)
        if not right:
            if ticket.text == b"":
                log.info("%s: no password; its viewer may ask for it now", stream.peer)
            else:
                log.warning("%s: wrong password", stream.peer)
            link.finish(LinkError.PERMISSION_DENIED)
        elif mess.channel_type == ChannelType.MAIN and mess.connection_id:
            log.warning("%s: asks for a migrated session, there are none", stream.peer)
            link.finish(LinkError.BAD_CONNECTION_ID)
        elif mess.channel_type != ChannelType.MAIN and session is None:
            log.warning("%s: connection id %#x is no session", stream.peer, mess.connection_id)
            link.finish(LinkError.BAD_CONNECTION_ID)
        elif mess.channel_type == ChannelType.INPUTS and session and session.view_only:
            log.info("%s: its session is view-only, it gets no inputs channel", stream.peer)
            link.finish(LinkError.CHANNEL_NOT_AVAILABLE)
        elif (why := self._full(mess.channel_type)) is not None:  # since it was told to go on
            log.warning("%s: refused, %s", stream.peer, why)
            link.finish(LinkError.ERROR)
        else:
            link.finish(LinkError.OK)

    async def _is_right(self, stream: Stream, ticket: Password) -> bool:
        """Whether a ticket lets its client in, known after the time that guessing costs."""
        if self._password is None:
            return ticket.text is not None
        if ticket.text == b"":  # no guess: viewers try that before they ask
            return False
        right = hmac.compare_digest(ticket.text or b"", self._password)
        wait = self._wrong_tickets.judge(stream.host(), right=right, now=trio.current_time())
        if wait:
            await trio.sleep(wait)
        return right
