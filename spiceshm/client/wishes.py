"""What a client asks of a server's display channel, and how it says so in SPICE."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from ..codecs import jit, lz4, quic
from ..wire import display
from ..wire.shm import MAX_CREDITS
from ..wire.types import Compression, DisplayCap

Sharing = Literal["auto", "off", "require"]
Compressing = Literal["auto", "off", "lz4", "lz", "glz", "quic", "auto-lz", "auto-glz"]

GLZ_PIXELS = 1 << 22
"""How many pixels GLZ may repeat; a picture that is larger than this repeats only itself."""

_GLZ = ("glz", "auto-glz")
_NUMBA = ("quic", "auto-lz", "auto-glz")


class Wishes(NamedTuple):
    """As `connect` takes them."""

    shm: Sharing = "auto"
    credits: int = 3
    compression: Compressing = "auto"
    cache_pixels: int = 0
    video: bool = False
    strict: bool = False

    def check(self) -> None:
        """Raise ValueError for a wish that is none, or that takes a package which is missing."""
        if self.credits not in range(1, MAX_CREDITS + 1):
            raise ValueError(f"credits are {self.credits!r}, not 1 to {MAX_CREDITS}")
        if self.shm not in get_args(Sharing):
            raise ValueError(f"shm is {self.shm!r}, not {_listed(Sharing)}")
        if self.compression not in get_args(Compressing):
            raise ValueError(f"compression is {self.compression!r}, not {_listed(Compressing)}")
        if not 0 <= self.cache_pixels < 1 << 31:
            raise ValueError(f"cache_pixels are {self.cache_pixels!r}, not 0 to {(1 << 31) - 1}")
        if self.compression == "lz4" and not lz4.AVAILABLE:
            raise ValueError("compression lz4 takes the package lz4: pip install 'spiceshm[lz4]'")
        if self.compression in _NUMBA and not jit.AVAILABLE:
            raise ValueError(
                f"compression {self.compression} takes the package numba: "
                "pip install 'spiceshm[jit]'"
            )

    @property
    def caps(self) -> frozenset[int]:
        """What the link message says that we know. MULTI_CODEC without a codec is no video."""
        caps = {DisplayCap.MONITORS_CONFIG, DisplayCap.MULTI_CODEC, DisplayCap.SHARED_MEMORY}
        if lz4.AVAILABLE:
            caps.add(DisplayCap.LZ4_COMPRESSION)
        if self.video:
            caps |= {DisplayCap.CODEC_MJPEG, DisplayCap.SIZED_STREAM}
        return frozenset(map(int, caps))

    def preferred(self, *, is_unix: bool) -> Compression:
        """What images shall be packed with: on one machine nothing is quicker than not at all."""
        if self.compression == "auto":
            return Compression.LZ4 if lz4.AVAILABLE and not is_unix else Compression.OFF
        return Compression[self.compression.upper().replace("-", "_")]

    @property
    def to_compile(self) -> bool:
        """Whether `prepare` has something to do: what numba compiles decodes what is asked for."""
        return jit.AVAILABLE and self.compression not in ("auto", "off", "lz4")

    def prepare(self) -> None:
        """Have it compiled, or loaded, which takes a second and at first some more: in a thread.

        Else the first images would wait for it, and with them all that the program does.
        """
        jit.prepare()
        if self.compression in _NUMBA:
            quic.prepare()

    @property
    def glz_pixels(self) -> int:
        """How many pixels GLZ may repeat; without any a server sends none."""
        return GLZ_PIXELS if self.compression in _GLZ else 0

    @property
    def init(self) -> display.DisplayInit:
        """The message that begins the channel. A cache is shared by all that name the same id, and
        nobody else does."""
        return display.DisplayInit(1, self.cache_pixels, 1, self.glz_pixels)


def _listed(names: object) -> str:
    *others, last = (f'"{name}"' for name in get_args(names))
    return f"{', '.join(others)} or {last}"
