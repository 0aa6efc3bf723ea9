"""Every error that this package raises on purpose.

    SpiceShmError
    ├── ProtocolError
    │   ├── LocalProtocolError     we were asked to send what the state does not allow
    │   └── RemoteProtocolError    the peer broke the protocol: one connection ends, nothing else
    ├── AddressError               an address that cannot be understood (usage)
    ├── ListenError                an address that cannot be listened on
    ├── ConnectError               nobody there, no permission, not SPICE
    │   └── LinkRefused            the server said no during the link phase
    ├── Disconnected               the peer went away
    ├── MemoryRefused              memory cannot be had, or an offered segment must not be used
    ├── Timeout                    what was waited for did not happen in time
    ├── FramesHeld                 every frame that the server lends is held by the program's views
    ├── ViewOnly                   this client, or where it connected to, may only look
    ├── CannotDecode               an image that a server sent is not what it should be
    ├── CannotType                 no key gives the character, or has the name (usage)
    └── SourceError                what is to be shown cannot be shown

Strategy: code that parses or checks raises the narrowest of these with a one-line text that names
message and field; the place that knows the peer (server, client) puts its name in front.
"""

from __future__ import annotations

import enum
from typing import Any


class Refusal(enum.IntEnum):
    """Why a client does not take a segment: the ``reason`` of SHM_REPLY."""

    NONE = 0
    NOT_WANTED = 1
    CANNOT_MAP = 2
    TOO_SMALL = 3
    NOT_SEALED = 4
    HANDLE = 5
    MALFORMED = 6
    OTHER = 7

    @classmethod
    def explain(cls, reason: int) -> str:
        """Words for the log; a number that we do not know is still a refusal."""
        words: dict[int, str] = {
            cls.NONE: "no reason given",
            cls.NOT_WANTED: "the client does not want shared memory",
            cls.CANNOT_MAP: "the client could not open or map it",
            cls.TOO_SMALL: "the client found it too small",
            cls.NOT_SEALED: "the client found it not sealed",
            cls.HANDLE: "the client does not support this kind of memory",
            cls.MALFORMED: "the client found the offer malformed",
        }
        return words.get(reason, f"reason {reason}")


class SpiceShmError(Exception):
    """Base of all errors of this package; its text is one line fit for a user."""


class ProtocolError(SpiceShmError):
    """Something that the protocol does not allow, by either side.

    ``message`` is the dotted name of the message (``display.shm_damage``) and ``field`` the part of
    it that is at fault, or an empty string where the whole message is.
    """

    def __init__(self, message: str, field: str, detail: str) -> None:
        self.message = message
        self.field = field
        self.detail = detail
        super().__init__(": ".join(part for part in (message, field, detail) if part))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.field, self.detail), {"args": self.args}


class LocalProtocolError(ProtocolError):
    """Our own side tried to send a message that is not allowed now; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that is not allowed; the connection must be closed."""


class AddressError(SpiceShmError):
    """The text is no address; the error says what is accepted."""


class ListenError(SpiceShmError):
    """The address cannot be listened on: in use, no permission, no such directory."""


class ConnectError(SpiceShmError):
    """No SPICE connection could be made."""


class LinkRefused(ConnectError):
    """The server refused the link; ``code`` is its SPICE link error (``SPICE_LINK_ERR_*``)."""

    def __init__(self, code: int, detail: str) -> None:
        self.code = code
        super().__init__(detail)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, str(self)), {"args": self.args}


class Disconnected(SpiceShmError):
    """The other end closed the connection or vanished."""


class MemoryRefused(SpiceShmError):
    """Memory could not be had (server) or an offered segment must not be used (client).

    ``reason`` is what a client answers the offer with; NONE on the server's side.
    """

    def __init__(self, detail: str, reason: Refusal = Refusal.NONE) -> None:
        self.reason = reason
        super().__init__(detail)


class Timeout(SpiceShmError, TimeoutError):
    """What was waited for did not happen in time; the text says what that was."""


class FramesHeld(SpiceShmError):
    """The program holds views of every frame that it may hold, so no new one can come."""


class ViewOnly(SpiceShmError):
    """Keys and pointer are not to be had: the client or the server wants it to look only."""


class CannotDecode(SpiceShmError):
    """An image cannot be read: its data are cut off, lie or are of a kind that we cannot read.

    The text says what is wrong; which image it was, the place knows that has its message.
    """


class CannotType(SpiceShmError, ValueError):
    """No key gives the character, or no key, button or layout has the name; nothing was sent."""


class SourceError(SpiceShmError):
    """A source cannot be opened or has ended; the text says why and what is accepted."""
