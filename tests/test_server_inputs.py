"""What clients do with keys and pointer reaches the program, over real sockets, and nothing stays.

Clients are spoken by hand (`tests.byhand`), so that they can hold keys, vanish, not read, and open
what they should not.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
import trio.testing

import spiceshm
from spiceshm.errors import LinkRefused, SourceError
from spiceshm.events import (
    CAPS_LOCK,
    Button,
    CursorShape,
    Event,
    Key,
    Locks,
    PointerBy,
    PointerTo,
)
from spiceshm.protocol import generate_key
from spiceshm.server.cursor import MAX_CURSOR_SIDE
from spiceshm.wire import base, cursor, inputs, main
from spiceshm.wire.types import ChannelType, LinkError, MouseMode
from tests import byhand
from tests.pair import framed
from tests.programs import DEADLINE, look, script, serving, short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

KEY = generate_key()
WIDTH, HEIGHT = 64, 48
A, SHIFT = 0x1E, 0x2A
STILL = inputs.MouseMotion(0, 0, 0)
INPUTS, CURSOR = ChannelType.INPUTS, ChannelType.CURSOR

pytestmark = pytest.mark.usefixtures("nothing_stays_mapped")


@pytest.fixture(autouse=True)
def one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a key takes longer than everything else in most of these tests."""
    monkeypatch.setattr("spiceshm.server.display.generate_key", lambda: KEY)


@pytest.fixture
def jumping() -> trio.testing.MockClock:
    """Time that jumps to the next deadline when nothing has happened for a tenth of a second."""
    return trio.testing.MockClock(autojump_threshold=0.1)


@pytest.fixture
def skipping() -> trio.testing.MockClock:
    """Time that goes on as always, and jumps when it is told to."""
    return trio.testing.MockClock(rate=1)


@pytest.fixture
def address() -> Iterator[str]:
    with short_directory() as place:
        yield f"unix:{place}/s"


class Recorder:
    """A program that notes what it is to play, and can be made to wait or to fail."""

    def __init__(self) -> None:
        self.batches: list[list[Event]] = []
        self.began: list[int] = []
        self.playing = 0
        self.failure: Exception | None = None
        self.gate = trio.Event()
        self.gate.set()

    async def play(self, events: Sequence[Event]) -> None:
        assert self.playing == 0, "two batches at a time"
        self.playing += 1
        self.began.append(time.monotonic_ns())
        self.batches.append(list(events))
        try:
            await self.gate.wait()
            if self.failure is not None:
                raise self.failure
        finally:
            self.playing -= 1

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch]

    async def has(self, *events: Event) -> None:
        """Wait until it was to play these, and nothing else."""
        await eventually(lambda: len(self.events) >= len(events))
        assert self.events == [*events]


@pytest.fixture
def program() -> Recorder:
    return Recorder()


@contextlib.asynccontextmanager
async def shown(address: str, program: Recorder, **more: object) -> AsyncIterator[spiceshm.Display]:
    async with spiceshm.serve(address, inputs=program.play, **more) as display:  # type: ignore[arg-type]
        display.create_surface(WIDTH, HEIGHT).draw(np.zeros((HEIGHT, WIDTH, 4), np.uint8))
        yield display


@contextlib.asynccontextmanager
async def keyboard(address: str) -> AsyncIterator[byhand.Peer]:
    """An inputs channel of a session of its own, behind INIT."""
    async with byhand.session(address) as client:
        keys = await client.open(INPUTS)
        assert type(await keys.next()) is inputs.InputsInit
        yield keys


async def eventually(condition: Callable[[], object]) -> None:
    with trio.fail_after(DEADLINE):
        while not condition():
            await trio.sleep(0.001)


async def delivered(keys: byhand.Peer) -> int:
    """Wait until the server says that all was played; returns the stamp that it tells."""
    machine = keys.machine
    assert isinstance(machine, byhand.ClientInputs)
    await keys.put(*[STILL] * machine.barrier)
    while machine.unacked:
        await keys.next()
    assert machine.stamp is not None
    return machine.stamp


def down(code: int) -> Key:
    return Key(code, True)


