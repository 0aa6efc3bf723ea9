"""Pieces of shared memory: made and sealed by a server, checked and mapped by a client.

The server's is a memfd that is filled once, mapped writable once, and then sealed so that nobody,
the server included, can ever map it writable again, write to it, or change its size: the writable
mapping made before is the only one there will be. A read-only descriptor would be no barrier, its
receiver can reopen it; the seal is one. The client believes nothing: it holds the descriptor that
it got against the size and the seals that make reading safe, for a file that can shrink kills its
reader.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import stat
import sys
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MemoryRefused, Refusal
from ..fds import Descriptor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PAGE = mmap.PAGESIZE
TOKEN_SIZE = 32
MAX_SIZE = 1 << 32
"""Most bytes of a segment; clients accept no more."""

# Absent from `fcntl` and `mmap` before Python 3.13 or altogether: <linux/fcntl.h>, <linux/memfd.h>,
# <asm-generic/mman-common.h>.
F_SEAL_FUTURE_WRITE = 0x10
MFD_NOEXEC_SEAL = 0x8
MADV_DONTDUMP = 16
MADV_POPULATE_READ = 22
MADV_POPULATE_WRITE = 23

LINUX = sys.platform == "linux"


def pages(size: int) -> int:
    """``size`` rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


class Segment:
    """Sealed memory of the server: one page of tokens, then ``size`` bytes for buffers.

    It lives as long as somebody holds it or an array over it; `close` gives up the descriptor (and
    so the means to offer it), never the mapping.
    """

    def __init__(self, size: int) -> None:
        """Make and fill the memory, not sealed yet. Raises MemoryRefused with the reason."""
        if not LINUX:
            raise MemoryRefused("shared memory needs Linux (memfd)")
        self.size = self.size_for(size)
        self.first = PAGE
        """Offset of the first byte for buffers."""
        self._descriptor = Descriptor(_create(self.size))
        try:
            self.map = _map(self._descriptor.fileno(), self.size, mmap.PROT_READ | mmap.PROT_WRITE)
        except BaseException:
            self._descriptor.close()
            raise
        _advise(self.map, MADV_DONTDUMP)
        if not _advise(self.map, MADV_POPULATE_WRITE):
            np.frombuffer(self.map, np.uint8)[::PAGE] = 0
        self._free_tokens = list(range(0, PAGE, TOKEN_SIZE))

    @staticmethod
    def size_for(size: int) -> int:
        """Bytes of a segment that has room for ``size`` bytes of buffers."""
        return PAGE + pages(size)

    def fileno(self) -> int:
        """The descriptor, still ours."""
        return self._descriptor.fileno()

    def duplicate(self) -> Descriptor:
        """A descriptor to give away."""
        return Descriptor(fcntl.fcntl(self.fileno(), fcntl.F_DUPFD_CLOEXEC, 0))

    def seal(self) -> None:
        """From here on only the mapping that exists can write, and the size is fixed.

        Whoever else shall write (an X server) must have mapped the memory before.
        """
        wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | F_SEAL_FUTURE_WRITE
        try:
            fcntl.fcntl(self.fileno(), fcntl.F_ADD_SEALS, wanted)
        except OSError as error:
            raise MemoryRefused(f"cannot seal memory: {error.strerror}") from None

    @property
    def sealed(self) -> bool:
        wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE
        return fcntl.fcntl(self.fileno(), fcntl.F_GET_SEALS) & wanted == wanted

    def take_token(self) -> tuple[int, bytes] | None:
        """Fresh random bytes in a place of the token page that is nobody else's: (offset, bytes).

        None if all 128 places are taken; so many offers are never open at once in earnest.
        """
        if not self._free_tokens:
            return None
        offset = self._free_tokens.pop()
        token = secrets.token_bytes(TOKEN_SIZE)
        self.map[offset : offset + TOKEN_SIZE] = token
        return offset, token

    def give_token_back(self, offset: int) -> None:
        """The offer with this token has been answered, or never will be."""
        self.map[offset : offset + TOKEN_SIZE] = bytes(TOKEN_SIZE)
        self._free_tokens.append(offset)

    def pixels(self, offset: int, width: int, height: int, stride: int) -> NDArray[np.uint8]:
        """A writable array (height, width, 4) over the memory at ``offset``; B, G, R, X."""
        return np.ndarray(
            (height, width, 4), np.uint8, buffer=self.map, offset=offset, strides=(stride, 4, 1)
        )

    def wipe(self) -> None:
        """Overwrite all buffers with zeros: whoever still has them mapped sees nothing any more.

        The page of tokens stays: who has not answered its offer yet shall find its token there.
        """
        np.frombuffer(self.map, np.uint8)[self.first :] = 0

    def close(self) -> None:
        self._descriptor.close()


