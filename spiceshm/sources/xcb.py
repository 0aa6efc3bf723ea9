"""A connection to an X server that trio can wait on, over xcffib and libxcb.

*The trio loop never waits for the X server.* libxcb's own waiting is not used once a screen is
open, apart from `XConnection._attach`, which is meant for a worker thread. libxcb reads whatever is
there into queues of its own, even while it sends. So one always asks the queues first and waits for
the descriptor after. It knows no pictures.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import socket
import struct
import threading
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import trio

from ..errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

REPLY_HEAD = 32
"""Bytes of a reply in front of its data."""

EVENT_SIZE = 32

# Functions of libxcb that xcffib does not declare (in every version).
_CDEF = """
    unsigned int xcb_send_request_with_fds(xcb_connection_t *c, int flags, struct iovec *vector,
        const xcb_protocol_request_t *request, unsigned int num_fds, int *fds);
    int xcb_poll_for_reply(xcb_connection_t *c, unsigned int request, void **reply,
        xcb_generic_error_t **error);
"""


class XError(SourceError):
    """The X display cannot be used, or is gone; the text is one line that says why."""


class Refused(XError):
    """The X server answered a request with the error ``code``."""

    def __init__(self, text: str, code: int) -> None:
        self.code = code
        super().__init__(text)


class Lacking(XError):
    """The X server has not got an extension."""


class Xcb(NamedTuple):
    """xcffib with its generated modules, and our own view of the same libxcb."""

    xcffib: Any
    xproto: Any
    shm: Any
    damage: Any
    xfixes: Any
    xtest: Any
    xkb: Any
    xinput: Any
    randr: Any
    ffi: Any
    lib: Any


class XConnection:
    """One connection; `attach` and `detach` may be called from any thread, the rest in trio's."""

    _shm: Any  # the MIT-SHM extension, where there is one

    def __init__(self, xcb: Xcb, connection: Any, screen: Any, name: str) -> None:
        """Use `open`. ``connection`` is an xcffib connection, ours from now on."""
        self._xcb = xcb
        self._connection: Any = connection
        self._screen = screen
        self._root: int = screen.root
        self._name = name
        self._fd: int = connection.get_file_descriptor()
        self._gone: str | None = None  # why no more can be asked
        self._token: trio.lowlevel.TrioToken | None = None
        self._waiter: trio.Event | None = None  # set when the task that waits looks again
        self._users = 0  # threads in attach and detach, for which close has to wait
        self._leaving = threading.Condition()
        self._segments: dict[int, int] = {}  # shmseg -> size in bytes
        self._reply_at = xcb.ffi.new("void **")
        self._error_at = xcb.ffi.new("xcb_generic_error_t **")

    @classmethod
    def open(cls, display: str | None = None, cookie: bytes | None = None) -> Self:
        """Connect to ``display`` (None: $DISPLAY) and ask for what this kind of connection needs.

        ``cookie`` is an MIT-MAGIC-COOKIE-1; None: what $XAUTHORITY or ~/.Xauthority has. Blocks
        until the server has answered (well under 0.1 s on one machine), so within trio call it in a
        worker thread if the server may hang. Raises XError.
        """
        name = display if display is not None else os.environ.get("DISPLAY", "")
        if not name:
            raise XError("no X display: name one such as ':0', or set $DISPLAY")
        xcb = load()
        self = cls(xcb, *connect(xcb, name, cookie), name)
        try:
            self._start()
        except xcb.xcffib.XcffibException as error:
            self.close()
            raise XError(f"X display {name}: {type(error).__name__} {error}".rstrip()) from error
        except BaseException:
            self.close()
            raise
        return self

    def _start(self) -> None:
        """Ask for what is needed; blocks. Raises XError and xcffib's."""

    @property
    def name(self) -> str:
        """The display's name, as ``:5``."""
        return self._name

    def fileno(self) -> int:
        """The X connection's descriptor, or -1 after `close`; read it with this class alone."""
        return self._fd

    def close(self) -> None:
        """Disconnect: the server frees segments, damage and grab. Arrays stay the caller's.

        A task that is waiting gets XError, and so does a thread in `attach`. Call it in trio's
        thread, or when no task uses the screen any more. Closing twice is harmless.
        """
        if self._connection is None:
            return
        self._gone = self._gone or f"X display {self._name} was closed"
        with contextlib.suppress(RuntimeError):  # outside of trio, where no task waits either
            trio.lowlevel.notify_closing(self._fd)
        # A thread may be waiting in attach: end-of-file lets it go before the memory of the
        # connection is freed under it.
        end = socket.socket(fileno=self._fd)
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.detach()
        with self._leaving:
            self._leaving.wait_for(lambda: self._users == 0)
        self._connection.disconnect()
        self._connection, self._fd = None, -1
        self._segments.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def let_go(self) -> None:
        """Disconnect if a thread waits in `attach`: the X server may hang, and it with it."""
        if self._users:
            self.close()

    def detach(self, shmseg: int) -> None:
        """Let the X server unmap a segment; nothing happens if it or the server is gone."""
        if self._segments.pop(shmseg, None) is not None:
            with contextlib.suppress(XError), self._using(), self._sending():
                self._shm.Detach(shmseg)
            self._wake()

    def _attach(self, fd: int, size: int) -> int | None:
        lib, ffi = self._xcb.xcffib.lib, self._xcb.ffi
        try:
            with self._using():
                shmseg: int = self._connection.generate_id()
                cookie = ffi.new("xcb_void_cookie_t *")
                copy = os.dup(fd)
                cookie.sequence = self._send_attach(shmseg, copy)
                error = lib.xcb_request_check(self._connection._conn, cookie[0])
                if lib.xcb_connection_has_error(self._connection._conn):
                    _close_unsent(copy, fd)
                    raise self._lost()
                if error != ffi.NULL:
                    self._xcb.xcffib.c_free(error)
                    return None
                self._segments[shmseg] = size
                return shmseg
        except self._xcb.xcffib.ConnectionException:
            raise self._lost() from None
        finally:
            self._wake()

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        """The connection outlives this, in any thread; nobody has to wait for another in here."""
        with self._leaving:
            self._check_alive()
            self._users += 1
        try:
            yield
        finally:
            with self._leaving:
                self._users -= 1
                self._leaving.notify_all()

    def _send_attach(self, shmseg: int, copy: int) -> int:
        """Send AttachFd, writable; return the request's number. libxcb closes ``copy``.

        xcffib cannot send descriptors, hence the plain libxcb call.
        """
        ffi = self._xcb.ffi
        request = ffi.new("xcb_protocol_request_t *")
        request.count = 1
        request.ext = self._xcb.shm.key.c_key
        request.opcode = 6
        request.isvoid = 1
        body = ffi.new("char[]", struct.pack("=xx2xIB3x", shmseg, 0))
        parts = ffi.new("struct iovec[4]")  # libxcb may write to the two in front of what it gets
        parts[2].iov_base = body
        parts[2].iov_len = 12
        fds = ffi.new("int[1]", [copy])
        checked = self._xcb.xcffib.lib.XCB_REQUEST_CHECKED
        sequence: int = self._xcb.lib.xcb_send_request_with_fds(
            self._connection._conn, checked, parts + 2, request, 1, fds
        )
        return sequence

    # requests and answers

    def _extension(self, key: Any) -> Any:
        return self._xcb.xcffib.lib.xcb_get_extension_data(self._connection._conn, key.c_key)

    def _need(self, key: Any) -> tuple[Any, int]:
        """An extension, and the kind of its first event; blocks. Raises Lacking."""
        data = self._extension(key)
        if not data.present:
            raise Lacking(f"X display {self._name} lacks the extension {key.name}")
        return self._connection(key), data.first_event

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        """What is asked within goes out in one flush; a dead connection becomes XError."""
        self._check_alive()
        try:
            yield
            self._connection.flush()
        except self._xcb.xcffib.ConnectionException:
            raise self._lost() from None

    @contextlib.contextmanager
    def _discarding(self, pending: list[int]) -> Iterator[list[int]]:
        """Answers to what is still in ``pending`` at the end are dropped when they come."""
        try:
            yield pending
        finally:
            if self._connection is not None:
                for sequence in pending:
                    self._xcb.xcffib.lib.xcb_discard_reply(self._connection._conn, sequence)

    async def _reply(self, sequence: int) -> Any:
        """The reply to a request, a buffer of 32 bytes and its data. Raises Refused, XError."""
        self._token = trio.lowlevel.current_trio_token()
        while (reply := self._poll_reply(sequence)) is None:
            await self._readable()
        return reply

    async def _readable(self) -> None:
        """Return when there may be something new in libxcb's queues; several tasks may wait.

        Whoever looks takes in what is there for all of them, so all of them look again.
        """
        if self._waiter is not None:
            await self._waiter.wait()
            return
        self._waiter = trio.Event()
        try:
            # ClosedResourceError means close() or _wake(): in both cases the caller looks again.
            with contextlib.suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_readable(self._fd)
        finally:
            self._waiter.set()
            self._waiter = None

    def _wake(self) -> None:
        """Let a waiting task look at libxcb's queues again.

        A thread that waits in libxcb also reads what that task waits for; the descriptor will not
        become readable for it then.
        """
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._notify)

    def _notify(self) -> None:
        if self._fd >= 0:
            trio.lowlevel.notify_closing(self._fd)

    def _poll_reply(self, sequence: int) -> Any:
        """The reply if it is there, else None; never waits."""
        self._check_alive()
        ffi, at, error_at = self._xcb.ffi, self._reply_at, self._error_at
        c_free = self._xcb.xcffib.c_free
        if not self._xcb.lib.xcb_poll_for_reply(self._connection._conn, sequence, at, error_at):
            return None
        if error_at[0] != ffi.NULL:
            error = ffi.gc(error_at[0], c_free)
            raise self._refusal(error)
        if at[0] == ffi.NULL:
            raise self._lost()
        reply = ffi.cast("xcb_generic_reply_t *", at[0])
        # The buffer keeps the C memory alive, and so does an array made over it.
        return ffi.buffer(ffi.gc(reply, c_free), REPLY_HEAD + 4 * reply.length)

    # events

    def _pump(self) -> None:
        """Take in every event that has come; never waits. Raises XError."""
        self._check_alive()
        xcffib, ffi, conn = self._xcb.xcffib, self._xcb.ffi, self._connection._conn
        while (event := xcffib.lib.xcb_poll_for_event(conn)) != ffi.NULL:
            event = ffi.gc(event, xcffib.c_free)
            kind = event.response_type  # with bit 7 set another client made it up
            if kind == 0:
                raise self._refusal(ffi.cast("xcb_generic_error_t *", event))
            self._saw(kind, event.full_sequence, ffi.buffer(event, EVENT_SIZE))
        if xcffib.lib.xcb_connection_has_error(conn):
            raise self._lost()

    def _saw(self, kind: int, sequence: int, event: Any) -> None:
        """Called by `_pump` with each event: its 32 bytes, and the number of the last request of
        ours that the server had begun."""

    # errors

    def _check_alive(self) -> None:
        if self._gone is not None:
            raise XError(self._gone)

    def _lost(self) -> XError:
        self._gone = self._gone or f"X display {self._name} closed the connection"
        return XError(self._gone)

    def _refusal(self, error: Any) -> Refused:
        request = f"{error.major_code}.{error.minor_code}"
        text = f"X display {self._name} refused request {request} with error {error.error_code}"
        return Refused(text, error.error_code)


