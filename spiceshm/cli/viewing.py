"""What to type, or to open, to look at what ``spiceshm-server`` shows."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shlex
import socket
import stat
import tempfile
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from ..errors import SpiceShmError
from ..transport import Address, TcpAddress, default_address
from .common import UsageError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_GROUP = "[virt-viewer]\n"
_EVERY_ADDRESS = ("0.0.0.0", "::")
_ELSEWHERE = ("192.0.2.1", 9)
"""An address for documentation (RFC 5737): what leads there leads out. Nothing is sent."""


def commands(place: Address, *, password_file: str | None, vv: str | None) -> list[list[str]]:
    """For each viewer that can look at ``place`` its command, as a list of words, ours first.

    No password is in one: stock viewers ask for it. ``vv`` is the connection file for ``place``.
    """
    place = _seen_from_outside(place)
    ours = ["spiceshm-client", "--stats"]
    if password_file is not None:
        ours += ["--password-file", os.path.abspath(password_file)]
    if place != default_address():
        ours.append(str(place))
    if place.uri is None:
        return [ours]
    remote_viewer = ["remote-viewer", place.uri if vv is None else os.path.abspath(vv)]
    return [ours, remote_viewer, ["spicy", f"--uri={place.uri}"]]


def in_lines(viewers: Sequence[Sequence[str]]) -> list[str]:
    """What `commands` returned, for people: to be read, and copied into a shell."""
    ours, *stock = map(shlex.join, viewers)
    labels = ["with a stock viewer:", *[""] * len(stock)]
    shown = [("look at it:", ours), *zip(labels, stock, strict=False)]
    return [f"  {label:21} {line}" for label, line in shown]


def for_stock_viewers(places: Sequence[Address]) -> Address | None:
    """The first address that stock viewers have a name for."""
    return next((place for place in places if place.uri is not None), None)


@contextlib.contextmanager
def connection_file(
    path: str, places: Sequence[Address], *, title: str, password: str | None
) -> Iterator[None]:
    """Write a file for remote-viewer (11 or later for Unix sockets), which is there in the block.

    Nobody else can read it, as the password is in it. A connection file that was there before is
    replaced; at the end ours is removed, if nobody replaced it. Raises UsageError if stock viewers
    can reach none of ``places``, SpiceShmError if the file cannot be written.
    """
    place = for_stock_viewers(places)
    if place is None:
        raise UsageError(
            f"--write-vv {path}: stock viewers reach no abstract socket; "
            "--listen to unix:/path or tcp:host:port too"
        )
    try:
        text = _text(_seen_from_outside(place), title, password).encode()
        descriptor = _write(path, text)
    except UnicodeEncodeError:
        raise UsageError(f"--write-vv {path}: the socket's name is no UTF-8") from None
    except OSError as error:
        raise SpiceShmError(f"--write-vv {path}: {reason(error)}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(path), os.fstat(descriptor)):
                os.unlink(path)
        os.close(descriptor)


def _write(path: str, text: bytes) -> int:
    """Put the file there, whole or not at all; it is kept open, so that its number stays its own.

    Raises OSError, SpiceShmError if there is something else that would be lost.
    """
    _check_replaceable(path)
    descriptor, name = tempfile.mkstemp(  # for its owner only
        prefix=".", suffix=".vv", dir=os.path.dirname(os.path.abspath(path))
    )
    try:
        os.write(descriptor, text)
        os.replace(name, path)
    except BaseException:
        os.close(descriptor)
        os.unlink(name)
        raise
    return descriptor


def _check_replaceable(path: str) -> None:
    try:
        if stat.S_ISREG(os.lstat(path).st_mode):
            with open(path, "rb") as file:
                if file.read(len(_GROUP)) == _GROUP.encode():
                    return
    except FileNotFoundError:
        return
    raise SpiceShmError(f"--write-vv {path}: it is there already, and is no connection file")


def _text(place: Address, title: str, password: str | None) -> str:
    where = (
        {"host": place.host, "port": str(place.port)}
        if isinstance(place, TcpAddress)
        else {"unix-path": place.path}
    )
    keys = {"type": "spice", **where, "title": title, "delete-this-file": "0"}
    if password is not None:
        keys["password"] = password
    return _GROUP + "".join(f"{key}={_escaped(value)}\n" for key, value in keys.items())


def _escaped(value: str) -> str:
    """As GKeyFile reads it, which drops spaces around a value."""
    for character, escape in (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        value = value.replace(character, escape)
    inner = value.strip(" ")
    if not inner:
        return "\\s" * len(value)
    before, _, after = value.partition(inner)
    return "\\s" * len(before) + inner + "\\s" * len(after)


def _seen_from_outside(place: Address) -> Address:
    """Where every address of this machine is listened on: what others know it by."""
    if isinstance(place, TcpAddress) and place.host in _EVERY_ADDRESS:
        return replace(place, host=_own_name())
    return place


@cache
def _own_name() -> str:
    """This machine's name, or its address where it knows that name only for itself."""
    name = socket.gethostname()
    try:
        found = {info[4][0] for info in socket.getaddrinfo(name, None)}
    except OSError:
        found = set()
    if any(not ipaddress.ip_address(address).is_loopback for address in map(str, found)):
        return name
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(_ELSEWHERE)
        except OSError:
            return name
        return str(sock.getsockname()[0])
