"""Connected sockets on trio, where bytes and descriptors travel together.

Strategy: one task reads (`receive`), anybody sends without waiting (`send`); what the kernel does
not take is kept and written by `flush_when_writable`, one task a stream. No checkpoint, lock or
channel stands between a message and the system call. It knows no message.
"""

from __future__ import annotations

import array
import errno
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import trio

from ..errors import ConnectError, Disconnected
from ..fds import Descriptor
from .address import Address, TcpAddress, UnixAddress
from .forks import of_this_thread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

READ_SIZE = 1 << 18
_MAX_DESCRIPTORS = 16
_CONNECT_PAUSE_S = 0.02
_PROBES = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""A server that is silent for 20 s is asked whether it is there, and is gone 30 s later."""
START_ONE = "; start one with spiceshm-server"
"""What to do about a server that is not there, at the end of an error's text."""

_ROOM = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
# Plain ints, for the operators of an IntFlag are Python code.
_CLOEXEC, _TRUNCATED = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)
_NO_SIGNAL = int(socket.MSG_NOSIGNAL)
_SO_PEERCRED = struct.Struct("3i")


class PeerCredentials(NamedTuple):
    """Who is at the other end of a Unix socket, as the kernel says."""

    pid: int
    uid: int
    gid: int


class Stream:
    """A connected, non-blocking stream socket.

    ``descriptors`` tells whether the peer may pass any: then every read takes them, and a read
    never loses one. Without it those that a peer passes are closed by the kernel.
    """

    def __init__(self, sock: socket.socket, peer: str, *, descriptors: bool = False) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        of_this_thread(sock)
        self._descriptors = descriptors and sock.family == socket.AF_UNIX
        self._buffer = bytearray(READ_SIZE)
        self._view = memoryview(self._buffer)
        self._unsent: deque[tuple[memoryview, tuple[Descriptor, ...]]] = deque()
        self._blocked = trio.Event()
        self._settled = trio.Event()
        self.peer = peer
        """The other end, in words fit for a log line."""
        self.bytes_received = 0
        self.bytes_sent = 0

    @property
    def is_unix(self) -> bool:
        return self._socket.family == socket.AF_UNIX

    @property
    def pending(self) -> bool:
        """Whether bytes wait for the peer to read."""
        return bool(self._unsent)

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def credentials(self) -> PeerCredentials | None:
        """SO_PEERCRED, or None where the socket has none."""
        return credentials_of(self._socket)

    def host(self) -> str:
        """Where the peer is, the same for all its connections: an IP address, or a user.

        Raises Disconnected if it is gone.
        """
        who = self.credentials()
        if who is not None:
            return f"uid {who.uid}"
        try:
            return str(self._socket.getpeername()[0])
        except OSError as error:
            raise _lost(error) from None

    async def receive(self, most: int = READ_SIZE) -> tuple[memoryview, list[Descriptor]]:
        """Wait for bytes; returns them, good until the next call, and the descriptors with them.

        Raises Disconnected at the end of the stream. Reads at most ``most`` bytes; the kernel ends
        a read at a byte that carries descriptors.
        """
        while True:
            await self.readable()
            received = self.receive_now(most)
            if received is not None:
                return received

    async def readable(self) -> None:
        """Wait until `receive_now` finds something, if nobody else has taken it before.

        Raises Disconnected if the connection is closed here.
        """
        if self._socket.fileno() < 0:
            raise Disconnected("the connection was closed here")
        try:
            await trio.lowlevel.wait_readable(self._socket)
        except (OSError, trio.ClosedResourceError) as error:
            raise _lost(error) from None

    def receive_now(self, most: int = READ_SIZE) -> tuple[memoryview, list[Descriptor]] | None:
        """`receive` what is there already; None if nothing is."""
        try:
            count, descriptors = self._read(min(most, READ_SIZE))
        except BlockingIOError:
            return None
        except OSError as error:
            raise _lost(error) from None
        if not count:
            _close_all(descriptors)
            raise Disconnected("the other end closed the connection")
        self.bytes_received += count
        return self._view[:count], descriptors

    def _read(self, most: int) -> tuple[int, list[Descriptor]]:
        if not self._descriptors:
            return self._socket.recv_into(self._view, most), []
        # MSG_CMSG_CLOEXEC: socket.recv_fds would drop this flag.
        count, ancillary, flags, _ = self._socket.recvmsg_into([self._view[:most]], _ROOM, _CLOEXEC)
        descriptors = _descriptors(ancillary) if ancillary else []
        if flags & _TRUNCATED:
            # More came than anybody may send: as good as none.
            for descriptor in descriptors:
                descriptor.close()
            descriptors = []
        return count, descriptors

    def send(self, data: bytes | memoryview, descriptors: Sequence[Descriptor] = ()) -> None:
        """Send as much as the kernel takes now and keep the rest in order. Never waits.

        ``descriptors`` travel with the first byte of ``data``, in a sendmsg of its own, and are
        closed once they are sent. Where the kernel has too many on their way already the bytes go
        without them. Raises Disconnected if the peer is gone.
        """
        if self._unsent:
            self._unsent.append((memoryview(data), tuple(descriptors)))
            return
        left = self._try_send(data, tuple(descriptors))
        if left is not None:
            self._unsent.append(left)
            self._blocked.set()

    def send_parts(
        self, parts: Sequence[tuple[bytes | memoryview, tuple[Descriptor, ...]]]
    ) -> None:
        """`send` each of ``parts``, data and descriptors; on failure no descriptor stays open."""
        for at, (data, descriptors) in enumerate(parts):
            try:
                self.send(data, descriptors)
            except BaseException:
                for _, never_sent in parts[at + 1 :]:
                    _close_all(never_sent)
                raise

    def _try_send(
        self, data: bytes | memoryview, descriptors: tuple[Descriptor, ...]
    ) -> tuple[memoryview, tuple[Descriptor, ...]] | None:
        """Returns what the kernel did not take, None if it took all."""
        while data:
            try:
                if descriptors:
                    count = self._send_with(data, descriptors)
                else:
                    count = self._socket.send(data, _NO_SIGNAL)
            except BlockingIOError:
                return memoryview(data), descriptors
            except OSError as error:
                _close_all(descriptors)
                raise _lost(error) from None
            except BaseException:
                _close_all(descriptors)
                raise
            self.bytes_sent += count
            if descriptors:
                _close_all(descriptors)
                descriptors = ()
            if count == len(data):
                break
            data = memoryview(data)[count:]
        return None

    def _send_with(self, data: bytes | memoryview, descriptors: tuple[Descriptor, ...]) -> int:
        numbers = array.array("i", [descriptor.fileno() for descriptor in descriptors])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)]
        try:
            return self._socket.sendmsg([data], rights, _NO_SIGNAL)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            # Too many are on their way to peers that do not read, all of this user's together. This
            # peer may read well: it gets the bytes, and can say that nothing came with them.
            return self._socket.send(data, _NO_SIGNAL)

    async def flush_when_writable(self) -> None:
        """Write what `send` had to keep, whenever the peer reads again; runs until cancelled.

        Raises Disconnected if the peer is gone.
        """
        while True:
            await self._blocked.wait()
            await self._until_writable()
            self._flush()
            if not self._unsent:
                self._blocked = trio.Event()

    async def _until_writable(self) -> None:
        if self._socket.fileno() < 0:
            raise Disconnected("the connection was closed here")
        try:
            await trio.lowlevel.wait_writable(self._socket)
        except (OSError, trio.ClosedResourceError) as error:
            raise _lost(error) from None

    def _flush(self) -> None:
        while self._unsent:
            left = self._try_send(*self._unsent.popleft())
            if left is not None:
                self._unsent.appendleft(left)
                return
        self._settled.set()

    async def settled(self) -> None:
        """Wait until everything is with the kernel, while another task flushes.

        Who answers whatever comes waits here before reading on, so that a peer that asks and never
        reads costs no memory.
        """
        while self._unsent:
            if self._settled.is_set():
                self._settled = trio.Event()
            await self._settled.wait()

    async def drain(self) -> None:
        """Wait until everything is with the kernel; for streams without a flushing task."""
        while self._unsent:
            await self._until_writable()
            self._flush()

    def close(self) -> None:
        """Close the socket and what was never sent; wakes whoever waits on it. Harmless twice."""
        for _, descriptors in self._unsent:
            _close_all(descriptors)
        self._unsent.clear()
        self._settled.set()
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def credentials_of(sock: socket.socket) -> PeerCredentials | None:
    """SO_PEERCRED of a Unix socket, or None where there is no such thing."""
    if sock.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        return None
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _SO_PEERCRED.size)
    return PeerCredentials(*_SO_PEERCRED.unpack(raw))


