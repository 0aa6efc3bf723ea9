"""A trio nursery whose one failure comes out as itself, not as a group of one.

Our background tasks end by themselves or take the connection down; so where something fails it is
one thing, and a user's ``except ValueError`` around ``async with spiceshm.connect()`` must work.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from .errors import SpiceShmError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def open_nursery() -> AsyncIterator[trio.Nursery]:
    """Like ``trio.open_nursery``, but a group with one failure in it is replaced by that failure.

    Tasks that were cancelled meanwhile do not count: cancelled they are anyhow. Where several tasks
    noticed the same end of a connection, the first one's word is enough.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        failed = group.split(trio.Cancelled)[1]  # also of what nurseries inside were cancelled
        failures = () if failed is None else failed.exceptions
        expected = all(isinstance(error, SpiceShmError) for error in failures)
        if not failures or (len(failures) > 1 and not expected):
            raise
    else:
        return
    # Raised here, outside of the handler, so that the group does not become its context.
    raise failures[0]
