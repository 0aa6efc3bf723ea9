"""Memory and pixels: `segment` shared memory itself, `pool` buffers, leases and damage."""

from .pool import MOST_LOCAL, Buffer, BufferState, Frame, Pool, Reader
from .segment import Budget, MappedSegment, Segment, pages

__all__ = [
    "MOST_LOCAL",
    "Budget",
    "Buffer",
    "BufferState",
    "Frame",
    "MappedSegment",
    "Pool",
    "Reader",
    "Segment",
    "pages",
]
