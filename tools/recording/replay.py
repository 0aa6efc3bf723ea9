"""Either side of a recording, played to a live peer through a link phase of its own.

What belongs to the live connection is done live and left out of what is played:

- as server: acknowledgements of motions, one for every four that come. Everything else that the
  client says (ACK, PONG, requests) is read and has no effect. PING and SET_ACK are played.
- as client: PONG, ACK_SYNC and ACK answer the PING and SET_ACK that come; no more than eight
  motions are on their way. All else that the server says is read and has no effect, but for the
  number of its session.
- Either way nothing is played that is about migrating, or needs descriptors (GL scanouts, shared
  memory); the capability for shared memory is not shown.

Headers are those of the live connection, so a recording with full ones can be played with mini ones
and the other way round.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

import trio

from spiceshm.errors import Disconnected, LinkRefused, RemoteProtocolError
from spiceshm.nursery import open_nursery
from spiceshm.protocol import ClientLink, ServerLink, generate_key
from spiceshm.protocol.inputs import MOST_MOTIONS, MOTIONS_AN_ACK
from spiceshm.transport import open_stream
from spiceshm.wire import Message, Sender
from spiceshm.wire.base import Ack, AckSync, DataHeader, MiniHeader, Ping, Pong, SetAck
from spiceshm.wire.inputs import MouseMotion, MouseMotionAck, MousePosition
from spiceshm.wire.main import MainInit
from spiceshm.wire.shm import FIRST_NUMBER, LAST_NUMBER
from spiceshm.wire.types import ChannelType, DisplayCap, LinkError, caps_from_words

from .proxy import shut
from .session import Connection, Counts, Frames, Passed, Recording, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spiceshm.transport import Address, Stream

LEFT_OUT: dict[tuple[str, Sender], set[int]] = {
    ("base", Sender.SERVER): {1, 2},  # MIGRATE, MIGRATE_DATA
    ("base", Sender.CLIENT): {1, 2, 3, 4, 5, 6},  # all that there is
    ("display", Sender.SERVER): {320, 321, *range(FIRST_NUMBER, LAST_NUMBER + 1)},
    ("display", Sender.CLIENT): {104, *range(FIRST_NUMBER, LAST_NUMBER + 1)},  # GL_DRAW_DONE
    ("inputs", Sender.SERVER): {MouseMotionAck.number},
    ("main", Sender.CLIENT): {102, 103, 109, 110, 111},  # of migrating
}
"""By channel, "base" for all of them, and sender: numbers of messages that are not played."""

_MOTIONS = (MouseMotion.number, MousePosition.number)
_LATER_S = 5.0
"""How long a live server may take to close a channel on which it is told that no more comes."""


def played(connection: Connection, sender: Sender) -> Iterator[Passed]:
    """What of a connection is played."""
    out = LEFT_OUT.get((connection.channel, sender), set()) | LEFT_OUT["base", sender]
    return (one for one in connection.messages(sender) if one.number not in out)


def _caps(connection: Connection, sender: Sender) -> frozenset[int]:
    """The channel's capabilities that an end showed, without those that we could not honour."""
    link = connection.link
    end = link.mess if sender is Sender.CLIENT else link.reply
    assert end is not None
    caps = caps_from_words(end.channel_caps)
    return caps - {DisplayCap.SHARED_MEMORY} if connection.channel == "display" else caps


class _Peer:
    """One live connection. A subclass says what is done about what comes."""

    sender: Sender
    """Which end we are."""

    def __init__(self, stream: Stream, channel: str, counts: Counts, *, mini: bool) -> None:
        self.stream = stream
        self.channel = channel
        self._counts = counts
        self._mini = mini
        self._serial = 0
        self._frames = Frames(channel, self.sender.other, mini=mini)
        self.gone = trio.Event()

    def put(self, number: int, body: bytes) -> None:
        """Send a message. Raises Disconnected."""
        self._serial += 1
        header = (
            MiniHeader(number, len(body))
            if self._mini
            else DataHeader(self._serial, number, len(body), 0)
        )
        self.stream.send(header.packed + body)
        self._counts.add(Passed(0, self.channel, self.sender, number, body))

    def answer(self, message: Message) -> None:
        self.put(message.number, message.packed)

    async def read(self, first: bytes) -> None:
        """Until the other end closes; ``first`` came behind the link phase."""
        data: bytes | memoryview = first
        with contextlib.suppress(Disconnected):
            while True:
                for number, body in self._frames.feed(data):
                    self._counts.add(Passed(0, self.channel, self.sender.other, number, body))
                    self.take(number, body)
                await self.stream.settled()
                data, _ = await self.stream.receive()
        self.gone.set()

    async def flush(self) -> None:
        with contextlib.suppress(Disconnected):
            await self.stream.flush_when_writable()

    def take(self, number: int, body: bytes) -> None:
        raise NotImplementedError


