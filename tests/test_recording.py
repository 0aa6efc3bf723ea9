"""tools/record: what it keeps is what was said, and either side of it can be played again."""

from __future__ import annotations

import array
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio
from PIL import Image

import spiceshm
from spiceshm.client import images
from spiceshm.client.canvas import Canvas
from spiceshm.codecs import glz
from spiceshm.events import Key
from spiceshm.protocol import Channel, ClientLink, ServerLink
from spiceshm.transport import Listener, parse_address
from spiceshm.wire import Message, Sender, display, inputs, main, shm
from spiceshm.wire.base import Ack, AckSync, Ping, Pong, SetAck
from spiceshm.wire.types import ChannelType
from tests import stockserver
from tests.programs import DEADLINE, Program, environment
from tools.recording import Event, Recording, RecordingError, Writer, load
from tools.recording.cli import main as command
from tools.recording.replay import Client, Server
from tools.recording.session import Counts, Frames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spiceshm.events import Event as Played

ROOT = Path(__file__).resolve().parent.parent
SESSIONS = sorted((ROOT / "tests" / "recordings" / "sessions").glob("*.spice.gz"))

UNKNOWN = {
    ("display", Sender.SERVER): {319},  # STREAM_ACTIVATE_REPORT
    ("display", Sender.CLIENT): {102},  # STREAM_REPORT
}
"""Messages in the recordings for which there is no class yet."""


class Tool(Program):
    """``tools/record`` with ``words``; it listens, at ``address``, when it says so."""

    def __init__(self, *words: str) -> None:
        run = [sys.executable, "-m", "tools.recording", "--json", *words]
        super().__init__(run, environment(PYTHONPATH=str(ROOT)))
        self.address = json.loads(self.line())["address"] if "--listen" in words else ""

    def end(self, number: signal.Signals = signal.SIGTERM) -> Any:
        """Stop it; what it counted."""
        self.send(number)
        counts = json.loads(self.rest())
        assert self.status == 0
        return counts


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 255, (height, width, 4), np.uint8)


def drawn(recording: Recording) -> np.ndarray:
    """What a client's canvas shows after all that was drawn; nothing of it is stale."""
    [shown] = [one for one in recording.connections if one.channel == "display"]
    canvas = Canvas()
    for message in shown.messages():
        if message.kind is display.DisplayInit:
            init = display.DisplayInit.parse(message.body)
            earlier = glz.Dictionary(init.glz_dictionary_window_size)
            canvas = Canvas(
                cache_pixels=init.pixmap_cache_size, decode=partial(images.decode, earlier=earlier)
            )
        elif message.sender is Sender.SERVER and message.kind:
            canvas.receive(message.parse())
    assert canvas.primary is not None
    assert not canvas.primary.stale
    return canvas.primary.pixels[:, :, :3]


def truth_of(file: Path) -> np.ndarray:
    """What the machine itself said that it showed at the end of a recording."""
    picture = Image.open(str(file).removesuffix(".spice.gz") + ".png")
    return np.asarray(picture.convert("RGB"))[:, :, ::-1]


# Recording


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_our_own_client_and_server_through_it(tmp_path: Path, kind: str) -> None:
    """Memory is not shared through it, all else is as without it."""
    played: list[Played] = []

    async def play(events: Sequence[Played]) -> None:
        played.extend(events)

    truth = picture(160, 120)
    here, there = (f"unix:{tmp_path}/{name}" for name in "hs")
    if kind == "tcp":
        here = there = "tcp:127.0.0.1:0"
    file = str(tmp_path / "out.spice.gz")
    async with spiceshm.serve(there, inputs=play, password="sesame") as server:
        surface = server.create_surface(160, 120)
        surface.draw(truth)
        with Tool("--listen", here, "--to", str(server.addresses[0]), file) as tool:
            async with spiceshm.connect(tool.address, password="sesame") as remote:
                assert not remote.shared
                first = await remote.latest()
                assert np.array_equal(first.pixels[:, :, :3], truth[:, :, :3])
                truth[10:20] = 7
                surface.draw(truth, [(10, 0, 20, 160)])
                await remote.wait_change()
                await remote.key("a")
                assert played == [Key(0x1E, True), Key(0x1E, False)]
            counts = await trio.to_thread.run_sync(tool.end, signal.SIGINT)
    recording = load(file)
    assert counts == recording.counts().as_json()
    assert counts["inputs"]["client"]["key_down"] == 1
    assert np.array_equal(drawn(recording), truth[:, :, :3])
    [session] = recording.sessions()
    assert sorted(one.channel for one in session.others) == ["display", "inputs"]
    offered = "shm_offer" in counts["display"]["server"]
    assert offered is (kind == "unix")
    for connection in recording.connections:
        times = [event.time_ns for event in connection.events]
        assert times == sorted(times)
        said = b"".join(one.data for one in connection.events if one.sender is Sender.CLIENT)
        ticket = connection.link.ticket
        assert ticket is not None
        assert said[ticket.start : ticket.stop] == bytes(128)
        for message in connection.messages():
            message.parse()
    assert os.stat(file).st_mode & 0o077 == 0


