"""Keys, pointer and cursor from the client's side, over real sockets: against our own server with a
program that notes what it is to play, and against a server that speaks as stock servers do."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import trio
import trio.testing

import spiceshm
from spiceshm.client import cursor as client_cursor
from spiceshm.client import inputs as client_inputs
from spiceshm.client import session as client_session
from spiceshm.events import (
    CAPS_LOCK,
    LEFT,
    RIGHT,
    WHEEL_DOWN,
    WHEEL_UP,
    Button,
    CursorShape,
    Event,
    Key,
    PointerBy,
    PointerTo,
)
from spiceshm.wire import Message, cursor, inputs, main
from spiceshm.wire.base import Ping
from spiceshm.wire.types import ChannelType, LinkError, MouseMode
from tests import stockserver
from tests.programs import short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from spiceshm.client import RemoteDisplay

WIDTH, HEIGHT = 320, 200
SOON = 20.0
A, B, C, SHIFT, CTRL, CAPS = 0x1E, 0x30, 0x2E, 0x2A, 0x1D, 0x3A

Act = "Callable[[RemoteDisplay], Awaitable[None]]"

ACTS = {
    "type": lambda it: it.type("a"),
    "key": lambda it: it.key("a"),
    "move": lambda it: it.move(1, 1),
    "move_by": lambda it: it.move_by(1, 1),
    "click": lambda it: it.click(),
    "double_click": lambda it: it.double_click(1, 1),
    "drag": lambda it: it.drag(1, 1, 2, 2),
    "scroll": lambda it: it.scroll(1),
    "hold": lambda it: _entered(it.hold("ctrl")),
    "hold_button": lambda it: _entered(it.hold_button("left")),
}
"""Every way to act, once."""


async def _entered(block: contextlib.AbstractAsyncContextManager[None]) -> None:
    async with block:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with short_directory() as place:
        yield f"unix:{place}/s"


@pytest.fixture(autouse=True)
def one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a key takes longer than everything else in most of these tests."""
    monkeypatch.setattr("spiceshm.server.display.generate_key", lambda: stockserver.KEY)


