"""tools/bench: its statistics are right, its floor compiles, and a tiny run of it works."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio

from spiceshm.codecs import tokens
from tools.benchmark import (
    cases,
    decoders,
    floor,
    gather,
    guest,
    plot,
    report,
    stats,
    stock,
    work,
)
from tools.benchmark.process import Failed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ROOT = Path(__file__).resolve().parent.parent
CONDITIONS = cases.Conditions(None, (0,), 0.05, 0.01)


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command as tools/bench does, with the interpreter that runs the tests."""
    command = [sys.executable, "-m", "tools.benchmark", *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def found(**rounds: list[stats.Measures | None]) -> gather.Gathered:
    machine = {"cpu": "a model", "spiceshm": "1.2.3"}
    settings = {"rounds": 2, "seconds": 0.1, "warmup": 0.01}
    return gather.Gathered(machine, settings, dict(rounds))


def table(*rows: cases.Row, better: Any = "less") -> cases.Table:
    return cases.Table("one", "A title", "A note.", ("ours", "theirs"), better, rows)


ROW = cases.Row("a row", "mine", "seen_us", "yours")


# Statistics


def test_a_spread_is_the_median_between_the_least_and_the_most() -> None:
    assert stats.spread([3.0, 1.0, 8.0]) == (3.0, 1.0, 8.0, 3)
    assert stats.spread([1.0, 2.0]) == (1.5, 1.0, 2.0, 2)
    assert stats.spread([]) is None


def test_ratios_are_made_round_by_round_and_never_of_rounds_that_failed() -> None:
    over = [{"a": 6.0}, {"a": 5.0}, None, {"a": 1.0}, {}]
    under = [{"a": 2.0}, None, {"a": 1.0}, {"a": 0.0}, {"a": 3.0}]
    assert stats.ratios(over, under, "a") == [3.0]
    assert stats.ratios([{"a": 6.0}], [{"b": 4.0}], "a", "b") == [1.5]
    with pytest.raises(ValueError, match="zip"):
        stats.ratios([{"a": 1.0}], [], "a")


def test_latencies_are_percentiles_in_microseconds() -> None:
    measured = stats.latencies("seen", np.arange(0, 101_000, 1000))
    assert measured == {"seen_p50_us": 50.0, "seen_p90_us": 90.0, "seen_p99_us": 99.0}
    assert stats.latencies("seen", np.array([], np.int64)) == {}


# The job


@pytest.mark.parametrize("size", [work.VGA, work.HD, work.UHD])
def test_tiles_are_inside_the_surface_and_apart_where_they_should_be(size: tuple[int, int]) -> None:
    count = min(64, size[0] // work.TILE * (size[1] // work.TILE))
    for rects in (work.tile(size), work.adjacent(size, count), work.everything(size)):
        assert_inside(rects, size)
        assert painted(rects, size).sum() == sum((b - t) * (r - x) for t, x, b, r in rects)
    rects = work.scattered(size, 8)
    assert_inside(rects, size)
    assert len({top for top, *_ in rects}) == 8


def test_scattered_tiles_cannot_be_merged() -> None:
    from spiceshm import region

    assert len(region.merge(list(work.scattered(work.HD, 64)))) == 64
    assert len(region.merge(list(work.adjacent(work.HD, 64)))) < 8


def assert_inside(rects: tuple[work.Rect, ...], size: tuple[int, int]) -> None:
    for top, left, bottom, right in rects:
        assert 0 <= top < bottom <= size[1]
        assert 0 <= left < right <= size[0]


def painted(rects: tuple[work.Rect, ...], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    picture = np.zeros((size[1], size[0]), bool)
    for top, left, bottom, right in rects:
        picture[top:bottom, left:right] = True
    return picture


def test_what_moves_stays_inside_and_comes_to_every_place() -> None:
    job = work.Work(work.VGA, work.tile(work.VGA), step=work.TILE)
    places = [work.moved(job, update)[0] for update in range(1000)]
    assert len(set(places)) == work.VGA[0] - work.TILE + 1
    assert_inside(tuple(places), work.VGA)


# Cases and tables


def test_every_row_is_of_cases_that_there_are_and_every_case_is_in_a_row() -> None:
    named = {case.name for case in cases.needed(cases.TABLES)}
    assert named == set(cases.all_cases())
    assert len({one.name for one in cases.TABLES}) == len(cases.TABLES)
    quick = {case.name for case in cases.needed(cases.TABLES, quick=True)}
    others = {"x11-mss", "keys-vncdotool", "iceoryx2-tile"}
    assert {"idle-1", "floor/idle-1", "readers-8-shm", *others} < quick < named


def test_tables_and_cases_are_selected_by_name() -> None:
    assert [one.name for one in cases.selected(cases.TABLES, [])] == [
        one.name for one in cases.TABLES
    ]
    [only] = cases.selected(cases.TABLES, ["startup"])
    assert only.name == "startup"
    rows = [row for one in cases.selected(cases.TABLES, ["window-8-*"]) for row in one.rows]
    assert {row.case for row in rows} == {"window-8-two", "window-8-one"}
    [only] = cases.selected(cases.TABLES, ["iceoryx2-tile"])
    assert only.name == "handover"
    assert not cases.selected(cases.TABLES, ["nothing"])


# Gathering


def test_every_case_is_run_once_a_round_and_what_is_missing_or_fails_is_named() -> None:
    runs: list[str] = []

    def ran(name: str) -> Any:
        def run(_: cases.Conditions) -> stats.Measures:
            runs.append(name)
            if name == "bad" and runs.count("bad") == 2:
                raise Failed("no luck")
            return {"a_us": float(len(runs))}

        return run

    listed = [
        cases.Case("good", ran("good"), lambda _: None, True),
        cases.Case("bad", ran("bad"), lambda _: None, True),
        cases.Case("absent", ran("absent"), lambda _: "pip install absent", True),
    ]
    told: list[str] = []
    result = gather.gather(listed, CONDITIONS, 3, told.append)
    assert [set(runs[i : i + 2]) for i in (0, 2, 4)] == [{"good", "bad"}] * 3
    assert len(told) == len(runs) == 6
    assert len(result.rounds["good"]) == 3
    assert result.rounds["bad"][1] is None
    assert result.rounds["absent"] == []
    assert result.problems == {
        "bad": "failed: no luck",
        "absent": "not installed: pip install absent",
    }
    assert gather.Gathered.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_a_file_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format"):
        gather.Gathered.from_json({"format": 0})


# Reporting


def test_a_line_has_both_figures_and_their_ratio() -> None:
    [line] = report.lines(
        table(ROW), found(mine=[{"seen_us": 4.0}, {"seen_us": 9.0}], yours=[{"seen_us": 2.0}] * 2)
    )
    assert line.value == (6.5, 4.0, 9.0, 2)
    assert line.against == (2.0, 2.0, 2.0, 2)
    assert line.ratio == (3.25, 2.0, 4.5, 2)
    assert line.problem is None


@pytest.mark.parametrize("markdown", [False, True])
def test_what_is_missing_is_said_with_how_to_get_it(markdown: bool) -> None:
    result = found(mine=[{"seen_us": 4.0}], yours=[])
    result.problems["yours"] = "not installed: pip install yours"
    text = report.render([table(ROW)], result, markdown=markdown)
    assert "a model" in text
    assert "A note." in text
    assert "4.00 us (4.00..4.00)" in text
    assert "yours not installed: pip install yours" in text
    [line] = report.summary([table(ROW)], result)
    assert line["ratio"] is None
    assert line["problem"] == "yours not installed: pip install yours"


def test_what_was_not_to_be_measured_is_left_out() -> None:
    assert report.lines(table(ROW), found(mine=[{"seen_us": 4.0}])) == []


def test_markdown_is_a_table() -> None:
    text = report.render([table(ROW)], found(mine=[{"seen_us": 1.0}], yours=[{"seen_us": 2.0}]))
    assert "0.50 x (0.50..0.50)" in text
    marked = report.render(
        [table(ROW)], found(mine=[{"seen_us": 1.0}], yours=[{"seen_us": 2.0}]), markdown=True
    )
    head, rule, row = marked.splitlines()[-3:]
    assert head.count("|") == rule.count("|") == row.count("|") == 5


def test_the_plot_is_drawn_or_says_what_to_install(tmp_path: Path) -> None:
    stored = tmp_path / "in.json"
    result = found(**{name: [{"seen_p50_us": 2.0}] for name in ("size-4k", "size-vga")})
    stored.write_text(json.dumps(result.to_json()))
    done = bench("--load", str(stored), "--only", "size", "--plot", str(tmp_path / "out.png"))
    if importlib.util.find_spec("matplotlib"):
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert done.returncode == 1
        assert done.stderr == f"bench: no plot: {plot.HOW_TO}\n"


# The floor


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return floor.build(tmp_path_factory.mktemp("floor"))


@pytest.mark.peer("cc")
@pytest.mark.parametrize(
    "job",
    [
        work.Work(work.VGA, work.tile(work.VGA), pause_s=0.001, cores="any"),
        work.Work(work.VGA, work.scattered(work.VGA, 8), cores="one"),
        work.Work(work.VGA, work.tile(work.VGA), credits=8, step=64, cores="any"),
        work.Work(work.VGA, work.everything(work.VGA), "fill", cores="any"),
    ],
)
def test_the_floor_does_the_job(program: Path, job: work.Work) -> None:
    measured = floor.measure(program, job, (0,), 0.05, 0.01)
    assert measured["updates_per_s"] > 0
    assert 0 < measured["seen_p50_us"] <= measured["done_p50_us"]
    assert measured["server_cpu_us"] > 0
    assert measured["reader_cpu_us"] > 0


@pytest.mark.peer("cc")
@pytest.mark.parametrize("rect", ["0,0,0,10", "0,0,10,2000", "nonsense"])
def test_the_floor_refuses_what_is_outside(program: Path, rect: str) -> None:
    done = subprocess.run([program, rect], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert rect in done.stderr


def test_without_a_compiler_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(Failed, match=r"^a C compiler is needed \(Debian: apt-get install gcc"):
        floor.build(tmp_path)
    case = cases.all_cases()["floor/core-1"]
    assert case.lacks(CONDITIONS) == floor.HOW_TO


def test_who_is_not_here_to_be_compared_with_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    lack = cases.all_cases()["encoders-xspice-lz"].lacks(CONDITIONS)
    assert lack == "apt-get install xserver-xspice"
    lack = cases.all_cases()["encoders-vnc-tight"].lacks(CONDITIONS)
    assert lack == "apt-get install xvfb; apt-get install x11vnc"


BLIND = """
import numpy as np
from tools.benchmark import contents, encoders
encoders.CONTENTS = ("text",)
contents.Painter.picture = lambda _: np.zeros((1080, 1920), np.uint32)
encoders.measure("lz4", 0.01)
"""


@pytest.mark.peer("Xvfb")
def test_who_shows_another_picture_than_the_x_server_has_failed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLIND], cwd=ROOT, capture_output=True, text=True, check=False
    )
    said = done.stderr.splitlines()[-1]
    assert said.startswith("tools.benchmark.process.Failed: text: ")
    assert said.endswith(" pixels are not those of the X server")


def test_the_boot_sector_is_one() -> None:
    sector = guest.boot_sector()
    assert len(sector) == 512
    assert sector.endswith(b"\x55\xaa")
    descriptors = 0x7D08 - 0x7C00  # where its gdt says that they are
    assert sector[descriptors : descriptors + 16].hex() == "00" * 8 + "ffff00000092cf00"


@pytest.mark.parametrize("data", [b"a", b"aaaa", b"abc" * 50, b"a" * 5000 + b"b" * 33, bytes(300)])
def test_what_is_packed_here_is_unpacked(data: bytes) -> None:
    packed = decoders.runs(data)
    plane, end = tokens.lz(packed, 0, len(data), 1)
    assert (bytes(plane), end) == (data, len(packed))


def test_a_picture_that_is_read_twice_counts_once() -> None:
    async def pictures() -> AsyncGenerator[Any, None]:
        for number in (0, 0, 1, 2, 2, 2, 3, 4, 4):
            yield np.full((20, 40, 4), number, np.uint8)
        await trio.sleep(0.05)
        yield np.full((20, 40, 4), 5, np.uint8)

    class Reader:
        all = staticmethod(pictures)

    found = trio.run(stock.count, Reader, 0.05)
    assert found["pictures_per_s"] == pytest.approx(4 / 0.05, rel=0.4)
    assert found["reader_cpu_us"] >= 0


# All of it


def test_a_tiny_run_of_a_machine_and_a_decoder(tmp_path: Path) -> None:
    stored = tmp_path / "out.json"
    only = ["--only", "machine-qemu-tcp", "--only", "decoders-canvas-lz4"]
    done = bench(*only, "--rounds", "1", "--seconds", "0.05", "--json", str(stored))
    assert done.returncode == 0, done.stderr
    result = json.loads(stored.read_text())
    assert all(why.startswith("not installed: ") for why in result["problems"].values())
    for run in result["rounds"]["machine-qemu-tcp"]:
        assert run["first_ms"] > 0
        assert run["line_pictures_per_s"] > 0
        assert run["page_pictures_per_s"] > 0
    for run in result["rounds"]["decoders-canvas-lz4"]:
        assert run["text_us"] > run["copy_us"] / 10
        assert 0 < run["text_bytes"] < 1920 * 1080 * 4 / 5


@pytest.mark.peer("cc")
def test_a_tiny_run_measures_and_stores_everything(tmp_path: Path) -> None:
    stored = tmp_path / "out.json"
    names = ("core-1", "size-vga", "readers-2-*", "startup", "memory", "iceoryx2-tile")
    more = ("x11", "keys", "encoders-lz")
    only = [word for name in (*names, *more) for word in ("--only", name)]
    done = bench(*only, "--rounds", "1", "--seconds", "0.05", "--json", str(stored))
    assert done.returncode == 0, done.stderr
    result = json.loads(stored.read_text())
    assert set(result) == {"format", "machine", "settings", "rounds", "problems", "summary"}
    assert {"cpu", "cores", "kernel", "python", "numpy", "trio"} <= set(result["machine"])
    assert all(why.startswith("not installed: ") for why in result["problems"].values())
    for name, rounds in result["rounds"].items():
        assert len(rounds) == (0 if name in result["problems"] else 1)
        assert all(value >= 0 for run in rounds for value in run.values())
    lines = {(line["table"], line["label"]): line for line in result["summary"]}
    assert lines["handover", "1 tile: sender's CPU"]["against"] == "iceoryx2-tile"
    if "keys-xdotool" not in result["problems"]:
        assert lines["keys", "xdotool, mss: key until its effect, p99"]["ratio"]["median"] > 0
    if "encoders-lz" not in result["problems"]:
        sent = lines["encoders-bytes", "page: LZ, Xspice"]
        assert 0 < sent["value"]["median"] < 960 * 650 * 4 / 5
        assert sent["against"] == "encoders-xspice-lz"
    same_core = lines["latency", "1 tile, same core"]
    assert same_core["against"] == "floor/core-1"
    assert same_core["ratio"]["median"] > 0
    assert lines["bytes", "1 tile: to look at"]["ratio"]["median"] == pytest.approx(1, rel=0.5)
    assert lines["memory", "segments"]["value"]["median"] > 3 * 1920 * 1080 * 4
    again = bench("--load", str(stored), "--markdown", *only)
    assert again.returncode == 0
    assert "## Published until seen" in again.stdout


def test_wrong_options_are_told() -> None:
    for words in (("--only", "size", "--only", "nothing"), ("--rounds", "0"), ("--seconds", "-1")):
        done = bench(*words)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("tools/bench: error: ")
    assert "tools/bench --quick" in bench("--help").stdout
    assert "idle-1 / floor/idle-1" in bench("--list").stdout


def test_the_shell_entry_is_a_script() -> None:
    assert shutil.which(str(ROOT / "tools" / "bench"))
    subprocess.run(["sh", "-n", str(ROOT / "tools" / "bench")], check=True)