def link_phase(kind: ChannelType, session: int = 0) -> tuple[bytes, bytes, bytes, bytes]:
    """What client and server say in turn, the client first."""
    ours = ClientLink(
        connection_id=session, channel_type=kind, channel_id=0, channel_caps=frozenset({83})
    )
    theirs = ServerLink(stockserver.KEY)
    mess = ours.data_to_send()
    theirs.receive_data(mess)
    theirs.accept(frozenset({83}))
    reply = theirs.data_to_send()
    ours.receive_data(reply)
    ticket = ours.data_to_send()
    theirs.receive_data(ticket)
    theirs.finish()
    return mess, reply, ticket, theirs.data_to_send()


async def receive(stream: socket.socket, size: int) -> bytes:
    """So many bytes; less at the end."""
    data = b""
    while len(data) < size and (more := await trio.to_thread.run_sync(stream.recv, 1 << 16)):
        data += more
    return data


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_every_byte_passes_and_is_kept_but_for_the_ticket(tmp_path: Path, kind: str) -> None:
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    file = tmp_path / "out.spice"
    with contextlib.ExitStack() as stack, socket.socket(family) as listener:
        listener.bind(f"{tmp_path}/s" if kind == "unix" else ("127.0.0.1", 0))
        listener.listen()
        to = f"unix:{tmp_path}/s"
        here = f"unix:{tmp_path}/h"
        if kind == "tcp":
            to, here = f"tcp:127.0.0.1:{listener.getsockname()[1]}", "tcp:127.0.0.1:0"
        tool = stack.enter_context(Tool("--listen", here, "--to", to, str(file)))
        held = len(os.listdir(f"/proc/{tool.pid}/fd"))
        client = stack.enter_context(socket.socket(family))
        host, _, port = tool.address.removeprefix("tcp:").partition(":")
        client.connect(tool.address.removeprefix("unix:") if kind == "unix" else (host, int(port)))
        server = stack.enter_context(listener.accept()[0])
        for end in (client, server):
            end.settimeout(DEADLINE)
        phase = link_phase(ChannelType.DISPLAY)
        for at, piece in enumerate(phase):
            says, hears = (client, server) if at % 2 == 0 else (server, client)
            for part in (piece[:70], piece[70:]):  # a ticket that comes in two
                says.sendall(part)
                assert await receive(hears, len(part)) == part
        mass = {end: np.random.default_rng(at).bytes(3 << 20) for at, end in enumerate("cs")}
        async with trio.open_nursery() as both:
            both.start_soon(trio.to_thread.run_sync, client.sendall, mass["c"])
            both.start_soon(trio.to_thread.run_sync, server.sendall, mass["s"])
            assert await receive(server, 3 << 20) == mass["c"]
            assert await receive(client, 3 << 20) == mass["s"]
        if kind == "unix":
            descriptor = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))
            server.sendmsg([b"@"], [descriptor])
            data, passed, _, _ = client.recvmsg(10, 100)
            assert (data, passed) == (b"@", [])
            assert len(os.listdir(f"/proc/{tool.pid}/fd")) == held + 2
            mass["s"] += b"@"
        client.shutdown(socket.SHUT_WR)
        assert await receive(server, 1) == b""
        server.sendall(b"last")
        server.close()
        assert await receive(client, 5) == b"last"
        tool.send(signal.SIGTERM)
        tool.wait()
    [connection] = load(file).connections
    kept = {
        sender: b"".join(one.data for one in connection.events if one.sender is sender)
        for sender in Sender
    }
    assert kept[Sender.CLIENT] == phase[0] + phase[2][:4] + bytes(128) + mass["c"]
    assert kept[Sender.SERVER] == phase[1] + phase[3] + mass["s"] + b"last"
    ended = [event.sender for event in connection.events if not event.data]
    assert ended == [Sender.CLIENT, Sender.SERVER]


