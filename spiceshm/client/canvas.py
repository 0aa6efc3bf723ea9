"""The surfaces of a display channel in ordinary SPICE: our own memory, drawn on by messages.

Strategy: a drawing message becomes the rectangles that its box, the clip and the surface have in
common, perhaps with a mask over them, and a function that gives the words for any part of them;
`raster` has the arithmetic. They are drawn some rows at a time, so that what is needed in between
stays small. Every image goes through `images.decode`, or what is given in its place. One that it
cannot decode makes what it should have drawn stale, and so does drawing from there; the connection
goes on.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from ..errors import CannotDecode, RemoteProtocolError
from ..region import bounds, merge
from ..wire import display
from ..wire.types import BitmapFormat, ImageType, SurfaceFormat
from . import images, raster
from .images import Mask, Picture, Unread
from .parts import Region, bands, clipped, common, moved, overlap, slices, whole
from .pictures import Pictures, counted_as
from .streams import Streams
from .surfaces import Surface

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..region import Rect
    from ..wire import Message
    from .images import Words

    Paint: TypeAlias = Callable[[Rect], Words | np.uint32]

MOST_PIXELS = 1 << 25
"""Of a surface: there are screens of 7680x4320. What draws on all of one takes a moment."""

MOST_OFF_SCREEN_PIXELS = 1 << 26
"""Of all surfaces but the primary."""

_MOST_PARTS = 64
_MISSING = "was missing where this was drawn from"
_WORDS = (BitmapFormat.XRGB, BitmapFormat.ARGB)


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
        self._streams = Streams()
        self._pictures = Pictures(cache_pixels, decode)

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
                self._streams.end(message.surface_id)
            case display.Reset():
                self._pictures.forget(message)
                return self._reset()
            case display.Mark():
                return self._show_blank()
            case display.StreamData() | display.StreamDataSized():
                return self._show_stream(message)
            case display.StreamCreate():
                self._surface(message.surface_id, message.title, "surface_id")
                self._streams.note(message)
            case _:
                self._pictures.forget(message)
                self._streams.note(message)
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
        if self.primary is None:
            return NOTHING
        self.primary.words[:] = 0
        self.primary.stale = []
        return Drawn(0, [whole(self.primary)], [])

    def _show_blank(self) -> Drawn:
        """A primary on which nothing was drawn is shown as it is: of a machine whose new mode is
        black nothing more may come."""
        blank, self._is_blank = self._is_blank, False
        return Drawn(0, [whole(self.primary)], []) if blank and self.primary else NOTHING

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
        parts = clipped(message.title, "box", message.box, message.clip, surface)
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
        self.counts[counted_as(image)] += 1
        try:
            pixels = self._pictures.decode(image, None)
        except CannotDecode as error:
            unread = Unread(images.name_of(image), str(error))
            return _spoilt(copy.surface_id, surface, rects, unread)
        surface.pixels[box.top : box.bottom, box.left : box.right] = pixels
        surface.heal(rects)
        return Drawn(copy.surface_id, rects, [])

    def _copy_bits(self, surface: Surface, copy: display.CopyBits, parts: list[Rect]) -> Drawn:
        down, right = copy.src_pos.y - copy.box.top, copy.src_pos.x - copy.box.left
        there = (-down, -right, surface.height - down, surface.width - right)
        parts = [cut for part in parts if (cut := common(part, there))]
        if not parts or not (down or right):
            return NOTHING
        top, left, bottom, end = bounds(parts)
        source = (top + down, left + right, bottom + down, end + right)
        stale = surface.why_stale_in(source)
        words = surface.words[slices(source)].copy()  # the two may overlap
        for part in parts:
            surface.put(part, words[slices(part, (top, left))], None)
        return _done(copy.surface_id, surface, parts, stale=stale, healed=True)

    def _fill(
        self, surface: Surface, fill: display.DrawFill, parts: list[Rect], found: _Found
    ) -> Drawn:
        brush = _brush(fill, surface, found)
        code = raster.code_of(fill.rop_descriptor, display.ROP_INVERS_BRUSH)
        region = _masked(fill, parts, found)

        def paint(part: Rect) -> Words | np.uint32:
            return raster.combined(code, brush(part), surface.words[slices(part)])

        return self._paint(fill.surface_id, surface, region, paint, raster.needs_dest(code))

    def _plain(self, surface: Surface, message: _Plain, parts: list[Rect], found: _Found) -> Drawn:
        region = _masked(message, parts, found)
        turns = isinstance(message, display.DrawInvers)
        word = np.uint32(0 if isinstance(message, display.DrawBlackness) else 0xFFFFFFFF)

        def paint(part: Rect) -> Words | np.uint32:
            return ~surface.words[slices(part)] if turns else word

        return self._paint(message.surface_id, surface, region, paint, turns)

    def _from_image(
        self, surface: Surface, message: _Scaled, parts: list[Rect], found: _Found
    ) -> Drawn:
        source = _source(message, surface, found)
        region = Region(parts)
        needs_dest = True
        match message:
            case display.DrawCopy() | display.DrawBlend():
                scaled = _scaled(source, message, surface)
                region = _masked(message, parts, found)
                code = raster.code_of(message.rop_descriptor, display.ROP_INVERS_SRC)
                needs_dest = raster.needs_dest(code)

                def paint(part: Rect) -> Words | np.uint32:
                    return raster.combined(code, scaled(part), surface.words[slices(part)])

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
                    dest = surface.words[slices(part)]
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
        region: Region,
    ) -> Drawn:
        scaled = _scaled(source, message, surface)
        key = surface.rounded(np.asarray(message.true_color, np.uint32)) & np.uint32(0xFFFFFF)

        def paint(part: Rect) -> Words:
            words = surface.rounded(scaled(part))
            keyed = (words & np.uint32(0xFFFFFF)) == key
            return np.where(keyed, surface.words[slices(part)], words)

        return self._paint(message.surface_id, surface, region, paint, True, stale=source.stale)

    def _alpha_blend(
        self,
        surface: Surface,
        message: display.DrawAlphaBlend,
        source: _Source,
        region: Region,
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
                surface.words[slices(part)],
                alpha=message.alpha,
                source_alpha=source_alpha,
                dest_alpha=dest_alpha,
            )

        return self._paint(message.surface_id, surface, region, paint, True, stale=source.stale)

    def _paint(
        self,
        number: int,
        surface: Surface,
        region: Region,
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
        if len(parts) > _MOST_PARTS or (needs_dest and overlap(parts)):
            region = region.joined()
        for part in region.parts:
            for band in bands(part):
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
        self.counts.update(map(counted_as, found) if found else [_without_image(message)])
        return _Found(
            self._image(title, "image", image, surface) if image else None,
            self._image(title, "brush.pattern.pat", pattern.pat, surface) if pattern else None,
            self._pictures.mask(title, bitmap, surface) if bitmap else None,
        )

    def _image(
        self, title: str, field: str, image: display.Image, surface: Surface
    ) -> Picture | Unread | Mask | Surface:
        if isinstance(image.content, display.SurfaceImage):
            place = f"{field}.content.surface_id"
            found = self._surface(image.content.surface_id, title, place)
            if not found.has_colours:
                return Unread(f"surface format {found.format}", "is not drawn from")
            return found
        return self._pictures.picture(title, field, image, surface)

    # Streams

    def _show_stream(self, data: display.StreamData | display.StreamDataSized) -> Drawn:
        """A picture of MJPEG is an image of the type JPEG."""
        stream = self._streams.find(data.id)
        if stream is None:
            return NOTHING
        create = stream.create
        self.counts[stream.codec] += 1
        width, height, dest = create.stream_width, create.stream_height, create.dest
        if isinstance(data, display.StreamDataSized):
            width, height, dest = data.width, data.height, data.dest
        surface = self._surface(create.surface_id, data.title, "id")
        parts = clipped(data.title, "dest", dest, stream.clip, surface)
        jpeg = display.Image(0, ImageType.JPEG, 0, width, height, display.ImageData(data.data))
        found: object = None
        if create.codec_type == display.CODEC_MJPEG and surface.has_colours:
            found = self._pictures.picture(data.title, "data", jpeg, surface)
        if not isinstance(found, Picture):
            why = found.why if isinstance(found, Unread) else "nothing here can decode it"
            return _spoilt(create.surface_id, surface, parts, Unread(stream.codec, why))
        words = found.words if create.flags & display.STREAM_TOP_DOWN else found.words[::-1]
        origin, size = (dest.top, dest.left), (dest.bottom - dest.top, dest.right - dest.left)

        def paint(part: Rect) -> Words:
            return raster.nearest(words, size, moved(part, origin))

        return self._paint(create.surface_id, surface, Region(parts), paint, False)


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


def _masked(message: _Masked, parts: list[Rect], found: _Found) -> Region:
    """Of the parts only what a mask lets through; nothing does that is beyond its edge."""
    if found.mask is None:
        return Region(parts)
    if isinstance(found.mask, Unread):
        raise _Unreadable(found.mask)
    box, mask, bits = message.box, message.mask, found.mask.bits
    if mask.flags & display.MASK_INVERS:
        bits = ~bits
    top, left = box.top - mask.pos.y, box.left - mask.pos.x
    there = (top, left, top + bits.shape[0], left + bits.shape[1])
    return Region([c for part in parts if (c := common(part, there))], bits, (top, left))


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
        return lambda part: surface.rounded(raster.interpolated(framed, size, moved(part, origin)))
    if size == words.shape:
        return lambda part: words[slices(part, origin)]
    return lambda part: raster.nearest(words, size, moved(part, origin))