# As server


class _ToClient(_Peer):
    sender = Sender.SERVER
    _motions = 0

    def take(self, number: int, body: bytes) -> None:
        if self.channel == "inputs" and number in _MOTIONS:
            self._motions += 1
            if self._motions % MOTIONS_AN_ACK == 0:
                self.answer(MouseMotionAck())


class Server:
    """Plays the server's side to any number of clients, each channel to its end, and stays.

    Channels are found by the number of their session, which MAIN_INIT tells as it did when it was
    recorded, their type and their id. A second main channel gets the recording's second session if
    it has one; behind the last one the first comes again. There must be one at least.
    """

    def __init__(self, recording: Recording, counts: Counts, *, with_times: bool) -> None:
        self._sessions = recording.sessions()
        self._counts = counts
        self._with_times = with_times
        self._key = generate_key()
        self._mains = 0

    async def handle(self, stream: Stream) -> None:
        """Serve one channel until the client closes it."""
        with stream, contextlib.suppress(Disconnected, RemoteProtocolError):
            link = ServerLink(self._key)
            connection = None
            while not link.done:
                data, _ = await stream.receive(link.bytes_wanted)
                event = link.receive_data(bytes(data))
                if link.mess is not None and event is link.mess:
                    connection = self._wanted(link)
                elif event is not None:
                    link.finish()  # whatever the ticket was
                stream.send(link.data_to_send())
                await stream.drain()
            if connection is not None:
                peer = _ToClient(stream, connection.channel, self._counts, mini=link.mini)
                await self._play(connection, peer, link.rest)

    def _wanted(self, link: ServerLink) -> Connection | None:
        """What was recorded of the channel that a client wants, after telling it whether it may."""
        assert link.mess is not None
        mess = link.mess
        connection: Connection | None
        if mess.channel_type == ChannelType.MAIN:
            connection = self._sessions[self._mains % len(self._sessions)].main
            self._mains += 1
        else:
            wanted = mess.connection_id, mess.channel_type, mess.channel_id
            found = [one for session in self._sessions for one in session.others]
            connection = next((one for one in found if _identity(one) == wanted), None)
        if connection is None:
            link.refuse(LinkError.CHANNEL_NOT_AVAILABLE)
        else:
            link.accept(_caps(connection, Sender.SERVER))
        return connection

    async def _play(self, connection: Connection, peer: _ToClient, first: bytes) -> None:
        async with open_nursery() as nursery:
            nursery.start_soon(peer.flush)
            nursery.start_soon(self._say, connection, peer)
            await peer.read(first)
            nursery.cancel_scope.cancel()

    async def _say(self, connection: Connection, peer: _ToClient) -> None:
        clock = _Clock(self._with_times)
        with contextlib.suppress(Disconnected):
            for message in played(connection, Sender.SERVER):
                await clock.wait(message.time_ns)
                peer.put(message.number, message.body)
                await peer.stream.settled()


def _identity(connection: Connection) -> tuple[int, int, int]:
    mess = connection.link.mess
    assert mess is not None
    return mess.connection_id, mess.channel_type, mess.channel_id


class _Clock:
    """Waits as long after its first time as was waited when it was recorded, or not at all."""

    def __init__(self, with_times: bool) -> None:
        self._with_times = with_times
        self._began: tuple[float, int] | None = None

    async def wait(self, time_ns: int) -> None:
        if not self._with_times:
            return
        if self._began is None:
            self._began = trio.current_time(), time_ns
        now, then = self._began
        await trio.sleep_until(now + (time_ns - then) / 1e9)


# As client


