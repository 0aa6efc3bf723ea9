"""The link phase of a connection, both ends, without I/O.

Server: feed `ServerLink.receive_data` until it returns a `LinkMess`, answer with `accept` or
`refuse`; feed on until it returns a `Password`, answer with `finish`. Client: `ClientLink` has its
first bytes ready at once and is `done` when the channel is open. Bytes behind the link phase are
kept in `rest` for the channel. Secrets stay in here; decisions are the caller's.
"""

from __future__ import annotations

import enum
from typing import NamedTuple, NoReturn

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from ..errors import LinkRefused, LocalProtocolError, RemoteProtocolError
from ..wire.link import (
    AUTH_SPICE,
    MAGIC,
    PUBLIC_KEY_SIZE,
    TICKET_SIZE,
    VERSION_MAJOR,
    VERSION_MINOR,
    AuthMechanism,
    LinkHeader,
    LinkMess,
    LinkReply,
    LinkResult,
    Ticket,
)
from ..wire.types import CommonCap, LinkError, caps_from_words, words_from_caps

MAX_LINK_MESSAGE = 4096
MAX_PASSWORD = 60
"""Bytes of a password; stock clients refuse longer ones."""

_HEADER_SIZE: int = LinkHeader.layout.sizeof()
_MIN_MESS = 18
_MIN_REPLY = 178
_OAEP = padding.OAEP(mgf=padding.MGF1(SHA1()), algorithm=SHA1(), label=None)

COMMON_CAPS = frozenset({CommonCap.AUTH_SELECTION, CommonCap.AUTH_SPICE, CommonCap.MINI_HEADER})


class Password(NamedTuple):
    """What the client's ticket held, without its NUL; None if it could not be decrypted."""

    text: bytes | None


class _At(enum.Enum):
    HEADER = enum.auto()
    MESS = enum.auto()
    DECISION = enum.auto()
    MECHANISM = enum.auto()
    TICKET = enum.auto()
    VERDICT = enum.auto()
    RESULT = enum.auto()
    DONE = enum.auto()


def generate_key() -> rsa.RSAPrivateKey:
    """The RSA key that SPICE's link reply has room for: 1024 bits. One a process is enough."""
    return rsa.generate_private_key(public_exponent=65537, key_size=1024)


class _Link:
    """Bytes in and out, by exact counts."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._out = bytearray()
        self._at = _At.HEADER
        self._need = _HEADER_SIZE

    @property
    def done(self) -> bool:
        """The link phase is over and the channel is open."""
        return self._at is _At.DONE

    @property
    def rest(self) -> bytes:
        """What came behind the link phase: the channel's first bytes."""
        return bytes(self._buffer)

    @property
    def bytes_wanted(self) -> int:
        """How many more bytes the next step takes; reading no more leaves the rest its own."""
        return max(0, self._need - len(self._buffer))

    def data_to_send(self) -> bytes:
        data = bytes(self._out)
        self._out.clear()
        return data

    def _take(self) -> bytes | None:
        if len(self._buffer) < self._need:
            return None
        data = bytes(self._buffer[: self._need])
        del self._buffer[: self._need]
        return data

    def _go(self, at: _At, need: int) -> None:
        self._at, self._need = at, need

    def _put(self, body: bytes) -> None:
        self._out += LinkHeader(MAGIC, VERSION_MAJOR, VERSION_MINOR, len(body)).packed + body


def _header(data: bytes, low: int, high: int) -> tuple[int, LinkError]:
    """The size in a LinkHeader, and what is wrong with it."""
    header = LinkHeader.parse(data)
    if header.magic != MAGIC:
        return 0, LinkError.INVALID_MAGIC
    if header.major != VERSION_MAJOR:
        return 0, LinkError.VERSION_MISMATCH
    if not low <= header.size <= high:
        return 0, LinkError.INVALID_DATA
    return header.size, LinkError.OK


