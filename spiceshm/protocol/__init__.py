"""The conversation, without I/O and without a clock: link phase, channels, both ends of each.

In reading order: `tables` who may say what when, `channel` framing and flow control of any channel,
`display` the shared-memory extension's bookkeeping, with `display_server` and `display_client` for
one end each, `inputs` what keys and motions mean and both ends of their channel, `link` how a
channel is opened.
"""

from .channel import Channel, Outgoing
from .display import SharedSurface
from .display_client import ClientDisplay
from .display_server import ServerDisplay
from .inputs import ClientInputs, ScanCodes, ServerInputs, key_message
from .link import ClientLink, Password, ServerLink, generate_key
from .tables import TABLES, State

__all__ = [
    "TABLES",
    "Channel",
    "ClientDisplay",
    "ClientInputs",
    "ClientLink",
    "Outgoing",
    "Password",
    "ScanCodes",
    "ServerDisplay",
    "ServerInputs",
    "ServerLink",
    "SharedSurface",
    "State",
    "generate_key",
    "key_message",
]
