"""The client, where wire, memory and transport meet.

`session` opens the channels, `display` receives and hands out frames, `frame` is what it hands
out, `canvas` is where ordinary SPICE is drawn.
"""

from .display import Frames, RemoteDisplay, Sharing
from .frame import Frame
from .session import connect

__all__ = ["Frame", "Frames", "RemoteDisplay", "Sharing", "connect"]
