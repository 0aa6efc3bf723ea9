"""A desktop of one's own: what is on it, who gets in, and that nothing of it stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio

import spiceshm
from spiceshm.sources import xvfb
from spiceshm.sources.processes import open_group
from spiceshm.sources.xcb import XError
from spiceshm.sources.xvfb import start_xvfb

from .programs import (
    DEADLINE,
    Program,
    command,
    environment,
    look,
    processes_with,
    run,
    script,
    short_directory,
    until,
)
from .test_x11 import settles

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.peer("Xvfb", "xterm", "xwd", "convert", "xdotool")

SMALL = ("--source", "xvfb", "--surface", "320x240")
STUBBORN = "trap '' TERM; xterm -e cat & sleep 1000"
"""A program that does not end when it is asked to, nor does what it started."""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for sockets and files, and for temporary folders; empty again at the end."""
    with short_directory() as path:
        monkeypatch.setattr(tempfile, "tempdir", str(path))
        monkeypatch.setenv("TMPDIR", str(path))
        yield path
        assert os.listdir(path) == []


def lives(pid: int) -> bool:
    """Whether a process runs: one that waits for its parent to hear of its end does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def children(pid: int) -> set[int]:
    """The processes that a process has started, from whichever of its threads."""
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= set(map(int, path.read_text().split()))
    return found


def socket_of(display: str) -> Path:
    """Where an X server listens; a lock file it has not, as it chose the number itself."""
    return Path(f"/tmp/.X11-unix/X{display.removeprefix(':')}")


def server_of(display: str) -> int:
    """The process of an X server."""
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(str(socket_of(display)))
        who = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(who[:4], sys.byteorder)


def left_behind(display: str) -> bool:
    """Whether there is a socket at which nobody listens; another server may have the number now."""
    try:
        server_of(display)
    except ConnectionRefusedError:
        return True
    except FileNotFoundError:
        pass
    return False


def refused(display: str, xauthority: Path) -> bool:
    """Whether the X server turns a client away that has this file of cookies."""
    env = {**os.environ, "DISPLAY": display, "XAUTHORITY": str(xauthority)}
    done = subprocess.run(["xwd", "-root", "-silent"], env=env, capture_output=True, check=False)
    if done.returncode:
        assert b"unable to open display" in done.stderr
    return done.returncode != 0


class Own(Program):
    """A ``spiceshm-server`` with a desktop of its own that has begun."""

    def __init__(self, place: Path, *arguments: str) -> None:
        words = ["--json", "--listen", f"unix:{place}/s", *arguments]
        super().__init__(command("server", *words), environment(place, TMPDIR=str(place)))
        self.said: dict[str, Any] = json.loads(self.line())
        self.display: str = self.said["display"]
        self.xauthority = Path(self.said["xauthority"])
        self.mark = f"XDG_RUNTIME_DIR={place}"

    def all_processes(self) -> set[int]:
        """It, what it has started, and what that has."""
        return processes_with(self.mark) | children(self.pid) | {self.pid}

    def shows(self, name: str) -> None:
        """Wait until a window of a program is to be seen."""
        env = {**os.environ, "DISPLAY": self.display, "XAUTHORITY": str(self.xauthority)}
        words = ["xdotool", "search", "--sync", "--onlyvisible", "--class", name]
        subprocess.run(words, env=env, check=True, timeout=DEADLINE, stdout=subprocess.DEVNULL)


# The program


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["sh", "-c", "exit 7"], 7, ""),
        (["sh", "-c", "kill -9 $$"], 128 + 9, ""),
        (["true"], 0, ""),
        (["nosuch", "program"], 127, "spiceshm-server: nosuch: no such program\n"),
        (["/dev/null"], 126, "spiceshm-server: /dev/null: Permission denied\n"),
    ],
)
def test_the_exit_status_is_passed_on(
    place: Path, words: list[str], status: int, complaint: str
) -> None:
    result = run("server", *SMALL, "--", *words, runtime=place)
    assert (result.returncode, result.stderr.decode()) == (status, complaint)
    (place / "spiceshm").rmdir()


def test_what_the_program_is_given_and_says(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    talk = "echo said; echo complained >&2; cat; env"
    with Own(place, *SMALL, "--", "sh", "-c", talk, "--", "-v") as server:
        said = server.rest().splitlines()
        assert server.wait() == 0
        assert server.errors == "complained\n"
    assert said[0] == "said"
    assert {f"DISPLAY={server.display}", f"XAUTHORITY={server.xauthority}"} <= set(said)
    assert not any(line.startswith("WAYLAND") for line in said)


def test_no_program_gets_to_know_the_servers_password(place: Path) -> None:
    words = ["--json", "--listen", f"unix:{place}/s", *SMALL, "--", "sleep", "1000"]
    env = environment(TMPDIR=str(place), SPICESHM_PASSWORD=place.name)
    with Program(command("server", *words), env) as server:
        server.line()
        until(lambda: len(children(server.pid)) == 4)  # with two guards
        until(lambda: processes_with(f"SPICESHM_PASSWORD={place.name}") == {server.pid})
        assert look("--no-shm", f"unix:{place}/s").returncode == 1
        server.send(signal.SIGTERM)
        assert server.wait() == 0


async def test_nor_a_desktops(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPICESHM_PASSWORD", place.name)
    async with spiceshm.desktop("sleep", "1000") as desktop:
        assert desktop.process is not None
        assert desktop.process.pid in processes_with(f"DISPLAY={desktop.x_display}")
        assert processes_with(f"SPICESHM_PASSWORD={place.name}") == set()
        assert "SPICESHM_PASSWORD" not in desktop.environment


def test_what_a_server_says_for_people(place: Path) -> None:
    words = [*SMALL, "--listen", f"unix:{place}/s"]
    with Program(command("server", *words), environment(TMPDIR=str(place))) as server:
        lines = [server.line() for _ in range(6)]
        server.send(signal.SIGTERM)
        assert server.wait() == 0
    assert lines[0].startswith("spiceshm-server: Xvfb, X display :")
    assert lines[0].endswith(" 320x240 depth 24")
    assert lines[-1].startswith("for further programs on it:  export DISPLAY=:")
    assert lines[-1].endswith("/Xauthority")


def test_without_xvfb(place: Path) -> None:
    words = [*SMALL, "--listen", f"unix:{place}/s"]
    with Program(command("server", *words), environment(PATH=str(place))) as server:
        assert server.wait() == 1
        assert server.errors == "spiceshm-server: Xvfb: no such program; apt install xvfb\n"


# Nothing stays


@pytest.mark.parametrize("words", [(), ("xterm", "-e", "top"), ("sh", "-c", STUBBORN)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_all(place: Path, number: signal.Signals, words: tuple[str, ...]) -> None:
    with Own(place, *SMALL, *(("--", *words) if words else ())) as server:
        if words:
            server.shows("xterm")
        own, processes = children(server.pid), server.all_processes()
        assert len(own) == (4 if words else 3)  # with two guards
        assert all(path.exists() for path in (socket_of(server.display), server.xauthority))
        server.send(number)
        assert server.wait() == 0
        assert not left_behind(server.display)
        assert not server.xauthority.exists()
        assert server.errors == ""
        assert not any(map(lives, own))
    until(lambda: not any(map(lives, processes)))  # top has to hear first that its terminal is gone


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, ("xterm", "-e", "top")),
        (signal.SIGKILL, ("sh", "-c", STUBBORN)),
        (signal.SIGHUP, ("xterm", "-e", "top")),  # as when its terminal is closed
    ],
)
def test_killed_nothing_stays_but_its_own_socket(
    place: Path, number: signal.Signals, words: tuple[str, ...]
) -> None:
    with Own(place, *SMALL, "--", *words) as server:
        server.shows("xterm")
        processes = server.all_processes()
        server.send(number)
        assert server.wait() == -number
        until(lambda: not any(map(lives, processes)))
        assert not left_behind(server.display)
    assert os.listdir(place) == ["s"]
    (place / "s").unlink()


async def test_a_program_may_take_its_time_to_end(place: Path) -> None:
    """Also one that another one started, which has ended long ago."""
    slow = f"trap 'sleep 0.3; touch {place}/saved; exit' TERM; touch {place}/ready; "
    slow += "while :; do sleep 0.05; done"
    async with start_xvfb(64, 48) as server:
        program = await server.run("sh", "-c", '(eval "$1") & exit 3', "sh", slow)
        assert await program.wait() == 3
        until((place / "ready").exists)
    assert (place / "saved").exists()
    (place / "saved").unlink()
    (place / "ready").unlink()


async def test_without_descriptors_programs_are_killed_all_the_same() -> None:
    """Also what a program has started that has ended by itself."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with short_directory() as place:
        try:
            async with open_group() as group:
                stubborn = f"trap '' TERM; sleep 1000 & echo $! > {place}/pid"
                await (await group.start("sh", "-c", stubborn)).wait()
                left = int((place / "pid").read_text())
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    until(lambda: not lives(left))


