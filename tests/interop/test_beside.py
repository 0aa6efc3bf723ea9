"""Viewers that people have cost a reader of shared memory and who draws next to nothing.

`tools/soak --viewers` does it for as long as asked; here for half a minute. It is timed, so what is
held is coarse, a factor of 1.5 between medians of one run whose parts alternate, and the figures
are printed. The viewers paint at the lowest priority: what they take of two processors is theirs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.programs import DEADLINE, environment, processes_with, until

pytestmark = pytest.mark.peer("spicy", "remote-viewer", "Xvfb", "setpriv")

ROOT = Path(__file__).resolve().parent.parent.parent
SOAK = [sys.executable, "-m", "tools.soaking", "--viewers", "--json"]


def test_a_reader_beside_spicy_remote_viewer_and_one_that_is_stopped(tmp_path: Path) -> None:
    result = subprocess.run(
        [*SOAK, "--minutes", "0.4"],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=10 * DEADLINE,
    )
    print(result.stderr)
    figures: dict[str, Any] = json.loads(result.stdout)
    for name, value in figures.items():
        print(f"{name:30} {value}")
    until(lambda: not processes_with(str(tmp_path)))
    assert figures["failures"] == []
    assert result.returncode == 0
    assert figures["rounds"] >= 4
    for name in ("deliveries", "cost_of_parts", "own_cost_of_parts", "own_cost_of_wholes"):
        assert 0 < figures[f"ratio_{name}"] <= 1.5, name
    # All of it was really there: whoever is stopped does not read, and the others are drawn for.
    assert figures["images"]["raw"] > 100
    assert figures["images"]["lz4"] > 100
    assert figures["most_waiting_display_bytes"] > 0
