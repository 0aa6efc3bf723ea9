"""The link phase: both ends against each other, and each against what it may meet.

What SPICE answers to a bad first packet is what libspice-server was seen to answer; the answers are
taken apart here by hand, with struct, so that a mistake in the layouts shows.
"""

from __future__ import annotations

import struct
from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from spiceshm.errors import LinkRefused, LocalProtocolError, RemoteProtocolError
from spiceshm.protocol import ClientLink, Password, ServerLink, generate_key
from spiceshm.protocol.link import MAX_PASSWORD
from spiceshm.wire.link import LinkMess
from spiceshm.wire.types import LinkError

AUTH_SELECTION, AUTH_SPICE, AUTH_SASL, MINI_HEADER = 1, 2, 4, 8
OAEP = padding.OAEP(mgf=padding.MGF1(SHA1()), algorithm=SHA1(), label=None)
HEAD = struct.Struct("<4s3I")


@cache
def key() -> rsa.RSAPrivateKey:
    return generate_key()


def server() -> ServerLink:
    return ServerLink(key())


def client(password: bytes = b"", caps: frozenset[int] = frozenset({1, 83})) -> ClientLink:
    return ClientLink(
        connection_id=7, channel_type=2, channel_id=0, channel_caps=caps, password=password
    )


def der(public: object) -> bytes:
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]


# Packets, by hand


def header(size: int, *, magic: bytes = b"REDQ", major: int = 2, minor: int = 2) -> bytes:
    return HEAD.pack(magic, major, minor, size)


def mess(
    common: tuple[int, ...] = (9,),
    channel: tuple[int, ...] = (),
    *,
    counts: tuple[int, int] | None = None,
    offset: int = 18,
    gap: bytes = b"",
) -> bytes:
    """Header and LinkMess; ``counts`` where they are not to be true."""
    n_common, n_channel = counts or (len(common), len(channel))
    body = struct.pack("<IBBIII", 0, 1, 0, n_common, n_channel, offset) + gap
    body += struct.pack(f"<{len(common) + len(channel)}I", *common, *channel)
    return header(len(body)) + body


def ticket(text: bytes) -> bytes:
    return key().public_key().encrypt(text, OAEP)


def reply(
    *,
    error: int = 0,
    public: bytes | None = None,
    common: tuple[int, ...] = (11,),
    channel: tuple[int, ...] = (),
    counts: tuple[int, int] | None = None,
    offset: int = 178,
) -> bytes:
    """Header and LinkReply."""
    public = der(key().public_key()) if public is None else public
    n_common, n_channel = counts or (len(common), len(channel))
    body = struct.pack("<I162s3I", error, public, n_common, n_channel, offset)
    body += struct.pack(f"<{len(common) + len(channel)}I", *common, *channel)
    return header(len(body)) + body


def parts(answer: bytes) -> tuple[int, bytes, tuple[int, ...], tuple[int, ...], bytes]:
    """Error, key, common words, channel words of a LinkReply, and what follows it."""
    magic, major, minor, size = HEAD.unpack_from(answer)
    assert (magic, major, minor) == (b"REDQ", 2, 2)
    body, rest = answer[16 : 16 + size], answer[16 + size :]
    assert len(body) == size >= 178
    error, public, n_common, n_channel, offset = struct.unpack_from("<I162s3I", body)
    words = struct.unpack_from(f"<{n_common + n_channel}I", body, offset or 178)
    assert 178 + 4 * len(words) == size
    return error, public, words[:n_common], words[n_common:], rest


def refusal(answer: bytes) -> int:
    """The error of a reply that holds nothing else."""
    error, public, common, channel, rest = parts(answer)
    assert answer[20:] == bytes(len(answer) - 20)
    assert (public, common, channel, rest) == (bytes(162), (), (), b"")
    return error


# Both ends together


def pass_on(data: bytes, receive: object, size: int | None) -> list[object]:
    size = size or max(len(data), 1)
    pieces = (data[at : at + size] for at in range(0, len(data), size))
    return [got for got in map(receive, pieces) if got is not None]  # type: ignore[arg-type]


