"""What our client shows of a virtual machine is what QEMU itself says is there, pixel by pixel.

QEMU's adapters are VGA as long as no driver in the machine makes more of them: then the server
compares the picture with the one before, in columns of 32 pixels, and sends DRAW_COPY of what
differs, however it was drawn. Copies, fills, surfaces off screen and images that are cached come
from drivers; Xspice is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio

import spiceshm
from spiceshm.codecs import glz
from tests.interop.machine import (
    MIXED,
    MODES,
    PHOTO,
    PROMPT,
    Machine,
    drawn,
    machine,
    prompted,
    shows,
    written,
)
from tests.programs import DEADLINE, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spiceshm.client.wishes import Compressing
    from spiceshm.codecs.tokens import Plane

pytestmark = pytest.mark.peer("qemu-system-x86_64")

COLUMNS = 640 // 32
"""Images of an update of all of 640x400, at least."""

PSNR_DB = 43.0
"""What JPEG leaves of `PHOTO`, at least: 44.8 to 45.0 were measured."""


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("vga", ["qxl", "std", "virtio"])
async def test_a_machine_from_its_start_through_all_modes(vga: str, tcp: bool) -> None:
    with machine("-vga", vga, "-S", tcp=tcp) as it:
        async with spiceshm.connect(it.address, wait_server=DEADLINE) as remote:
            it.do("cont")
            with trio.fail_after(DEADLINE):
                while not it.text().endswith(PROMPT):  # meanwhile the firmware is at work
                    await remote.wait_change()
                    await shows(it, remote)
            await remote.type("all modes")
            await written(it, remote, "all modes")
            await shows(it, remote)
            size = MODES["F1"]
            for key in ("F2", "F3", PHOTO, MIXED, "F4", "F2"):
                await drawn(remote, key)
                size = MODES.get(key, size)
                assert (remote.width, remote.height) == size
                await shows(it, remote)
            await prompted(it, remote)
            await shows(it, remote)
            assert max(remote.images, key=remote.images.__getitem__) == ("lz4" if tcp else "raw")


@pytest.fixture(scope="module")
def network() -> Iterator[Machine]:
    """Over TCP; it shows `MIXED` at 640x400 or has shown it before."""
    with machine("-vga", "qxl", tcp=True) as it:
        until(lambda: it.text().endswith(PROMPT))
        it.say("sendkey f3")
        until(lambda: it.dumped().shape == (400, 640, 3) and it.dumped()[-1, -1].any())
        yield it


@pytest.mark.parametrize(
    ("compression", "first", "mixed", "photo"),
    [
        ("off", "raw", "raw", "raw"),
        ("lz4", "lz4", "lz4", "lz4"),
        ("lz", "lz", "lz", "lz"),
        ("glz", "lz", "glz", "glz"),
        ("quic", "quic", "quic", "quic"),
        ("auto-lz", "lz", "lz", "quic"),
        ("auto-glz", "lz", "glz", "quic"),
    ],
)
async def test_every_compression(
    network: Machine,
    compression: Compressing,
    first: str,
    mixed: str,
    photo: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There are caches for some of them, but images without a driver never ask to be kept. GLZ
    repeats images that were there before."""
    earlier, repeated = glz.Dictionary.earlier, list[int]()

    def noted(self: glz.Dictionary, number: int, unit: int, back: int) -> Plane:
        repeated.append(number)
        return earlier(self, number, unit, back)

    monkeypatch.setattr(glz.Dictionary, "earlier", noted)
    cache_pixels = 1 << 22 if "glz" in compression else 0
    async with spiceshm.connect(
        network.address, compression=compression, cache_pixels=cache_pixels, strict=True
    ) as remote:
        assert remote.images[first] >= 1
        await shows(network, remote)
        for key, kind in ((PHOTO, photo), (MIXED, mixed)):
            before = remote.images.get(kind, 0)
            await drawn(remote, key)
            await shows(network, remote)
            assert remote.images[kind] - before >= COLUMNS
        assert set(remote.images) <= {first, mixed, photo, "raw"}
    assert bool(repeated) == (mixed == "glz")


async def test_what_is_for_slow_networks() -> None:
    """JPEG loses something of photographs, and of nothing else."""
    always = "disable-ticketing=on,jpeg-wan-compression=always,zlib-glz-wan-compression=always"
    with machine("-vga", "std", tcp=True, spice=always) as it:
        until(lambda: it.text().endswith(PROMPT))
        async with spiceshm.connect(it.address, compression="auto-glz", strict=True) as remote:
            await drawn(remote, "F3")
            await drawn(remote, PHOTO)
            await shows(it, remote, like)
            assert remote.images["jpeg"] >= COLUMNS
            before = remote.images.get("zlib_glz", 0)
            await drawn(remote, MIXED)
            await shows(it, remote, like)
            assert remote.images["zlib_glz"] - before >= COLUMNS
            await prompted(it, remote)
            await shows(it, remote)
            assert set(remote.images) <= {"lz", "jpeg", "zlib_glz", "glz", "raw"}


def like(shown: np.ndarray, truth: np.ndarray) -> bool:
    """Whether it is what JPEG may leave of it."""
    error = np.square(shown.astype(np.float32) - truth).mean()
    return bool(error <= 255**2 / 10 ** (PSNR_DB / 10))
