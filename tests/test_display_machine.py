"""The extension's conversation, both ends joined in memory: sections 5 to 14 of the specification.

Offers and their answers, descriptors at every byte and streams cut at every byte, leases, credits,
the way back to ordinary SPICE; last, random legal actions on both ends, which never raise and leave
both ends with the same view of the connection.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from spiceshm.errors import LocalProtocolError, Refusal, RemoteProtocolError
from spiceshm.protocol import TABLES, ClientDisplay, ServerDisplay, State
from spiceshm.protocol.display import MAX_SEGMENTS
from spiceshm.wire import Message, base, display, shm, types
from tests.pair import (
    HEIGHT,
    INIT,
    SIZE,
    STRIDE,
    TOKEN,
    WIDTH,
    DisplayPair,
    a_descriptor,
    at,
    create,
    create_shm,
    damage,
    descriptors_open,
    draw,
    framed,
    no_descriptor_left,
    offer_of,
)

BUFFER = STRIDE * HEIGHT
REASONS = [reason for reason in Refusal if reason is not Refusal.NONE]


def ready(**kwargs: Any) -> DisplayPair:
    return at(State.READY, **kwargs)


def both(pair: DisplayPair, state: State) -> bool:
    return pair.server.state is pair.client.state is state


# Accepted


def test_from_init_to_the_last_lease() -> None:
    """The conversation that section 5 draws."""
    with ready() as pair:
        pair.server_sends(base.SetAck(1, 20))
        pair.server.offer(offer_of(1), TOKEN, a_descriptor())
        pair.server.offer(offer_of(2), TOKEN[::-1], a_descriptor())
        first, second = pair.to_client()
        assert (first, second) == (offer_of(1), offer_of(2))
        assert pair.client.fault(first) is pair.client.fault(second) is None
        assert pair.take(first) == pair.take(second) == 1
        pair.client.accept(first, TOKEN, 2)
        pair.client.accept(second, TOKEN[::-1], 2)
        assert pair.server.undecided
        pair.to_server()
        assert not pair.server.undecided
        assert pair.server.refusal is None
        assert pair.server.has(1)
        assert pair.server.has(2)
        assert (pair.server.credits, pair.client.credits) == (2, 2)

        pair.server_sends(create_shm(), damage(5, flags=shm.FLAG_FULL), display.Mark())
        assert both(pair, State.SHARED)
        assert pair.client.shared
        surface = pair.client.surface
        assert surface is not None
        assert (surface.width, surface.height, surface.stride) == (WIDTH, HEIGHT, STRIDE)
        assert pair.server.may_lend()
        pair.server_sends(damage(6, segment_id=2, offset=BUFFER))
        assert not pair.server.may_lend()
        pair.client.release(5)
        pair.to_server()
        pair.server_sends(damage(9))
        pair.client.release(9)
        pair.client.release(6)
        pair.to_server()
        assert pair.server.leases == pair.client.leases == {}

        pair.server_sends(display.SurfaceDestroy(0))
        assert both(pair, State.SHARED_EMPTY)
        assert pair.client.surface is None
        pair.accept(pair.offer(3))
        pair.server_sends(create_shm(3), damage(11, segment_id=3), display.Mark())
        pair.server_sends(shm.ShmWithdraw(1))
        assert not pair.server.has(1)
        assert set(pair.client.segments) == set(pair.server.segments) == {2, 3}


def test_credits_are_what_the_first_reply_takes() -> None:
    with ready() as pair:
        pair.accept(pair.offer(1, credits=8), credits=3)
        pair.accept(pair.offer(2, credits=8), credits=7)
        assert (pair.server.credits, pair.client.credits) == (3, 3)


def test_a_segment_without_a_token_needs_no_proof() -> None:
    with ready() as pair:
        offer = dataclasses.replace(offer_of(1), token_size=0, token_offset=1 << 63)
        pair.server.offer(offer, b"", a_descriptor())
        [received] = pair.to_client()
        assert pair.client.fault(received) is None
        pair.accept(received, proof=b"")
        pair.server_sends(create_shm(offset=SIZE - BUFFER), damage(1, offset=SIZE - BUFFER))
        assert both(pair, State.SHARED)


# Refused


@pytest.mark.parametrize("reason", REASONS)
def test_refused_means_ordinary(reason: Refusal) -> None:
    with ready() as pair:
        offer = pair.offer(1)
        pair.take(offer)
        pair.client.refuse(offer, reason)
        assert pair.to_server() == [shm.ShmReply(1, 0, reason, 0, 0, b"")]
        assert pair.server.refusal == Refusal.explain(reason)
        assert not pair.server.has(1)
        assert not pair.server.undecided
        with pytest.raises(LocalProtocolError, match="not every offer was accepted"):
            pair.server.send(create_shm())
        pair.server_sends(create(), draw(), display.Mark())
        assert both(pair, State.ORDINARY)
        assert not pair.client.shared
        for message in (offer_of(2, handle=shm.HANDLE_FILE), shm.ShmWithdraw(1), damage(1)):
            with pytest.raises(LocalProtocolError):
                pair.server.send(message)


def test_unknown_reasons_are_refusals_too() -> None:
    with ready() as pair:
        pair.refuse(pair.offer(1), 200)
        assert pair.server.refusal == "reason 200"


def test_one_refusal_among_several_is_enough() -> None:
    for refused in (1, 2, 3):
        with ready() as pair:
            offers = [pair.offer(n) for n in (1, 2, 3)]
            for n, offer in enumerate(offers, 1):
                assert pair.server.undecided
                if n == refused:
                    pair.refuse(offer)
                else:
                    pair.accept(offer)
            assert not pair.server.undecided
            with pytest.raises(LocalProtocolError):
                pair.server.send(create_shm(2 if refused == 1 else 1))
            pair.server_sends(create())
            assert both(pair, State.ORDINARY)


def test_the_first_refusal_is_the_one_that_is_named() -> None:
    with ready() as pair:
        first, second = pair.offer(1), pair.offer(2)
        pair.refuse(first, Refusal.NOT_SEALED)
        pair.refuse(second, Refusal.TOO_SMALL)
        assert pair.server.refusal == Refusal.explain(Refusal.NOT_SEALED)


PROOFS = {
    "one bit": TOKEN[:-1] + bytes([TOKEN[-1] ^ 1]),
    "zero": bytes(32),
    "missing": b"",
    "half": TOKEN[:16],
    "one byte too many": TOKEN + b"\0",
    "twice": TOKEN * 2,
}


@pytest.mark.parametrize("proof", PROOFS.values(), ids=PROOFS.keys())
def test_wrong_proof_means_ordinary(proof: bytes) -> None:
    with ready() as pair:
        pair.accept(pair.offer(1), proof=proof)
        assert pair.server.refusal == "wrong proof"
        assert not pair.server.has(1)
        assert pair.server.credits == 0
        with pytest.raises(LocalProtocolError):
            pair.server.send(create_shm())
        pair.server_sends(create(), draw())
        assert both(pair, State.ORDINARY)


def test_refused_is_refused_even_with_the_right_proof() -> None:
    with ready() as pair:
        offer = pair.offer(1)
        pair.take(offer)
        pair.client_sends(shm.ShmReply(1, 0, 1, 200, 0, TOKEN))
        assert pair.server.refusal is not None
        assert pair.server.credits == 0


def test_a_client_that_refused_is_not_given_a_shared_surface() -> None:
    with ready() as pair:
        pair.accept(pair.offer(1))
        offer = pair.offer(2)
        pair.take(offer)
        pair.client.refuse(offer, Refusal.NOT_WANTED)
        with pytest.raises(RemoteProtocolError, match="not every offer was accepted"):
            pair.client.receive_data(framed(create_shm()))


BREACHES = {
    "not offered": (shm.ShmReply(7, 1, 0, 1, 0, TOKEN), "segment_id"),
    "refused what was not offered": (shm.ShmReply(7, 0, 1, 0, 0, b""), "segment_id"),
    "no credits": (shm.ShmReply(1, 1, 0, 0, 0, TOKEN), "credits"),
    "too many credits": (shm.ShmReply(1, 1, 0, 3, 0, TOKEN), "credits"),
    "nonce for a descriptor": (shm.ShmReply(1, 1, 0, 1, 0, TOKEN, bytes(32)), "nonce_size"),
    "nonce of another size": (shm.ShmReply(1, 1, 0, 1, 0, TOKEN, bytes(31)), "nonce_size"),
    "nonce with a refusal": (shm.ShmReply(1, 0, 1, 0, 0, b"", bytes(32)), "nonce_size"),
}


@pytest.mark.parametrize(("reply", "field"), BREACHES.values(), ids=BREACHES.keys())
def test_replies_that_are_breaches(reply: Message, field: str) -> None:
    with ready() as pair:
        pair.take(pair.offer(1))
        with pytest.raises(RemoteProtocolError) as caught:
            pair.server.receive_data(framed(reply))
        assert (caught.value.message, caught.value.field) == ("display.shm_reply", field)


def test_a_second_reply_is_a_breach() -> None:
    for accepted, reason in ((1, 0), (0, 1)):
        with ready() as pair:
            pair.accept(pair.offer(1))
            reply = shm.ShmReply(1, accepted, reason, accepted, 0, TOKEN)
            with pytest.raises(LocalProtocolError, match="nothing to answer"):
                pair.client.send(reply)
            with pytest.raises(RemoteProtocolError, match="answered already"):
                pair.server.receive_data(framed(reply))


def test_a_nonce_is_for_memory_that_is_no_descriptor() -> None:
    for handle in (shm.HANDLE_FILE, shm.HANDLE_IVSHMEM):
        for nonce in (b"", bytes(32)):
            with ready() as pair:
                pair.server.offer(offer_of(1, handle=handle), TOKEN, None)
                pair.to_client()
                pair.client_sends(shm.ShmReply(1, 1, 0, 1, 0, TOKEN, nonce))
                assert pair.server.has(1)


# What the client finds wrong with an offer


def changed(**values: Any) -> shm.ShmOffer:
    return dataclasses.replace(offer_of(1), **values)


FAULTS = {
    "magic": changed(magic=b"SHM2"),
    "version": changed(version=2),
    "credits 0": changed(credits=0),
    "credits 9": changed(credits=9),
    "size 0": changed(size=0),
    "size over 4 GiB": changed(size=(1 << 32) + 1),
    "token too small": changed(token_size=15),
    "token too large": changed(token_size=65),
    "token behind the end": changed(token_offset=SIZE - 31),
    "token that wraps": changed(token_offset=(1 << 64) - 32),
    "token absent from a file": changed(handle=2, token_size=0),
    "name of a descriptor": changed(name=b"a"),
    "name that is no text": changed(handle=2, name=b"\xff"),
    "name too long": changed(handle=2, name=b"a" * 4097),
}


@pytest.mark.parametrize(("what", "offer"), FAULTS.items(), ids=FAULTS.keys())
def test_faulty_offers_are_answered_not_breaches(what: str, offer: shm.ShmOffer) -> None:
    with ready() as pair:
        pair.server.offer(offer, TOKEN, a_descriptor() if offer.handle == 1 else None)
        [received] = pair.to_client()
        assert pair.client.fault(received) == what.split()[0]
        pair.take(received)
        pair.client.refuse(received, Refusal.MALFORMED)
        pair.to_server()
        assert pair.server.refusal == Refusal.explain(Refusal.MALFORMED)


GOOD = {
    "largest": changed(size=1 << 32),
    "least token": changed(token_size=16, token_offset=SIZE - 16),
    "largest token": changed(token_size=64, token_offset=0),
    "one credit": changed(credits=1),
    "eight credits": changed(credits=8),
    "flags that nobody knows": changed(flags=0xFF),
    "a file with a name": changed(handle=2, name="ä".encode()),
    "the longest name": changed(handle=2, name=b"a" * 4096),
    "a handle that nobody knows": changed(handle=77),
}


@pytest.mark.parametrize("offer", GOOD.values(), ids=GOOD.keys())
def test_offers_without_fault(offer: shm.ShmOffer) -> None:
    with ready() as pair:
        pair.server.offer(offer, TOKEN, a_descriptor() if offer.handle == 1 else None)
        [received] = pair.to_client()
        assert pair.client.fault(received) is None
        pair.take(received)


def test_other_credits_than_in_the_first_offer_are_a_fault() -> None:
    with ready() as pair:
        first = pair.offer(1, credits=3)
        pair.accept(first, credits=1)
        pair.server_sends(create_shm())
        pair.accept(pair.offer(2, credits=3), credits=3)
        pair.server_sends(shm.ShmWithdraw(1))
        third = pair.offer(3, credits=2)
        assert pair.client.fault(third) == "credits"
        pair.take(third)


class Foreign:
    """Bytes from a server that is none of ours, to a client of ours."""

    def __init__(self, state: State = State.READY) -> None:
        self.pair = at(state, answered=True)
        self.client = self.pair.client

    def offers(self, offer: shm.ShmOffer, gifts: int = 1) -> list[Message]:
        data = framed(offer)
        if offer.handle == shm.HANDLE_DESCRIPTOR:
            data += b"@"
        return self.client.receive_data(data, [a_descriptor() for _ in range(gifts)])

    def __enter__(self) -> Foreign:
        return self

    def __exit__(self, *_: object) -> None:
        self.pair.close()


@pytest.mark.parametrize("withdrawn", [False, True])
@pytest.mark.parametrize("answered", [False, True])
def test_a_segment_id_that_was_used_before_is_a_breach(withdrawn: bool, answered: bool) -> None:
    with Foreign() as foreign:
        client = foreign.client
        [first] = foreign.offers(offer_of(1))
        assert isinstance(first, shm.ShmOffer)
        if answered:
            foreign.pair.take(first)
            client.accept(first, TOKEN, 2)
        if withdrawn:
            client.receive_data(framed(shm.ShmWithdraw(1)))
        with pytest.raises(RemoteProtocolError, match="used before"):
            foreign.offers(offer_of(1))


def test_a_server_offers_no_segment_id_twice() -> None:
    with ready() as pair:
        pair.accept(pair.offer(1))
        pair.server_sends(shm.ShmWithdraw(1))
        gift = a_descriptor()
        with pytest.raises(LocalProtocolError, match="used before"):
            pair.server.offer(offer_of(1), TOKEN, gift)
        assert gift.closed


def test_ids_from_the_machine_are_always_new() -> None:
    server = ServerDisplay(shareable=True)
    ids = [server.next_segment_id() for _ in range(200)]
    assert len(set(ids)) == 200


def test_more_than_64_segments_are_a_fault() -> None:
    with Foreign() as foreign:
        client = foreign.client
        for n in range(MAX_SEGMENTS):
            [offer] = foreign.offers(offer_of(n))
            assert isinstance(offer, shm.ShmOffer)
            assert client.fault(offer) is None
            foreign.pair.take(offer)
            client.accept(offer, TOKEN, 2)
        for n in range(MAX_SEGMENTS, MAX_SEGMENTS + 10):
            [offer] = foreign.offers(offer_of(n))
            assert isinstance(offer, shm.ShmOffer)
            assert client.fault(offer) == "segment_id"
            assert foreign.pair.take(offer) == 1
            with pytest.raises(LocalProtocolError, match="nothing to answer"):
                client.accept(offer, TOKEN, 2)
            client.refuse(offer, Refusal.MALFORMED)
            with pytest.raises(LocalProtocolError, match="nothing to answer"):
                client.refuse(offer, Refusal.MALFORMED)
        assert len(client.segments) == MAX_SEGMENTS
        client.receive_data(framed(shm.ShmWithdraw(MAX_SEGMENTS)) + framed(shm.ShmWithdraw(1)))
        [offer] = foreign.offers(offer_of(1000))
        assert isinstance(offer, shm.ShmOffer)
        assert client.fault(offer) is None


def test_a_server_offers_no_more_than_64_segments() -> None:
    with ready() as pair:
        for n in range(MAX_SEGMENTS):
            pair.accept(pair.offer(n))
        with pytest.raises(LocalProtocolError, match="more than 64"):
            pair.offer(64)
        pair.server_sends(shm.ShmWithdraw(5))
        pair.accept(pair.offer(64))


def test_without_the_capability_there_are_no_offers() -> None:
    with ready(shareable=False) as pair:
        gift = a_descriptor()
        with pytest.raises(LocalProtocolError, match="does not know the extension"):
            pair.server.offer(offer_of(1), TOKEN, gift)
        assert gift.closed
        with pytest.raises(RemoteProtocolError, match="without the capability"):
            pair.client.receive_data(framed(offer_of(1)))


@pytest.mark.parametrize("handle", [1, 2, 3])
def test_an_offer_tells_whether_a_descriptor_follows(handle: int) -> None:
    with ready() as pair:
        gift = None if handle == 1 else a_descriptor()
        with pytest.raises(LocalProtocolError, match="handle"):
            pair.server.offer(offer_of(1, handle=handle), TOKEN, gift)
        assert gift is None or gift.closed
        assert pair.server.data_to_send() == []


# Nothing but base messages while replies are missing


def test_no_surface_before_the_last_reply() -> None:
    for message in (create(), create_shm()):
        with at(State.OFFERED) as pair:
            with pytest.raises(LocalProtocolError):
                pair.server.send(message)
            with pytest.raises(RemoteProtocolError):
                pair.client.receive_data(framed(message))


def test_base_messages_pass_meanwhile() -> None:
    with at(State.OFFERED) as pair:
        notify = base.Notify(0, 0, 0, 0, b"text")
        assert pair.server_sends(base.SetAck(1, 20), base.Ping(1, 2), notify)[-1] == notify
        assert pair.to_server() == [base.AckSync(1), base.Pong(1, 2)]
        assert both(pair, State.OFFERED)


# Later offers


def test_a_later_offer_holds_nothing_back() -> None:
    with ready() as pair:
        pair.share()
        later = pair.offer(2)
        pair.take(later)
        pair.server_sends(damage(1), display.SurfaceDestroy(0), create_shm())
        assert both(pair, State.SHARED)
        with pytest.raises(LocalProtocolError, match="not accepted"):
            pair.server.send(damage(2, segment_id=2))
        pair.client.accept(later, TOKEN, 2)
        pair.to_server()
        pair.server_sends(damage(2, segment_id=2))
        assert pair.client.leases == {1: 0, 2: 0}


def test_a_segment_counts_only_after_its_reply() -> None:
    for message in (damage(6, segment_id=2), create_shm(2)):
        state = State.SHARED if isinstance(message, shm.ShmDamage) else State.SHARED_EMPTY
        with at(state) as pair:
            with pytest.raises(LocalProtocolError, match="not accepted"):
                pair.server.send(message)
            with pytest.raises(RemoteProtocolError, match="not accepted"):
                pair.client.receive_data(framed(message))


@pytest.mark.parametrize("how", ["refused", "wrong proof"])
def test_a_later_refusal_turns_to_ordinary(how: str) -> None:
    with ready() as pair:
        pair.share()
        pair.server_sends(damage(1))
        later = pair.offer(2)
        if how == "refused":
            pair.refuse(later)
        else:
            pair.accept(later, proof=bytes(32))
        assert pair.server.refusal is not None
        pair.server_sends(display.SurfaceDestroy(0))
        with pytest.raises(LocalProtocolError, match="not every offer was accepted"):
            pair.server.send(create_shm())
        pair.server_sends(create(), draw(), display.Mark())
        assert both(pair, State.ORDINARY)
        # The lease goes on until it is handled, and ends then.
        assert pair.server.leases == pair.client.leases == {1: 0}
        pair.client.release(1)
        pair.to_server()
        assert pair.server.leases == {}


def test_an_offer_that_nobody_answers_changes_nothing() -> None:
    with at(State.SHARED) as pair:
        pair.client.release(5)
        pair.to_server()
        for serial in range(6, 100):
            pair.server_sends(damage(serial))
            pair.client.release(serial)
            pair.to_server()
        assert pair.server.undecided
        assert both(pair, State.SHARED)


def test_replies_still_come_after_the_turn_to_ordinary() -> None:
    for accepted in (True, False):
        with at(State.ORDINARY) as pair:
            offer = offer_of(2)
            if accepted:
                pair.client.accept(offer, TOKEN, 2)
            else:
                pair.client.refuse(offer, Refusal.OTHER)
            pair.to_server()
            assert both(pair, State.ORDINARY)
            assert not pair.server.undecided
            assert pair.client.segments == {}
            with pytest.raises(LocalProtocolError):
                pair.client.refuse(offer, Refusal.OTHER)


def test_shared_memory_is_not_given_up_without_a_reason() -> None:
    with ready() as pair:
        pair.share()
        pair.server_sends(display.SurfaceDestroy(0))
        with pytest.raises(RemoteProtocolError, match="shared memory mode"):
            pair.client.receive_data(framed(create()))


# SHM_WITHDRAW


@pytest.mark.parametrize("accepted", [True, False])
def test_withdrawn_before_its_reply(accepted: bool) -> None:
    """The two cross on the wire: the reply comes all the same, and is no breach."""
    with ready() as pair:
        pair.share()
        later = pair.offer(2)
        pair.take(later)
        pair.server_sends(shm.ShmWithdraw(2))
        assert pair.server.undecided
        if accepted:
            pair.client.accept(later, TOKEN, 2)
        else:
            pair.client.refuse(later, Refusal.TOO_SMALL)
        pair.to_server()
        assert not pair.server.undecided
        assert set(pair.server.segments) == set(pair.client.segments) == {1}
        assert (pair.server.refusal is None) is accepted
        with pytest.raises(LocalProtocolError, match="not accepted"):
            pair.server.send(damage(1, segment_id=2))
        with pytest.raises(RemoteProtocolError, match="not accepted"):
            pair.client.receive_data(framed(damage(1, segment_id=2)))


def test_withdrawn_after_its_reply() -> None:
    with at(State.SHARED) as pair:
        pair.server_sends(shm.ShmWithdraw(1))
        assert not pair.server.has(1)
        # The frame in it stays until it is handled.
        assert pair.server.leases == pair.client.leases == {5: 0}
        with pytest.raises(LocalProtocolError, match="not accepted"):
            pair.server.send(damage(6))
        pair.client.release(5)
        pair.to_server()
        with pytest.raises(RemoteProtocolError, match="not accepted"):
            pair.client.receive_data(framed(damage(6)))


def test_withdrawn_after_a_refusal() -> None:
    with ready() as pair:
        pair.refuse(pair.offer(1))
        pair.server_sends(shm.ShmWithdraw(1))
        assert pair.server.segments == pair.client.segments == {}


def test_withdrawn_twice_or_never_offered_is_a_breach() -> None:
    for ids in ((1, 1), (2, 2), (9,)):
        with at(State.SHARED) as pair:
            for segment_id in ids[:-1]:
                pair.server_sends(shm.ShmWithdraw(segment_id))
            with pytest.raises(LocalProtocolError, match="not in use"):
                pair.server.send(shm.ShmWithdraw(ids[-1]))
            with pytest.raises(RemoteProtocolError, match="not in use"):
                pair.client.receive_data(framed(shm.ShmWithdraw(ids[-1])))


# Leases, credits, serials


def test_a_mode_change_ends_no_lease() -> None:
    with ready() as pair:
        pair.share()
        pair.server_sends(damage(1), damage(2), display.SurfaceDestroy(0))
        assert pair.server.leases == pair.client.leases == {1: 0, 2: 0}
        pair.accept(pair.offer(2))
        pair.server_sends(create_shm(2), shm.ShmWithdraw(1))
        assert not pair.server.may_lend()
        with pytest.raises(LocalProtocolError, match="no credit"):
            pair.server.send(damage(3, segment_id=2))
        pair.client.release(1)
        pair.to_server()
        pair.server_sends(damage(3, segment_id=2), display.Mark())
        assert pair.server.leases == pair.client.leases == {2: 0, 3: 0}
        pair.client.release(2)
        pair.client.release(3)
        pair.to_server()
        assert pair.server.leases == {}


@pytest.mark.parametrize("credits", range(1, 9))
def test_no_more_frames_than_credits(credits: int) -> None:
    with ready() as pair:
        pair.accept(pair.offer(1, credits=8), credits=credits)
        pair.server_sends(create_shm())
        for serial in range(credits):
            assert pair.server.may_lend()
            pair.server_sends(damage(serial))
        assert not pair.server.may_lend()
        with pytest.raises(LocalProtocolError, match="no credit"):
            pair.server.send(damage(99))
        with pytest.raises(RemoteProtocolError, match=f"more than {credits} frames"):
            pair.client.receive_data(framed(damage(99)))


def test_the_window_is_a_second_limit() -> None:
    with ready() as pair:
        pair.share()
        pair.server_sends(base.SetAck(1, 1))
        pair.server_sends(display.Mark(), display.Mark(), display.Mark())
        assert not pair.server.may_lend()
        pair.to_server()
        assert pair.server.may_lend()


def test_handled_ends_exactly_one_lease() -> None:
    with ready() as pair:
        pair.accept(pair.offer(1, credits=8), credits=8)
        pair.server_sends(create_shm(), *(damage(n) for n in range(8)))
        for n in (3, 0, 7, 5, 1, 2, 6, 4):
            pair.client.release(n)
            assert pair.to_server() == [shm.ShmDamageHandled(0, n)]
            assert n not in pair.server.leases
        assert pair.server.leases == {}


HANDLED = {
    "twice": shm.ShmDamageHandled(0, 4),
    "never sent": shm.ShmDamageHandled(0, 7),
    "another surface": shm.ShmDamageHandled(1, 5),
    "largest": shm.ShmDamageHandled(0, (1 << 64) - 1),
}


@pytest.mark.parametrize("handled", HANDLED.values(), ids=HANDLED.keys())
def test_a_lease_that_is_not_out_is_a_breach(handled: shm.ShmDamageHandled) -> None:
    with ready() as pair:
        pair.share()
        pair.server_sends(damage(4), damage(5))
        pair.client.release(4)
        pair.to_server()
        if handled.surface_id == 0:
            with pytest.raises(LocalProtocolError, match="not held"):
                pair.client.release(handled.serial)
        with pytest.raises(RemoteProtocolError) as caught:
            pair.server.receive_data(framed(handled))
        assert caught.value.message == "display.shm_damage_handled"
        assert pair.server.leases == {5: 0}


def test_serials_rise_across_surfaces() -> None:
    with ready() as pair:
        pair.share()
        pair.server_sends(damage(10))
        for serial in (10, 9, 0):
            with pytest.raises(LocalProtocolError, match="does not rise"):
                pair.server.send(damage(serial))
        pair.server_sends(display.SurfaceDestroy(0), create_shm())
        for serial in (10, 9, 0):
            with pytest.raises(LocalProtocolError, match="does not rise"):
                pair.server.send(damage(serial))
            assert pair.server.leases == {10: 0}
        with pytest.raises(RemoteProtocolError, match="does not rise"):
            pair.client.receive_data(framed(damage(10)))


def test_serials_may_begin_at_0_and_end_at_the_largest() -> None:
    with ready() as pair:
        pair.share()
        pair.server_sends(damage(0), damage((1 << 64) - 1))
        assert set(pair.client.leases) == {0, (1 << 64) - 1}


# Places


LAST = SIZE - len(TOKEN) - BUFFER
"""The last place for a buffer: behind it is the token."""

PLACES = [1, 2, 3, LAST - 1, LAST + 4, SIZE - BUFFER, SIZE, 1 << 32]
PLACES += [(1 << 64) - BUFFER, (1 << 64) - 4, (1 << 64) - 1]


def test_places_up_to_the_last_byte() -> None:
    with at(State.OFFERED, answered=True) as pair:
        pair.server_sends(create_shm(offset=LAST), damage(1, offset=LAST), damage(2, offset=0))
        assert pair.client.leases == {1: 0, 2: 0}


@pytest.mark.parametrize("offset", PLACES)
def test_places_that_are_none(offset: int) -> None:
    with at(State.SHARED) as pair, pytest.raises(RemoteProtocolError, match="shm_offset"):
        pair.client.receive_data(framed(damage(6, offset=offset)))


def token_in_the_middle() -> DisplayPair:
    """A segment whose token lies behind the place of two buffers."""
    pair = ready()
    pair.server.offer(changed(token_offset=2 * BUFFER), TOKEN, a_descriptor())
    [received] = pair.to_client()
    assert isinstance(received, shm.ShmOffer)
    pair.accept(received)
    pair.server_sends(create_shm(offset=BUFFER))
    return pair


@pytest.mark.parametrize("offset", [BUFFER + 4, 2 * BUFFER - 4, 2 * BUFFER, 2 * BUFFER + 28])
def test_no_buffer_touches_the_token(offset: int) -> None:
    with token_in_the_middle() as pair, pytest.raises(RemoteProtocolError, match="token"):
        pair.client.receive_data(framed(damage(1, offset=offset)))


def test_buffers_on_both_sides_of_the_token() -> None:
    with token_in_the_middle() as pair:
        pair.server_sends(damage(1, offset=2 * BUFFER + 32), damage(2, offset=BUFFER))
        assert pair.client.leases == {1: 0, 2: 0}


OUTSIDE = [
    (-1, 0, 1, 1),
    (0, -1, 1, 1),
    (0, 0, HEIGHT + 1, WIDTH),
    (0, 0, HEIGHT, WIDTH + 1),
    (5, 5, 5, 6),
    (5, 5, 6, 5),
    (6, 5, 5, 6),
    (5, 6, 6, 5),
    (HEIGHT, WIDTH, HEIGHT + 1, WIDTH + 1),
    (-(1 << 31), 0, (1 << 31) - 1, 1),
]


@pytest.mark.parametrize("rect", OUTSIDE)
@pytest.mark.parametrize("place", [0, 1, 63])
def test_rectangles_lie_inside_the_surface(rect: tuple[int, int, int, int], place: int) -> None:
    rects = [(0, 0, 1, 1)] * place + [rect]
    with at(State.SHARED) as pair, pytest.raises(RemoteProtocolError, match="rects"):
        pair.client.receive_data(framed(damage(6, *rects)))


def test_rectangles_up_to_the_edges() -> None:
    with at(State.SHARED) as pair:
        corners = [(0, 0, 1, 1), (HEIGHT - 1, WIDTH - 1, HEIGHT, WIDTH)]
        pair.server_sends(damage(6, *corners, (0, 0, HEIGHT, WIDTH), *corners * 30))
        assert 6 in pair.client.leases


@pytest.mark.parametrize("surface_id", [1, 3, 0xFFFFFFFF])
def test_damage_names_the_surface_that_exists(surface_id: int) -> None:
    with at(State.SHARED) as pair:
        with pytest.raises(LocalProtocolError, match="surface_id"):
            pair.server.send(damage(6, surface_id=surface_id))
        with pytest.raises(RemoteProtocolError, match="surface_id"):
            pair.client.receive_data(framed(damage(6, surface_id=surface_id)))


def surface(**values: Any) -> Message:
    message = create_shm()
    assert isinstance(message, shm.SurfaceCreateShm)
    return dataclasses.replace(message, **values)


CREATES = {
    "surface 1": (surface(surface_id=1), "surface_id"),
    "no such segment": (surface(segment_id=9), "segment_id"),
    "stride below the width": (surface(stride=WIDTH * 4 - 4), "stride"),
    "stride 0": (surface(stride=0), "stride"),
    "stride no multiple of 4": (surface(stride=STRIDE + 2), "stride"),
    "stride that leaves the segment": (surface(stride=STRIDE * 8), "shm_offset"),
    "offset no multiple of 4": (surface(shm_offset=2), "shm_offset"),
    "offset behind the end": (surface(shm_offset=SIZE), "shm_offset"),
    "offset that wraps": (surface(shm_offset=(1 << 64) - 4), "shm_offset"),
    "in place": (surface(mode=shm.MODE_IN_PLACE), "mode"),
}


@pytest.mark.parametrize(("message", "field"), CREATES.values(), ids=CREATES.keys())
def test_surfaces_that_are_breaches(message: Message, field: str) -> None:
    with at(State.OFFERED, answered=True) as pair:
        with pytest.raises(RemoteProtocolError) as caught:
            pair.client.receive_data(framed(message))
        assert (caught.value.message, caught.value.field) == ("display.surface_create_shm", field)


def test_surfaces_with_room_between_the_lines() -> None:
    with at(State.OFFERED, answered=True) as pair:
        pair.server_sends(surface(stride=STRIDE + 4, format=96))
        assert pair.client.surface is not None
        assert pair.client.surface.size == (STRIDE + 4) * HEIGHT


@pytest.mark.parametrize(
    "message", [create_shm(), create(), create(4), display.SurfaceDestroy(1), draw()], ids=str
)
def test_surface_0_is_alone_in_shared_memory_mode(message: Message) -> None:
    with at(State.SHARED) as pair:
        with pytest.raises(LocalProtocolError):
            pair.server.send(message)
        with pytest.raises(RemoteProtocolError):
            pair.client.receive_data(framed(message))


# The quick way and the one by the table


PLACES = st.sampled_from([0, 4, 8192, SIZE - 4])
SERIALS = st.integers(4, 9)


@st.composite
def from_the_server(choose: st.DrawFn) -> bytes:
    """A message that may come in shared memory mode, or something like it."""
    rect = choose(st.sampled_from([(0, 0, HEIGHT, WIDTH), (1, 2, 3, 4), (0, 0, 0, 0)]))
    segment = choose(st.sampled_from([1, 1, 1, 2]))
    new = damage(choose(SERIALS), rect, segment_id=segment, offset=choose(PLACES))
    other = st.sampled_from([new, display.Mark(), base.SetAck(7, 2), base.Ping(1, 2)])
    if choose(st.booleans()):
        return framed(new)
    return choose(st.one_of(other.map(framed), st.binary(min_size=6, max_size=8)))


@st.composite
def from_the_client(choose: st.DrawFn) -> bytes:
    handled = framed(shm.ShmDamageHandled(choose(st.sampled_from([0, 0, 0, 1])), choose(SERIALS)))
    if choose(st.booleans()):
        return handled
    return choose(st.sampled_from([framed(base.Ack()), framed(base.Pong(1, 2)), handled[:9]]))


def what_becomes(machine: ClientDisplay | ServerDisplay, parts: list[bytes]) -> list[object]:
    """All that can be seen of a machine that reads these."""
    seen: list[object] = []
    try:
        for part in parts:
            seen.append([str(message) for message in machine.receive_data(part)])
    except RemoteProtocolError as error:
        seen.append(str(error))
    out = [part.data for part in machine.data_to_send()]
    return [*seen, out, machine.leases, machine.state, machine.acks.delivered, machine.acks.sent]


@settings(max_examples=300)
@given(messages=st.lists(from_the_server(), max_size=6), cuts=st.lists(st.integers(0, 400)))
def test_what_a_client_reads_quickly_is_what_it_reads(
    messages: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(messages)
    parts = [part for part, _ in pieces(data, sorted(cut for cut in cuts if cut < len(data)), {})]
    quick, slow = at(State.SHARED), at(State.SHARED)
    slow.client._tracing = True
    assert what_becomes(quick.client, parts) == what_becomes(slow.client, parts)


@settings(max_examples=300)
@given(messages=st.lists(from_the_client(), max_size=6), cuts=st.lists(st.integers(0, 200)))
def test_what_a_server_reads_quickly_is_what_it_reads(
    messages: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(messages)
    parts = [part for part, _ in pieces(data, sorted(cut for cut in cuts if cut < len(data)), {})]
    quick, slow = at(State.SHARED), at(State.SHARED)
    for pair in (quick, slow):
        pair.server_sends(damage(6))
    slow.server._tracing = True
    assert what_becomes(quick.server, parts) == what_becomes(slow.server, parts)


@pytest.mark.parametrize("mini", [True, False])
@pytest.mark.parametrize("state", [State.SHARED, State.SHARED_EMPTY, State.ORDINARY])
@pytest.mark.parametrize(("segment", "serial"), [(1, 6), (1, 5), (2, 6)])
def test_what_a_server_lends_quickly_is_what_it_sends(
    mini: bool, state: State, segment: int, serial: int
) -> None:
    new = damage(serial, (1, 2, 3, 4), (5, 6, 7, 8), segment_id=segment, offset=8192)
    quick, slow = at(state, mini=mini).server, at(state, mini=mini).server

    def lend() -> None:
        quick.lend(segment, 8192, serial, 0, 0, new.rects.tolist())

    for _ in range(3):  # there is one credit left
        told = []
        for way in (lend, lambda: slow.send(new)):
            try:
                way()
                told.append("sent")
            except LocalProtocolError as error:
                told.append(str(error))
        assert told[0] == told[1]
        assert what_becomes(quick, []) == what_becomes(slow, [])


@pytest.mark.parametrize("mini", [True, False])
@pytest.mark.parametrize("state", [State.READY, State.SHARED, State.ORDINARY])
@pytest.mark.parametrize("size", [(1, 1), (200, 100)])
@pytest.mark.parametrize("kind", [types.ImageType.BITMAP, types.ImageType.LZ4])
def test_what_a_server_draws_quickly_is_what_it_sends(
    mini: bool, state: State, size: tuple[int, int], kind: types.ImageType
) -> None:
    """Also where the pixels are many and are not joined to what comes before them."""
    width, height = size
    data = bytes(range(4)) * (width * height)
    raw = display.Bitmap(8, 4, width, height, width * 4, data)
    content = display.ImageData(data) if kind else raw
    image = display.Image(0, kind, 0, width, height, content)
    box, area = types.Rect(7, 9, 7 + height, 9 + width), types.Rect(0, 0, height, width)
    copy = display.DrawCopy(0, box, None, area, display.ROP_PUT, 0, display.NO_MASK, image)
    told, became = [], []
    for quick, tracing in ((True, False), (True, True), (False, False)):
        server = at(state, mini=mini).server
        server._tracing = tracing
        server.send(base.Ping(1, 2))
        try:
            if quick:
                server.draw((7, 9, 7 + height, 9 + width), kind, memoryview(data))
            else:
                server.send(copy)
            told.append("sent")
        except LocalProtocolError as error:
            told.append(str(error))
        [*rest, out, leases, state_now, delivered, sent] = what_becomes(server, [])
        became.append((rest, b"".join(out), leases, state_now, delivered, sent))
    assert told[0] == told[1] == told[2]
    assert became[0] == became[1] == became[2]


# Descriptors


def pieces(data: bytes, cuts: list[int], gifts: dict[int, int]) -> list[tuple[bytes, int]]:
    """``data`` cut in pieces, with how many descriptors come with each: ``gifts`` by byte."""
    edges = [0, *cuts, len(data)]
    return [
        (data[a:b], sum(n for place, n in gifts.items() if a <= place < b))
        for a, b in pairwise(edges)
        if a < b
    ]


def read(client: ClientDisplay, parts: list[tuple[bytes, int]]) -> list[Message]:
    messages: list[Message] = []
    for data, gifts in parts:
        messages += client.receive_data(data, [a_descriptor() for _ in range(gifts)])
    return messages


def fresh(mini: bool = True) -> ClientDisplay:
    client = ClientDisplay(mini=mini, shareable=True)
    client.send(INIT)
    return client


@pytest.mark.parametrize("mini", [True, False])
def test_a_descriptor_at_any_byte_and_a_cut_at_any_byte(mini: bool) -> None:
    data = framed(offer_of(1), mini=mini) + b"@"
    for place in range(len(data)):
        for cut in range(len(data)):
            with no_descriptor_left():
                client = fresh(mini)
                assert read(client, pieces(data, [cut], {place: 1})) == [offer_of(1)]
                [descriptor] = client.take_descriptors(1)
                descriptor.close()
                client.close()


def test_a_descriptor_at_any_byte_and_every_byte_a_read() -> None:
    data = framed(offer_of(1)) + b"@" + framed(base.Ping(1, 2))
    for place in range(47):
        with no_descriptor_left():
            client = fresh()
            parts = pieces(data, list(range(len(data))), {place: 1})
            assert read(client, parts) == [offer_of(1), base.Ping(1, 2)]
            [descriptor] = client.take_descriptors(1)
            descriptor.close()


def test_reads_that_bring_more_than_the_offer() -> None:
    """What stands before it is read with it; the byte with the descriptor ends the read."""
    before, offer = framed(base.Ping(1, 2)) + framed(display.Mark()), framed(offer_of(1)) + b"@"
    for cut in range(len(before + offer)):
        with no_descriptor_left():
            client = fresh()
            parts = pieces(before + offer, [cut], {len(before + offer) - 1: 1})
            assert read(client, parts)[-1] == offer_of(1)
            [descriptor] = client.take_descriptors(1)
            descriptor.close()


@pytest.mark.parametrize("cut", [0, 3, 20, 46])
def test_no_descriptor(cut: int) -> None:
    client = fresh()
    assert read(client, pieces(framed(offer_of(1)) + b"@", [cut], {})) == [offer_of(1)]
    assert client.take_descriptors(1) == ()


@pytest.mark.parametrize("gifts", [{46: 2}, {0: 1, 46: 1}, {10: 1, 11: 1}, {0: 1, 1: 1, 46: 1}])
def test_two_descriptors_or_more(gifts: dict[int, int]) -> None:
    data = framed(offer_of(1)) + b"@"
    with no_descriptor_left():
        client = fresh()
        assert read(client, pieces(data, list(range(47)), gifts)) == [offer_of(1)]
        descriptors = client.take_descriptors(1)
        assert len(descriptors) == 2
        assert client.take_descriptors(1) == ()
        for descriptor in descriptors:
            descriptor.close()


def test_a_flood_of_descriptors_is_closed_as_it_comes() -> None:
    """README.md, section 16: one is kept, here two, for two are known to be too many."""
    name = b"n" * 4000
    data = framed(changed(handle=1, name=name)) + b"@"
    client = fresh()
    before = descriptors_open()
    for byte in data[:-1]:
        client.receive_data(bytes([byte]), [a_descriptor() for _ in range(3)])
        assert descriptors_open() <= before + 2
    client.close()
    assert descriptors_open() == before


@pytest.mark.parametrize("byte", [b"A", b"\0", b"\xcc"])
@pytest.mark.parametrize("split", [True, False])
def test_another_byte_than_at_is_a_breach(byte: bytes, split: bool) -> None:
    with no_descriptor_left():
        client = fresh()
        data = framed(offer_of(1)) + byte
        with pytest.raises(RemoteProtocolError, match="descriptor"):
            read(client, pieces(data, [46] if split else [], {46: 1}))
        client.close()


def test_only_the_byte_is_awaited_behind_an_offer() -> None:
    client = fresh()
    for at_byte, byte in enumerate(framed(offer_of(1)) + b"@"):
        assert client.awaits_descriptor == (at_byte == 46)
        client.receive_data(bytes([byte]))
    assert not client.awaits_descriptor
    client.receive_data(framed(offer_of(2, handle=shm.HANDLE_FILE)))
    assert not client.awaits_descriptor


@pytest.mark.parametrize("chunk", [None, 1, 2, 7, 46, 47, 48, 100])
def test_offers_back_to_back(chunk: int | None) -> None:
    with DisplayPair(chunk=chunk) as pair:
        pair.init()
        gifts = [a_descriptor() for _ in range(5)]
        numbers = [gift.fileno() for gift in gifts]
        for n, gift in enumerate(gifts):
            pair.server.offer(offer_of(n), TOKEN, gift)
        assert pair.to_client() == [offer_of(n) for n in range(5)]
        # Each offer has its own, whatever the reads were.
        for n, number in enumerate(numbers):
            [descriptor] = pair.client.take_descriptors(n)
            assert descriptor.fileno() == number
            descriptor.close()


@pytest.mark.parametrize("handle", [2, 3, 9])
def test_other_handles_have_no_byte_and_keep_no_descriptor(handle: int) -> None:
    client = fresh()
    data = framed(offer_of(1, handle=handle)) + framed(base.Ping(1, 2))
    with no_descriptor_left():
        assert read(client, [(data, 1)]) == [offer_of(1, handle=handle), base.Ping(1, 2)]
        assert client.take_descriptors(1) == ()


@pytest.mark.parametrize("tail", [b"", framed(base.Ping(1, 2))[:5], framed(base.Ping(1, 2))[:10]])
def test_descriptors_elsewhere_are_closed(tail: bytes) -> None:
    """Those whose byte may still turn out to be an offer's are kept until that is known."""
    with no_descriptor_left():
        client = fresh()
        client.receive_data(framed(display.Mark()) + tail, [a_descriptor()])
        if tail:
            client.receive_data(framed(base.Ping(1, 2))[len(tail) :])
        assert read(client, [(framed(offer_of(1)) + b"@", 0)]) == [offer_of(1)]
        assert client.take_descriptors(1) == ()


