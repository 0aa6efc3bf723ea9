"""Processes that can be stopped and killed, and what a process holds, as the kernel counts it."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import multiprocessing
import multiprocessing.forkserver
import os
import re
import signal
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

_PR_SET_PDEATHSIG = 1
_HERE = ("here",)

_context = multiprocessing.get_context("forkserver")


def preload(*modules: str) -> None:
    """Import these once for all processes to come, so that starting one takes no time.

    Ctrl-C is for who started us alone: it decides how the others end.
    """
    _context.set_forkserver_preload(list(modules))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Child:
    """A process that runs ``function(link, *arguments)``; ``link`` is a pipe to it.

    It says things, each a tuple that begins with a word; its last are ``("end", why)`` or
    ``("failed", traceback)``.
    """

    def __init__(self, function: Callable[..., str], *arguments: Any) -> None:
        self.link, theirs = _context.Pipe()
        self._process = _context.Process(target=_run, args=(function, theirs, arguments))
        self._process.start()
        theirs.close()
        self.here = False
        """Whether it runs: only then does it end with us, and may be stopped."""
        self.gone = False

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def tell(self, *words: Any) -> None:
        """Say something to it, if it is still there."""
        with contextlib.suppress(OSError):
            self.link.send(words)

    def heard(self) -> list[tuple[Any, ...]]:
        """What it has said since; sets ``gone`` at the end. Never waits."""
        said = []
        try:
            while not self.gone and self.link.poll():
                words = self.link.recv()
                if words == _HERE:
                    self.here = True
                else:
                    said.append(words)
        except (EOFError, OSError):
            self.gone = True
        return said

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def close(self) -> int | None:
        """End it, unless it has said its last, and wait for it; returns its exit status."""
        if not self.gone:
            self._process.kill()
        self._process.join()
        status = self._process.exitcode
        self._process.close()
        self.link.close()
        self.gone = True
        return status


def _run(function: Callable[..., str], link: Connection, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started us ends everybody
    # Nobody outlives who started it, stopped ones neither.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        link.send(_HERE)
        last = ("end", function(link, *arguments))
    except Exception:
        last = ("failed", traceback.format_exc())
    with contextlib.suppress(OSError):
        link.send(last)


def descriptors(pid: int | str) -> dict[str, int]:
    """How many descriptors of which kind a process has open."""
    kinds: collections.Counter[str] = collections.Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            what = os.readlink(f"/proc/{pid}/fd/{name}")
            kinds[re.sub(r":\[\d+\]$", "", what)] += 1
    return dict(kinds)


def mappings(pid: int | str) -> int:
    """How many pieces of shared memory of ours a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text().count("/memfd:spiceshm")


def threads(pid: int | str) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def private_bytes(pid: int | str) -> int:
    """Anonymous memory of a process that is resident."""
    match = re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return int(match[1]) * 1024 if match else 0
