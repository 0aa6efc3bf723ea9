"""The command: how long, how many readers, and what is printed of it."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from .beside import Beside
from .breaks import BREAKS
from .process import preload
from .run import STEADY, Result, Soak, steady

if TYPE_CHECKING:
    from collections.abc import Sequence

DESCRIPTION = """\
Let readers of every kind come and go at one server: fast, slow, leaking frames, not reading, of
ordinary SPICE, stopped and killed at random, while modes change and memory is replaced. Every frame
that any of them sees is checked.

With --viewers instead: one reader of 1920x1080, in turn alone and beside spicy on the Unix socket,
remote-viewer over TCP and a spicy that is stopped, all at the lowest priority. Fails if medians are
more than 1.5 times worse beside them, if memory grows, if more waits for who does not read than one
update, or if anybody does not show the last picture. Needs Xvfb, spicy and remote-viewer."""
EXAMPLES = """\
examples:
  tools/soak --minutes 10                  what a release is tried with
  tools/soak --minutes 1 --readers 24      a crowd; --seed N to have the same choices again
  tools/soak --frames 100000               plain: so many frames, by 1, 2, 4, 8 and 16 readers
  tools/soak --minutes 0.5 --json          the figures for a program
  tools/soak --break outside               a writer that is wrong on purpose, which must be found
  tools/soak --viewers --minutes 10        a reader alone, and beside spicy and remote-viewer

Ctrl-C ends it early, with all its checks. Exit status: 0 all was well, 1 something was not,
2 wrong options."""


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes above 0")
    return value


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="tools/soak",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = options.add_argument
    add("--minutes", type=_positive, metavar="M", help="how long (default: 10)")
    add("--frames", type=int, metavar="N", help="instead: until N frames were checked")
    add("--visits", type=int, default=0, metavar="N", help="and until N readers have come")
    add("--readers", type=int, default=8, metavar="N", help="at a time (default: 8)")
    add("--viewers", action="store_true", help="instead: what stock viewers cost one reader")
    add("--seed", metavar="S", help="of all that is random (default: another one each time)")
    add("--json", action="store_true", help="at the end one JSON object on stdout")
    add("--break", dest="broken", choices=BREAKS, help="be wrong in this way, on purpose")
    return options


class Progress:
    """Lines on stderr, the more seldom the longer it takes."""

    def __init__(self, seconds: float) -> None:
        self._every = max(1.0, seconds / 60)
        self._next = self._every

    def __call__(self, spent: float, phase: str, figures: dict[str, Any]) -> None:
        if spent < self._next:
            return
        self._next = spent + self._every
        print(
            f"{spent:5.0f} s  {figures['published']} published, {figures['seen']} seen, "
            f"{figures['torn']} torn, {figures['lost']} lost, {figures['readers']} readers "
            f"({figures['killed']} killed), {figures['most_shm_bytes'] / 1e6:.0f} MB at most: "
            f"{phase}",
            file=sys.stderr,
            flush=True,
        )


def main(words: Sequence[str] | None = None) -> int:
    options = _options()
    arguments = options.parse_args(words)
    if arguments.readers < 1 or (arguments.frames is not None and arguments.frames < 1):
        options.error("--readers and --frames are whole numbers above 0")
    if arguments.frames and (arguments.minutes or arguments.visits or arguments.broken):
        options.error("--frames goes with --seed and --json only")
    if arguments.broken and (arguments.minutes or arguments.visits):
        options.error("--break ends by itself, as soon as it must have been found")
    if arguments.viewers and (arguments.frames or arguments.visits or arguments.broken):
        options.error("--viewers goes with --minutes, --seed and --json only")
    seed = arguments.seed or secrets.token_hex(4)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    try:
        preload("tools.soaking.writer", "tools.soaking.reader", "tools.soaking.moving")
        result = _run(arguments, seed)
    except KeyboardInterrupt:  # a second one, or before it had begun
        return 130
    _print(result, as_json=arguments.json)
    return 1 if result.failures else 0


def _run(arguments: argparse.Namespace, seed: str) -> Result:
    print(f"seed {seed}", file=sys.stderr, flush=True)
    if arguments.frames:
        counts = ", ".join(map(str, STEADY))
        print(f"{arguments.frames} frames by {counts} readers in turn", file=sys.stderr)
        start = time.monotonic()
        return steady(
            arguments.frames,
            seed,
            lambda line: print(f"{time.monotonic() - start:5.0f} s  {line}", file=sys.stderr),
        )
    seconds = 60 * (arguments.minutes or 10)
    if arguments.viewers:
        return Beside(seconds, seed, lambda line: print(line, file=sys.stderr, flush=True)).run()
    return Soak(
        seconds,
        arguments.readers,
        seed,
        visits=arguments.visits,
        broken=arguments.broken,
        tell=Progress(seconds),
    ).run()


def _print(result: Result, *, as_json: bool) -> None:
    if as_json:
        said = {"seed": result.seed, "interrupted": result.interrupted, **result.figures}
        print(json.dumps({**said, "failures": result.failures}))
        return
    for name, value in result.figures.items():
        print(f"{name.replace('_', ' '):30} {value}")
    for failure in result.failures:
        print(f"FAILED: {failure}")
    end = "interrupted: " if result.interrupted else ""
    print(f"{end}{'not all was well' if result.failures else 'all is well'} (seed {result.seed})")
