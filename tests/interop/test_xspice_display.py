"""Xspice, an X server that is a SPICE server, whose driver makes drawing messages of what X clients
draw: our client shows what the X server says is there, and what it types and points at arrives."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from itertools import count
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
import trio
from PIL import Image

import spiceshm
from spiceshm.codecs import jit
from spiceshm.errors import CannotDecode
from tests.gui import reporting
from tests.interop.viewers import Screen, eventually
from tests.programs import DEADLINE, Program, look
from tests.recordings.sessions.make import Painter, gradient
from tests.test_xcursor import drawn as pointer
from tests.test_xcursor import painter_on
from tests.xvfb import environment, run, xspice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from spiceshm.client import RemoteDisplay
    from spiceshm.client.wishes import Compressing
    from spiceshm.events import CursorShape
    from tests.xvfb import Display

pytestmark = pytest.mark.peer("Xspice", "Xorg", "xterm", "x11perf", "import", "xdotool", "xev")

WIDTH, HEIGHT = 800, 600
SIZE = f"{WIDTH}x{HEIGHT}"
PHOTO = 128, 96
"""Width and height of a window that shows a smooth picture."""

FILM = slice(480, 576), slice(640, 768)
"""Where no other window is, for one of these."""

TYPING = ["xterm", "-geometry", "70x30+20+20", "-e", "sh", "-c"]
SCROLLING = "seq 300; ls -l /usr/bin | head -n 50; exec sleep 1000"
ENOUGH = 20
"""Messages of a kind, to believe that it is what was to be tried."""

LOSSY_DB = 30.0
"""What JPEG leaves of the smooth picture, at least; PSNR."""

FILM_DB, EXACT_DB = 25.0, 60.0
"""The same of a video of it, and more than any JPEG leaves."""


class Desk:
    """An Xspice, and what it says is on its screen."""

    def __init__(self, display: Display) -> None:
        self.display = display
        self.address = f"tcp:127.0.0.1:{display.port}"
        self.screen = Screen(display)

    async def truth(self) -> np.ndarray:
        """(height, width) of 0x00RRGGBB. In a thread: the X server waits for whoever reads SPICE
        once it has no more room for drawing, and that is us."""
        return await trio.to_thread.run_sync(self.screen.pixels, 0, 0, WIDTH, HEIGHT)

    async def imported(self) -> np.ndarray:
        """The same, as ImageMagick says."""
        command = ("import", "-window", "root", "ppm:-")
        file = await trio.to_thread.run_sync(run, self.display, *command)
        return words(np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))[:, :, ::-1])

    async def is_shown(
        self,
        remote: RemoteDisplay,
        like: Callable[[np.ndarray, np.ndarray], bool] = np.array_equal,
        says: Callable[[], Awaitable[np.ndarray]] | None = None,
    ) -> np.ndarray:
        """Wait until the client shows what ``says`` is there, or the screen; ``like`` is told both
        and says so. Returns it."""
        with trio.fail_after(DEADLINE):
            while True:
                frame = await remote.latest()
                assert not frame.stale.size
                truth = await (says or self.truth)()
                if like(words(frame.pixels), truth):
                    return truth
                with trio.move_on_after(0.05):
                    await remote.wait_change(since=frame)

    def program(self, *command: str) -> Program:
        return Program(list(command), environment(self.display))


def words(pixels: np.ndarray) -> np.ndarray:
    """(height, width, 3 or 4) of B, G, R as (height, width) of 0x00RRGGBB."""
    return cast("np.ndarray", pixels[..., :3].astype(np.uint32) @ np.array([1, 256, 65536], "u4"))


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    """Of two pictures of words."""
    channels = [(one >> shift & 255).astype(float) - (other >> shift & 255) for shift in (0, 8, 16)]
    return float(10 * np.log10(255**2 / max(np.square(channels).mean(), 1e-9)))


async def drawn(remote: RemoteDisplay, kind: str, many: int = ENOUGH) -> None:
    """Wait until so many more of a kind have come."""
    until = remote.images.get(kind, 0) + many
    with trio.fail_after(DEADLINE):
        while remote.images.get(kind, 0) < until:
            with trio.move_on_after(0.05):
                await remote.wait_change()


@contextlib.contextmanager
def desk(folder: Path, *arguments: str, **options: str) -> Iterator[Desk]:
    with xspice(folder, *arguments, size=SIZE, **options) as display:
        it = Desk(display)
        try:
            yield it
        finally:
            it.screen.connection.disconnect()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """With all that the driver can do, and without a pointer, which it draws if nobody asks."""
    options = ("EnableSurfaces", "EnableImageCache", "EnableFallbackCache")
    place = tmp_path_factory.mktemp("xspice")
    with desk(place, "-nocursor", **dict.fromkeys(options, "true")) as it:
        yield it


@contextlib.contextmanager
def film_at(it: Desk) -> Iterator[Painter]:
    """A window at `FILM`, for smooth pictures."""
    with contextlib.closing(Painter(it.display, FILM[1].start, FILM[0].start, *PHOTO)) as painter:
        yield painter


# Pictures

CASES = [
    ("off", 0, "raw", "raw"),
    ("lz4", 0, "lz4", "lz4"),
    ("lz", 0, "lz", "lz"),
    ("glz", 1 << 22, "glz", "glz"),
    ("quic", 0, "quic", "quic"),
    ("auto-lz", 1 << 22, "lz", "quic"),
    ("auto-glz", 0, "glz", "quic"),
]


@pytest.mark.parametrize(
    ("compression", "cache_pixels", "text", "photo"), CASES, ids=[case[0] for case in CASES]
)
async def test_what_x_clients_draw_pixel_for_pixel(
    plain: Desk, compression: Compressing, cache_pixels: int, text: str, photo: str
) -> None:
    """A terminal scrolls, a picture is dragged over it, and x11perf is stopped in the middle."""
    if photo == "quic" and not jit.AVAILABLE:
        pytest.skip("takes numba")
    wishes = {"compression": compression, "cache_pixels": cache_pixels, "strict": True}
    async with spiceshm.connect(plain.address, **wishes) as remote:
        await plain.is_shown(remote)
        with (
            plain.program(*TYPING, SCROLLING),
            contextlib.closing(Painter(plain.display, 350, 20, *PHOTO)) as painter,
        ):
            await drawn(remote, text)
            await drawn(remote, "copy_bits", 1)
            await remote.wait_stable(0.1)
            await plain.is_shown(remote)
            before = remote.images
            painter.move(350, 20)  # above the terminal
            painter.paint(0)
            await drawn(remote, photo, 1)
            for step in range(8):
                painter.move(350 - 30 * step, 20 + 25 * step)
            await drawn(remote, "copy_bits", 1)
            there, smooth = (slice(195, 291), slice(140, 268)), words(gradient(*PHOTO, 0))

            def moved(seen: np.ndarray, truth: np.ndarray) -> bool:
                return np.array_equal(seen, truth) and np.array_equal(truth[there], smooth)

            await plain.is_shown(remote, moved)
            for test, kind in (
                ("-rect100", "fill"),
                ("-copywinwin100", "copy_bits"),
                ("-copypixwin100", "surface"),
                ("-ftext", text),
                ("-line100", text),
            ):
                with plain.program("x11perf", "-repeat", "1", "-reps", "100000", test) as perf:
                    await drawn(remote, kind)
                    perf.send(signal.SIGSTOP)
                    await plain.is_shown(remote)
            await plain.is_shown(remote, says=plain.imported)
        assert remote.images[photo] > before.get(photo, 0)
        assert ("from_cache" in remote.images) == bool(cache_pixels)
        first = "lz" if "glz" in compression else text
        nameless = {"copy_bits", "fill", "surface", "from_cache", "raw"}  # raw: hardly any pixels
        assert set(remote.images) <= {first, text, photo, *nameless}


async def test_what_is_for_slow_networks(tmp_path: Path) -> None:
    """What is smooth comes as JPEG, and all else is exact."""
    options = dict.fromkeys(("SpiceJpegWanCompression", "SpiceZlibGlzWanCompression"), "always")
    with desk(tmp_path, "-nocursor", **options) as it:
        async with spiceshm.connect(it.address, compression="auto-glz", strict=True) as remote:
            with it.program(*TYPING, SCROLLING), film_at(it) as painter:
                await drawn(remote, "zlib_glz")
                painter.paint(0)
                await drawn(remote, "jpeg_alpha", 1)

                def alike(seen: np.ndarray, truth: np.ndarray) -> bool:
                    lossy, seen = psnr_db(seen[FILM], truth[FILM]), seen.copy()
                    seen[FILM] = truth[FILM]
                    return lossy >= LOSSY_DB and np.array_equal(seen, truth)

                truth = await it.is_shown(remote, alike)
                assert np.array_equal(truth[FILM], words(gradient(*PHOTO, 0)))
                assert not np.array_equal(words((await remote.latest()).pixels), truth)


@pytest.mark.parametrize("video", [True, False], ids=["video", "no-video"])
async def test_a_film_is_a_video_if_that_is_wanted(tmp_path: Path, video: bool) -> None:
    """And once it stands still it is exact."""
    with desk(tmp_path, "-nocursor", SpiceStreamingVideo="all") as it, film_at(it) as painter:
        async with spiceshm.connect(it.address, video=video, strict=True) as remote:
            steps = [words(gradient(*PHOTO, step)) for step in range(10)]
            with trio.fail_after(DEADLINE):
                for shown in count():
                    painter.paint(shown % len(steps))
                    await trio.sleep(0.04)  # 25 pictures a second
                    if remote.images.get("mjpeg", 0) >= ENOUGH or (not video and shown > 50):
                        break
            if video:
                seen = words((await remote.latest()).pixels)[FILM]
                assert FILM_DB <= max(psnr_db(seen, step) for step in steps) < EXACT_DB
            assert ("mjpeg" in remote.images) == video
            truth = await it.is_shown(remote)
            assert any(np.array_equal(truth[FILM], step) for step in steps)


async def test_what_nothing_here_decodes_is_stale_until_it_is_drawn_over(
    plain: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """QUIC without numba, where nothing else but it was asked for."""
    if not jit.AVAILABLE:
        pytest.skip("takes numba, for then it is asked for")
    async with spiceshm.connect(plain.address, compression="quic") as remote:
        await plain.is_shown(remote)
        with film_at(plain) as painter:
            await remote.wait_stable(0.1)
            monkeypatch.setattr(jit, "AVAILABLE", False)
            for step in range(2):
                painter.paint(step)
                await drawn(remote, "quic", 1)
            top, left = FILM[0].start, FILM[1].start
            assert remote.stale == [(top, left, FILM[0].stop, FILM[1].stop)]
            frame = await remote.latest()
            assert frame.stale.tolist() == [list(remote.stale[0])]
        with trio.fail_after(DEADLINE):
            while remote.stale:  # what was below the window is not smooth
                await remote.wait_change()
        await plain.is_shown(remote)
    [record] = caplog.records
    assert "display.draw_copy: quic: " in record.getMessage()
    monkeypatch.undo()
    async with spiceshm.connect(plain.address, compression="quic", strict=True) as remote:
        with film_at(plain) as painter:
            await remote.wait_stable(0.1)
            monkeypatch.setattr(jit, "AVAILABLE", False)
            painter.paint(0)
            with pytest.raises(CannotDecode, match="quic"):
                await remote.wait_change()


# Acting


@pytest.fixture(scope="module")
def acting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """With a pointer."""
    with desk(tmp_path_factory.mktemp("xspice")) as it:
        yield it


async def test_what_is_typed_arrives(acting: Desk) -> None:
    with reporting() as report:
        reads = f"read -r line; echo got; printf '%s\\n' \"$line\" > {report.path}; exec sleep 1000"
        with acting.program(*TYPING, reads):
            async with spiceshm.connect(acting.address, strict=True) as remote:
                await remote.cursor()
                await terminal(acting)
                await remote.move(300, 200)  # whoever has the pointer has the keys
                before = await remote.wait_stable(0.1)
                await remote.type("Hello, World~")
                typed = await remote.wait_change((20, 20, 60, 300), since=before)
                assert not np.array_equal(typed.pixels, before.pixels)
                await remote.key("Return")
                assert await report.line() == "Hello, World~"
                await acting.is_shown(remote)


async def test_the_program_types_and_looks(acting: Desk, tmp_path: Path) -> None:
    with reporting() as report:
        reads = f"read -r line; printf '%s\\n' \"$line\" > {report.path}; exec sleep 1000"
        with acting.program(*TYPING, reads):
            await terminal(acting)
            words_ = ["--json", "--strict", "--move", "300,200", "--type", "yes\n"]
            words_ += ["--wait-stable", "0.2", "--screenshot", str(tmp_path / "shot.png")]
            done = await trio.to_thread.run_sync(look, *words_, acting.address)
            assert (done.returncode, done.stderr) == (0, b"")
            assert await report.line() == "yes"
            assert json.loads(done.stdout)["stale"] == []
            shot = words(np.asarray(Image.open(tmp_path / "shot.png"))[:, :, ::-1])
            truth = await acting.truth()
            assert np.array_equal(shot[:150], truth[:150])


async def terminal(it: Desk) -> None:
    """Wait until it is there."""
    command = ["xdotool", "search", "--sync", "--onlyvisible", "--class", "xterm"]
    await trio.to_thread.run_sync(run, it.display, *command)


async def test_the_pointer_goes_where_it_is_sent_and_clicks(acting: Desk) -> None:
    xev = ["xev", "-geometry", "400x300+100+100", "-event", "button"]
    with acting.program(*xev) as program:
        async with spiceshm.connect(acting.address, strict=True) as remote:
            command = ["xdotool", "search", "--sync", "--onlyvisible", "--name", "Event Tester"]
            await trio.to_thread.run_sync(run, acting.display, *command)
            for x, y in ((300, 200), (123, 321)):
                await remote.move(x, y)

                def there(place: str = f"x:{x} y:{y} ") -> bool:
                    return place in run(acting.display, "xdotool", "getmouselocation").decode()

                await eventually(there)
            await remote.click(222, 333, "right")
            found: list[str] = []
            while len(found) < 2:
                line = await trio.to_thread.run_sync(program.line)
                found += [
                    word for word in ("(222,333)", "button 3") if word in line.replace("root:", "")
                ]


async def test_the_pointer_has_the_shape_that_it_has_there(acting: Desk) -> None:
    """Of those with colours; shapes of two colours its driver draws into the picture."""
    async with spiceshm.connect(acting.address, strict=True) as remote:
        await remote.move(300, 500)  # where no other window is
        await remote.cursor()
        with painter_on(acting.display) as program:
            for width, height in ((24, 17), (33, 40)):
                pixels = pointer(width, height)
                program.point(pixels, 7, 4)

                def is_it(shape: CursorShape | None, pixels: np.ndarray = pixels) -> bool:
                    return shape is not None and np.array_equal(shape.pixels, pixels)

                with trio.fail_after(DEADLINE):
                    while not is_it((cursor := await remote.cursor()).shape):
                        await trio.sleep(0.01)
                assert cursor.shape is not None
                assert (cursor.shape.hot_x, cursor.shape.hot_y) == (7, 4)
                await remote.move(300, 400 + height)
                cursor = await remote.cursor()
                assert (cursor.x, cursor.y, cursor.visible) == (300, 400 + height, True)
            await acting.is_shown(remote)  # and it is not in the picture
