"""What ``spiceshm-client`` does with actions: one after another, over one connection.

All that can be known to be wrong is refused before anything is connected. From then on the first
action that fails ends it, and its name begins the line that says why.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from ..client.keyboard import Keyboard
from ..client.remote import TIMEOUT_S
from ..client.waits import silence
from ..errors import CannotType, SpiceShmError, Timeout
from .common import UsageError, one_line, reason, until_interrupted
from .connecting import connected
from .options import INTERRUPTED, OK
from .pictures import save
from .stats import figures, spelled
from .steps import INPUTS, LOOKS, Step

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from ..client import RemoteDisplay

_SETTINGS = {"region": LOOKS, "timeout": frozenset({"wait-stable"})}
"""Steps that do nothing themselves, and those behind them that they are for."""

Region = tuple[int, int, int, int]


class Action(NamedTuple):
    """A step that does something, with the settings before it."""

    step: Step
    region: Region | None
    timeout: float
    cursor: bool


class CannotDo(SpiceShmError):
    """An action that cannot be done on this display or this machine."""


def acts(arguments: argparse.Namespace) -> bool:
    """Whether the options ask for more than frames as they come, the last one in a file."""
    steps: list[Step] = arguments.steps
    return arguments.cursor or len(steps) > 1 or any(s.option != "screenshot" for s in steps)


def check(arguments: argparse.Namespace) -> None:
    """Raises UsageError for what makes no sense whatever the server says."""
    steps: list[Step] = arguments.steps
    if arguments.cursor and all(step.option != "screenshot" for step in steps):
        raise UsageError("--cursor is for --screenshot, and there is none")
    _check_watching(arguments)
    for at, step in enumerate(steps):
        users = _SETTINGS.get(step.option)
        if users and all(later.option not in users for later in steps[at:]):
            names = " or ".join(f"--{name}" for name in sorted(users))
            raise UsageError(f"{step}: is for {names} behind it, and there is none")
        if arguments.view_only and step.option in INPUTS:
            raise UsageError(f"{step}: is not for a client that is --view-only")
    _check_typing(arguments)


def _check_watching(arguments: argparse.Namespace) -> None:
    """Raises UsageError where frames are to be watched and something else is to be done."""
    steps: list[Step] = arguments.steps
    others = [str(step) for step in steps if step.option != "screenshot"]
    others += [str(step) for step in steps if step.option == "screenshot"][1:]
    others += ["--cursor"] if arguments.cursor else []
    for option in ("frames", "duration", "stats"):
        if getattr(arguments, option) and others:
            raise UsageError(
                f"--{option} goes with one --screenshot and no other action, not with {others[0]}"
            )


def _check_typing(arguments: argparse.Namespace) -> None:
    """Raises UsageError for what cannot be typed with that keyboard."""
    with _usage(f"--keyboard {arguments.keyboard}"):
        keyboard = Keyboard(arguments.keyboard)
    checks: dict[str, Callable[[str], object]] = {"type": keyboard.text, "key": keyboard.combo}
    for step in arguments.steps:
        if step.option in checks:
            with _usage(str(step)):
                checks[step.option](step.value)


@contextlib.contextmanager
def _usage(option: str) -> Iterator[None]:
    try:
        yield
    except CannotType as error:
        raise UsageError(f"{option}: {error}") from None


def plan(steps: Sequence[Step], *, cursor: bool) -> list[Action]:
    """What is to be done, each with the settings that hold for it."""
    region: Region | None = None
    timeout = TIMEOUT_S
    actions = []
    for step in steps:
        if step.option == "region":
            region = step.value
        elif step.option == "timeout":
            timeout = step.value
        else:
            actions.append(Action(step, region, timeout, cursor))
    return actions


async def act(arguments: argparse.Namespace) -> int:
    """Do the actions; returns the exit status. Raises what ended them."""
    run = _Run(arguments)
    try:
        async with until_interrupted(), connected(arguments) as display:
            await run.do_all(display)
        if not run.finished:
            run.error = "interrupted"
    except (SpiceShmError, UsageError) as error:
        run.error = one_line(error)
        raise
    finally:
        if arguments.json:
            print(json.dumps(run.result()), flush=True)
    return OK if run.finished else INTERRUPTED


class _Run:
    """The actions of one command line, and what came of each."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.finished = False
        self.error: str | None = None
        self._actions = plan(arguments.steps, cursor=arguments.cursor)
        self._start = time.monotonic()
        self._figures: dict[str, Any] = {}
        self._told: list[dict[str, Any]] = []

    async def do_all(self, display: RemoteDisplay) -> None:
        """Raises the error of the first action that fails, with its name."""
        try:
            for action in self._actions:
                with _named(action), self._timed(action) as told:
                    told |= await _DO[action.step.option](display, action)
            self.finished = True
        finally:
            self._figures = figures(display, time.monotonic() - self._start, {})

    @contextlib.contextmanager
    def _timed(self, action: Action) -> Iterator[dict[str, Any]]:
        step = action.step
        told: dict[str, Any] = {"action": step.option, "value": step.value}
        if step.option in LOOKS:
            told["region"] = _spelled(action.region)
        self._told.append(told)
        start = time.monotonic()
        done = False
        try:
            yield told
            done = True
        finally:
            told |= {"seconds": round(time.monotonic() - start, 6), "ok": done}

    def result(self) -> dict[str, Any]:
        """For --json."""
        failed = {} if self.error is None else {"error": self.error}
        return {**self._figures, "actions": self._told, **failed}


