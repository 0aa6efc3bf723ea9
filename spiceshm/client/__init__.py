"""The client, where wire, memory and transport meet.

`remote` is what a program sees. `session` opens the channels, `display` receives and hands out
frames, `frame` is what it hands out, `wishes` what it asks for. `ordinary` makes frames where
memory is not shared; `canvas` is where that is drawn, on `surfaces`, with `pictures`, which
`images` says how to decode and `caches` keep, and `streams`; `parts` has the geometry and `raster`
the arithmetic. `channels` are those that are opened when first used: `inputs` for keys and
pointer, which `keyboard` makes of text and names by `layouts` and `xkb`, and `cursor` for what the
pointer looks like.
"""

from .cursor import Cursor
from .frame import Frame
from .remote import Frames, RemoteDisplay
from .session import connect
from .wishes import Compressing, Sharing

__all__ = ["Compressing", "Cursor", "Frame", "Frames", "RemoteDisplay", "Sharing", "connect"]