def link_up(
    near: ClientLink,
    far: ServerLink,
    *,
    caps: frozenset[int] = frozenset({1, 83}),
    verdict: LinkError = LinkError.OK,
    size: int | None = None,
) -> tuple[LinkMess, Password]:
    """The whole link phase, ``size`` bytes a read; returns what the server was asked."""
    [hello] = pass_on(near.data_to_send(), far.receive_data, size)
    assert isinstance(hello, LinkMess)
    far.accept(caps)
    pass_on(far.data_to_send(), near.receive_data, size)
    [password] = pass_on(near.data_to_send(), far.receive_data, size)
    assert isinstance(password, Password)
    assert not far.done
    assert not near.done
    far.finish(verdict)
    pass_on(far.data_to_send(), near.receive_data, size)
    assert near.data_to_send() == far.data_to_send() == b""
    return hello, password


@pytest.mark.parametrize("size", [None, 1, 2, 17, 131, 132, 133])
def test_both_ends(size: int | None) -> None:
    near, far = client(b"secret"), server()
    hello, password = link_up(near, far, size=size)
    assert (hello.connection_id, hello.channel_type, hello.channel_id) == (7, 2, 0)
    assert hello.channel_caps == (2, 0, 1 << 19)
    assert password == Password(b"secret")
    assert near.done
    assert far.done
    assert near.mini
    assert far.mini
    assert near.caps == {1, 83}
    assert near.rest == far.rest == b""
    assert not far.refused


@pytest.mark.parametrize("count", range(33))
def test_every_number_of_capability_words(count: int) -> None:
    caps = frozenset({32 * count - 1}) if count else frozenset()
    near, far = client(caps=caps), server()
    hello, _ = link_up(near, far, caps=caps)
    assert len(hello.channel_caps) == count
    assert near.caps == caps


@pytest.mark.parametrize("count", range(33))
def test_every_number_of_words_of_both_kinds(count: int) -> None:
    words = tuple(range(1, count + 1))
    far = server()
    hello = far.receive_data(mess(words, words[::-1]))
    assert isinstance(hello, LinkMess)
    assert (hello.common_caps, hello.channel_caps) == (words, words[::-1])


@pytest.mark.parametrize("length", [0, 1, 59, MAX_PASSWORD])
def test_passwords_of_every_length(length: int) -> None:
    secret = bytes(range(1, length + 1))
    assert link_up(client(secret), server())[1] == Password(secret)


@pytest.mark.parametrize("password", [b"x" * (MAX_PASSWORD + 1), b"a\0b", b"\0"])
def test_passwords_that_have_no_place_in_a_ticket(password: bytes) -> None:
    with pytest.raises(ValueError, match="at most 60 bytes and no NUL"):
        client(password)


def test_wrong_password() -> None:
    near, far = client(b"guess"), server()
    with pytest.raises(LinkRefused, match="wrong or missing password") as caught:
        link_up(near, far, verdict=LinkError.PERMISSION_DENIED)
    assert caught.value.code == 7
    assert far.done
    assert far.refused
    assert not near.done


@pytest.mark.parametrize("error", [e for e in LinkError if e and e != LinkError.PERMISSION_DENIED])
def test_every_other_verdict(error: LinkError) -> None:
    words = error.name.lower().replace("_", " ")
    with pytest.raises(LinkRefused, match=f"{words} \\({error.value}\\)"):
        link_up(client(), server(), verdict=error)


# The server


def admitted(far: ServerLink, hello: bytes) -> bytes:
    """Accept what a client said first; returns the answer."""
    assert isinstance(far.receive_data(hello), LinkMess)
    far.accept(frozenset({0, 83}))
    return far.data_to_send()


