"""The written protocol and the declarations in spiceshm.wire say the same, in both directions.

Held against each other: every message of protocol/spiceshm.proto with its channel, sender, number
and name; every struct; in each of them every field's name, place, size, sign and count; the enums;
and the tables of protocol/README.md. The last tests change a copy of the text and show that the
comparison then speaks up.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import construct
import pytest

from spiceshm import wire
from spiceshm.errors import Refusal, RemoteProtocolError
from spiceshm.wire import agent, cursor, display, link, shm, types
from spiceshm.wire.message import As, Message, Pointed, Record
from spiceshm.wire.types import Clip, Held, Limited, Rects, Tuple
from tests.idl import Fields, Idl

PROTOCOL = Path(__file__).parent.parent / "protocol"
TEXT = (PROTOCOL / "spiceshm.proto").read_text()
README = (PROTOCOL / "README.md").read_text()

LINK_SENDERS = {
    "link_header": ("server", "client"),
    "link_mess": ("client",),
    "link_reply": ("server",),
    "auth_mechanism": ("client",),
    "ticket": ("client",),
    "link_result": ("server",),
}
"""The link phase's records have neither number nor sender in the code."""

AGENT_SENDERS = {
    agent.Reply: ("server",),
    agent.MonitorsConfig: ("client",),
    agent.AnnounceCapabilities: ("server", "client"),
}
"""Those of the agent have no sender."""

INTEGERS = {code: f"uint{bits}" for code, bits in (("B", 8), ("H", 16), ("L", 32), ("Q", 64))}
INTEGERS |= {code.lower(): kind.removeprefix("u") for code, kind in INTEGERS.items()}

ENUMS = {
    "channel_type": types.ChannelType,
    "link_err": types.LinkError,
    "common_cap": types.CommonCap,
    "main_cap": types.MainCap,
    "display_cap": types.DisplayCap,
    "inputs_cap": types.InputsCap,
    "surface_fmt": types.SurfaceFormat,
    "image_type": types.ImageType,
    "bitmap_fmt": types.BitmapFormat,
    "image_compression": types.Compression,
    "shm_reason": Refusal,
}
OTHER_WORDS = {
    ("surface_fmt", "XRGB"): "32_xRGB",
    ("surface_fmt", "ARGB"): "32_ARGB",
    ("surface_fmt", "A1"): "1_A",
    ("surface_fmt", "A8"): "8_A",
    ("surface_fmt", "RGB555"): "16_555",
    ("surface_fmt", "RGB565"): "16_565",
    ("bitmap_fmt", "BIT_LE"): "1BIT_LE",
    ("bitmap_fmt", "BIT_BE"): "1BIT_BE",
    ("bitmap_fmt", "NIBBLE_LE"): "4BIT_LE",
    ("bitmap_fmt", "NIBBLE_BE"): "4BIT_BE",
    ("bitmap_fmt", "BYTE"): "8BIT",
    ("bitmap_fmt", "RGB16"): "16BIT",
    ("bitmap_fmt", "RGB24"): "24BIT",
    ("bitmap_fmt", "XRGB"): "32BIT",
    ("bitmap_fmt", "ARGB"): "RGBA",
    ("bitmap_fmt", "A8"): "8BIT_A",
}
"""Where Python has no such name, or SPICE several for one thing."""

