"""The surfaces of a display channel in ordinary SPICE: our own memory, drawn on by messages.

Strategy: a drawing message becomes the rectangles that its box, the clip and the surface have in
common, perhaps with a mask over them, and a function that gives the words for any part of them;
`raster` has the arithmetic. They are drawn some rows at a time, so that what is needed in between
stays small. Every image goes through `images.decode`, or what is given in its place. One that it
cannot decode makes what it should have drawn stale, and so does drawing from there; the connection
goes on.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from ..errors import CannotDecode, RemoteProtocolError
from ..region import area, bounds, merge
from ..wire import display, types
from ..wire.types import MAX_SIDE, BitmapFormat, ImageType, SurfaceFormat
from . import images, raster
from .caches import Palettes, Pixmaps
from .images import Mask, Picture, Unread
from .surfaces import Surface

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from ..region import Rect
    from ..wire import Message
    from .images import Words

    Paint: TypeAlias = Callable[[Rect], Words | np.uint32]

MOST_IMAGE_PIXELS = 1 << 22
"""Of an image, unless the surface that it is drawn on has more."""

MOST_PIXELS = 1 << 25
"""Of a surface: there are screens of 7680x4320. What draws on all of one takes a moment."""

MOST_OFF_SCREEN_PIXELS = 1 << 26
"""Of all surfaces but the primary."""

MOST_STREAMS = 64
MOST_STREAM_CLIPS = 1 << 12
"""Rectangles of a stream, which are kept: of what is drawn at once there may be more."""

_BAND = 1 << 17
_MOST_PARTS = 64
_CODECS = {1: "mjpeg", 2: "vp8", 3: "h264", 4: "vp9", 5: "h265"}
_MISSING = "was missing where this was drawn from"
_LOSSY = (ImageType.JPEG, ImageType.JPEG_ALPHA)
_WORDS = (BitmapFormat.XRGB, BitmapFormat.ARGB)
_CACHED = (ImageType.FROM_CACHE, ImageType.FROM_CACHE_LOSSLESS)


class Drawn(NamedTuple):
    """What a message did to a surface: ``rects`` changed, in ``stale`` it is not what it should be.

    Both are at most 64 rectangles, and may cover more. ``why`` is what cannot be decoded or drawn,
    such as ``quic``, and ``detail`` the reason; both are empty where nothing went stale.
    """

    surface_id: int
    rects: list[Rect]
    stale: list[Rect]
    why: str = ""
    detail: str = ""


NOTHING = Drawn(0, [], [])


class _Unreadable(Exception):
    """What is to be drawn depends on something that we cannot read."""

    def __init__(self, unread: Unread) -> None:
        super().__init__(unread.name)
        self.unread = unread


class _Source(NamedTuple):
    """The part of a picture that is drawn, whose surface's it is, and why it is stale, or "".

    ``framed`` is the part with what is next to it, where that counts.
    """

    words: Words
    framed: Words | None
    alpha: bool
    surface: Surface | None
    stale: str


class _Found(NamedTuple):
    """What the images of a message show, as far as it has them."""

    image: Picture | Unread | Mask | Surface | None
    pattern: Picture | Unread | Mask | Surface | None
    mask: Mask | Unread | None


class _Region(NamedTuple):
    """Where a message draws: in ``parts``, there where ``bits`` are set, of which the first is for
    ``corner`` (y, x)."""

    parts: list[Rect]
    bits: NDArray[np.bool_] | None = None
    corner: tuple[int, int] = (0, 0)

    def within(self, part: Rect) -> NDArray[np.bool_] | None:
        if self.bits is None:
            return None
        (y, x), (top, left, bottom, right) = self.corner, part
        return self.bits[top - y : bottom - y, left - x : right - x]


class _Stream:
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


_Scaled: TypeAlias = (
    display.DrawCopy
    | display.DrawBlend
    | display.DrawOpaque
    | display.DrawRop3
    | display.DrawTransparent
    | display.DrawAlphaBlend
)
_Plain: TypeAlias = display.DrawBlackness | display.DrawWhiteness | display.DrawInvers
_Brushed: TypeAlias = display.DrawFill | display.DrawOpaque | display.DrawRop3
_Masked: TypeAlias = _Plain | _Brushed | display.DrawCopy | display.DrawBlend


class Canvas:
    """All surfaces of a display channel, its streams and its caches.

    ``cache_pixels`` is what INIT said of the pixmap cache. ``decode`` is called for every image,
    and may keep what it needs for later ones: images come in the order of their messages.
    """

    def __init__(self, *, cache_pixels: int = 0, decode: images.Decode = images.decode) -> None:
        self.surfaces: dict[int, Surface] = {}
        self.counts: Counter[str] = Counter()
        """What was drawn by, so many of each kind: see `spiceshm.RemoteDisplay.images`."""
        self._is_blank = False  # the primary, since it was created
        self._streams: dict[int, _Stream] = {}
        self._pixmaps = Pixmaps(cache_pixels)
        self._palettes = Palettes()
        self._decode = decode

    @property
    def primary(self) -> Surface | None:
        """The surface that is shown; there is none before it is created and once it is gone."""
        return self.surfaces.get(0)

    def receive(self, message: Message) -> Drawn:
        """Carry out a message of the display channel; those that draw nothing are of no effect.

        Raises RemoteProtocolError, that names message and field, for what does not fit.
        """
        if isinstance(message, display.Drawing):
            return self._draw(message)
        match message:
            case display.SurfaceCreate():
                self._create(message)
            case display.SurfaceDestroy():
                self.surfaces.pop(message.surface_id, None)
                self._end_streams(message.surface_id)
            case display.Reset():
                return self._reset()
            case display.Mark():
                return self._show_blank()
            case display.InvalList():
                for resource in message.resources:
                    self._pixmaps.drop(resource.id)
            case display.InvalAllPixmaps():
                self._pixmaps.clear()
            case display.InvalPalette():
                self._palettes.drop(message.id)
            case display.InvalAllPalettes():
                self._palettes.clear()
            case display.StreamData() | display.StreamDataSized():
                return self._show_stream(message)
            case _:
                self._note_stream(message)
        return NOTHING

    # Surfaces

    def _create(self, create: display.SurfaceCreate) -> None:
        if create.width * create.height > MOST_PIXELS:
            size = f"{create.width}x{create.height} are more than {MOST_PIXELS} pixels"
            raise RemoteProtocolError(create.title, "width", size)
        others = sum(s.width * s.height for number, s in self.surfaces.items() if number)
        if create.surface_id and others + create.width * create.height > MOST_OFF_SCREEN_PIXELS:
            raise RemoteProtocolError(
                create.title, "width", f"more than {MOST_OFF_SCREEN_PIXELS} pixels off screen"
            )
        self.surfaces[create.surface_id] = Surface(create.width, create.height, create.format)
        self._is_blank |= create.surface_id == 0

    def _reset(self) -> Drawn:
        self._palettes.clear()
        if self.primary is None:
            return NOTHING
        self.primary.words[:] = 0
        self.primary.stale = []
        return Drawn(0, [_whole(self.primary)], [])

    def _show_blank(self) -> Drawn:
        """A primary on which nothing was drawn is shown as it is: of a machine whose new mode is
        black nothing more may come."""
        blank, self._is_blank = self._is_blank, False
        return Drawn(0, [_whole(self.primary)], []) if blank and self.primary else NOTHING

    def _surface(self, number: int, title: str, field: str) -> Surface:
        if number not in self.surfaces:
            raise RemoteProtocolError(title, field, f"there is no {number}")
        return self.surfaces[number]

    # Drawing

    def _draw(self, message: display.Drawing) -> Drawn:
        surface = self._surface(message.surface_id, message.title, "surface_id")
        self._is_blank &= message.surface_id != 0
        if type(message) is display.DrawCopy and _is_plain(message, surface):
            return self._put(message, surface)
        parts = _clipped(message.title, "box", message.box, message.clip, surface)
        found = self._find(message, surface)
        try:
            if not surface.has_colours:
                raise _Unreadable(Unread(f"surface format {surface.format}", "is not drawn on"))
            match message:
                case display.CopyBits():
                    return self._copy_bits(surface, message, parts)
                case display.DrawFill():
                    return self._fill(surface, message, parts, found)
                case display.DrawBlackness() | display.DrawWhiteness() | display.DrawInvers():
                    return self._plain(surface, message, parts, found)
                case display.DrawStroke() | display.DrawText() | display.DrawComposite():
                    raise _Unreadable(Unread(_without_image(message), "is not drawn here"))
                case _:
                    return self._from_image(surface, message, parts, found)
        except _Unreadable as error:
            return _spoilt(message.surface_id, surface, parts, error.unread)

    def _put(self, copy: display.DrawCopy, surface: Surface) -> Drawn:
        """What `_from_image` does with a copy that is plain, in half the time."""
        box, image = copy.box, copy.image
        rects = [(box.top, box.left, box.bottom, box.right)]
        self.counts[_counted_as(image)] += 1
        try:
            pixels = self._decode(image, None)
        except CannotDecode as error:
            unread = Unread(images.name_of(image), str(error))
            return _spoilt(copy.surface_id, surface, rects, unread)
        surface.pixels[box.top : box.bottom, box.left : box.right] = pixels
        surface.heal(rects)
        return Drawn(copy.surface_id, rects, [])

    def _copy_bits(self, surface: Surface, copy: display.CopyBits, parts: list[Rect]) -> Drawn:
        down, right = copy.src_pos.y - copy.box.top, copy.src_pos.x - copy.box.left
        there = (-down, -right, surface.height - down, surface.width - right)
        parts = [cut for part in parts if (cut := _common(part, there))]
        if not parts or not (down or right):
            return NOTHING
        top, left, bottom, end = bounds(parts)
        source = (top + down, left + right, bottom + down, end + right)
        stale = surface.why_stale_in(source)
        words = surface.words[_slices(source)].copy()  # the two may overlap
        for part in parts:
            surface.put(part, words[_slices(part, (top, left))], None)
        return _done(copy.surface_id, surface, parts, stale=stale, healed=True)

    def _fill(
        self, surface: Surface, fill: display.DrawFill, parts: list[Rect], found: _Found
    ) -> Drawn:
        brush = _brush(fill, surface, found)
        code = raster.code_of(fill.rop_descriptor, display.ROP_INVERS_BRUSH)
        region = _masked(fill, parts, found)

        def paint(part: Rect) -> Words | np.uint32:
            return raster.combined(code, brush(part), surface.words[_slices(part)])

        return self._paint(fill.surface_id, surface, region, paint, raster.needs_dest(code))

    def _plain(self, surface: Surface, message: _Plain, parts: list[Rect], found: _Found) -> Drawn:
        region = _masked(message, parts, found)
        turns = isinstance(message, display.DrawInvers)
        word = np.uint32(0 if isinstance(message, display.DrawBlackness) else 0xFFFFFFFF)

        def paint(part: Rect) -> Words | np.uint32:
            return ~surface.words[_slices(part)] if turns else word

        return self._paint(message.surface_id, surface, region, paint, turns)

    def _from_image(
        self, surface: Surface, message: _Scaled, parts: list[Rect], found: _Found
    ) -> Drawn:
        source = _source(message, surface, found)
        region = _Region(parts)
        needs_dest = True
        match message:
            case display.DrawCopy() | display.DrawBlend():
                scaled = _scaled(source, message, surface)
                region = _masked(message, parts, found)
                code = raster.code_of(message.rop_descriptor, display.ROP_INVERS_SRC)
                needs_dest = raster.needs_dest(code)

                def paint(part: Rect) -> Words | np.uint32:
                    return raster.combined(code, scaled(part), surface.words[_slices(part)])

            case display.DrawOpaque():
                scaled = _scaled(source, message, surface)
                brush = _brush(message, surface, found)
                region = _masked(message, parts, found)
                code = raster.code_of(
                    message.rop_descriptor, display.ROP_INVERS_BRUSH, display.ROP_INVERS_SRC
                )
                needs_dest = False

                def paint(part: Rect) -> Words | np.uint32:
                    return raster.combined(code, brush(part), scaled(part))

            case display.DrawRop3():
                scaled = _scaled(source, message, surface)
                brush = _brush(message, surface, found)
                region = _masked(message, parts, found)
                code = message.rop3
                needs_dest = raster.needs_dest(code)

                def paint(part: Rect) -> Words | np.uint32:
                    dest = surface.words[_slices(part)]
                    return raster.combined3(code, brush(part), scaled(part), dest)

            case display.DrawTransparent():
                return self._transparent(surface, message, source, region)
            case _:
                return self._alpha_blend(surface, message, source, region)
        return self._paint(
            message.surface_id, surface, region, paint, needs_dest, stale=source.stale
        )

    def _transparent(
        self,
        surface: Surface,
        message: display.DrawTransparent,
        source: _Source,
        region: _Region,
    ) -> Drawn:
        scaled = _scaled(source, message, surface)
        key = surface.rounded(np.asarray(message.true_color, np.uint32)) & np.uint32(0xFFFFFF)

        def paint(part: Rect) -> Words:
            words = surface.rounded(scaled(part))
            keyed = (words & np.uint32(0xFFFFFF)) == key
            return np.where(keyed, surface.words[_slices(part)], words)

        return self._paint(message.surface_id, surface, region, paint, True, stale=source.stale)

    def _alpha_blend(
        self,
        surface: Surface,
        message: display.DrawAlphaBlend,
        source: _Source,
        region: _Region,
    ) -> Drawn:
        if message.alpha == 0:
            return NOTHING
        scaled = _scaled(source, message, surface)
        flags = message.alpha_flags
        dest_alpha = surface.has_alpha or (
            surface.format == SurfaceFormat.XRGB and bool(flags & display.ALPHA_DEST_HAS_ALPHA)
        )
        source_alpha = source.alpha
        if source.surface is not None and source.surface.format == SurfaceFormat.XRGB:
            source_alpha = bool(flags & display.ALPHA_SRC_SURFACE_HAS_ALPHA)

        def paint(part: Rect) -> Words:
            return raster.over(
                scaled(part),
                surface.words[_slices(part)],
                alpha=message.alpha,
                source_alpha=source_alpha,
                dest_alpha=dest_alpha,
            )

        return self._paint(message.surface_id, surface, region, paint, True, stale=source.stale)

    def _paint(
        self,
        number: int,
        surface: Surface,
        region: _Region,
        paint: Paint,
        needs_dest: bool,
        *,
        stale: str = "",
    ) -> Drawn:
        """Draw what ``paint`` gives, once on every pixel where that ``needs_dest``, what is there.

        ``stale`` is what the source lacks.
        """
        parts = region.parts
        healed = not needs_dest and region.bits is None
        if len(parts) > _MOST_PARTS or (needs_dest and _overlap(parts)):
            region = _joined(region)
        for part in region.parts:
            for band in _bands(part):
                surface.put(band, paint(band), region.within(band))
        return _done(number, surface, parts, stale=stale, healed=healed)

    # What is drawn

    def _find(self, message: display.Drawing, surface: Surface) -> _Found:
        """All images of a message, drawn or not: some are named by later ones."""
        title = message.title
        brush: display.Brush | None = getattr(message, "brush", None)
        image: display.Image | None = getattr(message, "image", None)
        bitmap: display.Image | None = getattr(message, "mask", display.NO_MASK).bitmap
        pattern = brush.pattern if brush is not None else None
        found = [one for one in (image, pattern.pat if pattern else None, bitmap) if one]
        self.counts.update(map(_counted_as, found) if found else [_without_image(message)])
        return _Found(
            self._image(title, "image", image, surface) if image else None,
            self._image(title, "brush.pattern.pat", pattern.pat, surface) if pattern else None,
            self._mask(title, bitmap, surface) if bitmap else None,
        )

    # Images

    def _image(
        self, title: str, field: str, image: display.Image, surface: Surface
    ) -> Picture | Unread | Mask | Surface:
        """What an image shows; it is in the cache from now on, if it says so."""
        if image.type in _CACHED:
            return self._cached(title, field, image)
        if isinstance(image.content, display.SurfaceImage):
            place = f"{field}.content.surface_id"
            found = self._surface(image.content.surface_id, title, place)
            if not found.has_colours:
                return Unread(f"surface format {found.format}", "is not drawn from")
            return found
        _check_size(title, field, image, surface)
        colours = self._colours(title, field, image, surface)
        made: Picture | Unread
        try:
            made = images.picture(image, colours, self._decode)
        except CannotDecode as error:
            made = Unread(images.name_of(image), str(error))
        self._keep(title, field, image, made)
        return made

    def _mask(self, title: str, image: display.Image, surface: Surface) -> Mask | Unread:
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

    # Streams

    def _note_stream(self, message: Message) -> None:
        match message:
            case display.StreamCreate():
                if message.id >= MOST_STREAMS:
                    problem = f"{message.id}: more than {MOST_STREAMS} streams"
                    raise RemoteProtocolError(message.title, "id", problem)
                self._surface(message.surface_id, message.title, "surface_id")
                self._streams[message.id] = _Stream(message)
            case display.StreamClip():
                # Servers send these for streams, too, that the client was never told of.
                if message.id in self._streams:
                    self._streams[message.id].set_clip(message)
            case display.StreamDestroy():
                self._streams.pop(message.id, None)
            case display.StreamDestroyAll():
                self._streams.clear()

    def _end_streams(self, number: int) -> None:
        self._streams = {
            key: stream
            for key, stream in self._streams.items()
            if stream.create.surface_id != number
        }

    def _show_stream(self, data: display.StreamData | display.StreamDataSized) -> Drawn:
        """A picture of MJPEG is an image of the type JPEG."""
        stream = self._streams.get(data.id)
        if stream is None:
            return NOTHING
        create = stream.create
        codec = _CODECS.get(create.codec_type, f"video codec {create.codec_type}")
        self.counts[codec] += 1
        width, height, dest = create.stream_width, create.stream_height, create.dest
        if isinstance(data, display.StreamDataSized):
            width, height, dest = data.width, data.height, data.dest
        surface = self._surface(create.surface_id, data.title, "id")
        parts = _clipped(data.title, "dest", dest, stream.clip, surface)
        jpeg = display.Image(0, ImageType.JPEG, 0, width, height, display.ImageData(data.data))
        found: object = None
        if create.codec_type == display.CODEC_MJPEG and surface.has_colours:
            found = self._image(data.title, "data", jpeg, surface)
        if not isinstance(found, Picture):
            why = found.why if isinstance(found, Unread) else "nothing here can decode it"
            return _spoilt(create.surface_id, surface, parts, Unread(codec, why))
        words = found.words if create.flags & display.STREAM_TOP_DOWN else found.words[::-1]
        origin, size = (dest.top, dest.left), (dest.bottom - dest.top, dest.right - dest.left)

        def paint(part: Rect) -> Words:
            return raster.nearest(words, size, _moved(part, origin))

        return self._paint(create.surface_id, surface, _Region(parts), paint, False)


def _counted_as(image: display.Image) -> str:
    try:
        return types.IMAGE_NAMES[ImageType(image.type)]
    except ValueError:
        return images.name_of(image)


def _without_image(message: display.Drawing) -> str:
    """What a message draws by that needs no image: ``fill``, ``copy_bits``, ``stroke``."""
    return message.title.removeprefix("display.").removeprefix("draw_")


def _is_plain(copy: display.DrawCopy, surface: Surface) -> bool:
    """Whether it puts all of an image somewhere as it is, which is what servers mostly do."""
    box, area, image = copy.box, copy.src_area, copy.image
    if isinstance(content := image.content, display.Bitmap):
        plain, width, height = content.format in _WORDS, content.x, content.y
    else:
        plain, width, height = image.type == ImageType.LZ4, image.width, image.height
    return (
        plain
        and not image.flags
        and copy.clip is None
        and copy.rop_descriptor == display.ROP_PUT
        and copy.mask.bitmap is None
        and surface.format == SurfaceFormat.XRGB
        and area.top == area.left == 0
        and 0 < area.bottom == height == box.bottom - box.top
        and 0 < area.right == width == box.right - box.left
        and min(box.top, box.left) >= 0
        and box.bottom <= surface.height
        and box.right <= surface.width
    )


def _source(message: _Scaled, surface: Surface, found: _Found) -> _Source:
    """``src_area`` of a message's image; a copy, if it is on the surface that is drawn on."""
    image = _picture(message.title, "image", found.image)
    words, cut = image.words, message.src_area
    height, width = words.shape
    if not (0 <= cut.top < cut.bottom <= height and 0 <= cut.left < cut.right <= width):
        raise RemoteProtocolError(message.title, "src_area", "is outside the image")
    part = slice(cut.top, cut.bottom), slice(cut.left, cut.right)
    framed = raster.framed(words, part) if _is_mixed(message) else None
    words = words[part]
    if isinstance(image, Picture):
        return _Source(words, framed, image.alpha, None, "")
    reach = 0 if framed is None else 1
    stale = image.why_stale_in(
        (cut.top - reach, cut.left - reach, cut.bottom + reach, cut.right + reach)
    )
    words = words.copy() if image is surface else words
    return _Source(words, framed, image.has_alpha, image, stale)


