"""``spiceshm-client`` with actions, as a shell script uses it: order, answers, mistakes, ends."""

from __future__ import annotations

import json
import re
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio

import spiceshm
from spiceshm.cli import client
from spiceshm.cli.acting import plan
from spiceshm.cli.steps import bind_texts
from spiceshm.events import Button, CursorShape, Key, PointerTo
from tests import xvfb
from tests.programs import (
    DEADLINE,
    Program,
    command,
    forked,
    look,
    run,
    serving,
    short_directory,
    until,
)
from tests.test_programs import STILL, decoded, first_picture, one_line

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from spiceshm.events import Event

FOREVER = "1000"
"""Seconds that no test waits."""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for sockets and files."""
    with short_directory() as path:
        yield path


def steps(*words: str) -> list[Any]:
    return client._options().parse_args(bind_texts(list(words))).steps


async def acting(*words: str) -> subprocess.CompletedProcess[bytes]:
    """Run the program to its end while this process serves."""
    return await trio.to_thread.run_sync(partial(look, *words))


def noise(height: int, width: int, seed: int = 1) -> np.ndarray:
    """A picture of B, G, R, X in which no two places look the same."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)


class Desk:
    """A library server with a picture of 64x48, which notes what is done to it."""

    def __init__(self) -> None:
        self.picture = noise(48, 64)
        self.events: list[Event] = []
        self.react: Callable[[Event], None] = lambda _: None
        self.after = trio.Event()
        """Every batch is played, but not reported before this."""
        self.after.set()

    async def play(self, events: Sequence[Event]) -> None:
        for event in events:
            self.events.append(event)
            self.react(event)
        await self.after.wait()

    @property
    def down(self) -> set[int]:
        """The keys that are down."""
        keys = {e.code: e.down for e in self.events if isinstance(e, Key)}
        return {code for code, is_down in keys.items() if is_down}

    @property
    def clients(self) -> int:
        return len(self.display.viewers)

    def draw(self, top: int, left: int, bottom: int, right: int) -> None:
        """Another colour there, whatever it was."""
        self.picture[top:bottom, left:right] ^= 255
        self.surface.draw(self.picture, [(top, left, bottom, right)])

    @property
    def rgb(self) -> np.ndarray:
        return self.picture[:, :, 2::-1].copy()


@pytest.fixture
async def desk(place: Path) -> AsyncIterator[Desk]:
    """Its address is unix:PLACE/s, and unix:PLACE/look for those who may only look."""
    made = Desk()
    async with spiceshm.serve(
        f"unix:{place}/s", view_only=[f"unix:{place}/look"], inputs=made.play
    ) as display:
        made.display = display
        made.surface = display.create_surface(64, 48)
        made.surface.draw(made.picture)
        made.address = f"unix:{place}/s"
        yield made


# The order


def test_actions_keep_their_order_and_settings_hold_from_where_they_are() -> None:
    words = (
        "--wait-change 0 --region 1,2,3,4 --screenshot a.png --timeout 2 --wait-stable .5 "
        "unix:@x --region all --json --screenshot b.PPM --timeout 7.5 --wait-stable 1"
    )
    planned = [
        (action.step.option, action.step.value, action.region, action.timeout)
        for action in plan(steps(*words.split()), cursor=False)
    ]
    assert planned == [
        ("wait-change", 0.0, None, 30.0),
        ("screenshot", "a.png", (2, 1, 6, 4), 30.0),
        ("wait-stable", 0.5, (2, 1, 6, 4), 2.0),
        ("screenshot", "b.PPM", None, 2.0),
        ("wait-stable", 1.0, None, 7.5),
    ]


def test_texts_may_look_like_options() -> None:
    words = ["--type", "--key", "--type", "-la", "--type", "", "--type=--type", "--key", "-"]
    assert [(step.option, step.value) for step in steps(*words)] == [
        ("type", "--key"),
        ("type", "-la"),
        ("type", ""),
        ("type", "--type"),
        ("key", "-"),
    ]
    assert [step.value for step in steps("--scroll", "-3", "--scroll", "+2")] == [-3, 2]


