"""The videos of a display channel: where each is shown, as the server said."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from ..errors import RemoteProtocolError
from ..wire import display

if TYPE_CHECKING:
    from ..wire import Message

MOST_STREAMS = 64
MOST_STREAM_CLIPS = 1 << 12
"""Rectangles of a stream, which are kept: of what is drawn at once there may be more."""

_CODECS = {1: "mjpeg", 2: "vp8", 3: "h264", 4: "vp9", 5: "h265"}


class Stream:
    """A video that is shown on a part of a surface."""

    def __init__(self, create: display.StreamCreate) -> None:
        self.create = dataclasses.replace(create, clip=None)
        self.set_clip(create)

    def set_clip(self, message: display.StreamCreate | display.StreamClip) -> None:
        clip = message.clip
        if clip is not None and len(np.asarray(clip)) > MOST_STREAM_CLIPS:
            many = f"more than {MOST_STREAM_CLIPS} rectangles"
            raise RemoteProtocolError(message.title, "clip", many)
        self.clip = clip

    @property
    def codec(self) -> str:
        """How it is called in `spiceshm.RemoteDisplay.images`."""
        kind = self.create.codec_type
        return _CODECS.get(kind, f"video codec {kind}")


class Streams:
    """Those that there are now."""

    def __init__(self) -> None:
        self._streams: dict[int, Stream] = {}

    def find(self, number: int) -> Stream | None:
        """The one with an id. Servers speak of some, too, that the client was never told of."""
        return self._streams.get(number)

    def note(self, message: Message) -> None:
        """Do what the server says of streams, if the message is of that."""
        match message:
            case display.StreamCreate():
                if message.id >= MOST_STREAMS:
                    problem = f"{message.id}: more than {MOST_STREAMS} streams"
                    raise RemoteProtocolError(message.title, "id", problem)
                self._streams[message.id] = Stream(message)
            case display.StreamClip():
                if message.id in self._streams:
                    self._streams[message.id].set_clip(message)
            case display.StreamDestroy():
                self._streams.pop(message.id, None)
            case display.StreamDestroyAll():
                self._streams.clear()

    def end(self, surface_id: int) -> None:
        """That surface is no more."""
        self._streams = {
            key: stream
            for key, stream in self._streams.items()
            if stream.create.surface_id != surface_id
        }