VALUES = {
    ("shm_handle", "DESCRIPTOR"): shm.HANDLE_DESCRIPTOR,
    ("shm_handle", "FILE"): shm.HANDLE_FILE,
    ("shm_handle", "IVSHMEM"): shm.HANDLE_IVSHMEM,
    ("brush_type", "NONE"): display.BRUSH_NONE,
    ("brush_type", "SOLID"): display.BRUSH_SOLID,
    ("brush_type", "PATTERN"): display.BRUSH_PATTERN,
    ("image_scale_mode", "INTERPOLATE"): display.SCALE_INTERPOLATE,
    ("image_scale_mode", "NEAREST"): display.SCALE_NEAREST,
    ("video_codec_type", "MJPEG"): display.CODEC_MJPEG,
    ("shm_mode", "LEASED"): shm.MODE_LEASED,
    ("shm_mode", "IN_PLACE"): shm.MODE_IN_PLACE,
    ("cursor_type", "ALPHA"): cursor.TYPE_ALPHA,
    ("cursor_type", "MONO"): cursor.TYPE_MONO,
    ("cursor_type", "COLOR32"): cursor.TYPE_COLOR32,
    ("agent_cap", "MONITORS_CONFIG"): agent.CAP_MONITORS_CONFIG,
    ("agent_cap", "REPLY"): agent.CAP_REPLY,
    ("agent_cap", "FILE_XFER_DISABLED"): agent.CAP_FILE_XFER_DISABLED,
    ("agent_result", "SUCCESS"): agent.REPLY_SUCCESS,
    ("agent_result", "ERROR"): agent.REPLY_ERROR,
}
MASKS = {
    ("shm_offer_flags", "SEALED"): shm.FLAG_SEALED,
    ("shm_reply_flags", "IN_PLACE_WELCOME"): shm.FLAG_IN_PLACE,
    ("shm_damage_flags", "FULL"): shm.FLAG_FULL,
    ("surface_flags", "PRIMARY"): display.SURFACE_FLAG_PRIMARY,
    ("bitmap_flags", "TOP_DOWN"): display.BITMAP_TOP_DOWN,
    ("bitmap_flags", "PAL_CACHE_ME"): display.BITMAP_PAL_CACHE_ME,
    ("bitmap_flags", "PAL_FROM_CACHE"): display.BITMAP_PAL_FROM_CACHE,
    ("image_flags", "CACHE_ME"): display.IMAGE_CACHE_ME,
    ("image_flags", "HIGH_BITS_SET"): display.IMAGE_HIGH_BITS_SET,
    ("image_flags", "CACHE_REPLACE_ME"): display.IMAGE_CACHE_REPLACE_ME,
    ("jpeg_alpha_flags", "TOP_DOWN"): display.JPEG_ALPHA_TOP_DOWN,
    ("alpha_flags", "DEST_HAS_ALPHA"): display.ALPHA_DEST_HAS_ALPHA,
    ("alpha_flags", "SRC_SURFACE_HAS_ALPHA"): display.ALPHA_SRC_SURFACE_HAS_ALPHA,
    ("stream_flags", "TOP_DOWN"): display.STREAM_TOP_DOWN,
    ("mask_flags", "INVERS"): display.MASK_INVERS,
    ("ropd", "INVERS_SRC"): display.ROP_INVERS_SRC,
    ("ropd", "INVERS_BRUSH"): display.ROP_INVERS_BRUSH,
    ("ropd", "INVERS_DEST"): display.ROP_INVERS_DEST,
    ("ropd", "OP_PUT"): display.ROP_PUT,
    ("ropd", "OP_OR"): display.ROP_OR,
    ("ropd", "OP_AND"): display.ROP_AND,
    ("ropd", "OP_XOR"): display.ROP_XOR,
    ("ropd", "OP_BLACKNESS"): display.ROP_BLACKNESS,
    ("ropd", "OP_WHITENESS"): display.ROP_WHITENESS,
    ("ropd", "OP_INVERS"): display.ROP_INVERS,
    ("ropd", "INVERS_RES"): display.ROP_INVERS_RES,
    ("cursor_flags", "NONE"): cursor.FLAG_NONE,
    ("cursor_flags", "CACHE_ME"): cursor.FLAG_CACHE_ME,
    ("cursor_flags", "FROM_CACHE"): cursor.FLAG_FROM_CACHE,
    ("mouse_mode", "SERVER"): types.MouseMode.SERVER,
    ("mouse_mode", "CLIENT"): types.MouseMode.CLIENT,
    ("agent_monitors_flags", "PHYSICAL_SIZE"): agent.FLAG_PHYSICAL_SIZE,
}


POINTED = {"image": "src_bitmap"}
"""What has a name of its own in the code."""


class Declared(NamedTuple):
    """What spiceshm.wire declares, in the form of `Idl`."""

    structs: dict[str, Fields]
    messages: dict[tuple[str, str, int, str], Fields]


def declared() -> Declared:
    found = Declared({"Clip": fields_of(Clip().subcon)}, {})
    for (channel, sender, number), kind in wire.MESSAGES.items():
        found.messages[channel, sender.value, number, kind.title] = fields_of(kind.layout)
    for kind, senders in AGENT_SENDERS.items():
        for sender in senders:
            found.messages["agent", sender, kind.number, kind.title] = fields_of(kind.layout)
    modules = (wire.base, agent, cursor, display, wire.inputs, link, wire.main, shm, types)
    for module in modules:
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if not issubclass(kind, Record) or issubclass(kind, Message | agent.AgentRecord):
                continue
            if kind is Record:
                continue
            if module is link:
                for sender in LINK_SENDERS[kind.title]:
                    key = "link", sender, 0, f"link.{kind.title}"
                    found.messages[key] = fields_of(kind.layout)
            else:
                found.structs[name] = fields_of(kind.layout)
    return found


