"""The two programs as a user runs them: what they show, what they say, and how they end."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import random
import re
import shlex
import signal
import socket
import stat
import subprocess
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio
from PIL import Image

import spiceshm
from spiceshm.sources.pattern import Pattern, read_stamp
from tests.programs import (
    DEADLINE,
    NO_PRIVILEGES,
    Program,
    command,
    environment,
    forked,
    look,
    mapped,
    processes_with,
    run,
    serving,
    short_directory,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

STILL = ("--fps", "0.001")
"""The picture stands still: the next frame comes in a quarter of an hour."""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for sockets and files."""
    with short_directory() as path:
        yield path


def decoded(data: bytes | Path) -> np.ndarray:
    """A picture file as (height, width, 3) of R, G, B."""
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
        return np.asarray(image.convert("RGB"))


def one_line(stderr: bytes, name: str) -> str:
    """The one line that a program complains with; behind argparse's usage, if that is there."""
    lines = stderr.decode().splitlines()
    if lines and lines[0].startswith("usage: "):
        while not lines[0].startswith(f"{name}: error: "):
            lines.pop(0)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{name}: ")
    return lines[0].removeprefix(f"{name}: ").removeprefix("error: ")


# What is shown


def test_the_figures_are_complete_and_right() -> None:
    with serving("--surface", "320x240", "--fps", "200", "--damage", "full") as server:
        assert server.said["source"] == "test pattern 320x240"
        assert server.said["pid"] == server.pid
        result = look("--json", "--frames", "50", server.address)
        assert result.returncode == 0
        assert result.stderr == b""
        [line] = result.stdout.decode().splitlines()
        figures = json.loads(line)
    assert list(figures) == [
        "address",
        "width",
        "height",
        "seconds",
        "frames",
        "fps",
        "latency_us",
        "torn",
        "rects",
        "wire_bytes",
        "pixel_bytes",
        "shm",
        "reason",
        "images",
        "stale",
    ]
    assert figures["address"] == server.address
    assert (figures["width"], figures["height"]) == (320, 240)
    assert figures["frames"] == 50
    assert 0.1 < figures["seconds"] < DEADLINE
    assert figures["fps"] == pytest.approx(50 / figures["seconds"], rel=0.05)
    assert 0 < figures["latency_us"]["p50"] <= figures["latency_us"]["p99"] < 1e6
    assert figures["torn"] == 0
    assert figures["rects"] >= 50
    assert figures["pixel_bytes"] >= 50 * 320 * 240 * 4
    assert 50 * 70 < figures["wire_bytes"] < 60 * 160
    assert figures["shm"] is True
    assert figures["reason"] is None
    assert figures["images"] == {}


def test_10000_frames_of_full_hd_and_none_is_torn() -> None:
    with serving("--surface", "1920x1080", "--damage", "full", "--fps", "0") as server:
        result = look("--json", "--frames", "10000", "--require-shm", server.address, seconds=120)
        assert result.returncode == 0, result.stderr
        figures = json.loads(result.stdout)
        assert figures["frames"] == 10000
        assert figures["torn"] == 0
        assert figures["pixel_bytes"] >= 10000 * 1920 * 1080 * 4
        assert server.status is None


@pytest.mark.parametrize("held", [1, 2])
async def test_a_frame_does_not_change_while_it_is_held(held: int) -> None:
    """However fast the server goes on drawing meanwhile."""
    with serving("--surface", "320x240", "--damage", "full", "--fps", "1000") as server:
        async with spiceshm.connect(server.address, shm="require", credits=held) as remote:
            kept: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=held)
            count = 0
            with trio.fail_after(DEADLINE):
                async for frame in remote.frames():
                    assert isinstance(read_stamp(frame.pixels), int)
                    kept.append((frame.pixels, frame.copy()))
                    del frame
                    await trio.sleep(0.005)
                    for pixels, copy in kept:
                        assert np.array_equal(pixels, copy)
                    del pixels
                    if len(kept) == held:
                        kept.popleft()
                    count += 1
                    if count == 200:
                        break


