"""A trio loop in a thread of its own, for programs that know no ``await``.

Strategy: a call of such a program is a task in the loop's thread (`_Call`), and its caller sleeps
on a lock until that task has ended: nothing polls, and a signal interrupts the main thread at once.
What stays open between calls, as a connection, is an async context manager that a task of its own
enters and leaves (`Host`); calls on it are tasks inside of it, so that they end before it does. The
loop's thread waits for no other: whoever is interrupted, forks or exits cannot hold it up.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import trio

from .errors import Disconnected, SpiceShmError
from .transport import close_copies

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

T = TypeVar("T")

END_S = 10.0
"""How long the interpreter's end waits for connections to close; they take milliseconds."""

_CLOSED = "the connection was closed here"
_ENDING = "the interpreter is ending"
_PARENTS = "the connection belongs to the parent process; make a new one here"


class _Gate:
    """One waits until another opens it, once. The opener never waits, the waiter does not poll."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._open = False

    def open(self) -> None:
        if not self._open:
            self._open = True
            self._lock.release()

    def wait(self) -> None:
        """Also for the second time, after the first was interrupted."""
        if not self._open:
            self._lock.acquire()


class _Call(Generic[T]):
    """A call of an ordinary thread: ``function`` runs in the loop's thread, inside ``place``."""

    def __init__(self, place: Place, function: Callable[[], Awaitable[T]]) -> None:
        self.place = place
        self.ended = _Gate()
        self._function = function
        self._scope = trio.CancelScope()
        self._begun = False
        self._value: T | None = None
        self._error: BaseException | None = None

    # In the loop's thread

    def begin(self) -> None:
        self._begun = True
        nursery = self.place.nursery
        if nursery is None:
            self.place.refuse(self)
        else:
            nursery.start_soon(self._run)

    def give_up(self) -> None:
        """Cancel it; ``ended`` opens when it has ended. It may never have begun."""
        if self._begun:
            self._scope.cancel()
        else:
            self.end(None)

    async def _run(self) -> None:
        try:
            with self._scope:
                self._value = await self._function()
        except BaseException as error:
            failure = _failure_in(error)
            if failure is None:  # the place ends, and why is known when it has ended
                self.place.refuse(self)
                raise
            self.end(failure)
        else:
            self.end(None)

    # In any thread

    def end(self, error: BaseException | None) -> None:
        """``error`` is what the caller gets, None for the value."""
        self._error = error
        loop = self.place.loop
        loop.calls.discard(self)
        # Only daemon threads wait at the interpreter's end, and end with it: an error would be
        # printed there, where nobody can do anything about it.
        if not loop.exiting:
            self.ended.open()

    def result(self) -> T:
        """What the function returned or raised."""
        __tracebackhide__ = True
        error, self._error = self._error, None
        if error is None:
            return cast("T", self._value)
        try:
            raise _for_one_thread(error)
        finally:
            del error  # else it and this call's frame would keep each other


def _for_one_thread(error: BaseException) -> BaseException:
    """The end of a connection is one error that is told to everybody: each raises his own."""
    if not isinstance(error, SpiceShmError):
        return error
    same = type(error).__new__(type(error), *error.args)
    same.__dict__.update(error.__dict__)
    return same


def _failure_in(error: BaseException) -> BaseException | None:
    """What went wrong, apart from tasks that were cancelled; None if nothing did."""
    if isinstance(error, BaseExceptionGroup):
        _, failures = error.split(trio.Cancelled)
        while isinstance(failures, BaseExceptionGroup) and len(failures.exceptions) == 1:
            failures = failures.exceptions[0]
        return failures
    return None if isinstance(error, trio.Cancelled) else error


class Place:
    """Where calls run; ``nursery`` is None when no new ones are taken."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.nursery: trio.Nursery | None = None

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run ``function`` in the loop's thread; what it returns or raises comes out here.

        Interrupted, as by Ctrl-C, it is cancelled and has ended before the interruption is raised;
        a second interruption does not wait for that.
        """
        __tracebackhide__ = True  # pytest shows whose call it was, not how calls get there
        return self.loop.run(_Call(self, function))

    def refuse(self, call: _Call[Any]) -> None:
        """Nothing runs here any more: the caller is told why, as soon as that is known."""
        raise NotImplementedError

    def gone(self) -> BaseException:
        """Why nothing runs here any more."""
        raise NotImplementedError


