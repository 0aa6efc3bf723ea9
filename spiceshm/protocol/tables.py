"""Who may say what, when: one table a channel, the same for both ends.

``TABLES[channel][state]`` maps a message class to the state that it leads to; what is not in it is
not allowed. Messages of all channels (SET_ACK, PING, ...) are always allowed and change no state.
What depends on numbers (credits, leases, segments) is checked in `display`, not here. So is which
surface is the primary: in ordinary SPICE there may be others, which change no state.

The server's messages alone move a display channel on once the client has sent INIT, so both ends
agree on the state at every message of the server; a client's message may arrive when the server is
further on, which is why the tables allow it there too.
"""

from __future__ import annotations

import enum
from typing import TypeAlias, get_args

from ..wire import Message, cursor, display, inputs, main, shm


class State(enum.Enum):
    """Where a channel is; both ends use the same, and a channel has those of its own table."""

    START = "nothing has been said yet"
    OPEN = "the channel's INIT has been sent"
    READY = "the display client is ready; there is neither surface nor offer"
    OFFERED = "memory has been offered; there is no surface yet"
    SHARED = "the primary surface lies in shared memory"
    SHARED_EMPTY = "shared memory is in use; the primary surface was destroyed"
    ORDINARY = "the primary surface is drawn by messages, as in every SPICE"
    ORDINARY_EMPTY = "ordinary SPICE; the primary surface was destroyed"

    __hash__ = object.__hash__  # Enum's own is Python code, and every message asks for it


START = State.START

Table: TypeAlias = dict[State, dict[type[Message], State]]


def _stay(state: State, *kinds: type[Message]) -> dict[type[Message], State]:
    return dict.fromkeys(kinds, state)


_MAIN_SERVER = (
    main.ChannelsList,
    main.MouseMode,
    main.MultiMediaTime,
    main.AgentConnected,
    main.AgentDisconnected,
    main.AgentData,
    main.AgentToken,
    main.Name,
    main.Uuid,
    main.AgentConnectedTokens,
)
_MAIN_CLIENT = (
    main.AttachChannels,
    main.MouseModeRequest,
    main.AgentStart,
    main.ClientAgentData,
    main.ClientAgentToken,
)
_INPUTS_CLIENT = (
    inputs.KeyDown,
    inputs.KeyUp,
    inputs.ClientKeyModifiers,
    inputs.KeyScancode,
    inputs.MouseMotion,
    inputs.MousePosition,
    inputs.MousePress,
    inputs.MouseRelease,
)
_CURSOR_SERVER = (
    cursor.CursorSet,
    cursor.CursorMove,
    cursor.CursorHide,
    cursor.CursorTrail,
    cursor.CursorInvalOne,
    cursor.CursorInvalAll,
)
_CURSOR_EMPTIES = (cursor.CursorReset, cursor.CursorInvalOne, cursor.CursorInvalAll)
"""What stock servers repeat behind RESET, when a virtual machine starts again."""

_DISPLAY_CLIENT = (display.PreferredCompression, display.PreferredVideoCodecType)
_STREAMS = (
    display.StreamCreate,
    display.StreamData,
    display.StreamDataSized,
    display.StreamClip,
    display.StreamDestroy,
    display.StreamDestroyAll,
)
_DRAWING = (*get_args(display.Drawing), *_STREAMS)
_ANY_SURFACE = (
    display.Mark,
    display.Reset,
    display.MonitorsConfig,
    display.InvalList,
    display.InvalAllPixmaps,
    display.InvalPalette,
    display.InvalAllPalettes,
)
_ENDS = (display.StreamDestroy, display.StreamDestroyAll)
"""Streams that there are not may end at any time in ordinary SPICE."""


def _display() -> Table:
    create, create_shm = display.SurfaceCreate, shm.SurfaceCreateShm
    destroy, offer, withdraw = display.SurfaceDestroy, shm.ShmOffer, shm.ShmWithdraw
    reply, handled = shm.ShmReply, shm.ShmDamageHandled
    s = State
    return {
        s.START: {display.DisplayInit: s.READY, **_stay(s.START, *_DISPLAY_CLIENT)},
        s.READY: {
            offer: s.OFFERED,
            create: s.ORDINARY,
            **_stay(s.READY, *_DISPLAY_CLIENT, *_ANY_SURFACE, *_ENDS),
        },
        s.OFFERED: {
            create: s.ORDINARY,
            create_shm: s.SHARED,
            **_stay(s.OFFERED, offer, withdraw, reply, *_DISPLAY_CLIENT),
        },
        s.SHARED: {
            destroy: s.SHARED_EMPTY,
            **_stay(s.SHARED, shm.ShmDamage, offer, withdraw, reply, handled),
            **_stay(s.SHARED, *_DISPLAY_CLIENT, *_ANY_SURFACE),
        },
        s.SHARED_EMPTY: {
            create_shm: s.SHARED,
            create: s.ORDINARY,
            **_stay(s.SHARED_EMPTY, offer, withdraw, reply, handled),
            **_stay(s.SHARED_EMPTY, *_DISPLAY_CLIENT, *_ANY_SURFACE),
        },
        s.ORDINARY: {
            destroy: s.ORDINARY_EMPTY,
            **_stay(s.ORDINARY, create, *_DRAWING, reply, handled),
            **_stay(s.ORDINARY, *_DISPLAY_CLIENT, *_ANY_SURFACE),
        },
        s.ORDINARY_EMPTY: {
            create: s.ORDINARY,
            **_stay(s.ORDINARY_EMPTY, destroy, *_DRAWING, reply, handled),
            **_stay(s.ORDINARY_EMPTY, *_DISPLAY_CLIENT, *_ANY_SURFACE),
        },
    }


TABLES: dict[str, Table] = {
    "main": {
        State.START: {main.MainInit: State.OPEN, **_stay(State.START, *_MAIN_CLIENT)},
        State.OPEN: _stay(State.OPEN, *_MAIN_SERVER, *_MAIN_CLIENT),
    },
    "inputs": {
        State.START: {inputs.InputsInit: State.OPEN, **_stay(State.START, *_INPUTS_CLIENT)},
        State.OPEN: _stay(State.OPEN, inputs.KeyModifiers, inputs.MouseMotionAck, *_INPUTS_CLIENT),
    },
    "cursor": {
        State.START: {cursor.CursorInit: State.OPEN, **_stay(State.START, *_CURSOR_EMPTIES)},
        State.OPEN: {cursor.CursorReset: State.START, **_stay(State.OPEN, *_CURSOR_SERVER)},
    },
    "display": _display(),
}