@pytest.mark.parametrize("size", ["1x1", "3x2", "16384x1", "1x16384", "1001x701"])
def test_surfaces_of_odd_sizes(size: str, place: Path) -> None:
    width, height = map(int, size.split("x"))
    with serving("--surface", size, *STILL) as server:
        for how in ("--require-shm", "--no-shm"):
            file = place / f"{how}.png"
            result = look(how, "--screenshot", str(file), server.address)
            assert result.returncode == 0, result.stderr
            assert np.array_equal(decoded(file), first_picture(width, height))


def first_picture(width: int, height: int) -> np.ndarray:
    """What the test pattern shows first."""
    pixels = np.zeros((height, width, 4), np.uint8)
    Pattern(width, height).paint(pixels, 0)
    return pixels[:, :, 2::-1]


def test_pictures_are_the_same_by_every_way(place: Path) -> None:
    pictures = []
    with serving(
        "--surface", "640x480", *STILL, "--listen", "tcp:127.0.0.1:0", at=f"unix:{place}/s"
    ) as server:
        unix, tcp = server.addresses
        for address, how in ((unix, "--require-shm"), (unix, "--no-shm"), (tcp, "--no-shm")):
            for name in ("a.png", "A.PPM"):
                result = look(how, "--screenshot", str(place / name), address)
                assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
                pictures.append(decoded(place / name))
            result = look(how, "--screenshot", "-", address)
            assert (result.returncode, result.stderr) == (0, b"")
            assert result.stdout.startswith(b"\x89PNG")
            pictures.append(decoded(result.stdout))
    for picture in pictures:
        assert np.array_equal(picture, first_picture(640, 480))


@pytest.mark.parametrize("how", ["auto", "off"])
async def test_a_small_frame_costs_few_bytes_where_memory_is_shared(place: Path, how: Any) -> None:
    """Of one rectangle, both ways together, whatever its size."""
    frames = 500
    noise = np.random.default_rng(1).integers(0, 255, (200, 200, 4), np.uint8)
    async with spiceshm.serve(f"unix:{place}/s") as server:
        surface = server.create_surface(640, 480)
        surface.draw(np.zeros((480, 640, 4), np.uint8))
        async with spiceshm.connect(f"unix:{place}/s", shm=how) as remote:
            seen = remote.frames()
            await anext(seen)
            before = remote.wire_bytes
            for number in range(frames):
                with surface.frame([(0, 0, 200, 200)]) as frame:
                    frame.pixels[:200, :200] = noise + np.uint8(number % 256)
                assert (await anext(seen)).rects.tolist() == [[0, 0, 200, 200]]
            each = (remote.wire_bytes - before) / frames
    if how == "auto":
        assert each <= 160
    else:
        assert each > 200 * 200 * 4  # the other way the pixels are sent


def test_what_a_server_says_for_people(place: Path) -> None:
    env = environment(place)
    with Program(command("server", *STILL), env) as server:
        lines = [server.line() for _ in range(5)]
        default = f"unix:{place}/spiceshm/display.sock"
        assert lines == [
            "spiceshm-server: test pattern 1920x1080",
            f"listening on {default}",
            "  look at it:           spiceshm-client --stats",
            f"  with a stock viewer:  remote-viewer spice+{default.replace(':', '://')}",
            f"                        spicy --uri=spice+{default.replace(':', '://')}",
        ]
        result = look(runtime=place)
        assert result.returncode == 0
        assert re.fullmatch(
            rf"{re.escape(default)}: 1920x1080, shared memory \(\d+\.\d MB mapped read-only\)\n"
            r"a stock viewer shows it too:  remote-viewer spice\+unix://.*\n",
            result.stdout.decode(),
        )
        result = look("--no-shm", runtime=place)
        assert "ordinary SPICE (shared memory was not wanted)" in result.stdout.decode()


