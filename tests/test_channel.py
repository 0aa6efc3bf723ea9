"""Framing, states and flow control of every channel, held against the tables and README.md.

Every state of every table meets every message there is, at both ends; ACK windows are counted out
message by message; the reader gets its streams whole, byte by byte and with a piece too many.
"""

from __future__ import annotations

import dataclasses
import logging
import struct
import time
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiceshm.errors import LocalProtocolError, RemoteProtocolError
from spiceshm.protocol import (
    TABLES,
    Channel,
    ClientDisplay,
    ClientInputs,
    Outgoing,
    ServerDisplay,
    ServerInputs,
    State,
    display_client,
)
from spiceshm.protocol.channel import CLIENT_MESSAGE_LIMIT, SERVER_MESSAGE_LIMIT
from spiceshm.protocol.display import MAX_SURFACES
from spiceshm.wire import MESSAGES, Message, Sender, base, cursor, display, inputs, main, shm
from tests import pair
from tests.pair import ConnectionPair, framed, sent

EXAMPLES = pair.examples()
DRAWING = get_args(display.Drawing)
STREAMS = (
    display.StreamCreate,
    display.StreamData,
    display.StreamDataSized,
    display.StreamClip,
    display.StreamDestroy,
)
KINDS = sorted(MESSAGES.values(), key=lambda kind: (kind.channel, kind.sender.value, kind.number))
STATES = [(channel, state) for channel, table in TABLES.items() for state in table]
CHANNELS = list(TABLES)


def name_of(value: object) -> str:
    if isinstance(value, State):
        return value.name
    return getattr(value, "title", str(value))


def ends(channel: str, *, mini: bool = True) -> ConnectionPair:
    """Two fresh ends of any channel."""
    if channel == "display":
        return pair.DisplayPair(mini=mini)
    if channel == "inputs":
        return ConnectionPair(ServerInputs(mini=mini), ClientInputs(mini=mini))
    return ConnectionPair(
        Channel(channel, Sender.SERVER, mini=mini), Channel(channel, Sender.CLIENT, mini=mini)
    )


def ends_at(channel: str, state: State, kind: type[Message] | None = None) -> ConnectionPair:
    """Two ends of a channel in a state, ready for ``kind`` if the table has it there."""
    if channel == "display":
        return pair.at(state, answered=kind in (display.SurfaceCreate, shm.SurfaceCreateShm))
    joined = ends(channel)
    if state is State.OPEN:
        first = {"main": main.MainInit, "inputs": inputs.InputsInit, "cursor": cursor.CursorInit}
        joined.server_sends(EXAMPLES[first[channel]][0])
    if channel == "inputs" and kind is inputs.MouseMotionAck:  # which is for four motions
        joined.client_sends(*[inputs.MouseMotion(1, 1, 0)] * 4)
    return joined


def fitting(kind: type[Message], state: State) -> Message:
    """A message of a kind whose numbers fit what `pair.at` left in ``state``."""
    surface = 3 if state is State.ORDINARY_EMPTY else 0
    if kind in DRAWING:
        return dataclasses.replace(EXAMPLES[kind][0], surface_id=surface)  # type: ignore[type-var]
    fits: dict[type[Message], Message] = {
        display.SurfaceCreate: pair.create(7 if state is State.ORDINARY else 0),
        display.SurfaceDestroy: display.SurfaceDestroy(surface),
        display.StreamCreate: dataclasses.replace(
            EXAMPLES[display.StreamCreate][0], surface_id=surface
        ),
        shm.ShmOffer: pair.offer_of(9, handle=shm.HANDLE_FILE),
        shm.ShmDamage: pair.damage(6),
        shm.SurfaceCreateShm: pair.create_shm(),
        shm.ShmWithdraw: shm.ShmWithdraw(1),
        shm.ShmReply: shm.ShmReply(2, 0, 1, 0, 0, b""),
        shm.ShmDamageHandled: shm.ShmDamageHandled(0, 5),
    }
    return fits[kind] if kind in fits else EXAMPLES[kind][0]


# every state, every message


def test_every_channel_message_is_in_its_table_somewhere() -> None:
    for kind in KINDS:
        if kind.channel != "base":
            table = TABLES[kind.channel]
            assert any(kind in row for row in table.values()), kind.title


def test_tables_name_messages_of_their_channel_and_states_of_their_own() -> None:
    for channel, table in TABLES.items():
        for row in table.values():
            assert {kind.channel for kind in row} == {channel}
            assert set(row.values()) <= set(table)


