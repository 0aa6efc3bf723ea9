"""One owner for every descriptor that crosses a socket.

A descriptor that arrives belongs to nobody until somebody takes it, and a forgotten one is a leak
that a hostile peer can drive. So each lives in a `Descriptor` that closes it exactly once.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class Descriptor:
    """Owns one file descriptor; closing twice is harmless, dropping it open a ResourceWarning."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def fileno(self) -> int:
        """The descriptor's number; it stays ours. Raises ValueError once closed or detached."""
        if self._fd < 0:
            raise ValueError("descriptor is closed")
        return self._fd

    def detach(self) -> int:
        """Give the descriptor away: the caller closes it from now on."""
        fd, self._fd = self.fileno(), -1
        return fd

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Descriptor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._fd >= 0:
            warnings.warn(f"descriptor {self._fd} was never closed", ResourceWarning, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return "<Descriptor closed>" if self.closed else f"<Descriptor {self._fd}>"
