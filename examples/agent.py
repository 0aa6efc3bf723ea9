"""A loop that looks, decides and acts, and is given only what has changed.

    python examples/agent.py

Needs Xvfb and xmessage (Debian: xvfb, x11-utils).
"""

import numpy as np
import trio

import spiceshm

# Three questions, one after another, each at another place. Only the green button goes on.
PROGRAM = """
for place in +40+30 +500+300 +200+450; do
    xmessage -geometry $place -xrm '*Yes.background: #00a000' -buttons No:1,Yes:0 'Go on?' || exit
done
"""
GREEN = (0, 0xA0, 0)


def policy(crops):
    """What to do: the name of a method of the display and its arguments; None for nothing.

    ``crops`` are what has changed, as (x, y, picture) with a picture of R, G, B. This one presses
    what is green; put your model here.
    """
    for x, y, picture in crops:
        rows, columns = np.nonzero((picture == GREEN).all(axis=2))
        if len(rows):
            return "click", x + int(np.median(columns)), y + int(np.median(rows))
    return None


async def play(display):
    looked = 0
    async for frame in display.frames():  # the newest; what was missed is in its rects
        crops = [
            (left, top, frame.rgb((top, left, bottom, right)))
            for top, left, bottom, right in frame.rects.tolist()
        ]
        looked += sum(picture.size // 3 for _, _, picture in crops)
        if action := policy(crops):
            name, *values = action
            print(f"frame {frame.serial}, {looked} pixels looked at so far: {name} {values}")
            await getattr(display, name)(*values)


async def main():
    async with spiceshm.desktop("sh", "-c", PROGRAM, width=800, height=600) as desktop:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(play, desktop.display)
            print("the program ended with", await desktop.wait())
            nursery.cancel_scope.cancel()


trio.run(main)
