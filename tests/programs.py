"""The two programs as processes of their own, for tests that run them as a user does.

    with serving("--surface", "64x48") as server:      # it listens when the block begins
        result = look("--json", server.address)        # spiceshm-client, run to its end
    assert server.status == 0

A program may be started with a *prelude*: Python that runs in it first, to take privileges or
memory away from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

DEADLINE = 30.0
"""Seconds that anything may take that takes a tenth of one on a machine with nothing else to do."""

NO_PRIVILEGES = """
import ctypes
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
"""
"""A prelude: root without any of root's rights; for others without effect. Of this thread only."""


def limited(**limits: int) -> str:
    """A prelude that sets soft resource limits: ``limited(NOFILE=64)``."""
    lines = ["import resource as r"]
    for name, value in limits.items():
        lines.append(f"r.setrlimit(r.RLIMIT_{name}, ({value}, r.getrlimit(r.RLIMIT_{name})[1]))")
    return "\n".join(lines) + "\n"


def until(condition: Callable[[], T], what: str = "", seconds: float = DEADLINE) -> T:
    """Ask ``condition`` again and again until it says something true; returns that."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what or condition}")
        time.sleep(0.005)
    return answer


def without_privileges(function: Callable[[], T]) -> T:
    """Call ``function`` in a thread that has none of root's rights, and return what it returns."""
    outcome: list[Any] = []

    def run() -> None:
        exec(NO_PRIVILEGES, {})
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A fresh directory whose path leaves room for the name of a socket (at most 107 bytes)."""
    with tempfile.TemporaryDirectory(prefix="spiceshm-test-", dir="/tmp") as path:
        yield Path(path)


class Program:
    """A process that is killed, if nothing else ended it, when the block ends."""

    def __init__(self, command: list[str], env: dict[str, str] | None = None) -> None:
        self._errors = os.memfd_create("stderr", os.MFD_CLOEXEC)
        self._last_words = ""
        self.process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment() if env is None else env,
        )
        self.pid = self.process.pid
        self._begun = b""

    def line(self) -> str:
        """The next line that it prints. Raises EOFError if it ends without one."""
        assert self.process.stdout is not None
        end = time.monotonic() + DEADLINE
        while b"\n" not in self._begun:
            left = max(0.0, end - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise TimeoutError(f"no line within {DEADLINE:g} s")
            some = os.read(self.process.stdout.fileno(), 4096)
            if not some:
                raise EOFError(f"ended without a line; it said: {self.errors}")
            self._begun += some
        line, _, self._begun = self._begun.partition(b"\n")
        return line.decode()

    @property
    def errors(self) -> str:
        """All that it has said on stderr so far."""
        if self._errors < 0:
            return self._last_words
        return os.pread(self._errors, os.fstat(self._errors).st_size, 0).decode()

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs, negative if a signal killed it."""
        return self.process.poll()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(DEADLINE)

    def rest(self) -> str:
        """Wait for its end; what it printed that was not read yet."""
        out, _ = self.process.communicate(timeout=DEADLINE)
        return (self._begun + out).decode()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._last_words = self.errors
        os.close(self._errors)
        self._errors = -1


def script(source: str, *arguments: str, prelude: str = "") -> Program:
    """A Python process that runs ``source``."""
    return Program([sys.executable, "-c", prelude + source, *arguments])


def command(program: str, *arguments: str, prelude: str = "") -> list[str]:
    """How to run "server" or "client" with the interpreter that runs the tests."""
    module = f"spiceshm.cli.{program}"
    if not prelude:
        return [sys.executable, "-m", module, *arguments]
    run = f"import sys\nfrom {module} import main\nsys.exit(main())\n"
    return [sys.executable, "-c", prelude + run, *arguments]


def environment(runtime: Path | None = None, **more: str) -> dict[str, str]:
    """Ours without what would make a program behave differently from machine to machine."""
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("XDG_RUNTIME_DIR", "DISPLAY", "SPICESHM_DEBUG", "SPICESHM_PASSWORD")
        and not name.startswith("PYTHON")
    }
    if runtime is not None:
        env["XDG_RUNTIME_DIR"] = str(runtime)
    return {**env, "COLUMNS": "200", **more}


class Server(Program):
    """A ``spiceshm-server`` that listens."""

    def __init__(self, *arguments: str, prelude: str = "", runtime: Path | None = None) -> None:
        super().__init__(
            command("server", "--json", *arguments, prelude=prelude), environment(runtime)
        )
        try:
            self.said: dict[str, Any] = json.loads(self.line())
        except BaseException:
            self.__exit__()
            raise
        self.addresses: list[str] = [place["address"] for place in self.said["listening"]]
        self.address = self.addresses[0]


@contextlib.contextmanager
def serving(
    *arguments: str, at: str | None = None, prelude: str = "", runtime: Path | None = None
) -> Iterator[Server]:
    """A server at ``at``, or at a socket in a directory of its own; told to end with the block."""
    with contextlib.ExitStack() as stack:
        if at is None and runtime is None and "--listen" not in arguments:
            at = f"unix:{stack.enter_context(short_directory())}/s"
        listen = ("--listen", at) if at else ()
        server = stack.enter_context(Server(*listen, *arguments, prelude=prelude, runtime=runtime))
        yield server
        if server.status is None:
            server.send(signal.SIGTERM)
            server.wait()


def run(
    program: str,
    *arguments: str,
    prelude: str = "",
    runtime: Path | None = None,
    seconds: float = DEADLINE,
) -> subprocess.CompletedProcess[bytes]:
    """Run "server" or "client" to its end."""
    return subprocess.run(
        command(program, *arguments, prelude=prelude),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(runtime),
        timeout=seconds,
    )


def look(*arguments: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    """Run ``spiceshm-client`` to its end."""
    return run("client", *arguments, **more)


_FORKS = """
import json, os, sys, traceback
from spiceshm.cli import client, looking, server, serving

def child(program, words):
    sys.argv = ["", *words]
    try:
        status = {"client": client, "server": server}[program].main()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

outcomes = []
for program, words in json.load(sys.stdin):
    files = [os.memfd_create("out"), os.memfd_create("err")]
    pid = os.fork()
    if not pid:
        os.dup2(files[0], 1)
        os.dup2(files[1], 2)
        child(program, words)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    outcomes.append([status, *(os.pread(file, 1 << 20, 0).decode() for file in files)])
json.dump(outcomes, sys.stdout)
"""
"""Runs the programs again and again in one process that has imported them once."""


def forked(cases: list[tuple[str, list[str]]], runtime: Path) -> list[tuple[int, str, str]]:
    """Run programs with arguments, one after another; of each exit status, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKS],
        input=json.dumps(cases).encode(),
        stdout=subprocess.PIPE,
        env=environment(runtime),
        timeout=2 * DEADLINE,
        check=True,
    )
    return [(status, out, err) for status, out, err in json.loads(done.stdout)]


def mapped(pid: int) -> list[tuple[str, str]]:
    """The shared memory that a process maps: permissions and name, as /proc/PID/maps has them."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    fields = [line.split(None, 5) for line in lines]
    return [(f[1], f[5]) for f in fields if len(f) == 6 and f[5].startswith("/memfd:spiceshm")]


def processes_with(mark: str) -> set[int]:
    """The processes that live and have ``mark`` in their environment."""
    found = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in Path(entry.path, "environ").read_bytes():
                    found.add(int(entry.name))
    return found