def _brush(message: _Brushed, surface: Surface, found: _Found) -> Paint:
    brush = message.brush
    if brush.pattern is None:
        word = surface.colour(brush.color or 0)
        return lambda part: word
    tile = _picture(message.title, "brush.pattern.pat", found.pattern)
    if isinstance(tile, Surface) and tile.stale:
        raise _Unreadable(Unread(tile.why, _MISSING))
    words = tile.words.copy() if tile is surface else tile.words
    origin = brush.pattern.pos.y, brush.pattern.pos.x
    return lambda part: raster.tiled(words, origin, part)


def _picture(
    title: str, field: str, image: Picture | Unread | Mask | Surface | None
) -> Picture | Surface:
    if isinstance(image, Unread):
        raise _Unreadable(image)
    if isinstance(image, Mask):
        raise RemoteProtocolError(title, field, "is in the cache as a mask")
    assert image is not None
    return image


def _masked(message: _Masked, parts: list[Rect], found: _Found) -> _Region:
    """Of the parts only what a mask lets through; nothing does that is beyond its edge."""
    if found.mask is None:
        return _Region(parts)
    if isinstance(found.mask, Unread):
        raise _Unreadable(found.mask)
    box, mask, bits = message.box, message.mask, found.mask.bits
    if mask.flags & display.MASK_INVERS:
        bits = ~bits
    top, left = box.top - mask.pos.y, box.left - mask.pos.x
    there = (top, left, top + bits.shape[0], left + bits.shape[1])
    return _Region([c for part in parts if (c := _common(part, there))], bits, (top, left))


