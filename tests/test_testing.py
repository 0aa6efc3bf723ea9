"""The fixtures for other people's tests, in a pytest of its own as they run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

pytest_plugins = ["pytester"]

pytestmark = pytest.mark.peer("Xvfb", "xterm", "xdotool")

TESTS = """
import subprocess

def xterm(spiceshm_desktop, colour):
    desktop = spiceshm_desktop("xterm", "-bg", colour, "-e", "cat", width=320, height=200)
    words = ["xdotool", "search", "--sync", "--onlyvisible", "--class", "xterm"]
    subprocess.run(words, env=desktop.environment, check=True)
    while not desktop.display.latest().pixels[100, 100].any():
        pass
    return desktop

def test_that_passes(spiceshm_desktop):
    desktop = xterm(spiceshm_desktop, "navy")
    assert (desktop.display.width, desktop.display.height) == (320, 200)
    assert spiceshm_desktop("sh", "-c", "exit 3").wait() == 3

def test_that_fails(spiceshm_desktop):
    desktops = [xterm(spiceshm_desktop, colour) for colour in ("red", "blue")]
    assert "red" == "blue"

def test_whose_desktop_is_gone(spiceshm_desktop):
    desktop = spiceshm_desktop("xterm")
    desktop.close()
    assert "red" == "blue"

def test_that_fails_without_a_desktop():
    assert "red" == "blue"
"""


def test_a_picture_where_a_test_fails(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["spiceshm.testing"]')
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("--basetemp=temp")
    result.assert_outcomes(passed=1, failed=3)
    text = result.stdout.str()
    said = re.findall(r"--- desktop :\d+ -+\n(.*)\n", text)
    assert len(said) == 3
    for line, colour in zip(said, [(255, 0, 0), (0, 0, 255)], strict=False):
        path = Path(line.removeprefix("what it showed: "))
        assert path.parent.name.startswith("test_that_fails")
        with Image.open(path) as picture:
            assert picture.size == (320, 200)
            assert picture.convert("RGB").getpixel((100, 100)) == colour
    assert re.fullmatch(r"no picture: desktop :\d+: the connection was closed here", said[2])
    assert len(list(pytester.path.rglob("desktop-*.png"))) == 2