def fields_of(layout: construct.Struct) -> Fields:
    """The fields of a construct layout as `Idl` gives them."""
    fields: dict[str, str] = {}
    for subcon in layout.subcons:
        inner = subcon.subcon if isinstance(subcon, construct.Renamed) else subcon
        if not is_seek(inner):
            fields[POINTED.get(subcon.name, subcon.name)] = shape_of(inner)
    return tuple(fields.items())


def is_seek(subcon: construct.Construct) -> bool:
    """A jump that is there only where what it jumps to is not empty takes no bytes."""
    return isinstance(subcon, construct.IfThenElse) and isinstance(
        subcon.thensubcon, construct.Seek
    )


def shape_of(subcon: Any) -> str:
    match subcon:
        case construct.FormatField():
            return INTEGERS[subcon.fmtstr.removeprefix("<")]
        case As():
            return subcon.kind.__name__
        case Clip():
            return "Clip"
        case Pointed():
            return f"{subcon.kind.__name__}*"
        case Rects():
            return f"Rect[{expression(subcon.subcon.length).removesuffix(' * 16')}]"
        case Tuple(subcon=construct.GreedyRange()):
            return f"{shape_of(subcon.subcon.subcon)}[]"
        case Tuple():
            return f"{shape_of(subcon.subcon.subcon)}[{expression(subcon.subcon.count)}]"
        case construct.Bytes():
            return f"uint8[{expression(subcon.length)}]"
        case construct.Padded():
            return f"uint8[{subcon.length}]"
        case construct.IfThenElse():
            return shape_of(subcon.thensubcon) + "?"
        case construct.Switch():
            return "|".join(dict.fromkeys(map(shape_of, subcon.cases.values()))) + "?"
        case construct.Select() | construct.GreedyBytes:
            return "uint8[]"
        case construct.Renamed() | construct.Rebuild() | construct.Default() | Limited() | Held():
            return shape_of(subcon.subcon)
    raise TypeError(f"no shape for {subcon!r}")


def expression(value: Any) -> str:
    """``this.a * this.b`` as ``a * b``."""
    return re.sub(r"this\['(\w+)'\]", r"\1", str(value)).strip("()")


def differences(text: str, code: Declared) -> list[str]:
    """One line for everything that the text and the code do not say alike."""
    idl = Idl(text)
    found = []
    for what, ours, theirs in (
        ("message", code.messages, idl.messages),
        ("struct", code.structs, idl.structs),
    ):
        found += [f"{what} {key} is not specified" for key in ours if key not in theirs]
        found += [f"{what} {key} is not declared" for key in theirs if key not in ours]
        for key in ours.keys() & theirs.keys():
            if ours[key] != theirs[key]:
                found.append(f"{what} {key}: {theirs[key]} specified, {ours[key]} declared")
    return found


# the text and the code


def test_every_message_and_struct_is_specified_as_it_is_declared() -> None:
    code = declared()
    assert len(code.messages) > 60
    assert not differences(TEXT, code)


def test_channels_have_their_numbers() -> None:
    assert Idl(TEXT).channels == {kind.name.lower(): kind.value for kind in types.ChannelType}


@pytest.mark.parametrize("name", ENUMS)
def test_enums_have_the_specified_numbers(name: str) -> None:
    specified = Idl(TEXT).enums[name]
    for member in ENUMS[name]:
        word = OTHER_WORDS.get((name, member.name), member.name)
        assert specified[word] == member.value, f"{name}.{word}"


def test_single_values_and_masks_are_as_specified() -> None:
    enums = Idl(TEXT).enums
    for (name, word), value in VALUES.items():
        assert enums[name][word] == value, f"{name}.{word}"
    for (name, word), mask in MASKS.items():
        assert 1 << enums[name][word] == mask, f"{name}.{word}"


def test_formats_of_a_surface_are_those_that_are_specified() -> None:
    allowed = set()
    for value in range(128):
        with contextlib.suppress(RemoteProtocolError):
            display.SurfaceCreate.parse(struct.pack("<5I", 0, 1, 1, value, 0))
            allowed.add(value)
    assert allowed == set(Idl(TEXT).enums["surface_fmt"].values())


# the text and the prose


