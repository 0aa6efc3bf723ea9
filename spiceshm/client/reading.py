"""Who reads the display channel: the program that waits for it, or a task in the background.

Whoever waits for a frame reads himself, for what another task hands over comes a turn of the
scheduler later. The background reads while nobody does, and always in ordinary SPICE and during
hand-shakes, for there is work to do whenever something comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import trio

from ..errors import (
    CannotDecode,
    Disconnected,
    ProtocolError,
    RemoteProtocolError,
    SpiceShmError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..fds import Descriptor
    from ..protocol import ClientDisplay
    from ..transport import Address, Stream

End: TypeAlias = ProtocolError | Disconnected | CannotDecode
"""What ends a connection: a peer's breach, its going, or what the program did not want to miss."""

ENDS = (ProtocolError, Disconnected, CannotDecode)
HANDSHAKE_S = 10.0
PIECE = 1 << 15
"""Bytes of small messages that are taken apart before others have their turn."""

AWAY_S = 0.1
"""After so long without somebody who waits for frames the channel is read in the background."""
IDLE_S = 0.01
"""And not more often than this, so that a program which does not look costs next to nothing."""


class Reading:
    """``take`` is called with what came, and raises what ends the connection.

    It returns whether it has more to do: then others have a turn, it is called again with nothing,
    and nothing is read meanwhile.
    """

    def __init__(
        self,
        address: Address,
        stream: Stream,
        machine: ClientDisplay,
        take: Callable[[bytes | memoryview, Sequence[Descriptor]], bool],
    ) -> None:
        self.failure: SpiceShmError | None = None
        self.waiting = 0
        self.program_reads = False
        self.program_left = float("-inf")
        self._address = address
        self._stream = stream
        self._machine = machine
        self._take_from = take
        self._more_to_do = False
        self._receiving = trio.CancelScope()
        self._background_reads = True
        self._needed = trio.Event()
        self._unwatched = False
        self._arrived = trio.Event()

    @property
    def _may_read(self) -> bool:
        """Whether the task that asks can wait for the channel itself."""
        taken = self._background_reads or self.program_reads or self.failure is not None
        return not taken and self._may_be_left_to_program

    @property
    def _may_be_left_to_program(self) -> bool:
        machine = self._machine
        busy = self._more_to_do or self._stream.pending or machine.awaits_descriptor
        return machine.shared and not busy

    def _take(self, data: bytes | memoryview, descriptors: Sequence[Descriptor]) -> None:
        self._more_to_do = self._take_from(data, descriptors)
        if self._more_to_do:
            self._receiving.cancel()

    def _receive_now(self) -> tuple[memoryview, list[Descriptor]] | None:
        """What lies in the socket, but nothing before all of the last read is done, in whose place
        it would come."""
        return None if self._more_to_do else self._stream.receive_now()

    def arrived(self) -> None:
        """Wake whoever waits: something came."""
        self._arrived.set()

    def fail(self, error: End) -> SpiceShmError:
        """The connection is over: whoever waits is told why. Returns the first such error."""
        if self.failure is None:
            error.args = (f"{self._address}: {error}",)
            self.failure = error
        self._stream.close()
        self._arrived.set()
        self._needed.set()
        return self.failure

    # The program

    async def wait(self) -> None:
        """Until something arrived. Raises what ended the connection."""
        if self.failure is not None:
            raise self.failure
        if self._may_read:
            await self._read_for_program()
            return
        if not self._may_be_left_to_program:
            self._needed.set()
        if self._arrived.is_set():
            self._arrived = trio.Event()
        self.waiting += 1
        try:
            await self._arrived.wait()
        finally:
            self.waiting -= 1

    async def _read_for_program(self) -> None:
        self.program_reads = True
        try:
            self._take(*await self._stream.receive())
        except ENDS as error:
            raise self.fail(error) from None
        finally:
            self.program_reads = False
            self.program_left = trio.current_time()
            if self._unwatched or not self._may_be_left_to_program:
                self._needed.set()
            if self.waiting:  # others take over
                self._arrived.set()

    def read_now(self) -> None:
        """Take what lies in the socket, if no other task of the program waits for just that.

        The background may do so as well: it finds nothing then, and goes on waiting. Raises what
        ended the connection.
        """
        if self.program_reads or self.failure is not None:
            return
        if self._stream.pending:
            return
        try:
            received = self._receive_now()
            if received is not None:
                self._take(*received)
        except ENDS as error:
            raise self.fail(error) from None
        if not self._may_be_left_to_program:
            self._needed.set()

    async def have_read(self) -> None:
        """`read_now`, or let the task that waits for just that do it: after the first turn it is
        woken for sure, after the second it has run."""
        if self.program_reads:
            await trio.lowlevel.cancel_shielded_checkpoint()
            await trio.lowlevel.cancel_shielded_checkpoint()
        self.read_now()

    # The background

    async def run(self, first: bytes) -> None:
        """Read the channel while the program does not; ``first`` came behind the link phase."""
        stream = self._stream
        self._take(first, ())
        while self.failure is None:
            if self._more_to_do:
                await trio.lowlevel.checkpoint()
                self._take(b"", ())
            elif self._attended:
                await self._while_attended()
            elif stream.pending:  # a server that does not read our answers is not read either
                await stream.settled()
            elif self._machine.awaits_descriptor:
                self._take(*await self._in_time())
            else:
                with trio.CancelScope() as self._receiving:
                    await stream.readable()
                received = self._receive_now()
                if received is None:  # the program has read meanwhile
                    continue
                self._take(*received)
                if not self.waiting and self._may_be_left_to_program:
                    await self._rest()

    async def _in_time(self) -> tuple[memoryview, list[Descriptor]]:
        """The bytes behind an offer."""
        with trio.move_on_after(HANDSHAKE_S):
            return await self._stream.receive()
        raise RemoteProtocolError(
            "display.shm_offer", "descriptor", f"did not come within {HANDSHAKE_S:g} s"
        )

    @property
    def _attended(self) -> bool:
        """Whether the program reads the channel, or did a moment ago and so may do again."""
        if self.failure is not None or not self._may_be_left_to_program:
            return False
        return self.program_reads or trio.current_time() - self.program_left < AWAY_S

    async def _while_attended(self) -> None:
        self._background_reads = False
        if self.waiting:  # who waited for what was read here reads again himself
            self._arrived.set()
        try:
            while self._attended:
                self._needed = trio.Event()
                left = self.program_left
                with trio.move_on_after(AWAY_S):
                    await self._needed.wait()
                if self.program_reads and self.program_left == left:
                    # It waits and nothing comes: then there is nothing to look after.
                    self._unwatched = True
                    await self._needed.wait()
                    self._unwatched = False
        finally:
            self._background_reads = True
            self._unwatched = False

    async def _rest(self) -> None:
        """Nobody looks: leave the channel alone for a moment. Whoever comes meanwhile reads it."""
        self._background_reads = False
        try:
            self._needed = trio.Event()
            with trio.move_on_after(IDLE_S):
                await self._needed.wait()
        finally:
            self._background_reads = True
