"""iceoryx2, through its Python binding: the raw hand-over of pixels, without any display around it.

The producer copies the pixels of the rectangles into a sample, sends that, and notifies; the reader
blocks on the event, receives the newest sample and copies it to memory of its own. There is no
surface: a rectangle is a payload by itself, so what did not change is nowhere to be seen.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from .process import Failed, cpu_ns, workers
from .stats import Measures, latencies

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from .work import Work

HOW_TO = "pip install iceoryx2"
_LAST = -1
_STAMP = np.dtype([("serial", "<i8"), ("published", "<i8")])


def lacks() -> str | None:
    """How to install it, where it is not."""
    return None if importlib.util.find_spec("iceoryx2") else HOW_TO


def _services(name: str) -> tuple[Any, Any, Any]:
    """The node (to be kept), the data and the event service."""
    import iceoryx2 as iox2  # type: ignore[import-untyped]

    iox2.set_log_level(iox2.LogLevel.Error)
    node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
    data = (
        node.service_builder(iox2.ServiceName.new(f"{name}/data"))
        .publish_subscribe(iox2.Slice[ctypes.c_uint8])
        .subscriber_max_buffer_size(1)
        .open_or_create()
    )
    event = node.service_builder(iox2.ServiceName.new(f"{name}/event")).event().open_or_create()
    return node, data, event


def produce(link: Connection, name: str, size: int, pause_s: float, seconds: float) -> None:
    """Hand over ``size`` bytes again and again; send how often, and the CPU of both ends."""
    _node, data, event = _services(name)
    publisher = data.publisher_builder().initial_max_slice_len(size + _STAMP.itemsize).create()
    notifier = event.notifier_builder().create()
    pixels = np.full(size, 0x55, np.uint8)

    def hand_over(serial: int) -> None:
        sample = publisher.loan_slice_uninit(size + _STAMP.itemsize)
        payload = np.frombuffer(sample.payload().as_memory_view(), np.uint8)
        payload[_STAMP.itemsize :] = pixels
        stamp = payload[: _STAMP.itemsize].view(_STAMP)
        stamp["serial"] = serial
        stamp["published"] = time.monotonic_ns()
        sample.assume_init().send()
        notifier.notify()

    link.send("ready")
    reader: int = link.recv()
    own, theirs = time.process_time_ns(), cpu_ns(reader)
    end = time.monotonic_ns() + int(seconds * 1e9)
    serial = 0
    while time.monotonic_ns() < end:
        time.sleep(pause_s)
        serial += 1
        hand_over(serial)
    link.send((serial, time.process_time_ns() - own, cpu_ns(reader) - theirs))
    time.sleep(pause_s)
    hand_over(_LAST)
    link.recv()  # samples live as long as their publisher


def look(link: Connection, name: str, size: int) -> None:
    """Mirror what comes; send when it was published and when it was copied."""
    _node, data, event = _services(name)
    subscriber = data.subscriber_builder().buffer_size(1).create()
    listener = event.listener_builder().create()
    mirror = np.zeros(size, np.uint8)
    times = []
    link.send("ready")
    serial = 0
    while serial != _LAST:
        listener.blocking_wait()
        while (sample := subscriber.receive()) is not None:
            payload = np.frombuffer(sample.payload().as_memory_view(), np.uint8)
            mirror[:] = payload[_STAMP.itemsize :]
            now = time.monotonic_ns()
            stamp = payload[: _STAMP.itemsize].view(_STAMP)
            serial = int(stamp["serial"][0])
            times.append((int(stamp["published"][0]), now))
            del payload, stamp, sample
    link.send(times[:-1])


def measure(work: Work, cores: Sequence[int], seconds: float) -> Measures:
    """Run the job once, at ``work``'s pace and pixels. Raises Failed."""
    name = f"spiceshm-bench/{os.getpid()}-{time.monotonic_ns()}"
    size = work.painted_bytes
    with workers() as start:
        producer = start(produce, name, size, work.pause_s, seconds, cpu=cores[0])
        producer.receive()
        reader = start(look, name, size, cpu=cores[-1])
        reader.receive()
        producer.send(reader.pid)
        updates, server_cpu, reader_cpu = producer.receive(seconds)
        times = np.array(reader.receive(), np.int64).reshape(-1, 2)
        producer.send("done")
    if len(times) < 2:
        raise Failed("too few updates")
    return {
        "server_cpu_us": server_cpu / 1000 / updates,
        "reader_cpu_us": reader_cpu / 1000 / updates,
        **latencies("seen", times[:, 1] - times[:, 0]),
    }