@contextlib.contextmanager
def _named(action: Action) -> Iterator[None]:
    """What goes wrong in the block begins with the action's name."""
    try:
        yield
    except SpiceShmError as error:
        error.args = (f"{action.step}: {error}",)
        raise


# Looking


async def _wait_change(display: RemoteDisplay, action: Action) -> dict[str, Any]:
    _check_inside(display, action.region)
    most: float = action.step.value
    try:
        frame = await display.wait_change(action.region, timeout=most)
    except Timeout:
        raise Timeout(
            f"nothing changed{_inside(action.region)} within {most:g} s{silence(display.silent_s)}"
        ) from None
    return {"serial": frame.serial}


async def _wait_stable(display: RemoteDisplay, action: Action) -> dict[str, Any]:
    _check_inside(display, action.region)
    quiet: float = action.step.value
    try:
        frame = await display.wait_stable(quiet, action.region, timeout=action.timeout)
    except Timeout:
        raise Timeout(
            f"changes{_inside(action.region)} did not stop for {quiet:g} s "
            f"within {action.timeout:g} s{silence(display.silent_s)}"
        ) from None
    return {"serial": frame.serial}


async def _screenshot(display: RemoteDisplay, action: Action) -> dict[str, Any]:
    _check_inside(display, action.region)
    pixels = await display.screenshot(action.region, cursor=action.cursor)
    path: str = action.step.value
    try:
        save(pixels, path)
    except OSError as error:
        if path == "-":
            raise
        raise CannotDo(reason(error)) from None
    return {"width": pixels.shape[1], "height": pixels.shape[0]}


def _spelled(region: Region | None) -> str:
    """As --region has it."""
    return "all" if region is None else spelled(region)


def _inside(region: Region | None) -> str:
    return "" if region is None else f" in {_spelled(region)}"


def _check_inside(display: RemoteDisplay, region: Region | None) -> None:
    if region is not None and (region[2] > display.height or region[3] > display.width):
        raise CannotDo(f"--region {_spelled(region)} is not inside of {_size(display)}")


def _size(display: RemoteDisplay) -> str:
    return f"the surface, which has {display.width}x{display.height} pixels"


# Acting


async def _input(display: RemoteDisplay, action: Action) -> dict[str, Any]:
    """Whatever has the name of a method of the display, which takes the value."""
    option, _, value = action.step
    if isinstance(value, tuple):
        _check_places(display, value)
    await getattr(display, option.replace("-", "_"))(
        *value if isinstance(value, tuple) else [value]
    )
    return {}


def _check_places(display: RemoteDisplay, numbers: tuple[int, ...]) -> None:
    for x, y in zip(numbers[::2], numbers[1::2], strict=True):
        if x >= display.width or y >= display.height:
            raise CannotDo(f"{x},{y} is outside of {_size(display)}")


_DO: Mapping[str, Callable[[RemoteDisplay, Action], Awaitable[dict[str, Any]]]] = {
    "wait-change": _wait_change,
    "wait-stable": _wait_stable,
    "screenshot": _screenshot,
    **dict.fromkeys(INPUTS, _input),
}
"""What does an action; it returns what there is to tell of it."""