def test_readme_lists_every_message_with_its_number() -> None:
    listed = set()
    for names, numbers in re.findall(r"^\| (`SPICE_MSGC?_.*?) \| ([\d., ]+) \|", README, re.M):
        start = re.match(r"`(SPICE_MSGC?(?:_MAIN|_DISPLAY|_INPUTS|_CURSOR)?)", names)[1]
        channel = (start.split("_")[2:] or ["base"])[0].lower()
        sender = "client" if start.startswith("SPICE_MSGC") else "server"
        for name, number in zip(re.findall(r"`(\w+)`", names), spread(numbers), strict=True):
            own = name.removeprefix(start).removeprefix("_").lower()
            listed.add((channel, sender, number, f"{channel}.{own}"))
    ordinary = {
        key
        for key in Idl(TEXT).messages
        if key[0] not in ("link", "agent") and not 460 <= key[2] < 480
    }
    assert listed == ordinary


def spread(numbers: str) -> list[int]:
    """``3, 4, 101..103`` as a list."""
    spans = [part.split("..") for part in numbers.split(", ")]
    return [number for span in spans for number in range(int(span[0]), int(span[-1]) + 1)]


def test_readme_lists_the_extension_with_its_sizes() -> None:
    listed = {}
    rows = re.findall(r"^\| ([A-Z_]+) \| (server|client) \| (\d+) \| (\d+)\b", README, re.M)
    for name, sender, number, size in rows:
        listed["display", sender, int(number), f"display.{name.lower()}"] = int(size)
    block = {key: fields for key, fields in Idl(TEXT).messages.items() if 460 <= key[2] < 480}
    assert listed == {key: fixed_size(fields) for key, fields in block.items()}


def fixed_size(fields: Fields) -> int:
    """Bytes of the fields that have no count to go by."""
    sized = [re.fullmatch(r"u?int(\d+)(?:\[(\d+)\])?", shape) for _, shape in fields]
    return sum(int(m[1]) // 8 * int(m[2] or 1) for m in sized if m)


# the comparison is worth something


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("uint64 token_offset;", "uint64 token_place;", "token_place"),
        ("uint16 version;", "int16 version;", "'int16'"),
        (
            "uint32 generation;\n        uint32 window;",
            "uint32 window;\n uint32 generation;",
            "set_ack",
        ),
        ("uint8 proof[proof_size];", "uint8 proof[nonce_size];", "uint8[nonce_size]"),
        ("uint8 reserved[7];", "uint8 reserved[8];", "uint8[8]"),
        ("uint32 reserved;", "", "shm_damage"),
        ("} shm_withdraw = 463;", "} shm_withdraw = 464;", "464"),
        ("} shm_withdraw = 463;", "} shm_withdrawn = 463;", "display.shm_withdrawn"),
        ("} shm_withdraw = 463;\n\n client:", "} shm_withdraw = 463;\n", "display.init"),
        ("Image *src_bitmap;", "Image src_bitmap;", "Image*"),
        ("Rect src_area;", "Point src_area;", "Point"),
        ("enum8 image_type {", "enum16 image_type {", "struct Image"),
        ("case BITMAP:\n        Bitmap content;", "case BITMAP:\n        Rect content;", "Rect|"),
        ("    int32 right;\n};", "    int32 right;\n};\nstruct Spare { int8 x; };", "Spare"),
        (
            "uint8 data[image_size(8, stride, y)];",
            "uint8 data[image_size(8, stride, x)];",
            "Bitmap",
        ),
    ],
)
def test_a_change_in_the_text_is_reported(old: str, new: str, told: str) -> None:
    code = declared()
    plain = re.sub(r"[ \t]*/\*.*?\*/", "", TEXT, flags=re.DOTALL)
    assert old in plain
    assert not differences(plain, code)
    found = differences(plain.replace(old, new, 1), code)
    assert any(told in line for line in found), found


def test_a_message_dropped_on_either_side_is_reported() -> None:
    code = declared()
    without = re.sub(r"message \{[^}]*\} shm_damage_handled = 461;", "", TEXT)
    key = ("display", "client", 461, "display.shm_damage_handled")
    assert differences(without, code) == [f"message {key} is not specified"]
    del code.messages[key]
    assert differences(TEXT, code) == [f"message {key} is not declared"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("struct A { uint32 a };", "cannot be read"),
        ("struct A { word a; };", "is no type"),
        ("struct A { uint32 a; }", "cannot be read"),
        ("union A { uint32 a; };", "what is union"),
        ("enum8 A { B, };", "cannot be read"),
        ("channel A { server: message { } a = 1; message { } a = 1; };", "twice"),
    ],
)
def test_the_reader_takes_nothing_that_it_does_not_understand(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Idl(text)
