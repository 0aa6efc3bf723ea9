"""Which machine, and what ran besides."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from .floor import compiler

_PACKAGES = ("spiceshm", "numpy", "trio", "mss", "asyncvnc", "vncdotool", "iceoryx2")
BUSY = 0.5
"""A load, in processes, above which other programs disturb."""


def describe() -> dict[str, str | float]:
    """The machine in words, and its load now."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "compiler": _compiler(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        **{name: version for name in _PACKAGES if (version := _version(name))},
        "load": round(os.getloadavg()[0], 1),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            name = line.split(":", 1)[1].strip()
            virtual = " (virtual)" if _is_virtual() else ""
            return name + virtual
    return platform.processor() or platform.machine()


def _is_virtual() -> bool:
    return "hypervisor" in Path("/proc/cpuinfo").read_text()


def _compiler() -> str:
    command = compiler()
    if command is None:
        return "none"
    said = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    return said.stdout.splitlines()[0] if said.stdout else command


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
