"""SPICE's JPEG images (JPEG, JPEG_ALPHA), which lose something; Pillow does the work.

What a server sends is a baseline JPEG of three channels, and nothing else is taken: a progressive
one of a few bytes may take a decoder as long as it likes.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from ..errors import CannotDecode
from . import lz

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .bitmap import Data

_SCAN = b"\xff\xda"
_MOST_SCANS = 3
"""One for each channel."""


def decode(data: Data, width: int, height: int) -> NDArray[np.uint8]:
    """The picture (height, width, 4) as B, G, R, X of a JPEG image, the top line first.

    It may not be written to. Raises CannotDecode if it is no JPEG, cut off, of another size or of a
    kind that no server sends.
    """
    # Slow to import, and few servers send any. And what finds out the format of a picture would
    # look at its size before we do.
    from PIL.JpegImagePlugin import JpegImageFile

    body = bytes(data)
    if body.count(_SCAN) > _MOST_SCANS:
        raise CannotDecode("a JPEG of too many scans")
    try:
        with JpegImageFile(io.BytesIO(body)) as image:
            lz.expect_size(image.size, width, height)
            if image.mode != "RGB" or image.info.get("progressive"):
                raise CannotDecode("a JPEG of a kind that no server sends")
            pixels = image.tobytes("raw", "BGRX")
    except (OSError, SyntaxError, ValueError) as error:
        raise CannotDecode(f"its data are no JPEG: {error}") from None
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 4)


def decode_alpha(
    data: Data, width: int, height: int, *, colour_size: int, top_down: bool
) -> NDArray[np.uint8]:
    """The picture (height, width, 4) as B, G, R, A of a JPEG_ALPHA image: ``colour_size`` bytes of
    JPEG, and its alpha behind, whose first line is the top one if ``top_down`` is set.

    Raises CannotDecode as `decode` and `lz.decode_alpha` do.
    """
    view = memoryview(data)
    picture = decode(view[:colour_size], width, height).copy()
    alpha, said = lz.decode_alpha(view[colour_size:], width, height)
    if said != top_down:
        raise CannotDecode("its alpha is the other way up")
    picture[..., 3] = alpha if top_down else alpha[::-1]
    return picture
