"""QEMU with a machine that boots a program of 512 bytes, and what QEMU itself says of it.

with machine("-vga", "qxl") as it:                  # it listens when the block begins
    async with spiceshm.connect(it.address) as remote:
        await prompted(it, remote)                  # the program waits for a key
        await shows(it, remote)                     # pixel for pixel what QEMU would dump
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio

from tests.programs import DEADLINE, Program, short_directory, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import spiceshm
    from spiceshm.client import RemoteDisplay

PROGRAM = """
    31c0                      begin:  xor ax, ax
    8ed8                              mov ds, ax
    8ed0                              mov ss, ax
    bc007c                            mov sp, begin
    fc                                cld
    6631ed                            xor ebp, ebp
    b80300                    text:   mov ax, 3
    cd10                              int 0x10
    be417d                    prompt: mov si, words
    e84d00                            call say
    b400                      next:   mov ah, 0
    cd16                              int 0x16
    80fc3b                            cmp ah, 0x3b
    74ec                              je text
    80fc3c                            cmp ah, 0x3c
    7451                              je bars
    bb4101                            mov bx, 0x141
    b610                              mov dh, 16
    80fc3d                            cmp ah, 0x3d
    746e                              je colour
    b344                              mov bl, 0x44
    b630                              mov dh, 48
    80fc3e                            cmp ah, 0x3e
    7465                              je colour
    b203                              mov dl, 3
    80fc3f                            cmp ah, 0x3f
    7469                              je draw
    b200                              mov dl, 0
    80fc40                            cmp ah, 0x40
    7462                              je draw
    3c0d                              cmp al, 13
    7412                              je line
    3c20                              cmp al, 32
    7309                              jae put
    0440                              add al, 64
    50                                push ax
    b05e                              mov al, '^'
    e81800                            call teletype
    58                                pop ax
    e81400                    put:    call teletype
    ebbb                              jmp next
    be4c7d                    line:   mov si, ending
    e80200                            call say
    ebad                              jmp prompt
    ac                        say:    lodsb
    3c00                              cmp al, 0
    740c                              je back
    e80200                            call teletype
    ebf6                              jmp say
                              teletype:
    b40e                              mov ah, 14
    bb0700                            mov bx, 7
    cd10                              int 0x10
    c3                        back:   ret
                              ; 640x480, 16 colours, four planes
    b81200                    bars:   mov ax, 0x12
    cd10                              int 0x10
    6800a0                            push word 0xa000
    07                                pop es
    b80208                            mov ax, 0x0802
    bac403                            mov dx, 0x3c4
    ef                        plane:  out dx, ax
    b90096                            mov cx, 38400
    31ff                              xor di, di
    89c3                              mov bx, ax
    88f8                      eight:   mov al, bh
    f6e1                              mul cl
    aa                                stosb
    e2f9                              loop eight
    89d8                              mov ax, bx
    d0ec                              shr ah, 1
    75eb                              jnz plane
    e97aff                            jmp next
                              ; true colour, through a window of 64 KiB
    88363f7d                  colour: mov [windows], dh
    b8024f                            mov ax, 0x4f02
    cd10                              int 0x10
    b203                              mov dl, 3
    8816407d                  draw:   mov [kinds], dl
    6800a0                            push word 0xa000
    07                                pop es
    8a0e3f7d                          mov cl, [windows]
    b500                              mov ch, 0
    31d2                              xor dx, dx
    6631f6                            xor esi, esi
    66ff063b7d                        inc dword [turn]
    31db                      window: xor bx, bx
    b8054f                            mov ax, 0x4f05
    cd10                              int 0x10
    31ff                              xor di, di
    8a1e407d                          mov bl, [kinds]
    20d3                              and bl, dl
    6669ed0d661900            pixel:  imul ebp, ebp, 1664525
    6681c55ff36e3c                    add ebp, 1013904223
    6689e8                            mov eax, ebp
    66c1e808                          shr eax, 8
    80fb01                            cmp bl, 1
    7443                              je dot
    7215                              jb photo
    66a13b7d                          mov eax, [turn]
    80fb02                            cmp bl, 2
    7538                              jne dot
    660fafc6                          imul eax, esi
    66253f3f3f00                      and eax, 0x3f3f3f
    eb2c                              jmp dot
    662503030300              photo:  and eax, 0x030303
    6603063b7d                        add eax, [turn]
    53                                push bx
    6689f3                            mov ebx, esi
    f6c340                            test bl, 64
    7402                              jz rising
    f6d3                              not bl
    6683e33f                  rising: and ebx, 63
    6601d8                            add eax, ebx
    6689f3                            mov ebx, esi
    66c1eb0c                          shr ebx, 12
    66c1e308                          shl ebx, 8
    6601d8                            add eax, ebx
    5b                                pop bx
    66ab                      dot:    stosd
    6646                              inc esi
    85ff                              test di, di
    759b                              jnz pixel
    42                                inc dx
    e289                              loop window
    e9ddfe                            jmp next
    00000000                  turn:   dd 0
    00                        windows: db 0
    00                        kinds:  db 0
    737069636573686d3e2000    words:  db "spiceshm> ", 0
    0d0a00                    ending: db 13, 10, 0
