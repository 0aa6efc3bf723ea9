"""The calls without await: threads, Ctrl-C, forks, ends of interpreters; against real servers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import traceback
from typing import TYPE_CHECKING, Any

import pytest
import trio

import spiceshm
import spiceshm.sync
from spiceshm import client, desktops
from spiceshm.background import Host, Loop, the_loop
from spiceshm.errors import Refusal
from tests.programs import (
    DEADLINE,
    Program,
    environment,
    script,
    serving,
    short_directory,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

DRAWER = """
import logging, signal, sys
import numpy as np, trio
import spiceshm
from spiceshm.events import Key, Button

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")

async def play(events):
    for event in events:
        if isinstance(event, Key | Button):
            print(event, flush=True)

async def main():
    with trio.open_signal_receiver(signal.SIGUSR1) as wishes:
        async with spiceshm.serve(sys.argv[1], inputs=play) as display:
            surface = display.create_surface(64, 48)
            surface.draw(np.zeros((48, 64, 4), np.uint8))
            print("listening", flush=True)
            async for _ in wishes:
                surface.draw(np.zeros((48, 64, 4), np.uint8))

trio.run(main)
"""
"""A server that draws a frame for every SIGUSR1, and says of every session when it ends and which
keys and buttons come."""


class Drawer(Program):
    """A process that runs DRAWER; it listens at ``address``."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__([sys.executable, "-c", DRAWER, address])
        assert self.line() == "listening"

    def draw(self) -> None:
        self.send(signal.SIGUSR1)

    def events(self, count: int) -> list[tuple[int, bool]]:
        """The next that it gets: number of the key or button, and whether it goes down."""
        got: list[tuple[int, bool]] = []
        while len(got) < count:
            if event := re.match(r"(?:Key|Button)\(\w+=(\d+), down=(\w+)\)", self.line()):
                got.append((int(event[1]), event[2] == "True"))
        return got

    def sees_end(self) -> None:
        """Wait until another session has ended."""
        while ": main channel: the " not in self.line():
            pass


@pytest.fixture(autouse=True, scope="module")
def thread_runs() -> None:
    """Its descriptors stay for the whole process, so that no test is blamed for them."""
    the_loop()


@pytest.fixture
def drawer() -> Iterator[Drawer]:
    with short_directory() as place, Drawer(f"unix:{place}/s") as drawer:
        yield drawer


@pytest.fixture
def silent() -> Iterator[str]:
    """Somebody who listens and never answers."""
    with short_directory() as place, contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(f"{place}/s")
        sock.listen()
        yield f"unix:{place}/s"


class Thread:
    """Calls ``function`` in a thread; the outcome is asked for with a deadline."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return self._value

    def error(self) -> BaseException:
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            self.result()
        return caught.value


def waiting(calls: int) -> None:
    """Wait until so many calls wait in the loop's thread."""
    until(lambda: len(the_loop().calls) == calls, f"{calls} calls")


def program(source: str, *arguments: str, prelude: str = "") -> Program:
    begin = "import os, signal, sys, threading\nimport spiceshm, spiceshm.sync\n"
    return script(begin + textwrap.dedent(source), *arguments, prelude=prelude)


def runs(source: str, *arguments: str, status: int = 0, prelude: str = "") -> list[str]:
    """Run a program to its end, which has to be in order; returns the lines that it printed."""
    with program(source, *arguments, prelude=prelude) as running:
        lines = running.rest().splitlines()
        assert (running.errors, running.status) == ("", status)
    return lines


# The same as the async calls


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def shape(function: Any) -> str:
    """The signature, read without ``await``."""
    return re.sub(r"\bAsync(?=Iterator)|(?<=Abstract)Async|\btrio\.", "", str(function))


MIRRORED = [
    (client.RemoteDisplay, spiceshm.sync.RemoteDisplay),
    (desktops.Desktop, spiceshm.sync.Desktop),
]
OF_ITS_OWN = {"close", "display"}


@pytest.mark.parametrize(("original", "mirror"), MIRRORED, ids=lambda kind: kind.__module__)
def test_every_name_is_there_with_the_same_signature_and_words(
    original: type, mirror: type
) -> None:
    assert public(mirror) == public(original) | {"close"}
    for name in public(original) - OF_ITS_OWN:
        theirs, ours = vars(original)[name], vars(mirror)[name]
        assert type(theirs) is type(ours)
        assert ours.__doc__ == re.sub(r"\b(async|await) ", "", theirs.__doc__)
        if isinstance(theirs, property):
            theirs, ours = theirs.fget, ours.fget
        assert shape(inspect.signature(theirs)) == shape(inspect.signature(ours)), name


