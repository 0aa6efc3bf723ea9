"""Record what each action changes on a display: pictures of those regions, and an index.

    spiceshm-server --source xvfb --surface 640x480 -- xterm &
    python examples/record.py FOLDER [ADDRESS]

Each line of FOLDER/index.jsonl is a picture: the action before it, the region (top, left, bottom,
right) and the file. Laid over each other in this order they are what the display shows.
"""

import json
import sys
from pathlib import Path

import spiceshm.sync

ACTIONS = [
    ("click", 100, 100),  # without a window manager keys go to the window under the pointer
    ("type", "date; ls /\n"),
    ("key", "ctrl+l"),
    ("type", "echo the end"),
]


def save(frame, folder):
    """Save every region that the frame says has changed; gives each with its file's name."""
    for number, region in enumerate(frame.rects.tolist()):
        name = f"{frame.serial:06}-{number:02}.png"
        (folder / name).write_bytes(frame.png(region))
        yield region, name


def main(folder, address=None):
    folder.mkdir(parents=True, exist_ok=True)
    with spiceshm.sync.connect(address) as display, open(folder / "index.jsonl", "w") as index:
        seen = None
        for method, *values in [("latest",), *ACTIONS]:
            getattr(display, method)(*values)
            # Its rects are all that has changed since the frame that we got before it.
            frame = display.wait_stable(0.5)
            if seen is not None and frame.serial == seen.serial:
                continue  # nothing has
            for region, name in save(frame, folder):
                line = {"after": [method, *values], "region": region, "file": name}
                print(json.dumps(line), file=index)
            seen = frame


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