async def test_who_speaks_no_spice_or_sasl_is_turned_away(tmp_path: Path) -> None:
    async with stockserver.serving(f"unix:{tmp_path}/s"):
        file = tmp_path / "out.spice"
        to = f"unix:{tmp_path}/s"
        with Tool("--listen", f"unix:{tmp_path}/h", "--to", to, str(file)) as tool:
            async with await trio.open_unix_socket(tmp_path / "h") as client:
                await client.send_all(b"GET / HTTP/1.1\r\n\r\n")
                assert await client.receive_some() == b""
            async with await trio.open_unix_socket(tmp_path / "h") as client:
                await client.send_all(link_phase(ChannelType.MAIN)[0])
                assert await client.receive_some()
                await client.send_all(b"\2\0\0\0\5\0\0\0PLAINsecret")
                assert await client.receive_some() == b""
            assert await trio.to_thread.run_sync(tool.end) == {}
    assert b"secret" not in file.read_bytes()
    no_spice, sasl = tool.errors.splitlines()
    assert no_spice.startswith("tools/record: link_header: ")
    assert sasl == "tools/record: auth_mechanism: is SASL, which is not recorded"


# Files


def spoken(
    recording: Recording, kind: ChannelType, session: int, said: list[Message], size: int = 1 << 20
) -> None:
    """Add a connection on which all this was said, in reads of at most ``size`` bytes."""
    number, time = len(recording.connections), 0
    mess, reply, ticket, result = link_phase(kind, session)
    pieces = [(Sender.CLIENT, mess), (Sender.SERVER, reply)]
    pieces += [(Sender.CLIENT, ticket), (Sender.SERVER, result)]
    for message in said:
        # Not through a machine, which would have something to say to it.
        frame = Channel("main", message.sender)
        frame._queue(message.number, message.packed)
        pieces += [(message.sender, bytes(part.data)) for part in frame.data_to_send()]
    for sender, data in pieces:
        for at in range(0, len(data), size):
            time += 1000
            recording.add(Event(number, sender, time, data[at : at + size]))


def write(recording: Recording, file: Path) -> None:
    with contextlib.closing(Writer(file)) as writer:
        for connection in recording.connections:
            for event in connection.events:
                writer.add(event)


def small(size: int = 1 << 20) -> Recording:
    recording = Recording()
    init = main.MainInit(99, 1, 3, 1, 0, 0, 0, 0)
    spoken(recording, ChannelType.MAIN, 0, [init, main.AttachChannels()], size)
    return recording


@pytest.mark.parametrize("name", ["a.spice", "a.spice.gz"])
def test_a_file_cut_off_anywhere_is_said_to_be(tmp_path: Path, name: str) -> None:
    write(small(), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    assert len(load(tmp_path / name).connections) == 1
    for size in range(len(whole)):
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(RecordingError, match=r"cut off|no recording|is no gzip") as caught:
            load(tmp_path / name)
        [line] = str(caught.value).splitlines()
        assert line.startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda data: b"x" + data[1:], "is no recording: it begins with b'xPICEREC'"),
        (lambda data: data[:8] + b"\2" + data[9:], "is of version 2, not 1"),
        (lambda data: data[:12] + b"\7" + data[13:], "is damaged: kind 7 at byte 12"),
        (lambda data: data + b"more", "is damaged: 4 bytes behind its end"),
    ],
)
def test_a_damaged_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, complaint: str
) -> None:
    file = tmp_path / "a.spice"
    write(small(), file)
    file.write_bytes(change(file.read_bytes()))
    assert command([str(file)]) == 1
    assert capsys.readouterr().err == f"tools/record: {file}: {complaint}\n"


def test_messages_are_found_however_they_were_read() -> None:
    for size in (1, 3, 1 << 20):
        [connection] = small(size).connections
        names = [message.name for message in connection.messages()]
        assert names == ["init", "attach_channels"]


@pytest.mark.parametrize("mini", [True, False])
def test_a_byte_that_carries_a_descriptor_is_no_message(mini: bool) -> None:
    offer = shm.ShmOffer(shm.OFFER_MAGIC, 1, 1, shm.HANDLE_DESCRIPTOR, 0, 1, 4096, 0, 16)
    said = b""
    for message, behind in ((offer, b"@"), (display.Mark(), b"")):
        frame = Channel("display", Sender.SERVER, mini=mini)
        frame._queue(message.number, message.packed)
        said += b"".join(bytes(part.data) for part in frame.data_to_send()) + behind
    frames = Frames("display", Sender.SERVER, mini=mini)
    found = [one for byte in said for one in frames.feed(bytes([byte]))]
    assert found == [(460, offer.packed), (102, b"")]


