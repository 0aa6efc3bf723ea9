"""A recording as a file: a header, then what happened, in order, and a last entry that says "end".

All is little endian and declared below. A name that ends in ``.gz`` is a file compressed by gzip.

Kept is every byte that passed, of the link phase too, with one exception: of the ticket, which is
the password encrypted for the server's key of that day, there are 128 zero bytes. What a user types
into the machine is in the file as it was typed.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from construct import (
    Bytes,
    ConstructError,
    GreedyBytes,
    Int8ul,
    Int32ul,
    Int64ul,
    Prefixed,
    Struct,
)

from spiceshm.errors import SpiceShmError
from spiceshm.wire import Sender

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"SPICEREC"
VERSION = 1
_KINDS = (Sender.CLIENT, Sender.SERVER)
_END = 2

HEADER = Struct("magic" / Bytes(len(MAGIC)), "version" / Int32ul)
ENTRY = Struct(
    "kind" / Int8ul,  # 0: of a client; 1: of a server; 2: the recording ends here
    "connection" / Int32ul,  # counted from 0 in the order in which they were made
    "time" / Int64ul,  # ns since the recording began
    "data" / Prefixed(Int32ul, GreedyBytes),  # none: that end closed the connection
)


class RecordingError(SpiceShmError):
    """What is wrong with a file, in one line that names it."""


class Event(NamedTuple):
    """What one read brought, ``time_ns`` after the recording began; no ``data``: it was closed."""

    connection: int
    sender: Sender
    time_ns: int
    data: bytes


class Writer:
    """Writes a file; without `close` it stays one that was cut off. Raises OSError."""

    def __init__(self, path: Path | str) -> None:
        self._file = open(path, "wb", opener=_private)  # noqa: SIM115
        self._out: BinaryIO = self._file
        if str(path).endswith(".gz"):
            self._out = cast("BinaryIO", gzip.GzipFile("", "wb", fileobj=self._file, mtime=0))
        self._out.write(HEADER.build({"magic": MAGIC, "version": VERSION}))

    def add(self, event: Event) -> None:
        self._put(_KINDS.index(event.sender), event.connection, event.time_ns, event.data)

    def _put(self, kind: int, connection: int, time_ns: int, data: bytes) -> None:
        fields = {"kind": kind, "connection": connection, "time": time_ns, "data": data}
        self._out.write(ENTRY.build(fields))

    def close(self) -> None:
        try:
            self._put(_END, 0, 0, b"")
            self._out.close()
        finally:
            self._file.close()


def _private(path: str, flags: int) -> int:
    """For what is typed is in it."""
    return os.open(path, flags, 0o600)


def read(path: Path | str) -> Iterator[Event]:
    """Everything in a file. Raises RecordingError, also for one that was cut off anywhere."""
    stream = io.BytesIO(_unpacked(path))
    try:
        header = HEADER.parse_stream(stream)
    except ConstructError:
        raise RecordingError(f"{path}: is no recording: it has not even a header") from None
    if header.magic != MAGIC:
        raise RecordingError(f"{path}: is no recording: it begins with {header.magic!r}")
    if header.version != VERSION:
        raise RecordingError(f"{path}: is of version {header.version}, not {VERSION}")
    while True:
        at = stream.tell()
        try:
            entry = ENTRY.parse_stream(stream)
        except ConstructError:
            raise RecordingError(f"{path}: was cut off in the entry at byte {at}") from None
        if entry.kind == _END:
            break
        if entry.kind > _END:
            raise RecordingError(f"{path}: is damaged: kind {entry.kind} at byte {at}")
        yield Event(entry.connection, _KINDS[entry.kind], entry.time, entry.data)
    if rest := len(stream.read()):
        raise RecordingError(f"{path}: is damaged: {rest} bytes behind its end")


def _unpacked(path: Path | str) -> bytes:
    try:
        data = Path(path).read_bytes()
        return gzip.decompress(data) if str(path).endswith(".gz") else data
    except EOFError:
        raise RecordingError(f"{path}: was cut off: it is no whole gzip file") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise RecordingError(f"{path}: is no gzip file: {error}") from None
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror}") from None
