"""Pictures as ordinary SPICE carries them: arrays in, bytes out.

Read `solid` for what needs no picture at all, `raw`, `lz4` and `lz` for the three ways to write
one. Each takes an array (height, width) of uint32 whose bytes are B, G, R, X and may be a part of a
larger picture; X means nothing and may be lost. They run in threads: nothing here keeps state, and
all that takes time is done by calls that let other threads run.
"""

from __future__ import annotations

from . import lz, lz4, raw, solid

__all__ = ["lz", "lz4", "raw", "solid"]