def up(code: int) -> Key:
    return Key(code, False)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("spiceshm") and record.levelno >= logging.WARNING
    ]


# What arrives


async def test_all_that_clients_do(address: str, program: Recorder) -> None:
    async with shown(address, program), keyboard(address) as keys:
        await keys.put(
            inputs.KeyDown(SHIFT),
            inputs.KeyDown(A),
            inputs.KeyDown(A),
            inputs.KeyUp(A | 0x80),
            inputs.KeyScancode(b"\xe0\x4d\xe0\xcd"),
            inputs.KeyUp(SHIFT | 0x80),
            inputs.MousePosition(7, 9, 0, 0),
            inputs.MousePress(1, 1),
            inputs.MouseMotion(-3, 2, 1),
            inputs.MouseRelease(1, 0),
            inputs.ClientKeyModifiers(CAPS_LOCK),
        )
        await program.has(
            *(down(SHIFT), down(A), down(A), up(A), down(0xE04D), up(0xE04D), up(SHIFT)),
            *(PointerTo(7, 9), Button(1, True), PointerBy(-3, 2), Button(1, False)),
            Locks(CAPS_LOCK),
        )


async def test_a_release_of_what_is_not_held_is_not_played(address: str, program: Recorder) -> None:
    """Viewers that grab the pointer with a click send its release alone."""
    async with shown(address, program), keyboard(address) as keys:
        await keys.put(inputs.MouseRelease(1, 0), inputs.KeyUp(A | 0x80), inputs.KeyDown(A))
        await program.has(down(A))


async def test_places_are_within_what_is_shown(address: str, program: Recorder) -> None:
    async with shown(address, program) as display, keyboard(address) as keys:
        far = inputs.MousePosition(0xFFFFFFFF, 0x80000000, 0, 0)
        await keys.put(far, inputs.MouseMotion(-(1 << 31), (1 << 31) - 1, 0))
        await program.has(PointerTo(WIDTH - 1, HEIGHT - 1), PointerBy(-16384, 16384))
        display.create_surface(WIDTH * 2, HEIGHT)
        await keys.put(far)
        await eventually(lambda: len(program.events) == 3)
        assert program.events[2] == PointerTo(WIDTH * 2 - 1, HEIGHT - 1)


# Delivery


async def test_still_motions_are_acknowledged_and_not_played(
    address: str, program: Recorder
) -> None:
    async with shown(address, program), keyboard(address) as keys:
        await keys.put(*[STILL] * 4)
        assert [await keys.next() for _ in range(2)] == [base.Ping(1, 0), inputs.MouseMotionAck()]
        await keys.put(*[STILL] * 8)
        assert [await keys.next() for _ in range(4)] == [
            base.Ping(2, 0),
            inputs.MouseMotionAck(),
            base.Ping(3, 0),
            inputs.MouseMotionAck(),
        ]
        assert program.batches == []


async def test_the_stamp_is_taken_before_the_batch_is_played(
    address: str, program: Recorder
) -> None:
    async with shown(address, program), keyboard(address) as keys:
        stamps = [0]
        for _ in range(3):
            before = time.monotonic_ns()
            await keys.put(inputs.KeyDown(A))
            stamps.append(await delivered(keys))
            assert before <= stamps[-1] <= program.began[-1]
            assert await delivered(keys) == stamps[-1]  # nothing was done since
        assert stamps == sorted(set(stamps))


async def test_nothing_is_acknowledged_before_it_was_played(
    address: str, program: Recorder
) -> None:
    async with shown(address, program) as display, keyboard(address) as keys:
        program.gate = trio.Event()
        await keys.put(inputs.KeyDown(A), *[STILL] * 4)
        await program.has(down(A))
        display.set_locks(1)  # which is told at once, and no acknowledgement before it
        assert await keys.next() == inputs.KeyModifiers(1)
        program.gate.set()
        assert type(await keys.next()) is base.Ping
        assert await keys.next() == inputs.MouseMotionAck()


