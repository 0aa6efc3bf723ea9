"""Every case that is measured, and the tables that compare them: declared here, run elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from . import decoders, encoders, ends, floor, handover, keys, startup, stock, xdesktop
from .contents import CONTENTS
from .work import (
    HD,
    IDLE_PAUSE_S,
    TILE,
    UHD,
    VGA,
    Work,
    adjacent,
    everything,
    scattered,
    tile,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from .stats import Measures

READERS = (1, 2, 4, 8, 16)
WAYS: tuple[Literal["shm", "unix", "tcp"], ...] = ("shm", "unix", "tcp")


@dataclass(frozen=True)
class Conditions:
    """What every case is measured under. ``floor`` is the C program, None if there is no compiler.

    ``cores`` are those that may be pinned to, at least one.
    """

    floor: Path | None
    cores: tuple[int, ...]
    seconds: float
    warmup: float


@dataclass(frozen=True)
class Case:
    """Something to run once a round. ``lacks`` says what is missing here for it, and how to get it.

    ``quick`` cases are those of a quick run.
    """

    name: str
    run: Callable[[Conditions], Measures]
    lacks: Callable[[Conditions], str | None]
    quick: bool


@dataclass(frozen=True)
class Row:
    """A line of a table: one measure of a case, and what it is divided by in each round."""

    label: str
    case: str
    measure: str
    against: str | None = None
    against_measure: str | None = None
    unit: str = "us"


@dataclass(frozen=True)
class Table:
    """``name`` selects it, ``note`` says what its figures include, ``columns`` are whose they are.

    ``better`` is "less" or "more", of the ratio.
    """

    name: str
    title: str
    note: str
    columns: tuple[str, str]
    better: Literal["less", "more", ""]
    rows: tuple[Row, ...]


# Cases


def _present(_: Conditions) -> None:
    return None


def _two_cores(work: Work, conditions: Conditions) -> str | None:
    if work.cores == "two" and len(conditions.cores) < 2:
        return "two cores to pin to are needed"
    return None


def _lacks_floor(work: Work, conditions: Conditions) -> str | None:
    return floor.HOW_TO if conditions.floor is None else _two_cores(work, conditions)


def _ours(work: Work, c: Conditions) -> Measures:
    return ends.measure(work, c.cores, c.seconds, c.warmup)


def _floor(work: Work, c: Conditions) -> Measures:
    assert c.floor is not None
    return floor.measure(c.floor, work, c.cores, c.seconds, c.warmup)


def _x11(peer: xdesktop.Peer, c: Conditions) -> Measures:
    return xdesktop.measure(peer, c.seconds)


def _lacks_x11(peer: xdesktop.Peer, _: Conditions) -> str | None:
    return xdesktop.lacks(peer)


def _keys(peer: keys.Peer, c: Conditions) -> Measures:
    return keys.measure(peer, c.seconds)


def _lacks_keys(peer: keys.Peer, _: Conditions) -> str | None:
    return keys.lacks(peer)


def _encoders(peer: encoders.Peer, c: Conditions) -> Measures:
    return encoders.measure(peer, c.seconds)


def _lacks_encoders(peer: encoders.Peer, _: Conditions) -> str | None:
    return encoders.lacks(peer)


def _stock(peer: stock.Peer, c: Conditions) -> Measures:
    return stock.measure(peer, c.seconds)


def _lacks_stock(peer: stock.Peer, _: Conditions) -> str | None:
    return stock.lacks(peer)


def _decoders(codec: decoders.Codec, c: Conditions) -> Measures:
    return decoders.measure(codec, c.seconds)


def _lacks_decoders(codec: decoders.Codec, _: Conditions) -> str | None:
    return decoders.lacks(codec)


def _handover(work: Work, c: Conditions) -> Measures:
    return handover.measure(work, c.cores, c.seconds)


def _lacks_handover(_: Conditions) -> str | None:
    return handover.lacks()


def _ours_case(name: str, work: Work, quick: bool) -> Case:
    return Case(name, partial(_ours, work), partial(_two_cores, work), quick)


def _floor_case(name: str, work: Work, quick: bool) -> Case:
    return Case(f"floor/{name}", partial(_floor, work), partial(_lacks_floor, work), quick)


_PACES: dict[str, tuple[str, float, Literal["two", "one"]]] = {
    "idle": ("idle", IDLE_PAUSE_S, "two"),
    "busy": ("saturated", 0.0, "two"),
    "core": ("same core", 0.0, "one"),
}
_TILES: dict[str, tuple[str, Work]] = {
    "1": ("1 tile", Work(HD, tile(HD))),
    "8": ("8 tiles", Work(HD, scattered(HD, 8))),
    "64": ("64 tiles, adjacent", Work(HD, adjacent(HD, 64))),
    "64-scattered": ("64 tiles, scattered", Work(HD, scattered(HD, 64))),
}
_MOVING = Work(HD, tile(HD), pause_s=IDLE_PAUSE_S, step=TILE)
_FRAMES: dict[str, tuple[str, Work]] = {
    "1080p-draw": ("1080p by draw", Work(HD, everything(HD))),
    "1080p-frame": ("1080p by frame", Work(HD, everything(HD), "fill")),
    "4k-draw": ("4K by draw", Work(UHD, everything(UHD))),
    "4k-frame": ("4K by frame", Work(UHD, everything(UHD), "fill")),
}
_QUICK = {
    *("idle-1", "busy-1", "core-1", "idle-8", "idle-64", "idle-64-scattered"),
    "idle-1080p-draw",
}


def _paced() -> Iterator[tuple[str, Work]]:
    """The jobs that are done both in C and by us, one tile or all of the screen."""
    for pace, (_, pause_s, cores) in _PACES.items():
        for kind, (_, work) in (_TILES | _FRAMES).items():
            yield f"{pace}-{kind}", replace(work, pause_s=pause_s, cores=cores)
    yield "idle-moving", _MOVING


def _windows() -> Iterator[tuple[str, Work]]:
    for credits in (1, 8):
        for cores in ("two", "one"):
            yield f"window-{credits}-{cores}", Work(HD, tile(HD), credits=credits, cores=cores)


def _sizes() -> Iterator[tuple[str, Work]]:
    for name, size in (("4k", UHD), ("vga", VGA)):
        yield f"size-{name}", Work(size, tile(size), pause_s=IDLE_PAUSE_S)


def _crowds() -> Iterator[tuple[str, Work]]:
    for count in READERS:
        for way in WAYS:
            work = Work(HD, everything(HD), "stamp", cores="any", readers=count, through=way)
            yield f"readers-{count}-{way}", work


def _with_slow() -> Iterator[tuple[str, Work]]:
    for slow in (0, 1):
        work = Work(HD, everything(HD), "stamp", cores="any", readers=2, slow=slow)
        yield f"slow-{slow}", work


def _unblocked() -> Iterator[tuple[str, Work]]:
    one = Work(HD, tile(HD), pause_s=IDLE_PAUSE_S)
    yield "publish-one", one
    yield "publish-stopped", replace(one, stopped=1)
    yield "publish-uneven", replace(one, slow=15, hold_s=0.04, uneven=True)


def _pixels() -> Iterator[tuple[str, Work]]:
    for way in WAYS:
        yield f"tile-{way}", Work(HD, tile(HD), pause_s=IDLE_PAUSE_S, through=way)
        yield f"frame-{way}", Work(HD, everything(HD), pause_s=IDLE_PAUSE_S, through=way)


def all_cases() -> dict[str, Case]:
    """Every case by name."""
    both = {*_QUICK, "window-8-two", "window-8-one", "size-4k", "size-vga"}
    ours = {*both, "readers-8-shm", "readers-8-unix"}
    made: list[Case] = []
    for name, work in (*_paced(), *_windows(), *_sizes()):
        made.append(_floor_case(name, work, name in both))
        made.append(_ours_case(name, work, name in ours))
    for name, work in (*_crowds(), *_with_slow(), *_unblocked(), *_pixels()):
        made.append(_ours_case(name, work, name in ours))
    made += _others()
    return {case.name: case for case in made}


def _others() -> Iterator[Case]:
    for peer in xdesktop.PEERS:
        yield Case(f"x11-{peer}", partial(_x11, peer), partial(_lacks_x11, peer), True)
    for actor in keys.PEERS:
        yield Case(f"keys-{actor}", partial(_keys, actor), partial(_lacks_keys, actor), True)
    for sender in encoders.PEERS:
        run, lacks = partial(_encoders, sender), partial(_lacks_encoders, sender)
        yield Case(f"encoders-{sender}", run, lacks, False)
    for looker in stock.PEERS:
        run, lacks = partial(_stock, looker), partial(_lacks_stock, looker)
        yield Case(f"machine-{looker}", run, lacks, False)
    for codec in decoders.CODECS:
        run, lacks = partial(_decoders, codec), partial(_lacks_decoders, codec)
        yield Case(f"decoders-{codec}", run, lacks, False)
    for name, work in (("tile", Work(HD, tile(HD))), ("frame", Work(HD, everything(HD)))):
        job = replace(work, pause_s=IDLE_PAUSE_S)
        yield Case(f"iceoryx2-{name}", partial(_handover, job), _lacks_handover, True)
    yield Case("python", lambda _: startup.python(), _present, True)
    yield Case("programs", lambda _: startup.programs(), _present, True)


# Tables


def _against_floor(label: str, case: str, measure: str = "seen_p50_us", unit: str = "us") -> Row:
    return Row(label, case, measure, f"floor/{case}", unit=unit)


def _latency_rows() -> Iterator[Row]:
    for pace, (how, _, _) in _PACES.items():
        for kind, (label, _) in _TILES.items():
            yield _against_floor(f"{label}, {how}", f"{pace}-{kind}")
            if (pace, kind) == ("idle", "1"):
                yield _against_floor("1 tile that moves, idle", "idle-moving")


def _frame_rows() -> Iterator[Row]:
    for pace, (how, _, _) in _PACES.items():
        for kind, (label, _) in _FRAMES.items():
            case = f"{pace}-{kind}"
            yield _against_floor(f"{label}, {how}: from begin", case, "done_p50_us")
            yield _against_floor(f"{label}, {how}: from publish", case)


def _window_rows() -> Iterator[Row]:
    for credits in (1, 8):
        for cores, where in (("two", "two cores"), ("one", "same core")):
            case = f"window-{credits}-{cores}"
            yield _against_floor(f"window {credits}, {where}", case, "updates_per_s", "/s")


def _crowd_rows(way: str) -> Iterator[Row]:
    for count in READERS:
        label = f"{count} reader{'s' * (count > 1)}"
        mine, other = f"readers-{count}-shm", f"readers-{count}-{way}"
        yield Row(f"{label}: frames/s in all", mine, "deliveries_per_s", other, unit="/s")


def _share_rows(way: str) -> Iterator[Row]:
    for count in READERS:
        label = f"{count} reader{'s' * (count > 1)}: server CPU each"
        mine, other = f"readers-{count}-shm", f"readers-{count}-{way}"
        yield Row(label, mine, "server_cpu_per_delivery_us", other)


def _publish_rows() -> Iterator[Row]:
    for case, label in (("stopped", "a stopped reader"), ("uneven", "16 readers, uneven")):
        for point in ("p50", "p99"):
            measure = f"paint_{point}_us"
            yield Row(f"{label}: {point}", f"publish-{case}", measure, "publish-one")


def _cost_rows() -> Iterator[Row]:
    for case, label in (
        ("idle-1", "1 tile, idle"),
        ("core-1", "1 tile, same core"),
        ("core-64", "64 tiles, adjacent, same core"),
        ("idle-1080p-draw", "1080p by draw, idle"),
    ):
        yield _against_floor(f"{label}: server", case, "server_cpu_us")
        yield _against_floor(f"{label}: reader", case, "reader_cpu_us")


def _byte_rows() -> Iterator[Row]:
    for case, label in (
        ("core-1", "1 tile"),
        ("core-8", "8 tiles"),
        ("core-64", "64 tiles, adjacent"),
        ("core-64-scattered", "64 tiles, scattered"),
        ("idle-moving", "1 tile that moves"),
        ("idle-1080p-draw", "1080p"),
    ):
        yield Row(f"{label}: on the wire", case, "wire_bytes", case, "painted_bytes", unit="B")
        yield Row(f"{label}: to look at", case, "changed_bytes", case, "painted_bytes", unit="B")


def _pixel_rows(way: str) -> Iterator[Row]:
    for kind, label in (("tile", "1 tile"), ("frame", "1080p")):
        mine, other = f"{kind}-shm", f"{kind}-{way}"
        yield Row(f"{label}: begun until copied", mine, "done_p50_us", other)
        yield Row(f"{label}: server CPU", mine, "server_cpu_us", other)
        yield Row(f"{label}: reader CPU", mine, "reader_cpu_us", other)


def _x11_rows() -> Iterator[Row]:
    for peer, label in (("mss", "mss"), ("vnc", "x11vnc, asyncvnc")):
        mine, other = "x11-spiceshm", f"x11-{peer}"
        yield Row(f"{label}: painted until seen", mine, "done_p50_us", other)
        yield Row(f"{label}: reader CPU", mine, "reader_cpu_us", other)
        yield Row(f"{label}: CPU of X and server", mine, "server_cpu_us", other)


def _keys_rows() -> Iterator[Row]:
    for peer, label in (
        ("asyncvnc", "x11vnc, asyncvnc"),
        ("vncdotool", "x11vnc, vncdotool"),
        ("xdotool", "xdotool, mss"),
    ):
        mine, other = "keys-spiceshm", f"keys-{peer}"
        yield Row(f"{label}: key until its effect, p50", mine, "effect_p50_us", other)
        yield Row(f"{label}: key until its effect, p99", mine, "effect_p99_us", other)
        yield Row(f"{label}: CPU of who looks", mine, "reader_cpu_us", other)
        yield Row(f"{label}: CPU of X and server", mine, "server_cpu_us", other)


def _encoder_rows(measure: str, unit: str) -> Iterator[Row]:
    for content in CONTENTS:
        for ours, label, peer in (
            ("raw", "raw, Xspice", "xspice-raw"),
            ("raw", "raw, x11vnc", "vnc-raw"),
            ("lz4", "LZ4, Xspice", "xspice-lz4"),
            ("lz4", "LZ4, x11vnc tight", "vnc-tight"),
            ("lz", "LZ, Xspice", "xspice-lz"),
            ("lz", "LZ, x11vnc tight", "vnc-tight"),
        ):
            row = f"{content}: {label}", f"encoders-{ours}", f"{content}_{measure}"
            yield Row(*row, f"encoders-{peer}", unit=unit)


_STOCK = (
    ("QEMU, raw over Unix; screendump", "qemu-unix", "qemu-screendump"),
    ("QEMU, LZ4 over TCP; screendump", "qemu-tcp", "qemu-screendump"),
    ("QEMU, raw over Unix; spicy-screenshot", "qemu-unix", "qemu-spicy"),
    ("QEMU, memory of a relay; raw over Unix", "qemu-relay", "qemu-unix"),
    ("Xspice, raw; x11vnc, asyncvnc", "xspice-raw", "xspice-vnc"),
    ("Xspice, LZ4; x11vnc, asyncvnc", "xspice-lz4", "xspice-vnc"),
    ("Xspice, LZ4; mss", "xspice-lz4", "xspice-mss"),
    ("Xspice, LZ4; spicy-screenshot", "xspice-lz4", "xspice-spicy"),
)
"""What our program reads, and who else: ours, and the other's."""


