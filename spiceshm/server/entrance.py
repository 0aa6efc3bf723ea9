"""The link phase: who is let in, and to which channel."""

from __future__ import annotations

import hmac
import logging
import os
from typing import TYPE_CHECKING, Literal

from ..errors import RemoteProtocolError
from ..protocol import Password, ServerLink
from ..wire.link import LinkMess
from ..wire.types import ChannelType, DisplayCap, InputsCap, LinkError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from ..transport import Stream
    from .sessions import Session

log = logging.getLogger("spiceshm.server")

Shm = Literal["auto", "off"]


class Entrance:
    """What every connection passes first. ``inputs`` is whether anybody may press keys at all."""

    def __init__(
        self,
        key: RSAPrivateKey,
        sessions: Mapping[int, Session],
        *,
        shm: Shm,
        password: bytes | None,
        inputs: bool,
    ) -> None:
        self._key = key
        self._sessions = sessions
        self._shm = shm
        self._password = password
        self._inputs = inputs

    def channels(self, *, view_only: bool) -> tuple[ChannelType, ...]:
        """The channels that a session may have beside main."""
        if view_only or not self._inputs:
            return ChannelType.DISPLAY, ChannelType.CURSOR
        return ChannelType.DISPLAY, ChannelType.INPUTS, ChannelType.CURSOR

    async def link(self, stream: Stream, *, view_only: bool) -> ServerLink | None:
        """Go through the link phase; None if the client was refused.

        ``view_only`` is whether it came where clients may only look. Raises RemoteProtocolError for
        a breach, Disconnected.
        """
        link = ServerLink(self._key)
        try:
            while not link.done:
                data, _ = await stream.receive(link.bytes_wanted)
                event = link.receive_data(bytes(data))
                if isinstance(event, LinkMess):
                    self._decide(stream, link, event, self.channels(view_only=view_only))
                elif isinstance(event, Password):
                    self._admit(stream, link, event)
                stream.send(link.data_to_send())
                await stream.drain()
        except RemoteProtocolError:
            stream.send(link.data_to_send())
            raise
        return None if link.refused else link

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

    def _admit(self, stream: Stream, link: ServerLink, ticket: Password) -> None:
        mess = link.mess
        assert mess is not None
        session = self._sessions.get(mess.connection_id)
        wrong = self._password is not None and not hmac.compare_digest(
            ticket.text or b"", self._password
        )
        if ticket.text is None or wrong:
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
        else:
            link.finish(LinkError.OK)
