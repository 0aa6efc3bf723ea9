"""What the README and the guide say is so: their examples run as printed, their commands exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import spiceshm
import spiceshm.events
from spiceshm.cli import client, server

from .programs import DEADLINE, environment, short_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUIDE = ROOT / "docs/looking-and-acting.md"
TEXT = README.read_text(encoding="utf-8")
GUIDE_TEXT = GUIDE.read_text(encoding="utf-8")


def block(language: str, beginning: str) -> str:
    """The one block of code of the README that has these words."""
    [found] = (
        code
        for code in re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
        if beginning in code
    )
    return str(found)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for sockets and files."""
    with short_directory() as path:
        yield path


def run(place: Path, *arguments: str) -> str:
    """Run Python there to its end, which has to be a good one; what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_two_ends_run_against_each_other(place: Path) -> None:
    draw, look = block("python", "async def draw"), block("python", "async def look")
    name = str(place / "demo.sock")
    draw, look = (part.replace("/tmp/spiceshm-readme/demo.sock", name) for part in (draw, look))
    with subprocess.Popen([sys.executable, "-c", draw]) as drawing:
        while not Path(name).exists():
            assert drawing.poll() is None
        first, *rest = run(place, "-c", look).splitlines()
        assert drawing.poll() is None  # it draws for ten seconds, nobody needs to wait for that
        drawing.terminate()
    assert first == "640 480 True"
    assert len(rest) >= 10


@pytest.mark.peer("Xvfb", "xterm")
def test_the_session_at_the_prompt(place: Path) -> None:
    (place / "session").write_text(block("pycon", ">>>"))
    run(place, "-m", "doctest", "-o", "ELLIPSIS", "session")
    with Image.open(place / "after.png") as picture:
        assert picture.size == (640, 480)
        assert len(picture.getcolors()) > 1


@pytest.mark.peer("Xvfb", "xterm")
def test_the_test_with_the_fixture(place: Path) -> None:
    [line] = re.findall(r"`conftest.py` says\s`(.*?)`", TEXT)
    (place / "conftest.py").write_text(line)
    (place / "test_it.py").write_text(block("python", "def test_it_greets"))
    assert "= 1 passed in" in run(place, "-m", "pytest", "--basetemp=temp")


@pytest.mark.peer("Xvfb", "xterm")
def test_the_same_with_trio(place: Path) -> None:
    assert run(place, "-c", block("python", "spiceshm.desktop(")) == "changed: True\n"


def test_every_block_is_tested() -> None:
    assert len(re.findall(r"^```\w", TEXT, re.MULTILINE)) == 5
    assert "```" not in GUIDE_TEXT


@pytest.mark.parametrize(
    "line", re.findall(r"^    (spiceshm-(?:server|client).*?)(?:\s+#.*)?$", TEXT, re.MULTILINE)
)
def test_commands_are_understood(line: str) -> None:
    name, *words = shlex.split(line)
    options = {"spiceshm-server": server, "spiceshm-client": client}[name]._options()
    assert options.parse_args(words)


def test_options_that_the_guide_names_exist() -> None:
    known = server._options().format_help() + client._options().format_help()
    named = set(re.findall(r"--[a-z][a-z-]+", GUIDE_TEXT))
    assert named
    assert named <= set(re.findall(r"--[a-z][a-z-]+", known))


def test_exit_statuses_are_those_of_the_program() -> None:
    [said] = re.findall(r"^Exit status: (.*?)\.$", TEXT, re.MULTILINE | re.DOTALL)
    [helped] = re.findall(r"^exit status: (.*?)\.$", client.EXAMPLES, re.MULTILINE | re.DOTALL)
    numbers = re.compile(r"\b\d+ ")
    assert numbers.findall(said) == numbers.findall(helped)


def test_the_events_that_the_guide_names_are_all_that_there_are() -> None:
    named = re.findall(r"^\| `(\w+)\(([\w, ]+)\)", GUIDE_TEXT, re.MULTILINE)
    events = spiceshm.events.Event.__args__  # type: ignore[attr-defined]
    assert named == [(kind.__name__, ", ".join(kind.__dataclass_fields__)) for kind in events]


def test_the_files_that_they_name_are_there() -> None:
    for path in (*re.findall(r"\]\(([^)]+)\)", TEXT), *re.findall(r"^    \./(\S+)", TEXT, re.M)):
        assert (README.parent / path).exists(), path
    for path in re.findall(r"\]\(([^)]+)\)", GUIDE_TEXT):
        assert (GUIDE.parent / path).exists(), path
    assert shutil.which(str(README.parent / "tools/demo"))


async def test_who_can_connect_on_loopback_can_type() -> None:
    """As the README warns, and what it says to do about it."""
    played: list[spiceshm.events.Event] = []

    async def play(events: Sequence[spiceshm.events.Event]) -> None:
        played.extend(events)

    local = "tcp:127.0.0.1:0"
    async with spiceshm.serve(local, view_only=[local], inputs=play) as display:
        display.create_surface(64, 48).draw(np.zeros((48, 64, 4), np.uint8))
        async with spiceshm.connect(str(display.addresses[0])) as anybody:
            await anybody.type("a")
        assert [event.code for event in played] == [0x1E, 0x1E]  # type: ignore[union-attr]
        async with spiceshm.connect(str(display.view_only_addresses[0])) as looker:
            with pytest.raises(spiceshm.ViewOnly):
                await looker.type("a")
    async with spiceshm.serve(local, inputs=play, password="secret") as display:
        with pytest.raises(spiceshm.LinkRefused):
            async with spiceshm.connect(str(display.addresses[0])):
                pass
