"""Sockets: which addresses are accepted, who may listen where, what arrives of what was sent.

Everything is a real socket of this kernel. Where it takes a second process (races for a name, too
few descriptors), it is one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import select
import socket
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from spiceshm.errors import AddressError, ConnectError, Disconnected, ListenError
from spiceshm.fds import Descriptor
from spiceshm.transport import (
    Listener,
    Stream,
    TcpAddress,
    UnixAddress,
    default_address,
    open_stream,
    parse_address,
)
from tests.programs import (
    NO_PRIVILEGES,
    limited,
    script,
    short_directory,
    until,
    without_privileges,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from spiceshm.transport import Address

IPV6 = Path("/proc/net/if_inet6").exists() and "lo" in Path("/proc/net/if_inet6").read_text()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for sockets."""
    with short_directory() as path:
        yield path


# Addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/a.sock", UnixAddress("/run/a.sock")),
        ("unix:/run/with space", UnixAddress("/run/with space")),
        ("unix:/run/100%25", UnixAddress("/run/100%25")),
        ("unix:@name", UnixAddress("@name")),
        ("unix:/" + "a" * 106, UnixAddress("/" + "a" * 106)),
        ("unix:@" + "a" * 106, UnixAddress("@" + "a" * 106)),
        ("tcp:localhost:5930", TcpAddress("localhost", 5930)),
        ("tcp:Host.Example:1", TcpAddress("host.example", 1)),
        ("tcp:127.0.0.1:0", TcpAddress("127.0.0.1", 0)),
        ("tcp:[::1]:65535", TcpAddress("::1", 65535)),
        ("tcp:[fe80::1%eth0]:5930", TcpAddress("fe80::1%eth0", 5930)),
        ("spice://127.0.0.1:5930", TcpAddress("127.0.0.1", 5930)),
        ("spice://[::1]:5930/", TcpAddress("::1", 5930)),
        ("spice+unix:///run/a.sock", UnixAddress("/run/a.sock")),
        ("spice+unix:///run/with%20space/100%25", UnixAddress("/run/with space/100%")),
        ("spice+unix:///run/%C3%A4", UnixAddress("/run/ä")),
        ("spice+unix:///run/%FF", UnixAddress("/run/\udcff")),
    ],
)
def test_every_accepted_form(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/run/a.sock",
        "UNIX:/run/a.sock",
        "vnc://localhost:5900",
        "spice+tls://localhost:5900",
        "spice+unix:/run/a.sock",
        "unix:",
        "unix:@",
        "unix:relative",
        "unix:/a\0b",
        "unix:@a\0b",
        "unix:/" + "a" * 107,
        "unix:@" + "a" * 107,
        "unix:/" + "ä" * 54,
        "spice+unix://",
        "spice+unix://host/run/a.sock",
        "spice+unix:///a%00b",
        "spice+unix:///" + "%61" * 107,
        "tcp:",
        "tcp:5930",
        "tcp:localhost",
        "tcp:localhost:",
        "tcp::5930",
        "tcp:localhost:x",
        "tcp:localhost:-1",
        "tcp:localhost:+1",
        "tcp:localhost:65536",
        "tcp:localhost:" + "9" * 5000,
        "tcp:localhost:٣",
        "tcp:local host:1",
        "tcp:localhost\n:1",
        "tcp:localhost:1 ",
        "tcp:user@localhost:1",
        "tcp:localhost:1/path",
        "tcp:localhost:1?query",
        "tcp:::1:5930",
        "tcp:[::1]",
        "tcp:[::1]5930",
        "tcp:[::1]x:5930",
        "tcp:[::1:5930",
        "tcp:[]:5930",
        "tcp:[localhost]:5930",
        "tcp:a..b:5930",
        "tcp:" + "a" * 64 + ":5930",
        "spice://localhost",
        "spice://localhost:0",
        "spice://localhost:5900/path",
        "spice://localhost:5900?tls-port=5901",
    ],
)
def test_a_bad_address_is_told_what_is_accepted(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    said = str(caught.value)
    assert said.endswith(
        "accepted: unix:/path, unix:@name, tcp:host:port, spice://host:port or spice+unix:///path"
    )
    assert said.startswith(repr(text))
    assert "\n" not in said


@pytest.mark.parametrize(
    "address",
    [
        UnixAddress("/run/a.sock"),
        UnixAddress("/run/with space, 100%, ä, \udcff and ?query#fragment"),
        TcpAddress("localhost", 5930),
        TcpAddress("::1", 5930),
    ],
)
def test_text_and_uri_of_an_address_lead_back_to_it(address: Address) -> None:
    assert parse_address(str(address)) == address
    assert address.uri is not None
    assert parse_address(address.uri) == address


def test_an_abstract_socket_has_no_uri() -> None:
    address = parse_address("unix:@name")
    assert isinstance(address, UnixAddress)
    assert address.uri is None
    assert address.abstract
    assert address.raw == "\0name"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("localhost.example", False),
        ("example", False),
    ],
)
def test_what_counts_as_loopback(host: str, loopback: bool) -> None:
    assert TcpAddress(host, 1).loopback is loopback


