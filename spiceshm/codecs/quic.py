"""SPICE's QUIC image, which needs numba: a loop in Python would take a minute for a screen.

The format: words of 32 bits, the lowest byte first, and in each the upper bit first. Behind a
header come the lines from the top; each has its colours and then, of RGBA, its alpha, which is
written as a picture of its own. A value is what it differs from a guess (the mean of the ones on
its left and above it), folded so that small differences of either sign are small numbers, and that
is a Golomb-Rice code: zeroes, a one, and as many bits as the code's parameter says; or, if the
zeroes are very many, a plain number. The parameter is the one that would have been the shortest so
far for values whose left neighbour's number was about as large; that is counted only at some
pixels, which a table of random numbers chooses, and more rarely as the picture goes on. Where the
line above has two pixels alike and this one two before here, a run follows instead: how many more
are the same, in the run lengths of JPEG-LS, which adapt too.

A run leaves the numbers of its pixels as they were in an earlier line.
"""

from __future__ import annotations

import base64
import functools
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import CannotDecode
from . import jit, lz, tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .bitmap import Data

_HEADER = struct.Struct("<5I")
_START = 8 * _HEADER.size
"""Bits before the first line."""

_MAGIC, _VERSION = 0x43495551, 0
_RGB16, RGBA = 2, 5
_LIMIT = 26
"""Bits of the longest code."""

_AHEAD = 8
"""Words of zeroes behind the last: more than a pixel and a run can take."""

_RANDOM = (
    "CXTVHSoOMgvskGSLETqdQ/5zQDFOPeUJktD59AIFpOrbr7fjn8qmN2+BaDL90iHw"
    "E7WMWIyEKGsILufz1RBru8k2KbnsWpXCsAo1owQrgchMUC4+36SUN3md5Txhv/7A"
    "j9TZum8EjBaocKFOZSwxU7+iuHh0i6JdI3+8lklyGDKcwYa95eL2CGyvHRj1gMXR"
    "FVx3zt0bnZn/WYq04mpp4gNYazb46lYqPcRefPQXZ2hiBdfy1VxPvJA6lteNJt/V"
)
"""The format's random numbers, 256 of six bits."""

_RUN_BITS = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, *range(8, 16)]
"""By the state of the runs: how many bits the rest of one has."""

_HALVE = [110, 550, 900, 800, 550, 400, 350]
"""By how rarely it is counted: from which sum on counts are halved."""

_RARER = 2048
"""Pixels until it is counted more rarely."""


def prepare() -> None:
    """Have it compiled, which takes seconds the first time: call it in a thread."""
    decode(_HEADER.pack(_MAGIC, _VERSION, 4, 1, 1) + bytes([0, 0, 0, 255] * 2), 1, 1)


def decode(data: Data, width: int, height: int) -> NDArray[np.uint8]:
    """The picture (height, width, 4) of a QUIC image, as `bitmap.decode` returns it.

    Raises CannotDecode if it is another picture than its message says, its data end too early, a
    run goes on behind the end of a line, or numba is missing.
    """
    body = bytes(data)
    if len(body) < _HEADER.size:
        raise CannotDecode("its data end before its header")
    magic, version, kind, *said = _HEADER.unpack_from(body)
    if (magic, version) != (_MAGIC, _VERSION):
        raise CannotDecode("its data are no QUIC")
    if not _RGB16 <= kind <= RGBA:
        raise CannotDecode(f"unknown QUIC type {kind}")
    lz.expect_size((said[0], said[1]), width, height)
    if not jit.AVAILABLE:
        raise CannotDecode("the package numba is not installed")
    used = len(body) // 4
    # The first line and the first column have no runs, and no code is shorter than a bit.
    if 3 * (width + height - 1) > 32 * used - _START:
        raise CannotDecode(tokens.ENDS_EARLY)
    words = np.zeros(used + _AHEAD, np.int64)
    words[:used] = np.frombuffer(body, "<u4", used)
    picture = np.zeros((height, width, 4), np.uint8)
    tables = _tables(5 if kind == _RGB16 else 8)
    result = jit.compiled(read)(words, used * 32, picture, kind == RGBA, *tables)
    if result < 0:
        raise CannotDecode(_REASONS[result])
    if kind == _RGB16:
        picture = (picture << 3 | picture >> 2).astype(np.uint8)
    return picture


class _Tables(NamedTuple):
    prefix: NDArray[np.int64]
    """By parameter: how many zeroes stand before a plain number."""

    suffix: NDArray[np.int64]
    """By parameter: how many bits a plain number has."""

    length: NDArray[np.int64]
    """By number and parameter: how many bits its code has."""

    group: NDArray[np.int64]
    """By number: which of the counts are those of numbers about as large."""

    unfold: NDArray[np.int64]
    """By number: the difference, modulo all."""

    waits: NDArray[np.int64]
    run_bits: NDArray[np.int64]
    halve: NDArray[np.int64]


@functools.cache
def _tables(bits: int) -> _Tables:
    """For values of so many bits."""
    many = 1 << bits
    parameters = np.arange(bits)
    prefix = np.minimum(_LIMIT - bits, (1 << bits - parameters) - 1)
    plain = prefix << parameters
    """The first number that is plain."""
    suffix = np.array([(many - int(first) - 1).bit_length() for first in plain])
    number = np.arange(many)[:, None]
    short = number < plain
    length = np.where(short, (number >> parameters) + parameters + 1, prefix + suffix)
    group = np.array([min((each + 1).bit_length(), bits) - 1 for each in range(many)])
    half = np.arange(many) >> 1
    unfold = np.where(np.arange(many) & 1, many - 1 - half, half)
    raw = np.frombuffer(base64.b64decode(_RANDOM), np.uint8)
    waits = np.unpackbits(raw).reshape(-1, 6) @ (1 << np.arange(6)[::-1])
    return _Tables(
        prefix, suffix, length, group, unfold, waits, np.array(_RUN_BITS), np.array(_HALVE)
    )


