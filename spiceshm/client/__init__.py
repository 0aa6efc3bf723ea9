"""The client, where wire, memory and transport meet.

`remote` is what a program sees. `session` opens the channels, `display` receives and hands out
frames, `frame` is what it hands out, `canvas` is where ordinary SPICE is drawn.
"""

from .display import Sharing
from .frame import Frame
from .remote import Frames, RemoteDisplay
from .session import connect

__all__ = ["Frame", "Frames", "RemoteDisplay", "Sharing", "connect"]