def test_the_reply_is_what_stock_clients_expect() -> None:
    answer = admitted(server(), mess())
    error, public, common, channel, rest = parts(answer)
    assert (error, channel, rest) == (0, (1, 0, 1 << 19), b"")
    assert common == (AUTH_SELECTION | AUTH_SPICE | MINI_HEADER,)
    assert public.startswith(bytes.fromhex("30819f300d06092a"))
    assert struct.unpack_from("<I", answer, 16 + 174) == (178,)
    loaded = load_der_public_key(public)
    assert isinstance(loaded, rsa.RSAPublicKey)
    assert loaded.key_size == 1024
    assert loaded.public_numbers().e == 65537


def test_the_key_is_162_bytes() -> None:
    assert len(der(key().public_key())) == 162


@pytest.mark.parametrize("common", [(), (0,), (MINI_HEADER,), (AUTH_SPICE | AUTH_SASL,)])
def test_without_auth_selection_the_ticket_comes_at_once(common: tuple[int, ...]) -> None:
    far = server()
    admitted(far, mess(common))
    assert far.bytes_wanted == 128
    assert far.receive_data(ticket(b"secret\0")) == Password(b"secret")
    far.finish()
    assert far.data_to_send() == bytes(4)
    assert far.mini == bool(common and common[0] & MINI_HEADER)


@pytest.mark.parametrize("common", [9, 0xD, 0xF, 1])
def test_with_auth_selection_the_mechanism_comes_first(common: int) -> None:
    far = server()
    admitted(far, mess((common,)))
    assert far.bytes_wanted == 4
    assert far.receive_data(struct.pack("<I", 1)) is None
    assert far.bytes_wanted == 128
    assert far.receive_data(ticket(b"\0")) == Password(b"")
    assert far.mini == bool(common & MINI_HEADER)


def test_mechanism_and_ticket_in_one_write() -> None:
    far = server()
    admitted(far, mess())
    assert far.receive_data(struct.pack("<I", 1) + ticket(b"one\0two\0")) == Password(b"one")


FIRST_PACKETS = {
    "wrong magic": (header(18, magic=b"QDER"), 2),
    "a web browser": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 2),
    "another magic and another version": (header(18, magic=b"REDX", major=1), 2),
    "major version 1": (header(18, major=1), 4),
    "major version 3": (header(18, major=3), 4),
    "major version 0": (header(18, major=0), 4),
    "size 10": (header(10), 3),
    "size 17": (header(17), 3),
    "size 4097": (header(4097), 3),
    "size 5000": (header(5000), 3),
    "size of 4 GiB": (header(0xFFFFFFFF), 3),
    "33 common words": (mess((0,) * 33), 3),
    "33 channel words": (mess((), (0,) * 33), 3),
    "1025 words": (mess(counts=(1025, 0)), 3),
    "words that wrap": (mess(counts=(0x40000000, 0)), 3),
    "counts that wrap": (mess(counts=(0x80000000, 0x80000000)), 3),
    "a word that is not there": (mess((9,), counts=(1, 1)), 3),
    "words inside the fixed part": (mess(offset=4), 3),
    "words one byte inside it": (mess(offset=17), 3),
    "words behind the end": (mess(offset=19), 3),
    "words far behind the end": (mess(offset=0xFFFFFFFF), 3),
}


@pytest.mark.parametrize(("packet", "error"), FIRST_PACKETS.values(), ids=FIRST_PACKETS.keys())
@pytest.mark.parametrize("size", [None, 1, 5])
def test_bad_first_packets_get_the_answer_that_spice_names(
    packet: bytes, error: int, size: int | None
) -> None:
    far = server()
    with pytest.raises(RemoteProtocolError):
        pass_on(packet, far.receive_data, size)
    assert refusal(far.data_to_send()) == error
    assert far.done
    assert far.refused


GOOD_PACKETS = {
    "any minor version": header(18, minor=99) + mess((), offset=0)[16:],
    "no words, and an offset that means nothing": mess((), offset=4),
    "a gap before the words": mess((9,), (1,), offset=25, gap=b"somegap"),
    "more than the words": header(22 + 4) + mess()[16:] + bytes(4),
    "as long as may be": header(4096) + mess()[16:] + bytes(4096 - 22),
}