"""
"""What the boot sector does, in the processor's 16-bit mode: its bytes, and what they mean.

Keys are scan codes in AH (F1 is 3b) and characters in AL. It waits for a key (int 16) and

  F1          goes to text mode, where it writes a prompt; so it does at first
  F2          to 640x480 in 16 colours, and draws stripes: planes one after the other, so the pixel
              at the bottom on the right is the last of all that gets its colour
  F3, F4      to 640x400 (VBE mode 141) or 1024x768 (144) of 32 bits, and draws `MIXED`
  F5, F6      draws `MIXED` or `PHOTO` over what is there, another one than before

and writes every other key's character, that of a control key as ^ and a letter. True colour is
drawn through a window of 64 KiB that is moved (int 10, AX 4f05), 16 or 48 times: in `MIXED` windows
of 16384 pixels are by turns like a photograph (smooth, with a little noise), noise, something that
repeats itself, and of one colour; in `PHOTO` all are as the first. Noise is that of a linear
congruential generator in EBP; every picture differs from the one before."""

PROMPT = "spiceshm>"
PHOTO, MIXED = "F6", "F5"
MODES = {"F1": (720, 400), "F2": (640, 480), "F3": (640, 400), "F4": (1024, 768)}
"""Width and height that a key leads to."""

_TEXT, _TEXT_BYTES = 0xB8000, 80 * 25 * 2
"""Where characters and their attributes lie in text mode."""


def sector(program: str) -> bytes:
    """A boot sector of a table as `PROGRAM` is."""
    code = bytes.fromhex("".join(re.findall(r"^ {4}([0-9a-f]+) ", program, re.MULTILINE)))
    return code.ljust(510, b"\0") + b"\x55\xaa"


class Machine:
    """A machine that runs, its SPICE server, and QEMU's monitor (QMP)."""

    def __init__(self, place: Path, qemu: Program, address: str) -> None:
        self.address = address
        self.qemu = qemu
        self._place = place
        self._monitor = socket.socket(socket.AF_UNIX)
        self._monitor.settimeout(DEADLINE)
        self._said = b""

    def open(self) -> None:
        """Connect to the monitor, as soon as it is there."""
        path = str(self._place / "monitor")
        until(lambda: self.qemu.status is not None or self._monitor.connect_ex(path) == 0, "QEMU")
        assert self.qemu.status is None, self.qemu.errors
        self._line()
        self.do("qmp_capabilities")

    def close(self) -> None:
        self._monitor.close()

    def do(self, command: str, **arguments: Any) -> Any:
        """What QMP answers to a command, when it was done."""
        self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while "event" in (answer := self._line()):
            pass
        assert "error" not in answer, answer
        return answer["return"]

    def _line(self) -> dict[str, Any]:
        while b"\n" not in self._said:
            self._said += self._monitor.recv(1 << 16)
        line, _, self._said = self._said.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def say(self, line: str) -> str:
        """What the monitor for people (HMP) prints."""
        answer: str = self.do("human-monitor-command", **{"command-line": line})
        return answer

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """The machine stands still in the block; its server does not."""
        self.do("stop")
        try:
            yield
        finally:
            self.do("cont")

    def dumped(self) -> np.ndarray:
        """What QEMU's own screendump says is shown: (height, width, 3) of R, G, B."""
        file = self._place / "screen.ppm"
        self.do("screendump", filename=str(file), format="ppm")
        kind, size, most, pixels = file.read_bytes().split(b"\n", 3)
        assert (kind, most) == (b"P6", b"255")
        width, height = map(int, size.split())
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)

    def text(self) -> str:
        """The characters of text mode that the machine's memory holds, without what is blank."""
        file = self._place / "memory"
        self.do("pmemsave", val=_TEXT, size=_TEXT_BYTES, filename=str(file))
        characters = file.read_bytes()[::2].decode("cp437").replace("\0", " ")
        lines = [characters[at : at + 80].rstrip() for at in range(0, len(characters), 80)]
        return "\n".join(lines).rstrip()