def _check_size(title: str, field: str, image: display.Image, surface: Surface) -> None:
    """What it is decoded to takes memory by that."""
    width, height = _size(image)
    most = max(MOST_IMAGE_PIXELS, surface.width * surface.height)
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= most):
        raise RemoteProtocolError(title, f"{field}.width", f"{width}x{height} pixels")


def _done(number: int, surface: Surface, parts: list[Rect], *, stale: str, healed: bool) -> Drawn:
    """Take note that parts of a surface were drawn."""
    rects = merge(parts)
    if stale and rects:
        surface.spoil(rects, stale)
        return Drawn(number, rects, rects, stale, _MISSING)
    if healed:
        surface.heal(rects)
    return Drawn(number, rects, [])


def _spoilt(number: int, surface: Surface, parts: list[Rect], unread: Unread) -> Drawn:
    """Take note that parts of a surface could not be drawn."""
    rects = merge(parts)
    surface.spoil(rects, unread.name)
    return Drawn(number, [], rects, *unread) if rects else NOTHING


# Rectangles


def _clipped(title: str, field: str, box: types.Rect, clip: object, surface: Surface) -> list[Rect]:
    """What a box, its clip and the surface have in common."""
    if box.top >= box.bottom or box.left >= box.right:
        raise RemoteProtocolError(title, field, "is empty")
    within = _common((box.top, box.left, box.bottom, box.right), _whole(surface))
    if within is None:
        return []
    if clip is None:
        return [within]
    clips = np.asarray(clip, np.int64).reshape(-1, 4)
    low, high = np.array(within[:2]), np.array(within[2:])
    cut = np.hstack([np.maximum(clips[:, :2], low), np.minimum(clips[:, 2:], high)])
    some = (cut[:, 0] < cut[:, 2]) & (cut[:, 1] < cut[:, 3])
    parts = [(top, left, bottom, right) for top, left, bottom, right in cut[some].tolist()]
    if area(parts) > area([within]):
        # A region's rectangles are disjoint; these would only keep us busy.
        raise RemoteProtocolError(title, "clip", "has rectangles that overlap")
    return parts