def _close_unsent(copy: int, original: int) -> None:
    """Close a descriptor that libxcb forgot, as it does if the connection ends before it is sent.

    Where libxcb has closed it, the number is free or names something else by now.
    """
    with contextlib.suppress(OSError):
        if os.path.sameopenfile(copy, original):
            os.close(copy)


@cache
def load() -> Xcb:
    """Import xcffib, which not everybody has. Raises XError."""
    names = ("xproto", "shm", "damage", "xfixes", "xtest", "xkb", "xinput", "randr")
    try:
        xcffib, cffi = importlib.import_module("xcffib"), importlib.import_module("cffi")
        modules = [importlib.import_module(f"xcffib.{name}") for name in names]
    except ImportError:
        raise XError("X displays need xcffib: pip install 'spiceshm[x11]'") from None
    except OSError as error:
        raise XError(f"X displays need the library libxcb (Debian: libxcb1): {error}") from None
    if not hasattr(xcffib, "c_free"):
        raise XError("X displays need xcffib 1.10 or newer: pip install 'spiceshm[x11]'")
    ffi = cffi.FFI()
    ffi.include(xcffib.ffi)  # the types, so that xcffib's connection fits
    ffi.cdef(_CDEF)
    return Xcb._make((xcffib, *modules, ffi, ffi.dlopen(xcffib.soname)))