class ServerLink(_Link):
    """The server's end of the link phase; ``key`` as `generate_key` makes it.

    A breach raises RemoteProtocolError; the answer that SPICE has for it is then in
    `data_to_send` and should be sent before closing.
    """

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        super().__init__()
        self._key = key
        self.mess: LinkMess | None = None
        self.mini = False
        self.refused = False
        """The client was told no, at either question."""

    def receive_data(self, data: bytes) -> LinkMess | Password | None:
        """Take bytes; returns what needs a decision now, None while more bytes are needed."""
        self._buffer += data
        while self._at not in (_At.DECISION, _At.VERDICT, _At.DONE):
            taken = self._take()
            if taken is None:
                return None
            event = self._step(taken)
            if event is not None:
                return event
        return None

    def _step(self, data: bytes) -> LinkMess | Password | None:
        if self._at is _At.HEADER:
            size, error = _header(data, _MIN_MESS, MAX_LINK_MESSAGE)
            if error:
                self._breach(error, "link_header", data[:4].hex(" "))
            self._go(_At.MESS, size)
        elif self._at is _At.MESS:
            return self._read_mess(data)
        elif self._at is _At.MECHANISM:
            chosen = AuthMechanism.parse(data).auth_mechanism
            if chosen != AUTH_SPICE:
                self._breach(LinkError.INVALID_DATA, "auth_mechanism", f"{chosen}, only 1 is known")
            self._go(_At.TICKET, TICKET_SIZE)
        elif self._at is _At.TICKET:
            self._go(_At.VERDICT, 0)
            return Password(self._decrypt(Ticket.parse(data)))
        return None

    def _read_mess(self, data: bytes) -> LinkMess:
        try:
            mess = LinkMess.parse(data)
        except RemoteProtocolError as error:
            self._breach(LinkError.INVALID_DATA, "link_mess", f"{error.field}: {error.detail}")
        self.mess = mess
        self._go(_At.DECISION, 0)
        return mess

    def _breach(self, error: LinkError, message: str, detail: str) -> NoReturn:
        self.refuse(error)
        raise RemoteProtocolError(message, error.name.lower(), detail)

    def _decrypt(self, ticket: Ticket) -> bytes | None:
        try:
            text = self._key.decrypt(ticket.encrypted_data, _OAEP)
        except ValueError:
            return None
        return text.split(b"\0", 1)[0]

    def refuse(self, error: LinkError) -> None:
        """Answer the LinkMess with an error: 178 bytes that hold nothing else. Then close."""
        self._put(LinkReply(error, bytes(PUBLIC_KEY_SIZE), (), ()).packed)
        self.refused = True
        self._go(_At.DONE, 0)

    def accept(self, channel_caps: frozenset[int]) -> None:
        """Answer the LinkMess: go on to the ticket. ``channel_caps`` are bit numbers."""
        if self.mess is None or self._at is not _At.DECISION:
            raise LocalProtocolError("link_reply", "", "nothing to accept")
        public = self._key.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        common, channel = words_from_caps(COMMON_CAPS), words_from_caps(channel_caps)
        self._put(LinkReply(LinkError.OK, public, common, channel).packed)
        theirs = caps_from_words(self.mess.common_caps)
        self.mini = CommonCap.MINI_HEADER in theirs
        if CommonCap.AUTH_SELECTION in theirs:
            self._go(_At.MECHANISM, AuthMechanism.layout.sizeof())
        else:
            self._go(_At.TICKET, TICKET_SIZE)

    def finish(self, error: LinkError = LinkError.OK) -> None:
        """Answer the ticket. After anything but OK send it and close."""
        if self._at is not _At.VERDICT:
            raise LocalProtocolError("link_result", "", "no ticket was read")
        self._out += LinkResult(error).packed
        self.refused = error is not LinkError.OK
        self._go(_At.DONE, 0)


class ClientLink(_Link):
    """The client's end of the link phase for one channel.

    ``password`` is without its NUL. Raises LinkRefused from `receive_data` when the server says no
    and RemoteProtocolError when it is no SPICE server.
    """

    def __init__(
        self,
        *,
        connection_id: int,
        channel_type: int,
        channel_id: int,
        channel_caps: frozenset[int],
        password: bytes = b"",
    ) -> None:
        super().__init__()
        if len(password) > MAX_PASSWORD or b"\0" in password:
            raise ValueError(f"a password has at most {MAX_PASSWORD} bytes and no NUL")
        self._password = password
        self.mini = False
        self.caps: frozenset[int] = frozenset()
        mess = LinkMess(
            connection_id,
            channel_type,
            channel_id,
            words_from_caps(COMMON_CAPS),
            words_from_caps(channel_caps),
        )
        self._put(mess.packed)

    def receive_data(self, data: bytes) -> None:
        """Take bytes; `done` and `data_to_send` tell what has come of them."""
        self._buffer += data
        while self._at is not _At.DONE:
            taken = self._take()
            if taken is None:
                return
            self._step(taken)

    def _step(self, data: bytes) -> None:
        if self._at is _At.HEADER:
            size, error = _header(data, _MIN_REPLY, MAX_LINK_MESSAGE)
            if error:
                detail = f"{data[:4].hex(' ')}: is that a SPICE server?"
                raise RemoteProtocolError("link_header", error.name.lower(), detail)
            self._go(_At.MESS, size)
        elif self._at is _At.MESS:
            self._read_reply(LinkReply.parse(data))
        else:
            _check(LinkResult.parse(data).error, ticket=True)
            self._go(_At.DONE, 0)

    def _read_reply(self, reply: LinkReply) -> None:
        _check(reply.error, ticket=False)
        common = caps_from_words(reply.common_caps)
        self.caps = caps_from_words(reply.channel_caps)
        self.mini = CommonCap.MINI_HEADER in common
        if CommonCap.AUTH_SELECTION in common:
            if CommonCap.AUTH_SPICE not in common:
                raise LinkRefused(LinkError.ERROR, "the server takes no ticket (SASL only)")
            self._out += AuthMechanism(AUTH_SPICE).packed
        self._out += Ticket(self._encrypt(reply.pub_key)).packed
        self._go(_At.RESULT, LinkResult.layout.sizeof())

    def _encrypt(self, der: bytes) -> bytes:
        try:
            key = load_der_public_key(der)
            if not isinstance(key, rsa.RSAPublicKey) or key.key_size != 8 * TICKET_SIZE:
                raise RemoteProtocolError("link_reply", "pub_key", "is no RSA key of 1024 bits")
            # What loads may still be no key: an even modulus is found out here.
            return key.encrypt(self._password + b"\0", _OAEP)
        except (ValueError, UnsupportedAlgorithm, InternalError) as error:
            raise RemoteProtocolError("link_reply", "pub_key", str(error)[:100]) from None


_HINTS: dict[int, str] = {
    # Of all of them this is what spiceshm-server has for being full, and it says no more by itself.
    LinkError.ERROR: "; it may have no room for another client",
    LinkError.NEED_SECURED: "; it wants TLS, which is not spoken here",
}


def _check(code: int, *, ticket: bool) -> None:
    """Raise LinkRefused for a code that is not OK, in words that help."""
    if code == LinkError.OK:
        return
    if ticket and code == LinkError.PERMISSION_DENIED:
        raise LinkRefused(
            code,
            "permission denied: wrong or missing password (--password-file, SPICESHM_PASSWORD)",
        )
    name = LinkError(code).name.lower().replace("_", " ") if code < len(LinkError) else "unknown"
    raise LinkRefused(
        code, f"the server refused the connection: {name} ({code}){_HINTS.get(code, '')}"
    )