async def test_pictures_are_of_their_place_in_the_order(desk: Desk, place: Path) -> None:
    pictures = [desk.rgb]

    def answer(event: Event) -> None:
        if event == Key(0x1E, True):
            desk.draw(10, 20, 20, 50)
            pictures.append(desk.rgb)

    desk.react = answer
    files = [str(place / name) for name in ("0.png", "part.ppm", "1.png", "2.png")]
    words = f"--screenshot {files[0]} --type a --wait-change {FOREVER} --region 15,5,30,20 "
    words += f"--screenshot {files[1]} --region all --screenshot {files[2]} --key a "
    words += f"--wait-change {FOREVER} --screenshot {files[3]}"
    result = await acting(*words.split(), desk.address)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    before, part, one, two = (decoded(place / file) for file in files)
    assert np.array_equal(before, pictures[0])
    assert np.array_equal(part, pictures[1][5:25, 15:45])
    assert np.array_equal(one, pictures[1])
    assert np.array_equal(two, pictures[2])


@pytest.mark.parametrize("how", ["--require-shm", "--no-shm"])
def test_a_part_of_the_pattern_pixel_by_pixel(how: str) -> None:
    with serving("--surface", "101x71", *STILL) as server:
        words = [how, "--region", "13,7,60,11", "--screenshot", "-", server.address]
        result = look(*words)
        assert (result.returncode, result.stderr) == (0, b"")
        assert np.array_equal(decoded(result.stdout), first_picture(101, 71)[7:18, 13:73])


async def test_the_pointer_is_seen_where_it_is_asked_for(desk: Desk, place: Path) -> None:
    desk.display.set_cursor(CursorShape(np.full((4, 5, 4), 255, np.uint8), 2, 1))
    desk.display.move_cursor(30, 20)
    words = f"--region 20,10,20,20 --screenshot {place}/a.png"
    for option in ([], ["--cursor"]):
        result = await acting(*option, *words.split(), desk.address)
        assert (result.returncode, result.stderr) == (0, b"")
        expected = desk.rgb
        if option:
            expected[19:23, 28:33] = 255
        assert np.array_equal(decoded(place / "a.png"), expected[10:30, 20:40])


async def test_what_arrives_there(desk: Desk) -> None:
    words = "--move 1,2 --click 3,4 --double-click 5,6 --drag 7,8,63,47 --scroll 2 --scroll -1"
    result = await acting(*words.split(), "--key", "ctrl+c", "--type", "aB\n", desk.address)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    buttons = [(e.button, e.down) for e in desk.events if isinstance(e, Button)]
    left, up, down = ([(b, True), (b, False)] for b in (1, 4, 5))
    assert buttons == [*left * 4, *down * 2, *up]
    places = [(e.x, e.y) for e in desk.events if isinstance(e, PointerTo)]
    assert list(dict.fromkeys(places))[:4] == [(1, 2), (3, 4), (5, 6), (7, 8)]
    assert places[-1] == (63, 47)
    keys = [(e.code, e.down) for e in desk.events if isinstance(e, Key)]
    ctrl_c = [(0x1D, True), (0x2E, True), (0x2E, False), (0x1D, False)]
    assert keys[:4] == ctrl_c
    assert [code for code, is_down in keys[4:] if is_down] == [0x1E, 0x2A, 0x30, 0x1C]
    assert sorted(keys[4:]) == sorted((c, d) for c in (0x1E, 0x2A, 0x30, 0x1C) for d in (0, 1))
    at = desk.events.index
    assert at(PointerTo(3, 4)) < at(Button(1, True)) < at(Button(5, True)) < at(Key(0x1D, True))


