"""The options that both programs share. Nothing heavy is imported here: --help must not wait."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from .. import __version__
from ..errors import AddressError

if TYPE_CHECKING:
    from collections.abc import Callable

OK, FAILED, USAGE, NOT_SHARED, TIMEOUT, DISCONNECTED = range(6)
INTERRUPTED = 130

SOURCES = ("pattern", "x11", "xvfb")
"""Sources of a server that have a name; all others are addresses."""


class _Parser(argparse.ArgumentParser):
    """Also --help may be read by somebody who goes away."""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:
            status = status or nobody_reads()
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
    from ..transport.address import parse_address

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


def nobody_reads() -> int:
    """Whoever read our output went away; nothing is left to say, also not at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED
