"""A display as a program sees it: looked at through frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ..transport import Address
    from .display import DisplayChannel
    from .frame import Frame


class RemoteDisplay:
    """A display that somebody else draws; made by `connect`."""

    def __init__(self, channel: DisplayChannel) -> None:
        self._channel = channel

    @property
    def address(self) -> Address:
        """Where the server listens."""
        return self._channel.address

    @property
    def width(self) -> int:
        """Pixels; another number when the server changes its mode."""
        return self._channel.width

    @property
    def height(self) -> int:
        """Pixels; another number when the server changes its mode."""
        return self._channel.height

    @property
    def shared(self) -> bool:
        """Whether frames are read in place from the server's memory."""
        return self._channel.shared

    @property
    def reason(self) -> str | None:
        """Why memory is not shared; None while it is."""
        return self._channel.reason

    @property
    def segment_bytes(self) -> int:
        """Bytes of the server's memory that are mapped."""
        return self._channel.segment_bytes

    @property
    def pixel_bytes(self) -> int:
        """Bytes of the pixels that the frames so far said had changed."""
        return self._channel.pixel_bytes

    @property
    def wire_bytes(self) -> int:
        """Bytes through the display channel's socket so far, both ways."""
        return self._channel.wire_bytes

    def frames(self) -> Frames:
        """Frames as they come, newest first, never a backlog: ``async for frame in ...``.

        A frame is released when the next one is asked for. Raises Disconnected when the server
        goes, and FramesHeld when views of earlier frames, that you kept, hold all that the server
        lends for longer than 5 s.
        """
        return Frames(self._channel)


class Frames:
    """The iterator that `RemoteDisplay.frames` gives."""

    def __init__(self, channel: DisplayChannel) -> None:
        self._channel = channel

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[None, None, Frame]:
        return self._channel.next_frame()
