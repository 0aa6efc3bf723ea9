"""Views: who holds a frame's pixels in whatever way keeps them, unchanged, and gives them back.

The client has a loop and a thread of its own, and while a holder dies nothing else happens in it:
what the server then hears it can only hear because the death itself woke that loop.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import pickle
import re
import threading
import time
from collections.abc import Generator
from contextlib import asynccontextmanager
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import trio
import trio.lowlevel
from PIL import Image

import spiceshm
from spiceshm.client import RemoteDisplay
from spiceshm.client import display as client_display
from spiceshm.client.frame import Lease
from spiceshm.memory import Buffer, BufferState, Reader
from spiceshm.protocol import generate_key
from tests.programs import DEADLINE, script, serving, short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

WIDTH, HEIGHT = 64, 48
KEY = generate_key()
NUMPY = np.lib.NumpyVersion(np.__version__)

pytestmark = pytest.mark.usefixtures("nothing_stays_mapped")


@pytest.fixture(autouse=True)
def always_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is: no frame is exchanged for a copy because it lay too long.

    And all tests share a key: making one takes longer than everything else.
    """
    monkeypatch.setattr(client_display, "STALE_S", float("inf"))
    monkeypatch.setattr("spiceshm.server.display.generate_key", lambda: KEY)


@pytest.fixture
def address() -> Iterator[str]:
    with short_directory() as place:
        yield f"unix:{place}/s"


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 4), np.uint8)


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(DEADLINE):
        while not condition():
            await trio.sleep(0.001)


# Two ends in two threads


class Looker:
    """A client whose loop runs in a thread of its own, and sleeps but for its sockets."""

    def __init__(self, address: str, credits: int) -> None:
        self._address = address
        self._credits = credits
        self._started = threading.Event()
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken
        self.remote: RemoteDisplay
        self.frames: Any

    async def do(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Call an async function in the client's loop."""
        call = partial(trio.from_thread.run, function, *args, trio_token=self._token)
        with trio.fail_after(DEADLINE):
            return await trio.to_thread.run_sync(call, abandon_on_cancel=True)

    async def see(self, serial: int) -> None:
        """Step to the frame ``serial`` and give it back."""
        await self.do(self._see, serial)

    async def _see(self, serial: int) -> None:
        async for frame in self.frames:
            if frame.serial >= serial:
                frame.release()
                return

    def run(self) -> None:
        try:
            trio.run(self._main)
        finally:
            self._started.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            async with spiceshm.connect(
                self._address, shm="require", credits=self._credits
            ) as self.remote:
                self.frames = self.remote.frames()
                self._started.set()
                await trio.sleep_forever()

    async def started(self) -> None:
        await trio.to_thread.run_sync(self._started.wait, DEADLINE)

    def stop(self) -> None:
        self._token.run_sync_soon(self._scope.cancel)


class Ends(NamedTuple):
    """A surface, its one reader, and who reads."""

    display: spiceshm.Display
    surface: spiceshm.Surface
    reader: Reader
    looker: Looker

    async def take(self, make: Callable[[spiceshm.Frame], object]) -> tuple[list[Any], int]:
        """Make a holder of the newest frame, in a list where nothing else knows it; the frame
        itself is released. Returns the list, and the serial."""
        box: list[Any] = []

        async def take() -> int:
            frame = await anext(self.looker.frames)
            box.append(make(frame))
            serial = frame.serial
            frame.release()
            return serial

        return box, await self.looker.do(take)

    async def draw(self, frames: int, check: Callable[[], None] = lambda: None) -> None:
        """Draw that many pictures; the client sees them all. ``check`` after each."""
        for _ in range(frames):
            self.surface.draw(picture(self.surface.serial))
            await self.looker.see(self.surface.serial)
            check()

    @property
    def held(self) -> int:
        """How many frames the client holds, as the server's statistics say."""
        [viewer] = self.display.viewers
        return viewer.stats.held_frames


@asynccontextmanager
async def both_ends(address: str, credits: int = 2) -> AsyncIterator[Ends]:
    async with spiceshm.serve(address) as display:
        surface = display.create_surface(WIDTH, HEIGHT)
        surface.draw(picture(0))
        looker = Looker(address, credits)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, looker.run)
            await looker.started()
            try:
                [reader] = surface.pool.readers
                yield Ends(display, surface, reader, looker)
            finally:
                looker.stop()


