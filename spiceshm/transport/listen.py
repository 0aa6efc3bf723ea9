"""Listening sockets: private, and never in another server's way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from ..errors import ListenError
from .address import Address, TcpAddress, UnixAddress, runtime_directory
from .forks import of_this_thread
from .stream import Stream, credentials_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

_BACKLOG = 64
_BROKEN = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)
_ACCEPT_PAUSE_S = 0.1


class Listener:
    """A listening socket. A socket file of its own is removed at `close`."""

    def __init__(self, address: Address) -> None:
        """Listen. Raises ListenError with the address and the reason."""
        self.address: Address = address
        self._identity: tuple[int, int] | None = None
        try:
            if isinstance(address, UnixAddress):
                self._socket = _listen_unix(address)
                self._identity = self._file_identity()
            else:
                self._socket = _listen_tcp(address)
                # Port 0 asks for any free one.
                self.address = TcpAddress(address.host, self._socket.getsockname()[1])
        except OSError as error:
            raise ListenError(f"{address}: {error.strerror or error}") from None
        self._socket.setblocking(False)
        of_this_thread(self._socket)

    def _file_identity(self) -> tuple[int, int] | None:
        if not isinstance(self.address, UnixAddress) or self.address.abstract:
            return None
        status = os.stat(self.address.path)
        return status.st_dev, status.st_ino

    async def serve(
        self, handle: Callable[[Stream], Awaitable[None]], nursery: trio.Nursery
    ) -> None:
        """Accept for ever, each connection in a task of its own."""
        await trio.lowlevel.checkpoint()  # it may have been closed before this task began
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            # It may have been cancelled, and its socket closed, when it was woken already.
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                if error.errno in _BROKEN:
                    raise
                # Out of descriptors for now: those connected go on, newcomers wait in the backlog.
                # Errors of the newcomer's own network are told here too.
                await trio.sleep(_ACCEPT_PAUSE_S)
                continue
            try:
                stream = Stream(sock, self._peer_of(sock))
            except MemoryError:
                sock.close()
                await trio.sleep(_ACCEPT_PAUSE_S)
                continue
            nursery.start_soon(handle, stream)

    def _peer_of(self, sock: socket.socket) -> str:
        if isinstance(self.address, TcpAddress):
            try:
                host, port = sock.getpeername()[:2]
            except OSError:
                return str(self.address)
            return str(TcpAddress(host, port))
        who = credentials_of(sock)
        return f"{self.address} pid {who.pid}" if who else str(self.address)

    def close(self) -> None:
        """Stop listening; the file goes only if it is still ours."""
        with contextlib.suppress(OSError):
            if self._identity and self._file_identity() == self._identity:
                assert isinstance(self.address, UnixAddress)
                os.unlink(self.address.path)
        if self._socket.fileno() >= 0:
            with contextlib.suppress(RuntimeError):  # outside of trio
                trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


def _listen_tcp(address: TcpAddress) -> socket.socket:
    family, kind, proto, _, target = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen_unix(address: UnixAddress) -> socket.socket:
    if address.abstract:
        return _bind(address)
    directory = Path(address.path).parent
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory == runtime_directory():
        _check_private(directory)
    # Between "nobody answers" and "bind" no other server may do the same: the directory is locked,
    # which leaves no lock file behind.
    with _locked(directory):
        _remove_stale(address)
        return _bind(address)


def _check_private(directory: Path) -> None:
    """The default directory's name can be guessed, so somebody else may have made it first."""
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ListenError(
            f"{directory} is not a directory of your own with mode 0700; "
            "remove it or name another --listen"
        )


def _bind(address: UnixAddress) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(address.raw)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_uid == os.getuid():  # elsewhere a stranger could hold the lock for ever
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_stale(address: UnixAddress) -> None:
    """Remove a socket that nobody listens on. Raises ListenError if somebody does."""
    path = Path(address.path)
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_socket():
        raise ListenError(f"{address}: there is a file of that name that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address.raw)
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # its backlog is full: alive
    raise ListenError(f"{address}: another server is listening there; name another --listen")
