"""Whether tasks rest while they have nothing to do."""

from __future__ import annotations

import trio
import trio.testing

QUIET_S = 0.5


class _Steps(trio.abc.Instrument):
    """Counts the turns of all tasks but one."""

    def __init__(self, own: trio.lowlevel.Task) -> None:
        self._own = own
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is not self._own


async def idle() -> int:
    """How often tasks other than the caller's have run within half a second, from now on."""
    await trio.testing.wait_all_tasks_blocked(0.05)
    steps = _Steps(trio.lowlevel.current_task())
    trio.lowlevel.add_instrument(steps)
    try:
        await trio.sleep(QUIET_S)
    finally:
        trio.lowlevel.remove_instrument(steps)
    return steps.count
