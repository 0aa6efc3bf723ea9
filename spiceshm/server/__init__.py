"""The server, where wire, memory and transport meet.

`display` listens and opens sessions, `surface` is what a producer draws on, `viewer` is what one
client is sent.
"""

from .display import Display, serve
from .surface import Drawing, Surface
from .viewer import Viewer, ViewerStats

__all__ = ["Display", "Drawing", "Surface", "Viewer", "ViewerStats", "serve"]
