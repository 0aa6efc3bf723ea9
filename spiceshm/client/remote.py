"""A display as a program sees it: looked at through frames, acted on by keys and pointer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from . import waits
from .cursor import draw

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from contextlib import AbstractAsyncContextManager

    import numpy as np
    from numpy.typing import NDArray

    from ..region import Rect
    from ..transport import Address
    from .cursor import Cursor, CursorChannel
    from .display import DisplayChannel
    from .frame import Frame
    from .inputs import Inputs
    from .session import Session

TIMEOUT_S = 30.0


class RemoteDisplay:
    """A display that somebody else draws; made by `connect`.

    A ``region`` is (top, left, bottom, right) in pixels, bottom and right exclusive, as the rows of
    `Frame.rects` are; None is the whole picture. A ``timeout`` is in seconds: 0 only looks at what
    is there, None waits for ever; when it is over Timeout says what was waited for. Every method
    that waits raises Disconnected when the server goes.

    A frame from `latest`, `wait_change` and `wait_stable` stays right for as long as you keep it:
    its pixels are the server's memory at first, and a copy if you keep it and look for others.
    """

    def __init__(
        self, channel: DisplayChannel, session: Session, inputs: Inputs, cursor: CursorChannel
    ) -> None:
        self._channel = channel
        self._session = session
        self._inputs = inputs
        self._cursor = cursor

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

    @property
    def images(self) -> dict[str, int]:
        """What ordinary SPICE has drawn by so far, so many of each kind; of shared memory nothing.

        Images go by what they were packed with ("raw", "lz4", "lz", "glz", "zlib_glz", "quic",
        "jpeg", ...), or "from_cache" and "surface" for what was here already; "mjpeg" are pictures
        of a video, and "fill", "copy_bits" and such need no image.
        """
        return self._channel.images

    @property
    def stale(self) -> list[Rect]:
        """Where the newest picture is not what the server shows, for want of something that decodes
        what it drew there: (top, left, bottom, right) in pixels. `Frame.stale` is that of a frame.
        """
        return self._channel.stale

    def frames(self) -> Frames:
        """Frames as they come, newest first, never a backlog: ``async for frame in ...``.

        It begins with the first that you were not given yet, by whatever call. A frame is released
        when the next one is asked for. Raises Disconnected when the server goes, and FramesHeld
        when views of earlier frames, that you kept, hold all that the server lends for longer than
        5 s.
        """
        return Frames(self._channel)

    # Looking

    @property
    def silent_s(self) -> float:
        """Seconds since the server was heard of. Ours says something every second, also when
        nothing changes; others may be silent for longer."""
        return self._channel.silent_s

    async def latest(self) -> Frame:
        """The newest frame, the same as before if there is no newer one. Does not wait for one.

        It may be a hundredth of a second behind what the server shows.

        Raises FramesHeld where nobody can know which is the newest, because your views hold all
        frames that the server lends.
        """
        frame = await self._newest()
        frame.kept = True
        return frame

    async def _newest(self) -> Frame:
        return await self._channel.newest() or await self._session.look_again()

    async def wait_change(
        self,
        region: Rect | None = None,
        *,
        since: Frame | int | None = None,
        timeout: float | None = TIMEOUT_S,
    ) -> Frame:
        """Wait until something was drawn in a region; returns the newest frame.

        ``since`` is a frame, or its serial: whatever was drawn after it counts, also if that was
        long before this call. By default that is the last frame that you got (at first: the one
        that was there when you connected), and if you sent keys or moved the pointer after it, then
        only frames that the server published after these were delivered count. What was drawn and
        undone was drawn. Raises Timeout, FramesHeld, and ValueError for a region outside.
        """
        await waits.change(self._channel, region, since, timeout)
        return await self.latest()

    async def wait_stable(
        self,
        quiet: float = 0.3,
        region: Rect | None = None,
        *,
        timeout: float | None = TIMEOUT_S,
    ) -> Frame:
        """Wait until nothing was drawn in a region for ``quiet`` seconds, counted from this call on
        at the earliest; returns the newest frame. Raises as `wait_change` does."""
        await waits.stable(self._channel, quiet, region, timeout)
        return await self.latest()

    async def screenshot(
        self, region: Rect | None = None, *, cursor: bool = False
    ) -> NDArray[np.uint8]:
        """The newest picture as an array (height, width, 3) of R, G, B, yours.

        ``cursor`` draws the pointer into it. Raises ValueError for a region outside, and with
        ``cursor`` what `cursor` raises.
        """
        frame = await self._newest()
        rgb = frame.rgb(region)
        if cursor:
            draw(await self.cursor(), rgb, region or (0, 0, frame.height, frame.width))
        return rgb

    # Acting: each call returns when the server has done it, and raises ViewOnly where that is not
    # wanted here or there, Timeout where the server does not say within 30 s that it is done, and
    # what ended the connection. A call that is cancelled may have been sent, all of it or a piece
    # of a long text; it leaves no key and no button down.

    async def type(self, text: str) -> None:
        """Type a text with the keys that the layout ``connect(keyboard=...)`` has for it.

        ``"\\n"`` is Enter, ``"\\t"`` is Tab. Caps Lock may be on over there: then other keys give
        the same text. Calls of several tasks do not mix. Raises CannotType for a character that no
        key gives, ViewOnly, and what ended the connection.
        """
        await self._inputs.type(text)

    async def key(self, combo: str) -> None:
        """Press and let go a key, or several together: ``"Return"``, ``"ctrl+c"``, ``"ctrl++"``.

        Names are those of X ("Page_Up", "BackSpace", "Control_L") and those on the keys ("pageup",
        "esc", "ctrl", "altgr", "super"), in any case; or a single character: ``"A"`` is Shift and
        the key of the a. Raises CannotType for a name that there is not, ViewOnly, and what ended
        the connection.
        """
        await self._inputs.key(combo)

    def hold(self, combo: str) -> AbstractAsyncContextManager[None]:
        """Hold keys down for a block: ``async with display.hold("ctrl+shift"): ...``.

        What the block types and clicks is done with them. They come up at its end, also when it
        fails or is cancelled; what several blocks hold comes up with the last of them. Raises as
        `key`.
        """
        return self._inputs.hold(combo)

    def hold_button(self, button: str) -> AbstractAsyncContextManager[None]:
        """Hold a button down for a block: "left", "middle", "right", "side" or "extra".

        As with `hold`. Raises CannotType for another name, ViewOnly, and what ended the connection.
        """
        return self._inputs.hold_button(button)

    async def move(self, x: float, y: float) -> None:
        """Put the pointer to a place, in pixels from the left and the top; fractions are rounded.

        Raises ValueError for a place outside of the display, ViewOnly (also where a server takes
        no positions, as a virtual machine without a tablet), and what ended the connection.
        """
        await self._inputs.move(x, y)

    async def move_by(self, dx: float, dy: float) -> None:
        """Move the pointer by so many pixels, right and down.

        Raises ViewOnly, and what ended the connection.
        """
        await self._inputs.move_by(dx, dy)

    async def click(
        self, x: float | None = None, y: float | None = None, button: str = "left"
    ) -> None:
        """Click at a place, in pixels, or where the pointer is.

        Raises as `move`, and CannotType for a name that no button has.
        """
        await self._inputs.click(x, y, button)

    async def double_click(
        self, x: float | None = None, y: float | None = None, button: str = "left"
    ) -> None:
        """Click twice at a place, in pixels, or where the pointer is. Raises as `click`."""
        await self._inputs.click(x, y, button, times=2)

    async def drag(
        self, x: float, y: float, to_x: float, to_y: float, button: str = "left"
    ) -> None:
        """Press a button at a place, move to another in some steps, and let go.

        Places are in pixels. Raises as `click`.
        """
        await self._inputs.drag(x, y, to_x, to_y, button)

    async def scroll(self, clicks: int, x: float | None = None, y: float | None = None) -> None:
        """Turn the wheel by so many clicks, down if positive, at a place or where the pointer is.

        Raises as `move`.
        """
        await self._inputs.scroll(clicks, x, y)

    async def cursor(self) -> Cursor:
        """The pointer: where it is, whether it is shown, and its picture, which no frame holds.

        Where the server has no cursor channel, it is where this connection put it, and not shown.
        Raises what ended the connection, and ConnectError where the channel cannot be opened.
        """
        return await self._cursor.now()


class Frames:
    """The iterator that `RemoteDisplay.frames` gives."""

    def __init__(self, channel: DisplayChannel, *, passing: bool = False) -> None:
        """``passing`` is for who passes a frame on before anybody else runs: in ordinary SPICE its
        pixels are then no copy, but what is drawn on."""
        self._channel = channel
        self.passing = passing
        self.frame: Frame | None = None
        """The one that it gave last; the channel's, which gives it back."""

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[None, None, Frame]:
        return self._channel.next_frame(self)
