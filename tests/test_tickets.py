"""What guessing costs, reckoned without waiting for it."""

from __future__ import annotations

import pytest

from spiceshm.server.tickets import FORGET_S, LONGEST_S, MAX_HOSTS, WrongTickets


def wrong(tickets: WrongTickets, times: int, host: str = "thief", now: float = 0.0) -> list[float]:
    return [tickets.judge(host, right=False, now=now) for _ in range(times)]


def test_each_wrong_ticket_makes_the_next_verdict_slower_up_to_a_limit() -> None:
    waits = wrong(WrongTickets(), 100)
    assert waits[:6] == [0, 0.1, 0.2, 0.4, 0.8, 0.8]
    assert set(waits[6:]) == {LONGEST_S}


@pytest.mark.parametrize("times", range(8))
def test_the_wait_does_not_tell_what_the_verdict_is(times: int) -> None:
    guessed, known = WrongTickets(), WrongTickets()
    wrong(guessed, times)
    wrong(known, times)
    assert guessed.judge("thief", right=False, now=1) == known.judge("thief", right=True, now=1)


def test_others_do_not_wait() -> None:
    tickets = WrongTickets()
    wrong(tickets, 9)
    assert tickets.judge("owner", right=True, now=0) == 0
    assert wrong(tickets, 1) == [LONGEST_S]


def test_who_was_right_begins_anew() -> None:
    tickets = WrongTickets()
    wrong(tickets, 9)
    assert tickets.judge("thief", right=True, now=0) == LONGEST_S
    assert tickets.judge("thief", right=True, now=0) == 0
    assert len(tickets) == 0
    assert wrong(tickets, 2) == [0, 0.1]


def test_it_is_forgotten_after_a_while_without_another() -> None:
    tickets = WrongTickets()
    wrong(tickets, 3)
    assert wrong(tickets, 1, now=FORGET_S - 1) == [0.4]
    assert wrong(tickets, 1, now=2 * FORGET_S - 2) == [LONGEST_S]  # after the last, not the first
    assert wrong(tickets, 2, now=3 * FORGET_S - 2) == [0, 0.1]


def test_the_table_is_bounded_and_keeps_the_newest() -> None:
    tickets = WrongTickets()
    for number in range(MAX_HOSTS + 1):
        wrong(tickets, 1, str(number))
        wrong(tickets, 1, "busy")
    assert len(tickets) == MAX_HOSTS
    assert wrong(tickets, 1, "busy") == [LONGEST_S]
    assert wrong(tickets, 1, str(MAX_HOSTS)) == [0.1]
    assert wrong(tickets, 1, "0") == [0]