class Program:
    """What is shown: it notes what it is to play, and can be made to wait."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.gate = trio.Event()
        self.gate.set()
        self.asked = trio.Event()
        self.react: Callable[[Event], None] = lambda event: None

    async def play(self, events: Sequence[Event]) -> None:
        self.events += events
        self.asked.set()
        await self.gate.wait()
        for event in events:
            self.react(event)

    def shut(self) -> None:
        """From now on nothing that is to be played is done, until ``gate`` is set."""
        self.gate, self.asked = trio.Event(), trio.Event()

    def taken(self) -> list[Event]:
        """What was played since the last call."""
        events, self.events = self.events, []
        return events

    @property
    def held(self) -> set[Event]:
        """The downs that no up has followed."""
        down: set[Event] = set()
        for event in self.events:
            if isinstance(event, Key | Button):
                down ^= {dataclasses.replace(event, down=True)}
        return down


class Both(NamedTuple):
    """Both ends of one connection."""

    display: spiceshm.Display
    surface: spiceshm.Surface
    remote: RemoteDisplay


@contextlib.asynccontextmanager
async def both_ends(address: str, **options: object) -> AsyncIterator[tuple[Both, Program]]:
    program = Program()
    async with spiceshm.serve(address, inputs=program.play) as display:
        surface = display.create_surface(WIDTH, HEIGHT)
        surface.draw(np.zeros((HEIGHT, WIDTH, 4), np.uint8))
        with trio.fail_after(SOON):
            async with spiceshm.connect(address, **options) as remote:  # type: ignore[arg-type]
                yield Both(display, surface, remote), program


def keys(*codes: int) -> list[Event]:
    """Keys that go down, and up again where the code is negative."""
    return [Key(abs(code), code > 0) for code in codes]


def clicked(button: int) -> list[Event]:
    return [Button(button, True), Button(button, False)]


# What arrives


async def test_what_each_call_does(address: str) -> None:
    async with both_ends(address) as (it, program):
        remote = it.remote
        await remote.type("aB\n")
        assert program.taken() == keys(A, -A, SHIFT, B, -B, -SHIFT, 0x1C, -0x1C)
        await remote.key("ctrl+alt+F1")
        assert program.taken() == keys(CTRL, 0x38, 0x3B, -0x3B, -0x38, -CTRL)
        await remote.key("pause")
        assert program.taken() == keys(0xE11D, -0xE11D)
        await remote.move(7, 8)
        assert program.taken() == [PointerTo(7, 8)]
        await remote.move_by(-3, 4)
        assert program.taken() == [PointerBy(-3, 4)]
        await remote.click()
        assert program.taken() == clicked(LEFT)
        await remote.click(319, 199, "right")
        assert program.taken() == [PointerTo(319, 199), *clicked(RIGHT)]
        await remote.double_click(0, 0)
        assert program.taken() == [PointerTo(0, 0), *clicked(LEFT), *clicked(LEFT)]
        await remote.scroll(2, 5, 5)
        assert program.taken() == [PointerTo(5, 5), *clicked(WHEEL_DOWN), *clicked(WHEEL_DOWN)]
        await remote.scroll(-1)
        assert program.taken() == clicked(WHEEL_UP)
        await remote.scroll(0)
        assert program.taken() == []


async def test_a_drag_goes_its_way_in_steps(address: str) -> None:
    async with both_ends(address) as (it, program):
        await it.remote.drag(10, 20, 40, 80, "right")
        places = [PointerTo(20, 40), PointerTo(30, 60), PointerTo(40, 80)]
        down, up = clicked(RIGHT)
        assert program.taken() == [PointerTo(10, 20), down, *places, up]


async def test_the_keyboard_over_there(address: str) -> None:
    async with both_ends(address, keyboard="de") as (it, program):
        await it.remote.type("z@")
        assert program.taken() == keys(0x15, -0x15, 0xE038, 0x10, -0x10, -0xE038)
        await it.remote.key("ctrl+z")
        assert program.taken() == keys(CTRL, 0x15, -0x15, -CTRL)


@pytest.mark.parametrize("name", ACTS)
async def test_a_call_returns_when_it_has_been_played(address: str, name: str) -> None:
    async with both_ends(address) as (it, program):
        await it.remote.key("b")
        program.shut()
        ended = trio.Event()

        async def act() -> None:
            await ACTS[name](it.remote)
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
            await program.asked.wait()
            await it.remote._cursor.now()  # a way to the server and back, which is not held up
            assert not ended.is_set()
            program.gate.set()
        assert not program.held


async def test_a_long_text_arrives_whole_and_in_order_while_nothing_piles_up(address: str) -> None:
    async with both_ends(address) as (it, program):
        text = "abc" * 500
        await it.remote.type(text)
        assert program.taken() == keys(*(code for key in (A, B, C) for code in (key, -key))) * 500
        program.shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.remote.type, text)
            await program.asked.wait()
            await it.remote._cursor.now()
            assert len(program.events) <= 2 * client_inputs.PIECE
            program.gate.set()


async def test_texts_of_two_tasks_do_not_mix(address: str) -> None:
    async with both_ends(address) as (it, program):
        async with trio.open_nursery() as nursery:
            for text in ("a" * 200, "b" * 200):
                nursery.start_soon(it.remote.type, text)
        codes = [event.code for event in program.events if isinstance(event, Key)]
        assert codes in ([A] * 400 + [B] * 400, [B] * 400 + [A] * 400)


async def test_any_number_of_moves(address: str) -> None:
    """No more than eight are ever on their way, or our own end would refuse to send."""
    async with both_ends(address) as (it, program):
        async with trio.open_nursery() as nursery:
            for x in range(50):
                nursery.start_soon(it.remote.move, x, 0)
                nursery.start_soon(it.remote.drag, x, 1, x, 2)
        assert len(program.taken()) == 50 + 50 * 6


# What shows


async def test_the_change_that_a_key_makes_is_waited_for(address: str) -> None:
    async with both_ends(address) as (it, program):
        picture = np.zeros((HEIGHT, WIDTH, 4), np.uint8)

        def react(event: Event) -> None:
            if event == Key(A, True):
                picture[:] += 1
                it.surface.draw(picture)

        program.react = react
        for step in range(1, 20):
            await it.remote.key("a")
            frame = await it.remote.wait_change(timeout=SOON)
            assert frame.pixels[0, 0, 0] == step


async def test_what_a_key_that_comes_up_changes_is_not_missed(address: str) -> None:
    async with both_ends(address) as (it, program):
        picture = np.zeros((HEIGHT, WIDTH, 4), np.uint8)

        def react(event: Event) -> None:
            if event == Key(CTRL, False):
                picture[:] += 1
                it.surface.draw(picture)

        program.react = react
        for step in range(1, 20):
            async with it.remote.hold("ctrl"):
                pass
            frame = await it.remote.wait_change(timeout=SOON)
            assert frame.pixels[0, 0, 0] == step


async def test_what_was_shown_before_a_key_was_played_does_not_count(address: str) -> None:
    async with both_ends(address) as (it, program), spiceshm.connect(address) as other:
        await it.remote.key("a")
        await other.key("a")
        picture = np.ones((HEIGHT, WIDTH, 4), np.uint8)
        program.shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.key, "b")
            await program.asked.wait()
            nursery.start_soon(it.remote.key, "c")  # sent, and not its turn yet
            await trio.testing.wait_all_tasks_blocked(0.02)
            it.surface.draw(picture)
            program.gate.set()
        with pytest.raises(spiceshm.Timeout):
            await it.remote.wait_change(timeout=0)
        it.surface.draw(picture + 1)
        frame = await it.remote.wait_change(timeout=SOON)
        assert frame.pixels[0, 0, 0] == 2


# Locks


async def test_caps_lock_is_typed_around(address: str) -> None:
    async with both_ends(address) as (it, program):
        it.display.set_locks(CAPS_LOCK)
        await it.remote.type("aB")
        assert program.taken() == keys(SHIFT, A, -A, -SHIFT, B, -B)


async def test_text_behind_a_lock_key_knows_of_it(address: str) -> None:
    async with both_ends(address) as (it, program):

        def react(event: Event) -> None:
            if event == Key(CAPS, True):
                it.display.set_locks(it.display.locks ^ CAPS_LOCK)

        program.react = react
        for _ in range(5):
            await it.remote.key("Caps_Lock")
            await it.remote.type("a")
            assert program.taken() == keys(CAPS, -CAPS, SHIFT, A, -A, -SHIFT)
            await it.remote.key("Caps_Lock")
            await it.remote.type("a")
            assert program.taken() == keys(CAPS, -CAPS, A, -A)


@pytest.mark.parametrize("told", [True, False])
async def test_servers_tell_of_a_lock_by_and_by(address: str, told: bool) -> None:
    async with stockserver.serving(address) as server, spiceshm.connect(address) as remote:

        async def act() -> None:
            await remote.key("Caps_Lock")
            await remote.type("a")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
            end = await server.channel(ChannelType.INPUTS)
            await end.find(inputs.KeyUp)
            await trio.testing.wait_all_tasks_blocked(2 * client_inputs.PAUSE_S)
            if told:
                end.put(inputs.KeyModifiers(CAPS_LOCK))
        downs = [one.code for one in end.came if isinstance(one, inputs.KeyDown)]
        assert downs == ([CAPS, SHIFT, A] if told else [CAPS, A])


# Holding


async def test_what_is_held_is_held_for_the_block(address: str) -> None:
    async with both_ends(address) as (it, program):
        async with it.remote.hold("ctrl+shift"):
            assert program.taken() == keys(CTRL, SHIFT)
            await it.remote.click()
            assert program.taken() == clicked(LEFT)
        assert program.taken() == keys(-SHIFT, -CTRL)
        async with it.remote.hold_button("right"):
            await it.remote.move(1, 2)
        assert program.taken() == [Button(RIGHT, True), PointerTo(1, 2), Button(RIGHT, False)]


async def test_what_several_hold_comes_up_with_the_last(address: str) -> None:
    async with both_ends(address) as (it, program):
        async with it.remote.hold("ctrl"):
            async with it.remote.hold("ctrl+a"):
                assert program.taken() == keys(CTRL, A)
            assert program.taken() == keys(-A)
            await it.remote.key("ctrl+b")
            assert program.taken() == keys(B, -B)
        assert program.taken() == keys(-CTRL)


class Failed(Exception):
    pass


@pytest.mark.parametrize("hold", ["hold", "hold_button"])
async def test_a_block_that_fails_lets_go(address: str, hold: str) -> None:
    async with both_ends(address) as (it, program):
        with contextlib.suppress(Failed):
            async with getattr(it.remote, hold)({"hold": "ctrl"}.get(hold, "left")):
                assert program.held
                raise Failed
        await it.remote.key("a")  # behind the release
        assert not program.held


@pytest.mark.parametrize("hold", ["hold", "hold_button"])
async def test_a_block_that_is_cancelled_lets_go(address: str, hold: str) -> None:
    async with both_ends(address) as (it, program):
        with trio.CancelScope() as scope:
            async with getattr(it.remote, hold)({"hold": "ctrl"}.get(hold, "left")):
                assert program.held
                scope.cancel()
                await trio.sleep_forever()
        await it.remote.key("a")
        assert not program.held


# Cancelled


@pytest.mark.parametrize("name", ACTS)
async def test_a_cancelled_call_leaves_nothing_down(address: str, name: str) -> None:
    async with both_ends(address) as (it, program):
        await it.remote.key("b")
        program.shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ACTS[name], it.remote)
            await program.asked.wait()
            nursery.cancel_scope.cancel()
        program.gate.set()
        await it.remote.key("a")
        assert not program.held
        assert program.events[-2:] == keys(A, -A)


async def test_a_long_text_that_is_cancelled_ends_at_a_piece(address: str) -> None:
    async with both_ends(address) as (it, program):
        await it.remote.key("b")
        program.taken()
        program.shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.remote.type, "A" * 10 * client_inputs.PIECE)
            await program.asked.wait()
            nursery.cancel_scope.cancel()
        program.gate.set()
        await it.remote.key("b")
        assert program.taken() == [*keys(SHIFT, A, -A, -SHIFT) * client_inputs.PIECE, *keys(B, -B)]


# Refused


@pytest.mark.parametrize(
    ("act", "complaint"),
    [
        (lambda it: it.type("abcé"), "no key of this keyboard layout gives 'é'"),
        (lambda it: it.type("a" * 1000 + "é"), "gives 'é'"),
        (lambda it: it.key("hyper+x"), "no key is named 'hyper'"),
        (lambda it: _entered(it.hold("hyper")), "no key is named 'hyper'"),
        (lambda it: it.click(1, 1, "fourth"), "accepted are left, middle, right, side, extra"),
        (lambda it: _entered(it.hold_button("")), "no button is named ''"),
    ],
)
async def test_what_cannot_be_typed_sends_nothing(address: str, act: Act, complaint: str) -> None:
    async with both_ends(address) as (it, program):
        with pytest.raises(spiceshm.CannotType, match=complaint):
            await act(it.remote)
        await it.remote.key("b")
        assert program.taken() == keys(B, -B)


@pytest.mark.parametrize(
    "act",
    [
        lambda it: it.move(WIDTH, 0),
        lambda it: it.move(0, -1),
        lambda it: it.click(1),
        lambda it: it.click(None, 1),
        lambda it: it.drag(0, 0, 0, HEIGHT),
        lambda it: it.scroll(1, 0, HEIGHT),
        lambda it: it.move_by(1 << 40, 0),
    ],
)
async def test_places_that_there_are_not_send_nothing(address: str, act: Act) -> None:
    async with both_ends(address) as (it, program):
        with pytest.raises(ValueError, match=r"outside of the display|both x and y|moves by"):
            await act(it.remote)
        await it.remote.click()
        assert program.taken() == clicked(LEFT)


async def test_numbers_of_numpy_are_numbers(address: str) -> None:
    async with both_ends(address) as (it, program):
        await it.remote.move(np.int64(3), np.uint8(4))
        await it.remote.move(*np.array([[2, 8], [3, 9]]).mean(axis=0))
        assert program.taken() == [PointerTo(3, 4), PointerTo(2, 8)]


@pytest.mark.parametrize("name", ACTS)
async def test_who_only_looks_cannot_act(address: str, name: str) -> None:
    async with both_ends(address, view_only=True) as (it, program):
        with pytest.raises(spiceshm.ViewOnly, match="connected with view_only"):
            await ACTS[name](it.remote)
        assert [stats.input for stats in map(_stats, it.display.viewers)] == ["no"]
        assert program.taken() == []


def _stats(viewer: object) -> spiceshm.ViewerStats:
    stats: spiceshm.ViewerStats = viewer.stats  # type: ignore[attr-defined]
    return stats


@pytest.mark.parametrize("name", ACTS)
async def test_a_listener_for_lookers_takes_nothing(address: str, name: str) -> None:
    program = Program()
    async with spiceshm.serve(address, view_only=[f"{address}v"], inputs=program.play) as display:
        display.create_surface(WIDTH, HEIGHT).draw(np.zeros((HEIGHT, WIDTH, 4), np.uint8))
        async with spiceshm.connect(f"{address}v") as remote:
            with pytest.raises(spiceshm.ViewOnly, match="takes neither keys nor pointer"):
                await ACTS[name](remote)


@pytest.mark.parametrize("refusal", [LinkError.CHANNEL_NOT_AVAILABLE, None])
@pytest.mark.parametrize("listed", [True, False])
async def test_a_server_without_inputs(
    address: str, refusal: LinkError | None, listed: bool
) -> None:
    async with stockserver.serving(address) as server:
        server.listed = set(server.kinds) if listed else None
        server.kinds.remove(ChannelType.INPUTS)
        server.refusal = refusal
        async with spiceshm.connect(address) as remote:
            expected = spiceshm.ViewOnly if refusal or not listed else spiceshm.Disconnected
            for _ in range(2):
                with pytest.raises(expected):
                    await remote.key("a")
            server.kinds.add(ChannelType.INPUTS)
            if listed:  # it may be so later
                await remote.key("a")


# The channel


async def test_who_does_not_act_opens_no_channel(address: str) -> None:
    async with stockserver.serving(address) as server, spiceshm.connect(address) as remote:
        await remote.latest()
        assert server.linked == [ChannelType.MAIN, ChannelType.DISPLAY]


async def test_all_that_want_it_at_once_open_one_channel(address: str) -> None:
    async with stockserver.serving(address) as server, spiceshm.connect(address) as remote:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(remote.key, "a")
                nursery.start_soon(remote.cursor)
        assert sorted(server.linked) == [1, 2, 3, 4]
        keyboard = await server.channel(ChannelType.INPUTS)
        assert len(await keyboard.find(inputs.KeyDown, 5)) == 5


async def test_an_opening_that_is_cancelled_is_begun_again(address: str) -> None:
    async with stockserver.serving(address) as server, spiceshm.connect(address) as remote:
        with trio.CancelScope() as scope:
            scope.cancel()
            await remote.key("a")
        with trio.move_on_after(0):
            await remote.cursor()
        await remote.key("a")
        await remote.cursor()
        assert len(await (await server.channel(ChannelType.INPUTS)).find(inputs.KeyDown)) == 1


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("name", [*ACTS, "cursor"])
async def test_after_the_server_every_call_is_told(address: str, name: str, opened: bool) -> None:
    act = {**ACTS, "cursor": lambda it: it.cursor()}[name]
    async with stockserver.serving(address) as server, spiceshm.connect(address) as remote:
        if opened:
            await act(remote)
        server.leave()
        if name == "cursor":  # which asks nobody, once it is open
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            with pytest.raises(spiceshm.Disconnected, match="unix:"):
                await act(remote)


async def test_who_waits_when_the_server_goes_is_told(address: str) -> None:
    async with stockserver.serving(address) as server, spiceshm.connect(address) as remote:
        server.acks = False
        told = trio.Event()

        async def act() -> None:
            with pytest.raises(spiceshm.Disconnected):
                await remote.key("a")
            told.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
            await (await server.channel(ChannelType.INPUTS)).find(inputs.KeyDown)
            assert not told.is_set()
            server.leave()
            with trio.fail_after(SOON):
                await told.wait()


async def test_a_server_that_never_answers_is_not_waited_for_for_ever(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_inputs, "DONE_S", 0.2)
    monkeypatch.setattr(client_session, "HANDSHAKE_S", 0.3)
    async with stockserver.serving(address) as server:
        server.answers = False
        async with spiceshm.connect(address) as display:
            with trio.fail_after(SOON):
                with pytest.raises(spiceshm.Timeout, match=r"main\.mouse_mode did not come"):
                    await display.move_by(1, 1)
                await display.move(1, 1)
                server.acks = False
                for _ in range(2):
                    with pytest.raises(spiceshm.Timeout, match=r"inputs\.mouse_motion_ack did not"):
                        await display.key("a")


async def test_after_the_block_every_call_is_told(address: str) -> None:
    async with both_ends(address) as (it, _):
        async with spiceshm.connect(address) as other:
            pass
        for act in ACTS.values():
            with pytest.raises(spiceshm.Disconnected, match="closed here"):
                await act(other)
        assert it


# Servers that speak as others do


async def test_messages_are_as_stock_clients_have_them(address: str) -> None:
    async with stockserver.serving(address) as server, spiceshm.connect(address) as remote:
        async with remote.hold_button("left"):
            await remote.move(3, 4)
            await remote.click(button="right")
            await remote.scroll(1)
        end = await server.channel(ChannelType.INPUTS)
        acts: list[Message] = [
            one for one in end.came if not isinstance(one, inputs.MouseMotion) or one.dx or one.dy
        ]
        assert acts == [
            inputs.MousePress(1, 1),
            inputs.MousePosition(3, 4, 1, 0),
            inputs.MousePress(3, 5),
            inputs.MouseRelease(3, 1),
            inputs.MousePress(5, 0),
            inputs.MouseRelease(5, 0),
            inputs.MouseRelease(1, 0),
        ]
        moves = [one for one in end.came if isinstance(one, inputs.MouseMotion)]
        assert {one.buttons_state for one in moves} == {0, 1}


async def test_a_machine_is_left_time_for_each_key(
    address: str, autojump_clock: trio.testing.MockClock
) -> None:
    """A stock server acknowledges what waits for the machine, of which 16 bytes can."""
    async with stockserver.serving(address) as server, spiceshm.connect(address) as remote:
        began = trio.current_time()
        await remote.type("a" * 30)
        assert trio.current_time() - began >= 30 * client_inputs.PAUSE_S
        end = await server.channel(ChannelType.INPUTS)
        downs = [at for at, one in enumerate(end.came) if isinstance(one, inputs.KeyDown)]
        assert len(downs) == 30
        for at in downs:
            still = inputs.MouseMotion(0, 0, 0)
            assert end.came[at + 1 : at + 6] == [inputs.KeyUp(A | 0x80), *[still] * 4]


async def test_the_mouse_mode_is_the_one_that_is_needed(address: str) -> None:
    async with stockserver.serving(address) as server, spiceshm.connect(address) as remote:
        asked = functools.partial(
            (await server.channel(ChannelType.MAIN)).find, main.MouseModeRequest
        )
        await remote.move(1, 1)
        assert await asked(0) == []
        await remote.move_by(1, 1)
        await remote.move_by(1, 1)
        await remote.click()
        assert await asked(0) == [main.MouseModeRequest(MouseMode.SERVER)]
        await remote.click(1, 1)
        assert len(await asked(0)) == 2
        assert server.mode == MouseMode.CLIENT


@pytest.mark.parametrize("name", ["move", "drag", "double_click"])
async def test_a_machine_without_a_tablet(address: str, name: str) -> None:
    async with stockserver.serving(address) as server:
        server.modes = server.mode = int(MouseMode.SERVER)
        async with spiceshm.connect(address) as remote:
            with pytest.raises(spiceshm.ViewOnly, match="usb-tablet"):
                await ACTS[name](remote)
            await remote.move_by(1, 1)
            await remote.click()


@pytest.mark.parametrize("kind", [ChannelType.MAIN, ChannelType.INPUTS, ChannelType.CURSOR])
async def test_a_server_is_heard_of_on_every_channel(address: str, kind: ChannelType) -> None:
    async with stockserver.serving(address) as server, spiceshm.connect(address) as remote:
        await remote.key("a")
        await remote.cursor()
        remote._channel.heard -= 100
        assert remote.silent_s >= 100
        (await server.channel(kind)).put(Ping(1, 0))
        with trio.fail_after(SOON):
            while remote.silent_s >= 100:
                await trio.sleep(0.001)


# The pointer's picture


def alpha(seed: int, width: int = 3, height: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 4), np.uint8)


def shape_of(
    kind: int, data: bytes, *, flags: int = 0, unique: int = 1, width: int = 3, height: int = 2
) -> cursor.Cursor:
    return cursor.Cursor(flags, cursor.CursorHeader(unique, kind, width, height, 1, 0), data)


async def seen(
    remote: RemoteDisplay, condition: Callable[[spiceshm.Cursor], bool]
) -> spiceshm.Cursor:
    """The pointer, as soon as it is so."""
    with trio.fail_after(SOON):
        while not condition(now := await remote.cursor()):
            await trio.sleep(0.001)
    return now


async def test_our_own_pointer(address: str) -> None:
    async with both_ends(address) as (it, _):
        assert await it.remote.cursor() == spiceshm.Cursor(0, 0, False, None)
        pixels = alpha(1)
        it.display.set_cursor(CursorShape(pixels, 1, 0))
        it.display.move_cursor(5, 6)
        now = await seen(it.remote, lambda now: now.visible and now.x == 5)
        assert (now.x, now.y) == (5, 6)
        assert now.shape is not None
        assert np.array_equal(now.shape.pixels, pixels)
        assert (now.shape.hot_x, now.shape.hot_y) == (1, 0)
        assert not now.shape.pixels.flags.writeable
        it.display.set_cursor(None)
        await seen(it.remote, lambda now: not now.visible)


@contextlib.asynccontextmanager
async def pointing(address: str) -> AsyncIterator[tuple[stockserver.End, RemoteDisplay]]:
    """A stock server's cursor channel, and who looks at it."""
    async with stockserver.serving(address) as server, spiceshm.connect(address) as remote:
        await remote.cursor()
        yield await server.channel(ChannelType.CURSOR), remote


