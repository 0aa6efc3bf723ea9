"""The inputs channel's two ends: what bytes of scan codes mean, and which motions were delivered.

Scan codes as stock clients send them, random ones cut at random places, and a plain reading of the
same bytes beside ours. Motions are counted at both ends, message by message.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiceshm import scancodes
from spiceshm.errors import LocalProtocolError, RemoteProtocolError
from spiceshm.events import Button, Event, Key, Locks, PointerBy, PointerTo
from spiceshm.protocol import ClientInputs, ScanCodes, ServerInputs, key_message
from spiceshm.wire import MESSAGES, Message, Sender, base, inputs
from tests.pair import ConnectionPair, examples, framed, sent

MOTION, STILL = inputs.MouseMotion(3, -4, 0), inputs.MouseMotion(0, 0, 0)
PLACE = inputs.MousePosition(5, 6, 1, 0)
ACK = inputs.MouseMotionAck()


def opened(*, locks: int = 0, chunk: int | None = None) -> ConnectionPair:
    """Both ends behind INIT."""
    joined = ConnectionPair(ServerInputs(), ClientInputs(), chunk=chunk)
    joined.server_sends(inputs.InputsInit(locks))
    return joined


def events_of(server: ServerInputs, *messages: Message) -> list[Event]:
    """What a server makes of messages that come in one read."""
    found: list[Event] = []
    for message in server.receive_data(b"".join(map(framed, messages))):
        found += server.events(message)
    return found


# Scan codes


def down(code: int) -> Key:
    return Key(code, True)


def up(code: int) -> Key:
    return Key(code, False)


@pytest.mark.parametrize(
    ("scan", "keys"),
    [
        ("1e 9e", [down(0x1E), up(0x1E)]),
        ("1e 1e 9e", [down(0x1E), down(0x1E), up(0x1E)]),
        ("2a 1e aa", [down(0x2A), down(0x1E), up(0x2A)]),
        ("e0 4d e0 cd", [down(0xE04D), up(0xE04D)]),
        ("4d e0 4d 4d", [down(0x4D), down(0xE04D), down(0x4D)]),
        ("54 d4", [down(0x54), up(0x54)]),
        ("e1 1d 45 e1 9d c5", [down(scancodes.PAUSE), up(scancodes.PAUSE)]),
        ("e1 1d 45 45", [down(scancodes.PAUSE), down(0x45)]),
        ("1d 45", [down(0x1D), down(0x45)]),
        ("e0 2a e0 37", [down(0xE02A), down(0xE037)]),
        # What is no scan code makes no key, and what follows is read as if it had not been there.
        ("00 80 1e", [down(0x1E)]),
        ("e0 00 1e", [down(0x1E)]),
        ("e0 e0 4d", [down(0xE04D)]),
        ("e1 e0 4d", [down(0xE04D)]),
        ("e0 e1 1d 45", [down(scancodes.PAUSE)]),
        ("e1 1d c5", [up(0x45)]),
        ("e1 1d 1e 45", [down(0x1E), down(0x45)]),
        ("e1 1e", [down(0x1E)]),
        ("e1 1d e1 1d 45", [down(scancodes.PAUSE)]),
    ],
)
def test_scan_codes(scan: str, keys: list[Key]) -> None:
    data = bytes.fromhex(scan)
    assert ScanCodes().feed(data) == keys
    one_by_one = ScanCodes()
    assert [key for byte in data for key in one_by_one.feed([byte])] == keys


def test_pause_as_stock_clients_send_it() -> None:
    """Its bytes come in messages of their own, and nothing else is mistaken for it."""
    server = ServerInputs()
    assert events_of(server, inputs.KeyDown(0x1DE1)) == []
    assert events_of(server, inputs.KeyDown(0x45)) == [down(scancodes.PAUSE)]
    assert events_of(server, inputs.KeyUp(0x9DE1), inputs.KeyUp(0xC5)) == [up(scancodes.PAUSE)]
    assert events_of(server, inputs.KeyDown(0x45)) == [down(0x45)]
    assert events_of(server, inputs.KeyDown(0x451DE1)) == [down(scancodes.PAUSE)]


def test_the_bytes_say_what_goes_up_not_the_message() -> None:
    server = ServerInputs()
    assert events_of(server, inputs.KeyUp(0x1E), inputs.KeyDown(0x9E)) == [down(0x1E), up(0x1E)]


def test_a_message_ends_at_its_first_zero_and_raw_bytes_do_not() -> None:
    server = ServerInputs()
    assert events_of(server, inputs.KeyDown(0x1F001E)) == [down(0x1E)]
    assert events_of(server, inputs.KeyDown(0)) == []
    assert events_of(server, inputs.KeyScancode(b"\x1e\0\x1f")) == [down(0x1E), down(0x1F)]
    assert events_of(server, inputs.KeyScancode(b"\xe0"), inputs.KeyDown(0x4D)) == [down(0xE04D)]


@pytest.mark.parametrize("code", sorted(scancodes.LINUX), ids=hex)
def test_every_key_there_is_comes_back_from_its_message(code: int) -> None:
    server = ServerInputs()
    assert events_of(server, key_message(down(code)), key_message(up(code))) == [
        down(code),
        up(code),
    ]
    assert isinstance(key_message(up(code)), inputs.KeyUp)


def read_plainly(data: bytes) -> list[Key]:
    """The same as `ScanCodes`, written with all bytes at hand."""
    keys, at = [], 0
    while at < len(data):
        byte, rest = data[at], data[at + 1 :]
        if data[at : at + 3] in (b"\xe1\x1d\x45", b"\xe1\x9d\xc5"):
            keys.append(Key(scancodes.PAUSE, data[at + 2] == 0x45))
            at += 3
        elif byte == 0xE0 and rest[:1] and rest[0] not in (0xE0, 0xE1):
            if rest[0] & 0x7F:
                keys.append(Key(0xE000 | rest[0] & 0x7F, rest[0] < 0x80))
            at += 2
        elif byte == 0xE1 and rest[:1] in (b"\x1d", b"\x9d"):
            at += 2  # begun, and not gone on with
        else:
            if byte not in (0xE0, 0xE1) and byte & 0x7F:
                keys.append(Key(byte & 0x7F, byte < 0x80))
            at += 1
    return keys


SCANS = st.lists(
    st.sampled_from([0xE0, 0xE1, 0x1D, 0x9D, 0x45, 0xC5, 0x4D, 0, 0x80]) | st.integers(0, 255),
    max_size=40,
).map(bytes)


@given(data=SCANS, cuts=st.lists(st.integers(0, 40), max_size=6))
@settings(deadline=None, max_examples=400)
def test_random_bytes_give_the_same_keys_however_they_are_split(
    data: bytes, cuts: list[int]
) -> None:
    """Split over raw messages, and those over reads."""
    keys = read_plainly(data)
    ends = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    pieces = [data[a:b] for a, b in itertools.pairwise(ends)]
    for chunk in (None, 1, 7):
        with opened(chunk=chunk) as joined:
            server = joined.server
            assert isinstance(server, ServerInputs)
            found: list[Event] = []
            for message in joined.client_sends(*map(inputs.KeyScancode, pieces)):
                found += server.events(message)
            assert found == keys


# Buttons, places, locks


def test_buttons_by_number_whatever_the_masks_say() -> None:
    server = ServerInputs()
    for button in range(1, 8):
        assert events_of(
            server, inputs.MousePress(button, 0), inputs.MouseRelease(button, 0xFFFF)
        ) == [Button(button, True), Button(button, False)]
    for button in (0, 8, 255):
        assert events_of(server, inputs.MousePress(button, 1), inputs.MouseRelease(button, 0)) == []


def test_motions_and_places() -> None:
    server = ServerInputs()
    far = inputs.MousePosition(0xFFFFFFFF, 0, 0xFFFF, 0)
    assert events_of(server, MOTION, STILL, PLACE, PLACE, far) == [
        PointerBy(3, -4),
        PointerTo(5, 6),
        PointerTo(5, 6),
        PointerTo(0xFFFFFFFF, 0),
    ]
    assert events_of(server, inputs.MousePosition(5, 6, 0, 1)) == []  # of another monitor
    assert events_of(server, inputs.MouseMotion(0, 1, 0)) == [PointerBy(0, 1)]


def test_locks_of_a_client() -> None:
    server = ServerInputs()
    for state in (0, 1, 5, 7):
        assert events_of(server, inputs.ClientKeyModifiers(state)) == [Locks(state)]
    assert events_of(server, inputs.ClientKeyModifiers(0xFFF8)) == [Locks(0)]


def test_locks_that_answer_others_are_no_wish() -> None:
    """Viewers say what their keyboard has whenever they are told something else."""
    server = ServerInputs()
    server.send(inputs.InputsInit(4))
    assert events_of(server, inputs.ClientKeyModifiers(0)) == [Locks(0)]  # who comes says it once
    assert events_of(server, inputs.ClientKeyModifiers(0)) == [Locks(0)]
    server.send(inputs.KeyModifiers(4))
    server.send(inputs.KeyModifiers(0))  # which needs no answer
    server.send(inputs.KeyModifiers(2))
    assert events_of(server, *[inputs.ClientKeyModifiers(0)] * 2) == []
    assert events_of(server, inputs.ClientKeyModifiers(0)) == [Locks(0)]
    server.send(inputs.KeyModifiers(4))
    assert events_of(server, inputs.ClientKeyModifiers(2)) == [Locks(2)]
    assert events_of(server, inputs.ClientKeyModifiers(2)) == []


def test_locks_of_a_server() -> None:
    with opened(locks=6) as joined:
        client = joined.client
        assert isinstance(client, ClientInputs)
        assert client.locks == 6
        joined.server_sends(inputs.KeyModifiers(0xFFF9))
        assert client.locks == 1


def test_what_is_no_deed_makes_no_event() -> None:
    server = ServerInputs()
    assert events_of(server, base.Pong(1, 2), base.AckSync(1), base.Ack()) == []


# Motions and acknowledgements


class Ends:
    """A conversation behind INIT, with both ends typed."""

    def __init__(self, joined: ConnectionPair) -> None:
        assert isinstance(joined.server, ServerInputs)
        assert isinstance(joined.client, ClientInputs)
        self.server, self.client, self.joined = joined.server, joined.client, joined


@pytest.fixture
def ends() -> Ends:
    return Ends(opened())


def test_every_fourth_is_acknowledged_behind_a_ping(ends: Ends) -> None:
    for number, kind in enumerate([MOTION, PLACE, STILL, PLACE, STILL, STILL, MOTION], 1):
        ends.joined.client_sends(kind)
        assert ends.server.acks_due == number // 4
    ends.server.acknowledge(1 << 63)
    assert sent(ends.server) == framed(base.Ping(1, 1 << 63)) + framed(ACK)
    ends.joined.client_sends(MOTION)
    ends.server.acknowledge(77)
    assert sent(ends.server) == framed(base.Ping(2, 77)) + framed(ACK)


def test_two_are_acknowledged_at_once(ends: Ends) -> None:
    ends.joined.client_sends(*[MOTION] * 8)
    ends.server.acknowledge(9)
    assert ends.joined.to_client() == [base.Ping(1, 9), ACK, base.Ping(2, 9), ACK]
    assert (ends.client.unacked, ends.client.delivered, ends.client.stamp) == (0, 8, 9)


def test_no_more_is_acknowledged_than_came(ends: Ends) -> None:
    ends.joined.client_sends(*[MOTION] * 3)
    ends.server.acknowledge(9)
    assert sent(ends.server) == b""
    with pytest.raises(LocalProtocolError, match="none is due"):
        ends.server.send(ACK)
    assert sent(ends.server) == b""


def test_a_client_stops_at_eight(ends: Ends) -> None:
    ends.joined.client_sends(*[MOTION] * 8)
    for wrong in (MOTION, PLACE):
        with pytest.raises(LocalProtocolError, match="8 are not acknowledged"):
            ends.client.send(wrong)
    assert sent(ends.client) == b""
    assert ends.client.motions == ends.client.unacked == 8
    ends.client.send(inputs.MousePress(1, 1))  # which is no motion
    ends.joined.server_sends(ACK)
    ends.joined.client_sends(*[PLACE] * 4)
    assert ends.client.unacked == 8


@pytest.mark.parametrize("count", range(4))
def test_an_acknowledgement_too_many_is_a_breach(ends: Ends, count: int) -> None:
    for _ in range(count):
        ends.client.send(MOTION)
    with pytest.raises(RemoteProtocolError) as caught:
        ends.client.receive_data(framed(ACK))
    assert caught.value.message == "inputs.mouse_motion_ack"
    assert str(count) in caught.value.detail


def test_a_server_takes_more_than_eight() -> None:
    """Nobody promised it less; other servers count no further than four either."""
    server = ServerInputs()
    server.send(inputs.InputsInit(0))
    events_of(server, *[MOTION] * 41)
    assert server.acks_due == 10


def test_a_barrier_is_what_is_missing_to_a_multiple_of_four(ends: Ends) -> None:
    assert ends.client.barrier == 0
    for barrier in (3, 2, 1, 0):
        ends.client.send(MOTION)
        assert ends.client.barrier == barrier
    ends.client.send(key_message(down(0x1E)))
    assert ends.client.barrier == 4  # for the acknowledgement that is due says nothing of the key
    ends.client.send(STILL)
    assert ends.client.barrier == 3
    ends.client.send(inputs.MousePress(1, 1))
    assert ends.client.barrier == 3


def test_an_answer_to_a_ping_needs_no_barrier(ends: Ends) -> None:
    ends.joined.server_sends(base.Ping(1, 2))
    assert ends.client.barrier == 0


def test_the_stamp_is_of_the_ping_directly_before(ends: Ends) -> None:
    assert ends.client.stamp is None
    for before, stamp in (
        ([base.Ping(1, 2)], 2),
        ([], None),
        ([base.Ping(1, 0)], 0),
        ([base.Ping(1, 5), base.Ping(2, 6)], 6),
        ([base.Ping(1, 5), inputs.KeyModifiers(1)], None),
    ):
        ends.joined.client_sends(*[MOTION] * 4)
        ends.joined.server_sends(*before, ACK)
        assert ends.client.stamp == stamp


@given(
    steps=st.lists(
        st.sampled_from(["motion", "place", "key", "ack", "barrier", "locks"]), max_size=60
    ),
    chunk=st.sampled_from([None, 1, 5]),
)
@settings(deadline=None, max_examples=200)
def test_both_ends_count_alike_and_a_barrier_tells_of_everything(
    steps: list[str], chunk: int | None
) -> None:
    """Whatever is sent was taken by the server when the barrier behind it is acknowledged."""
    with opened(chunk=chunk) as joined:
        ends = Ends(joined)
        keys = taken = 0

        def take() -> None:
            nonlocal taken
            for message in joined.to_server():
                taken += sum(isinstance(event, Key) for event in ends.server.events(message))

        def settle() -> None:
            take()
            ends.server.acknowledge(taken)
            joined.to_client()

        for step in steps:
            if step == "motion" and ends.client.unacked < 8:
                ends.client.send(MOTION)
            elif step == "place" and ends.client.unacked < 8:
                ends.client.send(PLACE)
            elif step == "key":
                ends.client.send(key_message(down(0x1E)))
                keys += 1
            elif step == "ack":
                settle()
            elif step == "locks":
                joined.server_sends(inputs.KeyModifiers(keys & 7))
            elif step == "barrier":
                for _ in range(ends.client.barrier):
                    while ends.client.unacked == 8:
                        settle()
                    ends.client.send(STILL)
                behind = ends.client.motions
                while ends.client.delivered < behind:
                    settle()
                assert taken == keys
                assert ends.client.stamp == keys or behind == 0
                assert ends.client.unacked == 0
            assert ends.client.unacked <= 8


# Any message


@pytest.mark.parametrize("value", [0, 1, 0x7F, 0x80, 0xFF])
def test_nothing_that_a_field_holds_is_a_breach(value: int) -> None:
    server = ServerInputs()
    for (channel, sender, _), kind in MESSAGES.items():
        if channel == "inputs" and sender is Sender.CLIENT:
            body = bytes([value]) * len(examples()[kind][0].packed)
            events_of(server, kind.parse(body))
