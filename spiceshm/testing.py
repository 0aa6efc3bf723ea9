"""For pytest: desktops for tests of programs with windows, and a picture of them when one fails.

In the topmost ``conftest.py``::

    pytest_plugins = ["spiceshm.testing"]

and in a test::

    def test_it_greets(spiceshm_desktop):
        desktop = spiceshm_desktop("xterm", width=640, height=480)
        ...
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

import pytest
from PIL import Image

from . import sync
from .errors import SpiceShmError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path


class OpenDesktop(Protocol):
    """What the fixture `spiceshm_desktop` gives."""

    def __call__(self, *command: str, width: int = 1280, height: int = 800) -> sync.Desktop:
        """A new desktop with ``command``, if any, on it, until the test ends.

        ``width`` and ``height`` are in pixels. Raises what `spiceshm.desktop` raises.
        """


_OPENED = pytest.StashKey[tuple["Path", list[sync.Desktop]]]()
"""Of a test: the folder for its pictures, and the desktops that it has."""


@pytest.fixture
def spiceshm_desktop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenDesktop]:
    """Opens desktops of the test's own: ``spiceshm_desktop("xterm", width=640, height=480)``.

    When the test fails, a picture of each is in ``tmp_path``, and the report says where.
    """
    opened: list[sync.Desktop] = []
    with contextlib.ExitStack() as stack:

        def open_desktop(*command: str, width: int = 1280, height: int = 800) -> sync.Desktop:
            desktop = stack.enter_context(sync.desktop(*command, width=width, height=height))
            opened.append(desktop)
            return desktop

        request.node.stash[_OPENED] = tmp_path, opened
        yield open_desktop
        del request.node.stash[_OPENED]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Save what the desktops of a failed test show, as long as they are there."""
    report = yield
    if report.failed and _OPENED in item.stash:
        folder, opened = item.stash[_OPENED]
        for number, desktop in enumerate(opened, 1):
            path = folder / f"desktop-{number}.png"
            report.sections.append((f"desktop {desktop.x_display}", _picture(desktop, path)))
    return report


def _picture(desktop: sync.Desktop, path: Path) -> str:
    """Save a picture; words that say where, or why there is none."""
    try:
        Image.fromarray(desktop.display.screenshot(cursor=True)).save(path)
    except (SpiceShmError, OSError) as error:  # the report is of the test's failure, not of this
        return f"no picture: {error}"
    return f"what it showed: {path}"
