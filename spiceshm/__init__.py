"""spiceshm: a SPICE display server and client whose pixels lie in shared memory.

In reading order:

    errors, region, fds     the ground: what can go wrong, rectangles, descriptors
    wire                    every message, declared with construct
    protocol                the conversation without I/O: both ends, as tables and machines
    memory                  sealed segments, the leased pool of buffers
    transport               addresses, sockets, descriptors that travel
    server, client          where the three meet
    sources                 what a server can show: a test pattern, an X display
    cli                     the two programs
"""

from .client import Frame, Frames, RemoteDisplay, connect
from .errors import (
    AddressError,
    ConnectError,
    Disconnected,
    FramesHeld,
    LinkRefused,
    ListenError,
    LocalProtocolError,
    MemoryRefused,
    ProtocolError,
    RemoteProtocolError,
    SourceError,
    SpiceShmError,
)
from .server import Display, Drawing, Surface, ViewerStats, serve

__version__ = "0.1.0"

__all__ = [
    "AddressError",
    "ConnectError",
    "Disconnected",
    "Display",
    "Drawing",
    "Frame",
    "Frames",
    "FramesHeld",
    "LinkRefused",
    "ListenError",
    "LocalProtocolError",
    "MemoryRefused",
    "ProtocolError",
    "RemoteDisplay",
    "RemoteProtocolError",
    "SourceError",
    "SpiceShmError",
    "Surface",
    "ViewerStats",
    "connect",
    "serve",
]