MONO = bytes([0b00110000, 0b11000000, 0b01010000, 0b01000000])
"""3x2: black, white, kept / kept, inverted, black."""

COLOR32 = bytes(range(24)) + bytes([0b10000000, 0b00100000])
"""3x2: transparent in two corners."""


@pytest.mark.parametrize(
    ("kind", "data", "pixels"),
    [
        (cursor.TYPE_ALPHA, alpha(2).tobytes(), alpha(2).tolist()),
        (
            cursor.TYPE_MONO,
            MONO,
            [
                [[0, 0, 0, 255], [255, 255, 255, 255], [0, 0, 0, 0]],
                [[0, 0, 0, 0], [0, 0, 0, 255], [0, 0, 0, 255]],
            ],
        ),
        (
            cursor.TYPE_COLOR32,
            COLOR32,
            [
                [[0, 0, 0, 0], [4, 5, 6, 255], [8, 9, 10, 255]],
                [[12, 13, 14, 255], [16, 17, 18, 255], [0, 0, 0, 0]],
            ],
        ),
    ],
)
async def test_kinds_of_pictures(
    address: str, kind: int, data: bytes, pixels: list[object]
) -> None:
    async with pointing(address) as (end, remote):
        end.put(cursor.CursorSet(9, 8, 1, shape_of(kind, data)))
        now = await seen(remote, lambda now: now.visible)
        assert (now.x, now.y) == (9, 8)
        assert now.shape is not None
        assert now.shape.pixels.tolist() == pixels