async def test_a_layout(desk: Desk) -> None:
    result = await acting("--keyboard", "de", "--type", "zy", desk.address)
    assert (result.returncode, result.stderr) == (0, b"")
    assert [e.code for e in desk.events if isinstance(e, Key) and e.down] == [0x15, 0x2C]


# Waiting


async def test_json_tells_of_every_action(desk: Desk, place: Path) -> None:
    desk.react = lambda event: desk.draw(0, 0, 1, 1) if event == Key(0x1E, True) else None
    words = f"--type a --wait-change {FOREVER} --region 0,0,9,9 --wait-stable 0.1 "
    words += f"--click 3,4 --screenshot {place}/a.png --json"
    result = await acting(*words.split(), desk.address)
    assert (result.returncode, result.stderr) == (0, b"")
    told = json.loads(result.stdout)
    actions = told.pop("actions")
    wire_bytes, pixel_bytes, seconds = (
        told.pop(name) for name in ("wire_bytes", "pixel_bytes", "seconds")
    )
    assert told == {
        "address": desk.address,
        "width": 64,
        "height": 48,
        "shm": True,
        "reason": None,
        "images": {},
        "stale": [],
    }
    assert min(wire_bytes, pixel_bytes) > 0
    spans = [action.pop("seconds") for action in actions]
    assert 0.1 <= spans[2] <= sum(spans) <= seconds < DEADLINE
    serials = [action.pop("serial") for action in actions[1:3]]
    assert serials[0] <= serials[1]
    assert actions == [
        {"action": "type", "value": "a", "ok": True},
        {"action": "wait-change", "value": 1000.0, "region": "all", "ok": True},
        {"action": "wait-stable", "value": 0.1, "region": "0,0,9,9", "ok": True},
        {"action": "click", "value": [3, 4], "ok": True},
        {
            "action": "screenshot",
            "value": f"{place}/a.png",
            "region": "0,0,9,9",
            "width": 9,
            "height": 9,
            "ok": True,
        },
    ]


async def test_nothing_changed(desk: Desk, place: Path) -> None:
    for words, value, region, why in (
        ("--wait-change 0", 0.0, "all", "--wait-change 0: nothing changed within 0 s"),
        (
            "--region 0,0,10,2 --wait-change .2",
            0.2,
            "0,0,10,2",
            "--wait-change .2: nothing changed in 0,0,10,2 within 0.2 s",
        ),
    ):
        after = f"--type a --screenshot {place}/never.png"
        result = await acting("--json", *words.split(), *after.split(), desk.address)
        assert result.returncode == 4
        assert one_line(result.stderr, "spiceshm-client") == why
        told = json.loads(result.stdout)
        assert told["error"] == why
        [action] = told["actions"]
        assert value <= action.pop("seconds") < DEADLINE
        assert action == {"action": "wait-change", "value": value, "region": region, "ok": False}
    assert desk.events == []
    assert not (place / "never.png").exists()


async def test_what_changes_elsewhere_is_no_change_here(desk: Desk) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_drawing, desk, (20, 20, 30, 30))
        # Its edges are those of what changes.
        result = await acting("--region", "0,0,64,20", "--wait-change", "0.3", desk.address)
        assert result.returncode == 4
        result = await acting("--region", "0,0,20,48", "--wait-stable", "0.3", desk.address)
        assert result.returncode == 0
        result = await acting("--region", "29,29,1,1", "--wait-change", FOREVER, desk.address)
        assert result.returncode == 0
        result = await acting("--timeout", "0.5", "--wait-stable", "0.3", desk.address)
        assert result.returncode == 4
        assert one_line(result.stderr, "spiceshm-client") == (
            "--wait-stable 0.3: changes did not stop for 0.3 s within 0.5 s"
        )
        nursery.cancel_scope.cancel()


async def keep_drawing(desk: Desk, box: tuple[int, int, int, int]) -> None:
    while True:
        desk.draw(*box)
        await trio.sleep(0.01)