class _ToServer(_Peer):
    sender = Sender.CLIENT
    session: int | None = None
    """What MAIN_INIT said."""
    _window = _left = 0
    _motions = 0

    def __init__(self, stream: Stream, channel: str, counts: Counts, *, mini: bool) -> None:
        super().__init__(stream, channel, counts, mini=mini)
        self._news = trio.Event()

    def take(self, number: int, body: bytes) -> None:
        if self._window:
            self._left -= 1
            if not self._left:
                self._left = self._window
                self.answer(Ack())
        if number == SetAck.number:
            ack = SetAck.parse(body)
            self._window = self._left = ack.window
            self.answer(AckSync(ack.generation))
        elif number == Ping.number:
            ping = Ping.parse(body)
            self.answer(Pong(ping.id, ping.timestamp))
        elif self.channel == "main" and number == MainInit.number:
            self.session = MainInit.parse(body).session_id
        elif self.channel == "inputs" and number == MouseMotionAck.number:
            self._motions -= MOTIONS_AN_ACK
        self._news.set()
        self._news = trio.Event()

    async def read(self, first: bytes) -> None:
        await super().read(first)
        self._news.set()

    async def say(self, message: Passed) -> None:
        """Send it, as soon as a client may. Raises Disconnected."""
        moves = self.channel == "inputs" and message.number in _MOTIONS
        await self.until(lambda: not moves or self._motions < MOST_MOTIONS)
        self._motions += moves
        self.put(message.number, message.body)
        await self.stream.settled()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what comes to make it so. Raises Disconnected if the server closes before."""
        while not (self.gone.is_set() or condition()):
            await self._news.wait()
        if self.gone.is_set():
            raise Disconnected(f"{self.stream.peer}: the server closed the {self.channel} channel")

    async def end(self) -> None:
        """Say that no more comes, and wait until the server has read all."""
        shut(self.stream)
        with trio.move_on_after(_LATER_S):
            await self.gone.wait()
        self.stream.close()


class _Step(NamedTuple):
    """Of a session, in the order of time: a channel is opened, or something is said on it."""

    time_ns: int
    connection: Connection
    message: Passed | None


class Client:
    """Plays the client's side to a live server, one session after another."""

    def __init__(
        self,
        recording: Recording,
        counts: Counts,
        complain: Callable[[str], None],
        *,
        with_times: bool,
        password: bytes = b"",
    ) -> None:
        self._sessions = recording.sessions()
        self._counts = counts
        self._complain = complain
        self._with_times = with_times
        self._password = password

    async def play(self, to: Address) -> None:
        """Until all is said and the server has read it. A channel that the server does not have is
        complained about and left out. Raises ConnectError, LinkRefused of main, Disconnected."""
        for session in self._sessions:
            async with open_nursery() as nursery:
                await self._play(session, to, nursery)
                nursery.cancel_scope.cancel()

    async def _play(self, session: Session, to: Address, nursery: trio.Nursery) -> None:
        peers: list[tuple[Connection, _ToServer]] = []
        try:
            main = await self._open(to, session.main, 0, nursery)
            peers.append((session.main, main))
            await main.until(lambda: main.session is not None)
            assert main.session is not None
            clock = _Clock(self._with_times)
            for step in _steps(session):
                await clock.wait(step.time_ns)
                if step.message is None:
                    try:
                        peer = await self._open(to, step.connection, main.session, nursery)
                    except LinkRefused as error:
                        self._complain(f"{to}: {step.connection.channel}: {error}")
                        continue
                    peers.append((step.connection, peer))
                else:
                    for connection, peer in peers:
                        if connection is step.connection:
                            await peer.say(step.message)
            await clock.wait(session.last_ns)
            # Where main ends so do all.
            for _, peer in reversed(peers):
                await peer.end()
        finally:
            for _, peer in peers:
                peer.stream.close()

    async def _open(
        self, to: Address, connection: Connection, session: int, nursery: trio.Nursery
    ) -> _ToServer:
        mess = connection.link.mess
        assert mess is not None
        stream = await open_stream(to)
        try:
            link = ClientLink(
                connection_id=session,
                channel_type=mess.channel_type,
                channel_id=mess.channel_id,
                channel_caps=_caps(connection, Sender.CLIENT),
                password=self._password,
            )
            while not link.done:
                stream.send(link.data_to_send())
                await stream.drain()
                data, _ = await stream.receive(link.bytes_wanted)
                link.receive_data(bytes(data))
        except Disconnected:  # as a stock server says that it does not have such a channel
            stream.close()
            raise LinkRefused(LinkError.CHANNEL_NOT_AVAILABLE, "the server closed it") from None
        except BaseException:
            stream.close()
            raise
        peer = _ToServer(stream, connection.channel, self._counts, mini=link.mini)
        nursery.start_soon(peer.flush)
        nursery.start_soon(peer.read, link.rest)
        return peer


def _steps(session: Session) -> list[_Step]:
    """All but the opening of main."""
    steps = [_Step(one.events[0].time_ns, one, None) for one in session.others]
    for connection in (session.main, *session.others):
        said = played(connection, Sender.CLIENT)
        steps += [_Step(message.time_ns, connection, message) for message in said]
    return sorted(steps, key=lambda step: step.time_ns)
