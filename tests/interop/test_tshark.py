"""What Wireshark knows of SPICE is what we speak: sessions over TCP, taken down byte by byte, are
read by its dissector."""

from __future__ import annotations

import re
import struct
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pytest
import trio

import spiceshm
from spiceshm.events import CAPS_LOCK, CursorShape, Key, PointerTo
from spiceshm.wire import Sender
from tests.interop.viewers import eventually, opened, recorder
from tests.programs import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from spiceshm.events import Event
    from tests.interop.viewers import Recorder
    from tools.recording import Connection

pytestmark = pytest.mark.peer("tshark", "spicy", "Xvfb", "xdotool")


UP = 0xE048

LINKTYPE_IPV4 = 228
SERVER_PORT = 5900
MOST = 60_000
"""Bytes in one segment: an IP packet has 65535 at most."""


def segments(connection: Connection) -> Iterator[tuple[Sender, bytes]]:
    """Pieces of at most `MOST` bytes, in the order in which they were read. In the link phase they
    end where both ends say something else, for the dissector takes none for two things."""
    at = dict.fromkeys(Sender, 0)
    cuts = {sender: connection.link.ends(sender) for sender in Sender}
    for _, sender, _, data in connection.events:
        start = 0
        while start < len(data):
            size = min([MOST, *(cut - at[sender] for cut in cuts[sender] if cut > at[sender])])
            yield sender, data[start : start + size]
            start += size
            at[sender] += len(data[start - size : start])


def packets(connection: Connection, client_port: int) -> Iterator[bytes]:
    """The connection as TCP over IP."""
    ports = {Sender.CLIENT: client_port, Sender.SERVER: SERVER_PORT}
    at = dict.fromkeys(Sender, 1)
    for sender, data in segments(connection):
        there = at[sender.other]
        head = (ports[sender], ports[sender.other], at[sender], there, 5 << 4, 0x18, 65535, 0, 0)
        tcp = struct.pack(">HHIIBBHHH", *head) + data
        addresses = b"\x7f\0\0\x01" * 2
        yield struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + addresses + tcp
        at[sender] += len(data)


def capture(connections: Sequence[Connection], file: Path) -> None:
    """Write what was recorded as tcpdump would have."""
    with file.open("wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, LINKTYPE_IPV4))
        for number, connection in enumerate(connections):
            for packet in packets(connection, 40_000 + number):
                out.write(struct.pack("<IIII", 0, 0, len(packet), len(packet)) + packet)


class Reading(NamedTuple):
    """What tshark made of a capture."""

    messages: Counter[str]
    """As "Server DRAW_COPY"."""
    images: Counter[int]
    """So many of each type."""
    complaints: Counter[str]


def read(file: Path) -> Reading:
    command = ["tshark", "-r", str(file), "-d", f"tcp.port=={SERVER_PORT},spice", "-T", "fields"]
    fields = ("_ws.col.Info", "spice.image_type", "_ws.expert.message", "_ws.malformed")
    for field in fields:
        command += ["-e", field]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE)
    messages: Counter[str] = Counter()
    images: Counter[int] = Counter()
    complaints: Counter[str] = Counter()
    for line in done.stdout.splitlines():
        info, types, *wrong = line.split("\t")
        messages.update(re.findall(r"(?:Client|Server) [A-Z_]+\b", info))
        images.update(int(one) for one in types.split(",") if one)
        complaints.update(one for words in wrong for one in words.split(",") if one)
    return Reading(messages, images, complaints)


def told(connections: Sequence[Connection]) -> Counter[str]:
    """The same as we read it, every body to its end."""
    return Counter(
        f"{message.sender.value.title()} {message.parse().title.partition('.')[2].upper()}"
        for connection in connections
        for message in connection.messages()
    )


