"""Any bytes give messages or RemoteProtocolError, within a second and 64 MiB, and leave no
descriptor open (LinkRefused too, in the client's link phase).

That sentence is held against every parser in both roles with random bytes, with valid streams that
were mutated, with random messages in random order, and with everything that coverage-guided fuzzing
(tools/fuzz) has found before. ``SPICESHM_FUZZ_SCALE=10`` tries ten times as much.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import time
import tracemalloc
from collections import Counter
from functools import cache
from random import Random
from typing import TYPE_CHECKING
from unittest import mock

import lz4.block
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from spiceshm.codecs import glz, jit, lz, quic, tokens
from spiceshm.errors import RemoteProtocolError
from spiceshm.wire import MESSAGES, Message, Sender, display, shm, types
from tests import pair
from tests.fuzz import streams, targets
from tests.fuzz.targets import FINDS, TARGETS, Input

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCALE = float(os.environ.get("SPICESHM_FUZZ_SCALE", "1"))
SECONDS = 1.0
BYTES = 64 << 20


def some(examples: int) -> settings:
    return settings(
        max_examples=max(1, int(examples * SCALE)),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def hold(target: str, raw: bytes) -> str:
    """Run one input within the limits of the invariant; `targets.run` has the rest of it."""
    tracemalloc.start()
    try:
        start = time.process_time()
        outcome = targets.run(target, raw)
        took = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert took < SECONDS
    assert peak < BYTES
    return outcome


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """What is made once a process, made before anything is counted."""
    if jit.AVAILABLE:
        jit.prepare()
        quic.prepare()
    for target in TARGETS:
        for situation in range(256):
            targets.run(target, bytes([situation]))


# Known inputs


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_found_before(target: str) -> None:
    for path in targets.files(FINDS / target):
        hold(target, path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_seeds(target: str) -> None:
    """They reach both ends of the invariant, or they would be no place to start from."""
    outcomes = Counter(targets.run(target, raw) for raw in seeds(target))
    assert outcomes["messages"] > 5
    assert outcomes["breach"] > 5


@cache
def seeds(target: str) -> list[bytes]:
    return list(targets.seeds(target))


def test_the_conversation_among_the_seeds_is_understood_to_its_end() -> None:
    """Descriptor, mapping, frame, and pixels drawn: the fuzzers begin where the road is open."""
    conversation = targets.Input(1, 47, 0xF0, targets.conversation())
    assert hold("display-client", conversation.encode()) == "messages"
    cut = conversation._replace(data=conversation.data + pair.framed(pair.damage(99)))
    assert hold("display-client", cut.encode()) == "breach"


# Random inputs


@pytest.mark.parametrize("target", TARGETS)
def test_random_bytes(target: str) -> None:
    @given(raw=st.binary(max_size=400))
    @some(150)
    def run(raw: bytes) -> None:
        hold(target, raw)

    run()


@st.composite
def mutated(draw: st.DrawFn, target: str) -> bytes:
    """A seed with some of its bytes changed, cut out, doubled or put elsewhere."""
    raw = bytearray(draw(st.sampled_from(seeds(target))))
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(raw))] * 2)))
        end = min(end, start + 64)
        how = draw(st.sampled_from(["byte", "number", "cut", "double", "join"]))
        if how == "byte":
            raw[start : start + 1] = draw(st.binary(min_size=1, max_size=1))
        elif how == "number":
            value = draw(st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x10000]))
            raw[start : start + 4] = struct.pack("<I", value)
        elif how == "cut":
            del raw[start:end]
        elif how == "double":
            raw[start:start] = raw[start:end]
        else:
            raw += draw(st.sampled_from(seeds(target)))[3:]
    return bytes(raw)


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_streams(target: str) -> None:
    @given(raw=mutated(target))
    @some(300)
    def run(raw: bytes) -> None:
        hold(target, raw)

    run()


EXAMPLES = pair.examples()
FITTING = [
    pair.offer_of(9),
    pair.offer_of(10, handle=shm.HANDLE_FILE),
    pair.create_shm(),
    pair.create(),
    pair.create(4),
    pair.damage(6),
    pair.damage(7, (1, 1, 2, 2), (3, 3, 4, 4), offset=256),
    pair.draw(),
    display.SurfaceDestroy(0),
    shm.ShmWithdraw(1),
    shm.ShmReply(2, 1, 0, 1, 0, pair.TOKEN),
    shm.ShmReply(2, 0, 1, 0, 0, b""),
    shm.ShmDamageHandled(0, 5),
]
"""Messages whose numbers make sense where `pair.at` leaves a display channel."""


@st.composite
def conversations(draw: st.DrawFn, sender: Sender, channels: tuple[str, ...]) -> bytes:
    """Messages of the right channel in random order: good, with other bodies, or none at all."""
    kinds = [k for k in MESSAGES.values() if k.channel in channels and k.sender is sender]
    examples = [message for kind in kinds for message in EXAMPLES[kind]]
    examples += [message for message in FITTING if type(message) in kinds] * 4
    mini = draw(st.integers(0, 3)) > 0
    data = b""
    for _ in range(draw(st.integers(1, 8))):
        message = draw(st.sampled_from(examples))
        number, body = message.number, bytearray(message.packed)
        how = draw(st.sampled_from(["good", "good", "good", "changed", "random", "size"]))
        if how == "changed" and body:
            for _ in range(draw(st.integers(1, 3))):
                body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
        elif how == "random":
            number = draw(st.integers(0, 500))
            body = bytearray(draw(st.binary(max_size=60)))
        size = len(body) + (draw(st.integers(-8, 8)) if how == "size" else 0)
        head = struct.pack("<HI", number, max(size, 0))
        data += head if mini else struct.pack("<QHII", 1, number, max(size, 0), 0)
        data += body
        if number == shm.ShmOffer.number and draw(st.integers(0, 9)):
            data += b"@"
    situation = draw(st.integers(0, 255))
    step = draw(st.sampled_from([0, 0, 1, 6, 47, 255]))
    gifts = draw(st.sampled_from([0, 0, 0x10, 0xF0, 0x30, 0x11, 0x12, 0x13, 0x14, 0x1C]))
    return Input(situation, step, gifts, data).encode()


@pytest.mark.parametrize(
    ("target", "sender", "channels"),
    [
        ("display-client", Sender.SERVER, ("display", "base")),
        ("display-server", Sender.CLIENT, ("display", "base")),
        ("channels", Sender.SERVER, ("main", "cursor", "inputs", "base")),
        ("channels", Sender.CLIENT, ("main", "inputs", "base")),
    ],
)
def test_random_messages(target: str, sender: Sender, channels: tuple[str, ...]) -> None:
    @given(raw=conversations(sender, channels))
    @some(400)
    def run(raw: bytes) -> None:
        hold(target, raw)

    run()


# What real servers drew, changed


@contextlib.contextmanager
def little_memory(painter: targets.Painter) -> Iterator[None]:
    """Beside its surfaces, which tracemalloc does not see: 64 MiB, or 16 bytes for each pixel of
    the largest one."""
    tracemalloc.start()
    allowed = painter.allowed
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < max(allowed, painter.allowed)


def paint(seed: int) -> Counter[str]:
    """Draw what a seed makes of recordings; what came of it. Memory is counted for every fourth,
    for then time counts for nothing."""
    random = Random(seed)
    painter = targets.Painter(random.choice([0, 0, 0, 1, 2, 3]))
    messages = streams.stream(random)
    loops = random.choice([jit, tokens] if jit.AVAILABLE else [tokens])
    watched = little_memory(painter) if seed % 4 == 0 else contextlib.nullcontext()
    outcomes: Counter[str] = Counter()
    with (
        watched,
        mock.patch.object(lz, "read", loops.lz),
        mock.patch.object(glz, "read", loops.glz),
    ):
        for data in messages:
            start = time.process_time()
            try:
                painter.hear(data)
            except RemoteProtocolError:
                outcomes["breach"] += 1
                break
            finally:
                assert seed % 4 == 0 or time.process_time() - start < SECONDS
    outcomes["drawn"] += any(surface.words.any() for surface in painter.canvas.surfaces.values())
    outcomes["stale"] += any(surface.stale for surface in painter.canvas.surfaces.values())
    return outcomes


def test_recorded_drawing_that_was_changed() -> None:
    """Whatever a server sends ends in an error, or in pictures and stale regions, within 64 MiB
    beside the surfaces and a second for each message.

    A long run of it is SPICESHM_FUZZ_SCALE=100; each has other seeds than those before it.
    """
    many = int(300 * SCALE)
    outcomes: Counter[str] = Counter()
    for seed in range(int(many * (SCALE - 1) / 2), int(many * (SCALE - 1) / 2) + many):
        try:
            outcomes += paint(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    assert min(outcomes[what] for what in ("breach", "drawn", "stale")) > many / 20


# What is large or long


@pytest.mark.parametrize(
    ("channel", "sender", "number"), sorted(((c, s, n) for c, s, n in MESSAGES), key=str)
)
def test_the_largest_body_of_every_kind(channel: str, sender: Sender, number: int) -> None:
    """Zeros, ones, and counts as high as they go: as many bytes as 64 KiB hold."""
    kind = MESSAGES[channel, sender, number]
    at = targets.KINDS.index(kind)
    size = 1 << 16
    for body in (bytes(size), b"\xff" * size, b"\1\0\0\0" * (size // 4)):
        hold("bodies", Input(at, 0, 0, body).encode())


LARGE = 2048
"""Pixels each way of the largest image for a surface of a few: see client/canvas.py."""


def large_image(format_: int, stride: int, flags: int = 0, height: int = LARGE) -> display.Image:
    raw = display.Bitmap(format_, 0, LARGE, height, stride, bytes(stride * height))
    return display.Image(1, 0, flags, LARGE, height, raw)


def large_copy(image: display.Image) -> Message:
    one, all_ = types.Rect(0, 0, 1, 1), types.Rect(0, 0, LARGE, LARGE)
    return display.DrawCopy(0, one, None, all_, 8, 0, display.NO_MASK, image)


def large_rop3() -> Message:
    one, area = types.Rect(0, 0, 1, 1), types.Rect(0, 0, LARGE // 3, LARGE)
    image, origin = large_image(8, 4 * LARGE, height=LARGE // 3), types.Point(0, 0)
    mask = display.QMask(1, origin, large_image(1, LARGE // 8))
    brush = display.Brush(2, None, display.Pattern(image, origin))
    return display.DrawRop3(0, one, None, area, brush, 0x69, 0, mask, image)


def large_lz4() -> Message:
    block = lz4.block.compress(np.random.default_rng(1).bytes(LARGE * LARGE), store_size=False)
    blocks = b"\1\x09" + 4 * (struct.pack(">I", len(block)) + block)
    packed = display.ImageData(blocks)
    return large_copy(display.Image(1, types.ImageType.LZ4, 0, LARGE, LARGE, packed))


def large_jpeg() -> Message:
    out = io.BytesIO()
    Image.effect_noise((LARGE, LARGE), 100).convert("RGB").save(out, "JPEG")
    packed = display.ImageData(out.getvalue())
    return large_copy(display.Image(1, types.ImageType.JPEG, 0, LARGE, LARGE, packed))


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(lambda: large_copy(large_image(8, 4 * LARGE, 2)), id="upside down"),
        pytest.param(lambda: large_copy(large_image(7, 3 * LARGE)), id="24 bits"),
        pytest.param(lambda: large_copy(large_image(6, 4 * LARGE)), id="16 bits and a gap"),
        pytest.param(large_rop3, id="three at once"),
        pytest.param(large_lz4, id="lz4"),
        pytest.param(large_jpeg, id="jpeg"),
    ],
)
def test_the_largest_images(message: Callable[[], Message]) -> None:
    """All that they take from the first byte on."""
    data = pair.framed(message())
    painter = targets.Painter()
    painter.hear(pair.framed(pair.create()))
    start = time.process_time()
    with little_memory(painter):
        for at in range(0, len(data), 1 << 18):
            painter.hear(data[at : at + (1 << 18)])
    assert time.process_time() - start < SECONDS
    assert painter.canvas.counts
    assert not painter.canvas.surfaces[0].stale


def test_a_read_full_of_the_smallest_messages() -> None:
    """As many as 64 KiB can hold; whoever takes long over them stalls everybody else."""
    for target, situation, message in (
        ("channels", 7, struct.pack("<HI", 2, 0)),  # ACK
        ("display-client", 1, struct.pack("<HI", 999, 0)),
        ("display-client", 1, pair.framed(display.Mark())),
        ("display-server", 1, struct.pack("<HI", 2, 0)),
    ):
        many = message * ((1 << 16) // len(message))
        targets.run(target, Input(situation, 0, 0, many).encode())
        start = time.process_time()
        assert targets.run(target, Input(situation, 0, 0, many).encode()) == "messages"
        assert time.process_time() - start < SECONDS


def test_clips_and_channels_without_number() -> None:
    rects = np.zeros((65536, 4), "<i4").tobytes()
    clipped = struct.pack("<I4iBI", 0, 0, 0, 1, 1, 1, 65536) + rects
    with pytest.raises(RemoteProtocolError):
        display.DrawCopy.parse(clipped)
    channels = struct.pack("<I", 2046) + b"\2\0" * 2046
    assert hold("channels", Input(2, 0, 0, struct.pack("<HI", 104, 4096) + channels).encode())
