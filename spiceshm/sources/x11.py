"""An X desktop as a source: the X server draws into our buffers, XDamage says what changed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from ..errors import SourceError
from .xscreen import Target, XResized, XScreen, bands

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ..memory import Segment
    from ..region import Rect
    from ..server import Display, Drawing, Surface


class XDesktop:
    """An X display that is watched; made by `open`, shown by `show`."""

    def __init__(self, screen: XScreen) -> None:
        self._screen = screen
        self._attached: dict[Segment, int | None] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, display: str | None, cookie: bytes | None = None
    ) -> AsyncIterator[XDesktop]:
        """Connect to an X display (``:5``; None: $DISPLAY). Raises SourceError saying why not.

        ``cookie`` is an MIT-MAGIC-COOKIE-1; None: what $XAUTHORITY or ~/.Xauthority has.
        """
        screen = await trio.to_thread.run_sync(XScreen.open, display, cookie)
        try:
            yield cls(screen)
        finally:
            screen.close()

    def __str__(self) -> str:
        screen = self._screen
        return f"X display {screen.name} {screen.width}x{screen.height} depth {screen.depth}"

    async def show(
        self,
        display: Display,
        *,
        fps: float,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Show the desktop for ever, at most ``fps`` frames a second (0: no limit).

        Started once there is a surface. A still desktop makes no frames. When the desktop changes
        its size a new surface follows. Raises SourceError when the X server goes away.
        """
        while True:
            surface = self._new_surface(display)
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED  # that is said once
            try:
                await self._follow(surface, 1 / fps if fps else 0.0)
            except XResized:
                self._screen.resize()

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
        self._attached[segment] = self._screen.attach(segment.fileno(), segment.size)

    async def _follow(self, surface: Surface, pause: float) -> None:
        """A frame for whatever was drawn, until the screen changes its size."""
        while True:
            await self._screen.wait()
            due = trio.current_time() + pause
            if self._screen.resized:
                raise XResized
            await self._take(surface)
            await trio.sleep_until(due)

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