@pytest.mark.parametrize("name", ["connect", "desktop"])
def test_what_opens_takes_what_the_async_one_takes(name: str) -> None:
    theirs, ours = (inspect.signature(getattr(end, name)) for end in (spiceshm, spiceshm.sync))
    assert theirs.parameters == ours.parameters
    assert shape(theirs.return_annotation) == f"Iterator[{ours.return_annotation}]"


# Looking


def test_frames_come_with_a_block_and_without(drawer: Drawer) -> None:
    display = spiceshm.sync.connect(drawer.address)
    assert (display.width, display.height, display.shared) == (64, 48, True)
    assert display.reason is None
    assert display.segment_bytes > 0
    assert str(display.address) == drawer.address
    frames = display.frames()
    first = next(frames)
    drawer.draw()
    for frame in frames:
        assert frame.serial == first.serial + 1
        break
    with pytest.raises(ValueError, match="was released"):
        _ = first.pixels
    assert display.pixel_bytes >= 2 * 64 * 48 * 4
    assert display.wire_bytes > 0
    assert display.stale == []
    assert display.images == {}
    display.close()
    display.close()
    with spiceshm.sync.connect(drawer.address, shm="off") as display:
        assert display.reason
        assert next(display.frames()).pixels.shape == (48, 64, 4)
    with pytest.raises(spiceshm.Disconnected, match="the connection was closed here"):
        next(display.frames())
    del frame


def test_an_iterator_keeps_its_display(drawer: Drawer) -> None:
    frames = spiceshm.sync.connect(drawer.address).frames()
    gc.collect()
    next(frames)
    drawer.draw()
    next(frames)
    frames._display.close()


def test_frames_are_given_back_on_any_thread(drawer: Drawer) -> None:
    """A view that dies in another thread, while the loop sleeps, makes room for the next frame."""
    with spiceshm.sync.connect(drawer.address, credits=1) as display:
        frames = display.frames()
        views = [next(frames).pixels]
        drawer.draw()
        looking = Thread(lambda: next(frames).serial)
        waiting(1)
        Thread(views.clear).result()
        assert looking.result() == 2


def test_two_threads_wait_on_one_display_and_a_third_calls(drawer: Drawer) -> None:
    with spiceshm.sync.connect(drawer.address) as display:
        next(display.frames())
        both = [Thread(lambda: next(display.frames()).serial) for _ in range(2)]
        waiting(2)
        assert Thread(lambda: display.shared).result()
        with spiceshm.sync.connect(drawer.address) as another:
            next(another.frames())
        drawer.draw()
        until(lambda: len(the_loop().calls) == 1)
        drawer.draw()
        assert {thread.result() for thread in both} == {2, 3}


def test_who_loops_in_one_thread_keeps_his_frame_when_another_looks(drawer: Drawer) -> None:
    with spiceshm.sync.connect(drawer.address) as display:
        mine = next(display.frames())
        drawer.draw()
        assert Thread(lambda: next(display.frames()).serial).result() == mine.serial + 1
        assert mine.pixels.shape == (48, 64, 4)


def test_what_waits_for_changes(drawer: Drawer) -> None:
    with spiceshm.sync.connect(drawer.address) as display:
        first = display.latest()
        changed = Thread(lambda: display.wait_change((0, 0, 1, 1)).serial)
        waiting(1)
        drawer.draw()
        assert changed.result() == first.serial + 1
        assert display.wait_change(since=first, timeout=0).serial == first.serial + 1
        with pytest.raises(spiceshm.Timeout, match="nothing changed in the picture within 0 s"):
            display.wait_change(timeout=0)
        assert display.wait_stable(0.01).serial == first.serial + 1
        assert display.screenshot((0, 0, 2, 3)).shape == (2, 3, 3)
        assert 0 <= display.silent_s < DEADLINE
        assert first.pixels.shape == (48, 64, 4)


