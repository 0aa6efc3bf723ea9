"""Wait for a dialog, whenever it comes, and press one of its buttons.

    python examples/dialog.py

Needs Xvfb and xmessage (Debian: xvfb, x11-utils).
"""

import numpy as np

import spiceshm.sync

# A program that asks something after a while. It ends with the number of the button.
PROGRAM = """
sleep 1.5
exec xmessage -geometry +300+200 -xrm '*Delete.background: #c00000' \
    -buttons Keep:10,Delete:20 'Delete all files?'
"""
RED = (0xC0, 0, 0)


def middle_of(colour, picture):
    """Where a colour is in a picture, as x and y; None if it is nowhere."""
    rows, columns = np.nonzero((picture == colour).all(axis=2))
    return (int(np.median(columns)), int(np.median(rows))) if len(rows) else None


with spiceshm.sync.desktop("sh", "-c", PROGRAM, width=800, height=600) as desktop:
    display = desktop.display
    frame = display.latest()
    while (place := middle_of(RED, frame.rgb())) is None:
        display.wait_change(since=frame, timeout=20)  # spiceshm.Timeout if there is never a dialog
        frame = display.wait_stable(0.2)  # it may be drawn in pieces
    print("the button is at", place)
    display.click(*place)
    print("the dialog ended with", desktop.wait())