def test_every_state_can_be_reached() -> None:
    for channel, table in TABLES.items():
        reached = {State.START}
        while more := {to for at in reached for to in table[at].values()} - reached:
            reached |= more
        assert reached == set(table), channel


@pytest.mark.parametrize(("channel", "state"), STATES, ids=name_of)
def test_helper_brings_both_ends_there(channel: str, state: State) -> None:
    for kind in (None, shm.SurfaceCreateShm):
        with ends_at(channel, state, kind) as joined:
            assert joined.server.state is joined.client.state is state


@pytest.mark.parametrize(("channel", "state"), STATES, ids=name_of)
def test_every_message_sent(channel: str, state: State) -> None:
    """Allowed ones lead to the table's state; all others raise, queue nothing, change nothing."""
    for kind in KINDS:
        with ends_at(channel, state, kind) as joined:
            for machine in (joined.server, joined.client):
                allowed = expected(channel, state, kind, sender=machine.role)
                if allowed is None:
                    with pytest.raises(LocalProtocolError) as caught:
                        machine.send(fitting(kind, state))
                    assert caught.value.message == kind.title
                    assert machine.data_to_send() == []
                    assert machine.state is state
                else:
                    message = fitting(kind, state)
                    machine.send(message)
                    assert machine.state is allowed, kind.title
                    assert sent(machine) == framed(message)


@pytest.mark.parametrize(("channel", "state"), STATES, ids=name_of)
def test_every_message_received(channel: str, state: State) -> None:
    """Allowed ones are returned and lead to the table's state; all others are a breach."""
    for kind in KINDS:
        with ends_at(channel, state, kind) as joined:
            machine = joined.server if kind.sender is Sender.CLIENT else joined.client
            allowed = expected(channel, state, kind, sender=kind.sender)
            data = framed(fitting(kind, state))
            if allowed is not None:
                assert machine.receive_data(data) == [fitting(kind, state)]
                assert machine.state is allowed, kind.title
            elif kind.channel in ("base", channel):
                with pytest.raises(RemoteProtocolError) as caught:
                    machine.receive_data(data)
                assert caught.value.message == kind.title


def expected(channel: str, state: State, kind: type[Message], *, sender: Sender) -> State | None:
    if kind.sender is not sender:
        return None
    if kind.channel == "base":
        return state
    return TABLES[channel][state].get(kind) if kind.channel == channel else None


@pytest.mark.parametrize(("channel", "state"), STATES, ids=name_of)
def test_own_messages_come_back_as_a_breach(channel: str, state: State) -> None:
    """A server that hears what only servers say closes; a client takes the number for its own."""
    for kind in KINDS:
        if kind.channel not in ("base", channel) or kind.sender is Sender.CLIENT:
            continue
        if (kind.channel, Sender.CLIENT, kind.number) in MESSAGES:
            continue  # the number means something else from a client
        with ends_at(channel, state) as joined, pytest.raises(RemoteProtocolError):
            joined.server.receive_data(framed(fitting(kind, state)))


def test_off_screen_surfaces_change_no_state() -> None:
    with pair.DisplayPair(shareable=False) as joined:
        joined.init()
        joined.server_sends(pair.create(5))
        assert joined.server.state is joined.client.state is State.ORDINARY_EMPTY
        joined.server_sends(pair.create(0), pair.draw(5), pair.draw(0), display.SurfaceDestroy(5))
        assert joined.server.state is joined.client.state is State.ORDINARY
        assert joined.client.surfaces == {0}


def test_surfaces_are_counted_and_known() -> None:
    with pair.DisplayPair(shareable=False) as joined:
        joined.init()
        joined.server_sends(*(pair.create(n) for n in range(MAX_SURFACES)))
        for wrong in (
            pair.create(MAX_SURFACES),
            pair.create(3),
            pair.draw(MAX_SURFACES),
            display.SurfaceDestroy(MAX_SURFACES),
        ):
            with pytest.raises(LocalProtocolError, match="surface_id"):
                joined.server.send(wrong)
            assert joined.server.data_to_send() == []
        joined.server_sends(display.SurfaceDestroy(3), pair.create(MAX_SURFACES))
        assert joined.client.surfaces == joined.server.surfaces == {*range(MAX_SURFACES + 1)} - {3}