def test_what_a_server_with_a_password_says(place: Path) -> None:
    """No line has it; where a connection file has it, that file is what remote-viewer is given."""
    vv, socket, only = place / "a b.vv", place / "a s", place / "o"
    words = ["--listen", "unix:@spiceshm-test", "--listen", f"unix:{socket}"]
    words += ["--listen-view-only", f"unix:{only}", "--write-vv", str(vv), *STILL]
    env = environment(place, SPICESHM_PASSWORD="sesame")
    with Program(command("server", *words), env) as server:
        assert [server.line() for _ in range(11)] == [
            "spiceshm-server: test pattern 1920x1080",
            "listening on unix:@spiceshm-test",
            "  look at it:           spiceshm-client --stats unix:@spiceshm-test",
            f"listening on unix:{socket}",
            f"  look at it:           spiceshm-client --stats 'unix:{socket}'",
            f"  with a stock viewer:  remote-viewer '{vv}'",
            f"                        spicy --uri=spice+unix://{place}/a%20s",
            f"listening on unix:{only} (view only)",
            f"  look at it:           spiceshm-client --stats unix:{only}",
            f"  with a stock viewer:  remote-viewer spice+unix://{only}",
            f"                        spicy --uri=spice+unix://{only}",
        ]
        assert server.line() == (
            f"viewers ask for the password, but not those that open {vv}: it is in there; "
            "spiceshm-client reads SPICESHM_PASSWORD"
        )


def test_a_table_of_figures() -> None:
    with serving("--surface", "64x48", "--fps", "100") as server:
        result = look("--stats", "--duration", "1.2", server.address)
    assert (result.returncode, result.stdout) == (0, b"")
    head, *rows = result.stderr.decode().splitlines()
    assert head.split()[:2] == ["time", "frames/s"]
    assert len(rows) >= 2
    for row in rows:
        assert re.fullmatch(r" *\d+\.\ds( +(-|\d+(\.\d+)?)){6}", row)


