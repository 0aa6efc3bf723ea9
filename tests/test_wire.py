"""The messages: what is written is what is read, and any bytes are a message or one clear error.

The strategies are derived from the declarations, so a new message is under test as soon as it is
declared. The quick codec is held against construct, byte for byte and error for error.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import struct
import tracemalloc
from typing import TYPE_CHECKING, Any

import construct
import numpy as np
import pytest
from construct import Int16ul, Int32ul, Struct
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spiceshm.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from spiceshm.wire import (
    MESSAGES,
    Message,
    Record,
    Sender,
    agent,
    cursor,
    display,
    hot,
    inputs,
    link,
    lookup,
    main,
    shm,
    types,
)
from spiceshm.wire import base as base_messages
from spiceshm.wire.base import MiniHeader
from spiceshm.wire.cursor import FLAG_NONE, Cursor, CursorHeader
from spiceshm.wire.display import NO_MASK, ROP_PUT, Bitmap, Brush, DrawCopy, Image, ImageData
from spiceshm.wire.link import LinkMess, LinkReply
from spiceshm.wire.message import As, Pointed, message, record
from spiceshm.wire.shm import ShmDamage, ShmDamageHandled
from spiceshm.wire.types import Clip, Held, Limited, Rect, Rects, Tuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hypothesis.strategies import DataObject, SearchStrategy

MODULES = (base_messages, main, agent, display, shm, inputs, cursor, link, types)
KINDS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": kind
    for module in MODULES
    for name, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, Record) and kind.__module__ == module.__name__ and kind.title
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def examples(most: int) -> settings:
    """How many examples are drawn; nobody's clock matters."""
    return settings(max_examples=most, deadline=None, suppress_health_check=[HealthCheck.too_slow])


MOST = 70
"""More elements than this are drawn nowhere."""


# strategies, by what a layout says


def messages_of(kind: type[Record]) -> SearchStrategy[Any]:
    special = {
        Bitmap: bitmaps,
        Image: images,
        Brush: brushes,
        display.LzPalette: lz_palettes,
        display.JpegAlpha: jpeg_alphas,
        Cursor: cursors,
        agent.MonitorsConfig: monitors_configs,
    }
    return special[kind]() if kind in special else plain(kind)


@functools.cache
def plain(kind: type[Record]) -> SearchStrategy[Any]:
    """Any value in each field, one independent of the other."""
    layout = layout_of(kind)
    return st.builds(
        kind,
        **{name: values_of(layout[name], layout) for name in names_of(kind)},
    )


