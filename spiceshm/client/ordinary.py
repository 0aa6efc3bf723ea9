"""Ordinary SPICE as frames, which it does not have: what was drawn when somebody asks is one."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .. import region
from ..codecs import glz
from ..errors import CannotDecode
from . import images
from .canvas import Canvas
from .frame import Frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..transport import Address
    from ..wire import Message, display
    from .canvas import Drawn
    from .frame import Copies
    from .surfaces import Surface
    from .wishes import Wishes

log = logging.getLogger("spiceshm.client")

MOST_DRAWN = 256
"""Rectangles that are remembered; of more, some are merged."""


class Ordinary:
    """The picture of a display channel that shares no memory.

    ``serial`` is that of the last frame, ``begun`` is set until the first of a mode was taken.
    """

    def __init__(self, address: Address, wishes: Wishes) -> None:
        self.serial = 0
        self.begun = False
        self._address = address
        self._strict = wishes.strict
        earlier = glz.Dictionary(wishes.glz_pixels)
        self._canvas = Canvas(
            cache_pixels=wishes.cache_pixels, decode=partial(images.decode, earlier=earlier)
        )
        self._shown: Surface | None = None
        self._drawn: list[region.Rect] = []
        self._just_drawn: list[region.Rect] = []
        self._unreadable: set[str] = set()

    @property
    def is_shown(self) -> bool:
        """Whether this is what the program sees. A surface that was destroyed is, until another
        takes its place."""
        return self._shown is not None

    @property
    def something_new(self) -> bool:
        """Whether anything was drawn since the last frame was taken."""
        return bool(self._drawn)

    @property
    def stale(self) -> list[region.Rect]:
        """Where the picture is not what the server shows."""
        return list(self._shown.stale) if self._shown is not None else []

    @property
    def counts(self) -> dict[str, int]:
        """What was drawn by so far: see `RemoteDisplay.images`."""
        return dict(self._canvas.counts)

    def begin(self, create: display.SurfaceCreate, serial: int) -> None:
        """A primary surface is there; frames are counted on from ``serial``, if that is later."""
        self.serial = max(self.serial, serial)
        self._canvas.receive(create)
        self._shown = self._canvas.primary
        self.begun = True

    def leave(self) -> None:
        """Memory is shared from now on."""
        self._shown = None

    def forget(self) -> None:
        """What was drawn so far is not in the next frame."""
        self._drawn, self._just_drawn = [], []

    def draw(self, message: Message) -> int:
        """Carry out a message; returns how many bytes of the picture changed.

        Raises RemoteProtocolError for what does not fit, and CannotDecode for a strict client.
        """
        drawn = self._canvas.receive(message)
        if drawn.why:
            self._miss(message, drawn)
        if drawn.surface_id:
            return 0
        self._just_drawn += drawn.rects or drawn.stale  # the latter look otherwise there, too
        return region.area(drawn.rects) * 4

    def _miss(self, message: Message, drawn: Drawn) -> None:
        problem = f"{message.title}: {drawn.why}: {drawn.detail}"
        if self._strict:
            raise CannotDecode(problem)
        if drawn.why not in self._unreadable:
            self._unreadable.add(drawn.why)
            log.warning("%s: %s; shown there is what was there before", self._address, problem)

    def take_note(self) -> Sequence[region.Rect]:
        """Whatever was drawn by what came at once counts as one frame; returns where that was,
        nowhere if nothing was."""
        if len(self._just_drawn) > MOST_DRAWN:
            self._just_drawn = region.merge(self._just_drawn)
        drawn, self._just_drawn = self._just_drawn, []
        if drawn:
            self.serial += 1
            self._drawn += drawn
        if len(self._drawn) > MOST_DRAWN:
            self._drawn = region.merge(self._drawn)
        return drawn

    def frame(self, copies: Copies | None) -> Frame:
        """What is shown, on one of ``copies``; without them on what is drawn on, so that it may
        change when others run."""
        assert self._shown is not None
        full, drawn = self.begun, region.merge(self._drawn)
        pixels = self._shown.pixels
        if copies is not None:
            pixels = copies.of(pixels, None if full else drawn)
        self._drawn, self.begun = [], False
        frame = Frame(pixels, _rows(drawn), serial=self.serial, published=0, full=full, lent=False)
        if self._shown.stale:
            frame.stale = _rows(self._shown.stale)
        return frame


def _rows(rects: Sequence[region.Rect]) -> NDArray[np.int32]:
    return np.array(rects, "<i4").reshape(-1, 4)
