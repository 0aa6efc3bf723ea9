"""Programs of which none stays behind: not when we end in order, and not when we are killed.

Strategy: they are one process group, and its leader is a guard: a shell that reads a pipe whose
other end this process alone holds. However we end, the kernel closes that end, and the guard ends
the group and removes what we would have removed. The guard lives as long as the group is ours, so
its number can name no other group. (A fork of this process that runs no other program holds that
end too, and so delays the guard until it has ended.)

PR_SET_PDEATHSIG would do less: it fires when the *thread* that started the program ends, it reaches
that program alone and not what it started, and comes too late for one that has not asked for it
yet. Beyond the reach of both are programs that leave the group for a session of their own; such as
are X clients end with their X server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import IO, TYPE_CHECKING

import trio

from ..errors import SourceError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

GRACE_S = 2.0
"""Seconds from asking a group to end (SIGTERM) to making it end (SIGKILL)."""

PASSWORD = "SPICESHM_PASSWORD"
"""The environment variable that our programs take their password from."""

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""The exit status that shells have for a program that cannot be started."""

_GUARD = f"""
trap '' HUP INT TERM
read -r _
kill -TERM 0
rm -rf -- "$@"
sleep {GRACE_S:g}
kill -KILL 0
"""


def environment_for_others() -> dict[str, str]:
    """Ours, without what is nobody else's business."""
    return {name: value for name, value in os.environ.items() if name != PASSWORD}


class NotStarted(SourceError):
    """A program cannot be started; ``status`` is a shell's exit status for that, 126 or 127."""

    def __init__(self, text: str, status: int) -> None:
        self.status = status
        super().__init__(text)


class Group:
    """Programs that end together, at the latest with this process; made by `open_group`."""

    def __init__(self, guard: trio.Process) -> None:
        self._guard = guard
        self._programs: list[trio.Process] = []

    async def start(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        pass_fds: Iterable[int] = (),
        output: IO[bytes] | None = None,
    ) -> trio.Process:
        """Start a program with nothing to read; its output goes where ours goes, or to a file.

        ``env`` is by default `environment_for_others`. Raises NotStarted saying why not.
        """
        self._programs = [program for program in self._programs if program.poll() is None]
        try:
            program = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment_for_others() if env is None else env,
                pass_fds=tuple(pass_fds),
                process_group=self._guard.pid,
            )
        except (FileNotFoundError, NotADirectoryError):
            raise NotStarted(f"{command[0]}: no such program", NOT_FOUND) from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in a word of the command
            why = getattr(error, "strerror", None) or error
            raise NotStarted(f"{command[0]}: {why}", NOT_EXECUTABLE) from None
        self._programs.append(program)
        return program

    async def end(self) -> None:
        """Ask all to end, and kill after `GRACE_S` what has not."""
        os.killpg(self._guard.pid, signal.SIGTERM)
        with trio.move_on_after(GRACE_S):
            for program in self._programs:
                await program.wait()
            with contextlib.suppress(OSError):  # no descriptor is left to look with
                while others := self._others():  # what our programs have started
                    for pid in others:
                        await _ended(pid)
        os.killpg(self._guard.pid, signal.SIGKILL)
        for program in (*self._programs, self._guard):
            await program.wait()

    def _others(self) -> list[int]:
        """Who lives in the group besides the guard."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # Bytes: anybody's program may have a name that is no text.
                state, _, group = path.read_bytes().rpartition(b")")[2].split()[:3]
                if int(group) == self._guard.pid and state != b"Z":
                    found.append(int(path.parent.name))
        return [pid for pid in found if pid != self._guard.pid]


async def _ended(pid: int) -> None:
    """Wait for the end of a process that is not our child."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)


@contextlib.asynccontextmanager
async def open_group(*folders: Path) -> AsyncIterator[Group]:
    """A group of programs that are ended with the block.

    ``folders`` are removed if this process is killed meanwhile; at the end of the block they are
    the caller's.
    """
    guard = await trio.lowlevel.open_process(
        ["/bin/sh", "-c", _GUARD, "sh", *map(str, folders)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.defpath},
        process_group=0,
    )
    group = Group(guard)
    try:
        yield group
    finally:
        with trio.CancelScope(shield=True):
            await group.end()
            if guard.stdin is not None:
                await guard.stdin.aclose()