async def test_a_change_counts_from_the_action_before(desk: Desk) -> None:
    """What came of an earlier action is none for the next one, although nobody looked at it."""
    desk.react = lambda event: desk.draw(0, 0, 9, 9) if event == Key(0x1E, True) else None
    result = await acting("--type", "a", "--type", "b", "--wait-change", "0.3", desk.address)
    assert result.returncode == 4
    result = await acting("--type", "b", "--type", "a", "--wait-change", "0", desk.address)
    assert result.returncode == 0  # the key was delivered, so what it drew is there


# What cannot be done

MISTAKES: list[tuple[list[str], str]] = [
    (["--wait-change", "-1"], "argument --wait-change: '-1' is not a number of seconds from 0"),
    (["--wait-change", "nan"], "'nan' is not a number of seconds from 0"),
    (["--wait-change", "inf"], "'inf' is not a number of seconds from 0"),
    (["--wait-stable", "0"], "argument --wait-stable: '0' is not a number of seconds above 0"),
    (["--timeout", "-2"], "argument --timeout: '-2' is not a number of seconds above 0"),
    (["--region", "1,2,3"], "argument --region: '1,2,3' is not all, and not X,Y,WIDTH,HEIGHT"),
    (["--region", "1,2,0,3"], "'1,2,0,3' is not all, and not X,Y,WIDTH,HEIGHT"),
    (["--region", "1,2,3,0"], "'1,2,3,0' is not all, and not X,Y,WIDTH,HEIGHT"),
    (["--region=-1,2,3,4"], "'-1,2,3,4' is not all, and not X,Y,WIDTH,HEIGHT"),
    (["--region", "1,2,3,4,5"], "is not all, and not X,Y,WIDTH,HEIGHT"),
    (["--region", "1,2,3,999999"], "is not all, and not X,Y,WIDTH,HEIGHT"),
    (["--region", "everything"], "is not all, and not X,Y,WIDTH,HEIGHT"),
    (["--click", "5"], "argument --click: '5' is not X,Y in pixels"),
    (["--click", "1.5,2"], "'1.5,2' is not X,Y in pixels"),
    (["--click=-1,2"], "'-1,2' is not X,Y in pixels"),
    (["--double-click", "a,b"], "argument --double-click: 'a,b' is not X,Y in pixels"),
    (["--move", ""], "argument --move: '' is not X,Y in pixels"),
    (["--drag", "1,2"], "argument --drag: '1,2' is not X,Y,X,Y in pixels"),
    (["--scroll", "0"], "argument --scroll: '0' is not a whole number of clicks from -1000"),
    (["--scroll", "1001"], "'1001' is not a whole number of clicks from -1000"),
    (["--scroll", "up"], "'up' is not a whole number of clicks from -1000"),
    (["--type", "a\u2603"], "--type 'a\u2603': no key of this keyboard layout gives"),
    (["--type", "x" * 99 + "\x01"], f"--type {'x' * 40}...: no key of this keyboard layout gives"),
    (["--key", "hyper+q"], "--key hyper+q: "),
    (["--key", "hyper+q"], "no key is named 'hyper'"),
    (["--key", ""], "--key '': "),
    (["--keyboard", "xx"], "--keyboard xx: "),
    (["--keyboard", "xx", "--type", "a"], "--keyboard xx: "),
    (["--screenshot", "a.png", "--screenshot", "b.jpg"], "'b.jpg' does not end in .png or .ppm"),
    (["--screenshot", "-", "--screenshot", "-"], "--screenshot - can be given once"),
    (["--type", "a", "--screenshot", "-", "--json"], "both want stdout; name a file for one"),
    (["--region", "0,0,1,1", "--type", "a"], "--region 0,0,1,1: is for --screenshot or --wait"),
    (["--screenshot", "a.png", "--region", "all"], "--region all: is for --screenshot or --wait"),
    (["--wait-stable", "1", "--timeout", "2"], "--timeout 2: is for --wait-stable behind it"),
    (["--timeout", "2", "--wait-change", "1"], "--timeout 2: is for --wait-stable behind it"),
    (["--cursor"], "--cursor is for --screenshot, and there is none"),
    (["--view-only", "--wait-stable", "1", "--click", "1,1"], "--click 1,1: is not for a client"),
    (
        ["--stats", "--type", "a"],
        "--stats goes with one --screenshot and no other action, not with",
    ),
    (
        ["--frames", "2", "--screenshot", "a.png", "--screenshot", "b.png"],
        "not with --screenshot b",
    ),
    (["--duration", "2", "--cursor", "--screenshot", "a.png"], "not with --cursor"),
]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[list[tuple[int, str, str]]]:
    """What came of every mistake: exit status, stdout, stderr. There is no server."""
    with short_directory() as runtime:
        yield forked([("client", words) for words, _ in MISTAKES], runtime)
        assert list(runtime.iterdir()) == []


