"""Images and palettes that a server has us keep, and names by their ids later.

The server decides what goes and when: it was told in INIT how much there may be, counts for itself,
and says which go, if need be only behind the one that needed their room. So what is there when a
new one comes must be within that, and a server that does not keep to it is told so. With a size of
0 nothing is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import RemoteProtocolError

if TYPE_CHECKING:
    from ..wire.display import Palette
    from .images import Mask, Picture, Unread

MOST_IMAGES = 1 << 16
"""However few pixels they have."""

MOST_PALETTES = 256
"""Servers keep to 128."""


class _Cached(NamedTuple):
    image: Picture | Mask | Unread
    pixels: int
    lossy: bool


class Pixmaps:
    """The images of one display channel, ``limit`` pixels of them.

    Every method that raises names ``title`` and ``field``, the message that was at fault.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._images: dict[int, _Cached] = {}
        self.pixels = 0

    def put(
        self,
        key: int,
        image: Picture | Mask | Unread,
        pixels: int,
        *,
        lossy: bool,
        title: str,
        field: str,
    ) -> None:
        """Keep an image of that many pixels, instead of what has its id."""
        self.drop(key)
        if not self._limit:
            return
        if self.pixels > self._limit or len(self._images) == MOST_IMAGES:
            raise RemoteProtocolError(title, field, "more are to be cached than we asked for")
        self._images[key] = _Cached(image, pixels, lossy)
        self.pixels += pixels

    def get(self, key: int, *, lossless: bool, title: str, field: str) -> Picture | Mask | Unread:
        """The image with an id, ``lossless`` where it must be. Raises RemoteProtocolError."""
        cached = self._images.get(key)
        if cached is None:
            raise RemoteProtocolError(title, field, f"{key} is not in the cache")
        if lossless and cached.lossy:
            raise RemoteProtocolError(title, field, f"{key} is in the cache, but not lossless")
        return cached.image

    def drop(self, key: int) -> None:
        """Forget an image, if it is there."""
        cached = self._images.pop(key, None)
        self.pixels -= cached.pixels if cached else 0

    def clear(self) -> None:
        """Forget all images."""
        self._images.clear()
        self.pixels = 0


class Palettes:
    """The palettes of one display channel."""

    def __init__(self) -> None:
        self._palettes: dict[int, Palette] = {}

    def put(self, palette: Palette, *, title: str, field: str) -> None:
        """Keep a palette under its own id."""
        if len(self._palettes) == MOST_PALETTES and palette.unique not in self._palettes:
            raise RemoteProtocolError(title, field, f"more than {MOST_PALETTES} are to be cached")
        self._palettes[palette.unique] = palette

    def get(self, key: int, *, title: str, field: str) -> Palette:
        """The palette with an id. Raises RemoteProtocolError."""
        if key not in self._palettes:
            raise RemoteProtocolError(title, field, f"{key} is not in the cache")
        return self._palettes[key]

    def drop(self, key: int) -> None:
        """Forget a palette, if it is there."""
        self._palettes.pop(key, None)

    def clear(self) -> None:
        """Forget all palettes."""
        self._palettes.clear()