async def test_batches_of_several_clients_do_not_overlap(address: str, program: Recorder) -> None:
    async with (
        shown(address, program),
        keyboard(address) as one,
        keyboard(address) as other,
    ):
        program.gate = trio.Event()
        await one.put(inputs.KeyDown(1), inputs.KeyDown(2))
        await program.has(down(1), down(2))
        await other.put(inputs.KeyDown(3))
        await one.put(inputs.KeyDown(4))
        program.gate.set()
        await eventually(lambda: len(program.events) == 4)
        await delivered(one)
        await delivered(other)
        assert program.batches[0] == [down(1), down(2)]
        assert sorted(map(str, program.batches[1:])) == [str([down(3)]), str([down(4)])]


async def test_a_flood_waits_for_a_slow_program(address: str, program: Recorder) -> None:
    """It is stopped by its own socket, and others go on seeing every frame."""
    async with (
        shown(address, program) as display,
        keyboard(address) as keys,
        spiceshm.connect(address) as remote,
    ):
        surface = display.surface
        assert surface is not None
        program.gate = trio.Event()
        many = [inputs.KeyDown(A), inputs.KeyUp(A | 0x80)] * 100
        while not keys.stream.pending:
            for message in many:
                keys.machine.send(message)
            keys.flush()
        await eventually(lambda: program.batches)
        frames = remote.frames()
        for number in range(20):
            surface.draw(np.full((HEIGHT, WIDTH, 4), number, np.uint8))
            with trio.fail_after(DEADLINE):
                while (await anext(frames)).pixels[0, 0, 0] != number:
                    pass
        assert len(program.batches) == 1
        assert keys.stream.pending


async def test_a_flood_of_keys_does_not_stop_the_display(address: str, program: Recorder) -> None:
    async with (
        shown(address, program) as display,
        keyboard(address) as keys,
        spiceshm.connect(address) as remote,
        trio.open_nursery() as nursery,
    ):
        surface = display.surface
        assert surface is not None

        async def flood() -> None:
            for _ in range(1000):
                await keys.put(*[inputs.KeyDown(A), inputs.KeyUp(A | 0x80)] * 100)

        nursery.start_soon(flood)
        await eventually(lambda: len(program.batches) > 10)
        frames = remote.frames()
        for number in range(50):
            surface.draw(np.full((HEIGHT, WIDTH, 4), number, np.uint8))
            with trio.fail_after(DEADLINE):
                while (await anext(frames)).pixels[0, 0, 0] != number:
                    pass
        assert len(program.events) < 200_000  # it was still at it
        nursery.cancel_scope.cancel()


async def test_who_does_not_read_acknowledgements_is_read_no_further(
    address: str, program: Recorder
) -> None:
    """What the server would have to say to it costs no memory."""
    async with shown(address, program), keyboard(address) as keys:
        await fill(keys, framed(STILL))


async def fill(peer: byhand.Peer, request: bytes) -> None:
    """Ask the same again and again and read no answer, until the server takes no more."""
    with trio.fail_after(DEADLINE):
        while not peer.stream.pending:
            while not peer.stream.pending:
                peer.stream.send(request * 4000)
            await trio.testing.wait_all_tasks_blocked(0.1)
            with trio.move_on_after(0.1):
                await peer.stream.drain()


# What is held


async def test_a_key_that_two_hold_comes_up_with_the_last(address: str, program: Recorder) -> None:
    async with shown(address, program), keyboard(address) as one:
        async with keyboard(address) as other:
            for keys in (one, other):
                await keys.put(inputs.KeyDown(SHIFT), inputs.MousePress(1, 1))
                await delivered(keys)
            both = [down(SHIFT), Button(1, True)]
            assert program.events == both * 2
            await one.put(inputs.KeyUp(SHIFT | 0x80))
            await delivered(one)
            assert program.events == both * 2
        # The other one is gone: Shift comes up, the button is still held by the first.
        await program.has(*both * 2, up(SHIFT))
        await one.put(inputs.MouseRelease(1, 0))
        await program.has(*both * 2, up(SHIFT), Button(1, False))