@pytest.mark.parametrize("packet", GOOD_PACKETS.values(), ids=GOOD_PACKETS.keys())
@pytest.mark.parametrize("size", [None, 1])
def test_odd_first_packets_that_are_good(packet: bytes, size: int | None) -> None:
    far = server()
    [hello] = pass_on(packet, far.receive_data, size)
    assert isinstance(hello, LinkMess)
    assert hello.common_caps in ((), (9,))


@pytest.mark.parametrize("mechanism", [0, 2, 9, 0xFFFFFFFF])
def test_another_mechanism_gets_a_second_reply(mechanism: int) -> None:
    far = server()
    admitted(far, mess())
    with pytest.raises(RemoteProtocolError, match="auth_mechanism"):
        far.receive_data(struct.pack("<I", mechanism) + bytes(128))
    assert refusal(far.data_to_send()) == 3


@pytest.mark.parametrize(
    "garbled",
    [bytes(128), b"\xff" * 128, b"\1" * 128, bytes(127) + b"\1"],
    ids=["zero", "all ones", "ones", "one"],
)
def test_tickets_that_cannot_be_decrypted(garbled: bytes) -> None:
    far = server()
    admitted(far, mess((8,)))
    assert far.receive_data(garbled) == Password(None)
    far.finish(LinkError.PERMISSION_DENIED)
    assert far.data_to_send() == struct.pack("<I", 7)


def test_a_ticket_for_another_key_cannot_be_decrypted() -> None:
    far = server()
    admitted(far, mess((8,)))
    other = generate_key().public_key().encrypt(b"secret\0", OAEP)
    assert far.receive_data(other) == Password(None)


def test_a_ticket_needs_no_nul() -> None:
    far = server()
    admitted(far, mess((8,)))
    assert far.receive_data(ticket(b"x" * 86)) == Password(b"x" * 86)


def test_an_unknown_session_is_told_so_in_the_result() -> None:
    far = server()
    admitted(far, mess((8,)))
    far.receive_data(ticket(b"\0"))
    far.finish(LinkError.BAD_CONNECTION_ID)
    assert far.data_to_send() == struct.pack("<I", 8)
    assert far.refused


@pytest.mark.parametrize("error", [e for e in LinkError if e])
def test_refused_at_the_first_question(error: LinkError) -> None:
    far = server()
    assert isinstance(far.receive_data(mess()), LinkMess)
    far.refuse(error)
    answer = far.data_to_send()
    assert refusal(answer) == error
    assert far.refused
    assert not far.mini
    near = client()
    near.data_to_send()
    with pytest.raises(LinkRefused) as caught:
        near.receive_data(answer)
    assert caught.value.code == error
    assert near.data_to_send() == b""


def test_answers_out_of_turn() -> None:
    far = server()
    with pytest.raises(LocalProtocolError):
        far.accept(frozenset())
    with pytest.raises(LocalProtocolError):
        far.finish()
    far.receive_data(mess())
    with pytest.raises(LocalProtocolError):
        far.finish()
    far.accept(frozenset())
    with pytest.raises(LocalProtocolError):
        far.accept(frozenset())
    assert parts(far.data_to_send())[4] == b""
    far.receive_data(struct.pack("<I", 1) + ticket(b"\0"))
    far.finish()
    with pytest.raises(LocalProtocolError):
        far.finish()
    assert far.data_to_send() == bytes(4)


