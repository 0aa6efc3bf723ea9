"""The extension: a display channel whose pixels lie in shared memory (see protocol/README.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from construct import (
    Bytes,
    Default,
    Int8ul,
    Int16ul,
    Int32ul,
    Int64ul,
    Padding,
    Rebuild,
    Struct,
    len_,
    this,
)

from .message import Message, Sender, message
from .types import MAX_RECTS, MAX_SIDE, Rects, between, one_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OFFER_MAGIC = b"SHM1"
OFFER_VERSION = 1
MAX_NAME = 4096
MAX_SEGMENT_SIZE = 1 << 32
MIN_TOKEN = 16
MAX_TOKEN = 64
MAX_CREDITS = 8
FLAG_SEALED = 1
FLAG_FULL = 1
FLAG_IN_PLACE = 1
MODE_LEASED = 0
MODE_IN_PLACE = 1
HANDLE_DESCRIPTOR = 1
HANDLE_FILE = 2
HANDLE_IVSHMEM = 3
DESCRIPTOR_BYTE = b"@"
"""The byte that carries the descriptor behind an offer with HANDLE_DESCRIPTOR."""

FIRST_NUMBER, LAST_NUMBER = 460, 479
"""The extension's block of numbers, in both directions."""


@message("display", Sender.SERVER, 460)
class ShmOffer(Message):
    """A segment of memory is on offer.

    The layout checks only what makes the length add up: every other bad value must be answered
    with SHM_REPLY "malformed", not end the connection.
    """

    layout = Struct(
        "magic" / Bytes(4),
        "version" / Int16ul,
        "reserved" / Default(Int16ul, 0),
        "segment_id" / Int32ul,
        "handle" / Int8ul,
        "flags" / Int8ul,
        "credits" / Int8ul,
        "reserved2" / Default(Int8ul, 0),
        "size" / Int64ul,
        "token_offset" / Int64ul,
        "token_size" / Int32ul,
        "name_size" / Rebuild(Int32ul, len_(this.name)),
        "name" / Bytes(this.name_size),
    )
    magic: bytes
    version: int
    segment_id: int
    handle: int
    flags: int
    credits: int
    size: int
    token_offset: int
    token_size: int
    name: bytes = b""


@message("display", Sender.SERVER, 461)
class ShmDamage(Message):
    """These pixels are new; ``rects`` is an array (n, 4) of int32: top, left, bottom, right.

    ``published`` is CLOCK_MONOTONIC of the server in ns when the frame became current, 0 unknown.
    """

    layout = Struct(
        "surface_id" / Int32ul,
        "segment_id" / Int32ul,
        "shm_offset" / Int64ul,
        "serial" / Int64ul,
        "published" / Int64ul,
        "flags" / Int32ul,
        "reserved" / Default(Int32ul, 0),
        "n" / Rebuild(between(Int32ul, 1, MAX_RECTS), lambda ctx: len(ctx.rects)),
        "reserved2" / Default(Int32ul, 0),
        "rects" / Rects(this.n),
    )
    surface_id: int
    segment_id: int
    shm_offset: int
    serial: int
    published: int
    flags: int
    rects: NDArray[np.int32]


@message("display", Sender.SERVER, 462)
class SurfaceCreateShm(Message):
    """The primary surface, its pixels in shared memory; ``stride`` in bytes."""

    layout = Struct(
        "surface_id" / Int32ul,
        "width" / between(Int32ul, 1, MAX_SIDE),
        "height" / between(Int32ul, 1, MAX_SIDE),
        "format" / one_of(Int32ul, 32, 96),
        "flags" / Int32ul,
        "segment_id" / Int32ul,
        "stride" / Int32ul,
        "shm_offset" / Int64ul,
        "mode" / one_of(Int8ul, MODE_LEASED, MODE_IN_PLACE),
        "reserved" / Padding(7),
    )
    surface_id: int
    width: int
    height: int
    format: int
    flags: int
    segment_id: int
    stride: int
    shm_offset: int
    mode: int


@message("display", Sender.SERVER, 463)
class ShmWithdraw(Message):
    """The server will not write or name this segment again."""

    layout = Struct("segment_id" / Int32ul)
    segment_id: int


@message("display", Sender.CLIENT, 460)
class ShmReply(Message):
    """The answer to one offer; ``proof`` is what the client read at the offer's token_offset.

    ``reason`` is a `Refusal` where ``accepted`` is 0.
    """

    layout = Struct(
        "segment_id" / Int32ul,
        "accepted" / one_of(Int8ul, 0, 1),
        "reason" / Int8ul,
        "credits" / Int8ul,
        "flags" / Int8ul,
        "proof_size" / Rebuild(between(Int32ul, 0, MAX_TOKEN), len_(this.proof)),
        "nonce_size" / Rebuild(between(Int32ul, 0, MAX_TOKEN), len_(this.nonce)),
        "proof" / Bytes(this.proof_size),
        "nonce" / Bytes(this.nonce_size),
    )
    segment_id: int
    accepted: int
    reason: int
    credits: int
    flags: int
    proof: bytes
    nonce: bytes = b""


@message("display", Sender.CLIENT, 461)
class ShmDamageHandled(Message):
    """The lease on exactly the frame ``serial`` is over."""

    layout = Struct("surface_id" / Int32ul, "reserved" / Default(Int32ul, 0), "serial" / Int64ul)
    surface_id: int
    serial: int
