"""What goes wrong around the two ends, in real processes: no memory, no descriptors, mad readers.

`tools/soak` lets readers of every kind come and go at one writer and checks every frame that any of
them sees; here it runs for half a minute, and must find writers that are wrong on purpose. The rest
takes memory and descriptors away from one end or the other: whoever it hits is told why, goes on
with less, and is served in full again when there is enough.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import spiceshm
from tests.programs import (
    DEADLINE,
    NO_PRIVILEGES,
    Program,
    environment,
    limited,
    look,
    processes_with,
    script,
    serving,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
SOON = DEADLINE
MB = 10**6


# All at once, for a while


def soak(*words: str) -> tuple[int, dict[str, Any], str]:
    """Run tools/soak with the interpreter that runs the tests: status, figures, progress."""
    result = subprocess.run(
        [sys.executable, "-m", "tools.soaking", "--json", *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=10 * DEADLINE,
    )
    assert result.stdout, result.stderr
    return result.returncode, json.loads(result.stdout), result.stderr


def test_200_readers_of_every_kind_and_nothing_is_torn_lost_or_left() -> None:
    status, figures, progress = soak("--minutes", "0.2", "--visits", "200", "--readers", "10")
    assert figures["failures"] == [], progress
    assert status == 0
    assert re.match(r"seed \w+\n", progress)
    for name in ("torn", "lost", "wrong", "changed", "backwards", "draw_stalls", "readers_now"):
        assert figures[name] == 0, name
    for name in ("killed", "stopped", "shared", "modes", "memory_replaced"):
        assert figures[name] > 0, name
    assert figures["readers"] >= 200
    assert figures["published"] > 1000
    assert figures["seen"] > 1000
    assert len(figures["kinds"]) == 7


FOUND = {
    "outside": r"\d+ of \d+ frames were lost",
    "unnamed": r"\d+ of \d+ frames were lost",
    "half": r"\d+ of \d+ frames were torn",
    "shown": r"\d+ of \d+ frames were wrong",
    "waits": r"the writer waited \d+ times, up to \d+ us",
    "leaks": r"left over, before and after: .*'descriptors'",
}


@pytest.mark.parametrize("how", FOUND)
def test_a_writer_that_is_wrong_is_found(how: str) -> None:
    status, figures, _ = soak("--break", how)
    assert status == 1
    assert any(re.match(FOUND[how], failure) for failure in figures["failures"]), figures


def test_so_many_frames_by_1_2_4_8_and_16_readers() -> None:
    status, figures, _ = soak("--frames", "1000")
    assert (status, figures["failures"]) == (0, [])
    assert [row["readers"] for row in figures["by_readers"]] == [1, 2, 4, 8, 16]
    assert figures["seen"] == sum(row["seen"] for row in figures["by_readers"]) >= 1000
    assert figures["torn"] == figures["lost"] == 0


def test_ctrl_c_ends_it_early_with_all_its_checks_and_processes(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tools.soaking", "--json", "--minutes", "1"]
    with Program(words, environment(tmp_path)) as program:
        until(lambda: "published" in program.errors)
        assert len(processes_with(str(tmp_path))) > 3
        program.send(signal.SIGINT)
        figures = json.loads(program.rest())
        assert (program.status, figures["failures"], figures["interrupted"]) == (0, [], True)
    until(lambda: not processes_with(str(tmp_path)))


# Memory


def status_of(pid: int, name: str) -> int:
    """A size from /proc/PID/status, in bytes."""
    match = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert match
    return int(match[1]) * 1024


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def taken(pid: int, limit: int, soft: int) -> Iterator[None]:
    """A process that runs has a soft limit of so much, while the block runs."""
    before = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (soft, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, limit, before)


async def see(remote: spiceshm.RemoteDisplay, frames: int) -> None:
    """So many frames more, each later than the one before it."""
    last = 0
    with trio.fail_after(SOON):
        async for frame in remote.frames():
            assert frame.serial > last
            last = frame.serial
            frames -= 1
            if not frames:
                break


async def all_see(*remotes: spiceshm.RemoteDisplay, frames: int) -> None:
    async with trio.open_nursery() as nursery:
        for remote in remotes:
            nursery.start_soon(see, remote, frames)


GROWTHS = {
    "file size": (resource.RLIMIT_FSIZE, 16 * MB, "cannot have .* MB.*: File too large"),
    "mapping": (resource.RLIMIT_AS, 16 * MB, "cannot map .* MB.*: .*Cannot allocate memory"),
    "thread": (resource.RLIMIT_AS, 3 * MB, "cannot make shared memory: can't start new thread"),
}


@pytest.mark.parametrize("what", GROWTHS)
async def test_memory_refused_while_readers_look(what: str) -> None:
    limit, room, why = GROWTHS[what]
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(serving("--surface", "1024x768", "--fps", "20"))
        enter = stack.enter_async_context
        first = await enter(spiceshm.connect(server.address, shm="require"))
        before = first.segment_bytes
        if limit == resource.RLIMIT_AS:
            room += status_of(server.pid, "VmSize")
        with taken(server.pid, limit, room):
            second = await enter(spiceshm.connect(server.address, shm="require", credits=8))
            until(lambda: server.errors)
            assert re.fullmatch(
                f"spiceshm-server: 2 readers share too few buffers: {why}\n", server.errors
            )
            used, start = cpu_seconds(server.pid), trio.current_time()
            await all_see(first, second, frames=20)
            # It does not try for ever.
            assert cpu_seconds(server.pid) - used < 0.5 * (trio.current_time() - start)
            assert server.errors.count("\n") == 1
        third = await enter(spiceshm.connect(server.address, shm="require"))
        with trio.fail_after(SOON):
            while first.segment_bytes == before:
                await all_see(first, second, third, frames=1)
        assert server.status is None
        assert server.errors.count("\n") == 1


LITTLE_SPACE = """
import resource, spiceshm.cli.looking
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 20_000_000, resource.RLIM_INFINITY))
"""


async def test_a_client_with_too_little_address_space() -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(serving("--surface", "1024x768", "--fps", "50"))
        crowd = [
            await stack.enter_async_context(spiceshm.connect(server.address, credits=8))
            for _ in range(2)
        ]
        with trio.fail_after(SOON):
            while crowd[0].segment_bytes < 50 * MB:
                await all_see(*crowd, frames=1)

        def small(*words: str) -> subprocess.CompletedProcess[bytes]:
            return look(*words, server.address, prelude=LITTLE_SPACE)

        result = await trio.to_thread.run_sync(small, "--json", "--frames", "5")
        assert result.returncode == 0, result.stderr
        figures = json.loads(result.stdout)
        assert (figures["frames"], figures["shm"]) == (5, False)
        assert re.match(r"cannot map .* MB of shared memory: .*memory", figures["reason"])
        result = await trio.to_thread.run_sync(small, "--require-shm")
        assert result.returncode == 3
        [line] = result.stderr.decode().splitlines()
        assert re.match(r"spiceshm-client: .*: memory is not shared: cannot map .* MB", line)
        await all_see(*crowd, frames=3)
        assert server.errors == ""


# Descriptors


FULL = """
import os, resource, sys, trio, spiceshm