@pytest.mark.parametrize("at", range(len(MISTAKES)), ids=[" ".join(m[0])[:30] for m in MISTAKES])
def test_a_mistake_is_told_before_anything_is_connected(
    outcomes: list[tuple[int, str, str]], at: int
) -> None:
    ended, out, err = outcomes[at]
    assert MISTAKES[at][1] in one_line(err.encode(), "spiceshm-client")
    assert (ended, out) == (2, "")


async def test_places_that_the_surface_does_not_have(desk: Desk) -> None:
    size = "the surface, which has 64x48 pixels"
    for words, why in (
        ("--region 0,0,65,1 --wait-change 9", "--wait-change 9: --region 0,0,65,1 is not inside"),
        ("--region 0,47,1,2 --wait-stable 9", "--wait-stable 9: --region 0,47,1,2 is not inside"),
        ("--region 64,0,1,1 --screenshot a.png", "--screenshot a.png: --region 64,0,1,1 is not"),
        ("--click 64,0", "--click 64,0: 64,0 is outside of"),
        ("--move 0,48", "--move 0,48: 0,48 is outside of"),
        ("--drag 0,0,64,1", "--drag 0,0,64,1: 64,1 is outside of"),
    ):
        result = await acting(*words.split(), desk.address)
        assert (result.returncode, result.stdout) == (1, b"")
        said = one_line(result.stderr, "spiceshm-client")
        assert said.startswith(why)
        assert said.endswith(size)
    assert desk.events == []


async def test_who_may_only_look(desk: Desk, place: Path) -> None:
    address = f"unix:{place}/look"
    result = await acting("--wait-stable", "0.01", "--key", "a", "--json", address)
    assert result.returncode == 1
    assert one_line(result.stderr, "spiceshm-client").startswith("--key a: ")
    assert [action["ok"] for action in json.loads(result.stdout)["actions"]] == [True, False]
    result = await acting("--view-only", "--wait-stable", "0.01", desk.address)
    assert (result.returncode, result.stderr) == (0, b"")
    assert desk.events == []


async def test_a_picture_that_cannot_be_written(desk: Desk, place: Path) -> None:
    words = f"--json --wait-stable 0.01 --screenshot {place}/nowhere/a.png"
    result = await acting(*words.split(), desk.address)
    why = f"--screenshot {place}/nowhere/a.png: No such file or directory"
    assert result.returncode == 1
    assert one_line(result.stderr, "spiceshm-client") == why
    assert json.loads(result.stdout)["error"] == why


def test_nobody_is_there(place: Path) -> None:
    result = run("client", "--json", "--key", "a", f"unix:{place}/s")
    why = f"unix:{place}/s: no server is listening there; start one with spiceshm-server"
    assert result.returncode == 1
    assert one_line(result.stderr, "spiceshm-client") == why
    assert json.loads(result.stdout) == {"actions": [], "error": why}