KILLED = """
import sys
import trio
from spiceshm.wire import inputs
from spiceshm.wire.types import ChannelType
from tests import byhand
from tests.pair import framed

async def main():
    async with byhand.session(sys.argv[1]) as client:
        keys = await client.open(ChannelType.INPUTS)
        await keys.put(inputs.KeyDown(0x2A), inputs.KeyDown(0x1E), inputs.MousePress(3, 4))
        print("pressed", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_killed_client_holds_nothing(
    address: str, program: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    held = [down(SHIFT), down(A), Button(3, True)]
    async with shown(address, program):
        with script(KILLED, address) as client:
            assert await trio.to_thread.run_sync(client.line) == "pressed"
            await program.has(*held)
            client.send(signal.SIGKILL)
            await program.has(*held, Button(3, False), up(A), up(SHIFT))
    assert warnings(caplog) == []


async def test_the_end_of_a_session_lets_go(address: str, program: Recorder) -> None:
    async with shown(address, program), byhand.session(address) as client:
        keys = await client.open(INPUTS)
        await keys.put(inputs.KeyDown(A))
        await program.has(down(A))
        client.main.close()
        await program.has(down(A), up(A))
        assert await keys.ended() == [inputs.InputsInit(0)]


async def test_what_may_have_been_played_in_part_comes_up(address: str, program: Recorder) -> None:
    """Long batches are played in pieces, and a client's end does not wait for the last of them."""
    async with shown(address, program), byhand.session(address) as client:
        program.gate = trio.Event()
        keys = await client.open(INPUTS)
        batch = [down(SHIFT), down(A), up(A), Button(1, True), Button(1, False), up(SHIFT)]
        await keys.put(
            *(inputs.KeyDown(SHIFT), inputs.KeyDown(A), inputs.KeyUp(A | 0x80)),
            *(inputs.MousePress(1, 1), inputs.MouseRelease(1, 0), inputs.KeyUp(SHIFT | 0x80)),
        )
        await program.has(*batch)
        client.main.close()
        await eventually(lambda: len(program.batches) == 2)
        program.gate.set()
        assert program.batches[1] == [up(A), Button(1, False), up(SHIFT)]


async def test_the_end_of_the_server_lets_go(address: str, program: Recorder) -> None:
    async with shown(address, program), keyboard(address) as keys:
        await keys.put(inputs.KeyDown(A))
        await program.has(down(A))
    assert program.events == [down(A), up(A)]


