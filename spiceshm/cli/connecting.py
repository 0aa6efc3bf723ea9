"""The connection that the options of ``spiceshm-client`` ask for."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ..client import RemoteDisplay, Sharing, connect
from ..client.wishes import Wishes
from ..errors import MemoryRefused
from .common import NotShared, UsageError, read_password

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def connected(arguments: argparse.Namespace) -> AsyncIterator[RemoteDisplay]:
    """Connect; raises UsageError, NotShared, and what `connect` raises."""
    password = read_password(arguments.password_file) or ""
    shm: Sharing = "auto"
    if arguments.no_shm or arguments.require_shm:
        shm = "off" if arguments.no_shm else "require"
    try:
        # Only for a package that is missing: all else the options have seen to.
        Wishes(compression=arguments.compression).check()
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    try:
        async with connect(
            arguments.uri,
            password=password,
            shm=shm,
            view_only=arguments.view_only,
            keyboard=arguments.keyboard,
            wait_server=arguments.wait_server or 0.0,
            compression=arguments.compression,
            cache_pixels=arguments.cache_pixels,
            video=arguments.video,
            strict=arguments.strict,
        ) as display:
            yield display
    except MemoryRefused as error:
        raise NotShared(str(error)) from None