@contextlib.contextmanager
def machine(
    *options: str, tcp: bool = False, spice: str = "disable-ticketing=on", program: str = PROGRAM
) -> Iterator[Machine]:
    """QEMU with a boot sector; ``spice`` are options of its server, beside where that listens."""
    with short_directory() as place, contextlib.ExitStack() as stack:
        (place / "boot").write_bytes(sector(program))
        where, address = f"unix=on,addr={place}/s", f"unix:{place}/s"
        if tcp:
            port = free_port()
            where, address = f"addr=127.0.0.1,port={port}", f"tcp:127.0.0.1:{port}"
        command = ["qemu-system-x86_64", "-nodefaults", "-m", "16", "-display", "none", *options]
        command += ["-drive", f"file={place}/boot,format=raw", "-spice", f"{where},{spice}"]
        command += ["-qmp", f"unix:{place}/monitor,server=on,wait=off"]
        it = Machine(place, stack.enter_context(Program(command)), address)
        stack.callback(it.close)
        it.open()
        yield it


def free_port() -> int:
    """One of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


# What a client sees


async def seen(
    remote: RemoteDisplay, condition: Callable[[spiceshm.Frame], object]
) -> spiceshm.Frame:
    """The first frame of which it is true, from the present one on."""
    with trio.fail_after(DEADLINE):
        frame = await remote.latest()
        while not condition(frame):
            frame = await remote.wait_change(since=frame)
        return frame


async def written(it: Machine, remote: RemoteDisplay, text: str) -> None:
    """Wait until the machine's text ends so, as changes of the picture tell."""
    await seen(remote, lambda _: it.text().endswith(text))


async def prompted(it: Machine, remote: RemoteDisplay) -> None:
    """Back to text mode, and wait for the prompt there."""
    await remote.key("F1")
    await seen(remote, lambda frame: _size(frame) == MODES["F1"] and it.text().endswith(PROMPT))


async def drawn(remote: RemoteDisplay, key: str) -> None:
    """Press a key that draws, and wait until the last pixel is there."""
    size = MODES.get(key, (remote.width, remote.height))
    last = np.zeros(3) if key in MODES else (await remote.latest()).pixels[-1, -1, :3].copy()

    def done(frame: spiceshm.Frame) -> bool:
        return _size(frame) == size and (frame.pixels[-1, -1, :3] != last).any()

    await remote.key(key)
    await seen(remote, done)


def _size(frame: spiceshm.Frame) -> tuple[int, int]:
    return frame.width, frame.height


async def shows(
    it: Machine, remote: RemoteDisplay, like: Callable[[np.ndarray, np.ndarray], bool] | None = None
) -> np.ndarray:
    """Stop the machine, and wait until the client shows what QEMU dumps; returns what it shows.

    ``like`` is told both, and says whether they are alike; by default that is pixel for pixel.
    """
    like = like or np.array_equal
    with it.stopped():
        truth = it.dumped()

        def right(frame: spiceshm.Frame) -> bool:
            return frame.rgb().shape == truth.shape and like(frame.rgb(), truth)

        try:
            frame = await seen(remote, right)
        except trio.TooSlowError:
            shown = await remote.screenshot()
            differ = (shown != truth).any(axis=2).sum() if shown.shape == truth.shape else "all"
            pytest.fail(f"{shown.shape} is shown of {truth.shape}; {differ} pixels differ")
        assert len(frame.stale) == 0
        return frame.rgb()
