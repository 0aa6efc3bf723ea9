"""An X desktop as a source: the X server draws into our buffers, XDamage says what changed."""

from __future__ import annotations

import contextlib
import logging
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

from ..errors import SourceError
from ..nursery import open_nursery
from .xcb import Lacking, XConnection, XError
from .xcursor import XCursor
from .xinput import XInput
from .xrandr import XRandr
from .xscreen import Target, XResized, XScreen, bands

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from ..events import Event
    from ..memory import Segment
    from ..region import Rect
    from ..server import Display, Drawing, Surface


log = logging.getLogger("spiceshm.sources")

Connection = TypeVar("Connection", bound=XConnection)


class XDesktop:
    """An X display that is watched and acted on; made by `open`, shown by `show`.

    Each kind of work has an X connection of its own, so that none waits for another.
    """

    def __init__(
        self,
        screen: XScreen,
        input: XInput | None,
        cursor: XCursor | None,
        cookie: bytes | None,
    ) -> None:
        """None: the X server has not got what it takes."""
        self._screen = screen
        self._cookie = cookie
        self._input = input
        self._cursor = cursor
        self._attached: dict[Segment, int | None] = {}
        self._over = False
        self._resizing = trio.Lock()
        self._renewed = trio.Event()  # set when there is a new surface, and exchanged
        self._played = trio.Event()  # set when there was input since the last pause

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, display: str | None, cookie: bytes | None = None
    ) -> AsyncIterator[XDesktop]:
        """Connect to an X display (``:5``; None: $DISPLAY). Raises SourceError saying why not.

        ``cookie`` is an MIT-MAGIC-COOKIE-1; None: what $XAUTHORITY or ~/.Xauthority has. Where the
        X server lacks what input or pointer need, it can be looked at all the same.
        """
        with contextlib.ExitStack() as stack:

            async def connected(kind: type[Connection]) -> Connection:
                opened = await _open_in_thread(kind, display, cookie)
                stack.enter_context(opened)
                return opened

            screen = await connected(XScreen)
            input = cursor = None
            try:
                input = await connected(XInput)
            except Lacking as error:
                log.warning("%s: clients can look but not act", error)
            try:
                cursor = await connected(XCursor)
            except Lacking as error:
                log.warning("%s: clients see no pointer", error)
            yield cls(screen, input, cursor, cookie)

    @property
    def name(self) -> str:
        """The X display, as ``:5``."""
        return self._screen.name

    def __str__(self) -> str:
        screen = self._screen
        return f"X display {screen.name} {screen.width}x{screen.height} depth {screen.depth}"

    @property
    def play(self) -> Callable[[Sequence[Event]], Awaitable[None]] | None:
        """What plays the events of clients, for ``serve(inputs=...)``; None: it cannot be done.

        It returns when the X server has done all of them, and raises SourceError when that is gone.
        """
        return None if self._input is None else partial(self._play, self._input)

    async def _play(self, input: XInput, events: Sequence[Event]) -> None:
        try:
            await input.play(events)
        finally:
            self._played.set()

    async def resize(self, width: int, height: int) -> None:
        """Give the desktop another size, for ``serve(resize=...)``; returns when that is shown.

        To be called while `show` runs. Raises SourceError where it cannot be done, or should not
        be: see `XRandr.resize`.
        """
        async with self._resizing:
            # A connection for each time: sizes change rarely, and who only looks needs none.
            with await _open_in_thread(XRandr, self._screen.name, self._cookie) as randr:
                await randr.resize(width, height)
            renewed = self._renewed
        if (self._screen.width, self._screen.height) != (width, height):
            await renewed.wait()

    async def show(
        self,
        display: Display,
        *,
        fps: float,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Show the desktop for ever, at most ``fps`` frames a second (0: no limit).

        Each call of `play` may add one, because who acts waits for what comes of it. With them go
        the pointer, no more often than ``fps``, and which locks are on. Started once there is a
        surface and all of that is told. A still desktop makes no frames. When the desktop changes
        its size a new surface follows. Raises SourceError when the X server goes away.
        """
        self._over = False
        pause = 1 / fps if fps else 0.0
        surface = self._new_surface(display)
        try:
            async with open_nursery() as nursery:
                if self._input is not None:
                    await nursery.start(self._input.watch, display.set_locks)
                if self._cursor is not None:
                    await nursery.start(self._cursor.follow, display, pause)
                task_status.started()
                while True:
                    try:
                        await self._follow(surface, pause)
                    except XResized:
                        async with self._resizing:  # not for a size on the way to another
                            self._screen.resize()
                        surface = self._new_surface(display)
                        self._renewed.set()
                        self._renewed = trio.Event()
        finally:  # the server's end waits for a thread that makes memory
            self._over = True
            self._screen.let_go()

    def _new_surface(self, display: Display) -> Surface:
        old = self._attached
        self._attached = {}
        try:
            surface = display.create_surface(
                self._screen.width, self._screen.height, attach=self._attach
            )
        except ValueError as error:
            raise SourceError(f"X display {self._screen.name}: {error}") from None
        for shmseg in old.values():
            if shmseg is not None:
                self._screen.detach(shmseg)
        return surface

    def _attach(self, segment: Segment) -> None:
        try:
            self._attached[segment] = self._screen.attach(segment.fileno(), segment.size)
        except XError:
            if not self._over:
                raise
            self._attached[segment] = None  # nothing will be drawn there

    async def _follow(self, surface: Surface, pause: float) -> None:
        """A frame for whatever was drawn, until the screen changes its size."""
        while True:
            await self._screen.wait()
            due = trio.current_time() + pause
            if self._screen.resized:
                raise XResized
            await self._take(surface)
            with trio.move_on_at(due):
                await self._played.wait()
            self._played = trio.Event()

    async def _take(self, surface: Surface) -> None:
        """One snapshot into a buffer, published with exactly what was drawn."""
        drawing: Drawing | None = None

        def begin(damage: list[Rect]) -> Target:
            nonlocal drawing
            if drawing is None:
                # Whole rows are about to be fetched: they need not be copied forward.
                rows = [(top, 0, bottom, surface.width) for top, bottom in bands(damage)]
                drawing = surface.frame(rows)
            buffer = drawing.buffer
            return buffer.pixels, self._attached[buffer.segment], buffer.offset

        try:
            damage = await self._screen.snapshot(begin)
        except BaseException:
            if drawing is not None:
                drawing.abandon()
            raise
        if drawing is not None:
            drawing.publish(damage)


async def _open_in_thread(
    kind: type[Connection], display: str | None, cookie: bytes | None
) -> Connection:
    """Can be cancelled also while the X server hangs; what comes of it later is closed."""
    future: Future[Connection] = Future()

    def connect() -> None:
        try:
            future.set_result(kind.open(display, cookie))
        except BaseException as error:
            future.set_exception(error)

    try:
        await trio.to_thread.run_sync(connect, abandon_on_cancel=True)
    except trio.Cancelled:
        future.add_done_callback(_close_unwanted)
        raise
    return future.result()


def _close_unwanted(future: Future[Connection]) -> None:
    if future.exception() is None:
        future.result().close()