def test_every_message_of_every_recording_is_understood() -> None:
    assert len(SESSIONS) >= 9
    unknown: dict[tuple[str, Sender], set[int]] = {}
    for file in SESSIONS:
        recording = load(file)
        assert {one.channel for one in recording.connections} >= {"main", "display", "inputs"}
        for connection in recording.connections:
            for message in connection.messages():
                if message.kind is None:
                    key = message.channel, message.sender
                    unknown.setdefault(key, set()).add(message.number)
                else:
                    message.parse()
    assert unknown == UNKNOWN


@pytest.mark.parametrize("file", SESSIONS, ids=lambda file: file.name.removesuffix(".spice.gz"))
def test_our_canvas_shows_what_the_machine_showed(file: Path) -> None:
    assert np.array_equal(drawn(load(file)), truth_of(file))


# Replaying


async def test_the_server_played_to_our_client_shows_what_was_shown() -> None:
    """The last picture is what QEMU itself said that it was; the keys of the client come back."""
    [file] = [one for one in SESSIONS if one.name == "qemu-std-off.spice.gz"]
    truth = truth_of(file)
    words = ("--replay", str(file), "--as-server", "--listen", "tcp:127.0.0.1:0")
    with Tool(*words) as tool:
        async with spiceshm.connect(tool.address) as remote:
            with trio.fail_after(DEADLINE):
                async for frame in remote.frames():
                    if np.array_equal(frame.pixels[:, :, :3], truth):
                        break
            await remote.key("a")  # which returns when motions behind it were acknowledged
        counts = await trio.to_thread.run_sync(tool.end)
    assert counts["inputs"]["client"]["key_down"] == 1
    assert counts["display"]["server"]["draw_copy"] == 657


async def test_the_client_played_to_our_server_types_again(tmp_path: Path) -> None:
    """A viewer's visit to another server: ours gets the same keys and buttons."""
    played: list[Played] = []

    async def play(events: Sequence[Played]) -> None:
        played.extend(events)

    [file] = [one for one in SESSIONS if one.name == "xspice-glz.spice.gz"]
    async with spiceshm.serve(f"unix:{tmp_path}/s", inputs=play, password="sesame") as server:
        server.create_surface(64, 48)
        words = ("--replay", str(file), "--as-client", "--to", f"unix:{tmp_path}/s")
        with Tool(*words) as tool:
            assert await trio.to_thread.run_sync(tool.wait) == 1
        assert "permission denied" in tool.errors
        run = [sys.executable, "-m", "tools.recording", "--json", *words]
        more = {"PYTHONPATH": str(ROOT), "SPICESHM_PASSWORD": "sesame"}
        with Program(run, environment(**more)) as tool:
            counts = json.loads(await trio.to_thread.run_sync(tool.rest))
            assert tool.status == 0, tool.errors
    assert [one for one in played if isinstance(one, Key)] == [Key(0x1E, True), Key(0x1E, False)]
    recorded = load(file).counts().as_json()
    del recorded["inputs"]["client"]["pong"]
    assert counts["inputs"]["client"] == recorded["inputs"]["client"]