# Ways to hold


class Interface:
    """What older libraries exchange arrays by: an address, and a promise to keep it."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels
        self.__array_interface__ = pixels.__array_interface__


class Exported(ctypes.Structure):
    """Py_buffer, as far as it is looked at, and room for the rest."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("owner", ctypes.c_void_p),
        ("size", ctypes.c_ssize_t),
        ("rest", ctypes.c_void_p * 16),
    )


class Foreign:
    """A library in C that took the buffer by PyObject_GetBuffer, as torch.frombuffer does."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._exported = Exported()
        ctypes.pythonapi.PyObject_GetBuffer(
            ctypes.py_object(pixels), ctypes.byref(self._exported), 0
        )

    def read(self) -> bytes:
        return ctypes.string_at(self._exported.address, self._exported.size)

    def __del__(self) -> None:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(self._exported))


class Capsule:
    """A DLPack capsule that nobody has opened, and where it points."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._capsule = pixels.__dlpack__(max_version=(1, 0))  # type: ignore[call-arg]
        self._address = pixels.__array_interface__["data"][0]

    def read(self) -> bytes:
        return ctypes.string_at(self._address, WIDTH * HEIGHT * 4)


class Cycle:
    """Something that only the garbage collector can free."""

    def __init__(self, held: object) -> None:
        self.held = held
        self.itself = self


def shared_image(frame: spiceshm.Frame) -> Image.Image:
    """Pillow shares what is in its own order of bytes, and so calls blue red."""
    image = Image.frombuffer("RGBX", (WIDTH, HEIGHT), frame.pixels, "raw", "RGBX", 0, 1)  # type: ignore[arg-type]
    assert image.readonly
    return image


def show(pixels: np.ndarray) -> Iterator[bytes]:
    while True:
        yield pixels.tobytes()


def dlpack(pixels: np.ndarray) -> np.ndarray:
    return np.from_dlpack(pixels)  # as torch.from_dlpack takes it


HOLDERS: dict[str, Callable[[spiceshm.Frame], Any]] = {
    "pixels": lambda frame: frame.pixels,
    "crop": lambda frame: frame.pixels[10:20, 5:50],
    "crop of a crop": lambda frame: frame.pixels[10:20][:, 5:50][2:4],
    "row": lambda frame: frame.pixels[7],
    "strided": lambda frame: frame.pixels[::3, ::5, 2::-1],
    "reshape": lambda frame: frame.pixels.reshape(-1, 4)[100:],
    "transpose": lambda frame: frame.pixels.transpose(2, 0, 1),
    "words": lambda frame: frame.pixels.view(np.uint32),
    "subclass": lambda frame: frame.pixels[:, :, 1].view(np.matrix).T,
    "plain again": lambda frame: frame.pixels[:, :, 1].view(np.matrix).view(np.ndarray),
    "as_strided": lambda frame: np.lib.stride_tricks.as_strided(frame.pixels),
    "windows": lambda frame: np.lib.stride_tricks.sliding_window_view(
        frame.pixels, (8, 8), axis=(0, 1)
    ),
    "broadcast": lambda frame: np.broadcast_to(frame.pixels, (2, *frame.pixels.shape)),
    "flat": lambda frame: frame.pixels.flat,
    "memoryview": lambda frame: memoryview(frame.pixels),
    "memoryview of a crop": lambda frame: memoryview(frame.pixels[3:9]).cast("B")[5:],
    "frombuffer": lambda frame: np.frombuffer(memoryview(frame.pixels), np.uint16),
    "array interface": lambda frame: np.asarray(Interface(frame.pixels)),
    "pickle buffer": lambda frame: pickle.PickleBuffer(frame.pixels),
    "buffer in C": lambda frame: Foreign(frame.pixels),
    "Pillow": shared_image,
    "Pillow's fromarray": lambda frame: Image.fromarray(frame.pixels),
    "copied frame": copy.copy,
    "closure": lambda frame: lambda pixels=frame.pixels: pixels.tobytes(),
    "generator": lambda frame: show(frame.pixels),
    "cycle": lambda frame: Cycle(frame.pixels[4:]),
}
if NUMPY >= "2.1.0":  # before, what cannot be written could not be exchanged
    HOLDERS["DLPack"] = lambda frame: dlpack(frame.pixels)
    HOLDERS["DLPack capsule"] = lambda frame: Capsule(frame.pixels)