@pytest.mark.parametrize(
    "wrong",
    [
        pair.create(MAX_SURFACES),
        pair.create(3),
        pair.draw(MAX_SURFACES),
        display.SurfaceDestroy(MAX_SURFACES),
    ],
    ids=str,
)
def test_surfaces_of_a_server_are_counted_and_known(wrong: Message) -> None:
    client = ClientDisplay()
    client.send(pair.INIT)
    client.receive_data(b"".join(framed(pair.create(n)) for n in range(MAX_SURFACES)))
    with pytest.raises(RemoteProtocolError, match="surface_id"):
        client.receive_data(framed(wrong))


def test_a_value_that_has_no_place_in_the_layout_is_not_sent() -> None:
    machine = Channel("main", Sender.CLIENT)
    for wrong in (main.MouseModeRequest(1 << 16), main.AgentStart(-1)):
        with pytest.raises(LocalProtocolError):
            machine.send(wrong)
        assert machine.data_to_send() == []


def test_what_cannot_be_packed_leaves_no_trace() -> None:
    """A withdrawal that fails withdraws nothing, an offer that fails offers nothing."""
    with pair.at(State.SHARED) as joined:
        before = dict(joined.server.segments)
        for wrong in (
            pair.offer_of(1 << 32, handle=shm.HANDLE_FILE),
            pair.offer_of(8, handle=shm.HANDLE_FILE, size=1 << 64),
            pair.damage(6, segment_id=1, offset=0, flags=0, surface_id=4),
        ):
            with pytest.raises(LocalProtocolError):
                joined.server.send(wrong)
        assert joined.server.segments == before
        assert joined.server.leases == {5: 0}
        assert joined.server.data_to_send() == []
        joined.server_sends(pair.damage(6))
        assert joined.client.leases == {5: 0, 6: 0}


# PING


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("padding", [0, 1, 256000])
def test_ping_is_answered_without_its_padding(channel: str, padding: int) -> None:
    with ends(channel) as joined:
        ping = base.Ping(7, 1 << 63, bytes(padding))
        assert joined.server_sends(ping) == [ping]
        assert joined.to_server() == [base.Pong(7, 1 << 63)]


def test_pings_are_answered_in_order() -> None:
    with ends("main") as joined:
        joined.server_sends(*(base.Ping(n, 0) for n in range(5)))
        assert joined.to_server() == [base.Pong(n, 0) for n in range(5)]


# ACK windows


def acks_for(window: int, count: int) -> list[int]:
    """After which of ``count`` messages behind a SET_ACK the client sends an ACK."""
    client = Channel("cursor", Sender.CLIENT)
    client.receive_data(framed(base.SetAck(1, window)))
    assert sent(client) == framed(base.AckSync(1))
    after = []
    for n in range(1, count + 1):
        client.receive_data(framed(base.Notify(0, 0, 0, 0, b"")))
        if out := sent(client):
            assert out == framed(base.Ack())
            after.append(n)
    return after


@pytest.mark.parametrize(
    ("window", "after"),
    [(0, []), (1, list(range(1, 51))), (7, [7, 14, 21, 28, 35, 42, 49]), (20, [20, 40]), (51, [])],
)
def test_client_acknowledges_each_full_window(window: int, after: list[int]) -> None:
    assert acks_for(window, 50) == after


def test_without_set_ack_nothing_is_acknowledged() -> None:
    client = Channel("cursor", Sender.CLIENT)
    client.receive_data(framed(base.Notify(0, 0, 0, 0, b"")) * 100)
    assert sent(client) == b""


def test_client_acknowledges_before_it_handles_the_last_one() -> None:
    client = Channel("cursor", Sender.CLIENT)
    client.receive_data(framed(base.SetAck(1, 2)))
    sent(client)
    client.receive_data(framed(base.Ping(1, 2)) * 2)
    pong = framed(base.Pong(1, 2))
    assert sent(client) == pong + framed(base.Ack()) + pong