def test_memory_that_must_be_shared_and_is_not() -> None:
    with serving("--shm", "off", *STILL) as server:
        result = look("--require-shm", "--wait-stable", "0.01", "--json", server.address)
        assert result.returncode == 3
        why = f"{server.address}: memory is not shared: the server does not share memory"
        assert one_line(result.stderr, "spiceshm-client") == why
        assert json.loads(result.stdout)["error"] == why


# How it ends


def test_a_server_that_is_killed_meanwhile() -> None:
    with serving("--surface", "64x48", *STILL) as server:
        words = ["-v", "--json", "--wait-stable", ".1", "--wait-change", FOREVER, server.address]
        with Program(command("client", *words)) as waiting:
            until(lambda: "64x48" in waiting.errors)  # it is connected
            server.send(signal.SIGKILL)
            told = json.loads(waiting.rest())
            assert waiting.status == 5
            said = one_line(waiting.errors.splitlines()[-1].encode(), "spiceshm-client")
            assert told["error"] == said
            failed = told["actions"][-1]
            assert not failed["ok"]
            assert re.fullmatch(
                rf"--{failed['action']} [\d.]+: {re.escape(server.address)}: "
                r"(the other end closed the connection|the connection broke: .*)",
                said,
            )
            assert told["address"] == server.address


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_and_nothing_stays_down(desk: Desk, number: signal.Signals) -> None:
    """Also in the middle of a text: a shift that stays down would be a nuisance over there."""
    begun = trio.Event()

    def stop(event: Event) -> None:
        if event == Key(0x30, True) and not begun.is_set():
            begun.set()
            desk.after = trio.Event()

    desk.react = stop
    text = 10000 * "Ab"
    with Program(command("client", "--json", "--type", text, "--click", "1,1", desk.address)) as it:
        with trio.fail_after(DEADLINE):
            await begun.wait()
            it.send(number)
            told = json.loads(await trio.to_thread.run_sync(it.rest))
            assert (it.status, it.errors) == (130, "")
            desk.after.set()
            while desk.clients or desk.down:
                await trio.sleep(0.005)
    assert told["error"] == "interrupted"
    assert [(action["action"], action["ok"]) for action in told["actions"]] == [("type", False)]
    assert sum(event == Key(0x30, True) for event in desk.events) < 10000


# A program with a window


@pytest.mark.peer("Xvfb", "xterm")
def test_a_program_with_a_window_from_a_shell(place: Path) -> None:
    """What --help shows: wait, click, type, wait, look."""
    with (
        xvfb.xvfb(400, 300, 24) as display,
        serving("--source", "x11", "--display", display) as server,
    ):
        done = place / "done"
        words = f"-v --wait-change {FOREVER} --wait-stable 0.3 --screenshot {place}/before.png "
        words += "--click 100,100 --type"
        line = [*words.split(), f'echo "{{Hello}}" > {done}; clear', "--wait-stable", "0.3"]
        line += ["--key", "enter", "--wait-change", FOREVER, "--wait-stable", "0.3"]
        line += ["--cursor", "--screenshot", f"{place}/after.png", server.address]
        with Program(command("client", *line)) as script:
            until(lambda: "400x300" in script.errors)  # it is connected
            terminal = ["xterm", "-geometry", "60x20+0+0", "-e", "sh"]
            with Program(terminal, xvfb.environment(display)):
                assert script.wait() == 0, script.errors
                assert until(lambda: done.exists() and done.read_text()) == "{Hello}\n"
    before, after = decoded(place / "before.png"), decoded(place / "after.png")
    assert before.shape == after.shape == (300, 400, 3)
    assert not np.array_equal(before, after)


def test_a_server_may_come_later(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/later.sock"
    client = command("client", "--wait-server", "20", "--json", address)
    with Program(client) as waiting:
        with Program(command("server", "--surface", "64x48", "--listen", address)):
            assert waiting.wait() == 0
        assert json.loads(waiting.line())["width"] == 64
