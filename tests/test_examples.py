"""The examples, each as a user runs it; what counts is what came of it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
from PIL import Image

import spiceshm

from . import byhand
from .programs import DEADLINE, Program, environment, short_directory, until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for sockets and files."""
    with short_directory() as path:
        yield path


def words(name: str, *arguments: object) -> list[str]:
    """How to run an example."""
    return [sys.executable, str(EXAMPLES / name), *map(str, arguments)]


def surroundings() -> dict[str, str]:
    """The environment of an example: it is to use this spiceshm, installed or not."""
    return environment(PYTHONPATH=str(ROOT))


def run(name: str, *arguments: object, cwd: Path | None = None) -> str:
    """Run an example to its end, which has to be a good one; what it printed."""
    done = subprocess.run(
        words(name, *arguments),
        env=surroundings(),
        cwd=cwd,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    return done.stdout


def test_every_example_has_a_test() -> None:
    text = Path(__file__).read_text()
    assert {path.name for path in EXAMPLES.glob("*.py")} <= set(re.findall(r'"(\w+\.py)"', text))


@pytest.mark.peer("Xvfb", "xmessage")
def test_a_dialog_is_answered() -> None:
    """xmessage ends with the number of the button that was pressed."""
    assert run("dialog.py").endswith("the dialog ended with 20\n")


@pytest.mark.peer("qemu-system-x86_64")
def test_a_machine_is_booted_from_its_menu(place: Path) -> None:
    """The firmware writes a line for each device that it tries, and one when there is no other."""
    assert re.search(r": 720x400, menu.png, booted.png\n$", run("machine.py", cwd=place))
    menu, booted = (
        np.asarray(Image.open(place / f"{name}.png")).reshape(25, 16, 720, 3)
        for name in ("menu", "booted")
    )
    lines = [[bool(line[:, 9:].any()) for line in picture] for picture in (menu, booted)]
    assert [at for at, text in enumerate(lines[0]) if text] == [0, 2, 4, 6, 7, 8]
    assert (booted[:9] == menu[:9]).all()
    assert sum(lines[1]) >= 6 + 2


@pytest.mark.peer("Xvfb", "xmessage")
def test_an_agent_answers_all_questions_and_sees_only_what_changes() -> None:
    """The program ends with 0 only if each of its questions got the right answer."""
    said = run("agent.py")
    assert said.endswith("the program ended with 0\n")
    *_, looked = map(int, re.findall(r"(\d+) pixels looked at", said))
    assert 800 * 600 < looked < 1.2 * 800 * 600


@pytest.mark.peer("Xvfb", "xterm")
async def test_a_recording_laid_over_each_other_is_the_display(place: Path) -> None:
    program = ["xterm", "-geometry", "80x24+0+0", "-e", "sh"]
    async with spiceshm.desktop(*program, width=640, height=480) as desktop:
        await desktop.display.wait_change()
        await trio.to_thread.run_sync(run, "record.py", place / "new", desktop.address)
        truth = await desktop.display.screenshot()
    shown = np.zeros_like(truth)
    lines = [json.loads(line) for line in (place / "new/index.jsonl").read_text().splitlines()]
    for line in lines:
        top, left, bottom, right = line["region"]
        with Image.open(place / "new" / line["file"]) as picture:
            shown[top:bottom, left:right] = picture
    assert np.array_equal(shown, truth)
    first, *later = lines
    assert (first["after"], first["region"]) == (["latest"], [0, 0, 480, 640])
    assert [line["after"] for line in later if line["after"] == ["type", "echo the end"]]
    assert all(line["region"] != first["region"] for line in later)


def verdict(file: Path, place: Path) -> str:
    """What pytest says that has none of the plugins which our own tests need."""
    words = ["-m", "pytest", "-p", "no:trio", "-p", "no:cacheprovider", f"--basetemp={place}/temp"]
    done = subprocess.run(
        [sys.executable, *words, str(file)],
        cwd=ROOT,
        env=surroundings(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=DEADLINE,
    )
    return done.stdout


@pytest.mark.peer("Xvfb", "xterm")
def test_the_tests_of_a_program(place: Path) -> None:
    """They pass, and one fails where the program is wrong."""
    assert "= 2 passed in" in verdict(EXAMPLES / "test_gui.py", place)
    text = (EXAMPLES / "test_gui.py").read_text()
    (place / "test_wrong.py").write_text(text.replace('echo "$name"', "echo nobody"))
    assert "= 1 failed, 1 passed in" in verdict(place / "test_wrong.py", place)


async def test_an_emulator_is_played_with(place: Path) -> None:
    square = (255, 200, 0)
    socket = place / "s"
    width, height = 640, 480
    with Program(words("emulator.py", f"unix:{socket}"), surroundings()) as emulator:
        until(socket.exists)
        async with spiceshm.connect(f"unix:{socket}") as display:

            async def shown_at(x: int, y: int) -> None:
                frame = await display.wait_change(timeout=DEADLINE)
                picture = np.zeros((height, width, 3), np.uint8)
                picture[y : y + 40, x : x + 40] = square
                assert np.array_equal(frame.rgb(), picture)

            await display.key("Right")
            await shown_at(340, 220)
            await display.key("Up")
            await shown_at(340, 180)
            await display.click(620, 70)  # it stays within the display
            await shown_at(600, 70)
            async with byhand.window(f"unix:{socket}") as window:
                await window.wants(500, 300)
                width, height = 500, 300
                await shown_at(460, 70)
            with contextlib.suppress(spiceshm.Disconnected):  # it may end before it can say so
                await display.type("q")
        assert emulator.wait() == 0
    assert emulator.errors == ""
