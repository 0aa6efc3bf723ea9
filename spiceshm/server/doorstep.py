"""Connections that are not through the link phase yet: few, and none for long.

They are counted apart from those that are served, so that nobody who only connects keeps others
out: where there is no room the newcomer takes the place of the one that came first. A client that
means it is through within milliseconds.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("spiceshm.server")

MAX_HALF_OPEN = 64
LINK_S = 10.0
"""Seconds that the link phase may take."""


class Doorstep:
    """Where connections wait until they are let in."""

    def __init__(self) -> None:
        self._waiting: dict[trio.CancelScope, None] = {}  # in the order in which they came
        self._crowded = False

    def __len__(self) -> int:
        return len(self._waiting)

    @contextlib.contextmanager
    def wait(self, peer: str) -> Iterator[None]:
        """The block is a link phase: it is left early, without a word, for the sake of a newcomer.

        Raises TooSlowError if it takes longer than `LINK_S`.
        """
        if len(self._waiting) >= MAX_HALF_OPEN:
            self._make_room(peer)
        with trio.move_on_after(LINK_S) as scope:
            self._waiting[scope] = None
            try:
                yield
            finally:
                displaced = scope not in self._waiting
                self._waiting.pop(scope, None)
                if len(self._waiting) <= MAX_HALF_OPEN // 2:
                    self._crowded = False
        if scope.cancelled_caught and not displaced:
            raise trio.TooSlowError

    def _make_room(self, peer: str) -> None:
        oldest = next(iter(self._waiting))
        del self._waiting[oldest]
        oldest.cancel()
        if not self._crowded:  # said once a crowd, not once a connection
            log.warning(
                "%s: %d connections before it are not through the link phase; "
                "from now on each that comes displaces the oldest of them",
                peer,
                MAX_HALF_OPEN,
            )
        self._crowded = True
