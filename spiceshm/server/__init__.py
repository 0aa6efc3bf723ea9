"""The server, where wire, memory and transport meet.

`display` listens and serves channels, `entrance` is who is let in, with those who wait at its
`doorstep` and the wrong `tickets` that were shown; `sessions` a client each; `surface` is what a
producer draws on, `viewer` is what one client is sent of it, `encoding` how that is written where
no memory is shared, `cursor` what it is told of the pointer, `inputs` what becomes of its keys, and
`agent` of its wish for another size.
"""

from .display import Display, serve
from .surface import Drawing, Surface
from .viewer import Viewer, ViewerStats

__all__ = ["Display", "Drawing", "Surface", "Viewer", "ViewerStats", "serve"]
