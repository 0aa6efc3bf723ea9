"""Processes that are measured: how they start, what they use, and how they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.connection import Connection

PATIENCE_S = 60.0
"""What takes longer than this and the time it was told to take has failed."""

_LAST_WORDS_S = 0.5

_context = multiprocessing.get_context("forkserver")


class Failed(Exception):
    """A case could not be measured; the text says why."""


def preload(*modules: str) -> None:
    """Import these once for all processes to come, so that starting one takes no time."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _context.set_forkserver_preload(list(modules))


class Worker:
    """A process that runs one function, with a pipe to it."""

    def __init__(self, function: Callable[..., None], *arguments: Any, cpu: int | None) -> None:
        self._link, theirs = _context.Pipe()
        self._process = _context.Process(
            target=_run, args=(function, theirs, cpu, arguments), daemon=True
        )
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, what: object) -> None:
        self._link.send(what)

    def receive(self, seconds: float = 0.0) -> Any:
        """What it sends next, within ``seconds`` and some. Raises Failed with its own reason."""
        try:
            if not self._link.poll(seconds + PATIENCE_S):
                raise Failed(f"nothing within {seconds + PATIENCE_S:.0f} s")
            what = self._link.recv()
        except (EOFError, ConnectionError):
            raise Failed("a process ended early") from None
        if isinstance(what, Failed):
            raise what
        return what

    def close(self) -> None:
        """Wait a moment for its end, and kill it if that does not come."""
        self._process.join(_LAST_WORDS_S)
        self._process.kill()
        self._process.join()
        self._process.close()
        self._link.close()


@contextmanager
def workers() -> Iterator[Callable[..., Worker]]:
    """Gives a function that starts a `Worker`; all of them end with the block."""
    started: list[Worker] = []

    def start(function: Callable[..., None], *arguments: Any, cpu: int | None = None) -> Worker:
        started.append(Worker(function, *arguments, cpu=cpu))
        return started[-1]

    try:
        yield start
    finally:
        for worker in started:
            worker.close()


def _run(
    function: Callable[..., None], link: Connection, cpu: int | None, arguments: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends everybody
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        function(link, *arguments)
    except Exception as error:
        link.send(Failed(f"{type(error).__name__}: {error}"))


def cpu_ns(pid: int) -> int:
    """CPU time that a process has used, all its threads, user and system, in ns.

    This is clock_getcpuclockid(3), which Python does not have, by the kernel's own arithmetic.
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


def total_cpu_ns(pids: Iterable[int]) -> int:
    return sum(cpu_ns(pid) for pid in pids)


def resident_bytes(pid: int) -> dict[str, int]:
    """Resident memory of a process: ``private`` (anonymous) and ``shared`` (memfds and the like).

    What is mapped from files, code above all, is left out: all programs share it.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {
        "private": int(fields["RssAnon"].split()[0]) * 1024,
        "shared": int(fields["RssShmem"].split()[0]) * 1024,
    }