def _first_rows() -> Iterator[Row]:
    for label, mine, other in _STOCK:
        if not other.endswith("spicy"):
            yield Row(label, f"machine-{mine}", "first_ms", f"machine-{other}", unit="ms")
    for server, name in (("qemu", "QEMU"), ("xspice", "Xspice")):
        row = f"{name}; spicy-screenshot, both with their start", f"machine-{server}-client"
        yield Row(*row, "first_ms", f"machine-{server}-spicy", unit="ms")


def _stock_rows(measure: str, unit: str) -> Iterator[Row]:
    for change in stock.CHANGES:
        for label, mine, other in _STOCK:
            name = f"{change}_{measure}"
            yield Row(f"{change}: {label}", f"machine-{mine}", name, f"machine-{other}", unit=unit)


_CODECS: dict[decoders.Codec, str] = {
    "raw": "raw",
    "lz4": "LZ4",
    "lz": "LZ",
    "lz-python": "LZ without numba",
    "lz-plt": "LZ_PLT",
    "lz-plt-python": "LZ_PLT without numba",
    "glz": "GLZ",
    "glz-python": "GLZ without numba",
    "zlib-glz": "ZLIB_GLZ",
    "zlib-glz-python": "ZLIB_GLZ without numba",
    "jpeg": "JPEG",
    "jpeg-alpha": "JPEG_ALPHA",
    "jpeg-alpha-python": "JPEG_ALPHA without numba",
    "quic": "QUIC",
    "canvas-raw": "raw, from the message to the canvas",
    "canvas-lz4": "LZ4, from the message to the canvas",
}


