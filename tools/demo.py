"""The main job, to look at: a server with the test pattern, a client on its memory, a live table.

Two processes, as a user would start them, on a socket of their own. Leaves demo.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER = [sys.executable, "-m", "spiceshm.cli.server"]
CLIENT = [sys.executable, "-m", "spiceshm.cli.client"]
PICTURE = Path("demo.png").absolute()


@contextmanager
def server(address: str, surface: str) -> Iterator[str]:
    """Run the server until the block ends; gives what it says it shows."""
    command = [*SERVER, "--surface", surface, "--listen", address, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        if not ready:
            raise SystemExit(process.wait() or 1)
        try:
            yield json.loads(ready)["source"]
        finally:
            process.terminate()


def main() -> int:
    options = argparse.ArgumentParser(
        prog="tools/demo", description="Show what spiceshm does, for a few seconds."
    )
    options.add_argument("--duration", default="5", help="seconds (default: 5)")
    options.add_argument("--surface", default="1920x1080", help="WxH (default: 1920x1080)")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="spiceshm-demo-") as directory:
        address = f"unix:{directory}/display.sock"
        with server(address, arguments.surface) as what:
            print(f"server: {what} at 60 frames/s", flush=True)
            print("client: another process, on the server's memory", flush=True)
            look = [*CLIENT, "--stats", "--json", "--duration", arguments.duration, address]
            done = subprocess.run(look, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                return done.returncode
            shot = subprocess.run([*CLIENT, "--screenshot", str(PICTURE), address], check=False)
    report(json.loads(done.stdout))
    if shot.returncode == 0:
        print(f"what the client saw: {PICTURE}")
    return shot.returncode


def report(seen: dict[str, object]) -> None:
    latency = seen["latency_us"]
    wire, pixels = int(seen["wire_bytes"]), int(seen["pixel_bytes"])
    assert isinstance(latency, dict)
    how = "shared memory" if seen["shm"] else f"ordinary SPICE ({seen['reason']})"
    print(f"{seen['frames']} frames in {seen['seconds']} s ({seen['fps']}/s) through {how}")
    print(f"published to seen: p50 {latency['p50']} us, p99 {latency['p99']} us")
    print(f"on the wire: {wire} bytes for {pixels} bytes of changed pixels (1:{pixels // wire})")
    print(f"torn frames: {seen['torn']}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