async def test_a_program_that_hangs_does_not_hang_the_end(
    address: str,
    program: Recorder,
    jumping: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with shown(address, program), keyboard(address) as one, keyboard(address) as other:
        for keys in (one, other):
            await keys.put(inputs.KeyDown(A))
            await delivered(keys)
        program.gate = trio.Event()
        end = trio.current_time()
    assert 4.9 < trio.current_time() - end < 6
    [line, *more] = warnings(caplog)
    assert "1 keys and buttons may stay down" in line
    assert len(more) <= 1


async def test_what_a_hanging_program_could_not_release_comes_up_when_it_goes_on(
    address: str,
    program: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """But not what somebody else holds by then."""
    monkeypatch.setattr("spiceshm.server.inputs.RELEASE_S", 0.1)
    async with shown(address, program), keyboard(address) as other:
        await other.put(inputs.KeyDown(A))
        await program.has(down(A))
        async with keyboard(address) as keys:
            await keys.put(inputs.KeyDown(SHIFT), inputs.KeyDown(A))
            await program.has(down(A), down(SHIFT), down(A))
            program.gate = trio.Event()
            await keys.put(inputs.KeyDown(3))
            await eventually(lambda: len(program.batches) == 3)
        await eventually(lambda: warnings(caplog))
        assert "3 keys and buttons may stay down" in warnings(caplog)[0]
        program.gate.set()
        await other.put(inputs.KeyDown(2))
        await delivered(other)
        assert program.batches[-1] == [up(3), up(SHIFT), down(2)]


# Locks


async def test_locks_are_told_to_everybody_once(address: str, program: Recorder) -> None:
    async with shown(address, program) as display, keyboard(address) as one:
        assert display.locks == 0
        display.set_locks(CAPS_LOCK)
        async with byhand.session(address) as client:
            other = await client.open(INPUTS)
            assert await other.next() == inputs.InputsInit(CAPS_LOCK)
            assert await one.next() == inputs.KeyModifiers(CAPS_LOCK)
            display.set_locks(CAPS_LOCK)  # which is nothing new
            display.set_locks(0)
            assert await one.next() == inputs.KeyModifiers(0)
            assert await other.next() == inputs.KeyModifiers(0)
            assert display.locks == 0


# Who may press keys


async def test_locks_are_told_before_what_was_done_is_acknowledged(
    address: str, program: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So who waits for the acknowledgement knows of them."""
    async with shown(address, program) as display, keyboard(address) as keys:

        async def play(events: Sequence[Event]) -> None:
            display.set_locks(2 * events.count(down(A)))

        monkeypatch.setattr(display._seat, "_play", play)
        await keys.put(inputs.KeyDown(A), *[STILL] * 4)
        assert await keys.next() == inputs.KeyModifiers(2)
        assert type(await keys.next()) is base.Ping


async def test_locks_that_are_noticed_at_the_same_time_are_told_first(
    address: str, program: Recorder
) -> None:
    ends = socket.socketpair()
    with ends[0], ends[1]:
        async with shown(address, program) as display, keyboard(address) as keys:

            async def notice() -> None:
                while True:
                    await trio.lowlevel.wait_readable(ends[0])
                    display.set_locks(ends[0].recv(1)[0])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(notice)
                for number in range(20):
                    await trio.testing.wait_all_tasks_blocked()
                    ends[1].send(bytes([number % 2 + 1]))
                    await keys.put(*[STILL] * 4)
                    assert await keys.next() == inputs.KeyModifiers(number % 2 + 1)
                    assert type(await keys.next()) is base.Ping
                    assert await keys.next() == inputs.MouseMotionAck()
                nursery.cancel_scope.cancel()


async def test_view_only_listeners(address: str, program: Recorder) -> None:
    only = address + "-view"
    async with shown(address, program, view_only=[only]) as display:
        assert [str(place) for place in display.view_only_addresses] == [only]
        async with byhand.session(only) as looker, byhand.session(address) as actor:
            assert looker.listed == {ChannelType.DISPLAY}
            assert actor.listed == {ChannelType.DISPLAY, INPUTS}
            # Neither at its own address nor at the other one, and not with another's session.
            for session, place in ((looker, only), (looker, address), (actor, only)):
                with pytest.raises(LinkRefused) as caught:
                    await session.open(INPUTS, place)
                assert caught.value.code == LinkError.CHANNEL_NOT_AVAILABLE
            await actor.open(INPUTS)
            async with spiceshm.connect(only) as remote:
                assert remote.shared
                [viewer] = display.viewers
                assert viewer.stats.input == "view only"


async def test_without_a_program_there_is_nothing_to_press(address: str) -> None:
    async with spiceshm.serve(address), byhand.session(address) as client:
        assert client.listed == {ChannelType.DISPLAY}
        with pytest.raises(LinkRefused) as caught:
            await client.open(INPUTS)
        assert caught.value.code == LinkError.CHANNEL_NOT_AVAILABLE


@pytest.mark.parametrize("kind", [INPUTS, CURSOR])
async def test_a_channel_of_no_session(address: str, program: Recorder, kind: ChannelType) -> None:
    async with shown(address, program), byhand.session(address) as client:
        client.session_id ^= 1
        with pytest.raises(LinkRefused) as caught:
            await client.open(kind)
        assert caught.value.code == LinkError.BAD_CONNECTION_ID


@pytest.mark.parametrize("kind", [INPUTS, CURSOR])
async def test_a_second_channel_is_closed_and_the_first_goes_on(
    address: str, program: Recorder, kind: ChannelType, caplog: pytest.LogCaptureFixture
) -> None:
    init = {INPUTS: inputs.InputsInit, CURSOR: cursor.CursorInit}[kind]
    async with shown(address, program) as display, byhand.session(address) as client:
        first = await client.open(kind)
        await first.find(init)
        second = await client.open(kind)
        assert await second.ended() == []
        [line] = warnings(caplog)
        assert line.endswith("channel closed: link_mess: channel_type: the session has 1 already")
        display.set_locks(1)
        display.set_cursor(shape())
        await first.find(inputs.KeyModifiers if kind is INPUTS else cursor.CursorSet)
        first.close()
        await eventually(lambda: display._entrance.connections == 1)
        await (await client.open(kind)).find(init)  # one at a time, as often as one likes


async def test_what_no_client_may_say_ends_one_channel(
    address: str, program: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    async with shown(address, program), byhand.session(address) as client:
        keys = await client.open(INPUTS)
        await keys.put(inputs.KeyDown(A))
        await program.has(down(A))
        keys.stream.send(b"\x01\x02\0\0\0\0")
        assert await keys.ended() == [inputs.InputsInit(0)]
        await program.has(down(A), up(A))
        [line] = warnings(caplog)
        assert "inputs channel closed: inputs message 513: is unknown" in line
        await client.main.put(main.MouseModeRequest(1))
        await client.main.find(main.MouseMode)


# A program that fails


async def test_a_source_that_ends_takes_its_keys_and_nothing_else(
    address: str, program: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        shown(address, program) as display,
        keyboard(address) as one,
        keyboard(address) as other,
        spiceshm.connect(address) as remote,
    ):
        program.failure = SourceError("X display :5: the server is gone")
        await one.put(inputs.KeyDown(A))
        assert await one.ended() == []
        [line] = warnings(caplog)
        assert line.endswith("inputs channel closed: X display :5: the server is gone")
        program.failure = None
        await other.put(inputs.KeyDown(A))
        await delivered(other)
        assert display.surface is not None
        display.surface.draw(np.ones((HEIGHT, WIDTH, 4), np.uint8))
        frames = remote.frames()
        with trio.fail_after(DEADLINE):
            while not (await anext(frames)).pixels[0, 0, 0]:
                pass


async def test_a_mistake_of_the_program_comes_out_as_itself(
    address: str, program: Recorder
) -> None:
    async def serve() -> None:
        async with shown(address, program), keyboard(address) as keys:
            await keys.put(inputs.KeyDown(A))
            await trio.sleep_forever()

    program.failure = ZeroDivisionError("oops")
    with pytest.raises(ZeroDivisionError, match="oops"):
        await serve()


# Figures


async def test_figures(address: str, program: Recorder) -> None:
    async with shown(address, program) as display, spiceshm.connect(address):
        [viewer] = display.viewers
        [session] = display._sessions.values()
        stats = viewer.stats
        assert (stats.input, stats.input_events, stats.input_held) == ("no", 0, 0)
        assert stats.input_s is None
        # The inputs channel of that very session, which another connection may open too.
        with contextlib.ExitStack() as stack:
            client = byhand.Client(address, stack)
            client.session_id = session.id
            keys = await client.open(INPUTS)
            await keys.put(inputs.KeyDown(A), inputs.MousePress(1, 1), inputs.KeyUp(A | 0x80))
            await delivered(keys)
            stats = viewer.stats
            assert (stats.input, stats.input_events, stats.input_held) == ("yes", 3, 1)
            assert stats.input_s is not None
            assert 0 <= stats.input_s < DEADLINE
        await eventually(lambda: viewer.stats.input == "no" and not viewer.stats.input_held)


# The session


async def test_mouse_modes_are_a_sessions_own(address: str, program: Recorder) -> None:
    async with (
        shown(address, program),
        byhand.session(address) as one,
        byhand.session(address) as other,
    ):
        for client, asked, answer in (
            (one, 1, 1),
            (other, 0, 2),
            (one, 3, 1),
            (other, 2, 2),
            (one, 2, 2),
        ):
            await client.main.put(main.MouseModeRequest(asked))
            both = MouseMode.SERVER | MouseMode.CLIENT
            assert await client.main.find(main.MouseMode) == main.MouseMode(both, answer)


async def test_a_heartbeat_a_second(
    address: str, program: Recorder, jumping: trio.testing.MockClock
) -> None:
    async with shown(address, program), byhand.session(address) as client:
        for number in (1, 2, 3):
            before = time.monotonic_ns()
            at = trio.current_time()
            ping = await client.main.next()
            assert isinstance(ping, base.Ping)
            assert ping.id == number
            assert 0.5 < trio.current_time() - at < 1.5
            assert before < ping.timestamp < time.monotonic_ns()


async def test_who_does_not_read_main_is_read_no_further_and_hears_no_heartbeats(
    address: str, program: Recorder, skipping: trio.testing.MockClock
) -> None:
    async with shown(address, program), byhand.session(address) as client:
        await fill(client.main, framed(main.MouseModeRequest(1)))
        for _ in range(1000):
            skipping.jump(1)
            await trio.testing.wait_all_tasks_blocked()
        pings = 0
        with trio.move_on_after(1):
            while True:
                await client.main.find(base.Ping)
                pings += 1
        assert pings < 20


# The pointer's picture


def shape(
    width: int = 3, height: int = 2, value: int = 9, hot: tuple[int, int] = (1, 0)
) -> CursorShape:
    return CursorShape(np.full((height, width, 4), value, np.uint8), *hot)


def told(of: CursorShape, unique: int) -> cursor.Cursor:
    height, width, _ = of.pixels.shape
    header = cursor.CursorHeader(unique, cursor.TYPE_ALPHA, width, height, of.hot_x, of.hot_y)
    return cursor.Cursor(0, header, of.pixels.tobytes())


async def pointing(client: byhand.Client) -> byhand.Peer:
    """A cursor channel behind SET_ACK."""
    peer = await client.open(CURSOR)
    assert type(await peer.next()) is base.SetAck
    return peer


async def test_a_cursor_from_nothing_to_hidden(address: str, program: Recorder) -> None:
    arrow, beam = shape(), shape(1, 7, 200, (0, 6))
    async with shown(address, program) as display, byhand.session(address) as client:
        peer = await pointing(client)
        init = await peer.next()
        assert init == cursor.CursorInit(0, 0, 0, 0, 0, cursor.Cursor(cursor.FLAG_NONE))
        assert len(init.packed) == 11
        display.move_cursor(5, 6)  # nobody sees it
        display.set_cursor(arrow)
        assert await peer.next() == cursor.CursorSet(5, 6, 1, told(arrow, 1))
        display.move_cursor(1 << 20, -7)
        assert await peer.next() == cursor.CursorMove(0x7FFF, -7)
        display.set_cursor(beam)
        assert await peer.next() == cursor.CursorSet(0x7FFF, -7, 1, told(beam, 2))
        display.set_cursor(None)
        assert await peer.next() == cursor.CursorHide()
        display.set_cursor(beam)
        assert await peer.next() == cursor.CursorSet(0x7FFF, -7, 1, told(beam, 3))
        async with byhand.session(address) as later:
            assert later.listed == {ChannelType.DISPLAY, INPUTS, CURSOR}
            late = await pointing(later)
            assert await late.next() == cursor.CursorInit(0x7FFF, -7, 0, 0, 1, told(beam, 3))


@pytest.mark.parametrize("speaks", ["shows", "waits"])
async def test_a_pointer_that_nobody_spoke_of_is_not_listed(
    address: str, program: Recorder, speaks: str
) -> None:
    """Viewers would hide their own over a surface that has none."""
    async with shown(address, program) as display, trio.open_nursery() as nursery:
        async with byhand.session(address) as client:
            assert CURSOR not in client.listed
        if speaks == "shows":
            display.set_cursor(None)
        else:
            nursery.start_soon(display.cursor_wanted)
            await trio.testing.wait_all_tasks_blocked()
        async with byhand.session(address) as client:
            assert CURSOR in client.listed
            await client.open(CURSOR)


async def test_who_wants_a_cursor(address: str, program: Recorder) -> None:
    async with shown(address, program) as display, byhand.session(address) as client:
        for _ in range(2):
            assert not display.cursor_watched
            async with trio.open_nursery() as nursery:
                nursery.start_soon(display.cursor_wanted)
                peer = await pointing(client)
            assert display.cursor_watched
            peer.close()
            await eventually(lambda: not display.cursor_watched)


async def test_the_first_who_looks_waits_for_a_fresh_look(
    address: str, program: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the program has not noticed yet that the last one went."""
    monkeypatch.setattr("spiceshm.server.cursor.FRESH_S", DEADLINE)
    arrow = shape()
    async with shown(address, program) as display, byhand.session(address) as client:
        display.set_cursor(arrow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(display.cursor_wanted)
            await trio.testing.wait_all_tasks_blocked()
            for x in (7, 8):
                peer = await client.open(CURSOR)
                with trio.move_on_after(0.05):
                    pytest.fail(f"too soon: {await peer.next()}")
                display.move_cursor(x, 9)
                display.set_cursor(arrow)
                assert type(await peer.next()) is base.SetAck
                assert await peer.next() == cursor.CursorInit(x, 9, 0, 0, 1, told(arrow, x - 5))
                peer.close()
                with trio.fail_after(DEADLINE):
                    await display.cursor_unwanted()


async def test_a_client_that_does_not_read_is_told_the_newest(
    address: str, program: Recorder
) -> None:
    """Of a hundred pictures it gets those three that were on their way, and the last."""
    large = [shape(MAX_CURSOR_SIDE, MAX_CURSOR_SIDE, value) for value in range(100)]
    async with (
        shown(address, program) as display,
        byhand.session(address) as client,
        byhand.session(address) as brisk,
    ):
        slow, fast = await pointing(client), await pointing(brisk)
        await fast.next()
        for at, picture in enumerate(large):
            display.set_cursor(picture)
            display.move_cursor(at, at)
            seen = await fast.find(cursor.CursorSet)
            assert isinstance(seen, cursor.CursorSet)
            assert seen.cursor.data[0] == at
        assert isinstance(await slow.next(), cursor.CursorInit)
        values = []
        while not values or values[-1] != 99:
            message = await slow.next()
            if isinstance(message, cursor.CursorSet):
                values.append(message.cursor.data[0])
        assert len(values) <= 4


async def test_places_are_coalesced(address: str, program: Recorder) -> None:
    async with shown(address, program) as display, byhand.session(address) as client:
        display.set_cursor(shape())
        peer = await pointing(client)
        await peer.next()
        for at in range(1000):
            display.move_cursor(at, 0)
            await trio.testing.wait_all_tasks_blocked()
        moves = []
        while not moves or moves[-1] != 999:
            move = await peer.next()
            assert isinstance(move, cursor.CursorMove)
            moves.append(move.position_x)
        assert len(moves) <= 4


@pytest.mark.parametrize(
    "wrong",
    [
        shape(MAX_CURSOR_SIDE + 1, 1),
        shape(1, MAX_CURSOR_SIDE + 1, hot=(0, 0)),
        CursorShape(np.zeros((0, 4, 4), np.uint8), 0, 0),
        CursorShape(np.zeros((4, 4, 3), np.uint8), 0, 0),
        CursorShape(np.zeros((4, 4), np.uint8), 0, 0),
        CursorShape(np.zeros((4, 4, 4), np.int8), 0, 0),
        shape(4, 4, hot=(4, 0)),
        shape(4, 4, hot=(0, -1)),
    ],
    ids=lambda wrong: f"{wrong.pixels.shape}-{wrong.pixels.dtype}-{wrong.hot_x},{wrong.hot_y}",
)
async def test_pictures_that_cannot_be_told(address: str, wrong: CursorShape) -> None:
    async with spiceshm.serve(address) as display, byhand.session(address) as client:
        display.set_cursor(shape())
        peer = await pointing(client)
        assert isinstance(await peer.next(), cursor.CursorInit)
        with pytest.raises(ValueError, match=r"pixels|hot spot"):
            display.set_cursor(wrong)
        display.move_cursor(3, 3)
        assert await peer.next() == cursor.CursorMove(3, 3)


# The program


def test_a_view_only_address_on_the_command_line() -> None:
    with short_directory() as place:
        only = f"unix:{place}/view"
        with serving("--surface", "64x48", "--listen-view-only", only, "--stats-json") as server:
            assert [known["address"] for known in server.said["view_only"]] == [only]
            assert only not in server.addresses
            result = look("--screenshot", f"{place}/shot.png", only)
            assert result.returncode == 0, result.stderr
