"""A virtual machine without an operating system that draws in 1920x1080, and the QEMU it runs on.

The boot sector switches the screen with the registers of Bochs' VGA, which all of QEMU's have, and
fills its memory with what looks like fine print to a compressor. Then it does every 2 ms, by the
timer, what the last key said: 2 nothing, 3 a line of 960x13 pixels, at the top on the left, anew; 4
all of the screen, scrolled by a line. That one moves in the memory, so that it costs the machine
nothing. QEMU looks every 30 ms for what has changed.
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .process import PATIENCE_S, Failed
from .xservers import free_port, program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Doing = Literal["nothing", "line", "page"]

_KEYS: dict[Doing, str] = {"nothing": "1", "line": "2", "page": "3"}
_PAUSE_S = 0.005

_CODE = """
fa fc 31db 8edb 8ed3 bc007c    cli; cld; bx = ds = ss = 0; sp = 0x7c00
be ea7c                        si = modes
ad e8c700                      lodsw; call dispi
81fe 027d 72f6                 until si = end of modes
66b8 10100080 baf80c 66ef      PCI device 2, which is the VGA, register 0x10:
b2fc 66ed 24f0 6689c5          ebp = where its memory is
b034 e643 b052 e640 b009 e640  timer: 500 times a second
b0fe e621                      no other interrupt
66b9 00fc3f00 6689ef e85300    ecx = 1920 * 2184; edi = ebp; call noise
e6e9                     said: to the debug console: al
fb f4 fa                 tick: sti; hlt; cli
e464 a801 740b                 if there is a byte of the keyboard:
e460 88c3 a2e17c a880 75ea       what = bl = al = the byte; if it is of a key's end: goto said
a0e17c 3c83 741b               if what = 0x83: goto line
3c84 75e1                      if what != 0x84: goto tick
bee27c ff04                    si = top; top += 1
813c 5004 7204 c704 0000       if top >= 1104: top = 0
b80900 e85b00 ebca             ax = 9, the first line that is shown; call dispi; goto tick
6689ef ba0d00            line: edi = ebp; dx = 13
66b9 c0030000 e80c00           ecx = 960; call noise
6681c7 000f0000 4a 75ed ebaf   edi += 960 * 4; dx -= 1; until it is 0; goto tick
6651 660f0116 e47c      noise: push ecx; lgdt
0f20c0 0c01 0f22c0 b90800 8ec1  protected mode, for a segment es of 4 GB
24fe 0f22c0 31c9 8ec1 6659     and back; pop ecx
6669db 0d661900                ebx *= 1664525
6681c3 5ff36e3c                ebx += 1013904223
660fbae31f 6619c0              eax = 0, or -1 if the highest bit of ebx is set
6766ab 6649 75e3 c3            stosd at edi; ecx -= 1; until it is 0; ret
bace01 ef 42 ad ef c3   dispi: register ax of the VGA = the word at si; si += 2; ret
00 0000                        what; top
0f00 087d0000                  gdt
0400 0000                modes: off
0100 8007 0200 3804 0300 2000  1920, 1080, 32 bits a pixel
0400 4100 0600 8007            on, all of its memory in one piece; lines of 1920
0000 0000 0000 0000 0000 0000 0000  the descriptor 0, on a multiple of eight
ffff 0000 0092 cf00            the descriptor 8
"""
"""Machine code, and what it does; code of a routine behind its name."""


def boot_sector() -> bytes:
    """512 bytes."""
    code = "".join(line.partition("  ")[0] for line in _CODE.splitlines())
    return bytes.fromhex(code).ljust(510, b"\0") + b"\x55\xaa"


class Monitor:
    """A machine's QMP."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self.do("qmp_capabilities")

    def do(self, command: str, **arguments: Any) -> None:
        """Carry out a command and wait for its end. Raises Failed."""
        order = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(order).encode())
        while "return" not in (said := json.loads(self._lines.readline() or b'{"error": "gone"}')):
            if "error" in said:
                raise Failed(f"QEMU: {command}: {said['error']}")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class Guest:
    """A machine that runs; ``qmp`` is the socket of its monitor."""

    def __init__(self, directory: Path, pid: int) -> None:
        self.pid = pid
        self.qmp = directory / "qmp"  # of which one at a time can be a client
        self._said = directory / "said"
        _await(lambda: self._spoken > 0)  # its picture is complete
        self._monitor = Monitor(directory / "keys")

    def do(self, what: Doing) -> None:
        """From now on the machine does this."""
        before = self._spoken
        key = {"type": "qcode", "data": _KEYS[what]}
        self._monitor.do("send-key", keys=[key])
        _await(lambda: self._spoken > before)

    @property
    def _spoken(self) -> int:
        return self._said.stat().st_size if self._said.exists() else 0

    def close(self) -> None:
        self._monitor.close()


def _await(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > end:
            raise Failed("the machine does not answer")
        time.sleep(_PAUSE_S)


@contextmanager
def guest(through: Literal["unix", "tcp"], *, options: str = "") -> Iterator[tuple[Guest, str]]:
    """A machine whose picture is complete, and the address of its SPICE server.

    ``options`` are more of QEMU's for that server, each with a comma before it.
    """
    with tempfile.TemporaryDirectory(prefix="spiceshm-bench-") as name:
        directory = Path(name)
        (directory / "boot").write_bytes(boot_sector())
        if through == "unix":
            place, address = f"unix=on,addr={name}/s", f"unix:{name}/s"
        else:
            port = free_port()
            place, address = f"addr=127.0.0.1,port={port}", f"tcp:127.0.0.1:{port}"
        command = ["qemu-system-x86_64", "-nodefaults", "-accel", "tcg", "-m", "16"]
        command += ["-display", "none", "-vga", "std"]
        command += ["-drive", f"file={name}/boot,format=raw"]
        command += ["-chardev", f"file,id=said,path={name}/said"]
        command += ["-device", "isa-debugcon,iobase=0xe9,chardev=said"]
        for monitor in ("qmp", "keys"):
            command += ["-qmp", f"unix:{name}/{monitor},server=on,wait=off"]
        command += ["-spice", f"{place},disable-ticketing=on{options}"]
        with program(command, stdout=subprocess.DEVNULL) as process:
            machine = Guest(directory, process.pid)
            try:
                yield machine, address
            finally:
                machine.close()