@pytest.mark.parametrize("early", [True, False])
def test_bytes_behind_the_link_phase_are_kept(early: bool) -> None:
    """A client may begin to talk before it has read the result; none of it is lost."""
    far = server()
    rest = b"the channel's first bytes"
    admitted(far, mess())
    last = struct.pack("<I", 1) + ticket(b"\0")
    if early:
        assert far.receive_data(last + rest) == Password(b"")
        far.finish()
    else:
        assert far.receive_data(last) == Password(b"")
        far.finish()
        assert far.receive_data(rest) is None
    assert far.rest == rest

    near = client()
    near.data_to_send()
    near.receive_data(reply())
    if early:
        near.receive_data(bytes(4) + rest)
    else:
        near.receive_data(bytes(4))
        near.receive_data(rest)
    assert near.done
    assert near.rest == rest


def test_bytes_wanted_reads_no_byte_too_many() -> None:
    """Whoever reads no more than that leaves the channel's first bytes in the socket."""
    near, far = client(b"secret"), server()
    up, down = bytearray(), bytearray()
    while not (near.done and far.done):
        up += near.data_to_send()
        down += far.data_to_send()
        take = min(far.bytes_wanted, len(up))
        event = far.receive_data(bytes(up[:take]))
        del up[:take]
        if isinstance(event, LinkMess):
            far.accept(frozenset())
        elif isinstance(event, Password):
            far.finish()
        take = min(near.bytes_wanted, len(down))
        near.receive_data(bytes(down[:take]))
        del down[:take]
    assert near.rest == far.rest == bytes(up) == bytes(down) == b""


# The client


def test_what_the_client_says_first() -> None:
    data = client().data_to_send()
    assert data[:16] == header(18 + 4 + 12)
    assert struct.unpack("<IBBIII", data[16:34]) == (7, 2, 0, 1, 3, 18)
    assert struct.unpack("<4I", data[34:]) == (11, 2, 0, 1 << 19)


def heard(near: ClientLink, data: bytes) -> bytes:
    near.data_to_send()
    near.receive_data(data)
    return near.data_to_send()


@pytest.mark.parametrize(
    ("common", "selects", "mini"),
    [((11,), True, True), ((3,), True, False), ((8,), False, True), ((), False, False)],
)
def test_the_client_follows_the_server(common: tuple[int, ...], selects: bool, mini: bool) -> None:
    near = client(b"secret")
    answer = heard(near, reply(common=common, channel=(1, 0, 1 << 19)))
    assert answer[:-128] == (struct.pack("<I", 1) if selects else b"")
    assert key().decrypt(answer[-128:], OAEP) == b"secret\0"
    near.receive_data(bytes(4))
    assert near.done
    assert near.mini is mini
    assert near.caps == {0, 83}


def test_a_server_that_takes_no_ticket() -> None:
    with pytest.raises(LinkRefused, match="SASL only"):
        heard(client(), reply(common=(AUTH_SELECTION | AUTH_SASL | MINI_HEADER,)))


def numbers(modulus: bytes, exponent: bytes = b"\1\0\1") -> bytes:
    """A key of 162 bytes with any numbers in it."""
    good = der(key().public_key())
    return good[:29] + modulus + good[157:159] + exponent


def other_size() -> bytes:
    """162 bytes of RSA, though of 1016 bits: the exponent is a byte longer."""
    public = rsa.RSAPublicNumbers(e=0x10000001, n=(1 << 1015) + 1).public_key()
    assert len(der(public)) == 162
    return der(public)


HOSTILE_KEYS = {
    "zero": bytes(162),
    "ones": b"\xff" * 162,
    "no sequence": b"\x31" + der(key().public_key())[1:],
    "cut off": der(key().public_key())[:100] + bytes(62),
    "elliptic": der(ec.generate_private_key(ec.SECP256R1()).public_key()).ljust(162, b"\0"),
    "2048 bits": der(rsa.generate_private_key(65537, 2048).public_key())[:162],
    "1016 bits": other_size(),
    "modulus 0": numbers(bytes(128)),
    "an even modulus": numbers(b"\xc0" * 128),
    "a power of two": numbers(b"\x80" + bytes(127)),
    "exponent 0": numbers(b"\xc1" * 128, b"\0\0\0"),
    "exponent 1": numbers(b"\xc1" * 128, b"\0\0\1"),
    "a negative exponent": numbers(b"\xc1" * 128, b"\xff\xff\xff"),
}


