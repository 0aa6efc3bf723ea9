"""The job in C: floor.c, compiled on the spot."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .process import PATIENCE_S, Failed
from .stats import Measures, latencies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .work import Work

SOURCE = Path(__file__).with_name("floor.c")
HOW_TO = "a C compiler is needed (Debian: apt-get install gcc libc6-dev)"


def compiler() -> str | None:
    """The system's C compiler; None if there is none."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build(directory: Path) -> Path:
    """Compile the floor into ``directory``. Raises Failed saying what to install."""
    command = compiler()
    if command is None:
        raise Failed(HOW_TO)
    program = directory / "floor"
    done = subprocess.run(
        [command, "-O2", "-Wall", "-o", str(program), str(SOURCE)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed(f"{HOW_TO}; {command} says: {done.stderr.strip()[-500:]}")
    return program


def measure(
    program: Path, work: Work, cores: Sequence[int], seconds: float, warmup: float
) -> Measures:
    """Run the job once. Raises Failed."""
    command = [str(program), *_options(work, cores), "--seconds", f"{seconds}"]
    command += ["--warmup", f"{warmup}", *(",".join(map(str, rect)) for rect in work.rects)]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=seconds + PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Failed("the floor did not end") from None
    if done.returncode:
        raise Failed(done.stderr.decode(errors="replace").strip())
    return _measures(done.stdout)


def _options(work: Work, cores: Sequence[int]) -> list[str]:
    writer, reader = {
        "two": (cores[0], cores[-1]),
        "one": (cores[0], cores[0]),
        "any": (-1, -1),
    }[work.cores]
    options = {
        "width": work.size[0],
        "height": work.size[1],
        "window": work.credits,
        "pause-us": int(work.pause_s * 1e6),
        "writer-cpu": writer,
        "reader-cpu": reader,
        "step": work.step,
        "paint": "fill" if work.paint == "fill" else "copy",
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def _measures(output: bytes) -> Measures:
    line, _, raw = output.partition(b"\n")
    said = json.loads(line)
    updates = said["updates"]
    if updates < 2:
        raise Failed("too few updates")
    times = np.frombuffer(raw, np.int64).reshape(-1, 3)
    begun, published, seen = times.T
    return {
        "updates_per_s": updates / (said["took_ns"] / 1e9),
        "server_cpu_us": said["writer_cpu_ns"] / 1000 / updates,
        "reader_cpu_us": said["reader_cpu_ns"] / 1000 / updates,
        **latencies("done", seen - begun),
        **latencies("seen", seen - published),
    }
