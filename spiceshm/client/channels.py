"""A channel that a session opens when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ..errors import ConnectError, Disconnected
from ..protocol import Channel, State
from .reading import HANDSHAKE_S, PIECE

if TYPE_CHECKING:
    from ..transport import Stream
    from ..wire import Message
    from ..wire.types import ChannelType
    from .session import Session


class LaterChannel:
    """Opened by who uses it first; others that want it meanwhile wait for the same opening.

    An opening that fails or is cancelled leaves nothing behind, and can be tried again.
    """

    def __init__(self, session: Session, kind: ChannelType) -> None:
        self._session = session
        self._kind = kind
        self._stream: Stream | None = None
        self._machine = self._new_machine(mini=True)
        self._opening = trio.Lock()
        self._arrived = trio.Event()

    def _new_machine(self, *, mini: bool) -> Channel:
        """The conversation of this channel."""
        raise NotImplementedError

    def _take(self, message: Message) -> None:
        """Whatever comes, in order."""

    async def open(self) -> None:
        """Return when the channel's INIT has come.

        Raises what ended the connection, Disconnected if the server or its session is no more,
        LinkRefused, and ConnectError if nothing comes within 10 s.
        """
        if self._stream is None:
            async with self._opening:
                if self._stream is None:
                    await self._begin_in_time()
        self._session.check()

    async def _begin_in_time(self) -> None:
        self._session.check()
        with trio.move_on_after(HANDSHAKE_S):
            await self._begin()
            return
        raise ConnectError(
            f"{self._session.address}: the {self._kind.name.lower()} channel did not begin within "
            f"{HANDSHAKE_S:g} s"
        )

    async def _begin(self) -> None:
        stream, link = await self._session.open_further(self._kind)
        try:
            self._machine = self._new_machine(mini=link.mini)
            with self._session.named():
                self._received(stream, link.rest)
                while self._machine.state is State.START:
                    data, _ = await stream.receive(PIECE)
                    self._received(stream, data)
                    await stream.drain()
        except BaseException:
            stream.close()
            raise
        self._stream = stream
        self._session.keep(stream)
        self._session.run(self._read)
        self._session.run(stream.flush_when_writable)

    async def _read(self) -> None:
        stream = self._stream
        assert stream is not None
        try:
            while True:
                data, _ = await stream.receive(PIECE)
                self._received(stream, data)
                await stream.settled()
        finally:
            self._wake()

    def _received(self, stream: Stream, data: bytes | memoryview) -> None:
        self._session.hear()
        for message in self._machine.receive_data(data):
            self._take(message)
        for part in self._machine.data_to_send():
            stream.send(part.data)
        self._wake()
        self._session.tell()

    def _wake(self) -> None:
        self._arrived.set()
        self._arrived = trio.Event()

    async def _news(self) -> None:
        """Wait until something came. Raises what ended the connection."""
        await self._arrived.wait()
        self._session.check()

    def _flush(self) -> None:
        """Send what the machine has queued, now or as soon as the server reads; never waits.

        Raises what ended the connection.
        """
        self._session.check()
        assert self._stream is not None
        try:
            for part in self._machine.data_to_send():
                self._stream.send(part.data)
        except Disconnected as error:
            raise self._session.fail(error) from None