async def open_stream(address: Address, *, descriptors: bool = False) -> Stream:
    """Connect. Raises ConnectError that names the address and what to do about it."""
    try:
        if isinstance(address, UnixAddress):
            sock = await _connect_unix(address)
        else:
            sock = await _connect_tcp(address)
    except OSError as error:
        raise ConnectError(f"{address}: {_explain(error)}") from None
    return Stream(sock, str(address), descriptors=descriptors)


async def _connect_unix(address: UnixAddress) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            await trio.lowlevel.checkpoint()
            try:
                sock.connect(address.raw)
            except BlockingIOError:
                # The server's backlog is full, and nothing tells when there is room again.
                await trio.sleep(_CONNECT_PAUSE_S)
            else:
                return sock
    except BaseException:
        sock.close()
        raise


async def _connect_tcp(address: TcpAddress) -> socket.socket:
    sock = (await trio.open_tcp_stream(address.host, address.port)).socket
    # Who only listens would never learn that the host at the other end, or the way there, is gone.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    # Without trio's wrapper, whose every call is a turn of the scheduler.
    return socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())


def _explain(error: OSError) -> str:
    # Where a name has several addresses, the reasons are in the cause.
    cause = error.__cause__ or error
    causes = cause.exceptions if isinstance(cause, BaseExceptionGroup) else (cause,)
    if all(isinstance(one, FileNotFoundError | ConnectionRefusedError) for one in causes):
        return f"no server is listening there{START_ONE}"
    return getattr(causes[-1], "strerror", None) or str(error)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[Descriptor]:
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return [Descriptor(number) for number in numbers]


def _close_all(descriptors: Sequence[Descriptor]) -> None:
    for descriptor in descriptors:
        descriptor.close()


def _lost(error: Exception) -> Disconnected:
    """Whatever a system call says of a peer or a socket, for us that connection is over.

    Not only of a peer that is gone: a descriptor may be refused too, and that must end one
    connection, nothing else.
    """
    if isinstance(error, trio.ClosedResourceError):
        return Disconnected("the connection was closed here")
    assert isinstance(error, OSError)
    if error.errno == errno.EBADF:
        return Disconnected("the connection was closed here")
    return Disconnected(f"the connection broke: {error.strerror or error}")
