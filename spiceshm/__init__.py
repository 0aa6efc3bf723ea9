"""spiceshm: a SPICE display server and client whose pixels lie in shared memory.

`serve` and a surface show what a program draws, and give it what clients type and click. `connect`
looks at a display and acts on it, `desktop` makes one of its own for that; `spiceshm.sync` has
these two in ordinary Python.

In reading order:

    errors, region, fds     the ground: what can go wrong, rectangles, descriptors
    events, scancodes       keys and pointer as a server's program gets them, keys by number
    nursery                 trio's, with one error told as itself
    wire                    every message, declared with construct
    protocol                the conversation without I/O: both ends, as tables and machines
    memory                  sealed segments, the leased pool of buffers
    codecs                  pictures as ordinary SPICE carries them: LZ4, LZ
    transport               addresses, sockets, descriptors that travel
    server, client          where the three meet
    sources                 what a server can show: a test pattern, an X display
    desktops                a desktop of one's own: where server, client and sources meet
    relay                   another SPICE server as a source: where server and client meet
    background, sync        connect and desktop in ordinary Python, without await
    cli                     the two programs
    testing                 for pytest: desktops for tests of programs with windows
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    AddressError,
    CannotType,
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
    Timeout,
    ViewOnly,
)

if TYPE_CHECKING:
    from .client import Cursor, Frame, Frames, RemoteDisplay, connect
    from .desktops import Desktop, desktop
    from .relay import Relay
    from .server import Display, Drawing, Surface, ViewerStats, serve

__version__ = "0.1.0"

__all__ = [
    "AddressError",
    "CannotType",
    "ConnectError",
    "Cursor",
    "Desktop",
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
    "Relay",
    "RemoteDisplay",
    "RemoteProtocolError",
    "SourceError",
    "SpiceShmError",
    "Surface",
    "Timeout",
    "ViewOnly",
    "ViewerStats",
    "connect",
    "desktop",
    "serve",
]

_LATER = {
    **dict.fromkeys(("Cursor", "Frame", "Frames", "RemoteDisplay", "connect"), "client"),
    **dict.fromkeys(("Desktop", "desktop"), "desktops"),
    "Relay": "relay",
    **dict.fromkeys(("Display", "Drawing", "Surface", "ViewerStats", "serve"), "server"),
}


if not TYPE_CHECKING:  # else any name would do for a type checker

    def __getattr__(name: str) -> Any:
        """Import an end when it is first used: --help alone does not wait for numpy."""
        if name in ("client", "server", "sync"):
            return import_module(f".{name}", __name__)
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_LATER[name]}", __name__), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER, "client", "server", "sync"})
