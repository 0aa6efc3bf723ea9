"""The size that viewers would like reaches the program, one wish at a time, over real sockets.

Viewers are spoken by hand (`tests.byhand`); what they see of it is looked at with our own client.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio

import spiceshm
from spiceshm.errors import MemoryRefused, SourceError
from spiceshm.protocol import generate_key
from spiceshm.wire import main
from spiceshm.wire.types import MAX_SIDE
from tests import byhand
from tests.byhand import Window, window
from tests.programs import DEADLINE, serving, short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from spiceshm.client import RemoteDisplay

KEY = generate_key()
WIDTH, HEIGHT = 64, 48

pytestmark = pytest.mark.usefixtures("nothing_stays_mapped")


@pytest.fixture(autouse=True)
def one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a key takes longer than everything else in most of these tests."""
    monkeypatch.setattr("spiceshm.server.display.generate_key", lambda: KEY)


@pytest.fixture
def address() -> Iterator[str]:
    with short_directory() as place:
        yield f"unix:{place}/s"


class Program:
    """A program that draws at whatever size is wished, and can be made to wait or to fail."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.display: spiceshm.Display
        self.failure: Exception | None = None
        self.gate = trio.Event()
        self.gate.set()
        self._busy = False

    async def resize(self, width: int, height: int) -> None:
        assert not self._busy, "asked again before it returned"
        self._busy = True
        self.asked.append((width, height))
        try:
            await self.gate.wait()
            if self.failure is not None:
                raise self.failure
            self.draw(width, height)
        finally:
            self._busy = False

    def draw(self, width: int, height: int) -> None:
        pixels = np.full((height, width, 4), width % 256, np.uint8)
        self.display.create_surface(width, height).draw(pixels)


@pytest.fixture
def program() -> Program:
    return Program()


@contextlib.asynccontextmanager
async def shown(address: str, program: Program, **more: object) -> AsyncIterator[spiceshm.Display]:
    async with spiceshm.serve(address, resize=program.resize, **more) as display:  # type: ignore[arg-type]
        program.display = display
        program.draw(WIDTH, HEIGHT)
        yield display


async def eventually(condition: Callable[[], object]) -> None:
    with trio.fail_after(DEADLINE):
        while not condition():
            await trio.sleep(0.001)


async def sees(remote: RemoteDisplay, width: int, height: int) -> None:
    """Wait until a client sees what was drawn at this size."""
    with trio.fail_after(DEADLINE):
        while (await remote.latest()).pixels.shape != (height, width, 4):
            await trio.sleep(0.001)
    assert ((await remote.latest()).pixels[:, :, :3] == width % 256).all()


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if "refused" in line]


async def test_everybody_sees_the_size_that_one_wanted(address: str, program: Program) -> None:
    async with (
        shown(address, program),
        window(address) as viewer,
        spiceshm.connect(address) as reader,
        spiceshm.connect(address, shm="off") as other,
    ):
        for size in ((80, 60), (33, 77), (1, 1), (200, 20)):
            await viewer.wants(*size)
            assert await viewer.got_it()
            assert program.asked[-1] == size
            await sees(reader, *size)
            await sees(other, *size)
        assert len(program.asked) == 4
        assert reader.shared


async def test_who_got_its_wish_and_says_it_again_does_not_take_the_display_back(
    address: str, program: Program
) -> None:
    """Viewers do so by themselves when another size is shown: two would never come to rest."""
    async with shown(address, program), window(address) as one, window(address) as two:
        await one.wants(80, 60)
        assert await one.got_it()
        await two.wants(90, 70)
        assert await two.got_it()
        await one.wants(80, 60)
        assert not await one.got_it()
        program.draw(100, 100)  # nor from the program
        await two.wants(90, 70)
        assert not await two.got_it()
        assert program.asked == [(80, 60), (90, 70)]
        await one.wants(81, 60)
        assert await one.got_it()
        await one.wants(80, 60)
        assert await one.got_it()
        assert program.asked == [(80, 60), (90, 70), (81, 60), (80, 60)]
        await one.wants(80, 60)  # as it is
        assert await one.got_it()


async def test_a_wish_that_was_refused_may_be_said_again(address: str, program: Program) -> None:
    async with shown(address, program), window(address) as viewer:
        program.failure = SourceError("not now")
        await viewer.wants(80, 60)
        assert not await viewer.got_it()
        program.failure = None
        await viewer.wants(80, 60)
        assert await viewer.got_it()


async def test_the_size_that_there_is_is_not_asked_for(address: str, program: Program) -> None:
    async with shown(address, program), window(address) as viewer:
        await viewer.wants(WIDTH, HEIGHT)
        assert await viewer.got_it()
        await viewer.wants(0, HEIGHT)  # switched off, and nothing is answered
        await viewer.wants(WIDTH + 1, HEIGHT)
        assert await viewer.got_it()
        await viewer.wants(WIDTH + 1, HEIGHT)
        assert await viewer.got_it()
        assert program.asked == [(WIDTH + 1, HEIGHT)]


async def test_the_newest_wish_wins(address: str, program: Program) -> None:
    async with shown(address, program) as display, window(address) as viewer:
        program.gate = trio.Event()
        await viewer.wants(100, 100)
        await eventually(lambda: program.asked)
        for side in range(101, 105):
            await viewer.wants(side, side)
        await viewer.is_served()  # meanwhile its main channel is, too
        program.gate.set()
        assert await viewer.got_it()
        assert await viewer.got_it()
        assert program.asked == [(100, 100), (104, 104)]
        assert display.surface is not None
        assert (display.surface.width, display.surface.height) == (104, 104)


async def test_back_to_the_size_that_there_was_meanwhile(address: str, program: Program) -> None:
    """Which is the present one when it is wished, but not when its turn comes."""
    async with shown(address, program), window(address) as viewer:
        program.gate = trio.Event()
        await viewer.wants(100, 100)
        await eventually(lambda: program.asked)
        await viewer.wants(WIDTH, HEIGHT)
        await viewer.is_served()
        program.gate.set()
        await eventually(lambda: program.asked == [(100, 100), (WIDTH, HEIGHT)])


async def test_of_two_viewers_the_last_one_wins(address: str, program: Program) -> None:
    async with (
        shown(address, program),
        window(address) as one,
        window(address) as other,
    ):
        program.gate = trio.Event()
        await one.wants(100, 100)
        await eventually(lambda: program.asked)
        await one.wants(101, 101)
        await one.is_served()
        await other.wants(102, 102)
        assert not await one.got_it()  # for (101, 101): nobody will ask for it any more
        program.gate.set()
        assert await one.got_it()
        assert await other.got_it()
        assert program.asked == [(100, 100), (102, 102)]


async def test_the_wish_of_who_left_is_forgotten(address: str, program: Program) -> None:
    async with shown(address, program) as display, window(address) as one:
        program.gate = trio.Event()
        await one.wants(100, 100)
        await eventually(lambda: program.asked)
        async with window(address) as other:
            await other.wants(101, 101)
            await other.is_served()
        await eventually(lambda: len(display._sessions) == 1)
        program.gate.set()
        assert await one.got_it()
        await one.wants(102, 102)
        assert await one.got_it()
        assert program.asked == [(100, 100), (102, 102)]


@pytest.mark.parametrize("failure", [SourceError("not now"), MemoryRefused("no memory")], ids=repr)
async def test_a_program_may_refuse(
    address: str, program: Program, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with (
        shown(address, program) as display,
        window(address) as viewer,
        spiceshm.connect(address) as reader,
    ):
        surface, serial = display.surface, (await reader.latest()).serial
        program.failure = failure
        await viewer.wants(100, 90)
        assert not await viewer.got_it()
        assert display.surface is surface
        assert (await reader.latest()).serial == serial
        [line] = refusals(caplog)
        assert line.startswith("unix:")
        assert line.endswith(f"would like 100x90, refused: {failure}")
        program.failure = None
        await viewer.wants(100, 90)
        assert await viewer.got_it()


async def test_sizes_that_cannot_be_are_refused_at_once(
    address: str, program: Program, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with shown(address, program, shm_limit=10**6), window(address) as viewer:
        for size in ((MAX_SIDE + 1, 1), (1, 0xFFFFFFFF), (1000, 1000)):
            await viewer.wants(*size)
            assert not await viewer.got_it()
        assert program.asked == []
        reasons = [line.partition("refused: ")[2] for line in refusals(caplog)]
        assert reasons[:2] == ["it is not within 1x1 to 16384x16384"] * 2
        assert "would pass the limit of 1.0 MB" in reasons[2]


async def test_before_anything_is_shown(
    address: str, program: Program, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with spiceshm.serve(address, resize=program.resize), window(address) as viewer:
        await viewer.wants(100, 100)
        assert not await viewer.got_it()
        assert "nothing is shown yet" in refusals(caplog)[0]


async def test_other_errors_end_the_server(address: str, program: Program) -> None:
    program.failure = ZeroDivisionError("a mistake")

    async def serve_for_ever() -> None:
        async with shown(address, program), window(address) as viewer:
            await viewer.wants(100, 100)
            await trio.sleep(DEADLINE)

    with pytest.raises(ZeroDivisionError, match="a mistake"):
        await serve_for_ever()


async def test_who_may_only_look_is_not_told_of_an_agent(address: str, program: Program) -> None:
    only_look = f"{address}.view-only"
    async with (
        shown(address, program, view_only=[only_look]),
        byhand.session(only_look) as client,
    ):
        assert client.agent == (0, 0)
        viewer = Window(client)
        await client.main.put(main.AgentStart(1))
        await viewer.wants(100, 100)
        await viewer.is_served()
        assert program.asked == []


async def test_without_a_callback_there_is_no_agent(address: str) -> None:
    async with spiceshm.serve(address), byhand.session(address) as client:
        assert client.agent == (0, 0)
        await Window(client).wants(100, 100)
        await Window(client).is_served()


async def test_a_breach_ends_that_viewer_alone(
    address: str, program: Program, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        shown(address, program),
        window(address) as good,
        window(address) as bad,
    ):
        await bad.main.put(main.ClientAgentData(b"short"))
        await bad.main.ended()
        await good.wants(100, 100)
        assert await good.got_it()
    [line] = [line for line in caplog.messages if "closed" in line]
    assert line.startswith("unix:")
    assert "main channel closed: main.agent_data: data: 5 bytes, a message begins with" in line


async def test_who_floods_with_wishes_delays_nobody(address: str, program: Program) -> None:
    """It has ten tokens, gets more as its messages are read, and one wish is kept."""
    async with (
        shown(address, program),
        window(address) as viewer,
        window(address) as other,
    ):
        program.gate = trio.Event()
        for side in range(100, 400, 5):
            for more in range(5):
                await viewer.wants(side + more, 10)
            await viewer.main.find(main.AgentToken)
        await other.is_served()
        program.gate.set()
        await eventually(lambda: program.asked[-1] == (399, 10))
        assert len(program.asked) == 2


# The program


async def test_the_pattern_follows_a_viewer() -> None:
    with serving("--surface", "64x48") as server:
        async with window(server.address) as viewer, spiceshm.connect(server.address) as reader:
            await viewer.wants(100, 70)
            assert await viewer.got_it()
            with trio.fail_after(DEADLINE):
                while (await reader.latest()).pixels.shape != (70, 100, 4):
                    await trio.sleep(0.001)


async def test_the_pattern_keeps_its_size_where_it_is_to() -> None:
    with serving("--surface", "64x48", "--no-resize") as server:
        async with byhand.session(server.address) as client:
            assert client.agent == (0, 0)