@pytest.mark.parametrize("cut", range(48))
def test_closed_midway(cut: int) -> None:
    """A machine that is closed in the middle of anything leaves nothing open."""
    data = framed(offer_of(1)) + b"@"
    for place in range(cut):
        with no_descriptor_left():
            client = fresh()
            read(client, pieces(data[:cut], [place], {place: 1}))
            client.close()


def test_raised_midway() -> None:
    """So does one that found a breach, wherever the descriptors were at that time."""
    good, bad = framed(offer_of(1)) + b"@", framed(damage(1))
    for data, places in ((good + bad, range(47)), (bad, range(3)), (good[:-1] + b"A", range(47))):
        for place in places:
            with no_descriptor_left():
                client = fresh()
                with pytest.raises(RemoteProtocolError):
                    read(client, pieces(data, [place], {place: 2}))
                client.close()


def test_offers_that_nobody_took_are_closed() -> None:
    with no_descriptor_left():
        client = fresh()
        for n in range(3):
            client.receive_data(framed(offer_of(n)) + b"@", [a_descriptor()])
        client.close()
        client.close()


def test_what_lies_on_the_wire_is_closed_with_the_pair() -> None:
    with no_descriptor_left():
        with ready() as pair:
            pair.server.offer(offer_of(1), TOKEN, a_descriptor())
            pair.flush()
            pair.server.offer(offer_of(2), TOKEN, a_descriptor())