COPIES: dict[str, Callable[[spiceshm.Frame], Any]] = {
    "copy": lambda frame: frame.copy(),
    "copy.copy": lambda frame: copy.copy(frame.pixels),
    "copy.deepcopy": lambda frame: copy.deepcopy(frame.pixels[5:]),
    "pickle": lambda frame: pickle.loads(pickle.dumps(frame.pixels)),
    "pickled frame": lambda frame: pickle.loads(pickle.dumps(frame)),
    "bytes": lambda frame: bytes(frame.pixels),
    "picked": lambda frame: frame.pixels[[1, 3, 5]],
    "one value": lambda frame: frame.pixels[3, 4, 1],
    "contiguous": lambda frame: np.ascontiguousarray(frame.pixels[:, 3:9]),
    "Pillow in RGB": lambda frame: Image.frombuffer(
        "RGB",
        (WIDTH, HEIGHT),
        frame.pixels,  # type: ignore[arg-type]
        "raw",
        "BGRX",
        0,
        1,
    ),
    "Pillow in RGBX": lambda frame: Image.frombuffer(
        "RGBX",
        (WIDTH, HEIGHT),
        frame.pixels,  # type: ignore[arg-type]
        "raw",
        "BGRX",
        0,
        1,
    ),
}


def look(holder: Any) -> bytes:
    """The bytes that a holder shows."""
    if isinstance(holder, spiceshm.Frame):
        return holder.pixels.tobytes()
    if isinstance(holder, np.flatiter):
        return holder[:].tobytes()  # type: ignore[no-any-return]
    if isinstance(holder, Cycle):
        return look(holder.held)
    if isinstance(holder, (Foreign, Capsule)):
        return holder.read()
    if isinstance(holder, Generator):
        return next(holder)
    if callable(holder):
        return holder()  # type: ignore[no-any-return]
    if isinstance(holder, (bytes, memoryview, pickle.PickleBuffer)):
        return bytes(holder)
    return holder.tobytes()  # type: ignore[no-any-return]


def truth(make: Callable[[spiceshm.Frame], Any], serial: int) -> bytes:
    """What a holder of the frame ``serial`` has to show: it is made of a frame of our own."""
    pixels = picture(serial - 1)
    pixels.flags.writeable = False
    rects = np.array([[0, 0, HEIGHT, WIDTH]], "<i4")
    return look(make(spiceshm.Frame(pixels, rects, serial=serial, published=0, full=True)))


def still(ends: Ends, buffer: Buffer, serial: int) -> bool:
    """Whether the server counts the lease on that frame and has left its buffer alone."""
    return (
        ends.reader.leases.get(serial) is buffer
        and buffer.leases == 1
        and buffer.state in (BufferState.CURRENT, BufferState.RETAINED)
        and buffer.pixels.tobytes() == picture(serial - 1).tobytes()
    )


