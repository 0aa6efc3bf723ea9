"""What every test shares: descriptors are counted around each, and stock programs are asked for."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from tests.programs import mapped

if TYPE_CHECKING:
    from collections.abc import Iterator

# A shell makes what it runs in the background ignore Ctrl-C, and so all that we start would.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REQUIRED = os.environ.get("SPICESHM_REQUIRE_PEERS") == "1"


def _open_descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that listed the directory
    return found


@pytest.fixture(autouse=True)
def descriptors_counted() -> Iterator[None]:
    """No test may leave a descriptor open; views that await the garbage collector are collected."""
    before = _open_descriptors()
    yield
    after = _open_descriptors()
    if len(after) > len(before):
        gc.collect()
        after = _open_descriptors()
    left = {fd: what for fd, what in after.items() if before.get(fd) != what}
    assert len(after) <= len(before), f"descriptors left open: {left}"


@pytest.fixture
def nothing_stays_mapped() -> Iterator[None]:
    """No test that asks for this may leave shared memory mapped."""
    before = len(mapped(os.getpid()))
    yield
    for generation in range(3):  # the youngest first: all of them take a tenth of a second
        if len(mapped(os.getpid())) > before:
            gc.collect(generation)
    assert len(mapped(os.getpid())) <= before


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """``@pytest.mark.peer("Xvfb", "xterm")``: skipped without them, failed where they must be."""
    for mark in item.iter_markers("peer"):
        missing = [name for name in mark.args if shutil.which(name) is None]
        if missing and REQUIRED:
            pytest.fail(f"stock programs missing: {', '.join(missing)}", pytrace=False)
        if missing:
            pytest.skip(f"stock programs missing: {', '.join(missing)}")