@pytest.mark.parametrize("public", HOSTILE_KEYS.values(), ids=HOSTILE_KEYS.keys())
def test_keys_that_are_none(public: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        heard(client(), reply(public=public))
    assert (caught.value.message, caught.value.field) == ("link_reply", "pub_key")


HOSTILE_REPLIES = {
    "wrong magic": (header(178, magic=b"HTTP"), "link_header: invalid_magic"),
    "major version 1": (header(178, major=1), "link_header: version_mismatch"),
    "size 177": (header(177), "link_header: invalid_data"),
    "size 4097": (header(4097), "link_header: invalid_data"),
    "size of 4 GiB": (header(0xFFFFFFFF), "link_header: invalid_data"),
    "33 words": (reply(common=(0,) * 33), "link_reply: num_common_caps"),
    "words inside the key": (reply(offset=100), "link_reply"),
    "words behind the end": (reply(offset=179), "link_reply"),
    "a word that is not there": (reply(counts=(2, 0)), "link_reply: common_caps"),
    "counts that wrap": (reply(counts=(1 << 31, 1 << 31)), "link_reply: num_common_caps"),
}


@pytest.mark.parametrize(("data", "what"), HOSTILE_REPLIES.values(), ids=HOSTILE_REPLIES.keys())
@pytest.mark.parametrize("size", [None, 1])
def test_replies_that_are_none(data: bytes, what: str, size: int | None) -> None:
    near = client()
    near.data_to_send()
    with pytest.raises(RemoteProtocolError, match=f"^{what}"):
        pass_on(data, near.receive_data, size)
    assert near.data_to_send() == b""
    assert not near.done


@pytest.mark.parametrize("code", [*range(1, 10), 10, 255, 0x51444552, 0xFFFFFFFF])
def test_error_codes_known_and_unknown(code: int) -> None:
    name = LinkError(code).name.lower().replace("_", " ") if code < 10 else "unknown"
    error_reply = reply(error=code, public=bytes(162), common=(), offset=0)
    for data in (error_reply, reply(error=code)):
        with pytest.raises(LinkRefused, match=f"{name} \\({code}\\)") as caught:
            heard(client(), data)
        assert caught.value.code == code
    near = client()
    heard(near, reply())
    with pytest.raises(LinkRefused) as caught:
        near.receive_data(struct.pack("<I", code))
    assert caught.value.code == code
    assert not near.done


def test_a_second_reply_in_the_place_of_the_result_is_a_refusal() -> None:
    """So libspice-server answers a mechanism that it does not have."""
    near = client()
    heard(near, reply())
    with pytest.raises(LinkRefused, match="unknown"):
        near.receive_data(reply(error=3, public=bytes(162), common=(), offset=0))


def test_a_longer_reply_than_its_words_is_good() -> None:
    near = client()
    longer = reply()
    longer = header(len(longer) - 16 + 4) + longer[16:] + bytes(4)
    assert len(heard(near, longer)) == 4 + 128
    near.receive_data(bytes(4))
    assert near.done


# Any cuts, any secrets


@given(
    secret=st.binary(max_size=MAX_PASSWORD).map(lambda text: text.replace(b"\0", b"x")),
    size=st.integers(1, 300),
    ours=st.frozensets(st.integers(0, 1023), max_size=20),
    theirs=st.frozensets(st.integers(0, 1023), max_size=20),
)
@settings(deadline=None, max_examples=60)
def test_any_link_phase(
    secret: bytes, size: int, ours: frozenset[int], theirs: frozenset[int]
) -> None:
    near, far = client(secret, ours), server()
    hello, password = link_up(near, far, caps=theirs, size=size)
    assert password == Password(secret)
    assert near.caps == theirs
    words = hello.channel_caps
    assert {n for n in range(1024) if n // 32 < len(words) and words[n // 32] >> n % 32 & 1} == ours
