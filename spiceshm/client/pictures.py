"""What the images of drawing messages show, and what of it is kept for later ones.

``title`` and ``field`` are the message and where in it an image is, for the RemoteProtocolError of
what does not fit; ``surface`` is what the message draws on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import CannotDecode, RemoteProtocolError
from ..wire import display, types
from ..wire.types import MAX_SIDE, ImageType
from . import images
from .caches import Palettes, Pixmaps
from .images import Mask, Picture, Unread

if TYPE_CHECKING:
    from ..wire import Message
    from .surfaces import Surface

MOST_IMAGE_PIXELS = 1 << 22
"""Of an image, unless the surface that it is drawn on has more."""

_LOSSY = (ImageType.JPEG, ImageType.JPEG_ALPHA)
_CACHED = (ImageType.FROM_CACHE, ImageType.FROM_CACHE_LOSSLESS)


class Pictures:
    """The caches of a display channel, and what decodes its images: see `Canvas`."""

    def __init__(self, cache_pixels: int, decode: images.Decode) -> None:
        self.decode = decode
        self._pixmaps = Pixmaps(cache_pixels)
        self._palettes = Palettes()

    def forget(self, message: Message) -> None:
        """Do what the server says of the caches, if the message is of that."""
        match message:
            case display.InvalList():
                for resource in message.resources:
                    self._pixmaps.drop(resource.id)
            case display.InvalAllPixmaps():
                self._pixmaps.clear()
            case display.InvalPalette():
                self._palettes.drop(message.id)
            case display.InvalAllPalettes() | display.Reset():
                self._palettes.clear()

    def picture(
        self, title: str, field: str, image: display.Image, surface: Surface
    ) -> Picture | Unread | Mask:
        """What an image shows; it is in the cache from now on, if it says so."""
        if image.type in _CACHED:
            return self._cached(title, field, image)
        _check_size(title, field, image, surface)
        colours = self._colours(title, field, image, surface)
        made: Picture | Unread
        try:
            made = images.picture(image, colours, self.decode)
        except CannotDecode as error:
            made = Unread(images.name_of(image), str(error))
        self._keep(title, field, image, made)
        return made

    def mask(self, title: str, image: display.Image, surface: Surface) -> Mask | Unread:
        """What a mask lets through; it is in the cache from now on, if it says so."""
        field = "mask.bitmap"
        if image.type in _CACHED:
            cached = self._cached(title, field, image)
            if isinstance(cached, Picture):
                raise RemoteProtocolError(title, field, "is in the cache, but as no mask")
            return cached
        _check_size(title, field, image, surface)
        found: Mask | Unread
        if isinstance(image.content, display.Bitmap):
            try:
                found = images.mask(image.content)
            except CannotDecode as error:
                raise RemoteProtocolError(title, f"{field}.content.format", str(error)) from None
        else:
            found = Unread(f"mask of {images.name_of(image)}", "nothing here can decode it")
        self._keep(title, field, image, found)
        return found

    def _cached(self, title: str, field: str, image: display.Image) -> Picture | Mask | Unread:
        lossless = image.type == ImageType.FROM_CACHE_LOSSLESS
        return self._pixmaps.get(image.id, lossless=lossless, title=title, field=f"{field}.id")

    def _keep(
        self, title: str, field: str, image: display.Image, made: Picture | Mask | Unread
    ) -> None:
        if image.flags & (display.IMAGE_CACHE_ME | display.IMAGE_CACHE_REPLACE_ME):
            width, height = _size(image)
            lossy = image.type in _LOSSY
            if isinstance(made, Picture):  # a part of its message's data may be all that it is
                made = made._replace(words=made.words.copy())
            self._pixmaps.put(
                image.id, made, width * height, lossy=lossy, title=title, field=f"{field}.flags"
            )

    def _colours(
        self, title: str, field: str, image: display.Image, surface: Surface
    ) -> list[int] | None:
        """The palette of an image, 0xRRGGBB; it is in its cache from now on, if it says so."""
        content = image.content
        if not isinstance(content, display.Bitmap | display.LzPalette):
            return None
        place = f"{field}.content.palette"
        if content.palette_id is not None:
            palette = self._palettes.get(content.palette_id, title=title, field=f"{place}_id")
        elif content.palette is None:
            return None
        else:
            palette = content.palette
            if content.flags & display.BITMAP_PAL_CACHE_ME:
                self._palettes.put(palette, title=title, field=place)
        return [int(surface.colour(number)) for number in palette.ents]


def counted_as(image: display.Image) -> str:
    """How it is called in `spiceshm.RemoteDisplay.images`."""
    try:
        return types.IMAGE_NAMES[ImageType(image.type)]
    except ValueError:
        return images.name_of(image)


def _check_size(title: str, field: str, image: display.Image, surface: Surface) -> None:
    """What it is decoded to takes memory by that."""
    width, height = _size(image)
    most = max(MOST_IMAGE_PIXELS, surface.width * surface.height)
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= most):
        raise RemoteProtocolError(title, f"{field}.width", f"{width}x{height} pixels")


def _size(image: display.Image) -> tuple[int, int]:
    """Width and height in pixels."""
    if isinstance(image.content, display.Bitmap):
        return image.content.x, image.content.y
    return image.width, image.height
