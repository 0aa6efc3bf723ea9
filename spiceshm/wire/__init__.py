"""Every message of SPICE that we speak, declared once (see `message` for how).

In reading order: `message` what a message is, `types` shared pieces and SPICE's numbers, `link` the
link phase, `base` headers and messages of all channels, `main`, `display`, `shm` the extension,
`inputs`, `cursor`, `agent` what travels inside main, `hot` the quick codec of what passes once a
frame.
"""

from . import agent, base, cursor, display, inputs, link, main, shm
from .message import MESSAGES, Message, Record, Sender, lookup

__all__ = [
    "MESSAGES",
    "Message",
    "Record",
    "Sender",
    "agent",
    "base",
    "cursor",
    "display",
    "inputs",
    "link",
    "lookup",
    "main",
    "shm",
]
