"""Another SPICE server as a source: a virtual machine, say, whose pixels become shared memory.

Here client and server meet. What the other server shows is passed on as it comes: each frame is
copied once, and only where it changed, into the memory that our readers see; a frame that comes
while the one before is published only adds its damage. What our clients do is passed back.

Our readers keep their connection, and the last picture with its pointer, when the other server
goes; it is looked for again and again until it is there, whatever its display is like then.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from .client.remote import Frames
from .client.session import opened
from .client.wishes import Wishes
from .errors import (
    ConnectError,
    Disconnected,
    LinkRefused,
    MemoryRefused,
    ProtocolError,
    RemoteProtocolError,
    SourceError,
    SpiceShmError,
    Timeout,
    ViewOnly,
)
from .nursery import open_nursery
from .server.cursor import fitting
from .transport import parse_address
from .transport.stream import START_ONE
from .wire.types import ChannelType, LinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .client import Frame
    from .client.session import Parts
    from .events import CursorShape, Event
    from .region import Damage
    from .server import Display, Surface

log = logging.getLogger("spiceshm.relay")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
"""Between attempts to connect; each pause is twice the one before, but the first again after a
connection that was there for `LASTING_S`: not where two clients take a machine from each other."""

LASTING_S = 1.0

SHOWN_S = 5.0
"""How long a size may take to be shown when the agent says that it has it."""

_FINAL = LinkRefused | RemoteProtocolError | MemoryRefused
"""What waiting does not mend, as long as nothing was ever shown."""


@dataclass(frozen=True)
class UpstreamStats:
    """The connection to the other server in figures.

    address: where it listens. connected: whether it is there; since_s: for how long that has been
    so, or not so, in seconds. reconnects: how often it came back. shm: whether its memory is read
    in place. why: why it is not connected, if it is not.
    """

    address: str
    connected: bool
    since_s: float
    reconnects: int
    shm: bool
    why: str | None


class Relay:
    """The display of another SPICE server, to be shown on one of ours.

    ::

        relay = spiceshm.Relay("spice+unix:///run/vm.sock")
        async with spiceshm.serve(inputs=relay.play, resize=relay.resize) as display:
            await relay.show(display)

    ``address`` and ``password`` are as for `spiceshm.connect`. Raises AddressError.
    """

    def __init__(self, address: str, *, password: str = "") -> None:
        self.address = parse_address(address)
        """Where the other server listens."""
        self._password = password
        self._parts: Parts | None = None
        self._display: Display | None = None
        self._since = time.monotonic()
        self._connections = 0
        self._why: str | None = None
        self._shape: CursorShape | None = None
        self._renewed = trio.Event()  # set when there is a new surface, and exchanged
        self._started: Callable[[], None] = _do_nothing

    def __str__(self) -> str:
        return f"SPICE server {self.address}"

    @property
    def stats(self) -> UpstreamStats:
        """How it is with the other server, now."""
        parts = self._parts
        return UpstreamStats(
            address=str(self.address),
            connected=parts is not None,
            since_s=round(time.monotonic() - self._since, 3),
            reconnects=max(0, self._connections - 1),
            shm=parts is not None and parts.display.shared,
            why=None if parts is not None else self._why,
        )

    # What is shown

    async def show(
        self, display: Display, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Show for ever what the other server shows: its picture, its pointer, which locks are on.

        Started once there is a surface, or once it is known that one has to wait for the server,
        which a line in the log says. Before anything was ever shown raises ConnectError where the
        server refuses us, RemoteProtocolError where it is none, MemoryRefused where there is no
        memory for its picture; later these are lines in the log, as what happens to every server.
        """
        self._display = display
        self._started = task_status.started
        try:
            await self._show(display)
        finally:  # who is cancelled has no connection either
            self._parts, self._since = None, time.monotonic()

    async def _show(self, display: Display) -> None:
        pause = FIRST_PAUSE_S
        while True:
            try:
                await self._pass_on(display)
            except (ConnectError, Disconnected, RemoteProtocolError, MemoryRefused) as error:
                if self._lose(error) > LASTING_S:
                    pause = FIRST_PAUSE_S
            if not self._connections:
                display.set_cursor(None)  # who comes before a machine does is told of its pointer
            self._start()
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _start(self) -> None:
        """There is something to look at, or to wait for."""
        started, self._started = self._started, _do_nothing
        started()

    async def _pass_on(self, display: Display) -> None:
        """Connect and show it until that ends. Raises what ended it."""
        async with (
            opened(str(self.address), Wishes(), password=self._password) as parts,
            open_nursery() as nursery,
        ):
            frames = Frames(parts.display, passing=True)
            try:
                self._publish(parts, await anext(frames), display)
                nursery.start_soon(self._follow, parts, display)
                async for frame in frames:
                    self._publish(parts, frame, display)
            finally:  # what ends this would keep the memory of one that is gone
                if frames.frame is not None:
                    frames.frame.release()

    def _publish(self, parts: Parts, frame: Frame, display: Display) -> None:
        """Show a frame with exactly its damage; all of what changed is copied, and nothing else.

        It counts as old as it is: what was drawn there before clients did something is no answer
        to that here either. (Where memory is shared, that is; others do not tell how old it is.)
        Where our client could not decode what was drawn, the frame has what was there before.
        """
        height, width = frame.pixels.shape[:2]
        surface = display.surface
        if surface is None or not _is(surface, width, height):
            surface = display.create_surface(width, height)
            surface.draw(frame.pixels, published=frame.published)
            self._tell_heads(parts, display)
            self._renewed.set()
            self._renewed = trio.Event()
        else:
            rects: Damage = "all" if frame.full else frame.rects
            surface.draw(frame.pixels, rects, published=frame.published)

    async def _follow(self, parts: Parts, display: Display) -> None:
        """Tell what changes beside the picture, for ever."""
        await self._open_others(parts, display)
        self._find(parts)
        self._start()
        while True:
            self._tell(parts, display)
            await parts.session.told()

    async def _open_others(self, parts: Parts, display: Display) -> None:
        """Open the channels beside the display, as far as the other server has them."""
        with self._if_it_can():
            await parts.inputs.open()
        with self._if_it_can():
            if await parts.session.offers(ChannelType.CURSOR):
                await parts.cursor.open()
                if self._shape is None:
                    display.set_cursor(None)  # there is one, which may not be seen now

    # Texts are logged and no errors: who keeps those keeps the frames that they passed through.

    @contextlib.contextmanager
    def _if_it_can(self) -> Iterator[None]:
        try:
            yield
        except (ViewOnly, ConnectError) as error:
            log.log(logging.INFO if self._connections else logging.WARNING, "%s", str(error))

    def _tell(self, parts: Parts, display: Display) -> None:
        """Tell our clients what the other server tells beside pixels; what is the same is not."""
        display.set_locks(parts.inputs.locks)
        display.take_positions(parts.session.takes_positions)
        self._tell_heads(parts, display)
        cursor = parts.cursor.seen
        display.move_cursor(cursor.x, cursor.y)
        shape = cursor.shape if cursor.visible else None
        if shape is not self._shape:
            self._shape = shape
            display.set_cursor(None if shape is None else fitting(shape))

    def _tell_heads(self, parts: Parts, display: Display) -> None:
        surface, theirs = display.surface, parts.display
        if surface is not None and _is(surface, theirs.width, theirs.height):
            surface.set_heads(theirs.heads or [(0, 0, surface.height, surface.width)])

    # Coming and going

    def _find(self, parts: Parts) -> None:
        if self._connections:
            log.warning("%s: is there again", self.address)
        self._connections += 1
        self._parts, self._since, self._why = parts, time.monotonic(), None

    def _lose(self, error: SpiceShmError) -> float:
        """Note that there is no connection and why; returns how long there was one, in seconds.

        Raises ``error``, as it is to be told, if waiting does not mend it. Where one waits, that is
        said once, and what is really wrong whenever it is something else.
        """
        why = self._explain(error)
        final = isinstance(error, _FINAL)
        if final and not self._connections:
            raise error if why == str(error) else ConnectError(why)
        news = self._parts is not None or self._why is None
        if news or (final and why != self._why):
            log.warning("%s; trying again until it is there", why)
        else:
            log.info("%s", why)
        lasted = 0.0
        if self._parts is not None:
            lasted = time.monotonic() - self._since
            self._parts, self._since = None, time.monotonic()
        self._why = why
        return lasted

    def _explain(self, error: SpiceShmError) -> str:
        if isinstance(error, LinkRefused) and error.code == LinkError.PERMISSION_DENIED:
            return f"{self.address}: wrong or missing password (--source-password-file)"
        if isinstance(error, MemoryRefused):
            return f"{self.address}: {error}"
        return str(error).removesuffix(START_ONE)

    # What clients do

    async def play(self, events: Sequence[Event]) -> None:
        """Pass on what clients do, for ``serve(inputs=...)``; returns when it was done there.

        What that means, the other server says: ours that its program has got it, others that they
        have put it where a machine takes it from. While there is none, what clients do is lost, as
        at a machine that is off; and what they held when it went is not held when it is back.
        """
        parts, display = self._parts, self._display
        try:
            if parts is None or display is None:
                raise Disconnected(f"{self.address}: is not there")
            await parts.inputs.play(events)
            self._tell(parts, display)
        except Timeout as error:
            log.warning("%s", str(error))
        except (ConnectError, Disconnected, ProtocolError, ViewOnly) as error:
            log.info("%s; what clients do is lost", str(error))

    async def resize(self, width: int, height: int) -> None:
        """Have the other server give its display a size, for ``serve(resize=...)``.

        Returns when that is shown. Raises SourceError where there is no agent that could do it, as
        in most virtual machines, or where it does not do it.
        """
        parts, display = self._parts, self._display
        if parts is None or display is None:
            raise SourceError(f"{self.address}: is not there")
        try:
            await parts.session.resize(width, height)
        except (Disconnected, ProtocolError) as error:
            raise SourceError(str(error)) from None
        with trio.move_on_after(SHOWN_S):
            while not _is(display.surface, width, height):
                await self._renewed.wait()
            return
        raise SourceError(f"{self.address}: its agent says that it did it, and it did not")


def _is(surface: Surface | None, width: int, height: int) -> bool:
    """Whether there is one, of that size."""
    return surface is not None and (surface.width, surface.height) == (width, height)


def _do_nothing() -> None:
    pass