async def test_a_kind_that_is_not_known_is_reported_once(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with pointing(address) as (end, remote):
        for x in (1, 2):
            end.put(cursor.CursorSet(x, 0, 1, shape_of(4, b"\0" * 100)))
            now = await seen(remote, lambda now, x=x: now.x == x)  # type: ignore[misc]
            assert (now.visible, now.shape) == (True, None)
    assert [r.getMessage() for r in caplog.records if "type 4" in r.getMessage()] == [
        f"{address}: pointers of type 4 are not shown"
    ]


async def test_the_pointer_moves_hides_and_is_reset(address: str) -> None:
    async with pointing(address) as (end, remote):
        end.put(cursor.CursorSet(1, 1, 1, shape_of(cursor.TYPE_ALPHA, alpha(1).tobytes())))
        end.put(cursor.CursorHide())
        now = await seen(remote, lambda now: now.shape is not None and not now.visible)
        assert (now.x, now.y) == (1, 1)
        end.put(cursor.CursorMove(-2, 3))
        now = await seen(remote, lambda now: now.visible)
        assert (now.x, now.y) == (-2, 3)
        # A virtual machine that starts again has it reset more than once.
        end.put(cursor.CursorReset(), cursor.CursorInvalAll(), cursor.CursorReset())
        await seen(remote, lambda now: now.shape is None)
        end.put(cursor.CursorInit(4, 4, 0, 0, 0, cursor.Cursor(cursor.FLAG_NONE)))
        await seen(remote, lambda now: now.x == 4)


async def test_where_we_put_it_it_is(address: str) -> None:
    """Servers that take positions do not tell them back."""
    async with stockserver.serving(address), spiceshm.connect(address) as remote:
        await remote.move(30, 20)
        now = await remote.cursor()
        assert (now.x, now.y) == (30, 20)
        await remote.click(31, 21)
        now = await remote.cursor()
        assert (now.x, now.y) == (31, 21)


async def test_pictures_that_the_server_says_to_keep(address: str) -> None:
    async with pointing(address) as (end, remote):
        first, second = alpha(1).tobytes(), alpha(2).tobytes()
        keep, again = cursor.FLAG_CACHE_ME, cursor.FLAG_FROM_CACHE
        for unique, data in ((1, first), (2, second)):
            shape = shape_of(cursor.TYPE_ALPHA, data, flags=keep, unique=unique)
            end.put(cursor.CursorSet(unique, 0, 1, shape))
        shape = shape_of(cursor.TYPE_ALPHA, b"", flags=again, unique=1)
        end.put(cursor.CursorInvalOne(2), cursor.CursorSet(3, 0, 1, shape))
        now = await seen(remote, lambda now: now.x == 3)
        assert now.shape is not None
        assert now.shape.pixels.tobytes() == first
        shape = shape_of(cursor.TYPE_ALPHA, b"", flags=again, unique=2)
        end.put(cursor.CursorSet(4, 0, 1, shape))
        with pytest.raises(spiceshm.RemoteProtocolError, match="unique: 2 is not in the cache"):
            await seen(remote, lambda now: now.x == 4)


async def test_what_a_server_may_have_kept_is_bounded(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_cursor, "MOST_CACHED_BYTES", 10 * 24)
    async with pointing(address) as (end, remote):
        for unique in range(1, 31):
            shape = shape_of(
                cursor.TYPE_ALPHA, alpha(0).tobytes(), flags=cursor.FLAG_CACHE_ME, unique=unique
            )
            end.put(cursor.CursorSet(unique, 0, 1, shape))
        await seen(remote, lambda now: now.x == 30)
        shapes = remote._cursor._shapes
        assert list(shapes._kept) == list(range(21, 31))


async def test_too_little_data_ends_the_connection(address: str) -> None:
    async with pointing(address) as (end, remote):
        end.put(cursor.CursorSet(1, 0, 1, shape_of(cursor.TYPE_ALPHA, b"\0" * 23)))
        with pytest.raises(spiceshm.RemoteProtocolError, match="23 bytes: not all of the shape"):
            await seen(remote, lambda now: now.x == 1)


async def test_a_server_without_a_pointer(address: str) -> None:
    async with stockserver.serving(address) as server:
        server.kinds.remove(ChannelType.CURSOR)
        async with spiceshm.connect(address) as remote:
            assert await remote.cursor() == spiceshm.Cursor(0, 0, False, None)


# Drawing it


def drawn(
    now: spiceshm.Cursor, picture: np.ndarray, region: tuple[int, int, int, int]
) -> np.ndarray:
    top, left, bottom, right = region
    part = picture[top:bottom, left:right].copy()
    client_cursor.draw(now, part, region)
    return part


def expected(now: spiceshm.Cursor, picture: np.ndarray) -> np.ndarray:
    """Pixel by pixel."""
    whole = picture.astype(int)
    assert now.shape is not None
    for row, line in enumerate(now.shape.pixels.tolist()):
        for column, (blue, green, red, opaque) in enumerate(line):
            y, x = now.y - now.shape.hot_y + row, now.x - now.shape.hot_x + column
            if 0 <= y < picture.shape[0] and 0 <= x < picture.shape[1]:
                under = whole[y, x] * (255 - opaque) / 255
                whole[y, x] = np.minimum(np.round(under) + np.array([red, green, blue]), 255)
    return whole


@pytest.mark.parametrize("region", [(0, 0, 20, 30), (5, 7, 15, 22), (19, 29, 20, 30)])
@pytest.mark.parametrize("place", [(10, 10), (0, 0), (29, 19), (-3, 4), (200, 0), (6, 5)])
def test_the_pointer_is_drawn(place: tuple[int, int], region: tuple[int, int, int, int]) -> None:
    shape = alpha(5, 7, 6)
    shape[:, :, :3] = np.minimum(shape[:, :, :3], shape[:, :, 3:])
    now = spiceshm.Cursor(*place, True, CursorShape(shape, 2, 1))
    picture = np.random.default_rng(9).integers(0, 255, (20, 30, 3), np.uint8)
    top, left, bottom, right = region
    part = expected(now, picture)[top:bottom, left:right]
    assert np.array_equal(drawn(now, picture, region), part)


def test_what_is_hidden_is_not_drawn() -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    shape = CursorShape(np.full((3, 3, 4), 255, np.uint8), 0, 0)
    for now in (spiceshm.Cursor(5, 5, False, shape), spiceshm.Cursor(5, 5, True, None)):
        assert not drawn(now, picture, (0, 0, 20, 30)).any()