@pytest.mark.parametrize("chunk", [None, 1, 3, 50])
@pytest.mark.parametrize("mini", [True, False])
@pytest.mark.parametrize("state", TABLES["display"])
def test_any_state_in_any_pieces(state: State, mini: bool, chunk: int | None) -> None:
    with at(state, mini=mini, chunk=chunk) as pair:
        assert both(pair, state)
        assert pair.server.leases == pair.client.leases


# Random legal actions


SELDOM = st.sampled_from([False, False, False, True])
"""For what would otherwise keep a run from getting anywhere."""


class Conversation(RuleBasedStateMachine):
    """Both ends do what they may, in any order, while bytes of any number are under way."""

    SEGMENTS = 8

    def __init__(self) -> None:
        super().__init__()
        self.descriptors = descriptors_open()
        self.to_answer: list[shm.ShmOffer] = []
        self.generation = 0
        self.off_screen = 10

    @initialize(
        mini=st.booleans(),
        shareable=st.sampled_from([True, True, True, True, False]),
        state=st.sampled_from([*TABLES["display"], *[State.OFFERED, State.SHARED] * 3]),
        answered=st.booleans(),
    )
    def join(self, mini: bool, shareable: bool, state: State, answered: bool) -> None:
        if not shareable and state is not State.START:
            state = State.READY
        self.pair = at(state, mini=mini, shareable=shareable, answered=answered)
        self.server, self.client = self.pair.server, self.pair.client
        self.to_answer = [
            offer_of(n) for n, s in self.client.segments.items() if s.accepted is None
        ]
        while self.server.next_segment_id() < 2:
            pass  # these `at` has used
        self.serial = 5
        self.both_agree()

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.pair.close()
        assert descriptors_open() == self.descriptors

    # The wires

    @rule(most=st.integers(1, 120))
    def some_bytes_reach_the_client(self, most: int) -> None:
        self.pair.flush()
        data, descriptors = self.pair.down.read(most)
        self.heard(self.client.receive_data(data, descriptors))

    @rule(most=st.integers(1, 60))
    def some_bytes_reach_the_server(self, most: int) -> None:
        self.pair.flush()
        self.server.receive_data(*self.pair.up.read(most))

    @rule()
    def everything_arrives_too(self) -> None:
        """The same once more, for that it comes up often enough."""
        self.everything_arrives()

    @rule()
    def everything_arrives(self) -> None:
        self.pair.flush()
        while self.pair.down or self.pair.up:
            while self.pair.down:
                self.heard(self.client.receive_data(*self.pair.down.read()))
            while self.pair.up:
                self.server.receive_data(*self.pair.up.read())
            self.pair.flush()
        self.both_agree()

    def heard(self, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, shm.ShmOffer):
                assert self.client.fault(message) is None
                assert self.pair.take(message) == (message.handle == 1)
                self.to_answer.append(message)

    def both_agree(self) -> None:
        """With nothing under way there is but one view of the connection."""
        server, client = self.server, self.client
        assert server.state is client.state
        assert server.leases == client.leases
        assert server.surfaces == client.surfaces
        assert server.shared == client.shared == (client.state.name.startswith("SHARED"))
        assert (client.surface is not None) == (client.state is State.SHARED)
        waiting = {offer.segment_id for offer in self.to_answer}
        assert {n for n, s in client.segments.items() if s.accepted is None} == waiting
        assert {n for n, s in server.segments.items() if s.accepted is None} == waiting
        for n, segment in server.segments.items():
            if segment.accepted and client.state not in (State.ORDINARY, State.ORDINARY_EMPTY):
                assert client.segments[n].accepted
                assert client.segments[n].withdrawn == segment.withdrawn

    # The client

    @precondition(lambda self: self.client.state is State.START and not self.pair.up)
    @rule()
    def init(self) -> None:
        self.client.send(INIT)

    @rule()
    def prefer(self) -> None:
        self.client.send(display.PreferredCompression(1))

    @precondition(lambda self: bool(self.to_answer))
    @rule(
        how=st.sampled_from(["accept"] * 6 + ["refuse", "wrong proof"]),
        credits=st.integers(1, 2),
        reason=st.sampled_from(REASONS),
    )
    def answer(self, how: str, credits: int, reason: Refusal) -> None:
        offer = self.to_answer.pop(0)
        if how == "refuse":
            self.client.refuse(offer, reason)
        else:
            self.client.accept(offer, TOKEN if how == "accept" else bytes(32), credits)

    @precondition(lambda self: bool(self.client.leases))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.client.release(data.draw(st.sampled_from(sorted(self.client.leases))))

    # The server

    def may_send(self, *states: State) -> bool:
        return self.server.ready and self.server.acks.open and self.server.state in states

    @precondition(lambda self: self.server.acks.open)
    @rule(window=st.integers(0, 4))
    def set_ack(self, window: int) -> None:
        self.generation += 1
        self.server.send(base.SetAck(self.generation, window))

    @precondition(lambda self: self.server.acks.open)
    @rule(padding=st.integers(0, 30))
    def ping(self, padding: int) -> None:
        self.server.send(base.Ping(1, 2, bytes(padding)))

    @precondition(
        lambda self: (
            self.may_send(State.READY, State.OFFERED, State.SHARED, State.SHARED_EMPTY)
            and self.server.shareable
            and len(self.server.segments) < self.SEGMENTS
        )
    )
    @rule(handle=st.sampled_from([1, 1, 2, 3]))
    def offer(self, handle: int) -> None:
        offer = offer_of(self.server.next_segment_id(), credits=2, handle=handle)
        self.server.offer(offer, TOKEN, a_descriptor() if handle == 1 else None)

    @precondition(lambda self: bool(self.withdrawable()))
    @rule(data=st.data(), sure=SELDOM)
    def withdraw(self, data: st.DataObject, sure: bool) -> None:
        if sure:
            self.server.send(shm.ShmWithdraw(data.draw(st.sampled_from(self.withdrawable()))))

    def withdrawable(self) -> list[int]:
        if not self.may_send(State.OFFERED, State.SHARED, State.SHARED_EMPTY):
            return []
        return [n for n, segment in self.server.segments.items() if not segment.withdrawn]

    def usable(self) -> list[int]:
        return [n for n in self.server.segments if self.server.has(n)]

    @precondition(
        lambda self: (
            self.usable()
            and self.server.refusal is None
            and (
                self.may_send(State.SHARED_EMPTY)
                or (self.may_send(State.OFFERED) and not self.server.undecided)
            )
        )
    )
    @rule(data=st.data(), offset=st.integers(0, 100), gap=st.integers(0, 3))
    def make_shared_surface(self, data: st.DataObject, offset: int, gap: int) -> None:
        segment_id = data.draw(st.sampled_from(self.usable()))
        self.server.send(create_shm(segment_id, offset=4 * offset, stride=STRIDE + 4 * gap))

    @precondition(
        lambda self: self.may_send(State.SHARED) and self.usable() and self.server.may_lend()
    )
    @rule(
        data=st.data(),
        offset=st.integers(0, 100),
        skip=st.integers(1, 3),
        top=st.integers(0, HEIGHT - 1),
        left=st.integers(0, WIDTH - 1),
    )
    def lend(self, data: st.DataObject, offset: int, skip: int, top: int, left: int) -> None:
        self.serial += skip
        segment_id = data.draw(st.sampled_from(self.usable()))
        rect = (top, left, HEIGHT, WIDTH)
        self.server.send(damage(self.serial, rect, segment_id=segment_id, offset=4 * offset))

    @precondition(lambda self: self.may_send(State.SHARED, State.ORDINARY))
    @rule(sure=SELDOM)
    def destroy_surface(self, sure: bool) -> None:
        if sure:
            self.server.send(display.SurfaceDestroy(0))

    @precondition(
        lambda self: (
            self.may_send(State.READY, State.ORDINARY_EMPTY)
            or (self.may_send(State.OFFERED) and not self.server.undecided)
            or (self.may_send(State.SHARED_EMPTY) and self.server.refusal is not None)
        )
    )
    @rule()
    def make_ordinary_surface(self) -> None:
        self.server.send(create())

    @precondition(
        lambda self: (
            self.may_send(State.ORDINARY, State.ORDINARY_EMPTY) and len(self.server.surfaces) < 15
        )
    )
    @rule()
    def make_off_screen_surface(self) -> None:
        self.off_screen += 1
        self.server.send(create(self.off_screen))

    @precondition(lambda self: self.may_send(State.ORDINARY, State.ORDINARY_EMPTY))
    @rule(data=st.data(), gone=st.booleans())
    def draw_or_destroy_any_surface(self, data: st.DataObject, gone: bool) -> None:
        if self.server.surfaces:
            surface_id = data.draw(st.sampled_from(sorted(self.server.surfaces)))
            self.server.send(display.SurfaceDestroy(surface_id) if gone else draw(surface_id))

    @precondition(
        lambda self: self.may_send(*(s for s in State if s not in (State.START, State.OFFERED)))
    )
    @rule(message=st.sampled_from([display.Mark(), display.Reset(), display.MonitorsConfig(1, ())]))
    def tell(self, message: Message) -> None:
        self.server.send(message)

    # Always

    @invariant()
    def leases_of_the_client_are_leases_of_the_server(self) -> None:
        if hasattr(self, "pair"):
            assert self.client.leases.items() <= self.server.leases.items()
            assert len(self.server.leases) <= max(self.server.credits, 0)


Conversation.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=70,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestRandomLegalActions = Conversation.TestCase
