"""The actions of ``spiceshm-client``: how each is written. What they do is in `acting`.

Nothing heavy is imported here: --help must not wait. So names of keys and layouts are only checked
in `acting`, which is still before anything is connected.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from .options import seconds

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

MAX_CLICKS = 1000

INPUTS = frozenset({"type", "key", "click", "double-click", "move", "drag", "scroll"})
LOOKS = frozenset({"wait-change", "wait-stable", "screenshot"})
_SHOWN = 40


class Step(NamedTuple):
    """One option of the command line that has its place in the order."""

    option: str
    text: str
    value: Any

    def __str__(self) -> str:
        """As it was typed, for one line of complaint."""
        text = self.text
        if self.option == "type" and len(text) > _SHOWN:
            text = f"{text[:_SHOWN]}..."
        return f"--{self.option} {shlex.quote(text)}"


def add_steps(options: argparse.ArgumentParser) -> None:
    """Declare the actions; ``steps`` of what is parsed is then a list of `Step` in their order."""
    group = options.add_argument_group("actions, done in the order given over one connection")

    def step(option: str, read: Callable[[str], Any], metavar: str, what: str) -> None:
        def parsed(text: str) -> Step:
            return Step(option, text, read(text))

        group.add_argument(
            f"--{option}",
            dest="steps",
            action="append",
            default=[],
            type=parsed,
            metavar=metavar,
            help=what,
        )

    step(
        "wait-change",
        _seconds_from_0,
        "S",
        "wait, at most S seconds, until something changed since the action before, or since the "
        "first frame",
    )
    step("wait-stable", seconds, "S", "wait until nothing changed for S seconds")
    step("timeout", seconds, "S", "how long each --wait-stable behind it waits (default: 30)")
    step(
        "region",
        _region,
        "X,Y,W,H",
        "waits and screenshots behind it see this part alone; all: everything again",
    )
    step(
        "screenshot",
        _picture,
        "FILE",
        "save what is shown: .png or .ppm; - is PNG on stdout; with --frames, --duration or "
        "--stats the last frame seen",
    )
    step("type", str, "TEXT", "type TEXT as it is, also if it begins with -")
    step("key", str, "COMBO", "press a key or several together: enter, ctrl+alt+F1, shift+tab, a")
    step("click", _point, "X,Y", "move the pointer there and click")
    step("double-click", _point, "X,Y", "move the pointer there and click twice")
    step("move", _point, "X,Y", "move the pointer there")
    step("drag", _two_points, "X,Y,X,Y", "from the first point to the second, the button held")
    step("scroll", _clicks, "N", "turn the wheel by N clicks: down, or up if N is negative")


def bind_texts(words: list[str]) -> list[str]:
    """Join --type with its text, which argparse would take for an option if it begins with -."""
    bound: list[str] = []
    rest = iter(words)
    for word in rest:
        text = next(rest, None) if word == "--type" else None
        bound.append(word if text is None else f"{word}={text}")
    return bound


def _seconds_from_0(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < float("inf"):
            return float(text)
    _refuse(text, "a number of seconds from 0, for example 2.5")


def _numbers(text: str, many: int) -> tuple[int, ...] | None:
    """Whole numbers from 0 with commas between; None if it is anything else."""
    parts = text.split(",")
    if len(parts) != many or not all(re.fullmatch(r"[0-9]{1,5}", part) for part in parts):
        return None
    return tuple(map(int, parts))


def _point(text: str) -> tuple[int, ...]:
    return _numbers(text, 2) or _refuse(text, "X,Y in pixels from the left and the top: 100,20")


def _two_points(text: str) -> tuple[int, ...]:
    return _numbers(text, 4) or _refuse(
        text, "X,Y,X,Y in pixels from the left and the top: 100,20,300,20"
    )


def _region(text: str) -> tuple[int, int, int, int] | None:
    """Top, left, bottom, right as the library has them; None is everything."""
    if text == "all":
        return None
    x, y, width, height = _numbers(text, 4) or (0, 0, 0, 0)
    if not width or not height:
        _refuse(text, "all, and not X,Y,WIDTH,HEIGHT in pixels: 0,0,640,20")
    return y, x, y + height, x + width


def _clicks(text: str) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,4}", text) and 0 < abs(int(text)) <= MAX_CLICKS:
        return int(text)
    _refuse(text, f"a whole number of clicks from -{MAX_CLICKS} (up) to {MAX_CLICKS} (down), not 0")


def _picture(text: str) -> str:
    if text == "-" or Path(text).suffix.lower() in (".png", ".ppm"):
        return text
    raise ArgumentTypeError(f"{text!r} does not end in .png or .ppm; - is PNG on stdout")


def _refuse(text: str, accepts: str) -> NoReturn:
    raise ArgumentTypeError(f"{text!r} is not {accepts}")