def test_acting(drawer: Drawer) -> None:
    with spiceshm.sync.connect(drawer.address) as display:
        display.key("a")
        assert drawer.events(2) == [(30, True), (30, False)]
        with display.hold_button("right"):
            assert drawer.events(1) == [(3, True)]
            display.move(3, 4)
            display.move_by(1, 1)
        assert drawer.events(1) == [(3, False)]
        display.click(5, 6)
        display.type("a")
        display.double_click()
        display.drag(1, 1, 8, 8, "middle")
        display.scroll(1)
        numbers = [number for number, _ in drawer.events(12)]
        assert numbers == [1, 1, 30, 30, 1, 1, 1, 1, 2, 2, 5, 5]
        assert display.cursor().shape is None
        with pytest.raises(spiceshm.CannotType), display.hold("nothing like it"):
            pass
    with spiceshm.sync.connect(drawer.address, view_only=True) as display:
        with pytest.raises(spiceshm.ViewOnly):
            display.key("a")


def test_what_is_held_comes_up_when_the_block_is_interrupted(drawer: Drawer) -> None:
    source = """
        with spiceshm.sync.connect(sys.argv[1]) as display:
            next(display.frames())
            try:
                with display.hold("a"):
                    print("waiting", flush=True)
                    display.wait_change(timeout=None)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            os.kill(int(sys.argv[2]), signal.SIGUSR1)
            display.wait_change()
            print("as before")
    """
    interrupted(source, drawer.address, str(drawer.pid))
    assert drawer.events(2) == [(30, True), (30, False)]


@pytest.mark.peer("Xvfb", "xterm")
def test_a_desktop_and_the_programs_on_it() -> None:
    with spiceshm.sync.desktop("sleep", "1000", width=320, height=200) as desktop:
        assert desktop.display.screenshot().shape == (200, 320, 3)
        assert desktop.environment["DISPLAY"] == desktop.x_display
        with spiceshm.sync.connect(desktop.address) as another:
            assert (another.width, another.height) == (320, 200)
        assert desktop.run("true").wait() == 0
        process = desktop.process
        assert process is not None
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert desktop.wait() == process.wait() == process.poll() == -signal.SIGTERM
        with pytest.raises(spiceshm.SourceError, match="no-such-program"):
            desktop.run("no-such-program")
        changed = Thread(lambda: desktop.display.wait_change(timeout=DEADLINE))
        desktop.run("xterm")
        changed.result()
        waiter = Thread(lambda: desktop.display.wait_change(since=1 << 60, timeout=None))
        waiting(1)
    assert re.search("the connection was closed here", str(waiter.error()))
    with pytest.raises(spiceshm.Disconnected):
        process.wait()


def test_the_server_is_heard_while_nobody_calls(drawer: Drawer) -> None:
    with spiceshm.sync.connect(drawer.address) as display:
        silent = [display.silent_s]

        def heard() -> bool:
            silent.append(display.silent_s)
            return silent[-1] < silent[-2]

        until(heard)


# Errors


def test_what_goes_wrong_begins_at_the_users_line(drawer: Drawer) -> None:
    with pytest.raises(spiceshm.ConnectError, match=r"^unix:/none/s: no server is") as refused:
        spiceshm.sync.connect("unix:/none/s")
    with pytest.raises(ValueError, match="not 1 to 8"):
        spiceshm.sync.connect("unix:/none/s", credits=9)
    with spiceshm.sync.connect(drawer.address) as display:
        frames = display.frames()
        next(frames)
        drawer.process.kill()
        with pytest.raises(spiceshm.Disconnected, match=r": the (other end|connection) ") as gone:
            next(frames)
    for error in (refused.value, gone.value):
        report = traceback.format_exception(error)
        assert re.findall(r'File "(.*?)"', report[1]) == [__file__]
        assert "Exception Group" not in "".join(report)
        assert "During handling" not in "".join(report)
        assert "direct cause" not in "".join(report)


def test_each_thread_gets_an_error_of_its_own(drawer: Drawer) -> None:
    display = spiceshm.sync.connect(drawer.address)
    next(display.frames())
    both = [Thread(lambda: next(display.frames())) for _ in range(2)]
    waiting(2)
    display.close()
    first, second = (thread.error() for thread in both)
    assert type(first) is type(second) is spiceshm.Disconnected
    assert str(first) == str(second) == f"{drawer.address}: the connection was closed here"
    assert first is not second
    assert first.__context__ is first.__cause__ is None


