"""What both programs share: options, one-line errors, exit statuses, a clean end."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import trio

from .. import __version__
from ..errors import AddressError, Disconnected, SpiceShmError
from ..nursery import open_nursery
from ..transport.address import parse_address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

OK, FAILED, USAGE, NOT_SHARED, DISCONNECTED = 0, 1, 2, 3, 5


class UsageError(Exception):
    """Options that parse but make no sense together; the text says what is accepted."""


class _Parser(argparse.ArgumentParser):
    """Also --help may be read by somebody who goes away."""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:
            status = status or _nobody_reads()
        super().exit(status, message)


def parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    made = _Parser(
        prog=name,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"{name} {__version__}")
    made.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="say more of what happens, on stderr (SPICESHM_DEBUG=1: every message)",
    )
    return made


def address(text: str) -> str:
    """An argparse type: an address that can be understood, as it was given."""
    try:
        parse_address(text)
    except AddressError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def seconds(text: str) -> float:
    """An argparse type: a number of seconds above 0."""
    return _number(text, float, "a number of seconds above 0, for example 2.5")


def count(text: str) -> int:
    """An argparse type: a whole number above 0."""
    return int(_number(text, int, "a whole number above 0"))


def _number(text: str, kind: Callable[[str], float], accepts: str) -> float:
    with contextlib.suppress(ValueError, OverflowError):
        value = kind(text)
        if 0 < value < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not {accepts}")


def read_password(path: str | None) -> str | None:
    """The first line of a password file. Raises UsageError if there is none to read."""
    if path is None:
        return None
    try:
        first = Path(path).read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--password-file {path}: {_reason(error)}") from None
    if not first or len(first.encode()) > 60:
        raise UsageError(f"--password-file {path}: its first line must have 1 to 60 bytes")
    return first


def _reason(error: Exception) -> str:
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
    except UsageError as error:
        return _complain(name, error, USAGE)
    except Disconnected as error:
        return _complain(name, error, DISCONNECTED)
    except SpiceShmError as error:
        return _complain(name, error, FAILED)
    except BrokenPipeError:
        return _nobody_reads()
    except OSError as error:
        if error.filename is None and sys.stdout is not None:
            _nobody_reads()
        return _complain(name, Exception(f"{error.filename or 'output'}: {_reason(error)}"), FAILED)


def _level(arguments: argparse.Namespace) -> int:
    if os.environ.get("SPICESHM_DEBUG") == "1":
        return logging.DEBUG  # with every message that goes in or out
    return logging.INFO if arguments.verbose else logging.WARNING


def _nobody_reads() -> int:
    """Whoever read our output went away; nothing is left to say, also not at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


def _complain(name: str, error: Exception, status: int) -> int:
    print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
    return status


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