def leave_room(count):
    top = max(map(int, os.listdir("/proc/self/fd")))
    while (filler := os.dup(0)) <= top:
        pass
    resource.setrlimit(resource.RLIMIT_NOFILE, (filler + count, 1 << 10))
    os.close(filler)

async def main(address, when):
    if when == "first":
        leave_room(2)  # its two sockets
    async with spiceshm.connect(address) as remote:
        print(remote.shared, remote.reason, flush=True)
        if when == "later":
            leave_room(0)
        async for frame in remote.frames():
            if not remote.shared:
                break
        print(remote.shared, remote.reason, flush=True)
        seen = 0
        async for frame in remote.frames():
            seen += 1
            if seen == 5:
                break
    print("seen", flush=True)

trio.run(main, *sys.argv[1:])
"""
NO_DESCRIPTOR = "False 0 descriptors came with the offer, not one"


async def test_a_client_without_room_for_a_descriptor() -> None:
    with serving("--surface", "320x240", "--fps", "50") as server:
        with script(FULL, server.address, "first") as client:
            assert [client.line() for _ in range(3)] == [NO_DESCRIPTOR, NO_DESCRIPTOR, "seen"]
        with script(FULL, server.address, "later") as client:
            assert client.line() == "True None"
            # Another one makes the memory grow, and all are offered what is new.
            async with spiceshm.connect(server.address, shm="require", credits=8) as other:
                assert [client.line() for _ in range(2)] == [NO_DESCRIPTOR, "seen"]
                await see(other, 10)
        assert server.errors == ""


@pytest.mark.parametrize("room", [2, 3, 4, 5])
async def test_a_server_without_descriptors_for_what_it_offers(room: int) -> None:
    """Room for two sockets and so much more: for no offer, no memory, or no offer of new memory."""
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(serving("--surface", "320x240", "--fps", "50"))
        enter = stack.enter_async_context
        first = await enter(spiceshm.connect(server.address, shm="require"))
        used = sorted(int(name) for name in os.listdir(f"/proc/{server.pid}/fd"))
        assert used[-1] == len(used) - 1
        with taken(server.pid, resource.RLIMIT_NOFILE, len(used) + room):
            second = await enter(spiceshm.connect(server.address, credits=8))
            await all_see(first, second, frames=20)
            assert (second.shared, first.shared) == (room > 2, True)
        third = await enter(spiceshm.connect(server.address, shm="require", credits=4))
        await all_see(first, second, third, frames=5)
        assert server.status is None
        assert "Traceback" not in server.errors


SILENT = """
import contextlib, os, sys, time, trio, spiceshm

