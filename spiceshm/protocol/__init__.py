"""The conversation, without I/O and without a clock: link phase, channels, both ends of each.

In reading order: `tables` who may say what when, `channel` framing and flow control of any channel,
`display` the shared-memory extension's bookkeeping, with `display_server` and `display_client` for
one end each, `inputs` what keys and motions mean and both ends of their channel, `agent` the
guest's agent on main, as the server plays it and as a client speaks to it, `link` how a channel is
opened.
"""

from .agent import AGENT_TOKENS, ClientAgent, ServerAgent, Wish
from .channel import Channel, Outgoing
from .display import SharedSurface
from .display_client import ClientDisplay
from .display_server import ServerDisplay
from .inputs import ClientInputs, ScanCodes, ServerInputs, key_message
from .link import ClientLink, Password, ServerLink, generate_key
from .tables import TABLES, State

__all__ = [
    "AGENT_TOKENS",
    "TABLES",
    "Channel",
    "ClientAgent",
    "ClientDisplay",
    "ClientInputs",
    "ClientLink",
    "Outgoing",
    "Password",
    "ScanCodes",
    "ServerAgent",
    "ServerDisplay",
    "ServerInputs",
    "ServerLink",
    "SharedSurface",
    "State",
    "Wish",
    "generate_key",
    "key_message",
]