@pytest.mark.parametrize("way", HOLDERS)
async def test_whoever_holds_pixels_keeps_the_frame(address: str, way: str) -> None:
    make = HOLDERS[way]
    async with both_ends(address) as ends:
        box, serial = await ends.take(make)
        buffer = ends.reader.leases[serial]
        shown = truth(make, serial)
        assert look(box[0]) == shown

        def check() -> None:
            assert still(ends, buffer, serial)
            assert look(box[0]) == shown

        await ends.draw(3 * len(ends.surface.pool.buffers), check)
        await until(lambda: list(ends.reader.leases) == [serial])
        assert ends.held == 1
        # Nothing but this death happens in the client, and it happens on another thread.
        box.clear()
        gc.collect()
        await until(lambda: not ends.reader.leases)
        assert (buffer.leases, buffer.state) == (0, BufferState.FREE)
        assert ends.held == 0
        await ends.draw(2)


@pytest.mark.parametrize("way", COPIES)
async def test_a_copy_keeps_nothing(address: str, way: str) -> None:
    make = COPIES[way]
    async with both_ends(address) as ends:
        box, serial = await ends.take(make)
        await until(lambda: not ends.reader.leases)
        await ends.draw(3 * len(ends.surface.pool.buffers))
        assert look(box[0]) == truth(make, serial)


async def test_dlpack_gives_no_right_to_write(address: str) -> None:
    """Before 2.1 numpy had no way to say so, and refused."""
    async with both_ends(address) as ends:

        def exchange(frame: spiceshm.Frame) -> None:
            if NUMPY < "2.1.0":
                with pytest.raises(BufferError, match="readonly"):
                    dlpack(frame.pixels)
            else:
                assert not dlpack(frame.pixels).flags.writeable

        await ends.take(exchange)
        await until(lambda: not ends.reader.leases)


async def test_an_image_of_pillow_that_is_drawn_on_becomes_a_copy(address: str) -> None:
    async with both_ends(address) as ends:
        box, serial = await ends.take(shared_image)
        buffer = ends.reader.leases[serial]
        await ends.draw(5)
        assert still(ends, buffer, serial)
        box[0].putpixel((3, 4), (1, 2, 3, 4))
        await until(lambda: not ends.reader.leases)
        await ends.draw(5)
        expected = picture(serial - 1)
        expected[4, 3] = 1, 2, 3, 4
        assert look(box[0]) == expected.tobytes()


