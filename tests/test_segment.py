"""Shared memory itself: sealed by the recipe, and mapped only after every check."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from spiceshm.errors import MemoryRefused, Refusal
from spiceshm.fds import Descriptor
from spiceshm.memory import MappedSegment, Segment
from spiceshm.memory.segment import F_SEAL_FUTURE_WRITE, PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def sealed() -> Iterator[Segment]:
    segment = Segment(3 * 8192)
    segment.seal()
    try:
        yield segment
    finally:
        segment.close()


def offered(segment: Segment) -> MappedSegment:
    return MappedSegment([segment.duplicate()], segment.size, 0, 32)


def test_the_seals_are_all_there() -> None:
    with sealed() as segment:
        seals = fcntl.fcntl(segment.fileno(), fcntl.F_GET_SEALS)
        for seal in (
            fcntl.F_SEAL_SHRINK,
            fcntl.F_SEAL_GROW,
            fcntl.F_SEAL_SEAL,
            F_SEAL_FUTURE_WRITE,
        ):
            assert seals & seal
        assert segment.sealed


def test_the_server_still_writes_and_the_client_sees_it() -> None:
    with sealed() as segment:
        client = offered(segment)
        ours, theirs = segment.pixels(PAGE, 16, 8, 64), client.pixels(PAGE, 16, 8, 64)
        ours[3, 5] = (1, 2, 3, 4)
        assert theirs[3, 5].tolist() == [1, 2, 3, 4]
        assert not theirs.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            theirs.flags.writeable = True


def test_nobody_maps_it_writable_again() -> None:
    with sealed() as segment:
        for fd in (segment.fileno(), os.open(f"/proc/self/fd/{segment.fileno()}", os.O_RDWR)):
            with pytest.raises(PermissionError):
                mmap.mmap(fd, segment.size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            with pytest.raises(PermissionError):
                os.pwrite(fd, b"x", PAGE)
            with pytest.raises(PermissionError):
                os.ftruncate(fd, PAGE)
            with pytest.raises(PermissionError):
                os.ftruncate(fd, segment.size + PAGE)
            with pytest.raises(PermissionError):
                os.posix_fallocate(fd, 0, segment.size + PAGE)
            if fd != segment.fileno():
                os.close(fd)


def test_it_stays_out_of_core_dumps() -> None:
    with sealed():
        flags = []
        with open("/proc/self/smaps") as smaps:
            ours = False
            for line in smaps:
                if "-" in line.split(" ")[0]:
                    ours = "memfd:spiceshm" in line
                elif ours and line.startswith("VmFlags:"):
                    flags.append(line.split())
        assert flags
        assert all("dd" in some for some in flags)


def test_tokens_are_fresh_apart_and_wiped() -> None:
    with sealed() as segment:
        client = offered(segment)
        first, second = segment.take_token(), segment.take_token()
        assert first is not None
        assert second is not None
        assert first[0] != second[0]
        assert first[1] != second[1]
        assert client.map[first[0] : first[0] + 32] == first[1]
        segment.give_token_back(first[0])
        assert client.map[first[0] : first[0] + 32] == bytes(32)
        assert client.map[second[0] : second[0] + 32] == second[1]
        places = [segment.take_token() for _ in range(200)]
        assert None in places  # bounded, and then refused
        assert all(place is None or place[0] + 32 <= PAGE for place in places)


def test_the_proof_is_read_where_the_token_is() -> None:
    with sealed() as segment:
        place = segment.take_token()
        assert place is not None
        offset, token = place
        assert MappedSegment([segment.duplicate()], segment.size, offset, 32).token == token


def refusal(descriptors: list[Descriptor], size: int) -> Refusal:
    with pytest.raises(MemoryRefused) as caught:
        MappedSegment(descriptors, size, 0, 32)
    assert all(descriptor.closed for descriptor in descriptors)
    return caught.value.reason


def memfd(size: int, seals: int = 0) -> Descriptor:
    fd = os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return Descriptor(fd)


def test_what_a_client_refuses() -> None:
    size = 4 * PAGE
    assert refusal([], size) is Refusal.CANNOT_MAP
    assert refusal([memfd(size, fcntl.F_SEAL_SHRINK) for _ in range(2)], size) is Refusal.CANNOT_MAP
    assert refusal([memfd(size)], size) is Refusal.NOT_SEALED
    assert refusal([memfd(size, fcntl.F_SEAL_GROW)], size) is Refusal.NOT_SEALED
    assert refusal([memfd(size - 1, fcntl.F_SEAL_SHRINK)], size) is Refusal.TOO_SMALL
    # Not sealed is answered before too small: the order is part of the protocol.
    assert refusal([memfd(0)], size) is Refusal.NOT_SEALED


def test_a_client_refuses_what_is_no_regular_file() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    assert refusal([Descriptor(reader)], PAGE) is Refusal.CANNOT_MAP
    ours, theirs = socket.socketpair()
    ours.close()
    assert refusal([Descriptor(theirs.detach())], PAGE) is Refusal.CANNOT_MAP
    for path in ("/tmp", "/dev/zero"):
        assert refusal([Descriptor(os.open(path, os.O_RDONLY))], PAGE) is Refusal.CANNOT_MAP


def test_a_client_refuses_a_file_on_disk(tmp_path) -> None:
    """It cannot be sealed, so whoever owns it could shrink it under the reader."""
    path = tmp_path / "memory"
    path.write_bytes(bytes(PAGE))
    assert refusal([Descriptor(os.open(path, os.O_RDONLY))], PAGE) is Refusal.NOT_SEALED


def test_memory_that_cannot_be_had_is_one_clear_error() -> None:
    with pytest.raises(MemoryRefused, match=r"cannot have 8589.* MB are available") as caught:
        Segment(1 << 33)
    assert caught.value.__cause__ is None


def test_memory_beyond_the_file_size_limit_does_not_kill() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(MemoryRefused, match=os.strerror(errno.EFBIG)):
            Segment(2 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_arrays_outlive_the_segment() -> None:
    made = Segment(8192)
    made.seal()
    client = offered(made)
    ours, theirs = made.pixels(PAGE, 16, 8, 64), client.pixels(PAGE, 16, 8, 64)
    made.close()
    del made, client
    ours[:] = 7
    assert (theirs == 7).all()
    assert np.shares_memory(theirs, theirs[2:4])
    # Python before 3.13 keeps a descriptor of its own in every mapping: let go of them.
    del ours, theirs
    gc.collect()
