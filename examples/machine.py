"""Start a virtual machine, choose from its firmware's boot menu, and keep pictures of both.

    python examples/machine.py

Needs qemu-system-x86_64 (Debian: qemu-system-x86). Nothing is installed in the machine, and nothing
in it knows of us: QEMU has a SPICE server.
"""

import contextlib
import subprocess
import tempfile
from pathlib import Path

import spiceshm.sync

CELL = (16, 9)  # rows and columns of a character in the text mode that firmware begins in
QUIET_S = 0.2  # not for longer: the cursor blinks


@contextlib.contextmanager
def machine():
    """A machine without disk and network; the address of its display."""
    with tempfile.TemporaryDirectory() as place:
        command = ["qemu-system-x86_64", "-display", "none", "-vga", "std", "-nic", "none"]
        command += ["-boot", "menu=on,splash-time=30000"]
        command += ["-spice", f"unix=on,addr={place}/vm.sock,disable-ticketing=on"]
        with subprocess.Popen(command) as qemu:
            try:
                yield f"unix:{place}/vm.sock"
            finally:
                qemu.kill()


def written(display, line):
    """Wait until a line has text; a cursor that blinks in its first column is none."""
    rows = slice(line * CELL[0], (line + 1) * CELL[0])
    while not display.latest().pixels[rows, CELL[1] :, :3].any():
        display.wait_change()


def main():
    with machine() as address:
        with spiceshm.sync.connect(address, wait_server=10) as display:
            written(display, 2)  # "Press ESC for boot menu."
            display.key("Escape")
            written(display, 8)  # the last of three lines to choose from
            Path("menu.png").write_bytes(display.wait_stable(QUIET_S).png())
            display.type("1")
            written(display, 10)  # it tries one device after another
            Path("booted.png").write_bytes(display.wait_stable(QUIET_S).png())
            print(f"{address}: {display.width}x{display.height}, menu.png, booted.png")


main()