def test_every_kind_of_message_counts_and_unknown_ones_do_too() -> None:
    client = Channel("cursor", Sender.CLIENT)
    client.receive_data(framed(base.SetAck(1, 3)))
    sent(client)
    unknown = struct.pack("<HI", 499, 5) + b"later"
    messages = client.receive_data(
        unknown + framed(EXAMPLES[cursor.CursorInit][0]) + unknown + unknown
    )
    assert messages == [EXAMPLES[cursor.CursorInit][0]]
    assert sent(client) == framed(base.Ack())


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_drawings_count_however_many_one_read_brings(step: int) -> None:
    with pair.at(State.ORDINARY) as joined:
        client = joined.client
        client.receive_data(framed(base.SetAck(1, 3)))
        sent(client)
        data = framed(pair.draw()) * 10 + framed(display.Mark()) + framed(pair.draw()) * 3
        got = [
            one for at in range(0, len(data), step) for one in client.receive_data(data[at:][:step])
        ]
        assert got == [pair.draw()] * 10 + [display.Mark()] + [pair.draw()] * 3
        assert sent(client) == framed(base.Ack()) * 4
        bad = dataclasses.replace(pair.draw(), surface_id=99)
        with pytest.raises(
            RemoteProtocolError, match=r"display\.draw_copy: surface_id: there is no 99"
        ):
            client.receive_data(framed(pair.draw()) + framed(bad))


def test_the_byte_of_a_descriptor_does_not_count() -> None:
    with pair.DisplayPair() as joined:
        joined.init()
        joined.server_sends(base.SetAck(1, 2))
        joined.to_server()
        joined.take(joined.offer(1))
        assert joined.to_server() == []
        joined.take(joined.offer(2))
        assert joined.to_server() == [base.Ack()]


def test_a_second_set_ack_starts_a_new_count() -> None:
    client = Channel("cursor", Sender.CLIENT)
    client.receive_data(framed(base.SetAck(1, 3)) + framed(base.Ping(1, 1)) * 2)
    sent(client)
    client.receive_data(framed(base.SetAck(2, 2)))
    # It is itself the third of the first window, and is answered besides.
    assert sent(client) == framed(base.Ack()) + framed(base.AckSync(2))
    client.receive_data(framed(base.Notify(0, 0, 0, 0, b"")) * 4)
    assert sent(client) == framed(base.Ack()) * 2
    client.receive_data(framed(base.SetAck(3, 0)))
    assert sent(client) == framed(base.AckSync(3))
    client.receive_data(framed(base.Notify(0, 0, 0, 0, b"")) * 5)
    assert sent(client) == b""


class Talker:
    """A server that sends as long as it may."""

    def __init__(self, window: int) -> None:
        self.machine = Channel("cursor", Sender.SERVER)
        self.generation = 0
        self.set_window(window)
        self.hear(base.AckSync(1))

    def set_window(self, window: int) -> None:
        self.generation += 1
        self.machine.send(base.SetAck(self.generation, window))

    def hear(self, *messages: Message) -> None:
        for message in messages:
            assert self.machine.receive_data(framed(message)) == [message]

    def talk(self, most: int) -> int:
        """How many of ``most`` messages it may send."""
        for n in range(most):
            if not self.machine.acks.open:
                return n
            self.machine.send(base.Ping(n, 0))
        return most


@pytest.mark.parametrize("window", [1, 3, 20])
def test_server_stops_past_twice_the_window(window: int) -> None:
    server = Talker(window)
    assert server.talk(1000) == 2 * window + 1
    server.hear(base.Ack())
    assert server.talk(1000) == window
    server.hear(base.Ack(), base.Ack())
    assert server.talk(1000) == 2 * window
    assert server.machine.acks.delivered == 3 * window


def test_server_without_a_window_never_stops() -> None:
    assert Channel("cursor", Sender.SERVER).acks.open
    server = Talker(0)
    assert server.talk(1000) == 1000
    server.hear(base.Ack())
    assert server.machine.acks.delivered == 0
    assert server.talk(1000) == 1000


def test_acknowledgements_of_an_older_window_do_not_count_for_the_newer() -> None:
    server = Talker(2)
    assert server.talk(1000) == 5
    server.set_window(3)
    assert server.talk(1000) == 7
    server.hear(base.Ack(), base.Ack())  # were on their way when the window changed
    assert server.machine.acks.delivered == 0
    assert not server.machine.acks.open
    server.hear(base.AckSync(1), base.Ack())  # an answer to something older still
    assert not server.machine.acks.open
    server.hear(base.AckSync(2), base.Ack())
    assert server.machine.acks.delivered == 3
    assert server.talk(1000) == 3


def test_two_changes_of_the_window_under_way_at_once() -> None:
    server = Talker(4)
    server.set_window(1)
    server.set_window(2)
    server.hear(base.AckSync(2), base.Ack())
    assert server.machine.acks.delivered == 0
    server.hear(base.AckSync(3))
    assert server.talk(1000) == 5
    server.hear(base.Ack())
    assert server.machine.acks.delivered == 2