class Budget:
    """How many bytes of shared memory may be in use at once; ``limit`` of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def allows(self, size: int) -> bool:
        return self.used + size <= self.limit

    def why_not(self, size: int) -> str | None:
        """Why so many bytes more cannot be had, in words; None if they can."""
        if self.allows(size):
            return None
        return (
            f"{size / 1e6:.1f} MB more would pass the limit of {self.limit / 1e6:.1f} MB "
            "of shared memory (--shm-limit-mb)"
        )

    def take(self, size: int) -> None:
        """Raises MemoryRefused if that would pass the limit."""
        why_not = self.why_not(size)
        if why_not is not None:
            raise MemoryRefused(why_not)
        self.used += size

    def give(self, size: int) -> None:
        self.used -= size


class MappedSegment:
    """A server's memory in a client, read-only. Arrays over it keep the mapping alive."""

    def __init__(
        self, descriptors: Sequence[Descriptor], size: int, token_offset: int, token_size: int
    ) -> None:
        """Check what came with an offer, map it, and close every descriptor, also on failure.

        ``size`` is what the offer says, in bytes, and must have been bounded before. Raises
        MemoryRefused with the reason to answer.
        """
        try:
            if len(descriptors) != 1:
                raise MemoryRefused(
                    f"{len(descriptors)} descriptors came with the offer, not one",
                    Refusal.CANNOT_MAP,
                )
            fd = descriptors[0].fileno()
            filled = _check_received(fd, size)
            self.map = _map(fd, size, mmap.PROT_READ)
        finally:
            for descriptor in descriptors:
                descriptor.close()
        self.size = size
        self.token = self.map[token_offset : token_offset + token_size]
        """The proof that this is the same memory as the server's."""
        _advise(self.map, MADV_DONTDUMP)
        if filled:  # in holes it would make the memory, on our account
            _advise(self.map, MADV_POPULATE_READ)

    def pixels(self, offset: int, width: int, height: int, stride: int) -> NDArray[np.uint8]:
        """A fresh read-only array (height, width, 4) over the memory at ``offset``; B, G, R, X.

        Every view that numpy makes of it (crops, reshapes, memoryviews) keeps this very array
        alive, so a weak reference to it tells when the last one is gone. ``offset`` and sizes must
        have been checked against `size`.
        """
        return np.ndarray(
            (height, width, 4), np.uint8, buffer=self.map, offset=offset, strides=(stride, 4, 1)
        )


def _create(size: int) -> int:
    available = _available()
    if size > min(available, MAX_SIZE):
        raise MemoryRefused(
            f"cannot have {size / 1e6:.1f} MB of shared memory: "
            f"{min(available, MAX_SIZE) / 1e6:.0f} MB are available"
        )
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        try:
            fd = os.memfd_create("spiceshm", flags | MFD_NOEXEC_SEAL)
        except OSError as error:
            if error.errno != errno.EINVAL:  # kernels before 6.3 do not know NOEXEC_SEAL
                raise
            fd = os.memfd_create("spiceshm", flags)
    except OSError as error:
        raise MemoryRefused(f"cannot create shared memory: {error.strerror}") from None
    try:
        # Not ftruncate: memory that is not there must be refused now, not kill us when touched.
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        os.close(fd)
        raise MemoryRefused(
            f"cannot have {size / 1e6:.1f} MB of shared memory: {error.strerror}"
        ) from None
    return fd


def _available() -> int:
    """Bytes that can be had without anybody being killed for it: a memfd has no limit of its own,
    so asking the kernel for too much would end in its out-of-memory killer."""
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return MAX_SIZE


def _map(fd: int, size: int, protection: int) -> mmap.mmap:
    try:
        return mmap.mmap(fd, size, mmap.MAP_SHARED, protection)
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryRefused(
            f"cannot map {size / 1e6:.1f} MB of shared memory: {error}", Refusal.CANNOT_MAP
        ) from None


def _check_received(fd: int, size: int) -> bool:
    """Regular file, cannot shrink, large enough: in the order in which reasons are answered.

    Returns whether it is all there, or has holes.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise MemoryRefused("the descriptor is no regular file", Refusal.CANNOT_MAP)
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0  # a file that cannot be sealed
    if not seals & fcntl.F_SEAL_SHRINK:
        raise MemoryRefused("the memory is not sealed against shrinking", Refusal.NOT_SEALED)
    if status.st_size < size:
        raise MemoryRefused(
            f"the memory has {status.st_size} bytes, {size} were offered", Refusal.TOO_SMALL
        )
    return status.st_blocks * 512 >= size


def _advise(mapping: mmap.mmap, advice: int) -> bool:
    """madvise where the kernel knows it; none of the advice is needed to be right."""
    try:
        mapping.madvise(advice)
    except OSError:
        return False
    return True
