"""What both programs do alike: one-line errors, exit statuses, a clean end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import sys
from typing import TYPE_CHECKING

import trio

from ..errors import Disconnected, SpiceShmError, Timeout
from ..nursery import open_nursery
from ..protocol.link import MAX_PASSWORD
from ..sources.processes import PASSWORD
from .options import DISCONNECTED, FAILED, NOT_SHARED, TIMEOUT, USAGE, nobody_reads

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Awaitable, Callable

log = logging.getLogger("spiceshm.cli")


class UsageError(Exception):
    """Options that parse but make no sense together; the text says what is accepted."""


class NotShared(SpiceShmError):
    """Memory is not shared where the user demands it."""


_STATUSES = (
    (NotShared, NOT_SHARED),
    (Timeout, TIMEOUT),
    (Disconnected, DISCONNECTED),
    (SpiceShmError, FAILED),
    (UsageError, USAGE),
)
"""The first that fits an error is its exit status."""


def read_password(path: str | None) -> str | None:
    """The first line of a password file; without one $SPICESHM_PASSWORD; None if neither is given.

    Programs that we start do not get it (`environment_for_others`). Raises UsageError for what is
    no password.
    """
    variable = os.environ.get(PASSWORD)
    if path is not None:
        return password_in(path, "--password-file")
    return None if variable is None else _fits(variable, PASSWORD)


def password_in(path: str, option: str) -> str:
    """The first line of the file that an option names. Raises UsageError for what is no
    password."""
    what = f"{option} {path}"
    try:
        with open(path, encoding="utf-8") as file:  # it may be endless
            first = file.readline(MAX_PASSWORD + 2).removesuffix("\n")
            mode = os.fstat(file.fileno()).st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{what}: {reason(error)}") from None
    password = _fits(first, f"{what}: its first line")
    if stat.S_ISREG(mode) and mode & 0o077:
        log.warning("%s: others may read or write it; try chmod 600", what)
    return password


def _fits(password: str, what: str) -> str:
    try:
        size = len(password.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{what} must be UTF-8") from None
    if not 1 <= size <= MAX_PASSWORD:
        raise UsageError(f"{what} must have 1 to {MAX_PASSWORD} bytes")
    if "\0" in password:
        raise UsageError(f"{what} must have no NUL, where tickets end")
    return password


def reason(error: Exception) -> str:
    """Why it failed, without the name of the file."""
    return getattr(error, "strerror", None) or str(error)


def run(name: str, arguments: argparse.Namespace, main: Callable[[], Awaitable[int]]) -> int:
    """Run a program's main under trio; every expected failure becomes one line and a status."""
    logging.basicConfig(
        level=_level(arguments),
        format=f"{name}: %(message)s",
        stream=sys.stderr,
    )
    try:
        status = trio.run(main)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except (UsageError, SpiceShmError) as error:
        return _complain(name, error, _status(error))
    except BrokenPipeError:
        return nobody_reads()
    except OSError as error:
        if error.filename is None and sys.stdout is not None:
            nobody_reads()
        return _complain(name, Exception(f"{error.filename or 'output'}: {reason(error)}"), FAILED)


def _status(error: UsageError | SpiceShmError) -> int:
    return next(status for kind, status in _STATUSES if isinstance(error, kind))


def _level(arguments: argparse.Namespace) -> int:
    if os.environ.get("SPICESHM_DEBUG") == "1":
        return logging.DEBUG  # with every message that goes in or out
    return logging.INFO if arguments.verbose else logging.WARNING


def _complain(name: str, error: Exception, status: int) -> int:
    print(f"{name}: {one_line(error)}", file=sys.stderr)
    return status


def one_line(error: Exception) -> str:
    """The text of an error, whatever a peer or a file name put into it."""
    return " ".join(str(error).split())


@contextlib.asynccontextmanager
async def until_interrupted() -> AsyncIterator[trio.CancelScope]:
    """A block that SIGINT and SIGTERM end, in order, as if it had run to its end."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_nursery() as nursery:  # inside: it ends before its signals do

            async def watch() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            yield nursery.cancel_scope
            nursery.cancel_scope.cancel()