def test_more_acknowledgements_than_messages_are_no_credit() -> None:
    server = Talker(2)
    server.hear(*[base.Ack()] * 50)
    assert server.machine.acks.delivered == 0
    assert server.talk(1000) == 5


@given(
    window=st.integers(0, 30), counts=st.lists(st.integers(1, 40), max_size=12), mini=st.booleans()
)
@settings(deadline=None, max_examples=60)
def test_windows_agree_at_both_ends(window: int, counts: list[int], mini: bool) -> None:
    """A server that stops where it must is always set going again by the client's ACKs."""
    with ends("cursor", mini=mini) as joined:
        joined.server_sends(base.SetAck(1, window))
        joined.to_server()
        total = 0
        for count in counts:
            for _ in range(count):
                if not joined.server.acks.open:
                    joined.settle()
                    assert joined.server.acks.open
                joined.server.send(base.Ping(0, 0))
                total += 1
        joined.settle()
        assert joined.server.acks.sent == total
        assert total - joined.server.acks.delivered < window or window == 0


# Messages that nobody knows


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("number", [0, 1, 99, 199, 480, 499, 65535])
def test_client_skips_what_it_does_not_know(channel: str, number: int) -> None:
    with ends(channel) as joined:
        unknown = struct.pack("<HI", number, 9) + b"something"
        assert joined.client.receive_data(unknown + framed(base.Ping(1, 2))) == [base.Ping(1, 2)]
        assert joined.client.state is State.START


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("number", [0, 4, 5, 99, 199, 480, 65535])
def test_server_must_know_what_a_client_says(channel: str, number: int) -> None:
    with ends(channel) as joined, pytest.raises(RemoteProtocolError, match=f"{number}: is unknown"):
        joined.server.receive_data(struct.pack("<HI", number, 0))


@pytest.mark.parametrize("number", range(464, 480))
def test_the_extensions_block_holds_no_unknown_message(number: int) -> None:
    client = ClientDisplay(shareable=True)
    with pytest.raises(RemoteProtocolError, match=f"{number}: is unknown"):
        client.receive_data(struct.pack("<HI", number, 0))
    server = ServerDisplay(shareable=True)
    with pytest.raises(RemoteProtocolError, match=f"{number}: is unknown"):
        server.receive_data(struct.pack("<HI", number, 0))


@pytest.mark.parametrize("number", range(464, 480))
def test_without_the_capability_the_block_is_as_unknown_as_any_other(number: int) -> None:
    client = ClientDisplay(shareable=False)
    assert client.receive_data(struct.pack("<HI", number, 0)) == []


@pytest.mark.parametrize("number", [320, 321])
def test_drawing_that_we_do_not_know_is_drawing_all_the_same(number: int) -> None:
    data = struct.pack("<HI", number, 4) + b"draw"
    for state in (State.SHARED, State.SHARED_EMPTY):
        with pair.at(state) as joined, pytest.raises(RemoteProtocolError, match=str(number)):
            joined.client.receive_data(data)
    with pair.at(State.ORDINARY) as joined:
        assert joined.client.receive_data(data) == []


def test_no_known_drawing_comes_in_shared_memory_mode() -> None:
    for number in (104, *range(122, 127), *range(302, 314), 316, 318):
        for state in (State.SHARED, State.SHARED_EMPTY):
            with pair.at(state) as joined, pytest.raises(RemoteProtocolError, match="allowed"):
                joined.client.receive_data(struct.pack("<HI", number, 0))


def test_shared_memory_mode_skips_what_does_not_draw() -> None:
    with pair.at(State.SHARED) as joined:
        for number in (5, 322, 500):  # waits, quality, and what may come
            assert joined.client.receive_data(struct.pack("<HI", number, 0)) == []
        [message] = joined.client.receive_data(struct.pack("<HI", 108, 0))
        assert isinstance(message, display.InvalAllPalettes)


# Sizes


def limit_of(channel: str, sender: Sender) -> int:
    if sender is Sender.CLIENT:
        return CLIENT_MESSAGE_LIMIT
    return SERVER_MESSAGE_LIMIT.get(channel, 1 << 20)