def _whole(surface: Surface) -> Rect:
    return 0, 0, surface.height, surface.width


def _common(one: Rect, other: Rect) -> Rect | None:
    top, left = max(one[0], other[0]), max(one[1], other[1])
    bottom, right = min(one[2], other[2]), min(one[3], other[3])
    return (top, left, bottom, right) if top < bottom and left < right else None


def _overlap(parts: list[Rect]) -> bool:
    return any(_common(one, other) for one, other in combinations(parts, 2))


def _bands(part: Rect) -> Iterator[Rect]:
    """A rectangle in pieces of some rows each."""
    top, left, bottom, right = part
    rows = max(1, _BAND // (right - left))
    for start in range(top, bottom, rows):
        yield start, left, min(start + rows, bottom), right


def _joined(region: _Region) -> _Region:
    """The same as one part and bits: quicker for many parts, and no pixel is there twice."""
    whole = bounds(region.parts)
    top, left = whole[:2]
    bits = np.zeros((whole[2] - top, whole[3] - left), np.bool_)
    for part in region.parts:
        within = region.within(part)
        bits[_slices(part, (top, left))] = True if within is None else within
    return _Region([whole], bits, (top, left))


def _moved(part: Rect, origin: tuple[int, int]) -> Rect:
    """A rectangle as it is seen from ``origin`` (y, x)."""
    (y, x), (top, left, bottom, right) = origin, part
    return top - y, left - x, bottom - y, right - x


def _slices(part: Rect, origin: tuple[int, int] = (0, 0)) -> tuple[slice, slice]:
    top, left, bottom, right = _moved(part, origin)
    return slice(top, bottom), slice(left, right)


def _is_mixed(message: _Scaled) -> bool:
    """Whether it scales so that pixels mix; TRANSPARENT and ALPHA_BLEND do not."""
    box, cut = message.box, message.src_area
    same = (box.bottom - box.top, box.right - box.left) == (
        cut.bottom - cut.top,
        cut.right - cut.left,
    )
    mode = getattr(message, "scale_mode", display.SCALE_NEAREST)
    return not same and mode != display.SCALE_NEAREST


def _scaled(source: _Source, message: _Scaled, surface: Surface) -> Callable[[Rect], Words]:
    """What a source shows in a part of the message's box; pixels that mix are the surface's."""
    box, words = message.box, source.words
    origin, size = (box.top, box.left), (box.bottom - box.top, box.right - box.left)
    if source.framed is not None:
        framed = surface.rounded(source.framed)
        return lambda part: surface.rounded(raster.interpolated(framed, size, _moved(part, origin)))
    if size == words.shape:
        return lambda part: words[_slices(part, origin)]
    return lambda part: raster.nearest(words, size, _moved(part, origin))


def _size(image: display.Image) -> tuple[int, int]:
    """Width and height in pixels."""
    if isinstance(image.content, display.Bitmap):
        return image.content.x, image.content.y
    return image.width, image.height