@pytest.mark.parametrize(
    "error",
    [
        spiceshm.RemoteProtocolError("display.shm_damage", "rects", "are too many"),
        spiceshm.LinkRefused(7, "no"),
        spiceshm.MemoryRefused("no room", Refusal.TOO_SMALL),
        spiceshm.Timeout("too late"),
        KeyError("whatever else"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_arrive_as_they_were(error: Exception) -> None:
    async def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        the_loop().call(fail)
    assert str(caught.value) == str(error)
    assert vars(caught.value) == vars(error)


def test_what_ends_a_host_is_told_to_who_waits_and_only_once() -> None:
    fail = trio.Event()

    @contextlib.asynccontextmanager
    async def failing() -> AsyncIterator[int]:
        async with trio.open_nursery() as nursery:

            async def task() -> None:
                await fail.wait()
                raise spiceshm.SourceError("the source ended")

            nursery.start_soon(task)
            yield 5

    host = Host(the_loop(), "here")
    assert host.open(failing) == 5
    waiter = Thread(lambda: host.call(trio.sleep_forever))
    waiting(1)
    the_loop().soon(fail.set)
    assert repr(waiter.error()) == "SourceError('the source ended')"
    assert not host.alive
    host.close()

    host = Host(the_loop(), "here")
    host.open(failing)
    until(lambda: not host.alive)
    with pytest.raises(spiceshm.SourceError, match="the source ended"):
        host.close()


class Held:
    """An async context manager that knows which task it is in, and whether it was left."""

    def __init__(self) -> None:
        self.left = 0

    async def __aenter__(self) -> str:
        self._task = trio.lowlevel.current_task()
        return "held"

    async def __aexit__(self, *_: object) -> None:
        assert trio.lowlevel.current_task() is self._task
        self.left += 1


def test_what_is_held_is_let_go_with_the_block_and_with_the_display(drawer: Drawer) -> None:
    with spiceshm.sync.connect(drawer.address) as display:
        held = Held()
        with Host(display._host, "held").opened(lambda: held) as value:
            assert value == "held"
            assert not held.left
        assert held.left == 1

        def wrong() -> None:
            with Host(display._host, "held").opened(lambda: held):
                raise KeyError("wrong")

        with pytest.raises(KeyError, match="wrong") as caught:
            wrong()
        assert caught.value.__context__ is None
        assert held.left == 2
        with Host(display._host, "held").opened(lambda: held):
            display.close()
            assert held.left == 3
    assert held.left == 3


# Ctrl-C


def interrupted(source: str, *arguments: str) -> None:
    """Run a program, interrupt it when it says "waiting", and see that it says "interrupted"."""
    with program(source, *arguments) as running:
        assert running.line() == "waiting"
        running.send(signal.SIGINT)
        assert running.line() == "interrupted"
        assert running.rest() == "as before\n"
        assert (running.errors, running.status) == ("", 0)


def test_signals_stay_as_they_were(drawer: Drawer) -> None:
    said = runs(
        """
        def state():
            handlers = [signal.getsignal(number) for number in signal.valid_signals()]
            wakeup = signal.set_wakeup_fd(-1)
            signal.set_wakeup_fd(wakeup)
            return handlers, wakeup, signal.pthread_sigmask(signal.SIG_BLOCK, ())
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)
        before = state()
        with spiceshm.sync.connect(sys.argv[1]) as display:
            next(display.frames())
            print(state() == before)
        print(state() == before)
        """,
        drawer.address,
    )
    assert said == ["True", "True"]


def test_a_blocked_call_is_interrupted_and_the_display_used_on(drawer: Drawer) -> None:
    source = """
        from spiceshm.background import the_loop
        display = spiceshm.sync.connect(sys.argv[1])
        frames = display.frames()
        next(frames)
        try:
            print("waiting", flush=True)
            next(frames)
        except KeyboardInterrupt as error:
            assert not the_loop().calls, "something goes on"
            assert error.__context__ is None
            print("interrupted", flush=True)
        os.kill(int(sys.argv[2]), signal.SIGUSR1)
        assert next(frames).serial == 2
        print("as before")
    """
    interrupted(source, drawer.address, str(drawer.pid))


def test_connecting_is_interrupted_and_leaves_nothing(silent: str) -> None:
    source = """
        from spiceshm.background import the_loop
        the_loop()
        before = os.listdir("/proc/self/fd")
        try:
            print("waiting", flush=True)
            spiceshm.sync.connect(sys.argv[1])
        except KeyboardInterrupt:
            assert not the_loop().hosts and not the_loop().calls
            assert os.listdir("/proc/self/fd") == before
            print("interrupted", flush=True)
        print("as before")
    """
    interrupted(source, silent)


def test_whatever_a_signal_handler_raises_interrupts(drawer: Drawer) -> None:
    said = runs(
        """
        def too_long(*_):
            raise TimeoutError("too long")
        signal.signal(signal.SIGALRM, too_long)
        with spiceshm.sync.connect(sys.argv[1]) as display:
            next(display.frames())
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            try:
                next(display.frames())
            except TimeoutError as error:
                print(error)
        """,
        drawer.address,
    )
    assert said == ["too long"]


def test_what_was_interrupted_has_ended_and_who_insists_does_not_wait() -> None:
    """The call cleans up until it is allowed to end: Ctrl-C waits for that, the second does not."""
    source = """
        import trio
        from spiceshm.background import the_loop
        loop, cleaned = the_loop(), threading.Event()
        async def stubborn():
            try:
                print("waiting", flush=True)
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    print("cleaning", flush=True)
                    while not cleaned.is_set():
                        await trio.sleep(0.01)
        for insist in (False, True):
            cleaned.clear()
            if not insist:
                signal.signal(signal.SIGUSR1, lambda *_: cleaned.set())
            try:
                loop.call(stubborn)
            except KeyboardInterrupt:
                print("interrupted", cleaned.is_set(), len(loop.calls), flush=True)
        cleaned.set()
    """
    with program(source) as running:
        for second, outcome in (
            (signal.SIGUSR1, "interrupted True 0"),
            (signal.SIGINT, "interrupted False 1"),
        ):
            assert running.line() == "waiting"
            running.send(signal.SIGINT)
            assert running.line() == "cleaning"
            running.send(second)
            assert running.line() == outcome
        assert running.rest() == ""
        assert (running.errors, running.status) == ("", 0)


def test_interruptions_at_any_moment_leave_the_display_usable(drawer: Drawer) -> None:
    """Signals that come as they like: never a hang, never another error.

    Each is repeated after a second: Python itself sleeps on when one comes between its last look
    for signals and the system call that waits.
    """
    said = runs(
        """
        class Now(Exception):
            pass
        def now(*_):
            raise Now
        with spiceshm.sync.connect(sys.argv[1]) as display:
            next(display.frames())
            signal.signal(signal.SIGALRM, now)
            hits = 0
            for step in range(300):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 + step * 1e-6, 1.0)
                    next(display.frames())
                except Now:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    hits += 1
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            os.kill(int(sys.argv[2]), signal.SIGUSR1)
            print(hits, next(display.frames()).serial)
        """,
        drawer.address,
        str(drawer.pid),
    )
    assert said == ["300 2"]


# Forks


FORK = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python's own word on forks with threads

def fork(child):
    pid = os.fork()
    if not pid:
        child()
        sys.stdout.flush()
        os._exit(0)
    return pid

def wait(pid):
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_after_a_fork_the_display_is_the_parents_and_the_child_connects_anew(
    drawer: Drawer,
) -> None:
    said = runs(
        """
        import trio
        display = spiceshm.sync.connect(sys.argv[1])
        frames = display.frames()
        frame = next(frames)
        def child():
            for call in (frames.__next__, display.frames().__next__):
                try:
                    call()
                except spiceshm.Disconnected as error:
                    print(str(error).removeprefix(sys.argv[1]))
            run_sync_soon = trio.lowlevel.TrioToken.run_sync_soon
            del trio.lowlevel.TrioToken.run_sync_soon  # who wakes the parent's loop is heard
            frame.release()
            display.close()
            trio.lowlevel.TrioToken.run_sync_soon = run_sync_soon
            with spiceshm.sync.connect(sys.argv[1]) as mine:
                print("child", next(mine.frames()).serial)
        wait(fork(child))
        os.kill(int(sys.argv[2]), signal.SIGUSR1)
        print("parent", next(frames).serial)
        """,
        drawer.address,
        str(drawer.pid),
        prelude=FORK,
    )
    words = ": the connection belongs to the parent process; make a new one here"
    assert said == [words, words, "child 1", "parent 2"]


def test_the_server_sees_the_parents_end_while_a_child_lives(drawer: Drawer) -> None:
    """The child ends when the pipe that the test holds does: after the server has said so."""
    source = """
        display = spiceshm.sync.connect(sys.argv[1])
        next(display.frames())
        def child():
            print("forked", os.getpid(), flush=True)
            signal.pause()
        fork(child)
        signal.pause()
    """
    with program(source, drawer.address, prelude=FORK) as parent:
        child = int(parent.line().removeprefix("forked "))
        try:
            parent.process.kill()
            drawer.sees_end()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_that_runs_on_ends_in_order(drawer: Drawer) -> None:
    said = runs(
        """
        display = spiceshm.sync.connect(sys.argv[1])
        with display:
            pid = os.fork()
            if not pid:
                threading.Thread(target=print, args=("child",)).start()
        if pid:
            wait(pid)
            print("parent")
        """,
        drawer.address,
        prelude=FORK,
    )
    assert said == ["child", "parent"]


# Ends


def test_what_is_open_is_closed_with_the_interpreter(drawer: Drawer) -> None:
    """Also what another thread waits for, and what is called afterwards is told so."""
    said = runs(
        """
        import atexit
        def too_late():
            for call in (display.frames().__next__, spiceshm.sync.connect):
                try:
                    call()
                except (spiceshm.Disconnected, RuntimeError) as error:
                    print(type(error).__name__, str(error).removeprefix(sys.argv[1]))
            display.close()
        from spiceshm import background
        atexit.unregister(background._exit)
        atexit.register(too_late)
        atexit.register(background._exit)
        display = spiceshm.sync.connect(sys.argv[1])
        forgotten = spiceshm.sync.connect(sys.argv[1])
        next(display.frames())
        def look():
            print("never", next(display.frames()))
        threading.Thread(target=look, daemon=True).start()
        while not background.the_loop().calls:
            pass
        atexit.register(lambda: print("open", display.frames() is not None))
        """,
        drawer.address,
    )
    assert said == [
        "open True",
        "Disconnected : the interpreter is ending",
        "RuntimeError spiceshm.sync: the interpreter is ending",
    ]
    drawer.sees_end()
    drawer.sees_end()
    assert drawer.errors == ""


def test_threads_finish_before_the_end(drawer: Drawer) -> None:
    """The main thread is done; another one still looks."""
    said = runs(
        """
        display = spiceshm.sync.connect(sys.argv[1])
        frames = display.frames()
        next(frames)
        ended = threading.main_thread().join
        def look():
            ended()
            os.kill(int(sys.argv[2]), signal.SIGUSR1)
            print(next(frames).serial)
        threading.Thread(target=look).start()
        """,
        drawer.address,
        str(drawer.pid),
    )
    assert said == ["2"]


def test_who_forgets_a_display_is_told_and_it_is_closed(drawer: Drawer) -> None:
    display = spiceshm.sync.connect(drawer.address)
    with pytest.warns(ResourceWarning, match=rf"^{drawer.address}: the display was never closed"):
        del display
    drawer.sees_end()
    until(lambda: not the_loop().hosts)


def test_a_loop_that_breaks_tells_everybody_and_is_replaced() -> None:
    loop = Loop()
    host = Host(loop, "here")
    host.open(Held)
    waiter = Thread(lambda: host.call(trio.sleep_forever))
    until(lambda: loop.calls)
    loop.soon(lambda: 1 // 0)
    error = waiter.error()
    assert str(error).startswith("here: its thread has ended: TrioInternalError(")
    with pytest.raises(RuntimeError, match="its thread has ended: TrioInternalError"):
        loop.call(trio.sleep_forever)
    host.close()


def test_no_thread_can_be_had() -> None:
    said = runs(
        """
        import resource
        import spiceshm.background
        low = len(os.listdir("/proc/self/fd")) - 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, low * 100))
        try:
            spiceshm.sync.connect("unix:/none/s")
        except RuntimeError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_NOFILE, (low * 100, low * 100))
        try:
            spiceshm.sync.connect("unix:/none/s")
        except spiceshm.ConnectError as error:
            print(error)
        """
    )
    assert re.match(r"spiceshm.sync: its thread has ended: OSError\(24", said[0])
    assert said[1].startswith("unix:/none/s: no server")


class Finalised:
    """Calls ``last`` when the garbage collector finds it."""

    def __init__(self, last: Callable[[], object]) -> None:
        self.itself = self
        self._last = last

    def __del__(self) -> None:
        self._last()


def test_finalisers_in_the_loops_own_thread_do_not_wait_for_it(drawer: Drawer) -> None:
    display = spiceshm.sync.connect(drawer.address)
    said: list[str] = []

    def last() -> None:
        try:
            next(display.frames())
        except RuntimeError as error:
            said.append(str(error))
        display.close()

    Finalised(last)
    the_loop().call(trio.lowlevel.checkpoint)
    the_loop().soon(gc.collect)
    until(lambda: not display._host.alive)
    assert re.match("spiceshm.sync is called in its own thread", said[0])
    display.close()


# Where it is used


@contextlib.contextmanager
def at_most(seconds: float, end: Callable[[], None]) -> Iterator[None]:
    """Call ``end`` after the block, or when it takes too long."""
    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        end()


def test_in_a_session_at_the_prompt(drawer: Drawer) -> None:
    """The interpreter reads lines; Ctrl-C brings the prompt back."""
    with (
        subprocess.Popen(
            [sys.executable, "-i", "-q"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            text=True,
            bufsize=1,
        ) as session,
        at_most(DEADLINE, session.kill),
    ):
        assert session.stdin is not None
        assert session.stdout is not None
        assert session.stderr is not None
        lines = (
            "import spiceshm.sync",
            f"display = spiceshm.sync.connect({drawer.address!r})",
            "frames = display.frames()",
            "print(next(frames).serial, flush=True)",
            "print('waiting', flush=True); next(frames)",
        )
        session.stdin.write("\n".join(lines) + "\n")
        assert [session.stdout.readline() for _ in range(2)] == ["1\n", "waiting\n"]
        session.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt\n" in iter(session.stderr.readline, "")
        drawer.draw()
        out, errors = session.communicate("print(next(frames).serial)\n", timeout=DEADLINE)
        assert out == "2\n"
        assert "Traceback" not in errors
        assert session.returncode == 0
    drawer.sees_end()


async def _notebook(address: str, draw: Callable[[], None]) -> list[int]:
    """A cell is run in the thread of a running asyncio loop."""
    await asyncio.sleep(0)
    with spiceshm.sync.connect(address) as display:
        serials = []
        for frame in display.frames():
            serials.append(frame.serial)
            await asyncio.sleep(0)
            if len(serials) == 2:
                return serials
            draw()
    raise AssertionError("unreachable")


def test_in_a_notebook_whose_thread_runs_asyncio(drawer: Drawer) -> None:
    assert asyncio.run(_notebook(drawer.address, drawer.draw)) == [1, 2]


async def test_in_a_trio_task_it_blocks_and_works(drawer: Drawer) -> None:
    with spiceshm.sync.connect(drawer.address) as display:
        assert next(display.frames()).serial == 1


def test_nothing_wakes_while_nothing_happens(drawer: Drawer) -> None:
    """Counted over a second: a heartbeat a second is what a server may send."""
    said = runs(
        """
        import time
        def switches():
            total = 0
            for task in os.listdir("/proc/self/task"):
                for line in open(f"/proc/self/task/{task}/status"):
                    if int(task) != os.getpid() and line.startswith("voluntary"):
                        total += int(line.split()[1])
            return total
        with spiceshm.sync.connect(sys.argv[1]) as display:
            next(display.frames())
            looker = threading.Thread(target=lambda: next(display.frames()))
            looker.start()
            time.sleep(0.5)
            before = switches()
            time.sleep(1)
            print(switches() - before)
            os.kill(int(sys.argv[2]), signal.SIGUSR1)
            looker.join()
        """,
        drawer.address,
        str(drawer.pid),
    )
    assert int(said[0]) <= 6


def test_a_real_server_and_a_moving_picture() -> None:
    with serving("--surface", "64x48", "--fps", "100") as server:
        with spiceshm.sync.connect(server.address, shm="require") as display:
            frames = display.frames()
            serials = [next(frames).serial for _ in range(50)]
        assert serials == sorted(set(serials))
