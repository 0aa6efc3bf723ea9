"""What the README says is so: its examples run as printed, its commands exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spiceshm.cli import client, server

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")
DEADLINE_S = 60


def test_the_two_ends_run_against_each_other(tmp_path: Path) -> None:
    draw, look = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert "serve(" in draw
    assert "connect(" in look
    place = str(tmp_path / "demo.sock")
    draw, look = (part.replace("/tmp/spiceshm-readme/demo.sock", place) for part in (draw, look))
    with subprocess.Popen([sys.executable, "-c", draw]) as drawing:
        while not Path(place).exists():
            assert drawing.poll() is None
        looking = subprocess.run(
            [sys.executable, "-c", look],
            capture_output=True,
            text=True,
            check=True,
            timeout=DEADLINE_S,
        )
        assert drawing.poll() is None  # it draws for ten seconds, nobody needs to wait for that
        drawing.terminate()
    first, *rest = looking.stdout.splitlines()
    assert first == "640 480 True"
    assert len(rest) >= 10


@pytest.mark.parametrize(
    "line", re.findall(r"^    (spiceshm-(?:server|client).*?)(?:\s+#.*)?$", TEXT, re.MULTILINE)
)
def test_commands_are_understood(line: str) -> None:
    name, *words = shlex.split(line)
    options = {"spiceshm-server": server, "spiceshm-client": client}[name]._options()
    assert options.parse_args(words)


def test_the_files_that_it_names_are_there() -> None:
    for path in (*re.findall(r"\]\(([^)]+)\)", TEXT), *re.findall(r"^    \./(\S+)", TEXT, re.M)):
        assert (README.parent / path).exists(), path
    assert shutil.which(str(README.parent / "tools/demo"))
