"""Memory and pixels: `segment` shared memory itself, `pool` buffers, leases and damage."""

from .pool import Buffer, BufferState, Frame, Pool, Reader
from .segment import MappedSegment, Segment

__all__ = ["Buffer", "BufferState", "Frame", "MappedSegment", "Pool", "Reader", "Segment"]
