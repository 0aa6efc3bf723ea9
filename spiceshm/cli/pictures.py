"""Pictures as files."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def save(pixels: NDArray[np.uint8], path: str) -> None:
    """Write (height, width, 3) of R, G, B as .png or .ppm; ``-`` is PNG on stdout."""
    from PIL import Image  # slow to import, and only a screenshot needs it

    image = Image.fromarray(pixels)
    if path == "-":
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        sys.stdout.buffer.write(buffer.getvalue())
        sys.stdout.buffer.flush()
    else:
        image.save(path)
