"""Pictures as ordinary SPICE carries them: arrays in, bytes out, and the other way round.

Read `solid` for what needs no picture at all, `raw`, `lz4` and `lz` for the three ways to write
one. Each takes an array (height, width) of uint32 whose bytes are B, G, R, X and may be a part of a
larger picture; X means nothing and may be lost. They run in threads: nothing here keeps state but
`glz.Dictionary`, and all that takes time is done by calls that let other threads run.

Read `bitmap`, `lz`, `glz`, `lz4`, `jpeg` and `quic` for what servers send: each ``decode`` takes
the body of an image and the size that its message has, and returns an array (height, width, 4) of
bytes or raises CannotDecode. It takes memory by that size, so who calls it looks at that first, and
time by the length of the body too. Only `tokens` keeps other threads from running, where numba is
missing.
"""

from __future__ import annotations

from . import bitmap, glz, jit, jpeg, lz, lz4, quic, raw, solid

__all__ = ["bitmap", "glz", "jit", "jpeg", "lz", "lz4", "quic", "raw", "solid"]