def test_the_default_address(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    assert default_address() == UnixAddress(f"{place}/spiceshm/display.sock")

    own = UnixAddress(f"{place}/spiceshm-{os.getuid()}/display.sock")
    monkeypatch.setattr("tempfile.tempdir", str(place))
    for wrong in (f"{place}/nothing", "", "relative"):
        monkeypatch.chdir(place)
        place.joinpath("relative").mkdir(exist_ok=True)
        monkeypatch.setenv("XDG_RUNTIME_DIR", wrong)
        assert default_address() == own
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_address() == own


# Listening


@contextlib.contextmanager
def listening(address: Address) -> Iterator[Listener]:
    listener = Listener(address)
    try:
        yield listener
    finally:
        listener.close()


def stale_socket(path: Path) -> None:
    """What a server leaves behind that was killed."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


def connects(address: Address) -> bool:
    """Whether somebody listens there, by the kernel's word."""
    if isinstance(address, TcpAddress):
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        target: Any = (address.host, address.port)
    else:
        family, target = socket.AF_UNIX, address.raw
    with socket.socket(family) as sock:
        return sock.connect_ex(target) == 0


def test_a_stale_socket_is_replaced(place: Path) -> None:
    path = place / "s"
    stale_socket(path)
    before = path.stat().st_ctime_ns
    with listening(UnixAddress(str(path))) as listener:
        assert connects(listener.address)
        assert path.stat().st_ctime_ns != before
    assert not path.exists()


def test_a_symbolic_link_to_a_stale_socket_is_replaced_itself(place: Path) -> None:
    stale_socket(place / "elsewhere")
    (place / "s").symlink_to("elsewhere")
    with listening(UnixAddress(str(place / "s"))) as listener:
        assert connects(listener.address)
        assert not (place / "s").is_symlink()
    assert (place / "elsewhere").is_socket()


def test_a_living_server_is_left_alone(place: Path) -> None:
    address = UnixAddress(str(place / "s"))
    with listening(address):
        with pytest.raises(ListenError) as caught:
            Listener(address)
        assert str(caught.value) == (
            f"{address}: another server is listening there; name another --listen"
        )
        assert connects(address)


def test_a_living_server_whose_backlog_is_full_is_left_alone(place: Path) -> None:
    address = UnixAddress(str(place / "s"))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(address.path)
        server.listen(0)
        fill_backlog(address, stack)
        with pytest.raises(ListenError, match="another server is listening there"):
            Listener(address)
        server.accept()[0].close()
        assert connects(address)


def fill_backlog(address: UnixAddress, stack: contextlib.ExitStack) -> None:
    for _ in range(100):
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.setblocking(False)
        if client.connect_ex(address.path) == errno.EAGAIN:
            return
    raise AssertionError("the backlog never got full")


def test_a_living_abstract_server_is_left_alone() -> None:
    address = UnixAddress(f"@spiceshm-test-{os.getpid()}")
    with listening(address):
        with pytest.raises(ListenError, match=re.escape(f"{address}: Address already in use")):
            Listener(address)
        assert connects(address)
    with listening(address):  # nothing of it stays
        pass


@pytest.mark.parametrize("what", ["file", "directory", "link to a file", "link to nothing", "fifo"])
def test_what_is_no_socket_is_not_touched(place: Path, what: str) -> None:
    path = place / "s"
    (place / "file").write_text("precious")
    match what:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "link to a file":
            path.symlink_to("file")
        case "link to nothing":
            path.symlink_to("nothing")
        case "fifo":
            os.mkfifo(path)
    before = path.lstat()
    with pytest.raises(ListenError) as caught:
        Listener(UnixAddress(str(path)))
    assert str(caught.value) == f"unix:{path}: there is a file of that name that is no socket"
    assert os.path.samestat(path.lstat(), before)
    assert (place / "file").read_text() == "precious"


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_sockets_and_their_directories_are_private(place: Path, umask: int) -> None:
    path = place / "new" / "s"
    with listening(UnixAddress(str(path))):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    now = os.umask(umask)
    assert now == umask


@pytest.mark.parametrize("what", ["mode", "owner", "link", "file"])
def test_a_default_directory_that_somebody_else_may_have_made_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    directory = place / "spiceshm"
    match what:
        case "mode":
            directory.mkdir(mode=0o700)
            directory.chmod(0o750)
        case "owner":
            directory.mkdir(mode=0o700)
            monkeypatch.setattr("os.getuid", lambda: directory.stat().st_uid + 1)
        case "link":
            (place / "real").mkdir(mode=0o700)
            directory.symlink_to("real")
        case "file":
            directory.write_text("")
    with pytest.raises(ListenError) as caught:
        Listener(default_address())
    said = str(caught.value)
    if what == "file":
        assert said == f"unix:{directory}/display.sock: File exists"
    else:
        assert said == (
            f"{directory} is not a directory of your own with mode 0700; "
            "remove it or name another --listen"
        )
    assert directory.is_file() or os.listdir(directory) == []


def test_the_default_directory_is_made_and_used(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    for _ in range(2):
        with listening(default_address()) as listener:
            assert connects(listener.address)
        assert os.listdir(place / "spiceshm") == []


@pytest.mark.parametrize("instead", ["nothing", "a file", "another socket"])
def test_at_close_only_our_own_file_goes(place: Path, instead: str) -> None:
    path = place / "s"
    listener = Listener(UnixAddress(str(path)))
    os.rename(path, place / "moved")
    if instead == "a file":
        path.write_text("precious")
    elif instead == "another socket":
        stale_socket(path)
    left = sorted(os.listdir(place))
    listener.close()
    assert sorted(os.listdir(place)) == left
    listener.close()  # harmless twice


RACER = """
import json, sys, time
from spiceshm.errors import ListenError
from spiceshm.transport import Listener, UnixAddress
print("ready", flush=True)
for line in sys.stdin:
    path, start = json.loads(line)
    while time.monotonic() < start:
        pass
    try:
        listener = Listener(UnixAddress(path))
    except ListenError as error:
        print(json.dumps(str(error)), flush=True)
        sys.stdin.readline()
    else:
        print(json.dumps("won"), flush=True)
        sys.stdin.readline()
        listener.close()
    print("closed", flush=True)
"""


def test_of_two_servers_that_race_for_a_stale_name_one_wins(place: Path) -> None:
    with contextlib.ExitStack() as stack:
        racers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", RACER],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(2)
        ]
        for racer in racers:
            stack.callback(racer.kill)
            assert answer(racer) == "ready"
        winners = [0, 0]
        for at in range(300):
            path = place / f"s{at}"
            stale_socket(path)
            start = time.monotonic() + 0.001
            for racer in racers:
                tell(racer, json.dumps([str(path), start]))
            outcomes = [json.loads(answer(racer)) for racer in racers]
            assert sorted(outcomes) == [
                f"unix:{path}: another server is listening there; name another --listen",
                "won",
            ]
            assert connects(UnixAddress(str(path)))
            winners[outcomes.index("won")] += 1
            for racer in racers:
                tell(racer, "close")
            assert [answer(racer) for racer in racers] == ["closed", "closed"]
            assert not path.exists()
        assert all(winners), "it was no race"


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def test_no_permission_is_one_line(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir()
    with listening(UnixAddress(str(closed / "there"))) as listener:
        closed.chmod(0o000)
        address = UnixAddress(str(closed / "s"))
        with pytest.raises(ListenError) as listen:
            without_privileges(lambda: Listener(address))
        assert str(listen.value) == f"{address}: Permission denied"
        with pytest.raises(ConnectError) as connect:
            without_privileges(lambda: trio.run(open_stream, listener.address))
        assert str(connect.value) == f"{listener.address}: Permission denied"
        closed.chmod(0o700)


def test_a_directory_that_cannot_be_made_is_one_line(place: Path) -> None:
    (place / "file").write_text("")
    address = UnixAddress(str(place / "file" / "s"))
    with pytest.raises(ListenError, match=f"^{re.escape(str(address))}: (File exists|Not a dir)"):
        Listener(address)


def test_a_host_or_address_that_is_not_ours_is_one_line() -> None:
    for address, why in (
        # A scope without an interface is looked up without asking any name server.
        (TcpAddress("fe80::1%nosuchif", 1), "Name or service not known"),
        (TcpAddress("192.0.2.1", 0), "Cannot assign requested address"),
    ):
        with pytest.raises(ListenError) as caught:
            Listener(address)
        assert str(caught.value) == f"{address}: {why}"


def test_port_0_is_any_free_port_and_a_port_in_use_is_refused() -> None:
    with listening(TcpAddress("127.0.0.1", 0)) as listener:
        address = listener.address
        assert isinstance(address, TcpAddress)
        assert address.host == "127.0.0.1"
        assert address.port > 0
        assert connects(address)
        with pytest.raises(ListenError) as caught:
            Listener(address)
        assert str(caught.value) == f"{address}: Address already in use"
        assert connects(address)


@pytest.mark.skipif(not IPV6, reason="no IPv6 here")
async def test_ipv6(nursery: trio.Nursery) -> None:
    with listening(TcpAddress("::1", 0)) as listener:
        accepted = Accepted()
        nursery.start_soon(listener.serve, accepted.take, nursery)
        with await open_stream(parse_address(str(listener.address))) as stream:
            with await accepted.next() as server:
                assert re.fullmatch(r"tcp:\[::1\]:\d+", server.peer)
                assert stream.peer == str(listener.address)
                server.send(b"hello")
                assert bytes((await stream.receive())[0]) == b"hello"
        nursery.cancel_scope.cancel()


async def test_a_host_that_vanishes_is_noticed_within_a_minute() -> None:
    """Nothing else tells who only listens: a relay would wait for ever for a machine that moved."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with await open_stream(TcpAddress("127.0.0.1", listener.getsockname()[1])) as stream:
            with socket.socket(fileno=os.dup(stream.fileno())) as same:
                assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                idle, interval, count = (
                    same.getsockopt(socket.IPPROTO_TCP, option)
                    for option in (
                        socket.TCP_KEEPIDLE,
                        socket.TCP_KEEPINTVL,
                        socket.TCP_KEEPCNT,
                    )
                )
                assert idle + interval * count <= 60


# Accepting


class Accepted:
    """What a listener hands over, one after the other."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Stream](100)

    async def take(self, stream: Stream) -> None:
        await self._send.send(stream)

    async def next(self) -> Stream:
        with trio.fail_after(10):
            return await self._receive.receive()


@pytest.fixture
async def accepting(place: Path, nursery: trio.Nursery) -> AsyncIterator[tuple[Listener, Accepted]]:
    """A listener at a Unix socket that is being served."""
    with listening(UnixAddress(str(place / "s"))) as listener:
        accepted = Accepted()
        nursery.start_soon(listener.serve, accepted.take, nursery)
        yield listener, accepted
        nursery.cancel_scope.cancel()


async def test_somebody_who_comes_just_as_it_ends(place: Path) -> None:
    async def refuse(stream: Stream) -> None:
        stream.close()

    for attempt in range(20):  # who of the two runs first is random
        address = UnixAddress(str(place / str(attempt)))
        async with trio.open_nursery() as nursery:
            with listening(address) as listener, socket.socket(socket.AF_UNIX) as client:
                nursery.start_soon(listener.serve, refuse, nursery)
                await trio.testing.wait_all_tasks_blocked()
                client.connect(address.path)
                await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()


async def test_the_kernel_says_who_connects(accepting: tuple[Listener, Accepted]) -> None:
    listener, accepted = accepting
    assert isinstance(listener.address, UnixAddress)
    source = """if True:
        import socket, sys
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(sys.argv[1])
        sock.recv(1)
    """
    with script(source, listener.address.path) as program:
        with await accepted.next() as stream:
            assert stream.peer == f"{listener.address} pid {program.pid}"
            assert stream.credentials() == (program.pid, os.getuid(), os.getgid())
            assert stream.host() == f"uid {os.getuid()}"
            assert stream.is_unix


async def test_there_are_no_credentials_over_tcp(nursery: trio.Nursery) -> None:
    with listening(TcpAddress("127.0.0.1", 0)) as listener:
        accepted = Accepted()
        nursery.start_soon(listener.serve, accepted.take, nursery)
        with await open_stream(listener.address) as stream, await accepted.next() as server:
            for one in (stream, server):
                assert one.credentials() is None
                assert not one.is_unix
            host, port = stream._socket.getsockname()
            assert server.peer == f"tcp:{host}:{port}"
            assert server.host() == host
        with pytest.raises(Disconnected):
            server.host()
        nursery.cancel_scope.cancel()


async def test_connecting_waits_while_the_backlog_is_full(
    place: Path, nursery: trio.Nursery
) -> None:
    address = UnixAddress(str(place / "s"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address.path)
        server.listen(0)
        with contextlib.ExitStack() as others:
            fill_backlog(address, others)
            with trio.move_on_after(0.1) as scope:
                await open_stream(address)
            assert scope.cancelled_caught
        nursery.start_soon(accept_until, server, b"hello")
        with trio.fail_after(10), await open_stream(address) as stream:
            stream.send(b"hello")
            with pytest.raises(Disconnected):
                await stream.receive()


async def accept_until(server: socket.socket, word: bytes) -> None:
    """Accept and close until somebody says ``word``."""
    server.setblocking(False)
    while True:
        await trio.lowlevel.wait_readable(server)
        sock, _ = server.accept()
        with sock:
            sock.setblocking(False)
            await trio.lowlevel.wait_readable(sock)
            if sock.recv(100) == word:
                return


@pytest.mark.parametrize("kind", ["no file", "stale", "no socket", "port"])
async def test_where_nobody_listens_the_error_says_what_to_do(place: Path, kind: str) -> None:
    address: Address = UnixAddress(str(place / "s"))
    match kind:
        case "stale":
            stale_socket(place / "s")
        case "no socket":
            (place / "s").write_text("")
        case "port":
            with listening(TcpAddress("127.0.0.1", 0)) as listener:
                address = listener.address
    with pytest.raises(ConnectError) as caught:
        await open_stream(address)
    assert str(caught.value) == (
        f"{address}: no server is listening there; start one with spiceshm-server"
    )


async def test_a_host_that_is_not_known_is_one_line() -> None:
    with pytest.raises(ConnectError) as caught:
        await open_stream(TcpAddress("fe80::1%nosuchif", 1))
    assert str(caught.value) == "tcp:[fe80::1%nosuchif]:1: Name or service not known"


ECHO = """
import socket, sys, trio
from spiceshm.errors import Disconnected
from spiceshm.transport import Listener, UnixAddress

async def echo(stream):
    with stream:
        while True:
            try:
                data, _ = await stream.receive()
                stream.send(bytes(data))
            except Disconnected:
                return

async def main():
    listener = Listener(UnixAddress(sys.argv[1]))
    print("listening", flush=True)
    async with trio.open_nursery() as nursery:
        await listener.serve(echo, nursery)

trio.run(main)
"""


def test_out_of_descriptors_those_connected_go_on_and_newcomers_wait(place: Path) -> None:
    path = str(place / "s")
    with script(ECHO, path, prelude=limited(NOFILE=32)) as server, contextlib.ExitStack() as stack:
        assert server.line() == "listening"
        first = stack.enter_context(dial(path))
        assert echoes(first)
        # More than it has descriptors, fewer than may wait in its backlog.
        crowd = [stack.enter_context(dial(path)) for _ in range(40)]
        for connection in crowd:
            connection.send(b"?")
        until(lambda: len(os.listdir(f"/proc/{server.pid}/fd")) >= 32)
        assert 0 < len(answered(crowd)) < len(crowd)
        assert echoes(first)
        while crowd:  # each that leaves makes room for another
            for connection in until(lambda: answered(crowd)):
                crowd.remove(connection)
                connection.close()
        assert echoes(first)
        assert server.status is None
        assert server.errors == ""


def dial(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(path)
    return sock


def echoes(sock: socket.socket) -> bool:
    sock.send(b"?")
    return sock.recv(100) == b"?"


def answered(socks: list[socket.socket]) -> list[socket.socket]:
    return select.select(socks, [], [], 0)[0]


# Streams


@contextlib.contextmanager
def pair(*, descriptors: bool = True) -> Iterator[tuple[Stream, socket.socket]]:
    """A stream of ours, and the other end as a plain blocking socket."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    with theirs, Stream(ours, "peer", descriptors=descriptors) as stream:
        yield stream, theirs


@contextlib.contextmanager
def tcp_pair() -> Iterator[tuple[Stream, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    theirs.settimeout(10)
    with theirs, Stream(ours, "peer") as stream:
        yield stream, theirs


@pytest.fixture
def memory() -> Iterator[Callable[[], Descriptor]]:
    """Makes descriptors of one file."""
    with Descriptor(os.memfd_create("test", os.MFD_CLOEXEC)) as one:
        yield lambda: Descriptor(fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, 0))


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


def pass_descriptors(sock: socket.socket, data: bytes, files: list[Descriptor]) -> None:
    """Send with descriptors the plain way; they are closed."""
    socket.send_fds(sock, [data], [file.fileno() for file in files])
    for file in files:
        file.close()


async def test_a_descriptor_arrives_with_its_byte(memory: Callable[[], Descriptor]) -> None:
    with pair() as (stream, peer):
        sent = memory()
        wanted = inode(sent.fileno())
        peer.send(b"before")
        pass_descriptors(peer, b"@", [sent])
        peer.send(b"after")
        data, descriptors = await stream.receive()
        assert bytes(data) == b"before@"  # the kernel ends the read there
        [descriptor] = descriptors
        with descriptor:
            assert inode(descriptor.fileno()) == wanted
            assert fcntl.fcntl(descriptor.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        data, descriptors = await stream.receive()
        assert (bytes(data), descriptors) == (b"after", [])
        assert stream.bytes_received == 12


async def test_a_descriptor_leaves_with_its_byte_and_is_closed_here(
    memory: Callable[[], Descriptor],
) -> None:
    with pair() as (stream, peer):
        sent = memory()
        wanted = inode(sent.fileno())
        stream.send(b"offer")
        stream.send(b"@", [sent])
        stream.send(b"more")
        assert sent.closed
        assert stream.bytes_sent == 10
        assert not stream.pending
        assert peer.recv(5) == b"offer"
        data, fds, flags, _ = socket.recv_fds(peer, 100, 10)
        assert [inode(fd) for fd in fds] == [wanted]
        assert data == b"@"
        assert not flags & socket.MSG_CTRUNC
        os.close(fds[0])
        assert peer.recv(100) == b"more"


@pytest.mark.parametrize(("sent", "received"), [(2, 2), (16, 16), (17, 0), (250, 0)])
async def test_so_many_descriptors_arrive(
    memory: Callable[[], Descriptor], sent: int, received: int
) -> None:
    with pair() as (stream, peer):
        before = len(os.listdir("/proc/self/fd"))
        pass_descriptors(peer, b"@", [memory() for _ in range(sent)])
        data, descriptors = await stream.receive()
        assert bytes(data) == b"@"
        assert len(descriptors) == received
        for descriptor in descriptors:
            descriptor.close()
        assert len(os.listdir("/proc/self/fd")) == before  # none of those cut off is left here


async def test_a_stream_that_expects_no_descriptors_gets_none(
    memory: Callable[[], Descriptor],
) -> None:
    with pair(descriptors=False) as (stream, peer):
        before = len(os.listdir("/proc/self/fd"))
        pass_descriptors(peer, b"@", [memory() for _ in range(5)])
        data, descriptors = await stream.receive()
        assert (bytes(data), descriptors) == (b"@", [])
        assert len(os.listdir("/proc/self/fd")) == before


async def test_descriptors_nobody_could_receive_are_closed_with_the_stream(
    memory: Callable[[], Descriptor],
) -> None:
    with pair() as (stream, _):
        while not stream.pending:
            stream.send(bytes(1 << 16))
        waiting = memory()
        stream.send(b"@", [waiting])
        assert not waiting.closed
    assert waiting.closed


@pytest.mark.parametrize("how", ["flush_when_writable", "drain"])
async def test_a_peer_that_reads_late_gets_all_in_order(
    memory: Callable[[], Descriptor], how: str
) -> None:
    before, after = os.urandom(3_000_000), os.urandom(1_000_000)
    with pair() as (stream, peer):
        sent = memory()
        wanted = inode(sent.fileno())
        stream.send(before)
        stream.send(b"@", [sent])
        stream.send(after[:500_000])
        stream.send(after[500_000:])
        assert stream.pending

        async with trio.open_nursery() as nursery:
            nursery.start_soon(getattr(stream, how))
            with trio.fail_after(30):
                assert await trio.to_thread.run_sync(read_exactly, peer, len(before)) == before
                data, fds, _, _ = await trio.to_thread.run_sync(socket.recv_fds, peer, 1, 10)
                assert data == b"@"
                assert [inode(fd) for fd in fds] == [wanted]
                os.close(fds[0])
                assert await trio.to_thread.run_sync(read_exactly, peer, len(after)) == after
            nursery.cancel_scope.cancel()
        assert sent.closed
        assert not stream.pending
        assert stream.bytes_sent == len(before) + 1 + len(after)
        stream.send(b"again")
        assert peer.recv(100) == b"again"


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        # Never past the end: a plain read would swallow the descriptor that comes behind it.
        some = sock.recv(size - len(data))
        assert some
        data += some
    return bytes(data)


async def test_flushing_goes_on_each_time_the_peer_falls_behind() -> None:
    with pair() as (stream, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.flush_when_writable)
            for _ in range(3):
                data = os.urandom(1_000_000)
                stream.send(data)
                assert stream.pending
                with trio.fail_after(30):
                    assert await trio.to_thread.run_sync(read_exactly, peer, len(data)) == data
                    await trio.testing.wait_all_tasks_blocked()  # it rests while nothing is left
                assert not stream.pending
            nursery.cancel_scope.cancel()


class Refusing(socket.socket):
    """A socket whose kernel refuses to send, with ``reason``; ``refused`` tells what is refused."""

    reason = 0
    refused = ("send", "sendmsg")

    def send(self, *arguments: Any) -> int:
        return self._do("send", *arguments)

    def sendmsg(self, *arguments: Any) -> int:
        return self._do("sendmsg", *arguments)

    def _do(self, name: str, *arguments: Any) -> int:
        if name in self.refused:
            raise OSError(self.reason, os.strerror(self.reason))
        result: int = getattr(super(), name)(*arguments)
        return result


@pytest.mark.parametrize(
    "reason",
    [errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM, errno.EPERM, errno.EPIPE, errno.ETIMEDOUT],
)
async def test_a_refused_send_is_the_end_of_that_connection(
    memory: Callable[[], Descriptor], reason: int
) -> None:
    plain, theirs = socket.socketpair()
    sock = Refusing(fileno=plain.detach())
    sock.reason = reason
    with theirs, Stream(sock, "peer") as stream:
        sent = memory()
        with pytest.raises(Disconnected, match=re.escape(os.strerror(reason))):
            stream.send(b"@", [sent])
        assert sent.closed


async def test_a_descriptor_that_is_not_taken_now_is_sent_later(
    memory: Callable[[], Descriptor],
) -> None:
    plain, theirs = socket.socketpair()
    sock = Refusing(fileno=plain.detach())
    sock.reason = errno.EAGAIN
    theirs.settimeout(10)
    with theirs, Stream(sock, "peer") as stream:
        sent = memory()
        stream.send(b"@", [sent])
        assert stream.pending
        assert not sent.closed
        sock.refused = ()
        with trio.fail_after(10):
            await stream.drain()
        assert sent.closed
        data, fds, _, _ = socket.recv_fds(theirs, 10, 10)
        assert (data, len(fds)) == (b"@", 1)
        os.close(fds[0])


TOO_MANY = """
import array, os, socket, trio
from spiceshm.fds import Descriptor
from spiceshm.transport import Stream

def came(sock):
    data, fds, _, _ = socket.recv_fds(sock, 1, 4)
    for fd in fds:
        os.close(fd)
    return len(data), len(fds)

async def main():
    ours, theirs = socket.socketpair()
    good, reader = socket.socketpair()
    with Stream(ours, "silent") as silent, Stream(good, "good") as other:
        for _ in range(200):
            silent.send(b"@", [Descriptor(os.dup(0))])
        other.send(b"@", [Descriptor(os.dup(0))])
        print(*came(reader), len(os.listdir("/proc/self/fd")) < 20)
        print(*map(sum, zip(*(came(theirs) for _ in range(200)))))
        other.send(b"@", [Descriptor(os.dup(0))])
        print(*came(reader))
    theirs.close()
    reader.close()

trio.run(main)
"""


def test_beyond_the_kernels_limit_of_descriptors_on_their_way_bytes_go_alone() -> None:
    with script(TOO_MANY, prelude=NO_PRIVILEGES + limited(NOFILE=24)) as program:
        said = program.rest().splitlines()
        assert program.errors == ""
    assert said[0] == "1 0 True"
    count, passed = map(int, said[1].split())
    assert count == 200
    assert 0 < passed < 200
    assert said[2] == "1 1"


# The end of a connection


async def test_the_end_of_the_stream_is_disconnected() -> None:
    with pair() as (stream, peer):
        peer.send(b"last words")
        peer.close()
        data, _ = await stream.receive()
        assert bytes(data) == b"last words"
        with pytest.raises(Disconnected, match=r"^the other end closed the connection$"):
            await stream.receive()
        with pytest.raises(Disconnected, match=r"^the connection broke: Broken pipe$"):
            stream.send(b"anybody?")


async def test_a_reset_is_disconnected() -> None:
    with tcp_pair() as (stream, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        with pytest.raises(Disconnected, match=r"^the connection broke: Connection reset by peer$"):
            await stream.receive()
    with pair() as (stream, peer):
        stream.send(b"never read")  # makes the kernel tell us
        peer.close()
        with pytest.raises(Disconnected, match=r"^the connection broke: Connection reset by peer$"):
            await stream.receive()


@pytest.mark.parametrize("how", ["flush_when_writable", "drain"])
@pytest.mark.parametrize("kind", [pair, tcp_pair])
async def test_a_peer_that_goes_while_we_wait_to_write_is_disconnected(kind: Any, how: str) -> None:
    with kind() as (stream, peer):
        while not stream.pending:
            stream.send(bytes(1 << 20))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_disconnected, getattr(stream, how))
            await trio.testing.wait_all_tasks_blocked()
            peer.close()


async def expect_disconnected(wait: Callable[[], Any]) -> None:
    with trio.fail_after(10), pytest.raises(Disconnected):
        await wait()


@pytest.mark.parametrize("how", ["receive", "flush_when_writable", "drain"])
async def test_closing_wakes_whoever_waits(how: str) -> None:
    with pair() as (stream, _):
        if how != "receive":
            while not stream.pending:
                stream.send(bytes(1 << 20))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_disconnected, getattr(stream, how))
            await trio.testing.wait_all_tasks_blocked()
            stream.close()
        stream.close()  # harmless twice
        with pytest.raises(Disconnected, match=r"^the connection was closed here$"):
            stream.send(b"late")
        with pytest.raises(Disconnected, match=r"^the connection was closed here$"):
            await stream.receive()


async def test_a_late_descriptor_is_closed_with_a_closed_stream(
    memory: Callable[[], Descriptor],
) -> None:
    with pair() as (stream, _):
        stream.close()
        sent = memory()
        with pytest.raises(Disconnected):
            stream.send(b"@", [sent])
        assert sent.closed


async def test_a_cancelled_receive_loses_nothing(memory: Callable[[], Descriptor]) -> None:
    sent, received = 200, bytearray()
    descriptors = 0
    with pair() as (stream, peer):
        for number in range(sent):
            scope = trio.CancelScope()
            async with trio.open_nursery() as nursery:

                async def receive(scope: trio.CancelScope = scope) -> None:
                    nonlocal descriptors
                    with scope:
                        data, files = await stream.receive()
                        received.extend(data)
                        descriptors += close_all(files)

                nursery.start_soon(receive)
                await trio.testing.wait_all_tasks_blocked()
                # Both at once, in either order: there is something to read, and nobody wants it.
                if number % 3 == 0:
                    scope.cancel()
                pass_descriptors(peer, b"%03d" % number, [memory()])
                if number % 3 == 1:
                    scope.cancel()
        while len(received) < 3 * sent:
            data, files = await stream.receive()
            received.extend(data)
            descriptors += close_all(files)
    assert received == b"".join(b"%03d" % number for number in range(sent))
    assert descriptors == sent


def close_all(files: list[Descriptor]) -> int:
    for file in files:
        file.close()
    return len(files)


async def test_a_read_takes_no_more_than_it_was_told() -> None:
    with pair() as (stream, peer):
        peer.send(bytes(range(100)))
        assert bytes((await stream.receive(10))[0]) == bytes(range(10))
        assert bytes((await stream.receive(1000))[0]) == bytes(range(10, 100))
        peer.send(b"all")
        assert bytes((await stream.receive(1 << 30))[0]) == b"all"
