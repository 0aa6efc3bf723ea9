"""Between a client and a server: whatever one says is kept and passed on to the other.

Bytes alone are passed on. A descriptor that a peer sends along ends here, closed by the kernel.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

from spiceshm.errors import ConnectError, Disconnected, RemoteProtocolError
from spiceshm.nursery import open_nursery
from spiceshm.transport import open_stream
from spiceshm.wire import Sender
from spiceshm.wire.link import AUTH_SPICE

from .file import Event
from .session import Link

if TYPE_CHECKING:
    from collections.abc import Callable

    from spiceshm.transport import Address, Stream


class Proxy:
    """``keep`` is given every event, ``complain`` a line for what went wrong on a connection."""

    def __init__(
        self, to: Address, keep: Callable[[Event], None], complain: Callable[[str], None]
    ) -> None:
        self._to = to
        self._keep = keep
        self._complain = complain
        self._connections = 0
        self._began = time.monotonic_ns()

    async def handle(self, client: Stream) -> None:
        """Serve a client until both ends have closed."""
        with client:
            try:
                with await open_stream(self._to) as server:
                    await self._between(client, server)
            except (ConnectError, RemoteProtocolError) as error:
                self._complain(str(error))

    async def _between(self, client: Stream, server: Stream) -> None:
        keep = partial(self._note, self._connections, Secrets())
        self._connections += 1
        async with open_nursery() as both:
            both.start_soon(_pass_on, partial(keep, Sender.CLIENT), client, server)
            both.start_soon(_pass_on, partial(keep, Sender.SERVER), server, client)

    def _note(self, connection: int, secrets: Secrets, sender: Sender, data: bytes) -> None:
        kept = secrets.without(sender, data)
        self._keep(Event(connection, sender, time.monotonic_ns() - self._began, kept))


async def _pass_on(keep: Callable[[bytes], None], source: Stream, sink: Stream) -> None:
    while True:
        try:
            data, _ = await source.receive()
        except Disconnected:
            keep(b"")
            shut(sink)
            return
        keep(bytes(data))
        try:
            sink.send(data)
            await sink.drain()
        except Disconnected:  # its own end tells of that
            return


def shut(stream: Stream) -> None:
    """Say that no more comes, and go on reading."""
    with (
        contextlib.suppress(OSError),
        socket.socket(fileno=os.dup(stream.fileno())) as same,
    ):
        same.shutdown(socket.SHUT_WR)


class Secrets:
    """Takes the ticket out of a connection."""

    def __init__(self) -> None:
        self._link = Link()
        self._client_said = 0
        self._over = False

    def without(self, sender: Sender, data: bytes) -> bytes:
        """The same bytes, zeros where the ticket is.

        Raises RemoteProtocolError for what is not SPICE, and for SASL, whose words may hold a
        password anywhere.
        """
        if self._over:
            return data
        self._link.hear(sender, data)
        if sender is Sender.SERVER:
            return data
        start = self._client_said
        self._client_said += len(data)
        if self._link.mechanism not in (None, AUTH_SPICE):
            raise RemoteProtocolError("auth_mechanism", "", "is SASL, which is not recorded")
        ticket = self._link.ticket
        if ticket is None:
            return data
        self._over = self._client_said >= ticket.stop
        kept = bytearray(data)
        for at in range(max(ticket.start, start), min(ticket.stop, self._client_said)):
            kept[at - start] = 0
        return bytes(kept)
