"""What is drawn on a desktop while several servers show it to somebody: text, a window that is
moved, and video.

Everything comes from the number of the frame, so that all of them get the same. Behind each frame
two marks are painted in corners of the screen that are far from it, in a colour that says which
frame it was: who sees both in that colour has been sent all of the frame.
"""

from __future__ import annotations

import ctypes
import os
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from .process import Failed
from .work import HD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

CONTENTS = ("text", "page", "window", "video")

_MARK = 32
MARKS = ((_MARK // 2, _MARK // 2), (HD[1] - _MARK // 4, HD[0] - _MARK // 4))
"""A pixel (y, x) in each of the marks."""

_FONT, _CELL, _ASCENT = "fixed", (6, 13), 11
_COLUMNS, _LINES = 160, 50
LINE = _CELL[1]
"""Pixels from a line of text to the next."""

_TEXT_AT = (480, 200)
_WINDOW = (640, 480)
_WINDOW_STEP = (12, 7)
_VIDEO = (640, 360)
_VIDEO_AT = (640, 360)
_VIDEO_FRAMES = 24
_PAGE_FRAMES = 50
"""So many are made before, then they come again."""
_NOISE = 12
_PRIVATE, _REMOVE = 0, 0
_STRIP_LINES = 256
"""Of a picture in one request, which may not have more than 4 MB everywhere."""

_SAID = (
    "connected listening frames damage window 0x7ffd1c2a error: none of the files was found; "
    "warning 1920x1080 -rw-r--r-- 4096 Nov 22 02:05 README.md usr/lib/x86_64 [ok] took 12.5 ms"
)


class Painter:
    """An X client that paints frames. ``change`` begins another of `CONTENTS`."""

    def __init__(self, connection: Any) -> None:
        import xcffib.shm
        import xcffib.xproto as x

        self._x = x
        self._shm = connection(xcffib.shm.key)
        self._connection = connection
        self._core = connection.core
        self._screen = connection.get_setup().roots[0]
        self._root: int = self._screen.root
        self._context = self._new_context(self._root)
        self._text: int = connection.generate_id()
        self._core.OpenFont(self._text, len(_FONT), _FONT)
        self._core.ChangeGC(
            self._context, x.GC.Foreground | x.GC.Background | x.GC.Font, [0, 0xFFFFFF, self._text]
        )
        self._window: int | None = None
        self._next: Callable[[int], None] = lambda _: None
        self._wallpaper()

    def change(self, content: str) -> None:
        """Take away what there was and show the first of the new content."""
        if self._window is not None:
            self._core.DestroyWindow(self._window)
        self._next = {
            "text": self._begin_text,
            "page": self._begin_page,
            "window": self._begin_window,
            "video": self._begin_video,
        }[content]()

    def paint(self, frame: int) -> None:
        """The next frame of the content, and the marks of it."""
        self._next(frame)
        self._mark(frame)

    def picture(self) -> NDArray[np.uint32]:
        """What the X server has now: pixels (height, width) of 0x00RRGGBB."""
        pixels = self._fetch(self._root, *HD).view("<u4")[..., 0]
        return pixels & np.uint32(0xFFFFFF)

    def _mark(self, frame: int) -> None:
        colour = [frame & 0xFFFFFF]
        self._core.ChangeGC(self._context, self._x.GC.Foreground, colour)
        corners = ((0, 0), (HD[0] - _MARK, HD[1] - _MARK))
        for corner in corners:
            square = [self._x.RECTANGLE.synthetic(*corner, _MARK, _MARK)]
            self._core.PolyFillRectangle(self._root, self._context, 1, square)
        self._core.ChangeGC(self._context, self._x.GC.Foreground, [0])
        self._connection.flush()

    # The contents

    def _begin_text(self) -> Callable[[int], None]:
        """A terminal that scrolls by a line, as xterm does it."""
        width, line = _COLUMNS * _CELL[0], _CELL[1]
        window = self._open(_TEXT_AT, (width, _LINES * line), white=True)
        last = (_LINES - 1) * line

        def scroll(frame: int) -> None:
            self._core.CopyArea(window, window, self._context, 0, line, 0, 0, width, last)
            self._write(window, last, frame)

        for row in range(_LINES):
            self._write(window, row * line, row)
        return scroll

    def _begin_window(self) -> Callable[[int], None]:
        """A window with text and a picture, which somebody drags about."""
        width, height = _WINDOW
        pixmap = self._new_pixmap(width, height)
        self._put(pixmap, (0, 0), gradients(width, height, 1))
        for row in range(height // 2 // _CELL[1]):
            self._write(pixmap, row * _CELL[1], row)
        window = self._open((0, 0), _WINDOW, pixmap=pixmap)
        self._core.FreePixmap(pixmap)
        room = HD[0] - width, HD[1] - height - 2 * _MARK

        def move(frame: int) -> None:
            x, y = (
                _to_and_fro(frame * step, most)
                for step, most in zip(_WINDOW_STEP, room, strict=True)
            )
            config = self._x.ConfigWindow
            self._core.ConfigureWindow(window, config.X | config.Y, [x, y + _MARK])

        return move

    def _begin_video(self) -> Callable[[int], None]:
        """A picture that changes everywhere, with noise as films have it."""
        width, height = _VIDEO
        rng = np.random.default_rng(0)
        film = np.empty((_VIDEO_FRAMES, height, width, 4), np.uint8)
        for nth in range(_VIDEO_FRAMES):
            noise = rng.integers(0, _NOISE, (height, width, 4), np.uint8)
            np.add(gradients(width, height, nth / 4), noise, out=film[nth])
        window = self._open(_VIDEO_AT, _VIDEO)
        frames = self._share(film.reshape(-1, width, 4))
        return lambda frame: frames(window, frame % _VIDEO_FRAMES * height, height)

    def _begin_page(self) -> Callable[[int], None]:
        """The same text, but by a program that has drawn it itself, as a browser does."""
        width, line = _COLUMNS * _CELL[0], _CELL[1]
        lines = _LINES + _PAGE_FRAMES
        pixmap = self._new_pixmap(width, lines * line)
        for row in range(lines):
            self._write(pixmap, row * line, row)
        page = self._share(self._fetch(pixmap, width, lines * line))
        self._core.FreePixmap(pixmap)
        window = self._open(_TEXT_AT, (width, _LINES * line))
        return lambda frame: page(window, frame % _PAGE_FRAMES * line, _LINES * line)

    # How X is told

    def _wallpaper(self) -> None:
        """A desktop that is not empty: a picture, and some text on it."""
        pixmap = self._new_pixmap(*HD)
        self._put(pixmap, (0, 0), gradients(*HD, 0))
        for row in range(4, HD[1] // _CELL[1] - 4, 3):
            self._write(pixmap, row * _CELL[1], row)
        self._core.ChangeWindowAttributes(self._root, self._x.CW.BackPixmap, [pixmap])
        self._core.FreePixmap(pixmap)
        self._core.ClearArea(False, self._root, 0, 0, *HD)

    def _open(
        self,
        place: tuple[int, int],
        size: tuple[int, int],
        *,
        white: bool = False,
        pixmap: int | None = None,
    ) -> int:
        """A window that no window manager would touch."""
        x = self._x
        window: int = self._connection.generate_id()
        mask, values = x.CW.OverrideRedirect, [1]
        if pixmap is not None:
            mask, values = mask | x.CW.BackPixmap, [pixmap, 1]
        elif white:
            mask, values = mask | x.CW.BackPixel, [0xFFFFFF, 1]
        parts = (window, self._root, *place, *size, 0, x.WindowClass.InputOutput)
        self._core.CreateWindow(
            self._screen.root_depth, *parts, self._screen.root_visual, mask, values
        )
        self._core.MapWindow(window)
        self._window = window
        return window

    def _new_context(self, drawable: int) -> int:
        context: int = self._connection.generate_id()
        # What a copy could not find would be asked for by an event.
        values = [self._x.SubwindowMode.IncludeInferiors, 0]
        mask = self._x.GC.SubwindowMode | self._x.GC.GraphicsExposures
        self._core.CreateGC(context, drawable, mask, values)
        return context

    def _share(self, pixels: NDArray[np.uint8]) -> Callable[[int, int, int], None]:
        """What shows so many lines of a picture, from one of them on, at the top of a window.

        Through shared memory, as programs do it that draw themselves.
        """
        lines, width, _ = pixels.shape
        segment: int = self._connection.generate_id()
        with _system_v(pixels.nbytes) as (number, memory):
            memory[:] = pixels.ravel()
            self._shm.AttachChecked(segment, number, True).check()

        def put(window: int, top: int, height: int) -> None:
            place, depth = (0, top, width, height, 0, 0), self._screen.root_depth
            self._shm.PutImage(
                window,
                self._context,
                width,
                lines,
                *place,
                depth,
                self._x.ImageFormat.ZPixmap,
                False,
                segment,
                0,
            )

        return put

    def _new_pixmap(self, width: int, height: int) -> int:
        pixmap: int = self._connection.generate_id()
        self._core.CreatePixmap(self._screen.root_depth, pixmap, self._root, width, height)
        return pixmap

    def _fetch(self, drawable: int, width: int, height: int) -> NDArray[np.uint8]:
        whole = (drawable, 0, 0, width, height, 0xFFFFFFFF)
        reply = self._core.GetImage(self._x.ImageFormat.ZPixmap, *whole).reply()
        return np.frombuffer(reply.data.buf(), np.uint8).reshape(height, width, 4)

    def _write(self, drawable: int, top: int, number: int) -> None:
        text = _line(number).encode()
        self._core.ImageText8(len(text), drawable, self._context, 0, top + _ASCENT, text)

    def _put(self, drawable: int, place: tuple[int, int], picture: NDArray[np.uint8]) -> None:
        height, width = picture.shape[:2]
        for top in range(0, height, _STRIP_LINES):
            data = picture[top : top + _STRIP_LINES].tobytes()
            lines = min(_STRIP_LINES, height - top)
            self._core.PutImage(
                self._x.ImageFormat.ZPixmap,
                drawable,
                self._context,
                width,
                lines,
                place[0],
                place[1] + top,
                0,
                self._screen.root_depth,
                len(data),
                data,
            )


P = TypeVar("P", bound=Painter)


@contextmanager
def painter(display: str, kind: type[P]) -> Iterator[P]:
    """Connected to an X display, until the block ends."""
    import xcffib
    import xcffib.xproto

    connection = xcffib.connect(display=display)
    try:
        yield kind(connection)
    except xcffib.XcffibException as error:
        raise Failed(f"X display {display}: {type(error).__name__} {error}") from None
    finally:
        connection.disconnect()


@contextmanager
def _system_v(size: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Shared memory of the old kind, which every X server can attach while the block lasts; it goes
    when the last one has detached it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    number = libc.shmget(_PRIVATE, ctypes.c_size_t(size), 0o600)
    if number < 0:
        raise Failed(f"no shared memory: {os.strerror(ctypes.get_errno())}")
    address = libc.shmat(number, None, 0)
    try:
        yield number, np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)
    finally:
        libc.shmdt(ctypes.c_void_p(address))
        libc.shmctl(number, _REMOVE, None)


class Mark(NamedTuple):
    """A frame that was seen, with what the reader had received until then."""

    frame: int
    received_bytes: int


def _line(number: int) -> str:
    rng = random.Random(number)
    words = rng.choices(_SAID.split(), k=rng.randrange(2, 24))
    return f"{number:6d} {' '.join(words)}"[:_COLUMNS].ljust(_COLUMNS)


def _to_and_fro(way: int, most: int) -> int:
    return most - abs(way % (2 * most) - most)


def gradients(width: int, height: int, time: float) -> NDArray[np.uint8]:
    """A picture (height, width, 4), smooth and coloured, that drifts with ``time``."""
    y, x = (np.arange(size, dtype=np.float32) / 200 for size in (height, width))
    picture = np.zeros((height, width, 4), np.uint8)
    for nth in range(3):
        down = 60 * np.sin(y * (1.2 - 0.2 * nth) - 0.7 * time + nth)
        across = 60 * np.sin(x * (1 + 0.3 * nth) + time) + 127
        picture[..., nth] = down[:, None] + across
    return picture
