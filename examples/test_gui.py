"""Tests of a program with a window.

    pytest examples/test_gui.py

Needs Xvfb and xterm (Debian: xvfb, xterm). When a test fails, a picture of its desktop is saved and
the report says where.
"""

import pytest

pytest_plugins = ["spiceshm.testing"]  # where there are several files: in conftest.py

PROGRAM = 'printf "Your name? "; read -r name; echo "$name" > "$1"'


@pytest.fixture
def saved(tmp_path):
    """The file that the program writes."""
    return tmp_path / "saved"


@pytest.fixture
def desktop(spiceshm_desktop, saved):
    """A desktop on which the program has asked its question."""
    words = ["xterm", "-geometry", "60x20+0+0", "-e", "sh", "-c", PROGRAM, "sh", str(saved)]
    desktop = spiceshm_desktop(*words, width=400, height=300)
    desktop.display.wait_change()  # the window comes
    desktop.display.wait_stable()
    return desktop


def test_a_name_is_saved(desktop, saved):
    desktop.display.type("Adb")
    desktop.display.key("BackSpace")
    desktop.display.type("a\n")
    assert desktop.wait() == 0
    assert saved.read_text() == "Ada\n"


def test_what_is_typed_is_seen(desktop):
    first_line = (0, 0, 20, 400)  # top, left, bottom, right
    before = desktop.display.wait_stable(region=first_line)
    desktop.display.type("Ada")
    after = desktop.display.wait_change(first_line, timeout=5)
    assert (before.rgb(first_line) != after.rgb(first_line)).any()