NAMED = """
import ctypes, time
ctypes.CDLL(None).prctl(15, b"caf\\xc3")  # PR_SET_NAME, which cuts off what is too long
print("named", flush=True)
time.sleep(1000)
"""


async def test_the_name_of_anybodys_program_is_no_hindrance(place: Path) -> None:
    with script(NAMED) as other:
        assert await trio.to_thread.run_sync(other.line) == "named"
        async with start_xvfb(64, 48) as server:
            await server.run("sh", "-c", "sleep 1000 & sleep 1000")
    assert children(os.getpid()) == set()


async def test_cancelled_at_any_moment_nothing_stays(place: Path) -> None:
    begun = 0
    for step in range(12):
        with trio.move_on_after(0.04 * step):
            async with spiceshm.desktop("sleep", "1000", width=64, height=48) as own:
                begun += 1
                assert own.process is not None
                await trio.sleep_forever()
        assert children(os.getpid()) == set()
        assert os.listdir(place) == []
    assert begun < 12


# Who gets in


def test_nobody_comes_in_without_the_cookie(place: Path) -> None:
    (place / "empty").touch()
    with Own(place, *SMALL) as server:
        assert not refused(server.display, server.xauthority)
        assert refused(server.display, place / "empty")
        assert stat.S_IMODE(server.xauthority.stat().st_mode) == 0o600
        assert stat.S_IMODE(server.xauthority.parent.stat().st_mode) == 0o700
        server.send(signal.SIGTERM)
        server.wait()
    (place / "empty").unlink()


