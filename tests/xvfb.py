"""A real X server without a screen, for tests: ``with xvfb(1920, 1080, 24) as display: ...``"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE = 20.0
"""Seconds that an X server may take to start on a busy machine."""


class Display(str):
    """The name of a display, as ``:5``, with the ``process`` that serves it."""

    process: subprocess.Popen[bytes]


@contextmanager
def xvfb(width: int, height: int, depth: int, *arguments: str) -> Iterator[Display]:
    """Run Xvfb with one screen; at the end it is killed and waited for.

    The server picks a free number itself and tells it when it is ready, so any number of tests may
    do this at once and none has to guess when to begin. ``arguments`` go to Xvfb and override ours.
    Skips the test where Xvfb is not installed.
    """
    if shutil.which("Xvfb") is None:
        pytest.skip("needs Xvfb (Debian: xvfb)")
    reader, writer = os.pipe()
    command = ["Xvfb", "-displayfd", str(writer), "-nolisten", "tcp", "-noreset"]
    command += ["-screen", "0", f"{width}x{height}x{depth}", *arguments]
    try:
        process = subprocess.Popen(
            command, pass_fds=[writer], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    finally:
        os.close(writer)
    try:
        with os.fdopen(reader) as numbers:
            display = Display(f":{_read_number(numbers)}")
        display.process = process
        yield display
    finally:
        process.kill()
        process.wait()


def _read_number(numbers: IO[str]) -> int:
    """The number of the display, which Xvfb writes when it is ready."""
    if not select.select([numbers], [], [], DEADLINE)[0]:
        raise TimeoutError(f"Xvfb did not start within {DEADLINE} s")
    line = numbers.readline()
    if not line:
        raise RuntimeError("Xvfb ended at once; try it in a shell to see why")
    return int(line)


def environment(display: str) -> dict[str, str]:
    """The environment for a program that is to show itself on ``display``."""
    return {**os.environ, "DISPLAY": display}


def run(display: str, *command: str) -> bytes:
    """Run a program on ``display`` to its end and return what it printed. Raises on failure."""
    return subprocess.run(
        command,
        env=environment(display),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        check=True,
        timeout=60,
    ).stdout