EXPECTED = {
    "Client": "ATTACH_CHANNELS INIT ACK_SYNC ACK PONG KEY_MODIFIERS KEY_DOWN KEY_UP "
    "MOUSE_POSITION MOUSE_PRESS MOUSE_RELEASE",
    "Server": "INIT CHANNELS_LIST PING SET_ACK SURFACE_CREATE MONITORS_CONFIG MARK DRAW_COPY "
    "DRAW_FILL SURFACE_DESTROY KEY_MODIFIERS MOUSE_MOTION_ACK SET MOVE HIDE",
}
NO_MATTER = "value irrelevant as bitmap address is 0"
"""Of a mask, where there is none, and of a palette."""
OF_LZ4 = {
    "Unknown image type - cannot dissect",
    "message type Server DRAW_COPY (304) not fully dissected",
}


async def session(kind: Literal["raw", "lz4", "lz"]) -> Recorder:
    """Draw, change the size, act, and show a pointer: everything that there is."""
    played: list[Event] = []

    async def play(events: Sequence[Event]) -> None:
        played.extend(events)

    rng = np.random.default_rng(0)
    async with spiceshm.serve("tcp:127.0.0.1:0", inputs=play, compression=kind) as display:
        truth = np.repeat(rng.integers(0, 256, (200, 80, 4), np.uint8), 8, axis=1)
        surface = display.create_surface(640, 200)
        surface.draw(truth)
        display.set_cursor(CursorShape(np.full((7, 5, 4), 255, np.uint8), 3, 5))
        async with recorder(display.addresses[0]) as record, opened("spicy", record.uri) as spicy:

            async def comes(message: str) -> None:
                await eventually(lambda: told(record.connections)[f"Server {message}"])

            await spicy.shows(truth)
            truth[20:80] = truth[120:180]
            truth[100:180] = 7
            surface.draw(truth, [(20, 0, 80, 640), (100, 0, 180, 640)])
            await spicy.shows(truth)

            with trio.fail_after(DEADLINE):
                while not any(isinstance(event, PointerTo) for event in played):
                    await spicy.point(20, 30)
                    await spicy.point(30, 20)
            for x in range(8):
                await spicy.point(x, x)
            await spicy.do("click", "1", "keydown", "Up")
            # What is pressed and let go at once is one message, of which the dissector knows
            # nothing, not even where it ends.
            await eventually(lambda: Key(UP, True) in played)
            await spicy.do("keyup", "Up")
            await eventually(lambda: Key(UP, False) in played)
            display.set_locks(CAPS_LOCK)
            display.move_cursor(5, 6)
            await comes("MOVE")
            display.set_cursor(CursorShape(np.full((3, 4, 4), 255, np.uint8), 0, 0))
            await comes("SET")
            display.set_cursor(None)
            await comes("HIDE")

            truth = np.repeat(rng.integers(0, 256, (201, 81, 4), np.uint8), 8, axis=1)[:, :641]
            display.create_surface(641, 201).draw(truth)
            await spicy.shows(truth)
            await comes("PING")
    return record


async def test_every_message_is_known_and_well_formed(tmp_path: Path) -> None:
    """As many of each as we think, to the last byte, with each kind of image."""
    records: list[Recorder] = []

    async def take_down(kind: Literal["raw", "lz4", "lz"]) -> None:
        records.append(await session(kind))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_down, "raw")
        nursery.start_soon(take_down, "lz4")
        nursery.start_soon(take_down, "lz")
    connections = [connection for record in records for connection in record.connections]
    capture(connections, tmp_path / "sessions.pcap")
    seen = read(tmp_path / "sessions.pcap")
    assert seen.messages == told(connections)
    assert {f"{by} {name}" for by in EXPECTED for name in EXPECTED[by].split()} <= {*seen.messages}

    drawn = sum((Counter(record.drawn()) for record in records), Counter())
    assert seen.images == {0: drawn["raw"], 101: drawn["lz"], 109: drawn["lz4"]}
    of_lz4 = sum(seen.complaints.pop(words, 0) for words in OF_LZ4)
    assert of_lz4 in (0, len(OF_LZ4) * drawn["lz4"])
    assert {*seen.complaints} == {NO_MATTER}
