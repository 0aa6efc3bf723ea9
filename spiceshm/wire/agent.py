"""What the agent in a guest and a client say to each other, inside main's AGENT_DATA.

A message is `AgentHeader` and as many bytes as it says, cut into AGENT_DATA of at most 2048 bytes;
none of these ever holds parts of two messages. Its ``type`` is the ``number`` of a record here.
(``vd_agent.h``: ``VDAgentMessage``, ``VD_AGENT_*``.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeVar, dataclass_transform

from construct import (
    Array,
    Default,
    GreedyRange,
    If,
    Int16ul,
    Int32sl,
    Int32ul,
    Int64ul,
    Rebuild,
    Struct,
    len_,
    this,
)

from .message import As, Record, record
from .types import Tuple, between, one_of

if TYPE_CHECKING:
    from collections.abc import Callable

PROTOCOL = 1

CAP_MONITORS_CONFIG = 1
CAP_REPLY = 2
CAP_FILE_XFER_DISABLED = 13

FLAG_PHYSICAL_SIZE = 2
"""MONITORS_CONFIG: the monitors' sizes in mm are there too."""

MAX_MONITORS = 64

REPLY_SUCCESS = 1
REPLY_ERROR = 2


class AgentRecord(Record):
    """What follows the header whose type is ``number``."""

    number: ClassVar[int]


R = TypeVar("R", bound=AgentRecord)


@dataclass_transform(frozen_default=True, eq_default=False)
def _agent(number: int) -> Callable[[type[R]], type[R]]:
    def declare(cls: type[R]) -> type[R]:
        made = record(cls)
        made.number, made.title = number, f"agent.{made.title}"
        return made

    return declare


@record
class AgentHeader(Record):
    """``VDAgentMessage``: ``size`` bytes follow."""

    layout = Struct(
        "protocol" / Default(one_of(Int32ul, PROTOCOL), PROTOCOL),
        "type" / Int32ul,
        "opaque" / Default(Int64ul, 0),
        "size" / Int32ul,
    )
    type: int
    size: int


@record
class Monitor(Record):
    """``VDAgentMonConfig``: pixels, the height first; 0x0 is one that is switched off."""

    layout = Struct(
        "height" / Int32ul, "width" / Int32ul, "depth" / Int32ul, "x" / Int32sl, "y" / Int32sl
    )
    height: int
    width: int
    depth: int
    x: int
    y: int


@record
class MonitorSize(Record):
    """``VDAgentMonitorMM``: what the monitor measures, in mm."""

    layout = Struct("height" / Int16ul, "width" / Int16ul)
    height: int
    width: int


@_agent(2)
class MonitorsConfig(AgentRecord):
    """What the client's monitors, or windows, are like; ``sizes`` only with FLAG_PHYSICAL_SIZE."""

    layout = Struct(
        "num_of_monitors" / Rebuild(between(Int32ul, 0, MAX_MONITORS), len_(this.monitors)),
        "flags" / Int32ul,
        "monitors" / Tuple(Array(this.num_of_monitors, As(Monitor))),
        "sizes"
        / If(this.flags & FLAG_PHYSICAL_SIZE, Tuple(Array(this.num_of_monitors, As(MonitorSize)))),
    )
    flags: int
    monitors: tuple[Monitor, ...]
    sizes: tuple[MonitorSize, ...] | None = None


@_agent(3)
class Reply(AgentRecord):
    """How it went with the last message of the number ``type``: ``error`` is REPLY_SUCCESS or
    REPLY_ERROR."""

    layout = Struct("type" / Int32ul, "error" / Int32ul)
    type: int
    error: int


@_agent(6)
class AnnounceCapabilities(AgentRecord):
    """What its sender can; with ``request`` the other end is to say it too. Words as in links."""

    layout = Struct("request" / Int32ul, "caps" / Tuple(GreedyRange(Int32ul)))
    request: int
    caps: tuple[int, ...]
