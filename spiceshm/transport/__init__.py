"""Sockets: `address` where, `stream` connected ones with descriptors, `listen` accepting.

`forks` is what becomes of them in a forked process.
"""

from .address import Address, TcpAddress, UnixAddress, default_address, parse_address
from .forks import close_copies
from .listen import Listener
from .stream import Stream, open_stream

__all__ = [
    "Address",
    "Listener",
    "Stream",
    "TcpAddress",
    "UnixAddress",
    "close_copies",
    "default_address",
    "open_stream",
    "parse_address",
]
