"""What SPICE clients and servers say to each other, kept and played again: ``tools/record``.

In reading order:

- `file`: what a recording is as a file;
- `session`: what is in it: sessions, connections, messages, each with its time;
- `proxy` makes one, between a client and a server;
- `replay` plays either side of one to a live client or a live server;
- `cli` is the command.

Tests read recordings so, without any socket:

    for connection in load("tests/recordings/sessions/qemu-qxl-glz.spice.gz").connections:
        for message in connection.messages(Sender.SERVER):
            message.channel, message.number, message.body, message.time_ns, message.parse()
"""

from .file import Event, RecordingError, Writer
from .session import Connection, Passed, Recording, load

__all__ = ["Connection", "Event", "Passed", "Recording", "RecordingError", "Writer", "load"]
