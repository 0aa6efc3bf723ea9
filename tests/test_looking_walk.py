"""Programs that look in all ways at once, at random, and are given only what is right.

SPICESHM_WALK_SECONDS=60 walks for so long in each case, from another seed each time, which failures
name: SPICESHM_WALK_SEED=... makes the same choices again, but not at the same moments.
"""

from __future__ import annotations

import os
import random
import secrets
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
import trio.lowlevel

import spiceshm
from tests.lookwalk import Judge, Replayed, Server, Walker, World, numbers
from tests.programs import environment

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = float(os.environ.get("SPICESHM_WALK_SECONDS", "2"))
LONG = "SPICESHM_WALK_SECONDS" in os.environ
SEED = os.environ.get("SPICESHM_WALK_SEED") or (secrets.token_hex(4) if LONG else "walk")


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/display.sock"


@pytest.mark.parametrize(
    ("credits", "shm", "programs"),
    [
        (1, "auto", 1),
        (1, "auto", 3),
        (2, "auto", 1),
        (2, "auto", 2),
        (3, "auto", 1),
        (3, "auto", 3),
        (8, "auto", 2),
        (3, "off", 1),
        (3, "off", 3),
    ],
)
async def test_what_is_given_is_right_whatever_is_done(
    address: str, credits: int, shm: str, programs: int
) -> None:
    seed = f"{SEED} {credits} {shm} {programs}"
    print(f"SPICESHM_WALK_SEED={SEED}")
    until = time.monotonic() + SECONDS
    async with spiceshm.serve(address) as display:
        server = Server(display, random.Random(seed), seed)
        async with spiceshm.connect(address, shm=shm, credits=credits) as remote:  # type: ignore[arg-type]
            assert remote.shared == (shm == "auto")
            world = World(remote.shared, server.known.__getitem__)
            walkers = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.walk, until)
                for number in range(programs):
                    rng = random.Random(f"{seed} {number}")
                    walker = Judge(remote, world, rng, credits)
                    walker.server = server
                    walkers.append(walker)
                    nursery.start_soon(walker.walk, until)
            assert world.given > 2 * SECONDS
            await nothing_is_left(server, remote, walkers)


async def nothing_is_left(
    server: Server, remote: spiceshm.RemoteDisplay, walkers: list[Judge]
) -> None:
    """When all is dropped, the server has one frame out; client and server know the same leases."""
    walkers[0].world.views.clear()
    walkers[0].world.last = None
    for walker in walkers:
        walker.held.clear()
        walker.looped.clear()
        walker.loops.clear()
    with trio.fail_after(10):
        while len(server.display.viewers) > 1:  # who joined last may still be leaving
            await trio.sleep(0.002)
        server.draw()
        while not np.array_equal(numbers((await remote.latest()).pixels), server.pictures.picture):
            await trio.sleep(0.002)
        [viewer] = server.display.viewers
        while viewer.stats.held_frames > 1:
            await trio.sleep(0.002)
    [reader] = server.surface.pool.readers
    assert set(reader.leases) == set(remote._channel._leases)


@pytest.mark.parametrize(("credits", "programs"), [(1, 1), (2, 2), (3, 1)])
async def test_what_another_process_draws_is_right(
    address: str, credits: int, programs: int
) -> None:
    seed = f"{SEED} process {credits} {programs}"
    print(f"SPICESHM_WALK_SEED={SEED}")
    command = [sys.executable, "-m", "tests.lookwalk", address, seed]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(trio.run_process, command, env=environment(), stdout=-1, check=False)
        )
        try:
            await process.stdout.receive_some(10)
            async with spiceshm.connect(address, shm="require", credits=credits) as remote:
                world = World(shared=True, pictures=Replayed(seed))
                until = time.monotonic() + SECONDS
                async with trio.open_nursery() as walking:
                    for number in range(programs):
                        rng = random.Random(f"{seed} {number}")
                        walking.start_soon(Walker(remote, world, rng, credits).walk, until)
                assert world.given > 2 * SECONDS
        finally:
            process.kill()
