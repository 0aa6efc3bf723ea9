"""The client, where wire, memory and transport meet.

`display` connects and hands out frames, `frame` is what it hands out, `canvas` is where ordinary
SPICE is drawn.
"""

from .display import Frames, RemoteDisplay, Sharing, connect
from .frame import Frame

__all__ = ["Frame", "Frames", "RemoteDisplay", "Sharing", "connect"]
