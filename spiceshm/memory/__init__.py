"""Memory and pixels: `segment` shared memory itself, `pool` buffers, leases and damage."""

from .pool import Buffer, BufferState, Frame, Pool, Reader
from .segment import Budget, MappedSegment, Segment

__all__ = ["Budget", "Buffer", "BufferState", "Frame", "MappedSegment", "Pool", "Reader", "Segment"]