async def test_the_last_of_several_holders_counts(address: str) -> None:
    async with both_ends(address) as ends:
        box, serial = await ends.take(
            lambda frame: [make(frame) for way, make in HOLDERS.items() if way != "cycle"]
        )
        [holders] = box
        box.clear()
        buffer = ends.reader.leases[serial]
        while holders:
            await ends.draw(1)
            assert still(ends, buffer, serial)
            holders.pop(len(holders) // 2)
        await until(lambda: not ends.reader.leases)


# Ways to die


def by_itself(box: list[Any]) -> None:
    box.clear()


def on_a_thread(box: list[Any]) -> None:
    """A thread holds it to its end."""
    held = SimpleQueue[Any]()
    held.put(box.pop())
    thread = threading.Thread(target=held.get)
    thread.start()
    thread.join()


def in_a_cycle(box: list[Any]) -> None:
    """Collected on yet another thread."""
    gc.disable()
    try:
        box[0] = Cycle(box[0])
        box.clear()
        thread = threading.Thread(target=gc.collect)
        thread.start()
        thread.join()
    finally:
        gc.enable()


def in_an_exception(box: list[Any]) -> None:
    """Held by the traceback of an error that somebody kept."""

    def fail(pixels: Any) -> None:
        raise KeyError("mine")

    try:
        fail(box.pop())
    except KeyError as error:
        box.append(error)
    box.clear()


@pytest.mark.parametrize("way", ["crop", "memoryview", "buffer in C", "array interface"])
@pytest.mark.parametrize("death", [by_itself, on_a_thread, in_a_cycle, in_an_exception])
@pytest.mark.parametrize("where", ["in its loop", "elsewhere"])
async def test_a_death_wakes_the_loop(
    address: str, where: str, death: Callable[[list[Any]], None], way: str
) -> None:
    async with both_ends(address, credits=1) as ends:
        box, serial = await ends.take(HOLDERS[way])
        buffer = ends.reader.leases[serial]
        for _ in range(9):
            ends.surface.draw(picture(ends.surface.serial))
            assert still(ends, buffer, serial)
        if where == "elsewhere":
            await trio.to_thread.run_sync(death, box)
        else:

            async def die() -> None:
                death(box)

            await ends.looker.do(die)
        # Its one credit is free, so it is sent the newest frame at once.
        newest = ends.surface.serial
        await until(lambda: list(ends.reader.leases) == [newest])
        await ends.looker.see(newest)


class Phoenix(Cycle):
    """Puts itself back to life when it is collected."""

    risen: list[Phoenix]

    def __del__(self) -> None:
        self.risen.append(self)


@pytest.mark.parametrize("way", ["crop", "memoryview", "array interface", "Pillow"])
async def test_what_comes_back_from_the_dead_has_its_pixels(address: str, way: str) -> None:
    """A weak reference to what the collector handles would have told of a death that is none."""
    async with both_ends(address) as ends:
        Phoenix.risen = []
        box, serial = await ends.take(lambda frame: Phoenix(HOLDERS[way](frame)))
        buffer = ends.reader.leases[serial]
        box.clear()
        await trio.to_thread.run_sync(gc.collect)
        [phoenix] = Phoenix.risen
        await ends.draw(12)
        assert still(ends, buffer, serial)
        assert look(phoenix.held) == truth(HOLDERS[way], serial)
        del phoenix
        Phoenix.risen.clear()
        gc.collect()
        await until(lambda: not ends.reader.leases)


async def test_many_threads_drop_what_a_loop_takes(address: str) -> None:
    """Every frame is handed to one of several threads, which looks at it and drops it, while the
    loop is at the next; none is torn, none stays lent."""
    work = SimpleQueue[Any]()
    wrong: list[object] = []

    def labour() -> None:
        while (job := work.get()) is not None:
            serial, pixels = job
            before = pixels.tobytes()
            time.sleep(0)  # let somebody else run
            if not before == pixels.tobytes() == picture(serial - 1).tobytes():
                wrong.append(serial)
            del job, pixels

    threads = [threading.Thread(target=labour) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        async with both_ends(address, credits=8) as ends:

            async def look_at(last: int) -> None:
                async for frame in ends.looker.frames:
                    work.put((frame.serial, frame.pixels[:]))
                    if frame.serial == last:
                        frame.release()
                        return

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ends.looker.do, look_at, 400)
                while ends.surface.serial < 400:
                    ends.surface.draw(picture(ends.surface.serial))
                    await trio.lowlevel.checkpoint()
            await until(lambda: not ends.reader.leases)
            assert ends.held == 0
    finally:
        for _ in threads:
            work.put(None)
        for thread in threads:
            thread.join()
    assert not wrong


# Releasing


async def test_releasing_twice_ends_one_lease(address: str) -> None:
    async with both_ends(address) as ends:

        async def look_and_release() -> None:
            frame = await anext(ends.looker.frames)
            own = frame.copy()
            assert own.flags.writeable
            assert repr(frame) == f"<Frame {frame.serial} {WIDTH}x{HEIGHT} rects=1>"
            frame.release()
            frame.release()
            for use in ("pixels", "width", "height"):
                with pytest.raises(ValueError, match=r"was released; take frame\.copy\(\)"):
                    getattr(frame, use)
            with pytest.raises(ValueError, match="was released"):
                frame.copy()
            assert repr(frame) == f"<Frame {frame.serial} released>"
            assert frame.rects.tolist() == [[0, 0, HEIGHT, WIDTH]]  # what is no pixel stays

        for _ in range(5):
            await ends.looker.do(look_and_release)
            await until(lambda: not ends.reader.leases)
            ends.surface.draw(picture(ends.surface.serial))


async def test_the_next_step_releases(address: str) -> None:
    async with both_ends(address, credits=1) as ends:
        await ends.looker.see(1)
        ends.surface.draw(picture(1))

        async def take() -> spiceshm.Frame:
            return await anext(ends.looker.frames)  # type: ignore[no-any-return]

        old = await ends.looker.do(take)
        ends.surface.draw(picture(2))
        new = await ends.looker.do(take)
        with pytest.raises(ValueError, match="was released"):
            _ = old.pixels
        assert list(ends.reader.leases) == [new.serial]


async def test_held_views_are_an_error_not_a_hang(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_display, "HELD_WARNING_S", 0.1)
    monkeypatch.setattr(client_display, "HELD_LIMIT_S", 0.4)
    async with both_ends(address) as ends:
        box, first = await ends.take(HOLDERS["crop"])
        ends.surface.draw(picture(1))
        more, second = await ends.take(HOLDERS["memoryview"])
        ends.surface.draw(picture(2))
        with pytest.raises(spiceshm.FramesHeld) as caught:
            await ends.looker.do(anext, ends.looker.frames)
        told = r"unix:\S+: views of 2 frames are still held, the oldest for (\d+\.\d) s, so no new "
        texts = [record.getMessage() for record in caplog.records if "held" in record.getMessage()]
        [warned, said] = [re.match(told, text) for text in (*texts, str(caught.value))]
        assert warned
        assert said
        assert 0.1 <= float(warned[1]) <= float(said[1])
        assert float(said[1]) >= 0.4
        assert set(ends.reader.leases) == {first, second}
        # It is an error of this step only: whoever lets go can go on.
        more.clear()
        await ends.looker.see(3)
        assert look(box[0]) == truth(HOLDERS["crop"], first)


async def test_who_lets_go_after_the_warning_gets_the_newest(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_display, "HELD_WARNING_S", 0.01)
    monkeypatch.setattr(client_display, "HELD_LIMIT_S", 2 * DEADLINE)
    async with both_ends(address, credits=1) as ends:
        box, _ = await ends.take(HOLDERS["crop"])
        for step in range(1, 9):
            ends.surface.draw(picture(step))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.looker.see, ends.surface.serial)
            await until(lambda: "views of 1 frames are still held" in caplog.text)
            box.clear()


