"""The link phase: what both ends say before a channel carries messages.

Client: LinkHeader + LinkMess. Server: LinkHeader + LinkReply. Client: the authentication mechanism
(where both ends select one) and the ticket. Server: the result. (``red.h``/``protocol.h``:
``SpiceLinkHeader``, ``SpiceLinkMess``, ``SpiceLinkReply``.)
"""

from __future__ import annotations

from typing import Any

from construct import Array, Bytes, If, Int8ul, Int32ul, Rebuild, Seek, Struct, len_, this

from .message import Record, record
from .types import MAX_CAPABILITY_WORDS, Held, Tuple, between

MAGIC = b"REDQ"
VERSION_MAJOR = 2
VERSION_MINOR = 2
PUBLIC_KEY_SIZE = 162
TICKET_SIZE = 128
AUTH_SPICE = 1
"""The authentication mechanism "ticket"; the number is its capability's bit."""


def _capabilities(fixed: int) -> tuple[Any, ...]:
    """Counts, offset and words; ``fixed`` is the size of all that precedes the words."""

    def count(name: str) -> Any:
        return Rebuild(between(Int32ul, 0, MAX_CAPABILITY_WORDS), len_(this[name]))

    any_words = this.num_common_caps + this.num_channel_caps > 0
    offset = Held(
        Int32ul,
        lambda at, ctx: at >= fixed or not any_words(ctx),
        "a place behind the fixed part",
    )
    return (
        "num_common_caps" / count("common_caps"),
        "num_channel_caps" / count("channel_caps"),
        # A LinkReply with an error has no words and is all zero behind the error.
        "caps_offset"
        / Rebuild(offset, lambda ctx: fixed if any_words(ctx) or not ctx.get("error") else 0),
        "start" / If(any_words, Seek(this.caps_offset)),
        "common_caps" / Tuple(Array(this.num_common_caps, Int32ul)),
        "channel_caps" / Tuple(Array(this.num_channel_caps, Int32ul)),
    )


@record
class LinkHeader(Record):
    """16 bytes before LinkMess and LinkReply, whose length in bytes is ``size``."""

    layout = Struct("magic" / Bytes(4), "major" / Int32ul, "minor" / Int32ul, "size" / Int32ul)
    magic: bytes
    major: int
    minor: int
    size: int


@record
class LinkMess(Record):
    """What the client wants: a channel of a session (``connection_id`` 0: a new session).

    Capabilities are u32 words; bit n is ``words[n // 32] >> n % 32 & 1``.
    """

    layout = Struct(
        "connection_id" / Int32ul,
        "channel_type" / Int8ul,
        "channel_id" / Int8ul,
        *_capabilities(18),
    )
    exact = False
    connection_id: int
    channel_type: int
    channel_id: int
    common_caps: tuple[int, ...]
    channel_caps: tuple[int, ...]


@record
class LinkReply(Record):
    """The server's answer: a `LinkError`, its RSA key (DER) for the ticket, its capabilities."""

    layout = Struct("error" / Int32ul, "pub_key" / Bytes(PUBLIC_KEY_SIZE), *_capabilities(178))
    exact = False
    error: int
    pub_key: bytes
    common_caps: tuple[int, ...]
    channel_caps: tuple[int, ...]


@record
class AuthMechanism(Record):
    """The client's choice, sent only if both ends have the capability AUTH_SELECTION."""

    layout = Struct("auth_mechanism" / Int32ul)
    auth_mechanism: int


@record
class Ticket(Record):
    """RSA-OAEP(SHA-1) of the password and a NUL, under the key of the LinkReply."""

    layout = Struct("encrypted_data" / Bytes(TICKET_SIZE))
    encrypted_data: bytes


@record
class LinkResult(Record):
    """The end of the link phase: a `LinkError`, 0 when the channel is open."""

    layout = Struct("error" / Int32ul)
    error: int