def _decoder_rows() -> Iterator[Row]:
    for codec, label in _CODECS.items():
        case = f"decoders-{codec}"
        for shown in decoders.SHOWN:
            yield Row(f"{label}: {shown}", case, f"{shown}_us", case, "copy_us")


def _handover_rows() -> Iterator[Row]:
    for kind, label, ours in (("tile", "1 tile", "idle-1"), ("frame", "1080p", "idle-1080p-draw")):
        yield Row(f"{label}: published until copied", ours, "seen_p50_us", f"iceoryx2-{kind}")
        yield Row(f"{label}: sender's CPU", ours, "server_cpu_us", f"iceoryx2-{kind}")
        yield Row(f"{label}: reader's CPU", ours, "reader_cpu_us", f"iceoryx2-{kind}")


def _startup_rows() -> Iterator[Row]:
    yield Row("import spiceshm", "python", "import_ms", "python", "bare_ms", "ms")
    yield Row("server: until it listens", "programs", "listening_ms", "python", "bare_ms", "ms")
    yield Row("client: until a frame", "programs", "first_frame_ms", "python", "bare_ms", "ms")


def _memory_rows() -> Iterator[Row]:
    yield Row("segments", "programs", "segment_bytes", unit="B")
    for end in ("server", "client"):
        for kind in ("private", "shared"):
            yield Row(f"{end}: {kind}", "programs", f"{end}_{kind}_bytes", unit="B")