@pytest.mark.parametrize("warning", [0.05, 0.001])
async def test_who_let_go_in_time_may_wait_for_as_long_as_nothing_is_drawn(
    address: str, monkeypatch: pytest.MonkeyPatch, warning: float
) -> None:
    monkeypatch.setattr(client_display, "HELD_WARNING_S", warning)
    monkeypatch.setattr(client_display, "HELD_LIMIT_S", 0.1)
    async with both_ends(address, credits=1) as ends:
        box, first = await ends.take(HOLDERS["crop"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.looker.see, first + 1)
            await trio.sleep(0.02)
            box.clear()
            await until(lambda: not ends.reader.leases)
            await trio.sleep(0.2)
            ends.surface.draw(picture(1))


async def test_a_variable_that_names_a_view_does_not_stop_the_loop(address: str) -> None:
    async with both_ends(address) as ends:
        seen = trio.Event()

        async def loop() -> int:
            steps = 0
            async for frame in ends.looker.frames:
                crop = frame.pixels[:10]
                assert crop.tobytes() == picture(frame.serial - 1)[:10].tobytes()
                steps += 1
                if steps == 20:
                    frame.release()
                    break
            return steps

        async def draw() -> None:
            while True:
                await ends.surface.wanted()
                ends.surface.draw(picture(ends.surface.serial))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(draw)
            assert await ends.looker.do(loop) == 20
            seen.set()
            nursery.cancel_scope.cancel()


async def test_more_credits_hold_more_frames(address: str) -> None:
    """Seven frames kept while others come and go: the pool has grown for it."""
    async with both_ends(address, credits=8) as ends:
        kept = []
        for _ in range(7):
            kept.append(await ends.take(HOLDERS["crop"]))
            ends.surface.draw(picture(ends.surface.serial))
        await ends.draw(20)
        for box, serial in kept:
            assert look(box[0]) == truth(HOLDERS["crop"], serial)
        await until(lambda: {serial for _, serial in kept} == set(ends.reader.leases))
        await until(lambda: len(ends.surface.pool.buffers) == 10)
        kept.clear()
        del box
        await until(lambda: not ends.reader.leases)


# When everything else is over


async def last(frames: spiceshm.Frames) -> None:
    async for frame in frames:
        frame.release()


@pytest.mark.parametrize("way", HOLDERS)
async def test_pixels_outlive_the_connection(address: str, way: str) -> None:
    async with both_ends(address) as ends:
        box, serial = await ends.take(HOLDERS[way])
        ends.surface.draw(picture(serial))
    assert look(box[0]) == truth(HOLDERS[way], serial)
    with pytest.raises(spiceshm.Disconnected):
        await last(ends.looker.frames)
    box.clear()
    gc.collect()


@pytest.mark.parametrize("way", ["crop", "memoryview", "buffer in C", "Pillow"])
async def test_pixels_outlive_a_server_that_is_killed(way: str) -> None:
    with serving("--surface", f"{WIDTH}x{HEIGHT}", "--damage", "full") as server:
        async with spiceshm.connect(server.address, shm="require") as remote:
            frames = remote.frames()
            with trio.fail_after(DEADLINE):
                frame = await anext(frames)
                holder, shown = HOLDERS[way](frame), look(HOLDERS[way](frame))
                await anext(frames)
                server.process.kill()
                with pytest.raises(spiceshm.Disconnected):
                    await last(frames)
            assert look(holder) == shown
        server.wait()
        assert look(holder) == shown
        del holder


ENDINGS = {
    "dropped after the loop": ("trio.run(look)", "kept.clear()"),
    "never dropped": ("trio.run(look)", ""),
    "known to what goes last": ("trio.run(look)", "sys.kept = builtins.kept = kept"),
    "in a cycle": ("trio.run(look)", "kept.append(kept); del kept"),
    "with the loop still at it": (
        "threading.Thread(target=trio.run, args=[look, True], daemon=True).start(); ready.wait()",
        "",
    ),
    "with the loop still at it, and dropped": (
        "threading.Thread(target=trio.run, args=[look, True], daemon=True).start(); ready.wait()",
        "atexit.register(kept.clear)",
    ),
}
LAST = """
import atexit, builtins, sys, threading
import trio, spiceshm
kept, ready = [], threading.Event()

async def look(stay=False):
    async with spiceshm.connect(sys.argv[1], shm="require") as remote:
        frame = await anext(remote.frames())
        kept.append(memoryview(frame.pixels[3:9]))
        kept.append(frame.pixels[::2])
        kept.append(frame)
        ready.set()
        if stay:
            await trio.sleep_forever()

{}
assert len(bytes(kept[0])) == 6 * 64 * 4
{}
print("end")
"""


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_program_ends_without_a_word(ending: str) -> None:
    with serving("--surface", f"{WIDTH}x{HEIGHT}") as server:
        with script(LAST.format(*ENDINGS[ending]), server.address) as program:
            assert program.rest() == "end\n"
            assert (program.wait(), program.errors) == (0, "")


async def test_a_lease_that_ends_too_early_is_noticed(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These tests can fail: here a lease ends with an array that is not the one handed out."""

    def watch(pixels: np.ndarray, *args: Any) -> Lease:
        return Lease(pixels.view(), *args)

    monkeypatch.setattr(client_display, "Lease", watch)
    async with both_ends(address) as ends:
        box, serial = await ends.take(HOLDERS["crop"])
        await until(lambda: not ends.reader.leases)
        await ends.draw(3 * len(ends.surface.pool.buffers))
        assert look(box[0]) != truth(HOLDERS["crop"], serial)