class Loop(Place):
    """The thread and the loop in it. There is one in a process: `the_loop`."""

    def __init__(self) -> None:
        super().__init__(self)
        self.hosts: set[Host] = set()
        self.calls: set[_Call[Any]] = set()
        self.ended = False
        self.exiting = False
        self._why = _ENDING
        self._crash: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._end = trio.Event()
        self._ready = _Gate()
        self._thread = threading.Thread(target=self._run, name="spiceshm.sync", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._crash is not None:
            raise self.gone()

    def run(self, call: _Call[T]) -> T:
        """As `Place.call`."""
        __tracebackhide__ = True
        if self.here:
            raise RuntimeError(
                "spiceshm.sync is called in its own thread, by a finaliser that happened to run "
                "there: it would wait for itself"
            )
        try:
            self.calls.add(call)
            if self.soon(call.begin):
                call.ended.wait()
            else:
                call.end(call.place.gone())
        except BaseException:
            with contextlib.suppress(KeyboardInterrupt):
                if self.soon(call.give_up):
                    call.ended.wait()
            raise
        return call.result()

    @property
    def here(self) -> bool:
        """Whether the calling thread is the loop's own."""
        return threading.get_ident() == self._thread.ident

    def soon(self, function: Callable[[], object]) -> bool:
        """Call it in the loop's thread, without waiting; whether there is one. From any thread."""
        if self.ended or self._token is None:
            return False
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            return False
        return True

    def exit(self) -> None:
        """Close everything in order, at the interpreter's end."""
        self.exiting = True
        if self.soon(self._end.set):
            self._thread.join(END_S)

    def abandon(self) -> None:
        """In a forked child: all of this is the parent's, and there is no such thread here."""
        self.ended = True
        self._why = _PARENTS
        assert self._thread.ident is not None
        close_copies(self._thread.ident)
        self._refuse_all()

    def refuse(self, call: _Call[Any]) -> None:
        """All are told at the end of the thread."""

    def gone(self) -> BaseException:
        error = RuntimeError(f"spiceshm.sync: {self._why}")
        error.__cause__ = self._crash
        return error

    def why(self) -> str | None:
        """Why the loop has ended, None while it runs."""
        return self._why if self.ended else None

    # In the loop's thread

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._crash = error
            self._why = f"its thread has ended: {error!r}"
        self.ended = True
        self._ready.open()
        self._refuse_all()

    async def _main(self) -> None:
        async with trio.open_nursery() as self.nursery:
            self._token = trio.lowlevel.current_trio_token()
            self._ready.open()
            await self._end.wait()
            self.nursery = None
            for call in list(self.calls):
                call.give_up()
            for host in list(self.hosts):
                host.leave()

    def _refuse_all(self) -> None:
        for call in list(self.calls):
            call.end(call.place.gone())


class Host(Place):
    """Keeps an async context manager open, in a task inside of ``outer``.

    ``name`` stands before the reason where somebody calls when it is closed.
    """

    def __init__(self, outer: Place, name: str) -> None:
        super().__init__(outer.loop)
        self.name = name
        self._outer = outer
        self._leaving = trio.Event()
        self._left = trio.Event()
        self._alive = False
        self._refused: list[_Call[Any]] = []
        self._fate: BaseException | None = None
        self._told = False

    @property
    def alive(self) -> bool:
        """Whether it is open, in this process."""
        return self._alive and not self.loop.ended

    def open(self, manager: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        """Enter what ``manager`` returns; returns what that gives."""
        try:
            return self._outer.call(lambda: self._begin(manager))
        except BaseException:
            self.wait_closed()  # it may have been open already when that was interrupted
            raise

    def close(self) -> None:
        """Leave it and wait for that. Raises what made it end before, if no call has yet."""
        self.wait_closed()
        if self._fate is not None and not self._told:
            raise self.gone()

    def wait_closed(self) -> None:
        """Leave it and wait for that; a finaliser in the loop's own thread does not wait."""
        if self.loop.here:
            self.leave_soon()
        elif self.alive:
            self.loop.call(self._until_left)

    def leave_soon(self) -> None:
        """Leave it without waiting; safe in a finaliser."""
        if self.alive:
            self.loop.soon(self.leave)

    @contextlib.contextmanager
    def opened(self, manager: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
        """It is open during the block. What went wrong in the block is what is raised."""
        try:
            yield self.open(manager)
        except BaseException:
            self.wait_closed()
            raise
        self.close()

    def gone(self) -> BaseException:
        if self._fate is not None:
            self._told = True
            return self._fate
        return Disconnected(f"{self.name}: {self.loop.why() or _CLOSED}")

    # In the loop's thread

    def leave(self) -> None:
        self._leaving.set()

    def refuse(self, call: _Call[Any]) -> None:
        if not self._left.is_set():
            self._refused.append(call)
        elif self._fate is not None or self._leaving.is_set():
            call.end(self.gone())
        else:  # what it is in has ended, and it with that
            self._outer.refuse(call)

    async def _begin(self, manager: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        nursery = self._outer.nursery
        if nursery is None:
            raise self._outer.gone()
        value: T = await nursery.start(self._live, manager)
        return value

    async def _live(
        self,
        manager: Callable[[], AbstractAsyncContextManager[Any]],
        *,
        task_status: trio.TaskStatus[Any],
    ) -> None:
        self._alive = True
        self.loop.hosts.add(self)
        opened = False
        try:
            async with manager() as value:
                opened = True
                async with trio.open_nursery() as nursery:
                    self.nursery = nursery
                    task_status.started(value)
                    try:
                        await self._leaving.wait()
                    finally:
                        self.nursery = None
                    nursery.cancel_scope.cancel()
        except BaseException as error:
            failure = _failure_in(error)
            if failure is None or not opened:
                raise
            self._fate = failure
        finally:
            self._over()

    def _over(self) -> None:
        self._alive = False
        self.loop.hosts.discard(self)
        self._left.set()
        for call in self._refused:
            self.refuse(call)

    async def _until_left(self) -> None:
        if self._alive:
            self._leaving.set()
            await self._left.wait()


_loop: Loop | None = None
_starting = threading.RLock()
_exiting = False


def the_loop() -> Loop:
    """The process's loop; its thread is started when it is first asked for.

    Raises RuntimeError where no thread can be had, as while the interpreter is ending.
    """
    global _loop
    with _starting:
        if _exiting:
            raise RuntimeError(f"spiceshm.sync: {_ENDING}")
        if _loop is None or _loop.ended:
            _loop = Loop()
        return _loop


def _exit() -> None:
    global _exiting
    _exiting = True
    if _loop is not None:
        _loop.exit()


def _in_forked_child() -> None:
    global _loop, _starting
    _starting = threading.RLock()  # another thread may have held it
    parents, _loop = _loop, None
    if parents is not None:
        parents.abandon()


# When this module is imported: what a program registers later, and may call us, then runs before.
atexit.register(_exit)
os.register_at_fork(after_in_child=_in_forked_child)