async def test_two_at_once(place: Path) -> None:
    async with spiceshm.desktop(width=64, height=48) as one:
        async with spiceshm.desktop(width=80, height=60) as two:
            assert one.x_display != two.x_display
            assert (one.display.width, two.display.width) == (64, 80)
            theirs = Path(two.environment["XAUTHORITY"])
            assert not refused(two.x_display, theirs)
            assert refused(one.x_display, theirs)
        assert os.listdir(place) == [Path(one.environment["XAUTHORITY"]).parent.name]
        assert lives(server_of(one.x_display))


# The library


async def test_the_picture_is_what_the_x_server_has(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with spiceshm.desktop("xterm", "-bg", "navy", "-e", "cat", width=640) as own:
        monkeypatch.setenv("XAUTHORITY", own.environment["XAUTHORITY"])
        words = ["xdotool", "search", "--sync", "--onlyvisible", "--class", "xterm"]
        subprocess.run(words, env=own.environment, check=True, stdout=subprocess.DEVNULL)
        assert own.display.shared
        truth = await settles(own.display, own.x_display)
        assert truth.shape == (800, 640, 3)
        assert (np.unique(truth.reshape(-1, 3), axis=0) == (0x80, 0, 0)).all(axis=1).any()


async def test_programs_come_and_go_and_the_desktop_stays(place: Path) -> None:
    async with spiceshm.desktop("sh", "-c", "exit 5", width=64, height=48) as own:
        assert await own.wait() == 5
        assert own.process is not None
        assert own.process.returncode == 5
        with pytest.raises(spiceshm.SourceError, match=r"^nosuch: no such program$"):
            await own.run("nosuch")
        further = await own.run("sleep", "1000")
        assert (await trio.to_thread.run_sync(look, "--json", own.address)).returncode == 0
        assert further.returncode is None
    assert further.returncode == -signal.SIGTERM


async def test_without_a_program_there_is_none_to_wait_for(place: Path) -> None:
    at = f"unix:{place}/s"
    async with spiceshm.desktop(width=64, height=48, address=at) as own:
        assert own.process is None
        assert own.address == at
        with pytest.raises(ValueError, match="without a program"):
            await own.wait()


async def test_an_error_in_the_block_comes_out_as_itself(place: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with spiceshm.desktop("xterm", width=64, height=48):
            1 / 0  # noqa: B018
    with pytest.raises(spiceshm.SourceError, match=r"^nosuch: no such program$"):
        async with spiceshm.desktop("nosuch", width=64, height=48):
            pass
    assert children(os.getpid()) == set()


async def test_xvfb_says_why_it_does_not_start(place: Path) -> None:
    with pytest.raises(spiceshm.SourceError, match=r"^Xvfb 1000000x1000000x24 was killed .*: \w+"):
        async with spiceshm.desktop(width=1000000, height=1000000):
            pass
    with pytest.raises(ValueError, match="0x48"):
        async with spiceshm.desktop(width=0, height=48):
            pass


async def test_xvfb_is_not_waited_for_without_end(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "Xvfb").write_text("#!/bin/sh\nsleep 1000\n")
    (place / "Xvfb").chmod(0o700)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setattr(xvfb, "READY_S", 0.2)
    with pytest.raises(spiceshm.SourceError, match=r"^Xvfb 64x48x24 was not ready within 0.2 s$"):
        async with start_xvfb(64, 48):
            pass
    assert children(os.getpid()) == set()
    (place / "Xvfb").unlink()


@pytest.mark.parametrize("noticed", [False, True])
async def test_xvfb_dies_and_is_named(place: Path, noticed: bool) -> None:
    """Whether or not somebody who was connected to it is the first to notice."""
    names = []

    async def kill() -> None:
        async with spiceshm.desktop("xterm", width=64, height=48) as own:
            names.append(own.x_display)
            os.kill(server_of(own.x_display), signal.SIGKILL)
            if noticed:
                raise XError("the connection broke")
            await trio.sleep_forever()

    with trio.fail_after(DEADLINE):
        with pytest.raises(spiceshm.SourceError) as caught:
            await kill()
    assert str(caught.value) == f"Xvfb {names[0]} was killed by signal 9"
    assert not left_behind(names[0])


async def test_another_failure_of_a_source_is_told_as_it_is(place: Path) -> None:
    with pytest.raises(spiceshm.SourceError, match=r"^the connection broke$"):
        async with start_xvfb(64, 48):
            raise XError("the connection broke")


def test_xvfb_dies_under_a_server(place: Path) -> None:
    with Own(place, *SMALL, "--", "xterm") as server:
        os.kill(server_of(server.display), signal.SIGTERM)
        assert server.wait() == 1
        said = f"spiceshm-server: Xvfb {server.display} ended with status 0"
        assert server.errors.splitlines()[-1].startswith(said)


async def test_who_waits_for_a_program_in_vain_is_told(place: Path) -> None:
    async with spiceshm.desktop("sleep", "600", width=64, height=48) as own:
        with pytest.raises(spiceshm.Timeout, match=r"'sleep' has not ended within 0\.1 s"):
            await own.wait(timeout=0.1)
        own.process.send_signal(signal.SIGTERM)
        assert await own.wait(timeout=None) == -signal.SIGTERM