_REASONS = {-1: tokens.ENDS_EARLY, -2: "a run that goes on behind the end of its line"}


def read(
    words: Any,
    end: int,
    picture: Any,
    has_alpha: bool,
    prefix: Any,
    suffix: Any,
    length: Any,
    group: Any,
    unfold: Any,
    waits: Any,
    run_bits: Any,
    halve: Any,
) -> int:
    """What is compiled: the lines into ``picture``, from bits up to ``end``; less than 0: an error.

    The channels are R, G, B and A here, and the colours are one picture, alpha the other. What is
    kept of each picture is how many pixels go by without counting (``wait``), how many random
    numbers were used, how rarely it is counted (``rare``) and how long still (``left``), and how
    long runs were. It is one piece because compiled code that calls other such is not kept well.

    Nobody looks whether an index is inside of an array once this is compiled. Numbers are cut to
    what the tables have; and a pixel or a run that begins before ``end`` needs no more than the
    zeroes behind it, which end a run.
    """
    height, width = picture.shape[0], picture.shape[1]
    bits = len(prefix)
    values = (1 << bits) - 1
    line = np.zeros((4, width), np.int64)
    above = np.zeros((4, width), np.int64)
    at = _START
    numbers = np.zeros((4, width + 1), np.int64)
    """Of each pixel's left neighbour: those of the line begin at 1."""
    counts = np.zeros((4, bits, bits), np.int64)
    best = np.full((4, bits), bits - 1)
    state = np.zeros((2, 5), np.int64)
    state[:, 3] = _RARER
    for y in range(height):
        for alpha in range(2 if has_alpha else 1):
            first, behind = (3, 4) if alpha else (0, 3)
            wait, used, rare, left, runs = state[alpha]
            for channel in range(first, behind):
                numbers[channel, 0] = numbers[channel, 1] if y else 0
            x = 0
            while x < width:
                stop = min(width, x + left) if rare < 6 else width
                if rare < 6:
                    left -= stop - x
                ran = 0
                while x < stop:
                    if at > end:
                        return -1
                    alike = y > 0 and x > 2 and x != ran
                    for channel in range(first, behind):
                        if not alike:
                            break
                        alike = (
                            above[channel, x - 1] == above[channel, x]
                            and line[channel, x - 1] == line[channel, x - 2]
                        )
                    if alike:
                        ran, many = x, 0
                        while words[at >> 5] >> 31 - (at & 31) & 1:
                            many += 1 << run_bits[runs]
                            at += 1
                            if runs < 31:
                                runs += 1
                            if many > stop - x:
                                return -2
                        at += 1
                        rest = 0
                        for _ in range(run_bits[runs]):
                            bit = words[at >> 5] >> 31 - (at & 31) & 1
                            rest = rest << 1 | bit
                            at += 1
                        many += rest
                        if runs:
                            runs -= 1
                        if many > stop - x:
                            return -2
                        for _ in range(many):
                            for channel in range(first, behind):
                                line[channel, x] = line[channel, x - 1]
                            x += 1
                        continue
                    for channel in range(first, behind):
                        parameter = best[channel, group[numbers[channel, x]]]
                        word = int(words[at >> 5]) << (at & 31)
                        word = word & 0xFFFFFFFF | words[(at >> 5) + 1] >> 32 - (at & 31)
                        zeroes = 0
                        while zeroes < prefix[parameter] and not word >> (31 - zeroes) & 1:
                            zeroes += 1
                        if zeroes < prefix[parameter]:
                            size = zeroes + 1 + parameter
                            number = word >> (32 - size) & (1 << parameter) - 1
                            number |= zeroes << parameter
                        else:
                            size = zeroes + suffix[parameter]
                            number = word >> (32 - size) & (1 << suffix[parameter]) - 1
                            number += zeroes << parameter
                        at += size
                        number &= values
                        numbers[channel, x + 1] = number
                        guess = above[channel, x]
                        if x:
                            guess = line[channel, x - 1]
                            if y:
                                guess = guess + above[channel, x] >> 1
                        line[channel, x] = unfold[number] + guess & values
                    if wait:
                        wait -= 1
                    else:
                        wait = waits[used & 255] & (1 << rare) - 1
                        used += 1
                        for channel in range(first, behind):
                            where = group[numbers[channel, x]]
                            number = numbers[channel, x + 1]
                            shortest = 1 << 30
                            for parameter in range(bits - 1, -1, -1):
                                counts[channel, where, parameter] += length[number, parameter]
                                if counts[channel, where, parameter] < shortest:
                                    shortest = counts[channel, where, parameter]
                                    best[channel, where] = parameter
                            if shortest > halve[rare]:
                                for parameter in range(bits):
                                    counts[channel, where, parameter] >>= 1
                    x += 1
                if rare < 6 and left == 0:
                    rare += 1
                    left = _RARER
            state[alpha, 0], state[alpha, 1], state[alpha, 2] = wait, used, rare
            state[alpha, 3], state[alpha, 4] = left, runs
        for channel in range(4 if has_alpha else 3):
            for x in range(width):
                picture[y, x, 3 if channel == 3 else 2 - channel] = line[channel, x]
        line, above = above, line
    return 0 if at <= end else -1
