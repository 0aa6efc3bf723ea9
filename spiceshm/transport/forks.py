"""Sockets after a fork: the child has copies of them, but nothing that serves them.

A copy that stays open hides the parent's end from its peers. So whoever runs a loop in a background
thread closes the copies in a child, where that thread does not exist.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

_threads: weakref.WeakKeyDictionary[socket.socket, int] = weakref.WeakKeyDictionary()


def of_this_thread(sock: socket.socket) -> None:
    """Note that the loop of the calling thread serves ``sock``."""
    _threads[sock] = threading.get_ident()


def close_copies(thread: int) -> None:
    """In a forked child: close its copies of the sockets that ``thread`` served in the parent.

    Nothing is sent, and the parent's own stay as they are.
    """
    for sock, served_by in list(_threads.items()):
        if served_by == thread:
            sock.close()
