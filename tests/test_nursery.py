"""A nursery whose one failure comes out as itself."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from spiceshm import Disconnected
from spiceshm.nursery import open_nursery


async def test_one_failure_while_everything_is_cancelled_from_outside() -> None:
    async def wait() -> None:
        async with open_nursery() as inner:
            inner.start_soon(trio.sleep_forever)
            inner.start_soon(trio.sleep_forever)

    async def fail() -> None:
        with trio.CancelScope() as scope:
            async with open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                raise Disconnected("gone")

    with pytest.raises(Disconnected, match="gone"):
        await fail()