_FLOOR = ("spiceshm", "C floor")
_TILE_NOTE = (
    f"Two processes, 1920x1080, tiles of {TILE}x{TILE} that stay in place unless they move. Time "
    "counts from the publisher's stamp (its pixels are in shared memory then) until the reader "
    "holds the view and has copied the damaged pixels to private memory. Idle: two pinned cores, "
    "2 ms between updates; saturated: two pinned cores, the next update when the last is "
    "released; same core: the same with both ends pinned to one core, which is the CPU's work. "
    "The C floor sends as many bytes and copies as many pixels with memcpy; it never merges."
)

_STOCK_NOTE = (
    "QEMU (-vga std, -accel tcg) with a boot sector in place of an operating system, and Xspice. "
    "A relay is spiceshm-server with the machine as its source, and its readers share its memory. "
    "Nothing is pinned. "
)
_ENCODERS_NOTE = (
    "A desktop of 1920x1080, TCP on the loopback device, one reader that is no viewer: it takes "
    "what comes, acknowledges or asks for more, and decodes only where it must to know what it "
    "got. A frame counts as seen when two patches behind it, whose colour is its number, have come "
    "at opposite corners of the screen; then the next one is painted, so that all are seen and "
    "none is merged with another. After each content all that came is decoded, and has to be what "
    "the X server has. Text: a terminal of 160x50 characters that scrolls by a line, CopyArea and "
    "ImageText8 as of xterm. Page: the same text from a program that draws itself and has its "
    "window shown anew, ShmPutImage. Window: one of 640x480 dragged over a picture by 12 pixels a "
    "frame. Video: 640x360, smooth with noise, ShmPutImage. spiceshm-server --fps 0 and x11vnc "
    "-wait 1 -defer 1 -noscr look at an Xvfb and see pixels; Xspice is the X server itself and "
    "passes on that something was copied. It is asked for the format by PREFERRED_COMPRESSION, "
    "with neither cache nor streams. x11vnc sends tight without JPEG, or raw pixels; there is no "
    "LZ4 and no LZ in VNC. Now and then it has the patches before the last of what was painted "
    "ahead of them, which then comes with the next frame. Nothing is pinned."
)