async def test_a_live_server_is_answered_live(tmp_path: Path) -> None:
    """What was recorded of PONG, ACK_SYNC and ACK is not played; motions wait for their acks. A
    channel that the server does not have is left out."""
    recording = small()
    old: list[Message] = [AckSync(77), Ack(), Pong(1, 2)]
    init = display.DisplayInit(1, 0, 1, 0)
    spoken(recording, ChannelType.DISPLAY, 99, [*old, init])
    moves = [inputs.MousePosition(x, 0, 0, 0) for x in range(9)]
    spoken(recording, ChannelType.INPUTS, 99, [*moves, inputs.KeyDown(30)])
    spoken(recording, ChannelType.CURSOR, 99, [Ack()])
    write(recording, tmp_path / "a.spice")
    async with stockserver.serving(f"unix:{tmp_path}/s") as server:
        server.acks = False
        server.kinds.discard(ChannelType.CURSOR)
        words = ("--replay", str(tmp_path / "a.spice"), "--as-client")
        with Tool(*words, "--to", f"unix:{tmp_path}/s") as tool:
            shown = await server.channel(ChannelType.DISPLAY)
            await shown.find(display.DisplayInit)
            shown.put(Ping(7, 0))
            await shown.find(Pong)  # behind the first picture, which no window counts
            shown.put(SetAck(5, 3), *[display.Mark()] * 6, Ping(8, 9))
            await shown.find(Pong, 2)
            keys = await server.channel(ChannelType.INPUTS)
            assert len(await keys.find(inputs.MousePosition, 8)) == 8
            assert not any(isinstance(one, inputs.KeyDown) for one in keys.came)
            keys.put(inputs.MouseMotionAck())
            await keys.find(inputs.KeyDown)
            assert await trio.to_thread.run_sync(tool.wait) == 0
        assert tool.errors == f"tools/record: unix:{tmp_path}/s: cursor: the server closed it\n"
        assert shown.came == [init, Pong(7, 0), AckSync(5), Ack(), Ack(), Pong(8, 9)]
        assert keys.came == [*moves, inputs.KeyDown(30)]


async def test_it_is_played_when_it_was_said(tmp_path: Path) -> None:
    """With its times a recording of a third of a second takes that long."""
    recording = small()
    start = recording.connections[0].events[-1].time_ns
    recording.add(Event(0, Sender.CLIENT, start + 333_000_000, b""))
    async with stockserver.serving(f"unix:{tmp_path}/s"):
        client = Client(recording, Counts(), pytest.fail, with_times=True)
        started = trio.current_time()
        await client.play(parse_address(f"unix:{tmp_path}/s"))
        assert trio.current_time() - started > 0.333


async def test_a_channel_that_was_not_recorded_is_refused(tmp_path: Path) -> None:
    server = Server(small(), Counts(), with_times=False)
    with contextlib.closing(Listener(parse_address(f"unix:{tmp_path}/s"))) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, server.handle, nursery)
            with pytest.raises(spiceshm.LinkRefused, match="channel not available"):
                async with spiceshm.connect(f"unix:{tmp_path}/s"):
                    pass
            nursery.cancel_scope.cancel()


# The command


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["a", "--listen", "unix:/x"],
        ["a", "--listen", "nowhere", "--to", "unix:/x"],
        ["a", "--as-client"],
        ["--replay", "a", "--as-server"],
        ["--replay", "a", "--as-server", "--to", "unix:/x"],
        ["--replay", "a", "--as-client", "--as-server", "--to", "unix:/x"],
    ],
)
def test_options_that_make_no_sense(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(words)
    assert "tools/record: error: " in capsys.readouterr().err


def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(Recording(), tmp_path / "empty.spice")
    here, gone = f"unix:{tmp_path}/h", f"{tmp_path}/no/a.spice"
    cases = {
        f"{tmp_path}/empty.spice: there is no session in it": [
            *("--replay", f"{tmp_path}/empty.spice", "--as-server", "--listen", here)
        ],
        f"{gone}: No such file or directory": [gone, "--listen", here, "--to", here],
        f"{gone}.gz: No such file or directory": [f"{gone}.gz"],
    }
    for complaint, words in cases.items():
        assert command(words) == 1
        assert capsys.readouterr().err == f"tools/record: {complaint}\n"


async def test_a_full_disk_ends_it(tmp_path: Path) -> None:
    async with stockserver.serving(f"unix:{tmp_path}/s"):
        here, to = f"unix:{tmp_path}/h", f"unix:{tmp_path}/s"
        with Tool("--listen", here, "--to", to, "/dev/full") as tool:
            async with await trio.open_unix_socket(tmp_path / "h") as client:
                for piece in link_phase(ChannelType.MAIN)[::2]:
                    await client.send_all(piece)
                    assert await client.receive_some()
                with contextlib.suppress(trio.BrokenResourceError):
                    await client.send_all(bytes(1 << 20))
                assert await trio.to_thread.run_sync(tool.wait) == 1
    assert tool.errors == "tools/record: output: No space left on device\n"


def test_the_script_and_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert shutil.which(str(ROOT / "tools" / "record"))
    subprocess.run(["sh", "-n", str(ROOT / "tools" / "record")], check=True)
    with pytest.raises(SystemExit, match="0"):
        command(["--help"])
    told = capsys.readouterr().out
    assert "do not share memory" in told
    assert "tools/record --listen unix:/tmp/r.sock --to unix:/tmp/vm.sock" in told