def connect(xcb: Xcb, name: str, cookie: bytes | None = None) -> tuple[Any, Any]:
    """Connect; returns xcffib's connection and its screen. Raises XError."""
    lib, number = xcb.xcffib.lib, xcb.ffi.new("int *")
    if cookie is None:
        pointer = lib.xcb_connect(os.fsencode(name), number)
    else:
        pointer = _connect_with(xcb, name, cookie, number)
    code = lib.xcb_connection_has_error(pointer)
    if code:
        lib.xcb_disconnect(pointer)
        raise XError(_why_not(xcb, name, code))
    try:
        connection = xcb.xcffib.wrap(pointer)
    except xcb.xcffib.XcffibException:
        xcb.xcffib.lib.xcb_disconnect(pointer)
        raise XError(f"X display {name} closed the connection") from None
    return connection, connection.setup.roots[number[0]]


def _connect_with(xcb: Xcb, name: str, cookie: bytes, number: Any) -> Any:
    """What xcb_connect does, but with a cookie that is given; libxcb copies it."""
    scheme = b"MIT-MAGIC-COOKIE-1"
    auth = xcb.ffi.new("xcb_auth_info_t *")
    auth_name, auth_data = xcb.ffi.new("char[]", scheme), xcb.ffi.new("char[]", cookie)
    auth.namelen, auth.name, auth.datalen, auth.data = (
        len(scheme),
        auth_name,
        len(cookie),
        auth_data,
    )
    return xcb.xcffib.lib.xcb_connect_to_display_with_auth_info(os.fsencode(name), auth, number)