def names_of(kind: type[Record]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def layout_of(kind: type[Record]) -> dict[str, Any]:
    return {subcon.name: subcon.subcon for subcon in kind.layout.subcons if subcon.name}


def values_of(subcon: Any, layout: dict[str, Any]) -> SearchStrategy[Any]:
    match subcon:
        case construct.FormatField():
            bits = 8 * subcon.sizeof()
            low = -(1 << bits - 1) if subcon.fmtstr[-1].islower() else 0
            return st.integers(low, low + (1 << bits) - 1)
        case Limited():
            low, high, others = limits_of(subcon)
            return st.sampled_from(others) if others else st.integers(low, high)
        case Held() | construct.Rebuild() | construct.Renamed():
            return values_of(subcon.subcon, layout)
        case As():
            return messages_of(subcon.kind)
        case Rects():
            return rects(*counts(subcon.subcon.length.lhs, layout))
        case Pointed():
            pointed = messages_of(subcon.kind)
            return st.none() | pointed if subcon.optional else pointed
        case Clip():
            return st.none() | rects(0, 5)
        case Tuple(subcon=construct.GreedyRange()):
            return st.lists(values_of(subcon.subcon.subcon, layout), max_size=MOST).map(tuple)
        case Tuple():
            few, many = counts(subcon.subcon.count, layout)
            element = values_of(subcon.subcon.subcon, layout)
            return st.lists(element, min_size=few, max_size=many).map(tuple)
        case construct.Bytes() if isinstance(subcon.length, int):
            return st.binary(min_size=subcon.length, max_size=subcon.length)
        case construct.Bytes():
            return st.binary(max_size=counts(subcon.length, layout)[1])
        case construct.GreedyBytes:
            return st.binary(max_size=MOST)
    raise TypeError(f"no strategy for {subcon!r}")


def limits_of(subcon: Limited) -> tuple[int, int, list[int]]:
    """What a limited field accepts: a range, or a list."""
    words = subcon._accepts
    if words.startswith("in "):
        low, high = words.removeprefix("in ").split("..")
        return int(low), int(high), []
    return 0, 0, [int(word) for word in words.split(" or ")]


def counts(expression: Any, layout: dict[str, Any]) -> tuple[int, int]:
    """Fewest and most elements, by the field that counts them."""
    counter = layout.get(str(expression).removeprefix("this['").removesuffix("']"))
    while counter is not None and not isinstance(counter, Limited):
        counter = getattr(counter, "subcon", None)
    low, high, _ = limits_of(counter) if counter is not None else (0, MOST, [])
    return low, min(high, MOST)


def rects(few: int, many: int) -> SearchStrategy[Any]:
    """An array of rectangles, of any numbers at all."""
    sized = st.integers(few, many).map(lambda n: 16 * n)
    data = sized.flatmap(lambda size: st.binary(min_size=size, max_size=size))
    return data.map(lambda b: np.frombuffer(b, "<i4").reshape(-1, 4))


@st.composite
def bitmaps(draw: Any) -> Bitmap:
    x, y = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    stride = x * 4 + draw(st.integers(0, 5))
    data = draw(st.binary(min_size=stride * y, max_size=stride * y))
    flags, palette, number = draw(palettes(optional=True))
    return Bitmap(draw(st.integers(0, 255)), flags, x, y, stride, data, palette, number)


@st.composite
def palettes(draw: Any, *, optional: bool = False) -> tuple[int, Any, int | None]:
    """A bitmap's flags, and by them its palette or the id of one."""
    flags = draw(st.integers(0, 255))
    if flags & display.BITMAP_PAL_FROM_CACHE:
        return flags, None, draw(st.integers(0, (1 << 64) - 1))
    none = optional and draw(st.booleans())
    return flags, None if none else draw(messages_of(display.Palette)), None


@st.composite
def lz_palettes(draw: Any) -> display.LzPalette:
    flags, palette, number = draw(palettes())
    return display.LzPalette(flags, draw(st.binary(max_size=MOST)), palette, number)


@st.composite
def jpeg_alphas(draw: Any) -> display.JpegAlpha:
    data = draw(st.binary(max_size=MOST))
    return display.JpegAlpha(draw(st.integers(0, 255)), draw(st.integers(0, len(data))), data)


@st.composite
def brushes(draw: Any) -> Brush:
    kind = draw(st.integers(0, 2))
    if kind == display.BRUSH_PATTERN:
        return Brush(kind, None, draw(messages_of(display.Pattern)))
    return Brush(kind, draw(st.integers(0, (1 << 32) - 1)) if kind else None)


@st.composite
def images(draw: Any) -> Image:
    identity, flags = draw(st.integers(0, (1 << 64) - 1)), draw(st.integers(0, 255))
    width, height = draw(st.integers(0, (1 << 32) - 1)), draw(st.integers(0, (1 << 32) - 1))
    kind = draw(st.integers(0, 255) | st.sampled_from([int(kind) for kind in types.ImageType]))
    cases = Image.layout.content.cases
    content = draw(messages_of(cases[kind].kind)) if kind in cases else None
    return Image(identity, kind, flags, width, height, content)


@st.composite
def cursors(draw: Any) -> Cursor:
    flags = draw(st.integers(0, 0xFFFF))
    if flags & FLAG_NONE:
        return Cursor(flags, None, draw(st.binary(max_size=8)))
    width, height = draw(st.integers(1, 20)), draw(st.integers(1, 4))
    kind, hot_spot = draw(st.integers(0, 255)), draw(st.integers(0, 0xFFFF))
    header = CursorHeader(draw(st.integers(0, 1 << 63)), kind, width, height, hot_spot, 0)
    enough = 5 * width * height + 2 * height
    return Cursor(flags, header, draw(st.binary(min_size=enough, max_size=enough + 9)))


@st.composite
def monitors_configs(draw: Any) -> agent.MonitorsConfig:
    flags, many = draw(st.integers(0, (1 << 32) - 1)), draw(st.integers(0, agent.MAX_MONITORS))
    each = st.lists(messages_of(agent.Monitor), min_size=many, max_size=many)
    sizes = st.lists(messages_of(agent.MonitorSize), min_size=many, max_size=many)
    with_sizes = flags & agent.FLAG_PHYSICAL_SIZE
    return agent.MonitorsConfig(
        flags, tuple(draw(each)), tuple(draw(sizes)) if with_sizes else None
    )


@st.composite
def spoilt(draw: Any, messages: SearchStrategy[Any]) -> bytes:
    """Bytes near one of these messages, or of none."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=100))
    body = bytearray(draw(messages).packed)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(body)))
        what = draw(st.sampled_from(["cut", "set", "huge", "add", "remove"]))
        if what == "cut":
            del body[at:]
        elif what == "set":
            body[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif what == "huge":
            body[at : at + 4] = b"\xff\xff\xff\xff"
        elif what == "add":
            body[at:at] = draw(st.binary(min_size=1, max_size=20))
        else:
            del body[at : at + 4]
    return bytes(body)


# help


def unlike(a: Any, b: Any) -> str:
    """The first field in which two messages differ, whatever their bytes are; "" if none."""
    if type(a) is not type(b):
        return f"{a!r} {b!r}"
    if isinstance(a, Record):
        for name in names_of(type(a)):
            if found := unlike(getattr(a, name), getattr(b, name)):
                return f"{name}: {found}"
        return ""
    if isinstance(a, np.ndarray):
        same = a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())
    elif isinstance(a, tuple):
        same = len(a) == len(b) and not any(map(unlike, a, b))
    else:
        same = a == b
    return "" if same else f"{a!r} {b!r}"


def points(one: Record) -> bool:
    """Whether it has a pointer that leads somewhere: behind that, anything may lie."""
    layout = layout_of(type(one))
    for name in names_of(type(one)):
        value, subcon = getattr(one, name), layout[name]
        subcon = getattr(subcon, "thensubcon", subcon)
        if isinstance(value, Record) and (isinstance(subcon, Pointed) or points(value)):
            return True
    return False


def told(attempt: Callable[[], Any]) -> Any:
    """A result, or what the error says."""
    try:
        return attempt()
    except ProtocolError as error:
        return type(error), error.message, error.field, error.detail


def check_error(error: ProtocolError, kind: type[Record]) -> None:
    """It names the message and a field of it, in one line."""
    assert error.message == kind.title
    assert error.field.partition(".")[0] in {"", *layout_of(kind)}
    assert error.detail
    assert "\n" not in str(error)
    assert str(error).startswith(f"{kind.title}: ")


# there and back


def test_every_message_is_among_the_kinds() -> None:
    assert set(MESSAGES.values()) < set(KINDS.values())


@each_kind
@examples(20)
@given(data=st.data())
def test_what_is_written_is_read(kind: type[Record], data: DataObject) -> None:
    written = data.draw(messages_of(kind))
    read = kind.parse(written.packed)
    assert not unlike(read, written)
    assert read.packed == written.packed
    assert read == written
    assert hash(read) == hash(written)


@each_kind
@examples(30)
@given(data=st.data())
def test_any_bytes_are_a_message_or_one_error(kind: type[Record], data: DataObject) -> None:
    body = data.draw(spoilt(messages_of(kind)))
    try:
        read = kind.parse(body)
    except RemoteProtocolError as error:
        check_error(error, kind)
    else:
        assert type(read) is kind
        # What was read can be written, and then reads the same.
        assert not unlike(kind.parse(read.packed), read)
        if kind.exact and not points(read) and len(read.packed) != len(body):
            assert kind is base_messages.Notify  # its NUL may be missing
            assert read.packed == body + b"\0"


@each_kind
@examples(15)
@given(data=st.data())
def test_a_cut_is_blamed_on_the_field_that_it_is_in(kind: type[Record], data: DataObject) -> None:
    ends = list(ends_of(kind))
    if not ends:
        return
    body = data.draw(messages_of(kind)).packed
    cut = data.draw(st.integers(0, ends[-1][1] - 1))
    with pytest.raises(RemoteProtocolError) as caught:
        kind.parse(body[:cut])
    check_error(caught.value, kind)
    assert caught.value.field.partition(".")[0] == next(name for name, end in ends if cut < end)


def ends_of(kind: type[Record]) -> Iterator[tuple[str, int]]:
    """The fields before the first one of no fixed size, each with the place of its end."""
    end = 0
    for subcon in kind.layout.subcons:
        try:
            end += subcon.sizeof()
        except (construct.SizeofError, LookupError, AttributeError):  # it depends on others
            return
        yield subcon.name, end


TAKES_THE_REST = {
    *(base_messages.Ping, main.AgentData, main.ClientAgentData, inputs.KeyScancode),
    *(Cursor, cursor.CursorInit, cursor.CursorSet),
    *(display.DrawStroke, display.DrawText, display.DrawComposite),
}
"""The last field is as long as the body lets it be."""


@each_kind
@examples(5)
@given(data=st.data())
def test_bytes_behind_the_last_field_are_an_error(kind: type[Record], data: DataObject) -> None:
    one = data.draw(messages_of(kind))
    body = one.packed + b"\1"
    if not kind.exact or kind in TAKES_THE_REST or points(one):
        assert kind.parse(body)
        return
    with pytest.raises(RemoteProtocolError, match="1 bytes too many") as caught:
        kind.parse(body)
    check_error(caught.value, kind)


@each_kind
@examples(3)
@given(data=st.data())
def test_a_number_that_does_not_fit_is_our_own_error(kind: type[Record], data: DataObject) -> None:
    good = data.draw(messages_of(kind))
    for name in names_of(kind):
        if isinstance(getattr(good, name), int):
            bad = dataclasses.replace(good, **{name: 1 << 70})
            with pytest.raises(LocalProtocolError) as caught:
                assert bad.packed
            check_error(caught.value, kind)
            assert caught.value.field == name


# what a message is like

QUICK = {ShmDamage: hot.read_damage, ShmDamageHandled: hot.read_handled}


def with_header(kind: type[Message], body: bytes) -> bytes:
    return hot.MINI.pack(kind.number, len(body)) + body


@each_kind
@examples(2)
@given(data=st.data())
def test_a_message_cannot_be_changed(kind: type[Record], data: DataObject) -> None:
    one = data.draw(messages_of(kind))
    if kind in QUICK:
        one, _ = QUICK[kind](memoryview(with_header(kind, one.packed)), 0)
    for name in [*names_of(kind), "another"]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, name, 0)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(one, name)


@pytest.mark.parametrize("kind", MESSAGES.values(), ids=lambda kind: kind.__name__)
@examples(5)
@given(data=st.data())
def test_a_message_in_words_is_one_line(kind: type[Message], data: DataObject) -> None:
    one = data.draw(messages_of(kind))
    text = str(one)
    assert text.isprintable()
    assert text.split(" ")[0] == kind.title == text.partition(" ")[0]
    assert all(f" {name}=" in text for name in names_of(kind))
    assert len(text) < 100 * (len(names_of(kind)) + 1)


def test_bytes_are_told_by_their_number() -> None:
    assert str(base_messages.Ping(3, 4, b"\n" * 5)) == "base.ping id=3 timestamp=4 data=5B"


def test_messages_of_two_kinds_are_never_equal() -> None:
    assert inputs.KeyDown(1) != inputs.KeyUp(1)
    assert inputs.KeyDown(1) == inputs.KeyDown(1)
    assert inputs.KeyDown(1) != inputs.KeyDown(2)
    assert len({inputs.KeyDown(1), inputs.KeyUp(1), inputs.KeyDown(1)}) == 2


@pytest.mark.parametrize("channel", ["main", "display", "inputs", "cursor"])
def test_messages_of_all_channels_are_found_on_each(channel: str) -> None:
    assert lookup(channel, Sender.SERVER, 4) is base_messages.Ping
    assert lookup(channel, Sender.CLIENT, 3) is base_messages.Pong
    assert lookup(channel, Sender.CLIENT, 4) is None
    assert lookup(channel, Sender.SERVER, 9999) is None


def test_a_number_is_declared_once() -> None:
    class Twice(Message):
        layout = Struct("a" / Int16ul)
        a: int

    before = dict(MESSAGES)
    with pytest.raises(TypeError, match=r"main\.twice.*main\.init"):
        message("main", Sender.SERVER, 103)(Twice)
    assert before == MESSAGES


def test_every_field_is_in_the_layout() -> None:
    class Odd(Record):
        layout = Struct("a" / Int16ul)
        a: int
        b: int

    with pytest.raises(TypeError, match=r"Odd: no \['b'\] in its layout"):
        record(Odd)


# capability words


@pytest.mark.parametrize("words", range(33))
def test_any_number_of_capability_words_up_to_32(words: int) -> None:
    many = tuple(range(1, words + 1))
    for common, channel in ((many, ()), ((), many), (many, many)):
        mess = LinkMess(1, 2, 3, common, channel)
        assert not unlike(LinkMess.parse(mess.packed), mess)
        assert len(mess.packed) == 18 + 4 * (len(common) + len(channel))
        reply = LinkReply(0, bytes(162), common, channel)
        assert not unlike(LinkReply.parse(reply.packed), reply)
        assert len(reply.packed) == 178 + 4 * (len(common) + len(channel))


@pytest.mark.parametrize("which", ["common", "channel"])
@pytest.mark.parametrize("words", [33, 1024])
def test_more_than_32_capability_words_are_refused(which: str, words: int) -> None:
    caps = {"common_caps": (), "channel_caps": (), f"{which}_caps": (0,) * words}
    body = LinkMess(1, 2, 3, (), ()).packed
    at = 6 if which == "common" else 10
    body = body[:at] + words.to_bytes(4, "little") + body[at + 4 :] + bytes(4 * words)
    with pytest.raises(RemoteProtocolError) as theirs:
        LinkMess.parse(body)
    for mine in (LinkMess(1, 2, 3, **caps), LinkReply(0, bytes(162), **caps)):
        with pytest.raises(LocalProtocolError) as ours:
            assert mine.packed
        assert ours.value.field == theirs.value.field == f"num_{which}_caps"
    assert theirs.value.detail == f"{words} is not in 0..32"


@given(st.frozensets(st.integers(0, 32 * 32 - 1)))
def test_capability_bits_and_words(bits: frozenset[int]) -> None:
    words = types.words_from_caps(bits)
    assert types.caps_from_words(words) == bits
    assert types.caps_from_words((*words, 0)) == bits
    assert len(words) == (max(bits) // 32 + 1 if bits else 0)


def test_the_extensions_bit_is_in_the_third_word() -> None:
    words = types.words_from_caps({types.DisplayCap.SHARED_MEMORY})
    assert words == (0, 0, 0x00080000)


# the quick codec


@pytest.mark.parametrize("kind", QUICK)
@examples(300)
@given(data=st.data())
def test_quick_reading_is_construct_s_or_is_left_to_it(
    kind: type[Message], data: DataObject
) -> None:
    body = data.draw(spoilt(messages_of(kind)))
    before, behind = data.draw(st.binary(max_size=9)), data.draw(st.binary(max_size=9))
    whole = with_header(kind, body)
    found = QUICK[kind](memoryview(before + whole + behind), len(before))
    try:
        slow = kind.parse(body)
    except RemoteProtocolError:
        assert found is None
        return
    assert found is not None
    assert not unlike(found[0], slow)
    assert found[1] == len(before) + len(whole)
    for cut in range(len(whole)):
        assert QUICK[kind](memoryview(before + whole[:cut]), len(before)) is None


@pytest.mark.parametrize("kind", QUICK)
def test_quick_reading_reads_nothing_else(kind: type[Message]) -> None:
    body = bytes(16) if kind is ShmDamageHandled else bytes(40) + b"\1" + bytes(23)
    assert QUICK[kind](memoryview(with_header(kind, body)), 0) is not None
    for number in {*range(600)} - {kind.number}:
        assert QUICK[kind](memoryview(hot.MINI.pack(number, len(body)) + body), 0) is None


def usual_copies() -> SearchStrategy[Any]:
    """As servers draw all the time: no mask, no palette, of pixels that are in the message."""
    packed = st.builds(ImageData, st.binary(max_size=MOST))
    raw = bitmaps().map(
        lambda one: dataclasses.replace(one, flags=one.flags & ~2, palette=None, palette_id=None)
    )
    kinds = st.sampled_from(sorted(display.PACKED))
    usual = st.one_of(
        st.builds(dataclasses.replace, images(), type=kinds, content=packed),
        st.builds(dataclasses.replace, images(), type=st.just(0), content=raw),
    )
    return st.builds(dataclasses.replace, plain(DrawCopy), mask=st.just(NO_MASK), image=usual)


@examples(200)
@given(usual_copies())
def test_what_servers_draw_all_the_time_is_read_quickly(copy: DrawCopy) -> None:
    found = hot.read_copy(memoryview(copy.packed))
    assert found is not None
    assert not unlike(found, copy)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.surface_id = 0  # type: ignore[misc]


@examples(400)
@given(st.data())
def test_quick_reading_of_drawing_is_construct_s_or_is_left_to_it(data: DataObject) -> None:
    body = data.draw(spoilt(st.one_of(usual_copies(), messages_of(DrawCopy))))
    found = hot.read_copy(memoryview(body))
    if found is not None:
        assert not unlike(found, DrawCopy.parse(body))


@examples(200)
@given(st.data())
def test_quick_writing_is_construct_s(data: DataObject) -> None:
    side = st.integers(-(1 << 31), (1 << 31) - 1)
    four = data.draw(st.lists(st.tuples(side, side, side, side), min_size=1, max_size=64))
    sizes = (32, 32, 64, 64, 64, 32)
    numbers = [data.draw(st.integers(0, (1 << bits) - 1)) for bits in sizes]
    slow = ShmDamage(*numbers, np.array(four, "<i4")).packed
    assert hot.damage_body(*numbers, four) == slow
    surface, serial = numbers[0], numbers[3]
    assert hot.handled_body(surface, serial) == ShmDamageHandled(surface, serial).packed


@given(st.binary(min_size=6, max_size=6))
def test_quick_header_is_construct_s(data: bytes) -> None:
    header = MiniHeader.parse(data)
    assert hot.MINI.unpack(data) == (header.type, header.size)
    assert hot.MINI.pack(header.type, header.size) == data == header.packed
    assert hot.MINI.size == MiniHeader.layout.sizeof() == 6


def test_what_is_derived_is_the_integers_at_the_head_of_a_layout() -> None:
    assert hot.derive(ShmDamage.layout).format == "<LLQQQLLLL"
    assert hot.derive(ShmDamageHandled.layout).format == "<LLQ"
    assert hot.derive(Struct("a" / Int16ul, "b" / construct.Bytes(2), "c" / Int32ul)).format == "<H"
    assert hot.derive(Struct("a" / construct.Bytes(2), "b" / Int32ul)).size == 0


@given(
    surface=st.integers(0, (1 << 32) - 1),
    place=st.tuples(*[st.integers(0, 1 << 14)] * 2),
    size=st.tuples(*[st.integers(1, 5)] * 2),
    kind=st.sampled_from([0, 101, 109]),
    data=st.data(),
)
@examples(200)
def test_quick_drawing_is_constructs(
    surface: int, place: tuple[int, int], size: tuple[int, int], kind: int, data: DataObject
) -> None:
    (top, left), (height, width) = place, size
    room = height * width * 4
    pixels = data.draw(st.binary(min_size=0 if kind else room, max_size=MOST if kind else room))
    raw = Bitmap(8, 4, width, height, width * 4, pixels)
    copy = DrawCopy(
        surface,
        Rect(top, left, top + height, left + width),
        None,
        Rect(0, 0, height, width),
        ROP_PUT,
        0,
        NO_MASK,
        Image(0, kind, 0, width, height, ImageData(pixels) if kind else raw),
    )
    rect = (top, left, top + height, left + width)
    assert hot.copy_head(surface, rect, kind, len(pixels)) + pixels == copy.packed


def test_a_large_message_in_words_costs_little() -> None:
    """Whoever traces is told how many there are, of bytes too."""
    image = Image(0, 101, 0, 8, 8, ImageData(bytes(8 << 20)))
    rect = Rect(0, 0, 8, 8)
    copy = DrawCopy(0, rect, None, rect, 8, 0, NO_MASK, image)
    list_ = display.InvalList((display.Resource(1, 2),) * 60000)
    tracemalloc.start()
    words, listed = str(copy), str(list_)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "data=8388608" in words
    assert "... 60000 in all" in listed
    assert peak < 1 << 16


# What lies behind pointers


def test_a_large_image_is_copied_once() -> None:
    """A picture takes as much memory again while it is read, and no more."""
    pixels = bytes(16 << 20)
    head = hot.copy_head(0, (0, 0, 2048, 2048), 0, len(pixels))
    body = memoryview(head + pixels)
    tracemalloc.start()
    copy = DrawCopy.parse(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(copy.image.content, Bitmap)
    assert copy.image.content.data == pixels
    assert peak < 17 << 20


def test_pointers_do_not_lead_to_the_same_bytes() -> None:
    """Image, pattern and mask would each have all of them, and a message be larger than it is."""
    image = Image(0, 0, 0, 8, 8, Bitmap(8, 4, 8, 8, 32, bytes(256)))
    brush = Brush(display.BRUSH_PATTERN, None, display.Pattern(image, types.Point(0, 0)))
    rect = Rect(0, 0, 8, 8)
    body = display.DrawOpaque(0, rect, None, rect, brush, 8, 0, NO_MASK, image).packed
    assert display.DrawOpaque.parse(body).image == image
    (second,) = struct.unpack_from("<I", body, 42)
    same = body[:42] + body[21:25] + body[46:]
    assert display.DrawOpaque.parse(same).image == image  # there is nothing else that it could be
    with pytest.raises(
        RemoteProtocolError, match=r"draw_opaque: brush\.pattern\.pat: .* read already"
    ):
        display.DrawOpaque.parse(same[:second])
