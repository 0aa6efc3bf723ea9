"""Addresses: where a server listens and a client connects.

Accepted are ``unix:/path``, ``unix:@name`` (abstract, Linux), ``tcp:host:port``, and the URIs that
SPICE viewers use: ``spice://host:port`` and ``spice+unix:///path``.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from ..errors import AddressError

ACCEPTED = "unix:/path, unix:@name, tcp:host:port, spice://host:port or spice+unix:///path"
_MAX_UNIX_PATH = 107
_HOST_AND_PORT = re.compile(r"(?:\[([^\[\]\s]+)\]|([^\[\]\s:/?#@]+))(?::([0-9]*))?")


@dataclass(frozen=True)
class UnixAddress:
    """A Unix socket: a path, or ``@name`` in the abstract namespace."""

    path: str

    @property
    def abstract(self) -> bool:
        return self.path.startswith("@")

    @property
    def raw(self) -> str:
        """The name as the kernel takes it."""
        return "\0" + self.path[1:] if self.abstract else self.path

    @property
    def uri(self) -> str | None:
        """What a stock viewer is given; none of them can name an abstract socket."""
        if self.abstract:
            return None
        return f"spice+unix://{quote(os.fsencode(os.path.abspath(self.path)))}"

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True)
class TcpAddress:
    """A TCP port; ``host`` is a name or an address without brackets."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it, as far as the text tells."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def uri(self) -> str | None:
        return f"spice://{self._bracketed}:{self.port}"

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    def __str__(self) -> str:
        return f"tcp:{self._bracketed}:{self.port}"


Address = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """Read an address. Raises AddressError that says what is accepted."""
    if text.startswith("unix:"):
        return _unix(text, text.removeprefix("unix:"))
    if text.startswith("spice+unix://"):
        return _unix(text, os.fsdecode(unquote_to_bytes(text.removeprefix("spice+unix://"))))
    if text.startswith("tcp:"):
        return _tcp(text, text.removeprefix("tcp:"))
    if text.startswith("spice://"):
        return _tcp(text, text.removeprefix("spice://").rstrip("/"))
    raise _bad(text, "is no address")


def default_address() -> UnixAddress:
    """The socket that server and client agree on when nothing is said, in a directory of ours."""
    return UnixAddress(str(runtime_directory() / "display.sock"))


def runtime_directory() -> Path:
    """``$XDG_RUNTIME_DIR/spiceshm``, or a directory of the user's own under /tmp."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isabs(runtime) and os.path.isdir(runtime):
        return Path(runtime) / "spiceshm"
    return Path(tempfile.gettempdir()) / f"spiceshm-{os.getuid()}"


def _unix(text: str, path: str) -> UnixAddress:
    if not path or path == "@" or "\0" in path:
        raise _bad(text, "names no socket")
    if not path.startswith(("/", "@")):
        raise _bad(text, "is not absolute")
    if len(os.fsencode(path)) > _MAX_UNIX_PATH:
        raise _bad(text, f"is longer than {_MAX_UNIX_PATH} bytes")
    return UnixAddress(path)


def _tcp(text: str, rest: str) -> TcpAddress:
    parts = _HOST_AND_PORT.fullmatch(rest)
    if parts is None:
        raise _bad(text, "is no host and port")
    number, name, port = parts.groups()
    try:
        if number:
            ipaddress.IPv6Address(number)
        else:
            name.encode("idna")  # as getaddrinfo will
    except ValueError:
        raise _bad(text, "names no host") from None
    lowest = 0 if text.startswith("tcp:") else 1
    if not port and name and name.isdigit():
        raise _bad(text, "has no host")
    if not port or len(port) > 5 or not lowest <= int(port) <= 65535:
        raise _bad(text, "has no port in 1..65535")
    return TcpAddress((number or name).lower(), int(port))


def _bad(text: str, why: str) -> AddressError:
    return AddressError(f"{text!r} {why}; accepted: {ACCEPTED}")