TABLES = (
    Table("latency", "Published until seen", _TILE_NOTE, _FLOOR, "less", tuple(_latency_rows())),
    Table(
        "frames",
        "Full frames",
        "As above, with all of the screen damaged: copied from an array by surface.draw, or set "
        "in place by surface.frame. From begin: the producer's own copying counts too; the C "
        "floor copies with memcpy or sets with memset.",
        _FLOOR,
        "less",
        tuple(_frame_rows()),
    ),
    Table(
        "updates",
        "Updates a second",
        "One tile as fast as the window allows: 1 or 8 updates under way (connect's credits). The "
        "reader copies all damage; of several frames that wait it is handed the newest, with the "
        "damage of all. Same core: both ends pinned to one.",
        _FLOOR,
        "more",
        tuple(_window_rows()),
    ),
    Table(
        "size",
        "Does the size of the surface matter",
        "Published until seen for one tile, idle, on a surface of 4K and on one of 640x480.",
        ("4K", "640x480"),
        "less",
        (
            Row("spiceshm", "size-4k", "seen_p50_us", "size-vga"),
            Row("C floor", "floor/size-4k", "seen_p50_us", "floor/size-vga"),
        ),
    ),
    Table(
        "readers",
        "Many readers: shared memory and pixels through a Unix socket",
        "1920x1080, all of it damaged in every update, though the producer paints one line only, "
        "so that handing over is what is measured. Every reader is a process that copies all "
        "pixels; nothing is pinned. Server CPU is that of its process, by frames delivered.",
        ("shared", "Unix socket"),
        "",
        (*_crowd_rows("unix"), *_share_rows("unix")),
    ),
    Table(
        "readers-tcp",
        "Many readers: shared memory and pixels through TCP",
        "As above, pixels through TCP on the loopback device.",
        ("shared", "TCP"),
        "",
        (*_crowd_rows("tcp"), *_share_rows("tcp")),
    ),
    Table(
        "slow",
        "A slow reader beside two quick ones",
        "As above with two readers, and with a third one that holds each frame for 100 ms.",
        ("with", "without"),
        "",
        (
            Row("quick readers: frames/s", "slow-1", "deliveries_per_s", "slow-0", unit="/s"),
            Row("quick readers: published until seen", "slow-1", "seen_p50_us", "slow-0"),
        ),
    ),
    Table(
        "publish",
        "Publishing beside readers that are slow",
        "How long surface.draw takes for one tile, from begin until it returns, whatever readers "
        "do; 2 ms between updates, the producer on a core of its own. Stopped: one reader of two "
        "is stopped by a signal. Uneven: 15 readers of 16 hold each frame for 0 to 40 ms.",
        ("with", "one quick reader"),
        "less",
        tuple(_publish_rows()),
    ),
    Table(
        "cpu",
        "CPU time of an update",
        "User and system time of each process for one update, the producer's painting and the "
        "reader's copying included.",
        _FLOOR,
        "less",
        tuple(_cost_rows()),
    ),
    Table(
        "bytes",
        "Bytes of an update",
        "By the library's own counters, a frame: what goes over the wire both ways, "
        "acknowledgements included, and what the reader is told to look at; against the bytes "
        "that the producer painted. These are written once, and read once by the reader's own "
        "copy; what moves is besides carried forward once by the server.",
        ("counted", "painted"),
        "less",
        tuple(_byte_rows()),
    ),
    Table(
        "unix",
        "Pixels through a Unix socket instead",
        "The same public API in ordinary SPICE (shm off), one reader, two pinned cores, 2 ms "
        "between updates.",
        ("shared", "Unix socket"),
        "less",
        tuple(_pixel_rows("unix")),
    ),
    Table(
        "tcp",
        "Pixels through TCP instead",
        "As above, through TCP on the loopback device.",
        ("shared", "TCP"),
        "less",
        tuple(_pixel_rows("tcp")),
    ),
    Table(
        "x11",
        "An X desktop",
        "Xvfb of 1920x1080; from before a square is painted until its colour is in the reader's "
        "numpy array of the whole screen. spiceshm-server with --fps 0; mss takes screenshots "
        "(MIT-SHM) without a pause; x11vnc -wait 1 -defer 1 -noscr and asyncvnc. CPU is that of "
        "one painting and what follows. Nothing is pinned.",
        ("spiceshm", "the other"),
        "less",
        tuple(_x11_rows()),
    ),
    Table(
        "keys",
        "From a key to what comes of it",
        "Xvfb of 1920x1080 with a program that fills a patch of 64x64 with another colour at every "
        "key; from before the call that presses it until the colour is found in a pixel, with a "
        "random pause of 0 to 20 ms between keys. spiceshm-server as it is by default, key() and "
        "wait_change(region); x11vnc -wait 1 -defer 1 -noscr (by default it is slower after keys) "
        "with asyncvnc, keyboard.press() and video.refresh() of the region until it is there, and "
        "with vncdotool, keyPress() and expectRegion() of its threaded API (it leaves Nagle's "
        "algorithm on, which is most of its time); xdotool key --delay 0, awaited, and then mss, "
        "screenshots of the region without a pause. CPU is that of one key and what follows, with "
        "the processes that who looks starts. Nothing is pinned.",
        ("spiceshm", "the other"),
        "less",
        tuple(_keys_rows()),
    ),
    Table(
        "encoders-frames",
        "Ordinary viewers: frames a second",
        _ENCODERS_NOTE,
        ("spiceshm", "the other"),
        "more",
        tuple(_encoder_rows("frames_per_s", "/s")),
    ),
    Table(
        "encoders-rate",
        "Ordinary viewers: megabytes a second",
        "As above: what the reader received, which is frames a second times the bytes of a frame.",
        ("spiceshm", "the other"),
        "",
        tuple(_encoder_rows("mb_per_s", "MB/s")),
    ),
    Table(
        "encoders-bytes",
        "Ordinary viewers: bytes of a frame",
        "As above.",
        ("spiceshm", "the other"),
        "less",
        tuple(_encoder_rows("bytes", "B")),
    ),
    Table(
        "encoders-cpu",
        "Ordinary viewers: CPU time of a frame",
        "As above: user and system time of the X server and of the server beside it, if there is "
        "one, from the painting on.",
        ("spiceshm", "the other"),
        "less",
        tuple(_encoder_rows("cpu_us", "us")),
    ),
    Table(
        "machine-first",
        "Stock servers: the first picture",
        _STOCK_NOTE + "Until a picture of 1920x1080 is in a numpy array, nothing being drawn "
        "meanwhile: spiceshm.connect() and latest(), a connection to the monitor and its "
        "screendump, asyncvnc.connect() and what comes first, mss. Of commands the "
        "start of the process counts too: spiceshm-client --screenshot, a Python that starts, and "
        "spicy-screenshot.",
        ("spiceshm", "the other"),
        "less",
        tuple(_first_rows()),
    ),
    Table(
        "machine-updates",
        "Stock servers: changed pictures a second",
        _STOCK_NOTE + "Changed pictures that came to the reader in a second while a line of text "
        "(960x13 pixels) or all of the screen (page) is drawn again and again, in QEMU 500 times a "
        "second, in Xspice as often as it can. QEMU looks every 30 ms for what has changed. The "
        "others are called again as soon as they have returned.",
        ("spiceshm", "the other"),
        "more",
        tuple(_stock_rows("pictures_per_s", "/s")),
    ),
    Table(
        "machine-cpu",
        "Stock servers: CPU time of a changed picture",
        "As above: user and system time of the reader and of what it starts, not of the servers.",
        ("spiceshm", "the other"),
        "less",
        tuple(_stock_rows("reader_cpu_us", "us")),
    ),
    Table(
        "decoders",
        "Decoding what stock servers send",
        "For 1920x1080 pixels, as Xspice sent them in this run; against np.copyto() of as many, in "
        "the same process. Text is black on white, the desktop a smooth picture with some text on "
        "it, the photo a smooth picture with noise everywhere, which Xspice sends raw where it "
        "would pack it by LZ4; what is raw is decoded to a view of the message. One thread, which "
        "is not pinned. To the canvas: from bytes in reads of 256 kB to pixels of the surface, "
        "what is between them and the decoder included.",
        ("decoded", "copied"),
        "less",
        tuple(_decoder_rows()),
    ),
    Table(
        "handover",
        "iceoryx2",
        "Its Python binding, publish-subscribe with an event to wake the reader: the bare pixels "
        "of the rectangle as a payload, no surface, no damage; two pinned cores, 2 ms between "
        "updates.",
        ("spiceshm", "iceoryx2"),
        "less",
        tuple(_handover_rows()),
    ),
    Table(
        "startup",
        "Starting",
        "From the start of the process, against a Python that does nothing. The server shows its "
        "test pattern in 1920x1080; the client begins when the server listens.",
        ("spiceshm", "bare Python"),
        "less",
        tuple(_startup_rows()),
    ),
    Table(
        "memory",
        "Memory",
        "A server of 1920x1080 and one client, both as they are by default: segments as "
        "the client was offered them; resident memory of each process, private and shared (the "
        "same pages in both), without code.",
        ("spiceshm", ""),
        "",
        tuple(_memory_rows()),
    ),
)


def selected(tables: Iterable[Table], names: Iterable[str]) -> list[Table]:
    """The tables, of them the rows, that ``names`` mean: patterns of tables or cases; none: all."""
    from fnmatch import fnmatch

    wanted = list(names)
    if not wanted:
        return list(tables)

    def means(*words: str) -> bool:
        return any(fnmatch(word, name) for word in words for name in wanted)

    found = []
    for table in tables:
        rows = tuple(
            row for row in table.rows if means(table.name, row.case, row.against or row.case)
        )
        if rows:
            found.append(replace(table, rows=rows))
    return found


def needed(tables: Iterable[Table], *, quick: bool = False) -> list[Case]:
    """The cases that the rows of these tables are made of; ``quick`` only the quick ones."""
    cases = all_cases()
    names: dict[str, None] = {}
    for table in tables:
        for row in table.rows:
            names |= {name: None for name in (row.case, row.against) if name is not None}
    return [cases[name] for name in names if cases[name].quick or not quick]