async def main(address, count):
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(int(count)):
            await stack.enter_async_context(spiceshm.connect(address, shm="require", credits=1))
        print("silent", flush=True)
        time.sleep(1000)

trio.run(main, *sys.argv[1:])
"""


async def visit(address: str, bystander: spiceshm.RemoteDisplay) -> None:
    """Somebody for whom the memory must grow comes, and leaves when it has."""
    grown = bystander.segment_bytes + 8 * 64 * 48 * 4
    async with spiceshm.connect(address, shm="require", credits=8) as visitor:
        while bystander.segment_bytes < grown:
            await all_see(bystander, visitor, frames=1)
    while bystander.segment_bytes >= grown:
        await see(bystander, 1)


async def test_many_who_never_read_do_not_keep_others_from_getting_memory() -> None:
    """Descriptors on their way are counted for all connections of a user together."""
    most = 90
    silent, visits = 12, 12  # more than that, if each visit sent one to each
    prelude = NO_PRIVILEGES + limited(NOFILE=most)
    with serving("--surface", "64x48", "--fps", "100", prelude=prelude) as server:
        async with spiceshm.connect(server.address, shm="require") as bystander:
            with script(SILENT, server.address, str(silent)) as crowd:
                assert await trio.to_thread.run_sync(crowd.line) == "silent"
                with trio.fail_after(2 * SOON):
                    # A visit waits for what was given back again, so all must have theirs before.
                    while bystander.segment_bytes < (silent + 3 + 2) * 64 * 48 * 4:
                        await see(bystander, 1)
                    for _ in range(visits):
                        await visit(server.address, bystander)
                assert bystander.shared
        assert server.status is None
        assert server.errors == ""


@contextlib.contextmanager
def descriptors_on_their_way(count: int) -> Iterator[None]:
    """So many of this user's descriptors lie in a socket that nobody reads."""
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull) as file:
        for _ in range(count):
            socket.send_fds(ours, [b"@"], [file.fileno()])
        yield


async def test_no_descriptor_can_be_sent_to_anybody() -> None:
    prelude = NO_PRIVILEGES + limited(NOFILE=64)
    with serving("--surface", "320x240", "--fps", "50", prelude=prelude) as server:
        async with spiceshm.connect(server.address, shm="require") as first:
            with descriptors_on_their_way(100):
                async with spiceshm.connect(server.address, credits=8) as second:
                    assert second.reason == NO_DESCRIPTOR.removeprefix("False ")
                    await all_see(first, second, frames=5)
            async with spiceshm.connect(server.address, shm="require", credits=8) as third:
                await all_see(first, third, frames=5)
        assert server.status is None
        assert server.errors == ""