@pytest.mark.parametrize("program", ["server", "client"])
def test_help_shows_examples(program: str) -> None:
    result = run(program, "--help")
    assert (result.returncode, result.stderr) == (0, b"")
    text = result.stdout.decode()
    assert text.count(f"\n  spiceshm-{program}") >= 4
    for word in ("examples:", "addresses: unix:/path, unix:@name", "exit status: 0"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 200
    version = run(program, "--version").stdout.decode()
    assert version == f"spiceshm-{program} {spiceshm.__version__}\n"


# Who may share, who may come


def test_memory_that_must_be_shared_and_is_not(place: Path) -> None:
    with serving("--shm", "off", "--surface", "64x48") as server:
        result = look("--require-shm", server.address)
        assert (result.returncode, result.stdout) == (3, b"")
        assert one_line(result.stderr, "spiceshm-client") == (
            f"{server.address}: memory is not shared: the server does not share memory"
        )
        assert json.loads(look("--json", server.address).stdout)["shm"] is False
    with serving("--surface", "64x48", at="tcp:127.0.0.1:0") as server:
        result = look("--require-shm", server.address)
        assert (result.returncode, result.stdout) == (3, b"")
        assert one_line(result.stderr, "spiceshm-client") == (
            f"{server.address}: memory is not shared: memory cannot be shared over TCP"
        )


def test_tcp_on_loopback() -> None:
    with serving("--surface", "320x240", "--fps", "100", at="tcp:127.0.0.1:0") as server:
        assert re.fullmatch(r"tcp:127\.0\.0\.1:[1-9]\d*", server.address)
        for address in (server.address, server.said["listening"][0]["uri"]):
            figures = json.loads(look("--json", "--frames", "20", address).stdout)
            assert figures["frames"] == 20
            assert figures["shm"] is False
            assert figures["reason"] == "memory cannot be shared over TCP"


def test_passwords(place: Path) -> None:
    files = {"right": "secret", "wrong": "Secret", "line": "secret\nand more", "long": "x" * 60}
    for name, text in files.items():
        (place / name).write_text(text)
        (place / name).chmod(0o600)
    right = str(place / "right")
    with serving("--surface", "64x48", "--password-file", right) as server:
        for name, status in (("right", 0), ("line", 0), ("wrong", 1), ("long", 1)):
            result = look("--password-file", str(place / name), server.address)
            assert result.returncode == status, result.stderr
            if status:
                said = one_line(result.stderr, "spiceshm-client")
                assert said.startswith(
                    f"{server.address}: permission denied: wrong or missing password"
                )
        result = look(server.address)
        assert result.returncode == 1
        assert "wrong or missing password" in one_line(result.stderr, "spiceshm-client")
        assert server.errors.count("wrong password") == 2  # none is not a wrong one
        assert "chmod" not in server.errors
        (place / "right").chmod(0o604)
        result = look("--password-file", right, server.address)
        assert result.returncode == 0
        assert one_line(result.stderr, "spiceshm-client").startswith(
            f"--password-file {right}: others may read or write it"
        )


@pytest.mark.parametrize("program", ["server", "client"])
def test_password_files_that_hold_none(place: Path, program: str) -> None:
    contents = {"empty": b"", "newline": b"\nsecret", "long": b"x" * 61, "latin": b"\xff\xfe"}
    contents["nul"] = b"sec\0ret\n"
    for name, data in contents.items():
        (place / name).write_bytes(data)
    files = [str(place / name) for name in [*contents, "missing", ""]]
    files.append("/dev/zero")  # never ends
    outcomes = forked([(program, ["--password-file", file]) for file in files], place)
    for file, (status, out, err) in zip(files, outcomes, strict=True):
        assert (status, out) == (2, "")
        said = one_line(err.encode(), f"spiceshm-{program}")
        assert said.startswith(f"--password-file {file}: ")


def test_a_password_from_the_environment(place: Path) -> None:
    """Both programs take it; a file wins."""
    (place / "other").write_text("other")
    file = ["--password-file", f"{place}/other"]
    at = ["--listen", f"unix:{place}/s"]
    env = environment(place, SPICESHM_PASSWORD="sesame")

    def status(*words: str) -> int:
        return subprocess.run(command("client", f"unix:{place}/s", *words), env=env).returncode

    with Program(command("server", *STILL, *at, "--json"), env) as server:
        server.line()
        assert status() == 0
    with Program(command("server", *STILL, *at, *file, "--json"), env) as server:
        server.line()
        assert (status(), status(*file)) == (1, 0)


@pytest.mark.parametrize(
    ("program", "words", "value", "why"),
    [
        ("server", [], "", "SPICESHM_PASSWORD must have 1 to 60 bytes"),
        ("client", [], "ä" * 31, "SPICESHM_PASSWORD must have 1 to 60 bytes"),
        (
            "server",
            ["--no-auth"],
            "sesame",
            "--no-auth asks nobody for the password of SPICESHM_PASSWORD; leave one out",
        ),
    ],
    ids=["empty", "long", "no-auth"],
)
def test_environments_that_hold_no_password(
    place: Path, program: str, words: list[str], value: str, why: str
) -> None:
    env = environment(place, SPICESHM_PASSWORD=value)
    result = subprocess.run(
        command(program, *words), env=env, capture_output=True, timeout=DEADLINE
    )
    assert (result.returncode, result.stdout) == (2, b"")
    assert one_line(result.stderr, f"spiceshm-{program}") == why


def test_no_more_clients_than_are_wanted() -> None:
    with serving("--surface", "64x48", "--max-clients", "1") as server:
        with Program(command("client", "--stats", server.address)) as one:
            until(lambda: one.errors.count("\n") >= 2)
            result = look(server.address)
            assert (result.returncode, result.stdout) == (1, b"")
            said = one_line(result.stderr, "spiceshm-client")
            assert said.endswith("error (1); it may have no room for another client")
            assert one.status is None
            [line] = server.errors.splitlines()
            assert line.endswith("refused, no more clients than 1 may be connected")
        assert look(server.address).returncode == 0


@pytest.mark.parametrize("address", ["tcp:0.0.0.0:0", "tcp:[::]:0"])
def test_whom_everybody_could_reach_wants_a_password(place: Path, address: str) -> None:
    result = run("server", "--listen", address)
    assert (result.returncode, result.stdout) == (1, b"")
    assert "anybody could connect" in one_line(result.stderr, "spiceshm-server")
    (place / "password").write_text("secret")
    for words in (("--password-file", str(place / "password")), ("--no-auth",)):
        with contextlib.suppress(EOFError), serving(*words, at=address) as server:
            assert server.status is None


# Mistakes: one line that says what would be right


MISTAKES: list[tuple[str, list[str], int, str]] = [
    ("server", ["--surface", "0x0"], 2, "'0x0' is not WIDTHxHEIGHT in pixels, each 1 to 16384"),
    ("server", ["--surface", "99999x1"], 2, "'99999x1' is not WIDTHxHEIGHT"),
    ("server", ["--surface", "16385x1"], 2, "'16385x1' is not WIDTHxHEIGHT"),
    ("server", ["--surface", "abc"], 2, "'abc' is not WIDTHxHEIGHT"),
    ("server", ["--surface=-1x5"], 2, "'-1x5' is not WIDTHxHEIGHT"),
    ("server", ["--surface", "640x480x2"], 2, "'640x480x2' is not WIDTHxHEIGHT"),
    ("server", ["--surface", ""], 2, "'' is not WIDTHxHEIGHT"),
    ("server", ["--fps", "-1"], 2, "'-1' is not a number of frames a second from 0"),
    ("server", ["--fps", "1001"], 2, "to 1000"),
    ("server", ["--fps", "nan"], 2, "'nan' is not a number of frames a second"),
    ("server", ["--fps", "inf"], 2, "'inf' is not a number of frames a second"),
    ("server", ["--fps", "fast"], 2, "'fast' is not a number of frames a second"),
    ("server", ["--damage", "some"], 2, "small"),
    ("server", ["--source", "vnc"], 2, "pattern"),
    ("server", ["--shm", "on"], 2, "auto"),
    ("server", ["--display", ":1"], 2, "--display is for --source x11"),
    ("server", ["--source", "x11", "--surface", "64x48"], 2, "--surface is for --source pattern"),
    ("server", ["--source", "x11", "--damage", "full"], 2, "--damage is for --source pattern"),
    ("server", ["--source", "xvfb", "--damage", "full"], 2, "--damage is for --source pattern"),
    ("server", ["--source", "xvfb", "--display", ":1"], 2, "--display is for --source x11"),
    ("server", ["--", "xterm"], 2, "a command is for --source xvfb"),
    ("server", ["--source", "x11", "--", "xterm"], 2, "a command is for --source xvfb"),
    ("server", ["--listen", "nowhere"], 2, "accepted: unix:/path, unix:@name, tcp:host:port"),
    ("server", ["--listen", "tcp:127.0.0.1"], 2, "has no port in 1..65535"),
    ("server", ["--listen", "unix:relative"], 2, "is not absolute"),
    ("server", ["--listen", "unix:/" + "x" * 200], 2, "is longer than 107 bytes"),
    ("server", ["--listen", "unix:/dev/null"], 1, "there is a file of that name that is no socket"),
    ("server", ["--listen", "tcp:192.0.2.1:0", "--no-auth"], 1, "Cannot assign requested address"),
    ("server", ["--write-vv", "/dev/null"], 1, "/dev/null: it is there already, and is no connect"),
    ("server", ["--write-vv", "/nowhere/a.vv"], 1, "/nowhere/a.vv: No such file or directory"),
    ("server", ["--listen", "unix:@x", "--write-vv", "a"], 2, "viewers reach no abstract socket"),
    ("server", ["--max-clients", "0"], 2, "'0' is not a whole number above 0"),
    ("server", ["--surf", "64x48"], 2, "unrecognized arguments: --surf"),
    ("server", ["extra"], 2, "a command is for --source xvfb"),
    ("client", ["nowhere"], 2, "accepted: unix:/path, unix:@name, tcp:host:port"),
    ("client", ["http://localhost:80"], 2, "accepted: unix:/path, unix:@name, tcp:host:port"),
    ("client", ["tcp:127.0.0.1:1"], 1, "no server is listening there; start one with"),
    ("client", ["unix:/nowhere/s"], 1, "no server is listening there; start one with"),
    ("client", [], 1, "display.sock: no server is listening there; start one with"),
    ("client", ["--screenshot", "now.jpeg"], 2, "does not end in .png or .ppm"),
    ("client", ["--screenshot", "png"], 2, "does not end in .png or .ppm"),
    ("client", ["--frames", "0"], 2, "'0' is not a whole number above 0"),
    ("client", ["--frames", "1.5"], 2, "'1.5' is not a whole number above 0"),
    ("client", ["--frames", "9" * 5000], 2, "is not a whole number above 0"),
    ("client", ["--duration", "0"], 2, "'0' is not a number of seconds above 0"),
    ("client", ["--duration", "inf"], 2, "'inf' is not a number of seconds above 0"),
    ("client", ["--json", "--screenshot", "-"], 2, "both want stdout; name a file for one"),
    ("client", ["--no-shm", "--require-shm"], 2, "not allowed with argument"),
    ("client", ["one", "two"], 2, "accepted: "),
]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[list[tuple[int, str, str]]]:
    """What came of every mistake: exit status, stdout, stderr."""
    with short_directory() as place:
        yield forked([(program, words) for program, words, _, _ in MISTAKES], place)
        assert [path for path in place.rglob("*") if not path.is_dir()] == []


@pytest.mark.parametrize("at", range(len(MISTAKES)), ids=[" ".join(m[1])[:30] for m in MISTAKES])
def test_a_mistake_is_told_in_one_line(outcomes: list[tuple[int, str, str]], at: int) -> None:
    program, _, status, why = MISTAKES[at]
    ended, out, err = outcomes[at]
    assert why in one_line(err.encode(), f"spiceshm-{program}")
    assert (ended, out) == (status, "")


@pytest.mark.parametrize("at", [0, 3, 14, 22, 27, 31])
def test_a_mistake_is_told_in_one_line_by_the_program_itself(place: Path, at: int) -> None:
    program, words, status, why = MISTAKES[at]
    result = run(program, *words, runtime=place)
    assert why in one_line(result.stderr, f"spiceshm-{program}")
    assert (result.returncode, result.stdout) == (status, b"")


def test_a_surface_for_which_there_is_no_memory(place: Path) -> None:
    result = run("server", "--surface", "16384x16384", runtime=place)
    assert (result.returncode, result.stdout) == (1, b"")  # nothing is announced before it is there
    assert "of shared memory" in one_line(result.stderr, "spiceshm-server")
    assert os.listdir(place / "spiceshm") == []


def test_an_address_in_use(place: Path) -> None:
    with serving("--surface", "64x48", "--listen", "tcp:127.0.0.1:0", at=f"unix:{place}/s") as one:
        for address, why in zip(
            one.addresses,
            ("another server is listening there; name another --listen", "Address already in use"),
            strict=True,
        ):
            result = run("server", "--surface", "64x48", "--listen", address)
            assert (result.returncode, result.stdout) == (1, b"")
            assert one_line(result.stderr, "spiceshm-server") == f"{address}: {why}"
        assert look(one.address).returncode == 0


def test_no_permission(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o500)
    address = f"unix:{closed}/s"
    result = run("server", "--surface", "64x48", "--listen", address, prelude=NO_PRIVILEGES)
    assert (result.returncode, result.stdout) == (1, b"")
    assert one_line(result.stderr, "spiceshm-server") == f"{address}: Permission denied"
    with serving("--surface", "64x48") as server:
        shut = Path(server.address.removeprefix("unix:")).parent
        shut.chmod(0o000)
        result = look(server.address, prelude=NO_PRIVILEGES)
        shut.chmod(0o700)
        assert (result.returncode, result.stdout) == (1, b"")
        assert one_line(result.stderr, "spiceshm-client") == f"{server.address}: Permission denied"


def test_a_picture_that_cannot_be_written(place: Path) -> None:
    (place / "closed").mkdir(mode=0o500)
    (place / "directory.png").mkdir()
    with serving("--surface", "64x48") as server:
        for file, why in (
            ("closed/a.png", "Permission denied"),
            ("nowhere/a.png", "No such file or directory"),
            ("directory.png", "Is a directory"),
        ):
            result = look("--screenshot", str(place / file), server.address, prelude=NO_PRIVILEGES)
            assert (result.returncode, result.stdout) == (1, b"")
            said = one_line(result.stderr, "spiceshm-client")
            assert re.fullmatch(rf"{place / file}:? {why}", said)


# How they end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_end_cleanly_on_a_signal(place: Path, number: signal.Signals) -> None:
    with serving("--surface", "64x48", "--fps", "100", at=f"unix:{place}/s") as server:
        with Program(command("client", "--stats", "--json", server.address)) as client:
            until(lambda: client.errors.count("\n") >= 2)
            client.send(number)
            figures = json.loads(client.rest())
            assert client.status == 0
            assert figures["frames"] > 0
        assert look(server.address).returncode == 0  # it is still there
        server.send(number)
        assert server.wait() == 0
        assert server.rest() == ""
        assert server.errors == ""
        assert os.listdir(place) == []
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


@pytest.mark.parametrize("program", ["client", "server"])
def test_one_that_is_interrupted_while_it_reads_its_options(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They import a lot for it."""

    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("spiceshm.transport.address.parse_address", interrupted)
    options = ["--listen", "unix:/s"] if program == "server" else ["unix:/s"]
    monkeypatch.setattr("sys.argv", [program, *options])
    assert importlib.import_module(f"spiceshm.cli.{program}").main() == 130


def test_a_client_that_is_interrupted_while_it_waits(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{place}/s")
        silent.listen()
        silent.settimeout(DEADLINE)
        with Program(command("client", f"unix:{place}/s")) as client:
            with silent.accept()[0]:
                client.send(signal.SIGINT)
                assert client.wait() == 0
            assert client.errors == ""


def test_the_server_tells_how_its_clients_do() -> None:
    shapes = ("--surface", "64x48", "--fps", "200", "--stats", "--stats-json")
    with serving(*shapes) as server:
        watch = command("client", "--stats", server.address)
        refuse = command("client", "--stats", "--no-shm", server.address)
        with Program(watch) as one, Program(refuse):

            def both_seen() -> dict[str, Any] | None:
                told: dict[str, Any] = json.loads(server.line())
                return told if sum(c["frames"] > 0 for c in told["clients"]) == 2 else None

            told = until(both_seen)
            assert told["serial"] > 0
            assert told["fps"] > 0
            assert told["copied_bytes"] > 0
            assert told["shm_bytes"] > 5 * 64 * 48 * 4
            shared, drawn = sorted(told["clients"], key=lambda client: not client["shm"])
            assert shared["reason"] is None
            assert drawn["reason"] == "the client does not want shared memory"
            assert str(one.pid) in shared["peer"]
            for client in told["clients"]:
                assert client["bytes_sent"] > 0
                assert client["held_frames"] <= 3
                assert client["lag_frames"] >= 0
                assert client["coalesced"] >= 0
                assert (client["input"], client["input_events"]) == ("no", 0)
            one.send(signal.SIGSTOP)

            def held() -> dict[str, Any] | None:
                mine = [c for c in json.loads(server.line())["clients"] if c["shm"]]
                return mine[0] if mine[0]["held_frames"] == 3 and mine[0]["held_s"] > 1 else None

            stuck = until(held)
            assert stuck["lag_frames"] > 100
            one.send(signal.SIGCONT)
            until(lambda: "frames coalesced   lag  held" in server.errors)
            line = rf"shared  no +0 +0  {re.escape(shared['peer'])}"
            assert re.search(line, server.errors)


def test_a_client_that_is_killed_is_not_missed() -> None:
    with serving("--surface", "64x48", "--fps", "200") as server:
        before = sockets(server.pid)
        for _ in range(3):
            with Program(command("client", "--stats", server.address)) as client:
                until(lambda: client.errors.count("\n") >= 2)
                client.send(signal.SIGKILL)
                assert client.wait() == -signal.SIGKILL
            figures = json.loads(look("--json", "--frames", "20", server.address).stdout)
            assert figures["frames"] == 20
            assert figures["shm"] is True
        until(lambda: sockets(server.pid) <= before)
        assert server.errors == ""


def sockets(pid: int) -> int:
    """How many sockets a process has: connections, and those it listens on."""
    return sum(
        os.readlink(entry.path).startswith("socket:") for entry in os.scandir(f"/proc/{pid}/fd")
    )


def test_a_server_that_is_killed_is_missed_in_one_line(place: Path) -> None:
    at = f"unix:{place}/s"
    with serving("--surface", "64x48", "--fps", "100", at=at) as server:
        with Program(command("client", "--json", "--stats", at)) as client:
            until(lambda: client.errors.count("\n") >= 2)  # a line of the table: a frame was seen
            server.send(signal.SIGKILL)
            server.wait()
            figures = json.loads(client.rest())
            assert client.status == 5
            assert figures["frames"] > 0
            said = one_line(client.errors.splitlines()[-1].encode(), "spiceshm-client")
            assert re.fullmatch(
                rf"{re.escape(at)}: (the other end closed the connection|the connection broke: .*)",
                said,
            )
    assert stat.S_ISSOCK((place / "s").stat().st_mode)  # left behind
    result = look(at)
    assert result.returncode == 1
    assert one_line(result.stderr, "spiceshm-client") == (
        f"{at}: no server is listening there; start one with spiceshm-server"
    )
    with serving("--surface", "64x48", at=at):  # and replaced
        assert look(at).returncode == 0
    assert os.listdir(place) == []


def test_killed_at_random_moments_nothing_is_left_but_a_socket(place: Path) -> None:
    shm = set(os.listdir("/dev/shm"))
    choose = random.Random(1)
    at = f"unix:{place}/s"
    env = environment(place, SPICESHM_TEST=str(place))
    serve = command("server", "--surface", "640x480", "--fps", "0", "--listen", at)
    watch = command("client", "--stats", at)
    for at_work in [True, False] * 5:
        with Program(serve, env) as server, Program(watch, env) as one, Program(watch, env) as two:
            if at_work:
                until(lambda: mapped(two.pid) or two.status)
            programs = [server, one, two]
            for program in choose.sample(programs, 2):  # the third dies with the block
                deadline = time.monotonic() + choose.uniform(0, 0.1 if at_work else 0.6)
                while time.monotonic() < deadline and program.status is None:
                    time.sleep(0.001)
                program.send(signal.SIGKILL)
                program.wait()
        for program in programs:
            assert "Traceback" not in program.errors
        assert processes_with(str(place)) == set()
    assert set(os.listdir(place)) <= {"s"}
    assert {name for name in set(os.listdir("/dev/shm")) - shm if "spiceshm" in name} == set()
    with serving("--surface", "64x48", at=at):
        assert look(at).returncode == 0
    assert os.listdir(place) == []


def test_nobody_reads_what_they_say(place: Path) -> None:
    with serving("--surface", "640x480") as server:
        reader, writer = os.pipe()
        os.close(reader)
        for program, words in (
            ("client", ["--help"]),
            ("server", ["--version"]),
            ("client", ["--json", server.address]),
            ("client", ["--screenshot", "-", server.address]),
            ("client", [server.address]),
            ("server", ["--surface", "64x48", "--json", "--listen", f"unix:{place}/s"]),
        ):
            result = subprocess.run(
                command(program, *words),
                stdout=writer,
                stderr=subprocess.PIPE,
                env=environment(),
                timeout=DEADLINE,
            )
            assert result.stderr == b""
            assert result.returncode == 1
        os.close(writer)
    assert os.listdir(place) == []


def test_head_reads_the_first_line_of_what_a_server_says(place: Path) -> None:
    line = shlex.join(command("server", "--surface", "64x48", "--listen", f"unix:{place}/s"))
    result = subprocess.run(
        ["sh", "-c", f"timeout -s TERM 2 {line} 2> {place}/errors | head -n 1"],
        stdout=subprocess.PIPE,
        env=environment(),
        timeout=DEADLINE,
    )
    assert result.stdout == b"spiceshm-server: test pattern 64x48\n"
    assert (place / "errors").read_text() == ""
    assert os.listdir(place) == ["errors"]


def test_no_stdout_at_all(place: Path) -> None:
    with serving("--surface", "64x48") as server:
        for words, status in (
            (["--json"], 0),
            ([], 0),
            (["--screenshot", str(place / "a.png")], 0),
            (["--screenshot", "-"], 2),
        ):
            line = shlex.join(command("client", *words, server.address))
            result = subprocess.run(
                ["sh", "-c", f"{line} >&-"], stderr=subprocess.PIPE, timeout=DEADLINE
            )
            assert result.returncode == status
            if status:
                assert "stdout, which is closed" in one_line(result.stderr, "spiceshm-client")
            else:
                assert result.stderr == b""
    assert decoded(place / "a.png").shape == (48, 64, 3)


def test_a_full_disk(place: Path) -> None:
    with serving("--surface", "64x48") as server:
        for words in (["--json"], [], ["--screenshot", "-"]):
            with open("/dev/full", "wb") as full:
                result = subprocess.run(
                    command("client", *words, server.address),
                    stdout=full,
                    stderr=subprocess.PIPE,
                    env=environment(),
                    timeout=DEADLINE,
                )
            assert result.returncode == 1
            assert one_line(result.stderr, "spiceshm-client").endswith("No space left on device")
