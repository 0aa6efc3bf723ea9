"""The agent that the server plays for a client: what it hears, what it says, and what it breaks on.

Messages are cut in every way that the protocol allows, and fed whole, byte by byte, and with the
next one behind them, through main's machine.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiceshm.errors import LocalProtocolError, RemoteProtocolError
from spiceshm.protocol import AGENT_TOKENS, Channel, ClientAgent, ServerAgent, Wish
from spiceshm.protocol.agent import TOKENS_BACK, FromClient
from spiceshm.wire import Message, Sender, agent, main
from spiceshm.wire.main import AgentData, AgentToken, ClientAgentData
from tests.pair import framed

ALL = 0xFFFFFFFF
SPICY = agent.AnnounceCapabilities(1, (0x00035077,))
"""What spicy 0.42 announces; bit 2 is that it knows replies."""
DEAF = agent.AnnounceCapabilities(1, (0x00035073,))
OURS = agent.AnnounceCapabilities(0, (0x2006,))
CLIPBOARD = 4


def monitor(width: int, height: int) -> agent.Monitor:
    return agent.Monitor(height, width, 32, 0, 0)


def config(*sizes: tuple[int, int]) -> agent.MonitorsConfig:
    return agent.MonitorsConfig(0, tuple(itertools.starmap(monitor, sizes)))


def whole(body: agent.AgentRecord) -> bytes:
    return agent.AgentHeader(body.number, len(body.packed)).packed + body.packed


def chunks(data: bytes, size: int = 2048) -> list[Message]:
    return [ClientAgentData(data[at : at + size]) for at in range(0, len(data), size)]


def said(*bodies: agent.AgentRecord) -> list[Message]:
    """The same from a client, each in one AGENT_DATA."""
    return [ClientAgentData(whole(body)) for body in bodies]


def started(tokens: int = ALL) -> ServerAgent:
    machine = ServerAgent()
    machine.receive(main.AgentStart(tokens))
    return machine


def hear(machine: ServerAgent, *messages: Message) -> list[Wish]:
    """What the agent makes of messages that are all taken before it answers."""
    wishes = []
    for message in messages:
        assert isinstance(message, FromClient)
        wishes.append(machine.receive(message))
    return [wish for wish in wishes if wish is not None]


def answers(machine: ServerAgent) -> list[agent.AgentRecord]:
    """What it says now, tokens aside."""
    found = []
    for message in machine.messages_to_send():
        if isinstance(message, AgentData):
            header = agent.AgentHeader.parse(message.data[:20])
            kind = {3: agent.Reply, 6: agent.AnnounceCapabilities}[header.type]
            assert header.size == len(message.data) - 20
            found.append(kind.parse(message.data[20:]))
    return found


# What it hears


def conversation() -> list[Message]:
    """What a stock viewer says, and a clipboard that nobody asked for."""
    clipboard = agent.AgentHeader(CLIPBOARD, 5000).packed + bytes(5000)
    return [
        main.AgentStart(ALL),
        *said(SPICY, config((1280, 720))),
        *chunks(clipboard),
        *said(config((0, 0), (1, 1)), config(), config((3, 4), (5, 6))),
    ]


@pytest.mark.parametrize("way", ["whole", "byte by byte", "trailing"])
def test_a_viewer_is_understood(way: str) -> None:
    data = b"".join(map(framed, conversation()))
    size = {"whole": len(data), "byte by byte": 1, "trailing": 100}[way]
    channel, machine = Channel("main", Sender.SERVER), ServerAgent()
    channel.send(main.MainInit(1, 1, 3, 2, 1, AGENT_TOKENS, 0, 0))
    wishes: list[Wish] = []
    for at in range(0, len(data), size):
        wishes += hear(machine, *channel.receive_data(data[at : at + size]))
    assert wishes == [Wish(1280, 720), Wish(3, 4)]
    assert answers(machine) == [OURS]


def test_positions_and_sizes_in_mm_change_nothing() -> None:
    told = agent.MonitorsConfig(3, (monitor(800, 600),), (agent.MonitorSize(200, 300),))
    assert hear(started(), *said(told)) == [Wish(800, 600)]


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, ALL), st.integers(0, ALL)), max_size=9),
    cut=st.integers(20, 60),
)
def test_what_is_cut_anywhere_is_one_message(sizes: list[tuple[int, int]], cut: int) -> None:
    data = whole(config(*sizes))
    machine = started()
    wishes = []
    for message in [*chunks(data, cut), *said(config((7, 8)))]:
        wishes += hear(machine, message)
        machine.messages_to_send()  # so that the client has its tokens back
    wished = [Wish(*size) for size in sizes[:1] if all(size)]
    assert wishes == [*wished, Wish(7, 8)]


def test_what_is_passed_over_is_not_kept() -> None:
    """Also if it were four gigabytes long."""
    machine = started()
    hear(machine, ClientAgentData(agent.AgentHeader(CLIPBOARD, ALL).packed))
    for _ in range(1000):
        hear(machine, ClientAgentData(bytes(2048)))
        machine.messages_to_send()
    assert not machine._messages._body


def test_an_empty_message_of_another_kind() -> None:
    release = ClientAgentData(agent.AgentHeader(9, 0).packed)
    assert hear(started(), release, *said(config((5, 6)))) == [Wish(5, 6)]


# What it says


def test_it_says_what_it_can_to_who_asks() -> None:
    machine = started()
    assert answers(machine) == []
    hear(machine, *said(agent.AnnounceCapabilities(0, ())))
    assert answers(machine) == []
    hear(machine, *said(SPICY))
    assert answers(machine) == [OURS]


@pytest.mark.parametrize(("ok", "error"), [(True, 1), (False, 2)])
def test_replies_to_who_knows_them(ok: bool, error: int) -> None:
    machine = started()
    machine.reply(ok=ok)  # before the client said what it can
    assert answers(machine) == []
    hear(machine, *said(SPICY))
    machine.reply(ok=ok)
    assert answers(machine) == [OURS, agent.Reply(2, error)]
    hear(machine, *said(DEAF))
    machine.reply(ok=ok)
    assert answers(machine) == [OURS]


def test_without_tokens_it_is_silent_and_then_says_the_newest() -> None:
    machine = started(0)
    for ok in (False, True, False, True):
        hear(machine, *said(SPICY))
        machine.reply(ok=ok)
    assert answers(machine) == []
    hear(machine, main.ClientAgentToken(1))
    assert answers(machine) == [OURS]
    assert answers(machine) == []
    hear(machine, main.ClientAgentToken(1))
    assert answers(machine) == [agent.Reply(2, 1)]
    hear(machine, main.ClientAgentToken(1), main.ClientAgentToken(1))
    assert answers(machine) == []
    hear(machine, *said(SPICY))
    machine.reply(ok=False)
    assert answers(machine) == [OURS, agent.Reply(2, 2)]


def test_the_client_gets_its_tokens_back_five_at_a_time() -> None:
    machine = started()
    for _ in range(3):
        for given_back in ([], [], [], [], [AgentToken(TOKENS_BACK)]):
            hear(machine, *said(config()))
            assert machine.messages_to_send() == given_back
    hear(machine, *said(*[config()] * AGENT_TOKENS))
    assert machine.messages_to_send() == [AgentToken(TOKENS_BACK)] * 2


# Breaches


HEADER = agent.AgentHeader(2, 8).packed
BREACHES: dict[str, tuple[list[Message], str, str, str]] = {
    "too little for a header": (
        chunks(HEADER[:19]),
        "main.agent_data",
        "data",
        "19 bytes",
    ),
    "nothing where a message begins": (
        [ClientAgentData(b"")],
        "main.agent_data",
        "data",
        "0 bytes",
    ),
    "bytes behind a message": (
        chunks(whole(config()) + b"?"),
        "main.agent_data",
        "data",
        "1 bytes behind",
    ),
    "two messages in one": (
        chunks(whole(config()) * 2),
        "main.agent_data",
        "data",
        "28 bytes behind",
    ),
    "bytes behind a message that is passed over": (
        [
            ClientAgentData(agent.AgentHeader(CLIPBOARD, 3).packed + b"12"),
            ClientAgentData(b"345"),
        ],
        "main.agent_data",
        "data",
        "2 bytes behind",
    ),
    "another protocol": (
        chunks(struct.pack("<IIQI", 2, CLIPBOARD, 0, 0)),
        "agent_header",
        "protocol",
        "2 is not 1",
    ),
    "a huge configuration": (
        [ClientAgentData(agent.AgentHeader(2, ALL).packed)],
        "agent.monitors_config",
        "size",
        "4294967295 bytes",
    ),
    "capabilities without end": (
        [ClientAgentData(agent.AgentHeader(6, 4 + 33 * 4).packed)],
        "agent.announce_capabilities",
        "size",
        "136 bytes",
    ),
    "65 monitors": (
        chunks(agent.AgentHeader(2, 8).packed + struct.pack("<II", 65, 0)),
        "agent.monitors_config",
        "num_of_monitors",
        "65 is not in 0..64",
    ),
    "fewer monitors than it says": (
        chunks(agent.AgentHeader(2, 8).packed + struct.pack("<II", 1, 0)),
        "agent.monitors_config",
        "monitors.height",
        "",
    ),
    "more bytes than monitors": (
        chunks(agent.AgentHeader(2, 9).packed + bytes(9)),
        "agent.monitors_config",
        "",
        "1 bytes too many",
    ),
    "half a word of capabilities": (
        chunks(agent.AgentHeader(6, 6).packed + bytes(6)),
        "agent.announce_capabilities",
        "",
        "2 bytes too many",
    ),
    "no token left": (
        said(*[config()] * (AGENT_TOKENS + 1)),
        "main.agent_data",
        "",
        "no token left",
    ),
}


@pytest.mark.parametrize("why", BREACHES)
def test_breaches(why: str) -> None:
    messages, title, field, detail = BREACHES[why]
    machine = started()
    hear(machine, *messages[:-1])
    with pytest.raises(RemoteProtocolError) as caught:
        hear(machine, messages[-1])
    assert (caught.value.message, caught.value.field) == (title, field)
    assert detail in caught.value.detail


def test_data_before_the_start() -> None:
    with pytest.raises(RemoteProtocolError, match=r"main\.agent_data: comes before agent_start"):
        hear(ServerAgent(), *said(config()))


def test_more_than_2048_bytes_never_get_this_far() -> None:
    channel = Channel("main", Sender.SERVER)
    with pytest.raises(RemoteProtocolError, match=r"main\.agent_data: size: 2049 bytes"):
        channel.receive_data(framed(ClientAgentData(bytes(2049))))


# A client's end

INIT = main.MainInit(1, 1, 3, 2, 0, 10, 0, 0)
"""Of a server without an agent, which says how many tokens there would be."""


def sent(machine: ClientAgent) -> list[Message]:
    """What a client says now; an agent of ours must understand it."""
    return machine.messages_to_send()


def wanted(*messages: Message) -> list[Wish]:
    """What an agent makes of what a client said."""
    return hear(ServerAgent(), *messages)


def test_a_client_says_nothing_unless_it_wishes_for_a_size() -> None:
    client = ClientAgent()
    client.receive(dataclasses.replace(INIT, agent_connected=1))
    assert client.connected
    assert sent(client) == []
    client.wish(80, 60)
    said = sent(client)
    assert said[0] == main.AgentStart(ALL)
    assert wanted(*said) == [Wish(80, 60)]
    assert sent(client) == []
    client.wish(90, 60)
    assert len(sent(client)) == 1


def test_without_an_agent_there_is_nobody_to_ask() -> None:
    client = ClientAgent()
    client.receive(INIT)
    with pytest.raises(LocalProtocolError, match="there is no agent"):
        client.wish(80, 60)


@pytest.mark.parametrize("comes", [main.AgentConnected(), main.AgentConnectedTokens(10)])
def test_an_agent_may_come_and_go(comes: Message) -> None:
    client = ClientAgent()
    client.receive(INIT)
    for _ in range(2):
        client.receive(comes)
        client.wish(80, 60)
        assert wanted(*sent(client)) == [Wish(80, 60)]
        client.wish(81, 60)
        client.receive(main.AgentDisconnected(0))
        assert not client.connected
        assert sent(client) == []


def test_a_client_keeps_to_its_tokens_and_wishes_for_the_newest() -> None:
    client = ClientAgent()
    client.receive(dataclasses.replace(INIT, agent_connected=1, agent_tokens=1))
    client.wish(80, 60)
    assert len(first := sent(client)) == 2
    client.wish(90, 70)
    client.wish(100, 70)
    assert sent(client) == []
    client.receive(main.AgentToken(5))
    assert wanted(*first, *sent(client)) == [Wish(100, 70)]


def test_a_client_is_told_how_it_went() -> None:
    client = ClientAgent()
    client.receive(dataclasses.replace(INIT, agent_connected=1))
    clipboard = agent.AgentHeader(CLIPBOARD, 5000).packed + bytes(5000)
    for error, outcome in ((agent.REPLY_SUCCESS, True), (agent.REPLY_ERROR, False)):
        client.wish(80, 60)
        for data in (clipboard[:2048], clipboard[2048:4096], clipboard[4096:]):
            client.receive(AgentData(data))
        client.receive(AgentData(whole(agent.Reply(CLIPBOARD, agent.REPLY_SUCCESS))))
        assert client.outcome is None
        client.receive(AgentData(whole(agent.Reply(agent.MonitorsConfig.number, error))))
        assert client.outcome is outcome


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"short", "main.agent_data: data: 5 bytes, a message begins with"),
        (whole(agent.Reply(2, 1)) + b"x", "main.agent_data: data: 1 bytes behind the end"),
        (agent.AgentHeader(3, 9).packed + bytes(9), "agent.reply: size: 9 bytes, the limit is 8"),
    ],
)
def test_what_an_agent_may_not_say(data: bytes, complaint: str) -> None:
    client = ClientAgent()
    client.receive(dataclasses.replace(INIT, agent_connected=1))
    with pytest.raises(RemoteProtocolError) as caught:
        client.receive(AgentData(data))
    assert str(caught.value).startswith(complaint)
