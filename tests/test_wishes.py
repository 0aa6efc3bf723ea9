"""What a client asks of servers that share no memory, and what it says of what it cannot read."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import TYPE_CHECKING, get_args

import pytest
import trio
import trio.lowlevel
import trio.testing

import spiceshm
from spiceshm.cli.client import COMPRESSIONS
from spiceshm.client.wishes import Compressing, Wishes
from spiceshm.codecs import jit, lz4
from spiceshm.errors import CannotDecode
from spiceshm.wire import display
from spiceshm.wire.types import ChannelType, Compression, DisplayCap, ImageType, Rect
from tests import pair, stockserver
from tests.programs import look
from tests.test_canvas import copy, solid

if TYPE_CHECKING:
    from pathlib import Path

    from spiceshm.wire import Message

PART = (2, 8, 20, 24)
UNREADABLE = "display.draw_copy: quic: its data end before its header"


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/display.sock"


def unreadable() -> Message:
    """A picture that no server sends."""
    image = display.Image(1, ImageType.QUIC, 0, 16, 18, display.ImageData(b"nothing"))
    return copy(PART, image, (0, 0, 18, 16))


def readable() -> Message:
    """What covers it."""
    return display.DrawFill(0, Rect(*PART), None, solid(), 8, display.NO_MASK)


def test_the_program_offers_what_the_library_takes() -> None:
    assert get_args(Compressing) == COMPRESSIONS


@pytest.mark.parametrize(
    ("wish", "is_unix", "preferred"),
    [
        ("auto", True, Compression.OFF),
        ("auto", False, Compression.LZ4),
        ("off", False, Compression.OFF),
        ("glz", True, Compression.GLZ),
        ("auto-glz", True, Compression.AUTO_GLZ),
    ],
)
def test_what_is_preferred(wish: Compressing, is_unix: bool, preferred: Compression) -> None:
    assert Wishes(compression=wish).preferred(is_unix=is_unix) == preferred


def test_without_lz4_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lz4, "AVAILABLE", False)
    assert Wishes().preferred(is_unix=False) == Compression.OFF
    assert DisplayCap.LZ4_COMPRESSION not in Wishes().caps
    with pytest.raises(ValueError, match=r"takes the package lz4: pip install 'spiceshm\[lz4\]'"):
        Wishes(compression="lz4").check()


def test_glz_is_asked_for_with_what_it_may_repeat() -> None:
    assert Wishes(compression="lz").glz_pixels == 0
    assert Wishes(compression="glz", cache_pixels=5).init == display.DisplayInit(1, 5, 1, 1 << 22)


def test_video_is_asked_for_by_its_codec_and_never_without_one() -> None:
    video = {DisplayCap.CODEC_MJPEG, DisplayCap.SIZED_STREAM}
    assert Wishes(video=True).caps - Wishes().caps == video
    assert DisplayCap.MULTI_CODEC in Wishes().caps


@pytest.mark.parametrize(
    ("wishes", "why"),
    [
        (Wishes(compression="zip"), 'compression is \'zip\', not "auto", .* or "auto-glz"'),  # type: ignore[arg-type]
        (Wishes(cache_pixels=-1), "cache_pixels are -1, not 0 to 2147483647"),
        (Wishes(credits=9), "credits are 9, not 1 to 8"),
    ],
)
def test_wishes_that_are_none(wishes: Wishes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        wishes.check()


def test_a_package_that_is_missing_is_named_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jit, "AVAILABLE", False)
    with pytest.raises(ValueError, match=r"takes the package numba: pip install 'spiceshm\[jit\]'"):
        Wishes(compression="quic").check()
    Wishes(compression="glz").check()  # only slower
    prelude = "import spiceshm.codecs.jit as jit; jit.AVAILABLE = False; "
    result = look("--compression", "quic", "unix:/nowhere", prelude=prelude)
    assert result.returncode == 2
    assert result.stderr == (
        b"spiceshm-client: --compression quic takes the package numba: "
        b"pip install 'spiceshm[jit]'\n"
    )
    result = look("--json", "--key", "a", "--compression", "quic", "unix:/nowhere", prelude=prelude)
    assert "spiceshm[jit]" in json.loads(result.stdout)["error"]


async def test_compression_is_asked_for_before_anything_is_drawn(address: str) -> None:
    async with stockserver.serving(address) as server:
        server.caps = frozenset({int(DisplayCap.PREF_COMPRESSION)})
        async with spiceshm.connect(address, compression="lz"):
            end = await server.channel(ChannelType.DISPLAY)
            [init] = await end.find(display.DisplayInit)
            [preferred] = await end.find(display.PreferredCompression)
            assert preferred == display.PreferredCompression(Compression.LZ)
            assert end.came.index(preferred) < end.came.index(init)


async def test_a_server_that_knows_no_preferences_is_told_none(address: str) -> None:
    async with stockserver.serving(address) as server, spiceshm.connect(address):
        end = await server.channel(ChannelType.DISPLAY)
        await end.find(display.DisplayInit)
        assert not [m for m in end.came if isinstance(m, display.PreferredCompression)]


async def test_what_cannot_be_decoded_is_told_once_and_stale_until_it_is_covered(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stockserver.serving(address) as server, spiceshm.connect(address) as remote:
        end = await server.channel(ChannelType.DISPLAY)
        before = (await remote.latest()).copy()
        assert not (await remote.latest()).stale.size
        for _ in range(2):  # a program that waits for a change is told of it all the same
            end.put(unreadable())
            frame = await remote.wait_change(PART)
            assert frame.stale.tolist() == [list(PART)]
            assert remote.stale == [PART]
            assert (frame.pixels == before).all()
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage() == (
            f"{address}: {UNREADABLE}; shown there is what was there before"
        )
        end.put(readable())
        frame = await remote.wait_change(PART)
        assert not frame.stale.size
        assert remote.stale == []
        top, left, bottom, right = PART
        assert (frame.pixels[top:bottom, left:right, :3] == (0x56, 0x34, 0x12)).all()


async def test_strict_is_to_miss_nothing(address: str) -> None:
    async with stockserver.serving(address) as server:
        async with spiceshm.connect(address, strict=True) as remote:
            (await server.channel(ChannelType.DISPLAY)).put(unreadable())
            with pytest.raises(CannotDecode) as caught:
                await remote.wait_change()
            with pytest.raises(CannotDecode):
                await remote.latest()
        why = f"{address}: {UNREADABLE}"
        assert str(caught.value) == why


async def test_the_program_tells_what_is_stale_and_is_strict_if_asked(address: str) -> None:
    async with stockserver.serving(address) as server:
        server.drawn.append(unreadable())
        result = await trio.to_thread.run_sync(look, "--json", address)
        assert result.returncode == 0
        assert result.stderr.count(b"\n") == 1
        assert json.loads(result.stdout)["stale"] == ["8,2,16,18"]
        result = await trio.to_thread.run_sync(look, "--strict", "--json", address)
        assert json.loads(result.stdout)["error"] == f"{address}: {UNREADABLE}"
        result = await trio.to_thread.run_sync(look, "--strict", "--wait-change", "9", address)
        assert result.returncode == 1
        assert result.stdout == b""
        why = f"{address}: {UNREADABLE}"
        assert result.stderr.decode() == f"spiceshm-client: {why}\n"


async def test_a_mode_in_which_nothing_is_drawn_is_shown_black(address: str) -> None:
    """A stock server does without a display channel that a client has opened for it once more."""
    create = pair.create()
    async with stockserver.serving(address) as server, spiceshm.connect(address) as remote:
        end = await server.channel(ChannelType.DISPLAY)
        end.put(display.SurfaceDestroy(0), dataclasses.replace(create, width=100))
        with trio.fail_after(stockserver.SOON):
            while remote.width != 100:
                await trio.sleep(0.001)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_is_black, remote)
            await trio.testing.wait_all_tasks_blocked()
            end.put(display.Mark())
        end.put(display.Mark(), readable())  # what is shown already does not change by it
        frame = await remote.wait_change()
        assert frame.rects.tolist() == [list(PART)]
        assert server.linked.count(ChannelType.DISPLAY) == 1


async def _is_black(remote: spiceshm.RemoteDisplay) -> None:
    frame = await remote.latest()
    assert (frame.width, frame.full) == (100, True)
    assert not frame.rgb().any()


def test_json_has_the_error_also_where_nothing_was_shown() -> None:
    result = look("--json", "unix:/nowhere")
    assert result.returncode == 1
    told = json.loads(result.stdout)
    assert list(told) == ["error"]
    assert result.stderr.decode() == f"spiceshm-client: {told['error']}\n"


async def test_who_gives_up_while_a_channel_is_opened_leaves_behind_its_first_message(
    address: str,
) -> None:
    """QEMU dies of a display channel that is closed before it begins."""
    async with stockserver.serving(address) as server:
        with trio.fail_after(stockserver.SOON), trio.CancelScope() as given_up:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_connect, address)
                while ChannelType.DISPLAY not in server.linked:
                    await trio.lowlevel.checkpoint()
                given_up.cancel()
        assert given_up.cancelled_caught
        end = await server.channel(ChannelType.DISPLAY)
        assert await end.find(display.DisplayInit)


async def _connect(address: str) -> None:
    async with spiceshm.connect(address):
        await trio.sleep_forever()
