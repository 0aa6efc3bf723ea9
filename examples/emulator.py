"""A program that draws its own screen, as large as viewers' windows, and takes keys and pointer.

    python examples/emulator.py [ADDRESS]
    remote-viewer spice+unix://$XDG_RUNTIME_DIR/spiceshm/display.sock

The arrow keys move the square, a button of the mouse brings it there, q ends it.
"""

import sys

import numpy as np
import trio

import spiceshm
from spiceshm.events import LEFT, Button, Key, PointerTo

SIZE = 40
STEPS = {0xE048: (0, -SIZE), 0xE050: (0, SIZE), 0xE04B: (-SIZE, 0), 0xE04D: (SIZE, 0)}
Q = 0x10  # scan codes: see spiceshm.scancodes


class Machine:
    def __init__(self):
        self.x, self.y, self.pointer = 300, 220, (0, 0)
        self.width, self.height = 640, 480
        self.changed, self.done = trio.Event(), False

    async def play(self, events):
        """What clients do, in order; to return is to say that the machine has got it."""
        for event in events:
            match event:
                case Key(code, True) if code in STEPS:
                    self.put(self.x + STEPS[code][0], self.y + STEPS[code][1])
                case Key(code, True) if code == Q:
                    self.done = True
                    self.changed.set()
                case PointerTo(x, y):
                    self.pointer = x, y
                case Button(button, True) if button == LEFT:
                    self.put(*self.pointer)

    async def resize(self, width, height):
        """The window of a viewer has this size now; nobody is obliged to follow."""
        self.width, self.height = max(width, SIZE), max(height, SIZE)
        self.put(self.x, self.y)

    def put(self, x, y):
        self.x, self.y = min(max(x, 0), self.width - SIZE), min(max(y, 0), self.height - SIZE)
        self.changed.set()


async def main(*address):
    machine, picture = Machine(), None
    async with spiceshm.serve(*address, inputs=machine.play, resize=machine.resize) as display:
        while not machine.done:
            if picture is None or picture.shape != (machine.height, machine.width, 4):
                picture = np.zeros((machine.height, machine.width, 4), np.uint8)
                surface = display.create_surface(machine.width, machine.height)
                shown = (0, 0, machine.height, machine.width)
            square = machine.y, machine.x, machine.y + SIZE, machine.x + SIZE
            picture[shown[0] : shown[2], shown[1] : shown[3]] = 0
            picture[square[0] : square[2], square[1] : square[3]] = (0, 200, 255, 0)  # B, G, R, X
            surface.draw(picture, [shown, square])
            shown = square
            await machine.changed.wait()
            machine.changed = trio.Event()


trio.run(main, *sys.argv[1:])
