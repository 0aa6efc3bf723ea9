"""A program that draws its own screen and takes keys and the pointer.

    python examples/emulator.py [ADDRESS]
    remote-viewer spice+unix://$XDG_RUNTIME_DIR/spiceshm/display.sock

The arrow keys move the square, a button of the mouse brings it there, q ends it.
"""

import sys

import numpy as np
import trio

import spiceshm
from spiceshm.events import LEFT, Button, Key, PointerTo

WIDTH, HEIGHT, SIZE = 640, 480, 40
STEPS = {0xE048: (0, -SIZE), 0xE050: (0, SIZE), 0xE04B: (-SIZE, 0), 0xE04D: (SIZE, 0)}
Q = 0x10  # scan codes: see spiceshm.scancodes


class Machine:
    def __init__(self):
        self.x, self.y, self.pointer = 300, 220, (0, 0)
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

    def put(self, x, y):
        self.x, self.y = min(max(x, 0), WIDTH - SIZE), min(max(y, 0), HEIGHT - SIZE)
        self.changed.set()


async def main(*address):
    machine, picture = Machine(), np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    async with spiceshm.serve(*address, inputs=machine.play) as display:
        surface = display.create_surface(WIDTH, HEIGHT)
        shown = (0, 0, HEIGHT, WIDTH)
        while not machine.done:
            square = machine.y, machine.x, machine.y + SIZE, machine.x + SIZE
            picture[shown[0] : shown[2], shown[1] : shown[3]] = 0
            picture[square[0] : square[2], square[1] : square[3]] = (0, 200, 255, 0)  # B, G, R, X
            surface.draw(picture, [shown, square])
            shown = square
            await machine.changed.wait()
            machine.changed = trio.Event()


trio.run(main, *sys.argv[1:])
