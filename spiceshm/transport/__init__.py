"""Sockets: `address` where, `stream` connected ones with descriptors, `listen` accepting."""

from .address import Address, TcpAddress, UnixAddress, default_address, parse_address
from .listen import Listener
from .stream import Stream, open_stream

__all__ = [
    "Address",
    "Listener",
    "Stream",
    "TcpAddress",
    "UnixAddress",
    "default_address",
    "open_stream",
    "parse_address",
]