def test_the_largest_pointer_of_a_machine_is_taken() -> None:
    header = cursor.CursorHeader(1, cursor.TYPE_COLOR32, 512, 512, 0, 0)
    shape = cursor.Cursor(0, header, bytes(512 * 512 * 4 + 512 * 512 // 8))
    with ends("cursor") as joined:
        joined.server_sends(cursor.CursorInit(0, 0, 0, 0, 0, cursor.Cursor(cursor.FLAG_NONE)))
        [message] = joined.server_sends(cursor.CursorSet(0, 0, 1, shape))
        assert message == cursor.CursorSet(0, 0, 1, shape)


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("mini", [True, False])
@pytest.mark.parametrize("sender", Sender)
def test_a_size_over_the_limit_is_a_breach_before_the_body_is_there(
    channel: str, mini: bool, sender: Sender
) -> None:
    limit = limit_of(channel, sender)
    for size, fits in ((limit, True), (limit + 1, False), (0xFFFFFFFF, False)):
        head = struct.pack("<HI", 900, size)
        head = head if mini else struct.pack("<QHII", 1, 900, size, 0)
        with ends(channel, mini=mini) as joined:
            reader = joined.client if sender is Sender.SERVER else joined.server
            if fits:
                assert reader.receive_data(head) == []
            else:
                with pytest.raises(RemoteProtocolError) as caught:
                    reader.receive_data(head)
                assert caught.value.field == "size"


OPEN_ENDED: dict[type[Message], int | None] = {
    base.Ping: None,
    base.Notify: None,
    main.ChannelsList: 4096,
    main.AgentData: 2048,
    main.ClientAgentData: 2048,
    main.Name: None,
    **dict.fromkeys(DRAWING),
    display.InvalList: None,
    display.InvalAllPixmaps: None,
    display.StreamCreate: None,
    display.StreamData: None,
    display.StreamDataSized: None,
    display.StreamClip: None,
    display.MonitorsConfig: 1 << 16,
    display.PreferredVideoCodecType: None,
    shm.ShmOffer: 1 << 16,
    shm.ShmDamage: 48 + 16 * 64,
    shm.ShmReply: 16 + 64 + 64,
    inputs.KeyScancode: 256,
    cursor.CursorInit: None,
    cursor.CursorSet: None,
}
"""Most bytes of a body that has no fixed size; None for as many as the channel allows."""


def most(kind: type[Message]) -> int:
    if kind in OPEN_ENDED:
        channel = "main" if kind.channel == "base" else kind.channel
        return OPEN_ENDED[kind] or limit_of(channel, kind.sender)
    [size] = {len(example.packed) for example in EXAMPLES[kind]}
    return size


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.sender.value}-{kind.title}")
def test_no_type_may_announce_more_than_it_can_hold(kind: type[Message]) -> None:
    channel = "main" if kind.channel == "base" else kind.channel
    with ends(channel) as joined:
        reader = joined.client if kind.sender is Sender.SERVER else joined.server
        with pytest.raises(RemoteProtocolError) as caught:
            reader.receive_data(struct.pack("<HI", kind.number, most(kind) + 1))
        assert (caught.value.message, caught.value.field) == (kind.title, "size")


def test_a_raw_image_of_the_largest_surface_fits() -> None:
    """And nothing larger: what a server announces is kept until all of it is there."""

    large = dataclasses.replace(pair.create(7), width=6000, height=4000)
    most = 6000 * 4000 * 4 + (1 << 20)
    for messages, size, fits in (
        ([large], most, True),
        ([large], most + 1, False),
        ([large, display.SurfaceDestroy(3)], most, True),
        ([large, display.SurfaceDestroy(7)], most, False),
        ([], 1 << 24, True),
    ):
        with pair.at(State.ORDINARY) as joined:
            joined.server_sends(*messages)
            head = struct.pack("<HI", display.DrawCopy.number, size)
            if fits:
                assert joined.client.receive_data(head) == []
            else:
                with pytest.raises(RemoteProtocolError, match=r"display\.draw_copy: size: "):
                    joined.client.receive_data(head)


def test_offers_without_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids of all of them are remembered."""
    monkeypatch.setattr(display_client, "_MOST_OFFERS", 8)
    with pair.at(State.SHARED) as joined:
        offers = [pair.offer_of(3 + number, handle=shm.HANDLE_FILE) for number in range(6)]
        withdrawn = [shm.ShmWithdraw(offer.segment_id) for offer in offers]
        for offer, withdraw in zip(offers, withdrawn, strict=True):
            joined.client.receive_data(framed(offer) + framed(withdraw))
        with pytest.raises(RemoteProtocolError, match="segment_id: more than 8 offers"):
            joined.client.receive_data(framed(pair.offer_of(9, handle=shm.HANDLE_FILE)))


# Headers


@pytest.mark.parametrize("channel", CHANNELS)
def test_full_headers_count_serials_from_one(channel: str) -> None:
    with ends(channel, mini=False) as joined:
        for serial in (1, 2, 3):
            joined.server.send(base.Ping(serial, 0, b"pad"))
            data = sent(joined.server)
            assert data == framed(base.Ping(serial, 0, b"pad"), mini=False, serial=serial)
            joined.client.receive_data(data)
            assert sent(joined.client) == framed(base.Pong(serial, 0), mini=False, serial=serial)


def test_foreign_serials_and_sub_lists_do_not_matter() -> None:
    client = Channel("main", Sender.CLIENT, mini=False)
    body = base.Ping(1, 2).packed
    data = struct.pack("<QHII", 1 << 60, 4, len(body), 77) + body
    assert client.receive_data(data) == [base.Ping(1, 2)]


def test_descriptors_that_nobody_asked_for_are_closed() -> None:
    for channel in ("main", "inputs", "cursor"):
        for role in Sender:
            gift = [pair.a_descriptor(), pair.a_descriptor()]
            Channel(channel, role).receive_data(b"", gift)
            assert all(descriptor.closed for descriptor in gift)


def test_what_was_never_sent_is_closed_with_the_channel() -> None:
    with pair.DisplayPair() as joined:
        joined.init()
        gift = pair.a_descriptor()
        joined.server.offer(pair.offer_of(1), pair.TOKEN, gift)
        joined.server.close()
        assert gift.closed
        assert joined.server.data_to_send() == []


def test_bytes_with_descriptors_are_a_part_of_their_own() -> None:
    with pair.DisplayPair() as joined:
        joined.init()
        gift = pair.a_descriptor()
        joined.server.send(base.SetAck(1, 20))
        joined.server.offer(pair.offer_of(1), pair.TOKEN, gift)
        joined.server.send(base.Ping(1, 2))
        before = framed(base.SetAck(1, 20)) + framed(pair.offer_of(1))
        assert joined.server.data_to_send() == [
            Outgoing(before),
            Outgoing(b"@", (gift,)),
            Outgoing(framed(base.Ping(1, 2))),
        ]
        gift.close()


# The trace


def test_a_trace_of_both_directions(caplog: pytest.LogCaptureFixture) -> None:
    """`<` is what came in, `>` what goes out; what the state does not allow is in neither."""
    with caplog.at_level(logging.DEBUG, "spiceshm.trace"):
        client = Channel("cursor", Sender.CLIENT)
        client.receive_data(framed(base.Ping(7, 9, b"\0\n")) + struct.pack("<HI", 999, 0))
        with pytest.raises(LocalProtocolError):
            client.send(main.AttachChannels())
        with pytest.raises(RemoteProtocolError):
            client.receive_data(framed(cursor.CursorHide()))
    lines = [record.getMessage() for record in caplog.records if record.name == "spiceshm.trace"]
    assert lines[:2] == ["< base.ping id=7 timestamp=9 data=2B", "> base.pong id=7 timestamp=9"]
    assert not any("\n" in line or "attach" in line or "hide" in line for line in lines)


def test_without_debugging_there_is_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Channel("cursor", Sender.CLIENT).receive_data(framed(base.Ping(7, 9)))
    assert caplog.records == []


# Three ways to read


@st.composite
def bodies(draw: st.DrawFn, kind: type[Message]) -> Message:
    """A message of a kind: one of the golden ones, or one with other bytes that still parses."""
    message = draw(st.sampled_from(EXAMPLES[kind]))
    body = bytearray(message.packed)
    if body and draw(st.booleans()):
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
        try:
            return kind.parse(bytes(body))
        except RemoteProtocolError:
            return message
    return message


@st.composite
def streams(draw: st.DrawFn) -> tuple[str, Sender, bool, list[Message], bytes]:
    """Channel, sender, whether headers are mini, messages in a legal order, and their bytes."""
    channel = draw(st.sampled_from(["main", "inputs", "cursor"]))
    sender = draw(st.sampled_from(Sender))
    mini = draw(st.booleans())
    kinds = [kind for kind in KINDS if kind.channel in ("base", channel) and kind.sender is sender]
    state, messages, data = State.START, [], b""
    for _ in range(draw(st.integers(0, 12))):
        allowed = [k for k in kinds if k.channel == "base" or k in TABLES[channel][state]]
        kind = draw(st.sampled_from(allowed))
        message = draw(bodies(kind))
        data += framed(message, mini=mini, serial=len(messages) + 1)
        messages.append(message)
        state = TABLES[channel][state].get(kind, state)
    return channel, sender, mini, messages, data


def read(stream: tuple[str, Sender, bool, list[Message], bytes], cuts: list[int]) -> None:
    """Read a stream in pieces that end at ``cuts``, and hold what comes out against what is in."""
    channel, sender, mini, messages, data = stream
    reader = Channel(channel, sender.other, mini=mini)
    got: list[Message] = []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        got += reader.receive_data(data[start:end])
    assert got == messages


@given(stream=streams(), cuts=st.data())
@settings(deadline=None, max_examples=150)
def test_streams_are_read_alike_however_they_are_cut(
    stream: tuple[str, Sender, bool, list[Message], bytes], cuts: st.DataObject
) -> None:
    data = stream[4]
    read(stream, [])
    read(stream, list(range(1, len(data))))
    read(stream, sorted(cuts.draw(st.lists(st.integers(0, len(data)), max_size=8))))


@given(stream=streams(), cut=st.data())
@settings(deadline=None, max_examples=100)
def test_a_piece_of_the_next_message_changes_nothing(
    stream: tuple[str, Sender, bool, list[Message], bytes], cut: st.DataObject
) -> None:
    channel, sender, mini, messages, data = stream
    last = base.Ping(1, 2, b"padding") if sender is Sender.SERVER else base.Pong(1, 2)
    tail = framed(last, mini=mini)
    at = cut.draw(st.integers(0, len(tail) - 1))
    reader = Channel(channel, sender.other, mini=mini)
    assert reader.receive_data(data + tail[:at]) == messages
    assert reader.receive_data(tail[at:]) == [last]


def told(pieces: list[bytes]) -> list[str]:
    """What a client in ordinary SPICE is told by what comes in pieces, and by what it fails."""
    got: list[str] = []
    with pair.at(State.ORDINARY) as joined:
        try:
            for piece in pieces:
                got += map(repr, joined.client.receive_data(piece))
        except RemoteProtocolError as error:
            got.append(str(error))
    return got


@pytest.mark.parametrize("kind", DRAWING + STREAMS, ids=name_of)
def test_a_drawing_cut_off_anywhere_is_its_own_fault(kind: type[Message]) -> None:
    """Whole or byte by byte; and so it is with bytes behind it, which are no message."""
    for example in EXAMPLES[kind][:3]:
        body = example.packed
        seen = set()
        for size in range(min(len(body), 150) + 1):
            spoilt = struct.pack("<HI", kind.number, size) + body[:size]
            whole = told([spoilt])
            assert told([bytes([byte]) for byte in spoilt]) == whole
            [outcome] = whole
            assert outcome.startswith((f"{kind.title}: ", kind.__name__))
            seen.add(outcome.split(": ")[0])
        assert kind.title in seen
        unknown = b"\xff" * 6
        [*_, last] = told([framed(fitting(kind, State.ORDINARY)) + unknown])
        assert last.startswith("display message 65535: size: 4294967295 bytes")


def test_a_large_message_in_the_smallest_pieces() -> None:
    """Its bytes are looked at once, not once for every piece: that would take minutes."""
    reader = Channel("main", Sender.CLIENT)
    data = framed(base.Ping(1, 2, bytes(600000)))
    start = time.process_time()
    assert reader.missing == 0
    assert reader.receive_data(data[:9]) == []
    assert reader.missing == len(data) - 9
    messages = [message for byte in data[9:] for message in reader.receive_data(bytes([byte]))]
    assert messages == [base.Ping(1, 2, bytes(600000))]
    assert time.process_time() - start < 8


def test_what_was_read_does_not_lie_in_the_buffer_that_it_came_in() -> None:
    """A stream reads into one buffer again and again."""
    with pair.at(State.SHARED) as joined:
        first, second = pair.damage(6, (0, 0, 1, 1)), base.Notify(1, 2, 3, 4, b"text")
        buffer = bytearray(framed(first) + framed(second) + b"\x04")
        messages = joined.client.receive_data(memoryview(buffer))
        buffer[:] = bytes(len(buffer))
        assert messages == [first, second]
        assert joined.client.receive_data(framed(base.Ping(1, 2))[1:]) == [base.Ping(1, 2)]