def _why_not(xcb: Xcb, name: str, code: int) -> str:
    """Find out why there is no connection: libxcb says no more than that there is none."""
    ffi, lib = xcb.ffi, xcb.xcffib.lib
    if code == lib.XCB_CONN_CLOSED_INVALID_SCREEN:
        return f"X display {name} has no such screen; leave out the number after the dot"
    host, number, screen = ffi.new("char **"), ffi.new("int *"), ffi.new("int *")
    if not lib.xcb_parse_display(os.fsencode(name), host, number, screen):
        return f"{name!r} is no X display; accepted are names such as ':0' and 'host:0'"
    remote = ffi.string(host[0]).decode(errors="replace") not in ("", "unix")
    xcb.xcffib.c_free(host[0])
    if remote:
        return f"X display {name}: nobody answers there, or this user is not let in"
    path = f"/tmp/.X11-unix/X{number[0]}"
    reached = [_knock(path), _knock("\0" + path)]
    if None in reached:
        return f"X display {name} does not let this user in; set XAUTHORITY, or ask xhost there"
    if errno.EACCES in reached:
        return f"X display {name}: no permission for {path}"
    return f"X display {name} does not exist: no server listens at {path}"


def _knock(path: str) -> int | None:
    """Try a Unix socket: None if somebody listens, else the error number."""
    with socket.socket(socket.AF_UNIX) as end:
        end.setblocking(False)
        try:
            end.connect(path)
        except BlockingIOError:
            return None
        except OSError as error:
            return error.errno
    return None
