"""The size that viewers would like the display to have: heard as the guest's agent, asked of the
program.

Strategy: what counts is the newest wish of all clients. One task asks for it, so that a program
that takes its time delays nobody's main channel; what is wished meanwhile waits, the newest of it.

A viewer also says its wish again whenever it is shown another size than its window has, as if that
was a mistake. So who got what it wished for, and says the same again, is not heard: else two of
them with windows of different sizes would take the display from each other for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import trio

from ..errors import MemoryRefused, SourceError
from ..protocol import ServerAgent

if TYPE_CHECKING:
    from ..protocol.agent import FromClient
    from ..wire import Message

log = logging.getLogger("spiceshm.server")

Resize: TypeAlias = Callable[[int, int], Awaitable[None]]
"""Gives what is shown another size, or does not: width and height in pixels, each 1 to 16384."""


class _Asked(NamedTuple):
    agent: Agent
    width: int
    height: int


class Sizes:
    """What all clients wish for. ``size`` tells width and height of what is shown, None before
    there is anything; ``why_not`` why it cannot have some size, whatever the program says."""

    def __init__(
        self,
        resize: Resize,
        size: Callable[[], tuple[int, int] | None],
        why_not: Callable[[int, int], str | None],
    ) -> None:
        self._resize = resize
        self._size = size
        self._why_not = why_not
        self._newest: _Asked | None = None
        self._has_refused = False
        self._wished = trio.Event()

    def wish(self, agent: Agent, width: int, height: int) -> None:
        """From now on this is the newest wish, if it is one; what another client waits for is
        refused."""
        if agent.granted == (width, height):
            agent.answer(ok=self._size() == agent.granted)
            return
        agent.granted = None
        if self._newest is not None and self._newest.agent is not agent:
            self._newest.agent.answer(ok=False)
        self._newest = _Asked(agent, width, height)
        self._wished.set()

    def forget(self, agent: Agent) -> None:
        """This client is gone, and what it wished for with it."""
        if self._newest is not None and self._newest.agent is agent:
            self._newest = None

    async def run(self) -> None:
        """Ask for one size after the other, for ever. What the program raises is raised, but for
        SourceError and MemoryRefused: then all stays as it is."""
        while True:
            await self._wished.wait()
            self._wished = trio.Event()
            asked, self._newest = self._newest, None
            if asked is not None:
                granted = await self._ask(*asked)
                if granted:
                    asked.agent.granted = (asked.width, asked.height)
                asked.agent.answer(ok=granted)

    async def _ask(self, agent: Agent, width: int, height: int) -> bool:
        if self._size() == (width, height):
            return True
        why = self._why_not(width, height)
        if why is None:
            try:
                await self._resize(width, height)
            except (SourceError, MemoryRefused) as error:
                why = str(error)
            else:
                log.info("%s: would like %dx%d, done", agent.peer, width, height)
                return True
        # A window is not only resized once: the first time is enough to know why nothing happens.
        level = logging.INFO if self._has_refused else logging.WARNING
        self._has_refused = True
        log.log(level, "%s: would like %dx%d, refused: %s", agent.peer, width, height, why)
        return False


class Agent:
    """The agent for one client, which is ``peer`` in words."""

    def __init__(self, peer: str, sizes: Sizes) -> None:
        self.peer = peer
        self.granted: tuple[int, int] | None = None
        """The last wish, if that came true; whatever is shown by now."""
        self._machine = ServerAgent()
        self._sizes = sizes
        self._answered = trio.Event()

    def received(self, message: FromClient) -> None:
        """Take what the client said on main. Raises RemoteProtocolError."""
        wish = self._machine.receive(message)
        if wish is not None:
            self._sizes.wish(self, *wish)

    def answer(self, *, ok: bool) -> None:
        """Tell the client how it went with its wish; whoever waits in `answered` sends that."""
        self._machine.reply(ok=ok)
        self._answered.set()

    async def answered(self) -> None:
        """Wait until there is an answer that has not been waited for."""
        await self._answered.wait()
        self._answered = trio.Event()

    def messages_to_send(self) -> list[Message]:
        """What main is to send now."""
        return self._machine.messages_to_send()

    def leave(self) -> None:
        """The client is gone."""
        self._sizes.forget(self)
