"""The command: record, look into a file, play either side."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from functools import partial
from typing import TYPE_CHECKING

import trio

from spiceshm.cli.common import UsageError, one_line, read_password, until_interrupted
from spiceshm.errors import AddressError, SpiceShmError
from spiceshm.nursery import open_nursery
from spiceshm.transport import Address, Listener, parse_address

from .file import RecordingError, Writer
from .proxy import Proxy
from .replay import Client, Server
from .session import Counts, Recording, load

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from spiceshm.transport import Stream

DESCRIPTION = """\
Sit between a SPICE client and a server, keep what both say on every channel, and pass it on. Or
play what one of them said to a live one of the other. Any client, any server, ours or not."""
EPILOG = """\
examples:
  tools/record --listen unix:/tmp/r.sock --to unix:/tmp/vm.sock out.spice.gz
  tools/record --listen tcp:127.0.0.1:5999 --to tcp:host:5900 out.spice --json
  tools/record out.spice.gz                what is in a file
  tools/record --replay out.spice.gz --as-server --listen unix:/tmp/r.sock
  tools/record --replay out.spice.gz --as-client --to unix:/tmp/vm.sock --with-times

Ctrl-C ends a recording, and the file is complete then. A name that ends in .gz: gzip.

What a user types into the machine is in the file, as it was typed; the ticket is not, and where a
client wants SASL it is turned away. TLS is not understood.

Bytes alone pass, descriptors do not: so our own server and client do not share memory through it,
they find that out by themselves, and pixels go over the wire as in any SPICE, and into the file. A
stock client must not ask for GL scanouts (spicy does so only of a server on a Unix socket that has
GL).

Replaying, the link phase is a new one, as server with any ticket taken, as client with the password
in $SPICESHM_PASSWORD. PONG, ACK and ACK_SYNC, and acknowledgements of motions, are those that the
live connection needs, those recorded are left out; so are messages about migrating. As server it
says all that was recorded and stays until Ctrl-C; as client it ends when all was read.
QEMU may crash when a client leaves as soon as that: use --with-times there.

Exit status: 0 all was well, 1 something was not, 2 wrong options."""


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except AddressError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="tools/record",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = options.add_argument
    add("file", nargs="?", help="what is recorded; without --listen and --to: say what is in it")
    add(
        "--listen",
        type=_address,
        metavar="ADDRESS",
        help="unix:/path or tcp:host:port, for clients",
    )
    add("--to", type=_address, metavar="ADDRESS", help="where the server listens")
    add("--replay", metavar="FILE", help="play this, --as-server or --as-client")
    add("--as-server", action="store_true", help="say to clients what the server said")
    add("--as-client", action="store_true", help="say to a server what the client said")
    add("--with-times", action="store_true", help="when it was said, not as quickly as can be")
    add("--json", action="store_true", help="JSON: a line when it listens, then the counts")
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = _options()
    arguments = options.parse_args(words)
    given = bool(arguments.listen), bool(arguments.to)
    try:
        if arguments.replay is not None:
            wanted = (arguments.as_server, arguments.as_client)
            if arguments.file is not None or sum(wanted) != 1 or given != wanted:
                options.error("--replay FILE goes with --as-server --listen or --as-client --to")
            return _replay(arguments)
        if arguments.as_server or arguments.as_client or arguments.with_times:
            options.error("--as-server, --as-client and --with-times go with --replay")
        if arguments.file is None:
            options.error("which file?")
        if given == (False, False):
            _print(load(arguments.file).counts(), as_json=arguments.json)
            return 0
        if given != (True, True):
            options.error("to record takes both, --listen and --to")
        return _record(arguments)
    except (SpiceShmError, UsageError) as error:
        return _fail(error)
    except OSError as error:
        return _fail(f"{error.filename or 'output'}: {error.strerror}")
    except KeyboardInterrupt:
        return 130


def _fail(error: Exception | str) -> int:
    _complain(str(error))
    return 1


def _complain(line: str) -> None:
    print(f"tools/record: {one_line(Exception(line))}", file=sys.stderr, flush=True)


def _record(arguments: argparse.Namespace) -> int:
    with contextlib.closing(Listener(arguments.listen)) as listener:
        with contextlib.closing(Writer(arguments.file)) as writer:
            proxy = Proxy(arguments.to, writer.add, _complain)
            trio.run(partial(_serve, listener, proxy.handle, as_json=arguments.json))
    _print(load(arguments.file).counts(), as_json=arguments.json)
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    recording = _to_play(arguments.replay)
    counts = Counts()
    if arguments.as_server:
        server = Server(recording, counts, with_times=arguments.with_times)
        with contextlib.closing(Listener(arguments.listen)) as listener:
            trio.run(partial(_serve, listener, server.handle, as_json=arguments.json))
    else:
        client = Client(
            recording,
            counts,
            _complain,
            with_times=arguments.with_times,
            password=(read_password(None) or "").encode(),
        )
        trio.run(partial(_until_interrupted, partial(client.play, arguments.to)))
    _print(counts, as_json=arguments.json)
    return 0


def _to_play(path: str) -> Recording:
    recording = load(path)
    if not recording.sessions():
        raise RecordingError(f"{path}: there is no session in it")
    return recording


async def _until_interrupted(task: Callable[[], Awaitable[None]]) -> None:
    async with until_interrupted():
        await task()


async def _serve(
    listener: Listener, handle: Callable[[Stream], Awaitable[None]], *, as_json: bool
) -> None:
    """Until Ctrl-C."""
    async with until_interrupted(), open_nursery() as nursery:
        _say_where(listener.address, as_json=as_json)
        await listener.serve(handle, nursery)


def _say_where(address: Address, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"address": str(address), "uri": address.uri}), flush=True)
    else:
        print(f"listening on {address} ({address.uri})", file=sys.stderr, flush=True)


def _print(counts: Counts, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(counts.as_json()))
        return
    for line in counts.lines():
        print(line)
